"""One model of every kind: what is in memory is what is exported, is not the base, and leaves the base as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from steering_models import make_corpus, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from spunge.errors import DataError, IncompatibleTaskVectors, ModelError
from spunge.interfaces import Work
from spunge.training.forecast import forecast_training, out_of_reach
from spunge.training.tuned import linear_modules
from spunge.training.unlearner import TrainedUnlearner
from spunge.unlearners import NPO, RMU, TaskVectorNegation
from spunge.weights import adapter
from spunge.weights.checkpoint import Checkpoint, export
from spunge.weights.conversion import ParameterNames
from spunge.weights.language_model import LanguageModel, Resident, linear_names
from spunge.weights.shape import check_tokens
from spunge.weights.task_vector import TaskVector

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama", TEXT),
    "tied": ("llama", {**TEXT, "tie_word_embeddings": True}),
    "fused experts": ("olmoe", {**TEXT, **EXPERTS}),
    "fused and renamed": ("mixtral", {**TEXT, **EXPERTS}),
    "shared experts": ("deepseek_v3", {
        **TEXT, "n_routed_experts": 3, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    }),
    "hybrid": ("granitemoehybrid", {
        **TEXT, **EXPERTS, **MAMBA, "shared_intermediate_size": 8, "layer_types": ["mamba", "attention"],
    }),
    "multimodal": ("gemma3", {
        "text_config": {**TEXT, "sliding_window": 8}, "vision_config": VISION, "mm_tokens_per_image": 4,
    }),
    "multimodal, of two parts": ("llava", {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 3,
    }),
}  # fmt: skip
METHODS = {
    "rmu": RMU(layer=1, alpha=1, steering_coefficient=5, learning_rate=1e-2, batch_size=2, max_steps=2),
    "tvn": TaskVectorNegation.model_validate(
        {"lora": {"rank": 2, "dropout": 0, "target_modules": "all-linear"}, "learning_rate": 1e-2, "max_steps": 2}
    ),
    "npo": NPO.model_validate({"lora": None, "learning_rate": 1e-3, "max_steps": 2}),
}
IDS = torch.tensor([[1, *range(4, 14)]])


def build(directory: Path, kind: str, **changes: Any) -> LanguageModel:
    model_type, settings = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**settings, **changes})
    auto: Any = AutoModelForImageTextToText if kind.startswith("multimodal") else AutoModelForCausalLM
    model = auto.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(str(directory))
    return LanguageModel(id=str(directory))


def work_in(directory: Path, resident: Resident) -> Work:
    (directory / "scratch").mkdir(parents=True)
    (directory / "output").mkdir()
    return Work(resident, directory / "output", directory / "scratch", 0)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits.clone()


@pytest.mark.parametrize("kind", KINDS)
def test_in_memory_is_what_is_exported_and_not_the_base(tmp_path, kind):
    base, resident = build(tmp_path / "model", kind), Resident()
    before = logits(resident.base(base)[0])
    for name, method in METHODS.items():
        vector = method.unlearn(base, make_corpus(4, 0), make_corpus(4, 1), work_in(tmp_path / name, resident))
        with resident.variant(base, vector) as model:
            here = logits(model)
        exported = LanguageModel(id=str(export(base.id, vector, tmp_path / f"exported {name}")))
        assert torch.equal(logits(exported.load()), here), name
        assert not torch.equal(here, before), name
        assert torch.equal(logits(resident.base(base)[0]), before), name
        old, new = Checkpoint.open(base.id), Checkpoint.open(exported.id)
        changed = {tensor for tensor in old.tensors if old.digest(tensor) != new.digest(tensor)}
        assert changed <= set(vector), name
        assert not any("vision" in tensor or "projector" in tensor for tensor in vector), name


@pytest.mark.parametrize("kind", ["dense", "fused and renamed", "shared experts", "hybrid", "multimodal"])
def test_parameters_come_back_as_the_tensors_that_they_were(tmp_path, kind):
    base = build(tmp_path / "model", kind)
    model, stored = base.load(), load_file(tmp_path / "model/model.safetensors")
    names = ParameterNames(model, stored)
    assert not names.unread
    for name, parameter in model.named_parameters():
        names.check(name)
        for theirs, value in names.store({name: parameter.detach()}).items():
            assert torch.equal(value, stored[theirs]), theirs


def test_a_fused_parameter_alone_leaves_its_neighbours_as_they_are(tmp_path):
    base = build(tmp_path / "model", "fused experts")
    names = ParameterNames(base.outline(), base.checkpoint().tensors)
    delta = torch.ones(3, 16, 24)
    stored = names.store({"model.layers.1.mlp.experts.down_proj": delta})
    assert sorted(stored) == [f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in range(3)]
    with pytest.raises(ModelError, match=r"does not hold model\.layers\.9"):
        names.check("model.layers.9.mlp.experts.down_proj")


def test_one_expert_changed_by_its_own_name_is_changed_in_memory_too(tmp_path):
    base, resident = build(tmp_path / "model", "fused experts"), Resident()
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    vector = TaskVector({name: torch.full((24, 16), 0.5)})
    with resident.variant(base, vector) as model:
        here = logits(model)
        experts = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
        assert torch.equal(experts[1, 24:], base.checkpoint().read(name) + 0.5)
    assert torch.equal(here, logits(LanguageModel(id=str(export(base.id, vector, tmp_path / "out"))).load()))


@pytest.mark.parametrize("kind", ["dense", "tied", "fused and renamed", "hybrid", "multimodal"])
def test_an_adapter_of_peft_is_read_and_ours_is_read_by_peft(tmp_path, kind):
    base, resident = build(tmp_path / "model", kind), Resident()
    before, model = logits(resident.base(base)[0]), base.load()
    head = model.get_output_embeddings()
    targets = [name for name, layer in linear_modules(model).items() if layer is not head]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    vector = adapter.read(tmp_path / "adapter", base.checkpoint())
    names = linear_names(base.outline(), base.checkpoint().tensors)
    adapter.save(vector, tmp_path / "again", base=base.id, names=names)
    again = logits(peft.PeftModel.from_pretrained(base.load(), str(tmp_path / "again")).eval())
    merged = logits(tuned.merge_and_unload())
    with resident.variant(base, vector) as variant:
        torch.testing.assert_close(logits(variant), merged, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(variant), again, rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max() > 1e-2


def tied_adapter(directory: Path, base: LanguageModel, **options: Any) -> torch.Tensor:
    """Saves an adapter that changes the embeddings or the head, and returns what its live model answers."""
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **options}
    tuned = peft.get_peft_model(base.load(), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(str(directory))
    return logits(tuned.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_an_adapter_that_unties_a_tied_base_is_refused(tmp_path, options):
    base = build(tmp_path / "model", "tied")
    tied_adapter(tmp_path / "adapter", base, **options)
    with pytest.raises(IncompatibleTaskVectors, match="ensure_weight_tying"):
        adapter.read(tmp_path / "adapter", base.checkpoint())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
def test_an_adapter_that_keeps_a_base_tied_equals_its_live_model(tmp_path, options):
    base, resident = build(tmp_path / "model", "tied"), Resident()
    live = tied_adapter(tmp_path / "adapter", base, ensure_weight_tying=True, **options)
    vector = adapter.read(tmp_path / "adapter", base.checkpoint())
    with resident.variant(base, vector) as model:
        here = logits(model)
    torch.testing.assert_close(here, live, rtol=1e-4, atol=1e-4)
    if "target_modules" not in options:  # of a LoRA on embeddings PEFT merges another model than its live one
        merged: Any = peft.PeftModel.from_pretrained(base.load(), str(tmp_path / "adapter"))
        assert torch.equal(here, logits(merged.eval().merge_and_unload()))
    assert torch.equal(here, logits(LanguageModel(id=str(export(base.id, vector, tmp_path / "out"))).load()))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_resized_embeddings_of_an_adapter_say_both_sizes(tmp_path):
    base = build(tmp_path / "model", "dense")
    model = base.load()
    model.resize_token_embeddings(70)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(IncompatibleTaskVectors, match=r"has 70 rows, and the base model's has 64"):
        adapter.read(tmp_path / "adapter", base.checkpoint())


def test_factors_of_fused_experts_are_refused(tmp_path):
    base = build(tmp_path / "model", "fused experts")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    peft.get_peft_model(base.load(), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(OSError, match="factors for fused experts"):
        adapter.read(tmp_path / "adapter", base.checkpoint())


def test_what_peft_would_take_for_experts_is_not_written_as_an_adapter(tmp_path):
    base, resident = build(tmp_path / "model", "shared experts"), Resident()
    vector = METHODS["tvn"].unlearn(base, make_corpus(4, 0), None, work_in(tmp_path / "work", resident))
    names = linear_names(base.outline(), base.checkpoint().tensors)
    with pytest.raises(IncompatibleTaskVectors, match="PEFT takes for an expert's"):
        adapter.save(vector, tmp_path / "adapter", base=base.id, names=names)


def test_plan_and_manifest_say_what_an_adapter_does_not_reach(tmp_path):
    method = METHODS["tvn"]
    assert isinstance(method, TrainedUnlearner)
    base, dense = build(tmp_path / "model", "fused experts"), build(tmp_path / "dense", "dense")
    for model in (base, dense):
        assert out_of_reach(method, model) is None  # nobody has asked yet
        forecast_training(method, model, make_corpus(4, 0), None)
    assert out_of_reach(method, dense) is None
    said = out_of_reach(method, base)
    assert said is not None
    assert "are tensors of fused experts, on which no LoRA is put" in said
    vector = method.unlearn(base, make_corpus(4, 0), None, work_in(tmp_path / "work", Resident()))
    reach = vector.provenance["adapter_reach"]
    assert f"{reach['adapted']:.1%} of the parameters: {reach['fused_experts']:.1%} are tensors" in said
    assert reach["adapted"] + reach["fused_experts"] < 1


def test_an_encoder_is_refused_by_name(tmp_path):
    AutoConfig.for_model("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="t5 is an encoder with a decoder"):
        LanguageModel(id=str(tmp_path / "t5")).outline()


def test_a_failed_adapter_leaves_the_borrowed_model_whole(tmp_path, monkeypatch):
    base, resident = build(tmp_path / "model", "dense"), Resident()
    before = logits(resident.base(base)[0])

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no more layers")

    monkeypatch.setattr("peft.tuners.lora.model.LoraModel._mark_only_adapters_as_trainable", fail)
    with pytest.raises(ValueError, match="no more layers"):
        METHODS["tvn"].unlearn(base, make_corpus(4, 0), None, work_in(tmp_path / "work", resident))
    model, _ = resident.base(base)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert torch.equal(logits(model), before)


def test_a_pad_token_beyond_the_rows_becomes_one_that_has_a_row(tmp_path):
    base = build(tmp_path / "model", "dense")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(str(tmp_path / "model"))
    assert base.load_tokenizer().pad_token_id == 2
    vector = METHODS["tvn"].unlearn(base, make_corpus(4, 0), None, work_in(tmp_path / "work", Resident()))
    assert vector.norm > 0
    check_tokens(base, ["w1 w2"])
    with pytest.raises(DataError, match=r"row 2 has the token '<new>' with the id 64, and .* have 64 rows"):
        check_tokens(base, ["w1", "w1 <new>"])
