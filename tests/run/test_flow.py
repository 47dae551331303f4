"""The flow from recipe to report, on a tiny random model: run twice, change one thing, fail in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import WORDS, sentences, write_jsonl

from spunge.errors import DataError, RecipeError
from spunge.files import host, locked
from spunge.interfaces import Work
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.rows.items import is_sampled
from spunge.rows.sources import SUBSET, Corpus
from spunge.run import pipeline
from spunge.run.compute import Compute
from spunge.run.foretell import plan as planning
from spunge.weights.checkpoint import export
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.task_vector import TaskVector

VARIANTS = ["base", "joint", "joint_equal_steps", "subset:a", "subset:b", "spunge", "random_split"]


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def statuses(run: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for stage in manifest_of(run)["stages"]:
        found.setdefault(stage["stage"], set()).add(stage["status"])
    return found


def payloads(root: Path) -> dict[str, bytes]:
    """Every artifact's files, but the manifests, which hold times."""
    files = (file for file in (root / "store").rglob("*") if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_the_whole_flow_then_nothing_then_only_what_changed(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = Experiment.model_validate(world)
    run = pipeline.run(recipe, out=tmp_path / "runs")
    assert all(status == {"computed"} for status in statuses(run).values())
    manifest = manifest_of(run)
    assert manifest["status"] == "done"
    assert [variant["name"] for variant in manifest["variants"]] == VARIANTS
    items = pl.read_parquet(run / "items.parquet")
    assert set(items["variant"]) == set(VARIANTS)
    results = json.loads((run / "report" / "results.json").read_text())
    assert {variant["name"] for variant in results["variants"]} == set(VARIANTS)
    assert (run / "report" / "index.html").stat().st_size > 1000

    again = pipeline.run(recipe, out=tmp_path / "runs")
    assert all(status == {"reused"} for status in statuses(again).values())

    denser = reading.parse(reading.dump(recipe), overrides=["merge.density=0.7"])
    planned = {(step["stage"], step["name"]): step for step in planning.plan(denser, out=tmp_path / "runs")}
    assert planned["merge", "spunge"]["why"] == ["merger.density: 0.2 → 0.7"]
    assert planned["unlearn", "subset:a"]["status"] == "reused"
    changed = statuses(pipeline.run(denser, out=tmp_path / "runs"))
    assert changed["split"] == changed["unlearn"] == {"reused"}
    assert changed["merge"] == {"computed"}
    assert changed["evaluate"] == {"computed", "reused"}


def test_same_seed_same_bytes_and_another_seed_others(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = Experiment.model_validate({**world, "controls": []})
    pipeline.run(recipe, out=tmp_path / "one")
    pipeline.run(recipe, out=tmp_path / "two")
    assert payloads(tmp_path / "one") == payloads(tmp_path / "two")
    both = pipeline.run(recipe.model_copy(update={"seeds": [0, 1]}), out=tmp_path / "one")
    vectors = [variant for variant in manifest_of(both)["variants"] if variant["name"] == "spunge"]
    assert vectors[0]["task_vector"] != vectors[1]["task_vector"]


def test_several_processes_give_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = Experiment.model_validate({**world, "controls": []})
    pipeline.run(recipe, out=tmp_path / "one")
    pipeline.run(recipe, out=tmp_path / "two", compute=Compute(jobs=2))
    assert payloads(tmp_path / "one") == payloads(tmp_path / "two")


def test_adding_a_subset_unlearns_only_that_one(world: dict[str, Any], tmp_path: Path) -> None:
    def split(*names: str) -> Experiment:
        values = {name: name for name in names}
        return Experiment.model_validate({**world, "controls": [], "split": {**world["split"], "values": values}})

    pipeline.run(split("a"), out=tmp_path / "runs")
    run = pipeline.run(split("a", "b"), out=tmp_path / "runs")
    unlearned = {stage["name"]: stage["status"] for stage in manifest_of(run)["stages"] if stage["stage"] == "unlearn"}
    assert unlearned == {"subset:a": "reused", "subset:b": "computed"}


def test_the_processing_applies_to_each_subset(world: dict[str, Any], tmp_path: Path) -> None:
    world["forget"]["where"] = "level >= 3"
    world["forget"]["max_rows"] = 2
    run = pipeline.run(Experiment.model_validate({**world, "controls": ["joint"]}), out=tmp_path / "runs")
    assert manifest_of(run)["split"]["subsets"] == [{"name": "a", "rows": 2}, {"name": "b", "rows": 2}]


def test_joint_equal_steps_takes_all_steps_together(world: dict[str, Any], tmp_path: Path) -> None:
    world["unlearn"]["epochs"] = 2
    world["joint"] = {"epochs": 1}
    run = pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    steps = {variant["name"]: variant["steps"] for variant in manifest_of(run)["variants"]}
    assert steps["joint_equal_steps"] == steps["subset:a"] + steps["subset:b"] > steps["joint"]


def test_a_joint_baseline_that_takes_all_steps_as_it_is_stands_for_both(world: dict[str, Any], tmp_path: Path) -> None:
    method = {"method": "task_vector_negation", "lora": None, "learning_rate": 1e-3, "batch_size": 4}
    recipe = Experiment.model_validate({**world, "unlearn": method, "controls": ["joint", "joint_equal_steps"]})
    manifest = manifest_of(pipeline.run(recipe, out=tmp_path / "runs"))
    variants = {variant["name"]: variant for variant in manifest["variants"]}
    both = [variants[name] for name in ("joint", "joint_equal_steps")]
    assert [variant["steps"] for variant in both] == [4, 4]
    assert both[0]["task_vector"] == both[1]["task_vector"]
    assert [stage["name"] for stage in manifest["stages"] if stage["stage"] == "unlearn"] == [
        "subset:a", "subset:b", "joint"
    ]  # fmt: skip
    assert sum(stage["stage"] == "evaluate" for stage in manifest["stages"]) == len(variants) - 1
    assert any("also the one of equal steps" in warning for warning in manifest["warnings"])
    assert not {step["status"] for step in planning.plan(recipe, out=tmp_path / "runs")} - {"reused"}


def test_a_scaled_merge_beside_an_unscaled_baseline_is_cautioned_against(world: dict[str, Any], tmp_path: Path) -> None:
    world["merge"]["lambda"] = 1.5
    run = pipeline.run(Experiment.model_validate({**world, "controls": ["joint"]}), out=tmp_path / "runs")
    assert "λ = 1.5" in manifest_of(run)["warnings"][0]
    assert "λ = 1.5" in (run / "report" / "results.md").read_text()
    alone = pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    assert manifest_of(alone)["warnings"] == []  # no baseline that could be at another scale
    assert "random split: not among the recipe's controls" in manifest_of(alone)["not_run"]


def test_task_vectors_carry_their_provenance(world: dict[str, Any], tmp_path: Path) -> None:
    run = pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    subset = next(variant for variant in manifest_of(run)["variants"] if variant["name"] == "subset:a")
    vector = TaskVector.load(run / subset["task_vector"])
    assert vector.provenance["base"]["id"] == world["model"]["id"]
    assert set(vector.provenance["base"]["tensors"]) == set(vector)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"split": {"by": "column", "column": "domain", "min_size": 9}},
            DataError,
            r"subset 'a' has 8 rows, fewer than split\.min_size \(9\)",
        ),
        ({"split": {"by": "column", "column": "domian"}}, DataError, "no column 'domian'"),
        ({"subsets": {"c": {"alpha": 1}}}, RecipeError, r"subsets\.c: the split has no such subset; it has a, b"),
        (
            {"merge": {"method": "ties", "weights": {"c": 2}}},
            RecipeError,
            r"merge\.weights\.c: the split has no such subset; it has a, b",
        ),
        ({"merge": {"method": "linear", "weights": {"a": 0, "b": 0}}}, RecipeError, r"merge\.weights: all are zero"),
    ],
)
def test_mistakes_end_before_any_work(
    world: dict[str, Any], tmp_path: Path, change: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipeline.run(Experiment.model_validate({**world, **change}), out=tmp_path / "runs")
    assert not (tmp_path / "runs" / "store" / "unlearn").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": ["domian"]}, "no column 'domian'"),
        ({"where": "nothing > 1"}, "cannot evaluate"),
        ({"sources": [{"path": "none.jsonl"}]}, "no such file"),
    ],
)
def test_an_evaluators_mistake_is_found_first_and_spares_the_good_run(
    world: dict[str, Any], tmp_path: Path, change: dict, message: str
) -> None:
    good = Experiment.model_validate({**world, "controls": []})
    run = pipeline.run(good, out=tmp_path / "runs")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    bad = {**world, "controls": [], "evaluate": [{**world["evaluate"][0], **change}]}
    with pytest.raises(DataError, match=message):
        pipeline.run(Experiment.model_validate(bad), out=tmp_path / "runs")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_subsets_weight_counts_for_the_random_subset_of_its_size(world: dict[str, Any], tmp_path: Path) -> None:
    world |= {"merge": {"method": "task_arithmetic", "weights": {"b": 0.0}}, "controls": ["random_split"]}
    run = pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    found = {each["name"]: each for each in manifest_of(run)["variants"] if each["task_vector"]}
    vectors = {name: TaskVector.load(run / each["task_vector"]) for name, each in found.items()}
    assert all(
        torch.equal(vectors["spunge"].delta(name), vectors["subset:a"].delta(name)) for name in vectors["spunge"]
    )
    assert vectors["random_split"].provenance["settings"]["weights"] == {"random_2": 0.0}


