"""Reads recipes and suites, from files or those that ship with Spunge, and writes a resolved recipe out again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from spunge import outside
from spunge.errors import RecipeError
from spunge.files import refuse_special
from spunge.interfaces import Evaluator
from spunge.recipe import shipped, yaml
from spunge.recipe.mistakes import in_document, in_settings, near
from spunge.recipe.overrides import apply, split
from spunge.recipe.schema import Experiment, Suite
from spunge.recipe.yaml import Document
from spunge.rows.readers import SUFFIXES
from spunge.settings import Settings, name_of

S = TypeVar("S", bound=Settings)
_DISCRIMINATORS = {"split": "by", "unlearn": "method", "merge": "method"}


def read(recipe: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Experiment:
    """Reads a recipe: a YAML file, or the name of one that ships with Spunge.

    Args:
        recipe: A path or a name (`spunge recipes` lists them).
        overrides: `key=value` with dotted keys and YAML values, such as `unlearn.alpha=100`.
        allow_code: Whether code that the recipe names may run, which is a program then (see docs/reliability.md).

    Raises:
        RecipeError: The file is missing or no YAML, or a setting is unknown or wrong; the message gives its position.
    """
    file = _find(recipe)
    with outside.code_from(_folder(file), allowed=allow_code):
        return _parse(file.read_bytes(), _shown(file), overrides)


def parse(
    text: str | bytes, *, name: str = "recipe", overrides: Sequence[str] = (), allow_code: bool = False
) -> Experiment:
    """Reads a recipe from its text; see `read`."""
    with outside.code_from(None, allowed=allow_code):
        return _parse(text, name, overrides)


def _parse(text: str | bytes, name: str, overrides: Sequence[str]) -> Experiment:
    document = yaml.load(text, name)
    if not isinstance(document.settings, dict):
        raise RecipeError(f"{name}:1:1: a recipe is a mapping of settings, this is {_kind(document.settings)}")
    return _validated(Experiment, document, overrides)


def override(experiment: Experiment, overrides: Sequence[str], *, allow_code: bool = False) -> Experiment:
    """Returns an experiment with other values for some settings, validated as a whole.

    Args:
        experiment: What to start from.
        overrides: `key=value` with dotted keys and YAML values, such as `unlearn.alpha=100`.
        allow_code: Whether code that the settings so changed name may run.

    Raises:
        RecipeError: A setting is unknown or wrong.
    """
    if not overrides:
        return experiment
    touched = {split(word)[0][0] for word in overrides}
    # The rest stays as it is: a method may be of a class that no recipe could name.
    plain = _plain(experiment, exclude_unset=True)
    settings = {name: plain[name] if name in touched else getattr(experiment, name) for name in plain}
    with outside.code_from(None, allowed=allow_code):
        return _validated(Experiment, Document(settings, {(): experiment.name}), overrides)


def read_suite(suite: str, overrides: Sequence[str] = (), *, allow_code: bool = False) -> list[Evaluator]:
    """Reads evaluators: of a recipe, of a suite that ships with Spunge, or from a YAML list in a file.

    Raises:
        RecipeError: There is no such recipe or suite, or a setting is unknown or wrong.
    """
    if suite in shipped.suites() and not Path(suite).is_file():
        document, name, folder = yaml.load(f"[{{suite: {json.dumps(suite)}}}]", "--suite"), "--suite", None
    else:
        if suite.endswith(SUFFIXES) and not suite.endswith(".json"):
            raise RecipeError(
                f"{suite}: a data file, not a suite: a suite is a YAML list that says how to ask it, such as "
                f"[{{suite: mine, method: multiple_choice, goal: forget, sources: [{{path: {suite}}}]}}]"
            )
        file = _find(suite, "suite", shipped.suites())
        name, folder = _shown(file), _folder(file)
        document = yaml.load(file.read_bytes(), name)
    if isinstance(document.settings, list):
        document = document.below("evaluate")
    if not isinstance(document.settings, dict) or not isinstance(document.settings.get("evaluate"), list):
        raise RecipeError(f"{name}: no evaluators in it: a suite is a YAML list of them, or a recipe with `evaluate`")
    document.settings = {"evaluate": document.settings["evaluate"]}
    with outside.code_from(folder, allowed=allow_code):
        return [*_validated(Suite, document, overrides).evaluate]


def validate(kind: Any, settings: Mapping[str, Any], section: str, *, allow_code: bool = False) -> Any:
    """Validates settings that stand in no file against one class or union; `section` is what mistakes call them.

    Raises:
        RecipeError: A setting is unknown or wrong.
    """
    try:
        with outside.code_from(Path.cwd(), allowed=allow_code):
            return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        raise RecipeError(in_settings(error, settings, section, kind)) from error


def dump(experiment: Experiment) -> str:
    """Returns the resolved recipe as YAML: every setting, defaults included."""
    stream = io.StringIO()
    writer = YAML()
    writer.width = 120
    writer.dump(_plain(experiment), stream)
    return stream.getvalue()


def _validated(root: type[S], document: Document, words: Sequence[str]) -> S:
    apply(document, words)
    _expand_suites(document)
    try:
        return root.model_validate(document.settings)
    except ValidationError as error:
        raise RecipeError(in_document(error, document, root)) from error


def _find(recipe: str | Path, kind: str = "recipe", others: Iterable[str] = ()) -> Path | Traversable:
    """Returns the file of a recipe, or of a suite that stands in one; `others` are what might be meant besides."""
    path = Path(recipe)
    refuse_special(path)
    if path.is_file() and path.name.endswith(SUFFIXES) and path.suffix != ".json":  # JSON is YAML
        raise RecipeError(f"{recipe}: a data file, not a recipe: `spunge init {recipe} --model M` writes one for it")
    if path.is_file():
        return path
    recipes = shipped.recipes()
    if str(recipe) in recipes:
        return recipes[str(recipe)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        beside = [str(path.with_name(other.name)) for other in sorted(path.parent.glob("*.y*ml"))]
        raise RecipeError(f"{recipe}: no such {kind} file{near(str(recipe), beside)}")
    raise RecipeError(
        f"{recipe}: neither a file nor a {kind} that ships with Spunge{near(str(recipe), [*others, *recipes])}"
    )


def _folder(file: Path | Traversable) -> Path | None:
    """Where a module that a recipe names may lie: beside it, unless it ships with Spunge."""
    return file.absolute().parent if isinstance(file, Path) else None


def _shown(file: Path | Traversable) -> str:
    return str(file) if isinstance(file, Path) and not file.is_absolute() else file.name


def _kind(value: Any) -> str:
    return {"NoneType": "empty", "list": "a list"}.get(type(value).__name__, f"a plain value ({type(value).__name__})")


def _expand_suites(document: Document) -> None:
    """Replaces `{suite: wmdp}` by the evaluators of that name that ship with Spunge."""
    entries = document.settings.get("evaluate")
    if not isinstance(entries, list):
        return
    suites = shipped.suites()
    loaded: dict[str, list[dict[str, Any]]] = {}
    expanded: list[Any] = []
    numbers: list[int] = []  # of the entry that each evaluator comes from, for its position
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "method" in entry or "suite" not in entry:
            evaluators = [entry]
        elif str(entry["suite"]) in suites:
            file = suites[str(entry["suite"])]
            if file.name not in loaded:
                loaded[file.name] = yaml.load(file.read_bytes(), file.name).settings
            changes = {name: value for name, value in entry.items() if name != "suite"}
            evaluators = [{**evaluator, **changes} for evaluator in loaded[file.name]]
        else:
            raise RecipeError(
                f"{document.origin(('evaluate', str(number)))}: evaluate.{number}: {entry['suite']!r} is no suite that "
                f"ships with Spunge{near(str(entry['suite']), suites)}; or say its `method` and `sources`"
            )
        expanded += evaluators
        numbers += [number] * len(evaluators)
    document.settings["evaluate"] = expanded
    document.renumber("evaluate", numbers)


def _plain(experiment: Experiment, *, exclude_unset: bool = False) -> dict[str, Any]:
    """The settings as plain values; a method from outside the package carries its `package.module:Class`."""
    settings = experiment.model_dump(mode="json", by_alias=True, exclude_unset=exclude_unset)
    joint = settings.get("joint", {})
    joint |= joint.pop("overrides", {})  # a recipe writes them beside `data`
    for section, discriminator in _DISCRIMINATORS.items():
        settings[section] = _named(getattr(experiment, section), settings[section], discriminator)
    settings["evaluate"] = [
        _named(evaluator, plain, "method")
        for evaluator, plain in zip(experiment.evaluate, settings["evaluate"], strict=True)
    ]
    return settings


def _named(method: Settings, plain: dict[str, Any], discriminator: str) -> dict[str, Any]:
    named = {discriminator: name_of(method)}
    return plain | named if discriminator in plain else named | plain
