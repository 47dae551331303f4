"""What a task will take, from the model's configuration and the rows alone, before any weight is read.

Estimates, for deciding whether to begin: a token is taken for four characters, and time is arithmetic alone, at half
the rate at which this machine multiplies matrices.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from spunge.errors import DataError
from spunge.interfaces import Evaluator, Generation
from spunge.recipe.schema import overridden
from spunge.rows.items import load_items
from spunge.rows.sources import Corpus
from spunge.run.executors import Task
from spunge.run.stages import Base, Evaluate, Generate, Merge, Score, Unlearn, UnlearnInTurn
from spunge.steering.estimate import estimate, number_size
from spunge.steering.loop import batches_per_epoch, planned_steps
from spunge.steering.settings import SteeredUnlearner
from spunge.steering.truncated import choose_parameters, find_layers, skeleton_of
from spunge.training.settings import Lora, Tuning
from spunge.weights.language_model import LanguageModel

_CHARACTERS = 4
_TABLE, _ITEM = 2**12, 60
"""Bytes of a table of items, and of an item's metrics in it."""
_MERGING = 2**27
"""Bytes of a merge's blocks."""
PROCESS = 450 * 2**20
"""Bytes of a process with its libraries, which count where it computes on the CPU."""


@dataclass(frozen=True)
class Size:
    """What a task takes."""

    memory: int
    """Bytes on the device at once."""
    disk: int
    """Bytes of the artifact."""
    flops: float
    """Floating-point operations."""
    changed: int = 0
    """Numbers that differ from the base, as dense matrices: what a merger is given."""


@dataclass(frozen=True)
class Shape:
    """What counts of a model's configuration."""

    parameters: int
    """Numbers in all weights, tied ones once."""
    matrices: Mapping[str, tuple[int, int]]
    """The layers' linear maps by what LoRA calls them (`q_proj`): numbers in all, and input plus output features."""
    adapted: frozenset[str]
    """Those of them that PEFT adapts where a recipe names none."""
    inner: int
    """Numbers that every token is multiplied with."""
    layers: int
    width: int
    vocabulary: int
    cached: int
    """Numbers that a token leaves in the key-value cache."""
    activations: int
    """Numbers that a token's way through one layer leaves for the backward pass."""
    bytes: int
    """Of one number of the weights."""


def shape(model: LanguageModel) -> Shape:
    """Reads the configuration, once in a process, and builds the model without memory for its weights.

    Raises:
        ModelError: There is no such model, or its configuration cannot be read.
    """
    return _shape(model, model.directory(weights=False))  # pyright: ignore[reportArgumentType]: frozen, so hashable


@cache
def _shape(model: LanguageModel, directory: Path) -> Shape:  # a hub id may come to mean another directory
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    built: Any = model.outline()
    config, layers = built.config, find_layers(built.base_model)
    text = config.get_text_config()
    matrices: dict[str, tuple[int, int]] = {}
    for path, module in layers.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            numbers, sides = matrices.get(path.rpartition(".")[2], (0, 0))
            shape = cast("torch.Tensor", module.weight).shape
            matrices[path.rpartition(".")[2]] = (numbers + shape.numel(), sides + sum(shape))
    linear = sum(numbers for numbers, _ in matrices.values())
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    outputs = sum(p.shape[0] for p in layers[-1].parameters() if p.ndim > 1)
    return Shape(
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        matrices=matrices,
        adapted=frozenset(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type, matrices)),
        inner=linear + text.hidden_size * text.vocab_size,
        layers=len(layers),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        cached=2 * len(layers) * heads * head,
        # Every matrix product's output is kept, and about as much again of norms and products between them.
        activations=2 * outputs,
        bytes=number_size(config, model.dtype),
    )


def size_of(task: Task, before: Mapping[str, Size] | None = None) -> Size | None:
    """Returns what a task takes; None for a split, and where a method is not known here.

    Args:
        task: Any task of an experiment.
        before: Artifact key → what the task takes that makes it, for those that build on it.

    Raises:
        SpungeError: The configuration or the rows do not say.
    """
    if isinstance(task, Unlearn):
        return _unlearning(task, before or {}) if isinstance(task.unlearner, Tuning | SteeredUnlearner) else None
    if isinstance(task, UnlearnInTurn):
        return _in_turn([size_of(part) for part in task.parts])
    if isinstance(task, Generate):
        return _asking(task.base.model, task.generation)
    if isinstance(task, Score) and (judge := getattr(task.scorer, "judge", None)) is not None:
        return _asking(judge, task.of.generation)
    if isinstance(task, Evaluate):
        asked = _asking(task.base.model, task.evaluator)
        return replace(asked, memory=0, flops=0.0) if task.steps else asked  # to gather asks no model
    if isinstance(task, Merge):
        return _merging(task, before or {})
    return None


