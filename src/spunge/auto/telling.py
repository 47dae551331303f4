"""What came of a search, in sentences and tables: the same on the terminal, on the page and on the model's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spunge.auto.fluency import FLOOR
from spunge.files import format_duration
from spunge.report.markdown import front_matter
from spunge.report.tables import Cell, Table

if TYPE_CHECKING:
    from spunge.auto.trials import Reading

_NEAR = 0.9
"""Of the budget: who does less damage than this share of it is not compared as at the same."""
LABELS = {"joint": "joint unlearning", "merged": "the merged model"}


def amount(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Writes how much was forgotten, with its interval."""
    if value is None:
        return "not measured"
    known = low is not None and high is not None and low == low
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if known else f"{value:.3f}"


def forgets(reading: Reading) -> str:
    """Writes how much a reading forgot, what it lost of what must stay, and what an attack brings back."""
    lost = f", loses {amount(reading.lost)}" if reading.lost else ""
    back = f", {amount(reading.back)} comes back" if reading.back is not None else ""
    return f"{amount(reading.forgotten)}{lost}{back}"


def unit(kind: str) -> str:
    """What the amounts are of."""
    return "of p(right answer)" if kind == "questions" else "nats per token"


def verdict(result: Mapping[str, Any], kind: str, budget: float) -> list[str]:
    """Returns what a search has found: what to take and what it does, or that nothing worked and what was nearest."""
    arms, arm = result["arms"], result["choice"]
    if arm is None:
        failed = sum(rung["failed"] for rung in result["time"]["rungs"])
        return [f"Nothing worked: none of the trials came to a model that could be asked ({failed} failed)."]
    choice, test = arms[arm]["choice"], arms[arm]["test"]
    lines = []
    gone = f"{amount(test['forgotten'], test['low'], test['high'])} {unit(kind)}"
    if result["worked"]:
        lines.append(
            f"Take {LABELS[arm]}, {named(choice)}: on {test['items']} items that nothing was tuned or chosen on, "
            f"{gone} is forgotten, at a damage of {damage(test['damage'])} (budget {budget:g})."
        )
    else:
        spoilt = (test["low"] or 0.0) > 0
        why = (
            f"none keeps to a damage of {budget:g}" if not choice["met"]
            else "what forgets most no longer writes language" if choice["broken"] > FLOOR
            else f"what is forgotten is not clearly more than went of what must stay ({amount(test['lost'])})" if spoilt
            else "what is forgotten cannot be told from nothing"
        )  # fmt: skip
        lines.append(
            f"Nothing worked within the budget: {why}. The best, {LABELS[arm]} by {named(choice)}, forgot {gone} on "
            f"{test['items']} items at a damage of {damage(test['damage'])}."
        )
        if choice["met"] and choice["broken"] <= FLOOR and spoilt:
            lines.append("A smaller --damage or more rows to keep may hold on to it.")
        elif near := result["nearest"]:
            lines.append(
                f"The nearest that forgets more is beyond the budget: {LABELS[near['arm']]}, trial {near['number']}, "
                f"{amount(near['forgotten'])} on the rows to tune on at a damage of {damage(near['damage'])}; "
                f"--damage {near['damage']:.2g} would allow it."
            )
    over = test["damage"]
    if result["worked"] and over is not None and over > 1.25 * budget:
        lines.append(
            f"On the texts to judge on that is more than the budget, which it kept where λ was chosen "
            f"({damage(choice['damage'])}): give more retain rows to measure on, or a smaller --damage."
        )
    if result["worked"] and test["broken"] > FLOOR:
        lines.append(
            f"On the rows to judge on {share(test['broken'])} more completions than the base model's are no language "
            f"({share(choice['broken'])} where it was chosen): read some before you use it."
        )
    lines += _compared(result, kind)
    if "kept" in test:
        before, after = test["kept"]
        lines.append(f"Of the questions on what must stay it answers {share(after)}; the base model {share(before)}.")
    if "attacked" in test:
        lines.append(f"After the attack {amount(test['attacked'])} {unit(kind)} is still forgotten.")
    return lines


def _compared(result: Mapping[str, Any], kind: str) -> list[str]:
    apart = result["comparison"]
    if apart is None:
        return []
    trials = min(result["trials"].values())
    budget, damages = apart["damage"], apart["damages"]
    if unlike := [arm for arm, done in damages.items() if done is None or done < _NEAR * budget]:
        each = " and ".join(f"{LABELS[arm]} {damage(done)}" for arm, done in damages.items())
        who = " and ".join(LABELS[arm] for arm in unlike)
        return [
            f"Merged and joint cannot be compared at the same damage: λ takes {who} to no "
            f"damage of {budget:g} to the texts to judge on ({each}). There {amount(apart['merged'])} and "
            f"{amount(apart['joint'])} is forgotten."
        ]
    low, high = apart["low"], apart["high"]
    who = (
        "the two cannot be told apart"
        if low <= 0 <= high
        else f"{LABELS['merged' if low > 0 else 'joint']} forgot more"
    )
    return [
        f"Merged against joint, with {trials} trials each and at a damage of {apart['damage']:g} to the same texts: "
        f"{amount(apart['merged'])} and {amount(apart['joint'])} forgotten, a difference of "
        f"{amount(apart['difference'], low, high)}; {who}."
    ]


def share(value: float | None) -> str:
    """Writes a share."""
    return "none that could be counted" if value is None else f"{100 * value:.0f} %"


def damage(value: float | None) -> str:
    """Writes a damage."""
    return "∞" if value is None else f"{value:.3g}"


