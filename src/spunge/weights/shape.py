"""What a model's configuration says of its size: what a forecast reckons with before any weight is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from spunge.errors import DataError, ModelError
from spunge.weights.language_model import LanguageModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_WINDOWS = ("n_positions", "max_position_embeddings", "n_ctx")
_ATTENTION = {"full_attention", "sliding_attention"}
_SAMPLE = 128
"""So many texts are tokenised to know how long a token is: all would take seconds."""


@dataclass(frozen=True)
class Shape:
    """What counts of a model's configuration."""

    parameters: int
    """Numbers in all weights, tied ones once."""
    matrices: Mapping[str, tuple[int, int]]
    """The layers' linear maps by what LoRA calls them (`q_proj`): numbers in all, and input plus output features."""
    kind: str
    """What transformers calls the architecture."""
    inner: int
    """Numbers that every token is multiplied with."""
    layers: int
    width: int
    vocabulary: int
    window: int
    """Tokens that it reads at once."""
    cached: int
    """Numbers that a token leaves in the key-value cache."""
    activations: int
    """Numbers that a token's way through one layer leaves for the backward pass."""
    bytes: int
    """Of one number of the weights."""


def shape_of(model: LanguageModel) -> Shape:
    """Reads the configuration, once in a process, and builds the model without memory for its weights.

    Raises:
        ModelError: There is no such model, or its configuration cannot be read.
    """
    return _shape_of(model, model.directory(weights=False))  # pyright: ignore[reportArgumentType]: frozen, so hashable


@cache
def _shape_of(model: LanguageModel, directory: Path) -> Shape:
    import torch

    outline: Any = model.outline()
    config, layers = outline.config, find_layers(outline.get_decoder())  # of text: what sees has layers too
    text = config.get_text_config()
    matrices: dict[str, tuple[int, int]] = {}
    for path, module in layers.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            name, weight = path.rpartition(".")[2], module.get_parameter("weight")
            numbers, sides = matrices.get(name, (0, 0))
            matrices[name] = (numbers + weight.numel(), sides + sum(weight.shape))
    return Shape(
        parameters=sum(parameter.numel() for parameter in outline.parameters()),
        matrices=matrices,
        kind=config.model_type,
        inner=sum(numbers for numbers, _ in matrices.values()) + text.hidden_size * text.vocab_size,
        layers=len(layers),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        window=next((int(n) for name in _WINDOWS if (n := getattr(text, name, None)) is not None), 2048),
        cached=cached_numbers(text),
        activations=activations_of(layers[-1]),
        bytes=number_size(config, model.dtype),
    )


def cached_numbers(config: PreTrainedConfig) -> int:
    """Returns how many numbers a token leaves in the key-value cache of a model of text."""
    attention = getattr(config, "num_attention_heads", 0)  # Mamba has none, and no cache that grows
    heads = getattr(config, "num_key_value_heads", None) or attention
    width = getattr(config, "head_dim", None) or (config.hidden_size // attention if attention else 0)
    return 2 * config.num_hidden_layers * heads * width


def reads_packed_rows(model: PreTrainedModel) -> bool:
    """Whether a model's layers know of other tokens by attention and given positions alone; an outline of it will do.

    Only then can several texts lie behind one another in one sequence. A recurrent state would run on from text to
    text. What sees images too counts positions in its own way, and code that is not transformers' own may read its
    arguments otherwise.
    """
    config: Any = model.config
    return (
        config._attn_implementation == "sdpa"
        and config.get_text_config() is config
        and type(model).__module__.startswith("transformers.")
        and {"position_ids", "logits_to_keep"} <= set(inspect.signature(model.forward).parameters)
        and not model._is_stateful
        and set(getattr(config, "layer_types", None) or _ATTENTION) <= _ATTENTION
    )


def token_counts(model: LanguageModel, texts: Sequence[str]) -> list[int]:
    """Returns about how many tokens each text has, one at least: from its length, and what a sample's tokens are."""
    check_tokens(model, texts)
    sample = list(texts[:: max(1, len(texts) // _SAMPLE)])
    tokenizer = _tokenizer_of(model, model.directory(weights=False))  # pyright: ignore[reportArgumentType]: as above
    ids = tokenizer(sample, verbose=False)["input_ids"] if sample else []
    tokens, characters = sum(map(len, ids)), sum(map(len, sample))
    return [max(1, round(len(text) * tokens / max(characters, 1))) for text in texts]


def cut_texts(model: LanguageModel, texts: Sequence[str], longest: int) -> list[str]:
    """Returns the texts cut to about so many tokens: what a forecast counts of texts that are read so far."""
    counts = token_counts(model, texts)
    return [text[: len(text) * longest // count] for text, count in zip(texts, counts, strict=True)]


def check_tokens(model: LanguageModel, texts: Sequence[str]) -> None:
    """Refuses texts with a token that the model has no row for: a tokenizer may have been extended without its model.

    Raises:
        DataError: There is one; the message names it and its row.
    """
    rows = getattr(model.config().get_text_config(), "vocab_size", None)
    tokenizer = _tokenizer_of(model, model.directory(weights=False))  # pyright: ignore[reportArgumentType]: as above
    if rows is None or len(tokenizer) <= rows:  # nearly always: then no text is read
        return
    for number, ids in enumerate(tokenizer(list(texts), verbose=False)["input_ids"], 1):
        if ids and max(ids) >= rows:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"row {number} has the token {token!r} with the id {max(ids)}, and the embeddings of {model.id} have "
                f"{rows} rows: resize them and train the token, or take it out of the text"
            )


@cache
def _tokenizer_of(model: LanguageModel, directory: Path) -> Any:  # a hub id may come to mean another directory
    return model.load_tokenizer()


def activations_of(layer: nn.Module) -> int:
    """Returns how many numbers a token's way through a decoder layer leaves for the backward pass.

    Every matrix product's output is kept, and about as much again of norms, products and activations between them.
    """
    return 2 * sum(parameter.shape[0] for parameter in layer.parameters() if parameter.ndim > 1)


def find_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """Returns the list of decoder layers, found by its length and position.

    Raises:
        ModelError: There is no such list.
    """
    from torch import nn

    count = decoder.config.num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if lists:  # the outermost: a layer may hold as many experts as there are layers, and OPT has its layers one deeper
        return min(lists, key=lambda pair: pair[0])[1]
    raise ModelError(f"{type(decoder).__name__}: no list of {count} decoder layers in this architecture")


@contextmanager
def forward_replaced(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Has a module of a model do something else, for as long as the context lasts."""
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def compute_dtype(config: PreTrainedConfig, dtype: str) -> torch.dtype:
    """Returns what a model computes in; `auto` is the checkpoint's own, float32 where its configuration is silent."""
    import torch

    compute = config.dtype if dtype == "auto" else getattr(torch, dtype)
    return compute if isinstance(compute, torch.dtype) else torch.float32


def number_size(config: PreTrainedConfig, dtype: str) -> int:
    """Returns the bytes of a number in the dtype that a model computes in."""
    return compute_dtype(config, dtype).itemsize