def _unlearning(task: Unlearn, before: Mapping[str, Size]) -> Size:
    method, model = task.unlearner, task.base.model
    if isinstance(method, SteeredUnlearner):
        size = _steering(method, model, task.forget, task.retain)
    else:
        assert isinstance(method, Tuning)
        size = _tuning(method, model, task.forget, task.retain)
    # As many steps as all subsets took together are as many operations.
    together = sum(before[path.name].flops for path in task.steps_of[1:] if path.name in before)
    return replace(size, flops=together) if together else size


def _tuning(tuning: Tuning, model: LanguageModel, forget: Corpus, retain: Corpus | None) -> Size:
    known = shape(model)
    length = min(tuning.max_length, _longest(forget.texts))
    steps = tuning.epochs * -(-len(forget) // (tuning.batch_size * tuning.accumulation))
    steps = min(steps, tuning.max_steps or steps)
    trained = changed = known.parameters
    if tuning.lora:
        adapted = [size for name, size in known.matrices.items() if _is_adapted(name, tuning.lora, known)]
        changed = sum(numbers for numbers, _ in adapted)
        trained = tuning.lora.rank * sum(sides for _, sides in adapted)
    kept = known.width if tuning.gradient_checkpointing else known.activations
    tokens = tuning.batch_size * length
    activations = tokens * known.layers * kept * known.bytes + 3 * tokens * known.vocabulary * 4
    sets = 2 if retain is not None and getattr(tuning, "alpha", 0) else 1
    # Forward 2, gradients of the activations 2, those of the weights 2 where there is no adapter; recomputed 2.
    passes = 4 + (0 if tuning.lora else 2) + (2 if tuning.gradient_checkpointing else 0)
    return Size(
        memory=known.parameters * known.bytes + trained * 16 + activations,
        disk=trained * 4,
        flops=float(passes * known.inner * tokens * steps * tuning.accumulation * sets),
        changed=changed,
    )


def _is_adapted(name: str, lora: Lora, known: Shape) -> bool:
    targets = lora.target_modules
    if targets is None:
        return name in known.adapted
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, f"model.layers.0.{name}") is not None
    return any(target.rpartition(".")[2] == name for target in targets)


def _in_turn(sizes: Sequence[Size | None]) -> Size | None:
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    most = max(known, key=lambda size: size.memory)
    return replace(most, disk=max(size.disk for size in known), flops=sum(size.flops for size in known))


def _steering(settings: SteeredUnlearner, model: LanguageModel, forget: Corpus, retain: Corpus | None) -> Size:
    if retain is None:
        raise DataError("this method needs a retain set")
    parameters = choose_parameters(model, settings.updated, settings.layer + 1, settings.parameters)
    lengths = (settings.max_length, settings.retain_max_length)
    limits = [min(most, _longest(rows.texts)) for most, rows in zip(lengths, (forget, retain), strict=True)]
    taken = estimate(settings, model, parameters, tokens=max(limits))
    layers = find_layers(skeleton_of(model, settings.layer + 1))
    changed = sum(layers[number].get_parameter(name).numel() for number, names in parameters.items() for name in names)
    each = sum(p.numel() for p in layers[-1].parameters())
    topics = forget.topics()
    steps = planned_steps(settings, batches_per_epoch(settings, topics, retain), len(topics))
    tail = len(layers) - settings.updated[0]
    # A forward pass of both batches, one more of the frozen tail for the retain batch, and a backward pass of the tail.
    passes = 2 * len(layers) * sum(limits) + 2 * tail * limits[1] + 4 * tail * sum(limits)
    flops = float(steps * settings.batch_size * each * passes)
    return Size(memory=taken.needed, disk=changed * 4, flops=flops, changed=changed)


def _merging(task: Merge, before: Mapping[str, Size]) -> Size:
    made = [before.get(variant.artifact.key) for variant in task.variants if variant.artifact is not None]
    numbers = max((size.changed for size in made if size is not None), default=0)
    # Thresholds are found and blocks combined piece by piece: what lies in memory does not grow with the model.
    return Size(memory=_MERGING, disk=4 * numbers, flops=20.0 * numbers * len(task.variants), changed=numbers)


