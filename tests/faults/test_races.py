"""Several runs on one store at once: each ends well, and the store holds what one run alone would have made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attempts import Elsewhere, leftovers, made, start, wait


def race(recipe: Path, tmp_path: Path, number: int, meddling: Sequence[Elsewhere | None] = (None,) * 4) -> None:
    """Starts several runs at once on one store, and asserts that the store is that of one run."""
    out = f"runs{number}"
    racing = [
        start(("run", recipe, "--quiet", f"name=run{each}", "--out", out), tmp_path, meddle)
        for each, meddle in enumerate(meddling)
    ]
    for ended in map(wait, racing):
        assert ended.code == 0, ended.errors
        assert not ended.errors
    assert not leftovers(tmp_path / out)
    found = made(tmp_path / out)
    alone = made(tmp_path / "alone")
    store = {name: content for name, content in found.items() if name.startswith("store/")}
    assert store == {name: content for name, content in alone.items() if name.startswith("store/")}
    assert (
        len({found[f"run{each}/items.parquet"] for each in range(len(meddling))} | {alone["run0/items.parquet"]}) == 1
    )


@pytest.fixture
def recipe(world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path) -> Path:
    """A tiny recipe, of which an undisturbed run has been made."""
    file = write_recipe({**world, "controls": []})
    ended = wait(start(("run", file, "--quiet", "name=run0", "--out", "alone"), tmp_path))
    assert ended.code == 0, ended.errors
    return file


def test_four_runs_write_one_store(recipe: Path, tmp_path: Path) -> None:
    for number in range(5):
        race(recipe, tmp_path, number)


def test_two_hosts_whose_clocks_are_an_hour_apart_write_one_store(recipe: Path, tmp_path: Path) -> None:
    hosts = Elsewhere("a.1", 1800.0), Elsewhere("b.2", -1800.0)
    race(recipe, tmp_path, 0, meddling=hosts)


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_four_runs_write_one_store_many_times(recipe: Path, tmp_path: Path, part: int) -> None:
    for number in range(5):
        race(recipe, tmp_path, number)
