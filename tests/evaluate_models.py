"""Tiny random models, tokenizers and files that the evaluation tests share."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from spunge.interfaces import LoadedVariant, Work
from spunge.weights.language_model import Resident

SPECIAL = {"<s>": 0, "</s>": 1, "<unk>": 2}


CHAT = (
    "{% for m in messages %}[{{ m['role'] }} on {{ strftime_now('%d %b %Y') }}]{{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant on {{ strftime_now('%d %b %Y') }}]{% endif %}"
)
"""A chat template that tells the day."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: any text, and no choice is a single token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**SPECIAL, **{letter: index + len(SPECIAL) for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word: letters and short choices are single tokens."""
    vocabulary = {**SPECIAL, **{word: index + len(SPECIAL) for index, word in enumerate(dict.fromkeys(words))}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finish(tokenizer)


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def llama(vocab_size: int = 300, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {"max_position_embeddings": 512, "initializer_range": 0.3, **options}
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(vocab_size: int = 300) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mistral(vocab_size: int = 300, sliding_window: int = 8) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=sliding_window, max_position_embeddings=512, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def variant(model: PreTrainedModel, tokenizer: Any) -> LoadedVariant:
    return LoadedVariant("base", model, tokenizer, "digest")


def work(tmp_path: Path) -> Work:
    return Work(Resident(), tmp_path, tmp_path)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def alone(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """The log-likelihood of one continuation, the long way: one text, no cache, no padding, no batch."""
    ids = context + continuation
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logs[place - 1, ids[place]]) for place in range(len(context), len(ids)))


MODELS = {"llama": llama(), "gpt2": gpt2(), "mistral": mistral(), "mistral, window 400": mistral(sliding_window=400)}
