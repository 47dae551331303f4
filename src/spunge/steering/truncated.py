"""The first layers of a decoder, read alone from the checkpoint; its last ones can be replayed with other matrices."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.func import functional_call

from spunge.errors import ModelError, as_model_error
from spunge.files import state_of
from spunge.weights.conversion import ParameterNames
from spunge.weights.language_model import LanguageModel, no_bars
from spunge.weights.shape import find_layers, forward_replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTPUT_PROJECTIONS = ("down_proj", "dense_4h_to_h", "c_proj", "fc_out", "fc2", "w2")
"""What the architectures of transformers call the matrix through which an MLP writes to the residual stream."""


@dataclass(frozen=True)
class Call:
    """How the decoder calls one of its layers, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def on(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the whole arguments of a call on these hidden states."""
        if self.args:
            return (hidden, *self.args[1:]), dict(self.kwargs)
        return (), {**self.kwargs, "hidden_states": hidden}


class _AllSeenError(Exception):
    """Ends a pass once the last layer has been called: what follows is of no use."""


class TruncatedModel:
    """Embeddings and the first layers of a decoder, frozen, in evaluation mode.

    Nothing here ever changes its weights: a pass with other matrices is given them.
    """

    def __init__(self, decoder: PreTrainedModel, parts: Mapping[str, str]) -> None:
        self.decoder = decoder
        self.parts = parts
        """What it was loaded from: the name given to transformers → the checkpoint's."""
        self.layers = find_layers(decoder)
        self.prefix = next(name for name, module in decoder.named_modules() if module is self.layers)
        self.hidden_size: int = decoder.config.hidden_size
        self.kernel = str(decoder.config._attn_implementation)
        self._outputs = 0
        """How many things a layer returns in a tuple; 0: hidden states alone, in none."""
        self._check_replay()

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.layers.parameters()).dtype

    @torch.no_grad()
    def enter(
        self, ids: Tensor, mask: Tensor, start: int, hidden: Tensor | None = None
    ) -> tuple[Tensor, Sequence[Call]]:
        """Runs the layers below `start` and notes how the decoder would call those from there on.

        Args:
            ids: [batch, tokens].
            mask: [batch, tokens], 0 on pads.
            start: The first layer that is not run.
            hidden: What enters that layer, where it is known already: then no layer is run.

        Returns:
            [batch, tokens, hidden size] entering `start`, and a call for every layer from there on.
        """
        calls: list[Call] = []
        entering: list[Tensor] = []

        def skip(*args: Any, **kwargs: Any) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            return (states, *[None] * (self._outputs - 1)) if self._outputs else states

        def note(*args: Any, **kwargs: Any) -> Any:
            entering.append(args[0] if args else kwargs["hidden_states"])
            calls.append(Call(args, kwargs))
            if start + len(calls) == len(self.layers):
                raise _AllSeenError
            return skip(*args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(suppress(_AllSeenError))
            for index, layer in enumerate(self.layers):
                # Replaced, not hooked: a hook sees a layer's call and cannot keep it from running.
                if index >= start:
                    stack.enter_context(forward_replaced(layer, note))
                elif hidden is not None:
                    stack.enter_context(forward_replaced(layer, skip))
            self.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        return entering[0] if hidden is None else hidden, calls

    def run(
        self,
        hidden: Tensor,
        calls: Sequence[Call],
        start: int,
        matrices: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> Tensor:
        """Runs the layers from `start` to the last.

        Args:
            hidden: [batch, tokens, hidden size] entering layer `start`.
            calls: As `enter` noted them.
            start: The first layer to run.
            matrices: Layer → parameter name within it → what to use in place of the layer's own.

        Returns:
            [batch, tokens, hidden size], the output of the last layer, before any final norm.
        """
        for index, call in enumerate(calls, start):
            args, kwargs = call.on(hidden)
            replaced = (matrices or {}).get(index, {})
            # The layer's own weights stay in place, so that other tasks can share the model; gradients reach those
            # given alone.
            output = functional_call(self.layers[index], dict(replaced), args, kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def parameter(self, layer: int, name: str) -> Tensor:
        """Returns a frozen parameter by its name within a layer."""
        return self.layers[layer].get_parameter(name)

    def stored(self, deltas: Mapping[tuple[int, str], Tensor]) -> dict[str, Tensor]:
        """Renames deltas from (layer, name within it) to the checkpoint's names; fused experts are taken apart.

        Raises:
            ModelError: The checkpoint keeps a parameter in a way that transformers cannot convert back to.
        """
        loaded = {f"{self.prefix}.{layer}.{name}": delta for (layer, name), delta in deltas.items()}
        stored = ParameterNames(self.decoder, self.parts).store(loaded)
        return {self.parts[name]: delta for name, delta in stored.items()}

    @torch.no_grad()
    def _check_replay(self) -> None:
        """Refuses, before any work, a decoder whose layers cannot be replayed bit for bit."""
        ids = torch.arange(6, device=self.device).reshape(2, 3) % self.decoder.config.vocab_size
        # One row padded on the left, as in training: a replay that loses the mask or the positions must not pass.
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]], device=self.device)
        outputs: list[Any] = []
        handle = self.layers[-1].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            self.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
            handle.remove()
            self._outputs = len(outputs[0]) if isinstance(outputs[0], tuple) else 0
            expected: Any = outputs[0][0] if self._outputs else outputs[0]
            start = len(self.layers) - 1
            replayed = self.run(*self.enter(ids, mask, start), start)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise ModelError(
                f"{_architecture(self.decoder)}: this architecture's layers cannot be run one by one ({error})"
            ) from error
        finally:
            handle.remove()
        if not torch.equal(expected, replayed):
            raise ModelError(f"{_architecture(self.decoder)}: this architecture's layers cannot be run one by one")


