"""PEFT adapters as task vectors: read them in ΔW space, write a low-rank task vector as one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError
from spunge.files import refuse_special
from spunge.weights import seal
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.safetensors_files import StoredTensor, read_header
from spunge.weights.task_vector import Difference, Entry, LowRank, TaskVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LINEAR_CONV1D = re.compile(r"(.*\.)?(c_\w+|q_attn)\.weight")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MOST = 1e9
"""More than any rank or α is."""
_REPEATS = 4
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
    seal.verify(directory, weights=False)
    config = _read_config(directory)
    try:
        tensors = read_header(directory / WEIGHTS, seal.read(directory).get(WEIGHTS))
    except FileNotFoundError as error:
        raise ArtifactError(f"{directory}: no {WEIGHTS}: only safetensors weights are read, never pickles") from error
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    embedded: set[str] = set()
    for key, stored in sorted(tensors.items()):
        inner = key.removeprefix(_PREFIX)
        # The factors of an embedding have no `.weight` in their names, and stand the other way round.
        if matched := _FACTOR.fullmatch(inner):
            factors.setdefault(matched["module"], {})[matched["side"]] = stored
            embedded |= {matched["module"]} if matched["embedding"] else set()
        elif ".original_module." not in inner:
            # A weight saved whole: under a LoRA for the record, or because it was trained itself.
            whole[re.sub(r"\.(base_layer|modules_to_save)\.", ".", inner)] = stored
    names = _Names(base, directory)
    entries: dict[str, Entry] = {}
    for name, stored in names.untied(whole, _same_values).items():
        theirs = names.stored(name)
        _check_rows(name, stored, base.tensors[theirs], directory)
        base.check(theirs, stored.shape, str(directory))
        if not stored.equals(base.tensors[theirs]):
            entries[theirs] = Difference(stored, base.tensors[theirs])
    changes: dict[str, LowRank] = {}
    for module, pair in factors.items():
        # PEFT notes the layout of the layer it came to last, so the flag is only asked where the model does not tell.
        default = bool(config.get("fan_in_fan_out"))
        transposed = module in embedded or stores_transposed(base, names.stored(f"{module}.weight"), default=default)
        changes[f"{module}.weight"] = _low_rank(module, pair, config, transposed, directory)
    for name, change in names.untied(changes, _same_change).items():
        theirs = names.stored(name)
        if theirs in entries:
            raise ArtifactError(f"{directory}: cannot be merged: {name} was trained both whole and as a LoRA")
        base.check(theirs, change.shape, str(directory))
        entries[theirs] = change
    provenance: dict[str, Any] = {"method": "lora", "settings": {"adapter": directory.name}}
    if model := config.get("base_model_name_or_path"):
        provenance["base"] = {"id": model, "revision": config.get("revision")}
    checks = tuple(stored.check for stored in tensors.values() if stored.check is not None)
    return TaskVector(entries, 1.0, provenance, checks)


def _low_rank(
    module: str, pair: Mapping[str, StoredTensor], config: Mapping[str, Any], transposed: bool, directory: Path
) -> LowRank:
    if len(pair) != 2:
        raise ArtifactError(f"{directory}: {module} has only one of its two LoRA factors")
    a, b = pair["A"].load().float(), pair["B"].load().float()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ArtifactError(
            f"{directory}: {module}: LoRA factors of shapes {list(a.shape)} and {list(b.shape)} are not of matrices"
        )
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if a.shape[0] != rank:
        raise ArtifactError(f"{directory}: {module}: factors of rank {a.shape[0]}, but {CONFIG} says {rank}")
    return LowRank(a, b, _scaling(config, module), transposed)


class _Names:
    """What the base's checkpoint calls the parameters that an adapter names, which are those of the loaded model."""

    def __init__(self, base: Checkpoint, directory: Path) -> None:
        self._base = base
        self._directory = directory

    @cached_property
    def _outline(self) -> PreTrainedModel:
        from spunge.weights.language_model import LanguageModel

        return LanguageModel(id=str(self._base.directory)).outline()

    @cached_property
    def _renamed(self) -> Mapping[str, str]:
        from spunge.weights.conversion import ParameterNames

        return ParameterNames(self._outline, self._base.tensors).renamed

    @cached_property
    def _tied(self) -> dict[str, str]:
        """Parameter → the one whose weight it shares."""
        return self._outline.get_expanded_tied_weights_keys(all_submodels=True)

    def stored(self, name: str) -> str:
        """Returns the checkpoint's name of a parameter, or of the one that it is tied to."""
        tensors = self._base.tensors
        if name in tensors:
            return name
        # Saved with or without the model's prefix, the checkpoint or the adapter.
        similar = [theirs for theirs in tensors if theirs.endswith(f".{name}") or name.endswith(f".{theirs}")]
        if len(similar) == 1:
            return similar[0]
        for candidate in (name, *self._partners(name)):
            if candidate in self._renamed:
                return self._renamed[candidate]
        raise IncompatibleTaskVectors(
            f"{self._directory}: changes {name!r}, which {self._base.directory} does not have"
        )

    def untied(self, changes: Mapping[str, T], same: Callable[[T, T], bool]) -> dict[str, T]:
        """Returns the changes, one of each tied weight; refuses those that would untie it.

        PEFT lets a layer that shares its weight have a change of its own: the live model is then untied, and so is what
        merge_and_unload makes of a weight saved whole. Of a LoRA it merges into the shared weight what one layer had.
        """
        untied: dict[str, T] = {}
        for name, change in changes.items():
            # A weight of a layer is tied to nothing, and the outline of the model is not to be had of every base.
            partners = [] if re.search(r"\.\d+\.", name) else self._partners(name)
            if any(partner in untied for partner in partners):
                continue
            for partner in partners:
                if partner not in changes or not same(change, changes[partner]):
                    raise IncompatibleTaskVectors(
                        f"{self._directory}: changes {name}, but not {partner} alike, and in {self._base.directory} "
                        "they are one weight: train with ensure_weight_tying=True; or load the base, set "
                        "tie_word_embeddings=false, save it with both, and name that as the model"
                    )
            untied[name] = change
        return untied

    def _partners(self, name: str) -> list[str]:
        source = self._tied.get(name, name)
        return [other for other in (source, *self._tied) if other != name and self._tied.get(other, other) == source]


