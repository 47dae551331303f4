import json
import subprocess
import sys
import warnings
from typing import Any

import polars as pl
import pytest
import torch
from training_models import answers, save_model, texts, work_in

from spunge.errors import DataError, RecipeError
from spunge.rows.sources import Corpus, concatenate
from spunge.training import losses
from spunge.training.finetuning import finetune
from spunge.training.loop import Objective, Term, train
from spunge.training.rows import collate, encode
from spunge.training.settings import Lora, Tuning
from spunge.training.trainee import borrow
from spunge.unlearners.ce_u import CEU
from spunge.unlearners.circuit_breaker import CircuitBreaker
from spunge.unlearners.dpo import DPO, IdkDPO
from spunge.unlearners.gradient_ascent import GradientAscent
from spunge.unlearners.gradient_difference import GradientDifference
from spunge.unlearners.npo import NPO
from spunge.unlearners.satimp import SatImp
from spunge.unlearners.simnpo import SimNPO
from spunge.unlearners.undial import UNDIAL
from spunge.unlearners.wga import WGA
from spunge.weights.language_model import LanguageModel, Resident

LORA = Lora(rank=4, alpha=16, dropout=0, target_modules="all-linear")
BALANCED = [GradientDifference, NPO, SimNPO, DPO, IdkDPO, UNDIAL, CEU, WGA, SatImp]
QUICK: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 5}
FORGET, RETAIN = answers(10), answers(10, seed=100)


