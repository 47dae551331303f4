"""The variants of an experiment, each described once: what it is, its colour and marker, and what sentences call it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Control = Literal["joint", "joint_equal_steps", "sequential", "layered", "random_split"]
"""The variants that a recipe asks for by name."""
Kind = Literal["base", "joint", "control", "merged", "subset", "oracle", "audited"]

AUDITED: Kind = "audited"
"""The kind of a model that somebody else unlearned."""

ELSEWHERE = "elsewhere"
"""The kind of a variant at another point of its curve than the one at which variants are compared."""

SUBSET = "subset:"
"""Before a subset's name in that of the model which unlearned it alone."""


@dataclass(frozen=True)
class Role:
    """What one variant is in an experiment, and how it looks."""

    name: str
    kind: Kind
    label: str
    """In tables and legends."""
    phrase: str
    """In a sentence."""
    colour: str
    """On white; each is told apart by the colour-blind, and has its own marker too."""
    dark: str
    """In dark mode."""
    marker: str
    """Matplotlib's."""
    brief: str = ""
    """Where there is little room; default: the label."""
    rival: bool = False
    """Whether the merged model must beat it to be worth anything."""
    split: bool = False
    """Whether it is merged from models of parts, so that a paper's table writes SPUNGE before the method."""

    @property
    def css(self) -> str:
        """The page's variable for its colour."""
        return f"--{self.name.replace('_', '-')}"


BASE = Role("base", "base", "base model", "the base model", "#6a7280", "#a6afbb", "o")
JOINT = Role("joint", "joint", "joint", "joint unlearning", "#c4500a", "#f5945a", "s", rival=True)
JOINT_EQUAL_STEPS = Role(
    "joint_equal_steps", "joint", "joint, equal steps", "joint unlearning with as many steps", "#b07d05", "#e2b548",
    "D", "equal steps", rival=True,
)  # fmt: skip
SEQUENTIAL = Role(
    "sequential", "control", "one after the other", "unlearning one subset after the other", "#5f7a1f", "#a9c95a", "v",
    "in turn", rival=True,
)  # fmt: skip
LAYERED = Role("layered", "control", "layered", "layered unlearning", "#7d5236", "#cfa283", "<", rival=True)
RANDOM_SPLIT = Role(
    "random_split", "control", "random split", "a random split", "#a8558a", "#dd9cc4", "^", rival=True, split=True
)
ORACLE = Role("oracle", "oracle", "oracle", "a model that never knew", "#3d4a5c", "#c3ccd8", "X")
MERGED = Role("spunge", "merged", "SPUNGE", "SPUNGE", "#0a66a8", "#6cb6ee", "p", split=True)

ROLES = {
    role.name: role for role in (BASE, JOINT, JOINT_EQUAL_STEPS, SEQUENTIAL, LAYERED, RANDOM_SPLIT, MERGED, ORACLE)
}
"""In the order of tables, but for the subsets' models, which come last."""

RIVALS = tuple(name for name, role in ROLES.items() if role.rival)
"""Whom the merged model is compared with, the most telling first."""


def label_of(variant: str) -> str:
    """Returns a variant's name as a reader says it: a role's label, or which part a model unlearned alone."""
    if variant in ROLES:
        return ROLES[variant].label
    part = re.fullmatch(r"random_(\d+)", variant)
    return f"random split, part {part[1]}" if part else variant.replace(SUBSET, "only ", 1)


def phrase_of(variant: str) -> str:
    """Returns a variant's name as a sentence says it."""
    return ROLES[variant].phrase if variant in ROLES else label_of(variant)
