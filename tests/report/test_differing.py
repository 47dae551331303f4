"""What compared runs differ in is named, and nothing else."""

from __future__ import annotations

from pathlib import Path

from report_runs import write_run

from spunge import report


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, items=40, name=name) for name in ("one", "two")]
    recipe = runs[1] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("alpha: 100", "alpha: 7"))
    page = report.compare(runs, tmp_path / "out").read_text()
    table = page[page.index('id="table-settings"') :].partition("</details>")[0]
    assert "unlearn.alpha" in table
    assert "<span>100</span>" in table
    assert "<span>7</span>" in table
    assert "unlearn.method" not in table


def test_recipes_that_are_the_same_are_said_to_be(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, items=40, name="same") for name in "ab"]
    assert "The recipes are the same but for their names." in report.compare(runs, tmp_path / "out").read_text()
