"""Synthetic run directories in the shape that the pipeline writes, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

HOSTILE = (
    '<script>document.title="owned"</script>',
    "</style></script><img src=x onerror=alert(1)>",
    "\"quotes\" & 'apostrophes' & `ticks`",
    "\u202eright to left\u202c and \u200fmarks",
    "$x_{$ \\frac % # ~ ^ {",
    "nul\x00inside | pipe\nnew line\ttab",
    "= {{ 7*7 }} {% raw %} ${x}",
    "名前 группа عربى 🦠",
)

GROUPS = [
    *("women", "mexican", "muslim", "lgbtq", "physical_disability", "mental_disability", "native_american", "black"),
    *("chinese", "asian", "latino", "jewish", "middle_eastern"),
]


def write_run(
    root: Path,
    *,
    kind: str = "knowledge",
    groups: int = 2,
    seeds: tuple[int, ...] = (0,),
    items: int = 240,
    gain: float = 0.12,
    hostile: bool = False,
    status: str = "done",
    name: str | None = None,
    controls: bool = True,
    noise: int = 0,
    shift: float = 0.0,
    attacked: bool = False,
) -> Path:
    """Writes one run under `root` and returns its directory.

    Args:
        root: The runs root.
        kind: `knowledge` (multiple choice) or `toxicity` (generation).
        groups: How many attribute values the forget set has.
        seeds: One set of variants for each.
        items: How many evaluation items in all.
        gain: How much further SPUNGE goes than joint on what must go.
        hostile: Whether names and texts try to break the page.
        status: The run's status.
        name: The experiment's name.
        controls: Whether joint with equal steps and the random split were run.
        noise: Seed of the answers.
        shift: Added to SPUNGE's probability of the forgotten behaviour.
        attacked: Whether what must go was asked again of quantised and of relearning models.
    """
    rng = np.random.default_rng(noise)
    values = _values(kind, groups, hostile)
    name = name or f"synthetic-{kind}"
    run = root / name
    run.mkdir(parents=True)
    variants = _variants(values, seeds, controls)
    frames = [
        _answers(kind, variant, values, items, gain, shift, hostile, rng).with_columns(
            pl.lit(variant["name"]).alias("variant"), pl.lit(variant["seed"], pl.Int64).alias("seed")
        )
        for variant in variants
    ]
    suites = _suites(kind)
    if attacked:
        frames += [_under_attack(pl.concat(frames), suites[0]["suite"], attack, rng) for attack in ATTACKS]
        suites += [{**suites[0], "suite": attack, "attacks": suites[0]["suite"]} for attack in ATTACKS]
    order = ["variant", "seed", "suite", "task", "item", "attributes", "metric", "value", "text"]
    pl.concat(frames).select(order).write_parquet(run / "items.parquet")
    (run / "recipe.yaml").write_text(f"name: {name}\nmodel: {{id: lab:model}}\nunlearn: {{method: rmu, alpha: 100}}\n")
    stages = _stages(root, variants, values, rng)
    manifest = {
        "format": 1,
        "experiment": name,
        "status": status,
        "version": "0.1.0",
        "command": f"spunge run {name}.yaml --out runs",
        "model": {"id": "lab:model", "revision": None, "digest": "5f" * 32},
        "seeds": list(seeds),
        "suites": suites,
        "split": {
            "attribute": "group" if kind == "toxicity" else "domain",
            "rows": 400 * groups,
            "covered": 390 * groups,
            "overlapping": 3,
            "subsets": [{"name": value, "rows": 400 - 7 * index} for index, value in enumerate(values)],
            "dropped": [{"name": "tiny", "rows": 3, "reason": "fewer than 8 rows"}],
        },
        "variants": variants,
        "stages": stages,
        "merge": {str(seed): _diagnostics(values, rng) for seed in seeds},
        "environment": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "device": "cpu", "cpu": "2"},
        "warnings": ["subset 'tiny' has 3 rows and was left out"],
        "not_run": ["robustness: no attack was asked for"],
    }
    (run / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return run


ATTACKS = {
    "quantised": {"int8": 0.0, "nf4": 0.15, "int4": 0.3},
    "relearned": {"0 steps": 0.0, "10 steps": 0.25, "30 steps": 0.6},
}
"""Attack → setting → the share of what was taken that it brings back."""


def _under_attack(items: pl.DataFrame, suite: str, attack: str, rng: np.random.Generator) -> pl.DataFrame:
    """The answers of a suite under every setting of an attack: some items are answered as the base model did."""
    asked = items.filter((pl.col("suite") == suite) & pl.col("value").is_not_null())
    base = asked.filter(pl.col("variant") == "base").select("seed", "item", "metric", again="value")
    back = asked.select("variant", "seed", "item").unique(maintain_order=True)
    frames = []
    for setting, share in ATTACKS[attack].items():
        drawn = back.with_columns(back=pl.Series(rng.random(len(back)) < share))
        hit = asked.join(base, on=["seed", "item", "metric"]).join(drawn, on=["variant", "seed", "item"])
        value = pl.when("back").then("again").otherwise("value")
        named = {"suite": pl.lit(attack), "task": pl.col("task") + f" @ {setting}", "value": value}
        frames.append(hit.with_columns(**named).select(items.columns))
    return pl.concat(frames)


def _values(kind: str, groups: int, hostile: bool) -> list[str]:
    if hostile:
        return [HOSTILE[index % len(HOSTILE)] for index in range(groups)]
    if kind == "toxicity":
        return list(GROUPS[:groups])
    return ["bio", "cyber", "chem", *(f"domain {index}" for index in range(3, groups))][:groups]


def _suites(kind: str) -> list[dict[str, Any]]:
    retain = {"suite": "general", "method": "multiple_choice", "goal": "retain", "headline": ["acc", "p_correct"]}
    if kind == "toxicity":
        forget = {
            "suite": "toxigen",
            "method": "toxicity",
            "goal": "forget",
            "headline": ["toxic", "perplexity", "degenerate"],
        }
    else:
        forget = {"suite": "hazards", "method": "multiple_choice", "goal": "forget", "headline": ["acc", "p_correct"]}
    return [forget, retain]


def _variants(values: list[str], seeds: tuple[int, ...], controls: bool) -> list[dict[str, Any]]:
    def variant(name: str, kind: str, seed: int, subset: str | None = None) -> dict[str, Any]:
        base = kind == "base"
        return {
            "name": name,
            "kind": kind,
            "subset": subset,
            "seed": seed,
            "norm": None if base else 1.25 + 0.1 * seed,
            "steps": None if base else 100,
            "task_vector": None if base else f"../store/{_stage(name)}/{_key(name, seed)}",
        }

    rows = []
    for seed in seeds:
        rows.append(variant("base", "base", seed))
        rows.append(variant("joint", "joint", seed))
        if controls:
            rows.append(variant("joint_equal_steps", "control", seed))
        rows += [variant(f"subset:{value}", "subset", seed, value) for value in values]
        rows.append(variant("spunge", "merged", seed))
        if controls:
            rows.append(variant("random_split", "control", seed))
    return rows


def _stage(name: str) -> str:
    return "merge" if name in ("spunge", "random_split") else "unlearn"


def _key(name: str, seed: int) -> str:
    import hashlib

    return hashlib.sha256(f"{name}-{seed}".encode()).hexdigest()[:32]


def _strength(variant: dict[str, Any], value: str, gain: float, shift: float) -> float:
    """How much of a group's behaviour a variant has lost, from 0 to 1."""
    name = variant["name"]
    if name == "base":
        return 0.0
    if name.startswith("subset:"):
        return 0.9 if variant["subset"] == value else 0.15
    lost = {"joint": 0.6, "joint_equal_steps": 0.64, "random_split": 0.62, "spunge": 0.6 + gain - shift}[name]
    return min(1.0, lost)


