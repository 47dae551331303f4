"""What the attacks that train share: a plain fine-tuning of all weights, stopped to be asked, and what it ruins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field, field_validator

from spunge.errors import TrainingDiverged
from spunge.evaluators.attacks.attack import Ask, Asked, Attack, restored
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import Item, ItemTable, Measurement, item_table, mean_values
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel

KEPT = "kept"
"""The metric of the one item a setting that says which share of a suite of what must stay is left."""


class Tuned(Attack):
    """Fine-tunes a variant, asks a suite along the way, and puts the variant back."""

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
    keep: Asked | None = None
    """A suite of what must stay, asked along the way: what the attack ruins it has not brought back. Its score as a
    share of that before the attack stands beside each setting, and one under 0.9 counts for no worst case."""

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"must rise from 0 or more, not {list(steps)}")
        return steps

    @property
    def runs(self) -> int:
        """How many times it is trained anew."""
        return 1

    def check(self) -> None:
        """Refuses what its suites refuse."""
        super().check()
        if self.keep is not None:
            self.keep.check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking along the way takes, beside all weights' gradients and moments."""
        forecast, shape = self._rounds(base, len(self.settings)), shape_of(base)
        trained = 6.0 * shape.inner * self.max_length * self.train_batch_size * self.steps[-1] * self.runs
        kept = None if self.keep is None else self.keep.forecast(base)
        if kept is not None and kept.operations is not None:
            trained += kept.operations * (1 + len(self.settings))
        return replace(
            forecast,
            memory=None if forecast.memory is None else forecast.memory + 12 * shape.parameters,
            operations=None if forecast.operations is None else forecast.operations + trained,
        )

    def tuned(self, variant: LoadedVariant, texts: Sequence[str], work: Work) -> Iterator[int]:
        """Yields each number of steps while the weights are trained so far; afterwards they are what they were.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        from spunge.asking.encoding import encode

        ids = [row[: self.max_length] for row in encode(variant.tokenizer, texts)]
        model, done = variant.model, 0
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
                    with torch.enable_grad():
                        loss = next_token_loss(model, [ids[row] for row in batch])
                    if not torch.isfinite(loss):
                        raise TrainingDiverged(f"{self.suite}: the loss became {loss.item()} at step {done + 1}")
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
                    work.progress(f"{self.suite}: training", done, self.steps[-1], loss=loss.item())
                yield stop

    def beside_what_is_kept(self, ask: Ask, variant: LoadedVariant, work: Work) -> Ask:
        """Returns what asks the same, and which share of the score before the attack is left of what must stay."""
        keep = self.keep
        if keep is None:
            return ask
        name = keep.headline.name

        def score(variant: LoadedVariant, work: Work) -> float | None:
            apart = replace(work, scratch=work.scratch / KEPT)
            return mean_values(keep.evaluate(variant, apart), [name]).get(name)

        before = score(variant, work)

        def both(variant: LoadedVariant, work: Work) -> ItemTable:
            after = score(variant, work)
            share = after / before if after is not None and before else None
            if share and not keep.headline.higher_is_better("retain"):
                share = 1 / share
            left = Measurement(Item(KEPT, "{}", {}), KEPT, {KEPT: share}, {})
            return pl.concat([ask(variant, work), item_table(self.of.suite, [left])])

        return both


def next_token_loss(model: PreTrainedModel, ids: Sequence[tuple[int, ...]]) -> Tensor:
    """Returns the mean next-token loss over the tokens of a batch."""
    import torch

    width = max(map(len, ids))
    device = next(model.parameters()).device
    read = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
    return model(input_ids=read, attention_mask=mask, labels=read.where(mask == 1, -100), use_cache=False).loss
