"""What a merge did to every variant, its coverage, cosines and sign conflicts, from sums of the second pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spunge.errors import RecipeError
from spunge.merging.job import BLOCK, Job
from spunge.merging.kernels import as_array, as_integers, count_nonzero, from_bits, loops
from spunge.merging.thresholds import Counts, Thresholds
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.origin import unlike_base
from spunge.weights.task_vector import TaskVector, add

MUCH_LOST = 0.5
"""The share of a merged task vector's energy that rounding may take without a warning."""
COVERAGE_FLOOR = 0.3
"""A subset of whose removal less than this is left in the merged task vector is warned of."""


class Measures:
    """Sums over entries from which all diagnostics follow; those of several tensors add up."""

    def __init__(self, variants: int) -> None:
        # Float64 over the blocks: within one, float32 may differ in the seventh digit, and thousands would add that up.
        self.gram = torch.zeros(variants + 1, variants + 1, dtype=torch.float64)
        """Inner products of the variants and, last, the merged delta."""
        self.changed = 0
        """Entries that any variant changes, once each is trimmed."""
        self.conflicting = 0
        """Those of them that one variant raises and another lowers."""
        self.conflicting_by_chance = 0.0
        """How many would be, were every sign drawn anew: 1 − 2^(1 − m) of an entry that m variants change."""
        self.nonzero = torch.zeros(variants, dtype=torch.int64)
        self.kept = torch.zeros(variants, dtype=torch.int64)
        self.tied = torch.zeros(variants, dtype=torch.int64)

    def add(self, stacked: Tensor, thresholds: Thresholds | None) -> None:
        """Counts one block: the variants' deltas and, last, the merged one."""
        deltas = stacked[:-1]
        if (compiled := loops(stacked)) is not None:
            half = torch.zeros_like(self.gram)
            compiled.add_products(stacked.numpy(), half.numpy())
            self.gram += half + half.triu(1).T
            self._add_signs_compiled(deltas, thresholds, compiled)
        else:
            # Row by row: a product of so few rows costs a matrix multiplication twice as much.
            for row in range(len(stacked)):
                products = torch.mv(stacked[row:], stacked[row]).cpu().double()
                self.gram[row, row:] += products
                self.gram[row + 1 :, row] += products[1:]
            self._add_signs([as_array(delta) for delta in deltas], thresholds)
        if thresholds is not None and thresholds.counts is None:
            for row, (cutoffs, tied) in enumerate(zip(thresholds.cutoffs, thresholds.largest, strict=True)):
                magnitudes = as_array(deltas[row].abs())
                self.nonzero[row] += count_nonzero(magnitudes > 0)
                self.kept[row] += count_nonzero(magnitudes >= cutoffs[0])
                self.tied[row] += count_nonzero(magnitudes == tied) if tied else 0

    def _add_signs(self, deltas: Sequence[Any], thresholds: Thresholds | None) -> None:
        """Counts where kept entries pull in opposite directions; row by row, as all at once would hold copies."""
        raised, lowered, holding = False, False, 0
        for row, delta in enumerate(deltas):
            cutoff = 0.0 if thresholds is None else thresholds.cutoffs[row][0]
            up, down = (delta >= cutoff, delta <= -cutoff) if cutoff else (delta > 0, delta < 0)
            raised, lowered = raised | up, lowered | down
            holding = holding + as_integers(up | down, len(deltas))
        self.changed += count_nonzero(raised | lowered)
        self.conflicting += count_nonzero(raised & lowered)
        for many in range(2, len(deltas) + 1):
            self.conflicting_by_chance += (1 - 2 ** (1 - many)) * count_nonzero(holding == many)

    def _add_signs_compiled(self, deltas: Tensor, thresholds: Thresholds | None, compiled: Any) -> None:
        """Does the same in one pass."""
        cutoffs = np.zeros(len(deltas), np.float32)
        if thresholds is not None:
            cutoffs[:] = [row[0] for row in thresholds.cutoffs]
        holding = np.zeros(len(deltas) + 1, np.int64)
        # Zero holds nothing, so the smallest float there is may stand for a cutoff of zero.
        changed, conflicting = compiled.signs(deltas.numpy(), np.maximum(cutoffs, np.float32(from_bits(1))), holding)
        self.changed += int(changed)
        self.conflicting += int(conflicting)
        for many in range(2, len(deltas) + 1):
            self.conflicting_by_chance += (1 - 2 ** (1 - many)) * int(holding[many])

    def take(self, counts: Sequence[Counts]) -> None:
        """Takes over what the search for one tensor's thresholds has counted already."""
        for row, counted in enumerate(counts):
            self.nonzero[row] += counted.nonzero
            self.kept[row] += counted.kept
            self.tied[row] += counted.tied

    def __add__(self, other: Measures) -> Measures:
        result = Measures(len(self.nonzero))
        for name in vars(result):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result


