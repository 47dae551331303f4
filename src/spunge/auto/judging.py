"""The end of a search: chosen on rows that nothing was tuned on, judged on rows that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from spunge.auto.fluency import FLOOR
from spunge.auto.rungs import Rung
from spunge.auto.search import Search, front
from spunge.auto.study import Setting
from spunge.auto.trials import ARMS, Arm, Reading, mean_of, worst
from spunge.rows.items import ItemTable, mean_values
from spunge.run.variant import Variant
from spunge.statistics import compare, mean_interval
from spunge.variants import BASE

_FINALISTS = 2
"""Of each arm's highest rung that are read anew on the rows to choose on."""
_TOKENS = 1024
_MOST_JUDGED = 400


@dataclass(frozen=True)
class Choice:
    """One arm's best, as it does on the rows to choose on."""

    reading: Reading
    setting: Setting
    rung: Rung
    scale: float
    """Of its task vector, as the store holds it: the λ that does the budget's damage to these rows' texts."""
    damage: float | None
    met: bool
    """Whether it keeps to the budget."""
    forgotten: float
    broken: float
    """Completions that are no language beyond the base model's share, where that is worst."""

    @property
    def fluent(self) -> bool:
        """Whether it still writes."""
        return self.broken <= FLOOR

    @property
    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "arm": self.reading.arm, "number": self.reading.number, "rung": self.rung.number,
            "merge": self.reading.merge,
            "method": self.setting.method,
            "settings": {**self.setting.fixed, **self.setting.fields}, "rows": self.rung.rows,
            "scale": self.scale, "damage": self.damage, "met": self.met, "forgotten": self.forgotten,
            "broken": self.broken,
        }  # fmt: skip


def choose(search: Search, arm: Arm) -> Choice | None:
    """Returns an arm's choice at the damage budget; None where no trial came to anything.

    Of those that keep to the budget and still write, the one that forgot most; where there are none, the nearest to it.
    """
    candidates: list[Choice] = []
    # The best of each lower rung too: damage is matched, and more rows do not always forget more at the same.
    finalists = [*search.at_top(arm)[:_FINALISTS]]
    finalists += [one for rung in search.rungs for one in search.best(rung.number, arm)[:1]]
    finalists = list({(one.rung, one.number, one.merge): one for one in finalists}.values())
    if not finalists:  # nothing keeps to the budget: the least damage there is
        readings = [one for rung in search.rungs for one in search.readings(rung.number) if one.arm == arm]
        finalists = sorted(readings, key=lambda one: (one.damage is None, one.damage, -one.forgotten))[:1]
    for reading in finalists:
        candidates.append(_read(search, reading))
    return min(
        candidates,
        key=lambda one: (not one.met, not one.fluent, -one.forgotten, one.reading.number, one.reading.merge),
        default=None,
    )


