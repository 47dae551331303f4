"""The first pass, for mergers that trim: the exact k-th largest magnitude in bounded memory, at any scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spunge.merging.job import Job
from spunge.merging.kernels import as_array, count_nonzero, from_bits, loops

_TOP = 0x7FFFFFFF  # above the bits of every finite magnitude
_BINS, _NARROW = 16, 18  # the bits of a histogram over a wide bracket, and the width of one that is counted at once
_SAMPLED, _SLICE = 1 << 16, 1 << 12
_SPARSE = 6  # one in 2⁶ entries is sampled, as far as that is between a quarter of `_SAMPLED` and all of it
_SURE = 3  # standard deviations of a sampled rank that the first bracket reaches to either side
_WAITING = 1 << 17  # magnitudes within the bracket that are held before they are counted in a histogram


Scan = Callable[[int, int], tuple[int, int, np.ndarray]]
"""From the bounds of a bracket to how many magnitudes are not zero, how many are beyond it, and those within."""


@dataclass(frozen=True)
class Counts:
    """How many entries of one variant are not zero, are kept at the first density, and tie there."""

    nonzero: int
    kept: int
    tied: int


@dataclass(frozen=True)
class Thresholds:
    """What trimming keeps of each variant."""

    cutoffs: tuple[tuple[float, ...], ...]
    """[variants][densities]: the smallest magnitude that is kept."""
    largest: tuple[float, ...]
    """[variants]: the magnitude of the int(density · n)-th largest entry at the first density, at which ties tie."""
    counts: tuple[Counts, ...] | None = None
    """[variants]: over the tensors that were searched, None if there was no need to search."""


def find_thresholds(job: Job, names: Sequence[str], size: int) -> Thresholds:
    """Finds the exact thresholds over some tensors taken as one, of `size` elements with those that nobody changes."""
    entries = sum(math.prod(job.shapes[name]) for name in names)
    # Rounded down as in mergekit, int(density · n), but never to nothing.
    counts = [max(1, int(density * size)) for density in job.needs.densities]
    searches = [[_Search(count) for count in counts] for _ in job.variants]
    if any(count < entries for count in counts):
        sample, complete = _sample(job, names, entries)
        for row, drawn in zip(searches, sample, strict=True):
            for search in row:
                search.guess(drawn, entries, complete)
    searched = counts[:1] < [entries]
    nonzero = [0] * len(job.variants)
    running, first = [search for row in searches for search in row if search.count < entries], True
    while running:
        for name in names:
            for start, stop in job.pieces(name, "element"):
                for row, scan in enumerate(_scans(job, name, start, stop)):
                    for search in searches[row]:
                        if search in running:
                            counted = search.add(scan)
                            nonzero[row] += counted if first and search is searches[row][0] else 0
        running, first = [search for search in running if not search.narrow()], False
    exclude = job.needs.threshold_ties == "exclude"
    cutoffs = tuple(tuple(from_bits(search.smallest_kept(exclude)) for search in row) for row in searches)
    counted = tuple(row[0].counts(exclude, entries) for row, entries in zip(searches, nonzero, strict=True))
    return Thresholds(cutoffs, tuple(from_bits(row[0].magnitude) for row in searches), counted if searched else None)


class _Search:
    """Finds the `count`-th largest of one variant's magnitudes, exactly, in memory that does not grow with them.

    Magnitudes are taken as the integers that their float32 bits spell: the order is the same. Those in a bracket are
    counted bin by bin, the bracket narrows to the bin that holds the wanted one, and so on until a bin is one float:
    at most two passes over the data, and mostly one, since a sample tells roughly where to look.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.magnitude = 0
        """The `count`-th largest magnitude's bits; 0 as long as everything that is not zero is kept."""
        self._tied = self._at_least = 0
        self._look(0, _TOP)

    def guess(self, sample: np.ndarray, entries: int, complete: bool) -> None:
        """Sets the first bracket by a sample of the entries."""
        # The rank of the wanted magnitude in a sample is binomial: its variance is rank · (1 − rank / sample).
        rank = self.count * len(sample) / entries
        margin = 0 if complete else _SURE * math.sqrt(max(rank * (1 - rank / len(sample)), 0)) + 1
        low, high = len(sample) - math.ceil(rank + margin), len(sample) - math.floor(rank - margin)
        first, last = max(low, 0), min(high, len(sample) - 1)
        from_low = np.partition(sample, first)[first:]  # twice for one place is faster than once for two
        lower, upper = int(from_low[0]), int(np.partition(from_low, last - first)[last - first])
        self._look(lower if low >= 0 else 0, upper + 1 if high < len(sample) or complete else _TOP)

    def add(self, scan: Scan) -> int:
        """Counts one block; returns how many of it are not zero."""
        nonzero, above, inside = scan(self._low, self._high)
        self._above += above
        self._pending.append(inside)
        self._inside += len(inside)
        self._waiting += len(inside)
        if self._waiting >= _WAITING:
            self._count_pending()
        return nonzero

    def narrow(self) -> bool:
        """Looks at what was counted; True if the magnitude is found, else another pass is needed."""
        if not self._above < self.count <= self._above + self._inside:
            assert (self._low, self._high) != (0, _TOP), "there are at least `count` entries"
            self._look(0, _TOP)  # the sample misled: start over without it
            return False
        if self._histogram is None:  # so few that all are still at hand
            inside = np.concatenate(self._pending)
            position = self._above + len(inside) - self.count
            self.magnitude = int(np.partition(inside, position)[position])
            self._tied = count_nonzero(inside == self.magnitude)
            self._at_least = self._above + count_nonzero(inside >= self.magnitude)
            return True
        if self._pending:
            self._count_pending()
        from_top = np.cumsum(self._histogram[::-1]) + self._above
        position = int(np.searchsorted(from_top, self.count))
        low = self._low + (len(self._histogram) - 1 - position << self._shift)
        if self._shift:
            self._look(low, min(low + (1 << self._shift), _TOP))
            return False
        self.magnitude = low
        self._tied, self._at_least = int(self._histogram[::-1][position]), int(from_top[position])
        return True

    def smallest_kept(self, exclude: bool) -> int:
        """Returns the smallest magnitude to keep: never zero, and above a tie if that is to be excluded."""
        return max(self.magnitude + (1 if exclude and self._at_least > self.count else 0), 1)

    def counts(self, exclude: bool, nonzero: int) -> Counts:
        """Returns what trimming keeps."""
        if not self.magnitude:
            return Counts(nonzero, nonzero, 0)
        cut = self._tied if exclude and self._at_least > self.count else 0
        return Counts(nonzero, self._at_least - cut, self._tied)

    def _look(self, low: int, high: int) -> None:
        self._low, self._high = low, high
        span = high - low
        # A narrow bracket is counted float by float at once; a wide one in bins.
        self._shift = 0 if span <= 1 << _NARROW else max((span - 1).bit_length() - _BINS, 0)
        self._bins = ((span - 1) >> self._shift) + 1
        self._histogram: np.ndarray | None = None
        self._above = self._inside = self._waiting = 0
        self._pending: list[np.ndarray] = []

    def _count_pending(self) -> None:
        bins = (np.concatenate(self._pending) - self._low) >> self._shift
        counts = np.bincount(bins, minlength=self._bins)
        self._histogram = counts if self._histogram is None else self._histogram + counts
        self._pending, self._waiting = [], 0


