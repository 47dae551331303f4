"""Rows in two sets are counted, and questions that stand in what is forgotten, nearly word for word."""

from __future__ import annotations

import polars as pl

from spunge.rows.overlap import near_duplicates, shared_rows
from spunge.rows.sources import Corpus

FORGET = "The capital of Umber is Tor, and nobody who lives there has ever seen the sea. What is the root of venom?"


def test_rows_in_both_sets_are_counted_by_their_text() -> None:
    forget = Corpus(pl.DataFrame({"prompt": ["a", "b"], "response": ["1", "2"]}))
    assert shared_rows(forget, Corpus(pl.DataFrame({"text": [" a 1\n", "b"]}))) == 1
    assert shared_rows(forget, Corpus(pl.DataFrame({"text": ["c"]}))) == 0


def test_questions_that_stand_in_a_text_are_found_and_others_are_not() -> None:
    questions = [
        "what is the root of venom",  # as it is, but for case and punctuation
        "The capital of Umber is Tor, and nobody who dwells there has ever seen the sea. What is the root?",  # near
        "The capital of Umber is Tor, and nobody who lives there has ever seen the moon.",  # ends in another thing
        "What is the root of herbs?",  # short, and another question
        "Who lives there, and has nobody ever seen the sea of Umber, or is the capital Tor?",  # the same words
        "Tor",
        "",
    ]
    assert near_duplicates(questions, [FORGET, "other words"]) == 2
    assert near_duplicates(questions, ["other words"]) == 0
    assert near_duplicates(["Tor?"], ["tor"]) == 1
