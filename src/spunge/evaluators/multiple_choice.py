"""Multiple choice by log-likelihood: which answer is likeliest, whole or by its letters or bytes, and by how much.

Two styles: `letters` asks for the letter of one of the listed choices, as MMLU and WMDP do; `continuation` asks how
likely each choice is as the text that follows the question. The log-likelihoods of all choices are kept, since near
chance the accuracy says little: there p(correct), the margin and the histogram of chosen answers tell more.

A published benchmark (`benchmark: arc`) is asked as lm-eval asks it, from its rows as they are on the hub.
"""

from __future__ import annotations

import json
import random
import string
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError
from spunge.evaluators import benchmarks
from spunge.evaluators.benchmarks import BENCHMARKS, Asked
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Progress, Work, silent
from spunge.metrics import ACCURACY, ACCURACY_BY_LENGTH, P_CORRECT, Metric
from spunge.rows.items import NAN, Item, ItemTable, Measurement, RowSettings, item_table, load_items, suite_items
from spunge.rows.sources import Source
from spunge.weights.shape import token_counts

if TYPE_CHECKING:
    from spunge.asking.encoding import Request
    from spunge.weights.language_model import LanguageModel

LETTERS = string.ascii_uppercase
AnswerForm = Literal["auto", "index", "index_from_one", "letter", "text"]


