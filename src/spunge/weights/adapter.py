"""PEFT adapters as task vectors: read them in ΔW space, write a low-rank task vector as one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.safetensors_files import StoredTensor, read_header
from spunge.weights.task_vector import Difference, Entry, LowRank, TaskVector

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LINEAR_CONV1D = re.compile(r"(.*\.)?(c_\w+|q_attn)\.weight")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NO_PRODUCT = (
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"
)  # fmt: skip


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / CONFIG).exists()


def read(directory: str | Path, base: Checkpoint) -> TaskVector:
    """Opens a PEFT LoRA adapter as a task vector over the base model's parameters.

    Raises:
        ArtifactError: It is missing, damaged, or of a kind whose change is not scaling · B · A.
        IncompatibleTaskVectors: It does not fit the base model.
    """
    directory = Path(directory)
    config = _read_config(directory)
    try:
        tensors = read_header(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise ArtifactError(f"{directory}: no {WEIGHTS}: only safetensors weights are read, never pickles") from error
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    factors: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    entries: dict[str, Entry] = {}
    for key, stored in sorted(tensors.items()):
        inner = key.removeprefix(_PREFIX)
        matched = _FACTOR.fullmatch(inner)
        if matched:
            factors.setdefault((matched["module"], bool(matched["embedding"])), {})[matched["side"]] = stored
            continue
        # What is no factor is a weight saved whole: under a LoRA for the record, or because it was trained itself.
        name = _base_name(inner.replace(".base_layer.", "."), base, directory)
        base.check(name, stored.shape, str(directory))
        if not stored.equals(base.tensors[name]):
            entries[name] = Difference(stored, base.tensors[name])
    for (module, embedding), pair in factors.items():
        if len(pair) != 2:
            raise ArtifactError(f"{directory}: {module} has only one of its two LoRA factors")
        name = _base_name(f"{module}.weight", base, directory)
        a, b = pair["A"].load().float(), pair["B"].load().float()
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ArtifactError(
                f"{directory}: {module}: LoRA factors of shapes {list(a.shape)} and {list(b.shape)} are not of matrices"
            )
        if name in entries:
            raise ArtifactError(f"{directory}: cannot be merged: {module} was trained both whole and as a LoRA")
        rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
        if a.shape[0] != rank:
            raise ArtifactError(f"{directory}: {module}: factors of rank {a.shape[0]}, but {CONFIG} says {rank}")
        # PEFT notes the layout of the layer it came to last, so the flag is only asked where the model does not tell.
        transposed = embedding or stores_transposed(base, name, default=bool(config.get("fan_in_fan_out")))
        entry = LowRank(a, b, _scaling(config, module), transposed)
        base.check(name, entry.shape, str(directory))
        entries[name] = entry
    provenance: dict[str, Any] = {"method": "lora", "settings": {"adapter": directory.name}}
    if model := config.get("base_model_name_or_path"):
        provenance["base"] = {"id": model, "revision": config.get("revision")}
    return TaskVector(entries, 1.0, provenance)


def save(
    task_vector: TaskVector,
    directory: str | Path,
    *,
    base: str,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Writes a low-rank task vector as a LoRA that PEFT can load onto the base model.

    The scale (−λ under task vector negation) goes into B alone: negating both factors would change nothing.

    Args:
        task_vector: All of its entries must be low-rank.
        directory: Where to write; made if need be.
        base: The base model's id or directory, for the adapter's configuration.
        names: Checkpoint parameter name → the loaded model's own, where they differ.

    Raises:
        IncompatibleTaskVectors: An entry is dense, or there is none.
        ArtifactError: The directory cannot be written.
    """
    directory = Path(directory)
    tensors: dict[str, Tensor] = {}
    modules: dict[str, LowRank] = {}
    for name, entry in task_vector.entries.items():
        if not isinstance(entry, LowRank):
            raise IncompatibleTaskVectors(
                f"{name}: a dense delta does not fit into a LoRA adapter; export a checkpoint or a task vector instead"
            )
        module = (names or {}).get(name, name).removesuffix(".weight")
        modules[module] = entry
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = entry.A.detach().float().cpu().contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = (entry.B.detach().float() * task_vector.scale).cpu().contiguous()
    if not tensors:
        raise IncompatibleTaskVectors("the task vector changes nothing: there is no adapter to write")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_config_of(modules, base), indent=2, sort_keys=True)
        (directory / CONFIG).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{directory}: the adapter cannot be written: {error}") from error
    return directory


