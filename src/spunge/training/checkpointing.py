"""The figures of every step, and the checkpoint in the middle of a run, from which a killed one goes on."""

from __future__ import annotations

import json
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from spunge.errors import ArtifactError
from spunge.files import replaced
from spunge.interfaces import Work
from spunge.training import sharding

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
LAST_GOOD = "last_good"
"""Where in the scratch a run that diverges leaves the task vector of its last good step."""
SAVE_SECONDS = 60.0
"""The least time between two checkpoints: a killed run repeats at most about this much."""


class Record:
    """The steps that are done, as JSON lines in the output, and the checkpoint in the scratch.

    When a checkpoint was saved cannot change what comes out, so a run that was killed ends in the same bytes.
    """

    def __init__(self, work: Work, key: str) -> None:
        """Opens a run's record; `key` names the run by everything that its result depends on."""
        self.figures: list[dict[str, Any]] = []
        """Those of every step done."""
        self._metrics, self._checkpoint = work.output / METRICS, work.scratch / CHECKPOINT
        self._key, self._device = key, work.device
        self._due = time.monotonic() + SAVE_SECONDS

    def resume(self) -> dict[str, Any] | None:
        """Returns what the last checkpoint of the same run holds, if there is one, and takes up its figures."""
        state = self._read()
        self.figures = [] if state is None else state["figures"]
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        self._metrics.write_text("".join(json.dumps(figures) + "\n" for figures in self.figures), encoding="utf-8")
        return state

    def add(self, figures: dict[str, Any]) -> None:
        """Notes one more step."""
        self.figures.append(figures)
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(figures) + "\n")

    def save(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Saves the figures and the state when the time has come; saving takes at most a twentieth of the time.

        Raises:
            ArtifactError: The checkpoint cannot be written.
        """
        started = time.monotonic()
        # The first process decides for all: to put a state together from its pieces takes every one of them.
        if not sharding.agreed(started >= self._due, self._device):
            return
        content = {"key": self._key, "figures": self.figures, **state()}
        if sharding.rank() == 0:
            with replaced(self._checkpoint) as building:
                try:
                    torch.save(content, building)
                except RuntimeError as error:  # torch's word for a full disk
                    raise ArtifactError(f"{self._checkpoint}: cannot be written: {error}") from error
        finished = time.monotonic()
        self._due = finished + max(SAVE_SECONDS, 20 * (finished - started))

    def _read(self) -> dict[str, Any] | None:
        if not self._checkpoint.exists():
            return None
        try:
            # weights_only: a store may be shared, and a pickle runs what its writer likes.
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            damaged = None if isinstance(state, dict) and "key" in state else "it is not a checkpoint"
        # torch raises whatever the damaged bytes lead its unpickler to.
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
                pickle.UnpicklingError) as error:  # fmt: skip
            state, damaged = {}, error
        if damaged is not None:
            warnings.warn(
                f"{self._checkpoint}: damaged, so the run begins anew: {damaged}", RuntimeWarning, stacklevel=4
            )
            return None
        return state if state["key"] == self._key else None
