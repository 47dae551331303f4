"""The end of a search: chosen on rows that nothing was tuned on, judged on rows that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from spunge.auto.clock import Closing, reads
from spunge.auto.fluency import FLOOR
from spunge.auto.parts import Parts
from spunge.auto.rungs import Rung
from spunge.auto.search import Search, front
from spunge.auto.study import Setting
from spunge.auto.trials import ARMS, Arm, Reading, mean_of
from spunge.rows.items import ItemTable, mean_values
from spunge.run.variant import Variant
from spunge.statistics import compare, mean_interval

_FINALISTS = 2
"""Of each arm's highest rung that are read anew on the rows to choose on."""
TOKENS = 1024
_MOST_CHOSEN, MOST_JUDGED = 128, 400
"""Items that are asked to choose and to judge, at most."""
_CHOSEN_FLUENT, _JUDGED_FLUENT = 16, 24
"""Beginnings that the model completes, to choose and to judge."""
_WRITTEN = 16
"""Tokens read that a completion takes as long as, about."""


def closing(parts: Parts, tokens: int, rungs: int) -> Closing:
    """Returns about what choosing and judging will do where so many rungs are reached, and so many tokens there are."""
    finalists, items = 2 * (_FINALISTS + rungs - 1), min(_MOST_CHOSEN, parts.rows["forget-choose"])
    chosen = finalists * reads(tokens, items) + 6 * _WRITTEN * _CHOSEN_FLUENT
    asked = min(MOST_JUDGED, parts.rows["forget-test"])
    judged = 3 * (reads(0, asked) + 2 * _WRITTEN * _JUDGED_FLUENT) + 2 * (reads(2 * tokens, asked))
    return Closing(chosen + judged, finalists + 2, items)


@dataclass(frozen=True)
class Choice:
    """One arm's best, as it does on the rows to choose on."""

    reading: Reading
    """Made anew on these rows and their texts."""
    setting: Setting
    rung: Rung
    scale: float
    """Of its task vector, as the store holds it: the λ that does the budget's damage."""
    broken: float = 1.0
    """Completions that are no language beyond the base model's share, where that is worst; all until it was asked."""

    @property
    def fluent(self) -> bool:
        """Whether it still writes."""
        return self.broken <= FLOOR

    @property
    def described(self) -> dict[str, Any]:
        """As JSON values."""
        read = self.reading
        return {
            "arm": read.arm, "number": read.number, "rung": read.rung, "merge": read.merge,
            "method": self.setting.method, "settings": {**self.setting.fixed, **self.setting.fields},
            "rows": self.rung.rows, "scale": self.scale, "damage": read.damage, "met": read.met,
            "forgotten": read.forgotten, "lost": read.lost, "back": read.back, "broken": self.broken,
        }  # fmt: skip


def choose(search: Search, arm: Arm) -> Choice | None:
    """Returns an arm's choice at the damage budget; None where no trial came to anything.

    Of those that keep to the budget and still write, the one that forgot most, under the attack where there is one;
    where there are none, the nearest to it.
    """
    # The best of each lower rung too: damage is matched, and more rows do not always forget more at the same.
    finalists = [*search.at_top(arm)[:_FINALISTS]]
    finalists += [one for rung in search.rungs for one in search.best(rung.number, arm)[:1]]
    finalists = list({(one.rung, one.number, one.merge): one for one in finalists}.values())
    if not finalists:  # nothing keeps to the budget: the least damage there is
        readings = [one for rung in search.rungs for one in search.readings(rung.number) if one.arm == arm]
        finalists = sorted(readings, key=lambda one: (one.damage is None, one.damage, -one.gone))[:1]
    read = [_read(search, reading) for reading in finalists]
    useless: list[Choice] = []
    # Whether it writes takes long to see, so those that forgot less are seen only where those before write nothing.
    for one in sorted(
        read, key=lambda one: (not one.reading.met, -one.reading.lasting, one.reading.number, one.reading.merge)
    ):
        if useless and one.reading.met != useless[0].reading.met:
            break
        seen = replace(one, broken=_broken_by(search, one))
        if seen.fluent:
            return seen
        useless.append(seen)
    return useless[0] if useless else None


