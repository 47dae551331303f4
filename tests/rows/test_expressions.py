"""Expressions of a recipe read a row's columns and nothing else, whatever polars' SQL could do."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import polars as pl
import pytest

from spunge.errors import DataError
from spunge.rows.expressions import FUNCTIONS, MAX_CHARACTERS, check, panics_unheard
from spunge.rows.sources import Corpus

ROWS = pl.DataFrame(
    {
        "n": [1, 2], "x": [0.1, 0.2], "s": ["a", "b\\"], "b": [True, False], "l": [[1, 2], [3, 4]],
        "texts": [["a"], ["b"]], "d": [datetime.date(2020, 1, 1)] * 2, "from": [1, 2],
    }
)  # fmt: skip
CALLS_BY_ARGUMENTS = {
    "x": """abs acos acosd asin asind atan atand cbrt ceil ceiling cos cosd cot cotd degrees exp floor ln log10 log1p
        log2 radians round sign sin sind sqrt tan tand""",
    "s": """bit_length char_length character_length initcap length lower ltrim normalize octet_length reverse rtrim
        trim upper""",
    "l": "array_length array_mean array_reverse array_sum array_unique array_lower array_upper",
    "n, 1": "bit_and bit_or bit_xor coalesce div greatest ifnull least log mod nullif pow power",
    "s, 'a'": "concat ends_with regexp_like starts_with string_to_array strpos",
    "s, 1": "left right substr substring",
    "x, n": "atan2 atan2d",
    "l, 1": "array_contains array_get",
    "s, 'a', 'b'": "regexp_replace replace",
    "n": "bit_count bit_not",
    "texts, ','": "array_to_string",
    "n AS varchar": "cast try_cast",
    "'-', s, s": "concat_ws",
    "'2020-01-01'": "date",
    "'year', d": "date_part",
    "b, 1, 2": "if",
    "": "pi",
    "'a' IN s": "position",
    "d": "quarter",
    "s, 'a', 1": "split_part",
    "d, '%Y'": "strftime",
    "'2020-01-01', '%Y-%m-%d'": "strptime",
    "'2020-01-01 00:00:00'": "timestamp",
}
CALLS = [f"{name}({arguments})" for arguments, names in CALLS_BY_ARGUMENTS.items() for name in names.split()]


def test_every_function_that_is_allowed_is_one_that_was_looked_at() -> None:
    assert {call.partition("(")[0] for call in CALLS} == FUNCTIONS


@pytest.mark.parametrize("call", CALLS)
def test_a_scalar_function_is_allowed(call: str) -> None:
    assert len(Corpus(ROWS).evaluate(call, label="where")) == 2
    check(call.replace(call.partition("(")[0], call.partition("(")[0].upper(), 1))


@pytest.mark.parametrize(
    "expression",
    [
        "n >= 3", "n + 1.5e-3 * -x", "s = 'it''s'", r"regexp_like(s, '^\w+\\$')", "n IN (1, 2) AND NOT (b OR x < 1)",
        "s || 'a' LIKE '%a'", "CASE WHEN (n > 1) THEN (1) ELSE (2) END", '"from" = 1', "n::int", "l[1] = 2",
        "CAST(x AS decimal(10, 2)) > 1", "n BETWEEN (0) AND (1)", "s IS NOT NULL", "größe", "d > DATE '2020-01-01'",
    ],
)  # fmt: skip
def test_columns_constants_and_operators_are_allowed(expression: str) -> None:
    check(expression)


@pytest.mark.parametrize("expression", ["greatest()", "least()", "div(1, NULL)", "div(1e999, b)"])
def test_what_polars_panics_of_is_one_line(expression: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="polars panics"):
        Corpus(ROWS).evaluate(expression, label="where")
    assert not capfd.readouterr().err


OTHER_FUNCTIONS = """
    approx_count_distinct approx_quantile array_agg avg bool_and columns corr count covar covar_pop covar_samp
    cume_distinct cume_dist current_date date_trunc dense_rank first first_value generate_series grouping
    grouping_id lag last last_value lead localtime max median min now nth_value ntile percent_rank quantile_cont
    quantile_disc rank read_csv read_ipc read_json read_ndjson read_parquet row_number stddev stdev sum unnest
    var variance scan_csv a_function_of_the_future
