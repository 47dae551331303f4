"""Runs a study: variants of one recipe, each brought to the same damage, compared pair by pair over items and seeds.

    python studies/study.py studies/NAME.yaml --data DIR --model DIR --out DIR [--seeds 0,1]

A study names arms, each the joint model, a split at random, the split by the attribute, or its subsets in turn
or in layers, with settings of its own.
What is trained, merged and asked lies in one store, which arms and studies share, so that one that was stopped goes on
where it was. The results of all seeds that the folder holds are written to results/NAME.json beside the study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import summary
from ruamel.yaml import YAML

from spunge.errors import DataError
from spunge.recipe import offline, reading
from spunge.recipe.schema import Experiment
from spunge.run import steps
from spunge.run.executors.local import Local
from spunge.run.store import Store
from spunge.run.subsets import load
from spunge.run.variant import Variant
from spunge.settings import Settings


@dataclass(frozen=True)
class Where:
    """Where a study's data and model lie; None where the recipe's own will do."""

    data: Path | None
    model: str | None


class Arm(Settings):
    """One of the variants that are compared."""

    unlearned: Literal["joint", "random_split", "subsets", "sequential", "layered"]
    settings: list[str] = []
    """What differs from the study's recipe: `merge.density=0.2`."""


class Score(Settings):
    """What of a suite's answers counts."""

    metric: str
    """A metric of the items; `nll` is divided by the tokens."""
    by: str
    """The attribute of the items by which scores are shown apart."""
    shown: list[str]
    """Its values."""


class Tuning(Settings):
    """Equal trials for every arm: what forgets most of items that are not reported, at the same damage, is reported."""

    seed: int
    """Trained and asked with this one; better none of those reported."""
    suite: str
    """What is asked: its validation part here, its test part wherever this study asks it."""
    trials: list[list[str]]
    """Settings of each trial: `unlearn.learning_rate=2e-3`."""


class Study(Settings):
    """What is compared with what, on which data."""

    description: str
    recipe: str
    """A shipped recipe's name, or a file beside the study."""
    data: dict[str, str]
    """File below the data folder → its sha256."""
    settings: list[str] = []
    """What differs from the recipe in all arms."""
    seeds: list[int]
    tuning: Tuning | None = None
    """How each arm's settings are chosen; null: they are as they stand."""
    arms: dict[str, Arm]
    contrasts: list[tuple[str, str]]
    """Pairs of arms; the first is hoped to be better."""
    scores: dict[str, Score]
    """What is asked: a suite of the recipe → what of its answers counts."""


def read(file: Path) -> Study:
    """Reads a study's YAML; what it does not say is as in the one that it is `like`."""
    return Study.model_validate(_content(file))


def _content(file: Path) -> dict[str, Any]:
    content = YAML(typ="safe").load(file.read_text())
    if (recipe := file.parent / content.get("recipe", "")).is_file():
        content["recipe"] = str(recipe)
    other = content.pop("like", None)
    return content if other is None else {**_content(file.parent / other), **content}


def check(study: Study, data: Path | None) -> None:
    """Refuses data that are not those of the study.

    Raises:
        DataError: A file is missing or another one.
    """
    for name, sha256 in study.data.items():
        if data is None:
            raise DataError(f"--data: it needs {name}; the study's own comment says where that is published")
        if not (data / name).is_file():
            raise DataError(f"{data / name}: no such file; the study's own comment says where it is published")
        if (digest := hashlib.sha256((data / name).read_bytes()).hexdigest()) != sha256:
            raise DataError(f"{data / name}: sha256 is {digest}, and should be {sha256}")


