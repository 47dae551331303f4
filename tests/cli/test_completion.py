"""What real shells complete: commands, options, the names of recipes and methods, and files where none of them fits."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a `spunge` on its path, as an installation has one, and a recipe of the user's."""
    program = tmp_path / "bin" / "spunge"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom spunge.cli.commands import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "mine.yaml").touch()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "ZDOTDIR": str(home), "PATH": path, "TERM": "dumb", "PS1": "$ "}


def script(home: Path, shell: str) -> str:
    """What `spunge` gives a shell to learn from."""
    asked = {**environment(home), "_SPUNGE_COMPLETE": f"source_{shell}"}
    return subprocess.run(["spunge"], env=asked, capture_output=True, text=True, check=True).stdout


def typed(home: Path, command: list[str], words: str, end: str) -> str:
    """What stands on a terminal some time after words were typed into a shell, without codes, until `end` is there."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(home)
        os.execvpe(command[0], command, environment(home))
    try:
        shown, begun, asked = "", time.monotonic(), False
        while time.monotonic() - begun < 20 and not re.search(end, shown):
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
                shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
            elif not asked and "$ " in shown:
                os.write(terminal, words.encode())
                asked = True
        return shown
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(process, 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("spunge metho\t", "spunge methods "),
        ("spunge store g\t", "spunge store gc "),
        ("spunge run --swe\t", "spunge run --sweep "),
        ("spunge run lab-k\t", "spunge run lab-knowledge "),
        ("spunge plan mi\t", "spunge plan mine.yaml "),
        ("spunge unlearn --method adaptive\t", "spunge unlearn --method adaptive_rmu "),
    ],
)
def test_bash_completes(home: Path, words: str, completed: str) -> None:
    (home / "rc").write_text(f"{script(home, 'bash')}\nPS1='$ '\nbind 'set enable-bracketed-paste off'\n")
    assert completed in typed(home, ["bash", "--rcfile", str(home / "rc"), "-i"], words, re.escape(completed))


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("spunge metho\t", "spunge methods "),
        ("spunge run lab-k\t", "spunge run lab-knowledge "),
        ("spunge plan mi\t", "spunge plan mine.yaml "),
    ],
)
def test_zsh_completes(home: Path, words: str, completed: str) -> None:
    (home / "completion").write_text(script(home, "zsh"))
    begun = "autoload -Uz compinit\ncompinit -u\nsource $ZDOTDIR/completion\nPS1='$ '\n"
    (home / ".zshrc").write_text(begun)
    assert completed in typed(home, ["zsh", "-i"], words, re.escape(completed))
