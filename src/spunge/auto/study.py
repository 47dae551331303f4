"""The trials of one arm, drawn by Optuna and kept in its journal: a killed search goes on, and two processes share it.

A trial is trained once and read at several points (λ by the damage it does, how subsets are merged). Each reading is a
trial of Optuna's, so that the sampler (TPE of two or three objectives: Ozaki et al. 2022, "Multiobjective
tree-structured Parzen estimator", JAIR 73) sees the whole front; the one that it asked for ends the trial.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spunge.auto.spaces import Space
from spunge.errors import InUse
from spunge.files import is_locked, locked
from spunge.run.keys import derived_seed

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler

JOURNAL = "study.journal"
Sampler = Literal["tpe", "random"]
BUSY = "another process makes this trial"
LOST = 10.0
"""The damage that a trial is given which came to nothing: more than any that is measured."""
_RANDOM_TRIALS = 4
"""Trials before the sampler has anything to learn from, the first ones of the methods apart."""


@dataclass(frozen=True)
class Setting:
    """What one trial trains with."""

    number: int
    method: str
    fields: Mapping[str, Any]
    """What is searched, as a recipe has it."""
    fixed: Mapping[str, Any]
    """What is set beside it."""

    @property
    def told(self) -> str:
        """The setting in one line."""
        shown = ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.fields.items() if not isinstance(value, dict | list)
        )  # fmt: skip
        return f"{self.method} ({shown})" if shown else self.method


class Study:
    """The trials of one arm."""

    def __init__(
        self, directory: Path, arm: str, spaces: Sequence[Space], readings: Sequence[str], seed: int, *,
        sampler: Sampler = "tpe", objectives: int = 2,
    ) -> None:  # fmt: skip
        """Opens the study, or makes it.

        Args:
            directory: Where the journal lies.
            arm: `joint` or `merged`.
            spaces: What is searched of each method.
            readings: The names of the points at which every trial is read.
            seed: Of everything that is drawn.
            sampler: `tpe`, or `random` to compare with.
            objectives: Forgotten, damage, and perhaps what an attack brings back.
        """
        optuna = _optuna()
        self._directory, self._arm, self._seed, self._sampler = directory, arm, seed, sampler
        self._spaces, self._readings = spaces, tuple(readings)
        self._held: dict[int, ExitStack] = {}
        with self._alone():
            _mend(directory / JOURNAL)
            backend = optuna.storages.journal.JournalFileBackend(
                str(directory / JOURNAL), lock_obj=_JournalLock(directory / "writing")
            )
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend), study_name=arm, load_if_exists=True,
                directions=["maximize", *["minimize"] * (objectives - 1)],
            )  # fmt: skip

    def take(self, most: int) -> Setting | None:
        """Returns the next trial's setting: one that a dead process left, else a new one; None where there are enough.

        What is drawn depends on the seed, the trial's number and the trials told before alone.
        """
        with self._alone():
            begun = 0
            for trial in self._study.get_trials(deepcopy=False):
                if (number := trial.user_attrs.get("number")) is not None:
                    begun += 1
                    if trial.state.name == "RUNNING" and number not in self._held and self._hold(number):
                        return Setting(**trial.user_attrs["setting"])
                elif trial.state.name == "RUNNING":  # killed while it was drawn: it never began
                    self._study.tell(trial.number, state=_optuna().trial.TrialState.FAIL)
            return self._ask(begun) if begun < most else None

    def _hold(self, number: int) -> bool:
        """Holds a trial until it is told, or until this process ends; False where another process does."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(claim(self._directory, self._arm, number, 0), BUSY))
            except InUse:
                return False
            self._held[number] = stack.pop_all()
        return True

    def _ask(self, number: int) -> Setting:
        self._study.sampler = self._sampler_of(number)
        trial = self._study.ask()
        space = self._space(trial)
        fields = {one.name: one.suggest(trial, space.method) for one in space.dimensions}
        trial.suggest_categorical("reading", self._readings)
        setting = Setting(number, space.method, fields, dict(space.fixed))
        self._hold(number)
        trial.set_user_attr("setting", vars(setting))
        trial.set_user_attr("number", number)  # last: from here on the trial has begun
        return setting

    def _space(self, trial: Trial) -> Space:
        names = [space.method for space in self._spaces]
        chosen = trial.suggest_categorical("method", names)
        return self._spaces[names.index(chosen)]

    def _sampler_of(self, number: int) -> BaseSampler:
        samplers = _optuna().samplers
        seed = derived_seed(self._seed, "ask", f"{self._arm} {number}") % 2**32
        if self._sampler == "random":
            drawn: BaseSampler = samplers.RandomSampler(seed=seed)
        else:
            startup = (len(self._spaces) + _RANDOM_TRIALS) * len(self._readings)
            drawn = samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
        if number < len(self._spaces):  # each method's own rules come first, whatever the sampler
            space = self._spaces[number]
            first = {"method": space.method, **space.first, "reading": self._readings[0]}
            drawn = samplers.PartialFixedSampler(first, drawn)
        return drawn

    def tell(self, setting: Setting, values: Mapping[str, Sequence[float]]) -> None:
        """Notes what every reading of a trial came to; of a trial that came to nothing there are none."""
        optuna = _optuna()
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            own = next(trial for trial in trials if trial.user_attrs.get("number") == setting.number)
            if own.state.is_finished():
                return
            lost = [0.0, *[LOST] * (len(self._study.directions) - 1)]
            told = {trial.params.get("reading") for trial in trials if trial.user_attrs.get("of") == setting.number}
            for reading in self._readings:
                if reading not in told and reading != own.params["reading"]:
                    self._study.add_trial(
                        optuna.trial.create_trial(
                            values=list(values.get(reading, lost)), params={**own.params, "reading": reading},
                            distributions=own.distributions, user_attrs={"of": setting.number},
                        )
                    )  # fmt: skip
            self._study.tell(own.number, list(values.get(own.params["reading"], lost)))
            if (held := self._held.pop(setting.number, None)) is not None:
                held.close()

    def note(self, number: int, rung: int, result: Mapping[str, Any]) -> None:
        """Keeps what one trial came to at one rung, as JSON values."""
        self._study.set_user_attr(f"{number}/{rung}", dict(result))

    def results(self, rung: int) -> dict[int, dict[str, Any]]:
        """Returns what trials came to at a rung, by their number."""
        kept = {name.partition("/"): result for name, result in self._study.user_attrs.items()}
        found = {int(number): result for (number, _, at), result in kept.items() if int(at) == rung}
        return dict(sorted(found.items()))

    def settings(self) -> dict[int, Setting]:
        """Returns the settings of all trials that have begun, by their number."""
        trials = self._study.get_trials(deepcopy=False)
        found = [Setting(**trial.user_attrs["setting"]) for trial in trials if "number" in trial.user_attrs]
        return {setting.number: setting for setting in found}

    def waiting(self) -> bool:
        """Whether another living process is at work on a trial."""
        return any(
            trial.state.name == "RUNNING" and (number := trial.user_attrs.get("number")) is not None
            and number not in self._held and is_locked(claim(self._directory, self._arm, number, 0))
            for trial in self._study.get_trials(deepcopy=False)
        )  # fmt: skip

    def _alone(self) -> AbstractContextManager[None]:
        """Keeps other processes of the same search from drawing at the same time."""
        return locked(self._directory / "drawing", BUSY, wait=True)


class _JournalLock:
    """Optuna's interface of a lock, kept by the operating system: a killed process leaves none.

    Optuna's own is a symbolic link, which a kill leaves; with a relative path nobody ever finds it stale.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._held = directory, ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(locked(self._directory, BUSY, wait=True))
        return True

    def release(self) -> None:
        self._held.close()


def claim(directory: Path, arm: str, number: int, rung: int) -> Path:
    """Returns the directory that whoever makes a trial at a rung holds meanwhile."""
    return directory / "claims" / f"{arm}-{number}-{rung}"


def _mend(journal: Path) -> None:
    """Cuts off the half line that a process left which was killed while it wrote."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _optuna() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna  # late: with its data base layer it takes a second, which other commands need not wait
    logging.getLogger("optuna").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
