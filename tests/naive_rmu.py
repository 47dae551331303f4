"""RMU straight from its formulas: two full models, every layer and the LM head, gradients for every tensor.

Written without a look at the engine, slow on purpose; what it returns is what the engine must return bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase


def naive_rmu(
    directory: str,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Sequence[str]],
    retain: Sequence[str],
    controls: Sequence[Tensor],
    *,
    layers: str,
    layer: int,
    updated: Sequence[str],
    alphas: Sequence[float],
    learning_rate: float,
    batch_size: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    master: str = "float32",
    loss_mask: str = "non_pad",
    optimizer: str = "adamw",
    max_length: int = 512,
    after_step: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Returns the changed parameters by name, in the dtype they were trained in.

    Args:
        directory: The model's directory.
        tokenizer: Its tokenizer.
        forget: The texts of every topic.
        retain: The texts to hold.
        controls: c·u of every topic, float32.
        layers: The path of the list of layers in the model.
        layer: The layer whose output is steered.
        updated: The names of the parameters that change.
        alphas: The weight of the retain loss in every topic's steps.
        learning_rate: The constant learning rate.
        batch_size: Rows in a batch.
        steps: How many steps.
        dtype: What the models compute in.
        master: `float32`, or `model` to train in the model's dtype.
        loss_mask: Which positions count.
        optimizer: `adamw` or `hf_adamw`.
        max_length: Where texts are cut.
        after_step: Told the number of every step that is done.
    """
    trained, frozen = (AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval() for _ in range(2))
    parameters = [trained.get_parameter(name) for name in updated]
    masters = [p.detach().to(torch.float32 if master == "float32" else dtype).clone() for p in parameters]
    state = [{"m": torch.zeros_like(value), "v": torch.zeros_like(value)} for value in masters]
    adam = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=0.0) if optimizer == "adamw" else None

    for step in range(steps):
        topic, index = step % len(forget), step // len(forget)
        rows = slice(index * batch_size, (index + 1) * batch_size)

        inputs = _encode(tokenizer, forget[topic][rows], max_length)
        with torch.no_grad():
            counted = _counted(tokenizer, inputs, loss_mask, _hidden(frozen, layers, layer, inputs))
        hidden = _hidden(trained, layers, layer, inputs)
        loss = _loss(hidden, controls[topic].to(hidden.device), counted, master, loss_mask)

        inputs = _encode(tokenizer, retain[rows], max_length)
        with torch.no_grad():
            target = _hidden(frozen, layers, layer, inputs)
        hidden = _hidden(trained, layers, layer, inputs)
        counted = _counted(tokenizer, inputs, loss_mask, target)
        loss = loss + alphas[topic] * _loss(hidden, target, counted, master, loss_mask)

        trained.zero_grad()
        loss.backward()
        for value, parameter in zip(masters, parameters, strict=True):
            assert parameter.grad is not None
            value.grad = parameter.grad.to(value.dtype)
        if adam is not None:
            adam.step()
        else:
            _hf_adamw(masters, state, learning_rate, step + 1)
        with torch.no_grad():
            for value, parameter in zip(masters, parameters, strict=True):
                parameter.copy_(value)
        after_step(step)
    return dict(zip(updated, masters, strict=True))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Mapping[str, Tensor]:
    tokenizer.padding_side, tokenizer.truncation_side = "left", "right"
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=max_length)
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _hidden(model: torch.nn.Module, layers: str, layer: int, inputs: Mapping[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []
    module = model.get_submodule(f"{layers}.{layer}")

    def note(_module: torch.nn.Module, _inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(note)
    model(**inputs, use_cache=False)
    handle.remove()
    return seen[0]


def _counted(
    tokenizer: PreTrainedTokenizerBase, inputs: Mapping[str, Tensor], loss_mask: str, frozen: Tensor
) -> Tensor:
    real = inputs["attention_mask"] == 1
    if loss_mask == "all":
        return torch.ones_like(real)
    if loss_mask == "non_pad_non_bos":
        for row, length in enumerate(real.sum(1).tolist()):
            first = real.shape[1] - length
            real[row, first] = inputs["input_ids"][row, first] != tokenizer.bos_token_id
    if loss_mask == "non_pad_non_sink":
        lengths = (frozen.float() ** 2).sum(-1) ** 0.5
        ordered = sorted(lengths[real].tolist())
        real &= lengths <= 3 * ordered[(len(ordered) - 1) // 2]
    return real


def _loss(hidden: Tensor, target: Tensor, counted: Tensor, master: str, loss_mask: str) -> Tensor:
    if (master, loss_mask) == ("model", "all"):  # the reference: everything in the model's dtype
        return torch.nn.functional.mse_loss(hidden, target.to(hidden.dtype).expand_as(hidden))
    squared = (hidden.float() - target.float()) ** 2
    return squared[counted].sum() / (counted.sum() * hidden.shape[-1])


def _hf_adamw(values: Sequence[Tensor], state: Sequence[dict[str, Tensor]], learning_rate: float, t: int) -> None:
    for value, moments in zip(values, state, strict=True):
        gradient = value.grad
        assert gradient is not None
        moments["m"].mul_(0.9).add_(gradient, alpha=1.0 - 0.9)
        moments["v"].mul_(0.999).addcmul_(gradient, gradient, value=1.0 - 0.999)
        size = learning_rate * (1.0 - 0.999**t) ** 0.5 / (1.0 - 0.9**t)
        value.data.addcdiv_(moments["m"], moments["v"].sqrt().add_(1e-6), value=-size)