class Rounding:
    """The share of the delta's energy that is lost when base + delta is rounded to the base's dtype."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._lost = self._whole = 0.0

    def count(self, weight: Tensor, delta: Tensor, changed: Tensor) -> None:
        wanted = delta if self._scale == 1.0 else delta * self._scale
        lost = (changed.float() - weight.float()).sub_(wanted)
        self.add(float(torch.dot(lost, lost)), float(torch.dot(wanted, wanted)))

    def add(self, lost: float, whole: float) -> None:
        """Adds energies that were found elsewhere."""
        self._lost += lost
        self._whole += whole

    @property
    def share(self) -> float | None:
        return rounded(ratio(self._lost, self._whole))


def caution_of_rounding(share: float | None) -> str | None:
    """Says that most of a merged task vector is not in the weights that it is added to; None where it is."""
    if share is None or share <= MUCH_LOST:
        return None
    return (
        f"Rounded to the base model's number format, the merged task vector loses {100 * share:.0f} % of its energy: "
        "most of what was learned is not in the weights; train longer or at a higher rate, or start from a float32 "
        "copy of the base model."
    )


def lost_to_rounding(task_vector: TaskVector, base: Checkpoint) -> float | None:
    """Returns the share of a task vector's energy that goes when it is added to the base model in the base's dtype."""
    rounding = Rounding(task_vector.scale)
    for name in task_vector:
        stored = base.tensor(name)
        size = math.prod(stored.shape)
        for start in range(0, size, BLOCK["cpu"]):
            weight = stored.read(start, min(start + BLOCK["cpu"], size))
            delta = task_vector.read(name, start, start + len(weight))
            rounding.count(weight, delta, add(weight, delta, task_vector.scale))
    return rounding.share


def summarise(job: Job, tensors: Mapping[str, Measures]) -> dict[str, Any]:
    """Returns the diagnostics: overall, by layer, by tensor, and the warnings."""
    layers: dict[str, Measures] = {}
    overall = Measures(len(job.variants))
    for name, measures in tensors.items():
        overall += measures
        # Whatever the architecture calls its layers, the first number in a parameter's name is the layer's.
        numbered = re.search(r"\.(\d+)\.", f".{name}")
        if numbered:
            layer = numbered[1]
            layers[layer] = layers[layer] + measures if layer in layers else measures
    for variant, kept, nonzero in zip(job.variants, overall.kept, overall.nonzero, strict=True):
        if nonzero and not kept:
            raise RecipeError(
                f"density: trimming keeps nothing of {variant!r}; raise it, or let threshold_ties include"
            )
    summary = _summary(job, overall)
    warnings = [
        f"{variant}: only {share:.0%} of this removal is left in the merged task vector; "
        "raise lambda or density, or see what it conflicts with"
        for variant, share in summary["coverage"].items()
        if share is not None and share < COVERAGE_FLOOR
    ]
    norms = summary["norms"]
    warnings += [f"{variant}: changes nothing: is it the base model?" for variant, norm in norms.items() if norm == 0]
    warnings += [
        f"{one} and {two} are the same task vector: it counts twice"
        for one, others in summary["cosines"].items()
        for two, cosine in others.items()
        # Cosines have six digits, and are 1 of a task vector and its multiple too, which is no copy.
        if cosine == 1.0 and norms[one] == norms[two]
    ]
    warnings += unlike_base(job.variants, job.base)
    return {
        "variants": list(job.variants),
        "overall": summary,
        "layers": {layer: _summary(job, layers[layer]) for layer in sorted(layers, key=int)},
        "tensors": {name: _summary(job, measures) for name, measures in tensors.items()},
        "warnings": warnings,
    }


def _summary(job: Job, measures: Measures) -> dict[str, Any]:
    # The merged delta is multiplied by λ when read, and by a common scale only as the variants are too.
    factor = job.merger.lambda_
    shared = abs(job.scale / factor) if factor and job.factored else 1.0
    gram = measures.gram.tolist()
    names, merged = list(job.variants), len(job.variants)
    norms = [math.sqrt(gram[i][i]) for i in range(merged)]
    merged_norm = abs(factor) * math.sqrt(gram[merged][merged])
    mean_norm = sum(norms) / merged
    by_name: dict[str, Callable[[int], float | None]] = {
        "norms": lambda i: norms[i] * shared,
        "coverage": lambda i: ratio(factor * gram[i][merged], gram[i][i]),
    }
    if job.needs.densities:
        by_name["kept"] = lambda i: ratio(int(measures.kept[i]), int(measures.nonzero[i]))
        by_name["tied"] = lambda i: ratio(int(measures.tied[i]), int(measures.nonzero[i]))
    summary: dict[str, Any] = {
        what: {name: rounded(value(i)) for i, name in enumerate(names)} for what, value in by_name.items()
    }
    summary["cosines"] = {
        one: {two: rounded(ratio(gram[i][j], norms[i] * norms[j])) for j, two in enumerate(names) if j > i}
        for i, one in enumerate(names[:-1])
    }
    summary["sign_conflict"] = rounded(ratio(measures.conflicting, measures.changed))
    summary["sign_conflict_by_chance"] = rounded(ratio(measures.conflicting_by_chance, measures.changed))
    summary["merged_norm"] = rounded(merged_norm * shared)
    summary["norm_ratio"] = rounded(ratio(merged_norm, mean_norm))
    return summary


def ratio(numerator: float, denominator: float) -> float | None:
    """Returns a quotient, None for one by zero."""
    return numerator / denominator if denominator else None


def rounded(value: float | None) -> float | None:
    """Returns six digits: sums of float32 may depend on blocks and threads in the seventh. None for what overflowed."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