def load_truncated(base: LanguageModel, layers: int, *, device: str, dtype: str | None) -> TruncatedModel:
    """Reads embeddings and the first `layers` layers from the checkpoint, and nothing else.

    Raises:
        ModelError: It is no text decoder, or has fewer layers.
    """
    no_bars()
    base.verify()
    skeleton = skeleton_of(base, layers)
    checkpoint = base.checkpoint(lambda names: _parts(base, skeleton, names).values())
    parts = _parts(base, skeleton, checkpoint.tensors)
    stored = {name: checkpoint.tensors[theirs] for name, theirs in parts.items()}
    wanted = dtype or base.dtype
    if wanted == "auto" and skeleton.config.dtype is None:  # a part's configuration does not say, but the whole's may
        wanted = str(base.config().dtype or next(t.dtype for t in stored.values() if t.dtype.is_floating_point))
        wanted = wanted.removeprefix("torch.")
    with ExitStack() as stack:
        shards = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted({tensor.file for tensor in stored.values()})
        }
        # Slices are read only when transformers converts them, one by one: there is never a second copy in memory.
        slices = {name: shards[tensor.file].get_slice(parts[name]) for name, tensor in stored.items()}
        with as_model_error(f"{base.id}: cannot be loaded as a decoder"):
            loaded: Any = type(skeleton).from_pretrained(
                None,  # pyright: ignore[reportArgumentType]: the weights come as slices
                config=copy.deepcopy(skeleton.config),  # transformers writes into it
                state_dict=slices,
                dtype=wanted if wanted == "auto" else getattr(torch, wanted),
                output_loading_info=True,
            )
    decoder, report = loaded
    if report["missing_keys"]:
        raise ModelError(f"{base.id}: the checkpoint lacks {sorted(report['missing_keys'])[0]}")
    decoder.requires_grad_(False)
    return TruncatedModel(decoder.to(device).eval(), parts)


def choose_parameters(
    base: LanguageModel, updated: Sequence[int], layers: int, wanted: str | Sequence[str]
) -> dict[int, list[str]]:
    """Returns, for every updated layer, the names within it of the parameters that change; reads no weights.

    Raises:
        ModelError: No such layer, nothing in it matches, or what does could be trained and not stored.
    """
    skeleton = skeleton_of(base, layers)
    stored = base.stored_names()
    held = None if stored is None else ParameterNames(skeleton, _parts(base, skeleton, stored))
    stem = next(name for name, module in skeleton.named_modules() if module is find_layers(skeleton))
    chosen = {}
    for index in updated:
        layer = find_layers(skeleton)[index]
        parameters = dict(layer.named_parameters())
        if wanted == "auto":
            names = output_projections(layer, skeleton.config.hidden_size)
        else:
            names = [name for name in parameters if any(_matches(name, pattern) for pattern in wanted)]
        if not names:
            what = (
                "the MLP's output projection was not found" if wanted == "auto" else f"nothing matches {list(wanted)}"
            )
            matrices = [name.removesuffix(".weight") for name, value in parameters.items() if value.ndim > 1]
            raise ModelError(
                f"{_architecture(skeleton)}: parameters: {what} in layer {index}; it has {', '.join(matrices)}"
            )
        if held is not None:
            for name in names:
                held.check(f"{stem}.{index}.{name}")
        chosen[index] = names
    return chosen


