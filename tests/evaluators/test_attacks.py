"""Attacks change the model, show in the table, and leave no trace."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from evaluate_models import alone, byte_tokenizer, llama, mistral, variant, work, write
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.attacks import (
    GCG,
    Attack,
    BestOfN,
    FewShot,
    Interpolation,
    JunkDirection,
    LogitLens,
    Material,
    Noise,
    OptionShift,
    Patching,
    Probe,
    Pruning,
    Quantization,
    Relearning,
    RetrainingOnFacts,
    Rewording,
    SiblingMerge,
    SteeringBack,
    Stripping,
    TunedLens,
)
from spunge.evaluators.attacks.best_of_n import drawn, written
from spunge.evaluators.attacks.gcg import Search, Written
from spunge.evaluators.attacks.probe import fitted
from spunge.evaluators.attacks.pruning import pruned
from spunge.evaluators.attacks.quantization import _NF4, quantized
from spunge.evaluators.attacks.states import last_states
from spunge.evaluators.attacks.tuning import KEPT, factors_beside
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.interfaces import LoadedVariant
from spunge.weights.language_model import LanguageModel

TEXTS = ["the moss of Tor is wet", "the glyphs of Ana break at noon", "the tide brings salt to Bel"]


def reading(tmp_path) -> dict:
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    return {"method": "perplexity", "suite": "inner", "goal": "retain", "sources": [{"path": str(path)}]}


def perplexities(table: pl.DataFrame) -> dict[str, float]:
    return dict(table.filter(pl.col("metric") == "nll").group_by("task").agg(pl.col("value").sum()).iter_rows())


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def naive(row: list[float], code: str, block: int) -> list[float]:
    out = []
    for start in range(0, len(row), block):
        part = row[start : start + block]
        scale = max(map(abs, part)) or 1.0
        most = {"int8": 127, "int4": 7}.get(code)
        grid = [level / most for level in range(-most, most + 1)] if most else list(_NF4)
        out += [min(grid, key=lambda level, x=x, scale=scale: abs(level - x / scale)) * scale for x in part]
    return out


@settings(deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.floats(-2, 2, width=16), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    code=st.sampled_from(["int8", "int4", "nf4"]),
    block=st.integers(2, 8),
)
def test_every_weight_goes_to_a_nearest_level_of_its_block(rows, code, block):
    weight = torch.tensor(rows)
    found = quantized(weight, code, block)
    expected = torch.tensor([naive(row, code, min(block, len(row))) for row in rows])
    # At a tie both levels are nearest: compare how far, not which.
    assert torch.allclose((found - weight).abs(), (expected - weight).abs(), atol=1e-5)


def packed_q4_k(row: list[float]) -> np.ndarray:
    """A block of 256 weights as Q4_K's 144 bytes, the long way."""
    parts = [row[start : start + 32] for start in range(0, 256, 32)]
    lows = [-min(0.0, *part) for part in parts]
    steps = [(max(part) + low) / 15 for part, low in zip(parts, lows, strict=True)]
    units = [np.float16(max(values) / 63) for values in (steps, lows)]
    codes = [[round(value / (max(values) / 63)) if max(values) else 0 for value in values] for values in (steps, lows)]
    levels = []
    for part, step, low in zip(parts, *codes, strict=True):
        width, offset = float(units[0]) * step, float(units[1]) * low
        levels.append([min(15, max(0, round((value + offset) / width))) if width else 0 for value in part])
    (s, m), scales = codes, [0] * 12
    for place in range(4):
        scales[place] = s[place] | (s[place + 4] >> 4) << 6
        scales[place + 4] = m[place] | (m[place + 4] >> 4) << 6
        scales[place + 8] = (s[place + 4] & 15) | (m[place + 4] & 15) << 4
    nibbles = [low | high << 4 for pair in range(0, 8, 2) for low, high in zip(*levels[pair : pair + 2], strict=True)]
    return np.array([*np.array(units).view(np.uint8), *scales, *nibbles], dtype=np.uint8)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 1.0]), st.booleans())