@pytest.fixture(autouse=True)
def gradient_ascent_warns():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="gradient_ascent has no bound")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that knows both sets by heart: what is not known cannot be forgotten."""
    root = tmp_path_factory.mktemp("models")
    known = concatenate([FORGET, RETAIN])
    settings = Tuning(lora=None, learning_rate=1e-2, epochs=20)
    out = finetune(settings, save_model(root / "random"), known, root / "known", work_in(root))
    return LanguageModel(id=str(out))


@pytest.fixture(scope="module")
def resident():
    return Resident()


def nll(base, resident, corpus, task_vector=None):
    """Mean negative log-likelihood of a token, measured apart from the loop."""
    with resident.variant(base, task_vector) as model:
        rows = encode(corpus, resident.base(base)[1], max_length=64)
        batch = collate(rows, range(len(rows)), pad=0, device="cpu")
        with torch.no_grad():
            return float(
                losses.cross_entropy(model(batch.ids, batch.mask).logits[:, :-1][batch.counted[:, 1:]], batch.labels)
            )


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("method", [*BALANCED, GradientAscent, CircuitBreaker])
def test_every_method_moves_the_forget_set_and_hands_the_base_back(base, resident, tmp_path, method, lora):
    options: dict[str, Any] = {**QUICK, "layers": (1,), "epochs": 15} if method is CircuitBreaker else QUICK
    before = {name: value.clone() for name, value in resident.base(base)[0].named_parameters()}
    work = work_in(tmp_path, resident=resident)
    found = method(lora=lora, **options).unlearn(base, FORGET, RETAIN, work)
    for name, value in resident.base(base)[0].named_parameters():
        assert torch.equal(value, before[name])
    assert found.norm > 0
    if method is CircuitBreaker:
        lines = [json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["forget"] < lines[0]["forget"] - 0.1
    else:
        assert nll(base, resident, FORGET, found) > nll(base, resident, FORGET)


def first_step(method, base, resident, directory, **options):
    work = work_in(directory, resident=resident)
    method(lora=LORA, max_steps=1, batch_size=10, **options).unlearn(base, FORGET, RETAIN, work)
    return json.loads((work.output / "metrics.jsonl").read_text())


def test_the_first_step_starts_from_the_base(base, resident, tmp_path):
    forget, retain = nll(base, resident, FORGET), nll(base, resident, RETAIN)
    step = first_step(GradientDifference, base, resident, tmp_path / "a", gamma=0.5, alpha=2)
    assert step["forget"] == pytest.approx(-forget, rel=1e-5)
    assert step["retain"] == pytest.approx(retain, rel=1e-5)
    assert step["loss"] == pytest.approx(2 * retain - 0.5 * forget, rel=1e-5)
    assert first_step(GradientDifference, base, resident, tmp_path / "b", retain_loss="kl")["retain"] == pytest.approx(
        0, abs=1e-6
    )
    for number, method in enumerate((NPO, DPO, IdkDPO)):  # −(2/β) log σ(0)
        step = first_step(method, base, resident, tmp_path / f"c{number}")
        assert step["forget"] == pytest.approx(13.8629436, rel=1e-5)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_reference_is_the_base_whatever_has_been_trained(base, resident, tmp_path, lora):
    settings = GradientDifference(lora=lora, **QUICK)
    work = work_in(tmp_path, resident=resident)
    model, tokenizer = resident.base(base)
    rows = encode(FORGET, tokenizer, max_length=64)
    batch = collate(rows, range(10), pad=0, device="cpu")
    with torch.no_grad():
        expected = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][batch.counted[:, 1:]]
    with borrow(settings, base, work) as trainee:
        term = Term("forget", rows, lambda one: -losses.cross_entropy(trainee(one), one.labels))
        train(trainee, Objective((term,)), work)
        torch.testing.assert_close(trainee.base_logits(batch), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(trainee(batch), expected, rtol=1e-2)
        torch.testing.assert_close(
            trainee.base_log_probs(batch),
            losses.sequence_log_probs(expected, batch.labels, batch.lengths),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("combine", ["sum", "pcgrad", "sago"])
def test_gradients_are_combined_with_retention_first(base, resident, tmp_path, combine):
    options: dict[str, Any] = {
        "lora": None,
        "parameters": ("mlp.down_proj",),
        "clip_norm": None,
        "gamma": 2.0,
        "alpha": 0.5,
    }
    method = GradientDifference(combine=combine, max_steps=1, batch_size=10, learning_rate=1e-3, **options)
    found = method.unlearn(base, FORGET, RETAIN, work_in(tmp_path, resident=resident))
    model = base.load()

    def gradient(corpus, weight):
        rows = encode(corpus, base.load_tokenizer(), max_length=64)
        batch = collate(rows, range(10), pad=0, device="cpu")
        model.zero_grad()
        (
            weight
            * losses.cross_entropy(model(batch.ids, batch.mask).logits[:, :-1][batch.counted[:, 1:]], batch.labels)
        ).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    forget, retain = gradient(FORGET, -2.0), gradient(RETAIN, 0.5)
    assert len(found) == 2
    for name in found:
        f, r = forget[name].double(), retain[name].double()
        if combine == "sum":
            joined = f + r
        elif combine == "pcgrad":
            joined = r + f - min(0.0, float((f * r).sum())) / (r * r).sum() * r
        else:
            joined = torch.where(f * r >= 0, f, r)
        adam = -1e-3 * joined / (joined.abs() + 1e-8)
        clear = joined.abs() > 1e-5  # where float32 noise cannot turn the sign
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(found.delta(name)[clear].double(), adam[clear], rtol=1e-3, atol=1e-6)


def test_sago_keeps_more_than_the_sum(base, resident, tmp_path):
    kept = {}
    for combine in ("sum", "sago"):
        method = GradientDifference(lora=LORA, combine=combine, **{**QUICK, "epochs": 8})
        found = method.unlearn(base, FORGET, RETAIN, work_in(tmp_path / combine, resident=resident))
        kept[combine] = nll(base, resident, RETAIN, found)
    assert kept["sago"] < kept["sum"]


@pytest.mark.parametrize("method", [GradientDifference, NPO, SimNPO, DPO, IdkDPO, WGA, SatImp])
def test_a_missing_retain_set(base, resident, tmp_path, method):
    work = work_in(tmp_path, resident=resident)
    name = method().method
    with pytest.raises(DataError, match=f"{name} needs a retain set: give one with --retain, or set alpha=0"):
        method().unlearn(base, FORGET, None, work)
    assert method(alpha=0, max_steps=1).unlearn(base, FORGET, None, work).norm > 0


def test_options_of_the_retain_loss_need_one():
    with pytest.raises(ValueError, match="combine: sago does nothing while alpha is 0; set alpha"):
        UNDIAL(combine="sago")
    with pytest.raises(ValueError, match="retain_loss: kl does nothing while alpha is 0; set alpha"):
        NPO(alpha=0, retain_loss="kl")
    assert CEU(alpha=1, combine="pcgrad", retain_loss="kl").alpha == 1


@pytest.mark.parametrize("method", [UNDIAL, CEU])
def test_methods_that_need_no_retain_set(base, resident, tmp_path, method):
    assert method().unlearn(base, FORGET, None, work_in(tmp_path, resident=resident)).norm > 0


def test_dpo_says_what_is_missing(base, resident, tmp_path):
    work = work_in(tmp_path, resident=resident)
    with pytest.raises(DataError, match=r"dpo needs a column 'alternative'.*columns are prompt, response; use idk_dpo"):
        DPO().unlearn(base, Corpus(FORGET.rows.drop("alternative")), RETAIN, work)
    with pytest.raises(DataError, match="no column 'prompt'"):
        IdkDPO().unlearn(base, texts(), RETAIN, work)
    half = FORGET.rows.with_columns(
        pl.when(pl.col("prompt") == FORGET.rows["prompt"][3]).then(None).otherwise("alternative").alias("alternative")
    )
    with pytest.raises(DataError, match="row 4 has no 'alternative'"):
        DPO().unlearn(base, Corpus(half), RETAIN, work)


def test_dpo_leaves_a_text_column_aside(base, resident, tmp_path):
    plain = DPO(max_steps=1).unlearn(base, FORGET, RETAIN, work_in(tmp_path / "a", resident=resident))
    beside = Corpus(FORGET.rows.with_columns(pl.lit("w1 w2 w3").alias("text")))
    same = DPO(max_steps=1).unlearn(base, beside, RETAIN, work_in(tmp_path / "b", resident=resident))
    assert all(torch.equal(plain.delta(name), same.delta(name)) for name in plain)


def test_a_recipe_validates_without_torch():
    names = [method.__module__ for method in (*BALANCED, GradientAscent, CircuitBreaker)]
    script = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_gradient_ascent_warns(base, resident, tmp_path):
    with pytest.warns(UserWarning, match="gradient_ascent has no bound"):
        GradientAscent(max_steps=1).unlearn(base, FORGET, None, work_in(tmp_path, resident=resident))


def test_circuit_breaker_names_the_layers_there_are(base, resident, tmp_path):
    work = work_in(tmp_path, resident=resident)
    with pytest.raises(RecipeError, match=r"layers: the model has 2 layers, 0 to 1, not \[10, 20\]"):
        CircuitBreaker().unlearn(base, FORGET, RETAIN, work)
    with pytest.raises(DataError, match="circuit_breaker needs a retain set"):
        CircuitBreaker().unlearn(base, FORGET, None, work)


def test_a_recipe_names_only_what_differs_from_a_methods_own_adapter():
    assert CircuitBreaker.model_validate({"lora": {"rank": 8}}).lora == Lora(
        rank=8, dropout=0.05, target_modules="all-linear"
    )
    assert CircuitBreaker.model_validate({"lora": None}).lora is None
    assert NPO.model_validate({"lora": {"rank": 8}}).lora == Lora(rank=8)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_states_are_the_layers_outputs_and_no_deeper_layer_is_asked(tmp_path, kind, checkpointing):
    base = save_model(tmp_path / "model", kind, layers=4)
    settings = CircuitBreaker(lora=LORA, gradient_checkpointing=checkpointing)
    with borrow(settings, base, work_in(tmp_path)) as trainee:
        batch = trainee.collate(trainee.encode(FORGET), range(4))
        asked = []
        deepest = trainee.model.get_submodule("model.layers.3" if kind == "llama" else "transformer.h.3")
        handle = deepest.register_forward_hook(lambda *_: asked.append(True))
        states = trainee.states(batch, (2, 0))
        assert asked == []
        handle.remove()
        whole = trainee._ask_padded(batch, 1, output_hidden_states=True).hidden_states
        expected = torch.stack([whole[3], whole[1]])
        assert torch.equal(states, expected)
        parameters = [value for name, value in trainee.parameters.items() if ".3." not in name]
        for one, other in zip(
            torch.autograd.grad((states**3).sum(), parameters, allow_unused=True),
            torch.autograd.grad((expected**3).sum(), parameters, allow_unused=True),
            strict=True,
        ):
            assert one is not None
            assert torch.equal(one, other)
        assert torch.equal(trainee.base_states(batch, (3,))[0], trainee.base_states(batch, (0, 3))[1])
    assert batch.counted.sum() == sum(row.counted for row in trainee.encode(FORGET)[:4])


def test_the_forget_gradient_is_taken_where_its_loss_is_highest_nearby(base, resident, tmp_path):
    """Sharpness-aware NPO, written out: every row in every step, AdamW on a copy of the model."""
    import copy

    forget, retain, radius, beta = answers(5), answers(5, seed=50), 0.3, 0.1
    settings: dict[str, Any] = {
        "lora": None,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "batch_size": 5,
        "epochs": 3,
    }
    found = NPO(**settings, sharpness=radius, clip_norm=None).unlearn(
        base, forget, retain, work_in(tmp_path, resident=resident)
    )
    model, tokenizer = resident.base(base)
    copied = copy.deepcopy(model)
    copied.requires_grad_(True)
    rows = [collate(encode(part, tokenizer, max_length=64), range(5), pad=0, device="cpu") for part in (forget, retain)]

    def log_probs(asked: Any, batch: Any) -> list[torch.Tensor]:
        """Each row's, of what counts, and its number of tokens."""
        logits = asked(batch.ids, batch.mask).logits[:, :-1].log_softmax(-1)
        told = logits.gather(-1, batch.ids[:, 1:, None])[..., 0] * batch.counted[:, 1:]
        return [told.sum(1), batch.counted[:, 1:].sum(1)]

    with torch.no_grad():
        before = log_probs(model, rows[0])[0]

    def forget_loss() -> torch.Tensor:
        return (-2 / beta * torch.nn.functional.logsigmoid(-beta * (log_probs(copied, rows[0])[0] - before))).mean()

    weights = list(copied.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        slopes = torch.autograd.grad(forget_loss(), weights)
        norm = torch.cat([slope.flatten() for slope in slopes]).norm()
        for weight, slope in zip(weights, slopes, strict=True):
            weight.data += radius * slope / norm
        steep = torch.autograd.grad(forget_loss(), weights)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.data -= radius * slope / norm
        told, counts = log_probs(copied, rows[1])
        held = torch.autograd.grad(-told.sum() / counts.sum(), weights)
        for weight, up, down in zip(weights, steep, held, strict=True):
            weight.grad = up + down
        optimizer.step()
    plain = NPO(**settings, clip_norm=None).unlearn(
        base, forget, retain, work_in(tmp_path / "plain", resident=resident)
    )
    apart, beside = [], []
    for name, weight in copied.named_parameters():
        expected = weight.detach() - dict(model.named_parameters())[name]
        apart.append((found.delta(name) - expected).abs().flatten())
        beside.append((plain.delta(name) - expected).abs().flatten())
    # Where a gradient is all but zero, AdamW makes a whole step of its rounding.
    assert (torch.cat(apart) > 1e-5).float().mean() < 0.01
    assert (torch.cat(beside) > 1e-4).float().mean() > 0.1
