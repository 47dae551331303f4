"""RMU end to end: bit for bit what two full models give, and everything around the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_rmu import naive_rmu
from pydantic import ValidationError
from steering_models import ARCHITECTURES, make_corpus, make_model, make_work
from transformers import AutoModelForCausalLM

from spunge.errors import DataError, ModelError, RecipeError, TrainingDiverged
from spunge.interfaces import Work
from spunge.rows.sources import Corpus, concatenate
from spunge.steering import cache, loop, memory
from spunge.steering.forecast import States, forecast
from spunge.steering.search import Grid, attempt, search
from spunge.steering.settings import TABLE, of_topic
from spunge.steering.truncated import load_truncated
from spunge.training import checkpointing
from spunge.unlearners.adaptive_rmu import AdaptiveRMU
from spunge.unlearners.rmu import RMU
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.task_vector import TaskVector

LAYERS = {"gpt_neox": "gpt_neox.layers", "gpt_neo": "transformer.h", "gpt2": "transformer.h"}
TINY: dict[str, Any] = {"layer": 4, "alpha": 10.0, "steering_coefficient": 8.0, "learning_rate": 1e-3}
NAMES = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3, 4)]


@pytest.fixture
def base(tmp_path: Path) -> LanguageModel:
    return make_model(tmp_path / "model")


def unlearn(settings: RMU | AdaptiveRMU, base: LanguageModel, forget: Corpus, retain: Corpus, work: Work) -> TaskVector:
    return settings.unlearn(base, forget, retain, work)


def naively(
    settings: RMU,
    base: LanguageModel,
    topics: list[Corpus],
    retain: Corpus,
    work: Work,
    updated: list[str],
    **options: Any,
) -> dict[str, torch.Tensor]:
    controls = safetensors.torch.load_file(work.output / loop.CONTROL_VECTORS)
    return naive_rmu(
        base.id,
        base.load_tokenizer(),
        [topic.texts for topic in topics],
        retain.texts,
        [controls[name] for name in sorted(controls)],
        layer=settings.layer,
        updated=updated,
        alphas=[of_topic(settings.alpha, name, "alpha") for name in sorted(controls)],
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        **{"layers": "model.layers", "steps": 30, **options},
    )


@pytest.mark.parametrize(("preset", "topics"), [(None, 1), (None, 2), ("faithful", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_bitwise_equal_to_two_full_models(
    tmp_path: Path, kind: str, dtype: torch.dtype, topics: int, preset: Any
) -> None:
    base = make_model(tmp_path / "model", kind, dtype)
    forget = [make_corpus(30 // topics * 4, seed) for seed in range(topics)]
    retain, settings, work = make_corpus(120, 9), RMU(**TINY, preset=preset), make_work(tmp_path)
    named = concatenate(topic.with_subset(f"topic {index}") for index, topic in enumerate(forget))
    vector = unlearn(settings, base, named, retain, work)
    assert vector.provenance["steps"] == 30
    options = {"loss_mask": "all", "master": "model", "optimizer": "hf_adamw"} if preset else {}
    expected = naively(settings, base, forget, retain, work, NAMES, dtype=dtype, **options)
    assert set(vector) == set(NAMES)
    for name in NAMES:
        assert torch.equal(vector.delta(name), expected[name].float() - base.checkpoint().read(name).float())
        assert vector.delta(name).count_nonzero() > 100


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("llama", "mistral")])
def test_bitwise_equal_on_every_architecture(tmp_path: Path, kind: str) -> None:
    base = make_model(tmp_path / "model", kind)
    forget, retain, work = make_corpus(16, 0), make_corpus(16, 1), make_work(tmp_path)
    settings = RMU(**TINY)
    vector = unlearn(settings, base, forget, retain, work)
    updated = [f"model.layers.{n}.mlp.experts.down_proj" for n in (2, 3, 4)] if kind == "mixtral" else list(vector)
    layers = LAYERS.get(kind, "model.layers")
    expected = naively(settings, base, [forget], retain, work, updated, steps=4, layers=layers)
    if kind == "mixtral":  # the checkpoint keeps the experts one by one
        expected = {
            f"model.layers.{n}.block_sparse_moe.experts.{expert}.w2.weight": matrix
            for n, name in zip((2, 3, 4), updated, strict=True)
            for expert, matrix in enumerate(expected[name])
        }
    assert set(vector) == set(expected)
    for name, value in expected.items():
        assert torch.equal(vector.delta(name), value - base.checkpoint().read(name))


@pytest.mark.parametrize("loss_mask", ["all", "non_pad_non_bos"])
def test_bitwise_equal_under_other_masks(tmp_path: Path, base: LanguageModel, loss_mask: Any) -> None:
    forget, retain, work = make_corpus(24, 0), make_corpus(24, 1), make_work(tmp_path)
    settings = RMU(**TINY, loss_mask=loss_mask, update_layers=(1, 4), parameters=("self_attn.o_proj", "mlp.down_proj"))
    vector = unlearn(settings, base, forget, retain, work)
    assert len(vector) == 4
    expected = naively(settings, base, [forget], retain, work, sorted(vector), steps=6, loss_mask=loss_mask)
    for name in vector:
        assert torch.equal(vector.delta(name), expected[name] - base.checkpoint().read(name))


def with_sinks(base: LanguageModel) -> LanguageModel:
    """Makes the first token of every text, which is always the same one, as long as real models' are."""
    model = AutoModelForCausalLM.from_pretrained(base.id)
    with torch.no_grad():
        cast("torch.nn.Embedding", model.get_input_embeddings()).weight[1] *= 200
    model.save_pretrained(base.id)
    return base


