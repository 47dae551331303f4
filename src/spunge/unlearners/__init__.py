"""The unlearning methods; to add one, copy a file and name its class in the union below."""

from typing import Annotated

from pydantic import Field

from spunge.unlearners.adaptive_rmu import AdaptiveRMU
from spunge.unlearners.ce_u import CEU
from spunge.unlearners.circuit_breaker import CircuitBreaker
from spunge.unlearners.dpo import DPO, IdkDPO
from spunge.unlearners.gradient_ascent import GradientAscent
from spunge.unlearners.gradient_difference import GradientDifference
from spunge.unlearners.npo import NPO
from spunge.unlearners.rep_select import RepSelect
from spunge.unlearners.rmu import RMU
from spunge.unlearners.satimp import SatImp
from spunge.unlearners.simnpo import SimNPO
from spunge.unlearners.task_vector_negation import TaskVectorNegation
from spunge.unlearners.undial import UNDIAL
from spunge.unlearners.wga import WGA

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
    | CircuitBreaker
    | RepSelect,
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
    "RepSelect",
    "SatImp",
    "SimNPO",
    "TaskVectorNegation",
]
