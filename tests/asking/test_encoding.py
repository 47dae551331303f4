"""Contexts and continuations as tokens, and what of them fits a model's window."""

from evaluate_models import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from spunge.asking.encoding import Request, encode, encode_pairs, fit_to_window

ids = st.lists(st.integers(3, 299), min_size=1, max_size=6)


@settings(deadline=None)
@given(context=ids, continuation=ids, length=st.integers(2, 10))
def test_what_is_too_long_is_cut_from_the_left(context, continuation, length):
    request, cut = fit_to_window(Request(tuple(context), tuple(continuation)), length)
    whole = context + continuation
    assert cut == (len(whole) > length + 1)
    assert [*request.context, *request.continuation] == whole[-(length + 1) :]
    assert request.context
    assert len(request.continuation) == min(len(continuation), length)


def test_blanks_belong_to_the_continuation_and_an_empty_context_becomes_the_beginning():
    tokenizer = byte_tokenizer()
    blank, plain = encode_pairs(tokenizer, [("Answer: ", "A"), ("Answer:", " A")])
    assert blank == plain
    assert tokenizer.decode(list(plain.continuation)) == " A"
    (empty,) = encode_pairs(tokenizer, [("", "A")])
    assert empty.context == (tokenizer.bos_token_id,)
    assert tokenizer.decode(list(empty.continuation)) == "A"


def test_a_text_that_begins_with_the_beginning_token_gets_no_second_one():
    tokenizer = byte_tokenizer()
    assert encode(tokenizer, ["<s>ab", "ab"])[0] == encode(tokenizer, ["ab"])[0]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Knows `ab` as one token beside `a` and `b`: a context `a` and a continuation `b` merge."""
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5}
    tokenizer = Tokenizer(BPE(vocabulary, [("a", "b"), ("b", "c")]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def test_what_merges_with_its_context_is_tokenised_apart():
    tokenizer = merging_tokenizer()
    assert tokenizer.encode("cab") == [3, 4]
    merged, half, plain = encode_pairs(tokenizer, [("ca", "b"), ("ca", "bc"), ("ca", "c")])
    assert merged == Request((3, 1), (2,))
    assert half == Request((3, 1), (5,))  # the pair's tokens are c, ab, c: the cut would leave c alone
    assert plain == Request((3, 1), (3,))
