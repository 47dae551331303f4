"""What is put into the borrowed model to train: a LoRA, or float32 copies of its weights; and how to take it out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spunge.errors import RecipeError
from spunge.training import sharding
from spunge.training.seeding import seeded
from spunge.training.settings import Lora
from spunge.weights.task_vector import Entry, LowRank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "default"

Trainable = tuple[dict[str, nn.Parameter], Callable[[], dict[str, Entry]], Callable[[], AbstractContextManager[None]]]


@contextmanager
def with_lora(
    model: PreTrainedModel, names: Mapping[str, str], *, lora: Lora, seed: int, device: str
) -> Iterator[Trainable]:
    """Puts a LoRA with float32 factors in; its dropout is the only one that is active.

    Raises:
        RecipeError: A setting names no linear layer of the model, or one that cannot be stored.
    """
    from peft import LoraConfig, LoraModel
    from peft.tuners.lora import LoraLayer

    targets = _lora_targets(model, names, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),  # pyright: ignore[reportArgumentType]
    )
    with seeded(seed, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # found out from the layer, as it says
        tuner = LoraModel(model, config, _ADAPTER)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        layer.lora_A.float()
        layer.lora_B.float()
        layer.lora_dropout.train()
    if sharding.size() > 1:
        sharding.shard(model, device)

    def entries() -> dict[str, Entry]:
        return {
            names[f"{name}.weight"]: LowRank(
                sharding.whole(layer.lora_A[_ADAPTER].weight.detach()).cpu().clone(),
                b.clone(),
                scaling=float(layer.scaling[_ADAPTER]),
                transposed=bool(layer.fan_in_fan_out),
            )
            for name, layer in layers.items()
            if bool((b := sharding.whole(layer.lora_B[_ADAPTER].weight.detach()).cpu()).any())  # missing is zero
        }

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


def _lora_targets(model: PreTrainedModel, names: Mapping[str, str], lora: Lora) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    there_are = f"there are: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
    wanted = lora.target_modules
    if wanted is None:
        wanted = DEFAULTS.get(model.config.model_type)
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
        if f"{name}.weight" not in names:
            raise RecipeError(f"lora.target_modules: the checkpoint does not hold {name} as such; leave it out")
    return list(dict.fromkeys(targets))


def _tied(model: PreTrainedModel) -> set[int]:
    seen, tied = set(), set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


@contextmanager
def with_weights(
    model: PreTrainedModel, names: Mapping[str, str], chosen: Mapping[str, nn.Parameter]
) -> Iterator[Trainable]:
    """Puts float32 copies in the place of the chosen weights."""
    # A tied weight is met under each of its names, and the checkpoint may hold it under more than one.
    stored = {theirs: model.get_parameter(ours) for ours, theirs in names.items()}
    masters = {name: nn.Parameter(weight.detach().to(torch.float32, copy=True)) for name, weight in chosen.items()}
    to_master = {id(chosen[name]): masters[name] for name in chosen}
    to_original = {id(masters[name]): chosen[name] for name in chosen}

    def entries() -> dict[str, Entry]:
        deltas: dict[str, Entry] = {}
        for name, original in stored.items():
            if id(original) in to_master:
                delta = to_master[id(original)].detach() - original.detach().float()
                if bool(delta.any()):  # a missing name is a zero
                    deltas[name] = delta.cpu()
        return deltas

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
    model: PreTrainedModel, names: Mapping[str, str], chosen: Mapping[str, nn.Parameter], device: str
) -> Iterator[Trainable]:
    """Makes the chosen weights float32, and cuts the model into one piece a process, for good."""
    _swap(model, {id(weight): nn.Parameter(weight.detach().float()) for weight in chosen.values()})
    del chosen  # the base's own weights, of which each process keeps its piece
    sharding.shard(model, device)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    ids = {id(value): name for name, value in parameters.items()}
    stored = {theirs: ids.get(id(model.get_parameter(ours))) for ours, theirs in names.items()}
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
        deltas: dict[str, Entry] = {}
        for theirs, name in stored.items():
            if name is not None:
                after = sharding.whole(parameters[name].detach()).cpu()
                sharding.exchange(parameters[name], base[name])
                delta = after - sharding.whole(parameters[name].detach()).cpu()
                sharding.exchange(parameters[name], base[name])
                if bool(delta.any()) and sharding.rank() == 0:  # a missing name is a zero
                    deltas[theirs] = delta
        return deltas

    yield parameters, entries, as_base


def _swap(model: PreTrainedModel, replacements: Mapping[int, nn.Parameter]) -> None:
    # Pointers change hands, nothing is copied.
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in replacements:
                module._parameters[key] = replacements[id(parameter)]


def chosen_weights(
    model: PreTrainedModel, names: Mapping[str, str], wanted: Sequence[str] | None
) -> dict[str, nn.Parameter]:
    """Returns the weights that `parameters` of the settings names, all for None.

    Raises:
        RecipeError: It names no weight of the model, or one that the checkpoint does not hold.
    """
    chosen = {name: model.get_parameter(name) for name in _matching(model, wanted)}
    places = {id(model.get_parameter(ours)) for ours in names}
    for name, weight in chosen.items():
        if id(weight) not in places:
            raise RecipeError(f"parameters: the checkpoint does not hold {name} as such; choose weights without it")
    return chosen


def _matching(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    if wanted is None:
        return names
    for one in wanted:
        if not any(f".{one}." in f".{name}." for name in names):
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
            raise RecipeError(f"parameters: {one!r} matches no weight of the model; there are: {', '.join(kinds)}")
    return [name for name in names if any(f".{one}." in f".{name}." for one in wanted)]
