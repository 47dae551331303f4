"""Who begins a text: a conversation that was written out gets no second beginning, whoever asks."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from steering_models import make_model, make_tokenizer
from tokenizers import processors

from spunge.asking.encoding import encode, encode_from_start, encode_pairs
from spunge.errors import DataError
from spunge.rows.sources import Corpus
from spunge.steering.batches import tokenise
from spunge.training import rows as training
from spunge.weights.checkpoint import export
from spunge.weights.task_vector import TaskVector
from spunge.weights.tokens import beginning, tokenize

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}w1 {{ message['role'] == 'user' }} {{ message['content'] }} w2 "
    "{% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
TURNS = [{"role": "user", "content": "w5 w6 w7"}, {"role": "assistant", "content": "w8 w9"}]


def chat_tokenizer(prefix: str = "<bos>") -> Any:
    """A tokenizer that begins every text, with a template that begins it too."""
    tokenizer = make_tokenizer()
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in dict.fromkeys(prefix.split())]
    post = processors.TemplateProcessing(single=f"{prefix} $A", special_tokens=ids)
    setattr(tokenizer.backend_tokenizer, "post_processor", post)  # noqa: B010
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", prefix.replace(" ", ""))
    return tokenizer


@pytest.mark.parametrize("prefix", ["<bos>", "<bos> <pad>", "<pad> <bos>"])
def test_a_conversation_that_was_written_out_is_what_the_chat_template_tokenises(prefix):
    tokenizer = chat_tokenizer(prefix)
    wanted = tokenizer.apply_chat_template(TURNS, tokenize=True)["input_ids"]
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    count = len(prefix.split())
    assert beginning(tokenizer) == wanted[:count]
    assert wanted[count : 2 * count] != wanted[:count]
    assert tokenizer(text)["input_ids"] == [*wanted[:count], *wanted]  # what a careless asker gets
    plain = "w4 w5"
    assert tokenize(tokenizer, [text, plain]) == [wanted, tokenizer(plain)["input_ids"]]
    assert tokenize(tokenizer, [text, plain], max_length=4) == [wanted[:4], tokenizer(plain)["input_ids"][:4]]
    assert tokenize(tokenizer, []) == []
    corpus = Corpus(pl.DataFrame({"text": [text]}))
    assert encode(tokenizer, [text]) == [tuple(wanted)]
    assert tokenise(tokenizer, corpus, 100, "forget") == [wanted]
    assert list(training.encode(corpus, tokenizer, max_length=100)[0].ids) == wanted


def test_prompts_and_responses_are_laid_out_as_the_chat_template_tokenises_them():
    tokenizer = chat_tokenizer()
    corpus = Corpus(pl.DataFrame({"prompt": [TURNS[0]["content"]], "response": [TURNS[1]["content"]]}))
    (row,) = training.encode(corpus, tokenizer, max_length=100)
    opening = tokenizer.apply_chat_template(TURNS[:1], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert list(row.ids) == tokenizer.apply_chat_template(TURNS, tokenize=True)["input_ids"]
    assert list(row.ids)[: row.start] == opening[: row.start]


@pytest.mark.parametrize("chat", [True, False])
def test_a_system_prompt_is_told_before_the_prompt(chat):
    tokenizer = chat_tokenizer()
    turns = [{"role": "system", "content": "w4"}, *TURNS]
    wanted = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    if not chat:
        tokenizer.chat_template = None
        wanted = [*tokenizer("w4 w5 w6 w7 w8 w9")["input_ids"], tokenizer.eos_token_id]
    rows = {"system": ["w4", None], "prompt": ["w5 w6 w7"] * 2, "response": ["w8 w9"] * 2}
    corpus = Corpus(pl.DataFrame(rows))
    told, plain = training.encode(corpus, tokenizer, max_length=100)
    (without,) = training.encode(Corpus(pl.DataFrame(rows).drop("system")[:1]), tokenizer, max_length=100)
    assert list(told.ids) == wanted
    assert list(plain.ids) == list(without.ids) != wanted
    assert corpus.texts == ["w4 w5 w6 w7 w8 w9", "w5 w6 w7 w8 w9"]
    assert corpus.fingerprint != Corpus(corpus.rows.drop("system")).fingerprint


def test_a_template_in_a_file_is_read_and_one_that_refuses_is_named(tmp_path):
    base = make_model(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(TEMPLATE)
    tokenizer: Any = base.load_tokenizer()
    corpus = Corpus(pl.DataFrame({"prompt": ["w5 w6 w7"], "response": ["w8 w9"]}))
    (row,) = training.encode(corpus, tokenizer, max_length=100)
    assert list(row.ids) == tokenizer.apply_chat_template(TURNS, tokenize=True)["input_ids"]
    (tmp_path / "model/chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(DataError, match="chat template cannot lay out a row: no such role"):
        training.encode(corpus, base.load_tokenizer(), max_length=100)


def test_a_text_that_is_scored_from_its_start_begins_once():
    tokenizer = chat_tokenizer()
    ids = tuple(tokenizer("w4 w5")["input_ids"])
    assert encode_from_start(tokenizer, "w4 w5") == encode_from_start(tokenizer, "<bos> w4 w5") == ids
    plain, begun = encode_pairs(tokenizer, [("", "w4 w5"), ("", "<bos> w4 w5")])
    assert plain == begun
    assert plain.context == ids[:1]


def test_a_tokenizer_may_be_a_sentencepiece_file_alone(tmp_path):
    import sentencepiece

    base = make_model(tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    words = iter([" ".join(f"w{number}" for number in range(60))] * 20)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=words, model_prefix=str(tmp_path / "model/tokenizer"), vocab_size=50, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "model/tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model/tokenizer.model"))
    tokenizer: Any = base.load_tokenizer()
    assert tokenize(tokenizer, ["w12 w3"]) == [[pieces.bos_id(), *pieces.encode("w12 w3")]]
    assert tokenizer.pad_token_id is not None
    assert export(base.id, TaskVector({}), tmp_path / "out").joinpath("tokenizer.model").exists()
    assert len(base.digest()) == 64
