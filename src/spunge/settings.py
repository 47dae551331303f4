"""The base of everything a recipe can say: frozen, closed, documented on its fields."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable settings; an unknown key is an error and a field's docstring is its documentation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )

    version: ClassVar[int] = 1
    """Bumped whenever the same settings begin to give another result; part of every store key."""

    def dump(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values, under the names that a recipe uses."""
        return self.model_dump(mode="json", by_alias=True)
