"""The architecture names every room, every file says why it exists, and the README is a page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_room_is_in_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("src/spunge/\n")[1].split("```")[0]
    listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
    package = ROOT / "src" / "spunge"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert listed == rooms | modules


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_file_says_why_it_exists() -> None:
    for path in (ROOT / "src" / "spunge").rglob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path


def test_every_file_of_the_walks_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page))
    assert len(named) > 20
    assert {name for name in named if not (ROOT / "src" / "spunge" / name).is_file()} == set()
