"""What the documents show can be typed, and what they name is there: no model is read."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import LANGUAGES, PAGES, ROOT, blocks, commands, first_recipe, mentioned, prose, quoted
from ruamel.yaml import YAML

import spunge
from spunge.cli.commands import app
from spunge.recipe import reading, schema, shipped


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words after its name; None if there is no such command."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, words = command.commands.get(words[0]), words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert [block.line for block in blocks(page) if block.language not in LANGUAGES] == []
    assert [block.line for block in blocks(page, "text") if re.search(r"^(\$ )?spunge [a-z]", block.text, re.M)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    for one in commands(*blocks(page, "sh")):
        command, words = leaf(list(one.words))
        assert command is not None, one.shown
        try:
            context = command.make_context("spunge", words)
        except Exception as error:
            pytest.fail(f"{one.shown}: {error}")
        if command.name in ("run", "plan"):
            read_recipe(context.params["recipe"], context.params["words"] or ())
    for line in mentioned(page):
        command, words = leaf(shlex.split(line)[1:])
        assert command is not None, line
        check_options(command, words, line)
        if command.name in ("run", "plan") and words and words[0] in shipped.recipes():
            read_recipe(words[0], [word for word in words[1:] if "=" in word and not word.startswith("-")])


def read_recipe(recipe: str, words: Sequence[str]) -> None:
    """Reads what a command would: a recipe that ships, or for any other the README's."""
    if recipe in shipped.recipes():
        reading.read(recipe, words)
    else:
        reading.parse(first_recipe(), overrides=words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_that_is_shown_can_be_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        shown = YAML(typ="safe").load(block.text)
        if isinstance(shown, list):
            shown = {"evaluate": shown}
        if page.name in ("adding_a_method.md", "tuning_rmu.md"):  # what they name is made by tests of their own
            assert set(shown) <= set(schema.Experiment.model_fields)
        else:
            rest = YAML(typ="safe").load(first_recipe())
            reading.parse(json.dumps({**rest, **shown}))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_other_program_that_is_started_is_there_and_has_the_options(page: Path) -> None:
    lines = [line for block in blocks(page, "sh") for line in block.text.replace("\\\n", " ").splitlines()]
    lines += [" ".join(words.split()) for words in re.findall(r"`((?:python|make) [^`]*)`", prose(page))]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in lines:
        if started := re.search(r"python3? ((?:benchmarks|studies|tests)/[\w/.-]+)(.*)", line.partition("#")[0]):
            program = (ROOT / started[1]).read_text(encoding="utf-8")
            assert [option for option in re.findall(r"--[a-z-]+", started[2]) if f'"{option}"' not in program] == [], (
                line
            )
        if started := re.search(r"^\s*make ([a-z-]+)", line):
            assert started[1] in targets, line


@pytest.mark.parametrize("name", ["tutorial", "gallery", "reading_a_report"])
def test_what_a_page_quotes_of_a_command_is_what_it_printed(name: str) -> None:
    page = ROOT / "docs" / f"{name}.md"
    files = sorted((ROOT / "studies" / "printed").glob("*.txt"))
    printed = " ".join(" ".join(file.read_text(encoding="utf-8") for file in files).split())
    assert [piece for piece in quoted(page) if piece not in printed] == [], "python studies/printed.py"
    told = re.sub(r"`[^`]*`|^>.*$|Python ≥ \S+", "", prose(page), flags=re.M)
    figures = set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])|\d+(?= %| points|,? \d+ %| to \d+ %)", told))
    assert [figure for figure in sorted(figures) if not re.search(rf"(?<![\d.]){figure}(?![\d.])", printed)] == []


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
    page = runpy.run_path(str(ROOT / "docs" / "reference_page.py"))["reference"]()
    lines = set(page.splitlines())
    assert {f"### `spunge.{name}`" for name in spunge.__all__} <= lines
    assert {"#### `TaskVector.cosine`", "#### `TaskVector.__add__`", "#### `OpenedRun.scores`"} <= lines
    assert "The cosine of the angle between two task vectors" in page
    assert not any(line.startswith("#### `") and "model_" in line for line in lines)
    for words in ("spunge run", "spunge store gc", "spunge init"):
        assert f"### `{words}`" in page
    for kinds in schema.methods().values():
        assert all(f"### `{name}`" in page for name in kinds)
