"""The recipe: one experiment as settings, read from YAML with positions, overridden by key=value; torch-free."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, WrapValidator, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from spunge.errors import RecipeError, first_line
from spunge.evaluators import AnyEvaluator
from spunge.interfaces import Evaluator, Merger, Splitter, Unlearner
from spunge.mergers import AnyMerger
from spunge.recipe.mistakes import as_written, in_file, in_settings, models, near, tag
from spunge.rows.sources import Source
from spunge.settings import Settings
from spunge.splitters import AnySplitter
from spunge.unlearners import AnyUnlearner
from spunge.weights.language_model import LanguageModel

_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000
_NO_RECIPES = ("paper_results.yaml", "hub.yaml")
SETTING = re.compile(r"^[a-z_][a-z0-9_.]*=")


M = TypeVar("M", bound=Settings)


class _FromOutside:
    """Lets a recipe name a class out of tree: `method: package.module:Class`. Its code runs, as any import does."""

    def __init__(self, kind: type[Settings], discriminator: str) -> None:
        self.kind = kind
        self.discriminator = discriminator

    def __call__(self, value: Any, validate_known: Any) -> Any:
        if isinstance(value, self.kind):
            return value
        named = value.get(self.discriminator) if isinstance(value, Mapping) else None
        if not (isinstance(named, str) and ":" in named):
            return validate_known(value)
        module, _, name = named.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{named!r} cannot be imported: {error}") from error
        if not (isinstance(found, type) and issubclass(found, self.kind)):
            raise ValueError(f"{named!r} is not a class derived from {self.kind.__name__}")
        return found.model_validate({key: part for key, part in value.items() if key != self.discriminator})


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
    evaluate: list[AnyEvaluate] = Field(min_length=1)
    """What every variant is asked."""
    controls: list[Literal["joint", "joint_equal_steps", "sequential", "random_split"]] = [
        "joint",
        "joint_equal_steps",
        "random_split",
    ]
    """The baselines that decide whether splitting helped: see docs/architecture.md."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Everything is run once for each seed."""

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
        names = [evaluator.suite for evaluator in evaluators]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"suite {twice!r} is named twice: give each its own name")
        return evaluators

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
    def _overrides_hold(self) -> Experiment:
        _overridden(self.unlearn, self.joint.overrides, "joint")
        for subset, fields in self.subsets.items():
            _overridden(self.unlearn, fields, f"subsets.{subset}")
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
        _ = self.grid  # every combination must be a merger
        known = [each for each in self.evaluate if "part" in type(each).model_fields]
        if {each.goal for each in known} != {"forget", "retain"}:
            raise ValueError(
                "sweep: picks between forgetting and retaining, so it needs a suite of each goal whose items have parts"
            )
        if any(getattr(each, "part") == "validation" for each in known):  # noqa: B009
            raise ValueError("sweep: the validation part is what it picks on: leave `part` of the suites alone")
        return self

    @property
    def grid(self) -> list[tuple[dict[str, Any], Merger]]:
        """Every combination of the sweep's values, with its merger; without a sweep the recipe's own merger alone."""
        points = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return [
            (point, _overridden(self.merge, {k.removeprefix("merge."): v for k, v in point.items()}, "merge"))
            for point in points
        ]

    @property
    def joint_unlearner(self) -> Unlearner:
        """The joint baseline's method."""
        return _overridden(self.unlearn, self.joint.overrides, "joint")

    def subset_unlearner(self, subset: str) -> Unlearner:
        """Returns the method for one subset."""
        return _overridden(self.unlearn, self.subsets.get(subset, {}), f"subsets.{subset}")


class _Suite(Settings):
    evaluate: list[AnyEvaluate] = Field(min_length=1)


def overridden(method: Settings, fields: Mapping[str, Any]) -> Any:
    """Returns a method with some fields replaced, validated as a whole; null resets a field to its default."""
    kept = method.model_dump(by_alias=True, exclude_unset=True)  # a null of its own (`lora: null`) stays
    reset = {name for name, value in fields.items() if value is None}
    merged = {**kept, **fields}
    return type(method).model_validate({name: value for name, value in merged.items() if name not in reset})


def _overridden(method: M, fields: Mapping[str, Any], where: str) -> M:
    if "method" in fields:
        raise ValueError(f"{where}.method: an override cannot change the method")
    try:
        return overridden(method, fields)
    except ValidationError as error:
        raise ValueError(in_settings(error, fields, where, type(method))) from error


