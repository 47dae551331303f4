import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from training_models import WORDS, answers, save_model, texts, work_in
from transformers import AutoModelForCausalLM, get_scheduler

from spunge.errors import ArtifactError, DataError, TrainingDiverged
from spunge.interfaces import Work
from spunge.rows.sources import MAX_LENGTH, Corpus
from spunge.training import checkpointing, losses
from spunge.training.finetuning import finetune
from spunge.training.loop import Term, schedule
from spunge.training.rows import collate, encode, plan
from spunge.training.settings import Lora, Tuning
from spunge.unlearners.circuit_breaker import CircuitBreaker
from spunge.unlearners.gradient_difference import GradientDifference
from spunge.unlearners.task_vector_negation import TaskVectorNegation
from spunge.weights.task_vector import TaskVector

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(base):
    return base.load_tokenizer()


def corpus(**columns):
    return Corpus(pl.DataFrame(columns))


def ids(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text.split())


def test_a_text_counts_whole(tokenizer):
    (row,) = encode(corpus(text=["w1 w2 w3"]), tokenizer, max_length=10)
    assert list(row.ids) == [BOS, *ids(tokenizer, "w1 w2 w3")]
    assert row.counted == 3


def test_only_the_response_counts_and_it_ends(tokenizer):
    (row,) = encode(corpus(prompt=["w1 w2"], response=["w3 w4"]), tokenizer, max_length=10)
    assert list(row.ids) == [BOS, *ids(tokenizer, "w1 w2 w3 w4"), EOS]
    assert list(row.ids[row.start :]) == [*ids(tokenizer, "w3 w4"), EOS]
    assert row.counted == 3


def test_the_chat_template_is_used_where_there_is_one(tmp_path):
    tokenizer = save_model(tmp_path / "chat", chat=True).load_tokenizer()
    (row,) = encode(corpus(prompt=["w1 w2"], response=["w3 w4"]), tokenizer, max_length=20)
    assert tokenizer.convert_ids_to_tokens(list(row.ids)) == [
        "<user>",
        "w1",
        "w2",
        "<end>",
        "<bot>",
        "w3",
        "w4",
        "<end>",
    ]
    assert tokenizer.convert_ids_to_tokens(list(row.ids[row.start :])) == ["w3", "w4", "<end>"]


def test_a_template_that_tells_the_day_gives_the_same_rows_tomorrow(tmp_path):
    tokenizer = save_model(tmp_path / "chat", chat=True).load_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y %m %d') }} " + str(tokenizer.chat_template)
    tokenizer.add_tokens(["2025", "04", "10"])
    (row,) = encode(corpus(prompt=["w1"], response=["w2"]), tokenizer, max_length=20)
    assert tokenizer.convert_ids_to_tokens(list(row.ids))[:4] == ["2025", "04", "10", "<user>"]


def test_a_token_that_straddles_prompt_and_response_counts(tokenizer):
    class Straddling:
        """A tokenizer of pairs of letters: `ab c` and `ab cd` part company in the middle of the prompt's last token."""

        chat_template = None
        eos_token_id = EOS

        def __call__(self, texts, **options):
            pieces = [[text[at : at + 2] for at in range(0, len(text), 2)] for text in texts]
            return {"input_ids": [[sum(map(ord, piece)) for piece in row] for row in pieces]}

    straddling: Any = Straddling()
    (row,) = encode(corpus(prompt=["abc"], response=["def"]), straddling, max_length=20)
    assert row.start == 1
    assert row.counted == len(row.ids) - 1


def test_long_texts_are_cut_or_chunked(tokenizer):
    long = corpus(text=["w1 w2 w3 w4 w5 w6", "w7 w8"])
    truncated = encode(long, tokenizer, max_length=3)
    assert [list(row.ids) for row in truncated] == [
        [BOS, *ids(tokenizer, "w1 w2")],
        [BOS, *ids(tokenizer, "w7 w8")],
    ]
    chunked = encode(long, tokenizer, max_length=3, long_texts="chunk")
    assert [list(row.ids) for row in chunked] == [
        [BOS, *ids(tokenizer, "w1 w2")],
        ids(tokenizer, "w3 w4 w5"),
        [BOS, *ids(tokenizer, "w7 w8")],
    ]  # w6 alone has nothing to predict it


