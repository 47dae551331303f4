"""The loop of RMU: steer the forget set's activations, hold the retain set's, change a few matrices."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from spunge.errors import DataError, TrainingDiverged
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.settings import name_of
from spunge.steering.batches import Batch, Cut, orders, pad, tokenise
from spunge.steering.cache import StateCache
from spunge.steering.matrices import Matrices
from spunge.steering.memory import check_memory, estimate
from spunge.steering.settings import Steering, of_topic
from spunge.steering.truncated import Call, TruncatedModel, choose_parameters, load_truncated, positions
from spunge.training.checkpointing import LAST_GOOD, Record
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.task_vector import TaskVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROL_VECTORS = "control_vectors.safetensors"
SINK = 3.0
"""How many times the median's length makes a sink: in SmolLM2 sinks have 4 to 100 times, all other tokens up to 1.4."""

Figures = dict[str, Any]


def steer(
    settings: Steering,
    base: LanguageModel,
    forget: Corpus,
    retain: Corpus,
    work: Work,
    *,
    coefficient: Callable[[str, float], float],
) -> TaskVector:
    """Runs RMU's loop; see the settings for what can be chosen.

    Args:
        settings: What to do.
        base: The model, of which only the layers up to the steered one are read.
        forget: The forget set; its subsets are topics that take turns.
        retain: The retain set.
        work: How to run.
        coefficient: From a topic's name and the mean length of its activations to its steering coefficient.

    Raises:
        DataError: The retain set is smaller than a batch.
        ModelError: The architecture, the layer or the parameters are not to be had.
        TrainingDiverged: A loss or gradient became NaN or infinite; the weights before it are kept in the scratch.
    """
    task = prepare(settings, base, forget, retain, work.seed)
    states, matrices = _load(settings, base, task, work)
    model, topics = states.model, task.batches.topics
    # Before anything has changed, and on the first batch in file order: what c is measured on must not depend on a
    # shuffle.
    norms = {topic: states.mean_norm(task.batches.first(topic)) for topic in topics}
    coefficients = {topic: coefficient(topic, norm) for topic, norm in norms.items()}
    controls = {
        topic: coefficients[topic] * direction(settings, model.hidden_size, work.seed, topic) for topic in topics
    }
    safetensors.torch.save_file(controls, work.output / CONTROL_VECTORS)
    targets = {topic: control.to(model.device, _loss_dtype(settings, model)) for topic, control in controls.items()}
    # The key keeps checkpoints of other settings, weights or rows from being continued, whatever the scratch is called.
    record = Record(work, _key(settings, base, forget, task.retain, work))
    steps, stopped = Run(settings, states, matrices, targets, work).run(task, record)
    return TaskVector(
        model.stored(matrices.deltas()),
        provenance={
            "method": name_of(settings),
            "settings": settings.dump(),
            "steps": steps,
            "stopped": stopped,
            "batches_per_epoch": task.batches.count,
            "coefficients": coefficients,
            "mean_norms": norms,
        },
    )


