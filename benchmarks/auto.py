"""What `spunge auto` is worth: against random draws, against a recipe that was made by hand, and killed on the way.

    python benchmarks/auto.py samplers lab:model --forget lab:toxicity/forget.jsonl \\
        --retain lab:toxicity/retain.jsonl --trials 16 --damage 0.1 --seeds 3 --out /tmp/searches
    python benchmarks/auto.py killed lab:model --forget … --retain … --trials 4 --out /tmp/killed
    python benchmarks/auto.py by-hand /tmp/searches/tpe-0 --recipe smollm2-toxigen
    python benchmarks/auto.py note NAME /tmp/searches/*    # what came of them, as benchmarks/results/auto-NAME.json
    python benchmarks/auto.py tables                       # writes the tables of docs/auto.md from these

Both samplers have the same data, parts, methods, rungs and first trials; only what is drawn after those differs. What
is made by hand is trained on the rows that the search unlearns, brought to the same damage to the texts to judge on,
and asked the items to judge on; the difference is taken item by item.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from spunge.auto import judging
from spunge.auto.session import WISH, begin, executor_here
from spunge.auto.study import Setting
from spunge.auto.trials import ARMS
from spunge.auto.wish import read_wish
from spunge.files import format_duration
from spunge.recipe import reading
from spunge.run.compute import Compute
from spunge.statistics import compare, mean_interval

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "auto.md", ROOT / "benchmarks" / "results"
BY_HAND = "by-hand.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    samplers = commands.add_parser("samplers")
    samplers.add_argument("model")
    samplers.add_argument("--trials", default="16", help="of each arm")
    samplers.add_argument("--seeds", type=int, default=1)
    samplers.add_argument("--out", type=Path, required=True)
    samplers.set_defaults(does=search_twice)
    killed = commands.add_parser("killed")
    killed.add_argument("model")
    killed.add_argument("--trials", default="4", help="of each arm")
    killed.add_argument("--out", type=Path, required=True)
    killed.set_defaults(does=search_killed)
    hand = commands.add_parser("by-hand")
    hand.add_argument("search", type=Path)
    hand.add_argument("--recipe", required=True)
    hand.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    hand.add_argument("overrides", nargs="*", help="settings of the recipe: key=value")
    hand.set_defaults(does=make_by_hand)
    note = commands.add_parser("note")
    note.add_argument("name")
    note.add_argument("searches", nargs="+", type=Path)
    note.set_defaults(does=write_note)
    commands.add_parser("tables").set_defaults(does=write_tables)
    arguments, words = parser.parse_known_args()
    arguments.does(arguments, words)


def search_twice(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Searches with both samplers, seed by seed."""
    for seed in range(arguments.seeds):
        for sampler in ("tpe", "random"):
            out = arguments.out / f"{sampler}-{seed}"
            ended = subprocess.run(
                [*_search(arguments, words, out), "--sampler", sampler, "--seed", str(seed), "--quiet"], check=False
            )
            if ended.returncode > 1:  # 1 says that nothing worked, which is a result
                sys.exit(ended.returncode)
            print(json.dumps(noted(out)), flush=True)


