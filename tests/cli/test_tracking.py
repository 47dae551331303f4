"""Trackers see every figure of every step, and nothing changes for who asks for none. The trackers here are fakes."""

import sys
import types

import pytest

from spunge.cli.tracking import tracked
from spunge.errors import MissingExtra, RecipeError


def run(tracker):
    told = []
    with tracked(lambda *what, **figures: told.append((*what, figures)), tracker, "mine") as progress:
        progress("unlearn a", 1, 2, loss=0.5, rate=1.0)
        progress("evaluate", 1, 1)
    assert told == [("unlearn a", 1, 2, {"loss": 0.5, "rate": 1.0}), ("evaluate", 1, 1, {})]


def test_no_tracker_is_the_progress_itself():
    def progress(what, done, total, /, **figures):
        return None

    with tracked(progress, None, "mine") as same:
        assert same is progress


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackers_that_log_dictionaries(monkeypatch, name):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **given: calls.append(given), log=calls.append, finish=lambda: calls.append("finished")
    )
    monkeypatch.setitem(sys.modules, name, fake)  # pyright: ignore[reportArgumentType]
    run(name)
    logged = {"unlearn a/loss": 0.5, "unlearn a/rate": 1.0, "unlearn a/step": 1}
    assert calls == [{"project": "spunge", "name": "mine"}, logged, "finished"]


def test_tensorboard_gets_scalars(monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *given):
            calls.append(given)

        def close(self):
            calls.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)  # pyright: ignore[reportArgumentType]
    run("tensorboard")
    assert calls == ["tensorboard/mine", ("unlearn a/loss", 0.5, 1), ("unlearn a/rate", 1.0, 1), "closed"]


def test_trackers_that_cannot_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MissingExtra, match="--track wandb needs its package: pip install wandb"):
        run("wandb")
    with pytest.raises(RecipeError, match="--track mlflow: use one of tensorboard, trackio, wandb"):
        run("mlflow")
