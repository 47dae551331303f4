"""The one plain loop of every method that trains through the logits: resumable, measured, its batches drawn before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from spunge.errors import TrainingDiverged
from spunge.interfaces import Unlearner, Work, scale_of
from spunge.seeding import reseed, seed_of, seeded
from spunge.training import losses, sharding
from spunge.training.checkpointing import LAST_GOOD, Record
from spunge.training.rows import Batch, Encoded, Step, plan
from spunge.training.state import TrainingState, fingerprint
from spunge.training.trainee import Trainee
from spunge.weights.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of the loss: what is asked of which rows."""

    name: str
    rows: Sequence[Encoded]
    loss: Callable[[Batch], Tensor]
    """The mean loss of a batch."""
    weight: float | Callable[[float], float] = 1.0
    """A number, or a function of the share of training that is done."""
    per: Literal["token", "sequence"] = "token"
    """What the loss is a mean over; it says how much each batch of an accumulated step weighs."""

    def units(self, indices: Sequence[int]) -> int:
        """Returns how many tokens or sequences the loss of these rows is a mean over."""
        return sum(self.rows[i].counted for i in indices) if self.per == "token" else len(indices)


@dataclass(frozen=True, eq=False)
class Probe:
    """Rows on which a run is measured while it goes, and what is made of it."""

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    every: int
    floor: float | None
    """The least utility of the step that is returned; None returns the last step whatever the probe says."""

    def measure(self, trainee: Trainee) -> dict[str, float]:
        """Returns the mean negative log-likelihood of a token of either set."""
        return {"probe_forget": _nll(trainee, self.forget), "probe_retain": _nll(trainee, self.retain)}


@dataclass(frozen=True, eq=False)
class Objective:
    """What a training minimises: the weighted sum of some terms."""

    terms: Sequence[Term]
    """Forget first and retain second, where there are two. The first one's rows make the epochs."""
    combine: Literal["sum", "pcgrad", "sago"] = "sum"
    """How the gradients of two terms become one."""
    probe: Probe | None = None
    """What to measure while training."""
    sharpness: float = 0.0
    """How far from the parameters, in the direction in which it rises most, the first term's gradient is taken."""


def _nll(trainee: Trainee, rows: Sequence[Encoded]) -> float:
    return -float(trainee.log_probs(rows).sum()) / sum(row.counted for row in rows)


def train(trainee: Trainee, objective: Objective, work: Work) -> TaskVector:
    """Minimises an objective and returns trained minus base.

    The first term's rows make the epochs; those of the others come round as often as needed. A run that was killed
    goes on from its last saved state and, on the CPU, ends in the same bytes. Every step is a line in `metrics.jsonl`.

    Args:
        trainee: What to train; its settings say how.
        objective: What to minimise.
        work: How to run.

    Raises:
        TrainingDiverged: A loss or a gradient became NaN or infinite, or no probed step kept to the utility floor.
    """
    terms, probe = objective.terms, objective.probe
    with trainee.as_base():
        base_retain = _nll(trainee, probe.retain) if probe else 0.0
    course = Course(trainee, terms, work)
    with seeded(work.seed, work.device):
        while course.batches is not None:
            figures = _backward(trainee, objective, course)
            figures |= course.descend()
            if probe and ((course.done + 1) % probe.every == 0 or course.done + 1 == len(course.steps)):
                figures |= probe.measure(trainee)
                # exp overflows past 709.
                figures["utility"] = math.exp(min(base_retain - figures["probe_retain"], 700.0))
                if probe.floor is not None:
                    course.state.keep_best(figures, probe.floor)
            course.note(figures)
    if probe and probe.floor is not None:
        course.state.take_best(probe.floor)
    reach = trainee.reach
    unreached = {} if reach is None or not reach.fused_experts else {"adapter_reach": asdict(reach)}
    return TaskVector(trainee.entries(), provenance={"steps": len(course.steps), **unreached})


