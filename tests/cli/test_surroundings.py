"""A directory that is gone, a terminal without letters, too little memory: one line each, or the text spelt out."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from spunge import memory
from spunge.cli import commands
from spunge.cli.surroundings import prepare, spell
from spunge.errors import SpungeError


def spunge(*words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "spunge", *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, **options)  # type: ignore[call-overload]


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)}
    ended = spunge("recipes", cwd=gone, env=environment, preexec_fn=gone.rmdir)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.decode().splitlines() == ["spunge: the working directory is gone: change to one that exists"]


def test_little_memory_is_one_line_with_what_is_needed() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000, resource.RLIM_INFINITY))

    ended = spunge("plan", "lab-knowledge", preexec_fn=limit)
    assert ended.returncode == 2
    [line] = ended.stderr.decode().splitlines()
    assert line.startswith("spunge: plan: this process may take 1.2 GB of addresses")
    assert "allow 3.2 GB" in line


def test_a_container_too_small_for_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limit", lambda: 300 * 2**20)
    with pytest.raises(SpungeError, match=r"^plan: this process may hold 300 MiB .* holds 400 MiB: allow 1 GiB"):
        prepare(["plan", "lab-knowledge"])
    prepare(["recipes"])


def test_a_home_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    homeless = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    program = (
        "import sys, spunge.cli.surroundings as s; s.prepare(['report']); "
        "import matplotlib.backends.backend_svg, transformers, huggingface_hub"
    )
    homeless |= {"HOME": os.devnull + "/home", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", program], env=homeless, capture_output=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_where_there_is_no_utf8_the_text_is_spelt_in_ascii() -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = spunge("recipes", env=plain)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"lab-knowledge" in ended.stdout
    assert ended.stdout.isascii()
    refused = spunge("plan", "λ-recipe", env=plain)
    assert refused.returncode == 2
    assert refused.stderr.isascii()


@pytest.mark.parametrize(("letter", "spelt"), [("λ", "lambda"), ("é", "e"), ("┏", "+"), ("─", "-"), ("漢", "?")])
def test_letters_are_spelt(letter: str, spelt: str) -> None:
    assert spell(letter) == spelt


def test_what_users_of_command_lines_expect() -> None:
    runner = CliRunner()
    version = runner.invoke(commands.app, ["--version"])
    assert version.exit_code == 0
    assert version.stdout.startswith(f"spunge {metadata.version('spunge')}\n")
    assert {line.split()[0] for line in version.stdout.splitlines()} >= {"python", "torch", "transformers", "peft"}
    for command in (["run"], ["plan"], ["merge"], ["store", "ls"], ["report"]):
        short, long = (runner.invoke(commands.app, [*command, help]) for help in ("-h", "--help"))
        assert (short.exit_code, short.stdout) == (0, long.stdout)
    read = runner.invoke(commands.app, ["plan", "lab-knowledge", "--set", "merge.density=7", "-o", "nowhere"])
    assert "merge.density" in str(read.exception)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_not_an_empty_one(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(commands.app, ["store", command, "-o", str(tmp_path / "wrong")])
    assert re.search("wrong: no store in it: --out names the runs root", str(done.exception))
    assert not list(tmp_path.iterdir())


def test_every_out_is_o_for_short() -> None:
    menu: Any = typer.main.get_command(commands.app)
    leaves = [leaf for one in menu.commands.values() for leaf in getattr(one, "commands", {"": one}).values()]
    spelt = [parameter.opts for leaf in leaves for parameter in leaf.params if "--out" in parameter.opts]
    assert len(spelt) > 15
    assert [opts for opts in spelt if "-o" not in opts] == []
