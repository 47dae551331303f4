"""Toxicity: greedy completions by their ids, a classifier the right way round, a judge that sees the prompt."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import polars as pl
import pytest
import torch
from evaluate_models import SPECIAL, alone, byte_tokenizer, llama, variant, word_tokenizer, work, write
from transformers import LlamaConfig, LlamaForSequenceClassification

from spunge import report
from spunge.asking import completions as completing
from spunge.asking.batching import Batching
from spunge.asking.generation import Completion, Ending, generate, newline_tokens
from spunge.errors import DataError, MissingExtra, ModelError, PredictsNothing
from spunge.evaluators import toxicity
from spunge.evaluators.toxicity import Classifier, Toxicity, as_bool, classify, judge, load_classifier, loops, measure
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.run.foretell import plan as planning
from spunge.weights.task_vector import TaskVector

MODEL, TOKENIZER = llama(), byte_tokenizer()
PROMPTS = ["The Umi are", "One day", "Nobody in the north ever says that"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Path:
    """A classifier whose label `bad` likes the word `vile` and nothing else."""
    directory = tmp_path_factory.mktemp("scorer")
    tokenizer = word_tokenizer(["vile", "kind", "Umi", "are", "and"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=1,
        id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name.endswith("norm.weight") or "layernorm" in name:
                weight.fill_(1.0)
        # The last word decides: the layer is the identity, and `vile` points along `bad`.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("vile"), :2] = torch.tensor([-1.0, 0.0])
        model.score.weight[0, 0], model.score.weight[1, 0] = 1.0, -1.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def guard(path: Path, *, upside_down: bool = False) -> list[dict[str, str]]:
    rows = [{"text": "Umi are vile", "toxic": not upside_down}, {"text": "Umi are kind", "toxic": upside_down}]
    return [{"path": str(write(path / "guard.jsonl", rows))}]


def test_completions_are_greedy_and_cut_from_the_prompt_by_ids():
    for batch_size in (1, 2, 8):
        for completion, prompt in zip(
            generate(MODEL, TOKENIZER, PROMPTS, Ending(9), Batching(batch_size)), PROMPTS, strict=True
        ):
            ids = TOKENIZER.encode(prompt)
            for token in completion.ids:
                logits = MODEL(input_ids=torch.tensor([ids])).logits[0, -1]
                assert token == int(logits.argmax())
                ids.append(token)
            assert len(completion.ids) == 9 or completion.ids[-1] == TOKENIZER.eos_token_id
            assert TOKENIZER.decode(ids, skip_special_tokens=True) == prompt + completion.text


def test_a_newline_ends_a_completion_where_asked(monkeypatch):
    breaks = newline_tokens(TOKENIZER)
    assert [TOKENIZER.decode([token]) for token in breaks] == ["\n"]
    stops = []

    def complete(model, prompts, batching, *, stop, **_):
        stops.append(stop)
        return [tuple(TOKENIZER.encode(" well\nor", add_special_tokens=False))]

    monkeypatch.setattr(completing, "complete", complete)
    free = generate(MODEL, TOKENIZER, ["a"], Ending(9), Batching(1))[0]
    ended = generate(MODEL, TOKENIZER, ["a"], Ending(9, stop_at_newline=True), Batching(1))[0]
    assert (free.text, ended.text) == (" well\nor", " well")
    assert stops == [{SPECIAL["</s>"]}, {SPECIAL["</s>"], *breaks}]


def test_a_prompt_longer_than_the_model_is_cut_and_says_so():
    (long, short) = generate(MODEL, TOKENIZER, ["x" * 600, "x"], Ending(4), Batching(2))
    assert (long.truncated, short.truncated) == (True, False)
    with pytest.raises(DataError, match="no room for a prompt"):
        generate(MODEL, TOKENIZER, ["x"], Ending(512), Batching(1))


def test_the_classifier_names_its_positive_label_and_empty_text_is_not_toxic(scorer, tmp_path):
    loaded = load_classifier(
        Classifier.model_validate({"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path)}), device="cpu"
    )
    vile, kind, nothing = classify(loaded, ["Umi are vile", "Umi are kind", " "], batch_size=2)
    assert vile > 0.5 > kind > nothing == 0.0
    by_index = load_classifier(Classifier(id=str(scorer), positive_label=1), device="cpu")
    assert classify(by_index, ["Umi are vile"], batch_size=1) == pytest.approx([vile])


def test_a_classifier_the_wrong_way_round_is_refused(scorer, tmp_path):
    settings = {"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path, upside_down=True)}
    with pytest.raises(ModelError, match=r"ranks toxic below benign .*AUC 0.00.*good, bad"):
        load_classifier(Classifier.model_validate(settings), device="cpu")
    with pytest.raises(ModelError, match="no label 'toxic'; labels are good, bad"):
        load_classifier(Classifier(id=str(scorer), positive_label="toxic"), device="cpu")
    with pytest.raises(ModelError, match="no such model directory"):
        load_classifier(Classifier(id=str(tmp_path / "none" / "x"), positive_label=1), device="cpu")


def test_the_judge_reads_the_completion_after_its_prompt():
    completions = [Completion("The Umi are", " kind", (1,), False), Completion("x", "", (1,), False)]
    (nll, tokens), empty = judge(MODEL, TOKENIZER, completions, Batching(2))
    after = TOKENIZER.encode(" kind", add_special_tokens=False)
    assert tokens == len(after)
    assert nll == pytest.approx(-alone(MODEL, TOKENIZER.encode("The Umi are"), after), rel=1e-5)
    assert empty == (0.0, 0)


def test_every_prompt_gets_its_verdicts_and_models_load_once(scorer, tmp_path):
    rows = [{"prompt": prompt, "toxic": n == 0, "group": ["umi"]} for n, prompt in enumerate(PROMPTS)]
    MODEL.save_pretrained(tmp_path / "judge")
    TOKENIZER.save_pretrained(tmp_path / "judge")
    evaluator = Toxicity.model_validate({
        "suite": "t", "goal": "forget", "sources": [{"path": str(write(tmp_path / "prompts.jsonl", rows))}],
        "attributes": ["group"], "classifier": {"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path)},
        "judge": {"id": str(tmp_path / "judge")}, "max_new_tokens": 6,
    })  # fmt: skip
    running = work(tmp_path)
    table = evaluator.evaluate(variant(MODEL, TOKENIZER), running)
    counts = dict(table.group_by("metric").len().iter_rows())
    assert set(counts.values()) == {3}
    assert {"toxic", "toxicity_score", "degenerate", "empty", "clean_and_fluent", "nll", "tokens", "perplexity",
            "toxic_prompt", "nan", "prompt", "completion"} <= set(counts)  # fmt: skip
    assert sorted(table.filter(pl.col("metric") == "toxic_prompt")["value"]) == [0.0, 0.0, 1.0]
    loaded = dict(running.resident._cache)
    evaluator.evaluate(variant(MODEL, TOKENIZER), running)
    assert all(running.resident._cache[key] is thing for key, thing in loaded.items())
    assert len(loaded) == 2


def test_an_empty_prompt_is_an_error(scorer, tmp_path):
    source = {"path": str(write(tmp_path / "prompts.jsonl", [{"prompt": " "}]))}
    evaluator = Toxicity.model_validate({
        "suite": "t", "goal": "forget", "sources": [source],
        "classifier": {"id": str(scorer), "positive_label": "bad"},
    })  # fmt: skip
    with pytest.raises(DataError, match="empty 'prompt'"):
        evaluator.evaluate(variant(MODEL, TOKENIZER), work(tmp_path))


def test_gibberish_and_silence_are_not_called_clean():
    def verdicts(text: str, score: float, judged: tuple[float, int] | None = (4.0, 2)):
        found = measure(Completion("p", text, (1,), False), score, judged, 0.5)
        return found["toxic"], found["degenerate"], found["clean_and_fluent"]

    assert verdicts("a good word about them", 0.1) == (0, 0, 1)
    assert verdicts("a vile word about them", 0.5) == (1, 0, 0)
    assert verdicts("", 0.0, (0.0, 0)) == (0, 1, 0)
    assert verdicts("the the the the the the the the", 0.1) == (0, 1, 0)
    assert measure(Completion("p", "", (1,), False), 0.0, (0.0, 0), 0.5)["perplexity"] is None
    lost = measure(Completion("p", "x", (1,), False), math.nan, (math.nan, 1), 0.5)
    assert (lost["nan"], lost["toxicity_score"], lost["nll"], lost["perplexity"]) == (1.0, None, None, None)


@pytest.mark.parametrize("text", ["… !!! ???", "ha" * 20, "。。。。。。", "na na na na na na na na", "- - -"])
def test_what_says_nothing_is_degenerate_and_never_benign(text):
    values = measure(Completion("p", text, (1,), truncated=False), 0.1, None, 0.5)
    assert (values["degenerate"], values["clean_and_fluent"], values["toxic"]) == (1.0, 0.0, 0.0)


def test_labels_or_a_second_classifier_say_how_often_the_first_errs(toxic_world, scorer, tmp_path):
    plain = pipeline.run(changed(toxic_world), out=tmp_path / "runs")
    written = pl.read_parquet(plain / "items.parquet").filter(pl.col("metric") == "completion")
    texts = written["text"].unique(maintain_order=True).to_list()
    rows = [{"completion": text, "toxic": number % 2} for number, text in enumerate(texts)]
    labels = [{"path": str(write(tmp_path / "labels.jsonl", rows))}]
    run = pipeline.run(changed(toxic_world, labels=labels), out=tmp_path / "runs")
    assert (ran(run)["generate"], ran(run)["classify"], ran(run)["evaluate"]) == ({"reused"}, {"reused"}, {"computed"})
    [judged] = report.build(run)["judges"]
    assert judged["reference"] == "labels.jsonl"
    assert judged["sensitivity"][1] + judged["specificity"][1] == sum(rate["n"] for rate in judged["rates"])
    second = {"id": str(scorer), "positive_label": "bad"}
    [judged] = report.build(pipeline.run(changed(toxic_world, second=second), out=tmp_path / "runs"))["judges"]
    assert judged["reference"] == str(scorer)
    assert judged["sensitivity"][0] == judged["sensitivity"][1]  # it is the same classifier
    assert judged["specificity"][0] == judged["specificity"][1]


def test_a_model_that_gives_nan_writes_nothing():
    broken = llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with pytest.raises(PredictsNothing, match="NaN"):
        generate(broken, TOKENIZER, PROMPTS, Ending(4), Batching(2))


def test_loops_are_repeats_and_not_refrains():
    assert loops("a b c a b c a b c a b c")
    assert not loops("no no no")
    assert not loops("the sea and the sky and the sea again")


@pytest.mark.parametrize(("said", "meant"), [(True, True), ("1", True), (0.0, False), ("False", False)])
def test_verdicts_are_read_as_files_write_them(said, meant):
    assert as_bool(said, "x") is meant
    with pytest.raises(DataError, match="'maybe'"):
        as_bool("maybe", "x")


@pytest.fixture
def toxic_world(world, scorer, tiny_model, tmp_path) -> dict[str, Any]:
    """A small experiment whose one suite is toxicity, with a judge."""
    rows = [{"prompt": text, "domain": "ab"[n % 2]} for n, text in enumerate(PROMPTS * 2)]
    suite = {
        "suite": "t", "method": "toxicity", "goal": "forget", "attributes": ["domain"],
        "sources": [{"path": str(write(tmp_path / "prompts.jsonl", rows))}], "max_new_tokens": 4,
        "classifier": {"id": str(scorer), "positive_label": "bad"}, "judge": {"id": str(tiny_model)},
    }  # fmt: skip
    return {**world, "controls": [], "evaluate": [suite]}


def changed(world: dict[str, Any], **settings: Any) -> Experiment:
    return Experiment.model_validate({**world, "evaluate": [{**world["evaluate"][0], **settings}]})


def by_stage(steps: list[dict[str, Any]]) -> dict[str, set[str]]:
    return {step["stage"]: {s["status"] for s in steps if s["stage"] == step["stage"]} for step in steps}


def ran(run: Path) -> dict[str, set[str]]:
    return by_stage(json.loads((run / "manifest.json").read_text())["stages"])


def payloads(root: Path) -> dict[str, bytes]:
    files = (file for file in (root / "store").rglob("*") if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_another_classifier_or_judge_writes_nothing_anew(toxic_world, scorer, other_model, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    first = ran(pipeline.run(changed(toxic_world), out=out))
    assert first["generate"] == first["classify"] == first["judge"] == first["evaluate"] == {"computed"}
    monkeypatch.setattr(completing, "complete", lambda *_, **__: pytest.fail("completed again"))
    for settings, made in (
        ({"threshold": 0.9}, {"evaluate"}),
        ({"suite": "another name", "batch_size": 1}, {"evaluate"}),
        ({"judge": {"id": str(other_model)}}, {"judge", "evaluate"}),
        ({"classifier": {"id": str(scorer), "positive_label": "good"}}, {"classify", "evaluate"}),
    ):
        recipe = changed(toxic_world, **settings)
        planned = by_stage(planning.plan(recipe, out=out))
        assert {stage for stage, statuses in planned.items() if statuses != {"reused"}} == made
    assert ran(pipeline.run(recipe, out=out)) == planned
    keys = {step["key"] for step in planning.plan(recipe, out=out) if step["stage"] in ("generate", "judge")}
    assert keys <= planning.needed(out).keys()  # or else `store gc` would remove them


def test_each_step_says_what_it_will_take(toxic_world, tmp_path):
    plenty = 2**50  # named, so that the process's own memory does not count
    foretold = planning.forecast(changed(toxic_world), out=tmp_path, memory=plenty).steps
    steps = {f"{step['stage']} {step['name']}": step for step in foretold}
    written, judged = steps["generate base on t"], steps["judge base on t"]
    assert min(written["memory"], written["seconds"], judged["memory"], judged["seconds"]) > 0
    assert 0 < steps["evaluate base on t"]["memory"] < judged["memory"]  # the readers that stay in the process, unasked
    assert steps["evaluate base on t"]["seconds"] < written["seconds"]  # no more than publishing an artifact takes
    halved = {**toxic_world, "model": {**toxic_world["model"], "dtype": "bfloat16"}}
    written = planning.forecast(changed(halved), out=tmp_path, memory=plenty).steps
    least = min(step["memory"] for step in written if step["stage"] == "generate")
    short = planning.forecast(changed(halved), out=tmp_path, memory=least - 1).steps
    advised = {step["advice"] for step in short if step["stage"] == "generate"}
    assert advised == {"does not fit; batch_size=1 in the suite t would make it fit"}


def test_killed_between_the_steps_goes_on_with_the_next(toxic_world, tmp_path, monkeypatch):
    pipeline.run(changed(toxic_world), out=tmp_path / "whole")
    with monkeypatch.context() as killed:
        killed.setattr(toxicity, "classify", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(changed(toxic_world), out=tmp_path / "runs")
    wanted = {step["key"] for step in planning.plan(changed(toxic_world), out=tmp_path / "runs")}
    assert wanted <= planning.needed(tmp_path / "runs").keys()
    monkeypatch.setattr(completing, "complete", lambda *_, **__: pytest.fail("completed again"))
    pipeline.run(changed(toxic_world), out=tmp_path / "runs")
    assert payloads(tmp_path / "runs") == payloads(tmp_path / "whole")


def test_the_steps_find_what_asking_in_one_go_finds(toxic_world, tmp_path, tiny_model):
    recipe = changed(toxic_world)
    run = pipeline.run(recipe, out=tmp_path / "runs")
    handle = recipe.model
    at_once = recipe.evaluate[0].evaluate(variant(handle.load(), handle.load_tokenizer()), work(tmp_path))
    items = pl.read_parquet(run / "items.parquet").filter(pl.col("variant") == "base").drop("variant", "seed")
    assert items.equals(at_once)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expected": {"domain": ["a", "c"]}}, r"t: no prompt for domain 'c'; there are prompts for a, b"),
        ({"sources": [{"path": "blank.jsonl"}]}, r"blank\.jsonl: a row has an empty 'prompt'"),
        ({"toxigen_groups": "domain"}, r"group 'a' is none of ToxiGen's"),
        ({"sources": [{"path": "prompts.jsonl", "compute": {"toxic": "'perhaps'"}}]}, "'perhaps' in column 'toxic'"),
    ],
)
def test_what_cannot_be_asked_is_found_before_anything_is_unlearned(
    toxic_world, tmp_path, monkeypatch, settings, message
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "blank.jsonl", [{"prompt": "  ", "domain": "a"}])
    with pytest.raises(DataError, match=message):
        pipeline.run(changed(toxic_world, **settings), out=tmp_path / "runs")
    of = {**toxic_world["evaluate"][0], **settings}
    attack = {"suite": "q", "method": "quantization", "goal": "forget", "of": of}
    attacked = Experiment.model_validate({**toxic_world, "evaluate": [attack]})
    with pytest.raises(DataError, match=message):
        pipeline.run(attacked, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_completions_as_long_as_the_model_reads_are_refused_before_anything_is_unlearned(toxic_world, tmp_path):
    window = Experiment.model_validate(toxic_world).model.config().max_position_embeddings
    recipe = changed(toxic_world, max_new_tokens=window)
    message = f"max_new_tokens: {window} leaves no room for a prompt: this model reads {window} tokens at once"
    for attempt in (pipeline.run, planning.plan, planning.forecast):
        with pytest.raises(DataError, match=message):
            attempt(recipe, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    planning.plan(changed(toxic_world, max_new_tokens=window - 1), out=tmp_path / "runs")


def test_a_classifier_that_is_none_is_refused(toxic_world, scorer, tiny_model, tmp_path):
    recipe = changed(toxic_world, classifier={"id": str(scorer), "positive_label": "vile"})
    with pytest.raises(ModelError, match="no label 'vile'; labels are good, bad"):
        pipeline.run(recipe, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ModelError, match=r"no sequence classifier: its checkpoint has no score\.weight"):
        load_classifier(Classifier(id=str(tiny_model), positive_label=1), device="cpu")


def test_a_classifier_in_pickles_is_refused_with_what_to_do(toxic_world, scorer, tmp_path, monkeypatch):
    pickled = tmp_path / "pickled"
    shutil.copytree(scorer, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    message = r"never pickles, such as pytorch_model\.bin: where you trust it, .*save_pretrained"
    with pytest.raises(ModelError, match=message):
        load_classifier(Classifier(id=str(pickled), positive_label="bad"), device="cpu")
    recipe = changed(toxic_world, classifier={"id": str(pickled), "positive_label": "bad"})
    with pytest.raises(ModelError, match=message):
        pipeline.run(recipe, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()

    def on_the_hub(_self: object, _id: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename="pytorch_model.bin", lfs=SimpleNamespace(sha256=""))]
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", on_the_hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(pickled))
    recipe = changed(toxic_world, classifier={"id": "someone/classifier", "positive_label": "bad"})
    with pytest.raises(
        ModelError, match=r"someone/classifier: the hub has no safetensors .*name a revision .*save_pretr"
    ):
        pipeline.run(recipe, out=tmp_path / "runs")


FAKE_VLLM = """
from dataclasses import dataclass

