"""Greedy completions side by side, without padding: a text that has ended makes room for the next at once.

Every pass reads the last token of each text under way and, behind them in the same sequence, whole prompts that begin.
Keys and values lie in slots, a text each, and are written in place; only attention knows that there are several texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spunge.asking.batching import WRITTEN_AT_ONCE
from spunge.asking.encoding import Ids
from spunge.errors import PredictsNothing
from spunge.weights.device import free_memory
from spunge.weights.shape import cached_numbers, reads_packed_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "spunge_in_slots"
"""What the attention below is called in transformers' table; in that of masks it is not, and none is made."""
_BEGUN_AT_ONCE = 2048
"""Tokens of prompts that one pass reads at most, one prompt at least: more are no faster, and take memory."""


@dataclass(eq=False)
class Slots:
    """Keys and values of texts under way: of each attention two tensors [slots, heads, capacity, width]."""

    count: int
    capacity: int
    """Tokens of the longest text."""
    states: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns those of one attention, made the first time like what it computed [1, heads, tokens, width]."""
        if attention not in self.states:
            keys, values = (
                new.new_zeros(self.count, new.shape[1], self.capacity, new.shape[3]) for new in (key, value)
            )
            self.states[attention] = keys, values
        return self.states[attention]

    def move(self, source: int, target: int, shared: int) -> None:
        """Copies one slot to another, but for the first tokens, which all share."""
        for states in self.states.values():
            for kept in states:
                kept[target, :, shared:] = kept[source, :, shared:]

    def spread(self, tokens: int) -> None:
        """Copies the first tokens of the first slot to all others."""
        for states in self.states.values():
            for kept in states:
                kept[1:, :, :tokens] = kept[0, :, :tokens]


@dataclass(frozen=True, eq=False)
class _Pass:
    """What a pass reads: the next token of the texts in the first slots, then prompts in the slots behind them."""

    slots: Slots
    read: Tensor
    """[texts] Tokens of each text under way that were read before."""
    prompts: Sequence[int]
    """Tokens of each prompt, what all of them share apart."""
    shared: int
    mask: Tensor | None
    """[texts, 1, 1, tokens] True where a text under way has a token; None where all have as many."""
    longest: int


def can_write_side_by_side(model: PreTrainedModel) -> bool:
    """Whether a model's texts can lie in one sequence here; tried out, as one that mixes them would not say so."""
    if not reads_packed_rows(model):
        return False
    text = tuple(number % model.config.get_text_config().vocab_size for number in range(3, 10))
    allowed = 1e-3 if model.dtype == torch.float32 else 0.05  # what half precision rounds otherwise in other shapes
    with torch.inference_mode():
        alone = model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0, -1].float()
        with _attention_in_slots(model):
            slots = Slots(2, len(text))
            # All but two tokens, of which the first begins another text too; then, beside that one, the two.
            _read(model, slots, [], [], [text[:1]], 0)
            slots.spread(1)
            _read(model, slots, [], [], [text[1:3], text[1:-2]], 1)
            _read(model, slots, [text[3], text[-2]], [3, len(text) - 2], [], 1)
            logits = _read(model, slots, [text[4], text[-1]], [4, len(text) - 1], [], 1)
    return float((logits[-1].float() - alone).norm()) <= allowed * float(alone.norm())


@torch.inference_mode()
def write(
    model: PreTrainedModel, prompts: Sequence[Ids], limits: Sequence[int], *, side_by_side: int, stop: Collection[int],
    shared: int = 0,
) -> Iterator[list[tuple[int, Ids]]]:  # fmt: skip
    """Yields the numbers and greedy completions of the prompts that a pass has ended, pass by pass.

    Args:
        model: One for which `can_write_side_by_side` is true.
        prompts: Token ids, in the order in which they begin.
        limits: How many tokens each completion has at most.
        side_by_side: How many texts are under way at most.
        stop: A completion ends after the first of these tokens, which it keeps.
        shared: So many tokens begin every prompt, which has more than that: they are read once.
    """
    waiting = deque(number for number, limit in enumerate(limits) if limit)
    if len(waiting) < len(prompts):
        yield [(number, ()) for number, limit in enumerate(limits) if not limit]
    longest = max((len(prompts[number]) + limits[number] for number in waiting), default=0)
    slots = Slots(min(side_by_side, len(waiting)), longest)
    under_way: list[int] = []  # the prompt in every slot
    written: dict[int, list[int]] = {}
    with _attention_in_slots(model):
        if shared and waiting:
            _read(model, slots, [], [], [prompts[0][:shared]], 0)
            slots.spread(shared)
        while waiting or under_way:
            beginning = _next_prompts(waiting, prompts, slots.count - len(under_way), shared)
            chosen = likeliest(
                _read(
                    model,
                    slots,
                    [written[number][-1] for number in under_way],
                    [len(prompts[number]) + len(written[number]) - 1 for number in under_way],
                    [prompts[number][shared:] for number in beginning],
                    shared,
                )
            )
            under_way += beginning
            ended = []
            for number, token in zip(under_way, chosen, strict=True):
                text = written.setdefault(number, [])
                text.append(token)
                if token in stop or len(text) == limits[number]:
                    ended.append(number)
            _close_up(slots, under_way, {*ended}, shared)
            yield [(number, tuple(written.pop(number))) for number in ended]


