"""One trial at one rung: unlearned by the stages of a run, merged in several ways, read at the λ of several damages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal

import polars as pl

from spunge import outside
from spunge.auto.asking import Asking
from spunge.auto.parts import Part
from spunge.auto.rungs import Rung
from spunge.auto.study import Setting
from spunge.errors import PredictsNothing, RecipeError, TrainingDiverged
from spunge.evaluators.attacks import Attack, Material
from spunge.files import remove
from spunge.interfaces import Evaluator, Splitter, Unlearner
from spunge.merging import Part as TaskVectorPart
from spunge.recipe import reading
from spunge.recipe.schema import AnyUnlearn, Damage, Experiment
from spunge.rows.items import ItemTable
from spunge.rows.sources import Corpus, Source, load_corpus
from spunge.run import steps
from spunge.run.damage import MatchDamage
from spunge.run.evaluate import Evaluate
from spunge.run.executors import Executor
from spunge.run.split import Split
from spunge.run.subsets import Rows, read_subsets
from spunge.run.variant import Base, Variant
from spunge.variants import BASE
from spunge.weights.language_model import LanguageModel

Arm = Literal["joint", "merged"]
ARMS: tuple[Arm, ...] = ("joint", "merged")

MERGES: Mapping[str, Mapping[str, Any]] = {
    "ties 1": {"method": "ties", "density": 1.0},
    "ties 0.2": {"method": "ties", "density": 0.2},
    "sum": {"method": "task_arithmetic"},
    "even sum": {"method": "task_arithmetic"},
}
"""How a merged trial is read, which costs no training. `even sum`: every subset's task vector weighs as much as if all
were of one length. The first is read at the first rung, too."""
_EVEN = "even sum"
_FIRST_MERGES = 1
_SHARES = (1.0, 3.0, 1 / 3)
"""Of the damage budget: what readings may do. The first two at the first rung; under an attack, which costs more than a
reading, the first alone."""
_FIRST_SHARES = 2


@dataclass(frozen=True)
class Reading:
    """One trained trial at one point."""

    arm: Arm
    number: int
    rung: int
    merge: str
    """A name in `MERGES`; empty for joint unlearning."""
    share: float
    """Of the damage budget that was allowed."""
    scale: float
    """The λ that does it."""
    damage: float | None
    """What it does; None without bound."""
    met: bool
    """Whether the budget was met: within 5 % below it, or by less than it at every λ."""
    forgotten: float
    """How much went, averaged over the items; 0 where the model gave NaN."""
    back: float | None = None
    """What of that an attack brings back; None where there is none."""
    lost: float = 0.0
    """Where both sets hold questions, how much of those that must stay went with it: damage on texts, most of whose
    tokens are no facts, hardly shows it."""

    @property
    def gone(self) -> float:
        """How much was forgotten beyond what was lost: an objective."""
        return self.forgotten - self.lost

    @property
    def lasting(self) -> float:
        """How much of that stays forgotten, under the attack where there is one: what is ranked and chosen by."""
        return self.gone - (self.back or 0.0)

    @property
    def costs(self) -> tuple[float, ...]:
        """The objectives, the less the better: damage, minus what was forgotten, what an attack brings back."""
        return inf if self.damage is None else self.damage, -self.gone, self.back or 0.0

    @property
    def trial(self) -> tuple[Arm, int, int, str]:
        """What it is a reading of: the arm, the trial's number, the rung's and the merge."""
        return self.arm, self.number, self.rung, self.merge

    @property
    def name(self) -> str:
        """What the sampler knows its point by."""
        return name_of(self.merge, self.share)

    @property
    def told(self) -> str:
        """In a few words where it is."""
        return f"{self.arm} {self.number}" + (f", {self.merge}" if self.merge else "")


def name_of(merge: str, share: float) -> str:
    """Returns the name of a point: how it is merged, and at which share of the damage budget it is read."""
    return f"{merge} at {share:.3g}".strip()


def points(arm: Arm, *, wide: bool, attacked: bool = False) -> list[tuple[str, float]]:
    """Returns the points at which a trial is read: merge and share of the damage budget."""
    merges = [""] if arm == "joint" else [*MERGES] if wide else [*MERGES][:_FIRST_MERGES]
    shares = _SHARES[:1] if attacked else _SHARES if wide else _SHARES[:_FIRST_SHARES]
    return [(merge, share) for merge in merges for share in shares]


@dataclass(frozen=True)
class Bench:
    """What all trials of a search share."""

    model: LanguageModel
    asking: Asking
    splitter: Splitter
    budget: float
    """Nats a token that the choice may cost."""
    executor: Executor
    seed: int = 0
    allow_code: bool = False
    against: type[Attack] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Base:
        """The base model."""
        return Base(self.model)

    @property
    def unchanged(self) -> Variant:
        """The base model as a variant."""
        return Variant(BASE.name, "base", self.seed)

    @cached_property
    def rows(self) -> Rows:
        """What is unlearned, and what is held on to."""
        parts = self.asking.parts
        forget, retain = (load_corpus([Source(path=str(path))]) for path in (parts.forget, parts.retain))
        return Rows(forget, retain)

    @cached_property
    def texts(self) -> Mapping[Part, Corpus]:
        """What damage is measured on."""
        return {part: load_corpus([Source(path=str(path))]) for part, path in self.asking.parts.damage.items()}

    def tokens(self, part: Part, most: int) -> int:
        """Returns how many tokens of a part there are to measure damage on, of so many that are wanted."""
        from spunge.asking.divergence import whole_texts

        return min(most, sum(map(len, whole_texts(self.model.load_tokenizer(), self.texts[part].texts, tokens=most))))

    def unlearner(self, setting: Setting, rung: Rung) -> Unlearner:
        """Returns a trial's method for a rung."""
        fields = {**setting.fixed, **setting.fields}
        kind = method_class(setting.method, allow_code=self.allow_code)
        if "epochs" in kind.model_fields and "epochs" not in fields:
            fields["epochs"] = rung.epochs
        return reading.validate(AnyUnlearn, {"method": setting.method, **fields}, "unlearn", allow_code=self.allow_code)

    def experiment(self, setting: Setting, rung: Rung, merge: str = "ties 1", name: str = "auto") -> Experiment:
        """Returns a trial as a recipe, judged on the rows that nothing was chosen on."""
        parts, rows = self.asking.parts, len(self.rows.forget)
        sample = None if rung.rows >= rows else max(4, rung.rows // max(len(self._names), 1))
        keep = self.asking.keep("test")
        return Experiment(
            name=name,
            model=self.model,
            forget={"sources": [{"path": str(parts.forget)}], "sample": sample},  # type: ignore[arg-type]
            retain={"sources": [{"path": str(parts.retain)}]},  # type: ignore[arg-type]
            split=self.splitter,  # type: ignore[arg-type]
            unlearn=self.unlearner(setting, rung),  # type: ignore[arg-type]
            merge=dict(MERGES[merge or "ties 1"]),  # type: ignore[arg-type]
            damage=Damage(
                near=[Source(path=str(parts.damage["choose"]))], budgets=[self.budget], headline=self.budget, tokens=512
            ),
            evaluate=[self.asking.forget("test"), *([keep] if keep else [])],  # type: ignore[list-item]
            controls=["joint"],
            seeds=[self.seed],
        )

    @cached_property
    def _names(self) -> list[str]:
        return [*self.subsets()]

    def subsets(self) -> Mapping[str, Corpus]:
        """Returns the forget set in its subsets, whole."""
        forget = self.rows.forget
        [artifact] = self.executor.run([Split(self.splitter, forget, self.base, self.seed)])
        return read_subsets(forget, artifact, self.splitter, None, self.seed)

    def trained(self, arm: Arm, setting: Setting, rung: Rung) -> list[Variant]:
        """Unlearns a trial as its arm does, or takes it from the store: one variant, or one a subset."""
        context = steps.Context(self.experiment(setting, rung), self.rows, self.executor, self.seed)
        subsets = steps.split(context)
        tasks = [steps.joint_task(context, subsets)] if arm == "joint" else steps.subset_tasks(context, subsets)
        [variants] = steps.unlearn(context, tasks)
        return variants

    def merged(self, arm: Arm, setting: Setting, rung: Rung, variants: Sequence[Variant], merge: str) -> Variant:
        """Merges a trial's subsets in one of the ways; of joint unlearning it is the model itself."""
        if arm == "joint":
            return variants[0]
        experiment = self.weighed(self.experiment(setting, rung, merge), merge, variants)
        context = steps.Context(experiment, self.rows, self.executor, self.seed)
        [(_, variant)] = steps.merge(context, "spunge", variants, steps.split(context))
        return variant

    def weighed(self, experiment: Experiment, merge: str, variants: Sequence[Variant]) -> Experiment:
        """Returns a trial's recipe with the weights of its merge, which are known once the subsets are unlearned."""
        if merge != _EVEN:
            return experiment
        return experiment.model_copy(update={"merge": experiment.merge.model_copy(update={"weights": _even(variants)})})

    def read(
        self, variant: Variant, shares: Sequence[float], part: Part, rung: Rung
    ) -> list[tuple[float, float, float | None, bool, Variant]]:
        """Finds the λ at which a variant does shares of the budget: (share, λ, damage, met, the variant there)."""
        budgets = tuple(share * self.budget for share in shares)
        damage = Damage(budgets=[*budgets], headline=budgets[0], tokens=rung.tokens)
        task = MatchDamage(variant, damage, budgets, self.texts[part], None, self.base)
        [artifact] = self.executor.run([task])
        return [
            (
                share, spent["scale"], spent["damage"], spent["status"] != "stepped" and bool(spent["damage"]),
                replace(variant, scale=variant.scale * spent["scale"]),
            )
            for share, spent in zip(shares, artifact.manifest["matches"], strict=True)
        ]  # fmt: skip

    def damage_of(self, variant: Variant, part: Part, tokens: int) -> float | None:
        """Returns the damage that a variant does as it is."""
        damage = Damage(budgets=[1e6], headline=1e6, longest=1.0, tokens=tokens)
        [artifact] = self.executor.run([MatchDamage(variant, damage, (1e6,), self.texts[part], None, self.base)])
        return next((damage for scale, damage, _ in artifact.manifest["line"] if scale == 1.0), None)

    def ask(self, variants: Sequence[Variant], suites: Sequence[Evaluator]) -> list[list[ItemTable]]:
        """Returns the items of every variant for every suite; empty tables of a model that cannot write."""
        tables = []
        for variant in variants:
            try:
                tasks = [Evaluate(variant, suite, self.base) for suite in suites]
                artifacts = steps.evaluated(self.executor, tasks)
                tables.append([pl.read_parquet(artifact.path / "items.parquet") for artifact in artifacts])
            except PredictsNothing:
                tables.append([pl.DataFrame() for _ in suites])
        return tables

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        """Makes a trial at a rung: JSON values with its `readings`, `seconds`, and why it `failed` if it did.

        Of the seconds, `trained` and `attacked` say what went into training and into attacks.
        """
        begun, trained, attacked = time.monotonic(), None, 0.0
        suites = self.asking.both("tune", rung.items)
        readings: list[Reading] = []
        failed = None
        try:
            variants = self.trained(arm, setting, rung)
            trained = time.monotonic() - begun
            [before] = self.ask([self.unchanged], suites)
            wanted = points(arm, wide=rung.wide, attacked=self.against is not None)
            for merge in dict.fromkeys(merge for merge, _ in wanted):
                variant = self.merged(arm, setting, rung, variants, merge)
                shares = [share for name, share in wanted if name == merge]
                spent = self.read(variant, shares, "tune", rung)
                tables = self.ask([there for *_, there in spent], suites)
                for (share, scale, damage, met, there), after in zip(spent, tables, strict=True):
                    forgotten, lost = self.changed(before, after)
                    asked = time.monotonic()
                    back = self.brought_back(there, "tune", rung.items, before[0], forgotten)
                    attacked += time.monotonic() - asked
                    at = (arm, setting.number, rung.number, merge, share)
                    readings.append(Reading(*at, scale, damage, met, forgotten, back, lost))
                if variant.artifact is not None and arm == "merged":
                    # A merge of a large model is larger than all of its parts, and is had again in seconds.
                    remove(variant.artifact.path)
        except (TrainingDiverged, PredictsNothing, RecipeError) as error:
            failed = str(error)
        return {
            "readings": [asdict(one) for one in readings],
            "seconds": time.monotonic() - begun,
            "trained": trained,
            "attacked": attacked,
            "failed": failed,
        }

    def changed(self, before: Sequence[ItemTable], after: Sequence[ItemTable]) -> tuple[float, float]:
        """Returns how much went of what must go and of what must stay, on the suites of `Asking.both`; 0 of NaN."""
        pairs = zip(before, after, strict=True)
        went = [mean_of(self.asking.forgotten(base, one) if one.height else []) for base, one in pairs]
        return went[0], sum(went[1:])

    def part(self, variant: Variant, directory: Path) -> TaskVectorPart:
        """Returns a variant as what is exported: its task vector and the λ at which it was asked."""
        assert variant.artifact is not None, "a trial has changed something"
        path = variant.artifact.path
        return TaskVectorPart(f"{directory}:{variant.name}", directory, variant.name, path, variant.scale, self.model)

    def brought_back(
        self, variant: Variant, part: Part, limit: int | None, before: ItemTable, forgotten: float
    ) -> float | None:
        """Returns what of that which was forgotten the attack brings back; None where there is no attack.

        A model that cannot be asked any more once it was attacked has nothing forgotten that could be relied on.
        """
        if self.against is None:
            return None
        left = self.left(variant, part, limit, before)
        return forgotten - (0.0 if left is None else left)

    def left(self, variant: Variant, part: Part, limit: int | None, before: ItemTable) -> float | None:
        """Returns how much is forgotten once the attack has done its worst; None where the model cannot be asked."""
        [[tables]] = self.ask([variant], [self.attack(part, limit)])
        if not tables.height:
            return None
        return min(mean_of(self.asking.forgotten(before, table)) for table in tables.partition_by("task"))

    def attack(self, part: Part, limit: int | None) -> Attack:
        """Returns what `--against` comes to on a part: the attack on the suite of what must go.

        Raises:
            SpungeError: It cannot be asked of this suite, or needs what there is not.
        """
        assert self.against is not None, "asked only where there is an attack"
        parts = self.asking.parts
        material = Material((Source(path=str(parts.forget)),), (Source(path=str(parts.retain)),))
        return next(self.against.against(self.asking.forget(part, limit), material, {}))


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def method_class(name: str, *, allow_code: bool = False) -> type[Unlearner]:
    """Returns the class of an unlearner by its name, or of one from outside as `package.module:Class`.

    Raises:
        RecipeError: There is none.
    """
    from spunge.recipe.schema import methods

    known = methods()["unlearn"]
    if name in known:
        kind: Any = known[name]
        return kind
    if ":" not in name:
        raise RecipeError(f"--methods {name}: no such method; there are {', '.join(known)}")
    with outside.code_from(Path.cwd(), allowed=allow_code):
        try:
            kind = outside.load(name)
        except ValueError as error:
            raise RecipeError(f"--methods {name}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Unlearner)):
        raise RecipeError(f"--methods {name}: not a class derived from Unlearner")
    return kind


def _even(variants: Sequence[Variant]) -> dict[str, float]:
    norms = {str(variant.subset): float(variant.artifact.manifest["norm"]) for variant in variants if variant.artifact}
    mean = sum(norms.values()) / len(norms)
    return {name: mean / norm for name, norm in norms.items()}
