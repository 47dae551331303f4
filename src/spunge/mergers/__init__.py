"""The merge methods: the union is the registry, one small file each."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from spunge.interfaces import Merger
from spunge.mergers.breadcrumbs import Breadcrumbs
from spunge.mergers.consensus import Consensus
from spunge.mergers.dare import Dare
from spunge.mergers.della import Della
from spunge.mergers.emr_unified import EmrUnified
from spunge.mergers.isotropic import Isotropic
from spunge.mergers.knots import Knots
from spunge.mergers.linear import Linear
from spunge.mergers.magmax import MagMax
from spunge.mergers.magnitude_prune import MagnitudePrune
from spunge.mergers.retain_regmean import RetainRegMean
from spunge.mergers.task_arithmetic import TaskArithmetic
from spunge.mergers.ties import Ties
from spunge.mergers.tsv import Tsv
from spunge.mergers.wudi import Wudi

REFUSED = {
    "model_stock": "Model Stock returns the base model when the task vectors are nearly orthogonal, as those of "
    "separately unlearned models are: nothing would be removed; use ties or task_arithmetic"
}
"""Methods that a user may well ask for and must not be given, with the reason."""


def _refuse(settings: Any) -> Any:
    named = settings.get("method") if isinstance(settings, dict) else None
    if isinstance(named, str) and named in REFUSED:
        raise ValueError(REFUSED[named])
    return settings


_Methods = (
    Ties
    | Linear
    | TaskArithmetic
    | MagnitudePrune
    | Dare
    | Della
    | MagMax
    | Consensus
    | Breadcrumbs
    | EmrUnified
    | RetainRegMean
    | Tsv
    | Isotropic
    | Wudi
    | Knots
)
AnyMerger = Annotated[Annotated[_Methods, Field(discriminator="method")], BeforeValidator(_refuse)]
"""The settings of any merger, told apart by `method`."""

MERGERS: dict[str, type[Merger]] = {merger.model_fields["method"].default: merger for merger in get_args(_Methods)}
"""Name → class."""

__all__ = [
    "MERGERS",
    "REFUSED",
    "AnyMerger",
    "Breadcrumbs",
    "Consensus",
    "Dare",
    "Della",
    "EmrUnified",
    "Isotropic",
    "Knots",
    "Linear",
    "MagMax",
    "MagnitudePrune",
    "RetainRegMean",
    "TaskArithmetic",
    "Ties",
    "Tsv",
    "Wudi",
]