def _read(search: Search, reading: Reading) -> Choice:
    bench = search.bench
    rung, setting = search.rungs[reading.rung], search.studies[reading.arm].settings()[reading.number]
    wide = Rung(rung.number, rung.rows, rung.epochs, 128, _TOKENS, wide=True)
    variant = variant_of(search, *reading.trial)
    [(_, _, damage, met, there)] = bench.read(variant, [1.0], "choose", wide)
    suites = [bench.asking.forget("choose", wide.items), *bench.asking.fluency("choose")]
    (before, *written), (after, *wrote) = bench.ask([Variant(BASE.name, "base", bench.seed), there], suites)
    return Choice(
        reading, setting, rung, there.scale, damage, met,
        mean_of(bench.asking.forgotten(before, after) if after.height else []), _broken(written, wrote),
    )  # fmt: skip


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
        suites = [asking.forget("test", _MOST_JUDGED), *asking.fluency("test", 24), *([keep] if keep else [])]
        variants = {
            arm: replace(variant_of(search, *choice.reading.trial), scale=choice.scale)
            for arm, choice in chosen.items()
        }
        tables = bench.ask([Variant(BASE.name, "base", bench.seed), *variants.values()], suites)
        before, afters = tables[0], dict(zip(variants, tables[1:], strict=True))
        gone = {arm: asking.forgotten(before[0], after[0]) if after[0].height else [] for arm, after in afters.items()}
        for arm, choice in chosen.items():
            judged = _judged(search, before, afters[arm], gone[arm], keep is not None)
            judged["damage"] = bench.damage_of(variants[arm], "test", _TOKENS)
            result["arms"][arm] = {"choice": choice.described, "test": judged}
            if bench.against is not None:
                suite = asking.forget("test", 128)
                [[base]] = bench.ask([Variant(BASE.name, "base", bench.seed)], [suite])
                [[attacked]] = bench.ask([variants[arm]], bench.attacks("test", 128))
                judged["attacked"] = worst(asking, base, attacked) if attacked.height else None
        result["comparison"] = _compared(search, chosen, before[0])
        best = min(chosen.values(), key=lambda one: (not one.met, not one.fluent, -one.forgotten, one.reading.arm))
        result["choice"] = best.reading.arm
        test = result["arms"][best.reading.arm]["test"]
        result["worked"] = bool(best.met and best.fluent and test["low"] is not None and test["low"] > 0)
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
    suite = bench.asking.forget("test", _MOST_JUDGED)
    gone: dict[Arm, list[float]] = {}
    damages: dict[Arm, float | None] = {}
    for arm, choice in chosen.items():
        rung = replace(choice.rung, tokens=_TOKENS)
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
    suites = 2 if search.bench.asking.kind == "texts" else 1
    interval = mean_interval(gone) if gone else None
    scores = {name: [_score(before[0], name), _score(after[0], name)] for name in ("acc", "p_correct", "perplexity")}
    scores = {name: pair for name, pair in scores.items() if pair[0] is not None}
    judged: dict[str, Any] = {
        "forgotten": mean_of(gone), "low": interval and interval.low, "high": interval and interval.high,
        "items": len(gone), "broken": _broken(before[1 : 1 + suites], after[1 : 1 + suites]),
        "scores": scores,
    }  # fmt: skip
    if keeps:
        judged["kept"] = [_score(before[-1], "acc"), _score(after[-1], "acc")]
    return judged


def _score(items: ItemTable, metric: str) -> float | None:
    return mean_values(items, [metric]).get(metric) if items.height else None


def _nearest(search: Search, rung: int) -> dict[str, Any] | None:
    """What forgets most for its damage where nothing within the budget is any good: the least damage above it."""
    beyond = [
        one for one in search.readings(rung)
        if one.damage is not None and one.damage > search.bench.budget and one.forgotten > 0
    ]  # fmt: skip
    found = min(beyond, key=lambda one: (one.share, -one.forgotten), default=None)
    return None if found is None else asdict(found)


def time_spent(search: Search) -> dict[str, Any]:
    """Returns the seconds that every rung took, of how many trials, and what went into those that were cut there."""
    rungs = []
    for rung in search.rungs:
        results = {arm: search.studies[arm].results(rung.number) for arm in ARMS}
        above: Mapping[Arm, Mapping[int, Any]] = {arm: search.studies[arm].results(rung.number + 1) for arm in ARMS}
        last = rung.number == len(search.rungs) - 1
        seconds = sum(one["seconds"] for results_of in results.values() for one in results_of.values())
        cut = sum(
            one["seconds"]
            for arm in ARMS
            for number, one in results[arm].items()
            if not last and number not in above[arm]
        )
        rungs.append(
            {
                "rung": rung.number, "rows": rung.rows, "epochs": rung.epochs, "items": rung.items,
                "trials": sum(map(len, results.values())), "seconds": seconds, "cut": cut,
                "failed": sum(one["failed"] is not None for of in results.values() for one in of.values()),
            }
        )  # fmt: skip
    top = [one for one in rungs if one["trials"]][-1] if any(one["trials"] for one in rungs) else None
    each = top["seconds"] / top["trials"] if top else 0.0
    for one in rungs:
        # What the trials that ended here would have taken at the highest rung.
        ended = one["trials"] - (rungs[one["rung"] + 1]["trials"] if one["rung"] + 1 < len(rungs) else one["trials"])
        one["saved"] = max(0.0, ended * each)
    whole = sum(one["seconds"] for one in rungs)
    return {
        "seconds": whole, "cut_share": sum(one["cut"] for one in rungs) / whole if whole else 0.0, "rungs": rungs,
    }  # fmt: skip
