"""What nobody can mean is refused before the training, and what is odd reaches plan, page and terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spunge.errors import ArtifactError, DataError
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.run.foretell.plan import forecast


def told(world: dict[str, Any], out: Path) -> list[str]:
    lines: list[str] = []
    forecast(Experiment.model_validate(world), out=out, warn=lines.extend)
    return lines


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


Change = Callable[[dict[str, Any], Path], None]


def some_rows_in_both(world: dict[str, Any], tmp_path: Path) -> None:
    forget = read(world["forget"]["sources"][0]["path"])
    retain = read(world["retain"]["sources"][0]["path"])
    world["retain"] = {"sources": [{"path": write(tmp_path / "both.jsonl", [*retain, *forget[:3]])}]}


def one_value(world: dict[str, Any], tmp_path: Path) -> None:
    world["split"] = {"by": "expression", "subsets": {"all": "level >= 0"}}


def one_row(world: dict[str, Any], tmp_path: Path) -> None:
    world["split"] = {"by": "expression", "subsets": {"all": "level >= 0", "one": "text = 'x'"}}
    forget = read(world["forget"]["sources"][0]["path"])
    row = {"text": "x", "domain": "a", "level": 0}
    world["forget"] = {"sources": [{"path": write(tmp_path / "one.jsonl", [*forget, row])}]}


def one_paragraph(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "retain.txt").write_text("a1 a2\n" * 60)
    world["retain"] = {"sources": [{"path": str(tmp_path / "retain.txt")}]}


def zero(world: dict[str, Any], tmp_path: Path) -> None:
    world["merge"]["lambda"] = 0


def negative(world: dict[str, Any], tmp_path: Path) -> None:
    world["merge"]["lambda"] = -1


def two_items(world: dict[str, Any], tmp_path: Path) -> None:
    world["evaluate"][0]["limit"] = 2


def leak(world: dict[str, Any], tmp_path: Path) -> None:
    items = read(world["evaluate"][0]["sources"][0]["path"])
    forget = read(world["forget"]["sources"][0]["path"])
    items[0]["question"] = forget[0]["text"] = "a1 b2 c3 d4 e5"
    world["forget"] = {"sources": [{"path": write(tmp_path / "leak.jsonl", forget)}]}
    world["evaluate"][0]["sources"] = [{"path": write(tmp_path / "leaked.jsonl", items)}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (some_rows_in_both, "3 of 16 forget rows stand in the retain set too"),
        (one_value, "The split makes one subset (all, 16 rows)"),
        (one_row, "1 of 2 subsets have one row (one)"),
        (one_paragraph, "its 60 lines are one paragraph, and so one row"),
        (zero, "merge.lambda = 0 leaves the base model as it is"),
        (negative, "merge.lambda = -1 is negative, and teaches what was to be forgotten"),
        (two_items, "hazards: 2 items are too few to tell variants apart"),
        (leak, "hazards: 1 of 12 questions stand, nearly word for word, in the forget set"),
    ],
)
def test_what_is_odd_is_told_before_the_training(
    change: Change, message: str, world: dict[str, Any], tmp_path: Path
) -> None:
    assert told(world, tmp_path / "runs") == []
    change(world, tmp_path)
    lines: list[str] = []
    with suppress(DataError):  # a retain set of one row is refused too, once it is said why it is one
        forecast(Experiment.model_validate(world), out=tmp_path / "runs", warn=lines.extend)
    assert [line for line in lines if message in line]


def test_lines_are_texts_where_the_source_says_so(world: dict[str, Any], tmp_path: Path) -> None:
    one_paragraph(world, tmp_path)
    world["retain"]["sources"][0]["lines"] = True
    assert told(world, tmp_path / "runs") == []


def test_what_nobody_can_mean_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all 16 forget rows stand in the retain set too"):
        told({**world, "retain": world["forget"]}, tmp_path / "runs")
    rows = [{"text": f"a1 b{n % 10} c{n // 10}", "domain": n} for n in range(30)]
    forget = {"sources": [{"path": write(tmp_path / "ids.jsonl", rows)}]}
    with pytest.raises(DataError, match=r"split: each of its 30 subsets is a single row.*an id"):
        told({**world, "forget": forget}, tmp_path / "runs")


def test_a_run_is_not_made_among_foreign_files(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds files that are no run's \(thesis.tex\): give another --out"):
        pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == ["thesis.tex"]


def test_a_caution_reaches_terminal_manifest_and_page(world: dict[str, Any], tmp_path: Path) -> None:
    two_items(world, tmp_path)
    events: list[Any] = []
    run = pipeline.run(
        Experiment.model_validate({**world, "controls": []}),
        out=tmp_path / "runs",
        listener=lambda kind, content: events.append((kind, content)),
    )
    assert [kind for kind, _ in events[:2]] == ["warned", "planned"]
    (line,) = events[0][1]["warnings"]
    assert "hazards: 2 items are too few" in line
    assert line in json.loads((run / "manifest.json").read_text())["warnings"]
    assert "2 items are too few to tell variants apart" in (run / "report" / "index.html").read_text()


def test_a_merge_that_rounding_undoes_is_told_at_once_and_stands_in_the_report(
    world: dict[str, Any], tmp_path: Path
) -> None:
    half = AutoModelForCausalLM.from_pretrained(world["model"]["id"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(world["model"]["id"]).save_pretrained(tmp_path / "half")
    slow = {**world["unlearn"], "learning_rate": 1e-6}
    experiment = Experiment.model_validate({**world, "model": {"id": str(tmp_path / "half")}, "unlearn": slow})
    lines: list[str] = []

    def listen(kind: str, content: Mapping[str, Any], /) -> None:
        lines.extend(content["warnings"] if kind == "warned" else [])

    run = pipeline.run(experiment, out=tmp_path / "runs", listener=listen)
    (line,) = [line for line in lines if "% of its energy" in line]
    assert line in json.loads((run / "manifest.json").read_text())["warnings"]
    assert "float32 copy of the base model" in (run / "report" / "index.html").read_text()
