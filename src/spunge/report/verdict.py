"""Says in plain words what a run shows: each sentence comes from a comparison and carries its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, TypeVar

from spunge.report import damage
from spunge.report.damage import VariantDamage, kl
from spunge.report.findings import Column, Findings, improvement
from spunge.report.robustness import Worst, worst_cases
from spunge.report.rows import Comparison, Ends
from spunge.report.tables import decimals, level, signed
from spunge.statistics import items_needed, seeds_needed
from spunge.variants import BASE, JOINT, MERGED, RANDOM_SPLIT, RIVALS, label_of, phrase_of

MARGIN = 0.05
"""How much of the base model's score on what must stay may go before it is called lost, and how far apart two variants
may be and still be called no different."""

FLUENCY_MARGIN = 0.25
"""How much the perplexity of what a model writes may grow, before it is said to write worse."""

HIDDEN = 0.1
"""How much of what was taken may come back under attack, before it is called hidden rather than gone."""

ONE_LETTER = 0.6
"""A model that answers so large a share of questions with one letter has not forgotten: it has stopped reading."""

NEARLY_ALL, MOST = 0.85, 0.5
"""The least that must be gone, interval and all, where nearly all or most is called forgotten."""

SMALL = 0.25
"""Where no more than so much can have gone, with no difference that stands, nothing measurable was forgotten."""

T = TypeVar("T")

GOOD, BAD, UNSURE = "good", "bad", "unsure"

Word = Literal[
    "better", "worse", "no different", "not told apart", "better in places", "worse in places", "it depends",
    "not comparable",
]  # fmt: skip
"""`no different`: surely within the margin. `not told apart`: so few items or seeds leave it open. `it depends`: on
whether damage near what must go or far from it is matched."""

_STATUS: dict[Word, str] = {
    "better": GOOD, "better in places": GOOD, "worse": BAD, "worse in places": BAD, "no different": UNSURE,
    "not told apart": UNSURE, "it depends": UNSURE, "not comparable": UNSURE,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One sentence of the verdict: whether it speaks for the method, what it says, and the figures behind it."""

    status: str
    text: str
    figures: str = ""


@dataclass(frozen=True)
class Number:
    """One figure of a first screen, in per cent or points, with what it comes to in a word."""

    label: str
    word: str
    status: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    n: int
    """Items."""

    @property
    def text(self) -> str:
        """The value with its interval, as many digits as that lets stand."""
        if self.value is None:
            return "—"
        write = signed if self.unit == "points" else _plain
        if self.low is None or self.high is None:
            return f"{write(self.value, 0)} {self.unit}"
        digits = decimals(self.low, self.high)
        ends = f"[{write(self.low, digits)}, {write(self.high, digits)}]"
        return f"{write(self.value, digits)} {self.unit} {ends}"


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


@dataclass(frozen=True)
class Group:
    """One value of what was split by: the share of what the base model had, beyond guessing, that SPUNGE still has."""

    value: str
    left: float
    low: float | None
    high: float | None
    n: int
    worse: bool
    """Whether SPUNGE does more of what must go there than the base model."""


@dataclass(frozen=True)
class Verdict:
    """The answer in a few sentences, and what it rests on."""

    sentences: tuple[str, ...]
    """What a user takes away, the most pressing first."""
    points: tuple[Point, ...] = ()
    numbers: tuple[Number, ...] = ()
    """Forgotten, kept, better than joint: each with its interval."""
    contests: tuple[Contest, ...] = ()
    """One for each rival that was run, the most telling first."""
    damage: tuple[VariantDamage, ...] = ()
    """What each variant does to the rest where it is compared; empty where that was not measured."""
    groups: tuple[Group, ...] = ()
    """The worst first."""

    @property
    def headline(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)


def verdict(findings: Findings) -> Verdict:
    """Judges SPUNGE against base, joint and the controls, on what must go and on what must stay."""
    if findings.runs:
        return _across(findings)
    variants = findings.main_variants
    lacking = [label_of(role.name) for role in (BASE, MERGED) if role.name not in variants]
    if lacking:
        return Verdict((f"No verdict yet: no answers of {' and '.join(lacking)} are here.",))
    forget, retain = findings.leading("forget"), findings.leading("retain")
    forgot = _present(forgetting(findings, column) for column in forget)
    forgot += _present(one_letter(findings, column) for column in forget)
    retained = _present(keeping(findings, column, MARGIN) for column in retain)
    retained += _present(keeping(findings, column, FLUENCY_MARGIN) for column in findings.fluency())
    contests = tuple(contest_with(findings, rival) for rival in RIVALS if rival in variants)
    beside = _present(contest(findings, column, JOINT.name) for column in retain)
    back = _present(recovery(one) for one in worst_cases(findings).values() if one.variant == MERGED.name)
    broken, groups = unscored(findings), group_shares(findings)
    spent = damage.by_variant(findings)
    sentences = [
        *_damaged(findings),
        *([] if _destroyed(findings) else _forgot(findings, forgot, retained)),
        *_seeds(findings),
        *_worst_group(findings, groups),
        *_compared(findings, contests, beside),
        *_back(back),
    ]
    if any(name == MERGED.name for _, name in findings.unscored):
        sentences = _damaged(findings)
    rivals = [point for one in contests for point in one.points]
    worse = [_worse_group(findings, group) for group in groups if group.worse]
    return Verdict(
        tuple(map(_tied, sentences)),
        (*broken, *worse, *forgot, *retained, *rivals, *beside, *back),
        (_forgotten_number(findings, forgot), _kept_number(findings, retained), _joint_number(findings, contests)),
        contests,
        spent,
        groups,
    )


