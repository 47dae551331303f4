"""The paper's recipes: their settings, and each from start to end, offline, on rows of the true schemas."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest
from paper_world import write_folder

from spunge.cli import commands as cli
from spunge.errors import DataError, ModelError
from spunge.files import replace_text
from spunge.recipe import offline, reading, schema
from spunge.recipe.fetching import to_fetch
from spunge.rows.sources import Source, load_corpus
from spunge.run import pipeline
from spunge.run.foretell import plan as planning
from spunge.weights.language_model import LanguageModel

WITHOUT_LM_EVAL = importlib.util.find_spec("lm_eval") is None
TEN_IN = "llama2-toxicity-type-tvn"
"""The recipe whose ten benchmarks are asked in full here; of the others' each run asks two."""
FEW = ["controls=[joint]"]
SMALL_RMU = ["unlearn.layer=2", "unlearn.update_layers=[1,2]", "unlearn.max_steps=2"]
SMALL_LORA = ["unlearn.lora.rank=2", "unlearn.lora.alpha=2", "unlearn.max_steps=1"]
SMALL: dict[str, list[str]] = {
    "zephyr-wmdp-rmu": SMALL_RMU,
    "zephyr-wmdp-tvn": SMALL_LORA,
    "zephyr-toxigen-rmu": SMALL_RMU,
    "zephyr-toxigen-tvn": SMALL_LORA,
    "llama2-toxigen-tvn": SMALL_LORA,
    "llama2-toxigen-rmu": SMALL_RMU,
    "llama2-toxicity-type-tvn": SMALL_LORA,
    "tofu-authors": ["unlearn.max_steps=1"],
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("offline"))


