"""What an expression of a recipe may say: a row's columns, constants and scalar functions, so that it reads no more.

Polars' SQL also knows subqueries over `read_csv('/etc/passwd')` or an address on the network. What is not listed here
is refused, so a function that a later polars brings stays refused until somebody has looked at it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

MAX_CHARACTERS = 10_000
MAX_LEVELS = 200
MAX_OPERATORS = 400
"""A chain of them is as deep as it is long: polars takes 17 s for 800 ORs, and 800 `||` end the process."""

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


def check(expression: str) -> None:
    """Refuses an expression that says more than a row's columns, constants and scalar functions.

    Raises:
        ValueError: It does; the message says what in it is refused.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"{len(expression)} characters are more than an expression may have ({MAX_CHARACTERS})")
    position = level = operators = 0
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
        if kind == "word" and text.lower() in REFUSED:
            raise ValueError(f"{text} may not be used: only a row's columns, constants and scalar functions")
        level += (kind == "open" or text.lower() == "case") - (kind == "close" or text.lower() == "end")
        if level > MAX_LEVELS:
            raise ValueError(f"nested more than {MAX_LEVELS} levels deep")
        operators += (kind == "sign" and text not in ",.:#") or text.lower() in _OPERATORS
        if operators > MAX_OPERATORS:
            raise ValueError(f"more than {MAX_OPERATORS} operators; of many values of a column write `column IN (…)`")
        if kind is not None:
            before, word = kind, text
        position += len(text)


def _check_call(before: str, word: str) -> None:
    """Refuses a call of what is no function of the list; a function's name in quotes is none either."""
    if before == "quoted" or (before == "word" and word.lower() not in FUNCTIONS | _KEYWORDS | _TYPES):
        raise ValueError(f"{word}() is no function that may be used: only those that give one value for each row")
