"""The menu of a search's end on a real terminal, and what the command ends with."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from spunge.auto import session as sessions
from spunge.cli import auto as command

SESSION = """
import sys
from pathlib import Path
from types import SimpleNamespace
from spunge.cli import menu
from spunge.errors import RecipeError

def point(result, number=None):
    if number == 99:
        raise RecipeError("99: the front has the points 1 to 6")
    return {"number": number}, None

def export(result, number, out):
    if out.name == "taken":
        raise PermissionError(13, "Permission denied", str(out))
    out.mkdir()
    return out

def chat(result, number, device):
    return SimpleNamespace(answers=lambda text: (f"{device} says {text}", f"point {number} says nothing"))

session = SimpleNamespace(
    out=Path(sys.argv[1]), point=point, export=export, chat=chat, recipe=lambda chosen: f"name: {chosen}\\n",
    asking=SimpleNamespace(kind="texts"), attacked=lambda result, number, name: (0.5, 0.125),
)
menu.offer(session, {}, "meta")
print("the end")
"""


class Terminal:
    """A process on a terminal of its own, typed to as somebody would who reads what it asks."""

    def __init__(self, *words: str) -> None:
        self._own, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
        self._process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own, so that Ctrl-C reaches it
        )  # fmt: skip
        os.close(theirs)
        self._shown = ""

    def reads(self, wanted: str, seconds: float = 120.0) -> str:
        """Returns what was shown until something wanted was, lines joined; what follows it is read next."""
        until = time.monotonic() + seconds
        while wanted not in self._shown:
            assert time.monotonic() < until, f"no {wanted!r} in {self._shown!r}"
            if select.select([self._own], [], [], 0.2)[0]:
                try:
                    read = os.read(self._own, 65536)
                except OSError:  # the other end is closed
                    read = b""
                assert read, f"it ended without {wanted!r}: {self._shown!r}"
                self._shown += read.decode()
        before, _, self._shown = self._shown.partition(wanted)
        return " ".join((before + wanted).split())

    def types(self, text: str, end: str = "\n") -> None:
        """Types a line."""
        os.write(self._own, (text + end).encode())

    def ends(self) -> int:
        """Returns the exit code."""
        code = self._process.wait(60)
        os.close(self._own)
        return code


def test_each_entry_of_the_menu_on_a_terminal(tmp_path: Path):
    terminal = Terminal(sys.executable, "-c", SESSION, str(tmp_path))
    asks = "what now?"
    assert "the choice:" in terminal.reads(asks)
    for typed, then in (("p", "which row"), ("99", "the front has the points 1 to 6")):
        terminal.types(typed)
        terminal.reads(then)
    terminal.reads(asks)
    terminal.types("p")
    terminal.reads("which row")
    terminal.types("two")
    terminal.reads("which row")  # no number: it asks again
    terminal.types("2")
    assert "point 2 of the front:" in terminal.reads(asks)
    terminal.types("e")
    terminal.reads("where to")
    terminal.types(str(tmp_path / "taken"))
    assert "Permission denied" in terminal.reads(asks)  # the menu goes on
    terminal.types("e")
    terminal.reads("where to")
    terminal.types("")
    assert "a checkpoint that AutoModelForCausalLM loads" in terminal.reads(asks)
    assert (tmp_path / "model").is_dir()
    terminal.types("c")
    terminal.reads("you")
    terminal.types("hello")
    said = terminal.reads("point 2 says nothing")
    assert "meta says hello" in said
    terminal.reads("you")
    terminal.types("")
    terminal.reads(asks)
    terminal.types("c")
    terminal.reads("you")
    terminal.types("\x03", end="")  # Ctrl-C ends the talk, not the menu
    terminal.reads(asks)
    terminal.types("a")
    terminal.reads("which attack")
    terminal.types("")
    assert "forgotten before 0.500, after 0.125 nats per token" in terminal.reads(asks)
    terminal.types("r")
    terminal.reads("where to")
    terminal.types("")
    terminal.reads(asks)
    assert (tmp_path / "recipe.yaml").read_text() == "name: {'number': 2}\n"
    terminal.types("x")
    assert "one of the letters" in terminal.reads(asks)
    terminal.types("q")
    terminal.reads("the end")
    assert terminal.ends() == 0


def test_ctrl_d_leaves_the_menu(tmp_path: Path):
    terminal = Terminal(sys.executable, "-c", SESSION, str(tmp_path))
    terminal.reads("what now?")
    terminal.types("\x04", end="")
    terminal.reads("the end")
    assert terminal.ends() == 0


@pytest.mark.parametrize("quiet", [False, True])
def test_where_nothing_worked_it_is_said_and_the_exit_code_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
):
    rungs: list[dict[str, Any]] = [
        {"failed": 4, "trials": 4, "rows": 48, "seconds": 9.0, "saved": 0.0, "cut": 0.0, "rung": 0}
    ]
    result = {
        "worked": False, "choice": None, "arms": {}, "comparison": None, "front": {"joint": [], "merged": []},
        "time": {"rungs": rungs, "seconds": 9.0, "cut_share": 0.0},
    }  # fmt: skip
    wish = SimpleNamespace(damage=0.03)
    session = SimpleNamespace(
        lines=[], run=lambda listener: result, asking=SimpleNamespace(kind="texts"), wish=wish, out=tmp_path
    )
    monkeypatch.setattr(sessions, "begin", lambda *words, **options: session)
    (tmp_path / "f.jsonl").write_text('{"text": "a"}\n')
    file = str(tmp_path / "f.jsonl")
    with pytest.raises(typer.Exit) as left:
        command.auto("model", [file], [file], yes=True, quiet=quiet, out=tmp_path)
    assert left.value.exit_code == command.NOTHING_WORKED == 1
    said = capsys.readouterr()
    assert "Nothing worked: none of the trials came to a model" in (said.err if quiet else said.out)