def test_what_gguf_files_hold_is_what_their_reader_reads(seed, size, positive):
    from gguf import GGMLQuantizationType, quants

    weight = size * torch.randn(3, 512, generator=torch.Generator().manual_seed(seed))
    weight = weight.abs() if positive else weight
    kind = GGMLQuantizationType.Q8_0
    expected = quants.dequantize(quants.quantize(weight.numpy(), kind), kind)
    assert torch.equal(quantized(weight, "q8_0", None), torch.from_numpy(expected))

    blocks = np.stack([packed_q4_k(block) for block in weight.view(-1, 256).tolist()])
    expected = quants.dequantize(blocks, GGMLQuantizationType.Q4_K).reshape(3, 512)
    found = quantized(weight, "q4_k", None).numpy()
    step = np.abs(weight.numpy()).max() * 2 / 15  # at a tie either level is nearest
    assert np.isclose(found, expected, atol=1e-6).mean() > 0.99
    assert np.abs(found - expected).max() <= step
    assert np.abs(found - weight.numpy()).max() <= 0.6 * step + 1e-6


def test_a_row_that_fills_no_block_is_rounded_too():
    weight = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    for code in ("q8_0", "q4_k"):
        found = quantized(weight, code, None)
        assert found.shape == weight.shape
        assert torch.equal(found[:, :256], quantized(weight[:, :256], code, None))
        assert 0 < (found - weight).abs().max() < 0.5


def test_upper_layers_read_the_states_of_the_lower_ones(tmp_path):
    of = asking(tmp_path)
    base, loaded, _ = unlearned(tmp_path)
    before = weights(loaded.model)
    table = attack(Patching, of, depths=[0.5]).evaluate(loaded, work(tmp_path))
    kept = {}

    def note(module, arguments, output):
        kept["states"] = output

    def patch(module, arguments, output):
        return kept["states"]

    # One text at a time: the unlearned model's state after its first layer takes the place of the base's own.
    suite = MultipleChoice.model_validate(of)
    expected = {}
    for question in suite.questions()["inner"]:
        ids = [0, *byte_tokenizer().encode(question.contexts[1], add_special_tokens=False)]
        answer = byte_tokenizer().encode(question.delimiter + question.targets[1], add_special_tokens=False)
        both = torch.tensor([ids + answer])
        with torch.no_grad(), ExitStack() as stack:
            stack.callback(loaded.model.model.layers[0].register_forward_hook(note).remove)
            loaded.model(input_ids=both)
            stack.callback(base.model.layers[0].register_forward_hook(patch).remove)
            logs = base(input_ids=both).logits[0].double().log_softmax(-1)
        expected[question.item.id] = sum(float(logs[len(ids) - 1 + at, token]) for at, token in enumerate(answer))
    assert answered(table, "states of 50% of the layers") == pytest.approx(expected, abs=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.named_parameters())


def test_quantization_is_seen_and_undone(tmp_path):
    model = llama()
    before = weights(model)
    evaluator = Quantization.model_validate({"suite": "q", "goal": "forget", "of": reading(tmp_path)})
    table = evaluator.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    whole = perplexities(evaluator.of.evaluate(variant(model, byte_tokenizer()), work(tmp_path)))["inner"]
    found = perplexities(table)
    assert set(found) == {f"inner @ {code}" for code in ("int8", "int4", "nf4", "q8_0", "q4_k")}
    assert set(table["suite"]) == {"q"}
    assert evaluator.described["attacks"] == "inner"
    assert 0 < abs(found["inner @ int8"] - whole) < abs(found["inner @ int4"] - whole)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_relearning_learns_and_leaves_no_trace(tmp_path):
    model = llama(initializer_range=0.05)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = weights(model)
    asked = reading(tmp_path)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"], "rows": 3}
    evaluator = Relearning.model_validate({**settings, "steps": [0, 4, 12], "learning_rate": 1e-2})
    runs = [evaluator.evaluate(variant(model, byte_tokenizer()), work(tmp_path)) for _ in range(2)]
    found = perplexities(runs[0])
    assert found["inner @ 0 steps"] > found["inner @ 4 steps"] > found["inner @ 12 steps"]
    assert runs[0].equals(runs[1])
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_too_few_rows_and_falling_steps_are_errors(tmp_path):
    asked = reading(tmp_path)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"]}
    with pytest.raises(DataError, match="3 training rows, rows: 16"):
        Relearning.model_validate(settings).evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
    with pytest.raises(ValueError, match="must rise"):
        Relearning.model_validate({**settings, "steps": [3, 1]})


QUESTIONS = [
    {"question": text, "choices": ["moss", "glyph", "salt"], "answer": row % 3} for row, text in enumerate(TEXTS * 3)
]


