"""The verdict: in plain sentences what a run shows, the most pressing first; each rests on points and contests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spunge.report import damage
from spunge.report.changes import (
    FEW,
    FLUENCY_MARGIN,
    NOTHING_TO_FORGET,
    Group,
    at_most,
    change_from_base,
    forgetting,
    forgotten,
    group_shares,
    had,
    keeping,
    one_letter,
    recovery,
    remaining,
    to_forget,
    unscored,
    worse_group,
)
from spunge.report.contests import Contest, Word, contest, contest_with, enough_to_tell, together, word_for
from spunge.report.damage import VariantDamage, kl
from spunge.report.findings import Findings, improvement
from spunge.report.numbers import Number, forgotten_number, joint_number, kept_number
from spunge.report.points import BAD, GOOD, MARGIN, UNSURE, Point, counted, distance, present, tied, where, worst_of
from spunge.report.robustness import worst_cases
from spunge.report.usable import broken, damages, destroyed, incomparable, lost_alone, wrecked
from spunge.variants import BASE, JOINT, MERGED, RANDOM_SPLIT, RIVALS, label_of, phrase_of

NEARLY_ALL, MOST = 0.85, 0.5
"""The least that must be gone, interval and all, where nearly all or most is called forgotten."""


SMALL = 0.25
"""Where no more than so much can have gone, with no difference that stands, nothing measurable was forgotten."""


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
    forgot = [
        point
        for column in forget
        if (point := forgetting(findings, column)) and (point.status == BAD or had(findings, column))
    ]
    forgot += present(one_letter(findings, column) for column in forget)
    retained = present(keeping(findings, column, MARGIN) for column in retain)
    retained += present(keeping(findings, column, FLUENCY_MARGIN) for column in findings.fluency())
    contests = tuple(contest_with(findings, rival) for rival in RIVALS if rival in variants)
    beside = present(contest(findings, column, JOINT.name) for column in retain)
    worst = [one for one in worst_cases(findings).values() if one.variant == MERGED.name]
    left, back = present(map(remaining, worst)), present(map(recovery, worst))
    groups, spent, useless = group_shares(findings), damage.by_variant(findings), broken(findings, MERGED.name)
    if useless:  # what such a model no longer does speaks for nothing
        forgot, back = (
            [p if p.status == BAD else replace(p, status=UNSURE) for p in points] for points in (forgot, back)
        )
    sentences = [
        *_damaged(findings),
        *([] if destroyed(findings, MERGED.name) else _forgot(findings, forgot, retained)),
        *_seeds(findings, contests),
        *_worst_group(findings, groups, spread=not useless),
        *_compared(findings, contests, beside),
        *([] if useless else [point.text for point in left if point.status == BAD]),
        *([] if useless else _back(back)),
    ]
    if any(name == MERGED.name for _, name in findings.unscored):
        sentences = _damaged(findings)
    rivals = [point for one in contests for point in one.points]
    worse = [worse_group(findings, group) for group in groups if group.worse]
    return Verdict(
        tuple(map(tied, sentences)),
        (*unscored(findings), *worse, *forgot, *retained, *rivals, *beside, *left, *back),
        (forgotten_number(findings, forgot), kept_number(findings, retained), joint_number(findings, contests)),
        contests,
        spent,
        groups,
    )


def _worst_group(findings: Findings, groups: Sequence[Group], *, spread: bool) -> list[str]:
    """The worst value of what was split by, and whether the groups differ at all."""
    if worse := [group for group in groups if group.worse]:
        attribute = findings.results["split"]["attribute"]
        parts = [
            f"“{group.value}” ({change_from_base(findings, column, MERGED.name, attribute, group.value)})"
            for group in worse[:3]
            for column in findings.leading("forget")
            if (row := findings.comparison(MERGED.name, BASE.name, column, attribute, group.value))
            and improvement(row, column) < 0
        ]
        return [f"It made things worse for {' and '.join(parts)}: the model does more of what must go than before."]
    if len(groups) < 2 or not spread:
        return []
    most, least = groups[0], groups[-1]
    shares = [f"{100 * max(0.0, group.left):.0f} %" for group in (most, least)]
    if most.low is None or least.high is None or most.low <= least.high:
        return []  # which of them is worst is chance
    return [
        f"Of {len(groups)} groups most is left of “{most.value}” ({shares[0]}), least of “{least.value}” ({shares[1]})."
    ]


def _across(findings: Findings) -> Verdict:
    """Judges the merged models of several runs against the first run's."""
    points: list[Point] = []
    sentences = []
    for one, rival in findings.pairs:
        if rival == BASE.name:
            continue
        by_goal: dict[str, list[Point]] = {}
        words: dict[str, Word] = {}
        for goal, columns in (("forget", to_forget(findings)), ("retain", findings.leading("retain"))):
            rows = [(row, column) for column in columns if (row := findings.comparison(one, rival, column))]
            by_goal[goal] = present(contest(findings, column, rival, one) for _, column in rows)
            words[goal] = together([word_for(findings, row, column) for row, column in rows])
        if reasons := incomparable(findings, one, rival):
            points += [point for point in by_goal["retain"] if point.status == BAD]
            sentences.append(f"“{one}” and “{rival}” cannot be compared: {'; '.join(reasons.values())}.")
            continue
        points += [*by_goal["forget"], *by_goal["retain"]]
        gone, stayed = words["forget"], words["retain"]
        told = f"{gone} on what must go, {stayed} on what must stay" if gone != stayed else f"{gone} on either side"
        sentences.append(f"Against “{rival}”, “{one}” is {told}.")
    return Verdict(tuple(sentences) or ("Only one of these runs has a merged model.",), tuple(points))


