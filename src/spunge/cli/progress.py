"""What a run shows while it goes on: a live table on a terminal, plain lines elsewhere, or one JSON line an event."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spunge.files import format_duration

STAGES = ("split", "unlearn", "merge", "anchor", "damage", "generate", "classify", "judge", "evaluate")
"""In the order of the flow."""

MOST_VARIANTS = 8
"""More rows of figures than this would push the stages off a small screen."""

HEARTBEAT = 30.0
"""Seconds between two plain lines of one task; a log wants to know that it is alive, not every step."""


class Display:
    """Told of every step and event of a run; this one shows nothing."""

    def step(self, what: str, done: int, total: int, /, **figures: float) -> None:
        """A step of a task (`interfaces.Progress`)."""

    def event(self, kind: str, content: Mapping[str, Any], /) -> None:
        """What `pipeline.run` tells: `warned`, `planned` with its steps, `finished` with the task that has ended."""


@contextmanager
def watch(console: Console, out: TextIO, *, quiet: bool = False, as_json: bool = False) -> Iterator[Display]:
    """Gives the display that fits: none, JSON lines on `out`, a live table on a terminal, or plain lines."""
    if as_json:
        lines = JsonLines(out)
        try:
            yield lines
        except BaseException as error:
            lines.event("failed", {"error": str(error) or type(error).__name__})
            raise
    elif quiet:
        yield Display()
    elif not console.is_terminal:
        yield Lines(console)
    else:
        shown = LiveTable()
        with Live(shown, console=console, transient=True, refresh_per_second=5, redirect_stderr=False):
            yield shown


class JsonLines(Display):
    """One JSON object a line: `event`, `at` (seconds since the start) and what the event tells.

    - `warned`: `warnings`, a line each, only if there are any.
    - `planned`: `steps`, each with `stage`, `name`, `seed`, `key`, `status` (`computed` or `reused`) and `why`.
    - `step`: `what`, `done`, `total`, `figures`; of one task at most once a second, and its last.
    - `finished`: `stage`, `name`, `seed`, `key`, `status`, `seconds`, `peak_memory`, `figures`; of an evaluation
      also `variant` and `suite`.
    - `done`: `run` and `report`, their paths, and `verdict`: `sentences`, `numbers`, `contests` and `warnings`.
    - `failed`: `error`.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._began = out, time.monotonic()
        self._told: dict[str, float] = {}

    def step(self, what: str, done: int, total: int, /, **figures: float) -> None:
        """Writes a step, unless the task's last line is younger than a second."""
        now = time.monotonic()
        if done >= total or now - self._told.get(what, -math.inf) >= 1:
            self._told[what] = now
            self.event("step", {"what": what, "done": done, "total": total, "figures": figures})

    def event(self, kind: str, content: Mapping[str, Any], /) -> None:
        """Writes an event."""
        line = {"event": kind, "at": round(time.monotonic() - self._began, 3), **content}
        print(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False), file=self._out, flush=True)


@dataclass
class Task:
    """A task that is being worked on."""

    total: int
    done: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    began: float = field(default_factory=lambda: time.monotonic())
    first: int = 0
    """How far it was when it was first heard of: what a killed attempt had done already took no time."""
    shown_at: float = field(default_factory=lambda: time.monotonic())

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None while there is none."""
        made = self.done - self.first
        return (time.monotonic() - self.began) * (self.total - self.done) / made if made > 0 else None


class Lines(Display):
    """A line when a task begins, one now and then, and one when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: dict[str, Task] = {}
        self._planned = self._ended = 0

    def step(self, what: str, done: int, total: int, /, **figures: float) -> None:
        """Says that a task has begun, and every half minute how far it is."""
        task = self._running.get(what)
        if task is None:
            self._running[what] = Task(total, done, figures, first=done)
            self._say(f"{what}: begun")
        elif time.monotonic() - task.shown_at >= HEARTBEAT:
            task.done, task.total, task.shown_at = done, total, time.monotonic()
            left = f"about {format_duration(task.left)} left" if task.left is not None else ""
            self._say(f"{what}: " + ", ".join(filter(None, [f"{done} of {total}", left, format_figures(figures)])))

    def event(self, kind: str, content: Mapping[str, Any], /) -> None:
        """Says what is ahead, and how each task ended."""
        if kind == "planned":
            reused = sum(step["status"] == "reused" for step in content["steps"])
            self._planned = len(content["steps"])
            self._say(f"{self._planned} stages, {reused} of them in the store already")
        elif kind == "finished":
            self._ended += 1
            name = label(content)
            self._running.pop(name, None)
            took = "from the store" if content["status"] == "reused" else format_duration(content["seconds"] or 0.0)
            position = f"{self._ended} of {max(self._planned, self._ended)}"
            self._say(
                f"{name}: " + ", ".join(filter(None, [took, position, format_figures(content.get("figures") or {})]))
            )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


