"""Runs tasks on the hosts of a Ray cluster (the extra `ray`), which share one directory: see docs/cluster.md.

Ray only says where; what is made goes to the shared store, published by one rename, so that a host that was cut off and
finishes all the same changes nothing. A task whose host died runs again elsewhere from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from spunge.errors import ArtifactError, MissingExtra, SpungeError, WorkerDied, first_line
from spunge.interfaces import Progress, silent
from spunge.run.executors import Task
from spunge.run.executors.build import build
from spunge.run.store import Artifact, Store
from spunge.weights.language_model import Resident

KEEPALIVE = ("RAY_grpc_client_keepalive_time_ms", "RAY_grpc_client_keepalive_timeout_ms")
"""Set alike on every host and here, a host that falls silent is noticed in half a minute instead of seven. Set in some
places alone, each side takes the other's messages for an attack, and cuts the link after a minute."""
ATTEMPTS = 4
_PATIENCE = 120.0
"""Seconds for a host to start a process and say what it sees."""
_HEADLESS = 30.0
"""Seconds without the head until a run ends with a line; after 60 Ray itself would end the process where it stands."""


@dataclass
class Cluster:
    """The hosts of a Ray cluster. A context manager."""

    store: Store
    """On a file system that every host sees under the same path."""
    device: str = "cpu"
    """`cuda` gives each task a GPU of its own, `cpu` none."""
    address: str = "auto"
    """The head's `host:port`; `auto` finds the cluster that runs on this host."""
    progress: Progress = silent
    finished: Callable[[Task, Artifact], None] = lambda task, artifact: None
    """Called for every task as it ends, in the order of the tasks."""
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)
    _mark: Path | None = field(default=None, init=False)
    _pending: list[Any] = field(default_factory=list, init=False)
    _before: dict[int, Any] = field(default_factory=dict, init=False)
    """What was to happen on SIGTERM and SIGHUP before Ray came."""
    _stopped: int | None = field(default=None, init=False)
    """The signal that asked this process to stop."""
    _head: str = field(default="", init=False)
    """The `host:port` of the head, asked for while it answers."""
    _headless: float | None = field(default=None, init=False)
    """Since when the head gives no answer."""

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Runs the tasks that the store does not hold yet.

        Raises:
            ArtifactError: A host does not see the store or the working directory.
            WorkerDied: A task's host died, and so did those that it was given to afterwards.
        """
        stored = [self.store.reuse(task.stage, task.inputs) for task in tasks]
        references = {number: self._submit(tasks[number]) for number, artifact in enumerate(stored) if artifact is None}
        self._pending = [*references.values()]
        artifacts = []
        for number, (task, artifact) in enumerate(zip(tasks, stored, strict=True)):
            if artifact is None:
                artifact = self._fetch(task, references[number])
            self.finished(task, artifact)
            artifacts.append(artifact)
        self._pending = []
        return artifacts

    def _submit(self, task: Task) -> Any:
        remote = (
            _ray()
            .remote(_build_on_host)
            .options(
                num_cpus=1,
                num_gpus=1 if self.device == "cuda" else 0,
                max_retries=ATTEMPTS - 1,
                name=f"{task.stage} {task.name}",
            )
        )
        return remote.remote(self.store, task, self.device, self._mark, Path.cwd())

    def _fetch(self, task: Task, reference: Any) -> Artifact:
        ray, label = _ray(), f"{task.stage} {task.name}"
        self.progress(label, 0, 1)
        try:
            while not ray.wait([reference], timeout=5.0)[0]:
                self._look_for_head(label)
            host = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpungeError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            raise WorkerDied(
                f"{label}: {ATTEMPTS} attempts on the cluster came to nothing ({first_line(error)}); finished stages "
                "are kept, and the same command continues"
            ) from error
        # From the store, not over the wire: whoever published first has won, and it need not be this host.
        artifact = self.store.find(task.stage, task.inputs)
        if artifact is None:
            raise ArtifactError(
                f"{self.store.root}: {host} wrote {label} there, but it cannot be seen from here: "
                "not one shared directory"
            )
        self.progress(label, 1, 1)
        return Artifact(artifact.path, artifact.manifest, reused=False)

    def _look_for_head(self, label: str) -> None:
        """Ends the run when the cluster's head has been gone for long: nothing more would be heard of any task."""
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
            self._headless = None
        except OSError as error:
            self._headless = self._headless or time.monotonic()
            if time.monotonic() - self._headless > _HEADLESS:
                self._pending = []  # nobody is left to cancel them by: Ray ends them when they miss the head as well
                raise WorkerDied(
                    f"{label}: the cluster's head, {host}:{port}, is gone ({error.strerror or error}): start it again; "
                    "finished stages are kept, and the same command continues"
                ) from error

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as held:
            self._mark = held.enter_context(self.store.marked())
            self._connect()
            held.callback(self._disconnect)
            self._ask_hosts()
            self._held = held.pop_all()
        return self

    def _connect(self) -> None:
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray leaves the working directory alone
        if find_spec("ray") is None:
            raise MissingExtra("ray is not installed: pip install 'spunge[ray]'")
        before = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGHUP)}
        try:
            if self.address != "auto":  # Ray would try for minutes, and then abort
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray = _ray()
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            self._head = ray.get_runtime_context().gcs_address
        except (OSError, RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"--address {self.address}: no Ray cluster to be had there ({first_line(error)}): "
                "start one with `ray start --head`, and set RAY_AUTH_MODE here as it is there"
            ) from error
        if current_thread() is main_thread():  # Ray's own handler would end the process where it stands
            # Ray takes SIGTERM alone; a SIGHUP that nohup has this process ignore stays ignored.
            self._before = {sent: at for sent, at in before.items() if sent == signal.SIGTERM or callable(at)}
            for sent in self._before:
                signal.signal(sent, self._stop)

    def _disconnect(self) -> None:
        if self._headless is None:  # it would wait for the head until Ray ends this process, before our line is out
            _ray().shutdown()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = number
        if callable(before := self._before[number]):
            before(number, frame)
        sys.exit(128 + number)

    def _ask_hosts(self) -> None:
        """Finds out before the first task whether all hosts see the store, and how they watch their links."""
        ray = _ray()
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            NodeAffinitySchedulingStrategy,
        )

        remote = ray.remote(_look_around)
        answers = [
            remote.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(self._mark, Path.cwd())
            for node in ray.nodes()
            if node["Alive"]
        ]
        try:
            seen = ray.get(answers, timeout=_PATIENCE)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpungeError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            raise ArtifactError(f"--address {self.address}: a host gives no answer ({first_line(error)})") from error
        here = _keepalive()
        for host, there in seen:
            if different := next((name for name in KEEPALIVE if there[name] != here[name]), None):
                raise ArtifactError(
                    f"{host}: Ray was started {_with(different, there)}, and this process {_with(different, here)}: "
                    "links between the two would be cut; set it alike on every host and here (docs/cluster.md)"
                )
        if here[KEEPALIVE[0]] is None:
            warnings.warn(
                f"{KEEPALIVE[0]} is not set: were a host cut off, seven minutes would pass until its tasks are given "
                "to another (docs/cluster.md)",
                RuntimeWarning,
                stacklevel=3,
            )

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        ray = _ray()
        with self._held:
            for reference in self._pending if kind is not None else ():
                # By force: a task that computes would not look up. What it runs in is killed, and its children.
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.cancel(reference, force=True)
        for sent, handler in self._before.items():
            signal.signal(sent, handler)
        if self._stopped is not None:  # of the exit that was under way Ray keeps no more than that there was one
            sys.exit(128 + self._stopped)


