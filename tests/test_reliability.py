"""docs/reliability.md names a test for each promise: every one of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_test_that_a_promise_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, test in dict.fromkeys(named):
        path = TESTS / file
        assert path.is_file(), file
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file}::{test}"


def test_every_promise_names_a_test() -> None:
    promised = PAGE.read_text(encoding="utf-8").partition("## What is not promised")[0]
    for promise in re.split(r"^- ", promised, flags=re.MULTILINE)[1:]:
        assert re.search(r"`[\w/]+\.py::\w+`", promise), promise
