"""Tiny random models with a word-level tokenizer, and little corpora, for the tests of what is trained."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.weights.language_model import LanguageModel, Resident

WORDS = [f"w{number}" for number in range(40)]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)


def save_model(
    directory: Path,
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    chat: bool = False,
    layers: int = 2,
) -> LanguageModel:
    """Writes a random model and its tokenizer, and returns the handle."""
    special = ["<pad>", "<s>", "</s>", "<user>", "<bot>", "<end>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    state = torch.get_rng_state()
    torch.manual_seed(0)
    size = len(vocabulary)
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                tie_word_embeddings=tied,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.2,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size,
                n_embd=16,
                n_layer=layers,
                n_head=2,
                n_positions=64,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.2,
                attn_pdrop=0.5,
                embd_pdrop=0.5,
                resid_pdrop=0.5,
            )
        )
    torch.set_rng_state(state)
    torch.nn.Module.to(model, dtype=dtype)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return LanguageModel(id=str(directory))


def texts(count: int = 10, *, seed: int = 0, shortest: int = 3, longest: int = 12) -> Corpus:
    """Random sentences of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest, (1,), generator=draw))
        words = torch.randint(0, len(WORDS), (length,), generator=draw).tolist()
        rows.append(" ".join(WORDS[word] for word in words))
    return Corpus(pl.DataFrame({"text": rows}))


def answers(count: int = 10, *, seed: int = 0) -> Corpus:
    """Random prompts with a response and an alternative."""
    columns = {
        name: texts(count, seed=seed + offset, longest=6).texts
        for offset, name in enumerate(("prompt", "response", "alternative"))
    }
    return Corpus(pl.DataFrame(columns))


def work_in(directory: Path, *, seed: int = 0, resident: Resident | None = None, dtype: str | None = None) -> Work:
    """A task's surroundings below this directory."""
    return Work(resident or Resident(dtype=dtype), directory / "output", directory / "scratch", seed=seed)