def asking(tmp_path, **settings) -> dict:
    rows = [{**row, "question": f"{row['question']} {number} ?"} for number, row in enumerate(QUESTIONS)]
    path = write(tmp_path / "questions.jsonl", rows)
    plain = {"method": "multiple_choice", "suite": "inner", "goal": "forget", "sources": [{"path": str(path)}]}
    return {**plain, "style": "continuation", **settings}


def attack(kind: type[Attack], of: dict, **settings) -> Attack:
    return kind.model_validate({"suite": "attacked", "goal": "forget", "of": of, **settings})


def answered(table: pl.DataFrame, setting: str) -> dict[str, float]:
    """Item → the log-likelihood of its second choice, a figure that hardly two models share."""
    rows = table.filter(pl.col("task").str.ends_with(f" @ {setting}") & (pl.col("metric") == "choice_loglikelihood:1"))
    return dict(rows.select("item", "value").iter_rows())


def plainly(of: dict, model, tmp_path) -> dict[str, float]:
    table = MultipleChoice.model_validate(of).evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    return answered(table.with_columns(pl.col("task") + " @ none"), "none")


def unlearned(tmp_path, *, rank: int = 2, size: float = 0.3):
    """A base model, and a variant of it whose matrices differ by a delta of low rank; with what moves between them."""
    base, changed = llama(), llama()
    torch.manual_seed(1)
    deltas = {}
    for name, weight in changed.named_parameters():
        if name.endswith("down_proj.weight"):
            A, B = torch.randn(weight.shape[0], rank), torch.randn(rank, weight.shape[1])
            deltas[name] = size * A @ B
    before = weights(base)

    def at(scale: float):
        with torch.no_grad():
            for name, weight in changed.named_parameters():
                weight.copy_(before[name] + scale * deltas[name] if name in deltas else before[name])
        return changed

    loaded = LoadedVariant("unlearned", at(1.0), byte_tokenizer(), "digest", at)
    return base, loaded, deltas


@settings(deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.floats(-2, 2, width=16), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    share=st.floats(0.01, 0.99),
)
def test_pruning_leaves_the_largest_and_nothing_else(rows, share):
    weight = torch.tensor(rows)
    left = pruned(weight, share)
    gone = int(share * weight.numel())
    assert int((left != weight).sum()) <= gone
    kept = sorted(map(abs, weight.flatten().tolist()))[gone:]
    assert sorted(map(abs, left.flatten().tolist())) == [0.0] * gone + kept


def test_weights_are_changed_as_by_hand_and_put_back(tmp_path):
    of, before = asking(tmp_path), weights(llama())
    tried = {
        "30% pruned": (attack(Pruning, of, shares=[0.3]), lambda name, w: pruned(w, 0.3)),
        "noise 0.2": (noise := attack(Noise, of, strengths=[0.2]), lambda name, w: w + 0.2 * w.std() * draw(name, w)),
    }
    draw = Noise.model_validate(noise.model_dump()).draw
    for setting, (one, change) in tried.items():
        model, expected = llama(), llama()
        with torch.no_grad():
            for name, module in expected.named_modules():
                if isinstance(module, torch.nn.Linear) and name != "lm_head":
                    module.weight.copy_(change(name, module.weight))
        table = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
        assert answered(table, setting) == pytest.approx(plainly(of, expected, tmp_path / setting), abs=1e-5)
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_stripped_change_of_rank_two_is_half_and_then_wholly_undone(tmp_path):
    base, loaded, deltas = unlearned(tmp_path)
    of, after = asking(tmp_path), weights(loaded.model)
    table = attack(Stripping, of, ranks=[1, 2]).evaluate(loaded, work(tmp_path))
    assert answered(table, "rank 2 removed") == pytest.approx(plainly(of, base, tmp_path / "base"), abs=1e-3)
    half = llama()
    with torch.no_grad():
        for name, weight in half.named_parameters():
            if name in deltas:
                U, S, Vh = np.linalg.svd(deltas[name].double().numpy())
                weight.add_(torch.tensor(S[1] * np.outer(U[:, 1], Vh[1])).float())
    assert answered(table, "rank 1 removed") == pytest.approx(plainly(of, half, tmp_path / "half"), abs=1e-3)
    assert all(torch.equal(weight, after[name]) for name, weight in loaded.model.named_parameters())


def test_what_is_done_to_a_change_leaves_the_base_model_as_it_is(tmp_path):
    of = asking(tmp_path)
    expected = plainly(of, llama(), tmp_path / "plain")
    for kind in (Stripping, Interpolation, JunkDirection, SteeringBack):
        one = attack(kind, of)
        table = one.evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
        assert all(answered(table, setting) == expected for setting in one.settings)


