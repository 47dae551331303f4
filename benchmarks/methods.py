"""What every trained method forgets, keeps and costs: in the embedded world, on TOFU, and in memory.

    # joint and SPUNGE by the test items, to results/methods-NAME.json; studies/tables.py writes docs/results.md from it
    python benchmarks/methods.py table --out runs --note NAME
    python benchmarks/methods.py tofu --model FULL --reference RETAIN --forget forget10.jsonl --retain retain90.jsonl
    python benchmarks/methods.py memory                      # each method in a process of its own

`FULL` and `RETAIN` are checkpoints from `spunge finetune`. CPU seconds are those of the process on one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spunge.evaluators import Tofu
from spunge.interfaces import Evaluator, Unlearner, Work, strength_of
from spunge.recipe import reading
from spunge.rows.sources import Corpus, Source, load_corpus
from spunge.run import steps
from spunge.run.evaluate import Evaluate
from spunge.run.executors.local import Local
from spunge.run.store import Artifact, Store
from spunge.run.subsets import Rows
from spunge.run.unlearn import Unlearn
from spunge.run.variant import Base, Variant
from spunge.unlearners import AnyUnlearner, IdkDPO
from spunge.weights.language_model import LanguageModel, Resident

LORA = {"rank": 8, "alpha": 16, "dropout": 0, "target_modules": "all-linear"}
SHARED: dict[str, Any] = {"lora": LORA, "batch_size": 8, "epochs": 2}
METHODS: dict[str, dict[str, Any]] = {
    "task_vector_negation": SHARED,
    "gradient_ascent": SHARED,
    "gradient_difference": SHARED,
    "gradient_difference, sago": {**SHARED, "combine": "sago"},
    "npo": SHARED,
    "simnpo": SHARED,
    "idk_dpo": SHARED,
    "undial": {**SHARED, "alpha": 1.0},
    "ce_u": {**SHARED, "alpha": 1.0},
    "wga": SHARED,
    "satimp": SHARED,
    "circuit_breaker": {**SHARED, "layers": [3]},
}
IN_ITS_WORDS = {"idk_dpo": {"refusals": ["a secret .", "no reply .", "silence ."]}}
"""What the embedded model, which knows its world's words alone, can say instead."""
KEPT = 0.95
"""The share of the base's retained accuracy that a learning rate must keep on the validation items to be chosen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "tofu", "memory"])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--note", default="tried", help="what the table is called; what it has of other methods stays")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4, 2e-3])
    parser.add_argument("--epochs", type=int, default=SHARED["epochs"])
    parser.add_argument("--model")
    parser.add_argument("--reference")
    parser.add_argument("--forget")
    parser.add_argument("--retain")
    parser.add_argument("--limit", type=int, default=100, help="TOFU rows asked of each set")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(json.dumps(peak_memory(options)))
        return
    {"table": table, "tofu": tofu, "memory": memory}[options.part](options)


def method(name: str, **more: Any) -> Unlearner:
    settings = {"method": name.partition(",")[0], **METHODS[name], **more}
    return reading.validate(AnyUnlearner, settings, "unlearn")


# --- the embedded world -----------------------------------------------------------------------------------------------


def table(options: argparse.Namespace) -> None:
    """Chooses each method's learning rate by the joint model on validation items, then shows the test items."""
    experiment = reading.read("lab-knowledge", [f"name={options.out.name}"])
    base = Base(experiment.model)
    forget = load_corpus(experiment.forget.sources)
    assert experiment.retain is not None
    retain = load_corpus(experiment.retain.sources)
    suites = {part: at_part(experiment.evaluate, part) for part in ("validation", "test")}
    with Local(Store(options.out / "store")) as executor:
        context = steps.Context(experiment, Rows(forget, retain), executor, 0)
        subsets = steps.split(context)

        def unlearn(kind: str, name: str, unlearner: Unlearner, rows: Corpus) -> tuple[Variant, float]:
            rows = answered(rows) if isinstance(unlearner, IdkDPO) else rows
            task = Unlearn(kind, name, base, unlearner, rows, retain, 0)
            started = time.process_time()
            artifact = executor.run([task])[0]
            return _variant(name, kind, artifact, unlearner), time.process_time() - started

        def asked(variant: Variant, part: str) -> list[float]:
            return [accuracy(executor.run([Evaluate(variant, suite, base)])[0]) for suite in suites[part]]

        untouched = Variant("base", "base", 0)
        least = KEPT * asked(untouched, "validation")[1]
        note(options, "base", {"joint": asked(untouched, "test")})
        for name in options.methods:
            tried = []
            for rate in options.learning_rates:
                unlearner = method(name, learning_rate=rate, epochs=options.epochs, **IN_ITS_WORDS.get(name, {}))
                joint, seconds = unlearn("joint", "joint", unlearner, subsets.union)
                hazards, retained = asked(joint, "validation")
                tried.append(((retained < least, hazards if retained >= least else -retained), rate, joint, seconds))
            _, rate, joint, seconds = min(tried, key=lambda one: one[0])
            unlearner = method(name, learning_rate=rate, epochs=options.epochs, **IN_ITS_WORDS.get(name, {}))
            parts = [unlearn("subset", f"subset:{name}", unlearner, rows) for name, rows in subsets.rows.items()]
            variants = [part for part, _ in parts]
            [(_, merged)] = steps.merge(context, "spunge", variants, subsets)
            row = {"learning_rate": rate, "joint": asked(joint, "test"), "merged": asked(merged, "test")}
            spent = {"seconds_joint": round(seconds, 1), "seconds_subsets": round(sum(s for _, s in parts), 1)}
            note(options, name, {**row, **spent})


