"""GGUF files, as people have models for llama.cpp: turned once into a directory that transformers and Spunge read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from spunge.errors import MissingExtra, ModelError, as_model_error
from spunge.files import new_directory, refuse_existing
from spunge.weights.language_model import no_bars

SUFFIX = ".gguf"
_NUMBERS = ("F32", "F16", "BF16")
"""Formats that hold numbers; all others hold blocks of small integers with their scales."""


@dataclass(frozen=True)
class GgufFile:
    """What the header of a GGUF file says."""

    path: Path
    architecture: str
    format: str
    """How most weights are stored, in llama.cpp's words: Q4_K_M, Q8_0, F16."""

    @property
    def dequantised(self) -> bool:
        """Whether reading it gives numbers that the model was not trained with."""
        return self.format not in _NUMBERS

    @property
    def directory(self) -> Path:
        """What a directory of it is called where nobody says: its name tells that it isn't the original."""
        return Path(self.path.stem + ("-dequantised" if self.dequantised else ""))


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file.

    Raises:
        MissingExtra: The packages that read GGUF are not installed.
        ModelError: There is no such file, or it is no GGUF file of a whole model.
    """
    if find_spec("gguf") is None:
        raise MissingExtra("reading GGUF needs gguf: pip install 'spunge[gguf]'")
    from gguf import LlamaFileType
    from transformers.integrations.gguf.reader import read_gguf_metadata

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    with as_model_error(f"{path}: cannot be read as GGUF"):
        try:
            metadata, _ = read_gguf_metadata(str(path))
        except (struct.error, LookupError) as error:  # what a header that was cut off comes to
            raise ModelError(f"{path}: cannot be read as GGUF: its header is damaged") from error
    if metadata.get("split.count", 1) > 1:
        raise ModelError(f"{path}: one of {metadata['split.count']} parts: join them with llama.cpp's gguf-split first")
    code = metadata.get("general.file_type")
    named = code in {kind.value for kind in LlamaFileType}
    kind = LlamaFileType(code).name.removeprefix("MOSTLY_").removeprefix("ALL_") if named else "unknown"
    return GgufFile(path, str(metadata["general.architecture"]), kind)


def convert(file: GgufFile, out: Path, *, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> Path:
    """Writes the model of a GGUF file as a directory with its tokenizer; in float32 nothing is rounded once more.

    What the weights were is written into the configuration, which every export of the model takes along, and the card.

    Args:
        file: The file.
        out: The new directory.
        dtype: What to store the numbers as.

    Raises:
        ModelError: transformers cannot read this architecture from GGUF, or not all of its weights.
        ArtifactError: `out` exists or cannot be written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    refuse_existing(out)
    no_bars()
    # transformers looks at a file's neighbours too, and may take another model's settings for those of this one.
    with tempfile.TemporaryDirectory() as alone, new_directory(out) as building, _silence():
        (Path(alone) / file.path.name).symlink_to(file.path.resolve())
        with as_model_error(f"{file.path}: {file.architecture} cannot be had from GGUF"):
            try:
                tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.path.name)
                auto: Any = AutoModelForCausalLM
                model, loading = auto.from_pretrained(
                    alone, gguf_file=file.path.name, dtype=getattr(torch, dtype), output_loading_info=True
                )
            except (TypeError, AttributeError, IndexError) as error:  # of keys that a header lacks
                raise ModelError(f"{file.path}: its header lacks what transformers needs: {error}") from error
        # transformers would fill in what is missing with random numbers, and only warn.
        if missing := sorted(loading["missing_keys"]):
            raise ModelError(f"{file.path}: has no {missing[0]} ({len(missing)} such): not a whole language model")
        source = _source(file)
        _unquantize(model)
        model.config.converted_from = source
        model.save_pretrained(str(building))
        tokenizer.save_pretrained(str(building))
        (building / "README.md").write_text(_card(file, source), encoding="utf-8")
    return out


def _unquantize(model: Any) -> None:
    """Lets go of the quantiser that transformers leaves on a model from GGUF: it refuses to be saved with that."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _source(file: GgufFile) -> dict[str, Any]:
    with file.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": file.path.name, "sha256": digest, "format": file.format, "dequantised": file.dequantised}


def _card(file: GgufFile, source: dict[str, Any]) -> str:
    limits = (
        f"The weights were stored as {file.format} and are dequantised here: they are near those that the model was "
        "trained with, and are not those. What is measured on this model is of this model.\n"
        if file.dequantised
        else f"The weights are those of the file, {file.format}.\n"
    )
    return (
        f"---\nlibrary_name: transformers\n---\n\n# {file.directory.name}\n\n"
        f"Converted by Spunge from `{source['file']}` (sha256 {source['sha256']}). {limits}"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps from the terminal what transformers draws and says here, of packed weights that these are not."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.set_verbosity(before)
