"""The recipe: one experiment as settings, what its parts are and which of them fit together; torch-free."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, WrapValidator, field_validator, model_validator

from spunge import outside
from spunge.errors import first_line
from spunge.evaluators import AnyEvaluator
from spunge.evaluators.attacks import ATTACKS, Attack
from spunge.interfaces import Evaluator, Merger, Splitter, Unlearner
from spunge.mergers import AnyMerger
from spunge.recipe.mistakes import in_settings, models, near, tag
from spunge.recipe.paths import dotted
from spunge.rows.sources import Source
from spunge.settings import Settings, is_shipped, name_of
from spunge.splitters import AnySplitter, ByFunction
from spunge.unlearners import AnyUnlearner
from spunge.variants import Control
from spunge.weights.language_model import LanguageModel

M = TypeVar("M", bound=Settings)
MAX_POINTS = 10_000
"""Of a sweep: each is a merge and an evaluation."""


class _FromOutside:
    """Lets a recipe name a class out of tree: `method: package.module:Class`. Its code runs, if that is allowed."""

    def __init__(self, kind: type[Settings], discriminator: str) -> None:
        self.kind = kind
        self.discriminator = discriminator

    def __call__(self, value: Any, validate_shipped: Any) -> Any:
        if isinstance(value, self.kind):
            return value
        target = value.get(self.discriminator) if isinstance(value, Mapping) else None
        if not (isinstance(target, str) and ":" in target):
            return validate_shipped(value)
        method = outside.load(target)
        if not (isinstance(method, type) and issubclass(method, self.kind)):
            raise ValueError(f"{target!r} is not a class derived from {self.kind.__name__}")
        try:
            return method.model_validate({key: part for key, part in value.items() if key != self.discriminator})
        except ValueError:  # pydantic's own among them, with their place
            raise
        except Exception as error:  # another's code may raise anything; a class without its verb a TypeError
            raise ValueError(f"{target!r}: {type(error).__name__}: {first_line(error)}") from error


AnySplit = Annotated[SerializeAsAny[AnySplitter], WrapValidator(_FromOutside(Splitter, "by"))]
AnyUnlearn = Annotated[SerializeAsAny[AnyUnlearner], WrapValidator(_FromOutside(Unlearner, "method"))]
AnyMerge = Annotated[SerializeAsAny[AnyMerger], WrapValidator(_FromOutside(Merger, "method"))]
AnyEvaluate = Annotated[SerializeAsAny[AnyEvaluator], WrapValidator(_FromOutside(Evaluator, "method"))]


class ForgetSet(Settings):
    """What must go, and the processing that each subset goes through after the split (P in the paper's Algorithm 1)."""

    sources: list[Source] = Field(min_length=1)
    """Where the rows come from."""
    where: str | None = None
    """Keep only rows for which this polars SQL expression is true, such as `toxicity_human >= 3`."""
    sample: int | None = Field(default=None, ge=1)
    """Draw so many rows of each subset at random, by the seed."""
    max_rows: int | None = Field(default=None, ge=1)
    """Keep at most the first so many rows of each subset."""


class RetainSet(Settings):
    """What must stay."""

    sources: list[Source] = Field(min_length=1)
    """Where the rows come from."""
    match: Literal["subset"] | None = None
    """`subset`: each subset retains only the retain rows that the same split puts into it; null: all of them."""
    others: bool = False
    """Whether each subset retains the other subsets' rows too, in turn with the retain rows, so that its task vector is
    its own: what they share, such as damage to the language at large, is held back in each."""


class Joint(Settings):
    """The joint baseline: the same method on the whole forget set."""

    data: Literal["union", "all"] = "union"
    """`union`: the subsets' rows after processing; `all`: the whole forget set after processing."""
    overrides: dict[str, Any] = {}
    """Fields of `unlearn` with other values for this baseline; null resets one to its default."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "overrides" in value:
            return value
        return {
            "data": value.get("data", "union"),
            "overrides": {name: part for name, part in value.items() if name != "data"},
        }


class Anchor(Settings):
    """Turns task vectors away from what the retain set's inputs meet: Δ (I + μC)⁻¹ in every linear layer.

    C is the mean of x xᵀ over the layer's inputs on the retain set, first tokens apart, brought to a mean eigenvalue
    of 1.
    """

    mu: float = Field(default=3.0, gt=0)
    """How much it counts that outputs on the retain set stay those of the base model, against how near the task vector
    stays to what was learnt."""
    rows: int = Field(default=256, ge=1)
    """The first so many rows of the retain set are read."""


class Damage(Settings):
    """The damage to the rest at which variants are compared: the mean KL divergence per token from the base model."""

    outside_key: ClassVar[frozenset[str]] = frozenset({"headline", "near", "far", "also"})

    budgets: list[float] = Field(default=[0.03], min_length=1)
    """Nats per token, or of a suite's score the share lost; for each the λ is found that does so much. Left out: the
    headline alone."""
    headline: float = 0.03
    """The budget at which every rival and the merged model are asked the suites. Left out: the first of the budgets,
    where 0.03 is none of them."""
    near: list[Source] | None = None
    """Benign text about what must go: the same groups, neighbouring subjects; null: the half of the retain set that has
    most words in common with the forget set."""
    far: list[Source] | None = None
    """Text about anything else, such as an encyclopaedia's; null: only near damage is known."""
    suite: str | None = None
    """A retain suite whose score is to measure the damage instead of the divergence near what must go: a budget of 0.05
    is 5 % of the base model's score. It is asked on items of its own, which no table shows."""
    also: list[Literal["own", "far"] | float] = []
    """Where else the forget suites are asked: at the λ of the recipe (`own`), at the headline budget of the far texts
    (`far`), at other budgets."""
    tokens: int = Field(default=256, ge=1)
    """How many tokens are read near, and as many far."""
    length: int = Field(default=128, ge=2)
    """Of how many tokens each text is; the first token alone would not tell."""
    longest: float = Field(default=8.0, gt=0)
    """The largest λ to try."""

    @model_validator(mode="before")
    @classmethod
    def _name_one_budget_once(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        budgets, headline = value.get("budgets"), value.get("headline")
        if budgets is None and headline is not None:
            return {**value, "budgets": [headline]}
        if headline is None and isinstance(budgets, list) and budgets and 0.03 not in budgets:
            return {**value, "headline": budgets[0]}
        return value

    @model_validator(mode="after")
    def _points_can_be_asked(self) -> Damage:
        if not all(budget > 0 for budget in self.budgets):
            raise ValueError("budgets: each must be above 0")
        for name, points in (("headline", [self.headline]), ("also", self.also)):
            for point in points:
                if not isinstance(point, str) and point not in self.budgets:
                    raise ValueError(f"{name}: {point:g} is none of the budgets; add it to them")
        if "far" in self.also and self.far is None:
            raise ValueError("also: `far` needs texts: say where `far` is")
        return self


class Experiment(Settings):
    """One experiment: what to forget, how to split it, how to unlearn, merge and evaluate."""

    name: str
    """The name of its directory under the runs root."""
    description: str | None = None
    """What the experiment asks, in a sentence."""
    model: LanguageModel
    """The base model."""
    forget: ForgetSet
    """What must go."""
    retain: RetainSet | None = None
    """What must stay, for the methods that hold on to it while they unlearn."""
    split: AnySplit
    """How the forget set is split into subsets."""
    unlearn: AnyUnlearn
    """The method that unlearns each subset."""
    joint: Joint = Joint()
    """The joint baseline's own data and settings."""
    subsets: dict[str, dict[str, Any]] = {}
    """Subset name → fields of `unlearn` with other values for it; null resets one to its default."""
    merge: AnyMerge
    """How the unlearned models become one."""
    sweep: dict[str, list[Any]] = {}
    """`merge.density: [0.1, 0.2]` and so on: every combination is merged and evaluated on the validation part of the
    items, and the best goes into the tables, which are of the other items; λ is also tried on the joint baselines."""
    anchor: Anchor | None = None
    """Anchor the merged model and all that is compared with it to the retain set; null: leave them as they are."""
    damage: Damage | None = None
    """Compare the merged model, the joint baselines, the random split and the subsets in turn at the same damage to the
    retain set, each at the λ that does it. Left out: so wherever there is a retain set and `sweep` chooses no λ; null:
    each at its own λ."""
    evaluate: list[AnyEvaluate] = Field(min_length=1)
    """What every variant is asked."""
    ask_subsets: Literal["sample", "all"] = "sample"
    """What the models of one subset alone are asked of a suite of texts, prompts or choices: the items about it, by
    their attributes, and a random fifth of all (thirty at least); or all. They are compared on what both were asked."""
    robustness: Literal["cheap", "full"] | list[str] | None = None
    """Which attacks are asked of every variant on every suite of what must go: `cheap`, those that train nothing, on
    samples of the items that together cost less than half of the evaluation; `full`, all; or some by name, those from
    outside the package as `package.module:Class`. An attack with settings of its own stands under `evaluate` instead.
    See docs/robustness.md."""
    oracle: LanguageModel | None = None
    """A model that never knew what must go, of the base's shape: taught as the base was, but without the forget set. It
    is asked all that the others are, and what attacks bring back is measured from what it answers."""
    controls: list[Control] = ["joint", "joint_equal_steps", "random_split"]
    """The baselines that decide whether splitting helped: see docs/architecture.md."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Everything is run once for each seed."""

    @model_validator(mode="before")
    @classmethod
    def _match_damage_where_it_can_be(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "damage" in value or value.get("retain") is None:
            return value
        sweep = value.get("sweep")
        return value if isinstance(sweep, Mapping) and "merge.lambda" in sweep else {**value, "damage": {}}

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("must be letters, digits, '.', '_' and '-' (at most 100): it names a directory")
        if name == "store":
            raise ValueError("is the store's own directory: choose another")
        return name

    @field_validator("evaluate")
    @classmethod
    def _distinct_suites(cls, evaluators: list[Evaluator]) -> list[Evaluator]:
        name, count = Counter(evaluator.suite for evaluator in evaluators).most_common(1)[0]
        if count > 1:
            raise ValueError(f"suite {name!r} is named twice: give each its own name")
        return evaluators

    @field_validator("robustness")
    @classmethod
    def _attacks_are_known(cls, robustness: Any) -> Any:
        if isinstance(robustness, list):
            for name in robustness:
                _ = attack_named(name)
            if len(set(robustness)) < len(robustness):
                raise ValueError("an attack is named twice")
        return robustness

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @model_validator(mode="after")
    def _subsets_can_be_matched(self) -> Experiment:
        if self.retain is not None and self.retain.match and not self.split.comparable:
            raise ValueError(f"retain.match: {type(self.split).__name__}'s subsets are of the forget set alone")
        return self

    @model_validator(mode="after")
    def _retain_is_there(self) -> Experiment:
        if self.anchor is not None and self.retain is None:
            raise ValueError("anchor: it is the retain set that variants are anchored to: say where `retain` is")
        if self.damage is None:
            return self
        if self.damage.near is None and self.retain is None and self.damage.suite is None:
            raise ValueError("damage: it is measured on the retain set: say where `retain` is, or `damage.near`")
        if self.damage.suite is not None and self.damage_suite is None:
            raise ValueError(f"damage.suite: {self.damage.suite!r} is no retain suite whose items have parts")
        return self

    @property
    def damage_suite(self) -> Evaluator | None:
        """The retain suite whose score measures the damage, on the items that λ is chosen on."""
        if self.damage is None or self.damage.suite is None:
            return None
        suites = (one for one in self.evaluate if one.suite == self.damage.suite and one.goal == "retain")
        suite = next((one for one in suites if "part" in type(one).model_fields), None)
        return suite and suite.model_copy(update={"part": "choose"})

    @model_validator(mode="after")
    def _overrides_hold(self) -> Experiment:
        _overridden(self.unlearn, self.joint.overrides, "joint")
        for subset, fields in self.subsets.items():
            _overridden(self.unlearn, fields, dotted(["subsets", subset]))
        if self.merge.needs().grams and self.retain is None:
            raise ValueError(f"merge: {type(self.merge).__name__} fits the retain set as well: say where `retain` is")
        return self

    @model_validator(mode="after")
    def _sweep_holds(self) -> Experiment:
        if not self.sweep:
            return self
        for name, values in self.sweep.items():
            if not name.startswith("merge.") or not values:
                raise ValueError(f"sweep.{name}: write merge.<setting>: [value, …]; nothing else is swept in one run")
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                raise ValueError(f"sweep.{name}: a value is named twice")
        if (points := math.prod(map(len, self.sweep.values()))) > MAX_POINTS:
            raise ValueError(f"sweep: {points} combinations are more than a run may try ({MAX_POINTS}): name fewer")
        _ = self.grid  # every combination must be a merger
        parted = [evaluator for evaluator in self.evaluate if "part" in type(evaluator).model_fields]
        if {evaluator.goal for evaluator in parted} != {"forget", "retain"}:
            raise ValueError(
                "sweep: picks between forgetting and retaining, so it needs a suite of each goal whose items have parts"
            )
        if any(getattr(evaluator, "part") == "validation" for evaluator in parted):  # noqa: B009
            raise ValueError("sweep: the validation part is what it picks on: leave `part` of the suites alone")
        return self

    @model_validator(mode="after")
    def _weights_can_be_fitted(self) -> Experiment:
        if not self.fits_weights:
            return self
        if self.damage is None:
            raise ValueError("merge.weights: fitted compares at the same damage: say where `retain` is, or `damage`")
        if not any("part" in type(one).model_fields for one in self.evaluate if one.goal == "forget"):
            raise ValueError("merge.weights: fitted needs a suite of what must go whose items have parts to choose on")
        if any(getattr(one, "part", "all") not in ("all", "test") for one in self.evaluate):
            raise ValueError("merge.weights: the validation part is what it chooses on: leave suites' `part` alone")
        return self

    @property
    def fits_weights(self) -> bool:
        """Whether merge weights are chosen on items of their own."""
        return any(merger.fits_weights for _, merger in self.grid)

    @property
    def grid(self) -> list[tuple[dict[str, Any], Merger]]:
        """Every combination of the sweep's values, with its merger; without a sweep the recipe's own merger alone."""
        points = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return [
            (point, _overridden(self.merge, {k.removeprefix("merge."): v for k, v in point.items()}, "merge"))
            for point in points
        ]

    @property
    def programs(self) -> list[str]:
        """The code that it makes run beside Spunge's own, one line each: where the recipe names it, and what it is."""
        named = self.robustness if isinstance(self.robustness, list) else []
        return [*_programs(self, ()), *(f"robustness: {name}" for name in named if ":" in name)]

    @property
    def attacks(self) -> list[type[Attack]]:
        """The attacks that `robustness` names."""
        return attacks_named(self.robustness or ())

    @property
    def joint_unlearner(self) -> Unlearner:
        """The joint baseline's method."""
        return _overridden(self.unlearn, self.joint.overrides, "joint")

    @property
    def left_out(self) -> dict[str, str]:
        """The controls that are asked for and cannot be had → why."""
        counted = [name for name in ("joint_equal_steps", "layered") if name in self.controls]
        if self.joint_unlearner.lengthened(1, taken=1) is not None:
            return {}
        return dict.fromkeys(counted, f"{name_of(self.unlearn)} counts no steps (it has no `lengthened`)")

    def subset_unlearner(self, subset: str) -> Unlearner:
        """Returns the method for one subset."""
        return _overridden(self.unlearn, self.subsets.get(subset, {}), dotted(["subsets", subset]))


def attacks_named(names: str | Sequence[str]) -> list[type[Attack]]:
    """Returns the attacks that `cheap`, `full` or a list of names comes to.

    Raises:
        ValueError: There is none of a name.
    """
    if names in ("cheap", "full"):
        return [
            attack for attack in ATTACKS.values()
            if attack.cheap is not None or (names == "full" and not attack.opt_in)
        ]  # fmt: skip
    return [attack_named(name) for name in names]


def attack_named(name: str) -> type[Attack]:
    """Returns an attack by its method's name, or one from outside as `package.module:Class`.

    Raises:
        ValueError: There is none of this name.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    if ":" not in name:
        raise ValueError(f"{name!r} is no attack{near(name, ATTACKS)}")
    attack = outside.load(name)
    if not (isinstance(attack, type) and issubclass(attack, Attack)):
        raise ValueError(f"{name!r} is not a class derived from Attack")
    return attack


def _programs(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yields what runs of a method from outside, a function, or a repository's own code, wherever it is named."""
    if isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _programs(part, (*path, str(number)))
    if not isinstance(value, BaseModel):
        return
    kind = type(value)
    if not is_shipped(kind):
        yield f"{dotted(path)}: {kind.__module__}:{kind.__qualname__}"
    if isinstance(value, ByFunction):
        yield f"{dotted(path)}: {value.function}"
    if getattr(value, "trust_remote_code", False):
        yield f"{dotted(path)}: the code of {getattr(value, 'id', 'its model')}"
    for name, field in kind.model_fields.items():
        yield from _programs(getattr(value, name), (*path, field.alias or name))


class Suite(Settings):
    """What `spunge evaluate` asks."""

    evaluate: list[AnyEvaluate] = Field(min_length=1)
    """What the model is asked."""


def overridden(method: Settings, fields: Mapping[str, Any]) -> Any:
    """Returns a method with some fields replaced, validated as a whole; null resets a field to its default."""
    before = method.model_dump(by_alias=True, exclude_unset=True)  # a null of its own (`lora: null`) stays
    reset = {name for name, value in fields.items() if value is None}
    after = {**before, **fields}
    return type(method).model_validate({name: value for name, value in after.items() if name not in reset})


def _overridden(method: M, fields: Mapping[str, Any], section: str) -> M:
    if "method" in fields:
        raise ValueError(f"{section}.method: an override cannot change the method")
    try:
        return overridden(method, fields)
    except ValidationError as error:
        raise ValueError(in_settings(error, fields, section, type(method))) from error


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe, with the documentation of every setting and the version it is of."""
    number = version("spunge")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:spunge:recipe:{number}",
        "$comment": f"recipes of Spunge {number}", **Experiment.model_json_schema(),
    }  # fmt: skip


def methods() -> dict[str, dict[str, type[BaseModel]]]:
    """Returns every method that ships with Spunge: kind → name → settings class."""
    unions = {"split": AnySplitter, "unlearn": AnyUnlearner, "merge": AnyMerger, "evaluate": AnyEvaluator}
    return {title: {str(tag(kind)): kind for kind in models(union)} for title, union in unions.items()}
