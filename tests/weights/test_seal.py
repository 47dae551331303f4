"""A byte that changed on the disk is found while the file is read, and nothing made of it is published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import WORDS, write_jsonl

import spunge
from spunge import merging
from spunge.errors import ArtifactError
from spunge.evaluators import MultipleChoice
from spunge.mergers import TaskArithmetic, Ties
from spunge.rows.sources import Source
from spunge.run import standalone
from spunge.run.store import Store
from spunge.weights import adapter, seal
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import LowRank, TaskVector

DOWN = "model.layers.{}.mlp.down_proj.weight"


def flip(file: Path, at: int = -1) -> None:
    """Changes one byte, with the size and the times as before."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def dense(directory: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    return TaskVector({DOWN.format(at): torch.randn(16, 24, generator=generator) / 100 for at in (2, 1)}).save(
        directory
    )


def low_rank(directory: Path, seed: int = 0) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    pair = (torch.randn(2, 24, generator=generator), torch.randn(16, 2, generator=generator))
    return TaskVector({DOWN.format(1): LowRank(*pair, 0.01)})


def make(kind: str, directory: Path, model: Path, seed: int = 0) -> Path:
    """Writes an artifact of a kind; returns the file with its weights."""
    if kind == "task vector":
        return dense(directory, seed) / "task_vector.safetensors"
    if kind == "factors":
        return low_rank(directory, seed).save(directory) / "task_vector.safetensors"
    if kind == "adapter":
        return adapter.save(low_rank(directory, seed), directory, base=str(model)) / "adapter_model.safetensors"
    if kind == "artifact of a run":
        store = Store(directory.parent / f"store{seed}")
        built = store.build("unlearn", {"seed": seed}, lambda building: {"n": bool(dense(building, seed))})
        shutil.copytree(built.path, directory)
        return directory / "task_vector.safetensors"
    if kind == "artifact of an older run":  # whose manifest knows the whole file alone
        file = make("artifact of a run", directory, model, seed)
        manifest = json.loads((directory / "manifest.json").read_text())
        del manifest["sealed"]
        manifest["checksum"] = spunge.files.checksum(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return file
    export(model, dense(directory.parent / f"of {directory.name}", seed), directory)
    return directory / "model.safetensors"


KINDS = ("task vector", "factors", "adapter", "artifact of a run", "artifact of an older run", "checkpoint")


def merge(model: Path, variant: Path, out: Path, form: str) -> None:
    other = dense(out.parent / "another", 7)
    merger = Ties() if form != "adapter" else TaskArithmetic()
    step = standalone.Step(str(model), out, device="cpu")
    standalone.merge(step, merger, [str(variant), str(other)], standalone.parse_form(form, 64))


def export(model: Path, variant: Path, out: Path) -> None:
    standalone.export(LanguageModel(id=str(model)), variant, out)


def evaluate(model: Path, variant: Path | None, out: Path) -> None:
    items = [{"question": WORDS[0], "choices": WORDS[1:3], "answer": 0}]
    source = Source(path=str(write_jsonl(out.parent / "items.jsonl", items)))
    evaluator = MultipleChoice(suite="s", goal="retain", sources=(source,), style="continuation")
    standalone.evaluate(standalone.Step(str(model), out, device="cpu"), [evaluator], variant)


USES: dict[str, Callable[[Path, Path, Path], None]] = {
    "merge into a checkpoint": lambda model, variant, out: merge(model, variant, out, "checkpoint"),
    "merge into a task vector": lambda model, variant, out: merge(model, variant, out, "task-vector"),
    "merge into an adapter": lambda model, variant, out: merge(model, variant, out, "adapter"),
    "export": export,
}


@pytest.mark.parametrize(
    ("use", "kind", "at"),
    [
        (use, kind, at)
        for use in USES
        for kind in KINDS
        for at in ("first", "middle", "last")
        # What changes in a checkpoint's embedding or norm fits no adapter, damaged or not.
        if (use, kind) != ("merge into an adapter", "checkpoint") or at == "middle"
    ],
)
def test_a_changed_byte_is_found_and_nothing_is_written(
    tmp_path: Path, tiny_model: Path, use: str, kind: str, at: str
) -> None:
    file = make(kind, tmp_path / "variant", tiny_model)
    USES[use](tiny_model, file.parent, tmp_path / "good")
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    flip(file, {"first": start, "middle": (start + file.stat().st_size) // 2, "last": -1}[at])
    shutil.rmtree(tmp_path / "another", ignore_errors=True)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=r"damaged: .*take another copy") as raised:
        USES[use](tiny_model, file.parent, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "another"] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_of_the_list_itself_is_found(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    variant = make(kind, tmp_path / "variant", tiny_model).parent
    listing = variant / ("spunge.json" if (variant / "spunge.json").exists() else "manifest.json")
    listing.write_text(listing.read_text().replace("0", "1", 1))
    with pytest.raises(ArtifactError, match="damaged"):
        export(tiny_model, variant, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("use", ["evaluate", "export", "merge", "load"])
def test_a_damaged_model_of_ours_is_no_base(tmp_path: Path, tiny_model: Path, use: str, file: str) -> None:
    model = make("checkpoint", tmp_path / "model", tiny_model).parent
    variant = dense(tmp_path / "variant", 3)
    flip(model / file, -3)  # a weight that no variant changes, or a blank
    uses: dict[str, Callable[[], object]] = {
        "evaluate": lambda: evaluate(model, None, tmp_path / "out"),
        "export": lambda: export(model, variant, tmp_path / "out"),
        "merge": lambda: merge(model, variant, tmp_path / "out", "checkpoint"),
        "load": LanguageModel(id=str(model)).load,
    }
    with pytest.raises(ArtifactError, match=f"{file}: damaged"):
        uses[use]()
    assert not (tmp_path / "out").exists()


def test_a_damaged_task_vector_is_not_evaluated(tmp_path: Path, tiny_model: Path) -> None:
    variant = dense(tmp_path / "variant")
    evaluate(tiny_model, variant, tmp_path / "good")
    flip(variant / "task_vector.safetensors", -2)
    with pytest.raises(ArtifactError, match="damaged"):
        evaluate(tiny_model, variant, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_python_is_not_handed_a_damaged_merge(tmp_path: Path) -> None:
    vectors = [dense(tmp_path / "a", 1), dense(tmp_path / "b", 2)]
    spunge.merge(vectors)
    flip(vectors[0] / "task_vector.safetensors", -2)
    with pytest.raises(ArtifactError, match="damaged"):
        spunge.merge(vectors)


def test_an_older_task_vector_is_told_of_and_used(tmp_path: Path, tiny_model: Path) -> None:
    variant = dense(tmp_path / "variant")
    manifest = json.loads((variant / "manifest.json").read_text())
    (variant / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("sealed", "checksum")})
    )
    with pytest.warns(RuntimeWarning, match="made by an older Spunge, its manifest has no digests"):
        export(tiny_model, variant, tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_what_was_changed_on_purpose_is_a_model_like_any_other(tmp_path: Path, tiny_model: Path) -> None:
    model = make("checkpoint", tmp_path / "model", tiny_model).parent
    (model / "README.md").write_text("mine")
    LanguageModel(id=str(model)).load()
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"generation_config\.json: damaged: .*remove spunge\.json beside it"):
        LanguageModel(id=str(model)).load()
    (model / "spunge.json").unlink()
    LanguageModel(id=str(model)).load()


def test_a_seal_is_of_its_own_directory(tmp_path: Path, tiny_model: Path) -> None:
    model = make("checkpoint", tmp_path / "model", tiny_model).parent
    export(model, dense(tmp_path / "variant", 3), tmp_path / "again")
    assert (model / "spunge.json").read_text() != (tmp_path / "again/spunge.json").read_text()
    LanguageModel(id=str(tmp_path / "again")).load()
    # Equal weights are one model for a run, sealed or not.
    before = LanguageModel(id=str(model)).digest()
    (model / "spunge.json").unlink()
    assert LanguageModel(id=str(model)).digest() == before


def bytes_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> tuple[int, int]:
    """How many bytes of tensors were read for the work itself, and how many by checks for what nobody had read."""
    counts = [0, 0]
    preadv, pieces = os.preadv, seal._pieces

    def counted(descriptor: int, views: list[memoryview], offset: int) -> int:
        counts[0] += (count := preadv(descriptor, views, offset))
        return count

    def rest(stream: object, size: int) -> object:
        counts[1] += size
        return pieces(stream, size)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", counted)
        patch.setattr(seal, "_pieces", rest)
        act()
    return counts[0], counts[1]


@pytest.mark.parametrize("kind", ["task vector", "factors", "artifact of a run", "artifact of an older run", "adapter"])
@pytest.mark.parametrize("merger", [TaskArithmetic(), Ties(), Ties(scope="changed")])
def test_nothing_is_read_a_second_time_to_be_checked(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, merger: Ties | TaskArithmetic
) -> None:
    base = LanguageModel(id=str(tiny_model)).checkpoint()
    paths = [make(kind, tmp_path / f"{seed}", tiny_model, seed).parent for seed in (1, 2)]
    read, more = bytes_read(
        monkeypatch, lambda: merging.merge(merger, {path.name: merging.open_variant(path, base) for path in paths})
    )
    assert read > 0
    assert more == 0


def test_unchanged_tensors_of_a_checkpoint_are_checked_when_they_are_compared(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = LanguageModel(id=str(tiny_model)).checkpoint()
    model = make("checkpoint", tmp_path / "model", tiny_model).parent
    read, more = bytes_read(
        monkeypatch,
        lambda: merging.merge(Ties(), {"model": merging.open_variant(model, base)}, options=merging.Options(block=64)),
    )
    assert read > 0
    assert more == 0
