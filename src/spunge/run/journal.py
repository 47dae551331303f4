"""The run's manifest: what ran, on what, with which result; while it runs a journal, a line a task; and the events."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from spunge.errors import redacted
from spunge.files import checksum, replace_text, writing
from spunge.recipe.schema import Experiment
from spunge.rows.items import JOURNAL, RUN_FORMAT
from spunge.run import sweep
from spunge.run.damage import MatchDamage, cautions
from spunge.run.environment import environment
from spunge.run.evaluate import Evaluate, Generate, Score
from spunge.run.executors import Task
from spunge.run.fitting import FitWeights, described
from spunge.run.identity import digest
from spunge.run.merge import Merge
from spunge.run.robustness import Robustness
from spunge.run.split import Split
from spunge.run.store import Artifact
from spunge.run.sweep import Point
from spunge.run.unlearn import Unlearn
from spunge.run.variant import Published, Variant
from spunge.variants import MERGED, RIVALS, ROLES, SUBSET

Listener = Callable[[str, Mapping[str, Any]], None]


def unheard(event: str, content: Mapping[str, Any], /) -> None:
    """The listener to a run's events that does not mind them."""


@dataclass
class Outcome:
    """What an experiment comes to."""

    variants: list[Variant] = field(default_factory=list)
    evaluations: list[tuple[Variant, Artifact]] = field(default_factory=list)
    """For every variant the artifacts of its evaluations."""
    points: list[Point] = field(default_factory=list)
    """Of a sweep: every setting that was tried, as it did on the validation part."""
    matches: list[Mapping[str, Any]] = field(default_factory=list)
    """Where each variant spends each budget of damage."""
    curve: list[Mapping[str, Any]] = field(default_factory=list)
    """What each variant does to the rest, λ by λ."""
    elsewhere: list[Mapping[str, Any]] = field(default_factory=list)
    """Which variants were asked at other points of their curves."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the report must know of how it came about."""