def _asking(model: LanguageModel, evaluator: Evaluator | Generation) -> Size:
    known = shape(model)
    of: Any = getattr(evaluator, "of", evaluator)
    lengths = _item_lengths(of)
    new = getattr(of, "max_new_tokens", 0)
    batch = getattr(of, "batch_size", 16)
    longest = max(lengths, default=512) + new
    tokens = batch * longest
    rounds = len(getattr(evaluator, "steps", ())) or len(getattr(evaluator, "codes", ())) or 1
    trained = 12 * known.parameters if getattr(evaluator, "method", "") == "relearning" else 0
    return Size(
        memory=known.parameters * known.bytes + trained + tokens * (known.cached * known.bytes + 8 * known.width)
        + batch * max(new, 32) * known.vocabulary * 4,
        disk=_TABLE + (_ITEM + 2 * new) * len(lengths) * rounds,
        flops=float(2 * known.inner * (sum(lengths) + new * len(lengths)) * rounds),
    )  # fmt: skip


_lengths: dict[str, list[int]] = {}
"""Evaluator → the tokens of its items, as every variant is asked the same."""


def _item_lengths(evaluator: Evaluator | Generation) -> list[int]:
    known = type(evaluator).model_fields
    if "sources" not in known:
        return []
    name = evaluator.model_dump_json()
    if name not in _lengths:
        asked = {name: getattr(evaluator, name) for name in ("where", "limit", "part") if name in known}
        rows = load_items(getattr(evaluator, "sources"), **asked)  # noqa: B009
        _lengths[name] = [max(1, sum(len(str(cell)) for cell in item.row.values()) // _CHARACTERS) for item in rows]
    return _lengths[name]


def _longest(texts: Sequence[str]) -> int:
    return max(1, max(map(len, texts), default=1) // _CHARACTERS)


def changes(task: Any) -> Iterator[tuple[str, Task]]:
    """Yields what can be changed so that a task takes less memory, one after the other: the setting, and the task."""
    base: Base | None = getattr(task, "base", None)
    if base is not None and base.model.dtype == "auto" and shape(base.model).bytes > 2:
        task = replace(task, base=replace(base, model=base.model.model_copy(update={"dtype": "bfloat16"})))
        yield "model.dtype=bfloat16", task
    if isinstance(task, Unlearn):
        method: Any = task.unlearner
        if isinstance(method, Tuning) and method.lora is None:
            method = overridden(method, {"lora": {"rank": 16}})
            yield "unlearn.lora={rank: 16}", replace(task, unlearner=method)
        if method.batch_size > 1:
            method = method.model_copy(update={"batch_size": 1})
            yield "unlearn.batch_size=1", replace(task, unlearner=method)
        if isinstance(method, Tuning) and not method.gradient_checkpointing:
            method = method.model_copy(update={"gradient_checkpointing": True})
            yield "unlearn.gradient_checkpointing=true", replace(task, unlearner=method)
        if method.max_length > 128:
            yield "unlearn.max_length=128", replace(task, unlearner=method.model_copy(update={"max_length": 128}))
    elif isinstance(task, Evaluate) and getattr(task.evaluator, "batch_size", 1) > 1:
        smaller = task.evaluator.model_copy(update={"batch_size": 1})
        yield f"batch_size=1 in the suite {smaller.suite}", replace(task, evaluator=smaller)
    elif isinstance(task, Generate) and getattr(task.generation, "batch_size", 1) > 1:
        smaller = task.generation.model_copy(update={"batch_size": 1})
        yield f"batch_size=1 in the suite {task.suite}", replace(task, generation=smaller)


def advice(task: Task, needed: int | None, memory: int) -> str | None:
    """Says what to change so that a task that needs more fits into so many bytes; None if it does already."""
    if needed is None or needed <= memory:
        return None
    if isinstance(task, Unlearn) and not isinstance(task.unlearner, Tuning | SteeredUnlearner):
        return "does not fit; what its method can do about it is not known here"
    chosen = []
    for change, smaller in changes(task):
        chosen.append(change)
        size = size_of(smaller)
        if size is not None and size.memory <= memory:
            return f"does not fit; {', '.join(chosen)} would make it fit"
    return "does not fit, whatever its settings; choose a larger device"


@lru_cache(maxsize=4)
def rate(device: str, dtype: str) -> float:
    """Returns half the floating-point operations a second that a device shows in a matrix product."""
    kind = torch.float32 if dtype == "float32" or device == "cpu" else torch.bfloat16
    width = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.ones(width, width, device=device, dtype=kind) for _ in range(2))
    torch.mm(a, b)
    fastest = math.inf
    for _ in range(5):  # others may be using the machine too
        begun = time.perf_counter()
        (a @ b)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - begun)
    return width**3 / fastest  # 2 · width³ operations, and half the rate
