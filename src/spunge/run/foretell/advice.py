"""Whether a task fits into the memory there is, and what to change in a recipe where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spunge.interfaces import Work
from spunge.recipe.schema import overridden
from spunge.run.executors import Foreseeable
from spunge.settings import Settings
from spunge.weights.language_model import Resident
from spunge.weights.shape import shape_of

_SAVINGS: tuple[tuple[str, Callable[[Any], bool], Any], ...] = (
    ("lora", lambda value: value is None, {"rank": 16}),
    ("batch_size", lambda value: value is None or value > 1, 1),
    ("gradient_checkpointing", lambda value: not value, True),
    ("max_length", lambda value: value is not None and value > 128, 128),
)
"""Setting, whether a value of it leaves anything to save, and what saves it; what costs a result least comes first."""


def advise(task: Foreseeable, needed: int, memory: int) -> str | None:
    """Says what to change so that a task that needs so many bytes fits into the memory; None if it does already."""
    if needed <= memory:
        return None
    chosen = []
    for change, smaller in _smaller(task):
        chosen.append(change)
        taken = smaller.forecast(Work(Resident(), Path(), Path()), {}).memory
        if taken is not None and taken <= memory:
            return f"does not fit; {', '.join(chosen)} would make it fit"
    return "does not fit, whatever its settings; choose a larger device"


def _smaller(task: Any) -> Iterator[tuple[str, Foreseeable]]:
    """Yields the task with one setting after the other changed, each beside those before it."""
    base = getattr(task, "base", None)
    if base is not None and base.model.dtype == "auto" and shape_of(base.model).bytes > 2:
        task = replace(task, base=replace(base, model=base.model.model_copy(update={"dtype": "bfloat16"})))
        yield "model.dtype=bfloat16", task
    field = next((name for name in ("unlearner", "evaluator", "generation") if hasattr(task, name)), None)
    if field is None:
        return
    method: Settings = getattr(task, field)
    for setting, wasteful, thrifty in _SAVINGS:
        if setting in type(method).model_fields and wasteful(getattr(method, setting)):
            method = overridden(method, {setting: thrifty})
            task = replace(task, **{field: method})
            shown = "{rank: 16}" if isinstance(thrifty, Mapping) else str(thrifty).lower()
            suite = getattr(task, "suite", getattr(method, "suite", None))
            yield f"unlearn.{setting}={shown}" if suite is None else f"{setting}={shown} in the suite {suite}", task