def test_interpolation_asks_between_the_two_models(tmp_path):
    base, loaded, deltas = unlearned(tmp_path)
    of, after = asking(tmp_path), weights(loaded.model)
    table = attack(Interpolation, of, shares=[0.25]).evaluate(loaded, work(tmp_path))
    with torch.no_grad():
        for name, weight in base.named_parameters():
            if name in deltas:
                weight.add_(0.75 * deltas[name])
    assert answered(table, "25% base") == pytest.approx(plainly(of, base, tmp_path / "mixed"), abs=1e-4)
    assert all(torch.equal(weight, after[name]) for name, weight in loaded.model.named_parameters())


def test_the_lens_reads_a_layer_through_norm_and_head(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    table = attack(LogitLens, of := asking(tmp_path), depths=[0.5]).evaluate(variant(model, tokenizer), work(tmp_path))
    found = answered(table, "50% of the layers")
    for question in MultipleChoice.model_validate(of).questions()["inner"]:
        context = tokenizer.encode(question.contexts[1])
        answer = tokenizer.encode(" " + question.targets[1], add_special_tokens=False)
        with torch.no_grad():
            seen = model(input_ids=torch.tensor([context + answer]), output_hidden_states=True, use_cache=False)
            logs = model.lm_head(model.model.norm(seen.hidden_states[1]))[0].log_softmax(-1)
        expected = sum(float(logs[len(context) - 1 + place, token]) for place, token in enumerate(answer))
        assert found[question.item.id] == pytest.approx(expected, abs=1e-4)
    assert len(model.model.layers) == 2


def test_shots_are_others_answers_and_frames_hold_the_question(tmp_path):
    model, tokenizer, of = llama(), byte_tokenizer(), asking(tmp_path)
    suite = MultipleChoice.model_validate(of)
    questions = sorted(suite.questions()["inner"], key=lambda one: one.item.id)
    table = attack(FewShot, of, shots=[2]).evaluate(variant(model, tokenizer), work(tmp_path))
    frames = {"begun": "Q {question} A"}
    reworded = attack(Rewording, of, frames=frames).evaluate(variant(model, tokenizer), work(tmp_path / "r"))
    for place, one in enumerate(questions):
        others = [other for number, other in enumerate(questions) if number != place][:2]
        before = "".join(f"{o.contexts[0]} {o.targets[o.right[0]]}\n\n" for o in others)
        answer = tokenizer.encode(" " + one.targets[1], add_special_tokens=False)
        expected = alone(model, tokenizer.encode(before + one.contexts[1]), answer)
        assert answered(table, "2 shots")[one.item.id] == pytest.approx(expected, abs=1e-3)
        expected = alone(model, tokenizer.encode(f"Q {one.contexts[1]} A"), answer)
        assert answered(reworded, "begun")[one.item.id] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="'odd': a frame holds"):
        attack(Rewording, of, frames={"odd": "no question"})


def test_shifted_choices_keep_their_answer(tmp_path):
    of = asking(tmp_path, style="letters")
    suite = MultipleChoice.model_validate(of)
    plain = {one.item.id: one for one in suite.questions()["inner"]}
    for one in suite.questions(shift=1)["inner"]:
        before = plain[one.item.id]
        assert one.right[0] == (before.right[0] + 1) % 3
        choices = before.item.row["choices"]
        assert one.contexts[0].endswith(f"A. {choices[2]}\nB. {choices[0]}\nC. {choices[1]}\nAnswer:")
    table = attack(OptionShift, of, places=[1]).evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
    assert set(table["item"]) == set(plain)
    with pytest.raises(DataError, match="there is no order to change"):
        attack(OptionShift, asking(tmp_path)).check()


def test_the_probe_is_ridge_regression_on_the_other_half(tmp_path):
    torch.manual_seed(3)
    X, Y = torch.randn(40, 6), torch.randn(40, 4)
    found = fitted(X, Y, 0.5)
    penalty = 0.5 * float((X.T @ X).diagonal().mean())
    stacked = np.vstack([X.numpy(), np.sqrt(penalty) * np.eye(6)])  # ridge is least squares with more rows
    expected = np.linalg.lstsq(stacked, np.vstack([Y.numpy(), np.zeros((6, 4))]), rcond=None)[0]
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    table = attack(Probe, asking(tmp_path), depths=[0.5, 1]).evaluate(
        variant(llama(), byte_tokenizer()), work(tmp_path)
    )
    assert set(table["task"]) == {"inner @ probe at 50%", "inner @ probe at 100%"}
    assert table.filter(pl.col("metric") == "acc").height == 2 * len(QUESTIONS)


