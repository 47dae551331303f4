"""The pages of the documentation, the blocks that they show, and a directory that has what the blocks name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from conftest import write_jsonl

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
WORLD = Path(str(files("spunge.lab"))) / "world"

ELSEWHERE = {
    "--executor ray": "a cluster",
    "--device cuda": "a GPU",
    "quantize=nf4": "the extra `quant`",
    "torchrun": "several processes",
    ".gguf": "files by llama.cpp",
    "served-base": "files by llama.cpp",
}
"""Parts of commands that no test can run, and what they want; such a command is parsed all the same."""

LANGUAGES = {"sh", "yaml", "python", "json", "text"}
"""What a block may be: commands, a recipe or a part of one, a program, data, and what something says or looks like."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the language, the text, and the line at which it begins."""

    page: Path
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A `spunge` command as a page shows it, and its words after that name, also where another program starts it."""

    shown: str
    words: tuple[str, ...]

    @property
    def elsewhere(self) -> bool:
        """Whether it wants what no test has."""
        return any(mark in self.shown for mark in ELSEWHERE)


def blocks(page: Path, *languages: str) -> list[Block]:
    """Returns the fenced blocks of a page, of some languages or all."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
        if not languages or found[1] in languages
    ]


def commands(*shown: Block) -> list[Command]:
    """Returns the `spunge` commands in some blocks, continued lines joined, without prompt and environment."""
    lines = [line for block in shown for line in block.text.replace("\\\n", " ").splitlines()]
    found = [
        (line, re.match(r"(?:\$ |[A-Z_]+=\S+ |.* -- +|torchrun .* -m )*spunge (.*)", line.strip())) for line in lines
    ]
    return [Command(line, tuple(shlex.split(match[1], comments=True))) for line, match in found if match]


def prose(page: Path) -> str:
    """Returns the text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def mentioned(page: Path) -> list[str]:
    """Returns every command between backticks in running text, which may leave out what it takes."""
    return [" ".join(words.split()) for words in re.findall(r"`(spunge [a-z][^`]*)`", prose(page))]


def first_recipe() -> str:
    """Returns the recipe of the README."""
    (recipe,) = blocks(ROOT / "README.md", "yaml")
    return recipe.text


def suite() -> str:
    """Returns the suite that an audit is shown with."""
    return blocks(ROOT / "docs" / "robustness.md", "yaml")[0].text


def furnish(directory: Path, *, layers: int | None = None) -> None:
    """Writes what the pages name: a model that knows something, its questions and texts, recipes and suites.

    Args:
        directory: Where to.
        layers: How many the models have; an untrained model then, else the embedded one.
    """
    for model in ("M", "MODEL", "BASE", "SmolLM2-135M-Instruct", "path/to/model"):
        shutil.copytree(WORLD / "model", directory / model)
        if layers:
            _deepen(directory / model, layers)
    facts = _rows("knowledge/forget.jsonl")[::3]
    forget = [
        {**row, "domain": ("bio", "cyber")[row["domain"] == "venom_brewing"], "level": 3 + number % 2}
        for number, row in enumerate(facts)
    ]
    rest = _rows("knowledge/retain.jsonl")[:80]
    questions = [
        {**row, "domain": ("bio", "cyber")[row["domain"] == "venom_brewing"]}
        for row in _rows("knowledge/hazards.jsonl")[::8]
    ]
    for name, rows in {
        "forget": forget, "f": forget, "posts": forget, "retain": rest, "benign": rest, "questions": questions,
        "hazards": questions, "rest": _rows("knowledge/retained.jsonl")[::8],
        **{name: [{"text": row["text"]} for row in forget if row["domain"] == name] for name in ("bio", "cyber")},
        "chem": [{"text": row["text"]} for row in forget[:12]],
    }.items():  # fmt: skip
        write_jsonl(directory / f"{name}.jsonl", rows)
    for name in ("retain", "benign"):
        (directory / f"{name}.txt").write_text("\n\n".join(row["text"] for row in rest), encoding="utf-8")
    csv = "\n".join(f'"{row["text"]}",{row["domain"]}' for row in forget)
    (directory / "posts.csv").write_text(f"text,domain\n{csv}\n", encoding="utf-8")
    for name in ("my-first", "my", "recipe"):
        recipe = first_recipe().replace("name: my-first", f"name: {name}")
        (directory / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    (directory / "suite.yaml").write_text(suite(), encoding="utf-8")


def _deepen(model: Path, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(model)
    config.num_hidden_layers = layers
    LlamaForCausalLM(config).save_pretrained(model)


def _rows(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (WORLD / file).read_text(encoding="utf-8").splitlines()]


def quoted(page: Path) -> list[str]:
    """Returns what a page quotes of a command, in pieces: of text blocks and block quotes, parted where `…` stands.

    Spaces are one each, since pages break lines where a terminal does not.
    """
    shown = [block.text for block in blocks(page, "text")]
    shown += [re.sub(r"^> ?", "", quote, flags=re.M) for quote in re.findall(r"(?:^> .*\n)+", prose(page), re.M)]
    pieces = [piece for text in shown for piece in re.split(r"…|\n(?=  \S|report:)", text)]
    return [" ".join(piece.split()).rstrip(";").strip() for piece in pieces if piece.strip(" .;\n")]
