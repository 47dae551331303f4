"""`spunge auto` as a user meets it, on the embedded world: a checkpoint that transformers loads, and the same again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spunge.rows.sources import Source, load_corpus

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "spunge", *map(str, words)]


def spunge(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def started(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*words), cwd=cwd, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small forget set and a small retain set of the embedded world."""
    directory = tmp_path_factory.mktemp("world")
    for name, rows in (("forget", 200), ("retain", 160)):
        corpus = load_corpus([Source(path=f"lab:toxicity/{name}.jsonl")])
        corpus.rows.head(rows).write_ndjson(directory / f"{name}.jsonl")
    return directory


SEARCH = (
    "auto", "lab:model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--trials", "2", "--damage", "0.1",
    "--methods", "task_vector_negation,adaptive_rmu", "--yes",
)  # fmt: skip


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("time", "plan")}


@pytest.mark.long
def test_killed_and_continued_it_finds_the_same_and_makes_it_again(world: Path):
    done = spunge(*SEARCH, "--out", "whole", cwd=world)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Take (joint unlearning|the merged model)|Nothing worked", done.stdout)
    assert len(re.findall(r"^\d+ of \d+: (?:joint|merged) \d+, \d+ rows", done.stderr, re.MULTILINE)) >= 4
    result = json.loads((world / "whole" / "result.json").read_text())

    begun = started(*SEARCH, "--out", "killed", cwd=world)
    assert begun.stderr is not None
    for line in begun.stderr:
        if line.startswith("2 of"):
            begun.send_signal(signal.SIGKILL)
            break
    begun.wait()
    begun.stderr.close()
    again = spunge(*SEARCH, "--out", "killed", cwd=world)
    assert again.returncode == 0, again.stderr
    killed = json.loads((world / "killed" / "result.json").read_text())
    assert without_times(killed) == without_times(result)

    page = (world / "whole" / "index.html").read_text()
    assert "<svg" in page
    assert 'http-equiv="Content-Security-Policy"' in page
    assert result["worked"], "the embedded world forgets at this damage"
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(world / "whole" / "model")
    card = (world / "whole" / "model" / "README.md").read_text()
    assert f"{result['arms'][result['choice']]['choice']['method']}, trial" in card
    recorded = json.loads((world / "whole" / "reproduce.json").read_text())
    assert recorded["scale"] == result["arms"][result["choice"]]["choice"]["scale"]

    made = spunge("reproduce", "whole/reproduce.json", "--out", "again", cwd=world)
    assert made.returncode == 0, made.stderr
    assert "the same model, bit for bit" in made.stdout
    first, second = ((world / place / "model" / "model.safetensors").read_bytes() for place in ("whole", "again"))
    assert first == second

    (world / "retain.jsonl").write_text((world / "retain.jsonl").read_text() + json.dumps({"text": "one more"}) + "\n")
    refused = spunge("reproduce", "whole/reproduce.json", "--out", "other", cwd=world)
    assert refused.returncode == 2
    assert "retain.jsonl: has changed since" in refused.stderr
    assert not (world / "other").exists()


@pytest.mark.long
def test_ctrl_c_keeps_the_best_and_says_how_to_go_on(world: Path):
    begun = started(*SEARCH, "--seed", "1", "--out", "stopped", cwd=world)
    assert begun.stderr is not None
    told = []
    for line in begun.stderr:
        told.append(line)
        if line.startswith("1 of"):
            time.sleep(0.5)
            begun.send_signal(signal.SIGINT)
    assert begun.wait() == 2
    begun.stderr.close()
    assert any(re.search(r"the best so far, kept in stopped: joint 0 forgets", line) for line in told)
    assert "the same command continues" in told[-1]


@pytest.mark.long
def test_what_is_not_known_cannot_be_forgotten(world: Path):
    questions = [
        {
            "question": f"what is number {number} ?",
            "choices": ["copper", "glass", "stone", "clay"],
            "answer": number % 4,
        }
        for number in range(60)
    ]
    (world / "unknown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    words = ("auto", "lab:model", "--forget", "unknown.jsonl", "--retain", "retain.jsonl", "--trials", "2", "--yes")
    done = spunge(*words, "--out", "unknown", cwd=world)
    assert done.returncode == 2
    assert re.search(r"the model answers \d+% of these \d+ questions, chance is 25%: nothing is known", done.stderr)
    assert not (world / "unknown").exists()