def damages(findings: Findings, name: str) -> list[str]:
    """Says, for each retain suite and what tells of fluent language, what a variant lost beyond the margin."""
    allowed = dict.fromkeys(findings.fluency(), FLUENCY_MARGIN) | dict.fromkeys(findings.leading("retain"), MARGIN)
    lost = []
    for column, margin in allowed.items():
        point = keeping(findings, column, margin, name)
        if point is not None and point.status == BAD:
            lost.append(f"{column.metric.in_words} on {where(column)} {_fell(findings, column, name)}")
    return lost


def _fell(findings: Findings, column: Column, name: str, attribute: str | None = None, value: str | None = None) -> str:
    """What the base model scored and what a variant does, with as many digits as the vaguer of the two lets stand."""
    scores = [findings.score(one, column, attribute, value) for one in (BASE.name, name)]
    cells = [level(score, column).text for score in scores]
    digits = min(len(text.partition(".")[2]) for text in cells)
    factor, unit = (100, " %") if column.share else (1, "")
    before, after = ("—" if score is None else _plain(factor * score.value, digits) for score in scores)
    return f"{before} → {after}{unit}"


def forgetting(findings: Findings, column: Column) -> Point | None:
    """Says whether SPUNGE does less of what must go than the base model, and how much is left."""
    row = findings.comparison(MERGED.name, BASE.name, column)
    if row is None:
        return None
    status = _status(row, column)
    words = {GOOD: "fell", UNSURE: "did not change beyond chance", BAD: "went the wrong way"}[status]
    if column.higher_is_better and status == GOOD:
        words = "rose, as it should"
    gone = forgotten(findings, column)
    if status == GOOD and gone is not None:
        beyond = " beyond guessing" if findings.chance(column) else ""
        words += f"; {max(0.0, 100 * (1 - gone[0])):.0f} % of what the base model had{beyond} is left"
    figures = f"{_two(findings, column, BASE.name)}; {_difference(row, column)}"
    chance = findings.chance(column)
    figures += f"; guessing gives {100 * chance:.1f} %" if chance is not None else ""
    return Point(status, _tied(f"On {where(column)}, {column.metric.in_words} {words}."), _tied(figures))


def forgotten(
    findings: Findings, column: Column, name: str = MERGED.name, attribute: str | None = None, value: str | None = None
) -> tuple[float, float | None, float | None, int] | None:
    """Returns the share of what the base model had that a variant has lost, above guessing where that is known.

    With the ends of its interval, which take the base model's own score as it was measured, and the number of items;
    None where the figure rises as what must go goes, or the base model had nothing to lose.
    """
    base = findings.score(BASE.name, column, attribute, value)
    row = findings.comparison(name, BASE.name, column, attribute, value)
    floor = findings.chance(column) or 0.0
    if base is None or row is None or column.higher_is_better or base.value <= floor:
        return None
    had = base.value - floor
    low, high = (None, None) if row.ends is None else (-row.ends[1] / had, -row.ends[0] / had)
    return -row.difference / had, low, high, row.n


def group_shares(findings: Findings) -> tuple[Group, ...]:
    """Returns what is left of each value of what was split by, the worst first: a merge is as good as that."""
    attribute, groups = findings.results["split"]["attribute"], []
    for column in findings.leading("forget"):
        for value in findings.attributes(column).get(attribute, ()):
            gone = forgotten(findings, column, MERGED.name, attribute, value)
            row = findings.comparison(MERGED.name, BASE.name, column, attribute, value)
            if row is None:
                continue
            worse = improvement(row, column) < 0
            if gone is None:  # the base model had nothing to lose there, or no share can be told
                if worse:
                    groups.append(Group(value, 1.0, None, None, row.n, worse))
                continue
            share, low, high, n = gone
            ends = (None, None) if low is None or high is None else (1 - high, 1 - low)
            groups.append(Group(value, 1 - share, *ends, n, worse))
    return tuple(sorted(groups, key=lambda group: (not group.worse, -group.left)))