def test_a_source_may_cut_earlier(tokenizer):
    rows = encode(corpus(text=["w1 w2 w3 w4"] * 2, **{MAX_LENGTH: [2, None]}), tokenizer, max_length=4)
    assert [len(row.ids) for row in rows] == [2, 4]


def test_rows_with_nothing_to_predict(tokenizer):
    with pytest.raises(DataError, match="row 2: the prompt alone fills the 4 tokens of max_length"):
        encode(corpus(prompt=["w1", "w1 w2 w3"], response=["w2", "w4"]), tokenizer, max_length=4)
    with pytest.raises(DataError, match="no column 'response'; columns are prompt, answer"):
        encode(corpus(prompt=["w1"], answer=["w2"]), tokenizer, max_length=4)


def test_padding_is_masked_and_not_counted(tokenizer):
    rows = encode(corpus(prompt=["w1", "w1 w2"], response=["w3", "w4 w5"]), tokenizer, max_length=10)
    batch = collate(rows, [1, 0], pad=0, device="cpu")
    assert batch.mask.tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    three, four, five = ids(tokenizer, "w3 w4 w5")
    assert batch.labels.tolist() == [four, five, EOS, three, EOS]  # what counts, one row behind the other
    assert batch.lengths == [3, 2]
    assert batch.counted.tolist() == [[False] * 3 + [True] * 3, [False, False, True, True, False, False]]
    assert batch.indices == [1, 0]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_schedules_are_those_of_transformers(kind, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    reference = get_scheduler(name, optimizer, num_warmup_steps=3 if warmup else 0, num_training_steps=10)
    for step in range(10):
        assert schedule(kind, step, 10, warmup) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def tau(base, directory, given, **options):
    method = TaskVectorNegation.model_validate({"lora": {"rank": 4, "dropout": 0}, "learning_rate": 3e-3, **options})
    work = work_in(directory)
    found = method.unlearn(base, given, None, work)
    return found, [json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines()]


def test_an_accumulated_step_is_as_if_its_rows_were_one_batch(base, tmp_path):
    whole, one = tau(base, tmp_path / "a", texts(10), batch_size=5)
    parts, many = tau(base, tmp_path / "b", texts(10), batch_size=1, accumulation=5)
    assert len(one) == len(many) == 2
    for name in whole:
        torch.testing.assert_close(whole.delta(name), parts.delta(name), rtol=1e-3, atol=2e-6)
    assert many[0]["nll"] == pytest.approx(one[0]["nll"], rel=1e-5)


@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.5}, None])
def test_gradient_checkpointing_changes_no_result(base, tmp_path, lora):
    plain, _ = tau(base, tmp_path / "a", texts(10), lora=lora)
    recomputed, _ = tau(base, tmp_path / "b", texts(10), lora=lora, gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(plain.delta(name), recomputed.delta(name), rtol=1e-4, atol=1e-6)


def test_length_sorted_batches_hold_every_row_once_and_less_padding(tokenizer):
    rows = encode(texts(40, longest=30), tokenizer, max_length=64)
    term = Term("nll", rows, lambda batch: batch.ids.sum())
    padding = {}
    for sort in (False, True):
        settings = Tuning(batch_size=4, epochs=2, accumulation=3, length_sorted=sort)
        planned = plan([term.rows], settings, torch.Generator().manual_seed(0))
        batches = [batch for (step,) in planned for batch in step]
        assert [len(step) for (step,) in planned] == [3, 3, 3, 1] * 2
        for epoch in (batches[:10], batches[10:]):
            assert sorted(index for batch in epoch for index in batch) == list(range(40))
        assert batches[:10] != batches[10:]
        padding[sort] = sum(
            len(batch) * max(len(rows[i].ids) for i in batch) - sum(len(rows[i].ids) for i in batch)
            for batch in batches
        )
    assert padding[True] < padding[False] / 2


def test_a_shorter_retain_set_comes_round(tokenizer):
    forget, retain = (encode(texts(count), tokenizer, max_length=64) for count in (9, 4))
    terms = [Term(name, rows, lambda batch: batch.ids.sum()) for name, rows in (("f", forget), ("r", retain))]
    planned = plan([term.rows for term in terms], Tuning(batch_size=2, max_steps=4), torch.Generator().manual_seed(0))
    assert len(planned) == 4
    supplied = [batch for _, step in planned for batch in step]
    for turn in (supplied[:2], supplied[2:]):
        assert sorted(index for batch in turn for index in batch) == [0, 1, 2, 3]


def test_bfloat16_autocast_is_near_float32(base, tmp_path):
    exact, _ = tau(base, tmp_path / "a", texts(10), max_steps=1)
    rounded, _ = tau(base, tmp_path / "b", texts(10), max_steps=1, precision="bfloat16")
    one, other = (torch.cat([found.delta(name).flatten() for name in exact]) for found in (exact, rounded))
    assert not torch.equal(one, other)
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_the_floor_chooses_the_most_forgetful_of_the_useful_steps(base, tmp_path):
    options: dict[str, Any] = {
        "lora": Lora(rank=4, dropout=0.1, target_modules="all-linear"),
        "learning_rate": 1e-2,
        "epochs": 8,
        "batch_size": 5,
        "schedule": "constant",
        "probe_rows": 4,
        "probe_every": 1,
        "alpha": 0.1,
    }
    forget, retain = answers(10), answers(10, seed=9)
    last_work = work_in(tmp_path / "last")
    last = GradientDifference(**options).unlearn(base, forget, retain, last_work)
    lines = [json.loads(line) for line in (last_work.output / "metrics.jsonl").read_text().splitlines()]
    floor = sorted(line["utility"] for line in lines)[-4]
    useful = [line for line in lines if line["utility"] >= floor]
    best = max(useful, key=lambda line: line["probe_forget"])
    assert best["step"] < lines[-1]["step"]
    work = work_in(tmp_path / "floor")
    chosen = GradientDifference(**options, utility_floor=floor).unlearn(base, forget, retain, work)
    stopped = GradientDifference(**{**options, "max_steps": best["step"]})
    expected = stopped.unlearn(base, forget, retain, work_in(tmp_path / "stopped"))
    for name in expected:
        assert torch.equal(chosen.delta(name), expected.delta(name))
    assert chosen.norm < last.norm
    with pytest.raises(TrainingDiverged, match="utility_floor: no probed step kept 1 of the base model's utility"):
        GradientDifference(**{**options, "probe_every": 8}, utility_floor=1.0).unlearn(
            base, forget, retain, work_in(tmp_path / "none")
        )
    with pytest.raises(DataError, match="probe_rows: 64 rows cannot be set aside of 10"):
        GradientDifference(probe_every=1).unlearn(base, forget, retain, work_in(tmp_path / "few"))
    with pytest.raises(ValueError, match="set probe_every too"):
        GradientDifference(utility_floor=0.9)


@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.1}, None])
def test_what_a_diverging_run_had_made_is_kept_as_it_would_be_read(base, tmp_path, lora, monkeypatch):
    options: dict[str, Any] = {"lora": lora, "batch_size": 2, "learning_rate": 1e-2, "schedule": "constant"}
    work = work_in(tmp_path / "diverging")
    honest = losses.cross_entropy
    calls = []

    def fourth_is_nan(logits, labels):
        calls.append(1)
        return honest(logits, labels) * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(losses, "cross_entropy", fourth_is_nan)
    with pytest.raises(
        TrainingDiverged, match=r"step 4 of 5: the nll loss became nan; .*step 3, .* kept in .*last_good"
    ):
        TaskVectorNegation.model_validate({**options, "lambda": 0.5}).unlearn(base, texts(10), None, work)
    kept = TaskVector.load(work.scratch / "last_good")
    monkeypatch.undo()
    stopped = TaskVectorNegation(**options, max_steps=3).unlearn(base, texts(10), None, work_in(tmp_path / "stopped"))
    assert set(kept) == set(stopped)
    for name in stopped:
        torch.testing.assert_close(kept.delta(name), -0.5 * stopped.delta(name))