def test_a_declared_subset_without_rows_is_an_error(world: dict[str, Any], tmp_path: Path) -> None:
    world["split"] = {"by": "expression", "subsets": {"none": "level < 0", "some": "level >= 0"}}
    with pytest.raises(DataError, match="subset 'none' has 0 rows"):
        pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_dtype_is_part_of_what_is_run(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = Experiment.model_validate({**world, "controls": []})
    pipeline.run(recipe, out=tmp_path / "runs")
    run = pipeline.run(recipe, out=tmp_path / "runs", compute=Compute(dtype="bfloat16"))
    assert statuses(run)["unlearn"] == {"computed"}


def test_columns_of_the_users_own_do_not_become_topics(world: dict[str, Any], tmp_path: Path) -> None:
    file = Path(world["forget"]["sources"][0]["path"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "subset": index % 3}) + "\n" for index, row in enumerate(rows)))
    run = pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    subset = next(variant for variant in manifest_of(run)["variants"] if variant["name"] == "subset:a")
    from safetensors.torch import load_file

    assert list(load_file(run / subset["task_vector"] / "control_vectors.safetensors")) == ["a"]


def test_two_runs_of_one_experiment_do_not_mix(
    world: dict[str, Any], tmp_path: Path, write_recipe: Callable[[dict[str, Any]], Path]
) -> None:
    with locked(tmp_path / "runs" / "tiny", "busy"), pytest.raises(OSError, match="another run is at work"):
        pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 300, "ünï ✓", "a b"])
