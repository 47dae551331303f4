"""Academic benchmarks through lm-eval (the extra `harness`), noted item by item like everything else.

lm-eval defines the tasks, the prompts and the metrics; this module gives it the model in memory, compiles each prompt
template once, finds data sets below a directory where there is no network, and mends `truthfulqa_mc2`, which
underflows on damaged models.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError, MissingExtra, RecipeError, first_line
from spunge.files import replaced
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import ACCURACY, ACCURACY_BY_LENGTH, P_CORRECT, Metric
from spunge.rows.items import NAN, Item, ItemTable, Measurement, item_table
from spunge.rows.sources import Source, item_id, load_corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel

SUITES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "paper-ten": (
        ("arc_challenge", 25), ("arc_easy", 25), ("hellaswag", 10), ("mmlu", 5), ("truthfulqa_mc2", 0),
        ("winogrande", 5), ("gsm8k", 5), ("mathqa", 5), ("piqa", 5), ("pubmedqa", 5),
    ),
    "wmdp": (("wmdp_bio", 0), ("wmdp_cyber", 0)),
    "mmlu-0shot": (("mmlu", 0),),
    "mmlu-5shot": (("mmlu", 5),),
}  # fmt: skip
"""Suite → (lm-eval task, solved examples before each question), as the paper reports them."""

# Where lm-eval keeps the tasks of the suites: reading these few takes a moment, the whole index up to twenty seconds.
_FOLDERS = (
    "arc",
    "hellaswag",
    "mmlu/default",
    "truthfulqa",
    "winogrande",
    "gsm8k",
    "mathqa",
    "piqa",
    "pubmedqa",
    "wmdp",
)
_PUBMEDQA = "bigbio/pubmed_qa"
_MC2 = "truthfulqa_mc2"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")


class Harness(Evaluator):
    """Runs lm-eval tasks."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        ACCURACY,
        ACCURACY_BY_LENGTH,
        Metric("exact_match,strict-match", "exact matches", "exact match", share=True),
        Metric("exact_match,flexible-extract", "exact matches, read leniently", share=True, shown=False),
        Metric("exact_match", "exact matches", "exact match", share=True, shown=False),
        replace(P_CORRECT, shown=False),
    )
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    method: Literal["harness"] = "harness"
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of lm-eval tasks or groups, or a suite: paper-ten, wmdp, mmlu-0shot, mmlu-5shot."""
    shots: int | None = Field(default=None, ge=0)
    """How many solved examples stand before each question; None leaves it to the suite, or to the task."""
    attributes: tuple[str, ...] = ()
    """Columns of the tasks' rows that become the item's attributes; null where a task has no such column."""
    limit: int | None = Field(default=None, ge=1)
    """Asks only the first so many questions of each task."""
    fewshot_seed: int = 1234
    """Of the choice of solved examples, where a task draws them."""
    offline_root: str | None = None
    """A directory that holds data sets as `<path>/<name>/<split>.jsonl`; nothing is fetched then. Results are
    remembered by its path, so give it another name when its files change."""
    batch_size: int = Field(default=16, ge=1)
    """How many rows go through the model at once."""

    @property
    def depends_on(self) -> dict[str, str]:
        """lm-eval, whose tasks, prompts and metrics change from one release to the next."""
        _lm_eval()
        return {"lm_eval": importlib.metadata.version("lm_eval")}

    def check(self) -> None:
        """Refuses tasks that lm-eval does not have, and to go on without lm-eval."""
        _lm_eval()
        with _log_to(Path(os.devnull)):
            _manager(self.planned())

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what memory asking takes; lm-eval alone knows how many questions there are."""
        return forecast_asking(base, (), batch_size=self.batch_size)

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the metrics of every task's items, and the log-likelihoods of the choices where there are any.

        Raises:
            MissingExtra: lm-eval is not installed.
            RecipeError: There is no such task.
            DataError: A data set is neither below `offline_root` nor to be had from the hub.
        """
        evaluator, manager = _lm_eval(), _manager(self.planned())
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        tables: list[ItemTable] = []
        planned = self.planned()
        with prompt_cache(), data_sets(self.offline_root), _log_to(work.scratch / "lm_eval.log"):
            # A model in memory keeps its own batch size: the one given to `simple_evaluate` is ignored for it.
            model = HFLM(pretrained=variant.model, tokenizer=variant.tokenizer, batch_size=self.batch_size)
            for number, (task, shots) in enumerate(planned):
                work.progress(f"{self.suite}: {task}", number, len(planned))
                done = work.scratch / f"task_{number}.parquet"
                if done.exists():  # by an attempt that was killed later
                    tables.append(pl.read_parquet(done))
                    continue
                results = evaluator.simple_evaluate(
                    model,
                    tasks=[task],
                    num_fewshot=shots,
                    limit=self.limit,
                    bootstrap_iters=0,
                    task_manager=manager,
                    fewshot_random_seed=self.fewshot_seed,
                )
                measured = [
                    one
                    for name, samples in sorted(results["samples"].items())
                    for one in read_samples(name, samples, self.attributes)
                ]
                tables.append(item_table(self.suite, measured))
                with replaced(done) as temporary:
                    tables[-1].write_parquet(temporary)
        work.progress(self.suite, len(planned), len(planned))
        return pl.concat(tables)

    def planned(self) -> list[tuple[str, int | None]]:
        """Returns the lm-eval tasks to run, each with its number of solved examples."""
        planned: list[tuple[str, int | None]] = []
        for name in self.tasks:
            for task, shots in SUITES.get(name, ((name, None),)):
                planned.append((task, shots if self.shots is None else self.shots))
        return planned


def read_samples(task: str, samples: Sequence[Mapping[str, Any]], attributes: Sequence[str]) -> list[Measurement]:
    """Turns lm-eval's logged samples of one task into items, in the order of its rows."""
    values: dict[int, dict[str, float | None]] = {}
    documents: dict[int, Mapping[str, Any]] = {}
    for sample in samples:
        number = sample["doc_id"]
        documents[number] = sample
        scores = values.setdefault(number, {})
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"  # as lm-eval spells it
        for metric in sample["metrics"]:
            scores |= _numbers(metric + suffix, sample[metric])
        scores |= _choices(task, sample)
    seen: Counter[str] = Counter()
    measured = []
    for number in sorted(documents):
        sample = documents[number]
        seen[sample["doc_hash"]] += 1
        name = item_id(task, sample["doc_hash"], seen[sample["doc_hash"]])
        chosen = json.dumps({column: sample["doc"].get(column) for column in attributes}, default=str)
        scores = values[number]
        broken = None in scores.values()  # one NaN among the choices, and nothing is known of the question
        scores = {**(dict.fromkeys(scores) if broken else scores), NAN: float(broken)}
        measured.append(Measurement(Item(name, chosen, sample["doc"]), task, scores, {}))
    return measured


