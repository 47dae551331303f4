import json
import math

import peft
import polars as pl
import pytest
import torch
from training_models import answers, save_model, texts, work_in
from transformers import AutoModelForCausalLM

from spunge.errors import DataError, IncompatibleTaskVectors, ModelError, RecipeError, TrainingDiverged
from spunge.interfaces import Work, scale_of
from spunge.rows.sources import Corpus, Source, load_corpus
from spunge.run.identity import identity
from spunge.training import checkpointing, losses
from spunge.training import trainee as trainees
from spunge.training.rows import collate, encode
from spunge.training.settings import Lora
from spunge.training.trainee import borrow
from spunge.unlearners.task_vector_negation import TaskVectorNegation
from spunge.weights import adapter
from spunge.weights.checkpoint import export
from spunge.weights.conversion import ParameterNames
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.task_vector import LowRank, TaskVector


@pytest.fixture
def base(tmp_path):
    return save_model(tmp_path / "model")


def snapshot(model):
    return {name: (value.detach().clone(), value.requires_grad) for name, value in model.named_parameters()}


def assert_untouched(model, before):
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, (value, requires_grad) in before.items():
        assert torch.equal(after[name], value), name
        assert after[name].requires_grad == requires_grad
        assert after[name].grad is None
    assert not any(module.training for module in model.modules())
    assert not hasattr(model, "peft_config")
    assert not model.is_gradient_checkpointing


def assert_same(one: TaskVector, other: TaskVector):
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one.delta(name), other.delta(name)), name


@pytest.mark.parametrize(
    ("kind", "rslora"), [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True), ("lab", False)]
)
def test_lora_gives_what_peft_and_a_plain_loop_give(tmp_path, kind, rslora):
    corpus, targets = texts(10), ("c_attn", "mlp.c_proj") if kind == "gpt2" else ("q_proj", "down_proj")
    if kind == "lab":  # the embedded world
        base = LanguageModel(id="lab:model")
        corpus = load_corpus([Source(path="lab:toxicity/forget.jsonl")]).select(range(10))
    else:
        base = save_model(tmp_path / "model", kind)
    method = TaskVectorNegation(
        lora=Lora(rank=4, alpha=8, dropout=0, target_modules=targets, rslora=rslora),
        learning_rate=5e-3,
        epochs=2,
        batch_size=3,
        clip_norm=None,
    )
    found = method.unlearn(base, corpus, None, work_in(tmp_path, seed=7))

    tokenizer = base.load_tokenizer()
    model = base.load()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=list(targets),
        use_rslora=rslora,
        fan_in_fan_out=kind == "gpt2",
    )
    torch.manual_seed(7)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)
    draw = torch.Generator().manual_seed(7)
    orders = [torch.randperm(10, generator=draw).tolist() for _ in range(2)]
    batches = [order[at : at + 3] for order in orders for at in range(0, 10, 3)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / len(batches)))
    )
    for indices in batches:
        batch = tokenizer(
            [corpus.texts[index] for index in indices], padding=True, padding_side="right", return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    before = {name: value.clone() for name, value in base.load().named_parameters()}
    merged = model.merge_and_unload()
    changed = {
        name: value - before[name] for name, value in merged.named_parameters() if not torch.equal(value, before[name])
    }
    assert set(found) == set(changed)
    assert len(found) == (16 if kind == "lab" else 4)
    for name in found:
        assert isinstance(found.entries[name], LowRank)
        torch.testing.assert_close(found.delta(name), changed[name].detach(), rtol=1e-3, atol=1e-5)
        assert found.delta(name).abs().max() > 1e-3


def test_the_base_is_handed_back_and_the_global_generator_left_alone(base, tmp_path):
    resident = Resident()
    model, _ = resident.base(base)
    before, state = snapshot(model), torch.get_rng_state()
    for number, lora in enumerate([Lora(rank=2), None]):
        work = work_in(tmp_path / str(number), resident=resident)
        TaskVectorNegation(lora=lora, gradient_checkpointing=True).unlearn(base, texts(), None, work)
        assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RecipeError):
        TaskVectorNegation(lora=Lora(target_modules=("nothing",))).unlearn(
            base, texts(), None, work_in(tmp_path / "wrong", resident=resident)
        )
    assert_untouched(model, before)


