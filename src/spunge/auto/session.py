"""One search from beginning to end: what was asked for, what is looked at and said first, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spunge.auto import judging, page, reproducing, telling
from spunge.auto.asking import Asking, asking_of
from spunge.auto.clock import Clock
from spunge.auto.inspection import Holding, check, inspect, splitter_of
from spunge.auto.parts import Parts, divide
from spunge.auto.rungs import Rung, ladder, promoted
from spunge.auto.search import Event, Search, readings_of
from spunge.auto.spaces import Space, space_of
from spunge.auto.study import Setting, Study
from spunge.auto.trials import ARMS, Arm, Bench, mean_of, method_class, name_of, points
from spunge.auto.wish import Wish, inputs_of
from spunge.errors import ArtifactError, DataError, RecipeError, SpungeError
from spunge.evaluators.attacks import Attack
from spunge.files import format_bytes, format_duration, remove, replace_text
from spunge.interfaces import Progress, Splitter, Work, silent
from spunge.memory import available
from spunge.recipe import reading
from spunge.recipe.schema import attack_named
from spunge.run.chat import Chat
from spunge.run.compute import Compute, choose_device
from spunge.run.executors import Executor
from spunge.run.standalone import export
from spunge.run.store import Store
from spunge.run.variant import Base, Variant
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.shape import shape_of

Looked = tuple[Holding, Holding, Splitter, dict[str, Space]]
"""What is known before anything is computed: the files of both sets, how to split, and what to search."""
MINUTES = 60.0
WISH, RESULT, PAGE, RECIPE, REPRODUCE = "auto.json", "result.json", "index.html", "recipe.yaml", "reproduce.json"
"""What a search leaves in its directory, beside the checkpoint."""


@dataclass
class Session:
    """A search that is ready to begin or to go on."""

    wish: Wish
    out: Path
    search: Search
    known: str
    """What the base model knows of what must go, in a sentence."""
    lines: list[str]
    """What it is going to do."""
    holdings: tuple[Holding, Holding]
    told: Callable[[str], object]
    """Told what is done beside trials."""

    @property
    def asking(self) -> Asking:
        """How it is asked."""
        return self.search.bench.asking

    def run(self, listener: Callable[[Event], object] = lambda event: None) -> dict[str, Any]:
        """Searches, chooses and judges; returns the result, which lies in the directory as well, with its page."""
        self.search.listener = listener
        self.search.run()
        self.told("choosing on rows that nothing was tuned on, and judging on others")
        return self.write(judging.judge(self.search))

    def write(self, judged: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the result, its page and the recipe of its choice."""
        result = {
            "wish": self.wish.described, "plan": self.lines, "known": self.known, "kind": self.asking.kind, **judged
        }  # fmt: skip
        replace_text(self.out / RESULT, json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n")
        page.write(result, self.trials(), self.asking.kind, self.out / PAGE)
        return result

    def trials(self) -> list[dict[str, Any]]:
        """Returns every trial as it did at the highest rung that it reached, by arm and number."""
        rows = []
        for arm, study in self.search.studies.items():
            settings = study.settings()
            reached: dict[int, tuple[int, Mapping[str, Any]]] = {}
            for rung in self.search.rungs:
                reached |= {number: (rung.number, result) for number, result in study.results(rung.number).items()}
            for number, (rung_number, result) in sorted(reached.items()):
                within = [one for one in readings_of(result) if one.share == 1.0]
                best = max(within, key=lambda one: one.gone, default=None)
                rows.append({
                    "arm": arm, "number": number, "rung": rung_number, "told": settings[number].told,
                    "seconds": result["seconds"], "failed": result["failed"],
                    "forgotten": best and best.forgotten, "damage": best and best.damage,
                })  # fmt: skip
        return rows

    def point(self, result: Mapping[str, Any], number: int | None = None) -> tuple[dict[str, Any], Variant]:
        """Returns one point of the result and its variant: a row of the front's table, or None for the choice.

        Raises:
            RecipeError: There is no such row, or no choice.
        """
        if number is None:
            if result["choice"] is None:
                raise RecipeError("no trial came to a model: there is nothing to export")
            chosen = dict(result["arms"][result["choice"]]["choice"])
        else:
            rows = telling.points_of(result)
            if not 1 <= number <= len(rows):
                raise RecipeError(f"{number}: the front has the points 1 to {len(rows)}")
            chosen = dict(rows[number - 1])
        variant = judging.variant_of(self.search, *(chosen[name] for name in ("arm", "number", "rung", "merge")))
        scale = chosen["scale"] if number is None else variant.scale * chosen["scale"]
        return chosen, replace(variant, scale=scale)

    def recipe(self, chosen: Mapping[str, Any]) -> str:
        """Returns the recipe of a point, for `spunge run`: judged on the rows that nothing was chosen on."""
        search, merge = self.search, chosen["merge"]
        bench, rung = search.bench, search.rungs[chosen["rung"]]
        setting = search.studies[chosen["arm"]].settings()[chosen["number"]]
        experiment = bench.experiment(setting, rung, merge, f"auto-{chosen['arm']}-{chosen['number']}")
        return reading.dump(bench.weighed(experiment, merge, bench.trained(chosen["arm"], setting, rung)))

    def export(self, result: Mapping[str, Any], number: int | None = None, out: Path | None = None) -> Path:
        """Writes a point as a checkpoint with its card, its recipe and what it takes to reproduce it.

        Raises:
            SpungeError: There is no such point, or `out` exists.
        """
        chosen, variant = self.point(result, number)
        out = out or self.out / reproducing.MODEL
        setting = self.search.studies[chosen["arm"]].settings()[chosen["number"]]
        point = None if number is None else {**chosen, "method": setting.method}
        about = telling.card(result, self.wish.described, self.asking.kind, self.known, point)
        bench = self.search.bench
        export(bench.model, bench.part(variant, self.out), out, about=about)
        replace_text(self.out / RECIPE, self.recipe(chosen))
        reproducing.record(self.wish, self.search, chosen, variant, self.out / REPRODUCE)
        return out

    def holds(self, result: Mapping[str, Any]) -> bool:
        """Whether the checkpoint in the search's directory is the choice, as far as what lies beside it says."""
        chosen = result["arms"][result["choice"]]["choice"]
        try:
            recorded = json.loads((self.out / REPRODUCE).read_text(encoding="utf-8"))
            made = (recorded["arm"], recorded["setting"]["number"], recorded["rung"]["number"], recorded["merge"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        wanted = tuple(chosen[name] for name in ("arm", "number", "rung", "merge"))
        return made == wanted and recorded["scale"] == chosen["scale"]

    def chat(self, result: Mapping[str, Any], number: int | None, device: str) -> Chat:
        """Returns what answers as the base model and as a point of the result, side by side."""
        part = self.search.bench.part(self.point(result, number)[1], self.out)
        return Chat(part, Resident(choose_device(device)))

    def attacked(self, result: Mapping[str, Any], number: int | None, name: str) -> tuple[float, float]:
        """Returns how much a point of the result has forgotten on the test part, and how much after an attack."""
        bench = replace(self.search.bench, against=_attack(name))
        variant = self.point(result, number)[1]
        suite = self.asking.forget("test", 128)
        [[before], [after]] = bench.ask([bench.unchanged, variant], [suite])
        left = bench.left(variant, "test", 128, before)
        if left is None:
            raise RecipeError(f"{name}: once it was attacked the model predicts nothing that could be asked")
        return mean_of(self.asking.forgotten(before, after)), left


def look(wish: Wish, *, allow_code: bool = False) -> Looked:
    """Looks at the files and the methods before anything is computed.

    Args:
        wish: What is asked for.
        allow_code: Whether methods from outside the package may be imported.

    Raises:
        SpungeError: A file, a column, a method or a budget is wrong.
    """
    if not wish.damage > 0:
        raise RecipeError(f"--damage {wish.damage:g}: a budget above 0 is needed, in nats per token; 0.03 is usual")
    if wish.minutes is not None and not wish.minutes > 0:
        raise RecipeError(f"--minutes {wish.minutes:g}: give more than 0")
    if wish.trials is not None and wish.trials < 2:
        raise RecipeError(f"--trials {wish.trials}: two of each are the fewest that can be compared")
    base = LanguageModel(id=wish.model)
    base.directory(weights=False)  # before the rows, which may take long to read
    layers = int(base.config().get_text_config().num_hidden_layers)
    if len(set(wish.methods)) < len(wish.methods) or not wish.methods:
        raise RecipeError("--methods: name each method once")
    spaces = {name: space_of(name, method_class(name, allow_code=allow_code), layers) for name in wish.methods}
    forget, retain = inspect(wish.forget, "--forget"), inspect(wish.retain, "--retain")
    check(forget, retain)
    return forget, retain, splitter_of(forget.texts, wish.by), spaces


def begin(
    wish: Wish, out: Path, executor_of: Callable[[Store], Executor], *, allow_code: bool = False,
    told: Callable[[str], object] = lambda line: None,
) -> Session:  # fmt: skip
    """Prepares a search in a directory, or opens one that was begun there.

    Args:
        wish: What is asked for.
        out: The search's directory.
        executor_of: Returns what runs tasks on a store.
        allow_code: Whether methods from outside the package may run.
        told: Told what is done meanwhile.

    Raises:
        SpungeError: Something is missing or wrong, nothing is known to begin with, or `out` is another search's.
    """
    looked = look(wish, allow_code=allow_code)
    begun = (out / WISH).exists()
    claim(wish, out)
    try:
        return _prepared(wish, out, looked, executor_of, allow_code=allow_code, told=told)
    except SpungeError:
        if not begun:  # what is refused leaves nothing that the next attempt would stumble over
            remove(out)
        raise


def _prepared(
    wish: Wish, out: Path, looked: Looked, executor_of: Callable[[Store], Executor], *, allow_code: bool,
    told: Callable[[str], object],
) -> Session:  # fmt: skip
    forget, retain, splitter, spaces = looked
    parts = divide(forget, retain, (out / "parts").absolute())  # a recipe that names them runs anywhere
    executor = executor_of(Store(out / "store"))
    model = LanguageModel.model_validate({"id": wish.model, "dtype": wish.dtype or "auto"})
    against = None if wish.against is None else _attack(wish.against)
    told("asking the base model what it knows")
    asking, known = asking_of(parts, forget.kind, Base(model), executor)
    bench = Bench(model, asking, splitter, wish.damage, executor, wish.seed, allow_code, against)
    told("splitting the forget set")
    subsets = bench.subsets()
    if len(subsets) < 2:
        raise DataError(
            f"--by {getattr(splitter, 'column', 'cluster')}: one subset is left of the rows to unlearn, so there is "
            "nothing to merge; use another column or --by cluster"
        )
    tokens = bench.tokens("tune", judging.TOKENS)
    rungs = ladder(parts.rows["forget-train"], parts.rows["forget-tune"], tokens)
    attacked = against is not None
    readings = {arm: [name_of(*point) for point in points(arm, wide=False, attacked=attacked)] for arm in ARMS}
    studies: dict[Arm, Study] = {
        arm: Study(
            out, arm, [*spaces.values()], readings[arm], wish.seed, sampler=wish.sampler,
            objectives=2 + attacked,
        )
        for arm in ARMS
    }  # fmt: skip
    earlier = sum(
        one["seconds"] for study in studies.values() for rung in rungs for one in study.results(rung.number).values()
    )
    minutes = wish.minutes if wish.minutes is not None or wish.trials is not None else MINUTES
    asks = attack_asks(bench, rungs[0]) if attacked else 0
    clock = Clock(minutes, rungs, partial(judging.closing, parts, tokens), asks, earlier)
    search = Search(bench, studies, rungs, clock, out, wish.trials)
    _check_methods(bench, spaces, rungs)
    lines = plan_lines(
        wish, (forget, retain), parts, {name: len(rows) for name, rows in subsets.items()}, search, known
    )
    return Session(wish, out, search, known, lines, (forget, retain), told)


def claim(wish: Wish, out: Path) -> None:
    """Makes the directory this search's, or finds that it is; another search's is left as it is.

    Raises:
        ArtifactError: It is another's, or the rows or the model have changed since.
    """
    described = json.loads(json.dumps(wish.described))
    inputs = json.loads(json.dumps(inputs_of(wish)))
    file = out / WISH
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(name for name in described if before.get(name) != described[name]):
            raise ArtifactError(
                f"{out}: holds a search with another --{differing[0].replace('_', '-')}; give another --out"
            )
        made_of = before.get("inputs", inputs)
        changed = [path for path, rows in inputs["rows"].items() if made_of["rows"].get(path) != rows]
        if changed := changed or ([wish.model] if made_of["model"] != inputs["model"] else []):
            raise ArtifactError(
                f"{out}: holds a search that began before {changed[0]} changed, whose trials are of what it was; "
                "give another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out}: is not empty, and holds no search; give another --out")
    replace_text(file, json.dumps({**described, "inputs": inputs}, indent=1, ensure_ascii=False) + "\n")


def _attack(name: str) -> type[Attack]:
    try:
        return attack_named(name)
    except ValueError as error:
        raise RecipeError(f"--against: {error}") from error


def attack_asks(bench: Bench, rung: Rung) -> int:
    """Returns how often the attack asks its items; one that cannot be asked is known before any training.

    Raises:
        RecipeError: It cannot, or it lacks something.
    """
    try:
        attack = bench.attack("tune", rung.items)
        attack.check()
        return len(attack.settings)
    except SpungeError as error:
        raise RecipeError(f"--against: {error}") from error


def _check_methods(bench: Bench, spaces: Mapping[str, Space], rungs: Sequence[Rung]) -> None:
    """Asks every method what it will take, so that what it lacks and what does not fit is known before any training.

    Raises:
        SpungeError: Rows lack what a method needs, or it does not fit into the memory that is free.
    """
    shape = shape_of(bench.model)
    held, free = shape.parameters * shape.bytes, available()
    for name, space in spaces.items():
        first = {dimension.name: dimension.first for dimension in space.dimensions if not dimension.choices}
        unlearner = bench.unlearner(Setting(0, name, first, space.fixed), rungs[0])
        work = Work(Resident("cpu"), bench.asking.parts.directory, bench.asking.parts.directory)
        takes = unlearner.forecast(bench.model, bench.rows.forget, bench.rows.retain, work)
        if takes.memory is not None and takes.memory - held > free:
            raise RecipeError(
                f"--methods {name}: takes {format_bytes(takes.memory)} of memory, and {format_bytes(free)} is free: "
                "leave it out, or give a smaller model"
            )


def plan_lines(
    wish: Wish, holdings: tuple[Holding, Holding], parts: Parts, subsets: Mapping[str, int], search: Search, known: str
) -> list[str]:
    """Returns in five lines what a search is going to do."""
    forget, retain = holdings
    toxic = f", with their toxicity in `{forget.toxic}`" if forget.toxic else ""
    read_as = ", ".join(f"`{theirs}` as {ours}" for ours, theirs in forget.read_as.items())
    read_as = f" ({read_as})" if read_as else ""
    shown = ", ".join(f"{name} {count}" for name, count in [*subsets.items()][:6])
    more = f" and {len(subsets) - 6} more" if len(subsets) > 6 else ""
    by = getattr(search.bench.splitter, "column", "cluster")
    rows = {name: parts.rows[f"forget-{name}"] for name in ("train", "tune", "choose", "test")}
    top = search.rungs[-1]
    steps = " → ".join(f"{rung.rows} rows" for rung in search.rungs)
    lines = [
        f"To forget: {len(forget.texts):,} {'texts' if forget.kind == 'texts' else 'rows'}{read_as}{toxic}; {known}. "
        f"To keep: {len(retain.texts):,} rows.",
        f"Split by {by} into {len(subsets)}: {shown}{more}.",
        f"Parts by item hash: {rows['train']} rows are unlearned; {rows['tune']} are asked to tune, {rows['choose']} "
        f"to choose, {rows['test']} to judge, and those alone are reported.",
        f"Trials of {', '.join(wish.methods)}, as many of joint unlearning as of the merged model; {steps}, one in "
        f"three goes on, {top.epochs} epoch{'s' if top.epochs > 1 else ''} at the top.",
    ]
    if wish.trials is not None and search.clock.whole is None:
        made = sum(promoted(wish.trials, rung.number) for rung in search.rungs)
        left = search.clock.left({
            (arm, rung.number): promoted(wish.trials, rung.number) for arm in ARMS for rung in search.rungs
        })  # fmt: skip
        told = (
            f", about {format_duration(left)}" if left else "; how long it takes is known after the first trial of each"
        )
        lines.append(f"{2 * made} trainings ({wish.trials} trials of each){told}.")
    else:
        lines.append(
            f"It takes {format_duration(search.clock.whole)} and ends with the choice at a damage of {wish.damage:g} "
            "nats per token; Ctrl-C keeps the best, and the same command goes on."
        )
    return lines


def executor_here(compute: Compute, progress: Progress = silent) -> Callable[[Store], Executor]:
    """Returns what makes the executor of this process for a store."""
    return lambda store: compute.start(store, progress, lambda task, artifact: None)
