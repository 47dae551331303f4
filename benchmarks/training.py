"""LoRA training, whole processes in turns: Spunge, and transformers' Trainer with PEFT, on the same rows and settings.

    python benchmarks/training.py MODEL --data forget.jsonl      # rows with a `text`

Both see the same rows in the same batches, with AdamW, a cosine, one rank, one dropout and one thread, in float32.
CPU seconds and peak memory are the whole process's, start and loading included; `start` is what importing the libraries
and loading the model takes alone. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from turns import by_turns, report

RANK, RATE, BATCH = 16, 1e-3, 4
TARGETS = ("q_proj", "v_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["start", "trainer", "spunge"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    ways = {"start": start, "trainer": by_trainer, "spunge": by_spunge}
    if options.way:
        import torch

        torch.set_num_threads(1)
        report(*ways[options.way](options))
        return
    figures = by_turns(ways, options.rounds)
    print("| | CPU s | of them training | peak MiB | first and last loss |\n|---|---|---|---|---|")
    for way, rounds in figures.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in ("cpu", "training", "mib")}
        first, last = (statistics.median(one["losses"][at] for one in rounds) for at in (0, -1))
        losses = f"{first:.4f}, {last:.4f}" if way != "start" else ""
        print(f"| {way} | {middle['cpu']:.1f} | {middle['training']:.1f} | {middle['mib']:.0f} | {losses} |")
    ratios = [
        one["training"] / other["training"]
        for one, other in zip(figures["trainer"], figures["spunge"], strict=True)
    ]  # fmt: skip
    print(f"\nTrainer / Spunge, training: {statistics.median(ratios):.2f} ({min(ratios):.2f}…{max(ratios):.2f})")


def start(options: argparse.Namespace) -> tuple[float, list[float]]:
    import peft  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    return 0.0, [0.0]


def by_trainer(options: argparse.Namespace) -> tuple[float, list[float]]:
    import peft
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )  # fmt: skip

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.01, target_modules=list(TARGETS))
    model = peft.get_peft_model(model, lora)
    texts = [json.loads(line)["text"] for line in Path(options.data).read_text().splitlines()]
    rows = [{"input_ids": tokenizer(text, truncation=True, max_length=512)["input_ids"]} for text in texts]
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, per_device_train_batch_size=BATCH, learning_rate=RATE, lr_scheduler_type="cosine", seed=0,
            max_steps=options.steps, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows)  # pyright: ignore[reportArgumentType]
        started = time.process_time()
        trainer.train()
        training = time.process_time() - started
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return training, losses


def by_spunge(options: argparse.Namespace) -> tuple[float, list[float]]:
    from spunge.interfaces import Work
    from spunge.rows.sources import Source, load_corpus
    from spunge.unlearners import TaskVectorNegation
    from spunge.weights.language_model import LanguageModel, Resident

    base = LanguageModel(id=options.model)
    corpus = load_corpus([Source(path=options.data)])
    lora = {"rank": RANK, "alpha": RANK, "target_modules": TARGETS}
    method = TaskVectorNegation.model_validate(
        {"lora": lora, "learning_rate": RATE, "batch_size": BATCH, "max_steps": options.steps}
    )
    with tempfile.TemporaryDirectory() as folder, closing(Resident()) as resident:
        output, scratch = Path(folder) / "output", Path(folder) / "scratch"
        output.mkdir()
        scratch.mkdir()
        resident.base(base)
        started = time.process_time()
        method.unlearn(base, corpus, None, Work(resident, output, scratch))
        training = time.process_time() - started
        losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    return training, losses


if __name__ == "__main__":
    main()
