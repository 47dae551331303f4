"""What a run needs, said before it starts: what is fetched, disk, memory and time, as far as they can be known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from spunge.recipe import offline
from spunge.recipe.schema import Experiment
from spunge.rows.sources import Source, locate
from spunge.weights.language_model import LanguageModel

GB = 1e9
_PEAK = 100e12
"""Operations a second that the time is said for: about what a large GPU keeps up in bfloat16."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}


@dataclass(frozen=True)
class Requirements:
    """What a run needs."""

    rows: Sequence[tuple[str, str, str, str, str]]
    """Kind, name, where it is, size and a note, of every model and data set."""
    lines: Sequence[str]
    """Disk, memory and time, in words."""
    fetched: float
    """Bytes to fetch, as far as they are known."""
    disk: float
    """Bytes on disk, those to fetch included."""
    memory: float
    """Bytes of weights that are held at once."""


def of(experiment: Experiment) -> Requirements:
    """Returns what an experiment needs; looks at local files, and at nothing outside this machine."""
    known = _known()
    rows: dict[tuple[str, str], tuple[str, str, str, str, str]] = {}
    fetched, missing = 0.0, 0
    for each in offline.hub_references(experiment):
        kind, name = ("data", each.path) if isinstance(each, Source) else ("model", each.id)
        size = _size(known, kind, name)
        gated = known["data" if kind == "data" else "models"].get(name, {}).get("gated", False)
        here = kind == "model" and _cached(name)
        where = "on the hub" if not here else "in the hub's cache"
        note = (
            f"gated: accept its terms at https://huggingface.co/{'datasets/' * (kind == 'data')}{name}" if gated else ""
        )
        if (kind, name) not in rows and not here:
            fetched += size or 0
            missing += size is None
        rows[kind, name] = (kind, name, where, _shown(size), note if not here else "")
    for evaluator in experiment.evaluate:
        for task in getattr(evaluator, "tasks", ()) if not getattr(evaluator, "offline_root", None) else ():
            rows["data", task] = ("data", f"lm-eval's {task}", "on the hub", "unknown", "fetched by lm-eval")
    handles = _handles(experiment)
    for handle in handles:
        if locate(handle.id).exists():
            rows["model", handle.id] = ("model", handle.id, "here", _shown(_on_disk(locate(handle.id))), "")
    weights = {handle.id: _weights(known, handle) for handle in handles}
    memory = sum(size or 0 for size in weights.values())
    variants = _variants(experiment)
    vectors = _vectors(known, experiment)
    disk = fetched + (vectors or 0) * len(experiment.seeds)
    lines = [
        f"fetched: {fetched / GB:.1f} GB" + (f", and {missing} of unknown size" if missing else ""),
        f"disk: {disk / GB:.1f} GB, of which task vectors "
        + (f"about {vectors * len(experiment.seeds) / GB:.1f}" if vectors is not None else "of unknown size"),
        f"memory: {memory / GB:.1f} GB of weights at once (" + ", ".join(
            f"{Path(name).name} {_shown(size)}" for name, size in weights.items()
        ) + "), and a few GB to compute in",
        _time(known, experiment, variants),
    ]  # fmt: skip
    return Requirements([*rows.values()], lines, fetched, disk, memory)


def _known() -> dict[str, Any]:
    file = resources.files("spunge.recipe") / "shipped" / "hub.yaml"
    return YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))


def _size(known: Mapping[str, Any], kind: str, name: str) -> float | None:
    if kind == "model":
        gigabytes = known["models"].get(name, {}).get("gigabytes")
        return None if gigabytes is None else gigabytes * GB
    megabytes = known["data"].get(name, {}).get("megabytes")
    return None if megabytes is None else megabytes * 1e6


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _on_disk(directory: Path) -> float:
    return float(sum(file.stat().st_size for file in directory.iterdir() if file.is_file()))


def _handles(experiment: Experiment) -> list[Any]:
    """The base model, and the models that evaluators ask, each once."""
    found: dict[str, Any] = {experiment.model.id: experiment.model}
    for evaluator in experiment.evaluate:
        for name in type(evaluator).model_fields:
            value = getattr(evaluator, name)
            if offline.is_model(value):
                found.setdefault(value.id, value)
    return [*found.values()]


def _weights(known: Mapping[str, Any], handle: Any) -> float | None:
    """Bytes in memory: half-precision checkpoints as they are, others by the dtype that they are computed in."""
    path = locate(handle.id)
    size = _on_disk(path) if path.is_dir() else _size(known, "model", handle.id)
    wanted = _BYTES[handle.dtype] if isinstance(handle, LanguageModel) else 2
    return None if size is None else size * wanted / 2


def _variants(experiment: Experiment) -> int | None:
    """How many variants are evaluated, where the split says how many subsets it makes."""
    subsets = len(getattr(experiment.split, "declared", ()))
    if not subsets:
        column = getattr(experiment.split, "column", None)
        subsets = len({source.set[column] for source in experiment.forget.sources if column in source.set})
    if not subsets:
        return None
    return (2 + subsets + len(experiment.controls)) * len(experiment.seeds)


def _vectors(known: Mapping[str, Any], experiment: Experiment) -> float | None:
    """Bytes of task vectors: float32 of the changed matrices; an adapter's own factors are small beside the merged."""
    shape, variants = known["models"].get(experiment.model.id), _variants(experiment)
    method = experiment.unlearn
    if shape is None or variants is None or "width" not in shape:
        return None
    width, inner, keys = shape["width"], shape["inner"], shape["keys"]
    if (updated := getattr(method, "updated", None)) is not None:
        return 4.0 * len(updated) * width * inner * variants
    sizes = {
        "q_proj": width * width, "k_proj": width * keys, "v_proj": width * keys, "o_proj": width * width,
        "up_proj": width * inner, "down_proj": width * inner, "gate_proj": width * inner,
    }  # fmt: skip
    lora = getattr(method, "lora", None)
    targets = getattr(lora, "target_modules", None) or ("q_proj", "v_proj")
    if lora is None or isinstance(targets, str):
        return None
    merged = 1 + ("random_split" in experiment.controls)
    return 4.0 * shape["layers"] * sum(sizes.get(name, 0) for name in targets) * merged


def _time(known: Mapping[str, Any], experiment: Experiment, variants: int | None) -> str:
    size = _weights(known, experiment.model)
    tokens = [known["suites"].get(evaluator.suite) for evaluator in experiment.evaluate]
    limited = any(getattr(evaluator, "limit", None) for evaluator in experiment.evaluate)
    if size is None or None in tokens or variants is None:
        return "time: not known for this model, these suites or this split"
    parameters = size / _BYTES[experiment.model.dtype]
    seconds = 2 * parameters * sum(tokens) * 1e6 * variants / _PEAK
    return (
        f"time: evaluating {variants} variants {'at most ' if limited else ''}about {seconds / 3600:.1f} hours where "
        f"{_PEAK / 1e12:.0f} TFLOP/s are kept up, {sum(tokens):.1f} M tokens each; unlearning and merging come on top"
    )


def _shown(size: float | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / GB:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
