"""One plain training loop for every method that trains through the logits: resumable, and kind to the base model."""

from spunge.training.goals import finetune, forget_and_retain, learn
from spunge.training.loop import Probe, Term, schedule, train
from spunge.training.rows import Batch, Encoded, collate, encode, plan
from spunge.training.trainee import Trainee, borrow

__all__ = [
    "Batch",
    "Encoded",
    "Probe",
    "Term",
    "Trainee",
    "borrow",
    "collate",
    "encode",
    "finetune",
    "forget_and_retain",
    "learn",
    "plan",
    "schedule",
    "train",
]
