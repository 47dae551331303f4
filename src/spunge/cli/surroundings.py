"""What a command needs of its surroundings before it begins: a working directory, letters to write with, memory."""

from __future__ import annotations

import codecs
import logging
import os
import resource
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from spunge import memory
from spunge.errors import SpungeError
from spunge.files import format_bytes

_ADDRESSES = 3 * 2**30
"""Bytes of addresses that a process with torch takes, 2.0 of 10⁹ for a plan, and somewhat more to compute in. With
fewer, torch does not always say so: it is loaded in part, ends the process, or waits for a thread that never came."""
_RESIDENT = 400 * 2**20
"""Bytes that the same process holds, 404 MiB at least of those measured; with fewer the kernel kills it."""
_LIGHT = {
    "init", "recipes", "methods", "schema", "report", "compare", "tables", "figures", "store", "--help", "-h",
    "--version", "--install-completion", "--show-completion",
}  # fmt: skip
"""The commands that do without torch."""
_SPELT = {
    "λ": "lambda", "α": "alpha", "β": "beta", "γ": "gamma", "τ": "tau", "±": "+-", "×": "x", "·": "*", "−": "-",
    "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "“": '"', "”": '"',
    "‘": "'", "’": "'", "•": "*", "✓": "+", "✗": "x", "─": "-", "━": "-", "│": "|", "┃": "|", "═": "=",
}  # fmt: skip


def prepare(words: Sequence[str]) -> None:
    """Sees to it that a command can begin.

    Args:
        words: The command and its options.

    Raises:
        SpungeError: The working directory is gone, or there is too little memory to load what the command needs.
    """
    for stream in (sys.stdout, sys.stderr):
        _write_what_can_be_written(stream)
    # The one keeps its cache elsewhere without a home, the other does without a faster kernel on a CPU: both tell.
    for library in ("matplotlib", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError as error:
        raise SpungeError("the working directory is gone: change to one that exists") from error
    if not words or words[0] in _LIGHT:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESSES:
        raise SpungeError(
            f"{words[0]}: this process may take {limit / 1e9:.1f} GB of addresses (ulimit -v), and torch with its "
            f"libraries alone takes 2 GB of them: allow {_ADDRESSES / 1e9:.1f} GB or more"
        )
    if (held := memory.limit()) is not None and held < _RESIDENT:
        raise SpungeError(
            f"{words[0]}: this process may hold {format_bytes(held)} of memory (its container's limit, a cgroup), and "
            f"torch with its libraries alone holds {format_bytes(_RESIDENT)}: allow 1 GiB or more"
        )


def _write_what_can_be_written(stream: Any) -> None:
    """Lets a stream that has not all letters spell the others: half a table is no use to anybody."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    if not encoding.lower().replace("-", "").startswith("utf") and hasattr(stream, "reconfigure"):
        codecs.register_error("spunge", _spell)
        stream.reconfigure(errors="spunge")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(spell, error.object[error.start : error.end])), error.end


def spell(letter: str) -> str:
    """Returns a letter in ASCII: its name in formulas, without its accents, a box's corner as a plus; else `?`."""
    if letter in _SPELT:
        return _SPELT[letter]
    if unicodedata.name(letter, "").startswith("BOX DRAWINGS"):
        return "+"
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"
