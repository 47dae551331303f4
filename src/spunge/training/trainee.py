"""The borrowed base model as something to train: asked for logits, inner states, or what the base would have said.

A LoRA is put in and taken out, or float32 copies of the weights stand in for them, so that the base's own weights are
never written to and serve as the reference model at no cost in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spunge.errors import MissingExtra, RecipeError
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.training import losses, packing, sharding
from spunge.training.rows import Batch, Encoded, collate, cut, encode
from spunge.training.settings import Tuning
from spunge.training.tuned import Reach, chosen_weights, lora_targets, reach_of, with_lora, with_pieces, with_weights
from spunge.weights.conversion import ParameterNames
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Trainee:
    """The borrowed base model with something in it to train."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Tuning
    device: str
    parameters: Mapping[str, nn.Parameter]
    """What is trained, float32, by a name that a resumed run gives it too."""
    entries: Callable[[], dict[str, Entry]]
    """Trained minus base, by the checkpoint's parameter names."""
    as_base: Callable[[], AbstractContextManager[None]]
    """Inside it the model answers as the base model does."""
    in_bfloat16: bool
    """Whether matrix products are computed in bfloat16, by autocast."""
    packs: bool = False
    """Whether rows may stand behind one another in one sequence rather than be padded."""
    reach: Reach | None = None
    """What an adapter reaches; None where the weights themselves are trained."""
    _encoded: dict[int, tuple[Sequence[Encoded], Corpus]] = field(default_factory=dict)
    """Rows by their list's id, with what they were made of; they are held so that no other list takes the id."""
    _answers: dict[tuple[int, str], Sequence[Encoded]] = field(default_factory=dict)
    _base_log_probs: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the logits that predict `batch.labels`, [N, V]; no other token costs any."""
        if self.packs and packing.fits(self.model, batch):
            return self._ask(**packing.pack(batch)).logits[0]
        # Without it the head is spared only what stands before the first token that counts in any row.
        first = int(batch.counted.any(0).nonzero()[0])
        keep = batch.ids.shape[1] - first + 1
        return self._ask_padded(batch, keep).logits[:, -keep:-1][batch.counted[:, first:]]

    def base_logits(self, batch: Batch) -> Tensor:
        """Returns the base model's logits: the same weights with the training switched off."""
        with torch.no_grad(), self.as_base():
            return self(batch)

    def kl_to_base(self, batch: Batch) -> Tensor:
        """Returns KL(base ‖ model) on a batch, the base asked first: see `ForgetAndRetain.forget_loss`."""
        base_logits = self.base_logits(batch)
        return losses.kl_to_base(self(batch), base_logits)

    def states(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Returns the outputs of these decoder layers, from 0, [layers, B, T, D]; of the last after the final norm.

        What follows the deepest of them is not computed, unless that is the model's last or the model is in pieces.
        """
        blocks = sharding.decoder_layers(self.model)
        depth = self.model.config.get_text_config().num_hidden_layers
        if max(layers) + 1 == depth or len(blocks) != depth or sharding.size() > 1:
            outputs = self._ask_padded(batch, 1, output_hidden_states=True)
            return torch.stack([outputs.hidden_states[layer + 1] for layer in layers])
        reached: dict[int, Tensor] = {}

        def note(layer: int, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reached[layer] = inputs[0]
            if layer == max(layers):
                raise _Enough

        with ExitStack() as stack:
            for layer in layers:  # its output is what enters the next one
                hook = blocks[layer + 1].register_forward_pre_hook(partial(note, layer))
                stack.callback(hook.remove)
            with suppress(_Enough):
                self._ask_padded(batch, 1)
        return torch.stack([reached[layer] for layer in layers])

    def base_states(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Returns what `states` returns for the base model."""
        with torch.no_grad(), self.as_base():
            return self.states(batch, layers)

    def answered(self, batch: Batch, column: str) -> Batch:
        """Returns the same prompts as a batch of forget rows, with another column's texts as the responses."""
        rows, corpus = self._encoded[id(batch.rows)]
        if (id(rows), column) not in self._answers:
            self._answers[id(rows), column] = self.encode(corpus, response=column)
        return self.collate(self._answers[id(rows), column], batch.indices)

    def base_log_probs(self, batch: Batch) -> Tensor:
        """Returns the base model's log-probability of every row's counted part, [B].

        All rows of the list that the batch is from are asked in one go, the first time, sorted by length: less padding
        than batch by batch, and none of it again in the next epoch.
        """
        if id(batch.rows) not in self._base_log_probs:
            with self.as_base():
                self._base_log_probs[id(batch.rows)] = self.log_probs(batch.rows)
        return self._base_log_probs[id(batch.rows)][batch.indices]

    @torch.no_grad()
    def log_probs(self, rows: Sequence[Encoded]) -> Tensor:
        """Returns the log-probability of every row's counted part, [rows], dropout off."""
        # Of like lengths together: what is padded is computed for nothing.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        result = torch.zeros(len(rows), device=self.device)
        with _dropout_off(self.model):
            for indices in cut(order, self.settings.batch_size):
                local, counts = sharding.share(indices)
                batch = self.collate(rows, local)
                log_probs = losses.sequence_log_probs(self(batch), batch.labels, batch.lengths)
                if counts:
                    result[local] = log_probs
        return sharding.total(result)

    def encode(self, corpus: Corpus, *, response: str = "response") -> list[Encoded]:
        """Turns rows into tokens, as the settings say and no longer than the model can read."""
        text = self.model.config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None) or self.settings.max_length
        rows = encode(
            corpus,
            self.tokenizer,
            max_length=min(self.settings.max_length, positions),
            long_texts=self.settings.long_texts,
            response=response,
        )
        # Held for as long as its id is a key: of a list that went, another could take the id.
        self._encoded[id(rows)] = rows, corpus
        return rows

    def collate(self, rows: Sequence[Encoded], indices: Sequence[int]) -> Batch:
        """Pads the rows with these indices into one batch."""
        pad = self.tokenizer.pad_token_id
        return collate(rows, indices, pad=0 if pad is None else int(pad), device=self.device)  # pyright: ignore[reportArgumentType]

    def _ask_padded(self, batch: Batch, keep: int, **options: Any) -> Any:
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = keep
        return self._ask(input_ids=batch.ids, attention_mask=batch.mask, **options)

    def _ask(self, **inputs: Any) -> Any:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.in_bfloat16):
            return self.model(**inputs, use_cache=False)