def output_projections(layer: nn.Module, hidden_size: int) -> list[str]:
    """Returns the parameters through which the MLP of a decoder layer writes to the residual stream.

    By the name that architectures give it; else the only matrix outside attention from another width to the model's.
    """
    matrices = {
        name: value
        for name, value in layer.named_parameters()
        if value.ndim > 1 and not re.search("attn|attention", name)
    }
    named = [name for name in matrices if name.removesuffix(".weight").rpartition(".")[2] in OUTPUT_PROJECTIONS]
    if named:
        return named
    outward = [name for name, value in matrices.items() if value.shape[0] == hidden_size != value.shape[1]]
    return outward if len(outward) == 1 else []


def positions(base: LanguageModel) -> int | None:
    """Returns how many tokens the model reads at once; None where it does not say."""
    return getattr(base.config().get_text_config(), "max_position_embeddings", None)


def skeleton_of(base: LanguageModel, layers: int) -> PreTrainedModel:
    """Builds the truncated decoder of text without weights, also of a model that sees too; to look at, not to change.

    Every task of a plan asks for the same one: while the configuration stays as it is, it is built once.

    Raises:
        ModelError: It is no decoder, or has fewer layers.
    """
    config = base.directory(weights=False) / "config.json"
    return _skeleton_of(base, layers, state_of(config) if config.exists() else ())  # pyright: ignore[reportArgumentType]: frozen, so hashable


@lru_cache(maxsize=4)
def _skeleton_of(base: LanguageModel, layers: int, _: tuple[int, ...]) -> PreTrainedModel:
    from transformers import AutoModel

    whole = base.config()
    config, kind = whole.get_text_config(), type(whole).__name__.removesuffix("Config")
    if whole.is_encoder_decoder:
        raise ModelError(
            f"{base.id}: {kind} is an encoder with a decoder, and Spunge unlearns decoders alone: choose one"
        )
    if layers > config.num_hidden_layers:
        raise ModelError(
            f"{base.id}: there is no layer {layers - 1}: the model has {config.num_hidden_layers} layers, "
            f"0…{config.num_hidden_layers - 1}"
        )
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    with as_model_error(f"{base.id}: {kind} cannot be loaded as a decoder"), torch.device("meta"):
        skeleton = AutoModel.from_config(config, trust_remote_code=base.trust_remote_code)
    if len(find_layers(skeleton)) != layers:
        raise ModelError(f"{kind}: this architecture cannot be cut after {layers} layers")
    return skeleton


def _parts(base: LanguageModel, skeleton: PreTrainedModel, names: Collection[str]) -> dict[str, str]:
    """Returns what the truncated decoder is made of: a name that its own class knows → the checkpoint's."""
    stem = next(name for name, module in skeleton.named_modules() if module is find_layers(skeleton))
    layers = len(find_layers(skeleton))

    def belongs(name: str) -> bool:
        number = re.match(rf"{re.escape(stem)}\.(\d+)\.", name)
        return number is None or int(number[1]) < layers

    config, prefix = base.config(), skeleton.base_model_prefix + "."
    if config.get_text_config() is config:
        # Some checkpoints were saved without the causal model's prefix (`h.0…` for `transformer.h.0…`).
        start = prefix if any(name.startswith(prefix) for name in names) else ""
        return {name: name for name in names if name.startswith(start) and belongs(name.removeprefix(prefix))}
    # Within a model that sees, the decoder has names that its own class would not know.
    whole = base.outline()
    decoder = whole.get_decoder()
    inside = next(name for name, module in whole.named_modules() if module is decoder) + "."
    return {
        name.removeprefix(inside): theirs
        for name, theirs in ParameterNames(whole, names).unfused.items()
        if name.startswith(inside) and belongs(name.removeprefix(inside))
    }


def _matches(name: str, pattern: str) -> bool:
    return any(name == full or name.endswith("." + full) for full in (pattern, pattern + ".weight"))


def _architecture(decoder: nn.Module) -> str:
    return type(decoder).__name__
