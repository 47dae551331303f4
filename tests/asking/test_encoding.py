"""Contexts and continuations as tokens, and what of them fits a model's window."""

from evaluate_models import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

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
