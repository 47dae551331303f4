"""What methods train towards: to say a corpus, or to forget one set of rows and retain another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from spunge.errors import DataError
from spunge.files import refuse_existing
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.training import losses, sharding
from spunge.training.loop import Objective, Probe, Term, train
from spunge.training.rows import Batch, Encoded
from spunge.training.settings import ForgetAndRetain, Tuning
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


def forget_and_retain(method: ForgetAndRetain, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
    """γ · forget + α · retain, with the probe that the method asks for.

    Args:
        method: The settings, with the forget loss.
        trainee: The model, not yet trained.
        forget: What must go.
        retain: What must stay; None only where α is 0 and nothing is probed.

    Raises:
        DataError: The rows lack what the loss needs, or are too few to set some aside.
    """
    forget_rows = trainee.encode(method.forget_rows(forget))
    retain_rows = trainee.encode(retain) if retain is not None and method.needs_retain else []
    probe = None
    if method.probe_every:
        retain_rows, held_out = _hold_out(retain_rows, method.probe_rows)
        # What must go is trained on anyway, so a small subset is measured whole.
        small = len(forget_rows) <= method.probe_rows
        probed = forget_rows if small else _hold_out(forget_rows, method.probe_rows)[1]
        probe = Probe(probed, held_out, method.probe_every, method.utility_floor)
    terms = [Term("forget", forget_rows, partial(method.forget_loss, trainee), method.gamma, method.per)]
    if method.alpha:
        terms.append(Term("retain", retain_rows, _retain_loss(method, trainee), method.alpha))
    return Objective(tuple(terms), method.combine, probe)


def _hold_out(rows: Sequence[Encoded], count: int) -> tuple[list[Encoded], list[Encoded]]:
    """Parts `count` rows, evenly spread, from the rest."""
    if count >= len(rows):
        raise DataError(f"probe_rows: {count} rows cannot be set aside of {len(rows)}; ask for fewer")
    chosen = {number * len(rows) // count for number in range(count)}
    return [row for index, row in enumerate(rows) if index not in chosen], [rows[index] for index in sorted(chosen)]


def _retain_loss(method: ForgetAndRetain, trainee: Trainee) -> Callable[[Batch], Tensor]:
    if method.retain_loss == "nll":
        return lambda batch: losses.cross_entropy(trainee(batch), batch.labels)

    def kl(batch: Batch) -> Tensor:
        base_logits = trainee.base_logits(batch)
        return losses.kl_to_base(trainee(batch), base_logits, batch.labels)

    return kl
