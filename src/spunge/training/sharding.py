"""One job on several processes (torchrun): FSDP2 shards the model, and each process takes its share of every batch.

Everything here is the identity in a single process. All processes call everything together, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spunge.errors import RecipeError
from spunge.training.settings import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def launched(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, if it did; yields the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; 0 writes the results."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """How many processes work on this job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check(settings: Tuning) -> None:
    """Raises RecipeError unless the processes can share this training: its rows equally, and its weights at all."""
    if settings.quantize is not None and size() > 1:
        raise RecipeError(
            f"quantize: weights in 4 bits are not cut into pieces for {size()} processes; "
            "leave quantize out, or start without torchrun"
        )
    if settings.batch_size % size():
        raise RecipeError(
            f"batch_size: {settings.batch_size} rows cannot be shared out equally among {size()} processes; "
            f"use a multiple of {size()}"
        )


def shard(model: PreTrainedModel, device: str) -> None:
    """Cuts every parameter into one piece a process; a decoder layer is whole only while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (size(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # The outermost pieces too are given back after every pass: between two passes the base's weights may stand in.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Returns a model's decoder layers, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # transformers' word for them

    # A tower that sees has such layers too.
    return [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]


def whole(value: Tensor) -> Tensor:
    """Returns a tensor put together from its pieces; one that is not in pieces as it is."""
    if size() == 1:
        return value
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def piece(value: Tensor, like: Tensor) -> Tensor:
    """Returns this process's piece of a whole tensor, cut as `like` is."""
    value = value.to(like.device)
    if size() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


@torch.no_grad()
def exchange(parameter: nn.Parameter, other: Tensor) -> None:
    """Swaps the values of this process's piece of a parameter with those of `other`, in place."""
    local = local_piece(parameter)
    held = local.clone()
    local.copy_(other)
    other.copy_(held)


def local_piece(parameter: Tensor) -> Tensor:
    """Returns this process's piece of a parameter, which shares its memory."""
    from torch.distributed.tensor import DTensor

    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def share(indices: list[int]) -> tuple[list[int], bool]:
    """Returns this process's rows of a batch; where there is none left for it, one that must not count, and False."""
    # In turn, so that shares differ by a row at most, whatever the length of the last batch.
    local = indices[rank() :: size()]
    return (local, True) if local else (indices[:1], False)


def total(value: float | Tensor, device: str = "cpu") -> Tensor:
    """Returns the sum over all processes."""
    tensor = torch.as_tensor(value, device=device) if isinstance(value, Tensor) else torch.tensor(value, device=device)
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def agreed(decision: bool, device: str) -> bool:
    """Returns what the first process decided."""
    if size() == 1:
        return decision
    tensor = torch.tensor(int(decision), device=device)
    dist.broadcast(tensor, src=0)
    return bool(tensor)