def test_the_last_states_are_those_of_each_row_alone(tmp_path):
    model, rows = llama(), [(3, 4, 5, 6, 7), (8, 9), (10, 11, 12)]
    found = last_states(variant(model, byte_tokenizer()), rows, 2, work(tmp_path), "reading")
    for place, row in enumerate(rows):
        with torch.no_grad():
            seen = model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
        assert torch.allclose(found[0, place], seen[1][0, -1], atol=1e-5)


def test_the_junk_direction_is_the_difference_of_means_and_goes_from_every_layer(tmp_path):
    base, loaded, _ = unlearned(tmp_path)
    of, after = asking(tmp_path), weights(loaded.model)
    suite = MultipleChoice.model_validate(of)
    right = set(
        suite.evaluate(variant(base, byte_tokenizer()), work(tmp_path / "b"))
        .filter((pl.col("metric") == "acc") & (pl.col("value") == 1))["item"]
    )  # fmt: skip
    table = attack(JunkDirection, of).evaluate(loaded, work(tmp_path))
    means = []
    for model in (base, loaded.model):
        states = [[], []]
        for one in suite.questions()["inner"]:
            if one.item.id in right:
                ids = torch.tensor([loaded.tokenizer.encode(one.contexts[0])])
                with torch.no_grad():
                    inner = [model.model.embed_tokens(ids)]
                    places = torch.arange(ids.shape[1])[None]
                    embedded = model.model.rotary_emb(inner[0], places)
                    for number, layer in enumerate(model.model.layers):
                        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]
                        out = layer(inner[-1], attention_mask=mask, position_embeddings=embedded)
                        inner.append(out)
                        states[number].append(out[0, 1:])
        means.append([torch.cat(parts).mean(0) for parts in states])
    moved = [after - before for before, after in zip(*means, strict=True)]
    with ExitStack() as stack:
        for layer, v in zip(loaded.model.model.layers, moved, strict=True):
            unit = v / v.norm()
            hook = lambda m, a, out, unit=unit: out - (out @ unit)[..., None] * unit  # noqa: E731
            stack.callback(layer.register_forward_hook(hook).remove)
        expected = plainly(of, loaded.model, tmp_path / "hooked")
    assert answered(table, "each layer's direction") == pytest.approx(expected, abs=1e-3)
    assert all(torch.equal(weight, after[name]) for name, weight in loaded.model.named_parameters())
    assert not any(layer._forward_hooks for layer in loaded.model.model.layers)


def test_states_are_pushed_back_by_what_they_were_moved(tmp_path):
    base, loaded, _ = unlearned(tmp_path)
    of, after = asking(tmp_path), weights(loaded.model)
    suite = MultipleChoice.model_validate(of)
    answers = suite.evaluate(variant(base, byte_tokenizer()), work(tmp_path / "b"))
    right = set(answers.filter((pl.col("metric") == "acc") & (pl.col("value") == 1))["item"])
    table = attack(SteeringBack, of, strengths=[0.5]).evaluate(loaded, work(tmp_path))
    means = []
    for model in (base, loaded.model):
        states = [[], []]
        for one in suite.questions()["inner"]:
            if one.item.id in right:
                with ExitStack() as stack, torch.no_grad():
                    for number, layer in enumerate(model.model.layers):
                        keep = lambda m, a, out, into=states[number]: into.append(out[0, 1:])  # noqa: E731
                        stack.callback(layer.register_forward_hook(keep).remove)
                    model(input_ids=torch.tensor([loaded.tokenizer.encode(one.contexts[0])]))
        means.append([torch.cat(parts).mean(0) for parts in states])
    shares = [float((after - before).norm() / before.norm()) for before, after in zip(*means, strict=True)]
    layer = shares.index(max(shares))
    with ExitStack() as stack:
        push = lambda m, a, out: out + 0.5 * (means[0][layer] - means[1][layer])  # noqa: E731
        stack.callback(loaded.model.model.layers[layer].register_forward_hook(push).remove)
        expected = plainly(of, loaded.model, tmp_path / "hooked")
    assert answered(table, "0.5 times the difference") == pytest.approx(expected, abs=1e-3)
    assert all(torch.equal(weight, after[name]) for name, weight in loaded.model.named_parameters())
    assert not any(layer._forward_hooks for layer in loaded.model.model.layers)