def _worse_group(findings: Findings, group: Group) -> Point:
    attribute = findings.results["split"]["attribute"]
    for column in findings.leading("forget"):
        row = findings.comparison(MERGED.name, BASE.name, column, attribute, group.value)
        if row is not None and improvement(row, column) < 0:
            text = f"On {where(column)}, SPUNGE made it worse for “{group.value}”, by {column.metric.in_words}."
            return Point(BAD, text, _tied(_difference(row, column)))
    raise AssertionError(f"{group.value} got worse on no column")


def _worst_group(findings: Findings, groups: Sequence[Group]) -> list[str]:
    """The worst value of what was split by, and whether the groups differ at all."""
    if worse := [group for group in groups if group.worse]:
        attribute = findings.results["split"]["attribute"]
        parts = [
            f"“{group.value}” ({_fell(findings, column, MERGED.name, attribute, group.value)})"
            for group in worse[:3]
            for column in findings.leading("forget")
            if (row := findings.comparison(MERGED.name, BASE.name, column, attribute, group.value))
            and improvement(row, column) < 0
        ]
        return [f"It made things worse for {' and '.join(parts)}: the model does more of what must go than before."]
    if len(groups) < 2:
        return []
    most, least = groups[0], groups[-1]
    shares = [f"{100 * max(0.0, group.left):.0f} %" for group in (most, least)]
    if most.low is None or least.high is None or most.low <= least.high:
        return []  # which of them is worst is chance
    return [
        f"Of {len(groups)} groups most is left of “{most.value}” ({shares[0]}), least of “{least.value}” ({shares[1]})."
    ]


def one_letter(findings: Findings, column: Column) -> Point | None:
    """Warns of a model that answers nearly everything with one choice where the base model does not."""
    letters = findings.suites[column.suite]["letters"] or {}
    base, merged = (max(letters.get(role.name, [0.0])) for role in (BASE, MERGED))
    if merged < ONE_LETTER or base >= ONE_LETTER:
        return None
    figures = f"the most frequent choice: {100 * base:.0f} % → {100 * merged:.0f} % of the answers"
    return Point(BAD, f"On {where(column)}, SPUNGE gives nearly always the same answer.", _tied(figures))


def keeping(findings: Findings, column: Column, allowed: float, name: str = MERGED.name) -> Point | None:
    """Says whether SPUNGE, or another variant, is within the margin of the base on what must stay (non-inferiority)."""
    row, base = findings.comparison(name, BASE.name, column), findings.score(BASE.name, column)
    if row is None or base is None:
        return None
    # Of a share that is nearly 0 to begin with, such as degenerate completions, no share is a margin: points are.
    fluency = column.share and column.metric.better in ("high", "low")
    margin = MARGIN if fluency else allowed * abs(base.value)
    amount = f"{100 * MARGIN:.0f} points" if fluency else f"{100 * allowed:.0f} %"
    sign = 1 if column.higher_is_better else -1
    # The rule of three: n items without a loss leave room for a loss on 3/n of all.
    if row.ends is None or (column.share and row.n * margin < 3):
        few = "of so few items it cannot be told"
        status, words = UNSURE, f"may or may not be within {amount} of the base model's: {few}"
    else:
        worst, best = sorted(sign * end for end in row.ends)
        if worst >= -margin:
            status, words = GOOD, f"stayed within {amount} of the base model's"
        elif best < -margin:
            status, words = BAD, f"is more than {amount} worse than the base model's"
        elif best < 0:
            status, words = UNSURE, f"got worse; whether by more than {amount} is not settled"
        else:
            status, words = UNSURE, f"may or may not be within {amount} of the base model's"
    figures = f"{_two(findings, column, BASE.name, name)}; {_difference(row, column)}"
    return Point(status, _tied(f"On {where(column)}, {column.metric.in_words} {words}."), _tied(figures))


def unscored(findings: Findings) -> list[Point]:
    """Warns of every variant that could not be scored on some items: such a model is broken, and has not forgotten."""
    points = []
    for (suite, variant), (lost, n) in findings.unscored.items():
        text = f"On “{suite}”, {label_of(variant)} could not be scored on every item, for NaN."
        figures = f"{lost} of {n} items; it has no score there"
        points.append(Point(BAD, text, _tied(figures)))
    return points


