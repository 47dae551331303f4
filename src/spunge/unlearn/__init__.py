"""The unlearning methods; to add one, copy a file and name its class in the union below."""

from typing import Annotated

from pydantic import Field

from spunge.unlearn.adaptive_rmu import AdaptiveRMU
from spunge.unlearn.ce_u import CEU
from spunge.unlearn.circuit_breaker import CircuitBreaker
from spunge.unlearn.dpo import DPO, IdkDPO
from spunge.unlearn.gradient_ascent import GradientAscent
from spunge.unlearn.gradient_difference import GradientDifference
from spunge.unlearn.npo import NPO
from spunge.unlearn.rmu import RMU
from spunge.unlearn.satimp import SatImp
from spunge.unlearn.simnpo import SimNPO
from spunge.unlearn.task_vector_negation import TaskVectorNegation
from spunge.unlearn.undial import UNDIAL
from spunge.unlearn.wga import WGA

AnyUnlearner = Annotated[
    RMU
    | AdaptiveRMU
    | TaskVectorNegation
    | GradientAscent
    | GradientDifference
    | NPO
    | SimNPO
    | DPO
    | IdkDPO
    | UNDIAL
    | CEU
    | WGA
    | SatImp
    | CircuitBreaker,
    Field(discriminator="method"),
]

__all__ = [
    "CEU",
    "DPO",
    "NPO",
    "RMU",
    "UNDIAL",
    "WGA",
    "AdaptiveRMU",
    "AnyUnlearner",
    "CircuitBreaker",
    "GradientAscent",
    "GradientDifference",
    "IdkDPO",
    "SatImp",
    "SimNPO",
    "TaskVectorNegation",
]