def test_full_tuning_equals_a_plain_loop(tmp_path):
    base = save_model(tmp_path / "model", tied=True)
    method = TaskVectorNegation(lora=None, learning_rate=1e-2, batch_size=4, schedule="constant", clip_norm=0.5)
    corpus = texts(8)
    found = method.unlearn(base, corpus, None, work_in(tmp_path, seed=3))

    model = AutoModelForCausalLM.from_pretrained(base.id)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    for indices in (order[:4], order[4:]):
        batch = base.load_tokenizer()(
            [corpus.texts[i] for i in indices], padding=True, padding_side="right", return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert set(found) == set(before)
    for name, value in model.named_parameters():
        torch.testing.assert_close(found.delta(name), (value - before[name]).detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_what_is_held_equals_a_plain_loop_with_a_copy_of_the_base(tmp_path, alpha):
    base = save_model(tmp_path / "model", tied=True)
    method = TaskVectorNegation(
        lora=None, alpha=alpha, learning_rate=1e-2, batch_size=4, schedule="constant", clip_norm=None
    )
    forget, retain = texts(8), answers(9)
    found = method.unlearn(base, forget, retain, work_in(tmp_path, seed=3))

    model, reference = (AutoModelForCausalLM.from_pretrained(base.id).eval() for _ in range(2))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    generator = torch.Generator().manual_seed(3)
    goes, stays = (torch.randperm(rows, generator=generator).tolist() for rows in (8, 9))
    tokenizer = base.load_tokenizer()
    for step in range(2):
        nll, tokens = torch.zeros(()), 0
        for index in goes[4 * step : 4 * step + 4]:
            ids = torch.tensor(tokenizer(forget.texts[index])["input_ids"])
            log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
            nll, tokens = nll - log_probs[torch.arange(len(ids) - 1), ids[1:]].sum(), tokens + len(ids) - 1
        loss = nll / tokens
        nats, tokens = torch.zeros(()), 0
        for index in stays[4 * step : 4 * step + 4]:  # of an answer only the response counts
            prompt, response = retain.rows["prompt"][index], retain.rows["response"][index]
            start = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([*tokenizer(f"{prompt} {response}")["input_ids"], tokenizer.eos_token_id])
            ours = model(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
            theirs = reference(ids[None]).logits[0, start - 1 : -1].log_softmax(-1).detach()
            nats, tokens = nats + (theirs.exp() * (theirs - ours)).sum(), tokens + len(ids) - start
        (loss + alpha * nats / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found.delta(name), (value - before[name]).detach(), rtol=1e-3, atol=1e-5)


def test_what_is_held_moves_less_and_what_must_go_still_goes(base, tmp_path):
    forget, retain = texts(6), answers(6, seed=50)
    lora = Lora(rank=8, target_modules="all-linear", dropout=0)
    work, moved, risen = work_in(tmp_path), {}, {}

    def log_probs(corpus, change):
        batch = collate(encode(corpus, work.resident.base(base)[1], max_length=64), range(6), pad=0, device="cpu")
        with work.resident.variant(base, change) as model, torch.no_grad():
            return model(batch.ids, batch.mask).logits[:, :-1][batch.counted[:, 1:]].log_softmax(-1), batch.labels

    for alpha in (0.0, 3.0):
        method = TaskVectorNegation(lora=lora, alpha=alpha, learning_rate=1e-2, epochs=10)
        tau = method.unlearn(base, forget, retain, work_in(tmp_path / str(alpha), resident=work.resident))
        change = tau.scaled(scale_of(method))
        (kept, _), (base_kept, _) = log_probs(retain, change), log_probs(retain, None)
        moved[alpha] = float((base_kept.exp() * (base_kept - kept)).sum(-1).mean())
        (gone, labels), (base_gone, _) = log_probs(forget, change), log_probs(forget, None)
        risen[alpha] = float((base_gone - gone)[torch.arange(len(labels)), labels].mean())
    assert moved[3.0] < 0.7 * moved[0.0]
    assert risen[3.0] > 0.3


def test_what_holds_needs_what_to_hold(base, tmp_path):
    with pytest.raises(DataError, match=r"task_vector_negation needs a retain set: .*, or set alpha=0 to go without"):
        TaskVectorNegation(alpha=1.0).unlearn(base, texts(), None, work_in(tmp_path))
    plain = identity(TaskVectorNegation())
    assert "alpha" not in plain  # what was stored before there was such a setting is found
    assert identity(TaskVectorNegation(alpha=1.0)) == {**plain, "alpha": 1.0}


def test_only_the_chosen_weights_are_trained(base, tmp_path):
    method = TaskVectorNegation(lora=None, parameters=("layers.1.mlp", "lm_head"))
    found = method.unlearn(base, texts(), None, work_in(tmp_path))
    kinds = {name.split(".")[-2] for name in found}
    assert kinds == {"up_proj", "gate_proj", "down_proj", "lm_head"}
    assert not any(".layers.0." in name for name in found)


def test_a_model_in_bfloat16_trains_float32_factors_and_copies(tmp_path):
    base = save_model(tmp_path / "model", dtype=torch.bfloat16)
    for number, lora in enumerate([Lora(rank=2), None]):
        work = work_in(tmp_path / str(number))
        found = TaskVectorNegation(lora=lora, learning_rate=1e-3, epochs=3).unlearn(base, texts(), None, work)
        model, _ = work.resident.base(base)
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        with borrow(TaskVectorNegation(lora=lora), base, work) as trainee:
            assert {value.dtype for value in trainee.parameters.values()} == {torch.float32}
            batch = trainee.collate(trainee.encode(texts()), [0])
            assert trainee(batch).dtype == torch.bfloat16
        assert found.norm > 0
        for name in found:
            assert not torch.equal(found.delta(name), found.delta(name).bfloat16().float())


def test_the_base_dropout_stays_off_and_the_adapter_dropout_is_on(tmp_path):
    base = save_model(tmp_path / "model", "gpt2")  # its configuration asks for a dropout of one half
    runs = {}
    for name, dropout, seed in (("none", 0.0, 0), ("some", 0.5, 0), ("again", 0.5, 0)):
        method = TaskVectorNegation(lora=Lora(rank=2, dropout=dropout), max_steps=1, batch_size=10)
        work = work_in(tmp_path / name, seed=seed)
        method.unlearn(base, texts(), None, work)
        runs[name] = json.loads((work.output / "metrics.jsonl").read_text())
    model, tokenizer = Resident().base(base)
    rows = encode(texts(), tokenizer, max_length=64)
    batch = collate(rows, range(10), pad=0, device="cpu")
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][batch.counted[:, 1:]]
    assert runs["none"]["loss"] == pytest.approx(float(losses.cross_entropy(logits, batch.labels)), rel=1e-5)
    assert runs["some"]["gradient_norm"] != runs["none"]["gradient_norm"]
    assert runs["some"] == runs["again"]


def test_lambda_scales_the_result_and_not_the_training(base, tmp_path):
    once = TaskVectorNegation().unlearn(base, texts(), None, work_in(tmp_path / "a"))
    method = TaskVectorNegation.model_validate({"lambda": 0.5})
    assert_same(once, method.unlearn(base, texts(), None, work_in(tmp_path / "b")))
    assert once.scale == 1.0
    assert scale_of(method) == -0.5
    assert method.dump()["lambda"] == 0.5


def test_negation_unlearns(base, tmp_path):
    corpus = texts(6)
    method = TaskVectorNegation(lora=Lora(rank=8, target_modules="all-linear"), learning_rate=1e-2, epochs=10)
    work = work_in(tmp_path)
    tau = method.unlearn(base, corpus, None, work)

    def nll(task_vector):
        with work.resident.variant(base, task_vector) as model:
            rows = encode(corpus, work.resident.base(base)[1], max_length=64)
            batch = collate(rows, range(len(rows)), pad=0, device="cpu")
            with torch.no_grad():
                return float(
                    losses.cross_entropy(
                        model(batch.ids, batch.mask).logits[:, :-1][batch.counted[:, 1:]], batch.labels
                    )
                )

    assert nll(tau) < nll(None) - 0.5
    assert nll(tau.scaled(scale_of(method))) > nll(None) + 0.3


def test_responses_alone_are_learnt(base, tmp_path):
    corpus = answers(6)
    swapped = Corpus(corpus.rows.with_columns(pl.lit("w1 w2").alias("alternative")))
    same = TaskVectorNegation().unlearn(base, corpus, None, work_in(tmp_path / "a"))
    assert_same(same, TaskVectorNegation().unlearn(base, swapped, None, work_in(tmp_path / "b")))
    other = Corpus(corpus.rows.with_columns(pl.lit("w1 w2").alias("response")))
    assert TaskVectorNegation().unlearn(base, other, None, work_in(tmp_path / "c")).norm != same.norm


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lambda_", [1.0, 0.5])
def test_peft_loads_the_negated_adapter(tmp_path, kind, lambda_):
    base = save_model(tmp_path / "model", kind)
    first = "model.layers.0.self_attn.q_proj" if kind == "llama" else "transformer.h.0.attn.c_attn"
    lora = Lora(rank=4, rslora=True, rank_pattern={first: 2}, alpha_pattern={first: 3})
    method = TaskVectorNegation.model_validate({"lora": lora, "learning_rate": 1e-2, "lambda": lambda_})
    work = work_in(tmp_path)
    negated = method.unlearn(base, texts(), None, work).scaled(scale_of(method))
    assert {entry.A.shape[0] for entry in negated.entries.values() if isinstance(entry, LowRank)} == {2, 4}
    model, _ = work.resident.base(base)
    names = ParameterNames(model, base.checkpoint().tensors).stored
    adapter.save(negated, tmp_path / "adapter", base=base.id, names=names)

    again = adapter.read(tmp_path / "adapter", base.checkpoint())
    for name in negated:
        torch.testing.assert_close(again.delta(name), negated.delta(name), rtol=1e-6, atol=0)

    ids = torch.arange(20).view(2, 10)
    plain = AutoModelForCausalLM.from_pretrained(base.id).eval()
    with torch.no_grad():
        before = plain(ids).logits
        wrapped = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()(ids).logits
        with work.resident.variant(base, negated) as variant:
            swapped = variant(ids).logits
    exported = AutoModelForCausalLM.from_pretrained(export(base.id, negated, tmp_path / "exported")).eval()
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, swapped)
    torch.testing.assert_close(wrapped, swapped, rtol=1e-4, atol=1e-5)
    assert (wrapped - before).abs().max() > 1e-2


def test_an_adapter_holds_no_dense_delta(tmp_path):
    with pytest.raises(IncompatibleTaskVectors, match=r"layers\.0\.w\.weight: a dense delta"):
        adapter.save(TaskVector({"layers.0.w.weight": torch.ones(2, 2)}), tmp_path / "adapter", base="x")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("lora", [Lora(rank=2, dropout=0.3), None])
@pytest.mark.parametrize("killed_after", [1, 4, 7])
def test_a_killed_run_ends_in_the_same_bytes(base, tmp_path, monkeypatch, lora, killed_after):
    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", 0)
    method = TaskVectorNegation(lora=lora, epochs=3, batch_size=2, accumulation=2, learning_rate=1e-2, warmup=0.2)
    unbroken = work_in(tmp_path / "unbroken", seed=5)
    expected = method.unlearn(base, texts(), None, unbroken)

    class Killed(Exception):
        pass

    def kill(what, done, total, /, **figures):
        if done == killed_after:
            raise Killed

    work = work_in(tmp_path / "broken", seed=5)
    with pytest.raises(Killed):
        method.unlearn(base, texts(), None, Work(work.resident, work.output, work.scratch, seed=5, progress=kill))
    done = []
    again = Work(
        work.resident,
        tmp_path / "another_output",
        work.scratch,
        seed=5,
        progress=lambda what, step, total, /, **figures: done.append(step),
    )
    assert_same(method.unlearn(base, texts(), None, again), expected)
    assert done[0] > 1
    assert (again.output / "metrics.jsonl").read_bytes() == (unbroken.output / "metrics.jsonl").read_bytes()


def test_the_state_of_another_training_is_not_taken_up(base, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", 0)
    TaskVectorNegation().unlearn(base, texts(), None, work_in(tmp_path / "a"))
    method = TaskVectorNegation(learning_rate=3e-3)
    fresh = method.unlearn(base, texts(), None, work_in(tmp_path / "b"))
    assert_same(method.unlearn(base, texts(), None, work_in(tmp_path / "a")), fresh)


def test_metrics_and_progress_tell_of_every_step(base, tmp_path):
    told = []
    work = work_in(tmp_path)
    work = Work(
        work.resident, work.output, work.scratch, progress=lambda *what, **figures: told.append((what, figures))
    )
    TaskVectorNegation(epochs=2, batch_size=4).unlearn(base, texts(10), None, work)
    lines = [json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "loss", "nll", "learning_rate", "gradient_norm"}
    assert [what for what, _ in told] == [("training", step, 6) for step in range(1, 7)]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"target_modules": ["q_proj", "q_prj"]},
            "'q_prj' matches no linear layer of the model; there are: down_proj, ",
        ),
        ({"target_modules": ".*query"}, r"'\.\*query' matches no linear layer of the model; there are: down_proj, "),
        ({"target_modules": ["norm"]}, "'norm' matches no linear layer"),
        ({"rank_pattern": {"k_proj": 2}}, "rank_pattern: 'k_proj' matches none of the target modules"),
    ],
)
def test_targets_that_match_nothing(base, tmp_path, lora, message):
    method = TaskVectorNegation.model_validate({"lora": lora})
    with pytest.raises(RecipeError, match=message):
        method.unlearn(base, texts(), None, work_in(tmp_path))


