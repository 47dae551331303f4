"""How a forget set is split into subsets; to add a way, copy a file and name its class in the union below."""

from typing import Annotated

from pydantic import Field

from spunge.splitters.at_random import AtRandom
from spunge.splitters.by_classifier import ByClassifier
from spunge.splitters.by_cluster import ByCluster
from spunge.splitters.by_column import ByColumn
from spunge.splitters.by_expression import ByExpression
from spunge.splitters.by_function import ByFunction
from spunge.splitters.by_gradient import ByGradient
from spunge.splitters.relabelled import Relabelled

AnySplitter = Annotated[
    ByColumn | ByExpression | ByClassifier | ByCluster | ByGradient | ByFunction | AtRandom | Relabelled,
    Field(discriminator="by"),
]

__all__ = [
    "AnySplitter",
    "AtRandom",
    "ByClassifier",
    "ByCluster",
    "ByColumn",
    "ByExpression",
    "ByFunction",
    "ByGradient",
    "Relabelled",
]