"""


@pytest.mark.parametrize("name", OTHER_FUNCTIONS.split())
def test_any_other_function_is_refused(name: str) -> None:
    for call in (f"{name}(n)", f"{name.upper()} (n)", f"abs({name}('x'))", f'"{name}"(n)', f"a.{name}\n(n)"):
        with pytest.raises(ValueError, match=r"may (not )?be used"):
            check(call)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("n IN (SELECT n FROM read_csv('FILE'))", "SELECT may not be used"),
        ("n IN (FROM read_csv('FILE'))", "FROM may not be used"),
        ("EXISTS (TABLE x)", "may"),
        ("(WITH t AS (n) n)", "WITH may not be used"),
        ("n > current_date", "current_date may not be used"),
        ("sum(n) OVER (n)", "sum"),
        ("n -- x\n = 1", "'--' is nothing"),
        ("n /* x */ = 1", "is nothing"),
        ("n = 1; n", "';' is nothing"),
        ("`n` = 1", "'`' is nothing"),
        ("s = $$x$$", r"'\$' is nothing"),
        (r"s = E'a\' || (SELECT 1) || '", "is no way to write a text"),
        ("s = N'a'", "is no way to write a text"),
        ("s = 'a", '"\'" is nothing'),
        ("(" * 201 + "n" + ")" * 201, "nested more than 30 levels"),
        ("CASE WHEN b THEN " * 201 + "1" + " END" * 201, "nested more than 30 levels"),
        ("n = 1" + " OR n = 1" * 8000, f"more than an expression may have .{MAX_CHARACTERS}"),
    ],
)
def test_what_reads_more_than_a_row_is_refused_in_one_line(expression: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("n\n1\n")
    written = expression.replace("FILE", str(tmp_path / "secret.csv"))
    with pytest.raises(DataError, match=message) as raised:
        Corpus(ROWS).evaluate(written, label="where")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000


NAMESPACES = ("str", "dt", "list", "arr", "struct", "bin", "cat", "name", "meta")
OFFERED = {
    name
    for owner in (pl, pl.Expr, *(type(getattr(pl.col("n"), namespace)) for namespace in NAMESPACES))
    for name in dir(owner)
    if not name.startswith("_")
}
"""The names of all that polars can do; those of SQL are mostly among them."""
KNOWN_BESIDE = """
    Date Datetime Null Struct Time date datetime day erf erfc exclude extract hour limit minute month second select sort
    struct time truncate union week xor year
"""
NOT_OF_A_ROW = {*OTHER_FUNCTIONS.split(), *KNOWN_BESIDE.split()}
"""What polars' SQL knows beside the list, looked at: not needed, of more than a row, or no function at all."""


def is_known_to_sql(name: str) -> bool:
    """Whether polars' SQL makes anything of a call of this name."""
    for arguments in ("", "n", "n, 1"):
        try:
            with panics_unheard():
                pl.sql_expr(f"{name}({arguments})")
        except pl.exceptions.PanicException:
            return True
        except Exception as error:
            if "unsupported" not in str(error) and "not supported" not in str(error):
                return True
        else:
            return True
    return False


def test_what_polars_offers_is_refused_until_somebody_has_looked_at_it() -> None:
    refused = [name for name in sorted(OFFERED) if name.lower() not in FUNCTIONS]
    assert len(refused) > 400
    for name in refused:
        if name in ("and_", "not_", "or_", "in", "not", "is", "when", "then", "and", "or", "Decimal"):
            continue  # keywords or types, which may stand before a parenthesis
        with pytest.raises(ValueError, match="may"):
            check(f"{name}(n)")
    new = [name for name in refused if is_known_to_sql(name) and name not in NOT_OF_A_ROW]
    assert not new, "polars' SQL knows these now: look at each, then list it here or in FUNCTIONS"


def test_a_backslash_ends_no_text() -> None:
    # Were it an escape in polars, a text could hide a subquery from the check.
    assert Corpus(ROWS).mask(r"s = 'b\' OR s = 'a'") == [True, True]