def _load(settings: Steering, base: LanguageModel, task: Prepared, work: Work) -> tuple[States, Matrices]:
    """Loads the layers up to the steered one, which tasks on one device share, and copies what will change."""
    dtype = work.resident.dtype

    def load() -> TruncatedModel:
        check_memory(estimate(settings, base, task.parameters, tokens=task.batches.longest, dtype=dtype), work.device)
        return load_truncated(base, settings.layer + 1, device=work.device, dtype=dtype)

    model = work.resident.cached(("truncated", base, settings.layer + 1), load)
    cache = work.resident.cached("hidden states", StateCache)
    worth = worth_keeping(uses(settings, task.batches, task.steps), work.resident)
    states = States(model, base, settings.updated[0], cache, worth, work, settings.loss_mask == "non_pad_non_sink")
    return states, Matrices(model, task.parameters, settings)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the loop: the frozen states, the matrices that change, and where each topic is steered to."""

    settings: Steering
    states: States
    matrices: Matrices
    targets: Mapping[str, Tensor]
    """Topic → its control vector, [width]."""
    work: Work

    def run(self, task: Prepared, record: Record) -> tuple[int, str]:
        """Takes the steps; returns how many of them the weights hold, and what ended the run.

        A step's losses judge the weights that the step before left: only after them is it known that those were good.
        So an update waits for the next step's figures, and what turns out bad is undone by one update.
        """
        settings, matrices = self.settings, self.matrices
        saved = record.resume()
        if saved is not None:
            matrices.load(saved)
        done, device = len(record.figures), self.states.model.device
        for step, (topic, forget, retain) in islice(enumerate(task.batches), done, task.steps):
            forget, retain = forget.to(device), retain.to(device)
            measured = measures(settings, step, task.steps, len(task.batches.topics))
            figures = self.gradients(topic, forget, retain, measured=measured)
            if not (_finite(figures) and matrices.finite_gradients()):
                self._diverge(step)
            record.add({"step": step, "topic": topic, **figures})
            shown = {name: value for name, value in figures.items() if value is not None}
            self.work.progress(name_of(settings), step + 1, task.steps, **shown)
            if self._is_lost(figures["retain_cosine"]):
                matrices.roll_back()
                return max(0, step - 1), "retain_floor"
            if settings.early_stop_cosine is not None and steered(settings, record.figures, task.batches.topics):
                return step, "early_stop_cosine"
            matrices.update()
            done = step + 1
            # Saved after the update, with the weights before it: a run taken up here can still undo what proves bad.
            if done < task.steps:
                record.save(matrices.state)
            else:  # nothing has looked at the weights since the last update
                loss, cosine = self.retained(retain)
                if not math.isfinite(loss):
                    self._diverge(done)
                if self._is_lost(cosine):
                    matrices.roll_back()
                    return step, "retain_floor"
        return done, "finished"

    def gradients(self, topic: str, forget: Batch, retain: Batch, *, measured: bool) -> Figures:
        """Accumulates the gradients of one step, the forget loss first, and returns its figures."""
        states, dtype = self.states, self.settings.loss_dtype
        hidden, calls = states.entering(forget)
        counted = states.counted(forget, hidden, calls)
        steered = states.model.run(hidden, calls, states.start, self.matrices.leaves)
        forget_loss = mean_squared_difference(steered, self.targets[topic], counted, dtype)
        # Backward before the retain batch is run: never are the activations of both held.
        forget_loss.backward()
        forget_cosine = None
        if measured:
            forget_cosine = mean_cosine(steered.detach(), states.frozen(forget, hidden, calls), counted).item()

        hidden, calls = states.entering(retain)
        frozen, counted = states.frozen(retain, hidden, calls), states.counted(retain, hidden, calls)
        held = states.model.run(hidden, calls, states.start, self.matrices.leaves)
        # From the same hidden states as `frozen`, so that before anything has changed the loss is 0, not rounding.
        retain_loss = mean_squared_difference(held, frozen, counted, dtype)
        alpha = of_topic(self.settings.alpha, topic, "alpha")
        (alpha * retain_loss).backward()
        return {
            "forget_loss": forget_loss.item(),
            "retain_loss": retain_loss.item(),
            "forget_cosine": forget_cosine,
            "retain_cosine": mean_cosine(held.detach(), frozen, counted).item(),
        }

    @torch.no_grad()
    def retained(self, retain: Batch) -> tuple[float, float]:
        """Returns the loss on a retain batch, and the cosine between the changed and the base model's activations."""
        states = self.states
        hidden, calls = states.entering(retain)
        held = states.model.run(hidden, calls, states.start, self.matrices.leaves)
        frozen, counted = states.frozen(retain, hidden, calls), states.counted(retain, hidden, calls)
        return mean_squared_difference(held, frozen, counted).item(), mean_cosine(held, frozen, counted).item()

    def _is_lost(self, retain_cosine: float) -> bool:
        return self.settings.retain_floor is not None and retain_cosine < self.settings.retain_floor

    def _diverge(self, step: int) -> NoReturn:
        """Leaves the last good weights in the scratch, and says where."""
        self.matrices.roll_back()
        method, good = name_of(self.settings), max(0, step - 1)
        deltas = self.states.model.stored(self.matrices.deltas())
        last_good = TaskVector(deltas, provenance={"method": method, "steps": good})
        directory = last_good.save(self.work.scratch / LAST_GOOD)
        raise TrainingDiverged(
            f"{method}: a loss or gradient is not finite at step {step}: lower learning_rate or "
            f"steering_coefficient; the weights after {good} steps, the last good ones, are in {directory}"
        )