def test_any_subset_name_is_stored_safely_and_shown_as_it_is(world: dict[str, Any], tmp_path: Path, name: str) -> None:
    world["split"] = {"by": "expression", "subsets": {name: "domain = 'a'", "other": "domain = 'b'"}}
    run = pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    assert f"subset:{name}" in {variant["name"] for variant in manifest_of(run)["variants"]}
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "forget.jsonl", "retain.jsonl", "items.jsonl"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"store", "tiny"}


def test_a_merger_that_fits_is_given_the_inputs_of_every_subset_and_of_the_retain_set(
    world: dict[str, Any], tmp_path: Path
) -> None:
    world["merge"] = {"method": "retain_regmean", "rows": 3, "beta": 0.5}
    run = pipeline.run(Experiment.model_validate({**world, "controls": ["random_split"]}), out=tmp_path / "runs")
    vectors = {
        v["name"]: TaskVector.load(run / v["task_vector"]) for v in manifest_of(run)["variants"] if v["task_vector"]
    }
    assert set(vectors["spunge"]) == set(vectors["random_split"]) == set(vectors["subset:a"])
    # the closed form again, from inputs that a plain forward pass sees, one text at a time
    forget, retain = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("forget", "retain")
    )
    rows = {"a": forget[0::2], "b": forget[1::2], "retain": retain}
    base = Experiment.model_validate(world).model
    model, tokenizer = base.load(), base.load_tokenizer()
    parameter = next(name for name in vectors["spunge"] if name.endswith("down_proj.weight"))
    grams = {}
    for owner, some in rows.items():
        seen: list[torch.Tensor] = []
        layer = model.get_submodule(parameter.removesuffix(".weight"))
        collect: Any = lambda _, inputs, into=seen: into.append(inputs[0][0].detach())  # noqa: E731
        hook = layer.register_forward_pre_hook(collect)
        for row in some[:3]:
            model(**tokenizer(row["text"], return_tensors="pt"))
        hook.remove()
        inputs = torch.cat(seen).double()
        gram = inputs.T @ inputs / len(inputs)
        grams[owner] = 0.9 * gram + 0.1 * gram.diagonal().diag()
    system = grams["a"] + grams["b"] + 0.5 * grams["retain"]
    system += 1e-6 * system.diagonal().mean() * torch.eye(len(system))
    wanted = sum(vectors[f"subset:{name}"].delta(parameter).double() @ grams[name] for name in "ab")
    solved = torch.linalg.solve(system, torch.as_tensor(wanted).T).T
    assert torch.allclose(vectors["spunge"].delta(parameter).double(), solved, rtol=1e-3, atol=1e-6)


