"""A run: the flow with a lock on its directory, a journal, an executor for its tasks, and the report at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from spunge import report
from spunge.errors import ArtifactError, redacted
from spunge.files import digest_of, locked, replace_text, replaced
from spunge.interfaces import Progress, silent
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run.cautions import refuse_foreign
from spunge.run.compute import HERE, Compute
from spunge.run.flow import flow, foresee
from spunge.run.journal import Journal, Listener, unheard
from spunge.run.log import Log
from spunge.run.store import Artifact, Store
from spunge.run.variant import Variant

WRITTEN = ("recipe.yaml", "items.parquet", "report/results.json")
"""The files of a run whose digests its manifest holds: what a report, a comparison or an export is read from."""


def run(
    experiment: Experiment,
    *,
    out: str | Path = "runs",
    compute: Compute = HERE,
    progress: Progress = silent,
    listener: Listener = unheard,
    command: str = "",
) -> Path:
    """Runs an experiment and writes its report; what the store holds already is not computed again.

    Args:
        experiment: The recipe, from `experiment.read`.
        out: The runs root; the run's own directory in it is named after the experiment.
        compute: On what, and in how many processes.
        progress: Told of every step.
        listener: Told of the run's events: `warned`, with what to know before it is paid for, `planned`, with its
            `steps`, and `finished`, with the task that has ended.
        command: What the user typed, noted in the report.

    Returns:
        The run's directory.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    device, experiment = compute.chosen_device, compute.applied_to(experiment)
    # Hosts of a cluster need the store's whole path. What they compute on, the host that plans need not have.
    there = compute.executor == "ray"
    store = Store(Path(out).absolute() / "store" if there else Path(out) / "store")
    warnings: list[str] = []

    def warn(lines: Sequence[str]) -> None:
        warnings.extend(lines)
        listener("warned", {"warnings": lines})

    def listen(kind: str, content: Mapping[str, Any], /) -> None:
        log.event(kind, content)
        listener(kind, content)

    # What is wrong is found before anything is written.
    rows, planned = foresee(experiment, store, "cpu" if there else device, warn)
    directory = Path(out) / experiment.name
    refuse_foreign(directory)
    with locked(directory, "another run is at work there; wait for it, or give another --out"), store.held():
        log = Log(directory, f"{command or 'spunge.run'}: {experiment.name}, on {device}, spunge {version('spunge')}")
        log.event("warned", {"warnings": warnings})
        replace_text(directory / "recipe.yaml", redacted(reading.dump(experiment)))
        near = rows.damage.told if rows.damage else ""
        seen = {suite: (asked.seen, asked.items) for suite, asked in rows.asked.items()}
        journal = Journal(directory, experiment, device, command, listen, warnings, near, rows.robustness, seen)
        executor = compute.start(store, progress, journal.note)
        with _noting_failure(journal, log):
            journal.write("running")
            listen("planned", {"steps": planned.steps})
            with executor:
                outcome = flow(experiment, rows, executor)
            write_items(directory, outcome.evaluations)
            # The manifest says `done` only when all is there: the disk may fill up while the report is written.
            journal.write("running", outcome)
            report.write(directory, ending=True)
            journal.write("done", outcome, files={name: digest_of(directory / name) for name in WRITTEN})
            log.write("done")
    return directory


@contextmanager
def _noting_failure(journal: Journal, log: Log) -> Iterator[None]:
    """Notes in the run's manifest and its log what ended it."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        with suppress(ArtifactError):  # on a full disk the first error is the one to tell
            journal.write("interrupted" if stopped else "failed", warnings=[f"{type(error).__name__}: {error}"])
            log.failed(error)
        raise


def write_items(directory: Path, evaluations: Sequence[tuple[Variant, Artifact]]) -> None:
    """Writes the one long item table that every figure and table derives from."""
    tables = [
        pl.scan_parquet(artifact.path / "items.parquet").select(
            pl.lit(variant.name).alias("variant"), pl.lit(variant.seed).alias("seed"), pl.all()
        )
        for variant, artifact in evaluations
    ]
    with replaced(directory / "items.parquet") as building:
        pl.concat(tables).sink_parquet(building)
