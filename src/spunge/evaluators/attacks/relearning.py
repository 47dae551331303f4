"""How little does it take to learn again what was unlearned? Trains on some rows, and asks about others.

Read it beside the base model's own curve and beside one on unrelated rows: ten unrelated examples can be enough to
undo RMU (Łucki et al., 2024, arXiv:2409.18025), and then it was hidden, not gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field, field_validator

from spunge.errors import DataError, TrainingDiverged
from spunge.evaluators.attacks.attacked import Attack, apart, restored, under
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import ItemTable
from spunge.rows.sources import Source, item_id, load_corpus
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel


class Relearning(Attack):
    """Fine-tunes a variant on a few rows, asks a suite along the way, and puts the variant back."""

    method: Literal["relearning"] = "relearning"
    train_on: tuple[Source, ...]
    """Rows with a `text`, or `prompt` and `response`, other than those that `of` asks about: part of the forget set,
    another subset, or unrelated text."""
    where: str | None = None
    """A polars SQL expression that keeps a training row."""
    rows: int = Field(default=16, ge=1)
    """How many rows to train on, the first by their hash."""
    steps: tuple[int, ...] = Field(default=(0, 10, 30), min_length=1)
    """After how many steps the suite is asked; 0 is before the attack."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """AdamW's learning rate, constant."""
    train_batch_size: int = Field(default=4, ge=1)
    """Rows per step."""
    max_length: int = Field(default=512, ge=2)
    """Texts are cut to so many tokens."""
    seed: int = 0
    """Of the order of the rows; every variant is attacked in the same one."""

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"must rise from 0 or more, not {list(steps)}")
        return steps

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking along the way takes, beside all weights' gradients and moments."""
        forecast, shape = self._rounds(base, len(self.steps)), shape_of(base)
        trained = 6.0 * shape.inner * self.max_length * self.train_batch_size * self.steps[-1]
        return replace(
            forecast,
            memory=None if forecast.memory is None else forecast.memory + 12 * shape.parameters,
            operations=None if forecast.operations is None else forecast.operations + trained,
        )

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the suite's items once for each number of steps, the task named after it.

        Raises:
            DataError: There are fewer training rows than asked for.
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        from spunge.asking.encoding import encode

        corpus = load_corpus(self.train_on)
        texts = (corpus if self.where is None else corpus.where(self.where)).texts
        if len(texts) < self.rows:
            raise DataError(f"{self.suite}: {len(texts)} training rows, rows: {self.rows}")
        texts = sorted(texts, key=item_id)[: self.rows]
        ids = [row[: self.max_length] for row in encode(variant.tokenizer, texts)]
        model, tables, done = variant.model, [], 0
        # The model stays in eval mode: dropout would only blur how fast it learns again.
        with restored(model):
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.0)
            draw = torch.Generator().manual_seed(self.seed)
            queue: list[int] = []
            for stop in self.steps:
                while done < stop:
                    if len(queue) < min(self.train_batch_size, len(ids)):
                        queue += torch.randperm(len(ids), generator=draw).tolist()
                    batch, queue = queue[: self.train_batch_size], queue[self.train_batch_size :]
                    loss = _loss(model, [ids[row] for row in batch])
                    if not torch.isfinite(loss):
                        raise TrainingDiverged(f"{self.suite}: the loss became {loss.item()} at step {done + 1}")
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
                    work.progress(f"{self.suite}: relearning", done, self.steps[-1], loss=loss.item())
                attacked = f"{stop} steps"
                tables.append(under(self.of.evaluate(variant, apart(work, attacked)), self.suite, attacked))
        return pl.concat(tables)


def _loss(model: PreTrainedModel, ids: Sequence[tuple[int, ...]]) -> Tensor:
    """Returns the mean next-token loss over the tokens of a batch."""
    import torch

    width = max(map(len, ids))
    device = next(model.parameters()).device
    read = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
    return model(input_ids=read, attention_mask=mask, labels=read.where(mask == 1, -100), use_cache=False).loss
