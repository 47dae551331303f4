"""What a run takes, and what keeping hidden states spares it, known before any weight is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from spunge.files import format_bytes
from spunge.interfaces import Forecast, Work
from spunge.rows.sources import Corpus
from spunge.steering.batches import Cut
from spunge.steering.cache import StateCache
from spunge.steering.estimate import estimate, number_size
from spunge.steering.loop import kept, prepare, uses
from spunge.steering.settings import SteeredUnlearner
from spunge.steering.truncated import skeleton_of
from spunge.weights.language_model import LanguageModel

Place = tuple[LanguageModel, Cut]


def forecast(
    settings: SteeredUnlearner, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work
) -> Forecast:
    """Returns what one run takes, with the hidden states of all runs before it on the same device.

    Raises:
        DataError: The retain set is missing, empty or smaller than a batch.
        ModelError: The architecture, the layer or the parameters are not to be had.
        RecipeError: A setting has values for some topics, but not for all.
    """
    task, dtype = prepare(settings, base, forget, retain, work.seed), work.resident.dtype
    expected = estimate(settings, base, task.parameters, tokens=task.batches.longest, dtype=dtype)
    states = work.resident.cached("forecast of hidden states", States)
    config = skeleton_of(base, settings.layer + 1).config
    width = config.hidden_size * number_size(config, dtype or base.dtype)
    wanted = uses(settings, task.batches, task.steps)
    worth = kept(wanted, work.resident)
    for cut, count in wanted.items():
        states.add((base, cut), count, cut.tokens * width if cut in worth else 0, settings.updated[0])
    return Forecast(expected.needed, expected.task_vector, {"hidden states kept for reuse": str(states)})


@dataclass
class States:
    """The hidden states that the runs on one device need."""

    uses: Counter[Place] = field(default_factory=Counter)
    """How often each is needed."""
    work: dict[Place, int] = field(default_factory=dict)
    """Tokens times layers that computing each takes."""
    sizes: dict[Place, int] = field(default_factory=dict)
    """Bytes of each; 0 for those that are not kept."""

    def add(self, place: Place, uses: int, size: int, start: int) -> None:
        """Counts the uses of one run, whose first updated layer is `start`; states beyond it are computed from it."""
        layers = place[1].layers
        self.uses[place] += uses
        self.work[place] = place[1].tokens * (layers if layers <= start else layers - start)
        self.sizes[place] = size

    @property
    def size(self) -> int:
        """Bytes of all that are kept."""
        return sum(self.sizes.values())

    @property
    def spared(self) -> float:
        """The share of the frozen model's layer passes that need not be run again."""
        wanted = sum(self.work[place] * count for place, count in self.uses.items())
        run = sum(self.work[place] * (1 if self.sizes[place] else count) for place, count in self.uses.items() if count)
        return 1 - run / wanted if wanted else 0.0

    def __str__(self) -> str:
        if not self.size:
            return "none: no batch comes twice"
        in_memory = min(self.size, StateCache().budget)
        where = f"{format_bytes(in_memory)} in memory, {format_bytes(self.size - in_memory)} in a memory map"
        gain = f"pays: spares {self.spared:.0%} of the frozen passes" if self.spared else "spares nothing"
        return f"{format_bytes(self.size)} ({where}); {gain}"
