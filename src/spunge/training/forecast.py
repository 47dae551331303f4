"""What training takes: memory, disk and operations, from the model's configuration and the rows alone."""

from __future__ import annotations

import re
from pathlib import Path

from spunge.interfaces import Forecast
from spunge.rows.sources import Corpus
from spunge.training.settings import Lora, Tuning
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import Shape, shape_of, token_counts


def forecast_training(settings: Tuning, base: LanguageModel, forget: Corpus, retain: Corpus | None) -> Forecast:
    """Says what training on a forget set takes, and on a retain set beside it where one is given.

    Raises:
        ModelError: The configuration cannot be read, or what would be trained could not be stored.
        RecipeError: A setting names nothing of the model.
    """
    shape = shape_of(base)
    notes = _check_targets(settings, base)
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
    kept = shape.width if settings.gradient_checkpointing else shape.activations
    activations = tokens * shape.layers * kept * shape.bytes + 3 * tokens * shape.vocabulary * 4
    # Forward 2, gradients of the activations 2, those of the weights 2 where there is no adapter; recomputed 2.
    passes = 4 + (0 if settings.lora else 2) + (2 if settings.gradient_checkpointing else 0)
    batches = steps * settings.accumulation * (1 if retain is None else 2)
    # Rows of a batch are padded to its longest: more than they hold, less than the longest of all.
    padded = settings.batch_size * (longest + sum(lengths) / max(len(lengths), 1)) / 2
    return Forecast(
        memory=shape.parameters * shape.bytes + trained * 16 + activations,
        disk=trained * 4,
        operations=passes * shape.inner * padded * batches,
        calls=shape.layers * batches * passes // 2,
        changed=changed,
        notes=notes,
    )


_checked: dict[tuple[LanguageModel, Path, str | None, tuple[str, ...] | None], dict[str, str]] = {}
"""What was found out already: every subset's task of a plan asks the same."""


def _check_targets(settings: Tuning, base: LanguageModel) -> dict[str, str]:
    """Refuses what could be trained and not stored; says what an adapter does not reach."""
    from spunge.training.tuned import chosen_weights, lora_targets
    from spunge.weights.conversion import ParameterNames

    lora, stored = settings.lora, base.stored_names()
    key = (base, base.directory(weights=False), lora and lora.model_dump_json(), settings.parameters)
    if key in _checked or stored is None:
        return _checked.get(key, {})
    outline = base.outline()
    names, notes = ParameterNames(outline, stored), {}
    if lora is None:
        chosen_weights(outline, names, settings.parameters)
    else:
        targets = lora_targets(outline, names, lora)
        reached = sum(outline.get_parameter(f"{name}.weight").numel() for name in targets)
        fused = sum(
            value.numel() for name, value in outline.named_parameters() if "experts" in name and value.ndim == 3
        )
        total = sum(parameter.numel() for parameter in outline.parameters())
        if fused:
            notes["what the adapter reaches"] = (
                f"{reached / total:.1%} of the parameters; {fused / total:.1%} are tensors of fused experts, on which "
                "no LoRA is put: `lora: null` with `parameters: [experts]` trains them"
            )
    _checked[key] = notes
    return notes


def _is_adapted(name: str, lora: Lora, shape: Shape) -> bool:
    targets = lora.target_modules
    if targets is None:
        return name in shape.adapted
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, f"model.layers.0.{name}") is not None
    return any(target.rpartition(".")[2] == name for target in targets)