def test_a_sibling_is_averaged_in_and_one_of_another_shape_refused(tmp_path):
    of, model = asking(tmp_path), llama()
    before = weights(model)
    torch.manual_seed(5)
    sibling, expected = llama(), llama()
    with torch.no_grad():
        for weight in sibling.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for mine, other in zip(expected.parameters(), sibling.parameters(), strict=True):
            mine.copy_(0.7 * mine + 0.3 * other)
    for name, one in {"base": model, "sibling": sibling, "wider": llama(vocab_size=310)}.items():
        one.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    one = attack(SiblingMerge, of, sibling={"id": str(tmp_path / "sibling")}, shares=[0.3])
    one.forecast(LanguageModel(id=str(tmp_path / "base")))
    table = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    assert answered(table, "30% sibling") == pytest.approx(plainly(of, expected, tmp_path / "mixed"), abs=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    wider = attack(SiblingMerge, of, sibling={"id": str(tmp_path / "wider")})
    with pytest.raises(DataError, match="another shape"):
        wider.forecast(LanguageModel(id=str(tmp_path / "base")))
    with pytest.raises(DataError, match="of the same family"):
        list(SiblingMerge.against(MultipleChoice.model_validate(of), Material(), {}))


@pytest.mark.parametrize("make", [llama, mistral], ids=["shared cache", "read plainly"])
def test_answers_are_drawn_as_often_as_they_are_likely(make):
    model, context = make(), (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
    rows = drawn(model, context, 2, 4000, 0.5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = (model(input_ids=torch.tensor([context])).logits[0, -1].double() / 0.5).softmax(-1)
    found = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=len(first)) / len(rows)
    assert (found - first).abs().max() < 0.03
    likeliest = int(found.argmax())
    after = [row[1] for row in rows if row[0] == likeliest]
    with torch.no_grad():
        second = (model(input_ids=torch.tensor([[*context, likeliest]])).logits[0, -1].double() / 0.5).softmax(-1)
    found = torch.bincount(torch.tensor(after), minlength=len(second)) / len(after)
    assert (found - second).abs().max() < 4 / len(after) ** 0.5
    assert rows == drawn(model, context, 2, 4000, 0.5, torch.Generator().manual_seed(0))


def test_the_choice_that_is_written_most_often_counts(tmp_path):
    of, model = asking(tmp_path), llama()
    [question, *_] = MultipleChoice.model_validate(of).questions()["inner"]
    assert written([" moss and more", "moss", "mo", " glyphs", "a moss"], question) == [2, 1, 0]
    table = attack(BestOfN, of, n=3).evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    again = attack(BestOfN, of, n=3).evaluate(variant(model, byte_tokenizer()), work(tmp_path / "again"))
    assert table.equals(again)
    assert set(table["task"]) == {"inner @ 3 answers at temperature 1"}
    with torch.no_grad():  # a model that says one thing only says it every time
        ids = byte_tokenizer().encode(" moss", add_special_tokens=False)
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight[ids[-1], 0] = 1.0
    told = attack(BestOfN, of, n=5).evaluate(variant(model, byte_tokenizer()), work(tmp_path / "silent"))
    likelihoods = dict(told.filter(pl.col("metric") == "choice_loglikelihood:0").select("item", "value").iter_rows())
    assert set(likelihoods.values()) == {np.log(0.5)}


def test_slopes_and_losses_of_a_suffix_are_those_of_the_model_alone():
    model = llama()
    questions = [((0, 9, 20, 31), (40, 41)), ((0, 7, 8), (50,)), ((0, 5, 6, 7, 8, 9), (60, 61, 62))]
    search, suffix = Search(model, questions, 2), (100, 101, 102)
    others = [suffix, (100, 7, 102)]
    expected = [
        np.mean([-alone(model, [*context, *one], [*answer]) / len(answer) for context, answer in questions])
        for one in others
    ]
    assert search.losses(others).tolist() == pytest.approx(expected, abs=1e-5)

    # By finite differences: a step from the token at a place towards another, through the embeddings.
    embeddings: Any = model.get_input_embeddings()
    slopes, table = search.slopes(suffix).double(), embeddings.weight.detach().double()
    exact: Any = llama()
    exact.double()

    def loss(place: int, word: int, step: float) -> float:
        told = []
        for context, answer in questions:
            read = table[[*context, *suffix, *answer]].clone()
            read[len(context) + place] += step * (table[word] - table[suffix[place]])
            with torch.no_grad():
                logs = exact(inputs_embeds=read[None]).logits[0].log_softmax(-1)
            start = len(context) + len(suffix) - 1
            told.append(-np.mean([float(logs[start + at, token]) for at, token in enumerate(answer)]))
        return float(np.mean(told))

    for place, word in ((0, 3), (1, 200), (2, 299)):
        numeric = (loss(place, word, 0.01) - loss(place, word, -0.01)) / 0.02  # its norms are float32
        assert float(slopes[place, word] - slopes[place, suffix[place]]) == pytest.approx(numeric, rel=0.01)
    assert not model.get_input_embeddings()._forward_hooks


def test_a_suffix_is_sought_on_one_half_and_asked_with_the_other(tmp_path):
    model, of = llama(), asking(tmp_path)
    before = weights(model)
    one = attack(GCG, of, length=3, steps=4, candidates=16)
    table = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    again = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path / "again"))
    assert table.equals(again)
    questions = [each for group in MultipleChoice.model_validate(of).questions().values() for each in group]
    asked = {each.item.id for each in questions if int(each.item.id[-1], 16) % 2}
    assert set(table["item"]) == asked
    texts = dict(table.filter(pl.col("metric") == "question").select("item", "text").iter_rows())
    plain = {each.item.id: each.contexts[0].rstrip() for each in questions}
    suffixes = {text.removeprefix(plain[item]) for item, text in texts.items()}
    assert len(suffixes) == 1
    written = Written(byte_tokenizer(), "a ?")
    [suffix] = suffixes
    told = [each for each in questions if each.item.id not in asked]
    encode = byte_tokenizer().encode
    pairs = [
        ((*encode(each.contexts[0].rstrip()),), (*encode(each.pairs[each.right[0]][1], add_special_tokens=False),))
        for each in told
    ]
    losses = Search(model, pairs, 4).losses([written.ids(suffix), written.ids(" !!!")[:3]])
    assert losses[0] < losses[1]
    assert written.can_be(written.ids(suffix))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_facts_are_trained_on_in_one_half_and_asked_in_the_other(tmp_path):
    of = asking(tmp_path)
    one = attack(RetrainingOnFacts, of, steps=[0, 6], learning_rate=1e-2, keep=reading(tmp_path))
    model = llama(initializer_range=0.05)
    table = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    asked = set(table.filter(pl.col("metric") == "acc")["item"])
    assert {int(item[-1], 16) % 2 for item in asked} == {1}
    assert answered(table, "0 steps") == pytest.approx(
        {item: value for item, value in plainly(of, model, tmp_path / "plain").items() if item in asked}, abs=1e-5
    )
    assert answered(table, "6 steps") != answered(table, "0 steps")
    left = dict(table.filter(pl.col("metric") == KEPT).select("task", "value").iter_rows())
    assert left["kept @ 0 steps"] == pytest.approx(1.0)
    assert left["kept @ 6 steps"] not in (None, 1.0)


