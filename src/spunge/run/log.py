"""A run's log, `log.txt` in its directory: what ran when, what was warned of, and how it ended."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from spunge.errors import redacted
from spunge.files import writing

LOG = "log.txt"


class Log:
    """Appends a line an event; a run that is continued goes on in the same file."""

    def __init__(self, directory: Path, heading: str) -> None:
        self._file = directory / LOG
        self.write(heading)

    def event(self, kind: str, content: Mapping[str, Any], /) -> None:
        """Writes down an event of a run (see `pipeline.run`)."""
        if kind == "warned":
            for warning in content["warnings"]:
                self.write(f"warning: {warning}")
        elif kind == "planned":
            steps = content["steps"]
            reused = sum(step["status"] == "reused" for step in steps)
            self.write(f"{len(steps)} stages, {reused} of them in the store already")
        elif kind == "finished":
            where = f" on {content['suite']}" if content.get("suite") else ""
            seconds = "" if content.get("seconds") is None else f", {content['seconds']:.1f} s"
            figures = "".join(f", {name} {value:.4g}" for name, value in (content.get("figures") or {}).items())
            self.write(
                f"{content['status']} {content['stage']} {content['name']}{where}, seed {content['seed']}{seconds}"
                f"{figures} ({content['key'][:12]})"
            )

    def failed(self, error: BaseException) -> None:
        """Writes down what ended the run."""
        self.write("".join(traceback.format_exception(error)).rstrip())

    def write(self, text: str) -> None:
        """Appends a text with the time."""
        with writing(self._file), self._file.open("a", encoding="utf-8") as log:
            log.write(redacted(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}\n"))