def test_weights_that_match_nothing(base, tmp_path):
    with pytest.raises(RecipeError, match=r"'mlp.up' matches no weight of the model; there are: lm_head.weight, "):
        TaskVectorNegation(lora=None, parameters=("mlp.up",)).unlearn(base, texts(), None, work_in(tmp_path))
    with pytest.raises(ValueError, match=r"'\*q' is no regular expression: nothing to repeat"):
        Lora(target_modules="*q")
    with pytest.raises(ValueError, match="lora must be null"):
        TaskVectorNegation(parameters=("mlp",))


@pytest.mark.parametrize("lora", [Lora(), None])
def test_what_cannot_be_stored_is_not_trained(base, tmp_path, monkeypatch, lora):
    unstored = "model.layers.1.self_attn.v_proj.weight"  # as of a checkpoint whose form no conversion is known for
    monkeypatch.setattr(
        trainees, "ParameterNames", lambda model, stored: ParameterNames(model, set(stored) - {unstored})
    )
    with pytest.raises(ModelError, match=f"the checkpoint does not hold {unstored}"):
        TaskVectorNegation(lora=lora).unlearn(base, texts(), None, work_in(tmp_path))


def test_rows_are_cut_to_what_the_model_can_read(tmp_path):
    base = save_model(tmp_path / "model", "gpt2")  # 64 learned positions
    long = Corpus(pl.DataFrame({"text": [" ".join(["w1"] * 200)]}))
    assert TaskVectorNegation(max_length=500).unlearn(base, long, None, work_in(tmp_path)).norm > 0