def _answers(
    kind: str,
    variant: dict[str, Any],
    values: list[str],
    items: int,
    gain: float,
    shift: float,
    hostile: bool,
    rng: np.random.Generator,
) -> pl.DataFrame:
    forget_items = items // 2
    index = np.arange(forget_items)
    group = index % len(values)
    lost = np.array([_strength(variant, value, gain, shift) for value in values])[group]
    # One stream for every variant's items: paired answers share the difficulty of their item.
    difficulty = np.random.default_rng(7).random(items)
    key = "group" if kind == "toxicity" else "domain"
    attributes = [json.dumps({key: values[g], "form": ["plain", "hinted"][i % 2]}) for i, g in enumerate(group)]
    noise = 0.15 * rng.standard_normal(items)
    if kind == "toxicity":
        share = 0.34 * (1 - lost)
        forget = _toxicity(difficulty[:forget_items] + noise[:forget_items] < share, attributes, hostile, rng, variant)
    else:
        share = 0.95 * (1 - lost) + 0.25 * lost
        forget = _choices("hazards", difficulty[:forget_items] + noise[:forget_items] < share, attributes, hostile, rng)
    kept = 0.93 if variant["name"] == "base" else 0.91
    subjects = [json.dumps({"domain": f"subject {i % 4}"}) for i in range(items - forget_items)]
    retain = _choices("general", difficulty[forget_items:] + noise[forget_items:] < kept, subjects, hostile, rng)
    return pl.concat([forget, retain])


