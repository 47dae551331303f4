"""Gradients drawn small against autograd's own, splits by them, and splits whose labels are made wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_models import answers, save_model, texts, work_in
from transformers import AutoModelForCausalLM

from spunge.errors import DataError
from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.splitters import ByColumn, ByGradient, Relabelled
from spunge.splitters.by_gradient import dealt_out
from spunge.training.gradients import draw_projections, sketches
from spunge.training.rows import encode
from spunge.weights.language_model import LanguageModel, Resident


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("corpus", [texts(5), answers(5)], ids=["texts", "answers"])
def test_sketches_are_each_rows_own_gradient_drawn_down(tmp_path, kind, corpus) -> None:
    base = save_model(tmp_path / "model", kind)
    work = work_in(tmp_path)
    model, tokenizer = work.resident.base(base)
    rows, drawn = encode(corpus, tokenizer, max_length=64), draw_projections(model, 4, 7)
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    found = sketches(model, rows, drawn, batch_size=3, pad=0, progress=work.progress)
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(parameter.grad is None for parameter in model.parameters())

    plain = AutoModelForCausalLM.from_pretrained(base.id).eval()
    assert set(drawn) == {
        name.removesuffix(".weight")
        for name, value in plain.named_parameters()
        if value.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name and "lm_head" not in name
    }
    for row, sketch in zip(rows, found, strict=True):
        ids, start = torch.tensor(list(row.ids)), max(row.start, 1)
        log_probs = plain(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
        plain.zero_grad()
        (-log_probs[torch.arange(len(ids) - start), ids[start:]].mean()).backward()
        expected = torch.zeros(4, 4)
        for name, (of_inputs, of_outputs) in drawn.items():
            gradient = plain.get_parameter(f"{name}.weight").grad
            assert gradient is not None
            gradient = gradient.T if kind == "gpt2" else gradient  # its layers keep [in, out]
            expected += of_outputs.T @ gradient @ of_inputs
        torch.testing.assert_close(sketch, expected.flatten(), rtol=1e-3, atol=1e-4)


def two_kinds(count: int) -> Corpus:
    """Rows of two words, or of two others, in turn."""
    draw = np.random.default_rng(0)
    rows = [
        {"text": " ".join(f"w{draw.integers(2) + 20 * (number % 2)}" for _ in range(12)), "kind": "ab"[number % 2]}
        for number in range(count)
    ]
    return Corpus(pl.DataFrame(rows))


def test_rows_that_pull_alike_are_together_or_dealt_out(tmp_path) -> None:
    base, corpus = save_model(tmp_path / "model"), two_kinds(24)
    kinds = corpus.rows["kind"].to_list()
    alike = ByGradient(k=2).split(corpus, base, work_in(tmp_path))
    assert len({(kind, names) for kind, names in zip(kinds, alike, strict=True)}) == 2
    unlike = ByGradient(k=2, gather="unlike").split(corpus, base, work_in(tmp_path))
    assert Counter(zip(kinds, unlike, strict=True)) == {
        (kind, (name,)): 6 for kind in "ab" for name in ("gradient_1", "gradient_2")
    }
    assert ByGradient(most=3).split(corpus, base, work_in(tmp_path)) == alike  # as many as the data have
    with pytest.raises(DataError, match=r"split\.k: 1 distinct rows cannot be 2 clusters"):
        ByGradient(k=2).split(Corpus(pl.DataFrame({"text": ["w1 w2"] * 3})), base, work_in(tmp_path))
    assert ByGradient().forecast(corpus, base).operations


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_dealing_spreads_every_group(groups: list[int]) -> None:
    found = dealt_out(np.array(groups))
    for group in set(groups):
        counts = Counter(int(d) for d, g in zip(found, groups, strict=True) if g == group)
        every = [counts.get(subset, 0) for subset in range(max(groups) + 1)]
        assert max(every) - min(every) <= 1
    sizes = [Counter(found.tolist()).get(subset, 0) for subset in range(max(groups) + 1)]
    assert max(sizes) - min(sizes) <= 1


labels = st.lists(st.sampled_from([["a"], ["b"], ["a", "b"], ["c"], []]), min_size=1, max_size=30)
shares = st.sampled_from([0.0, 0.1, 0.3, 1.0])


@given(labels, shares, shares, st.integers(0, 99))
def test_wrong_labels_keep_sizes_and_overlap_adds_its_share(
    groups: list[list[str]], shuffled: float, overlap: float, seed: int
) -> None:
    column = pl.Series("group", groups, dtype=pl.List(pl.String))
    rows = Corpus(pl.DataFrame({"text": ["x"] * len(groups)}).with_columns(column))
    plain = ByColumn(column="group", null="drop")
    nowhere, work = LanguageModel(id="none"), Work(Resident(), Path(), Path(), seed)
    before = plain.split(rows, nowhere, work)
    mixed = Relabelled(of=plain, shuffled=shuffled).split(rows, nowhere, work)
    assert Counter(mixed) == Counter(before)
    assert sum(one != other for one, other in zip(mixed, before, strict=True)) <= round(shuffled * len(rows))
    assert all(bool(one) == bool(other) for one, other in zip(mixed, before, strict=True))
    both = Relabelled(of=plain, shuffled=shuffled, overlap=overlap).split(rows, nowhere, work)
    assert both == Relabelled(of=plain, shuffled=shuffled, overlap=overlap).split(rows, nowhere, work)
    labelled = sum(map(bool, before))
    for subset in {name for names in before for name in names}:
        size, after = (sum(subset in names for names in split) for split in (mixed, both))
        assert after == size + min(round(overlap * size), labelled - size)
    assert all(set(one) <= set(other) for one, other in zip(mixed, both, strict=True))
    assert all(len(set(names)) == len(names) for names in both)