def _config_of(modules: Mapping[str, LowRank], base: str) -> dict[str, Any]:
    """Returns what PEFT has to know of these factors, each under the name of the module that it changes."""
    ranks = {module: entry.A.shape[0] for module, entry in modules.items()}
    alphas = {module: entry.scaling * ranks[module] for module, entry in modules.items()}
    rank, alpha = max(ranks.values()), max(alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        # PEFT reads the keys as regular expressions.
        "rank_pattern": {re.escape(module): value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(module): value for module, value in alphas.items() if value != alpha},
        "fan_in_fan_out": any(entry.transposed for entry in modules.values()),
        "bias": "none",
        "use_rslora": False,
    }


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{directory}: {CONFIG} is missing or damaged: {error}") from error
    initial = str(config.get("init_lora_weights")).lower()
    more = [option for option in _NO_PRODUCT if config.get(option)]
    reasons = {
        f"it is of kind {kind}, and only LORA can be merged": kind != "LORA",
        "DoRA rescales the whole weight, so its change is not a sum of factors; export the model and merge that": bool(
            config.get("use_dora")
        ),
        f"its layers compute more than s · B · A ({', '.join(more)}); export the model and merge that": bool(more),
        "it trains the embeddings of single tokens (trainable_token_indices); export the model and merge that": bool(
            config.get("trainable_token_indices")
        ),
        "its LoRA layers have biases; export the model and merge that": bool(config.get("lora_bias")),
        f"init_lora_weights={initial} changes the base model itself; convert it to a plain LoRA first": initial
        .startswith(_CHANGES_BASE),
        "it repeats layers of the base model (layer_replication)": bool(config.get("layer_replication")),
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise ArtifactError(f"{directory}: cannot be merged: {reason}")
    _check_scaling(config, directory)
    return config


def _check_scaling(config: Mapping[str, Any], directory: Path) -> None:
    for name, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise ArtifactError(f"{directory}: {CONFIG}: {pattern} is not a mapping")
        for number in (config.get(name), *patterns.values()):
            if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
                raise ArtifactError(f"{directory}: {CONFIG}: {name} must be a positive number, not {number!r}")
        for expression in patterns:
            try:
                re.compile(expression)
            except re.error as error:
                raise ArtifactError(f"{directory}: {CONFIG}: {pattern}: {expression!r}: {error}") from error


def _scaling(config: Mapping[str, Any], module: str) -> float:
    """α/r, or α/√r under rank-stabilised LoRA, each by module where a pattern says so."""
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _base_name(name: str, base: Checkpoint, directory: Path) -> str:
    """Finds an adapter's parameter in the checkpoint, which may have been saved with or without the model's prefix."""
    if name in base.tensors:
        return name
    candidates = [stored for stored in base.tensors if stored.endswith(f".{name}") or name.endswith(f".{stored}")]
    if len(candidates) != 1:
        raise IncompatibleTaskVectors(f"{directory}: changes {name!r}, which {base.directory} does not have")
    return candidates[0]


def stores_transposed(base: Checkpoint, name: str, *, default: bool = False) -> bool:
    """Whether a weight is of transformers' Conv1D, which stores [in, out]; `default` if the model has none of these."""
    try:
        config = json.loads((base.directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    if not isinstance(config, dict) or config.get("model_type") not in _CONV1D:
        return default
    return _LINEAR_CONV1D.fullmatch(name) is not None


def check_target(name: str, shape: tuple[int, ...], names: Mapping[str, str] | None = None) -> None:
    """Raises IncompatibleTaskVectors, naming the tensor, unless LoRA factors of a linear layer can hold its change.

    Args:
        name: The checkpoint's parameter name.
        shape: Its shape.
        names: Of all linear layers of the loaded model, as for `save`; None: judge by the name itself.
    """
    looks_linear = name.endswith(".weight") and not re.search(r"embed|\bw[tp]e\b", name)
    linear = looks_linear if names is None else name in names
    if len(shape) != 2 or not linear:
        raise IncompatibleTaskVectors(
            f"{name}: not the weight of a linear layer of the loaded model, so no adapter can hold it; "
            "write a checkpoint or a task vector"
        )
