"""The Python API: overrides reach an experiment however it is given, and each step does what its command does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences, write_jsonl
from report_runs import write_run

import spunge
from spunge import api, report
from spunge.cli import steps
from spunge.errors import ArtifactError, RecipeError
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.splitters import AtRandom


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The experiments that were run, none of them really."""
    experiments: list[Experiment] = []

    def run(experiment: Experiment, **options: Any) -> Path:
        experiments.append(experiment)
        return Path()

    monkeypatch.setattr(pipeline, "run", run)
    return experiments


def test_overrides_change_an_experiment_as_they_change_a_recipe(world: dict[str, Any], ran: list[Experiment]) -> None:
    experiment = Experiment.model_validate(world)
    spunge.run(experiment, "merge.density=0.9", "seeds=[1, 2]")
    spunge.run(experiment)
    changed, unchanged = ran
    assert (changed.merge.dump()["density"], changed.seeds) == (0.9, [1, 2])
    assert changed.model_copy(update={"merge": experiment.merge, "seeds": [0]}) == experiment
    assert unchanged is experiment


@pytest.mark.parametrize("word", ["merge.densty=0.9", "mrge.density=0.9", "merge.density"])
def test_a_misspelt_override_of_an_experiment_is_refused(
    world: dict[str, Any], ran: list[Experiment], word: str
) -> None:
    with pytest.raises(RecipeError, match=word.partition(".")[0]):
        spunge.run(Experiment.model_validate(world), word)
    assert not ran


def test_the_package_of_a_run_does_not_take_the_functions_name() -> None:
    import spunge.run.pipeline

    assert callable(spunge.run)


@pytest.fixture
def base(tiny_model: Path) -> spunge.LanguageModel:
    return spunge.load(tiny_model)


@pytest.fixture
def forget() -> spunge.Corpus:
    return spunge.rows([{"text": text, "domain": "ab"[n % 2]} for n, text in enumerate(sentences(8, 1))])


RMU = {"layer": 2, "steering_coefficient": 5, "alpha": 10, "learning_rate": 1e-2, "max_steps": 2}


def test_the_steps_by_themselves_do_what_the_command_line_does(
    tmp_path: Path,
    tiny_model: Path,
    other_model: Path,
    base: spunge.LanguageModel,
    forget: spunge.Corpus,
    world: dict[str, Any],
) -> None:
    retain = spunge.rows(sentences(8, 2))
    subsets = spunge.split(forget, column="domain")
    assert {name: len(rows) for name, rows in subsets.items()} == {"a": 4, "b": 4}
    vectors = {name: spunge.unlearn(base, rows, retain, **RMU) for name, rows in subsets.items()}

    files = [
        str(write_jsonl(tmp_path / f"{name}.jsonl", rows.rows.to_dicts()))
        for name, rows in (("forget", subsets["a"]), ("retain", retain))
    ]
    words = [f"{name}={value}" for name, value in RMU.items()]
    steps.unlearn(str(tiny_model), files[:1], tmp_path / "tv", words, files[1:], quiet=True)
    stepped = spunge.TaskVector.load(tmp_path / "tv")
    assert all(torch.equal(stepped[name], vectors["a"][name]) for name in stepped)
    assert stepped.provenance["base"] == vectors["a"].provenance["base"]

    merged = spunge.merge(vectors, density=0.5)
    exported = spunge.export(merged, tmp_path / "out", model=base)
    before = base.load().state_dict()
    with merged.on(base) as changed:
        written = spunge.load(exported).load().state_dict()
        assert all(torch.equal(weight, written[name]) for name, weight in changed.state_dict().items())
        assert not all(torch.equal(weight, before[name]) for name, weight in changed.state_dict().items())

    with pytest.raises(spunge.SpungeError, match="another base model"), merged.on(other_model):
        pass

    (suite,) = world["evaluate"]
    run = spunge.evaluate(base, merged, [suite], out=tmp_path / "scores")
    again = spunge.evaluate(exported, suites=suite)
    assert run.items["value"].to_list() == again.items["value"].to_list()
    assert spunge.open(tmp_path / "scores").scores.equals(run.scores)
    assert run.scores["n"].max() == 12


def test_topics_by_name_are_one_unlearning_and_a_new_directory_keeps_it(
    tmp_path: Path, base: spunge.LanguageModel, forget: spunge.Corpus
) -> None:
    retain = spunge.rows(sentences(8, 2))
    vector = spunge.unlearn(base, spunge.split(forget, column="domain"), retain, out=tmp_path / "tv", **RMU)
    assert vector.provenance["data"]["rows"] == 8
    assert torch.equal(spunge.TaskVector.load(tmp_path / "tv")[next(iter(vector))], vector[next(iter(vector))])


