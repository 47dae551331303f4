"""Says in plain words what a run shows: each sentence comes from a comparison and carries its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spunge.report.findings import Column, Findings, Row, improvement
from spunge.report.rows import Comparison
from spunge.report.tables import level, signed
from spunge.variants import (
    BASE,
    JOINT,
    JOINT_EQUAL_STEPS,
    MERGED,
    RANDOM_SPLIT,
    RIVALS,
    SEQUENTIAL,
    label_of,
    phrase_of,
)

MARGIN = 0.05
"""How much of the base model's score on what must stay may go, before it is called lost."""

FLUENCY_MARGIN = 0.25
"""How much the perplexity of what a model writes may grow, before it is said to write worse."""

HIDDEN = 0.1
"""How much of what was taken may come back under attack, before it is called hidden rather than gone."""

ONE_LETTER = 0.6
"""A model that answers so large a share of questions with one letter has not forgotten: it has stopped reading."""

NEARLY_ALL, MOST = 0.1, 0.5
"""No more than so much is left where nearly all, or most, of what the base model had is called forgotten."""

SMALL = 0.25
"""Where no more than so much can have gone, with no difference beyond chance, nothing measurable was forgotten."""

GOOD, BAD, UNSURE = "good", "bad", "unsure"


@dataclass(frozen=True)
class Point:
    """One sentence of the verdict: whether it speaks for the method, what it says, and the figures behind it."""

    status: str
    text: str
    figures: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer in a few sentences, and the points it rests on."""

    headline: str
    points: Sequence[Point] = ()


def verdict(findings: Findings) -> Verdict:
    """Judges SPUNGE against base, joint and the controls, on what must go and on what must stay."""
    if findings.runs:
        return _across(findings)
    variants = findings.main_variants
    lacking = [label_of(role.name) for role in (BASE, MERGED) if role.name not in variants]
    if lacking:
        return Verdict(f"No verdict yet: no answers of {' and '.join(lacking)} are here.")
    forget, retain = findings.leading("forget"), findings.leading("retain")
    forgot = _known(forgetting(findings, column) for column in forget)
    forgot += _known(one_letter(findings, column) for column in forget)
    kept = _known(keeping(findings, column, MARGIN) for column in retain)
    kept += _known(keeping(findings, column, FLUENCY_MARGIN) for column in findings.fluency())
    contests = {
        rival: _known(contest(findings, column, rival) for column in forget) for rival in RIVALS if rival in variants
    }
    beside = _known(contest(findings, column, JOINT.name) for column in retain)
    back = _known(recovery(attack, column, rows) for (attack, column), rows in findings.attacks.items())
    shares = [share for column in forget if (share := left(findings, column)) is not None]
    broken, groups = unscored(findings), worse_groups(findings)
    sentences = [
        *_damaged(findings),
        f"{_forgot(findings, forgot, shares)}{_kept(kept)}.",
        *(["It made things worse for a group: see below."] if groups else []),
        *(_incomparable(findings) or [*_better(contests), *_controls(contests), *_beside(contests, beside)]),
        *_back(back),
    ]
    if any(name == MERGED.name for _, name in findings.unscored):
        sentences = _damaged(findings)
    rivals = (point for found in contests.values() for point in found)
    return Verdict(" ".join(sentences), [*broken, *groups, *forgot, *kept, *rivals, *beside, *back])


def damage(findings: Findings, name: str) -> list[str]:
    """Says, for each retain suite and what tells of fluent language, what a variant lost beyond the margin."""
    allowed = dict.fromkeys(findings.leading("retain"), MARGIN)
    allowed |= dict.fromkeys(findings.fluency(), FLUENCY_MARGIN)
    lost = []
    for column, margin in allowed.items():
        point = keeping(findings, column, margin, name)
        if point is not None and point.status == BAD:
            unit = " %" if column.share else ""
            before, after = (level(findings.score(one, column), column).text for one in (BASE.name, name))
            lost.append(f"{column.metric.in_words} on {where(column)} {before} → {after}{unit}")
    return [_tied(text) for text in lost]


def worse_groups(findings: Findings) -> list[Point]:
    """Warns of every value of what was split by on which SPUNGE does more of what must go than the base model."""
    attribute, points = findings.results["split"]["attribute"], []
    for column in findings.leading("forget"):
        for value in findings.attributes(column).get(attribute, ()):
            row = findings.comparison(MERGED.name, BASE.name, column, attribute, value)
            if row is not None and improvement(row, column) < 0 and row.q is not None and row.q < 0.05:
                text = f"On {where(column)}, SPUNGE made it worse for “{value}”, by {column.metric.in_words}."
                points.append(Point(BAD, text, _tied(_difference(row, column))))
    return points


def forgetting(findings: Findings, column: Column) -> Point | None:
    """Says whether SPUNGE does less of what must go than the base model, and how much is left."""
    row = findings.comparison(MERGED.name, BASE.name, column)
    if row is None:
        return None
    status = _status(row, column)
    told = {GOOD: "fell", UNSURE: "did not change beyond chance", BAD: "went the wrong way"}[status]
    if column.higher_is_better and status == GOOD:
        told = "rose, as it should"
    share = left(findings, column)
    if status == GOOD and share is not None:
        beyond = " beyond guessing" if findings.chance(column) else ""
        told += f"; {max(0.0, 100 * share):.0f} % of what the base model had{beyond} is left"
    figures = f"{_two(findings, column, BASE.name)}; {_difference(row, column)}"
    chance = findings.chance(column)
    figures += f"; guessing gives {100 * chance:.1f} %" if chance is not None else ""
    return Point(status, f"On {where(column)}, {column.metric.in_words} {_tied(told)}.", _tied(figures))


def left(findings: Findings, column: Column) -> float | None:
    """Returns the share of what the base model had that SPUNGE still has, above guessing where that is known."""
    base, spunge = findings.score(BASE.name, column), findings.score(MERGED.name, column)
    floor = findings.chance(column) or 0.0
    if base is None or spunge is None or column.higher_is_better or base.value <= floor:
        return None
    return (spunge.value - floor) / (base.value - floor)


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
    margin = allowed * abs(base.value)
    sign = 1 if column.higher_is_better else -1
    # The rule of three: n items without a loss leave room for a loss on 3/n of all.
    if row.ends is None or (column.share and row.n * margin < 3):
        few = "of so few items it cannot be told"
        status, told = UNSURE, f"may or may not be within {100 * allowed:.0f} % of the base model's: {few}"
    else:
        worst, best = sorted(sign * end for end in row.ends)
        if worst >= -margin:
            status, told = GOOD, f"stayed within {100 * allowed:.0f} % of the base model's"
        elif best < -margin:
            status, told = BAD, f"is more than {100 * allowed:.0f} % worse than the base model's"
        elif best < 0:
            status, told = UNSURE, f"got worse; whether by more than {100 * allowed:.0f} % is not settled"
        else:
            status, told = UNSURE, f"may or may not be within {100 * allowed:.0f} % of the base model's"
    figures = f"{_two(findings, column, BASE.name)}; {_difference(row, column)}"
    return Point(status, f"On {where(column)}, {column.metric.in_words} {_tied(told)}.", _tied(figures))


def unscored(findings: Findings) -> list[Point]:
    """Warns of every variant that could not be scored on some items: such a model is broken, and has not forgotten."""
    points = []
    for (suite, variant), (lost, n) in findings.unscored.items():
        text = f"On “{suite}”, {label_of(variant)} could not be scored on every item, for NaN."
        figures = f"{lost} of {n} items; it has no score there"
        points.append(Point(BAD, text, _tied(figures)))
    return points


def contest(findings: Findings, column: Column, rival: str, one: str = MERGED.name) -> Point | None:
    """Says whether SPUNGE, or another variant, is better than a rival, beyond chance."""
    row = findings.comparison(one, rival, column)
    if row is None:
        return None
    status = _status(row, column)
    did = "forgot" if column.goal == "forget" else "kept"
    other = phrase_of(rival)
    told = {
        GOOD: f"{label_of(one)} {did} more than {other}",
        UNSURE: f"{label_of(one)} and {other} {did} about as much, as far as these items tell",
        BAD: f"{label_of(one)} {did} less than {other}",
    }[status]
    figures = f"{_two(findings, column, rival, one)}; {_difference(row, column)}"
    return Point(status, f"On {where(column)}, {told}.", _tied(figures))


def recovery(attack: str, column: Column, rows: Sequence[Row]) -> Point | None:
    """Says how much of what SPUNGE took the hardest setting of an attack brought back."""
    mine = [row for row in rows if row["variant"] == MERGED.name and row["recovered"] is not None]
    if column.goal != "forget" or not mine:
        return None
    worst = max(mine, key=lambda row: row["recovered"])
    low, high = worst["recovered_low"], worst["recovered_high"]
    if low is None or high is None:
        return None
    status = BAD if low > HIDDEN else GOOD if high < HIDDEN else UNSURE
    told = {GOOD: "brought little back", UNSURE: "may have brought some back", BAD: "brought part of it back"}[status]
    figures = (
        f"{worst['setting']}: {100 * worst['recovered']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of what SPUNGE "
    )
    figures += f"took, n = {worst['n']}"
    return Point(status, f"On {where(column)}, the attack “{attack}” {told}.", _tied(figures.replace("-", "−")))


def where(column: Column) -> str:
    """Returns where a column was measured, in words."""
    return f"“{column.name}”"


def _across(findings: Findings) -> Verdict:
    """Judges the merged models of several runs against the first run's."""
    points, sentences = [], []
    for one, rival in findings.pairs:
        if rival == BASE.name:
            continue
        found = {
            goal: _known(contest(findings, column, rival, one) for column in findings.leading(goal))
            for goal in ("forget", "retain")
        }
        points += [*found["forget"], *found["retain"]]
        gone, kept = _ahead(found["forget"]), _ahead(found["retain"])
        told = f"{gone} on what must go, {kept} on what must stay" if gone != kept else f"{gone} on either side"
        sentences.append(f"Against “{rival}”, “{one}” is {told}.")
    return Verdict(" ".join(sentences) or "Only one of these runs has a merged model.", points)


