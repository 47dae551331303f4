"""Shows a plan: what it comes to first, then a line a kind of task, or every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from spunge.files import format_bytes, format_duration
from spunge.foretell.fetching import Fetch
from spunge.foretell.plan import Plan
from spunge.recipe.schema import Experiment

_REASONS = 4
"""So many differences are told of one task; `--all` tells every one."""


def show_fetches(screen: Console, fetches: Sequence[Fetch]) -> None:
    """Says what would be fetched: before it is, as a plan itself needs the rows and the model's configuration."""
    for fetch in fetches:
        size = "unknown size" if fetch.bytes is None else format_bytes(fetch.bytes)
        note = f", {fetch.note}" if fetch.note else ""
        screen.print(f"to fetch: {fetch.kind} {fetch.name}, {size}{note}", soft_wrap=True)


def show_plan(screen: Console, experiment: Experiment, plan: Plan, *, every_task: bool) -> None:
    """Prints a plan; lines wrap where they are long, and nothing is cut."""
    for line in summary(experiment.name, plan):
        screen.print(line, soft_wrap=True)
    screen.print(_kinds(plan.steps))
    for line in _tasks(plan.steps) if every_task else _reasons(plan.steps):
        screen.print(line, soft_wrap=True)
    for subject, note in {subject: note for step in plan.steps for subject, note in step["notes"].items()}.items():
        screen.print(f"{subject}: {note}", soft_wrap=True)
    for control, why in experiment.left_out.items():
        screen.print(f"not run: {control.replace('_', ' ')}: {why}", soft_wrap=True)
    computed = sum(step["status"] == "computed" for step in plan.steps)
    reused = len(plan.steps) - computed
    screen.print(f"{computed} of {len(plan.steps)} stages would be computed, {reused} reused")


def summary(name: str, plan: Plan) -> Iterator[str]:
    """Yields what a plan comes to: time, memory, disk, and what would be refused."""
    computed = [step for step in plan.steps if step["status"] == "computed"]
    yield f"{name}: {len(computed)} of {len(plan.steps)} stages to compute, the others are there already"
    if not computed:
        return
    unknown = sum(step["seconds"] is None for step in computed)
    seconds = sum(step["seconds"] or 0.0 for step in computed)
    more = f", and {unknown} stages of which nobody knows" if unknown else ""
    yield f"  time    about {format_duration(seconds)} one after the other on {plan.machine.device}{more}"
    path = " → ".join(_label(step) for step in plan.critical_path)
    longest = sum(step["seconds"] or 0.0 for step in plan.critical_path)
    yield f"          at least {format_duration(longest)}, however many processes: {path}"
    hungriest = max(computed, key=lambda step: step["memory"] or 0)
    free = format_bytes(plan.machine.memory)
    yield f"  memory  {format_bytes(hungriest['memory'] or 0)} at most ({_label(hungriest)}); {free} are free"
    disk = sum(step["disk"] or 0 for step in computed)
    yield f"  disk    {format_bytes(disk)}; {format_bytes(plan.machine.disk)} are free"
    for advice, tasks in Counter((step["stage"], step["advice"]) for step in computed if step["advice"]).items():
        yield f"  refused {advice[0]} ({tasks} of them): {advice[1]}"


def _label(step: Mapping[str, Any]) -> str:
    return f"{step['stage']} {step['name']}"


def _kinds(steps: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("stage", "tasks", "reused", "memory", "disk", "time", box=None, pad_edge=False)
    for stage in dict.fromkeys(step["stage"] for step in steps):
        own = [step for step in steps if step["stage"] == stage]
        table.add_row(
            stage, str(len(own)), str(sum(step["status"] == "reused" for step in own)),
            format_bytes(max(step["memory"] or 0 for step in own)),
            format_bytes(sum(step["disk"] or 0 for step in own)),
            format_duration(sum(step["seconds"] or 0.0 for step in own)),
        )  # fmt: skip
    return table


def _reasons(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields why what is computed is not there yet: each reason once a kind of task, the commonest first."""
    reasons = Counter((step["stage"], _why(step["why"], _REASONS)) for step in steps if step["why"])
    for (stage, why), tasks in reasons.most_common():
        yield f"{stage} ({tasks} of them): {why}"


def _tasks(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields every task with what it takes and every difference to the nearest that is there."""
    for step in steps:
        sizes = [format_bytes(step[figure]) for figure in ("memory", "disk") if step[figure] is not None]
        times = [format_duration(step["seconds"])] if step["seconds"] is not None else []
        advice = [step["advice"]] if step["advice"] else []
        yield f"{_label(step)} (seed {step['seed']}): {', '.join([step['status'], *sizes, *times, *advice])}"
        yield from (f"    {difference}" for difference in step["why"])


def _why(differences: Sequence[str], most: int) -> str:
    return "; ".join(differences[:most]) + (f"; and {len(differences) - most} more" * (len(differences) > most))