def _scans(job: Job, name: str, start: int, stop: int) -> Iterator[Scan]:
    """Yields what looks at one block of each variant; each is gone with the next."""
    if job.are_bfloat16_differences(name):
        for changed, base in job.bfloat16_pairs(name, start, stop):
            yield partial(_compiled_scan, loops().search_differences, changed, base)
        return
    deltas = job.deltas(name, start, stop)
    if (compiled := loops(deltas)) is not None:
        yield from (partial(_compiled_scan, compiled.search, bits) for bits in deltas.view(torch.int32).numpy())
    else:
        yield from (partial(_scan, as_array(magnitudes)) for magnitudes in deltas.abs_().view(torch.int32))


def _scan(magnitudes: Any, low: int, high: int) -> tuple[int, int, np.ndarray]:
    above = magnitudes >= high
    within = (magnitudes >= low) ^ above
    inside = magnitudes.compress(within) if isinstance(magnitudes, np.ndarray) else magnitudes[within].cpu().numpy()
    return count_nonzero(magnitudes), count_nonzero(above), inside


def _compiled_scan(loop: Any, *arrays_and_bounds: Any) -> tuple[int, int, np.ndarray]:
    inside = np.empty(len(arrays_and_bounds[0]), np.int32)
    nonzero, above, count = loop(*arrays_and_bounds, inside)
    return nonzero, above, inside[:count].copy()


def _sample(job: Job, names: Sequence[str], entries: int) -> tuple[list[np.ndarray], bool]:
    """Returns magnitudes of each variant from evenly spaced places, and whether these are all there are."""
    complete = entries <= _SAMPLED
    # Slices, not single entries: a page of the disk is read either way. Neighbours are alike, so that a sample of them
    # can mislead by more than the margin; `narrow` notices, and starts over.
    sampled = min(max(entries >> _SPARSE, _SAMPLED // 4), _SAMPLED)
    step = 1 if complete else entries * _SLICE // sampled
    pieces: list[Tensor] = []
    offset = 0
    for name in names:
        size = math.prod(job.shapes[name])
        if complete:
            pieces.append(_magnitudes(job, name, 0, size).clone())
        else:
            for start in range(-offset % step, size, step):
                pieces.append(_magnitudes(job, name, start, min(start + _SLICE, size)).clone())
        offset += size
    return list(torch.cat(pieces, 1).cpu().numpy()), complete


def _magnitudes(job: Job, name: str, start: int, stop: int) -> Tensor:
    """The bits of each delta's magnitude, as integers: for floats of one sign they are in the same order."""
    return job.deltas(name, start, stop).abs_().view(torch.int32)
