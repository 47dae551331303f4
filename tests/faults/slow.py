"""A world for tests on several hosts: an unlearner that sleeps through its steps, with a checkpoint after each."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from spunge.files import replace_text
from spunge.interfaces import Unlearner, Work
from spunge.rows.sources import Corpus
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector


class Sleeper(Unlearner):
    """Sleeps, notes every step with the host that took it, and changes one matrix by what the seed says."""

    steps: int = 20
    log: str
    """Where every step is noted; the file `seconds` beside it says how long one takes."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        state = work.scratch / "state.json"
        done = json.loads(state.read_text()) if state.exists() else 0
        seconds = float(Path(self.log).with_name("seconds").read_text())
        for step in range(done, self.steps):
            time.sleep(seconds)
            replace_text(state, json.dumps(step + 1))
            with Path(self.log).open("a") as log:
                log.write(f"{socket.gethostname()} {forget.fingerprint[:8]} {step}\n")
        name = "model.layers.2.mlp.down_proj.weight"
        shape = base.checkpoint().tensor(name).shape
        return TaskVector({name: 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(work.seed))})


class Stuck(Unlearner):
    """Takes no signal, lets nothing else run in its process, and has a child."""

    log: str
    """Where the numbers of both processes are noted."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        for sent in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sent, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"])
        with Path(self.log).open("a") as log:
            log.write(f"{os.getpid()} {child.pid}\n")
        ctypes.PyDLL(None).sleep(1000)  # in C, with Python's lock held
        raise AssertionError


def build(directory: Path) -> None:
    """Writes a tiny model, its data and a recipe with two subsets."""
    from conftest import WORDS, make_model, sentences, write_jsonl
    from ruamel.yaml import YAML

    make_model(directory / "model")
    (directory / "seconds").write_text("0")
    rows = [{"text": text, "domain": "ab"[at % 2]} for at, text in enumerate(sentences(16, 1))]
    items = [
        {"question": text, "choices": WORDS[at : at + 4], "answer": at % 4} for at, text in enumerate(sentences(12, 3))
    ]
    recipe = {
        "name": "slow",
        "model": {"id": "model"},
        "forget": {"sources": [{"path": str(write_jsonl(directory / "forget.jsonl", rows).name)}]},
        "split": {"by": "column", "column": "domain"},
        "unlearn": {"method": "slow:Sleeper", "log": str(directory / "steps.log")},
        "merge": {"method": "ties"},
        "controls": [],
        "evaluate": [
            {
                "suite": "items", "method": "multiple_choice", "goal": "forget", "style": "continuation",
                "sources": [{"path": str(write_jsonl(directory / "items.jsonl", items).name)}],
            }
        ],
    }  # fmt: skip
    with (directory / "recipe.yaml").open("w") as stream:
        YAML().dump(recipe, stream)


def compare(directory: Path, *names: str) -> None:
    """Ends with an error unless all runs made the same, each artifact once."""
    from attempts import made

    first, *others = [
        {name: part for name, part in made(directory / each).items() if not Path(name).name.startswith(".")}
        for each in names
    ]
    for name, other in zip(names[1:], others, strict=True):
        different = {key for key in first.keys() | other.keys() if first.get(key) != other.get(key)}
        different = {key for key in different if not any(part.startswith(".") for part in Path(key).parts)}
        if different:
            sys.exit(f"{name}: not as in {names[0]}: {sorted(different)}")
    print(f"{', '.join(names)}: {len(first)} files, the same in all")  # noqa: T201


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    {"build": build, "compare": compare}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