class MultipleChoice(RowSettings, Evaluator):
    """Scores every choice of every question by its log-likelihood."""

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, P_CORRECT, replace(ACCURACY_BY_LENGTH, shown=False))
    in_part: ClassVar[bool] = True
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    method: Literal["multiple_choice"] = "multiple_choice"
    sources: tuple[Source, ...]
    """Rows with `question`, `choices` (a list, a JSON list, or columns A, B, C …) and `answer`; or a benchmark's."""
    benchmark: benchmarks.Name | None = None
    """The benchmark whose rows these are: they are read and asked as lm-eval does; null for rows of the plain shape."""
    task: str | None = None
    """The column that names a row's task, such as MMLU's `subject`; without it the suite is one task."""
    answers: AnswerForm = "auto"
    """What the column `answer` holds; `auto` finds out, and asks when two readings fit and differ."""
    style: Literal["letters", "continuation"] = "letters"
    """Ask for the letter of a listed choice, or score the choice itself as the text that follows."""
    prompt: str | None = None
    """The question as the model sees it; `{options}` are the lettered choices, `{question}` and any other column its
    own text. Default: question, options and `Answer:` for letters; `{question}` alone for a continuation."""
    option: str = "{letter}. {choice}"
    """One line of `{options}`."""
    delimiter: str = " "
    """What stands between the prompt and the answer."""
    description: str = ""
    """What stands before everything; may hold columns, as in `about {subject}.\\n\\n`."""
    shots: int = Field(default=0, ge=0)
    """How many solved questions stand before each question."""
    shots_from: tuple[Source, ...] = ()
    """Rows of the same shape to take the solved questions from: the first ones, of the same task if there is one. Some
    benchmarks draw others for every question, by `shots_seed`."""
    shots_seed: int = 1234
    """Of the solved questions where a benchmark draws them; lm-eval's own is 1234."""
    separator: str = "\n\n"
    """What stands after each solved question."""
    batch_size: int = Field(default=16, ge=1)
    """How many rows go through the model at once."""

    @model_validator(mode="after")
    def _a_benchmark_says_how_it_is_asked(self) -> MultipleChoice:
        layout = {"style", "prompt", "option", "description", "separator", "delimiter", "answers"}
        overridden = layout & self.model_fields_set
        if self.benchmark is not None and overridden:
            raise ValueError(
                f"{min(overridden)}: {self.benchmark} says itself how it is asked; leave this out, or `benchmark`"
            )
        return self

    @property
    def depends_on(self) -> dict[str, str]:
        """How a context and an option that merge into one token are parted, where no blank keeps them from it.

        Part of the key only there: with a blank between them results never depended on it.
        """
        return {} if self.delimiter[:1].isspace() else {"context and option": "apart where they merge"}

    def check(self) -> None:
        """Refuses rows that cannot be asked, and too few solved questions."""
        self.questions()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading every question with all its answers takes."""
        questions = [question for group in self.questions().values() for question in group]
        texts = ["".join((*dict.fromkeys(question.contexts), *question.targets)) for question in questions]
        before = {question.before for question in questions}
        if len(before) > 1:
            texts = [question.before + text for question, text in zip(questions, texts, strict=True)]
        targets = [target for question in questions for target in question.targets]
        scored = 1 if self.style == "letters" else max(token_counts(base, targets))
        prefix = before.pop() if len(before) == 1 else ""
        return forecast_asking(base, texts, batch_size=self.batch_size, scored=scored, prefix=prefix)

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns acc, acc_norm, acc_bytes, p_correct, margin, chosen, answer, nan, truncated, choice_loglikelihood:i.

        Raises:
            DataError: A column is missing or holds what cannot be an answer.
        """
        return self.ask(self.questions(work.progress), variant, work)

    def ask(self, questions: Mapping[str, Sequence[Question]], variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns what `evaluate` does of these questions: task → what is asked, perhaps in other words."""
        measured = []
        for task, group in questions.items():
            scores = _score(variant, group, work, self.batch_size, f"{self.suite}: {task}")
            measured += [
                Measurement(question.item, task, values, question.texts)
                for question, values in zip(group, scores, strict=True)
            ]
        return item_table(self.suite, measured)

    def questions(self, progress: Progress = silent, *, shift: int = 0) -> dict[str, list[Question]]:
        """Returns the questions of every task, as the model sees them.

        Args:
            progress: Told how answers are read.
            shift: By how many places each row's choices are moved, the last ones to the front.
        """
        needs = BENCHMARKS[self.benchmark].needs if self.benchmark else ("question", "answer")
        loaded = suite_items(self, *needs, *([self.task] if self.task else []))
        path = self.sources[0].path
        if shift:
            form = self._form(loaded, path)
            loaded = [replace(item, row=_shifted(item.row, form, path, shift)) for item in loaded]
            return self.model_copy(update={"answers": "index"})._questions(loaded, path, progress)
        return self._questions(loaded, path, progress)

    def _questions(self, loaded: Sequence[Item], path: str, progress: Progress) -> dict[str, list[Question]]:
        if self.benchmark is None:
            progress(f"{self.suite}: answers are read as {self._form(loaded, path)}", 0, len(loaded))
        solved = self._solved()
        tasks: dict[str, list[Question]] = defaultdict(list)
        for item, wording in zip(loaded, self._ask(loaded, path), strict=True):
            task = self._task(item.row)
            if empty := next((number for number, text in enumerate(wording.answers, 1) if not text.strip()), None):
                # Nothing to score has a likelihood of 1, and would win.
                question = wording.contexts[empty - 1].strip()[-60:]
                raise DataError(
                    f"{path}: option {empty} of {question!r} is empty: fill it in, remove the row, or set `where`"
                )
            known = solved.get(task, _Solved(self.shots))
            if len(known.pool) < known.needed:
                count = len(known.pool)
                raise DataError(f"{self.suite}: {count} solved questions for task {task!r}, shots: {self.shots}")
            before = wording.description + "".join(known.before(item.row))
            tasks[task].append(
                Question(
                    item, before, wording.contexts, self.delimiter, wording.answers, wording.right, wording.by_share
                )
            )
        return dict(tasks)

    def _solved(self) -> Mapping[str, _Solved]:
        if not self.shots:
            return {}
        if not self.shots_from:
            raise DataError(f"{self.suite}: shots: {self.shots} needs shots_from: rows to take solved questions from")
        loaded = load_items(self.shots_from)
        rows: dict[str, list[tuple[Mapping[str, Any], str]]] = defaultdict(list)
        for item, wording in zip(loaded, self._ask(loaded, self.shots_from[0].path), strict=True):
            first = wording.right[0]
            text = wording.contexts[first] + self.delimiter + wording.answers[first] + self.separator
            rows[self._task(item.row)].append((item.row, text))
        chosen = BENCHMARKS[self.benchmark].shots if self.benchmark else "first"
        # Each task draws from a seed of its own, so that one task's rows do not change another's examples.
        return {task: _Solved(self.shots, chosen, random.Random(self.shots_seed), pool) for task, pool in rows.items()}

    def _ask(self, loaded: Sequence[Item], path: str) -> list[Asked]:
        if self.benchmark is not None:
            return [benchmarks.ask(self.benchmark, item.row, path) for item in loaded]
        form = self._form(loaded, path)
        return [self._plainly(item.row, form, path) for item in loaded]

    def _form(self, loaded: Sequence[Item], path: str) -> str:
        if self.answers != "auto":
            return self.answers
        return detect_form([(item.row.get("answer"), _choices(item.row, path)) for item in loaded], path)

    def _task(self, row: Mapping[str, Any]) -> str:
        return self.suite if self.task is None else str(row[self.task])

    def _plainly(self, row: Mapping[str, Any], form: str, path: str) -> Asked:
        """Returns a row of the plain shape as a question."""
        choices = _choices(row, path)
        right = _READINGS[form](row["answer"], choices)
        if right is None:
            raise DataError(f"{path}: answer {row['answer']!r} is no {form} of {len(choices)} choices; set `answers`")
        letters = self.style == "letters"
        template = self.prompt or ("{question}\n{options}\nAnswer:" if letters else "{question}")
        options = "\n".join(
            self.option.format(letter=letter, choice=choice) for letter, choice in zip(LETTERS, choices, strict=False)
        )
        prompt = _fill(template, {**row, "question": str(row["question"]).strip(), "options": options})
        answers = tuple(LETTERS[: len(choices)]) if letters else choices
        return Asked((prompt,) * len(choices), answers, (right,), _fill(self.description, row))


@dataclass
class _Solved:
    """The solved questions of one task, and how those before a question are chosen."""

    shots: int
    chosen: Literal["first", "drawn", "drawn_but_one"] = "first"
    random: random.Random = field(default_factory=random.Random)
    pool: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)

    @property
    def needed(self) -> int:
        return self.shots + (self.shots > 0 and self.chosen == "drawn_but_one")

    def before(self, row: Mapping[str, Any]) -> list[str]:
        """Returns the texts that stand before a question."""
        if self.chosen == "first":
            return [text for _, text in self.pool[: self.shots]]
        drawn = self.random.sample(self.pool, self.needed)
        if self.chosen == "drawn_but_one":
            drawn = [each for each in drawn if each[0] != row][: self.shots]
        return [text for _, text in drawn]


@dataclass(frozen=True)
class Question:
    """One question as the model sees it."""

    item: Item
    before: str
    """Description and solved questions."""
    contexts: tuple[str, ...]
    """The question itself, ready for an answer: one text a choice, most often the same."""
    delimiter: str
    """What stands between the context and what is scored."""
    targets: tuple[str, ...]
    """What is scored, one text a choice."""
    right: tuple[int, ...]
    """The indices of the right ones."""
    by_share: bool = False
    """Whether it is scored by the share of probability on them."""

    @property
    def texts(self) -> dict[str, str]:
        """What a reader of its item wants to see; lettered choices stand in the question itself."""
        texts = {"question": self.contexts[0].rstrip()}
        if any(target not in LETTERS for target in self.targets):
            texts["choices"] = json.dumps(self.targets, ensure_ascii=False)
        return texts

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The context and the continuation of every choice."""
        return [
            (self.before + context, self.delimiter + target)
            for context, target in zip(self.contexts, self.targets, strict=True)
        ]


def detect_form(answers: Sequence[tuple[Any, Sequence[str]]], path: str) -> str:
    """Says how a column of answers is to be read: as an index, an index from one, a letter, or the choice's text.

    Args:
        answers: Every row's answer with its choices.
        path: Where they come from, for errors.

    Raises:
        DataError: No reading fits every row, or two fit and differ.
    """
    fitting = {}
    for form, read in _READINGS.items():
        indices = [read(answer, choices) for answer, choices in answers]
        if None not in indices:
            fitting[form] = indices
    # Numbers from 1 to n-1 fit both counts; a benchmark that never says 0 nor n would be odd, so 0 wins.
    if "index" in fitting and "index_from_one" in fitting:
        del fitting["index_from_one"]
    if not fitting:
        unread = {
            form: [n for n, (a, c) in enumerate(answers) if read(a, c) is None] for form, read in _READINGS.items()
        }
        form = min(unread, key=lambda form: len(unread[form]))  # what most rows hold, so that no innocent one is named
        number = unread[form][0]
        answer, choices = answers[number]
        meaning = f"no {form} of its {len(choices)} choices, as {len(answers) - len(unread[form])} other answers are"
        if len(unread[form]) == len(answers):
            meaning = "neither an index, a letter, nor the text of one of its choices"
        raise DataError(f"{path}: row {number + 1}: answer {answer!r} is {meaning}")
    if any(indices != next(iter(fitting.values())) for indices in fitting.values()):
        raise DataError(f"{path}: the column 'answer' can be read as {' or as '.join(fitting)}; set `answers`")
    return next(iter(fitting))


def measure(
    loglikelihoods: Sequence[float], texts: Sequence[str], right: Sequence[int], *, by_share: bool = False
) -> dict[str, float | None]:
    """Turns the log-likelihoods of one question's choices into its metrics.

    Args:
        loglikelihoods: One natural-log likelihood a choice.
        texts: The choices, without the blank before them; `acc_norm` divides by their length in characters, as
            lm-eval's does, and `acc_bytes` by that in UTF-8 bytes.
        right: The indices of the right choices.
        by_share: Whether `acc` is the share of probability on the right choices, as TruthfulQA's MC2 has it.
    """
    scores = np.asarray(loglikelihoods, dtype=np.float64)
    answer = float(right[0])
    stored = {
        f"choice_loglikelihood:{index}": float(score) if np.isfinite(score) else None
        for index, score in enumerate(scores)
    }
    if not np.isfinite(scores).all():
        # Not a wrong answer: on what must go that would be read as forgetting.
        unknown = dict.fromkeys(("acc", "acc_norm", "acc_bytes", "p_correct", "margin", "chosen"))
        return {**unknown, "answer": answer, NAN: 1.0, **stored}
    characters = np.array([max(len(text), 1) for text in texts])
    in_bytes = np.array([max(len(text.encode()), 1) for text in texts])
    chosen = int(scores.argmax())
    shares = np.exp(scores - scores.max())  # the likeliest choice gets 1: on a damaged model all would underflow
    p_correct = float(shares[list(right)].sum() / shares.sum())
    others = np.delete(scores, list(right))
    margin = float(scores[list(right)].max() - others.max()) if len(others) else None
    return {
        "acc": p_correct if by_share else float(chosen in right),
        "acc_norm": float((scores / characters).argmax() in right),
        "acc_bytes": float((scores / in_bytes).argmax() in right),
        "p_correct": p_correct,
        "margin": margin,
        "chosen": float(chosen),
        "answer": answer,
        NAN: 0.0,
        **stored,
    }


def _score(
    variant: LoadedVariant, questions: Sequence[Question], work: Work, batch_size: int, what: str
) -> list[dict[str, float | None]]:
    from spunge.asking.batching import Batching
    from spunge.asking.encoding import context_window, encode_pairs, fit_to_window
    from spunge.asking.likelihoods import loglikelihoods

    longest = context_window(variant.model, variant.tokenizer)
    pairs = [pair for question in questions for pair in question.pairs]
    fitted = [fit_to_window(request, longest) for request in encode_pairs(variant.tokenizer, pairs)]
    requests, cut = [request for request, _ in fitted], iter([was_cut for _, was_cut in fitted])
    _warn_of_what_cannot_be_compared(what, questions, requests, [was_cut for _, was_cut in fitted], longest)
    batching = Batching(batch_size, work.progress, work.scratch)
    scores = iter(loglikelihoods(variant.model, requests, batching, what=what))
    measured = []
    for question in questions:
        lls = [next(scores) for _ in question.targets]
        values = measure(lls, question.targets, question.right, by_share=question.by_share)
        truncated = [next(cut) for _ in question.targets]
        measured.append({**values, "truncated": float(any(truncated))})
    return measured


def _warn_of_what_cannot_be_compared(
    what: str, questions: Sequence[Question], requests: Sequence[Request], cut: Sequence[bool], window: int
) -> None:
    """Says which questions do not fit the model's window, and which options its tokenizer does not tell apart."""
    start, long, same = 0, 0, 0
    for question in questions:
        part = slice(start, start + len(question.targets))
        long += any(cut[part])
        same += len(set(requests[part])) < len(set(zip(question.contexts, question.targets, strict=True)))
        start = part.stop
    if long:
        warnings.warn(
            f"{what}: {long} of {len(questions)} questions are longer than the {window} tokens that the model reads, "
            "and are cut from the left (metric `truncated`): ask with fewer shots",
            stacklevel=2,
        )
    if same:
        warnings.warn(
            f"{what}: {same} of {len(questions)} questions have options that are the same tokens to this model, which "
            "cannot choose between them: the first counts as chosen",
            stacklevel=2,
        )


def _choices(row: Mapping[str, Any], path: str) -> tuple[str, ...]:
    choices = row.get("choices")
    if choices is None:
        choices = []
        for letter in LETTERS:
            if row.get(letter) is None:
                break
            choices.append(row[letter])
    elif isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: choices {choices[:40]!r} is no JSON list: {error.msg}") from error
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"{path}: a question needs 2 to {len(LETTERS)} choices: a list in the column 'choices', or columns A, B, …"
        )
    return tuple(str(choice) for choice in choices)