@pytest.mark.parametrize("kind", ["file", "path", "texts", "mappings", "polars", "pandas", "datasets"])
def test_rows_are_taken_as_people_have_them(tmp_path: Path, kind: str) -> None:
    import datasets
    import pandas
    import polars

    texts = ["a b", "c d"]
    mappings = [{"text": text} for text in texts]
    data: dict[str, Any] = {
        "file": str(write_jsonl(tmp_path / "rows.jsonl", mappings)), "path": tmp_path / "rows.jsonl", "texts": texts,
        "mappings": mappings, "polars": polars.DataFrame(mappings), "pandas": pandas.DataFrame(mappings, index=[7, 3]),
        "datasets": datasets.Dataset.from_list(mappings),
    }  # fmt: skip
    assert spunge.rows(data[kind]).fingerprint == spunge.rows(texts).fingerprint
    assert spunge.rows(data[kind], where="text = 'c d'").texts == ["c d"]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ([], {}, "no rows"),
        (["forget.jsonl"], {}, "is a text, not a file"),
        ([{"body": "a"}], {}, "no column 'text'"),
        (["a", " "], {}, "row 2 has an empty 'text'"),
        ([1, 2], {}, "no rows"),
        (3, {}, "a int is no rows"),
        ("nowhere.jsonl", {}, "nowhere.jsonl: no such file"),
        (["a"], {"colums": {}}, "did you mean 'columns'"),
    ],
)
def test_rows_that_are_none_are_refused_in_a_line(data: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(spunge.SpungeError, match=message):
        spunge.rows(data, **settings)


def test_steps_refuse_what_they_cannot_do(base: spunge.LanguageModel, forget: spunge.Corpus, tmp_path: Path) -> None:
    with pytest.raises(spunge.SpungeError, match="no such model directory"):
        spunge.load(tmp_path / "none")
    with pytest.raises(spunge.SpungeError, match="dtype"):
        spunge.load(base.id, dtype="int3")
    with pytest.raises(spunge.SpungeError, match=r"give one as model="):
        spunge.split(forget, "cluster", k=2)
    with pytest.raises(spunge.SpungeError, match="no column 'group'"):
        spunge.split(forget, column="group")
    with pytest.raises(spunge.SpungeError, match="needs a retain set"):
        spunge.unlearn(base, forget, out=tmp_path / "tv", **RMU)
    with pytest.raises(spunge.SpungeError, match="no suites"):
        spunge.evaluate(base)
    with pytest.raises(spunge.SpungeError, match=r"split\.column: AtRandom holds its settings"):
        spunge.split(forget, AtRandom(sizes=[4, 4]), column="domain")
    with pytest.raises(spunge.SpungeError, match="hazard"):
        spunge.evaluate(base, suites="hazard")
    with pytest.raises(spunge.SpungeError, match=r"as model="):
        spunge.export(spunge.TaskVector({}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_opened_run_is_its_report_as_frames(tmp_path: Path) -> None:
    written = write_run(tmp_path, items=60)
    run = spunge.open(written)
    results = report.build(written)
    assert run.scores.to_dicts() == results["scores"]
    assert run.comparisons.to_dicts() == results["comparisons"]
    assert set(run.items["variant"]) == set(run.scores["variant"])
    assert list(run.verdict.sentences) == report.summary(written / "report")["sentences"]
    assert run.verdict.headline in repr(run)
    assert "<li>" in run._repr_html_()
    with pytest.raises(spunge.SpungeError, match="not a run"):
        spunge.open(tmp_path)


def test_the_names_of_the_package_are_all_there_and_typed() -> None:
    assert all(getattr(spunge, name) is not None for name in spunge.__all__)
    assert set(api.__all__) <= set(spunge.__all__)
    assert callable(spunge.rows)


def test_what_is_pushed_is_what_was_exported(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def __init__(self, **settings: Any) -> None: ...

        def create_repo(self, repository: str, **settings: Any) -> None:
            asked.append((repository, settings))

        def upload_folder(self, **settings: Any) -> str:
            asked.append((settings["repo_id"], settings))
            if settings["repo_id"] == "me/refused":
                raise OSError("403 Forbidden: no right to write\nmore")
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    vector = spunge.TaskVector({"model.norm.weight": torch.ones(16)})
    exported = spunge.export(vector, tmp_path / "out", model=tiny_model)
    assert spunge.push_to_hub(exported, "me/model") == "https://hub/commit/1"
    (_, made), (_, sent) = asked
    assert made == {"private": True, "exist_ok": True}
    assert sent["folder_path"] == exported
    assert "README.md" in {file.name for file in sent["folder_path"].iterdir()}
    assert spunge.push_to_hub(vector.save(tmp_path / "tv"), "me/vector", private=False).startswith("https")
    with pytest.raises(ArtifactError, match="me/refused: the hub does not take it: 403 Forbidden: no right to write;"):
        spunge.push_to_hub(exported, "me/refused")
    with (exported / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(ArtifactError, match="damaged"):
        spunge.push_to_hub(exported, "me/model")
    with pytest.raises(ArtifactError, match="nothing that export, merge or unlearn wrote"):
        spunge.push_to_hub(tmp_path, "me/model")
    assert len(asked) == 6
