"""How much faster the native multiple choice is than lm-eval on 5-shot rows of MMLU's shape, both by turns.

    python benchmarks/multiple_choice.py                     # a small random model, rows of random words
    python benchmarks/multiple_choice.py --model DIR --test test.jsonl --dev dev.jsonl

Needs the extra `harness`; nothing is fetched. Rows have `question`, `A` to `D` and `answer`.
"""

from __future__ import annotations

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
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from spunge.asking.batching import Batching
from spunge.asking.encoding import encode_pairs
from spunge.asking.likelihoods import loglikelihoods
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.rows.sources import Source
from spunge.weights.language_model import LanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's directory, float32")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--dev", type=Path)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if options.model:
            handle = LanguageModel(id=options.model, dtype="float32")
            model, tokenizer = handle.load(device=options.device), handle.load_tokenizer()
            plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().to(options.device)
            test = "\n".join(options.test.read_text().splitlines()[: options.rows])
            dev = options.dev.read_text()
        else:
            model, tokenizer, test, dev = made_up(options)
            plain = model
        (here / "test.jsonl").write_text(test)
        (here / "dev.jsonl").write_text(dev)
        suite = MultipleChoice(
            suite="mmlu", goal="retain", sources=(Source(path=str(here / "test.jsonl")),), shots=5,
            shots_from=(Source(path=str(here / "dev.jsonl")),),
        )  # fmt: skip
        (questions,) = suite.questions().values()
    pairs = [pair for question in questions for pair in question.pairs]
    reference = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=16)
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


def made_up(options: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str, str]:
    """Returns a random model, its tokenizer, and rows as JSON Lines: those that are asked, and five solved ones."""
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

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(options.device)  # pyright: ignore[reportArgumentType]
    return model, tokenizer, rows(options.rows), rows(5)


if __name__ == "__main__":
    main()