def test_polars_reads_files_when_it_is_not_checked(tmp_path: Path) -> None:
    # Should this fail one day, the check may go.
    (tmp_path / "rows.csv").write_text("secret\n1\n")
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="secret"):
        pl.sql_expr(f"n IN (SELECT n FROM read_csv('{tmp_path / 'rows.csv'}'))")


@pytest.mark.parametrize(
    "expression",
    [
        "1" + "+1" * 4_900 + " > 0",
        " OR ".join(["a = 1"] * 800),
        "a" + " || a" * 900 + " = 'x'",
        "NOT " * 2_000 + "(a = 1)",
        "a = " + "- " * 3_000 + "1",
    ],
)
def test_a_long_chain_is_refused_before_polars_takes_minutes_or_the_process_with_it(expression: str) -> None:
    with pytest.raises(ValueError, match="more than 400 operators"):
        check(expression)


def nested(call: str, depth: int, inner: str) -> str:
    for _ in range(depth):
        inner = call.format(inner)
    return inner


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (f"n IN (n{', n' * 600})", "columns are named more than 300 times"),
        ("+".join([nested("array_get(l, {})", 5, "n")] * 60), "nested so deep"),
        (nested("array_get(l, {})", 8, "n"), "nested so deep"),
        (nested("right({}, 1)", 20, "s"), "nested so deep"),
        (nested("cast({})", 20, "n"), "nested so deep"),
        (nested("NOT({})", 40, "b"), "nested more than 30 levels"),
        (nested("CASE WHEN b THEN {} END", 40, "n"), "nested more than 30 levels"),
        (nested(f"replace({{}}, 'a', '{'a' * 60}')", 4, "s"), "may make a text more than 10000 times longer"),
        (nested("replace({}, 'a', s)", 3, "s"), "may make a text more than 10000 times longer"),
        (nested(f"array_to_string(string_to_array({{}}, ''), '{'a' * 60}')", 3, "s"), "may make a text more than"),
    ],
)
def test_what_would_take_polars_minutes_or_all_memory_is_refused(expression: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Corpus(ROWS).evaluate(expression, label="where")


@pytest.mark.parametrize(
    "expression",
    [
        nested("replace({}, 'the thing', 'something else that is somewhat longer')", 5, "s"),
        nested("replace({}, 'a', '')", 11, "s"), nested("lower(trim({}))", 6, "s"), nested("right({}, 1)", 8, "s"),
        nested("(b AND (n > 1 OR {}))", 10, "b"), "n IN (1" + ", n" * 290 + ")",
    ],
)  # fmt: skip
def test_what_is_nested_to_a_purpose_is_read_in_little_time(expression: str) -> None:
    began = time.process_time()
    assert len(Corpus(ROWS).evaluate(expression, label="where")) == 2
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a:b", "`:` is nothing that can be evaluated"),
        ("x -> x", "`->` is nothing that can be evaluated"),
        ("s -> 'x'", "no field 'x': `->` leads to nothing"),
        ("s SIMILAR TO 'x'", "SIMILAR TO is nothing that can be evaluated"),
        ("(n, n) = (1, 1)", "Tuple is nothing"),
        (":x = n", "Placeholder is nothing"),
        ("n IS UNKNOWN", "IS UNKNOWN is nothing"),
        ("greatest()", "polars panics: something in it is nothing"),
        ("regexp_like(s, '(')", "unclosed group"),
    ],
)
def test_what_polars_says_in_rust_is_said_in_words(expression: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        Corpus(ROWS).evaluate(expression, label="where")
    assert not any(mark in str(raised.value) for mark in ("Span(", "Ident", "Err", "{"))
    assert "\n" not in str(raised.value)


def test_many_values_and_a_chain_of_some_length_are_read() -> None:
    rows = Corpus(pl.DataFrame({"text": ["1", "2"], "a": [1, 2]}))
    assert rows.where(f"a IN ({', '.join(map(str, range(2, 1_800)))})").texts == ["2"]
    assert rows.where(" OR ".join(["a = 1"] * 100)).texts == ["1"]
    with pytest.raises(DataError, match=r"column IN \(…\)"):
        rows.where(" OR ".join(["a = 1"] * 300))