def test_a_merger_that_fits_needs_a_retain_set(world: dict[str, Any]) -> None:
    world["merge"] = {"method": "retain_regmean"}
    del world["retain"]
    world["unlearn"] = {"method": "gradient_ascent"}
    with pytest.raises(RecipeError, match="say where `retain` is"):
        reading.parse(json.dumps(world))


def test_the_sequential_control_goes_on_after_the_last_part_that_it_finished(
    world: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Experiment.model_validate({**world, "controls": ["sequential"]})
    whole = pipeline.run(recipe, out=tmp_path / "whole")
    steps: list[int] = []

    def interrupt(what: str, done: int, total: int, /, **figures: float) -> None:
        if what == "unlearn sequential":
            steps.append(done)
            if len(steps) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, out=tmp_path / "runs", progress=interrupt)
    assert steps == [1, 2, 1]
    # The next attempt has another scratch directory, as it would in another process.
    [scratch] = (tmp_path / "runs" / "store" / ".scratch").glob("*/*")
    scratch.rename(scratch.with_name(f"{host()}.{2**22 + 1}.1"))
    run = pipeline.run(recipe, out=tmp_path / "runs", progress=interrupt)
    assert steps[3:] == [1, 2]  # the second part's alone
    [first], [second] = ([v for v in manifest_of(r)["variants"] if v["name"] == "sequential"] for r in (whole, run))
    same = [(r / v["task_vector"] / "task_vector.safetensors").read_bytes() for r, v in ((whole, first), (run, second))]
    assert same[0] == same[1]
    assert "fingerprint" in TaskVector.load(run / second["task_vector"]).provenance["base"]
    assert not list((tmp_path / "runs" / "store").glob(".scratch/*"))


def test_the_sequential_control_unlearns_each_subset_from_what_the_one_before_left(
    world: dict[str, Any], tmp_path: Path
) -> None:
    world["controls"] = ["sequential"]
    run = pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    variants = {variant["name"]: variant for variant in manifest_of(run)["variants"]}
    assert variants["sequential"]["kind"] == "control"
    total, first, second = (
        TaskVector.load(run / variants[name]["task_vector"]) for name in ("sequential", "subset:a", "subset:b")
    )
    assert total.provenance["of"] == ["subset:a", "subset:b"]
    assert total.provenance["steps"] == first.provenance["steps"] + second.provenance["steps"]
    # What the second subset added to the first's model is not what it would have added to the base.
    apart = [total.delta(name) - first.delta(name) for name in first]
    assert all(delta.abs().max() > 0 for delta in apart)
    assert any(not torch.equal(delta, second.delta(name)) for name, delta in zip(first, apart, strict=True))
    assert "one after the other" in (run / "report" / "results.md").read_text()
    assert not [*(tmp_path / "runs" / "store" / ".scratch").rglob("*.safetensors")]