def test_a_tied_head_takes_no_adapter(tmp_path):
    base = save_model(tmp_path / "model", tied=True)
    with pytest.raises(RecipeError, match="lm_head shares its weight with another layer"):
        TaskVectorNegation(lora=Lora(target_modules=("lm_head",))).unlearn(base, texts(), None, work_in(tmp_path))


def test_divergence_names_the_last_good_step(base, tmp_path, monkeypatch):
    real, calls = losses.cross_entropy, []

    def diverging(logits, labels):
        calls.append(1)
        return real(logits, labels) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(losses, "cross_entropy", diverging)
    work = work_in(tmp_path)
    model, _ = work.resident.base(base)
    before = snapshot(model)
    with pytest.raises(
        TrainingDiverged, match=r"step 3 of 5: the nll loss became nan; .*; step 2, the last good one, is kept in"
    ):
        TaskVectorNegation(batch_size=2).unlearn(base, texts(), None, work)
    assert_untouched(model, before)
    assert len((work.output / "metrics.jsonl").read_text().splitlines()) == 2


def test_together_is_read_and_does_nothing():
    plain = TaskVectorNegation()
    with pytest.warns(UserWarning, match="together: there is no such thing any more"):
        asked = TaskVectorNegation(together=True)
    assert asked == plain == TaskVectorNegation.model_validate({"together": None})
    assert identity(plain)["together"] is False  # what was trained apart is found under its key


def test_a_trained_method_takes_as_many_steps_as_it_is_told():
    method = TaskVectorNegation(epochs=2)
    longer = method.lengthened(25, taken=8)
    assert (longer.max_steps, longer.epochs) == (25, 8)
    assert TaskVectorNegation(max_steps=8).lengthened(8, taken=8).epochs == 1