def experiment_of(study: Study, arm: Arm, where: Where, part: Literal["validation", "test"] = "test") -> Experiment:
    """The recipe as an arm has it, with data and model from folders; where arms are tuned, a part of the items."""
    model = [f"model.id={where.model}"] if where.model else []
    # A study is a program: its methods lie beside it.
    recipe = reading.read(study.recipe, [*study.settings, *arm.settings, *model], allow_code=True)
    recipe = offline.from_folder(recipe, where.data) if where.data else recipe
    asked = [one for one in recipe.evaluate if one.suite in study.scores]
    if study.tuning is not None:
        asked = [one.model_copy(update={"part": part}) for one in asked]
    return recipe.model_copy(update={"evaluate": asked})


def unlearned(context: steps.Context, arm: Arm) -> tuple[Variant, list[Variant]]:
    """Makes an arm's model, and returns it with the models that it was trained as."""
    subsets = steps.split(context)
    if arm.unlearned == "joint":
        [trained] = steps.unlearn(context, [steps.joint_task(context, subsets)])
        return steps.anchor(context, trained)[0], trained
    if arm.unlearned == "sequential":
        in_turn = steps.unlearn_in_turn(context, subsets)
        return steps.anchor(context, [in_turn])[0], [in_turn]
    if arm.unlearned == "layered":
        apart = steps.subset_tasks(context, subsets)
        [done] = steps.unlearn(context, apart)
        layered = steps.unlearn_in_layers(context, subsets, apart, done)
        return steps.anchor(context, [layered])[0], [layered]
    if arm.unlearned == "random_split":
        subsets = steps.split_at_random(context, subsets)
        [trained] = steps.unlearn(context, steps.random_tasks(context, subsets))
    else:
        [trained] = steps.unlearn(context, steps.subset_tasks(context, subsets))
    name = "spunge" if arm.unlearned == "subsets" else arm.unlearned
    return steps.merge(context, name, trained, subsets)[0][1], trained


@dataclass(frozen=True)
class Asked:
    """An arm's model at every point of one seed."""

    items: pl.DataFrame
    """One row an item, metric and point."""
    matches: list[dict[str, Any]]
    """Where its budgets are spent, and what that cost."""


def ask(experiment: Experiment, name: str, arm: Arm, seed: int, executor: Local, *, base: bool = False) -> Asked:
    """Makes an arm's model, brings it to every damage that is reported, and asks it; the base model too if told."""
    context = steps.Context(experiment, load(experiment), executor, seed)
    variant, trained = unlearned(context, arm)
    matched = steps.match_damage(context, [replace(variant, name=name)])
    points = {point["name"]: f"{point['matching']} {point['budget']:g}" for point in matched.points}
    assert experiment.damage is not None, "a study compares at the same damage"
    points[name] = f"near {experiment.damage.headline:g}"
    variants = [*matched.variants[0], *([Variant("base", "base", seed)] if base else [])]
    tables = [
        pl.read_parquet(artifact.path / "items.parquet")
        .filter(pl.col("value").is_not_null())
        .select(
            pl.lit("base" if asked.name == "base" else name).alias("arm"),
            pl.lit(seed).alias("seed"),
            pl.lit("" if asked.name == "base" else points[asked.name]).alias("point"),
            "suite", "item", "attributes", "metric", "value",
        )
        for asked, artifact in steps.evaluate(context, variants, matched.elsewhere)
    ]  # fmt: skip
    manifests = [one.artifact.manifest for one in trained if one.artifact is not None]
    cost: dict[str, Any] = {name: sum(manifest.get(name, 0) for manifest in manifests) for name in ("steps", "seconds")}
    cost["cosine"] = _cosine(variant)
    print(f"seed {seed}: {name}: {cost['steps']} steps, {cost['seconds']:.0f} s of training", flush=True)
    return Asked(pl.concat(tables), [{**match, **cost} for match in matched.matches])


def _cosine(variant: Variant) -> float | None:
    """How much a merge's parts agree: the mean cosine of two parts' vectors, over layers; None of a joint model."""
    layers = variant.artifact.manifest.get("diagnostics", {}).get("layers", {}) if variant.artifact else {}
    cosines = [value for layer in layers.values() for row in layer["cosines"].values() for value in row.values()]
    return sum(cosines) / len(cosines) if cosines else None