def _read(search: Search, reading: Reading) -> Choice:
    bench = search.bench
    rung, setting = search.rungs[reading.rung], search.studies[reading.arm].settings()[reading.number]
    wide = Rung(rung.number, rung.rows, rung.epochs, _MOST_CHOSEN, TOKENS, wide=True)
    variant = variant_of(search, *reading.trial)
    [(_, scale, damage, met, there)] = bench.read(variant, [1.0], "choose", wide)
    before, after = bench.ask([bench.unchanged, there], bench.asking.both("choose", wide.items))
    forgotten, lost = bench.changed(before, after)
    back = bench.brought_back(there, "choose", wide.items, before[0], forgotten)
    anew = replace(reading, scale=scale, damage=damage, met=met, forgotten=forgotten, lost=lost, back=back)
    return Choice(anew, setting, rung, there.scale)


def _broken_by(search: Search, choice: Choice) -> float:
    variant = replace(variant_of(search, *choice.reading.trial), scale=choice.scale)
    suites = search.bench.asking.fluency("choose", _CHOSEN_FLUENT)
    return _broken(*search.bench.ask([search.bench.unchanged, variant], suites))


def variant_of(search: Search, arm: Arm, number: int, rung_number: int, merge: str) -> Variant:
    """Returns a trial's variant as it was trained at a rung and merged, at λ = 1: from the store, but for its merge."""
    bench, rung, setting = search.bench, search.rungs[rung_number], search.studies[arm].settings()[number]
    return bench.merged(arm, setting, rung, bench.trained(arm, setting, rung), merge)


def _broken(before: list[ItemTable], after: list[ItemTable]) -> float:
    """How much larger the share of completions that are no language is than the base model's, where that is worst."""
    return max((_share(one) if one.height else 1.0) - _share(base) for base, one in zip(before, after, strict=True))


def _share(items: ItemTable) -> float:
    return mean_values(items, ["broken"])["broken"]


def judge(search: Search) -> dict[str, Any]:
    """Chooses in both arms, judges both choices on the test part, and returns all of the result as JSON values."""
    bench, asking = search.bench, search.bench.asking
    chosen: dict[Arm, Choice] = {arm: choice for arm in ARMS if (choice := choose(search, arm)) is not None}
    result: dict[str, Any] = {"arms": {}, "comparison": None, "choice": None}
    if chosen:
        keep = asking.keep("test")
        suites = [
            asking.forget("test", MOST_JUDGED),
            *asking.fluency("test", _JUDGED_FLUENT),
            *([keep] if keep else []),
        ]
        variants = {
            arm: replace(variant_of(search, *choice.reading.trial), scale=choice.scale)
            for arm, choice in chosen.items()
        }
        tables = bench.ask([bench.unchanged, *variants.values()], suites)
        before, afters = tables[0], dict(zip(variants, tables[1:], strict=True))
        gone = {arm: asking.forgotten(before[0], after[0]) if after[0].height else [] for arm, after in afters.items()}
        for arm, choice in chosen.items():
            judged = _judged(search, before, afters[arm], gone[arm], keep is not None)
            judged["damage"] = bench.damage_of(variants[arm], "test", TOKENS)
            result["arms"][arm] = {"choice": choice.described, "test": judged}
            if bench.against is not None:
                suite = asking.forget("test", 128)
                [[base]] = bench.ask([bench.unchanged], [suite])
                judged["attacked"] = bench.left(variants[arm], "test", 128, base)
        result["comparison"] = _compared(search, chosen, before[0])
        best = min(
            chosen.values(),
            key=lambda one: (not one.reading.met, not one.fluent, -one.reading.lasting, one.reading.arm),
        )
        result["choice"] = best.reading.arm
        test = result["arms"][best.reading.arm]["test"]
        result["worked"] = bool(best.reading.met and best.fluent and (test["low"] or 0.0) > max(0.0, test["lost"]))
    else:
        result["worked"] = False
    top = max((one.rung for rung in search.rungs for one in search.readings(rung.number)), default=0)
    result["front"] = {
        arm: [asdict(one) for one in front([one for one in search.readings(top) if one.arm == arm])] for arm in ARMS
    }
    result["nearest"] = None if result["worked"] else _nearest(search, top)
    result["time"] = time_spent(search)
    result["trials"] = {arm: len(search.studies[arm].results(0)) for arm in ARMS}
    return result


