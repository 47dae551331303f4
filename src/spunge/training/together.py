"""k adapters at once: the LoRAs of several subsets trained on one base, whose layers see all their rows in one pass.

The base is frozen and the same for all, so the batches of all runs can go through it as one, each row through its own
adapter. On short texts, where a pass costs what its calls cost, k runs then take little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.training import losses
from spunge.training.loop import Course, Term
from spunge.training.rows import Encoded
from spunge.training.settings import Tuning
from spunge.training.trainee import Trainee, borrow
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import Entry, TaskVector

_Adapter = Mapping[str, nn.Parameter]


def learn_together(
    settings: Tuning, base: LanguageModel, corpora: Sequence[Corpus], works: Sequence[Work]
) -> list[TaskVector]:
    """Does what `learn` does for every corpus and its work, with one pass through the base for all.

    Each result is that of its own run but for the order in which numbers were added; so are its files.

    Args:
        settings: How to train; a LoRA without dropout.
        base: The model to start from.
        corpora: What each adapter learns.
        works: How to run each; their seeds are those of the runs apart.

    Raises:
        TrainingDiverged: A loss or gradient of one of them became NaN or infinite.
    """
    assert settings.lora is not None
    assert settings.lora.dropout == 0, "a draw for all rows at once is another draw than for each run's own"
    adapters: list[_Adapter] = []
    for work in works:
        with borrow(settings, base, work) as trainee:
            adapters.append({name: nn.Parameter(value.detach().clone()) for name, value in trainee.parameters.items()})
    with borrow(settings, base, works[0]) as trainee:
        rows = [trainee.encode(corpus) for corpus in corpora]

        def entries(adapter: _Adapter) -> dict[str, Entry]:
            with torch.no_grad():
                for name, value in trainee.parameters.items():
                    value.copy_(adapter[name])
            return trainee.entries()

        with ExitStack() as stack:
            courses = [
                stack.enter_context(
                    Course(settings, adapter, [Term("nll", own, _of_all)], work, partial(entries, adapter))
                )
                for adapter, own, work in zip(adapters, rows, works, strict=True)
            ]
            choose = stack.enter_context(_adapted(trainee, adapters))
            while active := [place for place, course in enumerate(courses) if course.batches is not None]:
                found = _backward(trainee, choose, rows, courses, active)
                for place in active:
                    figures = {"loss": found[place], "nll": found[place]}
                    courses[place].note({**figures, **courses[place].descend()})
        return [TaskVector(course.entries(), provenance={"steps": len(course.steps)}) for course in courses]


def _of_all(batch: Any) -> Tensor:
    raise AssertionError("the losses of all runs are taken together")


def _backward(
    trainee: Trainee,
    choose: Callable[[Sequence[int]], None],
    rows: Sequence[Sequence[Encoded]],
    courses: Sequence[Course],
    active: Sequence[int],
) -> dict[int, float]:
    """Leaves every active run's gradient in its adapter, and returns its loss."""
    batches = {place: (courses[place].batches or ([],))[0] for place in active}
    units = {place: sum(rows[place][i].counted for batch in batches[place] for i in batch) for place in active}
    found = dict.fromkeys(active, 0.0)
    for number in range(max(len(own) for own in batches.values())):
        those = [place for place in active if number < len(batches[place])]
        most = max(len(batches[place][number]) for place in those)
        mixed, counts = [], []
        for place in those:
            own = batches[place][number]
            # Every run has as many rows; what fills a shorter batch does not count.
            mixed += [rows[place][i] for i in own] + [rows[place][own[0]]] * (most - len(own))
            counts.append([1.0] * len(own) + [0.0] * (most - len(own)))
        choose(those)
        batch = trainee.collate(mixed, range(len(mixed)))
        log_probs = losses.sequence_log_probs(trainee(batch), batch.labels).view(len(those), most)
        counted = torch.tensor([units[place] for place in those], device=log_probs.device)
        each = -(log_probs * torch.tensor(counts, device=log_probs.device)).sum(1) / counted
        for place, value in zip(those, each.tolist(), strict=True):
            courses[place].check("nll loss", value)
            found[place] += value
        each.sum().backward()
    return found


@contextmanager
def _adapted(trainee: Trainee, adapters: Sequence[_Adapter]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Adds to every target layer what the chosen adapters add, each to its own share of the rows."""
    from peft.tuners.lora import LoraLayer

    chosen: list[int] = []

    def choose(places: Sequence[int]) -> None:
        chosen[:] = places

    def hook(name: str, scaling: float) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        keys = [f"{name}.lora_{side}.default.weight" for side in "AB"]

        def add(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            a, b = (torch.stack([adapters[place][key] for place in chosen]) for key in keys)
            x = given[0].to(a.dtype).reshape(len(chosen), -1, a.shape[-1])
            return output + (torch.bmm(torch.bmm(x, a.mT), b.mT) * scaling).view(output.shape).to(output.dtype)

        return add

    with trainee.as_base(), ExitStack() as stack:
        layers: dict[str, Any] = dict(trainee.model.named_modules())
        for name, module in layers.items():
            if isinstance(module, LoraLayer):
                added = layers[name].register_forward_hook(hook(name, float(module.scaling["default"])))
                stack.callback(added.remove)
        yield choose
