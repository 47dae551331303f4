"""Attacks on a variant: what was forgotten is asked for again after it."""

from spunge.evaluate.robustness.quantization import Quantization
from spunge.evaluate.robustness.relearning import Relearning

__all__ = ["Quantization", "Relearning"]
