"""The engine under RMU: truncated models, batches, cached states, losses."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steering_models import ARCHITECTURES, make_corpus, make_model, make_texts, make_tokenizer, make_work
from transformers import AutoConfig

from spunge.errors import DataError, ModelError
from spunge.rows.sources import MAX_LENGTH, Corpus
from spunge.steering.batches import pad, tokenise
from spunge.steering.cache import StateCache
from spunge.steering.loop import direction, mean_cosine, mean_squared_difference
from spunge.steering.optimisers import AdamWEpsilonOutside
from spunge.steering.truncated import choose_parameters, load_truncated
from spunge.unlearners.rmu import RMU
from spunge.weights.checkpoint import INDEX
from spunge.weights.language_model import LanguageModel

PROJECTIONS = {
    "gpt_neox": "mlp.dense_4h_to_h.weight",
    "gpt_neo": "mlp.c_proj.weight",
    "gpt2": "mlp.c_proj.weight",
    "mixtral": "mlp.experts.down_proj",
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_truncated_model_gives_the_full_models_hidden_states(tmp_path: Path, kind: str) -> None:
    base = make_model(tmp_path, kind)
    batch = pad(tokenise(make_tokenizer(), Corpus(pl.DataFrame({"text": make_texts(3, 1)})), 32, "forget"), 0, 1, "all")
    with torch.no_grad():
        full = base.load()(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    model = load_truncated(base, 4, device="cpu", dtype=None)
    assert len(model.layers) == 4
    for start in range(4):
        hidden, calls = model.enter(batch.ids, batch.mask, start)
        assert torch.equal(hidden, full.hidden_states[start])
        assert torch.equal(model.run(hidden, calls, start), full.hidden_states[4])
        again, calls = model.enter(batch.ids, batch.mask, start, hidden)
        assert torch.equal(model.run(again, calls, start), full.hidden_states[4])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_mlps_output_projection_is_found_without_reading_weights(tmp_path: Path, kind: str) -> None:
    base = make_model(tmp_path, kind)
    (tmp_path / "model.safetensors").unlink()
    expected = PROJECTIONS.get(kind, "mlp.down_proj.weight")
    assert choose_parameters(base, (1, 3), 4, "auto") == {1: [expected], 3: [expected]}


def test_only_the_first_layers_are_read(tmp_path: Path) -> None:
    base = make_model(tmp_path, tie_word_embeddings=False)
    places = base.checkpoint().tensors
    unread = [name for name in places if "lm_head" in name or any(f"layers.{n}." in name for n in (3, 4, 5))]
    assert len(unread) == 1 + 3 * 9
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        for name in unread:
            stream.seek(places[name].start)
            stream.write(b"\xff" * (places[name].stop - places[name].start))  # not a number
    model = load_truncated(base, 3, device="cpu", dtype=None)
    assert all(parameter.isfinite().all() for parameter in model.decoder.parameters())


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that holds a model in shards as `someone/model`; returns what is fetched from it, in order."""
    base, remote, cache = make_model(tmp_path / "whole"), tmp_path / "remote", tmp_path / "cache"
    base.load().save_pretrained(remote, max_shard_size="20KB")
    make_tokenizer().save_pretrained(remote)
    files: list[str] = []

    def snapshot_download(_id: str, *, allow_patterns: list[str], **_: object) -> str:
        cache.mkdir(exist_ok=True)
        for file in remote.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns) and not (cache / file.name).exists():
                (cache / file.name).write_bytes(file.read_bytes())
                files.append(file.name)
        return str(cache)

    def model_info(_self: object, _id: str, **_: object) -> SimpleNamespace:
        shards = [
            SimpleNamespace(
                rfilename=file.name, lfs=SimpleNamespace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
            )
            for file in remote.glob("*.safetensors")
        ]
        return SimpleNamespace(siblings=[*shards, SimpleNamespace(rfilename="config.json", lfs=None)])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return files


