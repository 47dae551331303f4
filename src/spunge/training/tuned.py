"""What is put into the borrowed model to train: a LoRA, or float32 copies of its weights; and how to take it out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spunge.errors import RecipeError
from spunge.seeding import seeded
from spunge.training import sharding
from spunge.training.settings import Lora
from spunge.weights.conversion import ParameterNames
from spunge.weights.language_model import language_parameters
from spunge.weights.task_vector import Entry, LowRank

if TYPE_CHECKING:
    from peft import LoraModel
    from transformers import PreTrainedModel

_ADAPTER = "default"

Trainable = tuple[dict[str, nn.Parameter], Callable[[], dict[str, Entry]], Callable[[], AbstractContextManager[None]]]


@contextmanager
def with_lora(
    model: PreTrainedModel, names: ParameterNames, *, lora: Lora, seed: int, device: str
) -> Iterator[Trainable]:
    """Puts a LoRA with float32 factors in; its dropout is the only one that is active.

    Raises:
        RecipeError: A setting names no linear layer of the model, or one that cannot be stored.
    """
    from peft.tuners.lora import LoraLayer

    tuner = _put_in(model, lora_targets(model, names, lora), lora, seed=seed, device=device)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        layer.lora_A.float()
        layer.lora_B.float()
        layer.lora_dropout.train()
    if sharding.size() > 1:
        sharding.shard(model, device)

    def entries() -> dict[str, Entry]:
        deltas = {
            f"{name}.weight": LowRank(
                sharding.whole(layer.lora_A[_ADAPTER].weight.detach()).cpu().clone(),
                b.clone(),
                scaling=float(layer.scaling[_ADAPTER]),
                transposed=bool(layer.fan_in_fan_out),
            )
            for name, layer in layers.items()
            if bool((b := sharding.whole(layer.lora_B[_ADAPTER].weight.detach()).cpu()).any())  # missing is zero
        }
        renamed = {names.renamed[name]: entry for name, entry in deltas.items() if name in names.renamed}
        # What the checkpoint keeps as part of a larger tensor has no factors there.
        fused = names.store({name: entry.dense() for name, entry in deltas.items() if name not in names.renamed})
        return {**renamed, **fused}

    @contextmanager
    def as_base() -> Iterator[None]:
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()

    try:
        yield {name: value for name, value in model.named_parameters() if value.requires_grad}, entries, as_base
    finally:
        tuner.unload()


def _put_in(model: PreTrainedModel, targets: list[str], lora: Lora, *, seed: int, device: str) -> LoraModel:
    from peft import LoraConfig, LoraModel

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),  # pyright: ignore[reportArgumentType]
    )
    # PEFT takes the names of a transformers model for those of an older version, in which experts were not fused, and
    # puts factors where none were asked for. In a module that is no such model names are names.
    holder = nn.Module()
    holder.model = model
    with seeded(seed, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # found out from the layer, as it says
        try:
            return LoraModel(holder, config, _ADAPTER)
        except BaseException:  # the model is borrowed: it must not keep the half of an adapter
            _take_out(model)
            raise


def _take_out(model: PreTrainedModel) -> None:
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            model.set_submodule(name, module.get_base_layer())


def inner_linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Yields the linear layers but the head: name, module, and how many numbers it reads and writes of a token."""
    head = model.get_output_embeddings()
    for name, module in linear_modules(model).items():
        if module is not head:
            shape = module.get_parameter("weight").shape
            out, inside = shape if isinstance(module, nn.Linear) else shape[::-1]  # Conv1D holds it turned over
            yield name, module, inside, out


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Returns the layers that a LoRA can be put on, by name: those that read and write text, and are called as such."""
    from transformers.pytorch_utils import Conv1D

    language, modules = language_parameters(model), dict(model.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, Conv1D))
        # Some routers of experts are linear by descent alone: they return the chosen experts, not a product.
        and not type(module).__name__.endswith("Router")
        and f"{name}.weight" in language
        and not (name.endswith(".out_proj") and _scans(modules[name.rpartition(".")[0]]))
    }


def _scans(module: nn.Module) -> bool:
    """Whether a module is Mamba's scan: its kernels multiply with the output projection's weight past any adapter."""
    return hasattr(module, "A_log") and hasattr(module, "D")


def default_targets(kind: str) -> Collection[str] | None:
    """Returns what PEFT adapts in an architecture where nothing is named; None where it has no opinion."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)


