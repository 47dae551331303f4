"""Broken inputs of every kind: a correct result or one clear line, never a traceback, a hang, or a file elsewhere.

`make fuzz` draws `COUNT` of them by `SEED`, the same for the same two; a slice of them is in `make test`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from attempts import attempt, plain_figure
from conftest import WORDS, make_model, sentences, write_jsonl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from spunge.cli import commands as cli
from spunge.files import checksum
from spunge.weights import adapter
from spunge.weights.task_vector import LowRank, TaskVector

SECONDS = 10
"""Of processor time: what takes more hangs."""
KINDS = (
    "recipe", "recipe_bytes", "expression", "data", "header", "index", "model", "seal", "task_vector", "adapter",
    "run_manifest", "store_manifest",
)  # fmt: skip
PARTS = 5
COUNT, SEED = (int(os.environ.get(name, default)) for name, default in (("COUNT", "10000"), ("SEED", "0")))
NAUGHTY = (
    "", " ", "../../outside", "/etc/passwd", "~", ".", "..", "\x00", "null", "1e5", "no", "a b", "é🜚", "{x}", "{0}",
    "%s", "$x", "lab:model", "lab:../data.py", "cuda:9", "a/b", "x" * 300, "os:system", "spunge.rows.sources:Source",
    "SELECT 1", "1 = 1", "domain", "<script>", "-1", "0.5", "true", "F32", "model.safetensors", "../model.safetensors",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    10**6,
    2**31,
    2**63,
    2**70,
    -(2**64),
    0.5,
    -0.5,
    1e-300,
    1e308,
    float("inf"),
    float("nan"),
)
SQL = """
    level domain text = > < ( ) [ ] , ' " ; : -- /* */ * + - 1 0.5 1e999 NULL AND OR NOT IN CASE WHEN THEN END
    SELECT FROM WHERE LIKE BETWEEN IS CAST AS int ::
