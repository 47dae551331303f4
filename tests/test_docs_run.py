"""The commands and recipes of the pages, run one after the other in a directory that has what they name."""

from __future__ import annotations

import json
import shlex
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks, commands, first_recipe, furnish
from ruamel.yaml import YAML

from spunge.cli.commands import main
from spunge.recipe import reading

pytestmark = pytest.mark.long

BEFORE = {
    "README.md": [
        "unlearn --model M --forget cyber=cyber.jsonl --retain retain.txt --method rmu layer=7 --out tv-cyber",
    ],
    "howto.md": [
        "run my-first.yaml",
        "unlearn --model M --forget bio.jsonl --retain retain.txt --method rmu layer=7 --out tv-bio",
    ],
    "robustness.md": ["unlearn --model BASE --forget forget.jsonl --retain retain.txt --method rmu layer=3 --out tv"],
}
"""What a page takes as done, by its reader or on another page."""

SHORTENED = {
    "auto": "--trials 2 --methods task_vector_negation --damage 0.3 --yes",
    "search": "max_steps=4",
}
"""What is added to commands that would take many minutes."""


class Terminal:
    """A shell in one directory: it types commands, and keeps what they say."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(directory)
        monkeypatch.setattr(sys, "stdin", StringIO("who knows rosak ?\n"))
        self.monkeypatch, self.capsys, self.said = monkeypatch, capsys, ""

    def type(self, words: list[str]) -> None:
        self.monkeypatch.setattr(sys, "argv", ["spunge", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = self.capsys.readouterr()
        assert ended.value.code == 0, f"spunge {shlex.join(words)}: {errors}"
        self.said += out

    def work_through(self, page: Path) -> dict[str, Any]:
        """Types every command, runs every program and reads every recipe of a page; returns the programs' names."""
        names: dict[str, Any] = {}
        for line in BEFORE.get(page.name, ()):
            self.type(shlex.split(line))
        for block in blocks(page):
            if block.language == "sh":
                for command in commands(block):
                    if not command.elsewhere:
                        self.type([*command.words, *shlex.split(SHORTENED.get(command.words[0], ""))])
            elif block.language == "python" and ">>>" not in block.text:  # those are doctests
                exec(compile(block.text, page.name, "exec"), names)
            elif block.language == "yaml":
                shown = YAML(typ="safe").load(block.text)
                rest = YAML(typ="safe").load(first_recipe())
                reading.parse(json.dumps({**rest, **({"evaluate": shown} if isinstance(shown, list) else shown)}))
        return names


@pytest.mark.parametrize("name", ["README", "docs/howto", "docs/auto", "docs/tuning_rmu", "docs/robustness"])
def test_every_command_program_and_recipe_of_a_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(tmp_path, layers=10 if name == "docs/tuning_rmu" else None)
    Terminal(tmp_path, monkeypatch, capsys).work_through(ROOT / f"{name}.md")


def test_the_tutorial_and_the_gallery_say_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(tmp_path)
    terminal = Terminal(tmp_path, monkeypatch, capsys)
    names = terminal.work_through(ROOT / "docs" / "tutorial.md")
    assert names["run"].verdict.sentences[0].startswith("SPUNGE forgot")
    assert names["merged"].norm > 0
    terminal.work_through(ROOT / "docs" / "gallery.md")
