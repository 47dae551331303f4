"""Sends the figures of every step to an experiment tracker, if one is asked for: a progress that also writes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spunge.errors import MissingExtra, RecipeError

if TYPE_CHECKING:
    from spunge.interfaces import Progress

Sink = Callable[[Mapping[str, float], int], None]


@contextmanager
def tracked(progress: Progress, tracker: str | None, name: str) -> Iterator[Progress]:
    """Yields a progress that tells the tracker too.

    Args:
        progress: Told of everything, as without a tracker.
        tracker: `tensorboard` (writes below `tensorboard/NAME`), `trackio`, `wandb`, or None.
        name: The name of the run there; the project is `spunge`.

    Raises:
        RecipeError: There is no such tracker.
        MissingExtra: Its package is not installed.
    """
    if tracker is None:
        yield progress
        return
    if tracker not in _SINKS:
        raise RecipeError(f"--track {tracker}: use one of {', '.join(_SINKS)}")
    try:
        sink, close = _SINKS[tracker](name)
    except ImportError as error:
        raise MissingExtra(f"--track {tracker} needs its package: pip install {tracker}") from error

    def tell(what: str, done: int, total: int, /, **figures: float) -> None:
        progress(what, done, total, **figures)
        if figures:
            sink({f"{what}/{figure}": value for figure, value in figures.items()}, done)

    try:
        yield tell
    finally:
        close()


def _tensorboard(name: str) -> tuple[Sink, Callable[[], Any]]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(f"tensorboard/{name}")

    def sink(figures: Mapping[str, float], step: int) -> None:
        for figure, value in figures.items():
            writer.add_scalar(figure, value, step)

    return sink, writer.close


def _logged_by(module: str) -> Callable[[str], tuple[Sink, Callable[[], Any]]]:
    def start(name: str) -> tuple[Sink, Callable[[], Any]]:
        tracker = importlib.import_module(module)
        tracker.init(project="spunge", name=name)

        def sink(figures: Mapping[str, float], step: int) -> None:
            # Every task counts its own steps from one, and these trackers have one count a run.
            what = next(iter(figures)).rpartition("/")[0]
            tracker.log({**figures, f"{what}/step": step})

        return sink, tracker.finish

    return start


_SINKS: dict[str, Callable[[str], tuple[Sink, Callable[[], Any]]]] = {
    "tensorboard": _tensorboard,
    "trackio": _logged_by("trackio"),
    "wandb": _logged_by("wandb"),
}