def word_for(findings: Findings, row: Comparison, column: Column) -> Word:
    """Returns the word of one comparison: whether it stands, and whether it surely lies within the margin."""
    base = findings.score(BASE.name, column)
    floor = (findings.chance(column) or 0.0) if column.goal == "forget" else 0.0
    margin = 0.0 if base is None else MARGIN * abs(base.value - floor)
    if row.ends is not None and -margin <= row.ends[0] and row.ends[1] <= margin:
        return "no different"
    return {1: "better", 0: "not told apart", -1: "worse"}[improvement(row, column)]  # type: ignore[return-value]


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
        "not told apart": f"{label_of(one)} and {other} are not told apart{_enough(findings, row, column)}",
    }[word]
    figures = f"{_two(findings, column, rival, one)}; {_difference(row, column)}"
    return Point(_STATUS[word], _tied(f"On {where(column)}, {words}."), _tied(figures))


def _enough(findings: Findings, row: Comparison, column: Column) -> str:
    """How many items or seeds would tell two variants apart that differ by what these seem to, or by the margin."""
    base = findings.score(BASE.name, column)
    if row.spread is None or base is None or row.n < 10:
        return " (so few items tell nothing)"
    floor = (findings.chance(column) or 0.0) if column.goal == "forget" else 0.0
    apart = max(abs(row.difference), MARGIN * abs(base.value - floor))
    items, seeds = items_needed(row.spread, apart), seeds_needed(row.spread, apart)
    if items is not None and items > row.n:
        return f" (about {_rounded(items)} items would tell)"
    return f" ({seeds} seeds would tell)" if seeds is not None and seeds > row.seeds else " (more seeds would tell)"


def contest_with(findings: Findings, rival: str, one: str = MERGED.name) -> Contest:
    """Returns the contest with one rival on all that must go, in one word and one line."""
    columns = [column for column in findings.leading("forget") if findings.comparison(one, rival, column)]
    points = tuple(_present(contest(findings, column, rival, one) for column in columns))
    rows = [(row, column) for column in columns if (row := findings.comparison(one, rival, column))]
    alone = _together([word_for(findings, row, column) for row, column in rows])
    word, caveat = _under_both(findings, rival, alone)
    parts = [f"{_difference(row, column)}{f' on {where(column)}' if len(rows) > 1 else ''}" for row, column in rows]
    enough = _enough(findings, *rows[0]) if word == "not told apart" and len(rows) == 1 else ""
    words = f"no different within {100 * MARGIN:.0f} %" if word == "no different" else word
    text = f"Against {phrase_of(rival)}: {words}{enough}; {'; '.join([*parts, *([caveat] if caveat else [])])}."
    size = _size(*rows[0]) if len(rows) == 1 else ""
    return Contest(rival, word, _STATUS[word], _tied(text), points, damage.matched(findings, rival), caveat, size)


_AHEAD, _BEHIND = ("better", "better in places"), ("worse", "worse in places")


def _under_both(findings: Findings, rival: str, alone: Word) -> tuple[Word, str]:
    """Returns the word when near and far damage are both matched, with a reason where it is another than near's alone.

    Where the forget suites were asked at the same far damage, too, both words must agree. Else whoever seems ahead must
    do no more far damage than the other: at the same it could only go further.
    """
    if alone not in (*_AHEAD, *_BEHIND):
        return alone, ""
    better = alone in _AHEAD
    if reason := damage.unreached(findings, rival, better=better):
        return "not comparable", reason
    names = findings.damage.asked_at("far") if findings.damage else {}
    if MERGED.name in names and rival in names:
        one, other = names[MERGED.name], names[rival]
        columns = findings.leading("forget")
        rows = [(row, column) for column in columns if (row := findings.comparison(one, other, column))]
        far = _together([word_for(findings, row, column) for row, column in rows])
        if far in (_AHEAD if better else _BEHIND):
            return alone, ""
        return "it depends", f"{alone} at the same damage near what must go, {far} at the same far from it"
    if (both := damage.far_damages(findings, rival)) is None:
        return alone, ""
    ahead, behind = both if better else both[::-1]
    if ahead <= (1 + damage.ALIKE) * behind:
        return alone, ""
    who = "it" if better else phrase_of(rival)
    return "it depends", (
        f"{alone} at the same damage near what must go, where {who} does more far from it "
        f"({kl(ahead)} against {kl(behind)})"
    )


def _together(words: Sequence[Word]) -> Word:
    """One word for several figures."""
    different = set(words)
    if not different:
        return "not comparable"
    if len(different) == 1:
        return words[0]
    if "worse" in different:
        return "worse in places"
    return "better in places" if "better" in different else "not told apart"


