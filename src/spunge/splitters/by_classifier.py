"""Splits by what a classifier says of each row: a topic, a domain, a kind of toxicity that nobody annotated."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Forecast, Splitter, Work
from spunge.rows.sources import Corpus
from spunge.weights.language_model import LanguageModel, check_code_is_pinned


class ByClassifier(Splitter):
    """One subset a label: each row goes to its likeliest one."""

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size", "trust_remote_code"})

    by: Literal["classifier"] = "classifier"
    id: str
    """A directory, `lab:…` or hub id of a sequence classifier; its labels are the subsets' names."""
    revision: str | None = None
    """The hub revision."""
    trust_remote_code: bool = False
    """Run the classifier repository's own Python code: only for one you have read, with a revision."""
    confidence: float = Field(default=0.0, ge=0, le=1)
    """A row whose likeliest label is less probable than this is in no subset."""
    batch_size: int = Field(default=32, ge=1)
    """How many rows go through the classifier at once."""

    @model_validator(mode="after")
    def _code_is_pinned(self) -> ByClassifier:
        check_code_is_pinned(self.id, self.revision, self.trust_remote_code)
        return self

    def forecast(self, forget: Corpus, base: LanguageModel) -> Forecast:
        """Says nothing: how much a classifier computes is not in its configuration alone."""
        return Forecast()

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset name.

        Raises:
            ModelError: The classifier cannot be loaded.
        """
        from spunge.asking.classifiers import load_classifier, probabilities

        handle = LanguageModel(id=self.id, revision=self.revision, trust_remote_code=self.trust_remote_code)
        # Kept for the retain set, which the same classifier may have to split too.
        classifier = work.resident.cached(
            ("sequence classifier", handle.model_dump_json()), lambda: load_classifier(handle, device=work.device)
        )
        shares = probabilities(classifier, forget.texts, batch_size=self.batch_size, progress=work.progress)
        likeliest = shares.argmax(1)
        return [
            (classifier.labels[label],) if row[label] >= self.confidence else ()
            for row, label in zip(shares, likeliest, strict=True)
        ]
