"""Merging from files into files: task vectors, adapters and checkpoints of one base, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spunge import merging
from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError, SpungeError
from spunge.mergers import Dare, Della, Linear, TaskArithmetic, Ties, Wudi
from spunge.merging import AsAdapter, AsCheckpoint, AsTaskVector, Options, job
from spunge.run import standalone
from spunge.weights import adapter
from spunge.weights.checkpoint import Checkpoint, export
from spunge.weights.safetensors_files import create
from spunge.weights.task_vector import FILE, LowRank, TaskVector, write_manifest

SHAPES = {
    "model.embed.weight": (20, 8),
    "model.layers.0.up.weight": (40, 8),
    "model.layers.0.down.weight": (8, 40),
    "model.layers.1.up.weight": (40, 8),
    "model.norm.weight": (8,),
}
DOWN, UP = "model.layers.0.down.weight", "model.layers.1.up.weight"


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * size for name, shape in shapes.items()}


def make_base(directory: Path, dtype: torch.dtype = torch.bfloat16, *, sharded: bool = False) -> Checkpoint:
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(SHAPES, 0).items()}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if sharded:
        names = list(tensors)
        shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
        for file, listed in shards.items():
            save_file({name: tensors[name] for name in listed}, directory / file, metadata={"format": "pt"})
        weight_map = {name: file for file, listed in shards.items() for name in listed}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(directory)


def weights_of(directory: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(directory)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def made_from(base: Checkpoint, entries: Mapping[str, Any], scale: float = 1.0) -> TaskVector:
    tensors = {name: base.digest(name) for name in entries}
    return TaskVector(entries, scale, {"method": "test", "base": {"id": "base", "revision": None, "tensors": tensors}})


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return make_base(tmp_path / "base")


@pytest.fixture
def vectors(tmp_path: Path, base: Checkpoint) -> dict[str, Path]:
    """Two task vectors on disk that change one matrix both, and another each."""
    found = {}
    for index, name in enumerate(("bio", "cyber")):
        shapes = {DOWN: SHAPES[DOWN], list(SHAPES)[index]: SHAPES[list(SHAPES)[index]]}
        found[name] = made_from(base, random_tensors(shapes, index + 1, 0.1)).save(tmp_path / "vectors" / name)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
def test_a_checkpoint_is_base_plus_merged_delta_rounded_once(tmp_path, dtype, sharded):
    base = make_base(tmp_path / "base", dtype, sharded=sharded)
    variants = {f"v{i}": made_from(base, random_tensors(SHAPES, i, 0.1)) for i in (1, 2, 3)}
    merged = merging.merge(Ties(lambda_=0.5), variants).task_vector  # pyright: ignore[reportCallIssue]
    diagnostics = merging.write(Ties(lambda_=0.5), variants, tmp_path / "out", base=base, options=Options(block=50))  # pyright: ignore
    before, after = weights_of(tmp_path / "base"), weights_of(tmp_path / "out")
    for name, weight in before.items():
        assert torch.equal(after[name], (weight.float() + merged.delta(name)).to(dtype))
        assert torch.equal(after[name], base.changed(merged, name))
    names = {file.name for file in (tmp_path / "base").iterdir()} | {"spunge.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    lost = sum(float((after[n].float() - before[n].float() - merged.delta(n)).square().sum()) for n in after)
    assert diagnostics["rounding"] == pytest.approx(lost / merged.norm**2, rel=1e-3)
    assert merging.lost_to_rounding(merged, base) == pytest.approx(diagnostics["rounding"], rel=1e-5)


def test_untouched_bytes_are_copied(tmp_path, base, vectors):
    merging.write(Ties(), vectors, tmp_path / "out", base=base)
    before, after = weights_of(base.directory), weights_of(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {DOWN, *list(SHAPES)[:2]}
    assert (tmp_path / "out/config.json").read_text() == (base.directory / "config.json").read_text()


def test_a_task_vector_on_disk_equals_the_one_in_memory(tmp_path, base, vectors):
    merging.write(Ties(), vectors, tmp_path / "out", base=base, form=AsTaskVector(), options=Options(block=33))
    written = TaskVector.load(tmp_path / "out")
    loaded = {name: TaskVector.load(path) for name, path in vectors.items()}
    merged = merging.merge(Ties(), loaded, base=base).task_vector
    assert set(written) == set(merged)
    assert all(torch.equal(written.delta(name), merged.delta(name)) for name in merged)
    assert written.provenance["method"] == "ties"
    assert written.provenance["settings"]["density"] == 0.2
    assert written.provenance["base"]["tensors"] == {name: base.digest(name) for name in merged}
    assert set(written.provenance["variants"]) == {"bio", "cyber"}
    assert written.provenance["diagnostics"]["overall"]["coverage"].keys() == {"bio", "cyber"}


def test_the_same_merge_writes_the_same_bytes(tmp_path, base, vectors):
    for out, block in (("one", 10), ("two", 1000)):
        merging.write(
            Ties(),
            vectors,
            tmp_path / out,
            base=base,
            form=AsTaskVector(),
            options=Options(block=block),
        )
    files = [tmp_path / out / "task_vector.safetensors" for out in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_too_large_to_be_held_give_the_same(tmp_path, dtype, monkeypatch):
    """Small tensors are read once for both passes, as checkpoints and as task vectors; others twice."""
    base = make_base(tmp_path / "base", dtype)
    vectors = [made_from(base, random_tensors({DOWN: SHAPES[DOWN], UP: SHAPES[UP]}, seed)) for seed in (1, 2)]
    variants: dict[str, str | Path] = {"checkpoint": export(base.directory, vectors[0], tmp_path / "checkpoint")}
    variants["vector"] = tmp_path / "vector"
    vectors[1].save(tmp_path / "vector")
    opened = {name: merging.open_variant(path, base) for name, path in variants.items()}
    merged = []
    for held in (0, 8 * 40 * dtype.itemsize * 2, 1 << 20):  # nothing, the checkpoint's tensors alone, all
        monkeypatch.setattr(job, "HELD", held)
        merging.write(Ties(), opened, tmp_path / str(held), base=base, options=Options(block=33))
        merged.append((tmp_path / str(held) / "model.safetensors").read_bytes())
    assert merged[0] == merged[1] == merged[2] != (base.directory / "model.safetensors").read_bytes()


def test_beside_a_single_file_an_index_is_not_read(tmp_path, base):
    """transformers loads the single file where both are; what is merged must be what is loaded."""
    (base.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "old.safetensors"}}))
    assert set(Checkpoint.open(base.directory).tensors) == set(SHAPES)


def test_written_files_are_plain_safetensors(tmp_path, base, vectors):
    merging.write(Ties(), vectors, tmp_path / "out", base=base, form=AsTaskVector())
    loaded = load_file(tmp_path / "out/task_vector.safetensors")
    assert set(loaded) == {DOWN, *list(SHAPES)[:2]}
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


def test_checkpoints_of_the_base_are_variants(tmp_path, base, vectors):
    """A checkpoint's delta is what is left of it after rounding: variant minus base, only where they differ."""
    for name, path in vectors.items():
        export(base.directory, TaskVector.load(path), tmp_path / "models" / name)
    paths = [tmp_path / "models" / name for name in vectors]
    opened = merging.open_variants(paths, base)
    assert {name: set(variant) for name, variant in opened.items()} == {
        name: set(TaskVector.load(path)) for name, path in vectors.items()
    }
    differences = {
        path.name: TaskVector(
            {n: Checkpoint.open(path).read(n).float() - base.read(n).float() for n in opened[path.name]}
        )
        for path in paths
    }
    merged = merging.merge(Ties(), opened, options=Options(block=33)).task_vector
    wanted = merging.merge(Ties(), differences).task_vector
    assert all(torch.equal(merged.delta(name), wanted.delta(name)) for name in SHAPES if name in wanted)


