"""How much faster the native multiple choice is than lm-eval on 5-shot rows of MMLU's shape, both by turns.

Run: python benchmarks/multiple_choice.py (needs the extra `harness`); nothing is fetched.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spunge.asking.batching import Batching
from spunge.asking.encoding import encode_pairs
from spunge.asking.likelihoods import loglikelihoods
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.rows.sources import Source


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    draw, words = random.Random(0), [f"w{n}" for n in range(2000)]
    fixed = ["A.", "B.", "C.", "D.", "Answer:", "A", "B", "C", "D", "</s>", "<unk>"]
    tokens = Tokenizer(WordLevel({word: n for n, word in enumerate([*fixed, *words])}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>", unk_token="<unk>")

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    def rows(count: int) -> str:
        made = [
            {"question": text(20, 60), **{x: text(2, 12) for x in "ABCD"}, "answer": draw.choice("ABCD")}
            for _ in range(count)
        ]
        return "\n".join(json.dumps(row) for row in made)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(options.device)  # pyright: ignore[reportArgumentType]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "test.jsonl").write_text(rows(options.rows))
        (here / "dev.jsonl").write_text(rows(5))
        suite = MultipleChoice(
            suite="mmlu", goal="retain", sources=(Source(path=str(here / "test.jsonl")),), shots=5,
            shots_from=(Source(path=str(here / "dev.jsonl")),),
        )  # fmt: skip
        (questions,) = suite.questions().values()
    pairs = [pair for question in questions for pair in question.pairs]
    reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    instances = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    ours: list[float] = []
    theirs: list[float] = []
    expected: list[float] = []
    scores: list[float] = []
    for _ in range(options.rounds):
        start = clock()
        expected = [score for score, _ in reference.loglikelihood(instances, disable_tqdm=True)]
        theirs.append(clock() - start)
        start = clock()
        scores = loglikelihoods(model, encode_pairs(tokenizer, pairs), Batching(16))
        ours.append(clock() - start)
    apart = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    turns = ", ".join(f"{a:.2f} and {b:.2f} ({a / b:.1f} x)" for a, b in zip(theirs, ours, strict=True))
    print(f"{options.rows} questions, 5 shots, {options.device}, 1 thread; CPU s of lm-eval and of Spunge, by turns:")
    print(f"{turns}; apart {apart:.1e}")


if __name__ == "__main__":
    main()
