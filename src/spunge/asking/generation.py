"""Greedy completions of prompts, by the resident model or by vLLM: what an evaluation's scorers read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import polars as pl

from spunge.asking import by_vllm
from spunge.asking.batching import Batching
from spunge.asking.by_vllm import VllmEngine
from spunge.asking.encoding import Ids, context_window, encode, end_tokens, stated_window
from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError, MissingExtra
from spunge.interfaces import Forecast, Generation, Work
from spunge.rows.items import Focus, Part, load_items
from spunge.rows.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector

Engine = Literal["auto", "native", "vllm"]


def choose_engine(engine: Engine) -> Literal["native", "vllm"]:
    """Returns what `auto` stands for on this machine.

    Raises:
        MissingExtra: vLLM is asked for, and is not installed.
    """
    if engine == "vllm" and not by_vllm.installed():
        raise MissingExtra(
            f"engine: vllm is not installed here: name the Python of an environment that has it in {by_vllm.PYTHON}, "
            "or set `engine: native`"
        )
    if engine == "auto" and by_vllm.installed():
        import torch

        return "vllm" if torch.cuda.is_available() else "native"
    return "native" if engine == "auto" else engine


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    """The completion's tokens, the one that ended it included."""
    truncated: bool
    """Whether the prompt had to be cut from the left to fit the model."""


@dataclass(frozen=True)
class Ending:
    """Where completions end."""

    max_new_tokens: int
    """At so many tokens at the latest."""
    stop_at_newline: bool = False
    """Whether a line break ends one too, as the end of a text does."""


class Completions(Generation):
    """Has a variant complete every prompt of some rows, greedily."""

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size", "focus"})

    sources: tuple[Source, ...]
    where: str | None
    part: Part
    limit: int | None
    focus: Focus | None = None
    max_new_tokens: int
    stop_at_newline: bool
    engine: Literal["native", "vllm"]
    batch_size: int | None

    @property
    def ending(self) -> Ending:
        """Where completions end."""
        return Ending(self.max_new_tokens, self.stop_at_newline)

    def check(self, base: LanguageModel) -> None:
        """Refuses completions that leave no room for a prompt."""
        window = stated_window(base.config())
        if window is not None:
            room_for_prompts(window, self.max_new_tokens)

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what writing takes."""
        return forecast_asking(base, self.prompts(), batch_size=self.batch_size, written=self.max_new_tokens)

    def generate(self, base: LanguageModel, change: TaskVector | None, work: Work) -> pl.DataFrame:
        """Returns the completions of base + change, one row each; `read_completions` reads them back.

        Raises:
            DataError: A prompt is missing, empty or too long.
            ModelError: vLLM could not do it.
        """
        if self.engine == "native":
            _, tokenizer = work.resident.base(base)
            with work.resident.variant(base, change) as model:
                return self.written_by(model, tokenizer, work)
        from spunge.weights.checkpoint import export

        work.resident.close()  # vLLM wants the device for itself
        with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
            changed = Path(folder) / "model"
            directory = base.directory() if change is None else export(base.directory(), change, changed)
            return completion_table(self._by_vllm(VllmEngine(base, directory, Path(folder), self.max_new_tokens)))

    def written_by(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Work) -> pl.DataFrame:
        """Returns the completions of a loaded model."""
        batching = Batching(self.batch_size, work.progress, work.scratch)
        return completion_table(generate(model, tokenizer, self.prompts(), self.ending, batching))

    def _by_vllm(self, engine: VllmEngine) -> list[Completion]:
        tokenizer, shell = engine.base.load_tokenizer(), engine.shell
        limits = Limits(context_window(shell, tokenizer), end_tokens(shell, tokenizer), self.ending)
        return complete_texts(tokenizer, self.prompts(), limits, engine.complete)

    def prompts(self) -> list[str]:
        """Returns the prompts, in the order of the items."""
        loaded = load_items(
            self.sources, needs=["prompt"], where=self.where, limit=self.limit, part=self.part, focus=self.focus
        )
        prompts = [item.row["prompt"] for item in loaded]
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise DataError(f"{self.sources[0].path}: a row has an empty 'prompt'; remove it, or set `where`")
        return prompts


def completion_table(completions: Sequence[Completion]) -> pl.DataFrame:
    """Returns completions as a table."""
    schema = {"prompt": pl.String, "text": pl.String, "ids": pl.List(pl.Int64), "truncated": pl.Boolean}
    return pl.DataFrame([asdict(completion) for completion in completions], schema=schema)


def read_completions(table: pl.DataFrame) -> list[Completion]:
    """Reads back what `completion_table` wrote."""
    return [Completion(**{**row, "ids": tuple(row["ids"])}) for row in table.iter_rows(named=True)]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    ending: Ending,
    batching: Batching,
) -> list[Completion]:
    """Completes every prompt greedily with a loaded model; see `complete_texts`."""
    from spunge.asking import completions

    def ask(prompts: Sequence[Ids], stop: frozenset[int]) -> list[Ids]:
        return completions.complete(model, prompts, batching, max_new_tokens=ending.max_new_tokens, stop=stop)

    limits = Limits(context_window(model, tokenizer), end_tokens(model, tokenizer), ending)
    return complete_texts(tokenizer, prompts, limits, ask)


@dataclass(frozen=True)
class Limits:
    """What bounds a prompt and its completion."""

    window: int
    """How many tokens the model reads."""
    end_tokens: frozenset[int]
    """The tokens that end a text."""
    ending: Ending


def complete_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    limits: Limits,
    ask: Callable[[Sequence[Ids], frozenset[int]], Sequence[Ids]],
) -> list[Completion]:
    """Completes every prompt; the prompt is cut from the answer by its tokens, never by its text.

    Args:
        tokenizer: The model's.
        prompts: What to complete; from the left, what does not fit into the window beside the completion is cut off.
        limits: What bounds prompts and completions.
        ask: Returns the completion, with the token that ended it, of every prompt, given the tokens that end one.

    Raises:
        DataError: The model's window leaves no room for a prompt.
    """
    ends, ending = limits.end_tokens, limits.ending
    room = room_for_prompts(limits.window, ending.max_new_tokens)
    encoded = encode(tokenizer, prompts)
    read = [ids[-room:] for ids in encoded]
    stop = ends | newline_tokens(tokenizer) if ending.stop_at_newline else ends
    completions = []
    for prompt, whole, ids, new in zip(prompts, encoded, read, ask(read, stop), strict=True):
        text = _text_after(tokenizer, ids, new[:-1] if new and new[-1] in ends else new)
        if ending.stop_at_newline:
            text = text.split("\n", 1)[0]
        completions.append(Completion(prompt, text, new, len(ids) < len(whole)))
    return completions


def room_for_prompts(window: int, max_new_tokens: int) -> int:
    """Returns how many tokens of a prompt fit beside its completion.

    Raises:
        DataError: None does.
    """
    if window <= max_new_tokens:
        raise DataError(
            f"max_new_tokens: {max_new_tokens} leaves no room for a prompt: this model reads {window} tokens at once"
        )
    return window - max_new_tokens


def newline_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns every token that holds a line break."""
    # All of the vocabulary: a line break is also part of tokens such as ".\n" and "\n\n", and of some that no rule
    # names.
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if "\n" in text)


def _text_after(tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...], new: tuple[int, ...]) -> str:
    """Decodes a completion in the company of its prompt, as some tokenizers drop the blank before a first word."""

    def decode(ids: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before, both = decode(prompt), decode(prompt + new)
    return both[len(before) :] if both.startswith(before) else decode(new)
