"""The README names every file, so that a newcomer finds each with a line on why it exists."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_module_is_in_the_tree() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("src/spunge/\n")[1].split("```")[0]
    listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
    modules = {path.name for path in (ROOT / "src" / "spunge").rglob("*.py")} - {"__init__.py"}
    assert modules <= listed, modules - listed


def test_every_file_says_why_it_exists() -> None:
    for path in (ROOT / "src" / "spunge").rglob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path