def _ahead(points: Sequence[Point]) -> str:
    found = {point.status for point in points}
    if {GOOD, BAD} <= found:
        return "better in places and worse in others"
    return "better" if GOOD in found else "worse" if BAD in found else "no different beyond chance"


def _damaged(findings: Findings) -> list[str]:
    """What must be known before any other sentence: a broken model has not forgotten."""
    sentences = []
    for name in [name for name in (MERGED.name, *RIVALS) if any(name == broken for _, broken in findings.unscored)]:
        suites = " and ".join(f"“{suite}”" for suite, broken in findings.unscored if broken == name)
        sentences.append(f"{_capital(phrase_of(name))} gave NaN on {suites}: a broken model, and not one that forgot.")
    if lost := damage(findings, MERGED.name):
        sentences.append(f"SPUNGE damaged the model: {'; '.join(lost)}.")
    return sentences


def _incomparable(findings: Findings) -> list[str]:
    """Why SPUNGE and joint unlearning cannot be compared: one of them paid with the rest of what the model knew."""
    if JOINT.name not in findings.main_variants:
        return []
    merged, joint = damage(findings, MERGED.name), damage(findings, JOINT.name)
    if joint:
        told = "both damaged the model" if merged else f"joint unlearning damaged the model ({'; '.join(joint)})"
    elif merged:
        told = "joint unlearning left the rest as it was, and SPUNGE did not"
    else:
        return []
    return [f"At these settings the two cannot be compared: {told}."]