def recovery(worst: Worst) -> Point | None:
    """Says how much of what was taken the attack that brought most back did bring back."""
    if worst.ends is None:
        return None
    low, high = worst.ends
    status = BAD if low > HIDDEN else GOOD if high < HIDDEN else UNSURE
    figures = (
        f"{100 * worst.recovered:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of it, the worst of {worst.row['tried']} "
        f"settings, n = {worst.row['n']}"
    )
    text = f"On {where(worst.column)}, {worst.told}."
    return Point(status, text, _tied(figures.replace("-", "−")))


def where(column: Column) -> str:
    """Returns where a column was measured, in words."""
    return f"“{column.name}”"


def _across(findings: Findings) -> Verdict:
    """Judges the merged models of several runs against the first run's."""
    points: list[Point] = []
    sentences = []
    for one, rival in findings.pairs:
        if rival == BASE.name:
            continue
        by_goal = {
            goal: _present(contest(findings, column, rival, one) for column in findings.leading(goal))
            for goal in ("forget", "retain")
        }
        points += [*by_goal["forget"], *by_goal["retain"]]
        gone, stayed = _ahead(by_goal["forget"]), _ahead(by_goal["retain"])
        words = f"{gone} on what must go, {stayed} on what must stay" if gone != stayed else f"{gone} on either side"
        sentences.append(f"Against “{rival}”, “{one}” is {words}.")
    return Verdict(tuple(sentences) or ("Only one of these runs has a merged model.",), tuple(points))


def _ahead(points: Sequence[Point]) -> str:
    statuses = {point.status for point in points}
    if {GOOD, BAD} <= statuses:
        return "better in places and worse in others"
    return "better" if GOOD in statuses else "worse" if BAD in statuses else "no different beyond chance"


def _damaged(findings: Findings) -> list[str]:
    """What must be known before any other sentence: a broken model has not forgotten."""
    sentences = []
    for name in [name for name in (MERGED.name, *RIVALS) if any(name == broken for _, broken in findings.unscored)]:
        suites = " and ".join(f"“{suite}”" for suite, broken in findings.unscored if broken == name)
        none = "No verdict: " if name == MERGED.name else ""
        sentence = f"{none}{phrase_of(name)} gave NaN on {suites}: a broken model, and not one that forgot."
        sentences.append(_capital(sentence))
    if lost := damages(findings, MERGED.name):
        fluent = any(
            (point := keeping(findings, column, FLUENCY_MARGIN)) is not None and point.status == BAD
            for column in findings.fluency()
        )
        much = " and writes no fluent text any more" if fluent and _wrecked(findings) else ""
        verb = "destroyed" if _destroyed(findings) else "damaged"
        sentences.append(f"SPUNGE {verb} the model{much}: {'; '.join(lost)}.")
        if verb == "destroyed":
            sentences.append("Such a model fails at what must go as well, which is no sign of forgetting.")
    return sentences


def _destroyed(findings: Findings) -> bool:
    """Whether half of what the base model had of anything that must stay is gone, or its fluency."""
    for column in findings.leading("retain"):
        base, merged = findings.score(BASE.name, column), findings.score(MERGED.name, column)
        floor = findings.chance(column) or 0.0
        if base is None or merged is None or not column.share or base.value <= floor:
            continue
        point = keeping(findings, column, MARGIN)
        lost = point is not None and point.status == BAD
        if lost and column.higher_is_better and merged.value - floor <= (base.value - floor) / 2:
            return True
    return _wrecked(findings)


def _wrecked(findings: Findings) -> bool:
    """Whether what SPUNGE writes surprises the judge more than twice as much as what the base model writes."""
    for column in findings.fluency():
        base, merged = findings.score(BASE.name, column), findings.score(MERGED.name, column)
        if base is not None and merged is not None and column.metric.better == "low" and merged.value > 2 * base.value:
            return True
    return False


def _compared(findings: Findings, contests: Sequence[Contest], beside: Sequence[Point]) -> list[str]:
    """What the contests come to, as far as they are of models that left the rest as it was."""
    merged, joint = damages(findings, MERGED.name), damages(findings, JOINT.name)
    if bool(merged) == bool(joint) and (not merged or damage.matched(findings, JOINT.name)):
        return [*_against_joint(findings, contests), *_controls(contests), *_beside(beside)]
    if JOINT.name not in findings.main_variants:
        return ["A model that lost so much cannot be compared."]
    if joint:
        words = "both damaged the model" if merged else f"joint unlearning damaged the model ({'; '.join(joint)})"
    else:
        words = "joint left the rest as it was, and SPUNGE did not"
    return [f"SPUNGE and joint unlearning cannot be compared: {words}.", *([] if merged else _controls(contests))]


