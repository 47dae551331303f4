"""How much faster Spunge writes greedy completions than transformers' `generate` at its best batch size, by turns.

    python benchmarks/completions.py MODEL ROWS [--where "label = 'hate'"] [--column text] [--prompts 96] [--new 32]

MODEL is a directory or hub id; ROWS a file of prompts in any form that a recipe reads, say ToxiGen's. Of both it counts
CPU seconds, and with `--check N` it decodes N prompts one by one, the whole text read again for every token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from spunge.asking.batching import Batching
from spunge.asking.completions import complete
from spunge.asking.encoding import Ids, encode, end_tokens
from spunge.rows.items import load_items
from spunge.rows.sources import Source
from spunge.weights.language_model import LanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--where")
    parser.add_argument("--column", default="text")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128], help="the best is the rival")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--check", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    handle = LanguageModel(id=options.model, dtype=options.dtype)
    model: Any = handle.load()
    plain: Any = AutoModelForCausalLM.from_pretrained(handle.directory(), dtype=model.dtype).eval()
    tokenizer = handle.load_tokenizer()
    items = load_items([Source(path=options.rows)], needs=[options.column], where=options.where, limit=options.prompts)
    prompts = encode(tokenizer, [str(item.row[options.column]) for item in items])
    stop = end_tokens(model, tokenizer)

    def ours() -> list[Ids]:
        return complete(model, prompts, Batching(None), max_new_tokens=options.new, stop=stop)

    def generated(size: int, order: Sequence[int]) -> list[Ids]:
        return _generated(plain, prompts, order, size, options.new, stop)

    as_they_come = range(len(prompts))
    by_length = sorted(as_they_come, key=lambda index: -len(prompts[index]))
    tried = {
        size: _seconds(lambda size=size: generated(size, by_length))[0]
        for size in options.batches
        if size < 2 * len(prompts)
    }
    best = min(tried, key=lambda size: tried[size])
    print(f"{len(prompts)} prompts of {sum(map(len, prompts)) / len(prompts):.1f} tokens, generate: " + ", ".join(
        f"{size}: {seconds:.1f} s" for size, seconds in tried.items()
    ))  # fmt: skip
    arms: dict[str, Callable[[], list[Ids]]] = {
        "spunge": ours,
        f"generate, batch {best}, prompts by length": lambda: generated(best, by_length),
        f"generate, batch {best}, prompts as they come": lambda: generated(best, as_they_come),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    answers: dict[str, list[Ids]] = {}
    for _ in range(options.turns):
        for name, ask in arms.items():
            seconds, answers[name] = _seconds(ask)
            taken[name].append(seconds)
    ours_taken = taken["spunge"]
    for name, seconds in taken.items():
        ratios = sorted(one / mine for one, mine in zip(seconds, ours_taken, strict=True))
        equal = sum(a == b for a, b in zip(answers[name], answers["spunge"], strict=True))
        print(
            f"{name}: {statistics.median(seconds):.2f} CPU s ({', '.join(f'{one:.2f}' for one in seconds)}); "
            f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f}-{ratios[-1]:.2f}); equal completions {equal}"
        )
    written = sum(map(len, answers["spunge"]))
    print(f"{written} tokens written; {sum(len(ids) < options.new for ids in answers['spunge'])} ended before the last")
    alone = [_alone(plain, prompts[index], options.new, stop) for index in range(options.check)]
    tokens, equal = 0, 0
    for one, other in zip(alone, answers["spunge"], strict=False):
        tokens += len(one)
        equal += next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if alone:
        print(f"one by one: {equal} of {tokens} tokens before a first difference")


def _seconds(ask: Callable[[], list[Ids]]) -> tuple[float, list[Ids]]:
    begun = time.process_time()
    answers = ask()
    return time.process_time() - begun, answers


@torch.inference_mode()
def _generated(
    model: Any, prompts: Sequence[Ids], order: Sequence[int], size: int, new: int, stop: frozenset[int]
) -> list[Ids]:
    completions: list[Ids] = [()] * len(prompts)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        width = max(len(prompts[index]) for index in batch)
        padded = [[0] * (width - len(prompts[index])) + [*prompts[index]] for index in batch]
        mask = [[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in batch]
        written = model.generate(
            input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=new, do_sample=False,
            eos_token_id=[*stop], pad_token_id=min(stop),
        )  # fmt: skip
        for index, row in zip(batch, written[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stop), len(row))
            completions[index] = tuple(row[: end + 1])
    return completions


@torch.inference_mode()
def _alone(model: Any, prompt: Ids, new: int, stop: frozenset[int]) -> Ids:
    ids: list[int] = []
    while len(ids) < new and not (ids and ids[-1] in stop):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return tuple(ids)


if __name__ == "__main__":
    main()