"""
WORDS_OF_SQL = (
    *SQL.split(), "read_csv('/etc/passwd')", "'a'", "abs(level)", "length(text)", "substring(text, 1, 2)",
    "regexp_like(text, '(a+)+$')", "split_part(text, 'a', 1)", "level % 0", "strptime(text, '%Y')",
    "repeat('a', 1000000000)", "sum(level)", "é",
)  # fmt: skip
LINKS = (
    " + _", "+1", " OR _", " AND _", " || _", " || 'a'", ", _", " = _", " % _", "::int", "[1]", ".level", " IS NULL",
    " IS NOT NULL", " IN (1)", " IN (_, 1)", " BETWEEN _ AND _", " LIKE 'a'", " -> _", " AS _", " WHEN _ THEN _",
    ")", "]",
)  # fmt: skip
CALLS = (
    "(_)", "[_]", "NOT (_)", "NOT _", "-_", "CASE WHEN level > 1 THEN _ END", "CASE _ WHEN 1 THEN 2 END", "cast(_)",
    "cast(_ AS int)", "left(_, 1)", "right(_, 1)", "array_get([1], _)", "array_get(_, 1)", "position(_)", "abs(_)",
    "replace(_, 'a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')", "replace(_, 'a', text)", "concat(_, _)", "lower(_)",
    "level IN (_)", "greatest(_, level)", "if(level > 1, _, 1)", "array_to_string(string_to_array(_, ''), 'abcdefgh')",
    "substring(_, 1, 2)", "split_part(_, 'a', 1)", "coalesce(_)", "regexp_replace(_, '', 'abcdefghijklmnopq')",
)  # fmt: skip
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
DIGESTS = ("sealed", "files", "checksum")
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(NAUGHTY)
    | st.text(max_size=8)
    | st.integers()
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three of its parts replaced, removed, added or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = None
        key: Any = None
        inner = document
        while isinstance(inner, dict | list) and inner and (place is None or draw(st.integers(0, 3))):
            place = inner
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = inner[key]
        if place is None:
            return draw(JUNK)
        act = draw(st.sampled_from(["replace", "replace", "remove", "add", "swap"]))
        if act == "replace":
            place[key] = draw(JUNK)
        elif act == "remove":
            del place[key]
        elif act == "add" and isinstance(place, dict):
            place[draw(st.text(max_size=6) | st.sampled_from(NAUGHTY))] = draw(JUNK)
        elif act == "add":
            place.insert(0, draw(JUNK))
        else:
            other = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            place[key], place[other] = place[other], place[key]
    return document


@st.composite
def chains(draw: st.DrawFn) -> str:
    """One operator, one list or one call over and over, as deep or as long as it comes."""
    times = draw(st.sampled_from([3, 10, 20, 29, 60, 199, 400, 1_000, 5_000]))
    value = draw(st.sampled_from(["level", "domain", "1", "'a'", "level > 1", "(level)"]))
    if draw(st.booleans()):
        return value + draw(st.sampled_from(LINKS)).replace("_", value) * times
    around = draw(st.lists(st.sampled_from(CALLS), min_size=1, max_size=3))
    return (
        "".join(call.partition("_")[0] for call in around) * times
        + value
        + "".join(call.partition("_")[2] for call in reversed(around)) * draw(st.sampled_from([times, times, times, 0]))
    )


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, with some flipped, put in, taken out or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 8, 100]))
        act = draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat"]))
        if act == "cut":
            content = content[:at]
        elif act == "flip":
            content = (
                content[:at]
                + bytes(byte ^ draw(st.integers(1, 255)) for byte in content[at : at + 1])
                + content[at + 1 :]
            )
        elif act == "insert":
            content = content[:at] + draw(st.binary(max_size=8)) + content[at:]
        elif act == "remove":
            content = content[:at] + content[at + length :]
        else:
            content = content[:at] + content[at : at + length] * 2 + content[at + length :]
    return content


class Hangs(BaseException):
    """An input took longer than any may."""


_watched: list[str] = []
_written: list[str] = []
_hooked = False


_CHANGING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not _watched or event not in _CHANGING:
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    if event in ("os.remove", "os.rmdir") and args[1] != -1:  # relative to a directory that rmtree was told of before
        return
    for path in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
        if isinstance(path, str | bytes | os.PathLike):
            name = str(Path(os.fsdecode(path)).absolute())
            if event == "os.mkdir" and Path(name).is_dir():  # it is there, and stays as it is
                continue
            if "__pycache__" not in name and not name.startswith(("/dev/", *_watched)):
                _written.append(f"{event} {name}")


@dataclass
class Desk:
    """A directory with good files of every kind, and the command line, run in this process."""

    path: Path
    recipe: dict[str, Any]
    apart: bool = False
    """Whether the next command runs in a process of its own."""

    def run(self, *words: str) -> tuple[int, str]:
        """Runs a command; asserts that it ends as a command may."""
        code, said = self._in_a_process(*words) if self.apart else self._here(*words)
        assert code in (0, 2), said
        assert "Traceback" not in said
        assert not _written
        if code == 2:
            lines = [line for line in said.splitlines() if "spunge: warning:" not in line]
            assert 1 <= len(lines) <= 12, said
            assert lines[0].startswith(("spunge: ", "Usage:")), said
            assert len(lines[0].removeprefix("spunge: ").strip()) > 5, said
            assert len(lines[0]) < 2_000, said
        return code, said

    def _in_a_process(self, *words: str) -> tuple[int, str]:
        ended = attempt(words, self.path)
        return ended.code, ended.errors

    def _here(self, *words: str) -> tuple[int, str]:
        global _hooked
        if not _hooked:
            sys.addaudithook(_watch)
            _hooked = True
        # What may be written to: the outputs, matplotlib's and pyarrow's caches, and files without a name.
        mine = [self.path / "runs", self.path / "new", self.path / ".new."]
        _watched[:] = [str(path) for path in (*mine, Path.home() / ".cache", Path.home() / ".config/matplotlib")]
        _written.clear()
        errors, code = io.StringIO(), 0
        before, home, argv = signal.getsignal(signal.SIGTERM), Path.cwd(), sys.argv
        alarm = signal.signal(signal.SIGPROF, _hang)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        os.chdir(self.path)
        sys.argv = ["spunge", *words]
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stderr(errors),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, alarm)
            signal.signal(signal.SIGTERM, before)
            os.chdir(home)
            sys.argv = argv
            _watched.clear()
        return code, errors.getvalue()


def _hang(*_: object) -> None:
    raise Hangs


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    path = tmp_path_factory.mktemp("fuzz")
    make_model(path / "model")
    items = [
        {"question": text, "choices": WORDS[at : at + 4], "answer": at % 4, "domain": "ab"[at % 2]}
        for at, text in enumerate(sentences(8, 3))
    ]
    write_jsonl(path / "items.jsonl", items)
    write_jsonl(
        path / "forget.jsonl",
        [{"text": text, "domain": "ab"[at % 2], "level": at % 5} for at, text in enumerate(sentences(10, 1))],
    )
    write_jsonl(path / "retain.jsonl", [{"text": text} for text in sentences(10, 2)])
    recipe = {
        "name": "tiny",
        "model": {"id": "model"},
        "forget": {"sources": [{"path": "forget.jsonl"}], "where": "level >= 0"},
        "retain": {"sources": [{"path": "retain.jsonl"}]},
        "split": {"by": "column", "column": "domain"},
        "unlearn": {"method": "rmu", "layer": 2, "steering_coefficient": 5, "alpha": 10, "learning_rate": 1e-2},
        "merge": {"method": "ties", "density": 0.2},
        "evaluate": [
            {"suite": "hazards", "method": "multiple_choice", "goal": "forget", "style": "continuation",
             "sources": [{"path": "items.jsonl"}], "attributes": ["domain"]},
        ],
        "controls": ["joint"],
        "seeds": [0],
    }  # fmt: skip
    made = Desk(path, recipe)
    write_yaml(path / "recipe.yaml", recipe)
    assert made.run("run", "recipe.yaml", "--quiet")[0] == 0
    vector = next((path / "runs/store/unlearn").iterdir())
    shutil.copytree(vector, path / "tv")
    # The same model in two shards with an index.
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(path / "model").save_pretrained(path / "sharded", max_shard_size="8KB")
    for file in (path / "model").glob("token*"):
        shutil.copy(file, path / "sharded")
    shutil.copytree(path / "runs", path / "good_runs")
    assert made.run("export", "--model", "model", "--task-vector", "tv", "--out", "new", "--quiet")[0] == 0
    (path / "new").rename(path / "exported")
    change = TaskVector(
        {
            f"model.layers.{layer}.mlp.down_proj.weight": LowRank(torch.ones(2, 24), torch.ones(16, 2), 0.1)
            for layer in (1, 2)
        }
    )
    adapter.save(change, path / "adapter", base="model")
    (path / "adapter/spunge.json").unlink()  # one of PEFT's, whose every word is believed
    return made


def write_yaml(file: Path, document: Any) -> None:
    with file.open("w") as stream:
        YAML().dump(document, stream)


def one(desk: Desk, kind: str, data: st.DataObject) -> None:
    """Draws one broken input of a kind, and runs what reads it."""
    path = desk.path
    shutil.rmtree(path / "new", ignore_errors=True)
    if kind == "recipe":
        # JSON is YAML; a name that YAML cannot write is a matter for the bytes below.
        (path / "fuzzed.yaml").write_text(json.dumps(data.draw(damaged(desk.recipe))), errors="replace")
        desk.run("plan", "fuzzed.yaml", "--out", "runs")
    elif kind == "recipe_bytes":
        (path / "fuzzed.yaml").write_bytes(data.draw(torn((path / "recipe.yaml").read_bytes())))
        desk.run("plan", "fuzzed.yaml", "--out", "runs")
    elif kind == "expression":
        words = data.draw(st.lists(st.sampled_from(WORDS_OF_SQL) | st.text(max_size=3), min_size=1, max_size=12))
        expression = data.draw(st.sampled_from(["", " "])).join(words) * data.draw(st.sampled_from([1, 1, 1, 40, 2000]))
        expression = data.draw(st.sampled_from([expression, data.draw(chains())]))
        where = data.draw(st.sampled_from(["where", "compute", "split"]))
        recipe = copy.deepcopy(desk.recipe)
        if where == "split":
            recipe["split"] = {"by": "expression", "subsets": {"a": expression, "b": "level > 1"}}
        elif where == "compute":
            recipe["forget"]["sources"][0]["compute"] = {"n": expression}
        else:
            recipe["forget"]["where"] = expression
        (path / "fuzzed.yaml").write_text(json.dumps(recipe), errors="replace")
        desk.run("plan", "fuzzed.yaml", "--out", "runs")
    elif kind == "model":
        shutil.rmtree(path / "broken", ignore_errors=True)
        shutil.copytree(path / "model", path / "broken")
        file = path / "broken" / data.draw(st.sampled_from(MODEL_FILES))
        _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        desk.run("evaluate", "--model", "broken", "--suite", "recipe.yaml", "--out", "new", "--quiet")
    elif kind == "seal":
        shutil.rmtree(path / "broken", ignore_errors=True)
        shutil.copytree(path / "exported", path / "broken")
        file = path / "broken/spunge.json"
        _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        _export(desk, "broken", "tv")
    elif kind == "adapter":
        shutil.rmtree(path / "broken", ignore_errors=True)
        shutil.copytree(path / "adapter", path / "broken")
        if data.draw(st.integers(0, 2)):
            file = path / "broken/adapter_config.json"
            _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        else:
            file = path / "broken/adapter_model.safetensors"
            file.write_bytes(data.draw(_safetensors(file.read_bytes())))
        desk.run("merge", "--base", "model", "broken", "--out", "new", "--quiet")
    elif kind == "data":
        name, content = data.draw(st.sampled_from(_data_files(desk)))
        (path / name).write_bytes(data.draw(torn(content)))
        use = data.draw(st.sampled_from(["forget.sources", "retain.sources", "evaluate.0.sources"]))
        desk.run("plan", "recipe.yaml", f"{use}=[{{path: {name}}}]", "--out", "runs")
    elif kind == "header":
        content = (path / "model/model.safetensors").read_bytes()
        (path / "broken").mkdir(exist_ok=True)
        (path / "broken/model.safetensors").write_bytes(data.draw(_safetensors(content)))
        _export(desk, "broken", "tv")
    elif kind == "index":
        shutil.rmtree(path / "broken", ignore_errors=True)
        shutil.copytree(path / "sharded", path / "broken")
        file = path / "broken/model.safetensors.index.json"
        _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        _export(desk, "broken", "tv")
    elif kind == "task_vector":
        shutil.rmtree(path / "broken_tv", ignore_errors=True)
        shutil.copytree(path / "tv", path / "broken_tv")
        file = path / "broken_tv/manifest.json"
        if data.draw(st.booleans()):  # as an older version wrote it, so that more than the digests is met
            unsealed = {k: v for k, v in json.loads(file.read_text()).items() if k not in DIGESTS}
            file.write_text(json.dumps(unsealed))
        if data.draw(st.booleans()):
            _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        else:
            file = path / "broken_tv/task_vector.safetensors"
            file.write_bytes(data.draw(_safetensors(file.read_bytes())))
        if data.draw(st.booleans()):
            _export(desk, "model", "broken_tv")
        else:
            desk.run("merge", "--base", "model", "tv", "broken_tv", "--out", "new", "--quiet")
            shutil.rmtree(path / "new", ignore_errors=True)
    elif kind == "run_manifest":
        shutil.rmtree(path / "runs/tiny")
        shutil.copytree(path / "good_runs/tiny", path / "runs/tiny")
        file = path / "runs/tiny/manifest.json"
        if data.draw(st.integers(0, 3)):
            _write_json(file, data.draw(damaged(json.loads(file.read_text()))), data)
        else:
            file = path / "runs/tiny" / data.draw(st.sampled_from(["items.parquet", "recipe.yaml"]))
            file.write_bytes(data.draw(torn(file.read_bytes())))
        desk.run(*data.draw(st.sampled_from([("report", "runs/tiny"), ("store", "gc"), ("store", "ls")])))
    else:
        file = data.draw(st.sampled_from(sorted((path / "good_runs/store").glob("*/*/manifest.json"))))
        broken = path / "runs" / file.relative_to(path / "good_runs")
        _write_json(broken, data.draw(damaged(json.loads(file.read_text()))), data)
        words = [("plan", "recipe.yaml"), ("store", "verify"), ("store", "ls"), ("store", "gc")]
        desk.run(*data.draw(st.sampled_from(words)))
        shutil.copy(file, broken)


def _data_files(desk: Desk) -> list[tuple[str, bytes]]:
    rows = pl.read_ndjson(desk.path / "items.jsonl").with_columns(pl.col("question").alias("text"))
    parquet, table = io.BytesIO(), io.StringIO()
    rows.write_parquet(parquet)
    rows.drop("choices").write_csv(table)
    listed = json.dumps(rows.to_dicts()).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows.to_dicts()).encode()
    return [
        ("fuzzed.jsonl", lines), ("fuzzed.json", listed), ("fuzzed.parquet", parquet.getvalue()),
        ("fuzzed.csv", table.getvalue().encode()), ("fuzzed.txt", b"a1 a2\n\nb1 b2\n"),
    ]  # fmt: skip


@st.composite
def _safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file whose header lies, or whose bytes are torn."""
    if draw(st.booleans()):
        return draw(torn(content))
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(draw(damaged(json.loads(content[8 : 8 + length])))).encode()
    said = draw(st.sampled_from([len(header), len(header), length, 0, 1, 2**63, len(header) + 8]))
    return said.to_bytes(8, "little") + header + content[8 + length :]


