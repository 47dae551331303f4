"""What a run shows while it goes on: on a terminal, in a log, and for another program."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spunge.cli import progress
from spunge.errors import SpungeError
from spunge.recipe.schema import Experiment
from spunge.run import pipeline

STEPS = [
    {"stage": "split", "name": "ByColumn", "seed": 0, "status": "reused"},
    *({"stage": "unlearn", "name": f"subset:{name}", "seed": 0, "status": "computed"} for name in "abc"),
    {"stage": "evaluate", "name": "spunge on [red]", "seed": 0, "status": "computed"},
]


def ended(step: dict[str, Any], seconds: float = 10.0, **more: Any) -> dict[str, Any]:
    status = "computed" if seconds else "reused"
    return {**step, "status": status, "seconds": seconds, "figures": {}, **more}


def drawn(table: progress.LiveTable, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), markup=False, emoji=False)
    console.print(table)
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_the_live_table_counts_what_is_done_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    table = progress.LiveTable()
    assert drawn(table).strip() == ""
    table.event("planned", {"steps": STEPS})
    table.event("finished", ended(STEPS[0], 0))
    table.event("finished", ended(STEPS[1]))
    table.step("unlearn subset:b", 0, 200, loss=2.5)
    now[0] += 5
    table.step("unlearn subset:b", 100, 200, loss=1.25)
    lines = {line.split()[0]: line for line in reversed(drawn(table).splitlines()) if line.split()}
    assert "1 / 1" in lines["split"]
    assert "1 / 3" in lines["unlearn"]
    assert lines["unlearn"].split()[-2:] == ["15.0", "s"]  # half of one task and all of another, ten seconds each
    assert "0 / 1" in lines["evaluate"]
    assert lines["evaluate"].rstrip().endswith("?")  # none has been timed yet
    now_line = next(line for line in drawn(table).splitlines() if "100 / 200" in line)
    assert "5.0 s" in now_line  # as long as the first half took
    assert "loss 1.25" in drawn(table)


def test_key_figures_are_means_over_seeds_with_the_subsets_last() -> None:
    table = progress.LiveTable()
    for name, values in {"subset:a": [0.5], "spunge": [0.25, 0.5], "[bold]": [1.0]}.items():
        for value in values:
            figures = {"acc": value, "p_correct": 0.9}
            done = ended(STEPS[4], variant=name, suite="hazards", figures=figures)
            table.event("finished", done)
    text = drawn(table)
    assert "hazards acc" in text
    assert "p_correct" not in text
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["spunge", "0.375"],
        ["[bold]", "1.000"],
        ["subset:a", "0.500"],
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_table_never_breaks_a_line(width: int) -> None:
    table = progress.LiveTable()
    table.event("planned", {"steps": STEPS})
    table.step("unlearn " + "long name " * 30, 3, 7, loss=math.nan)
    assert max(map(len, drawn(table, width).splitlines())) <= width


def test_a_log_gets_a_line_when_a_task_begins_and_one_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    lines = progress.Lines(Console(file=out, width=60, markup=False, emoji=False))
    lines.event("planned", {"steps": STEPS})
    for done in range(101):
        lines.step("unlearn subset:a", done, 100, loss=1.0)
        now[0] += 0.5
    lines.event("finished", ended(STEPS[1], 50.0, figures={"acc": 0.5}))
    lines.event("finished", ended(STEPS[0], 0))
    assert out.getvalue().splitlines() == [
        "5 stages, 1 of them in the store already",
        "unlearn subset:a: begun",
        "unlearn subset:a: 60 of 100, about 20.0 s left, loss 1",
        "unlearn subset:a: 50.0 s, 1 of 5, acc 0.5",
        "split ByColumn: from the store, 2 of 5",
    ]


def test_json_lines_are_whole_and_sparse() -> None:
    out = io.StringIO()
    lines = progress.JsonLines(out)
    for done in range(101):
        lines.step("unlearn joint", done, 100, loss=math.inf if done else 1.0)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["done"], line["figures"]) for line in found] == [
        ("step", 0, {"loss": 1.0}),
        ("step", 100, {"loss": None}),
    ]


def test_a_run_tells_json_what_it_does_and_how_it_failed(world: dict[str, Any], tmp_path: Path) -> None:
    out = io.StringIO()
    recipe = Experiment.model_validate({**world, "controls": []})
    with progress.watch(Console(), out, as_json=True) as display:
        pipeline.run(recipe, out=tmp_path / "runs", progress=display.step, listener=display.event)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    planned = next(line for line in lines if line["event"] == "planned")
    finished = [line for line in lines if line["event"] == "finished"]
    assert {(each["stage"], each["name"]) for each in finished} == {
        (each["stage"], each["name"]) for each in planned["steps"]
    }
    asked = next(each for each in finished if each.get("variant") == "spunge")
    assert asked["suite"] == "hazards"
    assert 0 <= asked["figures"]["acc"] <= 1
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)

    out.truncate(0)
    broken = Experiment.model_validate({**world, "controls": [], "split": {"by": "column", "column": "no such"}})
    with pytest.raises(SpungeError), progress.watch(Console(), out, as_json=True) as display:
        pipeline.run(broken, out=tmp_path / "runs", progress=display.step, listener=display.event)
    assert json.loads(out.getvalue().splitlines()[-1].lstrip("\0"))["event"] == "failed"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.watch(Console(), io.StringIO(), quiet=True) as display:
        display.event("planned", {"steps": STEPS})
        display.step("unlearn joint", 1, 2)
    assert capsys.readouterr().out == ""
