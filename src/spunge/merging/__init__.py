"""The streaming merge engine: task vectors in, one out, block by block, with exact thresholds and diagnostics.

First pass (only for mergers that trim): magnitudes are counted by their bits, which gives the exact k-th largest in
bounded memory at any scope. Second pass: each block of every variant is read, combined by the merger, measured and
handed to where the result goes. Variants are always taken in the order of their names and summed one after another
in float32, so neither their order nor blocks nor threads can change a bit of the result.
"""

from __future__ import annotations

from spunge.merging.anchor import anchored
from spunge.merging.destinations import AsAdapter, AsCheckpoint, AsTaskVector, Form
from spunge.merging.diagnostics import COVERAGE_FLOOR, caution_of_rounding, lost_to_rounding
from spunge.merging.engine import Merged, merge, write
from spunge.merging.factors import leading_svd
from spunge.merging.grams import Grams, batches_of, gram_matrices
from spunge.merging.job import BLOCK, Options
from spunge.merging.kernels import average, disjoint_mean, elect, mean, ties, total, trimmed, uniform, weighted
from spunge.merging.sources import Part, open_variant, open_variants, select
from spunge.merging.spectra import Spectrum, by_matrix, decompose, join
from spunge.weights.origin import check_base

__all__ = [
    "BLOCK",
    "COVERAGE_FLOOR",
    "AsAdapter",
    "AsCheckpoint",
    "AsTaskVector",
    "Form",
    "Grams",
    "Merged",
    "Options",
    "Part",
    "Spectrum",
    "anchored",
    "average",
    "batches_of",
    "by_matrix",
    "caution_of_rounding",
    "check_base",
    "decompose",
    "disjoint_mean",
    "elect",
    "gram_matrices",
    "join",
    "leading_svd",
    "lost_to_rounding",
    "mean",
    "merge",
    "open_variant",
    "open_variants",
    "select",
    "ties",
    "total",
    "trimmed",
    "uniform",
    "weighted",
    "write",
]