def _controls(contests: dict[str, list[Point]]) -> list[str]:
    """The random split stands in every headline: splitting and merging alone can earn what the attribute seems to."""
    told = {
        GOOD: "beyond chance better than {}", UNSURE: "not told apart from {}", BAD: "beyond chance worse than {}",
    }  # fmt: skip
    found = {name: _worst(contests.get(name, ())) for name in (RANDOM_SPLIT.name, SEQUENTIAL.name)}
    parts = [told[worst].format(phrase_of(name)) for name, worst in found.items() if worst]
    return [f"On what must go it is {' and '.join(parts)}."] if parts else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def at_most(findings: Findings) -> float | None:
    """Returns the largest share of what the base model had, beyond guessing, that SPUNGE may have lost: 95 % sure."""
    bounds = []
    for column in findings.leading("forget"):
        row, base = findings.comparison(MERGED.name, BASE.name, column), findings.score(BASE.name, column)
        floor = findings.chance(column) or 0.0
        if row is None or row.ends is None or base is None or column.higher_is_better or base.value <= floor:
            return None
        bounds.append(max(0.0, -row.ends[0]) / (base.value - floor))
    return max(bounds, default=None)


def _forgot(findings: Findings, points: Sequence[Point], shares: Sequence[float]) -> str:
    bound = at_most(findings)
    if points and bound is not None and bound <= SMALL and {point.status for point in points} == {UNSURE}:
        return _tied(f"SPUNGE forgot nothing measurable (at most {max(1, round(100 * bound))} % of what it should)")
    worst = max(shares, default=1.0)
    amount = "nearly all" if worst <= NEARLY_ALL else "most" if worst <= MOST else "some"
    return {
        GOOD: f"SPUNGE forgot {amount} of what it should",
        BAD: "Something is wrong with what SPUNGE forgot",
        UNSURE: "It is not shown that SPUNGE forgot all it should",
        None: "Nothing here measures what must go",
    }[_worst(points)]