def named(choice: Mapping[str, Any]) -> str:
    """Names a choice: its method, its trial, how it is merged and its λ."""
    merge = f", merged by {choice['merge']}" if choice["merge"] else ""
    return f"{choice['method']}, trial {choice['number']}{merge}, λ {choice['scale']:.3g}"


def times(result: Mapping[str, Any]) -> str:
    """Says what share of the time went into trials that were cut, and what each rung saved."""
    spent = result["time"]
    rungs = "; ".join(
        f"{one['rows']} rows: {one['trials']} trials in {format_duration(one['seconds'])}"
        + (f", which at the top would have taken {format_duration(one['saved'])} more" if one["saved"] > 0 else "")
        for one in spent["rungs"] if one["trials"]
    )  # fmt: skip
    return f"{spent['cut_share']:.0%} of {format_duration(spent['seconds'])} went into trials that were cut. {rungs}."


def front_table(result: Mapping[str, Any], kind: str) -> Table:
    """Returns both arms' fronts, the least damage first."""
    rows: list[Mapping[str, Any]] = points_of(result)
    keeps = any(one["lost"] for one in rows)
    cells = [
        [
            Cell(str(number)), Cell(str(one["arm"])), Cell(f"trial {one['number']}"), Cell(one["merge"] or "–"),
            Cell(f"{one['scale']:.3g}", float(one["scale"])), Cell(damage(one["damage"]), one["damage"]),
            Cell(amount(one["forgotten"]), float(one["forgotten"])),
            *([Cell(amount(one["lost"]), float(one["lost"]))] if keeps else []),
        ]
        for number, one in enumerate(rows, 1)
    ]  # fmt: skip
    header = ["", "arm", "trial", "merge", "λ", "damage ↓", "forgotten ↑", *(["lost ↓"] if keeps else [])]
    beyond = ", lost of the questions that must stay in the same," if keeps else ","
    note = (
        f"On the rows to tune on; forgotten in {unit(kind)}{beyond} damage in nats per token. No point of the same arm "
        f"does less damage and forgets as much{' beyond what it lost' if keeps else ''}."
    )
    return Table("front", "The fronts of joint unlearning and of the merged model", note, header, cells)


def points_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the points of both fronts in the order of the table."""
    return [one for arm in ("joint", "merged") for one in result["front"].get(arm, ())]


def judged_table(result: Mapping[str, Any], kind: str) -> Table:
    """Returns both arms' choices as they did on the part that nothing was chosen on."""
    cells = []
    for arm, one in result["arms"].items():
        choice, test = one["choice"], one["test"]
        scores = ", ".join(f"{name} {_number(a)} → {_number(b)}" for name, (a, b) in test["scores"].items())
        cells.append(
            [
                Cell(LABELS[arm]), Cell(named(choice)), Cell(amount(test["forgotten"], test["low"], test["high"]),
                test["forgotten"]), Cell(damage(test["damage"]), test["damage"]), Cell(scores),
                Cell(share(test["broken"]), test["broken"]),
            ]
        )  # fmt: skip
    header = ["", "choice", "forgotten ↑", "damage ↓", "scores, base → unlearned", "no language ↓"]
    note = (
        f"Forgotten in {unit(kind)} with its 95 % interval; damage in nats per token; completions that are no "
        "language, beyond the base model's share."
    )
    return Table("judged", "Judged on the test part", note, header, cells)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def trial_table(rows: Sequence[Mapping[str, Any]], kind: str) -> Table:
    """Returns every trial with the rung that it reached.

    Args:
        rows: `arm`, `number`, `rung`, `told`, `seconds`, `failed`, `forgotten` and `damage` of each.
        kind: What was asked.
    """
    cells = [
        [
            Cell(one["arm"]), Cell(str(one["number"])), Cell(str(one["rung"])), Cell(one["told"]),
            Cell(amount(one["forgotten"]) if one["failed"] is None else "failed", one["forgotten"]),
            Cell(damage(one["damage"]) if one["failed"] is None else one["failed"], one["damage"]),
            Cell(format_duration(one["seconds"]), one["seconds"]),
        ]
        for one in rows
    ]  # fmt: skip
    header = ["arm", "trial", "rung", "setting", "forgotten ↑", "damage ↓", "time"]
    return Table(
        "trials", "All trials", "The best reading within the budget, at the highest rung reached.", header, cells
    )


def card(
    result: Mapping[str, Any], wish: Mapping[str, Any], kind: str, known: str, point: Mapping[str, Any] | None = None
) -> str:
    """Returns the model card of what a search chose, or of another point of the front that the user took."""
    lines = verdict(result, kind, wish["damage"])
    if point is not None:
        lines = [
            f"This is {LABELS[point['arm']]}, {named(point)}: a point of the front that was taken by hand. On the "
            f"rows to tune on {amount(point['forgotten'])} {unit(kind)} is forgotten at a damage of "
            f"{damage(point['damage'])}; it was not judged on others. What follows is of the search's own choice.",
            *lines,
        ]
    tables = [judged_table(result, kind), front_table(result, kind)]
    body = "\n\n".join(f"## {table.title}\n\n{table.to_markdown()}\n{table.note}" for table in tables)
    return (
        f"{front_matter(str(wish['model']))}\n\n"
        f"# {str(wish['model']).rsplit('/', 1)[-1]}, unlearned\n\nFound by `spunge auto`; {known}.\n\n"
        + "\n\n".join(lines)
        + f"\n\n{body}\n\n## Limits\n\n- {times(result)}\n"
        "- Unlearning hides more than it erases: fine-tuning, quantisation or other prompts may bring part of it back; "
        "`spunge audit` with attacks tells how much.\n"
        "- What was forgotten is measured by likelihoods of rows or answers, not by what people would ask.\n"
        "- `reproduce.json` of the search makes the same model again.\n"
    )