def _same_values(one: StoredTensor, other: StoredTensor) -> bool:
    return one.equals(other)


def _same_change(one: LowRank, other: LowRank) -> bool:
    """Whether two LoRAs make the same change, as those of an embedding and of a head that is tied to it."""
    other_a, other_b = (other.A, other.B) if one.transposed == other.transposed else (other.B.T, other.A.T)
    return one.scaling == other.scaling and torch.equal(one.A, other_a) and torch.equal(one.B, other_b)


def _check_rows(name: str, stored: StoredTensor, base: StoredTensor, directory: Path) -> None:
    """Says what an embedding of another number of rows comes from; other shapes are the base's to check."""
    # Matrices outside the layers are embeddings and heads: nothing else is resized.
    if not re.search(r"\.\d+\.", name) and len(stored.shape) == 2 and stored.shape[0] != base.shape[0]:
        raise IncompatibleTaskVectors(
            f"{directory}: {name} has {stored.shape[0]} rows, and the base model's has {base.shape[0]}: its vocabulary "
            "was resized for the training; resize the base's too, save it, and name that as the model"
        )


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
        if names is not None:
            check_target(name, entry.shape, names)
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
        seal.write(directory)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{directory}: the adapter cannot be written: {error}") from error
    return directory


def base_of(directory: Path) -> str | None:
    """Returns the base model that an adapter names, as PEFT would look for it.

    Raises:
        ArtifactError: The configuration is missing or damaged.
    """
    return _read_config(directory).get("base_model_name_or_path")


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
        refuse_special(directory / CONFIG)
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{directory}: {CONFIG} is missing or damaged: {error}") from error
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            raise ArtifactError(f"{directory}: {CONFIG}: {name} must be a text or null, not {config[name]!r}")
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
        "it has factors for fused experts (target_parameters); merge it with PEFT, save the model, and name that": bool(
            config.get("target_parameters")
        ),
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
            # Bounded, as JSON holds whole numbers that no float can, and Infinity.
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < _MOST:
                raise ArtifactError(f"{directory}: {CONFIG}: {name} must be a positive number, not {number!r}")
        for expression in patterns:
            # A repeated group, or many repeats, could be matched for hours; PEFT itself writes names.
            if re.search(r"\)[*+{]", expression) or len(re.findall(r"[*+{]", expression)) > _REPEATS:
                raise ArtifactError(f"{directory}: {CONFIG}: {pattern}: {expression!r} repeats too much: write names")
            try:
                re.compile(expression)
            except (re.error, RecursionError, OverflowError) as error:
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


def stores_transposed(base: Checkpoint, name: str, *, default: bool = False) -> bool:
    """Whether a weight is of transformers' Conv1D, which stores [in, out]; `default` if the model has none of these."""
    try:
        config = json.loads((base.directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return default
    if not isinstance(config, dict) or config.get("model_type") not in _CONV1D:
        return default
    return _LINEAR_CONV1D.fullmatch(name) is not None


def names_embedding(name: str) -> bool:
    """Whether a parameter's name is that of an embedding, whose rows are looked up and multiply no input."""
    return re.search(r"embed|\bw[tp]e\b", name) is not None


def check_target(name: str, shape: tuple[int, ...], names: Mapping[str, str] | None = None) -> None:
    """Raises IncompatibleTaskVectors, naming the tensor, unless LoRA factors of a linear layer can hold its change.

    Args:
        name: The checkpoint's parameter name.
        shape: Its shape.
        names: Of all linear layers of the loaded model, as for `save`; None: judge by the name itself.
    """
    looks_linear = name.endswith(".weight") and not names_embedding(name)
    linear = looks_linear if names is None else name in names
    if len(shape) != 2 or not linear:
        raise IncompatibleTaskVectors(
            f"{name}: no adapter can hold it: it is not the weight of a linear layer of the loaded model, "
            "or one that PEFT takes for an expert's; write a checkpoint or a task vector"
        )
