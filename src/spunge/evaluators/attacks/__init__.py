"""Attacks: what was forgotten is asked for again, of a model or in words that an attacker changed."""

from typing import get_args

from spunge.evaluators.attacks.attack import Attack, Material
from spunge.evaluators.attacks.best_of_n import BestOfN
from spunge.evaluators.attacks.few_shot import FewShot
from spunge.evaluators.attacks.gcg import GCG
from spunge.evaluators.attacks.interpolation import Interpolation
from spunge.evaluators.attacks.junk_direction import JunkDirection
from spunge.evaluators.attacks.logit_lens import LogitLens
from spunge.evaluators.attacks.membership import Membership
from spunge.evaluators.attacks.noise import Noise
from spunge.evaluators.attacks.option_shift import OptionShift
from spunge.evaluators.attacks.patching import Patching
from spunge.evaluators.attacks.probe import Probe
from spunge.evaluators.attacks.pruning import Pruning
from spunge.evaluators.attacks.quantization import Quantization
from spunge.evaluators.attacks.relearning import Relearning
from spunge.evaluators.attacks.retraining_on_facts import RetrainingOnFacts
from spunge.evaluators.attacks.rewording import Rewording
from spunge.evaluators.attacks.sibling_merge import SiblingMerge
from spunge.evaluators.attacks.steering_back import SteeringBack
from spunge.evaluators.attacks.stripping import Stripping
from spunge.evaluators.attacks.tuned_lens import TunedLens

AnyAttack = (
    Quantization | Pruning | Noise | Stripping | Interpolation | SiblingMerge
    | FewShot | OptionShift | Rewording | BestOfN | GCG
    | LogitLens | TunedLens | Probe | JunkDirection | SteeringBack | Patching
    | Relearning | RetrainingOnFacts
    | Membership
)  # fmt: skip
"""Every attack that a recipe can name: those on weights, on questions, on hidden states, those that train, and
one that asks what was read."""

ATTACKS: dict[str, type[Attack]] = {kind.model_fields["method"].default: kind for kind in get_args(AnyAttack)}

__all__ = [
    "ATTACKS",
    "GCG",
    "AnyAttack",
    "Attack",
    "BestOfN",
    "FewShot",
    "Interpolation",
    "JunkDirection",
    "LogitLens",
    "Material",
    "Membership",
    "Noise",
    "OptionShift",
    "Patching",
    "Probe",
    "Pruning",
    "Quantization",
    "Relearning",
    "RetrainingOnFacts",
    "Rewording",
    "SiblingMerge",
    "SteeringBack",
    "Stripping",
    "TunedLens",
]