def test_only_the_shards_that_are_needed_are_fetched(tmp_path: Path, fetched: list[str]) -> None:
    base, local = LanguageModel(id="someone/model"), LanguageModel(id=str(tmp_path / "remote"))
    needed = {
        shard
        for name, shard in json.loads((tmp_path / "remote" / INDEX).read_text())["weight_map"].items()
        if "lm_head" not in name and not re.search(r"layers\.[345]\.", name)
    }
    forget, retain = make_corpus(4, 0), make_corpus(4, 1)
    settings = RMU(layer=2, alpha=1.0, batch_size=4)
    settings.forecast(base, forget, retain, make_work(tmp_path / "plan"))
    assert base.digest() == local.digest()
    assert not [file for file in fetched if file.endswith(".safetensors")]
    vector = settings.unlearn(base, forget, retain, make_work(tmp_path / "hub"))
    expected = settings.unlearn(local, forget, retain, make_work(tmp_path / "local"))
    assert {file for file in fetched if file.endswith(".safetensors")} == needed
    assert len(needed) < len(list((tmp_path / "remote").glob("*.safetensors")))
    assert all(torch.equal(vector.delta(name), expected.delta(name)) for name in expected)
    base.load()
    assert set(fetched) == {file.name for file in (tmp_path / "remote").iterdir()}


def test_a_model_that_changes_on_the_hub_is_not_mixed(
    tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = huggingface_hub.snapshot_download
    other = tmp_path / "other"
    other.mkdir()

    def snapshot_download(name: str, *, allow_patterns: list[str], **options: object) -> str:
        weights = any("safetensors" in pattern for pattern in allow_patterns)
        return str(other) if weights else first(name, allow_patterns=allow_patterns, **options)  # pyright: ignore

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match="someone/model: it changed on the hub meanwhile"):
        load_truncated(LanguageModel(id="someone/model"), 3, device="cpu", dtype=None)
    assert fetched


def test_parameters_are_chosen_by_name(tmp_path: Path) -> None:
    base = make_model(tmp_path, "gpt2")
    assert choose_parameters(base, (0,), 2, ["attn.c_proj", "mlp.c_fc"]) == {
        0: ["attn.c_proj.weight", "mlp.c_fc.weight"]
    }
    assert choose_parameters(base, (0,), 2, ["c_proj.bias"]) == {0: ["attn.c_proj.bias", "mlp.c_proj.bias"]}
    with pytest.raises(
        ModelError, match=r"nothing matches \['down_proj'\] in layer 0; it has attn.c_attn, attn.c_proj, ml"
    ):
        choose_parameters(base, (0,), 2, ["down_proj"])


def test_a_model_that_is_no_decoder_is_refused_by_name(tmp_path: Path) -> None:
    for kind, name in (("t5", "T5"), ("bart", "Bart")):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        base = make_model(tmp_path / "other").model_copy(update={"id": str(tmp_path / kind)})
        with pytest.raises(ModelError, match=name):
            choose_parameters(base, (0,), 1, "auto")


def test_a_layer_beyond_the_model_is_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no layer 6: the model has 6 layers, 0…5"):
        choose_parameters(make_model(tmp_path), (6,), 7, "auto")


def test_a_checkpoint_without_a_layer_it_promises_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(ModelError, match="the checkpoint lacks"):
        load_truncated(base, 8, device="cpu", dtype=None)


@given(rows=st.integers(1, 5), seed=st.integers(0, 99), limit=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_batches_are_those_of_the_tokenizer_itself(rows: int, seed: int, limit: int) -> None:
    texts, tokenizer = make_texts(rows, seed), make_tokenizer()
    batch = pad(tokenise(tokenizer, Corpus(pl.DataFrame({"text": texts})), limit, "forget"), 0, 1, "non_pad")
    tokenizer.padding_side = "left"
    expected = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=limit)
    assert torch.equal(batch.ids, expected["input_ids"])
    assert torch.equal(batch.mask, expected["attention_mask"])
    assert torch.equal(batch.counted, expected["attention_mask"].bool())


def test_a_source_sets_its_own_limit() -> None:
    corpus = Corpus(pl.DataFrame({"text": ["w1 w2 w3 w4"] * 3, MAX_LENGTH: [2, None, 3]}))
    assert [len(row) for row in tokenise(make_tokenizer(), corpus, 4, "forget")] == [2, 4, 3]