def rows_that_fit(model: PreTrainedModel, longest: int) -> int:
    """Returns how many texts of at most so many tokens are best written side by side: in a quarter of free memory."""
    a_text = cached_numbers(model.config.get_text_config()) * longest * model.dtype.itemsize
    return max(1, min(WRITTEN_AT_ONCE, free_memory(str(model.device)) // 4 // a_text))


def _next_prompts(waiting: deque[int], prompts: Sequence[Ids], free: int, shared: int) -> list[int]:
    beginning: list[int] = []
    tokens = 0
    while waiting and len(beginning) < free:
        tokens += len(prompts[waiting[0]]) - shared
        if beginning and tokens > _BEGUN_AT_ONCE:
            break
        beginning.append(waiting.popleft())
    return beginning


def _close_up(slots: Slots, under_way: list[int], ended: Collection[int], shared: int) -> None:
    """Lets go of texts that have ended, and moves the last ones into their slots: those in use are the first ones."""
    for slot in reversed([slot for slot, number in enumerate(under_way) if number in ended]):
        last = under_way.pop()
        if slot < len(under_way):  # those behind it that had ended are gone, so the last one goes on
            slots.move(len(under_way), slot, shared)
            under_way[slot] = last


def likeliest(logits: Tensor) -> list[int]:
    """The likeliest token of each row of logits [rows, words]; of NaN it would be any."""
    if logits.isnan().any():
        raise PredictsNothing("the model gives NaN where it should write: its weights are broken")
    return logits.argmax(-1).tolist()


def _read(
    model: PreTrainedModel,
    slots: Slots,
    tokens: Sequence[int],
    read: Sequence[int],
    prompts: Sequence[Ids],
    shared: int,
) -> Tensor:
    """Reads the next token of the texts under way and some prompts behind them, and returns the logits [texts, words].

    Args:
        model: Its attention is the one below.
        slots: Where keys and values are.
        tokens: The next token of each text under way, in the order of the slots.
        read: How many tokens of each were read before.
        prompts: Texts that begin, less what they share; one token at least each.
        shared: So many tokens are before each of the prompts, in their slots already.
    """
    ids = [*tokens, *(token for prompt in prompts for token in prompt)]
    positions = [*read, *(shared + place for prompt in prompts for place in range(len(prompt)))]
    last = [*range(len(tokens))]
    for prompt in prompts:
        last.append((last[-1] if last else -1) + len(prompt))
    device = model.device
    before = torch.tensor(read, device=device, dtype=torch.long)
    longest = max(read, default=0) + 1
    ragged = longest > min(read, default=0) + 1
    mask = (torch.arange(longest, device=device) <= before[:, None])[:, None, None] if ragged else None
    this = _Pass(slots, before, [*map(len, prompts)], shared, mask, longest)
    return model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(last, device=device),
        reading=this,
    ).logits[0]


@contextmanager
def _attention_in_slots(model: PreTrainedModel) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, reading: _Pass,
    scaling: float | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of each text to itself: [1, heads, tokens, width] to [1, tokens, heads, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    keys, values = reading.slots.of(module, key, value)
    texts, (_, heads, _, width) = len(reading.read), key.shape
    answers = []
    if texts:
        slots = torch.arange(texts, device=key.device)
        keys[slots, :, reading.read] = key[0, :, :texts].transpose(0, 1)
        values[slots, :, reading.read] = value[0, :, :texts].transpose(0, 1)
        # The queries that share a head of keys stand behind one another, as if they were tokens: no key is repeated.
        asked = query[0, :, :texts].reshape(heads, -1, texts, width).permute(2, 0, 1, 3)
        found = nn.functional.scaled_dot_product_attention(
            asked, keys[:texts, :, : reading.longest], values[:texts, :, : reading.longest],
            attn_mask=reading.mask, scale=scaling,
        )  # fmt: skip
        answers.append(found.reshape(1, texts, -1, found.shape[-1]))
    start, shared = texts, reading.shared
    for slot, length in enumerate(reading.prompts, start=texts):
        part, own = slice(start, start + length), slice(shared, shared + length)
        keys[slot, :, own], values[slot, :, own] = key[0, :, part], value[0, :, part]
        mask = None
        if shared:
            mask = torch.ones(length, shared + length, dtype=torch.bool, device=key.device).tril(shared)[None, None]
        answers.append(
            sdpa_attention_forward(
                module, query[:, :, part], keys[slot : slot + 1, :, : shared + length],
                values[slot : slot + 1, :, : shared + length], mask, scaling=scaling, **options,
            )[0]
        )  # fmt: skip
        start += length
    return torch.cat(answers, dim=1), None
