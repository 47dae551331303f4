"""Kills runs on a real model wherever they are, runs them again, and compares the ends with those of undisturbed ones.

Moments are drawn by the seed, turn by turn from every stage: in a step of LoRA training (NPO, task vector negation) or
of RMU, of the merge, of an evaluation, in the report, in `spunge export` and `spunge merge` by hand. Every sixth is
SIGTERM and every sixth SIGHUP instead of SIGKILL. With `--jobs 2` a worker is killed and the parent by turns.

    OMP_NUM_THREADS=1 python benchmarks/kills.py MODEL_DIRECTORY --kills 20
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests" / "faults"))
from attempts import CONTEXT, Ended, leftovers, made, start, wait  # pyright: ignore[reportMissingImports]

LORA = {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
TRAINED = {"lora": LORA, "batch_size": 2, "max_length": 64, "max_steps": 4}
METHODS: dict[str, dict[str, Any]] = {
    "npo": {"method": "npo", **TRAINED},
    "task_vector_negation": {"method": "task_vector_negation", **TRAINED},
    "rmu": {"method": "rmu", "batch_size": 2, "max_length": 64, "retain_max_length": 64, "max_steps": 4},
}
PHASES = ("unlearn", "merge", "evaluate", "report", "export", "merge by hand")


@dataclass
class Watched:
    """Has an attempt tell every step and the end of every task, and save a checkpoint as often as it can."""

    line: Connection

    def __call__(self) -> None:
        from spunge.cli import commands
        from spunge.cli.progress import Display
        from spunge.training import checkpointing

        checkpointing.SAVE_SECONDS = 0.0
        line = self.line

        class Told(Display):
            def step(self, what: str, done: int, total: int, /, **figures: float) -> None:
                line.send((what, done))

            def event(self, kind: str, content: Any, /) -> None:
                if kind == "finished":
                    line.send((f"{content['stage']} {content['name']}", -1))

        @contextlib.contextmanager
        def watch(*_: Any) -> Iterator[Display]:
            yield Told()

        commands.watch = watch


@dataclass(frozen=True)
class Moment:
    """So many seconds after a step of a task was told: -1 is its end; without a task, after the start."""

    phase: str
    after: tuple[str, int] | None
    seconds: float


@dataclass
class Undisturbed:
    """What a command makes when nothing happens, and when it told what."""

    words: tuple[str, ...]
    seconds: float = 0.0
    told: list[tuple[float, tuple[str, int]]] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    def draw(self, phase: str, randomly: random.Random) -> Moment:
        """Draws a moment in a phase: any of its steps, and any time until the next."""
        if phase in ("export", "merge by hand"):
            return Moment(phase, None, randomly.uniform(0, self.seconds))
        times = [at for at, _ in self.told] + [self.seconds]
        if phase == "report":
            number = len(self.told) - 1
        else:
            number = randomly.choice(
                [at for at, (_, (what, done)) in enumerate(self.told) if what.startswith(f"{phase} ") and done >= 0]
            )
        return Moment(phase, self.told[number][1], randomly.uniform(0, times[number + 1] - times[number]))


def run(words: tuple[str, ...], cwd: Path, told: list[Any] | None = None, *, moment: Moment | None = None,
        sent: int = signal.SIGKILL, worker: bool = False) -> tuple[Ended, float, bool]:  # fmt: skip
    """Runs a command, to its end or to a moment; returns how it ended, how long it took and whether it was in time."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = start(words, cwd, Watched(there))  # figures apart, which take longer than all the rest
    begun, hit = time.monotonic(), False
    if moment is not None and moment.after is None:
        hit = strike(process.pid, moment.seconds, sent, worker=worker)
    while process.is_alive():
        while here.poll(0.005):
            event = here.recv()
            if told is not None:
                told.append((time.monotonic() - begun, event))
            if moment is not None and not hit and event == moment.after:
                hit = strike(process.pid, moment.seconds, sent, worker=worker)
    ended = wait(process)
    return ended, time.monotonic() - begun, hit


