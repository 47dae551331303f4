"""Several hosts: a script that makes two of one machine, and breaks the second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt


def test_without_ray_or_a_cluster_there_is_one_clear_line(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    write_recipe({**world, "controls": []})
    ended = attempt(("run", "recipe.yaml", "--executor", "ray", "--address", "127.0.0.1:9"), tmp_path)
    assert ended.code == 2, ended.errors
    assert "pip install 'spunge[ray]'" in ended.errors or "no Ray cluster to be had there" in ended.errors
    assert "Traceback" not in ended.errors


@pytest.mark.long
def test_two_hosts_one_killed_then_cut_off() -> None:
    script = Path(__file__).with_name("two_hosts.sh")
    done = subprocess.run(
        [script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as it should be" in done.stdout
