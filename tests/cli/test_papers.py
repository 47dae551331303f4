"""A run's tables and figures as files for a paper: those of its report, by name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_runs import write_run

import spunge
from spunge.cli import papers
from spunge.errors import RecipeError


def test_tables_are_those_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    tables = spunge.open(run).tables
    papers.tables(run, ["main"], latex=True)
    told = capsys.readouterr().out
    assert told.startswith(f"% main: {tables['main'].title}\n")
    assert tables["main"].to_latex() in told
    papers.tables(run, csv=True, out=tmp_path / "tables")
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == set(tables)
    with (tmp_path / "tables" / "main.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(tables["main"].cells)
    with pytest.raises(RecipeError, match=r"nope: the report has none of this name; there are main, "):
        papers.tables(run, ["nope"])
    with pytest.raises(RecipeError, match="exclude each other"):
        papers.tables(run, latex=True, csv=True)


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_written_in_every_form(tmp_path: Path, form: str, magic: bytes) -> None:
    run = write_run(tmp_path / "run")
    papers.figures(run, ["trade-off"], form=form, out=tmp_path / "figures")
    (file,) = (tmp_path / "figures").iterdir()
    assert file.name == f"trade-off.{form}"
    assert file.read_bytes().startswith(magic)


def test_figures_are_matplotlibs_own_objects(tmp_path: Path) -> None:
    figures = spunge.open(write_run(tmp_path / "run")).figures
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures.values())
    with pytest.raises(RecipeError, match="--as gif: use one of svg, png, pdf"):
        papers.figures(tmp_path / "run", form="gif")