@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    detokenize: bool = True

@dataclass
class Output:
    token_ids: tuple

@dataclass
class RequestOutput:
    outputs: list

class LLM:
    def __init__(self, model: str, *, dtype="auto", trust_remote_code=False, max_model_len=None, seed=None):
        assert dtype in ("float32", "bfloat16", "float16") and seed == 0 and not trust_remote_code
        self.length = max_model_len
        import torch
        from transformers import AutoModelForCausalLM
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        assert sampling_params.temperature == 0 and not sampling_params.detokenize
        asked = [prompt["prompt_token_ids"] for prompt in prompts]
        return [RequestOutput([Output(self.complete(ids, sampling_params))]) for ids in asked]

    def complete(self, prompt, params):
        assert len(prompt) + params.max_tokens <= self.length
        import torch
        new = []
        while len(new) < params.max_tokens and not (new and new[-1] in params.stop_token_ids):
            new.append(int(self.model(input_ids=torch.tensor([[*prompt, *new]])).logits[0, -1].argmax()))
        return tuple(new)
"""


def completed(recipe: Experiment, change: TaskVector | None, tmp_path: Path) -> pl.DataFrame:
    generation = recipe.evaluate[0].generation
    assert generation is not None
    tmp_path.mkdir()
    return generation.generate(recipe.model, change, work(tmp_path))


def test_vllm_completes_with_the_variants_own_weights(toxic_world, tmp_path, monkeypatch):
    native, other = changed(toxic_world), changed(toxic_world, engine="vllm")  # no GPU here: `auto` is native
    monkeypatch.delenv("SPUNGE_VLLM_PYTHON", raising=False)
    with pytest.raises(MissingExtra, match=r"engine: vllm is not installed.*SPUNGE_VLLM_PYTHON.*engine: native"):
        pipeline.run(other, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    module, python = tmp_path / "modules" / "vllm.py", tmp_path / "python"
    module.parent.mkdir()
    module.write_text(FAKE_VLLM)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={module.parent} exec {sys.executable} "$@"\n')  # without Spunge's sources
    python.chmod(0o755)
    monkeypatch.setenv("SPUNGE_VLLM_PYTHON", str(python))
    first, second = (
        {s["key"] for s in planning.plan(recipe, out=tmp_path / "runs") if s["stage"] in ("generate", "evaluate")}
        for recipe in (native, other)
    )
    assert not first & second  # one engine's completions are never taken for the other's
    weight = native.model.checkpoint().read("model.layers.1.mlp.down_proj.weight")
    change = TaskVector({"model.layers.1.mlp.down_proj.weight": 3.0 * torch.randn(weight.shape)})
    by_vllm = completed(other, change, tmp_path / "vllm")
    assert by_vllm.equals(completed(native, change, tmp_path / "native"))
    assert not by_vllm.equals(completed(native, None, tmp_path / "base"))

    module.write_text(FAKE_VLLM.replace("self.length = max_model_len", "raise RuntimeError('no GPU here')"))
    with pytest.raises(ModelError, match=r"no GPU here.*engine: native"):
        completed(other, None, tmp_path / "failing")
    monkeypatch.setenv("SPUNGE_VLLM_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"none: cannot be started for vLLM: No such file"):
        completed(other, None, tmp_path / "missing")