def _against_joint(findings: Findings, contests: Sequence[Contest]) -> list[str]:
    """The contest with joint unlearning, at the same damage where that was matched."""
    joint = next((one for one in contests if one.rival == JOINT.name), None)
    if joint is None:
        return ["It was not compared with joint unlearning."]
    at = f"At the same damage to the rest ({damage.budget(findings)})" if joint.matched else "Each at its own strength,"
    rows = [(row, c) for c in findings.leading("forget") if (row := findings.comparison(MERGED.name, JOINT.name, c))]
    by = f", by {_size(*rows[0])}, n = {_count(rows[0][0])}" if len(rows) == 1 else ""
    enough = _enough(findings, *rows[0]) if len(rows) == 1 else ""
    words: dict[Word, str] = {
        "better": f"it forgot more than joint unlearning{by}",
        "worse": f"joint unlearning forgot more{by}",
        "better in places": "it forgot more than joint unlearning in some places, and is not told apart in others",
        "worse in places": "joint unlearning forgot more in some places",
        "no different": f"it is no different from joint unlearning within {100 * MARGIN:.0f} %",
        "not told apart": f"it is not told apart from joint unlearning{enough}",
        "it depends": f"it depends on which damage is meant: it is {joint.caveat}",
        "not comparable": f"it cannot be compared with joint unlearning: {joint.caveat}",
    }
    sentences = [f"{at} {words[joint.word]}."]
    if not joint.matched:
        sentences.append("The two may have done different damage, which was not measured.")
    return [*sentences, *_at_one(findings)]


def _at_one(findings: Findings) -> list[str]:
    """Says what the two do at λ = 1, where that is not the same damage: what was forgotten there, if it was asked."""
    if (both := damage.at_one(findings)) is None:
        return []
    names = findings.damage.asked_at("own") if findings.damage else {}
    rows = [
        (row, column)
        for column in findings.leading("forget")
        if (row := findings.comparison(names.get(MERGED.name, ""), names.get(JOINT.name, ""), column))
    ]
    unlike = f"SPUNGE does damage of {kl(both[0])} there and joint of {kl(both[1])}: that is not like for like"
    if not rows:
        return [f"At λ = 1 they cannot be compared: {unlike}."]
    word = _together([word_for(findings, row, column) for row, column in rows])
    at_one = {"better": "forgot more than joint", "worse": "forgot less than joint"}
    return [f"At λ = 1 it {at_one.get(word, f'is {word}')}, but {unlike}."]


def _controls(contests: Sequence[Contest]) -> list[str]:
    """The random split stands in every headline: splitting and merging alone can earn what the attribute seems to."""
    words: dict[Word, str] = {
        "better": "better than {}", "better in places": "better than {} in some places", "worse": "worse than {}",
        "worse in places": "worse than {} in some places", "no different": "no different from {}",
        "not told apart": "not told apart from {}", "not comparable": "not comparable with {}",
        "it depends": "better or worse than {} by which damage is matched",
    }  # fmt: skip
    met = {one.rival: one for one in contests if one.rival != JOINT.name}
    parts = [
        words[one.word].format(phrase_of(one.rival))
        + (f" (by {one.size})" if one.size and one.word in ("better", "worse") else "")
        for one in met.values()
    ]
    sentences = [f"Of the controls, it is {'; '.join(parts)}."] if parts else []
    gained = any(one.word in ("better", "better in places") for one in contests if one.rival != RANDOM_SPLIT.name)
    if RANDOM_SPLIT.name not in met:
        return [*sentences, "A random split was not run: what the attribute earns is not known."]
    if gained and met[RANDOM_SPLIT.name].word not in ("better", "better in places"):
        sentences.append("So what it gains may come of splitting and merging alone, not of what was split by.")
    return sentences


def _beside(points: Sequence[Point]) -> list[str]:
    """Says what forgetting more, or no more, than joint cost on what must stay."""
    statuses = {point.status for point in points}
    if {GOOD, BAD} <= statuses:
        return ["Beside joint it kept more of some things that must stay and less of others."]
    if BAD in statuses:
        return ["It kept less of the rest than joint did."]
    return ["It kept more of the rest than joint did."] if GOOD in statuses else []


def _seeds(findings: Findings) -> list[str]:
    """What the seeds leave open: one says nothing of the method, several may disagree."""
    seeds = findings.results["provenance"]["seeds"]
    if len(seeds) < 2:
        return ["This is one seed: of another training the intervals say nothing."]
    sentences = []
    for column in findings.leading("forget"):
        apart = [
            (one.value - other.value) * (1 if column.higher_is_better else -1)
            for seed in seeds
            if (one := findings.score_of_seed(MERGED.name, seed, column))
            and (other := findings.score_of_seed(JOINT.name, seed, column))
        ]
        row = findings.comparison(MERGED.name, JOINT.name, column)
        spread = row.spread if row else None
        # Seeds differ by the chance of their items anyway; they disagree where that is not what separates them.
        if spread and min(apart) < 0 < max(apart) and spread.seed_variance > spread.unit_variance:
            more = sum(value > 0 for value in apart)
            sentences.append(
                f"The {len(apart)} seeds disagree: on {where(column)} SPUNGE forgot more than joint in {more}, less in "
                f"{sum(value < 0 for value in apart)}."
            )
    return sentences


