"""What a user wants of a search: all that its trials depend on, and the digests of what it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spunge.auto.study import Sampler
from spunge.rows.sources import Source
from spunge.run.identity import digest, identity
from spunge.weights.language_model import LanguageModel

METHODS = ("adaptive_rmu", "task_vector_negation", "npo")
"""What is searched where nobody says which methods: one that steers, one that subtracts, one that weighs losses."""


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    model: str
    forget: tuple[Source, ...]
    retain: tuple[Source, ...]
    by: str | None = None
    """A column, `cluster`, or None."""
    damage: float = 0.03
    """Nats a token."""
    minutes: float | None = None
    trials: int | None = None
    """Of each arm."""
    methods: tuple[str, ...] = METHODS
    against: str | None = None
    """An attack."""
    sampler: Sampler = "tpe"
    seed: int = 0
    dtype: str | None = None

    @property
    def described(self) -> dict[str, Any]:
        """All that the trials depend on, as JSON values; not how long the search may take."""
        sources = {
            name: [one.model_dump(mode="json", exclude_defaults=True) for one in getattr(self, name)]
            for name in ("forget", "retain")
        }
        kept = ("model", "by", "damage", "methods", "against", "sampler", "seed", "dtype")
        return {**{name: getattr(self, name) for name in kept}, **sources, "methods": [*self.methods]}


def read_wish(content: Mapping[str, Any]) -> Wish:
    """Reads what `Wish.described` wrote."""
    sources = {name: tuple(map(Source.model_validate, content[name])) for name in ("forget", "retain")}
    return Wish(**{**content, **sources, "methods": tuple(content["methods"])})


def inputs_of(wish: Wish) -> dict[str, Any]:
    """Returns the digests of the model and of the rows of every source, wherever they lie."""
    rows = {one.path: identity(one)["rows"] for one in (*wish.forget, *wish.retain)}
    return {"model": digest(LanguageModel(id=wish.model)), "rows": rows}
