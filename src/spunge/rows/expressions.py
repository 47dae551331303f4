"""What an expression of a recipe may say: a row's columns, constants and scalar functions, so that it reads no more.

Polars' SQL also knows subqueries over `read_csv('/etc/passwd')` or an address on the network. What is not listed here
is refused, so a function that a later polars brings stays refused until somebody has looked at it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

MAX_CHARACTERS = 10_000
MAX_LEVELS = 30
MAX_OPERATORS = 400
"""A chain of them is as deep as it is long: polars takes 17 s for 800 ORs, and 800 `||` end the process."""
MAX_NAMES = 300
"""Of columns, each as often as it is written: polars takes 0.6 s for `n IN (n, …)` of as many, and minutes for 600."""
MAX_COST = 100_000
"""Tokens, each as often as polars meets it: it takes 2 s for 14 nested `right`, and twice as long for one more."""
MAX_GROWTH = 10_000
"""How many times longer nested replacements may make a text: five of a hundred letters would fill any memory."""

_FUNCTIONS_IN_WORDS = """
    abs acos acosd array_contains array_get array_length array_lower array_mean array_reverse array_sum
    array_to_string array_unique array_upper asin asind atan atan2 atan2d atand bit_and bit_count bit_length bit_not
    bit_or bit_xor cast cbrt ceil ceiling char_length character_length coalesce concat concat_ws cos cosd cot cotd
    date date_part degrees div ends_with exp floor greatest if ifnull initcap least left length ln log
    log10 log1p log2 lower ltrim mod normalize nullif octet_length pi position pow power quarter radians regexp_like
    regexp_replace replace reverse right round rtrim sign sin sind split_part sqrt starts_with strftime
    string_to_array strpos strptime substr substring tan tand timestamp trim try_cast upper
"""
FUNCTIONS = frozenset(_FUNCTIONS_IN_WORDS.split())
"""Each gives one value for each row, from that row alone."""

_KEYWORDS_IN_WORDS = """
    and between case else ilike in like not or regexp rlike then when
"""
_KEYWORDS = frozenset(_KEYWORDS_IN_WORDS.split())
"""What may stand before a parenthesis without being a function."""
_COPIES = {"array_get": 5, "right": 3}
"""How often what stands in a call is in the expression that polars makes of it; for any other word it counts as two,
as polars reads it anew where what follows is not what it took it for (`cast(cast(…))`)."""
_GROWING = frozenset(["replace", "regexp_replace", "array_to_string"])
_CONSTANTS = frozenset(["null", "true", "false", "is", "as", "date", "int", "integer", "varchar", "end", "distinct"])
_OPERATORS = frozenset(["and", "or", "not", "like", "ilike", "rlike", "regexp", "between"])
_TYPES = frozenset(["char", "decimal", "float", "numeric", "varchar"])
"""What may take a size in parentheses after a cast."""

_REFUSED_IN_WORDS = """
    current_date current_time current_timestamp except exists from intersect join localtime localtimestamp over
    select table union values with