def _ray() -> Any:
    import ray  # pyright: ignore[reportMissingImports]
    import ray.exceptions  # pyright: ignore[reportMissingImports]

    return ray


def _keepalive() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in KEEPALIVE}


def _with(name: str, values: Mapping[str, str | None]) -> str:
    return f"without {name}" if values[name] is None else f"with {name}={values[name]}"


def _look_around(mark: Path, cwd: Path) -> tuple[str, Mapping[str, str | None]]:
    """Goes to the working directory on this host; returns the host's name and how its links are watched."""
    host = socket.gethostname()
    if not mark.exists():
        raise ArtifactError(f"{mark.parent}: {host} does not see this directory: it must be shared by all hosts")
    try:
        os.chdir(cwd)  # data and models may be named by relative paths
    except OSError as error:
        raise ArtifactError(f"{cwd}: {host} does not see this directory: it must be shared by all hosts") from error
    return host, _keepalive()


_resident: Resident | None = None


def _build_on_host(store: Store, task: Task, device: str, mark: Path, cwd: Path) -> str:
    """Makes the artifact of a task on this host; returns the host's name."""
    global _resident
    host, _ = _look_around(mark, cwd)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and every GPU would be seen
    # Ray gives tasks of one kind the same process where it can: they share the base model and what is cached.
    if _resident is None or _resident.device != device:
        _resident = Resident(device)
    build(store, task, _resident, silent)
    return host