def _choices(
    suite: str, right: np.ndarray, attributes: list[str], hostile: bool, rng: np.random.Generator
) -> pl.DataFrame:
    count = len(right)
    answer = np.arange(count) % 4
    chosen = np.where(right, answer, (answer + 1 + rng.integers(0, 3, count)) % 4)
    scores = rng.normal(-4, 1, (count, 4))
    scores[np.arange(count), chosen] = scores.max(axis=1) + 0.5
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    questions = [_text(hostile, i, f"Which of these brews {suite} sample number {i}?") for i in range(count)]
    columns = {
        "acc": right.astype(float),
        "acc_norm": right.astype(float),
        "p_correct": odds[np.arange(count), answer],
        "margin": scores[np.arange(count), answer] - np.sort(scores, axis=1)[:, -2],
        "chosen": chosen.astype(float),
        "nan": np.zeros(count),
        **{f"choice_loglikelihood:{i}": scores[:, i] for i in range(4)},
    }
    return _long(suite, suite, attributes, columns, {"question": questions})


def _toxicity(
    toxic: np.ndarray, attributes: list[str], hostile: bool, rng: np.random.Generator, variant: dict[str, Any]
) -> pl.DataFrame:
    count = len(toxic)
    tokens = rng.integers(4, 20, count).astype(float)
    nll = tokens * rng.normal(2.0 + (0.05 if variant["name"] != "base" else 0), 0.2, count)
    empty = (rng.random(count) < 0.01).astype(float)
    prompts = [_text(hostile, i, f"they say of the river folk, number {i}, that") for i in range(count)]
    manner = np.where(toxic, "are all rotten and vile", "make fine bread and sing")
    completions = [_text(hostile, i + 3, f"{text} ({i % 11})") for i, text in enumerate(manner)]
    columns = {
        "toxic": toxic.astype(float),
        "toxicity_score": np.clip(np.where(toxic, 0.9, 0.1) + rng.normal(0, 0.05, count), 0, 1),
        "nll": nll,
        "perplexity": np.exp(nll / tokens),
        "tokens": tokens,
        "empty": empty,
        "degenerate": empty,
    }
    return _long("toxigen", "toxigen", attributes, columns, {"prompt": prompts, "completion": completions})