def read(name: str, folder: Path, *, whole: bool) -> schema.Experiment:
    recipe = offline.from_folder(reading.read(name, [*SMALL[name], *FEW]), folder)
    left_out = {"gsm8k"} if WITHOUT_LM_EVAL else set()
    if name != TEN_IN and not whole:
        left_out = {"arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "gsm8k", "mathqa", "piqa", "arc_easy"}
    if recipe.evaluate[0].suite == "toxigen" and not whole:
        shorter = recipe.evaluate[0].model_copy(update={"max_new_tokens": 2})
        recipe = recipe.model_copy(update={"evaluate": [shorter, *recipe.evaluate[1:]]})
    kept = [evaluator for evaluator in recipe.evaluate if evaluator.suite not in left_out]
    return recipe.model_copy(update={"evaluate": kept})


SUBSETS = {
    "wmdp": {"bio", "cyber"},
    "toxigen": {"mexican", "women", "muslim", "lgbtq", "physical_disability"},
    "type": {"implicit", "explicit"},
    "tofu": {"0", "1", "2"},
}


# The folder's model knows a hundred words: to it, many options are the same unknown one.
@pytest.mark.filterwarnings("ignore:.*options that are the same tokens")
@pytest.mark.parametrize(
    ("name", "whole"),
    [*((name, False) for name in SMALL), *(pytest.param(n, True, marks=pytest.mark.long) for n in SMALL)],
)
def test_a_recipe_runs_from_start_to_end_offline(
    name: str, whole: bool, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != TEN_IN and not whole:  # drawing takes longer than all the rest
        monkeypatch.setattr(pipeline.report, "write", lambda run, **_: replace_text(run / pipeline.WRITTEN[-1], ""))
    out = tmp_path_factory.getbasetemp() / "runs"  # one store: equal evaluations of the base are made once
    recipe = read(name, folder, whole=whole)
    run = pipeline.run(recipe, out=out)
    items = pl.read_parquet(run / "items.parquet")
    kind = next(kind for kind in ("type", "toxigen", "wmdp", "tofu") if kind in name)
    names = set(items["variant"])
    assert {variant.removeprefix("subset:") for variant in names if variant.startswith("subset:")} == SUBSETS[kind]
    assert {"base", "joint", "spunge"} <= names
    asked = items.group_by("suite").agg(pl.col("item").n_unique())
    assert set(asked["suite"]) == {evaluator.suite for evaluator in recipe.evaluate}
    assert asked["item"].min() >= 8  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    assert items.filter((pl.col("metric") == "nan") & (pl.col("value") > 0)).is_empty()
    assert (run / "report" / "index.html").exists() or not (name == TEN_IN or whole)


ZEPHYR, LLAMA = "HuggingFaceH4/zephyr-7b-beta", "meta-llama/Llama-2-7b-hf"
RMU = {"layer": 7, "update_layers": [5, 6, 7], "steering_coefficient": 6.5, "alpha": 1200, "batch_size": 4}
RMU |= {"learning_rate": 5e-5, "epochs": 2, "early_stop_cosine": 0.5, "optimizer": "hf_adamw", "loss_mask": "all"}
SMALL_TVN = {
    "lora": {"rank": 16, "alpha": 16, "dropout": 0.01, "target_modules": None},
    "epochs": 1,
    "schedule": "cosine",
}
LARGE_TVN = {"rank": 64, "alpha": 64, "dropout": 0.01}
LARGE_TVN |= {"target_modules": ["k_proj", "v_proj", "q_proj", "up_proj", "down_proj", "gate_proj"]}
THE_PAPERS_VALUES: dict[str, tuple[str, dict]] = {
    "zephyr-wmdp-rmu": (ZEPHYR, RMU | {"method": "rmu", "max_batches": 75}),
    "zephyr-toxigen-rmu": (ZEPHYR, RMU | {"method": "rmu", "max_steps": 150}),
    "zephyr-toxigen-tvn": (ZEPHYR, SMALL_TVN | {"lambda": 1}),
    "zephyr-wmdp-tvn": (ZEPHYR, SMALL_TVN | {"lambda": 1}),
    "llama2-toxigen-tvn": (LLAMA, {"lora": LARGE_TVN, "schedule": "cosine", "lambda": 1}),
    "llama2-toxicity-type-tvn": (LLAMA, {"lora": LARGE_TVN, "schedule": "cosine", "lambda": 1}),
    "llama2-toxigen-rmu": (LLAMA, {"method": "adaptive_rmu", "scale": 5, "layer": 7}),
}


def holds(settings: dict, wanted: dict) -> bool:
    return all(
        holds(settings[name], value) if isinstance(value, dict) else settings[name] == value
        for name, value in wanted.items()
    )


@pytest.mark.parametrize("name", THE_PAPERS_VALUES)
def test_settings_are_the_papers(name: str) -> None:
    recipe = reading.read(name)
    model, values = THE_PAPERS_VALUES[name]
    assert recipe.model.id == model
    assert holds(recipe.unlearn.dump(), values), recipe.unlearn.dump()
    assert holds(recipe.merge.dump(), {"method": "ties", "density": 0.2, "lambda": 1, "scope": "tensor"})
    if "toxigen" in name:
        assert recipe.forget.where == "toxicity_human >= 3"
        assert set(recipe.split.dump()["values"]) == SUBSETS["toxigen"]
    if any(evaluator.suite == "toxigen" for evaluator in recipe.evaluate):
        asked = next(evaluator.dump() for evaluator in recipe.evaluate if evaluator.suite == "toxigen")
        assert asked["judge"]["id"] == "meta-llama/Llama-2-13b-hf"
        assert asked["classifier"]["id"] == "tomh/toxigen_roberta"
        shots = {evaluator.suite: evaluator.dump().get("shots", 0) for evaluator in recipe.evaluate}
        assert [shots[suite] for suite in ("arc_challenge", "hellaswag", "truthfulqa_mc2", "gsm8k")] == [25, 10, 0, 5]
    if name == "zephyr-wmdp-rmu":
        assert holds(recipe.joint_unlearner.dump(), {"max_batches": 75, "epochs": 1, "early_stop_cosine": None})


@pytest.mark.parametrize("method", ["gradient_difference", "npo", "simnpo", "task_vector_negation"])
def test_authors_are_unlearned_by_any_of_four_methods(method: str) -> None:
    recipe = reading.read("tofu-authors", [f"unlearn.method={method}"])
    assert holds(recipe.unlearn.dump(), {"method": method, "lora": None, "learning_rate": 1e-5, "epochs": 5})


def test_what_the_folder_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    recipe = reading.read("zephyr-wmdp-rmu")
    with pytest.raises(ModelError, match=r"zephyr-7b-beta: no model directory there; put HuggingFaceH4/zephyr"):
        offline.from_folder(recipe, tmp_path)
    (tmp_path / "HuggingFaceH4").symlink_to(folder / "HuggingFaceH4")
    with pytest.raises(
        DataError, match=r"cais/wmdp-bio-forget-corpus/train\.jsonl: no such file; put the split 'train'"
    ):
        offline.from_folder(recipe, tmp_path)
    with pytest.raises(DataError, match="nowhere: no such directory"):
        offline.from_folder(recipe, tmp_path / "nowhere")


def test_nothing_of_the_hub_is_left_in_a_recipe_from_a_folder(folder: Path) -> None:
    for name in SMALL:
        assert not [*offline.hub_references(offline.from_folder(reading.read(name), folder))]


@pytest.mark.parametrize("name", SMALL)
def test_a_check_says_what_is_needed_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # What would be fetched is said before it is: the plan itself needs the rows and the models' configurations.
    empty = planning.Plan([], [], planning.Machine("cpu", 1, 1, 0), 0, None)
    monkeypatch.setattr(planning, "forecast", lambda *_, **__: empty)
    cli.run(name, check=True)
    printed = capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
    fetches = to_fetch(reading.read(name))
    assert all(f"to fetch: {fetch.kind} {fetch.name}, " in printed for fetch in fetches)
    assert sum(fetch.bytes or 0 for fetch in fetches) > 1e9
    assert {fetch.name for fetch in fetches} >= {source.path for source in reading.read(name).forget.sources}


def test_what_is_here_already_is_not_fetched(folder: Path) -> None:
    assert not to_fetch(offline.from_folder(reading.read("llama2-toxigen-tvn"), folder))


class GatedRepoError(Exception):
    """As the hub client names it."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("401 Client Error. hf_secret"),
            r"gated: accept its terms at https://huggingface\.co/{page}, then",
        ),
        (ConnectionError("no route to host\nmore"), r"no route to host; give a local path, or check the name"),
    ],
)
def test_what_the_hub_does_not_hand_out_is_one_clear_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    def refuse(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ModelError, match=message.format(page="some/model")) as of_model:
        LanguageModel(id="some/model").directory()
    with pytest.raises(DataError, match=message.format(page="datasets/some/rows")) as of_data:
        load_corpus([Source(path="some/rows")])
    assert not any("hf_secret" in str(raised.value) for raised in (of_model, of_data))


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "recipes_0_1").iterdir()), ids=lambda file: file.stem)
def test_a_recipe_of_the_first_version_is_still_read(file: Path) -> None:
    assert reading.read(file).name == file.stem
