"""Does Spunge find what lm-eval's own command line finds, and which of the two is nearer to float64?

Run: python benchmarks/parity.py PYTHON MODEL [ROOT] with the Python of an environment of its own that has lm-eval:

    python3 -m venv lm-eval
    lm-eval/bin/pip install lm-eval==0.4.13 torch==2.13.0 transformers==5.23.0 accelerate
    python benchmarks/parity.py lm-eval/bin/python MODEL ROOT

MODEL is a checkpoint's directory, ROOT a folder of data sets as `--offline-root` takes it (docs/experiments.md);
without one, nine rows a task in the true schemas are made up. Every multiple-choice task of the suites `paper-ten` and
`wmdp` whose data are there is asked by both, in float32, sixteen rows at once, on the CPU. Nothing is fetched.

Beside what the two find: the same pairs once more in lm-eval's own batches with nothing shared ("replayed"), which
should be lm-eval's figures bit for bit, and so with one row at once: how far lm-eval would be from itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from ruamel.yaml import YAML

from spunge.asking.encoding import Request, context_window, encode_pairs, fit_to_window
from spunge.errors import DataError
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.interfaces import LoadedVariant, Work
from spunge.recipe import offline, reading
from spunge.rows.sources import Source, load_corpus
from spunge.weights.language_model import LanguageModel, Resident

BATCH = 16
PLACES = {
    "arc_challenge": "allenai/ai2_arc/ARC-Challenge", "arc_easy": "allenai/ai2_arc/ARC-Easy",
    "hellaswag": "Rowan/hellaswag", "mmlu": "cais/mmlu/all", "mathqa": "regisss/math_qa", "piqa": "baber/piqa",
    "truthfulqa_mc2": "truthfulqa/truthful_qa/multiple_choice", "winogrande": "allenai/winogrande/winogrande_xl",
    "pubmedqa": "bigbio/pubmed_qa/pubmed_qa_labeled_fold0_source",
    "wmdp_bio": "cais/wmdp/wmdp-bio", "wmdp_cyber": "cais/wmdp/wmdp-cyber",
}  # fmt: skip
"""lm-eval's task → where its splits lie below the root."""


@dataclass
class Asked:
    """One question: its pairs, and what each side found."""

    pairs: list[tuple[str, str]]
    loglikelihoods: list[float]
    verdicts: dict[str, float]
    """`acc`, and `acc_norm` where the task has it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("python", help="the Python of an environment with lm-eval 0.4.13")
    parser.add_argument("model", type=Path, help="a checkpoint's directory")
    parser.add_argument("root", type=Path, nargs="?", help="a folder of data sets; made up where there is none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or made_up(Path(folder) / "rows")
        suites = dict(found(root))
        theirs = lm_eval(options.python, options.model, suites, root, Path(folder))
        handle = LanguageModel(id=str(options.model), dtype="float32")
        model, tokenizer = handle.load(), handle.load_tokenizer()
        ours = {name: spunge(suite, model, tokenizer, Path(folder)) for name, suite in suites.items()}
        print(
            "| task | items | acc: lm-eval, Spunge | acc_norm | items that differ | largest log-likelihood | apart | "
            "relative | float32 steps | lm-eval's error | Spunge's error | replayed | replayed one by one |"
        )
        print("|---" * 13 + "|")
        tasks = {
            (f"mmlu_{task}" if name == "mmlu" else name): ours[name][task] for name in suites for task in ours[name]
        }
        for task, found_here in tasks.items():
            assert [one.pairs for one in theirs[task]] == [one.pairs for one in found_here], f"{task}: prompts differ"
        longest = context_window(model, tokenizer)
        requests = {
            task: [
                fit_to_window(request, longest)[0]
                for one in found_here
                for request in encode_pairs(tokenizer, one.pairs)
            ]
            for task, found_here in tasks.items()
        }
        # lm-eval scores the pairs of all its tasks together.
        everything = [request for name in theirs for request in requests[name]]
        replays = [replayed(model, everything, size) for size in (BATCH, 1)]
        exact = model.double()
        for name in theirs:
            count = len(requests[name])
            these, replays = [replay[:count] for replay in replays], [replay[count:] for replay in replays]
            print(row(name, theirs[name], tasks[name], alone(exact, requests[name]), these), flush=True)


def made_up(root: Path) -> Path:
    """Writes the rows that the tests use."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from paper_world import write_benchmarks  # pyright: ignore[reportMissingImports]

    return write_benchmarks(root)