def _forgot(findings: Findings, points: Sequence[Point], retained: Sequence[Point]) -> list[str]:
    """What is gone, at which λ, and whether the rest stayed."""
    bound, statuses = at_most(findings), {point.status for point in points}
    strength = next((one for one in damage.by_variant(findings) if one.variant == MERGED.name), None)
    at = "" if strength is None else f", at λ = {strength.scale:.3g}"
    kept = f"kept the rest within {100 * MARGIN:.0f} %"
    worst, rest = _worst(points), _worst(retained)
    if points and bound is not None and bound <= SMALL and statuses == {UNSURE}:
        first = f"SPUNGE forgot nothing measurable (at most {max(1, round(100 * bound))} % of what it should{at})"
    elif worst == GOOD:
        shares = _present(forgotten(findings, column) for column in findings.leading("forget"))
        least = min((low if low is not None else 0.0 for _, low, _, _ in shares), default=0.0)
        amount = "nearly all" if least >= NEARLY_ALL else "most" if least >= MOST else "some"
        number = _forgotten_number(findings, points)
        share = f" ({number.text}{at})" if number.value is not None else ""
        first = f"SPUNGE forgot {amount} of what it should{share}"
        if rest == GOOD:
            return [f"{first}, and {kept}."]
        if rest == BAD:
            first += "; part of that may be the damage"
    elif worst == BAD:
        first = " ".join(point.text for point in points if point.status == BAD).rstrip(".")
    else:
        first = {
            UNSURE: f"It is not shown that SPUNGE forgot all it should{_few(findings)}",
            None: "Nothing here measures what must go",
        }[worst]
    who = "SPUNGE" if worst == BAD else "It"
    words = {
        GOOD: [f"{who} {kept}."], BAD: [], UNSURE: ["Whether enough of the rest stayed is not settled."],
        None: ["Nothing measures what must stay."],
    }  # fmt: skip
    return [f"{first}.", *words[rest]]


def _few(findings: Findings) -> str:
    counts = [row.n for c in findings.leading("forget") if (row := findings.comparison(MERGED.name, BASE.name, c))]
    return f": {min(counts)} items are too few to tell" if counts and min(counts) < 10 else ""


def at_most(findings: Findings) -> float | None:
    """Returns the largest share of what the base model had, beyond guessing, that SPUNGE may have lost: 95 % sure."""
    shares = [forgotten(findings, column) for column in findings.leading("forget")]
    bounds = [share[2] for share in shares if share is not None and share[2] is not None]
    return max(0.0, *bounds) if bounds and len(bounds) == len(shares) else None


def _forgotten_number(findings: Findings, points: Sequence[Point]) -> Number:
    """The share of what must go that is gone, every headline figure counting the same."""
    shares = _present(forgotten(findings, column) for column in findings.leading("forget"))
    worst = _worst(points)
    words = {GOOD: "forgotten", UNSURE: "not settled", BAD: "went wrong", None: "not measured"}
    if not shares:
        return Number("Forgotten", words[worst], worst or UNSURE, None, None, None, "%", 0)
    # Below guessing is not more than forgotten.
    capped = [(min(share, 1.0), low, high and min(high, 1.0)) for share, low, high, _ in shares]
    value, ends = _mean(capped)
    n = sum(n for *_, n in shares)
    return Number("Forgotten", words[worst], worst or UNSURE, value, *ends, "%", n)


def _kept_number(findings: Findings, points: Sequence[Point]) -> Number:
    """What is kept of what must stay, of the suite that lost most: a perplexity turned over."""
    shares = []
    for column in findings.leading("retain"):
        row = findings.comparison(MERGED.name, BASE.name, column)
        if row is None or row.relative is None or row.relative_ends is None:
            continue
        ends = tuple(1 + end for end in row.relative_ends)
        value = 1 + row.relative
        if not column.higher_is_better and min(value, *ends) > 0:
            value, ends = 1 / value, (1 / ends[1], 1 / ends[0])
        shares.append((value, ends[0], ends[1], row.n, column.name))
    worst = _worst(points)
    words = {GOOD: f"within {100 * MARGIN:.0f} %", UNSURE: "not settled", BAD: "damaged", None: "not measured"}
    if not shares:
        return Number("Kept", words[worst], worst or UNSURE, None, None, None, "%", 0)
    value, low, high, n, name = min(shares)
    label = "Kept" if len(shares) == 1 else f"Kept (least: {name})"
    return Number(label, words[worst], worst or UNSURE, 100 * value, 100 * low, 100 * high, "%", n)