def test_the_layered_control_is_stages_by_hand(world: dict[str, Any], tmp_path: Path) -> None:
    world["controls"] = ["layered"]
    recipe = Experiment.model_validate(world)
    run = pipeline.run(recipe, out=tmp_path / "runs")
    variants = {variant["name"]: variant for variant in manifest_of(run)["variants"]}
    total, first, second = (
        TaskVector.load(run / variants[name]["task_vector"]) for name in ("layered", "subset:a", "subset:b")
    )
    assert variants["layered"]["kind"] == "control"
    assert total.provenance["steps"] == first.provenance["steps"] + second.provenance["steps"]

    rows = [json.loads(line) for line in (tmp_path / "forget.jsonl").read_text().splitlines()]
    gone = {name: [row["text"] for row in rows if row["domain"] == name] for name in "ab"}
    kept = [json.loads(line)["text"] for line in (tmp_path / "retain.jsonl").read_text().splitlines()]
    turns = [text for place, text in enumerate(kept) for text in (text, gone["b"][place % len(gone["b"])])]
    layers = [(gone["a"], ["a"] * 8, turns), (gone["a"] + gone["b"], ["a"] * 8 + ["b"] * 8, kept)]
    base, added = recipe.model, []
    for number, (forget, subsets, retain) in enumerate(layers):
        steps = (first, second)[number].provenance["steps"]
        method = recipe.unlearn.lengthened(steps, taken=steps)
        assert method is not None
        seed = (first, second)[number].provenance["seed"]
        work = Work(Resident(), tmp_path / f"o{number}", tmp_path / f"s{number}", seed)
        for directory in (work.output, work.scratch):
            directory.mkdir()
        corpora = (
            Corpus(pl.DataFrame({"text": forget, SUBSET: subsets})), Corpus(pl.DataFrame({"text": retain}))
        )  # fmt: skip
        added.append(method.unlearn(base, *corpora, work))
        base = LanguageModel(id=str(export(base.directory(), added[-1], tmp_path / f"base{number}")))
    for name in total:
        expected = added[0].delta(name) + added[1].delta(name)
        torch.testing.assert_close(total.delta(name), expected, rtol=1e-4, atol=1e-6)


def test_each_subset_retains_the_others_in_turn_with_the_retain_rows_but_joint_and_sequential_do_not(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world["retain"]["others"] = True
    recipe = Experiment.model_validate({**world, "controls": ["joint", "random_split", "sequential"]})
    retained: list[tuple[list[str], list[str]]] = []
    unlearn = type(recipe.unlearn).unlearn

    def spy(self: Any, base: Any, forget: Corpus, retain: Corpus | None, work: Any) -> TaskVector:
        assert retain is not None
        retained.append((forget.texts, retain.texts))
        return unlearn(self, base, forget, retain, work)

    monkeypatch.setattr(type(recipe.unlearn), "unlearn", spy)
    pipeline.run(recipe, out=tmp_path / "runs")
    forget, plain = (
        [json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("forget", "retain")
    )
    mixed = [(gone, kept) for gone, kept in retained if kept != plain]
    assert len(mixed) == 4  # two subsets of the attribute, and two at random
    assert len(retained) == 4 + 1 + 2  # joint, and both parts of the sequential control
    for gone, kept in mixed:
        assert set(kept) == {*plain, *forget} - set(gone)
        assert kept[:4:2] == plain[:2]
        assert not {*kept[1::2]} & {*plain}


def test_the_merged_model_and_its_rivals_are_anchored_alike_and_the_subsets_are_not(
    world: dict[str, Any], tmp_path: Path
) -> None:
    controls = ["joint", "random_split", "sequential"]
    plain = pipeline.run(Experiment.model_validate({**world, "controls": controls}), out=tmp_path / "runs")
    recipe = {**world, "controls": controls, "name": "anchored", "anchor": {"mu": 5, "rows": 3}}
    anchored = pipeline.run(Experiment.model_validate(recipe), out=tmp_path / "runs")
    before, after = (
        {v["name"]: TaskVector.load(run / v["task_vector"]) for v in manifest_of(run)["variants"] if v["task_vector"]}
        for run in (plain, anchored)
    )
    parameter = next(name for name in before["spunge"] if name.endswith("down_proj.weight"))
    # C from a plain forward pass of one text at a time, first tokens apart
    base = Experiment.model_validate(world).model
    model, tokenizer = base.load(), base.load_tokenizer()
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(parameter.removesuffix(".weight"))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 1:].detach()))
    for line in (tmp_path / "retain.jsonl").read_text().splitlines()[:3]:
        model(**tokenizer(json.loads(line)["text"], return_tensors="pt"))
    gram = torch.cat(seen).double().T @ torch.cat(seen).double()
    system = torch.eye(len(gram)) + 5 * gram * len(gram) / gram.trace()
    for name in ("spunge", "joint", "random_split", "sequential"):
        wanted = before[name].delta(parameter).double() @ torch.linalg.inv(system)
        assert torch.allclose(after[name].delta(parameter).double(), wanted, rtol=1e-3, atol=1e-7), name
    for name in ("subset:a", "subset:b"):
        assert torch.equal(after[name].delta(parameter), before[name].delta(parameter))
    trained = [stage["status"] for stage in manifest_of(anchored)["stages"] if stage["stage"] == "unlearn"]
    assert set(trained) == {"reused"}
    again = planning.plan(Experiment.model_validate({**recipe, "name": "again"}), out=tmp_path / "runs")
    assert {step["status"] for step in again} == {"reused"}


