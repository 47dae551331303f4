"""GGUF files become directories that answer as transformers does when it reads the file itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from transformers import AutoModelForCausalLM, AutoTokenizer

from spunge.errors import MissingExtra, ModelError
from spunge.weights.checkpoint import Checkpoint, export
from spunge.weights.gguf import convert, open_gguf
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector

WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 2
TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message['content'] }}]{% endfor %}"


def write_gguf(file: Path, *, quantised: bool = True, sentencepiece: bool = False, without: str = "") -> Path:
    """Writes a random Llama of 8-bit blocks or of float32, with a tokenizer of bytes or of sentence pieces."""
    writer = GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if quantised else LlamaFileType.ALL_F32)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    if sentencepiece:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "▁a", "ab"]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
    else:
        tokens = ["<unk>", "<s>", "</s>", *letters, "Ġ", "ab"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(["a b"])
        writer.add_token_types([2, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_list(tokens)
    writer.add_vocab_size(len(tokens))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = generator.normal(size=shape, scale=0.3).astype(np.float32)
        if name == without:
            return
        if quantised and len(shape) == 2:
            blocks = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", len(tokens), WIDTH)
    add("output.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("sentencepiece", [False, True])
@torch.no_grad()
def test_what_is_converted_answers_as_transformers_reads_the_file(tmp_path, sentencepiece):
    file = write_gguf(tmp_path / "tiny.Q8_0.gguf", sentencepiece=sentencepiece)
    opened = open_gguf(file)
    assert (opened.architecture, opened.format, opened.dequantised) == ("llama", "Q8_0", True)
    out = convert(opened, tmp_path / opened.directory)
    assert out.name == "tiny.Q8_0-dequantised"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    base = LanguageModel(id=str(out))
    ours, tokenizer = base.load(), base.load_tokenizer()
    ids = words("ab xyz a", return_tensors="pt").input_ids
    assert torch.equal(tokenizer("ab xyz a", return_tensors="pt").input_ids, ids)
    assert tokenizer.get_chat_template() == TEMPLATE
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, theirs(ids).logits)


def test_what_the_weights_were_is_written_down_and_goes_with_an_export(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    out = convert(open_gguf(file), tmp_path / "model", dtype="bfloat16")
    name = "model.layers.0.mlp.down_proj.weight"
    assert Checkpoint.open(out).tensors[name].dtype == torch.bfloat16
    exported = export(out, TaskVector({name: torch.ones(WIDTH, INNER)}), tmp_path / "exported")
    for directory in (out, exported):
        source = json.loads((directory / "config.json").read_text())["converted_from"]
        assert (source["file"], source["format"], source["dequantised"]) == ("tiny.gguf", "Q8_0", True)
    assert "dequantised" in (out / "README.md").read_text()


def test_numbers_stay_the_numbers_that_they_are(tmp_path):
    opened = open_gguf(write_gguf(tmp_path / "tiny.gguf", quantised=False))
    assert not opened.dequantised
    assert opened.directory == Path("tiny")
    assert "weights are those of the file" in (convert(opened, tmp_path / "out") / "README.md").read_text()


def test_what_cannot_be_converted_is_refused_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    whole = write_gguf(tmp_path / "tiny.gguf")
    for name, size, message in (
        ("cut.gguf", 300, "header is damaged"),
        ("half.gguf", whole.stat().st_size // 2, "cannot be had from GGUF"),
    ):
        (tmp_path / name).write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ModelError, match=message):
            convert(open_gguf(tmp_path / name), tmp_path / "out")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_gguf(tmp_path / "text.gguf")
    with pytest.raises(ModelError, match="no such file"):
        open_gguf(tmp_path / "nowhere.gguf")
    lacking = write_gguf(tmp_path / "lacking.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match="not a whole language model"):
        convert(open_gguf(lacking), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="spunge import"):
        LanguageModel(id=str(whole)).load()
    monkeypatch.setattr("spunge.weights.gguf.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"spunge\[gguf\]"):
        open_gguf(whole)
