"""The Hugging Face hub and its libraries: data sets from there, and one line of ours for the many kinds they raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spunge.errors import DataError, ModelError, SpungeError, first_line

if TYPE_CHECKING:
    import polars as pl


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> pl.DataFrame:
    """Reads a split of a data set on the hub.

    Raises:
        DataError: The hub does not have it, does not hand it out, or cannot be reached.
    """
    import datasets  # four seconds to import: only for the hub
    import polars as pl

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # the hub client raises many kinds, none of which a user can tell apart
        reason = hub_refusal(error, f"datasets/{path}")
        raise DataError(f"{path}: neither a local file nor to be had from the hub: {reason}") from error
    return pl.from_arrow(loaded.data.table)  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


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
