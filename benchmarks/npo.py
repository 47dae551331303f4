"""NPO on all weights, whole processes in turns: Spunge, and the trainer of open-unlearning (MIT), from a clone of it.

    git clone https://github.com/locuslab/open-unlearning
    python benchmarks/npo.py MODEL --forget forget.jsonl --retain retain.jsonl --open-unlearning open-unlearning

Both see the same rows in the same batches, in float32, with fused AdamW, a cosine and one thread. CPU seconds and peak
memory are the whole process's; of training alone beside. Theirs holds a second model for the reference, and asks it at
every step. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from turns import by_turns, report

RATE, BATCH, BETA = 1e-5, 4, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--forget", required=True)
    parser.add_argument("--retain", required=True)
    parser.add_argument("--open-unlearning", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["theirs", "spunge"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    ways = {"theirs": by_open_unlearning, "spunge": by_spunge}
    if options.way:
        report(*ways[options.way](options))
        return
    rounds = by_turns(ways, options.rounds)
    print("| | CPU s | of them training | peak MiB | first and last loss |\n|---|---|---|---|---|")
    for way, results in rounds.items():
        cpu, training, mib = (statistics.median(one[key] for one in results) for key in ("cpu", "training", "mib"))
        first, *_, last = results[0]["losses"]
        print(f"| {way} | {cpu:.1f} | {training:.1f} | {mib:.0f} | {first:.4f}, {last:.4f} |")
    ratios = [one["cpu"] / other["cpu"] for one, other in zip(*rounds.values(), strict=True)]
    print(f"\ntheirs / Spunge, CPU: {statistics.median(ratios):.2f} ({min(ratios):.2f}…{max(ratios):.2f})")


def settings(options: argparse.Namespace) -> Any:
    from spunge.unlearners import NPO

    return NPO.model_validate(
        {"lora": None, "learning_rate": RATE, "batch_size": BATCH, "beta": BETA, "max_steps": options.steps}
    )


def by_spunge(options: argparse.Namespace) -> tuple[float, list[float]]:
    from spunge.interfaces import Work
    from spunge.rows.sources import Source, load_corpus
    from spunge.weights.language_model import LanguageModel, Resident

    base = LanguageModel(id=options.model)
    forget, retain = (load_corpus([Source(path=path)]) for path in (options.forget, options.retain))
    with tempfile.TemporaryDirectory() as folder, closing(Resident()) as resident:
        output, scratch = Path(folder) / "output", Path(folder) / "scratch"
        output.mkdir()
        scratch.mkdir()
        resident.base(base)
        started = time.process_time()
        settings(options).unlearn(base, forget, retain, Work(resident, output, scratch))
        training = time.process_time() - started
        losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    return training, losses


def by_open_unlearning(options: argparse.Namespace) -> tuple[float, list[float]]:
    import torch
    from torch.utils.data import Sampler, SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    # The package alone, without its list of all trainers, which imports deepspeed.
    package = ModuleType("trainer")
    package.__path__ = [str(options.open_unlearning / "src" / "trainer")]
    sys.modules["trainer"] = package
    from trainer.unlearn.npo import NPO  # pyright: ignore[reportMissingImports]

    class InOrder(NPO):  # pyright: ignore[reportUntypedBaseClass]
        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
            return SequentialSampler(train_dataset)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return super().compute_loss(model, inputs, return_outputs)  # newer versions of Trainer pass more

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    pairs = batches(options)

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        def padded(part: str) -> Any:
            batch = tokenizer.pad([{"input_ids": row[part]} for row in rows], return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            return {**batch, "labels": labels}

        return {"forget": padded("forget"), "retain": padded("retain")}

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, per_device_train_batch_size=BATCH, learning_rate=RATE, lr_scheduler_type="cosine", seed=0,
            max_steps=options.steps, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, optim="adamw_torch_fused",
        )  # fmt: skip
        trainer = InOrder(
            beta=BETA, alpha=1.0, gamma=1.0, model=model, args=arguments, data_collator=collate, train_dataset=pairs
        )
        started = time.process_time()
        trainer.train()
        training = time.process_time() - started
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return training, losses


def batches(options: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Returns the pairs of rows, as token ids, in the order in which Spunge draws them with seed 0."""
    import torch
    from transformers import AutoTokenizer

    from spunge.rows.sources import Source, load_corpus
    from spunge.training.rows import encode, plan

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    chosen = settings(options)
    corpora = [load_corpus([Source(path=path)]) for path in (options.forget, options.retain)]
    rows = [encode(corpus, tokenizer, max_length=chosen.max_length) for corpus in corpora]
    steps = plan(rows, chosen, torch.Generator().manual_seed(0))
    return [
        {"forget": list(rows[0][one].ids), "retain": list(rows[1][other].ids)}
        for (forget,), (retain,) in steps
        for one, other in zip(forget, retain, strict=True)
    ]


if __name__ == "__main__":
    main()