def test_a_subset_smaller_than_the_probe_is_measured_whole(base, tmp_path):
    work = work_in(tmp_path)
    method = GradientDifference(probe_every=1, probe_rows=8, batch_size=5, learning_rate=1e-9)
    method.unlearn(base, answers(5), answers(12, seed=9), work)
    (line,) = (json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines())
    assert line["probe_forget"] == pytest.approx(-line["forget"], rel=1e-4)


def test_a_plan_knows_that_the_retain_set_is_missing(base, tmp_path):
    for method in (GradientDifference(), CircuitBreaker(), GradientDifference(alpha=0, probe_every=1)):
        with pytest.raises(DataError, match="needs a retain set"):
            method.forecast(base, texts(), None, work_in(tmp_path))
    GradientDifference(alpha=0).forecast(base, texts(), None, work_in(tmp_path))
    GradientDifference().forecast(base, texts(), texts(), work_in(tmp_path))


def test_a_probed_run_resumes(base, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", 0)
    method = GradientDifference(
        epochs=4, batch_size=5, probe_rows=3, probe_every=1, utility_floor=0.3, learning_rate=1e-2, schedule="constant"
    )
    given = (answers(10), answers(10, seed=9))
    expected = method.unlearn(base, *given, work_in(tmp_path / "unbroken"))

    class Killed(Exception):
        pass

    def kill(what, done, total, /, **figures):
        if done == 5:
            raise Killed

    work = work_in(tmp_path / "broken")
    with pytest.raises(Killed):
        method.unlearn(base, *given, Work(work.resident, work.output, work.scratch, progress=kill))
    resumed = method.unlearn(base, *given, work)
    assert all(torch.equal(resumed.delta(name), expected.delta(name)) for name in expected)


def test_fine_tuning_writes_a_checkpoint_that_has_learnt(base, tmp_path):
    given = answers(6)
    work = work_in(tmp_path)
    out = finetune(Tuning(lora=None, learning_rate=1e-2, epochs=30), base, given, tmp_path / "tuned", work)
    rows = encode(given, base.load_tokenizer(), max_length=64)
    batch = collate(rows, range(6), pad=0, device="cpu")
    found = {}
    for name, directory in (("base", base.id), ("tuned", out)):
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][batch.counted[:, 1:]]
        found[name] = float(losses.cross_entropy(logits, batch.labels))
    assert found["tuned"] < 0.5 < 3 < found["base"]
    with pytest.raises(ArtifactError, match="tuned: exists already"):
        finetune(Tuning(), base, given, out, work)