def low_rank(seed: int, shape: tuple[int, ...], rank: int = 2, scaling: float = 0.5) -> LowRank:
    out, inner = shape
    factors = random_tensors({"A": (rank, inner), "B": (out, rank)}, seed)
    return LowRank(factors["A"], factors["B"], scaling)


def test_low_rank_deltas_are_merged_as_what_they_change(tmp_path, base):
    variants = {f"v{i}": TaskVector({n: low_rank(i, SHAPES[n]) for n in (DOWN, UP)}, -0.3) for i in range(3)}
    dense = {v: TaskVector({n: e.dense() for n, e in tv.entries.items()}, -0.3) for v, tv in variants.items()}  # pyright: ignore
    for block in (1, 7, 100, 10_000):
        merged = merging.merge(Ties(), variants, options=Options(block=block)).task_vector
        wanted = merging.merge(Ties(), dense, options=Options(block=block)).task_vector
        assert all(torch.equal(merged.delta(name), wanted.delta(name)) for name in wanted)


def test_dense_and_low_rank_and_checkpoints_mix(tmp_path, base, vectors):
    export(base.directory, TaskVector.load(vectors["bio"]), tmp_path / "checkpoint")
    variants = {
        "checkpoint": merging.open_variant(tmp_path / "checkpoint", base),
        "low": TaskVector({DOWN: low_rank(0, SHAPES[DOWN])}),
        "vector": merging.open_variant(vectors["cyber"], base),
    }
    dense = {n: TaskVector({k: v.delta(k) for k in v}) for n, v in variants.items()}
    merged, wanted = merging.merge(Ties(), variants).task_vector, merging.merge(Ties(), dense).task_vector
    assert all(torch.equal(merged.delta(name), wanted.delta(name)) for name in wanted)


