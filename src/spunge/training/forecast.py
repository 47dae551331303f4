"""What training takes: memory, disk and operations, from the model's configuration and the rows alone."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spunge.interfaces import Forecast
from spunge.rows.sources import Corpus
from spunge.training.settings import Lora, Tuning
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import Shape, reads_packed_rows, shape_of, token_counts

if TYPE_CHECKING:
    from spunge.training.tuned import Reach


_STEP = 5
"""What a layer's calls take in training, of those in asking: beside each matrix two small ones, rows attended to one by
one, and the optimiser. A step of the embedded model took 15 ms, with four rows as with one."""


def forecast_training(settings: Tuning, base: LanguageModel, forget: Corpus, retain: Corpus | None) -> Forecast:
    """Says what training on a forget set takes, and on a retain set beside it where one is given.

    Raises:
        ModelError: The configuration cannot be read, or what would be trained could not be stored.
        RecipeError: A setting names nothing of the model.
    """
    shape = shape_of(base)
    _check_targets(settings, base)
    steps = settings.epochs * -(-len(forget) // (settings.batch_size * settings.accumulation))
    steps = min(steps, settings.max_steps or steps)
    trained = changed = shape.parameters
    if settings.lora:
        adapted = [size for name, size in shape.matrices.items() if _is_adapted(name, settings.lora, shape)]
        changed = sum(numbers for numbers, _ in adapted)
        trained = settings.lora.rank * sum(sides for _, sides in adapted)
    lengths = [min(settings.max_length, length) for length in token_counts(base, forget.texts)]
    longest = max(lengths, default=1)
    tokens = settings.batch_size * longest
    numbers = shape.width if settings.gradient_checkpointing else shape.activations
    # Logits as they come, in float32, as log-softmax, and the gradients of both.
    activations = tokens * shape.layers * numbers * shape.bytes + tokens * shape.vocabulary * (12 + 2 * shape.bytes)
    # Rows of other lengths do not fit into what freed ones leave: over eight tasks on SmolLM2 a process took up to half
    # as much again.
    activations += activations // 2
    # Forward 2, gradients of the activations 2, those of the weights 2 where there is no adapter; recomputed 2.
    passes = 4 + (0 if settings.lora else 2) + (2 if settings.gradient_checkpointing else 0)
    batches = steps * settings.accumulation * (1 if retain is None else 2)
    read = settings.batch_size * sum(lengths) / max(len(lengths), 1)
    if not _packs(base, base.directory(weights=False)):  # pyright: ignore[reportArgumentType]: frozen, so hashable
        # Padded to the longest of a batch: more than its rows hold, less than the longest of all.
        read = (settings.batch_size * longest + read) / 2
    return Forecast(
        memory=shape.parameters * shape.bytes + trained * 16 + activations,
        disk=trained * 4,
        operations=passes * shape.inner * read * batches,
        calls=_STEP * shape.layers * batches * passes // 2,
        changed=changed,
    )


def out_of_reach(settings: Tuning, base: LanguageModel) -> str | None:
    """Says what share of a mixture an adapter does not reach, once its training was forecast; None where it is none."""
    reach = _checked.get(_question(settings, base))
    if reach is None or not reach.fused_experts:
        return None
    return (
        f"The adapter reaches {reach.adapted:.1%} of the parameters: {reach.fused_experts:.1%} are tensors of fused "
        "experts, on which no LoRA is put: `lora: null` with `parameters: [experts]` trains them."
    )


@cache
def _packs(base: LanguageModel, directory: Path) -> bool:
    return reads_packed_rows(base.outline())


_Question = tuple[LanguageModel, Path, str | None, tuple[str, ...] | None]

_checked: dict[_Question, Reach | None] = {}
"""What was found out already: every subset's task of a plan asks the same."""


def _question(settings: Tuning, base: LanguageModel) -> _Question:
    lora = settings.lora
    return base, base.directory(weights=False), lora and lora.model_dump_json(), settings.parameters


def _check_targets(settings: Tuning, base: LanguageModel) -> None:
    """Refuses what could be trained and not stored; remembers what an adapter reaches."""
    from spunge.training.tuned import chosen_weights, lora_targets, reach_of
    from spunge.weights.conversion import ParameterNames

    lora, stored = settings.lora, base.stored_names()
    question = _question(settings, base)
    if question in _checked or stored is None:
        return
    outline = base.outline()
    names = ParameterNames(outline, stored)
    if lora is None:
        chosen_weights(outline, names, settings.parameters)
        _checked[question] = None
    else:
        _checked[question] = reach_of(outline, lora_targets(outline, names, lora))


def _is_adapted(name: str, lora: Lora, shape: Shape) -> bool:
    targets = lora.target_modules
    if targets is None:
        from spunge.training.tuned import default_targets

        return name in (default_targets(shape.kind) or shape.matrices)
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, f"model.layers.0.{name}") is not None
    return any(target.rpartition(".")[2] == name for target in targets)