def lora_targets(model: PreTrainedModel, names: ParameterNames, lora: Lora) -> list[str]:
    """Returns the names of the layers that a LoRA is put on; an outline of the model will do.

    Raises:
        RecipeError: A setting names no linear layer of the model, or one that shares its weight.
        ModelError: The checkpoint keeps a weight in a form that cannot be converted back to.
    """
    linear = list(linear_modules(model))
    there_are = f"there are: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
    wanted = lora.target_modules
    if wanted is None:
        wanted = default_targets(model.config.model_type)
        if wanted is None:
            raise RecipeError(
                f"lora.target_modules: PEFT knows no default for {model.config.model_type!r}; {there_are}"
            )
    if wanted == "all-linear":
        head = model.get_output_embeddings()
        targets = [name for name in linear if model.get_submodule(name) is not head]
    elif isinstance(wanted, str):
        targets = [name for name in linear if re.fullmatch(wanted, name)]
    else:
        targets = []
        for one in wanted:
            matching = [name for name in linear if f".{name}".endswith(f".{one}")]
            if not matching:
                raise RecipeError(f"lora.target_modules: {one!r} matches no linear layer of the model; {there_are}")
            targets += matching
    if not targets:
        raise RecipeError(f"lora.target_modules: {wanted!r} matches no linear layer of the model; {there_are}")
    for option, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):
                raise RecipeError(f"lora.{option}: {pattern!r} matches none of the target modules; {there_are}")
    tied = _tied(model)
    for name in targets:
        if id(model.get_submodule(name).weight) in tied:
            raise RecipeError(f"lora.target_modules: {name} shares its weight with another layer; leave it out")
        names.check(f"{name}.weight")
    return list(dict.fromkeys(targets))


@dataclass(frozen=True)
class Reach:
    """How much of a model an adapter can change, as shares of all its parameters."""

    adapted: float
    """In the layers that have a LoRA."""
    fused_experts: float
    """In tensors of fused experts, which are no layers: PEFT's `all-linear` passes over them without a word."""


def reach_of(model: PreTrainedModel, targets: Sequence[str]) -> Reach:
    """Returns what a LoRA on these layers reaches; an outline of the model will do."""
    total = sum(parameter.numel() for parameter in model.parameters())
    adapted = sum(model.get_parameter(f"{name}.weight").numel() for name in targets)
    fused = sum(value.numel() for name, value in model.named_parameters() if "experts" in name and value.ndim == 3)
    return Reach(adapted / total, fused / total)


def _tied(model: PreTrainedModel) -> set[int]:
    seen, tied = set(), set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


@contextmanager
def with_weights(
    model: PreTrainedModel, names: ParameterNames, chosen: Mapping[str, nn.Parameter]
) -> Iterator[Trainable]:
    """Puts float32 copies in the place of the chosen weights."""
    # A tied weight is met under each of its names, and the checkpoint may hold it under more than one.
    stored = {name: value for name, value in model.named_parameters(remove_duplicate=False) if names.holds(name)}
    # float32 whatever the base is in: of a bfloat16 weight of 0.02 the next is 1.2e-4 away, and a step of 5e-5 is none.
    masters = {name: nn.Parameter(weight.detach().to(torch.float32, copy=True)) for name, weight in chosen.items()}
    to_master = {id(chosen[name]): masters[name] for name in chosen}
    to_original = {id(masters[name]): chosen[name] for name in chosen}

    def entries() -> dict[str, Entry]:
        return changes(
            names,
            (
                (name, to_master[id(original)].detach() - original.detach().float())
                for name, original in stored.items()
                if id(original) in to_master
            ),
        )

    @contextmanager
    def as_base() -> Iterator[None]:
        _swap(model, to_original)
        try:
            yield
        finally:
            _swap(model, to_master)

    _swap(model, to_master)
    try:
        yield masters, entries, as_base
    finally:
        _swap(model, to_original)