def search_killed(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Searches whole, and killed once a third and once two thirds of the trials were made; both must come to the same.

    Raises:
        SystemExit: They did not.
    """
    whole, killed = arguments.out / "whole", arguments.out / "killed"
    subprocess.run([*_search(arguments, words, whole), "--quiet"], check=True)
    result = _read(whole / "result.json")
    made = sum(rung["trials"] for rung in result["time"]["rungs"])
    for at in (made // 3, 2 * made // 3):
        with subprocess.Popen(_search(arguments, words, killed), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            if any(line.startswith(f"{at} of") for line in process.stderr):
                process.kill()
        print(f"after {at} of {made} trials: ended with {process.returncode}", flush=True)
    subprocess.run([*_search(arguments, words, killed), "--quiet"], check=True)
    again = _read(killed / "result.json")
    differing = [name for name in result if name not in ("time", "plan") and result[name] != again[name]]
    models = [(out / "model" / "model.safetensors").read_bytes() for out in (whole, killed)]
    if differing or models[0] != models[1]:
        sys.exit(f"differs: {', '.join(differing) or 'the model'}")
    print("the same front, choice and figures, and the same model, bit for bit")


def _search(arguments: argparse.Namespace, words: Sequence[str], out: Path) -> list[str]:
    command = [sys.executable, "-m", "spunge", "auto", arguments.model, *words, "--yes"]
    return [*command, "--trials", arguments.trials, "--out", str(out)]


def make_by_hand(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Trains a recipe's method on a search's rows, and compares it with the search's choice of the same arm."""
    out: Path = arguments.search
    wish = read_wish({name: value for name, value in _read(out / WISH).items() if name != "inputs"})
    session = begin(replace(wish, trials=2), out, executor_here(Compute()))
    search, bench, asking = session.search, session.search.bench, session.asking
    recipe = reading.read(arguments.recipe, [*arguments.overrides, *words])
    top = search.rungs[-1]
    rung = replace(top, rows=len(bench.rows.forget), epochs=1, tokens=judging.TOKENS)
    suites = asking.both("test", judging.MOST_JUDGED)
    [before] = bench.ask([bench.unchanged], suites)
    result = _read(out / "result.json")

    def changed(variant: Any) -> tuple[list[list[float]], float | None, float]:
        """What went of what must go and, where both sets hold questions, of what must stay; damage, λ."""
        [(_, scale, damage, _, there)] = bench.read(variant, [1.0], "test", rung)
        [after] = bench.ask([there], suites)
        return [asking.forgotten(*pair) for pair in zip(before, after, strict=True)], damage, scale

    rows: list[dict[str, Any]] = _read(out / BY_HAND) if (out / BY_HAND).exists() else []
    for arm in arguments.arms:
        made = recipe.joint_unlearner if arm == "joint" else recipe.unlearn
        fields = {name: value for name, value in made.dump().items() if name not in ("method", "together")}
        setting = Setting(-1, made.dump()["method"], fields, {})
        variants = bench.trained(arm, setting, rung)
        (by_hand, *lost), damage, scale = changed(
            bench.merged(arm, setting, rung, variants, "ties 1" if arm == "merged" else "")
        )
        for other in ARMS:
            choice = result["arms"][other]["choice"]
            (found, *found_lost), found_damage, _ = changed(
                judging.variant_of(search, other, choice["number"], choice["rung"], choice["merge"])
            )
            apart = compare(found, by_hand)
            interval = apart.interval()
            own = mean_interval(by_hand)
            rows.append({
                "by_hand": arm, "method": setting.method, "learning_rate": fields["learning_rate"],
                "alpha": fields.get("alpha", 0.0), "scale": scale, "damage": damage,
                "forgotten": sum(by_hand) / len(by_hand), "low": own.low, "high": own.high, "auto": other,
                "auto_forgotten": sum(found) / len(found), "auto_damage": found_damage,
                "difference": apart.difference, "difference_low": interval.low, "difference_high": interval.high,
                "items": len(found), "chosen": other == result["choice"],
            })  # fmt: skip
            for ours, theirs in zip(found_lost, lost, strict=True):
                apart = compare(ours, theirs)
                interval = apart.interval()
                rows[-1] |= {
                    "lost": fmean(theirs), "auto_lost": fmean(ours), "lost_difference": apart.difference,
                    "lost_difference_low": interval.low, "lost_difference_high": interval.high,
                }  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        (out / BY_HAND).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_note(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Writes what came of searches."""
    notes = ",\n ".join(json.dumps(_rounded(noted(out))) for out in arguments.searches)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"auto-{arguments.name}.json").write_text(f"[\n {notes}\n]\n", encoding="utf-8")


def noted(out: Path) -> dict[str, Any]:
    """Returns what of a search's result the tables need."""
    result = _read(out / "result.json")
    wish = result["wish"]
    arms = {
        arm: {**{name: one["test"][name] for name in ("forgotten", "low", "high", "damage", "items")},
              **{name: one["choice"][name] for name in ("method", "number", "rows", "merge")},
              "learning_rate": one["choice"]["settings"].get("learning_rate")}
        for arm, one in result["arms"].items()
    }  # fmt: skip
    return {
        "model": Path(wish["model"]).name, "sampler": wish["sampler"], "seed": wish["seed"], "damage": wish["damage"],
        "methods": wish["methods"], "arms": arms, "comparison": result["comparison"], "choice": result["choice"],
        "time": result["time"], "trials": result["trials"],
        "by_hand": _read(out / BY_HAND) if (out / BY_HAND).exists() else [],
    }  # fmt: skip


def write_tables(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Writes the tables of the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def written(page: str) -> str:
    """Returns the page with its tables as the notes have them: between `<!-- auto KIND NAME -->` and `<!-- end -->`."""

    def table(found: re.Match[str]) -> str:
        notes = _read(RESULTS / f"auto-{found['name']}.json")
        return "\n".join([found["head"], *TABLES[found["kind"]](notes), "<!-- end -->"])

    return re.sub(r"(?P<head><!-- auto (?P<kind>\S+) (?P<name>\S+) -->)\n.*?<!-- end -->", table, page, flags=re.S)


def _samplers(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {(note["seed"], arm, note["sampler"]): note["comparison"][arm] for note in notes for arm in ARMS}
    lines = ["| arm | seed | TPE | random | difference |", "|---|---|---|---|---|"]
    for arm in ARMS:
        pairs = {seed: [found[seed, arm, one] for one in ("tpe", "random")] for seed in _seeds(notes)}
        rows = [*pairs.items(), ("mean", [*map(fmean, zip(*pairs.values(), strict=True))])]
        lines += [f"| {arm} | {seed} | {tpe:.3f} | {drawn:.3f} | {tpe - drawn:+.3f} |" for seed, (tpe, drawn) in rows]
    return lines


def _seeds(notes: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({note["seed"] for note in notes})


def _by_hand(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [one for note in notes for one in note["by_hand"]]
    lost = any("lost" in one for one in rows)  # asked where both sets hold questions
    header = ["by hand", "learning rate", "α", "forgotten", "`spunge auto`", "forgotten", "difference"]
    header += ["lost by hand", "lost", "difference"] if lost else []
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for one in rows:
        method = f", {one['method']}" if lost else ""
        cells = [
            f"{one['by_hand']}{method}", f"{one['learning_rate']:.2g}", f"{one['alpha']:g}", f"{one['forgotten']:.3f}",
            f"{one['auto']}{' ✓' if one['chosen'] else ''}", f"{one['auto_forgotten']:.3f}", _apart(one, "difference"),
        ]  # fmt: skip
        if lost:
            cells += [f"{one['lost']:.3f}", f"{one['auto_lost']:.3f}", _apart(one, "lost_difference")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _apart(one: Mapping[str, Any], name: str) -> str:
    return f"{one[name]:+.3f} ({one[f'{name}_low']:+.3f} to {one[f'{name}_high']:+.3f})"


def _rungs(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| sampler | seed | rows | trials | time | cut | saved |", "|---|---|---|---|---|---|---|"]
    for note in notes:
        for rung in note["time"]["rungs"]:
            if rung["trials"]:
                spent, cut, saved = (format_duration(rung[name]) for name in ("seconds", "cut", "saved"))
                lines.append(
                    f"| {note['sampler']} | {note['seed']} | {rung['rows']} | {rung['trials']} | {spent} | {cut} "
                    f"| {saved} |"
                )
    return lines


TABLES = {"samplers": _samplers, "by-hand": _by_hand, "rungs": _rungs}


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