def test_no_text_is_long_enough(tokenizer, monkeypatch):
    with pytest.raises(DataError, match="no text has two tokens"):
        encode(corpus(text=[WORDS[0]], **{MAX_LENGTH: [1]}), tokenizer, max_length=4)


_SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from training_models import texts
from spunge.training import checkpointing
from spunge.interfaces import Work
from spunge.weights.language_model import LanguageModel, Resident
from spunge.unlearners.task_vector_negation import TaskVectorNegation
checkpointing.SAVE_SECONDS = 0
root = Path(sys.argv[1])

def slowly(what, done, total, /, **figures):
    print(done, flush=True)
    time.sleep(0.02)

method = TaskVectorNegation(epochs=20, batch_size=2, learning_rate=1e-3)
work = Work(Resident(), root / "output", root / "scratch", seed=3, progress=slowly)
method.unlearn(LanguageModel(id=sys.argv[2]), texts(), None, work).save(root / "tau")
"""


@pytest.mark.long
def test_kill_9_and_resume_gives_the_same_bytes(base, tmp_path):
    def start(root):
        command = [sys.executable, "-c", _SCRIPT, str(root), base.id, str(Path(__file__).parent.parent)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    unbroken = start(tmp_path / "unbroken")
    assert unbroken.communicate()[0].split() == [str(step) for step in range(1, 101)]
    draw = torch.Generator().manual_seed(time.time_ns() % 2**31)
    resumed_at = []
    for stop in sorted(torch.randint(5, 90, (3,), generator=draw).tolist()):
        process = start(tmp_path / "broken")
        assert process.stdout is not None
        for line in process.stdout:
            if not resumed_at or int(line) > resumed_at[-1]:
                resumed_at.append(int(line))
            if int(line) >= stop:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
    last = start(tmp_path / "broken")
    steps = last.communicate()[0].split()
    assert int(steps[0]) > 1
    for name in ("tau/task_vector.safetensors", "output/metrics.jsonl"):
        assert (tmp_path / "unbroken" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