def found(root: Path) -> Iterator[tuple[str, MultipleChoice]]:
    """Yields the suites whose data lie below the root, by lm-eval's name of the task."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suites.yaml"
        file.write_text("[{suite: paper-ten}, {suite: wmdp}]")
        suites = reading.read_suite(str(file))
    for suite in suites:
        if not isinstance(suite, MultipleChoice):
            continue
        try:
            yield suite.suite, offline.from_folder(suite.model_copy(update={"batch_size": BATCH}), root)
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)


def lm_eval(
    python: str, model: Path, suites: dict[str, MultipleChoice], root: Path, folder: Path
) -> dict[str, list[Asked]]:
    """Runs lm-eval's command line on copies of its own tasks that read local files; returns its logged samples."""
    code = "import lm_eval, pathlib; print(pathlib.Path(lm_eval.__file__).parent / 'tasks')"
    home = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    names = {}
    (folder / "tasks").mkdir()
    for suite, settings in suites.items():
        place = root / PLACES[suite]
        if suite != "mmlu":
            names[suite] = write_task(home, folder, suite, files(place), settings.shots)
            continue
        rows = {
            split: load_corpus([Source(path=str(file))], require="rows").rows for split, file in files(place).items()
        }
        for subject in rows["test"]["subject"].unique(maintain_order=True):
            local = {}
            for split, table in rows.items():
                local[split] = folder / f"{subject}_{split}.jsonl"
                table.filter(pl.col("subject") == subject).write_ndjson(local[split])
            names[f"mmlu_{subject}"] = write_task(home, folder, f"mmlu_{subject}", local, settings.shots)
    command = [
        python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
        "--tasks", ",".join(names.values()), "--include_path", str(folder / "tasks"), "--batch_size", str(BATCH),
        "--device", "cpu", "--output_path", str(folder / "found"), "--log_samples",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {name: samples(folder / "found", task) for name, task in names.items()}


def files(place: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(place.glob("*.jsonl"))}


def write_task(home: Path, folder: Path, name: str, data: dict[str, Path], shots: int) -> str:
    """Writes a task that is lm-eval's own but for where its rows come from."""
    (original,) = [file for file in home.rglob(f"{name}.yaml") if "default" in file.parts or name[:5] != "mmlu_"] or [
        home / "winogrande" / "default.yaml"
    ]
    with (folder / "tasks" / f"{name}.yaml").open("w") as stream:
        YAML(typ="safe").dump(
            {
                "include": str(original), "task": f"local_{name}", "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": {split: str(file) for split, file in data.items()}},
                "num_fewshot": shots,
            },
            stream,
        )  # fmt: skip
    return f"local_{name}"


def samples(folder: Path, task: str) -> list[Asked]:
    """Reads what lm-eval logged of a task, in the order of its rows."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    logged = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda each: each["doc_id"])
    return [
        Asked(
            [(one["arg_0"], one["arg_1"]) for one in each["arguments"].values()],
            [float(answer[0][0]) for answer in each["resps"]],
            {metric: float(each[metric]) for metric in ("acc", "acc_norm") if metric in each},
        )
        for each in logged
    ]


def spunge(suite: MultipleChoice, model: Any, tokenizer: Any, folder: Path) -> dict[str, list[Asked]]:
    """Asks a suite; returns every task's questions in the order of the rows."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    work = Work(Resident(), folder, folder)
    questions = suite.questions()
    table = suite.evaluate(LoadedVariant("base", model, tokenizer, ""), work)
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for item, metric, value in table.select("item", "metric", "value").iter_rows():
        values[item][metric] = value
    return {
        task: [
            Asked(
                one.pairs,
                [values[one.item.id][f"choice_loglikelihood:{n}"] for n in range(len(one.pairs))],
                {metric: values[one.item.id][metric] for metric in ("acc", "acc_norm")},
            )
            for one in group
        ]
        for task, group in questions.items()
    }


def row(
    task: str, theirs: Sequence[Asked], ours: Sequence[Asked], exact: list[float], replays: list[list[float]]
) -> str:
    """Compares one task, and writes a line of the table."""
    first, second = (np.array([score for one in side for score in one.loglikelihoods]) for side in (theirs, ours))
    apart, size = np.abs(first - second), np.abs(first)
    metrics = [m for m in ("acc", "acc_norm") if m in theirs[0].verdicts]
    differ = sum(
        any(abs(one.verdicts[m] - two.verdicts[m]) > 1e-4 for m in metrics)
        for one, two in zip(theirs, ours, strict=True)
    )
    means = {m: ", ".join(f"{sum(one.verdicts[m] for one in side) / len(side):.4f}" for side in (theirs, ours))
             for m in metrics}  # fmt: skip
    errors = [np.abs(each - np.array(exact)).max() for each in (first, second)]
    errors += [np.abs(first - np.array(each)).max() for each in replays]
    cells = [
        task, f"{len(ours)}", means["acc"], means.get("acc_norm", ""), f"{differ}", f"{size.max():.0f}",
        f"{apart.max():.1e}", f"{(apart / size).max():.1e}",
        f"{(apart / np.spacing(size.astype(np.float32))).max():.1f}", *(f"{error:.1e}" for error in errors),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@torch.inference_mode()
def alone(model: Any, requests: Sequence[Request]) -> list[float]:
    """The log-likelihoods the long way: one text at a time, in the model's own precision."""
    scores = []
    for request in requests:
        ids = torch.tensor([[*request.context, *request.continuation[:-1]]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(request.context) - 1 :].log_softmax(-1)
        scores.append(logits.gather(-1, torch.tensor(request.continuation)[:, None]).sum().item())
    return scores


@torch.inference_mode()
def replayed(model: Any, requests: Sequence[Request], batch_size: int) -> list[float]:
    """Nothing shared: the same rows in the same batches as lm-eval's, padded alike, summed in float32."""
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    order = sorted(range(len(requests)), key=lambda n: (-_length(requests[n]), _ids(requests[n])))
    for index in order:
        rows[(*requests[index].context, *requests[index].continuation[:-1])].append(index)
    scores = [0.0] * len(requests)
    texts = list(rows)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in batch])
        logits = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        for number, text in enumerate(batch):
            for index in rows[text]:
                wanted = torch.tensor(requests[index].continuation)
                mine = logits[number, len(text) - len(wanted) : len(text)]
                scores[index] = mine.gather(-1, wanted[:, None]).sum().item()
    return scores


def _length(request: Request) -> int:
    return len(request.context) + len(request.continuation)


def _ids(request: Request) -> tuple[int, ...]:
    return (*request.context, *request.continuation)


if __name__ == "__main__":
    main()