"""
REFUSED = frozenset(_REFUSED_IN_WORDS.split())
"""Words that lead to other rows, to a table, or to the clock; a column of such a name is written in double quotes."""

# Polars takes a backslash in a text literally (a regular expression needs it), so only a doubled quote goes on.
_TOKENS = re.compile(
    r"""
    \s+ | (?P<comment>--|/\*) | (?P<text>'(?:[^']|'')*') | (?P<quoted>"[^"]*")
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?) | (?P<word>[^\W\d]\w*) | (?P<open>[(\[]) | (?P<close>[)\]])
    | (?P<sign>[-+*/%<>=!|&^~\#,.:])
    """,
    re.VERBOSE,
)


@contextmanager
def panics_unheard() -> Iterator[None]:
    """Closes stderr's ear to Rust, which writes there what it panics of (`div(1, NULL)`) before Python hears of it."""
    with open(os.devnull, "wb") as nowhere:
        heard = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(heard, 2)
        os.close(heard)


@dataclass
class _Nest:
    """A parenthesis, a bracket or a CASE that is open."""

    word: str = ""
    """What stands before it."""
    cost: int = 1
    """How often polars meets what stands in it."""
    argument: int = 0
    replaced: int = 1
    """Letters that a replacement takes out at a time, at least."""
    written: int = 1
    """Letters that it writes instead; a column's count as a hundred."""
    growth: float = 1.0
    """How many times longer a text has become in it."""


def check(expression: str) -> None:
    """Refuses an expression that says more than a row's columns, constants and scalar functions.

    Raises:
        ValueError: It does; the message says what in it is refused.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"{len(expression)} characters are more than an expression may have ({MAX_CHARACTERS})")
    position = operators = names = cost = 0
    nests = [_Nest()]
    before, word = "", ""  # the kind of the token before this one, and the word that it is
    while position < len(expression):
        token = _TOKENS.match(expression, position)
        kind, text = (token.lastgroup, token[0]) if token else ("", expression[position])
        if kind in ("", "comment"):
            raise ValueError(f"{text!r} is nothing that an expression may hold")
        touches = position == 0 or not expression[position - 1].isspace()
        if kind in ("text", "quoted") and touches and before in ("word", "text", "quoted"):
            raise ValueError(f"{expression[max(0, position - 12) : position + 1]!r} is no way to write a text here")
        if kind == "open" and text == "(":
            _check_call(before, word)
        lower = text.lower()
        if kind == "word" and lower in REFUSED:
            raise ValueError(f"{text} may not be used: only a row's columns, constants and scalar functions")
        operators += (kind == "sign" and text not in ",.:#") or lower in _OPERATORS
        named = kind == "quoted" or (kind == "word" and lower not in FUNCTIONS | _KEYWORDS | _TYPES | _CONSTANTS)
        names += named
        if kind == "open" or lower == "case":
            called = word.lower() if before == "word" and kind == "open" and text == "(" else ""
            copies = 1 if called in _KEYWORDS | {""} else _COPIES.get(called, 2)
            nests.append(_Nest(called, nests[-1].cost * copies))
        elif (kind == "close" or lower == "end") and len(nests) > 1:
            closed = nests.pop()
            grows = max(1.0, closed.written / closed.replaced) if closed.word in _GROWING else 1.0
            nests[-1].growth = max(nests[-1].growth, closed.growth * grows)
        elif text == ",":
            nests[-1].argument += 1
        elif (named or kind == "text") and nests[-1].argument:
            letters, inner = 100 if named else len(text) - 2, nests[-1]
            if inner.argument == 1 and inner.word == "replace" and kind == "text":
                inner.replaced = max(1, letters)
            elif inner.argument > 1 or inner.word == "array_to_string":
                inner.written = max(inner.written, letters)
        cost += nests[-1].cost if kind is not None else 0
        _check_size(operators, names, len(nests) - 1, cost, nests[-1].growth)
        if kind is not None:
            before, word = kind, text
        position += len(text)


def _check_size(operators: int, names: int, levels: int, cost: int, growth: float) -> None:
    """Refuses what would take polars minutes, or the memory, whatever the rows are."""
    if levels > MAX_LEVELS:
        raise ValueError(f"nested more than {MAX_LEVELS} levels deep")
    if operators > MAX_OPERATORS:
        raise ValueError(f"more than {MAX_OPERATORS} operators; of many values of a column write `column IN (…)`")
    if names > MAX_NAMES:
        raise ValueError(f"columns are named more than {MAX_NAMES} times")
    if cost > MAX_COST:
        raise ValueError("functions are nested so deep that polars would take minutes: compute in several steps")
    if growth > MAX_GROWTH:
        raise ValueError(f"nested replacements may make a text more than {MAX_GROWTH} times longer")


def _check_call(before: str, word: str) -> None:
    """Refuses a call of what is no function of the list; a function's name in quotes is none either."""
    if before == "quoted" or (before == "word" and word.lower() not in FUNCTIONS | _KEYWORDS | _TYPES):
        raise ValueError(f"{word}() is no function that may be used: only those that give one value for each row")


def in_words(error: Exception) -> str:
    """Returns what polars says of an expression, in one line, without the Rust structures that it may quote."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = " ".join([lines[0], *(line for line in lines[1:] if line.startswith("error:"))])[:300]
    if isinstance(error, pl.exceptions.StructFieldNotFoundError):
        return f"no field {said!r}: `->` leads to nothing"
    if not any(mark in str(error) for mark in _RUST):
        return said
    form = re.search(r"^(?:expression|value) (\w+)", said)
    form_in_words = _FORMS.get(form[1], form[1]) if form else "`->`" if "path-extract" in said else "something in it"
    return f"{form_in_words} is nothing that can be evaluated"


_RUST = ("Span(", "Ident {", "Placeholder(", "ErrString(", "Tuple([")
_FORMS = {"JsonAccess": "`:`", "SimilarTo": "SIMILAR TO", "Collate": "COLLATE", "IsUnknown": "IS UNKNOWN"}
