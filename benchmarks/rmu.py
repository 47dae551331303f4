"""What RMU costs: the naive algorithm against Spunge's, by process CPU time, and memory from separate processes.

The naive algorithm is the one the tests compare bits with (tests/naive_rmu.py): two full models, every layer and the LM
head, gradients for every tensor. Defaults finish in about a minute; the figures in docs/benchmarks.md are from

    python benchmarks/rmu.py --layers 32 --width 512 --intermediate 1792 --heads 8 --tokens 256 512 768 --dtype bfloat16
    python benchmarks/rmu.py --model SMOLLM2 --tokens 256 --parts step memory growth
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from spunge.interfaces import Work
from spunge.rows.sources import Corpus, concatenate
from spunge.steering.cache import StateCache
from spunge.unlearners.rmu import RMU
from spunge.weights.language_model import LanguageModel, Resident

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from naive_rmu import naive_rmu  # pyright: ignore[reportMissingImports]

WORDS = 4000
LEARNING: dict[str, Any] = {"alpha": 100.0, "learning_rate": 5e-5}
DEFAULT = RMU()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=896)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of a run")
    parser.add_argument("--rounds", type=int, default=3, help="naive and engine take turns so often")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=["step", "memory", "runs", "growth"],
                        default=["step", "memory", "runs", "growth"])  # fmt: skip
    parser.add_argument("--memory-of", choices=["naive", "engine", "engine-cached"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help="a model's directory, in place of one that is made of the sizes above")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if options.memory_of:
        print(json.dumps(peak_memory(options)))
        return
    vocabulary = WORDS
    if options.model:
        config = AutoConfig.from_pretrained(options.model)
        options.layers, options.width, options.heads = (
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        )  # fmt: skip
        options.intermediate, vocabulary = config.intermediate_size, config.vocab_size
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} thread(s), "
          f"torch {torch.__version__}, {options.dtype}: {options.layers} layers, width {options.width}, "
          f"batch {options.batch_size}, steered at layer {options.layer}")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        options.model = options.model or make_model(options, Path(directory) / "model")
        for tokens in options.tokens:
            print(f"\n{tokens} tokens a row; theory: {theory(options, tokens, vocabulary)}")
            for part in options.parts:
                {"step": step_times, "memory": memory, "runs": whole_runs, "growth": growth}[part](options, tokens)
    zephyr = argparse.Namespace(layers=32, width=4096, intermediate=14336, heads=32, layer=7, batch_size=4)
    print(f"\nZephyr-7B, 4 × 512, theory: {theory(zephyr, 512, vocabulary=32000)}")


def step_times(options: argparse.Namespace, tokens: int) -> None:
    """Naive and engine in turns in this process: the mean CPU time of a step, and the median over the turns."""
    steps = DEFAULT.measured_every + 1  # one step goes to the clock's start, and one of the others measures the cosine
    times: dict[str, list[float]] = {name: [] for name in ("naive", "engine", "engine, no cosine", "engine, cached")}
    for _ in range(options.rounds):
        clock = Clock()
        run_naive(options, tokens, clock=clock)
        times["naive"].append(statistics.mean(clock.intervals()))
        clock = Clock()
        run_engine(options, tokens, Resident(), clock=clock, steps=steps, epochs=2)
        times["engine"].append(statistics.mean(clock.intervals()[: steps - 1]))
        times["engine, cached"].append(statistics.mean(clock.intervals()[steps:]))
        clock = Clock()
        run_engine(options, tokens, Resident(), clock=clock, cosine_every=10**6, steps=max(3, options.steps))
        times["engine, no cosine"].append(statistics.mean(clock.intervals()[:-1]))
    for name, values in times.items():
        ratios = sorted(naive / value for naive, value in zip(times["naive"], values, strict=True))
        print(f"  a step, {name:18} {statistics.median(values):8.3f} s CPU   {statistics.median(ratios):5.1f} × "
              f"({ratios[0]:.1f}…{ratios[-1]:.1f})")  # fmt: skip


def memory(options: argparse.Namespace, tokens: int) -> None:
    """Peak resident memory above what importing takes, each in a process of its own."""
    peaks = {}
    for who in ("naive", "engine", "engine-cached"):
        command = [sys.executable, __file__, "--memory-of", who, "--model", options.model, "--tokens", str(tokens)]
        for name in ("layers", "width", "intermediate", "heads", "dtype", "layer", "batch_size", "steps", "threads"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        peaks[who] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"  peak memory, {who:18} {peaks[who]:6.0f} MiB   {peaks[who] / peaks['naive']:5.2f} of naive")


def whole_runs(options: argparse.Namespace, tokens: int) -> None:
    """Five subsets and the joint baseline, everything included, against as many naive runs of the same steps."""
    subsets = 5
    started = time.process_time()
    for index in range(subsets):
        run_naive(options, tokens, topics=[index])
    run_naive(options, tokens, topics=range(subsets), steps=subsets * options.steps)
    naive = time.process_time() - started
    print(f"  {subsets} subsets and joint, naive                     {naive:7.1f} s CPU")
    for what, budget, shuffle in (("in memory", None, False), ("in a memory map", 0, False), ("not kept", None, True)):
        resident = Resident()
        cache = resident.cached("hidden states", lambda budget=budget: StateCache(budget))
        started = time.process_time()
        for index in range(subsets):
            run_engine(options, tokens, resident, topics=[index], shuffle=shuffle)
        run_engine(options, tokens, resident, topics=range(subsets), shuffle=shuffle)
        engine = time.process_time() - started
        kept = f"{cache.in_memory / 2**20:.0f} MiB in memory"
        print(
            f"  {subsets} subsets and joint, states {what:15} {engine:11.1f} s CPU   {naive / engine:5.1f} × ({kept})"
        )


def growth(options: argparse.Namespace, tokens: int) -> None:
    """k subsets with the steps of one joint run shared out among them, set-up included."""
    total = max(8, options.steps // 8 * 8)
    for index in range(8):
        texts(options, tokens, f"topic {index}")  # making them up is no part of the cost
    run_engine(options, tokens, Resident(), steps=1)  # nor is what Python imports at first use
    costs = {}
    for subsets in (1, 2, 4, 8):
        started = time.process_time()
        resident = Resident()
        for index in range(subsets):
            run_engine(options, tokens, resident, topics=[index], steps=total // subsets)
        costs[subsets] = time.process_time() - started
        ratio = costs[subsets] / costs[1]
        print(f"  {subsets} subset(s), {total} steps in all: {costs[subsets]:6.1f} s CPU   {ratio:.2f} ×")


class Clock:
    """CPU time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, *_: object, **__: object) -> None:
        self.times.append(time.process_time())

    def intervals(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def run_naive(
    options: argparse.Namespace,
    tokens: int,
    *,
    topics: Any = (0,),
    steps: int | None = None,
    clock: Any = lambda _: None,
) -> None:
    naive_rmu(
        options.model,
        LanguageModel(id=options.model).load_tokenizer(),
        [texts(options, tokens, f"topic {index}") for index in topics],
        texts(options, tokens, "retain"),
        [torch.ones(options.width) / options.width**0.5 for _ in topics],
        layers="model.layers",
        layer=options.layer,
        updated=[f"model.layers.{options.layer - n}.mlp.down_proj.weight" for n in range(3)],
        batch_size=options.batch_size,
        steps=steps or options.steps,
        dtype=getattr(torch, options.dtype),
        max_length=tokens,
        after_step=clock,
        alphas=[LEARNING["alpha"]] * len(topics),
        learning_rate=LEARNING["learning_rate"],
    )


def run_engine(
    options: argparse.Namespace, tokens: int, resident: Resident, *, topics: Any = (0,), steps: int | None = None,
    clock: Any = lambda *_, **__: None, **settings: Any,
) -> None:  # fmt: skip
    forget = concatenate(
        Corpus(pl.DataFrame({"text": texts(options, tokens, f"topic {index}")})).with_subset(str(index))
        for index in topics
    )
    retain = Corpus(pl.DataFrame({"text": texts(options, tokens, "retain")}))
    rmu = RMU(
        layer=options.layer, steering_coefficient=1.0, batch_size=options.batch_size, max_length=tokens,
        retain_max_length=tokens, max_batches=steps or options.steps, **LEARNING, **settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        rmu.unlearn(LanguageModel(id=options.model), forget, retain, Work(resident, Path(place), Path(place), 0, clock))


def texts(options: argparse.Namespace, tokens: int, what: str) -> list[str]:
    return random_texts(max(DEFAULT.measured_every + 1, options.steps * 5) * options.batch_size, tokens, what)


@cache
def random_texts(rows: int, tokens: int, what: str) -> list[str]:
    draw = random.Random(what)
    return [" ".join(draw.choices([f"w{n}" for n in range(WORDS)], k=tokens)) for _ in range(rows)]


def make_model(options: argparse.Namespace, directory: Path) -> str:
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=options.width, intermediate_size=options.intermediate,
        num_hidden_layers=options.layers, num_attention_heads=options.heads,
        num_key_value_heads=max(1, options.heads // 4), tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(getattr(torch, options.dtype)).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(directory)
    return str(directory)


def peak_memory(options: argparse.Namespace) -> float:
    """Returns in MiB how far the process grows above what it held before the run."""
    before = status("VmRSS")
    tokens = options.tokens[0]
    if options.memory_of == "naive":
        run_naive(options, tokens)
    else:
        run_engine(options, tokens, Resident(), shuffle=options.memory_of == "engine")  # shuffled, nothing is cached
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """Returns a figure of this process from Linux, in KiB; getrusage would report the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def theory(options: argparse.Namespace, tokens: int, vocabulary: int = WORDS) -> str:
    """Floating-point operations of a step as the formulas have it: matrix products and attention only."""
    width, inner, below, tail = options.width, options.intermediate, options.layer - 2, 3
    layer = 2 * (2 * width**2 + 2 * width * width // 4 + 3 * width * inner) + 4 * tokens * width
    head = 2 * width * vocabulary
    naive = 3 * (options.layers * layer + head) + 2 * 2 * (options.layer + 1) * layer
    # Backwards: through the layers above the first updated one, and to the updated matrices themselves.
    backward = 2 * ((tail - 1) * layer + tail * 2 * width * inner)
    cached = 2 * tail * layer + backward
    trunk = 2 * below * layer + tail * layer + cached
    scale = options.batch_size * tokens / 1e12
    return (
        f"naive {naive * scale:.3g} TFLOP a step, engine {trunk * scale:.3g} ({naive / trunk:.1f} ×), "
        f"cached {cached * scale:.3g} ({naive / cached:.1f} ×)"
    )


if __name__ == "__main__":
    main()