@pytest.mark.parametrize(
    "merger",
    [Linear(weights={"v1": 3}), TaskArithmetic(lambda_=-0.5), TaskArithmetic(layer_scaling=(0.5, 2))],  # pyright: ignore[reportCallIssue]
)
def test_a_linear_merge_of_low_rank_deltas_is_an_exact_adapter(tmp_path, base, merger):
    variants = {
        "v0": TaskVector({DOWN: low_rank(0, SHAPES[DOWN]), UP: low_rank(1, SHAPES[UP], rank=3)}),
        "v1": TaskVector({DOWN: low_rank(2, SHAPES[DOWN], scaling=2.0)}, -0.7),
    }
    found = merging.write(merger, variants, tmp_path / "out", base=base, form=AsAdapter())
    assert (found["exact"], found["energy"]) == (True, 1.0)
    read = merging.open_variant(tmp_path / "out", base)
    merged = merging.merge(merger, variants, base=base).task_vector
    for name, rank in ((DOWN, 4), (UP, 3)):
        entry = read.entries[name]
        assert isinstance(entry, LowRank)
        assert len(entry.A) == rank
        assert torch.allclose(read.delta(name), merged.delta(name), atol=1e-5)


def test_any_other_merge_becomes_the_nearest_adapter(tmp_path, base):
    variants = {f"v{i}": TaskVector({DOWN: low_rank(i, SHAPES[DOWN])}) for i in range(3)}
    found = merging.write(Ties(), variants, tmp_path / "out", base=base, form=AsAdapter(3))
    assert found["exact"] is False
    merged = merging.merge(Ties(), variants).task_vector.delta(DOWN)
    values = torch.linalg.svdvals(merged)
    assert found["energy"] == pytest.approx(float(values[:3].square().sum() / values.square().sum()), rel=1e-4)
    read = merging.open_variant(tmp_path / "out", base).delta(DOWN)
    assert torch.linalg.matrix_norm(read - merged) == pytest.approx(float(values[3:].square().sum().sqrt()), rel=1e-3)


