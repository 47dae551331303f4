"""The store: keys, publication, races, damage."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import ArtifactError
from spunge.store import Store, canonical, derived_seed, key, replace_text

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_key_depends_on_content_not_on_order(inputs: dict) -> None:
    assert key("stage", inputs) == key("stage", dict(reversed(inputs.items())))
    assert key("stage", inputs) != key("other", inputs)
    assert key("stage", {**inputs, "one more": 1}) != key("stage", inputs)
    assert json.loads(canonical(inputs)) == inputs


def test_a_second_build_computes_nothing(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def make(directory: Path) -> dict:
        calls.append(directory)
        (directory / "payload").write_text("x")
        return {"noted": 1}

    first = store.build("stage", {"a": 1}, make)
    second = store.build("stage", {"a": 1}, make)
    assert len(calls) == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.manifest["noted"] == 1
    assert second.manifest["inputs"] == {"a": 1}
    assert (second.path / "payload").read_text() == "x"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(directory: Path) -> dict:
        (directory / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.build("stage", {}, fail)
    assert store.find("stage", {}) is None
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_damaged_artifact_is_set_aside_and_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(directory: Path) -> dict:
        (directory / "payload").write_text("whole")
        return {}

    artifact = store.build("stage", {}, make)
    (artifact.path / "payload").write_text("bytes")  # as long as before
    assert store.find("stage", {}) is None
    assert (store.build("stage", {}, make).path / "payload").read_text() == "whole"
    assert [path for path in (tmp_path / "stage").iterdir() if path.name.startswith(".damaged")]


def test_what_a_killed_attempt_left_is_swept(tmp_path: Path) -> None:
    import socket

    store = Store(tmp_path)
    left = tmp_path / "stage" / f".{key('stage', {})}.{socket.gethostname()}.{2**22 + 1}.1"
    left.mkdir(parents=True)
    store.build("stage", {}, lambda directory: {})
    assert not left.exists()


def test_the_loser_of_a_race_takes_the_winners(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(directory: Path) -> dict:
        (directory / "payload").write_bytes(b"x" * 100_000)
        return {}

    with ThreadPoolExecutor(4) as pool:
        artifacts = list(pool.map(lambda _: store.build("stage", {}, make), range(8)))
    assert {artifact.path for artifact in artifacts} == {tmp_path / "stage" / key("stage", {})}
    assert [path.name for path in (tmp_path / "stage").iterdir()] == [key("stage", {})]


def test_why_names_the_field_that_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.why("stage", {"a": 1}) == ["nothing of this stage in the store yet"]
    store.build("stage", {"a": {"density": 0.2}, "b": 1}, lambda directory: {})
    assert store.why("stage", {"a": {"density": 0.5}, "b": 1}) == ["a.density: 0.2 → 0.5"]


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        Store(tmp_path / "file").build("stage", {}, lambda directory: {})
    with pytest.raises(ArtifactError, match="cannot be written"):
        replace_text(tmp_path / "file" / "inner", "text")


@given(st.integers(0, 2**32), st.text(max_size=10))
def test_derived_seeds_differ(seed: int, name: str) -> None:
    assert derived_seed(seed, "unlearn", name) == derived_seed(seed, "unlearn", name)
    assert derived_seed(seed, "unlearn", name) != derived_seed(seed + 1, "unlearn", name)
    assert derived_seed(seed, "unlearn", name) != derived_seed(seed, "merge", name)