def _shifted(row: Mapping[str, Any], form: str, path: str, shift: int) -> dict[str, Any]:
    """A row whose choices stand `shift` places further on, and whose answer is the right one's index."""
    choices, right = _choices(row, path), _READINGS[form](row["answer"], _choices(row, path))
    order = [(place - shift) % len(choices) for place in range(len(choices))]
    return {
        **row,
        "choices": [choices[place] for place in order],
        "answer": None if right is None else order.index(right),
    }


def _fill(template: str, row: Mapping[str, Any]) -> str:
    try:
        return template.format_map(row)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(
            f"template {template!r} cannot be filled: {error}; columns are {', '.join(map(str, row))}"
        ) from error


def _as_index(answer: Any, choices: Sequence[str]) -> int | None:
    digits = str(answer).strip()
    return int(digits) if digits.isdecimal() and int(digits) < len(choices) else None


def _as_index_from_one(answer: Any, choices: Sequence[str]) -> int | None:
    digits = str(answer).strip()
    return int(digits) - 1 if digits.isdecimal() and 1 <= int(digits) <= len(choices) else None


def _as_letter(answer: Any, choices: Sequence[str]) -> int | None:
    letter = str(answer).strip().upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[: len(choices)] else None


def _as_text(answer: Any, choices: Sequence[str]) -> int | None:
    if not isinstance(answer, str):
        return None
    matches = [index for index, choice in enumerate(choices) if choice.strip() == answer.strip()]
    return matches[0] if matches else None


_READINGS = {"index": _as_index, "index_from_one": _as_index_from_one, "letter": _as_letter, "text": _as_text}