class _Enough(Exception):
    """Ends a forward pass that has gone as deep as it must."""


@contextmanager
def _dropout_off(model: PreTrainedModel) -> Iterator[None]:
    active = [module for module in model.modules() if module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


@contextmanager
def borrow(settings: Tuning, base: LanguageModel, work: Work) -> Iterator[Trainee]:
    """Makes the resident base model trainable, and hands it back exactly as it was.

    Raises:
        RecipeError: The settings name layers or weights that the model does not have.
    """
    sharding.check(settings)
    # Quantising and cutting into pieces change a model for good: they get a copy, as others want the resident base.
    copied = settings.quantize is not None or sharding.size() > 1
    model, tokenizer = _load_copy(settings, base, work) if copied else work.resident.base(base)
    names = ParameterNames(model, base.checkpoint().tensors)
    trainable = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    in_bfloat16 = settings.precision == "bfloat16" or model.dtype in (torch.bfloat16, torch.float16)
    with ExitStack() as stack:
        if not copied:
            stack.callback(_restore, model, trainable)
        model.requires_grad_(False).eval()
        packs = stack.enter_context(packing.attention_by_rows(model))  # asked of the base: what is put in comes after
        reach = None
        if settings.lora:
            if settings.quantize is None:  # of 4-bit weights the numbers aren't counted
                reach = reach_of(model, lora_targets(model, names, settings.lora))
            tuned = with_lora(model, names, lora=settings.lora, seed=work.seed, device=work.device)
        elif sharding.size() > 1:
            tuned = with_pieces(model, names, chosen_weights(model, names, settings.parameters), work.device)
        else:
            tuned = with_weights(model, names, chosen_weights(model, names, settings.parameters))
        parameters, entries, as_base = stack.enter_context(tuned)
        if settings.gradient_checkpointing:
            stack.enter_context(_recomputing(model))
        yield Trainee(model, tokenizer, settings, work.device, parameters, entries, as_base, in_bfloat16, packs, reach)


def _load_copy(settings: Tuning, base: LanguageModel, work: Work) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the base once more, for what cannot be undone: cut into pieces, or in 4 bits. The resident one goes."""
    work.resident.close()
    if settings.quantize is None:
        return base.load(device="cpu", dtype=work.resident.dtype), base.load_tokenizer()
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("quantize: nf4 needs bitsandbytes: pip install 'spunge[quant]', or leave quantize out")
    from transformers import BitsAndBytesConfig

    computed_in = torch.float32 if torch.device(work.device).type == "cpu" else torch.bfloat16
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed_in,
    )
    model = base.load(device=work.device, dtype=work.resident.dtype, quantization_config=config)
    for module in model.modules():
        # On CPUs with these instructions bitsandbytes repacks weights that are read in eval mode, as a base model is,
        # and then no gradient passes any more.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    return model, base.load_tokenizer()


def _restore(model: PreTrainedModel, trainable: Mapping[int, bool]) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(trainable[id(parameter)])
        parameter.grad = None
    model.eval()


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(f"gradient_checkpointing: {model.config.model_type} cannot: {error}") from error
    # transformers recomputes only in train mode. The flag is set on the block itself, never on what is in it, so that
    # the base model's dropout stays off.
    for layer in sharding.decoder_layers(model):
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