def _damaged(findings: Findings) -> list[str]:
    """What must be known before any other sentence: a broken model has not forgotten."""
    sentences = []
    for name in [name for name in (MERGED.name, *RIVALS) if any(name == lost for _, lost in findings.unscored)]:
        suites = " and ".join(f"“{suite}”" for suite, lost in findings.unscored if lost == name)
        none = "No verdict: " if name == MERGED.name else ""
        sentence = f"{none}{phrase_of(name)} gave NaN on {suites}: a broken model, and not one that forgot."
        sentences.append(_capital(sentence))
    if lost := damages(findings, MERGED.name):
        much = " and writes no fluent text any more" if wrecked(findings, MERGED.name) else ""
        verb = "destroyed" if destroyed(findings, MERGED.name) else "damaged"
        sentences.append(f"SPUNGE {verb} the model{much}: {'; '.join(lost)}.")
        if verb == "destroyed":
            sentences.append("Such a model fails at what must go as well, which is no sign of forgetting.")
    return sentences


def _compared(findings: Findings, contests: Sequence[Contest], beside: Sequence[Point]) -> list[str]:
    """What the contests come to, as far as they are of models that are fit to be compared."""
    if findings.leading("forget") and not to_forget(findings):
        return []
    joint = next((one for one in contests if one.rival == JOINT.name), None)
    useless = broken(findings, MERGED.name)
    if joint is None:
        return [
            "A broken model cannot be compared." if useless else "It was not compared with joint unlearning.",
            *([] if useless else _controls(findings, contests)),
        ]
    if joint.apart:
        merged, other = damages(findings, MERGED.name), damages(findings, JOINT.name)
        words = joint.caveat
        if merged and other:
            words = "both damaged the model"
        elif merged and not broken(findings, JOINT.name):
            words = f"joint unlearning lost nothing beyond {100 * MARGIN:.0f} % that can be shown, and SPUNGE did"
        return [
            f"SPUNGE and joint unlearning cannot be compared: {words}.",
            *([] if useless else _controls(findings, contests)),
        ]
    alone = lost_alone(findings, MERGED.name, JOINT.name)
    cost = [f"{_capital(alone)}, the other did not."] if alone else _beside(beside)
    return [
        *_against_joint(findings, joint),
        *(cost if alone else []),
        *_controls(findings, contests),
        *([] if alone else cost),
    ]


