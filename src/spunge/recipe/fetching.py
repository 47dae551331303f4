"""What a run would fetch from the hub, said before anything is: the sizes ship with Spunge, so that nobody is asked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from ruamel.yaml import YAML

from spunge.recipe import offline
from spunge.recipe.schema import Experiment
from spunge.rows.sources import Source


@dataclass(frozen=True)
class Fetch:
    """A model or data set that is not here yet."""

    kind: Literal["model", "data"]
    name: str
    bytes: int | None
    """Roughly; None where that is not known."""
    note: str = ""
    """What else to know: that its terms must be accepted, or who fetches it."""


def to_fetch(experiment: Experiment) -> list[Fetch]:
    """Returns what an experiment takes from the hub, each once, but for models in the hub's cache."""
    file = resources.files("spunge.recipe") / "shipped" / "hub.yaml"
    shipped = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    fetches: dict[tuple[str, str], Fetch] = {}
    for part in offline.hub_references(experiment):
        if isinstance(part, Source):
            facts = shipped["data"].get(part.path, {})
            fetches["data", part.path] = Fetch("data", part.path, _bytes(facts), _terms(facts, f"datasets/{part.path}"))
        elif not _cached(part.id):
            facts = shipped["models"].get(part.id, {})
            fetches["model", part.id] = Fetch("model", part.id, _bytes(facts), _terms(facts, part.id))
    for evaluator in experiment.evaluate:
        for task in getattr(evaluator, "tasks", ()) if not getattr(evaluator, "offline_root", None) else ():
            fetches["data", task] = Fetch("data", task, None, "by lm-eval")
    return [*fetches.values()]


def _bytes(facts: dict[str, Any]) -> int | None:
    return int(facts["megabytes"] * 1e6) if "megabytes" in facts else None


def _terms(facts: dict[str, Any], page: str) -> str:
    return f"gated: accept its terms at https://huggingface.co/{page}" if facts.get("gated") else ""


def _cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)
