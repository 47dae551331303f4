"""Three parts by item hash: settings are tuned on one, one is chosen on the next, the last alone is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spunge.auto.inspection import Holding, as_asked
from spunge.errors import DataError
from spunge.files import replaced
from spunge.rows.sources import Corpus, item_id

Part = Literal["tune", "choose", "test"]
PARTS: tuple[Part, ...] = ("tune", "choose", "test")

_HELD_OUT = {"train": (0.0, 0.6), "tune": (0.6, 0.72), "choose": (0.72, 0.84), "test": (0.84, 1.0)}
"""Of texts: what is asked was not trained on, so that what goes is more than these very words."""
_ASKED = {"tune": (0.0, 0.25), "choose": (0.25, 0.5), "test": (0.5, 1.0)}
"""Of questions, and of answers that must go as they are: all are unlearned, each is asked in one part."""


@dataclass(frozen=True)
class Parts:
    """The rows of a search, each in its place, as files that a recipe can name."""

    directory: Path
    forget: Path
    """What is unlearned."""
    retain: Path
    """What is held on to."""
    asked: Mapping[Part, Path]
    """What is asked of what must go."""
    damage: Mapping[Part, Path]
    """Texts that damage is measured on, held out of the retain set."""
    kept: Mapping[Part, Path] | None
    """Questions on what must stay, where there are any."""
    rows: Mapping[str, int]
    """File name → how many rows."""


def divide(forget: Holding, retain: Holding, directory: Path) -> Parts:
    """Parts both sets by the hash of each row's content, so that equal rows lie together, and writes the files.

    Args:
        forget: What must go.
        retain: What must stay.
        directory: Where the files go; those of the same rows are written as they were.

    Raises:
        DataError: A part is empty.
    """
    files: dict[str, Corpus] = {}
    if forget.kind == "texts":
        files |= _named("forget", _divided(forget.texts, _HELD_OUT))
    else:
        asked = forget.questions if forget.questions is not None else forget.texts
        files |= {"forget-train": forget.texts, **_named("forget", _divided(asked, _ASKED))}
    files |= _named("retain", _divided(retain.texts, _HELD_OUT))
    if retain.questions is not None:
        files |= _named("kept", _divided(retain.questions, _ASKED))
    paths = {name: directory / f"{name}.jsonl" for name in files}
    for name, rows in files.items():
        with replaced(paths[name]) as building:
            rows.rows.write_ndjson(building)

    def of(kind: str) -> dict[Part, Path]:
        return {part: paths[f"{kind}-{part}"] for part in PARTS}

    return Parts(
        directory, paths["forget-train"], paths["retain-train"], of("forget"), of("retain"),
        of("kept") if retain.questions is not None else None, {name: len(rows) for name, rows in files.items()},
    )  # fmt: skip


def _named(kind: str, parts: Mapping[str, Corpus]) -> dict[str, Corpus]:
    return {f"{kind}-{name}": rows for name, rows in parts.items()}


def _divided(rows: Corpus, shares: Mapping[str, tuple[float, float]]) -> dict[str, Corpus]:
    """Rows by where their hash lies; where a text or a question stands twice, both have one."""
    texts = rows.texts if {"text", "response"} & set(rows.rows.columns) else as_asked(rows)
    hashes = [int(item_id(text)[-8:], 16) / 16**8 for text in texts]
    parts = {
        name: rows.select([index for index, hash in enumerate(hashes) if low <= hash < high])
        for name, (low, high) in shares.items()
    }
    if empty := next((name for name, part in parts.items() if not len(part)), None):
        raise DataError(f"no row of {len(rows)} falls into the part to {empty} on: give more, and different ones")
    return parts
