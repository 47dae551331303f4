"""The command line as a user meets it: commands, exit codes, one clear line for a mistake, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spunge.run.store import Store
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.task_vector import TaskVector

Write = Callable[[dict[str, Any]], Path]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def spunge(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spunge", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Asserts exit code 2 and a first line on stderr that says `message`."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= 12
    assert "Traceback" not in done.stderr
    assert re.search(message, lines[0]), done.stderr


def test_run_twice_then_report(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    write_recipe({**world, "controls": ["joint"]})
    first = spunge("run", "recipe.yaml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    told_first = first.stdout.splitlines()
    assert told_first[-1].endswith("index.html")
    assert [line.split(": ")[0].strip(" ✓✗?") for line in told_first if "Against " in line] == [
        "Against joint unlearning", "Against joint unlearning with as many steps",
        "Against unlearning one subset after the other", "Against layered unlearning", "Against a random split",
    ]  # fmt: skip
    assert "\x1b" not in first.stdout + first.stderr
    again = spunge("run", "recipe.yaml", cwd=tmp_path)
    assert re.search(r"\b0 stages computed", again.stdout)
    exported = spunge("export", "runs/tiny", "--out", "exported", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "Against joint unlearning:" in exported.stdout
    alone = spunge("export", "runs/tiny", "--variant", "joint", "--out", "joint", cwd=tmp_path)
    assert alone.stdout.startswith("joint: joint of runs/tiny, a checkpoint that")
    assert "Against" not in alone.stdout  # the verdict is on the merged model
    card = (tmp_path / "exported" / "README.md").read_text()
    headline = (tmp_path / "runs" / "tiny" / "report" / "results.md").read_text().splitlines()[2]
    assert headline in card
    assert {"## Limits", "## Recipe"} <= set(card.splitlines())
    refused(
        spunge("export", "runs/tiny", "--seed", "7", "--out", "new", cwd=tmp_path), r"no spunge of seed 7; there are 0"
    )
    refused(spunge("export", "runs/tiny", "--model", "m", "--out", "new", cwd=tmp_path), r"give a run, perhaps with")
    told = spunge("run", "recipe.yaml", "--json", cwd=tmp_path)
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"], events[-1]["run"]] == ["planned", "done", "runs/tiny"]
    assert events[-1]["verdict"]["sentences"]
    assert len(events[-1]["verdict"]["numbers"]) == 3
    assert told.stderr == ""
    planned = spunge("plan", "recipe.yaml", "merge.density=0.9", cwd=tmp_path)
    assert "merger.density" in planned.stdout
    assert "kept" not in planned.stdout  # everything that would keep something is reused
    planned = spunge("plan", "recipe.yaml", "unlearn.layer=1", cwd=tmp_path)
    assert "memory" in planned.stdout
    assert re.search(
        r"hidden states kept for reuse: .* [KM]iB .* pays: spares \d+% of the frozen passes", planned.stdout
    )
    page = tmp_path / "runs" / "tiny" / "report" / "index.html"
    before = page.read_bytes()
    assert spunge("report", "runs/tiny", cwd=tmp_path).returncode == 0
    assert page.read_bytes() == before


def test_a_sweep_retrains_nothing(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    retained = {**world["evaluate"][0], "suite": "retained", "goal": "retain"}
    write_recipe({**world, "controls": [], "evaluate": [*world["evaluate"], retained]})
    done = spunge("run", "recipe.yaml", "--sweep", "merge.density=0.2,0.9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / "tiny" / "report" / "results.json").read_text())
    assert [point["settings"] for point in results["sweep"]["points"]] == [
        {"merge.density": 0.2}, {"merge.density": 0.9}
    ]  # fmt: skip
    assert sum(stage["stage"] == "unlearn" for stage in results["provenance"]["stages"]) == 2
    refused(spunge("run", "recipe.yaml", "--sweep", "merge.density=", cwd=tmp_path), "write key=v1,v2")
    refused(spunge("run", "recipe.yaml", "--sweep", "merge.densty=1,2", cwd=tmp_path), "did you mean 'density'")


def test_a_sweep_of_what_retrains_compares_runs(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    write_recipe({**world, "controls": []})
    done = spunge("run", "recipe.yaml", "--sweep", "unlearn.alpha=1,9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "runs" / "tiny-unlearn.alpha-9" / "manifest.json").read_text())
    assert {stage["status"] for stage in manifest["stages"] if stage["stage"] == "split"} == {"reused"}
    assert (tmp_path / done.stdout.split("sweep: ")[1].strip()).is_file()


def test_single_steps_without_a_recipe(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = world["model"]["id"]
    rmu = ("--method", "rmu", "layer=2", "steering_coefficient=5", "alpha=10", "learning_rate=1e-2", "max_batches=3")
    common = ("unlearn", "--model", model, "--retain", "retain.jsonl", *rmu)
    for number in (1, 2):
        done = spunge(
            *common, "--forget", "part=forget.jsonl", "--seed", str(number), "--out", f"tv{number}", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"changed parameters, norm [\d.]+, of \d+ rows", done.stdout)
    assert TaskVector.load(tmp_path / "tv1").provenance["method"] == "rmu"
    refused(spunge(*common, "--forget", "retain.jsonl", "--out", "new", cwd=tmp_path), "cannot both go and stay")
    (tmp_path / "lines.txt").write_text("a1 a2\n" * 60)
    done = spunge(*common, "--forget", "lines.txt", "--out", "paragraph", cwd=tmp_path)
    assert "spunge: warning: lines.txt: its 60 lines are one paragraph" in done.stderr

    done = spunge("merge", "tv1", "--base", model, "tv2", "density=0.5", "--out", "merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == ["model.safetensors"]
    assert re.search(r"tv1: \d+% of this removal is in the merged", done.stdout)
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    done = spunge(
        "merge", "--base", model, "tv1", "tv2", "--as", "adapter", "--rank", "2", "--out", "lora", cwd=tmp_path
    )
    assert re.search(r"the adapter keeps \d+\.\d% of", done.stdout), done.stderr
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["base_model_name_or_path"] == model
    done = spunge(
        "merge", "--base", model, "tv1", "tv2", "density=0.5", "--as", "task-vector", "--out", "tv", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    done = spunge(
        "merge", "--base", model, "tv1", "tv2", "--except", "tv2", "--as", "task-vector", "--out", "one", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    done = spunge("export", "--model", model, "--task-vector", "tv", "--out", "exported", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    merged, exported = Checkpoint.open(tmp_path / "merged"), Checkpoint.open(tmp_path / "exported")
    assert all(merged.digest(name) == exported.digest(name) for name in merged.tensors)
    for made in ("merged", "exported"):
        assert "Nothing was measured on it when it was written" in (tmp_path / made / "README.md").read_text()

    recipe = write_recipe(world)
    done = spunge("evaluate", "--model", model, "--task-vector", "tv", "--suite", recipe, "--out", "ev", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "ev" / "results.json").read_text())["scores"]
    assert {score["suite"] for score in scores} == {"hazards"}
    assert "accuracy ↓" in done.stdout
    assert re.search(r"\d %\s+\S?\s*\[\d", done.stdout), done.stdout
    assert "nan" not in done.stdout


def test_a_token_without_a_row_is_refused_without_a_recipe_too(
    world: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model = shutil.copytree(world["model"]["id"], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(model)
    (tmp_path / "new.jsonl").write_text('{"text": "a1 a2"}\n{"text": "a1 zzz"}\n')
    words = ("unlearn", "--model", model, "--forget", "new.jsonl", "--retain", "retain.jsonl", "layer=2")
    refused(spunge(*words, "--out", "new", cwd=tmp_path), r"row 2 has the token 'zzz'")
    finetune = ("finetune", "--model", model, "--data", "new.jsonl")
    refused(spunge(*finetune, "--out", "new", cwd=tmp_path), r"row 2 has the token 'zzz'")
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    items[1]["question"] += " zzz"
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    asked = ("evaluate", "--model", model, "--suite", write_recipe(world))
    refused(spunge(*asked, "--out", "new", cwd=tmp_path), r"has the token 'zzz'")
    assert not (tmp_path / "new").exists()


def test_a_recipe_takes_what_a_search_found(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "forget.jsonl").read_text().splitlines()]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"what": row["text"]}) + "\n" for row in rows))
    sets = ["--forget", "a=other.jsonl", "--retain", "retain.jsonl", "--columns", "text=what"]
    model = world["model"]["id"]
    done = spunge("search", "--model", model, *sets, "--layers", "1,2", "max_steps=2", "--out", "found", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "found" / "search.jsonl").read_text().splitlines()[0])
    write_recipe({**world, "unlearn": {"method": "rmu", "search": "found", "max_steps": 2}, "controls": []})
    assert spunge("run", "recipe.yaml", "--quiet", cwd=tmp_path).returncode == 0
    recipe = (tmp_path / "runs" / "tiny" / "recipe.yaml").read_text()
    assert f"layer: {best['layer']}\n" in recipe
    assert "How layer, c and α were found" in (tmp_path / "runs" / "tiny" / "report" / "index.html").read_text()
    refused(spunge("run", "recipe.yaml", "unlearn.search=nowhere", cwd=tmp_path), "not what `spunge search` left")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unlern"], r"No such command 'unlern'.*unlearn"),
        (["run", "none.yaml"], r"none\.yaml: no such recipe file"),
        (["run", "recipe.yaml", "unlearn.alhpa=3"], r"unlearn\.alhpa: unknown setting; did you mean 'alpha'"),
        (["run", "recipe.yaml", "--device", "cuda:7"], r"--device cuda:7: not available here; there is cpu"),
        (["run", "recipe.yaml", "--device", "gpu"], r"--device gpu: not available here; there is cpu"),
        (["methods", "tise"], r"tise: no method of this name; did you mean 'ties'\?"),
        (["run", "recipe.yaml", "--dtype", "float17"], r"--dtype float17: use one of"),
        (["run", "recipe.yaml", "--jobs", "0"], r"--jobs"),
        (["run", "recipe.yaml", "--unlearn.alpha=1"], r"No such option: .*a setting has no dashes: unlearn.alpha=…"),
        (["run", "recipe.yaml", "unlearn.layer=9"], r"layer.*9.*4"),
        (["run", "recipe.yaml", "model.id=nowhere"], r"nowhere: neither a local directory nor"),
        (["run", "recipe.yaml", "split.column=domian"], r"no column 'domian'; columns are text, domain, level"),
        (["run", "recipe.yaml", "--out", "forget.jsonl"], r"cannot be written"),
        (["train-classifier", "--data", "forget.jsonl", "--label", "levle > 2", "--out", "new"], r"--label: .*levle"),
        (["demo", "cooking"], r"'cooking' is no scenario"),
        (["merge", "--base", "MODEL", "nothing", "--out", "new"], r"nothing"),
        (["merge", "--base", "MODEL", "--out", "new"], r"nothing to merge"),
        (
            [
                "search",
                "--model",
                "MODEL",
                "--forget",
                "forget.jsonl",
                "--retain",
                "retain.jsonl",
                "--layers",
                "²",
                "--out",
                "new",
            ],
            r"--layers ²",
        ),
        (["merge", "--base", "MODEL", "x", "densty=0.2", "--out", "new"], r"merge\.densty: unknown.*'density'"),
        (["merge", "--base", "MODEL", "x", "density=0", "--out", "new"], r"merge\.density: .*greater than 0"),
        (["merge", "--base", "MODEL", "x", "--method", "model_stock", "--out", "new"], r"Model Stock returns the base"),
        (["export", "--model", "MODEL", "--task-vector", ".", "--out", "new"], r"neither a task vector"),
        (["evaluate", "--model", "MODEL", "--suite", "recipe.yaml", "--out", "."], r"exists already"),
        (["report", "nowhere"], r"nowhere: not a run"),
        (["unlearn", "--model", "MODEL", "--forget", "forget.jsonl", "layer=2", "--out", "new"], r"retain"),
        (["unlearn", "--model", "MODEL", "--forget", "none.jsonl", "layer=2", "--out", "new"], r"none\.jsonl: no such"),
        (
            ["unlearn", "--model", "m", "--forget", "a=x.jsonl", "--forget", "y.jsonl", "layer=2", "--out", "new"],
            r"--forget y\.jsonl: give it a topic too, as a=… has one",
        ),
        (
            ["unlearn", "--model", "m", "--forget", "x.jsonl", "layer=2", "--columns", "body", "--out", "new"],
            r"--columns 'body': write Spunge's name and the file's own",
        ),
    ],
)
def test_mistakes_get_one_line(
    world: dict[str, Any], write_recipe: Write, tmp_path: Path, words: list[str], message: str
) -> None:
    write_recipe(world)
    before = {path.name for path in tmp_path.iterdir()}
    refused(spunge(*(world["model"]["id"] if word == "MODEL" else word for word in words), cwd=tmp_path), message)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"runs"}


def test_a_task_vector_of_another_base_is_refused(world: dict[str, Any], other_model: Path, tmp_path: Path) -> None:
    import torch

    model = Path(world["model"]["id"])
    name = "model.layers.0.mlp.down_proj.weight"
    delta = torch.ones(Checkpoint.open(model).read(name).shape)
    base = {"id": str(model), "revision": None, "tensors": {name: Checkpoint.open(model).digest(name)}}
    TaskVector({name: delta}, provenance={"base": base}).save(tmp_path / "tv")
    message = "another base|other weights|different base"
    refused(spunge("export", "--model", other_model, "--task-vector", "tv", "--out", "new", cwd=tmp_path), message)
    refused(spunge("merge", "--base", other_model, "tv", "--out", "new", cwd=tmp_path), message)
    assert not (tmp_path / "new").exists()


def test_a_truncated_task_vector_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    import torch

    TaskVector({"x": torch.ones(100)}).save(tmp_path / "tv")
    file = tmp_path / "tv" / "task_vector.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    done = spunge("export", "--model", world["model"]["id"], "--task-vector", "tv", "--out", "new", cwd=tmp_path)
    refused(done, "truncated|damaged")


def test_interrupted_then_continued(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    world["unlearn"]["epochs"] = 600  # on a busy machine the run must not be over before the signal
    write_recipe({**world, "controls": []})
    command = [sys.executable, "-m", "spunge", "run", "recipe.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs").glob("store/unlearn/.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not [path for path in (tmp_path / "runs" / "store").rglob(".*") if path.name not in (".scratch", ".lock")]
    assert spunge("run", "recipe.yaml", "unlearn.epochs=1", cwd=tmp_path).returncode == 0


def test_help_and_lists_are_quick(tmp_path: Path) -> None:
    for words in (["--help"], ["recipes"], ["methods"], ["schema"]):
        assert spunge(*words, cwd=tmp_path).returncode == 0


def test_every_method_is_described_with_all_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    from spunge.cli import listings
    from spunge.recipe import schema

    for kinds in schema.methods().values():
        for name, kind in kinds.items():
            listings.methods(name)
            text = capsys.readouterr().out
            settings = [line.partition(":")[0] for line in text.splitlines() if re.match(r"\S+: ", line)]
            assert {field.alias or label for label, field in kind.model_fields.items()} - {"by", "method"} <= {
                *settings
            }
            assert f": {name}" in text


def test_one_method_is_described_with_its_paper_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    from spunge.cli import listings

    listings.methods("ties")
    text = capsys.readouterr().out
    assert "arXiv 2306.01708" in text
    assert "merge: {method: ties}" in text
    assert "density: 0.2   (> 0, ≤ 1)" in text
    assert 'election: "mass"   ("mass", "count")' in text


def test_looking_after_the_store(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    write_recipe({**world, "controls": []})
    assert spunge("run", "recipe.yaml", "--quiet", cwd=tmp_path).returncode == 0
    assert spunge("run", "recipe.yaml", "merge.density=0.9", "--quiet", cwd=tmp_path).returncode == 0
    listed = spunge("store", "ls", cwd=tmp_path).stdout
    assert "10 artifacts" in listed
    assert "8 artifacts, all" not in listed

    dry = spunge("store", "gc", cwd=tmp_path)
    assert "2 to remove with --delete" in dry.stdout, dry.stderr  # the first density's merge, and its evaluation
    assert "10 artifacts" in spunge("store", "ls", cwd=tmp_path).stdout
    with Store(tmp_path / "runs" / "store").held():
        refused(spunge("store", "gc", "--delete", cwd=tmp_path), "a run is at work there")
    assert "2 removed" in spunge("store", "gc", "--delete", cwd=tmp_path).stdout
    assert "8 artifacts, all as they were published" in spunge("store", "verify", cwd=tmp_path).stdout
    again = spunge("run", "recipe.yaml", "merge.density=0.9", cwd=tmp_path)
    assert re.search(r"\b0 stages computed", again.stdout)

    file = next((tmp_path / "runs" / "store" / "unlearn").glob("*/task_vector.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    found = spunge("store", "verify", cwd=tmp_path)
    assert "task_vector.safetensors is damaged" in found.stdout
    refused(found, "1 damaged")
    planned = spunge("plan", "recipe.yaml", "merge.density=0.9", cwd=tmp_path)
    assert "damaged" in planned.stdout
    assert file.exists()
    mended = spunge("run", "recipe.yaml", "merge.density=0.9", cwd=tmp_path)
    assert "warning:" in mended.stderr
    assert re.search(r"\b1 stages computed", mended.stdout)
    assert "1 to remove" in spunge("store", "gc", cwd=tmp_path).stdout  # what was set aside


def test_a_plan_of_a_model_that_is_not_there_is_one_line(
    world: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    write_recipe({**world, "model": {"id": str(tmp_path / "nowhere")}})
    done = spunge("plan", "recipe.yaml", cwd=tmp_path)
    refused(done, "nowhere: no such model directory")


def test_a_hub_out_of_reach_is_one_line(world: dict[str, Any], write_recipe: Write, tmp_path: Path) -> None:
    world["evaluate"][0]["sources"] = [{"path": "someone/questions"}]
    write_recipe(world)
    hurried = "import sys, time; time.sleep = lambda _: None; sys.argv = ['spunge', 'plan', 'recipe.yaml'];"
    done = subprocess.run(
        [sys.executable, "-c", f"{hurried} from spunge.cli.commands import main; main()"], cwd=tmp_path, text=True,
        capture_output=True, env={**ENVIRONMENT, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
    )  # fmt: skip
    refused(done, r"someone/questions: neither a local file nor to be had from the hub: .*; give a local path")
    assert len(done.stderr.splitlines()) == 1, done.stderr  # the hub client tells of every retry
