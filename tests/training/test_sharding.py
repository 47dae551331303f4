"""Two gloo processes on the CPU, started by torchrun, against one process: the same result, the same refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_models import answers, save_model, texts

from spunge.errors import RecipeError
from spunge.training import sharding
from spunge.training.settings import Tuning
from spunge.weights.task_vector import TaskVector

_SCRIPT = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from spunge.recipe import reading
from spunge.run import standalone
from spunge.rows.sources import Source
from spunge.training import sharding
from spunge.unlearners import AnyUnlearner
model, forget, retain, out, settings = sys.argv[1:]
with sharding.launched("cpu"):
    for name, given in json.loads(settings).items():
        unlearner = reading.validate(AnyUnlearner, given, "unlearn")
        step = standalone.Step(model, Path(out) / name, seed=1, device="cpu")
        standalone.unlearn(step, unlearner, {"": [Source(path=forget)]}, [Source(path=retain)])
"""
SETTINGS = {
    "lora": {"method": "npo", "lora": {"rank": 4, "dropout": 0}, "retain_loss": "kl", "learning_rate": 1e-2},
    "sago": {"method": "gradient_difference", "lora": {"dropout": 0}, "combine": "sago", "learning_rate": 1e-2},
    "full": {"method": "gradient_difference", "lora": None, "retain_loss": "kl", "learning_rate": 1e-3,
             "combine": "pcgrad", "probe_every": 2, "probe_rows": 3, "utility_floor": 0.001},
    "some": {"method": "task_vector_negation", "lora": None, "parameters": ["mlp.down_proj"], "learning_rate": 1e-3,
             "gradient_checkpointing": True, "accumulation": 2},
}  # fmt: skip


def start(folder: Path, script: str, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    (folder / "script.py").write_text(script)
    return subprocess.run(
        [*command, str(folder / "script.py"), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.long
@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_learn_what_one_does(tmp_path, tied):
    base = save_model(tmp_path / "model", tied=tied)
    answers(10).rows.write_ndjson(tmp_path / "forget.jsonl")
    answers(9, seed=5).rows.write_ndjson(tmp_path / "retain.jsonl")
    given = {name: {"batch_size": 4, "epochs": 2, **settings} for name, settings in SETTINGS.items()}
    data = [str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl")]
    for out, processes in (("one", 1), ("two", 2)):
        done = start(tmp_path, _SCRIPT, base.id, *data, str(tmp_path / out), json.dumps(given), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in given:
        one, two = (TaskVector.load(tmp_path / out / name) for out in ("one", "two"))
        assert set(one) == set(two)
        for tensor in one:
            # Adam's first steps have the size of the rate whatever the gradient's, so noise about zero shows there.
            close = torch.isclose(one.delta(tensor), two.delta(tensor), rtol=1e-3, atol=1e-5)
            assert close.float().mean() > 0.995, (name, tensor)
        assert two.norm == pytest.approx(one.norm, rel=1e-3)
        lines = [
            [json.loads(line) for line in (tmp_path / out / name / "metrics.jsonl").read_text().splitlines()]
            for out in ("one", "two")
        ]
        for here, there in zip(*lines, strict=True):
            assert here == pytest.approx(there, rel=1e-3, abs=1e-5)


_REFUSED = """
import sys
from spunge.cli import commands as cli
sys.argv = ["spunge", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.long
def test_what_cannot_be_shared_out_is_refused_by_name(tmp_path):
    base = save_model(tmp_path / "model")
    texts(10).rows.write_ndjson(tmp_path / "forget.jsonl")
    shared = ["unlearn", "--model", base.id, "--forget", str(tmp_path / "forget.jsonl"), "--device", "cpu"]
    for words, message in (
        (["--method", "gradient_ascent", "batch_size=3"], "3 rows cannot be shared out equally among 2 processes"),
        (["--method", "npo", "alpha=0", "quantize=nf4"], "weights in 4 bits are not cut into pieces for 2 processes"),
        (["--method", "rmu", "layer=1"], "rmu runs in one process: start it without torchrun"),
    ):
        done = start(tmp_path, _REFUSED, *shared, *words, "--out", str(tmp_path / "out"))
        assert done.returncode != 0
        assert done.stderr.count(message) == 1, done.stderr[-3000:]
        assert not (tmp_path / "out").exists()


def test_one_process_shares_with_nobody():
    assert (sharding.rank(), sharding.size()) == (0, 1)
    assert sharding.share([3, 1, 2]) == ([3, 1, 2], True)
    value = torch.ones(2)
    assert sharding.whole(value) is value
    assert sharding.piece(value, value) is value
    assert float(sharding.total(2.5)) == 2.5
    assert sharding.agreed(True, "cpu")
    sharding.check(Tuning(batch_size=3))


def test_weights_in_4_bits_are_not_shared(monkeypatch):
    quantized = Tuning(quantize="nf4")
    sharding.check(quantized)
    monkeypatch.setattr(sharding, "size", lambda: 2)
    sharding.check(Tuning())
    with pytest.raises(RecipeError, match="quantize: weights in 4 bits are not cut into pieces for 2 processes; leave"):
        sharding.check(quantized)
    with pytest.raises(RecipeError, match="batch_size: 3 rows cannot be shared out equally among 2 processes"):
        sharding.check(Tuning(batch_size=3))


def test_every_row_is_taken_once_whatever_the_number_of_processes(monkeypatch):
    for size in (2, 3, 4):
        taken = []
        for rank in range(size):
            monkeypatch.setattr(sharding, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(sharding, "size", lambda size=size: size)
            own, counts = sharding.share([7, 5])
            assert own
            taken += own if counts else []
        assert sorted(taken) == [5, 7]
