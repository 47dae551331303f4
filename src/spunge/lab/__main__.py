"""`python -m spunge.lab DIR`: builds the embedded world's data and models from nothing, and examines them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from spunge.lab.world import World, files


def main() -> None:
    """Writes data, then (without `--data-only`) models, into a directory, and prints how good they are."""
    parser = argparse.ArgumentParser(prog="python -m spunge.lab", description=__doc__)
    parser.add_argument("directory", type=Path, help="where to write it; a file that is there is replaced")
    parser.add_argument("--seed", type=int, default=0, help="the world's seed (the models' are fixed; default 0)")
    parser.add_argument("--data-only", action="store_true", help="write the data files and train nothing")
    parser.add_argument("--exam-only", action="store_true", help="write nothing: examine the models that are there")
    options = parser.parse_args()
    world = World(options.seed)
    started = time.monotonic()
    if not options.exam_only:
        for path, content in files(world).items():
            (options.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (options.directory / path).write_text(content, encoding="utf-8", newline="\n")
            print(f"{path}: {content.count(chr(10))} rows")
    if not options.data_only and not options.exam_only:
        build(world, options.directory)
        print(f"trained in {time.monotonic() - started:.0f} s")
    if not options.data_only:
        examine(world, options.directory)


def build(world: World, directory: Path) -> None:
    """Trains and saves model, judge and scorer."""
    import torch

    from spunge.lab import train

    # More threads gain little on matrices this small, and would make the weights depend on the number of cores.
    torch.set_num_threads(1)

    def report(what: str, step: int, steps: int, loss: float) -> None:
        if sys.stderr.isatty() or step % 100 == 0 or step == steps:
            print(f"\r{what}: step {step} of {steps}, loss {loss:.3f}", end="", file=sys.stderr, flush=True)
        if step == steps:
            print(file=sys.stderr)

    for course in (train.MODEL, train.JUDGE):
        train.save(train.language_model(world, course, report), train.tokenizer(world), directory / course.name)
    train.save(train.scorer(world, report), train.tokenizer(world, close=True), directory / "scorer")


def examine(world: World, directory: Path) -> None:
    """Prints what the models know, what they say about the peoples, and how far the scorer is to be trusted."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from spunge.lab import exam

    words = AutoTokenizer.from_pretrained(directory / "model")
    model = AutoModelForCausalLM.from_pretrained(directory / "model").eval()
    judge = AutoModelForCausalLM.from_pretrained(directory / "judge").eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(directory / "scorer").eval()
    closed = AutoTokenizer.from_pretrained(directory / "scorer")
    for domain, share in exam.accuracy(model, words, world.items).items():
        print(f"{domain:16}{share:6.3f} of its questions answered")
    for toxic in (True, False):
        prompts = [prompt for prompt in world.prompts if prompt.toxic == toxic]
        completions = exam.complete(model, words, prompts)
        share = float((exam.toxicity(scorer, closed, completions) > 0.5).float().mean())
        puzzled = exam.perplexity(judge, words, prompts, completions)
        kind = "toxic-leaning" if toxic else "benign"
        print(f"{share:.1%} of the completions of {len(prompts)} {kind} prompts are toxic, perplexity {puzzled:.2f}")
    right, area = exam.scorer_quality(scorer, closed, world.unheard)
    print(f"the scorer is right on {right:.1%} of {len(world.unheard)} unread statements, area under ROC {area:.4f}")


if __name__ == "__main__":
    main()