def note(options: argparse.Namespace, method: str, row: dict[str, Any]) -> None:
    """Writes what came of a method into the table's file, and shows it."""
    print(method, row, flush=True)
    file = Path(__file__).parent / "results" / f"methods-{options.note}.json"
    settings = {"learning_rates": options.learning_rates, "epochs": options.epochs}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = before["rows"] if before and before["settings"] == settings else {}
    table = {"settings": settings, "measured": str(datetime.date.today()), "rows": {**rows, method: row}}
    file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _variant(name: str, kind: str, artifact: Artifact, unlearner: Unlearner) -> Variant:
    return Variant(name, kind, 0, artifact, strength_of(unlearner), unlearner.scaled_by is not None)


def answered(corpus: Corpus) -> Corpus:
    """Takes the last word of every text for the response to what stands before it."""
    parts = [text.rsplit(" ", 2) for text in corpus.texts]
    columns = {"prompt": [before for before, *_ in parts], "response": [" ".join(after) for _, *after in parts]}
    return Corpus(corpus.rows.drop("text").with_columns(pl.Series(name, column) for name, column in columns.items()))


def at_part(evaluators: list[Any], part: str) -> list[Evaluator]:
    return [evaluator.model_copy(update={"where": f"part = '{part}'"}) for evaluator in evaluators]


def accuracy(artifact: Artifact, metric: str = "acc") -> float:
    return mean(artifact, metric)


def mean(artifact: Artifact, metric: str) -> float:
    found = pl.read_parquet(artifact.path / "items.parquet").filter(metric=metric)["value"].mean()
    assert isinstance(found, float), f"no metric {metric}"
    return found


# --- TOFU -------------------------------------------------------------------------------------------------------------