def test_sinks_count_neither_in_losses_nor_in_cosines_nor_in_lengths(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain, base = make_corpus(24, 0), make_corpus(24, 1), with_sinks(base)
    settings, work = RMU(**TINY, loss_mask="non_pad_non_sink", cosine_every=1), make_work(tmp_path)
    vector = unlearn(settings, base, forget, retain, work)
    loss_mask = "non_pad_non_sink"
    expected = naively(settings, base, [forget], retain, work, NAMES, steps=6, loss_mask=loss_mask)
    assert all(torch.equal(vector.delta(name), expected[name] - base.checkpoint().read(name)) for name in NAMES)
    # With sinks their mean is nearly all first tokens', and so is the coefficient that is a multiple of it.
    norms = {}
    for mask in ("non_pad", "non_pad_non_bos", "non_pad_non_sink"):
        adaptive = AdaptiveRMU(layer=4, learning_rate=1e-3, loss_mask=mask, max_steps=1)
        norms[mask] = unlearn(adaptive, base, forget, retain, make_work(tmp_path / mask)).provenance["mean_norms"]
    assert norms["non_pad_non_sink"]["forget"] == pytest.approx(norms["non_pad_non_bos"]["forget"], rel=0.05)
    assert norms["non_pad"]["forget"] > 2 * norms["non_pad_non_sink"]["forget"]


def test_every_topic_may_have_its_own_coefficient_and_alpha(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain, work = [make_corpus(12, 0), make_corpus(12, 1)], make_corpus(24, 9), make_work(tmp_path)
    named = concatenate(topic.with_subset(name) for topic, name in zip(forget, ("bio", "cyber"), strict=True))
    settings = RMU(**{**TINY, "alpha": {"bio": 1, "cyber": 50}, "steering_coefficient": {"bio": 4, "cyber": 9}})
    vector = unlearn(settings, base, named, retain, work)
    expected = naively(settings, base, forget, retain, work, NAMES, steps=6)
    assert all(torch.equal(vector.delta(name), expected[name] - base.checkpoint().read(name)) for name in NAMES)
    assert vector.provenance["coefficients"] == {"bio": 4, "cyber": 9}
    other = concatenate([named, make_corpus(4, 2).with_subset("chemistry")])
    for setting in ("alpha", "steering_coefficient"):
        wrong = RMU(**{**TINY, setting: {"bio": 1, "cyber": 2}})
        with pytest.raises(RecipeError, match=f"{setting}: no value for topic 'chemistry'; it has bio, cyber"):
            forecast(wrong, base, other, retain, work)


def test_a_shared_device_changes_no_bit(tmp_path: Path, base: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    retain = make_corpus(24, 9)
    first, second = make_corpus(24, 0).with_subset("first"), make_corpus(24, 1).with_subset("second")
    runs = {"first": first, "second": second, "joint": concatenate([first, second]), "again": first}
    settings = RMU(**TINY, epochs=2)
    alone = {name: unlearn(settings, base, forget, retain, make_work(tmp_path / name)) for name, forget in runs.items()}
    for budget in (10**9, 10_000):  # in memory; mostly in the memory map
        monkeypatch.setattr(loop, "StateCache", lambda size=budget: cache.StateCache(size))
        resident = Resident()
        for name, forget in runs.items():
            together = unlearn(settings, base, forget, retain, make_work(tmp_path / f"{name} {budget}", resident))
            for parameter in NAMES:
                assert torch.equal(together.delta(parameter), alone[name].delta(parameter))
            assert metrics(tmp_path / f"{name} {budget}") == metrics(tmp_path / name)


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "output" / checkpointing.METRICS).read_text().splitlines()]


def test_batches_take_turns(tmp_path: Path, base: LanguageModel) -> None:
    forget = concatenate([make_corpus(9, 0).with_subset("a/b"), make_corpus(20, 1).with_subset("Ünï")])
    seen: list[tuple[str, int, int, set[str]]] = []
    work = make_work(
        tmp_path, progress=lambda what, done, total, **figures: seen.append((what, done, total, set(figures)))
    )
    vector = unlearn(RMU(**TINY, epochs=2, max_steps=11, cosine_every=1), base, forget, make_corpus(40, 2), work)
    assert vector.provenance["batches_per_epoch"] == 3
    assert vector.provenance["steps"] == 11
    assert [record["topic"] for record in metrics(tmp_path)] == ["a/b", "Ünï"] * 5 + ["a/b"]
    assert [record["step"] for record in metrics(tmp_path)] == list(range(11))
    figures = {"forget_loss", "retain_loss", "forget_cosine", "retain_cosine"}
    assert seen == [("rmu", step, 11, figures) for step in range(1, 12)]
    assert metrics(tmp_path)[0]["forget_cosine"] == pytest.approx(1)
    controls = safetensors.torch.load_file(work.output / loop.CONTROL_VECTORS)
    assert set(controls) == {"a/b", "Ünï"}
    assert all(
        vector.norm().item() == pytest.approx(8) and vector.dtype == torch.float32 for vector in controls.values()
    )


def test_a_killed_run_ends_with_the_same_bytes(
    tmp_path: Path, base: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", 0)
    forget, retain = make_corpus(40, 0), make_corpus(40, 1)
    for settings in (RMU(**TINY), RMU(**TINY, optimizer="hf_adamw", shuffle=True, epochs=2)):
        place = tmp_path / settings.optimizer
        whole = unlearn(settings, base, forget, retain, make_work(place / "whole")).save(place / "whole" / "output")

        def killed(_what: str, done: int, _total: int, /, **_figures: float) -> None:
            if done == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unlearn(settings, base, forget, retain, make_work(place / "killed", progress=killed))
        steps: list[int] = []
        work = make_work(place / "killed", progress=lambda _what, done, _total, /, steps=steps, **_: steps.append(done))
        unlearn(settings, base, forget, retain, work).save(work.output)
        assert 1 < steps[0] <= 7  # from the last checkpoint: saving takes at most a twentieth of the time
        for file in whole.iterdir():
            assert file.read_bytes() == (work.output / file.name).read_bytes()


def test_a_checkpoint_of_another_task_or_a_damaged_one_is_not_resumed(
    tmp_path: Path, base: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", 0)
    forget, retain = make_corpus(16, 0), make_corpus(16, 1)
    expected = unlearn(RMU(**TINY), base, forget, retain, make_work(tmp_path / "fresh"))
    work = make_work(tmp_path / "used")
    unlearn(RMU(**TINY), base, make_corpus(16, 5), retain, work)
    assert (work.scratch / checkpointing.CHECKPOINT).exists()
    again = unlearn(RMU(**TINY), base, forget, retain, work)
    assert all(torch.equal(again.delta(name), expected.delta(name)) for name in NAMES)
    saved = (work.scratch / checkpointing.CHECKPOINT).read_bytes()
    damages = b"PK not a checkpoint", saved.replace(b"masters", b"\xffasters"), saved.replace(b"key", b"kex", 1)
    for damaged in damages:
        (work.scratch / checkpointing.CHECKPOINT).write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match="begins anew"):
            again = unlearn(RMU(**TINY), base, forget, retain, work)
        assert all(torch.equal(again.delta(name), expected.delta(name)) for name in NAMES)


def test_the_early_stop_waits_for_the_window(tmp_path: Path, base: LanguageModel) -> None:
    settings = RMU(**{**TINY, "learning_rate": 1e-2, "alpha": 0.0}, early_stop_cosine=0.9, early_stop_window=4)
    forget = concatenate([make_corpus(80, 0).with_subset("a"), make_corpus(80, 1).with_subset("b")])
    vector = unlearn(settings, base, forget, make_corpus(80, 2), make_work(tmp_path))
    records = metrics(tmp_path)
    assert vector.provenance["stopped"] == "early_stop_cosine"
    assert vector.provenance["steps"] == len(records) - 1 < 40

    def windowed(upto: int) -> list[float]:
        return [
            sum(r["forget_cosine"] for r in [r for r in records[:upto] if r["topic"] == topic][-4:]) / 4
            for topic in "ab"
        ]

    assert max(windowed(len(records))) < 0.9
    assert max(windowed(len(records) - 1)) >= 0.9 or len(records) == 8


def test_the_retain_guard_returns_to_the_last_good_weights(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain = make_corpus(80, 0), make_corpus(80, 1)
    settings = {**TINY, "learning_rate": 1e-2, "alpha": 0.0}
    guarded = unlearn(RMU(**settings, retain_floor=0.9), base, forget, retain, make_work(tmp_path / "guarded"))
    steps = guarded.provenance["steps"]
    assert guarded.provenance["stopped"] == "retain_floor"
    cosines = [record["retain_cosine"] for record in metrics(tmp_path / "guarded")]
    assert [cosine < 0.9 for cosine in cosines] == [False] * (steps + 1) + [True]
    stopped = unlearn(RMU(**settings, max_steps=steps), base, forget, retain, make_work(tmp_path / "stopped"))
    assert all(torch.equal(guarded.delta(name), stopped.delta(name)) for name in NAMES)
    # The weights after the very last step are looked at too.
    hasty = RMU(**{**settings, "learning_rate": 0.1}, retain_floor=0.9, max_steps=1)
    vector = unlearn(hasty, base, forget, retain, make_work(tmp_path / "hasty"))
    assert (vector.provenance["steps"], vector.provenance["stopped"], vector.norm) == (0, "retain_floor", 0)


@pytest.mark.parametrize("max_steps", [None, 1])
def test_a_diverging_run_says_where_and_keeps_the_last_good_weights(
    tmp_path: Path, base: LanguageModel, max_steps: int | None
) -> None:
    work = make_work(tmp_path)
    with pytest.raises(TrainingDiverged, match="not finite at step 1: lower learning_rate"):
        unlearn(
            RMU(**{**TINY, "learning_rate": 1e30}, max_steps=max_steps),
            base,
            make_corpus(16, 0),
            make_corpus(16, 1),
            work,
        )
    assert TaskVector.load(work.scratch / checkpointing.LAST_GOOD).norm == 0


def test_shuffling_is_another_order_from_the_seed(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain = make_corpus(16, 0), make_corpus(16, 1)

    def norm(name: str, seed: int = 0, **changes: Any) -> float:
        return unlearn(
            RMU(**TINY, control="shared", **changes), base, forget, retain, make_work(tmp_path / name, seed=seed)
        ).norm

    assert norm("a", shuffle=True) == norm("b", shuffle=True) != norm("c")
    assert norm("d", 1, shuffle=True) != norm("a", shuffle=True)
    assert norm("e", 1) == norm("c")


def test_the_forget_cosine_may_be_measured_now_and_then(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain = make_corpus(32, 0), make_corpus(32, 1)
    every = unlearn(RMU(**TINY, cosine_every=1), base, forget, retain, make_work(tmp_path / "every"))
    cosines = [record["forget_cosine"] for record in metrics(tmp_path / "every")]
    for cosine_every, measured in ((3, {0, 3, 6, 7}), (None, {0, 7})):
        place = tmp_path / f"every {cosine_every}"
        some = unlearn(RMU(**TINY, cosine_every=cosine_every), base, forget, retain, make_work(place))
        assert all(torch.equal(every.delta(name), some.delta(name)) for name in NAMES)
        expected = [cosine if step in measured else None for step, cosine in enumerate(cosines)]
        assert [record["forget_cosine"] for record in metrics(place)] == expected


def test_float32_masters_keep_what_bfloat16_loses(tmp_path: Path) -> None:
    base = make_model(tmp_path / "model", dtype=torch.bfloat16)
    forget, retain = make_corpus(40, 0), make_corpus(40, 1)
    settings = {**TINY, "learning_rate": 1e-4}
    kept = unlearn(RMU(**settings), base, forget, retain, make_work(tmp_path / "kept"))
    lost = unlearn(RMU(**settings, master="model"), base, forget, retain, make_work(tmp_path / "lost"))
    assert sum(int(kept.delta(name).count_nonzero()) for name in NAMES) > 1.5 * sum(
        int(lost.delta(name).count_nonzero()) for name in NAMES
    )


def test_adaptive_rmu_measures_its_coefficient(tmp_path: Path, base: LanguageModel) -> None:
    settings = {key: value for key, value in TINY.items() if key != "steering_coefficient"}
    forget, retain, work = make_corpus(16, 0), make_corpus(16, 1), make_work(tmp_path / "adaptive")
    vector = unlearn(AdaptiveRMU(**settings, scale=2), base, forget, retain, work)
    inputs = base.load_tokenizer()(forget.texts[:4])["input_ids"]
    model = base.load()
    norms = [
        model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[5].norm(dim=-1) for row in inputs
    ]
    coefficient = vector.provenance["coefficients"]["forget"]
    assert coefficient == pytest.approx(2 * torch.cat(norms, 1).mean().item(), rel=1e-5)
    assert vector.provenance["method"] == "adaptive_rmu"
    plain = unlearn(
        RMU(**{**settings, "steering_coefficient": coefficient}), base, forget, retain, make_work(tmp_path / "plain")
    )
    assert all(torch.equal(vector.delta(name), plain.delta(name)) for name in NAMES)


def test_bad_data_is_named(tmp_path: Path, base: LanguageModel) -> None:
    forget, work = make_corpus(8, 0), make_work(tmp_path)
    for retain in (None, make_corpus(3, 1).select([])):
        with pytest.raises(DataError, match="rmu needs a retain set"):
            RMU(**TINY).unlearn(base, forget, retain, work)
    with pytest.raises(DataError, match="the retain set has 3 rows, fewer than a batch"):
        RMU(**TINY).unlearn(base, forget, make_corpus(3, 1), work)
    with pytest.raises(DataError, match="forget set is empty"):
        RMU(**TINY).unlearn(base, forget.select([]), make_corpus(8, 1), work)
    long = Corpus(pl.DataFrame({"text": [" ".join(make_corpus(200, 0).texts)] * 8}))
    with pytest.raises(DataError, match=r"max_length: a row has \d+ tokens and .* reads \d+: set max_length"):
        RMU(**{**TINY, "max_length": 10_000}).unlearn(base, long, make_corpus(8, 1), work)
    with pytest.raises(ModelError, match="6 layers"):
        RMU(layer=6).unlearn(base, forget, make_corpus(8, 1), work)
    with pytest.raises(ModelError, match=r"it has self_attn\.q_proj"):
        RMU(**TINY, parameters=("mlp.c_proj",)).unlearn(base, forget, make_corpus(8, 1), work)
    assert not list(work.output.iterdir())


def test_too_little_memory_is_said_before_loading(
    tmp_path: Path, base: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 10_000)
    monkeypatch.setattr(loop, "load_truncated", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=r"about \d{3} KiB are needed and 10 KiB are free on cpu"):
        unlearn(RMU(**TINY), base, make_corpus(8, 0), make_corpus(8, 1), make_work(tmp_path))


def test_the_estimate_counts_what_is_loaded_and_trained(base: LanguageModel) -> None:
    expected = memory.estimate(RMU(**TINY), base, {2: ["mlp.down_proj.weight"]}, tokens=10)
    truncated = load_truncated(base, 5, device="cpu", dtype=None)
    assert expected.weights == 4 * sum(parameter.numel() for parameter in truncated.decoder.parameters())
    assert expected.training == 32 * 48 * (2 * 4 + 4 * 4)  # weight, gradient; master, the one before, two moments
    assert expected.task_vector == 32 * 48 * 4


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40))
def test_measured_steps_are_counted_as_they_come(count: int, topics: int, every: int, steps: int) -> None:
    epoch = count * topics
    for place in range(min(epoch, steps)):
        walked = sum(step // topics % every == 0 or step >= steps - topics for step in range(place, steps, epoch))
        times = len(range(place, steps, epoch))
        assert loop.times_measured(every, place, times, epoch, steps, topics) == walked


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_forecast_is_what_the_cache_comes_to_hold(tmp_path: Path, base: LanguageModel, epochs: int) -> None:
    subsets = [make_corpus(22, 0).with_subset("a"), make_corpus(30, 1).with_subset("b")]
    runs, retain, resident, planned = [*subsets, concatenate(subsets)], make_corpus(40, 2), Resident(), Resident()
    settings = RMU(**TINY, epochs=epochs)
    for index, forget in enumerate(runs):
        expected = forecast(settings, base, forget, retain, make_work(tmp_path / "plan", planned))
        vector = unlearn(settings, base, forget, retain, make_work(tmp_path / str(index), resident))
        kept = resident.cached("hidden states", cache.StateCache)
        assert states_of(planned).size == kept.in_memory
        assert expected.disk == sum(4 * vector.shape(name).numel() for name in vector)
    assert 0.3 < states_of(planned).spared < 0.8
    assert not list((tmp_path / "plan" / "output").iterdir())


def states_of(planned: Resident) -> States:
    return planned.cached("forecast of hidden states", States)


@pytest.mark.parametrize(("epochs", "topics", "reused"), [(1, 1, False), (2, 1, True), (1, 2, True)])
def test_a_run_of_its_own_keeps_only_what_it_uses_again(
    tmp_path: Path, base: LanguageModel, epochs: int, topics: int, reused: bool
) -> None:
    forget = concatenate(make_corpus(16, seed).with_subset(str(seed)) for seed in range(topics))
    retain, settings = make_corpus(16, 9), RMU(**TINY, epochs=epochs, cosine_every=100)
    resident, planned = Resident(shared=False), Resident(shared=False)
    unlearn(settings, base, forget, retain, make_work(tmp_path / "run", resident))
    kept = resident.cached("hidden states", cache.StateCache)
    forecast(settings, base, forget, retain, make_work(tmp_path / "plan", planned))
    assert states_of(planned).size == kept.in_memory
    assert bool(states_of(planned).size) == reused


def test_the_forecast_counts_what_is_spared(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain, work = make_corpus(4, 0), make_corpus(4, 1), make_work(tmp_path)
    settings = RMU(**TINY, cosine_every=1)  # one step; layers 2, 3 and 4 change
    for times in (1, 2, 3):
        note = forecast(settings, base, forget, retain, work).notes["hidden states kept for reuse"]
        assert states_of(work.resident).spared == pytest.approx(1 - 1 / times)
        assert note.endswith(
            "spares nothing" if times == 1 else f"pays: spares {1 - 1 / times:.0%} of the frozen passes"
        )
    work = make_work(tmp_path, Resident())
    for rows in (forget, make_corpus(4, 2)):
        forecast(settings, base, rows, forget, work)
    lengths = [
        max(len(ids) for ids in base.load_tokenizer()(make_corpus(4, seed).texts)["input_ids"]) for seed in (0, 2)
    ]
    assert states_of(work.resident).spared == pytest.approx(2 * lengths[0] / (3 * lengths[0] + lengths[1]))
    shuffled = forecast(RMU(**TINY, shuffle=True), base, forget, retain, make_work(tmp_path, Resident()))
    assert shuffled.notes["hidden states kept for reuse"].startswith("none")


def test_a_search_finds_what_a_grid_finds(tmp_path: Path, base: LanguageModel) -> None:
    forget, retain, work = make_corpus(40, 0), make_corpus(40, 1), make_work(tmp_path)
    settings = RMU(layer=3, learning_rate=1e-2, max_steps=6)
    layers, ratios, alphas = (2, 3, 4), (1.0, 3.0, 8.0), (0.0, 1.0, 100.0)
    found = search(settings, base, forget, retain, work, Grid(layers, ratios, alphas))
    grid = [
        attempt(settings.model_copy(update={"layer": layer, "alpha": alpha}), ratio, base, forget, retain, work).score
        for layer in layers
        for ratio in ratios
        for alpha in alphas
    ]
    assert len(found) <= 9
    assert found == sorted(found, key=lambda trial: -trial.score)
    assert found[0].score >= max(grid) - 0.05
    assert len((work.output / TABLE).read_text().splitlines()) == len(found)
    taken, best = RMU.model_validate({"search": str(work.output)}), found[0]
    assert (taken.layer, taken.alpha, taken.steering_coefficient) == (best.layer, best.alpha, best.steering_coefficient)
    assert AdaptiveRMU.model_validate({"search": str(work.output)}).scale == best.ratio
    assert RMU.model_validate({"search": str(work.output), "layer": 1, "alpha": 3}).layer == 1
    assert [trial["score"] for trial in taken.trials] == [trial.score for trial in found]
    (work.output / TABLE).write_text("{}")
    for place in (str(work.output), str(tmp_path / "nowhere")):
        with pytest.raises(ValidationError, match="not what `spunge search` left"):
            RMU.model_validate({"search": place})
    diverged = json.dumps({"layer": 1, "alpha": 1.0, "ratio": 1.0, "steering_coefficient": None})
    (work.output / TABLE).write_text(diverged)
    with pytest.raises(ValidationError, match="every trial diverged; search again with a lower learning_rate"):
        RMU.model_validate({"search": str(work.output)})


@pytest.mark.parametrize(
    ("changes", "layers", "said"),
    [({"layer": 3, "update_layers": (3,)}, (1, 3), r"update_layers \[3\] lie above layer 1"),
     ({}, (1, 2, 9), "no layer 9: the model has 6 layers")],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused_before_the_first_trial(
    tmp_path: Path, base: LanguageModel, changes: dict[str, Any], layers: tuple[int, ...], said: str
) -> None:
    begun: list[int] = []
    work = make_work(tmp_path, progress=lambda _what, done, _total, /, **_: begun.append(done))
    with pytest.raises((RecipeError, ModelError), match=said):
        search(RMU(**changes), base, make_corpus(8, 0), make_corpus(8, 1), work, Grid(layers))
    assert not begun


def test_a_batch_without_a_token_that_counts_is_refused(tmp_path: Path, base: LanguageModel) -> None:
    settings = RMU(**TINY, loss_mask="non_pad_non_bos", max_length=1)
    with pytest.raises(DataError, match="loss_mask non_pad_non_bos: a batch has nothing but first tokens"):
        unlearn(settings, base, make_corpus(8, 0), make_corpus(8, 1), make_work(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [{"layer": -1}, {"update_layers": ()}, {"layer": 3, "update_layers": (2, 4)}, {"alpha": -1}, {"batch_size": 0},
     {"learning_rate": 0}, {"loss_mask": "pads"}, {"preset": "unfaithful"}, {"steering_coefficient": float("nan")}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RMU(**wrong)


def test_the_faithful_preset_fills_in_what_is_left_open() -> None:
    faithful = RMU(preset="faithful", optimizer="adamw")
    assert (faithful.loss_mask, faithful.loss_dtype, faithful.master) == ("all", "model", "model")
    assert faithful.optimizer == "adamw"
    assert RMU.model_validate(faithful.dump()) == faithful
    assert RMU(layer=1).updated == (0, 1)
    assert RMU(layer=5).updated == (3, 4, 5)


def test_matrices_are_not_trained_in_float16_itself(tmp_path):
    base = make_model(tmp_path / "model", dtype=torch.float16)
    faithful = RMU(layer=2, preset="faithful", max_steps=1)
    with pytest.raises(RecipeError, match=r"master: model \(of preset: faithful\).*float16.*master: float32"):
        faithful.forecast(base, make_corpus(4, 0), make_corpus(4, 1), make_work(tmp_path / "plan"))
    with pytest.raises(RecipeError, match="float16"):
        faithful.unlearn(base, make_corpus(4, 0), make_corpus(4, 1), make_work(tmp_path / "run"))
    trained = RMU(layer=2, max_steps=1).unlearn(
        base, make_corpus(4, 0), make_corpus(4, 1), make_work(tmp_path / "well")
    )
    assert 0 < trained.norm < float("inf")
