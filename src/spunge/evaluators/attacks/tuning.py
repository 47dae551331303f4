"""What the attacks that train share: a plain fine-tuning, of all weights or beside them, and what it ruins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import Field, field_validator

from spunge.errors import TrainingDiverged
from spunge.evaluators.attacks.attack import Ask, Asked, Attack, restored
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import Item, ItemTable, Measurement, item_table, mean_values
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel

Rate = Annotated[float, Field(gt=0)]

KEPT = "kept"
"""The metric of the one item a setting that says which share of a suite of what must stay is left."""


class Tuned(Attack):
    """Fine-tunes a variant, asks a suite along the way, and puts the variant back."""

    steps: tuple[int, ...] = Field(default=(0, 10, 30), min_length=1)
    """After how many steps the suite is asked; 0 is before the attack."""
    learning_rate: Rate | tuple[Rate, ...] = 1e-4
    """AdamW's learning rate, constant; of several, each is tried."""
    rank: int | None = Field(default=None, ge=1)
    """Trains a LoRA of this rank on every linear layer, with α of twice the rank, as whoever has little memory does;
    null: all weights."""
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

    @field_validator("learning_rate")
    @classmethod
    def _each_once(cls, rates: Any) -> Any:
        if isinstance(rates, tuple) and (not rates or len(set(rates)) < len(rates)):
            raise ValueError("name at least one rate, and each once")
        return rates

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)

    @property
    def runs(self) -> int:
        """How many times it is trained anew."""
        return len(self.rates)

    def setting(self, stop: int, rate: float, value: str = "") -> str:
        """Returns the name of one of its settings: after so many steps, at a rate where there are several, on what."""
        at = f" at {rate:g}" if isinstance(self.learning_rate, tuple) else ""
        return f"{stop} steps{at}" + (f" on {value}" if value else "")

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
            memory=None
            if forecast.memory is None
            else forecast.memory + (12 * shape.parameters if self.rank is None else 0),
            operations=None if forecast.operations is None else forecast.operations + trained,
        )

    def tuned(self, variant: LoadedVariant, texts: Sequence[str], rate: float, work: Work) -> Iterator[int]:
        """Yields each number of steps while the model is trained so far; afterwards it is what it was.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        from spunge.asking.encoding import encode

        ids = [row[: self.max_length] for row in encode(variant.tokenizer, texts)]
        model, done = variant.model, 0
        # The model stays in eval mode: dropout would only blur how fast it learns again.
        with restored(model), self._trained(model) as trained:
            optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
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

    @contextmanager
    def _trained(self, model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
        """What is trained: all weights, or factors beside them."""
        for parameter in model.parameters():
            parameter.requires_grad_(self.rank is None)
        if self.rank is None:
            yield list(model.parameters())
        else:
            with factors_beside(model, self.rank, self.seed) as factors:
                yield factors

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


@contextmanager
def factors_beside(model: PreTrainedModel, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """Adds 2·B·A·x to what every linear layer puts out (LoRA: Hu et al., 2021, arXiv:2106.09685), B at zero.

    Yields:
        A [rank, in features] and B [out features, rank] of each layer.
    """
    import torch

    from spunge.training.tuned import inner_linears

    draw = torch.Generator().manual_seed(seed)
    factors: list[torch.nn.Parameter] = []

    def added(A: Tensor, B: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda module, read, written: written + 2.0 * ((read[0].to(A.dtype) @ A.T) @ B.T).to(written.dtype)

    with ExitStack() as stack:
        for _, module, inside, out in inner_linears(model):
            device = module.get_parameter("weight").device
            A = torch.randn(rank, inside, generator=draw).to(device) / inside**0.5
            pair = [torch.nn.Parameter(A), torch.nn.Parameter(torch.zeros(out, rank, device=device))]
            stack.callback(module.register_forward_hook(added(*pair)).remove)
            factors += pair
        yield factors


def next_token_loss(model: PreTrainedModel, ids: Sequence[tuple[int, ...]]) -> Tensor:
    """Returns the mean next-token loss over the tokens of a batch."""
    import torch

    width = max(map(len, ids))
    device = next(model.parameters()).device
    read = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
    return model(input_ids=read, attention_mask=mask, labels=read.where(mask == 1, -100), use_cache=False).loss
