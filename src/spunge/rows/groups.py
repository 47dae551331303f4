"""One name for each of ToxiGen's thirteen groups, which its own files spell in several ways."""

from __future__ import annotations

import re
from typing import Any

from spunge.errors import DataError

# ToxiGen (Hartvigsen et al., 2022) writes `physical_dis`, `black/african-american folks`, `mexican folks` …
_KEYWORDS = {
    "asian": r"\basian",
    "black": r"\bblack|\bafrican",
    "chinese": r"\bchinese",
    "jewish": r"\bjew",
    "latino": r"\blatin|\bhispanic",
    "lgbtq": r"\blgbt",
    "mental_disability": r"\bmental",
    "mexican": r"\bmexic",
    "middle_eastern": r"\bmiddle",
    "muslim": r"\bmuslim",
    "native_american": r"\bnative",
    "physical_disability": r"\bphysical",
    "women": r"\bwom[ae]n",
}
TOXIGEN_GROUPS = tuple(_KEYWORDS)


def toxigen_group(name: str) -> str:
    """Returns the group that a spelling means.

    Raises:
        DataError: It means none of them, or two.
    """
    spelled = name.lower().replace("_", " ")
    meant = [group for group, keyword in _KEYWORDS.items() if re.search(keyword, spelled)]
    if "chinese" in meant and "asian" in meant:
        meant.remove("asian")
    if len(meant) != 1:
        raise DataError(
            f"group {name!r} is {'none' if not meant else ' and '.join(meant)} of ToxiGen's; "
            f"they are {', '.join(TOXIGEN_GROUPS)}"
        )
    return meant[0]


def toxigen_groups(cell: Any) -> Any:
    """Normalises a cell that holds a group, a list of groups, or nothing."""
    if cell is None:
        return None
    return [toxigen_group(name) for name in cell] if isinstance(cell, list) else toxigen_group(str(cell))
