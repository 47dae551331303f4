"""What is searched of a method: the ranges and choices that stand on its own fields, for a base model of some depth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spunge.interfaces import Unlearner
from spunge.settings import SearchChoice, SearchRange, kinds_of

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched."""

    name: str
    """As a recipe has it."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()
    """JSON texts; where there are any the numbers say nothing."""
    first: Any = None
    """What is tried first."""

    def suggest(self, trial: Trial, prefix: str) -> Any:
        """Returns the value that a trial of Optuna gives it."""
        name = f"{prefix}.{self.name}"
        if self.choices:
            return json.loads(trial.suggest_categorical(name, self.choices))
        if self.integer:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}")


@dataclass(frozen=True)
class Space:
    """What is searched of one method, and what is set beside it."""

    method: str
    """Its name, or `package.module:Class`."""
    dimensions: Sequence[Dimension]
    fixed: Mapping[str, Any]

    @property
    def first(self) -> dict[str, Any]:
        """The setting that is tried first, as Optuna names it."""
        return {f"{self.method}.{one.name}": one.first for one in self.dimensions}


def space_of(name: str, method: type[Unlearner], layers: int) -> Space:
    """Returns the space that a method's fields declare by `SearchRange` and `SearchChoice`; perhaps an empty one.

    Args:
        name: What a recipe calls it.
        method: The class.
        layers: How many decoder layers the base model has.
    """
    dimensions, fixed = [], {}
    for field, info in method.model_fields.items():
        called = info.alias or field
        for declared in info.metadata:
            if isinstance(declared, SearchRange):
                dimensions.append(_range(called, declared, kinds_of(info.annotation), layers))
            elif isinstance(declared, SearchChoice) and len(declared.values) == 1:
                fixed[called] = declared.values[0]
            elif isinstance(declared, SearchChoice):
                choices = tuple(json.dumps(value) for value in declared.values)
                dimensions.append(Dimension(called, choices=choices, first=choices[0]))
    return Space(name, dimensions, fixed)


def _range(name: str, declared: SearchRange, kinds: set[Any], layers: int) -> Dimension:
    integer = int in kinds and float not in kinds
    times = layers if declared.times == "layers" else 1
    low, high = declared.low * times, declared.high * times
    middle = math.sqrt(low * high) if declared.log else (low + high) / 2
    first = middle if declared.first is None else declared.first * times
    if integer:
        low, high, first = round(low), max(round(low), round(high)), round(first)
    return Dimension(name, low, high, declared.log, integer, first=min(max(first, low), high))
