"""Training towards what a corpus says: to learn it for good, or to subtract what was learnt."""

from __future__ import annotations

from pathlib import Path

from spunge.files import refuse_existing
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.training import losses, sharding
from spunge.training.loop import Objective, Term, train
from spunge.training.settings import Tuning
from spunge.training.trainee import Trainee, borrow
from spunge.weights.checkpoint import export
from spunge.weights.language_model import LanguageModel


def say(trainee: Trainee, corpus: Corpus) -> Objective:
    """The negative log-likelihood of a corpus: to learn it."""
    rows = trainee.encode(corpus)
    return Objective((Term("nll", rows, lambda batch: losses.cross_entropy(trainee(batch), batch.labels)),))


def finetune(settings: Tuning, base: LanguageModel, corpus: Corpus, out: Path, work: Work) -> Path:
    """Trains the base model to say the corpus, and writes the result as a checkpoint of its own.

    Raises:
        ArtifactError: `out` exists or cannot be written.
    """
    refuse_existing(out)  # known before hours of training rather than after
    with borrow(settings, base, work) as trainee:
        learnt = train(trainee, say(trainee, corpus), work)
    return export(base.directory(), learnt, out) if sharding.rank() == 0 else out