def strike(pid: int, seconds: float, sent: int, *, worker: bool) -> bool:
    time.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        children = psutil.Process(pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        os.kill(max(workers, key=lambda one: one.cpu_times().user).pid if worker and workers else pid, sent)
        if not worker and sent == signal.SIGKILL:
            psutil.wait_procs(children, timeout=20)
        return True
    return False


def content_of(out: Path) -> dict[str, Any]:
    """Returns what a run or a command made: by content, but for measured times and memory."""
    if (out / "store").is_dir():
        return made(out)
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def write_recipe(path: Path, model: Path, unlearn: dict[str, Any]) -> None:
    items = {"style": "continuation", "attributes": ["domain"], "where": "part = 'test'", "limit": 4}
    path.write_text(
        json.dumps({
            "name": "killed",
            "model": {"id": str(model)},
            "forget": {"sources": [{"path": "lab:knowledge/forget.jsonl"}], "max_rows": 8},
            "retain": {"sources": [{"path": "lab:knowledge/retain.jsonl"}]},
            "split": {"by": "column", "column": "domain"},
            "unlearn": unlearn,
            "merge": {"method": "ties", "density": 0.5},
            "controls": ["joint"],
            "evaluate": [
                {"suite": "hazards", "method": "multiple_choice", "goal": "forget",
                 "sources": [{"path": "lab:knowledge/hazards.jsonl"}], **items},
            ],
        }),
        encoding="utf-8",
    )  # fmt: skip


def undisturbed(directory: Path, model: Path, method: str, jobs: int) -> dict[str, Undisturbed]:
    """Runs a recipe of the method, and exports and merges by hand what it leaves: phase → the command."""
    recipe = directory / f"{method}.json"
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    write_recipe(recipe, model, METHODS[method] | ({"layer": layers // 5} if method == "rmu" else {}))
    commands: dict[str, Undisturbed] = {}

    def measure(name: str, *words: str) -> Path:
        out = directory / method / name.replace(" ", "-")
        command = commands[name] = Undisturbed(words)
        ended, command.seconds, _ = run((*words, "--out", str(out)), directory, command.told)
        assert ended.code == 0, ended.errors
        command.content = content_of(out)
        return out

    out = measure("run", "run", str(recipe), "--quiet", *(("--jobs", str(jobs)) if jobs > 1 else ()))
    [merged] = (out / "store" / "merge").glob("[!.]*")
    measure("export", "export", "--model", str(model), "--task-vector", str(merged))
    stages = json.loads((out / "killed" / "manifest.json").read_text())["stages"]
    apart = [
        str((out / "killed" / stage["path"]).resolve())
        for stage in stages
        if stage["stage"] == "unlearn" and stage["name"].startswith("subset:")
    ]
    measure("merge by hand", "merge", "--base", str(model), *apart, "method=ties", "density=0.5")
    return commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the number of the first kill, to go on from another day")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    phases = PHASES[:4] if options.jobs > 1 else PHASES
    turns = [(name, phase) for phase in phases for name in options.methods]
    commands: dict[str, dict[str, Undisturbed]] = {}
    failures, number, tries = 0, options.first, 0
    with tempfile.TemporaryDirectory(prefix="kills.") as root:
        directory = Path(root)
        while number < options.first + options.kills:
            name, phase = turns[number % len(turns)]
            if name not in commands:
                commands[name] = undisturbed(directory, options.model.resolve(), name, options.jobs)
                print(name, *(f"{what}: {each.seconds:.1f} s" for what, each in commands[name].items()), sep="  ")
            command = commands[name].get(phase, commands[name]["run"])
            moment = command.draw(phase, random.Random(f"{options.seed} {number} {tries}"))
            moment = replace(moment, seconds=moment.seconds / 2**tries)  # the run that it is of may have been slower
            sent = {4: signal.SIGTERM, 5: signal.SIGHUP}.get(number % 6, signal.SIGKILL)
            worker = options.jobs > 1 and number % 2 == 0 and phase != "report"
            out = directory / "again"
            words = (*command.words, "--out", str(out))
            ended, _, hit = run(words, directory, moment=moment, sent=signal.SIGKILL if worker else sent, worker=worker)
            code = -signal.SIGKILL if sent == signal.SIGKILL else 128 + sent
            if not hit or ended.code == 0:  # this time it was quicker: no kill
                shutil.rmtree(out, ignore_errors=True)
                tries += 1
                continue
            good = ended.code == (2 if worker else code) and "Traceback" not in ended.errors
            left = leftovers(out) if out.exists() else []
            again, seconds, _ = run(words, directory)
            content = content_of(out) if out.exists() else {}
            different = sorted(
                file
                for file in content.keys() | command.content.keys()
                if content.get(file) != command.content.get(file)
            )
            good = good and again.code == 0 and not different and not leftovers(out)
            good = good and not leftovers_beside(out)
            failures += not good
            print(
                f"{number:3} {name:21} {phase:14} {'worker' if worker else signal.Signals(sent).name:8}"
                f"{describe(moment):60} code {ended.code:4}, left {len(left):2}, again {seconds:5.1f} s: "
                f"{'equal' if good else 'NOT EQUAL'}",
                flush=True,
            )
            if not good:
                print(ended.errors, again.errors, different, leftovers(out), leftovers_beside(out), flush=True)
            shutil.rmtree(out, ignore_errors=True)
            number, tries = number + 1, 0
    print(f"{options.kills - failures} of {options.kills} ends are equal to the undisturbed ones")
    sys.exit(bool(failures))


def leftovers_beside(out: Path) -> list[str]:
    return [path.name for path in out.parent.glob(f".{out.name}.*")]


def describe(moment: Moment) -> str:
    if moment.after is None:
        return f"{moment.seconds:.2f} s after the start"
    what, done = moment.after
    return f"{moment.seconds:.2f} s after {what} {'ended' if done < 0 else f'step {done}'}"


if __name__ == "__main__":
    main()
