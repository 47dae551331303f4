"""Tiny random decoders of many architectures, with a word-level tokenizer, as directories; and ragged texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.weights.language_model import LanguageModel, Resident

WORDS = [f"w{index}" for index in range(60)]
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
_GPT2 = {
    "vocab_size": len(VOCABULARY), "n_embd": 32, "n_inner": 48, "n_layer": 6, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# fmt: off
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 4},
    "qwen2": {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": SIZES,
    "gemma2": {**SIZES, "sliding_window": 4},
    "gemma3_text": {**SIZES, "sliding_window": 4},
    "phi3": {key: value for key, value in SIZES.items() if key != "head_dim"},
    "gpt_neox": _OLD,
    "gpt_neo": {**_OLD, "num_layers": 6, "num_heads": 4, "attention_types": [[["global", "local"], 3]],
                "window_size": 4},
    "gpt2": _GPT2,
    "mixtral": {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2},
}  # fmt: skip


def make_model(
    directory: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> LanguageModel:
    """Saves a random model of this architecture; weights are large enough for activations to differ clearly."""
    settings = {**ARCHITECTURES[kind], **changes}
    if kind == "gpt_neo":
        del settings["num_hidden_layers"], settings["num_attention_heads"]
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.to(dtype).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return LanguageModel(id=str(directory))


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_texts(rows: int, seed: int, longest: int = 14) -> list[str]:
    """Texts of 1 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(rows)]


def make_corpus(rows: int, seed: int, **columns: Any) -> Corpus:
    return Corpus(pl.DataFrame({"text": make_texts(rows, seed), **columns}))


def make_work(directory: Path, resident: Resident | None = None, **options: Any) -> Work:
    output, scratch = directory / "output", directory / "scratch"
    output.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    return Work(resident=resident or Resident(), output=output, scratch=scratch, **options)