def _compared(search: Search, chosen: Mapping[Arm, Choice], before: ItemTable) -> dict[str, Any] | None:
    """Compares both choices at the same damage to the texts to judge on: λ chosen elsewhere meets it only nearly."""
    bench = search.bench
    suite = bench.asking.forget("test", MOST_JUDGED)
    gone: dict[Arm, list[float]] = {}
    damages: dict[Arm, float | None] = {}
    for arm, choice in chosen.items():
        rung = replace(choice.rung, tokens=TOKENS)
        [(_, _, damages[arm], _, there)] = bench.read(variant_of(search, *choice.reading.trial), [1.0], "test", rung)
        [[after]] = bench.ask([there], [suite])
        gone[arm] = bench.asking.forgotten(before, after) if after.height else []
    if not all(gone.get(arm) for arm in ARMS):
        return None
    apart = compare(gone["merged"], gone["joint"])
    interval = apart.interval()
    return {
        "difference": apart.difference, "low": interval.low, "high": interval.high, "damage": bench.budget,
        "damages": damages,
        **{arm: mean_of(values) for arm, values in gone.items()},
    }  # fmt: skip


def _judged(
    search: Search, before: list[ItemTable], after: list[ItemTable], gone: list[float], keeps: bool
) -> dict[str, Any]:
    asking = search.bench.asking
    suites = 2 if asking.kind == "texts" else 1
    interval = mean_interval(gone) if gone else None
    scores = {name: [_score(before[0], name), _score(after[0], name)] for name in ("acc", "p_correct", "perplexity")}
    scores = {name: pair for name, pair in scores.items() if pair[0] is not None}
    judged: dict[str, Any] = {
        "forgotten": mean_of(gone), "low": interval and interval.low, "high": interval and interval.high,
        "items": len(gone), "broken": _broken(before[1 : 1 + suites], after[1 : 1 + suites]),
        "scores": scores, "lost": 0.0,
    }  # fmt: skip
    if keeps and asking.kind == "questions":
        judged["lost"] = mean_of(asking.forgotten(before[-1], after[-1])) if after[-1].height else 1.0
    if keeps:
        judged["kept"] = [_score(before[-1], "acc"), _score(after[-1], "acc")]
    return judged


def _score(items: ItemTable, metric: str) -> float | None:
    return mean_values(items, [metric]).get(metric) if items.height else None


def _nearest(search: Search, rung: int) -> dict[str, Any] | None:
    """What forgets most for its damage where nothing within the budget is any good: the least damage above it."""
    beyond = [
        one for one in search.readings(rung)
        if one.damage is not None and one.damage > search.bench.budget and one.gone > 0
    ]  # fmt: skip
    found = min(beyond, key=lambda one: (one.share, -one.gone), default=None)
    return None if found is None else asdict(found)


def time_spent(search: Search) -> dict[str, Any]:
    """Returns the seconds that every rung took, of how many trials, and what went into those that were cut there."""
    rungs: list[dict[str, Any]] = []
    results = [{arm: search.studies[arm].results(rung.number) for arm in ARMS} for rung in search.rungs]
    top = max((number for number, made in enumerate(results) if any(made.values())), default=0)
    at_top = [one["seconds"] for made in results[top].values() for one in made.values()]
    for rung, made in zip(search.rungs, results, strict=True):
        above = results[rung.number + 1] if rung.number < top else made  # at the highest that was reached none is cut
        ended = [(number not in above[arm], one) for arm in ARMS for number, one in made[arm].items()]
        cut = [one["seconds"] for was_cut, one in ended if was_cut]
        rungs.append({
            "rung": rung.number, "rows": rung.rows, "epochs": rung.epochs, "items": rung.items, "trials": len(ended),
            "seconds": sum(one["seconds"] for _, one in ended), "cut": sum(cut),
            "failed": sum(one["failed"] is not None for _, one in ended),
            # What the trials that were cut here would have taken at the highest rung.
            "saved": len(cut) * sum(at_top) / len(at_top) if cut else 0.0,
        })  # fmt: skip
    whole = sum(one["seconds"] for one in rungs)
    return {"seconds": whole, "cut_share": sum(one["cut"] for one in rungs) / whole if whole else 0.0, "rungs": rungs}