def mean_squared_difference(hidden: Tensor, target: Tensor, counted: Tensor, dtype: str = "float32") -> Tensor:
    """The mean over the counted tokens and the width of the squared difference.

    Args:
        hidden: [batch, tokens, width].
        target: [width], or the shape of `hidden`.
        counted: [batch, tokens], True for tokens that count.
        dtype: `float32`, or `model` for that of `hidden`.
    """
    hidden, target = _counted(hidden, counted), _counted(target.expand_as(hidden), counted)
    if dtype == "model":
        return F.mse_loss(hidden, target)  # the reference's call: its backward rounds in another order
    return (hidden.float() - target.float()).square().mean()


def mean_cosine(hidden: Tensor, other: Tensor, counted: Tensor) -> Tensor:
    """The mean over the counted tokens of the cosine between two hidden states, float32."""
    return F.cosine_similarity(_counted(hidden, counted).float(), _counted(other, counted).float(), dim=-1).mean()


def without_sinks(counted: Tensor, hidden: Tensor) -> Tensor:
    """Leaves out attention sinks: counted tokens over `SINK` times as long as the median of them.

    Sun et al. 2024, "Massive activations in large language models", arXiv 2402.17762: a few tokens, the first above
    all, have activations a hundred times as large as all others, whatever they say. At least half of the tokens stay.

    Args:
        counted: [batch, tokens], True where the losses would look.
        hidden: [batch, tokens, width], the base model's.
    """
    lengths = hidden.float().norm(dim=-1)
    return counted & (lengths <= SINK * lengths[counted].median())


def _counted(hidden: Tensor, counted: Tensor) -> Tensor:
    """Returns [counted tokens, width]; `hidden[counted]` is the same, but its backward pass is many times slower."""
    rows = hidden.flatten(0, 1)
    return rows if bool(counted.all()) else rows.index_select(0, counted.flatten().nonzero().squeeze(1))


