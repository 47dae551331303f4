"""Runs tasks on the hosts of a Ray cluster (the extra `ray`), which share one directory: see docs/cluster.md.

Ray only says where; what is made goes to the shared store, published by one rename, so that a host that was cut off and
finishes all the same changes nothing. A task whose host died runs again elsewhere from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError, MissingExtra, SpungeError, WorkerDied
from spunge.executors import Task
from spunge.executors.local import build
from spunge.interfaces import Progress, silent
from spunge.language_model import Resident
from spunge.store import Artifact, Store

KEEPALIVE = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""A host that falls silent is noticed in half a minute instead of seven; and Ray leaves the working directory alone."""
ATTEMPTS = 4


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
    _probe: Path | None = field(default=None, init=False)
    _pending: list[Any] = field(default_factory=list, init=False)
    _warned: set[str] = field(default_factory=set, init=False)

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Runs the tasks that the store does not hold yet.

        Raises:
            ArtifactError: A host does not see the store or the working directory.
            WorkerDied: A task's host died, and so did those that it was given to afterwards.
        """
        found = [self.store.find(task.stage, task.inputs) for task in tasks]
        self._pending = [None if artifact else self._submit(task) for task, artifact in zip(tasks, found, strict=True)]
        artifacts = []
        for task, artifact, reference in zip(tasks, found, self._pending, strict=True):
            if artifact is None:
                artifact = self._fetch(task, reference)
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
        return remote.remote(self.store, task, self.device, self._probe, Path.cwd())

    def _fetch(self, task: Task, reference: Any) -> Artifact:
        ray, label = _ray(), f"{task.stage} {task.name}"
        self.progress(label, 0, 1)
        try:
            host, keepalive = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpungeError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkerDied(
                f"{label}: {ATTEMPTS} attempts on the cluster came to nothing ({reason}); finished stages are kept, "
                "and the same command continues"
            ) from error
        if not keepalive and host not in self._warned:
            self._warned.add(host)
            warnings.warn(
                f"{host}: Ray was started without RAY_grpc_client_keepalive_time_ms: were it cut off, seven minutes "
                "would pass until its tasks are given to another (docs/cluster.md)",
                RuntimeWarning,
                stacklevel=3,
            )
        artifact = self.store.find(task.stage, task.inputs)
        if artifact is None:
            raise ArtifactError(
                f"{self.store.root}: {host} wrote {label} there, but it cannot be seen from here: "
                "not one shared directory"
            )
        self.progress(label, 1, 1)
        return Artifact(artifact.path, artifact.manifest, reused=False)

    def __enter__(self) -> Cluster:
        os.environ.update({name: value for name, value in KEEPALIVE.items() if name not in os.environ})
        ray = _ray()
        try:
            if self.address != "auto":  # Ray would try for minutes, and then abort
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"--address {self.address}: no Ray cluster to be had there ({reason}): "
                "start one with `ray start --head`"
            ) from error
        self._probe = self.store.root / f".probe.{uuid.uuid4().hex}"
        try:
            self.store.root.mkdir(parents=True, exist_ok=True)
            self._probe.touch()
        except OSError as error:
            raise ArtifactError(f"{self.store.root}: cannot be written: {error.strerror or error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        ray = _ray()
        for reference in self._pending:
            if reference is not None and kind is not None:
                # By force: a task that computes would not look up. What it runs in is killed, and nothing else is left.
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.cancel(reference, force=True)
        if self._probe is not None:
            self._probe.unlink(missing_ok=True)
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("ray is not installed: pip install 'spunge[ray]'") from error
    return ray


_resident: Resident | None = None


def _build_on_host(store: Store, task: Task, device: str, probe: Path, cwd: Path) -> tuple[str, bool]:
    """Makes a task's artifact on this host; returns the host's name and whether Ray was told to watch its links."""
    global _resident
    host = socket.gethostname()
    if not probe.exists():
        raise ArtifactError(f"{probe.parent}: {host} does not see this directory: it must be shared by all hosts")
    try:
        os.chdir(cwd)  # data and models may be named by relative paths
    except OSError as error:
        raise ArtifactError(f"{cwd}: {host} does not see this directory: it must be shared by all hosts") from error
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and every GPU would be seen
    # Ray gives tasks of one kind the same process where it can: they share the base model and what is cached.
    if _resident is None or _resident.device != device:
        _resident = Resident(device)
    build(store, [task], _resident, silent)
    return host, all(name in os.environ for name in KEEPALIVE if name.startswith("RAY_grpc"))
