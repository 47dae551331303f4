"""SPUNGE against each rival: one word for every comparison, and for all that is asked of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from spunge.report import damage
from spunge.report.changes import FEW, NOTHING_TO_FORGET, to_forget
from spunge.report.damage import kl
from spunge.report.findings import Column, Findings, improvement
from spunge.report.points import (
    BAD,
    GOOD,
    MARGIN,
    UNSURE,
    Point,
    difference,
    distance,
    lead,
    present,
    rounded,
    status_of,
    tied,
    two_scores,
    where,
)
from spunge.report.rows import Comparison
from spunge.report.usable import incomparable, lost_alone
from spunge.statistics import items_needed, seeds_needed
from spunge.variants import BASE, MERGED, label_of, phrase_of

Word = Literal[
    "better", "worse", "no different", "not told apart", "better in places", "worse in places", "better and worse",
    "it depends", "not comparable",
]  # fmt: skip
"""`no different`: surely within the margin. `not told apart`: so few items or seeds leave it open. `it depends`: on
whether damage near what must go or far from it is matched."""


_STATUS: dict[Word, str] = {
    "better": GOOD, "better in places": GOOD,
    "better and worse": UNSURE, "worse": BAD, "worse in places": BAD, "no different": UNSURE,
    "not told apart": UNSURE, "it depends": UNSURE, "not comparable": UNSURE,
}  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """SPUNGE against one rival on what must go, over all that is asked of it."""

    rival: str
    """The variant's name."""
    word: Word
    status: str
    text: str
    """The line of it, whole: against whom, the word, the difference with its interval, and of how many."""
    points: tuple[Point, ...]
    """For every headline figure, what it says."""
    matched: bool
    """Whether both were asked at the same damage to the rest."""
    caveat: str = ""
    """Why the word is not what the figures alone seem to say."""
    size: str = ""
    """Of a single headline figure, how far apart they are, with its interval."""
    places: str = ""
    """Which of several headline figures say what, where they differ."""
    apart: bool = False
    """Whether the two are not to be compared at all, as one is broken: then there are no figures."""


def contest_with(findings: Findings, rival: str, one: str = MERGED.name) -> Contest:
    """Returns the contest with one rival on all that must go, in one word and one line."""
    if twin := findings.twins.get(rival):
        same = f"Against {phrase_of(rival)}: the same model here as {phrase_of(twin)}."
        return replace(contest_with(findings, twin, one), rival=rival, status=UNSURE, text=same, points=())
    if reasons := incomparable(findings, one, rival):
        caveat = "; ".join(reasons.values())
        text = tied(f"Against {phrase_of(rival)}: not comparable; {caveat}.")
        return Contest(rival, "not comparable", UNSURE, text, (), damage.matched(findings, rival), caveat, apart=True)
    columns = [column for column in to_forget(findings) if findings.comparison(one, rival, column)]
    points = tuple(present(contest(findings, column, rival, one) for column in columns))
    rows = [(row, column) for column in columns if (row := findings.comparison(one, rival, column))]
    each: list[Word] = [word_for(findings, row, column) for row, column in rows]
    alone = together(each)
    places = _by_place(each, columns) if len(set(each)) > 1 else ""
    word, caveat = _under_both(findings, rival, alone) if rows else (alone, _nothing(findings))
    parts = [f"{lead(row, column)}{f' on {where(column)}' if len(rows) > 1 else ''}" for row, column in rows]
    enough = enough_to_tell(findings, *rows[0]) if word == "not told apart" and len(rows) == 1 else ""
    words = f"no different within {100 * MARGIN:.0f} %" if word == "no different" else word
    apart = "" if word == "not comparable" else damage.unlike(findings, rival)
    status = _status(findings, word, columns, one)
    praiseless = f"but {label_of(one)} is not shown to have forgotten" if status != _STATUS[word] else ""
    parts += [told for told in (praiseless, caveat, apart, lost_alone(findings, one, rival)) if told]
    text = f"Against {phrase_of(rival)}: {words}{enough}; {'; '.join(parts)}."
    size = distance(*rows[0]) if len(rows) == 1 else ""
    return Contest(rival, word, status, tied(text), points, damage.matched(findings, rival), caveat, size, places)


def _status(findings: Findings, word: Word, columns: Sequence[Column], one: str) -> str:
    """What a word says for a variant: to be better than a rival is nothing good where nothing was forgotten."""
    rows = [(row, column) for column in columns if (row := findings.comparison(one, BASE.name, column))]
    if _STATUS[word] == GOOD and rows and not any(status_of(row, column) == GOOD for row, column in rows):
        return UNSURE
    return _STATUS[word]


def _nothing(findings: Findings) -> str:
    asked = bool(findings.leading("forget")) and not to_forget(findings)
    return NOTHING_TO_FORGET if asked else "they have no figure in common"


