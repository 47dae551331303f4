"""The process that vLLM runs in: completes the prompts of a request. It imports nothing of Spunge (see `by_vllm`)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread


def main(question: Path, answers: Path) -> None:
    """Reads a request, and writes the completion of every prompt, as token ids."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    request = json.loads(question.read_text())
    llm = LLM(
        model=request["model"],
        dtype=request["dtype"],
        trust_remote_code=request["trust_remote_code"],
        max_model_len=request["max_model_len"],
        seed=0,
    )
    greedy = SamplingParams(
        temperature=0.0,
        max_tokens=request["max_tokens"],
        stop_token_ids=request["stop_token_ids"],
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    outputs = llm.generate(prompts, greedy, use_tqdm=False)
    answers.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


def _follow_parent() -> None:
    """Ends this process when the one that asked is gone."""
    os.read(0, 1)  # not sys.stdin, whose lock would be held at the end
    os._exit(1)


if __name__ == "__main__":
    del sys.path[0]  # this file's directory, whose modules are not for vLLM to find
    Thread(target=_follow_parent, daemon=True).start()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
