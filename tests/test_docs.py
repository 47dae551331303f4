"""What the documents show can be typed, and what they name is there: no model is read."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import spunge
from spunge.cli.commands import app
from spunge.recipe import schema

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


def shown(page: Path) -> list[str]:
    """Every command in a fenced block, continued lines joined, without prompt, comment and environment."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    blocks = [block for language, block in fenced if language in ("", "console", "bash", "sh")]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    plain = [re.sub(r"^(?:[A-Z_]+=\S+ +)*", "", line) for line in lines]
    return [line for line in plain if line.startswith("spunge ")]


def mentioned(page: Path) -> list[str]:
    """Every command between backticks in running text, which may leave out what it takes."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(words.split()) for words in re.findall(r"`(spunge [a-z][^`]*)`", text)]


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words after its name; None if there is no such command."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, words = command.commands.get(words[0]), words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    for line in shown(page):
        command, words = leaf(shlex.split(line, comments=True)[1:])
        assert command is not None, line
        if "…" in line:
            check_options(command, words, line)
        else:
            try:
                command.make_context("spunge", words)
            except Exception as error:
                pytest.fail(f"{line}: {error}")
    for line in mentioned(page):
        command, words = leaf(line.split()[1:])
        assert command is not None, line
        check_options(command, words, line)


def check_options(command: Any, words: list[str], line: str) -> None:
    known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    assert {option[0] for word in words if (option := re.match(r"--[a-z-]+", word))} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_that_is_named_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    named = re.findall(r"`((?:docs|src|tests|benchmarks)/[\w/.-]+\.(?:md|py|sh|toml))", text)
    assert not missing + [name for name in named if not (ROOT / name).exists()]


def test_no_page_has_the_marks_of_a_conflict() -> None:
    pages = [*PAGES, *(ROOT / name for name in ("mkdocs.yml", "pyproject.toml", "constraints.txt"))]
    assert [page.name for page in pages if re.search(r"^(<{7}|>{7}) ", page.read_text(encoding="utf-8"), re.M)] == []


def test_every_environment_variable_that_is_read_is_documented() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get|\.setdefault)?[\[(]\"([A-Z_]+)\"", code))
    read |= set(re.findall(r"^PYTHON = \"([A-Z_]+)\"", code, re.M))
    assert {"WORLD_SIZE", "SPUNGE_VLLM_PYTHON", "CUDA_VISIBLE_DEVICES"} <= read
    documented = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    assert [name for name in sorted(read) if f"`{name}`" not in documented] == []


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not kept: they would not be those of this version"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["left"] < 0.8 < names["known"]
    assert list(tmp_path.iterdir()) == []


def test_the_reference_has_every_command_method_and_name() -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs`")
    page = runpy.run_path(str(ROOT / "docs" / "reference_page.py"))["reference"]()
    assert {f"### `spunge.{name}`" for name in spunge.__all__} <= set(page.splitlines())
    for words in ("spunge run", "spunge store gc", "spunge init"):
        assert f"### `{words}`" in page
    for kinds in schema.methods().values():
        assert all(f"### `{name}`" in page for name in kinds)


@pytest.mark.long
def test_the_notebook_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    spunge.run("lab-knowledge")
    names: dict[str, Any] = {}
    exec(compile(block, "tutorial.md", "exec"), names)
    assert names["run"].verdict.sentences[0].startswith("SPUNGE forgot")
    assert names["merged"].norm > 0