class LiveTable(Display):
    """Every kind of stage with its progress and time left, what is being worked on, and the key figures so far."""

    def __init__(self) -> None:
        self._lock = RLock()  # steps may come from another thread than the one that draws
        self._steps: Sequence[Mapping[str, Any]] = ()
        self._ended: list[Mapping[str, Any]] = []
        self._running: dict[str, Task] = {}
        self._began = time.monotonic()

    def step(self, what: str, done: int, total: int, /, **figures: float) -> None:
        """Notes how far a task is."""
        with self._lock:
            task = self._running.get(what)
            if task is None or total != task.total or done < task.done:  # a task may count several things in turn
                task = self._running[what] = Task(total, first=done)
            task.done, task.figures = done, figures or task.figures

    def event(self, kind: str, content: Mapping[str, Any], /) -> None:
        """Notes what is ahead, and what has ended."""
        with self._lock:
            if kind == "planned":
                self._steps = content["steps"]
            elif kind == "finished":
                self._ended.append(content)
                self._running.pop(label(content), None)

    def __rich__(self) -> RenderableType:
        """Draws the table as it stands."""
        with self._lock:
            return Group(*filter(None, [self._stages(), self._now(), self._so_far()]))

    def _stages(self) -> RenderableType | None:
        if not self._steps:
            return None
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("stage", no_wrap=True)
        table.add_column("", max_width=24)  # the bar gives way first on a narrow screen
        for column in ("done", "reused", "time", "left"):
            table.add_column(column, justify="right", no_wrap=True)
        lefts = []
        for stage in dict.fromkeys([*STAGES, *(step["stage"] for step in self._steps)]):
            planned = sum(step["stage"] == stage for step in self._steps)
            ended = [each for each in self._ended if each["stage"] == stage]
            if not planned:
                continue
            computed = [each["seconds"] or 0.0 for each in ended if each["status"] == "computed"]
            mean = sum(computed) / len(computed) if computed else None
            waiting = max(0, planned - len(ended))
            left = 0.0 if not waiting else None if mean is None else self._left(stage, mean, waiting)
            lefts.append(left)
            part = (len(ended) + self._part(stage)) / planned
            table.add_row(
                stage, ProgressBar(1.0, min(1.0, part)), f"{len(ended)} / {planned}",
                str(len(ended) - len(computed)), format_duration(sum(computed)),
                format_duration(left) if waiting else "",
            )  # fmt: skip
        whole = format_duration(None if None in lefts else sum(left or 0.0 for left in lefts))
        table.add_row("", "", "", "", format_duration(time.monotonic() - self._began), whole, style="bold")
        return table

    def _part(self, stage: str) -> float:
        """How many tasks of a kind the running ones amount to."""
        return sum(task.done / task.total for name, task in self._running.items()
                   if name.startswith(f"{stage} ") and task.total)  # fmt: skip

    def _left(self, stage: str, mean: float, waiting: int) -> float:
        """Seconds for the tasks of a kind that are still to come, as long as those before them took."""
        workers = max(1, sum(name.startswith(f"{stage} ") for name in self._running))
        return mean * max(0.0, waiting - self._part(stage)) / workers

    def _now(self) -> RenderableType | None:
        if not self._running:
            return None
        table = Table(box=None, padding=(0, 2, 0, 0), title="\nnow", title_justify="left", title_style="dim",
                      show_header=False)  # fmt: skip
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
        for name, task in self._running.items():
            table.add_row(
                Text(name),
                f"{task.done} / {task.total}",
                format_duration(task.left),
                Text(format_figures(task.figures)),
            )
        return table

    def _so_far(self) -> RenderableType | None:
        """The first figure of every suite for every variant, the mean over the seeds so far."""
        scores: dict[str, dict[str, list[float]]] = {}
        for task in self._ended:
            for metric, value in [*(task.get("figures") or {}).items()][:1]:
                scores.setdefault(task["variant"], {}).setdefault(f"{task['suite']} {metric}", []).append(value)
        if not scores:
            return None
        heads = list(dict.fromkeys(head for row in scores.values() for head in row))
        table = Table(box=None, padding=(0, 2, 0, 0), title="\nso far", title_justify="left", title_style="dim")
        table.add_column("", no_wrap=True, overflow="ellipsis")
        for head in heads:
            table.add_column(Text(head), justify="right", header_style="dim")
        names = sorted(scores, key=lambda name: name.startswith("subset:"))
        for name in names[:MOST_VARIANTS]:
            cells = [scores[name].get(head) for head in heads]
            table.add_row(Text(name), *(f"{sum(cell) / len(cell):.3f}" if cell else "" for cell in cells))
        if len(names) > MOST_VARIANTS:
            table.add_row(Text(f"and {len(names) - MOST_VARIANTS} more", style="dim"))
        return table


def label(task: Mapping[str, Any]) -> str:
    """Returns what a finished task was called while it ran."""
    return f"{task['stage']} {task['name']}"


def format_figures(figures: Mapping[str, float]) -> str:
    """Writes the figures of a step in one line."""
    return " ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())


def _finite(value: Any) -> Any:
    """JSON has no NaN: a loss that is none is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
