"""YAML as plain values with positions; what is none, or too much, is refused in one line and in little time."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import RecipeError
from spunge.recipe import reading, yaml


def test_values_and_positions() -> None:
    document = yaml.load("a: 1\nb:\n  - {c: x}\n  - [0o17, 1_000, ~]\n'null': 2020-01-01\n", "r.yaml")
    assert document.settings == {"a": 1, "b": [{"c": "x"}, [15, 1000, None]], "null": "2020-01-01"}
    assert document.origin(("b", "0", "c")) == "r.yaml:3:6"
    assert document.origin(("b", "1", "2")) == "r.yaml:4:19"
    assert document.origin(("b", "0", "nowhere")) == "r.yaml:3:5"
    assert document.origin(("nowhere",)) == "r.yaml:1:1"


def test_keys_that_yaml_takes_for_other_things_stay_names() -> None:
    assert yaml.load("{null: a, true: b, 1: c, 1.5: d, no: e}", "r").settings == {
        "null": "a", "true": "b", "1": "c", "1.5": "d", "no": "e"
    }  # fmt: skip


def test_mappings_are_merged() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], y: 3}\nd: {y: 4, <<: *a}\n"
    settings = yaml.load(text, "r").settings
    assert settings["c"] == {"x": 1, "y": 3, "z": 2}
    assert settings["d"] == {"x": 1, "y": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"^r:\d+:\d+: not YAML: "),
        ("a: 1\na: 2", r"^r:2:1: not YAML: found duplicate key 'a'"),
        ("null: 1\n~: 2", r"^r:2:1: not YAML: found duplicate key 'null'"),
        ("? [a]\n: 1", r"^r:1:3: the name of a setting must be plain text"),
        ("a: !!python/object:os.system {}", r"^r:1:4: not YAML that a recipe may hold"),
        ("a: !!binary aaaa", r"^r:1:4: not YAML that a recipe may hold"),
        ("a: {b: [0, .nan]}", r"^r:1:12: a\.b\.1: must be a finite number, not \.nan"),
        ("a: -.inf", r"^r:1:4: a: must be a finite number"),
        ("a: 1e999", r"^r:1:4: a: must be a finite number"),
        ("a: &a {<<: *a}", r"^r: not YAML: "),
        ("a: {<<: 1}", r"^r:1:9: not YAML: '<<' takes a mapping"),
        ("a: " + "[" * 60 + "]" * 60, r"^r:1:5\d: not YAML: .*depth"),
        ("a: " + "[" * 5000, r"^r:1:\d+: not YAML: "),
        ("a: " + "9" * 5000, r"^r: not YAML: "),
        ("a: 1\n---\nb: 2", r"^r:\d:\d: not YAML: but found another document"),
        ("\x00", r"^r: not YAML: "),
        (b"\xff\xfe\xfd", r"^r: not YAML: "),
    ],
)
def test_what_is_no_recipe_is_named_with_its_position(text: str | bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        yaml.load(text, "r")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["- a", "just words", "", "\x00", "a: &a [*a]", "x: !!python/object:os.system {}"])
def test_what_is_no_mapping_of_settings(text: str) -> None:
    with pytest.raises(RecipeError):
        reading.parse(text, name="r.yaml")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize("bomb", [BOMB, MERGES])
def test_alias_bombs_are_defused(bomb: str) -> None:
    with pytest.raises(RecipeError, match="more than a recipe may hold"):
        reading.parse(bomb)


def test_reading_stops_at_the_first_entry_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "MAX_NODES", 1_000)
    with pytest.raises(RecipeError, match=r"^r:999:3: not YAML: more entries than a recipe may hold"):
        yaml.load("seeds:\n" + "- x\n" * 2_000 + "]]", "r")


def test_a_list_of_880_kilobytes_is_read_in_linear_time() -> None:
    def seconds(entries: int) -> float:
        began = time.process_time()
        document = yaml.load("values:\n" + "".join(f"- v{at:04d}\n" for at in range(entries)), "r")
        assert len(document.settings["values"]) == entries
        assert document.origin(("values", str(entries - 1))) == f"r:{entries + 1}:3"
        return time.process_time() - began

    tenth, whole = seconds(11_000), seconds(110_000)
    assert whole < 20 * tenth + 2


@given(st.text(max_size=60))
def test_any_text_is_yaml_or_a_clean_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        yaml.load(text, "r")
