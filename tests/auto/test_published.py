"""The tables of docs/auto.md are what the notes of the searches say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_published_tables_are_what_the_notes_say():
    spec = importlib.util.spec_from_file_location("benchmark_of_auto", ROOT / "benchmarks" / "auto.py")
    assert spec is not None
    assert spec.loader is not None
    auto = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(auto)
    page = auto.PAGE.read_text(encoding="utf-8")
    assert page == auto.written(page), "python benchmarks/auto.py tables"
    assert "| joint |" in page