def _kept(points: Sequence[Point]) -> str:
    return {
        GOOD: ", and kept the rest",
        BAD: "",
        UNSURE: "; whether enough of the rest stayed is not settled",
        None: "; nothing measures what must stay",
    }[_worst(points)]


def _better(contests: dict[str, list[Point]]) -> list[str]:
    if JOINT.name not in contests:
        return ["It was not compared with joint unlearning."]
    found = {point.status for point in contests[JOINT.name]}
    if found == {UNSURE} or not found:
        beaten = [phrase_of(rival) for rival, points in contests.items() if BAD in {point.status for point in points}]
        also = [f"{' and '.join(beaten)} forgot more.".capitalize()] if beaten else []
        return ["Nothing here shows that it forgot more than joint unlearning.", *also]
    if BAD in found:
        return ["Joint unlearning forgot more, beyond chance."] if found == {BAD} else [
            "Against joint unlearning it wins in some places and loses in others."
            if GOOD in found
            else "Against joint unlearning it wins nowhere, and loses in places."
        ]  # fmt: skip
    told = "It forgot more than joint unlearning, beyond chance"
    sentences = [f"{told}." if found == {GOOD} else f"{told} in some places; in others the difference may be chance."]
    equal, random = (_worst(contests.get(role.name, ())) for role in (JOINT_EQUAL_STEPS, RANDOM_SPLIT))
    if equal == GOOD and random == GOOD:
        sentences.append("It also beats both controls: neither more steps nor splitting at random explains the gain.")
    else:
        if equal is not None:
            sentences.append(
                "More steps do not explain it." if equal == GOOD else "Joint with as many steps may do as well."
            )
        if random is not None:
            sentences.append(
                "Splitting at random does not explain it." if random == GOOD else "A random split may do as well."
            )
    in_turn = _worst(contests.get(SEQUENTIAL.name, ()))
    if in_turn not in (None, GOOD):
        sentences.append("Unlearning one subset after the other may do as well.")
    return sentences


def _beside(contests: dict[str, list[Point]], kept: Sequence[Point]) -> list[str]:
    """Says what forgetting more, or no more, than joint cost on what must stay."""
    found = {point.status for point in kept}
    if JOINT.name not in contests or not found & {GOOD, BAD}:
        return []
    if {GOOD, BAD} <= found:
        return ["Beside joint it kept more of some things that must stay and less of others."]
    if BAD in found:
        return ["It kept less of the rest than joint did."]
    return ["It kept more of the rest than joint did, beyond chance."]


def _back(points: Sequence[Point]) -> list[str]:
    told = {
        BAD: "An attack brought part of what was forgotten back.",
        UNSURE: "Whether an attack brings it back is not settled.",
        GOOD: "The attacks that were tried brought little back.",
    }
    return [told[worst]] if (worst := _worst(points)) else []


def _known(points: Iterable[Point | None]) -> list[Point]:
    return [point for point in points if point is not None]


def _status(row: Comparison, column: Column) -> str:
    return {1: GOOD, 0: UNSURE, -1: BAD}[improvement(row, column)]


def _worst(points: Iterable[Point]) -> str | None:
    found = {point.status for point in points}
    return next((status for status in (BAD, UNSURE, GOOD) if status in found), None)


def _two(findings: Findings, column: Column, rival: str, one: str = MERGED.name) -> str:
    unit = " %" if column.share else ""
    theirs, ours = (level(findings.score(name, column), column).text for name in (rival, one))
    return f"{label_of(rival)} {theirs}{unit}, {label_of(one)} {ours}{unit}"


def _difference(row: Comparison, column: Column) -> str:
    factor, digits, unit = (100, 1, " points") if column.share else (1, 2, "")
    text = f"difference {signed(row.difference * factor, digits)}{unit}"
    if row.ends is not None:
        text += f" [{', '.join(signed(end * factor, digits) for end in row.ends)}]"
    if row.p is not None:
        text += ", p < 0.001" if row.p < 0.001 else f", p = {row.p:.3f}"
    return f"{text}, n = {row.n}"


def _tied(figures: str) -> str:
    """Keeps a number and its unit on one line."""
    for pair in (" %", " points", "p = ", "p < ", "n = "):
        figures = figures.replace(pair, pair.replace(" ", "\u00a0"))
    return figures
