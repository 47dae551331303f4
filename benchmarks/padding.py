"""What packing under a mask of blocks costs beside batches of rows of about the same length, in CPU seconds of a pass.

    python benchmarks/padding.py --tokenizer stories260K --data forget10.jsonl

Packed rows lie behind one another in one sequence, each with positions from 0 and attending to itself alone: the same
loss. One thread.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from spunge.rows.sources import Source, load_corpus
from spunge.training import losses
from spunge.training.rows import Encoded, collate, encode, plan
from spunge.training.settings import Tuning
from spunge.weights.language_model import LanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True, help="rows with a question and an answer")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=64, help="how many are timed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = LanguageModel(id=options.tokenizer).load_tokenizer()
    source = Source(path=options.data, columns={"prompt": "question", "response": "answer"})
    rows = encode(load_corpus([source]), tokenizer, max_length=512)
    model = random_model(options, len(tokenizer))
    print("| rows a batch | padding: random | sorted | ms a token: random | sorted | packed | packed / sorted |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        random, alike = (drawn(rows, size, length_sorted) for length_sorted in (False, True))
        timed = {"random": random, "sorted": alike, "packed": alike}
        costs: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(options.rounds):
            for name, batches in timed.items():
                few = batches[: options.rows // size]
                passing = packed if name == "packed" else padded
                started = time.process_time()
                for batch in few:
                    passing(model, batch).backward()
                tokens = sum(len(row.ids) for batch in few for row in batch)
                costs[name].append(1e3 * (time.process_time() - started) / tokens)
                model.zero_grad()
        assert torch.allclose(padded(model, alike[0]), packed(model, alike[0]), rtol=1e-5, atol=0)
        ratios = sorted(one / other for one, other in zip(costs["packed"], costs["sorted"], strict=True))
        cells = [
            f"{share(random):.1%}",
            f"{share(alike):.1%}",
            *(f"{sorted(own)[len(own) // 2]:.2f}" for own in costs.values()),
        ]
        print(f"| {size} | {' | '.join(cells)} | {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}…{ratios[-1]:.2f}) |")


def random_model(options: argparse.Namespace, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=options.width, intermediate_size=options.width * 8 // 3,
            num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=8,
        )
    )  # fmt: skip


def drawn(rows: list[Encoded], size: int, length_sorted: bool) -> list[list[Encoded]]:
    settings = Tuning(batch_size=size, length_sorted=length_sorted)
    steps = plan([rows], settings, torch.Generator().manual_seed(0))
    return [[rows[index] for index in batch] for ((batch,),) in steps]


def share(batches: list[list[Encoded]]) -> float:
    places = sum(len(batch) * max(len(row.ids) for row in batch) for batch in batches)
    return 1 - sum(len(row.ids) for batch in batches for row in batch) / places


def padded(model: LlamaForCausalLM, rows: list[Encoded]) -> Tensor:
    batch = collate(rows, range(len(rows)), pad=0, device="cpu")
    logits = model(batch.ids, batch.mask, use_cache=False).logits[:, :-1][batch.counted[:, 1:]]
    return losses.cross_entropy(logits, batch.labels)


def packed(model: LlamaForCausalLM, rows: list[Encoded]) -> Tensor:
    ids = torch.cat([torch.tensor(row.ids) for row in rows])
    positions = torch.cat([torch.arange(len(row.ids)) for row in rows])
    counted = torch.cat([torch.arange(len(row.ids)) >= max(row.start, 1) for row in rows])
    # From positions that begin anew transformers makes a mask of blocks.
    logits = model(ids[None], position_ids=positions[None], use_cache=False).logits[0]
    return losses.cross_entropy(logits[:-1][counted[1:]], ids[counted])


if __name__ == "__main__":
    main()