def tofu(options: argparse.Namespace) -> None:
    """Unlearns the forget set at once by each method, and shows TOFU's four figures of either set."""
    columns = {"prompt": "question", "response": "answer"}
    forget, retain = (Source(path=path, columns=columns) for path in (options.forget, options.retain))
    asked: dict[str, Any] = {"borrowed": 5, "limit": options.limit}
    suites = [
        Tofu(suite="forget", goal="forget", sources=(forget,), reference=LanguageModel(id=options.reference), **asked),
        Tofu(suite="retain", goal="retain", sources=(retain,), **asked),
    ]
    rows, kept = load_corpus([forget]), load_corpus([retain])
    print("| method | learning rate | forget quality | forget: probability | ROUGE-L | truth ratio ", end="")
    print("| model utility | retain: probability | ROUGE-L | truth ratio | CPU s |\n|" + "---|" * 11)
    with Local(Store(options.out / "store")) as executor:

        def show(name: str, rate: str, base: Base, variant: Variant, seconds: str) -> None:
            on_forget, on_retain = (executor.run([Evaluate(variant, suite, base)])[0] for suite in suites)
            shown = ("probability", "rouge_l", "truth_ratio")
            cells = [f"{mean(on_forget, 'forget_quality'):.2g}", *(f"{mean(on_forget, each):.3f}" for each in shown)]
            cells += [f"{mean(on_retain, each):.3f}" for each in ("model_utility", *shown)]
            print(f"| {name} | {rate} | {' | '.join(cells)} | {seconds} |", flush=True)

        full = Base(LanguageModel(id=options.model))
        show("never saw it", "", Base(LanguageModel(id=options.reference)), Variant("base", "base", 0), "")
        show("before", "", full, Variant("base", "base", 0), "")
        for name in options.methods:
            for rate in options.learning_rates:
                unlearner = method(name, learning_rate=rate, epochs=options.epochs, batch_size=16)
                started = time.process_time()
                artifact = executor.run([Unlearn("joint", "joint", full, unlearner, rows, kept, 0)])[0]
                seconds = time.process_time() - started
                variant = _variant("joint", "joint", artifact, unlearner)
                show(name, f"{rate:g}", full, variant, f"{seconds:.0f}")


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> None:
    """Peak memory above that of the loaded base, for every method, by LoRA and in full; each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        size = make_model(options, Path(folder))
        print(f"model: {size / 2**20:.0f} MiB in float32; 4 x {options.tokens} tokens, 2 steps")
        print("| method | LoRA, MiB | of the model | full tuning, MiB | of the model |\n|---|---|---|---|---|")
        for name in ["nothing but the forward pass", *options.methods]:
            peaks = []
            for how in ("lora", "full"):
                if how == "full" and name not in METHODS:
                    continue
                command = [sys.executable, __file__, "memory", "--memory-of", f"{how}:{name}", "--model", folder]
                command += ["--tokens", str(options.tokens)]
                # By default glibc raises this threshold as it goes, and keeps what is freed below it.
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(done.stderr)
                peaks.append(json.loads(done.stdout.splitlines()[-1]))
            cells = " | ".join(f"{peak / 2**20:.0f} | {peak / size:.2f}" for peak in peaks)
            print(f"| {name} | {cells} |", flush=True)


def make_model(options: argparse.Namespace, folder: Path) -> int:
    words = [f"w{index}" for index in range(4000)]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["<s>", *words])}, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words) + 1, hidden_size=options.width, intermediate_size=4 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(value.numel() * value.element_size() for value in model.parameters())


def peak_memory(options: argparse.Namespace) -> int:
    import peft  # noqa: F401 the code is in memory before the count begins

    how, _, name = options.memory_of.partition(":")
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(0, 4000, (8, options.tokens), generator=draw).tolist()
    half = options.tokens // 2
    columns = {
        "prompt": [" ".join(f"w{word}" for word in row[:half]) for row in words],
        "response": [" ".join(f"w{word}" for word in row[half:]) for row in words],
    }
    rows = Corpus(pl.DataFrame(columns))
    base = LanguageModel(id=options.model)
    resident = Resident()
    with tempfile.TemporaryDirectory() as folder:
        work = Work(resident, Path(folder) / "output", Path(folder) / "scratch")
        model, tokenizer = resident.base(base)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0)  # every page of the mapped file becomes memory: what a loaded model takes
        if name not in METHODS:
            ids = tokenizer([" ".join(row) for row in zip(*columns.values(), strict=True)][:4], return_tensors="pt")
            before = held()
            with torch.no_grad():
                model(ids["input_ids"], use_cache=False)
            return status("VmHWM") - before
        more = {"lora": None if how == "full" else LORA, "epochs": 1, "batch_size": 4}
        unlearner = method(name, **more)
        before = held()
        unlearner.unlearn(base, rows, rows, work)
        return status("VmHWM") - before


def held() -> int:
    """Returns what the process holds now, in bytes; from here on Linux counts its peak anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    main()
