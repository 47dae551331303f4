"""The items of a suite are read once while their files stay, and each reader gets the columns that it asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spunge.errors import DataError
from spunge.rows import items
from spunge.rows.items import Focus, is_sampled, load_items
from spunge.rows.sources import Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    file = tmp_path / "suite.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}", "group": i % 2}) + "\n" for i in range(40)))
    return Source(path=str(file))


def test_a_suite_is_read_once_while_its_files_stay(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_items([source], needs=["text"], attributes=["group"], part="test")
    read = items.load_corpus
    monkeypatch.setattr(items, "load_corpus", lambda *_, **__: pytest.fail("read again"))
    again = load_items([source], part="test")
    assert [item.id for item in again] == [item.id for item in first]
    assert {item.attributes for item in again} == {"{}"}
    with pytest.raises(DataError, match="no column 'answer'; columns are text, group"):
        load_items([source], needs=["answer"], part="test")
    monkeypatch.setattr(items, "load_corpus", read)
    with Path(source.path).open("a") as file:
        file.write('{"text": "one more", "group": 0}\n' * 9)
    assert len(load_items([source])) == 49
    assert len({item.id for item in load_items([source])}) == 49  # the same row nine times is nine items


def test_a_large_suite_is_not_held(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_REMEMBERED", 39)
    assert len(load_items([source])) == 40
    monkeypatch.setattr(items, "load_corpus", lambda *_, **__: (_ for _ in ()).throw(LookupError))
    with pytest.raises(LookupError):
        load_items([source])


def test_a_focus_takes_what_is_about_it_and_the_same_random_sample_whatever_it_is(tmp_path: Path) -> None:
    file = tmp_path / "suite.jsonl"
    groups = [["women"], ["lgbtq", "physical dis"], "mexican", None]
    rows = [{"text": f"text {i}", "group": groups[i % 4] if i % 4 != 2 else ["mexican"]} for i in range(800)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def asked(value: str, *, needed: bool = True) -> dict[str, str]:
        focus = Focus(value=value, attributes=("group",), needed=needed)
        return {
            item.id: item.attributes for item in load_items([Source(path=str(file))], attributes=["group"], focus=focus)
        }

    everything = {item.id for item in load_items([Source(path=str(file))])}
    sample = {name for name in everything if is_sampled(name, 800)}
    assert 120 < len(sample) < 200
    assert {name for name in everything if is_sampled(name, 1000)} == sample
    for value, spelled in {"women": "women", "lgbtq": "lgbtq", "physical_disability": "physical dis"}.items():
        mine = asked(value)
        about = {name for name, attributes in mine.items() if spelled in attributes}
        assert len(about) == 200
        assert mine.keys() == about | sample
    assert asked("nobody").keys() == everything
    assert asked("nobody", needed=False).keys() == sample


def test_of_a_small_suite_everything_is_in_the_sample() -> None:
    assert all(is_sampled(f"item {number}", 30) for number in range(30))
