"""`reproduce.json`: all that a search's choice depends on, and the same model made again from it, or what differs."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from spunge.auto.asking import Asking
from spunge.auto.inspection import inspect, splitter_of
from spunge.auto.parts import divide
from spunge.auto.rungs import Rung
from spunge.auto.search import Search
from spunge.auto.study import Setting
from spunge.auto.trials import Arm, Bench
from spunge.auto.wish import Wish, inputs_of, read_wish
from spunge.errors import ArtifactError, DataError
from spunge.files import digest_of, new_directory, replace_text
from spunge.run.environment import environment
from spunge.run.executors import Executor
from spunge.run.standalone import export
from spunge.run.store import Store
from spunge.run.variant import Variant
from spunge.weights.language_model import LanguageModel

FORMAT = 1
MODEL = "model"
"""The directory of the checkpoint, in a search's and in a reproduction's."""
_FIELDS = {"wish", "inputs", "setting", "rung", "arm", "merge", "scale", "environment", "weights"}


@dataclass(frozen=True)
class Reproduction:
    """A model made again."""

    directory: Path
    same: bool
    """Whether every file of weights is the recorded one, bit for bit."""
    differing: list[str]
    """What is not as it was: files, versions, processor."""


def processor() -> dict[str, Any]:
    """Returns what may move a result beside settings and versions: the processor and the number of threads."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")
    ]  # fmt: skip
    return {"processor": names[0] if names else platform.processor(), "threads": torch.get_num_threads()}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def record(wish: Wish, search: Search, chosen: Mapping[str, Any], variant: Variant, out: Path) -> None:
    """Writes all that a chosen model depends on, and its weights' digests.

    Args:
        wish: What was asked for.
        search: The search.
        chosen: `arm`, `number`, `rung`, `merge` and `scale` of the point.
        variant: The point.
        out: The file.
    """
    bench = search.bench
    setting = search.studies[chosen["arm"]].settings()[chosen["number"]]
    assert variant.artifact is not None, "a trial has changed something"
    content = {
        "format": FORMAT,
        "wish": wish.described,
        "inputs": inputs_of(wish),
        "splitter": {"kind": type(bench.splitter).__name__, **bench.splitter.dump()},
        "setting": vars(setting),
        "rung": vars(search.rungs[chosen["rung"]]),
        **{name: chosen[name] for name in ("arm", "merge")},
        "scale": variant.scale,
        "environment": {**environment("cpu"), "optuna": metadata.version("optuna"), **processor()},
        "weights": _weights(variant.artifact.path),
    }
    replace_text(out, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _weights(directory: Path) -> dict[str, str]:
    return {file.name: digest_of(file)["sha256"] for file in sorted(directory.glob("*.safetensors"))}


def reproduce(
    file: Path, out: Path, executor_of: Callable[[Store], Executor], *, model: str | None = None,
    allow_code: bool = False,
) -> Reproduction:  # fmt: skip
    """Makes a recorded model again from its inputs, and says whether it is the same.

    Args:
        file: A `reproduce.json`.
        out: The new directory; the checkpoint lies in it as `model`.
        executor_of: Returns what runs tasks on a store.
        model: Where the base model lies now; None: where it lay.
        allow_code: Whether a method from outside the package may run.

    Raises:
        SpungeError: The file is damaged, or an input is missing or another than it was.
    """
    content = _read(file)
    wish = read_wish(content["wish"])
    wish = wish if model is None else replace(wish, model=model)
    _check_inputs(content["inputs"], wish)
    differing = _differing_environment(content["environment"])
    _take_threads(content["environment"]["threads"])
    with new_directory(out) as building:
        forget, retain = inspect(wish.forget, "--forget"), inspect(wish.retain, "--retain")
        parts = divide(forget, retain, building / "parts")
        base = LanguageModel.model_validate({"id": wish.model, "dtype": wish.dtype or "auto"})
        bench = Bench(
            base, Asking(parts, forget.kind), splitter_of(forget.texts, wish.by), wish.damage,
            executor_of(Store(building / "store")), wish.seed, allow_code,
        )  # fmt: skip
        setting, rung = Setting(**content["setting"]), Rung(**content["rung"])
        arm: Arm = content["arm"]
        variant = bench.merged(arm, setting, rung, bench.trained(arm, setting, rung), content["merge"])
        assert variant.artifact is not None, "a trial has changed something"
        weights = _weights(variant.artifact.path)
        unlike = [name for name, sha256 in content["weights"].items() if weights.get(name) != sha256]
        others = [f"{name} is not the recorded one" for name in unlike]
        export(base, bench.part(replace(variant, scale=content["scale"]), building), building / MODEL)
    return Reproduction(out, not others, [*others, *differing])


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        missing = _FIELDS - content.keys()
        if content.get("format") != FORMAT or missing:
            raise ValueError(f"no {', '.join(sorted(missing)) or f'format {FORMAT}'} in it")
    except FileNotFoundError as error:
        raise ArtifactError(f"{file}: no such file; `spunge auto` leaves a reproduce.json in its directory") from error
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{file}: not what `spunge auto` left: {error}") from error
    return content


def _check_inputs(recorded: Mapping[str, Any], wish: Wish) -> None:
    """Refuses inputs that are not those of the record: from others nobody expects the same model."""
    here = inputs_of(wish)
    if here["model"] != recorded["model"]:
        raise DataError(f"{wish.model}: not the model of the record (its files differ): give that one as --model")
    for path, fingerprint in recorded["rows"].items():
        if here["rows"].get(path) != fingerprint:
            raise DataError(f"{path}: has changed since: the record is of other rows; put those back")


def _differing_environment(recorded: Mapping[str, Any]) -> list[str]:
    here = {**environment("cpu"), "optuna": metadata.version("optuna"), **processor()}
    ignored = {"threads", "optuna", "device"}  # threads are taken over; of Optuna only the drawing depends
    return [
        f"{name} was {value}, and is {here.get(name)}"
        for name, value in recorded.items() if name not in ignored and here.get(name) != value
    ]  # fmt: skip


def _take_threads(threads: int) -> None:
    """Takes as many threads as the record has: sums in another order round otherwise."""
    import torch

    torch.set_num_threads(threads)