def read(recipe: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads a recipe: a YAML file, or the name of one that ships with Spunge.

    Args:
        recipe: A path or a name (`spunge recipes` lists them).
        overrides: `key=value` with dotted keys and YAML values, such as `unlearn.alpha=100`.

    Raises:
        RecipeError: The file is missing or no YAML, or a setting is unknown or wrong; the message gives its position.
    """
    file = _find(recipe)
    return parse(file.read_bytes(), name=_shown(file), overrides=overrides)


def parse(text: str | bytes, *, name: str = "recipe", overrides: Sequence[str] = ()) -> Experiment:
    """Reads a recipe from its text; see `read`."""
    document = _load_yaml(text, name)
    settings = _plain(document, name)
    if not isinstance(settings, dict):
        raise RecipeError(f"{name}:1:1: a recipe is a mapping of settings, this is {type(settings).__name__}")
    overridden_keys = _override(settings, overrides)
    _expand_suites(settings, name)
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(in_file(error, settings, document, name, overridden_keys, Experiment)) from error


def dump(experiment: Experiment) -> str:
    """Returns the resolved recipe as YAML: every setting, defaults included."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(_tagged(experiment), stream)
    return stream.getvalue()


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe, with the documentation of every setting."""
    return Experiment.model_json_schema()


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Turns `key=value` words into nested settings; values are YAML.

    Raises:
        RecipeError: A word is no setting, or its value is no YAML.
    """
    settings: dict[str, Any] = {}
    _override(settings, words)
    return settings


def validate(kind: Any, settings: Mapping[str, Any], where: str) -> Any:
    """Validates settings given on the command line against one class or union.

    Raises:
        RecipeError: A setting is unknown or wrong.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        raise RecipeError(in_settings(error, settings, where, kind)) from error


def read_suite(suite: str, overrides: Sequence[str] = ()) -> list[Evaluator]:
    """Reads evaluators: of a recipe, of a suite that ships with Spunge, or from a YAML list in a file.

    Raises:
        RecipeError: There is no such recipe or suite, or a setting is unknown or wrong.
    """
    if not Path(suite).is_file() and suite not in shipped():
        text, name = f"[{{suite: {json.dumps(suite)}}}]", "--suite"
    else:
        file = _find(suite)
        text, name = file.read_bytes(), _shown(file)
    document = _load_yaml(text, name)
    settings: Any = _plain(document, name)
    if isinstance(settings, list):
        settings = {"evaluate": settings}
    if not isinstance(settings, dict) or not isinstance(settings.get("evaluate"), list):
        raise RecipeError(f"{name}: no evaluators in it: a suite is a YAML list of them, or a recipe with `evaluate`")
    settings = {"evaluate": settings["evaluate"]}
    overridden_keys = _override(settings, overrides)
    _expand_suites(settings, name)
    try:
        return [*_Suite.model_validate(settings).evaluate]
    except ValidationError as error:
        written = {"evaluate": document} if isinstance(document, list) else document
        raise RecipeError(in_file(error, settings, written, name, overridden_keys, _Suite)) from error


def methods() -> dict[str, dict[str, type[BaseModel]]]:
    """Returns every method that ships with Spunge: kind → name → settings class."""
    unions = {"split": AnySplitter, "unlearn": AnyUnlearner, "merge": AnyMerger, "evaluate": AnyEvaluator}
    return {title: {str(tag(kind)): kind for kind in models(union)} for title, union in unions.items()}


def shipped() -> dict[str, Traversable]:
    """Returns the recipes that ship with Spunge, by name."""
    folder = resources.files("spunge.recipe") / "shipped"
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml") and file.name not in _NO_RECIPES]
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name)}


def _find(recipe: str | Path) -> Path | Traversable:
    path = Path(recipe)
    if path.is_file():
        return path
    known = shipped()
    if str(recipe) in known:
        return known[str(recipe)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise RecipeError(f"{recipe}: no such recipe file")
    raise RecipeError(f"{recipe}: neither a file nor a recipe that ships with Spunge{near(str(recipe), known)}")


def _shown(file: Path | Traversable) -> str:
    return str(file) if isinstance(file, Path) and not file.is_absolute() else file.name


def _load_yaml(text: str | bytes, name: str) -> Any:
    if len(text) > _MAX_BYTES:
        raise RecipeError(f"{name}: {len(text)} bytes is more than a recipe may have ({_MAX_BYTES})")
    try:
        return YAML().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(f"{name}{position}: not YAML: {error.problem or error.context}") from error
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise RecipeError(f"{name}: not YAML: {first_line(error)}") from error


def _plain(document: Any, name: str) -> Any:
    """Copies ruamel's containers into plain ones; aliases are expanded, so their number is capped."""
    nodes = 0

    def copy(node: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > _MAX_NODES or depth > 50:
            raise RecipeError(f"{name}: aliases or nesting expand to more than a recipe may hold")
        if isinstance(node, Mapping):
            return {as_written(key): copy(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [copy(value, depth + 1) for value in node]
        if isinstance(node, bool) or node is None:
            return node
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node

    return copy(document, 0)


def _override(settings: dict[str, Any], words: Sequence[str]) -> dict[tuple[str, ...], str]:
    paths: dict[tuple[str, ...], str] = {}
    for word in words:
        if not SETTING.match(word):
            raise RecipeError(f"{word!r} is not a setting: write key=value, such as unlearn.alpha=100")
        key, _, text = word.partition("=")
        try:
            value = _plain(YAML(typ="safe", pure=True).load(text), word)
        except (YAMLError, ValueError, RecursionError, OverflowError) as error:
            raise RecipeError(f"{word!r}: the value is not YAML: {first_line(error)}") from error
        parts = tuple(key.split("."))
        place: Any = settings
        for part in parts[:-1]:
            place = _step(place, part, word)
        if isinstance(place, list):
            place[_index(place, parts[-1], word)] = value
        else:
            place[parts[-1]] = value
        paths[parts] = word
    return paths


def _step(place: Any, part: str, word: str) -> Any:
    inner = place[_index(place, part, word)] if isinstance(place, list) else place.setdefault(part, {})
    if inner is None and isinstance(place, dict):
        inner = place[part] = {}
    if not isinstance(inner, dict | list):
        raise RecipeError(f"{word!r}: {part!r} is a plain value and holds no settings")
    return inner


def _index(place: list[Any], part: str, word: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RecipeError(f"{word!r}: {part!r} is not the number of an entry (0 to {len(place) - 1})")
    return int(part)


def _expand_suites(settings: dict[str, Any], name: str) -> None:
    """Replaces `{suite: wmdp}` by the evaluators of that name that ship with Spunge."""
    entries = settings.get("evaluate")
    if not isinstance(entries, list):
        return
    folder = resources.files("spunge.recipe") / "shipped" / "suites"
    known = {file.name.removesuffix(".yaml"): file for file in folder.iterdir()} if folder.is_dir() else {}
    expanded: list[Any] = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or "method" in entry or "suite" not in entry:
            expanded.append(entry)
            continue
        if entry["suite"] not in known:
            raise RecipeError(
                f"{name}: evaluate.{position}: {entry['suite']!r} is no suite that ships with Spunge"
                f"{near(str(entry['suite']), known)}; or say its `method` and `sources`"
            )
        file = known[entry["suite"]]
        for evaluator in _plain(_load_yaml(file.read_bytes(), file.name), file.name):
            expanded.append({**evaluator, **{key: part for key, part in entry.items() if key != "suite"}})
    settings["evaluate"] = expanded


def _tagged(experiment: Experiment) -> dict[str, Any]:
    """The settings as plain values; a method from outside the package carries its `package.module:Class`."""
    settings = experiment.dump()
    joint = settings["joint"]
    settings["joint"] = {"data": joint["data"], **joint["overrides"]}
    for section, discriminator in (("split", "by"), ("unlearn", "method"), ("merge", "method")):
        settings[section] = _named(getattr(experiment, section), settings[section], discriminator)
    settings["evaluate"] = [
        _named(evaluator, plain, "method")
        for evaluator, plain in zip(experiment.evaluate, settings["evaluate"], strict=True)
    ]
    return settings


def _named(method: Settings, plain: dict[str, Any], discriminator: str) -> dict[str, Any]:
    if discriminator in type(method).model_fields:
        return plain
    return {discriminator: f"{type(method).__module__}:{type(method).__qualname__}", **plain}