@dataclass
class Journal:
    """Appends a line to the run's journal after every task, and writes its manifest when its status changes.

    The manifest holds every merge's diagnostics, k × k cosines of every layer: written anew after each of some 4 k
    tasks it took half of the time of a run with 100 subsets. A line counts until a manifest holds what it says.
    """

    directory: Path
    experiment: Experiment
    device: str
    command: str
    listener: Listener = unheard
    warnings: Sequence[str] = ()
    """What was known before the run began (see `cautions`)."""
    near: str = ""
    """What the texts are that damage near what must go is measured on."""
    robustness: Robustness = field(default_factory=Robustness)
    """The attacks that every variant is put to."""
    seen: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Suite → how many of its questions stand in the forget set, of how many."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    split: dict[str, Any] | None = None
    subsets: dict[str, int] = field(default_factory=dict)
    merges: dict[str, Any] = field(default_factory=dict)
    weights: list[dict[str, Any]] = field(default_factory=list)
    """Of every merge whose weights were fitted, which were tried and which chosen."""
    devices: Counter[str] = field(default_factory=Counter)
    """Kind of device → how many artifacts were made on it."""
    _rounding_told: bool = False

    def note(self, task: Task, artifact: Artifact) -> None:
        """Notes a finished task."""
        manifest = artifact.manifest
        if isinstance(task, Unlearn | MatchDamage | FitWeights | Generate | Score | Evaluate) and "device" in manifest:
            self.devices[manifest["device"].partition(":")[0]] += 1
        stage = {
            "stage": task.stage, "name": task.name, "seed": task.seed, "key": artifact.key,
            "status": "reused" if artifact.reused else "computed",
            "seconds": manifest.get("seconds"), "peak_memory": manifest.get("peak_memory"),
            "path": f"../store/{task.stage}/{artifact.key}",
        }  # fmt: skip
        line: dict[str, Any] = {"number": len(self.stages), "stage": stage}
        self.stages.append(stage)
        if isinstance(task, Split) and self.split is None:
            self.split = self._split(task, manifest["subsets"])
            line["split"] = self._settled()
        if isinstance(task, Unlearn) and task.name.startswith(SUBSET):
            self.subsets[task.name.removeprefix(SUBSET)] = len(task.forget)
        if isinstance(task, FitWeights):
            self.weights.append(described(task, manifest))
        if isinstance(task, Merge) and task.name == MERGED.name:  # of a sweep, the picked one is noted at the end
            self.merges[str(task.seed)] = manifest["diagnostics"]
            # Told at once: what follows asks a model that is hardly another.
            if (caution := _caution_of_rounding([manifest["diagnostics"]])) and not self._rounding_told:
                self._rounding_told = True
                self.listener("warned", {"warnings": [caution]})
            line |= {"split": self._settled(), "merge": {str(task.seed): manifest["diagnostics"]}}
        self._append(line)
        suite = {"variant": task.variant.name, "suite": task.evaluator.suite} if isinstance(task, Evaluate) else {}
        self.listener("finished", {**stage, **suite, "figures": manifest.get("figures", {})})

    def _append(self, line: Mapping[str, Any]) -> None:
        """Appends a line; it is not brought to the disk, as the store alone says what need not be made again."""
        path = self.directory / JOURNAL
        # One write a line: who reads meanwhile sees lines that are whole, but for the last.
        with writing(path), path.open("a", encoding="utf-8") as journal:
            journal.write(redacted(json.dumps(line, ensure_ascii=False)) + "\n")

    def write(
        self,
        status: str,
        outcome: Outcome | None = None,
        *,
        warnings: Sequence[str] = (),
        files: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes manifest.json, which then holds what the journal's lines say."""
        outcome = outcome or Outcome()
        for variant in outcome.variants:
            if variant.kind == MERGED.kind and variant.artifact is not None:
                self.merges[str(variant.seed)] = variant.artifact.manifest["diagnostics"]
        experiment = self.experiment
        manifest = {
            "format": RUN_FORMAT, "status": status,
            "experiment": experiment.name, "description": experiment.description,
            "version": metadata.version("spunge"), "command": self.command,
            "model": {**experiment.model.model_dump(include={"id", "revision"}), "digest": digest(experiment.model)},
            "seeds": experiment.seeds,
            "suites": [asked.described for asked in (*experiment.evaluate, *self.robustness.attacks)],
            "split": self._settled(), "variants": [_described(variant) for variant in outcome.variants],
            "stages": self.stages, "merge": self.merges, "search": getattr(experiment.unlearn, "trials", []),
            "weights": self.weights,
            "sweep": sweep.described(experiment.sweep, sweep.on_validation(experiment), outcome.points),
            "damage": self._damage(outcome), "environment": environment(self.device), "files": dict(files or {}),
            "warnings": [
                *self._cautions(), *self._unmatched(outcome), *dict.fromkeys(outcome.notes), *warnings
            ], "seen": {suite: [*counts] for suite, counts in self.seen.items()}, "not_run": self._not_run(),
        }  # fmt: skip
        written = json.loads(redacted(json.dumps(manifest, ensure_ascii=False)))
        written["checksum"] = checksum(written)
        journal = self.directory / JOURNAL
        with writing(self.directory):
            if not self.stages:  # what lies there is of an earlier run, which was killed
                journal.unlink(missing_ok=True)
            replace_text(self.directory / "manifest.json", json.dumps(written, indent=1, ensure_ascii=False))
            journal.unlink(missing_ok=True)

    def _damage(self, outcome: Outcome) -> dict[str, Any] | None:
        """At which damage the variants are compared; None where it was not measured, or not yet."""
        damage = self.experiment.damage
        if damage is None or not outcome.matches:
            return None
        return {
            "unit": "KL per token" if damage.suite is None else f"of its score on “{damage.suite}” lost",
            "headline": damage.headline, "budgets": damage.budgets, "near": self.near,
            "far": None if damage.far is None or damage.suite else "the texts named in the recipe as far",
            "matches": outcome.matches, "curve": outcome.curve, "elsewhere": outcome.elsewhere,
        }  # fmt: skip

    def _unmatched(self, outcome: Outcome) -> list[str]:
        damage = self.experiment.damage
        return [] if damage is None else cautions(outcome.matches, damage.headline)

    def _not_run(self) -> list[str]:
        """What an experiment can ask and this one did not, lest a reader take silence for a result."""
        missing = [
            f"{name.replace('_', ' ')}: not among the recipe's controls"
            for name in RIVALS
            if name not in self.experiment.controls
        ]
        missing += [f"{name.replace('_', ' ')}: {why}" for name, why in self.experiment.left_out.items()]
        if self.experiment.damage is None:
            why = "no retain set to measure it on" if self.experiment.retain is None else "the recipe leaves it out"
            missing.append(f"the same damage to the rest for all ({why}): each is at its own λ")
        elif self.experiment.damage.far is None:
            missing.append("damage far from what must go: the recipe names no texts for it (`damage.far`)")
        missing += [f"{attack}: {why}" for attack, why in self.robustness.left_out.items()]
        if not self.robustness.attacks and not any("attacks" in one.described for one in self.experiment.evaluate):
            missing.append("attacks: the recipe asks for none (`robustness: cheap` or `full`)")
        elif self.experiment.robustness == "cheap":
            missing.append("attacks that train, and all items under the others (`robustness: full`)")
        return missing

    def _cautions(self) -> list[str]:
        """What a reader of the comparisons must know of the recipe."""
        cautions = list(self.warnings)
        if caution := _caution_of_rounding(list(self.merges.values())):
            cautions.append(caution)
        cautions += dict.fromkeys(line for merge in self.merges.values() for line in merge.get("warnings", ()))
        factor = self.experiment.merge.lambda_
        swept = "merge.lambda" in self.experiment.sweep
        matched = self.experiment.damage is not None
        joint = {name for name, role in ROLES.items() if role.kind == "joint"}
        if factor != 1.0 and not swept and not matched and joint & set(self.experiment.controls):
            cautions.append(
                f"The merged model's task vector is scaled by λ = {factor:g}, the joint baselines' are not: "
                "a difference between them may be one of scale."
            )
        if len(self.devices) > 1:
            made = ", ".join(f"{count} on {device}" for device, count in self.devices.most_common())
            cautions.append(
                f"Results were computed on different kinds of device ({made}), which round differently: "
                "small differences between variants may come from that."
            )
        return cautions

    def _split(self, task: Split, subsets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        counted = [0] * len(task.forget)
        for indices in subsets.values():
            for index in indices:
                counted[index] += 1
        return {
            "attribute": getattr(task.splitter, "column", None) or getattr(task.splitter, "by", task.name),
            "rows": len(task.forget), "digest": task.forget.fingerprint, "covered": sum(count > 0 for count in counted),
            "overlapping": sum(count > 1 for count in counted),
            "found": {name: len(indices) for name, indices in sorted(subsets.items())},
        }  # fmt: skip

    def _settled(self) -> dict[str, Any] | None:
        """The split with what the processing left of each subset."""
        if self.split is None:
            return None
        dropped = {
            name: rows for name, rows in self.split["found"].items() if self.subsets and name not in self.subsets
        }
        return {
            **self.split,
            "subsets": [{"name": name, "rows": rows} for name, rows in self.subsets.items()],
            "dropped": [{"name": name, "rows": rows, "reason": "under min_size"} for name, rows in dropped.items()],
        }


def _caution_of_rounding(merges: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the merge that lost most."""
    from spunge.merging import caution_of_rounding  # torch, which a plan does without

    return caution_of_rounding(max((merge.get("rounding") or 0.0 for merge in merges), default=None))


def _described(variant: Variant) -> dict[str, Any]:
    artifact = None if isinstance(variant, Published) else variant.artifact
    return {
        "name": variant.name, "kind": variant.kind, "subset": variant.subset, "seed": variant.seed,
        "norm": artifact.manifest.get("norm") if artifact else None,
        "steps": artifact.manifest.get("steps") if artifact else None,
        "task_vector": f"../store/{artifact.manifest['stage']}/{artifact.key}" if artifact else None,
        "scale": variant.scale,
    }  # fmt: skip