def test_leading_singular_vectors_of_a_large_matrix():
    left, right = (random_tensors({"x": (700, 20)}, seed)["x"] for seed in (0, 1))
    matrix = left @ torch.diag(torch.logspace(2, 0, 20)) @ right.T
    u, values, v = merging.leading_svd(matrix, 5)
    wanted = torch.linalg.svd(matrix)
    assert torch.allclose(values, wanted.S[:5], rtol=1e-3)
    best = wanted.U[:, :5] * wanted.S[:5] @ wanted.Vh[:5]
    assert torch.linalg.matrix_norm(u * values @ v.T - best) < 1e-2 * torch.linalg.matrix_norm(best)


def test_only_linear_layers_fit_into_an_adapter(tmp_path, base):
    vector = TaskVector({"model.norm.weight": torch.ones(8)})
    with pytest.raises(
        IncompatibleTaskVectors, match=r"model\.norm\.weight: no adapter can hold it: it is not the weight of a linear"
    ):
        merging.write(Ties(), {"a": vector}, tmp_path / "out", base=base, form=AsAdapter())
    assert not (tmp_path / "out").exists()


def peft_adapter(directory: Path, kind: str = "llama", **options: Any) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Trains nothing: a LoRA of random factors. Returns the base and what PEFT itself says that it changes."""
    import peft
    import transformers

    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16, tie_word_embeddings=False
        )
        model: Any = transformers.GPT2LMHeadModel(config)
        targets = ["c_attn", "c_proj", "c_fc"]
    else:
        config = transformers.LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        model = transformers.LlamaForCausalLM(config)
        targets = ["q_proj", "down_proj"]
    model.save_pretrained(directory / "base")
    base = Checkpoint.open(directory / "base")
    lora = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM", **options})
    adapted: Any = peft.get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(directory / "adapter")
    deltas = {}
    for name, module in adapted.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and name:
            deltas[f"{name}.weight"] = module.get_delta_weight("default").detach()
    return base, deltas


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"use_rslora": True}),
        ("llama", {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("gpt2", {"fan_in_fan_out": True, "use_rslora": True, "rank_pattern": {"c_fc": 8}}),
        ("gpt2", {"target_modules": ["c_proj", "lm_head"]}),  # whose flag PEFT sets for the last of them alone
    ],
)
def test_adapters_are_read_as_peft_reads_them(tmp_path, kind, options):
    base, deltas = peft_adapter(tmp_path, kind, **options)
    read = merging.open_variant(tmp_path / "adapter", base)
    assert set(read) == set(deltas)
    for name, delta in deltas.items():
        assert read.shape(name) == base.tensors[name].shape
        assert torch.allclose(read.delta(name), delta, atol=1e-5), name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_written_adapter_is_loaded_by_peft(tmp_path):
    import peft
    import transformers

    base, deltas = peft_adapter(tmp_path, rank_pattern={"down_proj": 2})
    variants = {"a": merging.open_variant(tmp_path / "adapter", base), "b": TaskVector(dict(deltas), 2.0)}
    merging.write(TaskArithmetic(lambda_=-1.5), variants, tmp_path / "out", base=base, form=AsAdapter(8))  # pyright: ignore[reportCallIssue]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged: Any = peft.PeftModel.from_pretrained(model, str(tmp_path / "out")).merge_and_unload()  # pyright: ignore
    for name, weight in merged.state_dict().items():
        wanted = before[name] + (-1.5 * 3 * deltas[name] if name in deltas else 0)
        assert torch.allclose(weight, wanted, atol=2e-4), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_written_adapter_has_the_names_of_the_loaded_model(tmp_path, kind):
    import peft
    import transformers

    stored, deltas = peft_adapter(tmp_path, kind)
    prefix = {"llama": "model.", "gpt2": "transformer."}[kind]
    # As the hub keeps some models: without the name of the model around the layers.
    weights = {name.removeprefix(prefix): stored.read(name) for name in stored.tensors}
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    delta = {**deltas, "lm_head.weight": torch.randn(30, 16, generator=torch.Generator().manual_seed(1))}
    TaskVector({name.removeprefix(prefix): values for name, values in delta.items()}).save(tmp_path / "vector")
    step = standalone.Step(str(tmp_path / "base"), tmp_path / "out")
    standalone.merge(step, TaskArithmetic(), [str(tmp_path / "vector")], AsAdapter())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged: Any = peft.PeftModel.from_pretrained(model, str(tmp_path / "out")).merge_and_unload()  # pyright: ignore
    for name, weight in merged.state_dict().items():
        assert torch.allclose(weight, before[name] + delta.get(name, 0), atol=2e-4), name

    TaskVector({"norm.weight" if kind == "llama" else "ln_f.weight": torch.ones(16)}).save(tmp_path / "norm")
    no = replace(step, out=tmp_path / "no")
    with pytest.raises(IncompatibleTaskVectors, match="no adapter can hold it"):
        standalone.merge(no, TaskArithmetic(), [str(tmp_path / "norm")], AsAdapter())


def test_an_adapter_that_names_another_base_is_warned_of(tmp_path, base):
    merging.write(
        Linear(),
        {"a": TaskVector({DOWN: low_rank(0, SHAPES[DOWN])})},
        tmp_path / "a",
        base=base,
        form=AsAdapter(),
    )
    variants = merging.open_variants([tmp_path / "a"], base)
    assert not merging.write(Linear(), variants, tmp_path / "one", base=base)["warnings"]
    (tmp_path / "a/spunge.json").unlink()
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    for named, warned in (("org/other", True), ("elsewhere/base", False), ("lab:base", False)):
        (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
        variants = merging.open_variants([tmp_path / "a"], base)
        warnings = merging.write(Linear(), variants, tmp_path / f"by {named}", base=base)["warnings"]
        assert [("a: was made from org/other" in warning) for warning in warnings] == [True] * warned
    hub = tmp_path / "models--org--other/snapshots/1"
    shutil.copytree(base.directory, hub)
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    cached = Checkpoint.open(hub)
    variants = merging.open_variants([tmp_path / "a"], cached)
    assert not merging.write(Linear(), variants, tmp_path / "two", base=cached)["warnings"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_base_is_refused(tmp_path, dtype):
    (tmp_path / "base").mkdir()
    save_file({DOWN: torch.ones(8, 40).to(dtype)}, tmp_path / "base/model.safetensors")
    quantised, vector = Checkpoint.open(tmp_path / "base"), TaskVector({DOWN: torch.ones(8, 40)})
    with pytest.raises(IncompatibleTaskVectors, match=r"down.*before it was quantised"):
        merging.write(Linear(), {"a": vector}, tmp_path / "out", base=quantised)
    with pytest.raises(IncompatibleTaskVectors, match=r"down.*before it was quantised"):
        export(tmp_path / "base", vector, tmp_path / "out")


def test_what_is_left_out_is_not_opened(tmp_path, base, vectors):
    (tmp_path / "broken").mkdir()
    paths = [*vectors.values(), tmp_path / "broken"]
    assert list(merging.open_variants(paths, base, without=["broken"])) == ["bio", "cyber"]
    assert list(merging.open_variants(paths, base, only=["bio"])) == ["bio"]
    with pytest.raises(ArtifactError, match="broken: neither"):
        merging.open_variants(paths, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1, 2]}, "single tokens"),
        ({"init_lora_weights": "lora_ga"}, "changes the base model itself"),
        ({"peft_type": "IA3"}, "of kind IA3"),
        ({"init_lora_weights": "pissa"}, "changes the base model itself"),
        ({"lora_bias": True}, "biases"),
    ],
)
def test_adapters_that_are_no_sum_of_factors_are_refused(tmp_path, base, change, message):
    merging.write(
        Linear(),
        {"a": TaskVector({DOWN: low_rank(0, SHAPES[DOWN])})},
        tmp_path / "a",
        base=base,
        form=AsAdapter(),
    )
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/spunge.json").unlink()
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ArtifactError, match=message):
        merging.open_variant(tmp_path / "a", base)


def test_another_base_is_refused(tmp_path, base, vectors):
    other = make_base(tmp_path / "other")
    place = other.tensors[DOWN]
    place.write(0, torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(IncompatibleTaskVectors, match=f"{DOWN}: bio was made from another base model"):
        merging.write(Ties(), vectors, tmp_path / "out", base=other)
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_even_if_what_is_changed_is_the_same(tmp_path, base):
    """The fingerprint samples every tensor, so that a base which differs elsewhere is told apart."""
    entries = random_tensors({DOWN: SHAPES[DOWN]}, 1, 0.1)
    whole = made_from(base, entries)
    made = {**whole.provenance["base"], "fingerprint": base.fingerprint()}
    vector = TaskVector(entries, 1.0, {"base": made})
    merging.check_base({"bio": vector}, base)
    other = make_base(tmp_path / "other")
    other.tensors[UP].write(40, torch.ones(1, dtype=torch.bfloat16))
    assert base.digest(DOWN) == other.digest(DOWN)
    with pytest.raises(IncompatibleTaskVectors, match="bio was made from another base model than"):
        merging.check_base({"bio": vector}, other)
    foreign = TaskVector(entries, 1.0, {"base": {**made, "fingerprint": other.fingerprint()}})
    with pytest.raises(IncompatibleTaskVectors, match="bio and cyber were made from different base models, though"):
        merging.check_base({"bio": vector, "cyber": foreign}, None)


def test_a_fingerprint_does_not_depend_on_the_shards(tmp_path, base):
    assert make_base(tmp_path / "sharded", sharded=True).fingerprint() == base.fingerprint()
    assert make_base(tmp_path / "half", torch.float16).fingerprint() != base.fingerprint()


@pytest.mark.parametrize(("key", "value"), [("base_model_name_or_path", "org/other"), ("revision", "v2")])
def test_adapters_of_different_bases_or_revisions_are_refused(tmp_path, base, key, value):
    low_rank = {DOWN: LowRank(torch.randn(2, 40), torch.randn(8, 2), 1.0)}
    for name, model in (("a", "org/base"), ("b", "/elsewhere/base")):
        adapter.save(TaskVector(low_rank), tmp_path / name, base=model)
    same = merging.open_variants([tmp_path / "a", tmp_path / "b"], base)
    merging.check_base(same, base)
    (tmp_path / "b/spunge.json").unlink()
    config = json.loads((tmp_path / "b/adapter_config.json").read_text())
    (tmp_path / "b/adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(IncompatibleTaskVectors, match="a and b were made from different base models"):
        merging.check_base(merging.open_variants([tmp_path / "a", tmp_path / "b"], base), base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"lacks '{UP}'"),
        (lambda t: t.update(extra=torch.ones(3)), "has 'extra'"),
        (lambda t: t.update({UP: torch.ones(8, 40)}), f"{UP}: the base model's shape is .40, 8., .*model's .8, 40."),
    ],
)
def test_checkpoints_of_other_models_are_refused(tmp_path, base, change, message):
    tensors = load_file(base.directory / "model.safetensors")
    change(tensors)
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model/model.safetensors")
    with pytest.raises(IncompatibleTaskVectors, match=message):
        merging.open_variant(tmp_path / "model", base)


@pytest.mark.parametrize("lacking", ["base", "variant"])
def test_vectors_that_happen_to_be_equal_are_not_taken_for_tied_and_constants_may_be_missing(tmp_path, base, lacking):
    tensors = load_file(base.directory / "model.safetensors")
    bias = {f"model.layers.{layer}.up.bias": torch.zeros(40) for layer in (0, 1)}
    constant = {f"model.layers.{layer}.rotary_emb.inv_freq": torch.ones(4) for layer in (0, 1)}
    for name, own in (("base", tensors), ("variant", {**tensors, UP: tensors[UP] + 1})):
        (tmp_path / f"{name}-all").mkdir()
        save_file({**own, **bias, **({} if name == lacking else constant)}, tmp_path / f"{name}-all/model.safetensors")
    variant = tmp_path / "variant-all/model.safetensors"
    older = Checkpoint.open(tmp_path / "base-all")
    assert set(merging.open_variant(variant.parent, older)) == {UP}
    stored = load_file(variant)
    save_file({name: values for name, values in stored.items() if name != "model.layers.1.up.bias"}, variant)
    with pytest.raises(IncompatibleTaskVectors, match=r"lacks 'model.layers.1.up.bias'"):
        merging.open_variant(variant.parent, older)
    save_file({**stored, "model.layers.2.up.bias": torch.zeros(40)}, variant)
    with pytest.raises(IncompatibleTaskVectors, match=r"has 'model.layers.2.up.bias'"):
        merging.open_variant(variant.parent, older)


@pytest.mark.parametrize("stored_in", ["base", "variant"])
def test_tied_weights_may_be_stored_once_or_twice(tmp_path, base, stored_in):
    tensors = load_file(base.directory / "model.safetensors")
    changed = {**tensors, DOWN: tensors[DOWN] * 2, "model.embed.weight": tensors["model.embed.weight"] + 1}
    for name, own in (("base", tensors), ("variant", changed)):
        if name == stored_in:
            own = {**own, "lm_head.weight": own["model.embed.weight"].clone()}
        (tmp_path / f"{name}-tied").mkdir()
        save_file(own, tmp_path / f"{name}-tied/model.safetensors")
    opened = merging.open_variant(tmp_path / "variant-tied", Checkpoint.open(tmp_path / "base-tied"))
    tied = {"lm_head.weight"} if stored_in == "base" else set()
    assert set(opened) == {DOWN, "model.embed.weight", *tied}
    for name in tied:
        assert torch.equal(opened.delta(name), opened.delta("model.embed.weight"))


@pytest.mark.parametrize("merger", [Dare(), Della(), Wudi()], ids=lambda merger: merger.method)
def test_tied_weights_that_are_stored_twice_stay_one_weight(tmp_path, base, merger):
    tensors = load_file(base.directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed.weight"].clone()
    (tmp_path / "tied").mkdir()
    save_file(tensors, tmp_path / "tied/model.safetensors")
    tied = Checkpoint.open(tmp_path / "tied")
    generator = torch.Generator().manual_seed(0)
    variants = {}
    for name in "ab":
        delta = torch.randn(tensors["model.embed.weight"].shape, generator=generator)
        variants[name] = TaskVector({"model.embed.weight": delta, "lm_head.weight": delta.clone()})
    merged = merging.merge(merger, variants, base=tied).task_vector
    assert merged.delta("model.embed.weight").any()
    assert torch.equal(merged.delta("lm_head.weight"), merged.delta("model.embed.weight"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such directory"),
        ("empty", "neither a task vector"),
        ("truncated", "truncated"),
        ("unreadable", "damaged"),
        ("old", "not of a task vector in format"),
    ],
)
def test_damaged_variants_are_refused(tmp_path, base, vectors, name, message):
    path = tmp_path / name
    if name != "nowhere":
        shutil.copytree(vectors["bio"], path)
    file = path / "task_vector.safetensors"
    if name == "empty":
        file.unlink()
    elif name == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif name == "unreadable":
        (path / "manifest.json").write_text("{")
    elif name == "old":
        (path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(SpungeError, match=message):
        merging.open_variant(path, base)


def test_the_same_directory_twice_is_refused(base, vectors):
    bio = vectors["bio"]
    with pytest.raises(IncompatibleTaskVectors, match="twice"):
        merging.open_variants([bio, bio], base)
    with pytest.raises(IncompatibleTaskVectors, match="are the same"):
        merging.open_variants([bio, bio / "../bio"], base)


def test_directories_of_one_name_keep_their_paths_as_names(tmp_path, base, vectors):
    shutil.copytree(vectors["bio"], tmp_path / "again/bio")
    opened = merging.open_variants([vectors["bio"], tmp_path / "again/bio", vectors["cyber"]], base)
    assert set(opened) == {str(vectors["bio"]), str(tmp_path / "again/bio"), "cyber"}


def test_a_tensor_that_the_base_does_not_have_is_refused(tmp_path, base):
    stranger = TaskVector({"other.weight": torch.ones(2)}).save(tmp_path / "stranger")
    with pytest.raises(IncompatibleTaskVectors, match=r"no parameter 'other\.weight'"):
        merging.open_variant(stranger, base)
    with pytest.raises(IncompatibleTaskVectors, match=r"changes 'other\.weight'"):
        merging.write(Ties(), {"a": stranger}, tmp_path / "out", base=base)


def test_an_output_that_exists_is_left_alone(tmp_path, base, vectors):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        merging.write(Ties(), vectors, tmp_path / "out", base=base)
    step = standalone.Step(str(tmp_path / "none"), tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists already"):  # before anything is read
        standalone.merge(step, Ties(), [str(tmp_path / "none")], AsCheckpoint())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("form", [AsCheckpoint(), AsTaskVector()])
def test_a_full_disk_leaves_nothing_behind(tmp_path, base, vectors, form, monkeypatch):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(ArtifactError, match="No space left on device"):
        merging.write(Ties(), vectors, tmp_path / "out", base=base, form=form)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_overflow_leave_nothing_behind(tmp_path, dtype):
    base = make_base(tmp_path / "base", dtype)
    variants = {"a": made_from(base, {DOWN: torch.ones(SHAPES[DOWN])})}
    for factor in (1e5, 1e39) if dtype == torch.float16 else (1e39,):
        with pytest.raises(IncompatibleTaskVectors, match=rf"{DOWN}: .* infinite .* in {dtype}"):
            merging.write(Ties(lambda_=factor), variants, tmp_path / "out", base=base)  # pyright: ignore[reportCallIssue]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_nan_found_in_the_middle_leaves_nothing_behind(tmp_path, base):
    bad = TaskVector({DOWN: torch.full(SHAPES[DOWN], float("nan"))})
    with pytest.raises(IncompatibleTaskVectors, match=f"{DOWN}: bad holds NaN"):
        merging.write(Linear(), {"bad": bad}, tmp_path / "out", base=base)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_a_disk_that_does_not_hold_what_was_written_is_noticed(tmp_path, base, vectors, monkeypatch):
    from spunge.weights.safetensors_files import StoredTensor

    honest = StoredTensor.write
    monkeypatch.setattr(StoredTensor, "write", lambda self, start, values: honest(self, start, values + 1))
    with pytest.raises(ArtifactError, match="reads back other than it was written"):
        merging.write(Ties(), vectors, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_an_index_that_points_outside_is_refused(tmp_path, base):
    for wrong in ("../base/model.safetensors", "/etc/passwd", "..", "", 3):
        (base.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: wrong}}))
        with pytest.raises(ModelError, match="not a plain file name"):
            merging.open_variant(base.directory, base)


@pytest.mark.long
def test_what_lies_beyond_two_gigabytes(tmp_path):
    """Sparse files: a small tensor behind a bf16 one of 2.2 GB, which stays, and behind a float32 one that is 0."""
    shapes = {"large": (1_100_000, 1000), "small": (8, 4)}
    header, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header).encode()
    (tmp_path / "base").mkdir()
    with (tmp_path / "base/model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + offset)
    base = Checkpoint.open(tmp_path / "base")
    variants = {}
    for index in range(2):
        directory = tmp_path / f"v{index}"
        directory.mkdir()
        create(directory / FILE, shapes)["small"].write(29, torch.tensor([0.0, 1.0, 2.0 + index]))
        write_manifest(directory, {}, scale=1.0)
        opened = TaskVector.open(directory)
        variants[f"v{index}"] = TaskVector({"small": opened.entries["small"]})
    merging.write(Ties(), variants, tmp_path / "out", base=base)
    out = Checkpoint.open(tmp_path / "out")
    assert out.tensors["small"].start > 2**31
    assert out.read("small").reshape(-1)[-4:].tolist() == [0.0, 0.0, 1.0, 2.5]
    assert out.tensors["large"].read(1_099_999_990).tolist() == [0.0] * 10