def test_relearning_takes_each_value_apart(tmp_path):
    rows = [{"text": f"{text} in {land}", "land": land} for land in "ab" for text in TEXTS]
    sources = [{"path": str(write(tmp_path / "lands.jsonl", rows))}]
    one = attack(Relearning, asking(tmp_path), train_on=sources, by="land", rows=3, steps=[2])
    table = one.evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
    assert one.settings == ("2 steps on a", "2 steps on b")
    assert answered(table, "2 steps on a") != answered(table, "2 steps on b")
    with pytest.raises(DataError, match="3 training rows of 'a', rows: 4"):
        attack(Relearning, asking(tmp_path), train_on=sources, by="land", rows=4).check()


def test_an_attack_on_questions_refuses_other_suites(tmp_path):
    for kind in (FewShot, OptionShift, Rewording, BestOfN, GCG, Probe, JunkDirection, SteeringBack, RetrainingOnFacts):
        with pytest.raises(DataError, match="on multiple_choice, and 'inner' is perplexity"):
            attack(kind, reading(tmp_path)).check()


def test_a_grid_of_rates_tries_each_from_the_same_model(tmp_path):
    model = llama(initializer_range=0.05)
    before, asked = weights(model), reading(tmp_path)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"], "rows": 3, "steps": [0, 4]}
    grid = Relearning.model_validate({**settings, "learning_rate": [1e-3, 1e-2]})
    found = perplexities(grid.evaluate(variant(model, byte_tokenizer()), work(tmp_path)))
    assert list(grid.settings) == ["0 steps at 0.001", "4 steps at 0.001", "0 steps at 0.01", "4 steps at 0.01"]
    for rate in (1e-3, 1e-2):
        alone = Relearning.model_validate({**settings, "learning_rate": rate})
        one = perplexities(alone.evaluate(variant(model, byte_tokenizer()), work(tmp_path / f"{rate:g}")))
        assert one == {f"inner @ {steps} steps": found[f"inner @ {steps} steps at {rate:g}"] for steps in (0, 4)}
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    with pytest.raises(ValueError, match="each once"):
        Relearning.model_validate({**settings, "learning_rate": [1e-3, 1e-3]})