class Course:
    """One training on its way: its batches, its optimiser, its record and its state."""

    def __init__(self, trainee: Trainee, terms: Sequence[Term], work: Work) -> None:
        settings = trainee.settings
        self.trainee, self.settings, self.work = trainee, settings, work
        self.parameters = list(trainee.parameters.values())
        # All batches are drawn before the first step, so that a run taken up in the middle has only to count.
        self.steps = plan([term.rows for term in terms], settings, torch.Generator().manual_seed(work.seed))
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.state = TrainingState(trainee.parameters, self.optimizer)
        rows = {term.name: term.rows for term in terms}
        self.record = Record(work, fingerprint(settings, work.seed, trainee.parameters, rows))
        saved = self.record.resume()
        if saved is not None:
            self.state.load(saved)

    @property
    def done(self) -> int:
        """The number of steps done."""
        return len(self.record.figures)

    @property
    def batches(self) -> Step | None:
        """The batches of the next step; None after the last."""
        return self.steps[self.done] if self.done < len(self.steps) else None

    def descend(self) -> dict[str, float]:
        """Takes the step that the gradients ask for, and returns its figures.

        Raises:
            TrainingDiverged: The gradient became NaN or infinite.
        """
        settings = self.settings
        rate = settings.learning_rate * schedule(settings.schedule, self.done, len(self.steps), settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Measured where nothing is clipped too: a gradient that is not finite is noticed before it reaches the weights.
        norm = float(sharding.whole(nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf)))
        self.check("gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"learning_rate": rate, "gradient_norm": norm}

    def note(self, figures: Mapping[str, float]) -> None:
        """Notes that the step is done."""
        self.record.add({"step": self.done + 1, **figures})
        self.record.save(self.state.content)
        self.work.progress("training", self.done, len(self.steps), **figures)

    def check(self, what: str, value: float) -> None:
        """Raises TrainingDiverged unless the value is finite, and keeps what the steps before have made."""
        if math.isfinite(value):
            return
        last_good = f"; step {self.done}, the last good one, is kept in {self._keep()}" if self.done else ""
        raise TrainingDiverged(
            f"step {self.done + 1} of {len(self.steps)}: the {what} became {value}; "
            f"lower learning_rate (now {self.settings.learning_rate:g}){last_good}"
        )

    def _keep(self) -> Path:
        scale = scale_of(self.settings) if isinstance(self.settings, Unlearner) else 1.0
        reached = TaskVector(self.trainee.entries(), provenance={"steps": self.done}).scaled(scale)
        directory = self.work.scratch / LAST_GOOD
        return reached.save(directory) if sharding.rank() == 0 else directory


def schedule(kind: Literal["cosine", "linear", "constant"], step: int, steps: int, warmup: float) -> float:
    """Returns what the learning rate is multiplied by at `step` (from 0) of `steps`: transformers' schedules."""
    # ceil, as transformers' warmup_ratio: any warm-up above 0 is a step at least.
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    left = (steps - step) / (steps - rising)
    return {"cosine": (1 - math.cos(math.pi * left)) / 2, "linear": left, "constant": 1.0}[kind]


def _backward(trainee: Trainee, objective: Objective, course: Course) -> dict[str, float]:
    """Leaves the step's gradient in the parameters, and returns the loss of every term and of their weighted sum."""
    terms, combine = objective.terms, objective.combine
    apart = combine != "sum" and len(terms) > 1
    parameters = list(trainee.parameters.values())
    figures: dict[str, float] = {}
    gradients: list[list[Tensor]] = []
    total = 0.0
    for position, term in enumerate(terms):
        weight = term.weight(course.done / len(course.steps)) if callable(term.weight) else term.weight
        figures[term.name] = _backward_of(trainee, term, weight, position, course)
        if position == 0 and objective.sharpness:
            with _uphill(parameters, objective.sharpness):
                _backward_of(trainee, term, weight, position, course)
        total += weight * figures[term.name]
        if apart:
            # Kept apart, and taken from the parameters: autograd would add the next term's to them.
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            for parameter in parameters:
                parameter.grad = None
    if apart:
        forget, retain = gradients
        join = {"pcgrad": losses.pcgrad, "sago": losses.sago}[combine]
        figures["cosine"] = _cosine(forget, retain)
        for parameter in reversed(parameters):
            parameter.grad = join(forget.pop(), retain.pop())  # popped, so that three gradients are never held whole
    return {"loss": total, **figures}


def _backward_of(trainee: Trainee, term: Term, weight: float, position: int, course: Course) -> float:
    """Adds a term's gradient, times its weight, to the parameters', and returns its loss."""
    assert course.batches is not None
    batches = course.batches[position]
    units, total = sum(term.units(batch) for batch in batches), 0.0
    for number, indices in enumerate(batches):
        local, counts = sharding.share(indices)
        turn = (course.work.seed, course.done, position, number)
        # Dropout draws from a seed of this very batch, so a run taken up draws what one that went through did.
        # Each process has its own, or all would drop the same units of different rows.
        reseed(seed_of(*turn, sharding.rank()) if sharding.rank() else seed_of(*turn), course.work.device)
        loss = term.loss(trainee.collate(term.rows, local))
        share = term.units(local) / units if counts else 0.0
        value = float(sharding.total(loss.detach() * share, trainee.device))
        course.check(f"{term.name} loss", value)
        (loss * (weight * share * sharding.size())).backward()  # FSDP takes the mean over processes
        total += value
    return total


@contextmanager
def _uphill(parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Moves parameters by ρ · g / ‖g‖ along their gradient, which it takes from them, and puts them back.

    Args:
        parameters: With the gradient g of what is to rise, or none.
        radius: ρ.
    """
    moved = [(p, p.grad, p.detach().clone()) for p in parameters if p.grad is not None]
    norm = float(sharding.whole(nn.utils.get_total_norm([gradient for _, gradient, _ in moved])))
    with torch.no_grad():
        for parameter, gradient, _ in moved:
            parameter.add_(gradient, alpha=radius / norm if norm else 0.0)
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, _, before in moved:
                parameter.copy_(before)


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    def added(values: Iterable[Tensor]) -> Tensor:
        return torch.stack([sharding.whole(value.sum()) for value in values]).sum()

    dot = added(a * b for a, b in zip(one, other, strict=True))
    norms = [added(value.square() for value in values).sqrt() for values in (one, other)]
    return float(dot / (norms[0] * norms[1]).clamp(min=torch.finfo(dot.dtype).tiny))
