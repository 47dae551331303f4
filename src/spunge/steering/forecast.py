"""What keeping hidden states takes and spares, known from the tokenised rows alone, before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from spunge.data import Corpus
from spunge.language_model import LanguageModel
from spunge.steering import SteeredUnlearner
from spunge.steering.cache import StateCache
from spunge.steering.estimate import number_size
from spunge.steering.loop import Batches, batches_per_epoch, measures, planned_steps
from spunge.steering.truncated import skeleton_of


@dataclass(frozen=True)
class Forecast:
    """The hidden states that runs on one device share."""

    size: int
    """Bytes of all of them."""
    in_memory: int
    """Bytes of them that this machine would hold in memory now; the rest goes to a memory map."""
    spared: float
    """The share of the frozen model's layer passes that need not be run again."""

    @property
    def pays(self) -> bool:
        """Whether any state is used twice."""
        return self.spared > 0

    def __str__(self) -> str:
        if not self.size:
            return "hidden states: rows are shuffled, so none are kept"
        where = f"{_spelled(self.in_memory)} in memory, {_spelled(self.size - self.in_memory)} in a memory map"
        gain = f"pays: {self.spared:.0%} of the frozen passes spared" if self.pays else "spares nothing: each used once"
        return f"hidden states: {_spelled(self.size)} ({where}), {gain}"


def forecast(
    settings: SteeredUnlearner,
    base: LanguageModel,
    runs: Sequence[Corpus],
    retain: Corpus,
    *,
    dtype: str | None = None,
) -> Forecast:
    """Returns what the runs of one recipe would keep and spare together.

    Args:
        settings: What every run does.
        base: The model, of which only the configuration and the tokenizer are read.
        runs: The forget set of every run, each subset's and the joint one; a run for another seed counts again.
        retain: The retain set of them all.
        dtype: Overrides the handle's own.

    Raises:
        DataError: A set is empty or too small.
        ModelError: The architecture or the layer is not to be had.
    """
    if settings.shuffle:
        return Forecast(size=0, in_memory=0, spared=0.0)
    skeleton = skeleton_of(base, settings.layer + 1)
    bytes_per_token = skeleton.config.hidden_size * number_size(skeleton.config, dtype or base.dtype)
    start, tail = settings.updated[0], settings.layer + 1 - settings.updated[0]
    tokenizer = base.load_tokenizer()
    tokens: dict[str, int] = {}
    entering, leaving = Counter[str](), Counter[str]()
    for forget in runs:
        topics = forget.topics()
        count = batches_per_epoch(settings, topics, retain)
        steps = planned_steps(settings, count, len(topics))
        batches = Batches(settings, tokenizer, topics, retain, count, seed=0)
        for step, (_, forgotten, kept) in enumerate(islice(batches, steps)):
            tokens[forgotten.digest], tokens[kept.digest] = forgotten.ids.numel(), kept.ids.numel()
            entering.update((forgotten.digest, kept.digest))
            leaving.update([kept.digest])
            if measures(settings, step, steps, len(topics)):
                leaving.update([forgotten.digest])

    def passes(uses: Counter[str], layers: int) -> int:
        return layers * sum(tokens[batch] * count for batch, count in uses.items())

    wanted = passes(entering, start) + passes(leaving, tail)
    once = passes(Counter(entering.keys()), start) + passes(Counter(leaving.keys()), tail)
    size = bytes_per_token * sum(tokens[batch] for uses in (entering, leaving) for batch in uses)
    return Forecast(size, min(size, StateCache().budget), 1 - once / wanted if wanted else 0.0)


def _spelled(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
