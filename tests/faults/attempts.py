"""Runs the command line in processes that are meant to come to grief, and compares what they leave behind.

A fork server imports everything once; each attempt is a fork of it, so that a kill costs no start.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spunge.files import digest_of

os.environ.setdefault("OMP_NUM_THREADS", "1")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "matplotlib.backends.backend_svg", "peft", "polars", "torch", "spunge.cli.commands", "spunge.merging",
    "spunge.run.pipeline", "spunge.report.page", "spunge.steering.loop", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
])  # fmt: skip
MEASURED = {"seconds", "peak_memory", "checksum"}


@dataclass
class Ended:
    """How an attempt ended: minus the signal's number, or the exit code; and what it wrote to stderr."""

    code: int
    errors: str


@dataclass
class Meddling:
    """Lets an attempt run `n` file operations below a directory, and then something happens."""

    under: Path
    at: int = -1
    count: Any = field(default_factory=lambda: CONTEXT.Value("i", 0))

    def __call__(self) -> None:
        """Starts to watch, in the attempt's own process."""
        under = str(self.under)

        def watch(event: str, args: tuple[Any, ...]) -> None:
            if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
                return
            path = args[0]
            if not isinstance(path, str | bytes | os.PathLike) or not str(
                Path(os.fsdecode(path)).absolute()
            ).startswith(under):
                return
            self.count.value += 1
            if self.count.value >= self.at >= 0:
                self.happen(event, args)

        sys.addaudithook(watch)

    def happen(self, event: str, args: tuple[Any, ...]) -> None:
        """What happens from the n-th operation on."""


@dataclass
class Signalled(Meddling):
    """A signal to the attempt itself."""

    signal: int = signal.SIGKILL

    def happen(self, event: str, args: tuple[Any, ...]) -> None:
        if self.count.value == self.at:
            os.kill(os.getpid(), self.signal)


@dataclass
class Refusing(Meddling):
    """From then on nothing can be written: a full disk, or one that has become read-only."""

    errno: int = 0

    def happen(self, event: str, args: tuple[Any, ...]) -> None:
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in ("os.mkdir", "os.rename", "os.truncate") or (event == "open" and args[2] & writing):
            raise OSError(self.errno, os.strerror(self.errno), args[0])


@dataclass
class SmallFiles:
    """No file may grow beyond so many bytes; native code meets this limit too."""

    bytes: int

    def __call__(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))


@dataclass
class Elsewhere:
    """Another host, whose clock is some seconds off, and goes backwards each time it is asked."""

    name: str
    seconds: float

    def __call__(self) -> None:
        from spunge import files

        real, asked = time.time, iter(range(10**9))
        time.time = lambda: real() + self.seconds - next(asked)
        files.host = lambda: self.name


def attempt(
    words: Sequence[str | Path],
    cwd: Path,
    meddle: Callable[[], None] | None = None,
    *,
    figures: bool = False,
    meanwhile: Callable[[int], None] | None = None,
) -> Ended:
    """Runs a command to its end, whatever end that is.

    Args:
        words: The command line, without `spunge`.
        cwd: Where to run it.
        meddle: Called in the process before the command.
        figures: Whether the report has its real figures, which take longer than all the rest.
        meanwhile: Called with the process's id as soon as it runs.
    """
    begun = start(words, cwd, meddle, figures=figures)
    if meanwhile is not None:
        assert begun.pid is not None
        meanwhile(begun.pid)
    return wait(begun)


def start(
    words: Sequence[str | Path], cwd: Path, meddle: Callable[[], None] | None = None, *, figures: bool = False
) -> Any:
    """Starts a command; see `attempt`."""
    errors = cwd / f"errors.{time.monotonic_ns()}"
    process = CONTEXT.Process(target=_child, args=([str(word) for word in words], cwd, meddle, figures, errors))
    process.errors = errors  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    return process


def wait(process: Any, seconds: float = 120) -> Ended:
    """Waits for a started command; one that hangs is an error."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"hangs: {process.errors.read_text()}")
    errors = process.errors.read_text() if process.errors.exists() else ""
    process.errors.unlink(missing_ok=True)
    return Ended(process.exitcode, errors)


def _child(words: list[str], cwd: Path, meddle: Callable[[], None] | None, figures: bool, errors: Path) -> None:
    code: Any = 70
    os.setsid()
    os.chdir(cwd)
    with errors.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
        try:
            from spunge.cli import commands as cli

            signal.signal(signal.SIGINT, signal.default_int_handler)
            if not figures:
                from spunge.report import drawing

                drawing.draw = plain_figure
            sys.argv = ["spunge", *words]
            if meddle is not None:
                meddle()
            cli.main()
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def plain_figure(caption: Any, *rest: Any, wide: bool = False, **options: Any) -> Any:
    """Stands for `report.drawing.draw`, which takes longer than all the rest of a tiny run."""
    from matplotlib.figure import Figure as Canvas

    from spunge.report.drawing import Figure

    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1" width="1pt" height="1pt"></svg>'
    return Figure(caption.key, caption.title, caption.text, svg, Canvas(), wide)


def made(runs: Path) -> dict[str, Any]:
    """Returns everything that a run made, but for measured times and memory, its log, and what follows from them."""
    found: dict[str, Any] = {}
    for file in sorted(runs.rglob("*")):
        name = str(file.relative_to(runs))
        if not file.is_file() or name.endswith(("/.lock", "/log.txt", ".html", "results.md", ".svg")):
            continue
        if file.name == "manifest.json" and name.startswith("store/"):
            found[name] = {key: part for key, part in json.loads(file.read_text()).items() if key not in MEASURED}
        elif file.name == "manifest.json":
            manifest = json.loads(file.read_text())
            stages = [{key: stage[key] for key in ("stage", "name", "seed", "key")} for stage in manifest["stages"]]
            measured = {"command": None, "checksum": None}
            found[name] = {**manifest, **measured, "stages": stages, "files": [*manifest["files"]]}
        elif file.name == "results.json":
            found[name] = {**json.loads(file.read_text()), "provenance": None, "checksum": None}
        else:
            found[name] = digest_of(file)["sha256"]  # its bytes, of whatever size
    return found


def leftovers(runs: Path) -> list[str]:
    """Returns the files and directories that only an unfinished attempt should have."""
    return [
        str(path.relative_to(runs))
        for path in runs.rglob("*")
        if path.name.startswith((".", "errors")) and path.name != ".lock"
    ]