def _against_joint(findings: Findings, joint: Contest) -> list[str]:
    """The contest with joint unlearning, at the same damage where that was matched."""
    unlike = damage.unlike(findings, JOINT.name)
    at = f"{_capital(unlike)}," if unlike else "Each at its own strength,"
    if joint.matched:
        at = f"At the same damage to the rest ({damage.budget(findings)})"
    rows = [(row, c) for c in to_forget(findings) if (row := findings.comparison(MERGED.name, JOINT.name, c))]
    by = f", by {distance(*rows[0])}, n = {counted(rows[0][0])}" if len(rows) == 1 else ""
    enough = enough_to_tell(findings, *rows[0]) if len(rows) == 1 else ""
    unshown = "" if joint.status == GOOD else ", though it is not shown to have forgotten"
    words: dict[Word, str] = {
        "better": f"it {'did better' if unshown else 'forgot more'} than joint unlearning{by}{unshown}",
        "worse": f"joint unlearning forgot more{by}",
        "better in places": f"it forgot more than joint unlearning in some places ({joint.places})",
        "worse in places": f"it forgot less than joint unlearning in some places ({joint.places})",
        "better and worse": f"it forgot more than joint unlearning in some places and less in others ({joint.places})",
        "no different": f"it is no different from joint unlearning within {100 * MARGIN:.0f} %",
        "not told apart": f"it is not told apart from joint unlearning{enough}",
        "it depends": f"it depends on which damage is meant: it is {joint.caveat}",
        "not comparable": f"it cannot be compared with joint unlearning: {joint.caveat}",
    }
    sentences = [f"{at} {words[joint.word]}."]
    if unlike and joint.word == "not comparable":  # the reason says how they differ
        sentences = [f"{_capital(words[joint.word])}."]
    if not damage.measured(findings, JOINT.name):
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
    word = together([word_for(findings, row, column) for row, column in rows])
    at_one = {"better": "forgot more than joint", "worse": "forgot less than joint"}
    return [f"At λ = 1 it {at_one.get(word, f'is {word}')}, but {unlike}."]


def _controls(findings: Findings, contests: Sequence[Contest]) -> list[str]:
    """The random split stands in every headline: splitting and merging alone can earn what the attribute seems to."""
    words: dict[Word, str] = {
        "better": "better than {}", "better in places": "better than {} in some places", "worse": "worse than {}",
        "worse in places": "worse than {} in some places",
        "better and worse": "better and worse than {} by the suite", "no different": "no different from {}",
        "not told apart": "not told apart from {}", "not comparable": "not comparable with {}",
        "it depends": "better or worse than {} by which damage is matched",
    }  # fmt: skip
    met = {one.rival: one for one in contests if one.rival not in (JOINT.name, *findings.twins)}
    parts = [words[one.word].format(phrase_of(one.rival)) + _why(findings, one) for one in met.values()]
    sentences = [f"Of the controls, it is {'; '.join(parts)}."] if parts else []
    sentences += [
        f"{_capital(phrase_of(later))} is the same model here as {phrase_of(earlier)}."
        for later, earlier in findings.twins.items()
    ]
    gained = any(one.word in ("better", "better in places") for one in contests if one.rival != RANDOM_SPLIT.name)
    if RANDOM_SPLIT.name not in met:
        return [*sentences, "A random split was not run: what the attribute earns is not known."]
    if gained and met[RANDOM_SPLIT.name].word not in ("better", "better in places"):
        sentences.append("So what it gains may come of splitting and merging alone, not of what was split by.")
    return sentences


