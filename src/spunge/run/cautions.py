"""What a recipe and its rows say of a run before it begins: what nobody can mean is refused, what is odd is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spunge.errors import ArtifactError, DataError
from spunge.files import locate
from spunge.interfaces import Evaluator
from spunge.recipe.schema import Experiment
from spunge.rows.overlap import shared_rows
from spunge.rows.readers import paragraphs, read_text
from spunge.rows.sources import Corpus, Source
from spunge.run.subsets import Asked, Rows
from spunge.run.unlearn import Unlearn
from spunge.training.forecast import out_of_reach
from spunge.training.settings import Tuning

_FEW_ITEMS = 10
_MANY_LINES = 10
_MANY_SUBSETS = 20


def cautions_of_rows(experiment: Experiment, rows: Rows) -> list[str]:
    """Returns what a recipe and its rows give cause to know before anything is planned, each with its remedy.

    Raises:
        DataError: Nobody can mean what they say.
    """
    retained = experiment.retain.sources if experiment.retain else ()
    return [
        *cautions_of_sets((*experiment.forget.sources, *retained), rows.forget, rows.retain),
        *_check_scales(experiment),
        *(
            line
            for evaluator in experiment.evaluate
            if evaluator.suite in rows.asked
            for line in _check_suite(evaluator, rows.asked[evaluator.suite])
        ),
    ]


def cautions_of_sets(sources: Iterable[Source], forget: Corpus, retain: Corpus | None) -> list[str]:
    """Returns what a forget and a retain set give cause to know, each with its remedy.

    Args:
        sources: Where the rows of both come from.
        forget: The rows to forget.
        retain: The rows to keep.

    Raises:
        DataError: All that is to go is to stay too.
    """
    cautions = [line for source in sources for line in _check_paragraphs(source)]
    shared = shared_rows(forget, retain) if retain is not None else 0
    if shared and shared == len(forget):
        raise DataError(
            f"forget and retain: all {shared} forget rows stand in the retain set too, and cannot both go and stay: "
            "give other retain rows"
        )
    if shared:
        cautions.append(
            f"{shared} of {len(forget)} forget rows stand in the retain set too, and are kept while they are "
            "unlearned: take them out of one of the two."
        )
    return cautions


def cautions_of_subsets(tasks: Sequence[object]) -> list[str]:
    """Returns what the subsets of a planned run give cause to know, each with its remedy.

    Args:
        tasks: All tasks that the recipe leads to.

    Raises:
        DataError: Nobody can mean such a split.
    """
    unlearnings = [task for task in tasks if isinstance(task, Unlearn) and task.kind == "subset"]
    unreached = {
        out_of_reach(task.unlearner, task.base.model) for task in unlearnings if isinstance(task.unlearner, Tuning)
    }
    return [
        *_check_subsets({task.name: task.forget for task in unlearnings}),
        *sorted(line for line in unreached if line is not None),
    ]


def refuse_foreign(directory: Path) -> None:
    """Refuses to make a run among files that are no run's.

    Raises:
        ArtifactError: There are some.
    """
    if directory.is_dir() and not any((directory / name).exists() for name in ("manifest.json", "recipe.yaml")):
        foreign = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
        if foreign:
            raise ArtifactError(
                f"{directory}: holds files that are no run's ({', '.join(foreign[:3])}): give another --out, or "
                "another `name` in the recipe"
            )


def _check_paragraphs(source: Source) -> Iterator[str]:
    path = locate(source.path)
    if source.lines or not path.is_file() or not {".txt", ".text"} & {suffix.lower() for suffix in path.suffixes}:
        return
    text = read_text(path)
    lines, texts = sum(bool(line.strip()) for line in text.split("\n")), len(paragraphs(text))
    if lines >= _MANY_LINES and texts == 1:
        yield (
            f"{source.path}: its {lines} lines are one paragraph, and so one row, as texts are parted by blank lines: "
            "where every line is a text, set `lines: true` in the source, or put blank lines between them."
        )


def _check_subsets(subsets: dict[str, Corpus]) -> Iterator[str]:
    sizes = [len(rows) for rows in subsets.values()]
    if len(sizes) > _MANY_SUBSETS and max(sizes) == 1:
        raise DataError(
            f"split: each of its {len(sizes)} subsets is a single row, as where the attribute is an id: split by "
            "something that rows share"
        )
    if len(sizes) == 1:
        yield (
            f"The split makes one subset ({next(iter(subsets)).removeprefix('subset:')}, {sizes[0]} rows): there is "
            "nothing to merge, and the merged model is that of the joint training: split by something that differs."
        )
    elif single := [name.removeprefix("subset:") for name, rows in subsets.items() if len(rows) == 1]:
        yield (
            f"{len(single)} of {len(sizes)} subsets have one row ({', '.join(single[:3])}): too little to say what was "
            "forgotten; see split.min_size and split.small."
        )


def _check_scales(experiment: Experiment) -> Iterator[str]:
    scales = {
        "merge.lambda": [experiment.merge.lambda_, *map(float, experiment.sweep.get("merge.lambda", ()))],
        "unlearn.lambda": [float(getattr(experiment.unlearn, "lambda_", 1.0))],
    }
    for name, values in scales.items():
        if any(value < 0 for value in values):
            yield f"{name} = {min(values):g} is negative, and teaches what was to be forgotten: use a positive one."
        elif 0.0 in values:
            yield f"{name} = 0 leaves the base model as it is: use a positive one."


def _check_suite(evaluator: Evaluator, asked: Asked) -> Iterator[str]:
    if asked.items < _FEW_ITEMS:
        yield f"{evaluator.suite}: {asked.items} items are too few to tell variants apart: ask more."
    if asked.seen and evaluator.goal == "forget":
        yield (
            f"{evaluator.suite}: {asked.seen} of {asked.items} questions stand, nearly word for word, in the forget "
            "set: that these are forgotten does not say that what they ask about is; ask in other words."
        )
    elif asked.seen:
        yield (
            f"{evaluator.suite}: {asked.seen} of {asked.items} questions of what must stay stand, nearly word for "
            "word, in the forget set: take them out of one of the two."
        )
