"""The base of everything a recipe can say: frozen, closed, documented on its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator


@dataclass(frozen=True)
class SearchRange:
    """Stands in a numeric field's annotation: between which values `spunge auto` searches it.

    `learning_rate: Annotated[float, SearchRange(1e-5, 1e-3, log=True)] = 1e-4`; an integer field gets integers.
    """

    low: float
    high: float
    log: bool = False
    """Whether factors count rather than steps."""
    first: float | None = None
    """What is tried first; None: the middle."""
    times: Literal["layers"] | None = None
    """What of the base model the values are shares of."""


@dataclass(frozen=True)
class SearchChoice:
    """Stands in any field's annotation: the values that `spunge auto` tries, the first one first.

    As a recipe would write them; a single one is always taken.
    """

    values: tuple[Any, ...]


class Settings(BaseModel):
    """Immutable settings; an unknown key is an error and a field's docstring is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        populate_by_name=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    version: ClassVar[int] = 1
    """Bumped whenever the same settings begin to give another result; part of every store key."""

    unkeyed_default: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results were stored, and at their defaults compute what was computed before: there they
    are no part of a store key, so that those results are found."""

    @property
    def depends_on(self) -> dict[str, str]:
        """Other programs that move the result → their versions; part of every store key."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _true_is_not_one(cls, settings: Any) -> Any:
        """Pydantic takes `layer: true` for layer 1; a recipe that says so is mistaken."""
        for name, field in cls.model_fields.items() if isinstance(settings, dict) else ():
            value = settings.get(name, settings.get(field.alias))
            kinds = kinds_of(field.annotation)
            if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{field.alias or name} is {str(value).lower()}, and should be a number")
        return settings

    def dump(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values, under the names that a recipe uses."""
        return self.model_dump(mode="json", by_alias=True)


def is_shipped(kind: type) -> bool:
    """Whether a class is Spunge's own."""
    return kind.__module__.startswith("spunge.")


def name_of(method: Settings) -> str:
    """Returns what a recipe calls a method: its name, or `package.module:Class` where it does not ship with Spunge.

    A class from outside may be derived from a method that ships, and so have inherited its name; it is not that one.
    """
    kind = type(method)
    named = next((kind.model_fields[field].default for field in ("method", "by") if field in kind.model_fields), None)
    return str(named) if named and is_shipped(kind) else f"{kind.__module__}:{kind.__qualname__}"


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation is a union of."""
    parts = get_args(annotation)
    return set().union(*map(kinds_of, parts)) if parts else {annotation}
