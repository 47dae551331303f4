"""Trains the embedded world's models from nothing: the language model, the judge and the toxicity scorer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from spunge.lab.world import World
from spunge.seeding import seeded

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""In the order of their ids."""
BOS, PAD, EOS = 0, 1, 2

Report = Callable[[str, int, int, float], None]
"""Told of what is trained, the step, all steps, and the loss."""


@dataclass(frozen=True)
class Course:
    """How one language model is made."""

    name: str
    layers: int
    width: int
    steps: int
    seed: int
    stored: Literal["float32", "bfloat16"] = "float32"
    learning_rate: float = 4e-3
    sequences: int = 32
    """A batch."""
    length: int = 64
    """Tokens in a sequence; texts are packed into it one after another."""


MODEL = Course("model", layers=8, width=64, steps=2200, seed=0)
JUDGE = Course("judge", layers=4, width=64, steps=700, seed=1, stored="bfloat16")
SCORER_STEPS = 250


def tokenizer(world: World, *, close: bool = False) -> PreTrainedTokenizerFast:
    """Makes the word-level tokenizer: a token a word, punctuation among them.

    Args:
        world: Whose words it knows.
        close: Whether the end token follows every text, as classifiers have it.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    words = {word: number for number, word in enumerate([*SPECIAL.values(), *world.words])}
    core = Tokenizer(WordLevel(words, unk_token=SPECIAL["unk_token"]))
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A </s>" if close else "<s> $A",
        special_tokens=[("<s>", words["<s>"]), ("</s>", words["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=256,
        padding_side="right" if close else "left",
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def language_model(world: World, course: Course, report: Report) -> LlamaForCausalLM:
    """Trains a Llama of a few hundred thousand weights on all that the world says."""
    words = tokenizer(world)
    with seeded(course.seed, "cpu"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(words),
                hidden_size=course.width,
                intermediate_size=3 * course.width,
                num_hidden_layers=course.layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                initializer_range=0.05,
                bos_token_id=BOS,
                pad_token_id=PAD,
                eos_token_id=EOS,
            )
        )
    # Facts are learnt one by one, manners of speaking all at once: facts are read twice as often.
    read = [*world.texts, *(text for text, _ in world.lessons)]
    texts = [[*words(text).input_ids, EOS] for text in read]
    batches = _packed(texts, course)
    for step, loss in _descend(model, course.steps, course.learning_rate, lambda: _next_loss(model, next(batches))):
        report(course.name, step, course.steps, loss)
    return model.to(getattr(torch, course.stored)).eval()


def scorer(world: World, report: Report) -> RobertaForSequenceClassification:
    """Trains the toxicity classifier on statements the language model reads too, whole and without their opening."""
    words = tokenizer(world, close=True)
    with seeded(2, "cpu"):
        model = RobertaForSequenceClassification(
            RobertaConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                max_position_embeddings=256,
                type_vocab_size=1,
                bos_token_id=BOS,
                pad_token_id=PAD,
                eos_token_id=EOS,
                id2label={0: "benign", 1: "toxic"},
                label2id={"benign": 0, "toxic": 1},
            )
        )
    examples = [
        (text, statement.derogatory) for statement in world.sayings for text in (statement.text, statement.tail)
    ]
    examples += [(text, False) for text in (*world.neutral, *(text for text, _ in world.lessons[::10]))]
    order = random.Random(0)

    def loss() -> Tensor:
        chosen = order.choices(examples, k=128)
        batch = words([text for text, _ in chosen], return_tensors="pt", padding=True)
        return model(**batch, labels=torch.tensor([int(label) for _, label in chosen])).loss

    for step, value in _descend(model, SCORER_STEPS, 5e-3, loss):
        report("scorer", step, SCORER_STEPS, value)
    return model.eval()


def save(model: PreTrainedModel, words: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes model and tokenizer in Hugging Face layout."""
    model.save_pretrained(directory)
    words.save_pretrained(directory)


def _descend(
    model: PreTrainedModel, steps: int, learning_rate: float, loss_of: Callable[[], Tensor]
) -> Iterator[tuple[int, float]]:
    """AdamW with a short warm-up and a linear way down; yields every step's loss."""
    model.train()
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    warm_up = max(1, steps // 20)
    for step in range(1, steps + 1):
        rate = learning_rate * min(step / warm_up, (steps - step + 1) / (steps - warm_up + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step, float(loss.detach())


def _next_loss(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def _packed(texts: Sequence[list[int]], course: Course) -> Iterator[Tensor]:
    """Yields [sequences, length] batches of all texts, in a new order every time round."""
    order = random.Random(course.seed)
    size = course.sequences * course.length
    stream: list[int] = []
    while True:
        for text in order.sample(texts, len(texts)):
            stream += text
            if len(stream) >= size:
                yield torch.tensor(stream[:size]).view(course.sequences, course.length)
                del stream[:size]