@contextmanager
def with_pieces(
    model: PreTrainedModel, names: ParameterNames, chosen: Mapping[str, nn.Parameter], device: str
) -> Iterator[Trainable]:
    """Makes the chosen weights float32, and cuts the model into one piece a process, for good."""
    _swap(model, {id(weight): nn.Parameter(weight.detach().float()) for weight in chosen.values()})
    del chosen  # the base's own weights, of which each process keeps its piece
    sharding.shard(model, device)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    ids = {id(value): name for name, value in parameters.items()}
    stored = {
        name: ids[id(value)]
        for name, value in model.named_parameters(remove_duplicate=False)
        if id(value) in ids and names.holds(name)
    }
    base = {name: sharding.local_piece(value).clone() for name, value in parameters.items()}

    def exchange() -> None:
        for name, parameter in parameters.items():
            sharding.exchange(parameter, base[name])

    @contextmanager
    def as_base() -> Iterator[None]:
        exchange()
        try:
            yield
        finally:
            exchange()

    def entries() -> dict[str, Entry]:
        """Put together everywhere, as it must be, but kept by the first process only."""
        deltas: dict[str, Tensor] = {}
        for alias, name in stored.items():
            # What is put together is what lies in the parameter. So the base's piece takes its place for a moment, and
            # goes back.
            after = sharding.whole(parameters[name].detach()).cpu()
            sharding.exchange(parameters[name], base[name])
            delta = after - sharding.whole(parameters[name].detach()).cpu()
            sharding.exchange(parameters[name], base[name])
            if sharding.rank() == 0:
                deltas[alias] = delta
        return changes(names, deltas.items())

    yield parameters, entries, as_base


def changes(names: ParameterNames, deltas: Iterable[tuple[str, Tensor]]) -> dict[str, Entry]:
    """Returns what of some parameters' deltas is not zero, by the checkpoint's names: a missing name is a zero."""
    changed = {name: delta.cpu() for name, delta in deltas if bool(delta.any())}
    return {name: delta for name, delta in names.store(changed).items() if bool(delta.any())}


def _swap(model: PreTrainedModel, replacements: Mapping[int, nn.Parameter]) -> None:
    # Pointers change hands, nothing is copied.
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in replacements:
                module._parameters[key] = replacements[id(parameter)]


def chosen_weights(
    model: PreTrainedModel, names: ParameterNames, wanted: Sequence[str] | None
) -> dict[str, nn.Parameter]:
    """Returns the weights that `parameters` of the settings names, all for None.

    Raises:
        RecipeError: It names no weight of the model.
        ModelError: It names one that the checkpoint does not hold, or in a form that cannot be converted back to.
    """
    chosen = {name: model.get_parameter(name) for name in matching_parameters(model, wanted)}
    aliases = {id(value): name for name, value in model.named_parameters(remove_duplicate=False) if names.holds(name)}
    for name, weight in chosen.items():
        names.check(aliases.get(id(weight), name))
    return chosen


def matching_parameters(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Returns the names of the language model's weights that `parameters` of the settings names, all for None.

    Raises:
        RecipeError: It names no weight of the model.
    """
    language = language_parameters(model)
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point() and name in language]
    if wanted is None:
        return names
    for one in wanted:
        if not any(f".{one}." in f".{name}." for name in names):
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
            raise RecipeError(f"parameters: {one!r} matches no weight of the model; there are: {', '.join(kinds)}")
    return [name for name in names if any(f".{one}." in f".{name}." for one in wanted)]