def contest(findings: Findings, column: Column, rival: str, one: str = MERGED.name) -> Point | None:
    """Says whether SPUNGE, or another variant, is better than a rival."""
    row = findings.comparison(one, rival, column)
    if row is None:
        return None
    word = word_for(findings, row, column)
    did = "forgot" if column.goal == "forget" else "kept"
    other = phrase_of(rival)
    words = {
        "better": f"{label_of(one)} {did} more than {other}",
        "worse": f"{label_of(one)} {did} less than {other}",
        "no different": f"{label_of(one)} and {other} {did} the same, within {100 * MARGIN:.0f} %",
        "not told apart": f"{label_of(one)} and {other} are not told apart{enough_to_tell(findings, row, column)}",
    }[word]
    figures = f"{two_scores(findings, column, rival, one)}; {difference(row, column)}"
    status = _status(findings, word, [column], one) if column.goal == "forget" else _STATUS[word]
    return Point(status, tied(f"On {where(column)}, {words}."), tied(figures))


def word_for(findings: Findings, row: Comparison, column: Column) -> Word:
    """Returns the word of one comparison: whether it stands, and whether it surely lies within the margin."""
    margin = _margin(findings, column) or 0.0
    if row.ends is not None and -margin <= row.ends[0] and row.ends[1] <= margin:
        return "no different"
    return {1: "better", 0: "not told apart", -1: "worse"}[improvement(row, column)]  # type: ignore[return-value]


def enough_to_tell(findings: Findings, row: Comparison, column: Column) -> str:
    """How many items or seeds would tell two variants apart that differ by what these seem to, or by the margin."""
    margin = _margin(findings, column)
    if row.spread is None or margin is None or row.n < FEW:
        return " (so few items tell nothing)"
    apart = max(abs(row.difference), margin)
    items, seeds = items_needed(row.spread, apart), seeds_needed(row.spread, apart)
    if items is not None and items > row.n:
        return f" (about {rounded(items)} items would tell)"
    return f" ({seeds} seeds would tell)" if seeds is not None and seeds > row.seeds else ""


def _margin(findings: Findings, column: Column) -> float | None:
    """How far apart two variants may be and be no different: a share of what the base model has above guessing."""
    base = findings.score(BASE.name, column)
    floor = (findings.chance(column) or 0.0) if column.goal == "forget" else 0.0
    return None if base is None else MARGIN * abs(base.value - floor)


_AHEAD, _BEHIND = ("better", "better in places"), ("worse", "worse in places")
_NEITHER = ("no different", "not told apart")


def _under_both(findings: Findings, rival: str, alone: Word) -> tuple[Word, str]:
    """Returns the word when near and far damage are both matched, with a reason where it is another than near's alone.

    Where the forget suites were asked at the same far damage, too, both words must agree. Else whoever seems ahead must
    do no more far damage than the other: at the same it could only go further; of two that are no different neither.
    """
    better = True if alone in _AHEAD else False if alone in _BEHIND else None
    if alone != "not told apart" and (reason := damage.held_back(findings, rival, better=better)):
        return "not comparable", reason
    names = findings.damage.asked_at("far") if findings.damage else {}
    if MERGED.name in names and rival in names:
        one, other = names[MERGED.name], names[rival]
        rows = [(row, column) for column in to_forget(findings) if (row := findings.comparison(one, other, column))]
        far = together([word_for(findings, row, column) for row, column in rows])
        if far == alone or any({far, alone} <= {*words} for words in (_AHEAD, _BEHIND, _NEITHER)):
            return ("not told apart", "") if "not told apart" in (far, alone) else (alone, "")
        return "it depends", f"{alone} at the same damage near what must go, {far} at the same far from it"
    both = damage.far_damages(findings, rival)
    if both is None or alone == "not told apart":
        return alone, ""
    most = both[0] > both[1] if better is None else better
    ahead, behind = both if most else both[::-1]
    if ahead <= (1 + damage.ALIKE) * behind:
        return alone, ""
    who = "it" if most else phrase_of(rival)
    return "it depends", (
        f"{alone} at the same damage near what must go, where {who} does more far from it "
        f"({kl(ahead)} against {kl(behind)})"
    )


def together(words: Sequence[Word]) -> Word:
    """One word for several figures."""
    different = set(words)
    if not different:
        return "not comparable"
    if len(different) == 1:
        return words[0]
    if {"better", "worse"} <= different:
        return "better and worse"
    if "worse" in different:
        return "worse in places"
    return "better in places" if "better" in different else "not told apart"


def _by_place(words: Sequence[Word], columns: Sequence[Column]) -> str:
    """Which figures have which word, where they differ."""
    more: dict[Word, str] = {
        "better": "more",
        "worse": "less",
        "no different": "as much",
        "not told apart": "not told apart",
    }
    return ", ".join(
        f"{told} on {' and '.join(where(column) for one, column in zip(words, columns, strict=True) if one == word)}"
        for word, told in more.items()
        if word in words
    )
