"""One plain training loop for every method that trains through the logits: resumable, and kind to the base model.

The resident base model is borrowed: a LoRA is put in and taken out, or float32 copies of the weights stand in for
them, so that the base's own weights are never written to and serve as the reference model at no cost in memory.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from spunge import losses
from spunge.checkpoint import export
from spunge.data import Corpus
from spunge.errors import ArtifactError, DataError, RecipeError, TrainingDiverged
from spunge.interfaces import Work
from spunge.language_model import LanguageModel, checkpoint_names
from spunge.task_vector import Entry, LowRank, TaskVector
from spunge.tuning import ForgetAndRetain, Lora, Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS = "metrics.jsonl"
STATE = "training_state.pt"
SAVE_SECONDS = 60.0
"""The least time between two saved states; saving takes at most a twentieth of the time."""

_SORTING_WINDOW = 50
_ADAPTER = "default"


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A row as tokens, of which those from `start` on count in the loss."""

    ids: array[int]
    start: int

    @property
    def counted(self) -> int:
        """The number of tokens that are predicted; nothing predicts the first."""
        return len(self.ids) - max(self.start, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded on the right to the longest."""

    ids: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T], 1 where there is a token."""
    labels: Tensor
    """[B, K], what the last K + 1 positions but the very last should predict, from the first position that counts in
    any row; `losses.IGNORE` does not count."""
    indices: list[int]
    """Where the rows stand in the list they were taken from."""

    @property
    def counted(self) -> Tensor:
        """[B, T], true at the tokens that the labels are, in their own places."""
        return nn.functional.pad(self.labels != losses.IGNORE, (self.ids.shape[1] - self.labels.shape[1], 0))


def encode(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_texts: Literal["truncate", "chunk"] = "truncate",
    response: str = "response",
) -> list[Encoded]:
    """Turns rows into tokens.

    A `text` counts whole; one of a single token, which nothing predicts, is left out. Of a prompt and its response only
    the response counts, ended by the end-of-text token; the two are laid out by the tokenizer's chat template when it
    has one, and joined by a space otherwise.

    Args:
        corpus: The rows.
        tokenizer: The base model's.
        max_length: The most tokens of a row; a row's source may set fewer.
        long_texts: Whether the rest of a long text is dropped or becomes rows of its own.
        response: The column of the responses.

    Raises:
        DataError: There is no such column, or nothing to predict.
    """
    limits = [min(own or max_length, max_length) for own in corpus.max_lengths]
    if "text" in corpus.rows.columns and response == "response":
        rows = []
        for ids, limit in zip(_tokenize(tokenizer, corpus.texts), limits, strict=True):
            stop = len(ids) if long_texts == "chunk" else min(limit, len(ids))
            pieces = (ids[at : min(at + limit, stop)] for at in range(0, stop, limit))
            rows += [Encoded(array("i", piece), 0) for piece in pieces if len(piece) > 1]
        if not rows:
            raise DataError("no text has two tokens or more: there is nothing to predict")
        return rows
    rows = [
        Encoded(row.ids[:limit], row.start)
        for row, limit in zip(_conversations(corpus, tokenizer, response), limits, strict=True)
    ]
    for number, (row, limit) in enumerate(zip(rows, limits, strict=True), 1):
        if row.counted < 1:
            raise DataError(
                f"row {number}: the prompt alone fills the {limit} tokens of max_length; raise it or remove the row"
            )
    return rows


def _conversations(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, response: str) -> list[Encoded]:
    for column in ("prompt", response):
        if column not in corpus.rows.columns:
            raise DataError(f"no column {column!r}; columns are {', '.join(corpus.rows.columns)}")
        if corpus.rows[column].null_count():
            row = int(corpus.rows[column].is_null().arg_true()[0]) + 1
            raise DataError(f"row {row} has no {column!r}; fill it in or remove the row")
    prompts, responses = corpus.rows["prompt"].to_list(), corpus.rows[response].to_list()
    chat = bool(tokenizer.chat_template)
    if chat:
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        told = [
            [*turn, {"role": "assistant", "content": answer}] for turn, answer in zip(asked, responses, strict=True)
        ]
        openings = [str(tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True)) for t in asked]
        wholes = [str(tokenizer.apply_chat_template(turns, tokenize=False)) for turns in told]
    else:
        openings = prompts
        wholes = [f"{prompt} {answer}" for prompt, answer in zip(prompts, responses, strict=True)]
    end: Any = tokenizer.eos_token_id
    rows = []
    for opening, ids in zip(
        _tokenize(tokenizer, openings, special=not chat), _tokenize(tokenizer, wholes, special=not chat), strict=True
    ):
        # A token that straddles prompt and response belongs to the response: the common prefix ends before it.
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(opening, ids, strict=False)))
        ending = [] if chat or end is None or ids[-1] == end else [end]
        rows.append(Encoded(array("i", [*ids, *ending]), start))
    return rows


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = True) -> Iterator[list[int]]:
    for some in _cut(list(texts), 1000):
        yield from tokenizer(some, add_special_tokens=special, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]