def direction(settings: Steering, width: int, seed: int, topic: str) -> Tensor:
    """Draws u: entries uniform on [0, 1), then of length one; [width], float32."""
    origin = ("shared", settings.control_seed) if settings.control == "shared" else ("subset", seed, topic)
    uniform = torch.rand(width, generator=_generator("control", *origin))
    return uniform / uniform.norm()


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run will do, before any weight is read."""

    retain: Corpus
    parameters: Mapping[int, Sequence[str]]
    """Layer → the names within it of the parameters that change."""
    batches: Batches
    steps: int


def prepare(settings: Steering, base: LanguageModel, forget: Corpus, retain: Corpus, seed: int) -> Prepared:
    """Finds out what a run will do, and whether it can.

    Raises:
        DataError: The retain set is smaller than a batch, or rows are longer than the model reads.
        ModelError: The architecture, the layer or the parameters are not to be had.
        RecipeError: A setting has values for some topics, but not for all.
    """
    topics = forget.topics()
    for name, value in settings:
        for topic in topics if isinstance(value, dict) else ():
            of_topic(value, topic, name)
    count = batches_per_epoch(settings, topics, retain)
    parameters = choose_parameters(base, settings.updated, settings.layer + 1, settings.parameters)
    batches = Batches(settings, base.load_tokenizer(), topics, retain, count, seed)
    room = positions(base)
    if room is not None and batches.longest > room:
        raise DataError(
            f"max_length: a row has {batches.longest} tokens and {base.id} reads {room}: set max_length, "
            "retain_max_length or the source's own to that or less"
        )
    return Prepared(retain, parameters, batches, planned_steps(settings, count, len(topics)))


def batches_per_epoch(settings: Steering, topics: Mapping[str, Corpus], retain: Corpus) -> int:
    """Returns how many batches of every topic an epoch has: as many as the smallest of the sets.

    Raises:
        DataError: There is nothing to forget, or the retain set is smaller than a batch.
    """
    if not topics or not all(len(corpus) for corpus in topics.values()):
        raise DataError("the forget set is empty")
    if len(retain) < settings.batch_size:
        raise DataError(
            f"the retain set has {len(retain)} rows, fewer than a batch: add some, or set batch_size={len(retain)}"
        )
    rows = min(len(retain), *(len(corpus) for corpus in topics.values()))
    count = math.ceil(rows / settings.batch_size)
    return count if settings.max_batches is None else min(count, settings.max_batches)


def planned_steps(settings: Steering, count: int, topics: int) -> int:
    """Returns how many steps a run has, for so many batches of every topic in an epoch."""
    steps = count * topics * settings.epochs
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def measures(settings: Steering, step: int, steps: int, topics: int) -> bool:
    """Whether a step measures the forget cosine."""
    return step // topics % settings.measured_every == 0 or step >= steps - topics


def uses(settings: Steering, batches: Batches, steps: int) -> Counter[Cut]:
    """Counts how often a run needs which hidden states of the frozen model; nothing where no batch comes twice."""
    counts: Counter[Cut] = Counter()
    if settings.shuffle:
        return counts
    start, end = settings.updated[0], settings.layer + 1
    topics = batches.topics
    # Every topic's first batch is looked at before the first step too.
    counts.update({batches.first(topic).cut(layers): 0 for topic in topics for layers in (start, end)})
    # Every epoch is like the first, so its batches alone are made, however many steps there are.
    epoch = batches.count * len(topics)
    for step, (_, forget, retain) in enumerate(islice(batches, min(epoch, steps))):
        times = -(-(steps - step) // epoch)
        measured = times_measured(settings.measured_every, step, times, epoch, steps, len(topics))
        if settings.loss_mask == "non_pad_non_sink":  # which tokens are sinks is asked in every step
            measured = times
        for cut, count in (
            (forget.cut(start), times), (forget.cut(end), measured),
            (retain.cut(start), times), (retain.cut(end), times),
        ):  # fmt: skip
            if count:
                counts[cut] += count
    return counts


def times_measured(every: int, step: int, times: int, epoch: int, steps: int, topics: int) -> int:
    """Counts for how many of the steps step, step + epoch, … (so many times) `measures` holds, without a walk.

    Step step + t · epoch is measured where a + t · b is a multiple of m, for a = step // topics, b = epoch / topics
    and m = `every`: for one t in each m / gcd(b, m), if for any; and, among the last steps, in any case.
    """
    a, b, m = step // topics, epoch // topics, every
    shared = math.gcd(b, m)
    period = m // shared
    first = -a // shared * pow(b // shared, -1, period) % period if a % shared == 0 else times
    regular = -(-max(0, times - first) // period)
    last = step + (times - 1) * epoch
    extra = last >= steps - topics and last // topics % m != 0
    return regular + extra


def worth_keeping(uses: Mapping[Cut, int], resident: Resident) -> frozenset[Cut]:
    """Returns the hidden states worth keeping: all where other tasks may want them, else those used more than once."""
    return frozenset(cut for cut, count in uses.items() if resident.shared or count > 1)


def steered(settings: Steering, records: Sequence[Figures], topics: Sequence[str]) -> bool:
    """Whether every topic's forget cosine, averaged over its last measurements, is below the threshold."""
    assert settings.early_stop_cosine is not None
    window = settings.early_stop_window
    recent = records[-window * settings.measured_every * len(topics) :]
    for topic in topics:
        cosines = [r["forget_cosine"] for r in recent if r["topic"] == topic and r["forget_cosine"] is not None]
        if len(cosines) < window or sum(cosines[-window:]) / window >= settings.early_stop_cosine:
            return False
    return True