def _why(findings: Findings, one: Contest) -> str:
    """By how much SPUNGE is apart from a control, or why it cannot be told, and what only one of them cost the rest."""
    size = f"by {one.size}" if one.size and one.word in ("better", "worse") else ""
    caveat = one.caveat if one.word == "not comparable" else ""
    alone = "" if one.apart else lost_alone(findings, MERGED.name, one.rival)
    parts = [part for part in (size, caveat, "" if alone.startswith("SPUNGE") else alone) if part]
    return f" ({'; '.join(parts)})" if parts else ""


def _beside(points: Sequence[Point]) -> list[str]:
    """Says what forgetting more, or no more, than joint cost on what must stay."""
    statuses = {point.status for point in points}
    if {GOOD, BAD} <= statuses:
        return ["Beside joint it kept more of some things that must stay and less of others."]
    if BAD in statuses:
        return ["It kept less of the rest than joint did."]
    return ["It kept more of the rest than joint did."] if GOOD in statuses else []


def _seeds(findings: Findings, contests: Sequence[Contest]) -> list[str]:
    """What the seeds leave open: one says nothing of the method, several may disagree."""
    seeds = findings.results["provenance"]["seeds"]
    if len(seeds) < 2:
        return ["This is one seed: of another training the intervals say nothing."]
    sentences = []
    if any(one.apart for one in contests if one.rival == JOINT.name):
        return []
    for column in to_forget(findings):
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
    nothing = _nothing_to_forget(findings)
    left_out = [f"{nothing}."] if nothing and points else []
    strength = next((one for one in damage.by_variant(findings) if one.variant == MERGED.name), None)
    at = "" if strength is None else f", at λ = {strength.scale:.3g}"
    kept = f"kept the rest within {100 * MARGIN:.0f} %"
    worst, rest = worst_of(points), worst_of(retained)
    if points and bound is not None and bound <= SMALL and statuses == {UNSURE}:
        first = f"SPUNGE forgot nothing measurable (at most {max(1, round(100 * bound))} % of what it should{at})"
    elif worst == GOOD:
        shares = present(forgotten(findings, column) for column in findings.leading("forget"))
        least = min((low if low is not None else 0.0 for _, low, _, _ in shares), default=0.0)
        amount = "nearly all" if least >= NEARLY_ALL else "most" if least >= MOST else "some"
        number = forgotten_number(findings, points)
        share = f" ({number.text}{at})" if number.value is not None else ""
        first = f"SPUNGE forgot {amount} of what it should{share}"
        if rest == GOOD:
            return [f"{first}, and {kept}.", *left_out]
        if rest == BAD:
            first += "; part of that may be the damage"
    elif worst == BAD:
        first = " ".join(point.text for point in points if point.status == BAD).rstrip(".")
    else:
        first = {
            UNSURE: f"It is not shown that SPUNGE forgot all it should{_few(findings)}",
            None: nothing or "Nothing here measures what must go",
        }[worst]
    who = "SPUNGE" if worst == BAD or (worst is None and nothing) else "It"
    words = {
        GOOD: [f"{who} {kept}."], BAD: [], UNSURE: ["Whether enough of the rest stayed is not settled."],
        None: ["Nothing measures what must stay."],
    }  # fmt: skip
    return [f"{first}.", *words[rest], *left_out]


def _nothing_to_forget(findings: Findings) -> str:
    """Says on what the base model does not stand above guessing: it is no fault of SPUNGE that nothing went there."""
    known = to_forget(findings)
    names = [where(column) for column in findings.leading("forget") if column not in known]
    return f"On {' and '.join(names)} {NOTHING_TO_FORGET}" if names else ""


def _few(findings: Findings) -> str:
    counts = [row.n for c in findings.leading("forget") if (row := findings.comparison(MERGED.name, BASE.name, c))]
    return f": {min(counts)} items are too few to tell" if counts and min(counts) < FEW else ""


def _back(points: Sequence[Point]) -> list[str]:
    words = {
        BAD: "An attack brought part of what was forgotten back.",
        UNSURE: "Whether an attack brings it back is not settled.",
        GOOD: "The attacks that were tried brought little back.",
    }
    return [words[worst]] if (worst := worst_of(points)) else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