def _numbers(metric: str, value: Any) -> dict[str, float | None]:
    if isinstance(value, bool | int | float | np.number):
        return {metric: float(value) if math.isfinite(value) else None}
    if isinstance(value, tuple | list) and all(isinstance(part, int | float) for part in value):
        return {f"{metric}:{index}": float(part) if math.isfinite(part) else None for index, part in enumerate(value)}
    raise DataError(f"lm-eval's metric {metric!r} is no number ({type(value).__name__}): leave this task out")


def _choices(task: str, sample: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the choices' log-likelihoods, and what follows from them."""
    answers = sample["filtered_resps"]
    if len(answers) < 2 or not all(isinstance(a, tuple | list) and len(a) == 2 for a in answers):
        return {}
    loglikelihoods = np.array([float(score) for score, _ in answers])
    scores: dict[str, float | None] = {
        f"choice_loglikelihood:{index}": float(score) if np.isfinite(score) else None
        for index, score in enumerate(loglikelihoods)
    }
    if not np.isfinite(loglikelihoods).all():
        return scores
    shares = np.exp(loglikelihoods - loglikelihoods.max())
    shares /= shares.sum()
    scores["chosen"] = float(loglikelihoods.argmax())
    if task == _MC2:
        # lm-eval exponentiates first, and 0/0 is what a damaged model gets for it.
        scores["acc"] = float(shares[np.array(sample["doc"]["mc2_targets"]["labels"]) == 1].sum())
    elif (gold := _gold(sample)) is not None:
        scores["answer"] = float(gold)
        scores["p_correct"] = float(shares[gold])
        scores["margin"] = float(loglikelihoods[gold] - np.delete(loglikelihoods, gold).max())
    return scores


def _gold(sample: Mapping[str, Any]) -> int | None:
    """Returns the index of the right choice; None where contexts differ, not choices, or several are right."""
    target, texts = sample["target"], [str(one[1]).strip() for one in sample["arguments"]]
    if isinstance(target, int) and not isinstance(target, bool):
        return target if 0 <= target < len(texts) and len(set(texts)) > 1 else None
    return texts.index(target) if isinstance(target, str) and texts.count(target) == 1 else None


@contextlib.contextmanager
def prompt_cache() -> Iterator[None]:
    """Lets lm-eval compile each prompt template once instead of once a row."""
    from lm_eval import utils  # pyright: ignore[reportMissingImports]

    compile_template = utils.env.from_string
    utils.env.from_string = functools.lru_cache(maxsize=4096)(compile_template)
    try:
        yield
    finally:
        del utils.env.from_string  # the instance's own attribute; the class's method shows again


@contextlib.contextmanager
def data_sets(root: str | None) -> Iterator[None]:
    """Gives lm-eval data sets from below a directory, or from the hub with one clear error where it cannot."""
    import datasets

    fetch = datasets.load_dataset
    datasets.load_dataset = functools.partial(_load_data_set, fetch, root)
    try:
        yield
    finally:
        datasets.load_dataset = fetch


def _load_data_set(
    fetch: Callable[..., Any], root: str | None, path: str, name: str | None = None, **options: Any
) -> Any:
    if root is not None:
        return _load_local(Path(root).expanduser(), path, name)
    if path == _PUBMEDQA:
        # Its repository holds a script, which data sets are no longer loaded by; the hub keeps a converted copy.
        options["revision"] = "refs/convert/parquet"
    try:
        return fetch(path=path, name=name, **options)
    except Exception as error:  # the hub client raises many kinds, none of which a user can tell apart
        wanted = "/".join(filter(None, (path, name)))
        raise DataError(
            f"{wanted}: not to be had from the hub ({first_line(error, 200)}); put its splits below a directory, "
            f"as {wanted}/test.jsonl, and name it as offline_root"
        ) from error


def _load_local(root: Path, path: str, name: str | None) -> Any:
    import datasets

    folder = root / path / (name or "")
    if path == _PUBMEDQA and not folder.is_dir():
        folder = root / path
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: no data set there; it needs a file for each split, such as test.jsonl")
    if path == _PUBMEDQA and (folder / "ori_pqal.json").exists():
        return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in _pubmedqa(folder).items()})
    splits = {}
    for file in files:
        rows = load_corpus([Source(path=str(file))], require="rows").rows
        splits[file.stem] = datasets.Dataset(rows.to_arrow())
    return datasets.DatasetDict(splits)


