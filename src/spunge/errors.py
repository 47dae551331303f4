"""The errors Spunge raises for mistakes of the user's or the world's.

SpungeError
├── RecipeError (ValueError)                a recipe, an override or an option is wrong
├── DataError (ValueError)                  a forget, retain or evaluation set cannot be used as asked
├── ModelError (ValueError)                 a model is missing, unreadable or of the wrong shape
├── IncompatibleTaskVectors (ValueError)    task vectors that cannot be merged with each other or the base
├── ArtifactError (OSError)                 a file or directory is missing, damaged or cannot be written
├── PredictsNothing (ArithmeticError)       a model gives NaN where it should write
├── TrainingDiverged (ArithmeticError)      a loss became NaN or infinite
├── WorkerDied (RuntimeError)               a process that a task ran in was killed
└── MissingExtra (ImportError)              an optional dependency is not installed

Each message names the thing and the fix in its first line. The command line prints it and exits with code 2;
any other exception is a bug in Spunge.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^\s/@\"']+(?=@)")
_LONGEST = 1500
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$")


def redacted(text: str) -> str:
    """Returns a text without access tokens: the hub's, those in URLs, and the values of such environment variables."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "…")
    return _TOKEN.sub("…", text)


def first_line(error: BaseException, limit: int = 300) -> str:
    """Returns the first line of what an error of some library says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def shortened(message: str) -> str:
    """Returns a message with its middle left out where it quotes more than anybody reads; its end says what to do."""
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 4 :]}"


class SpungeError(Exception):
    """Anything that the user, or the world around them, can mend."""


class RecipeError(SpungeError, ValueError):
    """A recipe, an override or an option is wrong."""


class DataError(SpungeError, ValueError):
    """A data set cannot be used as asked."""


class ModelError(SpungeError, ValueError):
    """A model is missing, unreadable, or not of the shape that was asked for."""


class PredictsNothing(SpungeError, ArithmeticError):
    """A model gives NaN where it should write the next word: such a model is broken."""


class IncompatibleTaskVectors(SpungeError, ValueError):
    """Task vectors do not belong to one base model, or do not fit it."""


class ArtifactError(SpungeError, OSError):
    """A file or directory is missing, damaged or cannot be written."""


class InUse(ArtifactError):
    """Another process holds a directory."""


class TrainingDiverged(SpungeError, ArithmeticError):
    """A loss became NaN or infinite."""


class WorkerDied(SpungeError, RuntimeError):
    """A process that a task ran in was killed."""


class MissingExtra(SpungeError, ImportError):
    """An optional dependency is not installed."""


def hub_refusal(error: BaseException, page: str) -> str:
    """Returns why the hub does not hand something out, and what to do about it; never more than that of the request.

    Args:
        error: What the hub client raised; it raises many kinds.
        page: The path of the repository's page.
    """
    kind, reason = type(error).__name__, first_line(error, 200)
    if "gated" in f"{kind} {error}".lower():
        return f"it is gated: accept its terms at https://huggingface.co/{page}, then log in with `hf auth login`"
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        reason = "the hub cannot be reached (or HF_HUB_OFFLINE is set), and no copy is in its cache"
    return f"{reason}; give a local path, or check the name and the network"


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Turns whatever transformers raises inside into one line of a ModelError: `what`, a colon, and its first line.

    Transformers says with any kind that files are not what it hoped for: a KeyError for an unknown architecture, a
    RuntimeError for a wrong shape, an OSError for a file that is not there, a ValueError for code it may not run, a
    TypeError for a number that is a text; safetensors and tokenizers have errors of their own, and panics.
    """
    try:
        yield
    except SpungeError:  # said already
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {first_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's own end of a program, which Exception does not hold
            raise
        raise ModelError(f"{what}: {first_line(error)}") from error