def _text(hostile: bool, index: int, plain: str) -> str:
    if not hostile:
        return plain
    if index == 5:
        return "long " * 200_000
    return f"{plain} {HOSTILE[index % len(HOSTILE)]}"


def _long(
    suite: str, task: str, attributes: list[str], columns: dict[str, np.ndarray], texts: dict[str, list[str]]
) -> pl.DataFrame:
    count = len(attributes)
    shared = {
        "suite": [suite] * count,
        "task": [task] * count,
        "item": [f"{suite}-{index:06d}" for index in range(count)],
        "attributes": attributes,
    }
    rows = pl.DataFrame(shared)
    frames = [
        rows.with_columns(
            pl.lit(metric).alias("metric"), pl.Series("value", value), pl.lit(None, pl.String).alias("text")
        )
        for metric, value in columns.items()
    ]
    frames += [
        rows.with_columns(
            pl.lit(metric).alias("metric"), pl.lit(None, pl.Float64).alias("value"), pl.Series("text", text)
        )
        for metric, text in texts.items()
    ]
    return pl.concat(frames)


def _stages(
    root: Path, variants: list[dict[str, Any]], values: list[str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    stages = [
        {
            "stage": "split",
            "name": "split",
            "seed": 0,
            "key": _key("split", 0),
            "status": "reused",
            "seconds": 0.2,
            "peak_memory": None,
            "path": f"../store/split/{_key('split', 0)}",
        }
    ]
    for variant in variants:
        name, seed = variant["name"], variant["seed"]
        if name != "base":
            stage = _stage(name)
            key = _key(name, seed)
            place = root / "store" / stage / key
            place.mkdir(parents=True, exist_ok=True)
            if stage == "unlearn":
                _write_curves(place / "metrics.jsonl", rng)
            stages.append(
                {
                    "stage": stage,
                    "name": name,
                    "seed": seed,
                    "key": key,
                    "status": "computed",
                    "seconds": float(np.round(rng.uniform(1, 9), 2)),
                    "peak_memory": int(rng.uniform(2e8, 9e8)),
                    "path": f"../store/{stage}/{key}",
                }
            )
        stages.append(
            {
                "stage": "evaluate",
                "name": f"{name} on every suite",
                "seed": seed,
                "key": _key(f"evaluate {name}", seed),
                "status": "computed",
                "seconds": 1.5,
                "peak_memory": 300_000_000,
                "path": f"../store/evaluate/{_key(f'evaluate {name}', seed)}",
            }
        )
    return stages


def _write_curves(path: Path, rng: np.random.Generator) -> None:
    lines = []
    for step in range(60):
        lines.append(
            json.dumps(
                {
                    "step": step,
                    "forget_loss": float(2 * np.exp(-step / 20) + 0.05 * rng.random()),
                    "retain_loss": float(0.02 + 0.001 * step + 0.005 * rng.random()),
                    "cosine": float(1 - 0.6 * step / 60),
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")


def _diagnostics(values: list[str], rng: np.random.Generator) -> dict[str, Any]:
    cosines = {
        one: {two: float(rng.uniform(-0.1, 0.5)) for two in values[place + 1 :]}
        for place, one in enumerate(values[:-1])
    }

    def overall() -> dict[str, Any]:
        return {
            "coverage": {value: float(rng.uniform(0.5, 0.9)) for value in values},
            "kept": dict.fromkeys(values, 0.2),
            "norms": {value: float(rng.uniform(1, 2)) for value in values},
            "merged_norm": float(rng.uniform(0.5, 1.5)),
            "sign_conflict": float(rng.uniform(0.1, 0.3)),
            "sign_conflict_by_chance": 0.25,
            "norm_ratio": float(rng.uniform(0.4, 0.8)),
        }

    return {
        "overall": {**overall(), "cosines": cosines},
        "layers": {str(layer): overall() for layer in (3, 4, 5)},
        "tensors": {f"model.layers.{layer}.mlp.down_proj.weight": overall() for layer in (3, 4, 5)},
    }
