"""k adapters at once are k separate runs: the same deltas, the same metrics, resumed and stored one by one."""

import json
import math
from typing import Any

import pytest
import torch
from training_models import save_model, texts, work_in

from spunge.errors import TrainingDiverged
from spunge.interfaces import Work
from spunge.run.executors.local import Local, Slot
from spunge.run.stages import Base, Unlearn
from spunge.run.store import Store
from spunge.training import losses, state
from spunge.training.goals import learn
from spunge.training.settings import Lora
from spunge.training.together import learn_together
from spunge.unlearners.task_vector_negation import TaskVectorNegation
from spunge.weights.language_model import Resident
from spunge.weights.task_vector import TaskVector

LORA = Lora(rank=4, dropout=0)
CORPORA = [texts(count, seed=count) for count in (10, 7, 3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one.delta(name), other.delta(name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulation": 2, "epochs": 3, "batch_size": 2}, {"gradient_checkpointing": True, "clip_norm": 0.1}],
)
def test_adapters_trained_at_once_equal_those_trained_apart(tmp_path, kind, options):
    base = save_model(tmp_path / "model", kind)
    settings = TaskVectorNegation(lora=LORA, learning_rate=1e-2, **options)
    resident = Resident()
    works = [work_in(tmp_path / f"together{seed}", seed=seed, resident=resident) for seed in range(3)]
    before = {name: value.clone() for name, value in resident.base(base)[0].named_parameters()}
    found = learn_together(settings, base, CORPORA, works)
    for name, value in resident.base(base)[0].named_parameters():
        assert torch.equal(value, before[name])
    for seed, corpus in enumerate(CORPORA):
        work = work_in(tmp_path / f"apart{seed}", seed=seed, resident=resident)
        alone = learn(settings, base, corpus, work)
        assert alone.norm > 0.1
        same(found[seed], alone)
        assert found[seed].provenance == alone.provenance
        lines = [
            [json.loads(line) for line in (each.output / "metrics.jsonl").read_text().splitlines()]
            for each in (works[seed], work)
        ]
        for here, there in zip(*lines, strict=True):
            assert here == pytest.approx(there, rel=1e-3, abs=1e-6)


def test_runs_that_were_killed_at_different_steps_go_on_together(base, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SAVE_SECONDS", 0)
    settings = TaskVectorNegation(lora=LORA, learning_rate=1e-2, epochs=2)
    expected = learn_together(
        settings, base, CORPORA[:2], [work_in(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    )

    class Killed(Exception):
        pass

    def kill(what, done, total, /, **figures):
        if done == 2:
            raise Killed

    works = [work_in(tmp_path / f"broken{seed}", seed=seed) for seed in (0, 1)]
    second = Work(works[1].resident, works[1].output, works[1].scratch, seed=1, progress=kill)
    with pytest.raises(Killed):
        learn_together(settings, base, CORPORA[:2], [works[0], second])
    again = learn_together(settings, base, CORPORA[:2], works)
    for one, other in zip(again, expected, strict=True):
        assert all(torch.equal(one.delta(name), other.delta(name)) for name in other)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_missing_subsets_are_unlearned_in_one_go_and_kept_one_by_one(base, tmp_path, monkeypatch, jobs):
    method = TaskVectorNegation(lora=LORA, learning_rate=1e-2)
    tasks = [
        Unlearn("subset", f"subset:{number}", Base(base), method, corpus, None, 0)
        for number, corpus in enumerate(CORPORA)
    ]
    assert len({task.group for task in tasks}) == 1
    with Local(Store(tmp_path), [Slot()] * jobs) as executor:
        first = executor.run(tasks[:2])
        everything = executor.run(tasks)
    assert [artifact.reused for artifact in everything] == [True, True, False]
    assert [artifact.key for artifact in everything[:2]] == [artifact.key for artifact in first]
    assert [artifact.manifest.get("together") for artifact in everything] == [2, 2, None]
    apart = TaskVectorNegation(lora=LORA, learning_rate=1e-2, together=False)
    for task, artifact in zip(tasks, everything, strict=True):
        alone = Unlearn(task.kind, task.name, task.base, apart, task.forget, None, 0)
        assert alone.group is None
        with Local(Store(tmp_path)) as executor:
            (found,) = executor.run([alone])
        assert found.key != artifact.key
        same(TaskVector.load(artifact.path), TaskVector.load(found.path))


def test_a_subset_that_another_process_made_meanwhile_is_taken(base, tmp_path, monkeypatch):
    method = TaskVectorNegation(lora=LORA)
    tasks = [
        Unlearn("subset", f"s{number}", Base(base), method, corpus, None, 0) for number, corpus in enumerate(CORPORA)
    ]
    store = Store(tmp_path)
    with Local(store) as executor:
        (made,) = executor.run(tasks[1:2])
        real, calls = Store.find, []

        def blind(self, stage, inputs):  # sees nothing when the work is shared out, and everything afterwards
            calls.append(1)
            return None if len(calls) <= len(tasks) else real(self, stage, inputs)

        monkeypatch.setattr(Store, "find", blind)
        found = executor.run(tasks)
    assert found[1].key == made.key
    assert [artifact.manifest.get("together") for artifact in found] == [2, None, 2]


def test_what_is_trained_together():
    short, long = texts(4), texts(4, shortest=400, longest=500)
    assert TaskVectorNegation(lora=LORA).joins(short)
    assert not TaskVectorNegation(lora=LORA).joins(long)
    assert TaskVectorNegation(lora=LORA, together=True).joins(long)
    assert not TaskVectorNegation(lora=LORA, together=False).joins(short)
    assert not TaskVectorNegation(lora=Lora(dropout=0.1)).joins(short)
    assert not TaskVectorNegation(lora=None).joins(short)
    wrong: list[dict[str, Any]] = [{"lora": Lora(dropout=0.1)}, {"lora": None}]
    for settings in wrong:
        with pytest.raises(ValueError, match="together: needs a LoRA with dropout 0"):
            TaskVectorNegation(together=True, **settings)


def test_of_runs_that_end_because_one_diverges_that_one_is_kept(base, tmp_path, monkeypatch):
    settings = TaskVectorNegation(lora=LORA, learning_rate=1e-2, batch_size=2, schedule="constant")
    works = [work_in(tmp_path / f"run{place}") for place in range(2)]
    honest = losses.sequence_log_probs
    calls = []

    def third_is_nan_in_the_second_run(logits, labels):
        calls.append(1)
        spoiled = torch.ones(len(logits))
        spoiled[2:] = math.nan if len(calls) == 3 else 1.0
        return honest(logits, labels) * spoiled

    monkeypatch.setattr(losses, "sequence_log_probs", third_is_nan_in_the_second_run)
    with pytest.raises(TrainingDiverged, match=r"step 3 of 4: .* step 2, .* kept in .*run1/scratch/last_good"):
        learn_together(settings, base, CORPORA[:2], works)
    kept = TaskVector.load(works[1].scratch / "last_good")
    monkeypatch.undo()
    stopped = settings.model_copy(update={"max_steps": 2})
    expected = learn(stopped, base, CORPORA[1], work_in(tmp_path / "apart")).scaled(-1)
    assert expected.norm > 0
    same(kept, expected)