def test_a_row_without_tokens_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match="row 2 of the retain set has no tokens"):
        tokenise(tokenizer, Corpus(pl.DataFrame({"text": ["w1", "\u200b \n".replace("\u200b", "")]})), 4, "retain")


def test_loss_masks() -> None:
    rows = [[1, 5, 6], [1, 1], [7]]
    counts = {mask: pad(rows, 0, 1, mask).counted.int().tolist() for mask in ("all", "non_pad", "non_pad_non_bos")}
    assert counts["all"] == [[1, 1, 1]] * 3
    assert counts["non_pad"] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert counts["non_pad_non_bos"] == [[0, 1, 1], [0, 0, 1], [0, 0, 1]]


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["float32", "model"]))
@settings(max_examples=25, deadline=None)
def test_losses_are_their_formulas(seed: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, target = torch.randn(2, 3, 4, 5, generator=generator)[:, :, :, :]
    counted = torch.rand(3, 4, generator=generator) < 0.6
    counted[0, 0] = True
    squares, cosines = [], []
    for row in range(3):
        for token in range(4):
            if counted[row, token]:
                h, t = hidden[row, token].tolist(), target[row, token].tolist()
                squares.append(sum((a - b) ** 2 for a, b in zip(h, t, strict=True)) / 5)
                cosines.append(sum(a * b for a, b in zip(h, t, strict=True)) / math.hypot(*h) / math.hypot(*t))
    loss = mean_squared_difference(hidden, target, counted, dtype)
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert mean_cosine(hidden, target, counted).item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_directions_are_of_length_one_and_belong_to_a_topic() -> None:
    own, shared = RMU(), RMU(control="shared")
    u = direction(own, 64, 0, "bio")
    assert u.norm().item() == pytest.approx(1)
    assert u.min() >= 0
    assert torch.equal(u, direction(own, 64, 0, "bio"))
    assert not torch.equal(u, direction(own, 64, 0, "cyber"))
    assert not torch.equal(u, direction(own, 64, 1, "bio"))
    assert torch.equal(direction(shared, 64, 0, "bio"), direction(shared, 64, 1, "cyber"))
    assert not torch.equal(
        direction(shared, 64, 0, "bio"), direction(RMU(control="shared", control_seed=1), 64, 0, "bio")
    )


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), budget=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_a_state_is_the_same_from_memory_and_from_the_map(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], budget: int
) -> None:
    cache, scratch = StateCache(budget), tmp_path_factory.mktemp("scratch")
    for dtype in (torch.float32, torch.bfloat16):
        state = torch.randn(shape).to(dtype)
        assert torch.equal(cache.get(dtype, state.clone, scratch), state)
        assert torch.equal(cache.get(dtype, lambda: pytest.fail("built twice"), scratch), state)
    assert cache.in_memory <= budget
    assert not list(scratch.iterdir())


def test_mapped_states_keep_no_file_open(tmp_path: Path) -> None:
    cache, open_files = StateCache(0), Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("only Linux tells which files are open")
    before = len(list(open_files.iterdir()))
    for key in range(50):
        cache.get(key, lambda: torch.ones(3), tmp_path)
    assert cache.in_memory == 0
    assert len(list(open_files.iterdir())) < before + 50


def test_without_room_for_them_states_are_computed_anew(tmp_path: Path) -> None:
    cache, built = StateCache(0), []
    with pytest.warns(RuntimeWarning, match="computed anew"):
        cache.get("key", lambda: torch.ones(1), tmp_path / "vanished")
    cache.get("key", lambda: built.append(1) or torch.ones(1), tmp_path / "vanished")
    assert built


def test_the_references_optimiser_is_torchs_with_a_growing_epsilon() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.zeros(50, requires_grad=True) for _ in range(2))
    optimiser = AdamWEpsilonOutside([mine], lr=0.01)
    torchs = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    for step in range(1, 20):
        gradient = torch.randn(50, generator=generator) * 1e-5
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        torchs.param_groups[0]["eps"] = 1e-6 / math.sqrt(1 - 0.999**step)
        optimiser.step()
        torchs.step()
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)
