"""An audit of models that anyone unlearned with anything: forgotten, kept, at what damage, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from spunge import report
from spunge.errors import DataError, RecipeError, redacted
from spunge.evaluators.attacks import Attack, Material
from spunge.files import checksum, locked, replace_text
from spunge.interfaces import Evaluator, Progress, silent
from spunge.merging import Part
from spunge.recipe.schema import Damage
from spunge.rows.items import RUN_FORMAT
from spunge.rows.sources import Source, load_corpus
from spunge.run.cautions import refuse_foreign
from spunge.run.compute import HERE, Compute
from spunge.run.damage import MatchDamage
from spunge.run.environment import environment
from spunge.run.evaluate import Evaluate
from spunge.run.executors import Task
from spunge.run.executors.planned import Planned
from spunge.run.journal import Listener, unheard
from spunge.run.parts import find
from spunge.run.pipeline import write_items
from spunge.run.robustness import chosen
from spunge.run.steps import evaluated
from spunge.run.store import Artifact, Store
from spunge.run.variant import Base, Published, Variant
from spunge.variants import AUDITED, BASE, ORACLE
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import shape_of


@dataclass(frozen=True)
class Audit:
    """What is audited, and with what."""

    base: LanguageModel
    models: Sequence[str]
    """Directories or hub ids of models of this base, or parts of runs."""
    suites: Sequence[Evaluator]
    """What they are asked: of what must go, and of what must stay."""
    attacks: Sequence[type[Attack]]
    """Which, as `attacks_named` returns them."""
    sampled: bool = False
    """Whether they are asked on samples of the items, as the cheap ones are."""
    oracle: str | None = None
    """A model that never knew what must go: what an unlearned one should be like."""
    forget: Sequence[Source] = ()
    """Rows of what was to go, for the attacks that train."""
    retain: Sequence[Source] = ()
    """Rows of what was to stay, on which damage is measured, and for the attacks that train."""
    unseen: Sequence[Source] = ()
    """Rows like those of what was to go that the base model was never trained on, to tell what it was from."""
    by: str | None = None
    """The attribute whose values are told apart: a column of the forget rows, of the items, or both."""


def audit(
    what: Audit,
    out: Path,
    *,
    compute: Compute = HERE,
    progress: Progress = silent,
    listener: Listener = unheard,
    command: str = "",
) -> Path:
    """Asks base, models and oracle all suites under all attacks, and writes one page; returns the directory.

    What was asked already is not asked again: the answers lie in a store within the directory.

    Args:
        what: What is audited.
        out: The directory, new or of an earlier audit.
        compute: On what, and in how many processes.
        progress: Told of every step.
        listener: Told of the events, as of a run's.
        command: What the user typed, noted in the report.

    Raises:
        SpungeError: Something is missing or wrong; nothing was written then.
    """
    device = compute.chosen_device
    model = what.base if compute.dtype is None else what.base.model_copy(update={"dtype": compute.dtype})
    base = Base(model)
    _check(what.suites, model)
    variants = [Variant(BASE.name, BASE.kind, 0), *_published(what, base)]
    kept = next((suite for suite in what.suites if suite.goal == "retain" and not isinstance(suite, Attack)), None)
    material = Material(tuple(what.forget), tuple(what.retain), tuple(what.unseen), what.by, kept)
    found = chosen(what.attacks, what.suites, material, model, sampled=what.sampled)
    if found.left_out:
        listener("warned", {"warnings": [f"not asked: {attack}: {why}" for attack, why in found.left_out.items()]})
    asked = [*what.suites, *found.attacks]
    measured = _measured(what, base, variants[1:])
    tasks = [Evaluate(one, suite, base) for one in variants for suite in asked]
    store = Store(out / "store")
    with Planned(store, device) as planned:  # what is wrong is found before anything is written
        planned.run(measured)
        evaluated(planned, tasks)
    refuse_foreign(out)
    noted = _Noted(listener)
    with locked(out, "another audit is at work there; wait for it, or give another --out"), store.held():
        manifest = _manifest(what, base, asked, found.left_out, device)
        manifest |= {"experiment": out.resolve().name, "command": command}
        _write(out, manifest)
        listener("planned", {"steps": planned.steps})
        with compute.start(store, progress, noted.note) as executor:
            damages = executor.run(measured)
            answers = evaluated(executor, tasks)
        write_items(out, [(task.variant, artifact) for task, artifact in zip(tasks, answers, strict=True)])
        far = {task.name: artifact.manifest["line"][-1][1] for task, artifact in zip(measured, damages, strict=True)}
        manifest |= {
            "status": "done", "stages": noted.stages,
            "variants": [{"name": one.name, "kind": one.kind, "seed": 0, "kl": far.get(one.name)} for one in variants],
        }  # fmt: skip
        _write(out, manifest)
        report.write(out, ending=True)
    return out


def _check(suites: Sequence[Evaluator], model: LanguageModel) -> None:
    """Refuses suites that cannot be asked, or of which none asks for what must go."""
    if not any(suite.goal == "forget" for suite in suites):
        raise DataError("audit: no suite asks for what must go (`goal: forget`)")
    for suite in suites:
        suite.check()
        suite.forecast(model)


def _measured(what: Audit, base: Base, variants: Sequence[Variant]) -> list[MatchDamage]:
    """The tasks that measure what each model did to texts of what must stay, where there are any."""
    if not what.retain:
        return []
    damage, texts = Damage(length=min(Damage().length, shape_of(base.model).window)), load_corpus(what.retain)
    return [MatchDamage(variant, damage, (), texts, None, base) for variant in variants]


def _manifest(
    what: Audit, base: Base, asked: Sequence[Evaluator], left_out: Mapping[str, str], device: str
) -> dict[str, Any]:
    """What the manifest says before anything is asked."""
    model = base.model
    return {
        "format": RUN_FORMAT, "status": "running", "version": metadata.version("spunge"), "seeds": [0],
        "model": {**model.model_dump(include={"id", "revision"}), "digest": base.digest},
        "suites": [one.described for one in asked], "split": {"attribute": what.by or _attribute(what.suites)},
        "environment": environment(device), "not_run": [f"{name}: {why}" for name, why in left_out.items()],
    }  # fmt: skip


@dataclass
class _Noted:
    """What ran, for the report, and for whoever listens."""

    listener: Listener
    stages: list[dict[str, Any]] = field(default_factory=list)

    def note(self, task: Task, artifact: Artifact) -> None:
        """Notes a finished task."""
        stage = {
            "stage": task.stage, "name": task.name, "seed": task.seed, "key": artifact.key,
            "status": "reused" if artifact.reused else "computed", "seconds": artifact.manifest.get("seconds"),
            "peak_memory": artifact.manifest.get("peak_memory"),
        }  # fmt: skip
        self.stages.append(stage)
        about = {"variant": task.variant.name, "suite": task.evaluator.suite} if isinstance(task, Evaluate) else {}
        self.listener("finished", {**stage, **about, "figures": artifact.manifest.get("figures", {})})


def _published(what: Audit, base: Base) -> list[Variant]:
    """The models and the oracle as variants; each is opened, so that what does not fit the base is said at once."""
    found = {model: find(model) for model in (*what.models, *([what.oracle] if what.oracle is not None else []))}
    parts = {model: one for model, one in found.items() if isinstance(one, Part)}
    named = [(parts[model].name if model in parts else Path(model).name or model, model) for model in what.models]
    if len({model for _, model in named}) < len(named):
        raise RecipeError("a model is named twice: name each once")
    names = [name for name, _ in named]
    titled = [
        (model if names.count(name) > 1 or name in (BASE.name, ORACLE.name) else name, AUDITED, model)
        for name, model in named
    ]
    if what.oracle is not None:
        titled.append((ORACLE.name, ORACLE.kind, what.oracle))
    variants: list[Variant] = []
    for name, kind, model in titled:
        handle = LanguageModel(id=str(parts[model].path) if model in parts else model)
        scale = parts[model].scale if model in parts else 1.0
        published = Published.of(name, kind, handle, base, scale=scale)
        published.change()
        variants.append(published)
    return variants


def _attribute(suites: Sequence[Evaluator]) -> str | None:
    """The first attribute of what must go."""
    attributes = (getattr(suite, "attributes", ()) for suite in suites if suite.goal == "forget")
    return next((each[0] for each in attributes if each), None)


def _write(out: Path, manifest: Mapping[str, Any]) -> None:
    written = json.loads(redacted(json.dumps(manifest, ensure_ascii=False)))
    written["checksum"] = checksum(written)
    replace_text(out / "manifest.json", json.dumps(written, indent=1, ensure_ascii=False))