def _write_json(file: Path, document: Any, data: st.DataObject) -> None:
    # So that more than the checksum is met; but what lies in the store was written by oneself.
    if isinstance(document, dict) and "checksum" in document and "inputs" not in document and data.draw(st.booleans()):
        document["checksum"] = checksum(document)
    text = json.dumps(document).encode()
    file.write_bytes(text if data.draw(st.integers(0, 3)) else data.draw(torn(text)))


def _export(desk: Desk, model: str, vector: str) -> None:
    code, said = desk.run("export", "--model", model, "--task-vector", vector, "--out", "new", "--quiet")
    assert (desk.path / "new").exists() == (code == 0), said
    shutil.rmtree(desk.path / "new", ignore_errors=True)


LOOSELY: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "print_blob": True,
}
LOOSELY["phases"] = (Phase.generate, Phase.shrink)  # explaining traces every line, and makes matplotlib crawl


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=38, derandomize=True, **LOOSELY)
@given(data=st.data())
def test_a_broken_input_is_refused_or_right(
    desk: Desk, kind: str, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr("spunge.report.drawing.draw", plain_figure)
    one(desk, kind, data)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=-(-COUNT // (PARTS * len(KINDS))), **LOOSELY)
@given(data=st.data())
def test_many_broken_inputs_are_refused_or_right(
    desk: Desk, kind: str, part: int, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    if data.draw(st.integers(0, 9)):  # real figures take longer than all the rest
        monkeypatch.setattr("spunge.report.drawing.draw", plain_figure)
    desk.apart = not data.draw(st.integers(0, 49))  # the real command, in a process of its own
    try:
        one(desk, kind, data)
    finally:
        desk.apart = False
    monkeypatch.undo()
