"""What a command imports before it can answer: what it does without stays out."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH = {"torch", "transformers", "peft"}
LIBRARIES = TORCH | {"pydantic", "polars", "numpy"}


@pytest.mark.parametrize(
    ("words", "unneeded"), [(["--help"], LIBRARIES), (["--version"], LIBRARIES), (["methods"], TORCH)]
)
def test_libraries_that_a_command_does_without_are_not_imported(words: list[str], unneeded: set[str]) -> None:
    code = f"""
import sys
from spunge.cli.commands import main
sys.argv[1:] = {words}
try:
    main()
finally:
    print("imported:", *sorted({unneeded} & {{*sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
