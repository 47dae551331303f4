"""Greedy completions by vLLM, in a process of its own: with its end, all memory of the GPU is free again.

The process (`vllm_worker`) reads a checkpoint's directory, so that the weights it sees are what `spunge export` writes:
those of the variant, bit for bit. It needs nothing of Spunge, and may be of another environment: vLLM pins versions of
torch and transformers that Spunge's own are seldom among.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from spunge.asking.encoding import Ids
from spunge.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel

PYTHON = "SPUNGE_VLLM_PYTHON"
"""The environment variable that names the Python of an environment with vLLM; without it, Spunge's own is asked."""
_WORKER = Path(__file__).with_name("vllm_worker.py")


def installed() -> bool:
    """Says whether there is a vLLM to ask."""
    return PYTHON in os.environ or importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True)
class VllmEngine:
    """One checkpoint, ready to be asked by vLLM."""

    base: LanguageModel
    """Says in what to compute, and whether the model's own code may run."""
    directory: Path
    """The checkpoint."""
    folder: Path
    """Where the request, the answers and what vLLM prints are written."""
    max_new_tokens: int
    """Where a completion ends at the latest."""

    @cached_property
    def shell(self) -> PreTrainedModel:
        """The base model without weights, for what its configuration and its generation settings say."""
        from transformers import GenerationConfig

        model = self.base.outline()
        files = self.base.directory(weights=False)
        with suppress(OSError):  # many checkpoints have no settings of their own
            model.generation_config = GenerationConfig.from_pretrained(files, local_files_only=True)
        return model

    def complete(self, prompts: Sequence[Ids], stop: frozenset[int]) -> list[Ids]:
        """Returns the greedy completion of every prompt, as `completions.complete` does.

        Args:
            prompts: Token ids, at least one each.
            stop: A completion ends after the first of these tokens, which it keeps.

        Raises:
            ModelError: vLLM gave up; the message holds its last words.
        """
        base, checkpoint_dtype = self.base, str(self.shell.config.dtype or "float32").removeprefix("torch.")
        request = {
            "model": str(self.directory),
            # vLLM's own `auto` would compute a float32 checkpoint in float16.
            "dtype": base.dtype if base.dtype != "auto" else checkpoint_dtype,
            "trust_remote_code": base.trust_remote_code,
            # Room for the longest, not for the model's whole window, which may be more than the GPU holds.
            "max_model_len": max(map(len, prompts), default=1) + self.max_new_tokens,
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": sorted(stop),
            "prompts": [list(prompt) for prompt in prompts],
        }
        question, answers, log = (self.folder / name for name in ("request.json", "answers.json", "log"))
        question.write_text(json.dumps(request))
        if _run([os.environ.get(PYTHON, sys.executable), str(_WORKER), str(question), str(answers)], log):
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise ModelError(
                f"{base.id}: vLLM could not complete the prompts ({(lines or ['no word'])[-1][:300]}): set `engine: "
                "native`, or mend vLLM"
            )
        return [tuple(ids) for ids in json.loads(answers.read_text())]


def _run(command: Sequence[str], log: Path) -> int:
    """Runs a command to its end, with all that it prints in a file; it ends with this process."""
    with log.open("w") as output:
        try:
            # Through the pipe the process notices if this one is killed.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise ModelError(f"{command[0]}: cannot be started for vLLM: {error.strerror}") from error
        with process:
            try:
                return process.wait()
            except BaseException:
                process.kill()
                raise
