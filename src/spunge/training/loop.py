"""The one plain loop of every method that trains through the logits: resumable, measured, its batches drawn before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spunge import losses
from spunge.errors import TrainingDiverged
from spunge.interfaces import Work
from spunge.task_vector import TaskVector
from spunge.training.rows import Batch, Encoded, Step, plan
from spunge.training.seeding import seed_of, seeded
from spunge.training.state import Run, fingerprint
from spunge.training.trainee import Trainee

METRICS = "metrics.jsonl"
STATE = "training_state.pt"


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of the loss: what is asked of which rows."""

    name: str
    rows: Sequence[Encoded]
    loss: Callable[[Batch], Tensor]
    """The mean loss of a batch."""
    weight: float | Callable[[float], float] = 1.0
    """A number, or a function of the share of training that is done."""
    per: Literal["token", "sequence"] = "token"
    """What the loss is a mean over; it says how much each batch of an accumulated step weighs."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Rows on which a run is measured while it goes, and what is made of it."""

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    every: int
    floor: float | None
    """The least utility of the step that is returned; None returns the last step whatever the probe says."""

    def measure(self, trainee: Trainee) -> dict[str, float]:
        """Returns the mean negative log-likelihood of a token of either set."""
        return {"probe_forget": _nll(trainee, self.forget), "probe_retain": _nll(trainee, self.retain)}


def _nll(trainee: Trainee, rows: Sequence[Encoded]) -> float:
    return -float(trainee.log_probs(rows).sum()) / sum(row.counted for row in rows)


def train(
    trainee: Trainee,
    terms: Sequence[Term],
    work: Work,
    *,
    combine: Literal["sum", "pcgrad", "sago"] = "sum",
    probe: Probe | None = None,
) -> TaskVector:
    """Minimises the weighted sum of the terms and returns trained minus base.

    The first term's rows make the epochs; those of the others come round as often as needed. A run that was killed
    goes on from its last saved state and, on the CPU, ends in the same bytes. Every step is a line in `metrics.jsonl`.

    Args:
        trainee: What to train; its settings say how.
        terms: The summands of the loss, forget first and retain second where there are two.
        work: How to run.
        combine: How the gradients of two terms become one.
        probe: What to measure while training.

    Raises:
        TrainingDiverged: A loss or a gradient became NaN or infinite, or no probed step kept to the utility floor.
    """
    settings = trainee.settings
    steps = plan([term.rows for term in terms], settings, torch.Generator().manual_seed(work.seed))
    parameters = list(trainee.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    with trainee.as_base():
        base_retain = _nll(trainee, probe.retain) if probe else 0.0
    same = fingerprint(settings, work.seed, trainee.parameters, {term.name: term.rows for term in terms})
    run = Run(work.scratch / STATE, same, trainee.parameters, optimizer)
    run.resume()
    work.output.mkdir(parents=True, exist_ok=True)
    with (work.output / METRICS).open("w", encoding="utf-8") as log, seeded(work.seed, work.device):
        log.writelines(run.metrics)
        for step in range(len(run.metrics), len(steps)):
            rate = settings.learning_rate * schedule(settings.schedule, step, len(steps), settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            figures = _backward(trainee, terms, steps[step], step, len(steps), work.seed, combine)
            norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf))
            if not math.isfinite(norm):
                raise _diverged("gradient", norm, step, len(steps), settings.learning_rate)
            optimizer.step()
            optimizer.zero_grad()
            figures |= {"learning_rate": rate, "gradient_norm": norm}
            if probe and ((step + 1) % probe.every == 0 or step + 1 == len(steps)):
                figures |= probe.measure(trainee)
                figures["utility"] = math.exp(min(base_retain - figures["probe_retain"], 700.0))
                if probe.floor is not None:
                    run.keep_best(figures, probe.floor)
            run.metrics.append(json.dumps({"step": step + 1, **figures}) + "\n")
            log.write(run.metrics[-1])
            log.flush()
            run.save_now_and_then()
            work.progress("training", step + 1, len(steps), **figures)
    if probe and probe.floor is not None:
        run.take_best(probe.floor)
    return TaskVector(trainee.entries(), provenance={"steps": len(steps)})


def schedule(kind: Literal["cosine", "linear", "constant"], step: int, steps: int, warmup: float) -> float:
    """Returns what the learning rate is multiplied by at `step` (from 0) of `steps`: transformers' schedules."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    left = (steps - step) / (steps - rising)
    return {"cosine": (1 - math.cos(math.pi * left)) / 2, "linear": left, "constant": 1.0}[kind]


def _backward(
    trainee: Trainee, terms: Sequence[Term], step_batches: Step, step: int, steps: int, seed: int, combine: str
) -> dict[str, float]:
    """Leaves the step's gradient in the parameters, and returns the loss of every term and of their weighted sum."""
    apart = combine != "sum" and len(terms) > 1
    parameters = list(trainee.parameters.values())
    figures: dict[str, float] = {}
    gradients: list[list[Tensor]] = []
    total = 0.0
    for place, (term, batches) in enumerate(zip(terms, step_batches, strict=True)):
        weight = term.weight(step / steps) if callable(term.weight) else term.weight
        units = [sum(term.rows[i].counted for i in batch) if term.per == "token" else len(batch) for batch in batches]
        figures[term.name] = 0.0
        for number, (indices, count) in enumerate(zip(batches, units, strict=True)):
            torch.manual_seed(seed_of(seed, step, place, number))
            loss = term.loss(trainee.collate(term.rows, indices))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(f"{term.name} loss", value, step, steps, trainee.settings.learning_rate)
            share = count / sum(units)
            (loss * (weight * share)).backward()
            figures[term.name] += value * share
        total += weight * figures[term.name]
        if apart:
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            for parameter in parameters:
                parameter.grad = None
    if apart:
        forget, retain = gradients
        join = {"pcgrad": losses.pcgrad, "sago": losses.sago}[combine]
        figures["cosine"] = _cosine(forget, retain)
        for parameter in reversed(parameters):
            parameter.grad = join(forget.pop(), retain.pop())  # popped, so that three gradients are never held whole
    return {"loss": total, **figures}


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    dot = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    norms = [torch.stack([value.square().sum() for value in values]).sum().sqrt() for values in (one, other)]
    return float(dot / (norms[0] * norms[1]).clamp(min=torch.finfo(dot.dtype).tiny))


def _diverged(what: str, value: float, step: int, steps: int, rate: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"step {step + 1} of {steps}: the {what} became {value}; the last good step was {step}; "
        f"lower learning_rate (now {rate:g})"
    )