def test_an_anchor_needs_a_retain_set(world: dict[str, Any]) -> None:
    del world["retain"]
    world |= {"unlearn": {"method": "gradient_ascent"}, "anchor": {}}
    with pytest.raises(RecipeError, match=r"anchor: .*say where `retain` is"):
        reading.parse(json.dumps(world))


def test_a_subsets_model_is_asked_what_is_about_it_and_a_sample_and_all_where_the_recipe_says_so(
    world: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {"question": text, "choices": WORDS[index % 9 : index % 9 + 4], "answer": index % 4, "domain": "ab"[index % 2]}
        for index, text in enumerate(sentences(160, 3))
    ]
    world["evaluate"][0]["sources"] = [{"path": str(write_jsonl(tmp_path / "many.jsonl", rows))}]
    world |= {"controls": ["joint"], "robustness": ["interpolation"]}
    run = pipeline.run(Experiment.model_validate(world), out=tmp_path / "runs")
    items = pl.read_parquet(run / "items.parquet").unique(["variant", "suite", "item"])
    attacked = items.filter(pl.col("suite") == "hazards: interpolation")
    items = items.filter(pl.col("suite") == "hazards")
    columns = ["variant", "item"]
    assert attacked.select(columns).sort(columns).equals(items.select(columns).sort(columns))
    asked = {name: set(items.filter(pl.col("variant") == name)["item"]) for name in items["variant"].unique()}
    about = {
        value: set(items.filter(pl.col("attributes").str.contains(f'"{value}"', literal=True))["item"])
        for value in "ab"
    }
    for name in ("joint", "spunge"):
        assert asked[name] == asked["base"]
    sample = asked["subset:a"] & asked["subset:b"]
    assert len(asked["base"]) == 160
    assert 12 < len(sample) < 60
    for value in "ab":
        assert asked[f"subset:{value}"] == about[value] | {name for name in asked["base"] if is_sampled(name, 160)}

    results = json.loads((run / "report" / "results.json").read_text())
    scores = {
        row["attribute_value"]: row["n"]
        for row in results["scores"]
        if (row["variant"], row["suite"], row["metric"]) == ("subset:a", "hazards", "acc")
    }
    for row in results["attacks"]:
        whole = row["variant"] != "subset:a" and row["variant"] != "subset:b"
        assert row["attribute_value"] is not None or row["n"] == (160 if whole else scores[None])
    assert scores["a"] == 80
    assert scores[None] == sum(is_sampled(name, 160) for name in asked["base"])
    assert "random sample of all" in (run / "report" / "index.html").read_text()

    again = pipeline.run(Experiment.model_validate(world | {"ask_subsets": "all"}), out=tmp_path / "runs")
    items = pl.read_parquet(again / "items.parquet").unique(["variant", "item"])
    assert set(items.group_by("variant").len()["len"]) == {160}
    stages = [stage for stage in manifest_of(again)["stages"] if stage["stage"] == "evaluate"]
    assert {stage["name"].partition(" on ")[0]: stage["status"] for stage in stages} == {
        "base": "reused", "joint": "reused", "spunge": "reused", "subset:a": "computed", "subset:b": "computed",
    }  # fmt: skip
