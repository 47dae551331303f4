"""The store: keys, publication, races, damage."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import ArtifactError
from spunge.files import host, replace_text
from spunge.run.keys import canonical, derived_seed, key
from spunge.run.store import Store

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
    assert store.why("stage", {}) == ["payload is damaged"]
    assert list((tmp_path / "stage").iterdir()) == [artifact.path]  # looking changes nothing
    with pytest.warns(RuntimeWarning, match="payload is damaged, so it is made again"):
        assert (store.build("stage", {}, make).path / "payload").read_text() == "whole"
    assert [path for path in (tmp_path / "stage").iterdir() if path.name.startswith(".damaged")]


@pytest.mark.parametrize("damage", [lambda text: text.replace("whole", "other"), lambda text: text[:50], lambda _: ""])
def test_a_damaged_manifest_counts_as_damage(tmp_path: Path, damage: Callable[[str], str]) -> None:
    store = Store(tmp_path)
    file = store.build("stage", {}, lambda directory: {"noted": "whole"}).path / "manifest.json"
    file.write_text(damage(file.read_text()))
    assert [path for path, _ in store.damaged()] == [file.parent]
    with pytest.warns(RuntimeWarning, match=r"manifest\.json is damaged"):
        assert store.build("stage", {}, lambda directory: {"noted": "whole"}).manifest["noted"] == "whole"
    assert not list(store.damaged())


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spunge.run import store as module

    store = Store(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 2)
    artifact = store.build("stage", {}, lambda directory: {})
    monkeypatch.setattr(module, "FORMAT", 1)
    with pytest.raises(ArtifactError, match="newer Spunge"):
        store.build("stage", {}, lambda directory: {})
    assert artifact.path.is_dir()


def test_checkpoints_are_taken_over_from_the_dead_and_copied_from_the_living(tmp_path: Path) -> None:
    store = Store(tmp_path)
    dead = tmp_path / ".scratch" / "key" / f"{host()}.{2**22 + 1}.1"
    dead.mkdir(parents=True)
    (dead / "state").write_text("half")

    first = store.scratch("key")
    assert not dead.exists()
    second = store.scratch("key")
    assert first != second
    assert (first / "state").read_text() == (second / "state").read_text() == "half"
    (second / "state").unlink()
    store.tidy("key", done=False)  # a failure keeps what there is
    assert first.exists()
    assert not second.exists()
    store.tidy("key", done=True)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_right_after_publishing_left_goes_when_the_artifact_is_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.build("stage", {"n": 1}, lambda directory: {})
    for left in (tmp_path / ".scratch" / artifact.key / "x", tmp_path / ".scratch"):
        left.mkdir(parents=True, exist_ok=True)
        found = store.reuse("stage", {"n": 1})
        assert found is not None
        assert found.path == artifact.path
        assert not (tmp_path / ".scratch").exists()


def test_nothing_needed_and_nothing_alive_is_superfluous(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, gone = (store.build("stage", {"n": n}, lambda directory: {}) for n in range(2))
    living = tmp_path / "stage" / f".{kept.key}.elsewhere.1.1"
    living.mkdir()
    (tmp_path / ".scratch" / kept.key / "x").mkdir(parents=True)
    (tmp_path / ".scratch" / gone.key / "x").mkdir(parents=True)
    assert set(store.superfluous({kept.key})) == {gone.path, tmp_path / ".scratch" / gone.key}
    for seconds in (-3600, 3600):  # another host's clock is an hour off
        at = time.time() + seconds
        os.utime(living, (at, at))
        assert living not in store.superfluous({kept.key})
    os.utime(living, (0, 0))
    assert living in store.superfluous({kept.key})


def test_what_a_killed_attempt_left_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "stage" / f".{key('stage', {})}.{host()}.{2**22 + 1}.1"
    left.mkdir(parents=True)
    store.build("stage", {}, lambda directory: {})
    assert not left.exists()


def test_what_another_container_on_this_host_has_begun_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # Its processes have numbers of their own, so whether one of that number is here says nothing.
    begun = tmp_path / "stage" / f".{key('stage', {})}.{socket.gethostname()}.123.{2**22 + 1}.1"
    begun.mkdir(parents=True)
    store.build("stage", {}, lambda directory: {})
    assert begun.exists()
    assert begun not in store.superfluous(set())


def test_runs_hold_the_store_together_and_whoever_removes_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    refused = pytest.raises(ArtifactError, match="a run is at work there")
    with store.held(), store.held(), refused, store.held(alone=True):
        raise AssertionError
    with store.held(alone=True), pytest.raises(ArtifactError, match="gc` is at work there"), store.held():
        raise AssertionError


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


def test_why_says_once_what_follows_from_earlier_stages_and_nothing_of_another_base_model(tmp_path: Path) -> None:
    store = Store(tmp_path)
    inputs: dict[str, Any] = {
        "base": {"digest": "one"},
        "seed": 1,
        "variants": {"a": ["a" * 32, 1.0], "b": ["b" * 32, 1.0]},
    }
    store.build("merge", inputs, lambda directory: {})
    renewed = {**inputs, "seed": 2, "variants": {"a": ["c" * 32, 1.0], "b": ["d" * 32, 1.0]}}
    assert store.why("merge", renewed) == ["variants: made anew by an earlier stage"]
    assert store.why("merge", {**inputs, "seed": 2}) == ["seed: 1 → 2"]
    other = {**inputs, "base": {"digest": "two"}}
    assert store.why("merge", other) == ["nothing of this stage for this base model in the store yet"]


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


def test_a_stray_file_does_not_keep_what_is_superfluous_from_going(tmp_path: Path) -> None:
    store = Store(tmp_path)
    needed = store.build("stage", {"n": 1}, lambda directory: {})
    strays = [tmp_path / "stage" / ".DS_Store", tmp_path / "stage" / ".nowhere"]
    strays[0].write_text("stray")
    strays[1].symlink_to("missing")
    for stray in strays:
        os.utime(stray, (0, 0), follow_symlinks=False)
    (tmp_path / "notes.txt").write_text("the user's own")
    for path in [*store.superfluous({needed.key})]:
        store.delete(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "stage"]
    assert [*(tmp_path / "stage").iterdir()] == [needed.path]


def test_content_that_changed_with_size_and_time_set_back_is_damage_in_the_same_process(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(directory: Path) -> dict:
        (directory / "payload").write_text("whole")
        return {}

    payload = store.build("stage", {}, make).path / "payload"
    assert store.find("stage", {}) is not None
    before = payload.stat()
    payload.write_text("other")
    os.utime(payload, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.find("stage", {}) is None