def tune(study: Study, name: str, where: Where, executor: Local) -> list[dict[str, Any]]:
    """Returns an arm's trials, each with what it forgot of the validation part at every point, and the chosen one."""
    assert study.tuning is not None, "only a study with trials is tuned"
    tuning, arm = study.tuning, study.arms[name]
    trials: list[dict[str, Any]] = []
    for settings in tuning.trials:
        tried = arm.model_copy(update={"settings": [*arm.settings, *settings]})
        experiment = experiment_of(study, tried, where, "validation")
        asked = ask(experiment, name, tried, tuning.seed, executor, base=True)
        forgotten = summary.forgotten(asked.items, tuning.suite, study.scores[tuning.suite])
        trials.append({"arm": name, "settings": settings, "forgotten": forgotten})
    # What the first point and all others forgot counts alike; of equals the first.
    best = max(range(len(trials)), key=lambda number: (sum(trials[number]["forgotten"].values()), -number))
    return [{**trial, "chosen": number == best} for number, trial in enumerate(trials)]


def tuned(study: Study, trials: Sequence[Mapping[str, Any]]) -> Study:
    """The study with every arm at the settings that were chosen for it."""
    chosen = {trial["arm"]: trial["settings"] for trial in trials if trial["chosen"]}
    arms = {
        name: arm.model_copy(update={"settings": [*arm.settings, *chosen[name]]}) for name, arm in study.arms.items()
    }
    return study.model_copy(update={"arms": arms})


def write_results(study: Study, folder: Path, file: Path) -> None:
    """Sums up all seeds that a folder holds, a line of the file for each arm and contrast; prints the contrasts."""
    items = pl.concat([pl.read_parquet(each) for each in sorted(folder.glob("items-*.parquet"))])
    matches = [match for each in sorted(folder.glob("matches-*.json")) for match in json.loads(each.read_text())]
    results = summary.summarise(items, matches, study)
    if (trials := folder / "tuning.json").exists():
        results["tuning"] = json.loads(trials.read_text())
    lines = {name: ",\n".join(json.dumps(each, ensure_ascii=False) for each in part) for name, part in results.items()}
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        "{" + ",\n".join(f'"{name}": [\n{part}\n]' for name, part in lines.items()) + "}\n", encoding="utf-8"
    )
    for each in results["contrasts"]:
        low, high = each["interval"]
        which = f"{each['suite']}, {each['point']}: {' − '.join(each['arms'])}"
        print(f"{which}: {each['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, help="the folder of the study's data")
    parser.add_argument("--model", help="a model's directory; default: the recipe's")
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept that need not be made again")
    parser.add_argument("--seeds", help="those to run now, such as 0,1; default: the study's")
    arguments = parser.parse_args()
    study = read(arguments.study)
    check(study, arguments.data)
    seeds = [int(seed) for seed in arguments.seeds.split(",")] if arguments.seeds else study.seeds
    where = Where(arguments.data, arguments.model)
    folder = arguments.out / arguments.study.stem
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.out / "store")
    with store.held(), Local(store) as executor:
        if study.tuning is not None:
            trials = [trial for name in study.arms for trial in tune(study, name, where, executor)]
            (folder / "tuning.json").write_text(json.dumps(trials, indent=1))
            study = tuned(study, trials)
        for seed in seeds:
            asked = [
                ask(experiment_of(study, arm, where), name, arm, seed, executor, base=number == 0)
                for number, (name, arm) in enumerate(study.arms.items())
            ]
            pl.concat([one.items for one in asked]).write_parquet(folder / f"items-{seed}.parquet")
            (folder / f"matches-{seed}.json").write_text(
                json.dumps([row for one in asked for row in one.matches], indent=1)
            )
    write_results(study, folder, arguments.study.parent / "results" / f"{arguments.study.stem}.json")


if __name__ == "__main__":
    main()