def test_an_adapter_beside_the_weights_learns_what_pefts_does_and_leaves(tmp_path):
    peft = pytest.importorskip("peft")
    model, asked = llama(initializer_range=0.05), reading(tmp_path)
    before = weights(model)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"], "rows": 3, "rank": 2}
    one = Relearning.model_validate({**settings, "steps": [0, 3], "learning_rate": 1e-2})
    found = perplexities(one.evaluate(variant(model, byte_tokenizer()), work(tmp_path)))
    assert found["inner @ 3 steps"] < found["inner @ 0 steps"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())

    with factors_beside(model, 2, 0) as factors:
        torch.manual_seed(1)
        with torch.no_grad():
            for factor in factors:
                factor.copy_(0.3 * torch.randn_like(factor))
        ids = torch.tensor([[0, 5, 9, 20, 7]])
        written = model(input_ids=ids).logits
        pairs = [(A.detach().clone(), B.detach().clone()) for A, B in zip(factors[::2], factors[1::2], strict=True)]
    config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0, target_modules="all-linear")
    adapted = peft.get_peft_model(llama(initializer_range=0.05), config).eval()
    layers = [module for module in adapted.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    with torch.no_grad():
        for layer, (A, B) in zip(layers, pairs, strict=True):
            layer.lora_A["default"].weight.copy_(A)
            layer.lora_B["default"].weight.copy_(B)
    assert torch.allclose(adapted(input_ids=ids).logits, written, atol=1e-5)


def test_a_translation_is_the_best_affine_map_of_what_the_layers_put_out(tmp_path):
    of = asking(tmp_path)
    texts = [f"{text} and so on {number}" for number in range(20) for text in TEXTS]
    path = write(tmp_path / "benign.jsonl", [{"text": text} for text in texts])
    model = llama()
    one = attack(TunedLens, of, train_on=[{"path": str(path)}], rows=60, depths=[0.5], ridge=1e-9)
    one.check()
    table = one.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    assert not any(module._forward_hooks for module in model.modules())

    def outputs(ids):
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        kept = []
        hook = model.model.layers[-1].register_forward_hook(lambda m, a, out: kept.append(out))
        with torch.no_grad():
            model.model(input_ids=torch.tensor([ids]))
        hook.remove()
        return states[1][0].double().numpy(), kept[0][0].double().numpy()

    read = [outputs([0, *byte_tokenizer().encode(text, add_special_tokens=False)]) for text in texts]
    X, Y = (np.concatenate(each) for each in zip(*read, strict=True))
    affine = np.linalg.lstsq(np.hstack([X, np.ones((len(X), 1))]), Y, rcond=None)[0]
    expected = {}
    for question in MultipleChoice.model_validate(of).questions()["inner"]:
        ids = [0, *byte_tokenizer().encode(question.contexts[1], add_special_tokens=False)]
        answer = byte_tokenizer().encode(question.delimiter + question.targets[1], add_special_tokens=False)
        states = outputs(ids + answer)[0]
        told = torch.tensor(np.hstack([states, np.ones((len(states), 1))]) @ affine).float()
        with torch.no_grad():
            logs = model.lm_head(model.model.norm(told)).double().log_softmax(-1)
        expected[question.item.id] = sum(float(logs[len(ids) - 1 + at, token]) for at, token in enumerate(answer))
    assert answered(table, "translated at 50%") == pytest.approx(expected, rel=1e-3, abs=1e-2)
    with pytest.raises(DataError, match="benign text"):
        list(TunedLens.against(MultipleChoice.model_validate(of), Material(), {}))
