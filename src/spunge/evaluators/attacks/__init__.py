"""Attacks on a variant: what was forgotten is asked for again after it."""

from spunge.evaluators.attacks.quantization import Quantization
from spunge.evaluators.attacks.relearning import Relearning

__all__ = ["Quantization", "Relearning"]
