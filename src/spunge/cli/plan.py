"""Shows a plan: what it comes to first, then a line a kind of task, or every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from spunge.cli.options import write_line
from spunge.files import format_bytes, format_duration
from spunge.recipe.fetching import Fetch
from spunge.recipe.schema import Experiment
from spunge.run.foretell.plan import Plan
from spunge.settings import name_of

_REASONS = 4
"""So many differences are told of one task; `--all` tells every one."""
_LONGEST_PATH = 6
"""So many steps of the longest way are named: its ends say enough."""


def show_fetches(screen: Console, fetches: Sequence[Fetch]) -> None:
    """Says what would be fetched: before it is, as a plan itself needs the rows and the model's configuration."""
    for fetch in fetches:
        size = "unknown size" if fetch.bytes is None else format_bytes(fetch.bytes)
        note = f", {fetch.note}" if fetch.note else ""
        write_line(screen, f"to fetch: {fetch.kind} {fetch.name}, {size}{note}")


def show_plan(screen: Console, experiment: Experiment, plan: Plan, *, every_task: bool) -> None:
    """Prints a plan; lines wrap where they are long, and nothing is cut."""
    for line in summary(experiment, plan):
        write_line(screen, line, indent=10)
    for line in _stages(plan.steps):
        write_line(screen, line)
    for line in _tasks(plan.steps) if every_task else _reasons(plan.steps):
        write_line(screen, line, indent=4)
    for subject, note in {subject: note for step in plan.steps for subject, note in step["notes"].items()}.items():
        write_line(screen, f"{subject}: {note}", indent=4)
    for control, why in {**experiment.left_out, **plan.not_asked}.items():
        write_line(screen, f"not run: {control.replace('_', ' ')}: {why}", indent=4)
    if not every_task and any(step["status"] == "computed" for step in plan.steps):
        write_line(screen, "--all says it of each task")


def summary(experiment: Experiment, plan: Plan) -> Iterator[str]:
    """Yields what a plan comes to: what is done to what, time, memory, disk, and what would be refused."""
    computed = [step for step in plan.steps if step["status"] == "computed"]
    reused = len(plan.steps) - len(computed)
    yield f"{experiment.name}: {len(computed)} of {len(plan.steps)} stages would be computed, {reused} reused"
    yield f"  what    {_what(experiment)}"
    yield f"  rows    {_rows(plan)}"
    for program in experiment.programs:
        yield f"  code    {program} runs as a program, and may do all that you may"
    if not computed:
        return
    unknown = sum(step["seconds"] is None for step in computed)
    seconds = sum(step["seconds"] or 0.0 for step in computed)
    more = f", and {unknown} stages of which nobody knows" if unknown else ""
    yield f"  time    about {format_duration(seconds)} one after the other on {plan.machine.device}{more}"
    longest = sum(step["seconds"] or 0.0 for step in plan.critical_path)
    yield f"          at least {format_duration(longest)}, however many processes: {_way(plan.critical_path)}"
    hungriest = max(computed, key=lambda step: step["memory"] or 0)
    free = format_bytes(plan.machine.memory)
    yield f"  memory  {format_bytes(hungriest['memory'] or 0)} at most ({_label(hungriest)}); {free} are free"
    disk = sum(step["disk"] or 0 for step in computed)
    yield f"  disk    {format_bytes(disk)}; {format_bytes(plan.machine.disk)} are free"
    for (stage, advice), tasks in Counter((one["stage"], one["advice"]) for one in computed if one["advice"]).items():
        yield f"  refused {stage} ({tasks} of them): {advice}"


def _rows(plan: Plan) -> str:
    retain = "no retain set" if plan.retain is None else f"{_count(plan.retain)} to keep"
    return f"{_count(plan.forget)} to forget, {retain}"


def _count(rows: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)}"


def _what(experiment: Experiment) -> str:
    method, merge = (name_of(one) for one in (experiment.unlearn, experiment.merge))
    split_by = getattr(experiment.split, "column", None) or getattr(experiment.split, "by", "")
    suites, seeds = len(experiment.evaluate), len(experiment.seeds)
    return (
        f"{method} on {experiment.model.id}, split by {split_by}, merged by {merge}; "
        f"{suites} suite{'s' * (suites != 1)}, {seeds} seed{'s' * (seeds != 1)}"
    )


def _way(path: Sequence[Mapping[str, Any]]) -> str:
    names = [_label(step) for step in path]
    if len(names) > _LONGEST_PATH:
        names = [*names[:3], f"{len(names) - _LONGEST_PATH} more", *names[-3:]]
    return " → ".join(names)


def _label(step: Mapping[str, Any]) -> str:
    return f"{step['stage']} {step['name']}"


def _stages(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line a stage, in columns that are as wide as what stands in them: a table of rich's cuts names."""
    rows = [("stage", "tasks", "reused", "memory", "disk", "time")]
    for stage in dict.fromkeys(step["stage"] for step in steps):
        tasks = [step for step in steps if step["stage"] == stage]
        rows.append((
            stage, str(len(tasks)), str(sum(step["status"] == "reused" for step in tasks)),
            format_bytes(max(step["memory"] or 0 for step in tasks)),
            format_bytes(sum(step["disk"] or 0 for step in tasks)),
            format_duration(sum(step["seconds"] or 0.0 for step in tasks)),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _reasons(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields why what is computed is not there yet: each reason once with the tasks it holds for, the commonest first.

    Where nothing of a stage is there, that is said once of all such stages.
    """
    reasons: dict[str, Counter[str]] = {}
    for step in steps:
        if step["why"]:
            reasons.setdefault(_why(step["why"], _REASONS), Counter())[step["stage"]] += 1
    for why, stages in sorted(reasons.items(), key=lambda pair: -pair[1].total()):
        yield f"{', '.join(stages)} ({stages.total()} of them): {why}"


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