def _joint_number(findings: Findings, contests: Sequence[Contest]) -> Number:
    """How much more than joint unlearning was forgotten, in points of the headline figures, each counting the same."""
    joint = next((one for one in contests if one.rival == JOINT.name), None)
    label = "Better than joint" + (" at the same damage" if joint and joint.matched else "")
    if joint is None:
        return Number(label, "not compared", UNSURE, None, None, None, "points", 0)
    apart, n = [], 0
    for column in findings.leading("forget"):
        row = findings.comparison(MERGED.name, JOINT.name, column)
        if row is not None and column.share:
            sign = 1 if column.higher_is_better else -1
            low, high = (None, None) if row.ends is None else sorted(sign * end for end in row.ends)
            apart.append((sign * row.difference, low, high))
            n += row.n
    if not apart:
        return Number(label, joint.word, joint.status, None, None, None, "points", 0)
    value, ends = _mean(apart)
    return Number(label, joint.word, joint.status, value, *ends, "points", n)


def _mean(
    values: Sequence[tuple[float, float | None, float | None]],
) -> tuple[float, tuple[float | None, float | None]]:
    """The mean of shares with its interval, in per cent, as if they were independent of each other."""
    mean = sum(value for value, _, _ in values) / len(values)
    if any(low is None or high is None for _, low, high in values):
        return 100 * mean, (None, None)
    below = sqrt(sum((value - (low or 0.0)) ** 2 for value, low, _ in values)) / len(values)
    above = sqrt(sum(((high or 0.0) - value) ** 2 for value, _, high in values)) / len(values)
    return 100 * mean, (100 * (mean - below), 100 * (mean + above))


def _back(points: Sequence[Point]) -> list[str]:
    words = {
        BAD: "An attack brought part of what was forgotten back.",
        UNSURE: "Whether an attack brings it back is not settled.",
        GOOD: "The attacks that were tried brought little back.",
    }
    return [words[worst]] if (worst := _worst(points)) else []


def _present(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _status(row: Comparison, column: Column) -> str:
    return {1: GOOD, 0: UNSURE, -1: BAD}[improvement(row, column)]


def _worst(points: Iterable[Point]) -> str | None:
    statuses = {point.status for point in points}
    return next((status for status in (BAD, UNSURE, GOOD) if status in statuses), None)


def _two(findings: Findings, column: Column, rival: str, one: str = MERGED.name) -> str:
    unit = " %" if column.share else ""
    theirs, ours = (level(findings.score(name, column), column).text for name in (rival, one))
    return f"{label_of(rival)} {theirs}{unit}, {label_of(one)} {ours}{unit}"


def _difference(row: Comparison, column: Column) -> str:
    factor, unit = (100, " points") if column.share else (1, "")
    digits = decimals(*(factor * end for end in row.ends)) if row.ends else 1
    text = f"difference {signed(row.difference * factor, digits)}{unit}{_interval(row.ends, factor, digits)}"
    if row.p is not None:
        text += ", p < 0.001" if row.p < 0.001 else f", p = {row.p:.3f}"
    return f"{text}, n = {_count(row)}"


def _size(row: Comparison, column: Column) -> str:
    """A difference without its sign, for a sentence that says who is ahead."""
    factor, unit = (100, " points") if column.share else (1, f" of {column.metric.in_words}")
    if row.ends is None:
        return f"{abs(row.difference) * factor:.0f}{unit}"
    low, high = sorted(abs(end) for end in row.ends) if row.stands else row.ends
    digits = decimals(low * factor, high * factor)
    ends = f"[{_plain(low * factor, digits)}, {_plain(high * factor, digits)}]"
    return f"{_plain(abs(row.difference) * factor, digits)}{unit} {ends}"


def _count(row: Comparison) -> str:
    clusters = f" in {row.clusters} clusters" if row.clusters else ""
    return f"{row.n}{clusters} × {row.seeds} seeds" if row.seeds > 1 else f"{row.n}{clusters}"


def _interval(ends: Ends | None, factor: float, digits: int) -> str:
    return f" [{', '.join(signed(end * factor, digits) for end in ends)}]" if ends else ""


def _rounded(count: int) -> str:
    """A number of items to two digits: it is only about so many."""
    power = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // power) * power:,}"


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tied(figures: str) -> str:
    """Keeps a number and its unit on one line."""
    for pair in (" %", " points", "p = ", "p < ", "n = "):
        figures = figures.replace(pair, pair.replace(" ", "\u00a0"))
    return figures
