"""What all tests share: no network, and one tiny random language model with its tokenizer."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

# A busy machine misses any deadline, and says nothing of the code by it.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

WORDS = [f"{letter}{number}" for letter in "abcdefgh" for number in range(10)] + list(".?:")


def make_model(directory: Path, **changes: Any) -> Path:
    """Writes a Llama of random weights, a few thousand parameters, and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(directory)
    settings = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    model.save_pretrained(directory)
    return directory


def sentences(count: int, seed: int, length: int = 9) -> list[str]:
    """Returns word soup, the same for the same seed."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[:80], k=draw.randint(4, length))) for _ in range(count)]


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    import torch

    directory = tmp_path_factory.mktemp("models") / "other"
    make_model(directory)
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: weight + torch.ones(()) for name, weight in weights.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    return directory


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """The plain settings of a small experiment with two subsets, to be changed by a test."""
    return tiny_world(tmp_path, tiny_model)


def tiny_world(directory: Path, model: Path) -> dict[str, Any]:
    """Writes the data of a small experiment, and returns its plain settings."""
    forget = [
        {"text": text, "domain": "ab"[index % 2], "level": index % 5} for index, text in enumerate(sentences(16, 1))
    ]
    retain = [{"text": text} for text in sentences(16, 2)]
    items = [
        {"question": text, "choices": WORDS[index : index + 4], "answer": index % 4, "domain": "ab"[index % 2]}
        for index, text in enumerate(sentences(12, 3))
    ]
    return {
        "name": "tiny",
        "model": {"id": str(model)},
        "forget": {"sources": [{"path": str(write_jsonl(directory / "forget.jsonl", forget))}]},
        "retain": {"sources": [{"path": str(write_jsonl(directory / "retain.jsonl", retain))}]},
        "split": {"by": "column", "column": "domain"},
        "unlearn": {"method": "rmu", "layer": 2, "steering_coefficient": 5, "alpha": 10, "learning_rate": 1e-2},
        "merge": {"method": "ties"},
        "damage": None,  # a test that is not about it should not pay for it
        "evaluate": [
            {
                "suite": "hazards", "method": "multiple_choice", "goal": "forget", "style": "continuation",
                "sources": [{"path": str(write_jsonl(directory / "items.jsonl", items))}], "attributes": ["domain"],
            }
        ],
    }  # fmt: skip


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes settings as a recipe file."""
    from ruamel.yaml import YAML

    def write(settings: dict[str, Any], name: str = "recipe.yaml") -> Path:
        with (tmp_path / name).open("w") as stream:
            YAML().dump(settings, stream)
        return tmp_path / name

    return write


# A suite that a script starts in the background inherits that Ctrl-C is ignored, and so would the runs it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