def collate(rows: Sequence[Encoded], indices: Sequence[int], *, pad: int, device: str) -> Batch:
    """Pads the rows with these indices into one batch."""
    chosen = [rows[index] for index in indices]
    width = max(len(row.ids) for row in chosen)
    ids = torch.full((len(chosen), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, losses.IGNORE)
    for place, row in enumerate(chosen):
        tokens = torch.tensor(row.ids)
        ids[place, : len(tokens)] = tokens
        mask[place, : len(tokens)] = 1
        labels[place, row.start : len(tokens)] = tokens[row.start :]
    first = min(max(row.start, 1) for row in chosen)
    return Batch(ids.to(device), mask.to(device), labels[:, first:].to(device), list(indices))


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trainee:
    """The borrowed base model with something in it to train."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Tuning
    device: str
    parameters: Mapping[str, nn.Parameter]
    """What is trained, float32, by a name that a resumed run gives it too."""
    entries: Callable[[], dict[str, Entry]]
    """Trained minus base, by the checkpoint's parameter names."""
    as_base: Callable[[], AbstractContextManager[None]]
    """Inside it the model answers as the base model does."""
    in_bfloat16: bool
    """Whether matrix products are computed in bfloat16, by autocast."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the logits that predict `batch.labels`, [B, K, V]; a long prompt costs no logits."""
        keep = batch.labels.shape[1] + 1
        return self._ask(batch, keep=keep).logits[:, -keep:-1]

    def base_logits(self, batch: Batch) -> Tensor:
        """Returns the base model's logits: the same weights with the training switched off."""
        with torch.no_grad(), self.as_base():
            return self(batch)

    def states(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Returns the outputs of these decoder layers, from 0, [layers, B, T, D]; of the last after the final norm."""
        outputs = self._ask(batch, keep=1, output_hidden_states=True)
        return torch.stack([outputs.hidden_states[layer + 1] for layer in layers])

    def base_states(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Returns what `states` returns for the base model."""
        with torch.no_grad(), self.as_base():
            return self.states(batch, layers)

    @torch.no_grad()
    def log_probs(self, rows: Sequence[Encoded]) -> Tensor:
        """Returns the log-probability of every row's counted part, [rows], dropout off."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        found = torch.empty(len(rows), device=self.device)
        with _dropout_off(self.model):
            for indices in _cut(order, self.settings.batch_size):
                batch = self.collate(rows, indices)
                found[indices] = losses.sequence_log_probs(self(batch), batch.labels)
        return found

    def base_log_probs(self, rows: Sequence[Encoded]) -> Tensor:
        """Returns what `log_probs` returns for the base model: to be asked once and kept."""
        with self.as_base():
            return self.log_probs(rows)

    def encode(self, corpus: Corpus, *, response: str = "response") -> list[Encoded]:
        """Turns rows into tokens, as the settings say and no longer than the model can read."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.settings.max_length
        return encode(
            corpus,
            self.tokenizer,
            max_length=min(self.settings.max_length, positions),
            long_texts=self.settings.long_texts,
            response=response,
        )

    def collate(self, rows: Sequence[Encoded], indices: Sequence[int]) -> Batch:
        """Pads the rows with these indices into one batch."""
        pad = self.tokenizer.pad_token_id
        return collate(rows, indices, pad=0 if pad is None else int(pad), device=self.device)  # pyright: ignore[reportArgumentType]

    def _ask(self, batch: Batch, *, keep: int, **options: Any) -> Any:
        if self._can_skip_logits:
            options["logits_to_keep"] = keep
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.in_bfloat16):
            return self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **options)

    @cached_property
    def _can_skip_logits(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters


@contextmanager
def _dropout_off(model: PreTrainedModel) -> Iterator[None]:
    active = [module for module in model.modules() if module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


@contextmanager
def borrow(settings: Tuning, base: LanguageModel, work: Work) -> Iterator[Trainee]:
    """Makes the resident base model trainable, and hands it back exactly as it was.

    Raises:
        RecipeError: The settings name layers or weights that the model does not have.
    """
    model, tokenizer = work.resident.base(base)
    names = checkpoint_names(model, base.checkpoint())
    trainable = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    in_bfloat16 = settings.precision == "bfloat16" or model.dtype in (torch.bfloat16, torch.float16)
    with ExitStack() as stack:
        stack.callback(_restore, model, trainable)
        model.requires_grad_(False).eval()
        make = partial(_with_lora, lora=settings.lora) if settings.lora else partial(_with_weights, settings=settings)
        parameters, entries, as_base = stack.enter_context(make(model, names, seed=work.seed, device=work.device))
        if settings.gradient_checkpointing:
            stack.enter_context(_recomputing(model))
        yield Trainee(model, tokenizer, settings, work.device, parameters, entries, as_base, in_bfloat16)


def _restore(model: PreTrainedModel, trainable: Mapping[int, bool]) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(trainable[id(parameter)])
        parameter.grad = None
    model.eval()


_Trainable = tuple[dict[str, nn.Parameter], Callable[[], dict[str, Entry]], Callable[[], AbstractContextManager[None]]]


@contextmanager
def _with_lora(
    model: PreTrainedModel, names: Mapping[str, str], *, lora: Lora, seed: int, device: str
) -> Iterator[_Trainable]:
    from peft import LoraConfig, LoraModel
    from peft.tuners.lora import LoraLayer

    targets = _lora_targets(model, names, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),  # pyright: ignore[reportArgumentType]
    )
    with _random(seed, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # found out from the layer, as it says
        tuner = LoraModel(model, config, _ADAPTER)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        layer.lora_A.float()
        layer.lora_B.float()
        layer.lora_dropout.train()

    def entries() -> dict[str, Entry]:
        return {
            names[f"{name}.weight"]: LowRank(
                layer.lora_A[_ADAPTER].weight.detach().cpu().clone(),
                layer.lora_B[_ADAPTER].weight.detach().cpu().clone(),
                scaling=float(layer.scaling[_ADAPTER]),
                transposed=bool(layer.fan_in_fan_out),
            )
            for name, layer in layers.items()
            if bool(layer.lora_B[_ADAPTER].weight.any())  # a missing name is a zero
        }

    @contextmanager
    def as_base() -> Iterator[None]:
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()

    try:
        yield {name: value for name, value in model.named_parameters() if value.requires_grad}, entries, as_base
    finally:
        tuner.unload()


def _lora_targets(model: PreTrainedModel, names: Mapping[str, str], lora: Lora) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    there_are = f"there are: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
    wanted = lora.target_modules
    if wanted is None:
        wanted = DEFAULTS.get(model.config.model_type)
        if wanted is None:
            raise RecipeError(
                f"lora.target_modules: PEFT knows no default for {model.config.model_type!r}; {there_are}"
            )
    if wanted == "all-linear":
        head = model.get_output_embeddings()
        targets = [name for name in linear if model.get_submodule(name) is not head]
    elif isinstance(wanted, str):
        targets = [name for name in linear if re.fullmatch(wanted, name)]
    else:
        targets = []
        for one in wanted:
            matching = [name for name in linear if f".{name}".endswith(f".{one}")]
            if not matching:
                raise RecipeError(f"lora.target_modules: {one!r} matches no linear layer of the model; {there_are}")
            targets += matching
    if not targets:
        raise RecipeError(f"lora.target_modules: {wanted!r} matches no linear layer of the model; {there_are}")
    for option, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):
                raise RecipeError(f"lora.{option}: {pattern!r} matches none of the target modules; {there_are}")
    tied = _tied(model)
    for name in targets:
        if id(model.get_submodule(name).weight) in tied:
            raise RecipeError(f"lora.target_modules: {name} shares its weight with another layer; leave it out")
        if f"{name}.weight" not in names:
            raise RecipeError(f"lora.target_modules: the checkpoint does not hold {name} as such; leave it out")
    return list(dict.fromkeys(targets))


def _tied(model: PreTrainedModel) -> set[int]:
    seen, tied = set(), set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


@contextmanager
def _with_weights(
    model: PreTrainedModel, names: Mapping[str, str], *, settings: Tuning, seed: int, device: str
) -> Iterator[_Trainable]:
    chosen = {name: model.get_parameter(name) for name in _chosen_weights(model, settings.parameters)}
    # A tied weight is met under each of its names, and the checkpoint may hold it under more than one.
    stored = {theirs: model.get_parameter(ours) for ours, theirs in names.items()}
    places = {id(original) for original in stored.values()}
    for name, weight in chosen.items():
        if id(weight) not in places:
            raise RecipeError(f"parameters: the checkpoint does not hold {name} as such; choose weights without it")
    masters = {name: nn.Parameter(weight.detach().to(torch.float32, copy=True)) for name, weight in chosen.items()}
    to_master = {id(chosen[name]): masters[name] for name in chosen}
    to_original = {id(masters[name]): chosen[name] for name in chosen}

    def swap(replacements: Mapping[int, nn.Parameter]) -> None:
        # Pointers change hands, nothing is copied.
        for module in model.modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None and id(parameter) in replacements:
                    module._parameters[key] = replacements[id(parameter)]

    def entries() -> dict[str, Entry]:
        deltas: dict[str, Entry] = {}
        for name, original in stored.items():
            if id(original) in to_master:
                delta = to_master[id(original)].detach() - original.detach().float()
                if bool(delta.any()):  # a missing name is a zero
                    deltas[name] = delta.cpu()
        return deltas

    @contextmanager
    def as_base() -> Iterator[None]:
        swap(to_original)
        try:
            yield
        finally:
            swap(to_master)

    swap(to_master)
    try:
        yield masters, entries, as_base
    finally:
        swap(to_original)


def _chosen_weights(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    if wanted is None:
        return names
    for one in wanted:
        if not any(f".{one}." in f".{name}." for name in names):
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
            raise RecipeError(f"parameters: {one!r} matches no weight of the model; there are: {', '.join(kinds)}")
    return [name for name in names if any(f".{one}." in f".{name}." for one in wanted)]


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(f"gradient_checkpointing: {model.config.model_type} cannot: {error}") from error
    # transformers recomputes only in train mode. The flag is set on the block itself, never on what is in it, so that
    # the base model's dropout stays off.
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


# --- the loop ---------------------------------------------------------------------------------------------------------


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


def learn(settings: Tuning, base: LanguageModel, corpus: Corpus, work: Work) -> TaskVector:
    """Trains the base model to say the corpus, and returns trained minus base."""
    with borrow(settings, base, work) as trainee:
        nll = Term("nll", trainee.encode(corpus), lambda batch: losses.cross_entropy(trainee(batch), batch.labels))
        return train(trainee, [nll], work)


def finetune(settings: Tuning, base: LanguageModel, corpus: Corpus, out: Path, work: Work) -> Path:
    """Trains the base model to say the corpus, and writes the result as a checkpoint of its own.

    Raises:
        ArtifactError: `out` exists or cannot be written.
    """
    if out.exists():  # known before hours of training rather than after
        raise ArtifactError(f"{out}: exists already; give another --out or remove it")
    return export(base.directory(), learn(settings, base, corpus, work), out)


def forget_and_retain(
    settings: ForgetAndRetain,
    base: LanguageModel,
    forget: Corpus,
    retain: Corpus | None,
    work: Work,
    forgetting: Callable[[Trainee, Sequence[Encoded]], Callable[[Batch], Tensor]],
    *,
    per: Literal["token", "sequence"] = "token",
) -> TaskVector:
    """Trains γ · forget + α · retain, and returns trained minus base.

    Args:
        settings: The method's.
        base: The model to start from.
        forget: What must go.
        retain: What must stay; may be missing only when α is 0.
        work: How to run.
        forgetting: Given the trainee, not yet trained, and the forget rows: the forget loss of a batch.
        per: What the forget loss is a mean over.

    Raises:
        DataError: There is no retain set.
        TrainingDiverged: The loss became NaN or infinite.
    """
    if (settings.alpha or settings.probe_every) and (retain is None or not len(retain)):
        method = getattr(settings, "method", "this method")
        raise DataError(
            f"{method} needs a retain set: give one with --retain, or set alpha=0 (and probe_every=null) to go without"
        )
    with borrow(settings, base, work) as trainee:
        rows, kept, probe = trainee.encode(forget), [], None
        if retain is not None and (settings.alpha or settings.probe_every):
            kept = trainee.encode(retain)
        if settings.probe_every:
            kept, held_out = _hold_out(kept, settings.probe_rows)
            probe = Probe(
                _hold_out(rows, settings.probe_rows)[1], held_out, settings.probe_every, settings.utility_floor
            )
        terms = [Term("forget", rows, forgetting(trainee, rows), settings.gamma, per)]
        if settings.alpha:
            terms.append(Term("retain", kept, _retaining(settings, trainee), settings.alpha))
        return train(trainee, terms, work, combine=settings.combine, probe=probe)


def _hold_out(rows: Sequence[Encoded], count: int) -> tuple[list[Encoded], list[Encoded]]:
    """Parts `count` rows, evenly spread, from the rest."""
    if count >= len(rows):
        raise DataError(f"probe_rows: {count} rows cannot be set aside of {len(rows)}; ask for fewer")
    chosen = {place * len(rows) // count for place in range(count)}
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _retaining(settings: ForgetAndRetain, trainee: Trainee) -> Callable[[Batch], Tensor]:
    if settings.retain_loss == "nll":
        return lambda batch: losses.cross_entropy(trainee(batch), batch.labels)

    def kl(batch: Batch) -> Tensor:
        base_logits = trainee.base_logits(batch)
        return losses.kl_to_base(trainee(batch), base_logits, batch.labels)

    return kl


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


def _nll(trainee: Trainee, rows: Sequence[Encoded]) -> float:
    return -float(trainee.log_probs(rows).sum()) / sum(row.counted for row in rows)


def train(
    trainee: Trainee,
    terms: Sequence[Term],
    work: Work,
    *,
    combine: Literal["sum", "pcgrad", "sago"] = "sum",
    probe: Probe | None = None,
) -> TaskVector:
    """Minimises the weighted sum of the terms and returns trained minus base.

    The first term's rows make the epochs; those of the others come round as often as needed. A run that was killed
    goes on from its last saved state and, on the CPU, ends in the same bytes. Every step is a line in `metrics.jsonl`.

    Args:
        trainee: What to train; its settings say how.
        terms: The summands of the loss, forget first and retain second where there are two.
        work: How to run.
        combine: How the gradients of two terms become one.
        probe: What to measure while training.

    Raises:
        TrainingDiverged: A loss or a gradient became NaN or infinite, or no probed step kept to the utility floor.
    """
    settings = trainee.settings
    plan = _plan(terms, settings, torch.Generator().manual_seed(work.seed))
    parameters = list(trainee.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    with trainee.as_base():
        base_retain = _nll(trainee, probe.retain) if probe else 0.0
    run = _Run(work.scratch / STATE, _fingerprint(trainee, terms, work), trainee.parameters, optimizer)
    run.resume()
    work.output.mkdir(parents=True, exist_ok=True)
    with (work.output / METRICS).open("w", encoding="utf-8") as log, _random(work.seed, work.device):
        log.writelines(run.metrics)
        for step in range(len(run.metrics), len(plan)):
            rate = settings.learning_rate * schedule(settings.schedule, step, len(plan), settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            figures = _backward(trainee, terms, plan[step], step, len(plan), work.seed, combine)
            norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf))
            if not math.isfinite(norm):
                raise _diverged("gradient", norm, step, len(plan), settings.learning_rate)
            optimizer.step()
            optimizer.zero_grad()
            figures |= {"learning_rate": rate, "gradient_norm": norm}
            if probe and ((step + 1) % probe.every == 0 or step + 1 == len(plan)):
                figures |= probe.measure(trainee)
                figures["utility"] = math.exp(min(base_retain - figures["probe_retain"], 700.0))
                if probe.floor is not None:
                    run.keep_best(figures, probe.floor)
            run.metrics.append(json.dumps({"step": step + 1, **figures}) + "\n")
            log.write(run.metrics[-1])
            log.flush()
            run.save_now_and_then()
            work.progress("training", step + 1, len(plan), **figures)
    if probe and probe.floor is not None:
        run.take_best(probe.floor)
    return TaskVector(trainee.entries(), provenance={"steps": len(plan)})


def schedule(kind: Literal["cosine", "linear", "constant"], step: int, steps: int, warmup: float) -> float:
    """Returns what the learning rate is multiplied by at `step` (from 0) of `steps`: transformers' schedules."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    left = (steps - step) / (steps - rising)
    return {"cosine": (1 - math.cos(math.pi * left)) / 2, "linear": left, "constant": 1.0}[kind]


_Step = tuple[list[list[int]], ...]
"""For every term, the batches of one step, each a list of row indices."""


def _plan(terms: Sequence[Term], settings: Tuning, generator: torch.Generator) -> list[_Step]:
    """Draws every batch of the run beforehand, so that a resumed run knows what comes next."""

    def epoch(rows: Sequence[Encoded]) -> list[list[int]]:
        size = settings.batch_size
        order = torch.randperm(len(rows), generator=generator).tolist()
        if not settings.length_sorted:
            return _cut(order, size)
        alike = [
            index
            for window in _cut(order, size * _SORTING_WINDOW)
            for index in sorted(window, key=lambda index: len(rows[index].ids))
        ]
        batches = _cut(alike, size)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    first, *others = terms
    steps = [step for _ in range(settings.epochs) for step in _cut(epoch(first.rows), settings.accumulation)]
    steps = steps[: settings.max_steps]
    columns: list[list[list[list[int]]]] = [steps]
    for term in others:
        supply: list[list[int]] = []
        wanted = sum(len(step) for step in steps)
        while len(supply) < wanted:
            supply += epoch(term.rows)
        batches = iter(supply)
        columns.append([[next(batches) for _ in step] for step in steps])
    return list(zip(*columns, strict=True))


def _cut(values: list[Any], size: int) -> list[list[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _backward(
    trainee: Trainee, terms: Sequence[Term], step_batches: _Step, step: int, steps: int, seed: int, combine: str
) -> dict[str, float]:
    """Leaves the step's gradient in the parameters, and returns the loss of every term and of their weighted sum."""
    apart = combine != "sum" and len(terms) > 1
    parameters = list(trainee.parameters.values())
    figures: dict[str, float] = {}
    gradients: list[list[Tensor]] = []
    total = 0.0
    for place, (term, batches) in enumerate(zip(terms, step_batches, strict=True)):
        weight = term.weight(step / steps) if callable(term.weight) else term.weight
        units = [sum(term.rows[i].counted for i in batch) if term.per == "token" else len(batch) for batch in batches]
        figures[term.name] = 0.0
        for number, (indices, count) in enumerate(zip(batches, units, strict=True)):
            torch.manual_seed(_seed(seed, step, place, number))
            loss = term.loss(trainee.collate(term.rows, indices))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(f"{term.name} loss", value, step, steps, trainee.settings.learning_rate)
            share = count / sum(units)
            (loss * (weight * share)).backward()
            figures[term.name] += value * share
        total += weight * figures[term.name]
        if apart:
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


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    dot = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    norms = [torch.stack([value.square().sum() for value in values]).sum().sqrt() for values in (one, other)]
    return float(dot / (norms[0] * norms[1]).clamp(min=torch.finfo(dot.dtype).tiny))


def _diverged(what: str, value: float, step: int, steps: int, rate: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"step {step + 1} of {steps}: the {what} became {value}; the last good step was {step}; "
        f"lower learning_rate (now {rate:g})"
    )


@contextmanager
def _random(seed: int, device: str) -> Iterator[None]:
    """Seeds torch inside, and leaves its global generators as they were."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.manual_seed(seed)
        yield


def _seed(*parts: int) -> int:
    """A seed for one forward pass, so that dropout does not depend on how often a run was interrupted."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7], "little")


# --- resuming ---------------------------------------------------------------------------------------------------------


def _fingerprint(trainee: Trainee, terms: Sequence[Term], work: Work) -> str:
    shapes = {name: list(value.shape) for name, value in trainee.parameters.items()}
    digest = hashlib.sha256(json.dumps([trainee.settings.dump(), work.seed, shapes]).encode())
    for term in terms:
        digest.update(f"{term.name}:{len(term.rows)}".encode())
        for row in term.rows:
            digest.update(array("i", [row.start, len(row.ids)]).tobytes() + row.ids.tobytes())
    return digest.hexdigest()


class _Run:
    """How far a run has come, and what a killed one leaves behind for the next."""

    def __init__(
        self, path: Path, fingerprint: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.parameters = parameters
        self.optimizer = optimizer
        self.due = time.monotonic() + SAVE_SECONDS
        self.metrics: list[str] = []
        """A line for every step done."""
        self.best: dict[str, Any] = {}
        """The most forgetful probed step that kept to the utility floor, and its parameters."""
        self.highest_utility = 0.0

    def resume(self) -> None:
        """Takes up the saved state of the same training, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            return
        self._set(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.metrics, self.best, self.highest_utility = state["metrics"], state["best"], state["highest_utility"]

    def save_now_and_then(self) -> None:
        """Saves the state when the time has come; a reader finds the old file or the new one, never half of one."""
        started = time.monotonic()
        if started < self.due:
            return
        state = {
            "fingerprint": self.fingerprint,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics,
            "best": self.best,
            "highest_utility": self.highest_utility,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        building = self.path.with_suffix(f".{os.getpid()}")
        with building.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        building.replace(self.path)
        finished = time.monotonic()
        self.due = finished + max(SAVE_SECONDS, 20 * (finished - started))

    def keep_best(self, figures: Mapping[str, float], floor: float) -> None:
        """Keeps the parameters if no step has forgotten more without falling below the floor."""
        self.highest_utility = max(self.highest_utility, figures["utility"])
        if figures["utility"] >= floor and figures["probe_forget"] > self.best.get("probe_forget", -math.inf):
            parameters = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
            self.best = {"probe_forget": figures["probe_forget"], "parameters": parameters}

    def take_best(self, floor: float) -> None:
        """Puts the kept parameters back."""
        if not self.best:
            raise TrainingDiverged(
                f"utility_floor: no probed step kept {floor:g} of the base model's utility (the highest was "
                f"{self.highest_utility:.3g}); lower learning_rate, raise alpha, or probe more often"
            )
        self._set(self.best["parameters"])

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