class Batches:
    """The batches of every step: topic i mod T, and batch i div T of its forget set and of the retain set."""

    def __init__(
        self,
        settings: Steering,
        tokenizer: PreTrainedTokenizerBase,
        topics: Mapping[str, Corpus],
        retain: Corpus,
        count: int,
        seed: int,
    ) -> None:
        self.settings = settings
        self.count = count
        self.seed = seed
        self._pad_id = cast("int | None", tokenizer.pad_token_id) or 0
        self._bos_id = cast("int | None", tokenizer.bos_token_id)
        self._forget = {
            name: tokenise(tokenizer, self._used(corpus), settings.max_length, "forget")
            for name, corpus in topics.items()
        }
        self._retain = tokenise(tokenizer, self._used(retain), settings.retain_max_length, "retain")

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of the topics, in the order of their turns."""
        return tuple(self._forget)

    @property
    def longest(self) -> int:
        """The most tokens that a row has."""
        return max(len(row) for rows in (self._retain, *self._forget.values()) for row in rows)

    def first(self, topic: str) -> Batch:
        """The first batch of a topic in file order."""
        return self._batch(self._forget[topic], range(len(self._forget[topic])), 0)

    def __iter__(self) -> Iterator[tuple[str, Batch, Batch]]:
        """Yields the topic, the forget and the retain batch of every step."""
        forget = {name: self._orders(rows, "forget", name) for name, rows in self._forget.items()}
        for retain_order in self._orders(self._retain, "retain"):
            orders_now = {name: next(order) for name, order in forget.items()}
            for index in range(self.count):
                for name, rows in self._forget.items():
                    yield (
                        name,
                        self._batch(rows, orders_now[name], index),
                        self._batch(self._retain, retain_order, index),
                    )

    def _used(self, corpus: Corpus) -> Corpus:
        if self.settings.shuffle:
            return corpus
        return corpus.select(range(min(len(corpus), self.count * self.settings.batch_size)))

    def _orders(self, rows: Sequence[Any], *names: str) -> Iterator[list[int]]:
        generator = _generator("order", self.seed, *names) if self.settings.shuffle else None
        return orders(len(rows), self.settings.epochs, generator)

    def _batch(self, rows: Sequence[list[int]], order: Sequence[int], index: int) -> Batch:
        size = self.settings.batch_size
        chosen = [rows[row] for row in order[index * size : (index + 1) * size]]
        batch = pad(chosen, self._pad_id, self._bos_id, self.settings.loss_mask)
        if not batch.counted.any():
            raise DataError(
                f"loss_mask {self.settings.loss_mask}: a batch has nothing but first tokens, so there is nothing to "
                "average over: remove empty rows, raise max_length, or count first tokens too (non_pad)"
            )
        return batch


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of the frozen model: those entering the first updated layer, and those leaving the last."""

    model: TruncatedModel
    base: LanguageModel
    start: int
    cache: StateCache
    worth: frozenset[Cut]
    """Those that are kept."""
    work: Work
    sinkless: bool
    """Whether attention sinks do not count."""

    @torch.no_grad()
    def entering(self, batch: Batch) -> tuple[Tensor, Sequence[Call]]:
        """Returns [batch, tokens, width] entering the first updated layer, and the calls from there on."""
        computed: list[Sequence[Call]] = []

        def compute() -> Tensor:
            hidden, calls = self.model.enter(batch.ids, batch.mask, self.start)
            computed.append(calls)
            return hidden

        hidden = self._cached(batch, self.start, compute)
        calls = computed[0] if computed else self.model.enter(batch.ids, batch.mask, self.start, hidden)[1]
        return hidden, calls

    @torch.no_grad()
    def frozen(self, batch: Batch, hidden: Tensor, calls: Sequence[Call]) -> Tensor:
        """Returns [batch, tokens, width], the base model's output at the steered layer."""
        return self._cached(batch, len(self.model.layers), lambda: self.model.run(hidden, calls, self.start))

    def counted(self, batch: Batch, hidden: Tensor, calls: Sequence[Call]) -> Tensor:
        """Returns [batch, tokens], True where losses, cosines and lengths look."""
        return without_sinks(batch.counted, self.frozen(batch, hidden, calls)) if self.sinkless else batch.counted

    def mean_norm(self, batch: Batch) -> float:
        """The mean length of the base model's activations at the steered layer over the counted tokens."""
        batch = batch.to(self.model.device)
        hidden, calls = self.entering(batch)
        counted = self.counted(batch, hidden, calls)
        return self.frozen(batch, hidden, calls)[counted].float().norm(dim=-1).mean().item()

    def _cached(self, batch: Batch, layers: int, compute: Callable[[], Tensor]) -> Tensor:
        cut, model = batch.cut(layers), self.model
        if cut not in self.worth:
            return compute()
        # All that a state depends on: tasks of other dtypes, devices or kernels round otherwise, and must not share it.
        key = (self.base, cut, model.dtype, model.device, model.kernel)
        return self.cache.get(key, compute, self.work.scratch).to(model.device)


def _finite(figures: Figures) -> bool:
    return math.isfinite(figures["forget_loss"]) and math.isfinite(figures["retain_loss"])


def _loss_dtype(settings: Steering, model: TruncatedModel) -> torch.dtype:
    return torch.float32 if settings.loss_dtype == "float32" else model.dtype


def _key(settings: Steering, base: LanguageModel, forget: Corpus, retain: Corpus, work: Work) -> str:
    # A model in a directory is known by its weights: the directory may have another name the next time.
    model = {**base.dump(), "id": None, **weights} if (weights := base.fingerprint()) else base.dump()
    parts = [settings.dump(), model, forget.fingerprint, retain.fingerprint, work.seed, work.device,
             work.resident.dtype]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _generator(*names: Any) -> torch.Generator:
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
