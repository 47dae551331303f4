"""How it is asked what went: which suite for which kind of rows, what counts as forgotten, and what the base knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path

import polars as pl

from spunge.auto.fluency import Fluency
from spunge.auto.inspection import Kind
from spunge.auto.parts import Part, Parts
from spunge.errors import DataError
from spunge.evaluators.memorization import Memorization
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.evaluators.perplexity import Perplexity
from spunge.files import replaced
from spunge.interfaces import Evaluator
from spunge.rows.items import ItemTable
from spunge.rows.sources import Source, load_corpus
from spunge.run.evaluate import Evaluate
from spunge.run.executors import Executor
from spunge.run.steps import evaluated
from spunge.run.variant import Base, Variant
from spunge.statistics import compare, mean_interval
from spunge.variants import BASE

FORGOTTEN = "forgotten"
KEPT = "kept"

_MOST_COMPARED = 96
"""Rows on which it is asked whether the base model knows anything."""

Ask = Callable[..., list[ItemTable]]
"""What asks the base model suites."""
Values = Mapping[str, float]
"""Item → value."""


@dataclass(frozen=True)
class Asking:
    """How the rows of a search are asked."""

    parts: Parts
    kind: Kind
    style: str = "continuation"
    """Of questions: how the base model answers them better."""
    keeps_style: str = "continuation"
    """Of questions on what must stay."""
    ceiling: float = 1.0
    """Of texts and answers: nats a token that a uniform guess costs; more is not counted as forgotten."""

    def forget(self, part: Part, limit: int | None = None) -> Evaluator:
        """Returns the suite that asks what must go."""
        return self._suite(FORGOTTEN, "forget", self.parts.asked[part], limit)

    def keep(self, part: Part, limit: int | None = None) -> Evaluator | None:
        """Returns the suite that asks what must stay, where there are questions on it."""
        if self.parts.kept is None:
            return None
        source = Source(path=str(self.parts.kept[part]))
        return MultipleChoice.model_validate(
            {"suite": KEPT, "goal": "retain", "style": self.keeps_style, "sources": (source,), "limit": limit}
        )

    def both(self, part: Part, limit: int) -> list[Evaluator]:
        """Returns what is asked of a reading: what must go and, where both sets hold questions, what must stay."""
        keep = self.keep(part, limit) if self.kind == "questions" else None
        return [self.forget(part, limit), *([keep] if keep else [])]

    def fluency(self, part: Part, limit: int) -> list[Evaluator]:
        """Returns what asks whether the model still writes: after benign beginnings, and after those of texts that go.

        A model that writes nothing sensible about a fact that it was to forget has forgotten it; of texts that must go
        it has only become useless.
        """
        files = {"fluency": self.parts.damage[part]}
        if self.kind == "texts":
            files["fluency on what goes"] = self.parts.asked[part]
        return [
            Fluency(suite=name, goal="retain", sources=(Source(path=str(path)),), limit=limit)
            for name, path in files.items()
        ]

    def _suite(self, name: str, goal: str, path: Path, limit: int | None) -> Evaluator:
        settings = {"suite": name, "goal": goal, "sources": (Source(path=str(path)),), "limit": limit}
        if self.kind == "questions":
            return MultipleChoice.model_validate({**settings, "style": self.style})
        if self.kind == "answers":
            return Memorization.model_validate({**settings, "generate": False})
        return Perplexity.model_validate({**settings, "batch_size": 16})

    def known(self, items: ItemTable) -> Values:
        """Returns of every item how well it is known: p(correct), or minus the nats a token; none where it gave NaN."""
        wide = items.filter(pl.col("value").is_not_null())
        columns = {
            metric: dict(zip(part["item"], part["value"], strict=True))
            for (metric,), part in wide.partition_by("metric", as_dict=True).items()
        }
        if self.kind == "questions":
            return columns.get("p_correct", {})
        tokens = columns.get("tokens", {})
        return {
            item: -min(nll / tokens[item], self.ceiling)
            for item, nll in columns.get("nll", {}).items()
            if tokens.get(item)
        }

    def chance(self, items: ItemTable) -> float:
        """Returns what a guess is right by, averaged over questions; 0 of anything else."""
        if self.kind != "questions":
            return 0.0
        choices = items.filter(pl.col("metric").str.starts_with("choice_loglikelihood:"))
        counts = choices.group_by("item").len()["len"].to_list()
        return sum(1 / count for count in counts) / max(len(counts), 1)

    def forgotten(self, before: ItemTable, after: ItemTable) -> list[float]:
        """Returns how much of every item went, in the order of the items' names; empty where the model gave NaN.

        Of questions p(correct), else nats a token: differences, so that what is hardly known divides nothing.
        """
        known, left = self.known(before), self.known(after)
        if known.keys() - left.keys():
            return []
        return [known[item] - left[item] for item in sorted(known)]


def asking_of(parts: Parts, kind: Kind, base: Base, executor: Executor) -> tuple[Asking, str]:
    """Finds out how the base model is best asked, and refuses what it does not know to begin with.

    Args:
        parts: The rows.
        kind: What they are.
        base: The base model.
        executor: What asks it.

    Returns:
        How it is asked, and a sentence on what it knows.

    Raises:
        DataError: It knows no more than chance, so nothing could be forgotten.
    """
    ceiling = log(base.model.config().get_text_config().vocab_size)
    asking = Asking(parts, kind, ceiling=ceiling)
    variant = Variant(BASE.name, "base", 0)

    def ask(*suites: Evaluator) -> list[ItemTable]:
        artifacts = evaluated(executor, [Evaluate(variant, suite, base) for suite in suites])
        return [pl.read_parquet(artifact.path / "items.parquet") for artifact in artifacts]

    if parts.kept is not None:
        asking = Asking(parts, kind, keeps_style=_better_style(asking, ask, KEPT)[0], ceiling=ceiling)
    if kind == "questions":
        style, items = _better_style(asking, ask, FORGOTTEN)
        asking = Asking(parts, kind, style, asking.keeps_style, ceiling)
        answered = items.filter(pl.col("metric") == "acc")["value"].to_list()
        share, chance = sum(answered) / len(answered), asking.chance(items)
        if mean_interval(answered).low <= chance:
            raise DataError(
                f"--forget: the model answers {share:.0%} of these {len(answered)} questions, chance is {chance:.0%}: "
                "nothing is known to begin with, so nothing can be forgotten; ask what it knows, or teach it first "
                "(`spunge finetune`)"
            )
        return asking, f"the model answers {share:.0%} of {len(answered)} questions ({chance:.0%} by chance)"
    suite = asking.forget("tune")
    own, odd = (
        suite.model_copy(update={"sources": (Source(path=str(path)),)}) for path in _beside_strange(parts, kind)
    )
    known, strange = ([*asking.known(items).values()] for items in ask(own, odd))
    nats, of_strange = -sum(known) / len(known), -sum(strange) / len(strange)
    what, other = (
        ("these answers", "other rows' answers") if kind == "answers" else ("these texts", "their words in any order")
    )
    if len(known) != len(strange) or not compare(known, strange).interval().low > 0:
        raise DataError(
            f"--forget: the model finds {what} no likelier than {other} ({nats:.2f} and {of_strange:.2f} nats each): "
            "nothing is known to begin with, so nothing can be forgotten"
        )
    return asking, f"the model finds {what} {of_strange - nats:.2f} nats per token likelier than {other}"


def _better_style(asking: Asking, ask: Ask, name: str) -> tuple[str, ItemTable]:
    """Returns how questions are answered better: by letters or as what follows."""
    path = asking.parts.asked["tune"] if name == FORGOTTEN else (asking.parts.kept or {})["tune"]
    best = ("", pl.DataFrame(), -1.0)
    for style in ("continuation", "letters"):
        suite = MultipleChoice.model_validate(
            {"suite": name, "goal": "forget", "style": style, "sources": (Source(path=str(path)),), "limit": 128}
        )
        [items] = ask(suite)
        right = items.filter(pl.col("metric") == "acc")["value"].mean()
        if isinstance(right, float) and right > best[2]:
            best = (style, items, right)
    return best[:2]


def _beside_strange(parts: Parts, kind: Kind) -> tuple[Path, Path]:
    """Writes some rows to tune on, and what nobody could know: answers to other prompts, words in any order."""
    rows = load_corpus([Source(path=str(parts.asked["tune"]))]).rows.head(_MOST_COMPARED)
    if kind == "answers":
        responses = rows["response"].to_list()
        strange = rows.with_columns(response=pl.Series(responses[1:] + responses[:1]))
    else:
        drawn = random.Random(0)
        shuffled = [" ".join(drawn.sample(words := text.split(), len(words))) for text in rows["text"].to_list()]
        strange = rows.with_columns(text=pl.Series(shuffled))
    paths = parts.directory / "known.jsonl", parts.directory / "strange.jsonl"
    for path, frame in zip(paths, (rows, strange), strict=True):
        with replaced(path) as building:
            frame.write_ndjson(building)
    return paths
