"""What steering takes (memory, disk, operations), and what keeping hidden states spares, before any weight is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from spunge.files import format_bytes
from spunge.interfaces import Forecast, Work
from spunge.rows.sources import Corpus
from spunge.steering.batches import Cut
from spunge.steering.cache import StateCache
from spunge.steering.loop import Prepared, prepare, uses, worth_keeping
from spunge.steering.memory import estimate
from spunge.steering.settings import Steering
from spunge.steering.truncated import skeleton_of
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import check_tokens, find_layers, number_size

if TYPE_CHECKING:
    from torch import nn

Position = tuple[LanguageModel, Cut]


def forecast(settings: Steering, base: LanguageModel, forget: Corpus, retain: Corpus, work: Work) -> Forecast:
    """Returns what one run takes, with the hidden states of all runs before it on the same device.

    Raises:
        DataError: The retain set is smaller than a batch.
        ModelError: The architecture, the layer or the parameters are not to be had.
        RecipeError: A setting has values for some topics, but not for all.
    """
    for rows in (forget, retain):
        check_tokens(base, rows.texts)
    task, dtype = prepare(settings, base, forget, retain, work.seed), work.resident.dtype
    expected = estimate(settings, base, task.parameters, tokens=task.batches.longest, dtype=dtype)
    states = work.resident.cached("forecast of hidden states", States)
    skeleton = skeleton_of(base, settings.layer + 1)
    width = skeleton.config.hidden_size * number_size(skeleton.config, dtype or base.dtype)
    wanted = uses(settings, task.batches, task.steps)
    worth = worth_keeping(wanted, work.resident)
    for cut, count in wanted.items():
        states.add((base, cut), count, cut.tokens * width if cut in worth else 0, settings.updated[0])
    return Forecast(
        memory=expected.needed,
        disk=expected.task_vector,
        operations=_operations(settings, task, find_layers(skeleton)),
        calls=task.steps * (2 * (settings.layer + 1) + 5 * (settings.layer + 1 - settings.updated[0])),
        changed=expected.task_vector // 4,
        notes={"hidden states kept for reuse": str(states)},
    )


def _operations(settings: Steering, task: Prepared, layers: nn.ModuleList) -> float:
    """Counts both batches' forward passes, the frozen pass of the retain batch, and the backward passes of the tail."""
    numbers, tail = sum(parameter.numel() for parameter in layers[-1].parameters()), len(layers) - settings.updated[0]
    epoch = task.batches.count * len(task.batches.topics)
    tokens = [(f.ids.numel(), r.ids.numel()) for _, f, r in islice(task.batches, min(epoch, task.steps))]
    forget, retain = (sum(counts) * task.steps / len(tokens) for counts in zip(*tokens, strict=True))
    return numbers * (2 * len(layers) * (forget + retain) + 2 * tail * retain + 4 * tail * (forget + retain))


@dataclass
class States:
    """The hidden states that the runs on one device need."""

    uses: Counter[Position] = field(default_factory=Counter)
    """How often each is needed."""
    work: dict[Position, int] = field(default_factory=dict)
    """Tokens times layers that computing each takes."""
    sizes: dict[Position, int] = field(default_factory=dict)
    """Bytes of each; 0 for those that are not kept."""

    def add(self, position: Position, uses: int, size: int, start: int) -> None:
        """Counts the uses of one run, whose first updated layer is `start`; states beyond it are computed from it."""
        layers = position[1].layers
        self.uses[position] += uses
        self.work[position] = position[1].tokens * (layers if layers <= start else layers - start)
        self.sizes[position] = size

    @property
    def size(self) -> int:
        """Bytes of all that are kept."""
        return sum(self.sizes.values())

    @property
    def spared(self) -> float:
        """The share of the frozen model's layer passes that need not be run again."""
        wanted = sum(self.work[position] * count for position, count in self.uses.items())
        run = sum(
            self.work[position] * (1 if self.sizes[position] else count)
            for position, count in self.uses.items()
            if count
        )
        return 1 - run / wanted if wanted else 0.0

    def __str__(self) -> str:
        if not self.size:
            return "none: no batch comes twice"
        in_memory = min(self.size, StateCache().budget)
        where = f"{format_bytes(in_memory)} in memory, {format_bytes(self.size - in_memory)} in a memory map"
        gain = f"pays: spares {self.spared:.0%} of the frozen passes" if self.spared else "spares nothing"
        return f"{format_bytes(self.size)} ({where}); {gain}"
