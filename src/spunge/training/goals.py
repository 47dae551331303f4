"""What methods train towards: to say a corpus, or to forget one set of rows and retain another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from spunge.errors import ArtifactError, DataError
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.training import losses, sharding
from spunge.training.loop import Probe, Term, train
from spunge.training.rows import Batch, Encoded
from spunge.training.settings import ForgetAndRetain, Tuning
from spunge.training.trainee import Trainee, borrow
from spunge.weights.checkpoint import export
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector


def learn(settings: Tuning, base: LanguageModel, corpus: Corpus, work: Work) -> TaskVector:
    """Trains the base model to say the corpus, and returns trained minus base."""
    with borrow(settings, base, work) as trainee:
        nll = Term("nll", trainee.encode(corpus), lambda batch: losses.cross_entropy(trainee(batch), batch.labels))
        return train(trainee, [nll], work)


def finetune(settings: Tuning, base: LanguageModel, corpus: Corpus, out: Path, work: Work) -> Path:
    """Trains the base model to say the corpus, and writes the result as a checkpoint of its own.

    Raises:
        ArtifactError: `out` exists or cannot be written.
    """
    if out.exists():  # known before hours of training rather than after
        raise ArtifactError(f"{out}: exists already; give another --out or remove it")
    learnt = learn(settings, base, corpus, work)
    return export(base.directory(), learnt, out) if sharding.rank() == 0 else out


def forget_and_retain(
    settings: ForgetAndRetain,
    base: LanguageModel,
    forget: Corpus,
    retain: Corpus | None,
    work: Work,
    forgetting: Callable[[Trainee, Sequence[Encoded]], Callable[[Batch], Tensor]],
    *,
    per: Literal["token", "sequence"] = "token",
) -> TaskVector:
    """Trains γ · forget + α · retain, and returns trained minus base.

    Args:
        settings: The method's.
        base: The model to start from.
        forget: What must go.
        retain: What must stay; may be missing only when α is 0.
        work: How to run.
        forgetting: Given the trainee, not yet trained, and the forget rows: the forget loss of a batch.
        per: What the forget loss is a mean over.

    Raises:
        DataError: There is no retain set.
        TrainingDiverged: The loss became NaN or infinite.
    """
    if settings.needs_retain and (retain is None or not len(retain)):
        method = getattr(settings, "method", "this method")
        raise DataError(
            f"{method} needs a retain set: give one with --retain, or set alpha=0 (and probe_every=null) to go without"
        )
    with borrow(settings, base, work) as trainee:
        rows, kept, probe = trainee.encode(forget), [], None
        if retain is not None and settings.needs_retain:
            kept = trainee.encode(retain)
        if settings.probe_every:
            kept, held_out = _hold_out(kept, settings.probe_rows)
            # What must go is trained on anyway, so a small subset is measured whole.
            forgotten = rows if len(rows) <= settings.probe_rows else _hold_out(rows, settings.probe_rows)[1]
            probe = Probe(forgotten, held_out, settings.probe_every, settings.utility_floor)
        terms = [Term("forget", rows, forgetting(trainee, rows), settings.gamma, per)]
        if settings.alpha:
            terms.append(Term("retain", kept, _retaining(settings, trainee), settings.alpha))
        return train(trainee, terms, work, combine=settings.combine, probe=probe)


def _hold_out(rows: Sequence[Encoded], count: int) -> tuple[list[Encoded], list[Encoded]]:
    """Parts `count` rows, evenly spread, from the rest."""
    if count >= len(rows):
        raise DataError(f"probe_rows: {count} rows cannot be set aside of {len(rows)}; ask for fewer")
    chosen = {place * len(rows) // count for place in range(count)}
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _retaining(settings: ForgetAndRetain, trainee: Trainee) -> Callable[[Batch], Tensor]:
    if settings.retain_loss == "nll":
        return lambda batch: losses.cross_entropy(trainee(batch), batch.labels)

    def kl(batch: Batch) -> Tensor:
        base_logits = trainee.base_logits(batch)
        return losses.kl_to_base(trainee(batch), base_logits, batch.labels)

    return kl
