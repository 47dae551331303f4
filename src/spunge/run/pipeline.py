"""A run: the flow with a lock on its directory, a journal, an executor for its tasks, and the report at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import polars as pl

from spunge import report
from spunge.errors import ArtifactError, RecipeError, redacted
from spunge.files import digest_of, locked, replace_text, replaced
from spunge.interfaces import Progress, silent
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run.cautions import cautions_of_rows, cautions_of_subsets, refuse_foreign
from spunge.run.executors.cluster import Cluster
from spunge.run.executors.local import Local
from spunge.run.executors.planned import Planned
from spunge.run.executors.workers import slots
from spunge.run.flow import flow
from spunge.run.journal import Journal, Listener, unheard
from spunge.run.store import Artifact, Store
from spunge.run.subsets import load
from spunge.run.variant import Variant

WRITTEN = ("recipe.yaml", "items.parquet", "report/results.json")
"""The files of a run whose digests its manifest holds: what a report, a comparison or an export is read from."""


def run(
    experiment: Experiment,
    *,
    out: str | Path = "runs",
    device: str = "auto",
    dtype: str | None = None,
    jobs: int = 1,
    executor: Literal["local", "ray"] = "local",
    address: str = "auto",
    progress: Progress = silent,
    listener: Listener = unheard,
    command: str = "",
) -> Path:
    """Runs an experiment and writes its report; what the store holds already is not computed again.

    Args:
        experiment: The recipe, from `experiment.read`.
        out: The runs root; the run's own directory in it is named after the experiment.
        device: A torch device, or `auto`.
        dtype: What to compute in; None is the model's own.
        jobs: Processes to run independent tasks in; with `cuda` each has a GPU of its own, as far as there are.
        executor: `local`, or `ray` for the hosts of a cluster.
        address: The Ray cluster's `host:port`.
        progress: Told of every step.
        listener: Told of the run's events: `warned`, with what to know before it is paid for, `planned`, with its
            `steps`, and `finished`, with the task that has ended.
        command: What the user typed, noted in the report.

    Returns:
        The run's directory.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    device = choose_device(device) if executor == "local" or device != "cuda" else device
    if dtype is not None:  # it can move a result, so it is part of what is run
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"dtype": dtype})})
    rows, store = load(experiment), Store(Path(out).absolute() / "store" if executor == "ray" else Path(out) / "store")
    warnings = _tell(listener, cautions_of_rows(experiment, rows))
    with Planned(store, "cpu" if executor == "ray" else device) as planned:
        flow(experiment, rows, planned)  # what is wrong is found before anything is written
    warnings += _tell(listener, cautions_of_subsets(planned.tasks))
    directory = Path(out) / experiment.name
    refuse_foreign(directory)
    with locked(directory, "another run is at work there; wait for it, or give another --out"), store.held():
        replace_text(directory / "recipe.yaml", redacted(reading.dump(experiment)))
        near = rows.damage.told if rows.damage else ""
        journal = Journal(directory, experiment, device, command, listener, warnings, near)
        if executor == "local":
            where = Local(store, slots(device, jobs), progress, journal.note)
        else:
            where = Cluster(store, device, address, progress, journal.note)
        with _noting_failure(journal):
            journal.write("running")
            listener("planned", {"steps": planned.steps})
            with where:
                outcome = flow(experiment, rows, where)
            write_items(directory, outcome.evaluations)
            # The manifest says `done` only when all is there: the disk may fill up while the report is written.
            journal.write("running", outcome)
            report.write(directory, ending=True)
            journal.write("done", outcome, files={name: digest_of(directory / name) for name in WRITTEN})
    return directory


def _tell(listener: Listener, warnings: list[str]) -> list[str]:
    if warnings:
        listener("warned", {"warnings": warnings})
    return warnings


@contextmanager
def _noting_failure(journal: Journal) -> Iterator[None]:
    """Notes in the run's manifest what ended it."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        with suppress(ArtifactError):  # on a full disk the first error is the one to tell
            journal.write("interrupted" if stopped else "failed", warnings=[f"{type(error).__name__}: {error}"])
        raise


def write_items(directory: Path, evaluations: Sequence[tuple[Variant, Artifact]]) -> None:
    """Writes the one long item table that every figure and table derives from."""
    tables = [
        pl.read_parquet(artifact.path / "items.parquet").select(
            pl.lit(variant.name).alias("variant"), pl.lit(variant.seed).alias("seed"), pl.all()
        )
        for variant, artifact in evaluations
    ]
    with replaced(directory / "items.parquet") as building:
        pl.concat(tables).write_parquet(building)


def choose_device(device: str) -> str:
    """Returns the device that `auto` stands for here; refuses one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch's own line names eighteen kinds of device, of which a machine has two.
        here = ["cpu", *(kind for kind in ("cuda", "mps", "xpu") if getattr(torch, kind).is_available())]
        raise RecipeError(f"--device {device}: not available here; there is {', '.join(here)}") from error
    return device