def _pubmedqa(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads PubMedQA as its authors publish it: an object by id, and the ids of the test part in another file."""
    try:
        rows = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
        official = folder / "test_ground_truth.json"
        chosen = set(json.loads(official.read_text(encoding="utf-8"))) if official.exists() else set(rows)
        wanted = {
            number: {name: row[name] for name in ("QUESTION", "CONTEXTS", "final_decision")}
            for number, row in rows.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}/ori_pqal.json: not PubMedQA's labelled part: {error}") from error
    test = [row for number, row in wanted.items() if number in chosen]
    other = [row for number, row in wanted.items() if number not in chosen]
    # Without the list of test ids all rows are asked, and solved examples, where wanted, come from among them.
    return {"train": other or test, "validation": other or test, "test": test}


def _lm_eval() -> Any:
    try:
        from lm_eval import evaluator  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("lm-eval is not installed: pip install 'spunge[harness]'") from error
    return evaluator


def _manager(planned: Sequence[tuple[str, int | None]]) -> Any:
    import lm_eval.tasks  # pyright: ignore[reportMissingImports]

    names = [task for task, _ in planned]
    home = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_path=[home / name for name in _FOLDERS], include_defaults=False)
    if set(names) <= set(manager.all_tasks):
        return manager
    manager = lm_eval.tasks.TaskManager()
    for name in names:
        if name not in manager.all_tasks and not Path(name).exists():
            close = difflib.get_close_matches(name, [*SUITES, *manager.all_tasks], n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise RecipeError(f"lm-eval has no task {name!r}{hint}")
    return manager


@contextlib.contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Sends lm-eval's log and progress bars to a file."""
    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate)
    with file.open("a", encoding="utf-8") as stream:
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            with contextlib.redirect_stderr(stream):
                yield
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before
