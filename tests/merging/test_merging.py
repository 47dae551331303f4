"""The merge engine against an independent naive implementation of TIES: stack, sort, sum."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from spunge import merging
from spunge.errors import IncompatibleTaskVectors, RecipeError
from spunge.interfaces import Merger
from spunge.mergers import MERGERS, AnyMerger, Linear, TaskArithmetic, Ties
from spunge.merging import Options, thresholds
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.safetensors_files import StoredTensor
from spunge.weights.task_vector import TaskVector

Deltas = dict[str, dict[str, np.ndarray]]
SHAPES = {"embed.weight": (5, 3), "layers.0.w": (4, 6), "layers.1.w": (7,), "norm": (1,)}
UNCHANGED = 11
MADE_FROM = {"base": {"id": "base", "revision": None}}


class Sizes(Checkpoint):
    """A base model of which only names, shapes and types matter."""

    def digest(self, name: str) -> str:
        return name

    def fingerprint(self) -> str:
        return "sizes"


def base_of_sizes() -> Checkpoint:
    """One of its tensors is changed by nobody."""
    shapes = {**SHAPES, "layers.9.w": (UNCHANGED,)}
    return Sizes(Path(), {n: StoredTensor(Path(), 0, 0, torch.float32, shape) for n, shape in shapes.items()})


@st.composite
def some_deltas(draw: st.DrawFn, least: int = 1, most: int = 4) -> Deltas:
    """Variants over some of the tensors, some with few distinct magnitudes, so that many tie, and with zeros."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())
    found: Deltas = {}
    for variant in draw(st.permutations(["bio", "cyber", "chem", "a b/ü"]))[: draw(st.integers(least, most))]:
        found[variant] = {}
        for name, shape in SHAPES.items():
            if random.random() < 0.8:
                values = random.standard_normal(shape).astype(np.float32) * np.float32(10.0 ** random.integers(-6, 3))
                if coarse:
                    values = random.integers(-3, 4, shape).astype(np.float32) / np.float32(3)
                found[variant][name] = values * (random.random(shape) < 0.8)
    if not any(found.values()):
        found[next(iter(found))]["norm"] = np.ones(1, np.float32)
    return found


@st.composite
def ties_settings(draw: st.DrawFn) -> Ties:
    return Ties(
        density=draw(st.floats(0.01, 1)),
        scope=draw(st.sampled_from(["tensor", "changed", "model"])),
        threshold_ties=draw(st.sampled_from(["include", "exclude"])),
        election=draw(st.sampled_from(["mass", "count"])),
        normalize=draw(st.sampled_from(["count", "weights", "none"])),
    )


def task_vectors(deltas: Deltas, scale: float = 1.0) -> dict[str, TaskVector]:
    return {
        variant: TaskVector({name: torch.from_numpy(delta) for name, delta in entries.items()}, scale, MADE_FROM)
        for variant, entries in deltas.items()
    }


def random_vectors(variants: int = 3, shape: tuple[int, ...] = (40, 30), seed: int = 0) -> dict[str, TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"subset {index}": TaskVector({f"layers.{i}.w": torch.randn(shape, generator=generator) for i in range(2)})
        for index in range(variants)
    }


def naive_trim(flat: np.ndarray, density: float, ties: str) -> np.ndarray:
    """Sorts everything; [n] → [n] with zeros."""
    count = max(1, int(density * len(flat)))
    magnitudes = np.abs(flat)
    threshold = np.sort(magnitudes)[::-1][count - 1]
    kept = magnitudes >= threshold
    if ties == "exclude" and kept.sum() > count and threshold > 0:
        kept = magnitudes > threshold
    return np.where(kept, flat, np.float32(0))


def naive_trimmed(deltas: Deltas, merger: Ties) -> Deltas:
    names = sorted({name for entries in deltas.values() for name in entries})
    dense = {v: {n: entries.get(n, np.zeros(SHAPES[n], np.float32)) for n in names} for v, entries in deltas.items()}
    changed = [n for n in names if any(dense[v][n].any() for v in dense)]
    trimmed: Deltas = {}
    for variant, entries in dense.items():
        if merger.scope == "tensor":
            groups, padding = [[n] for n in names], 0
        elif merger.scope == "changed":
            groups, padding = [changed] if changed else [], 0
        else:
            absent = sum(math.prod(shape) for n, shape in SHAPES.items() if n not in names)
            groups, padding = [names], absent + UNCHANGED
        trimmed[variant] = {n: np.zeros(SHAPES[n], np.float32) for n in names}
        for group in groups:
            flat = np.concatenate([entries[n].reshape(-1) for n in group] + [np.zeros(padding, np.float32)])
            flat = naive_trim(flat, merger.density, merger.threshold_ties)
            for n in group:
                size = math.prod(SHAPES[n])
                trimmed[variant][n], flat = flat[:size].reshape(SHAPES[n]), flat[size:]
    return trimmed


def any_nonzero(entries: dict[str, np.ndarray]) -> bool:
    return any(bool(delta.any()) for delta in entries.values())


def naive_ties(deltas: Deltas, merger: Ties) -> dict[str, np.ndarray]:
    trimmed = naive_trimmed(deltas, merger)
    variants = sorted(deltas)
    assert isinstance(merger.weights, dict)
    weights = {v: np.float32(merger.weights.get(v, 1.0)) for v in variants}
    merged = {}
    for name in trimmed[variants[0]]:
        out = np.zeros(SHAPES[name], np.float32)
        for index in np.ndindex(out.shape):
            entries = {v: weights[v] * trimmed[v][name][index] for v in variants}
            mass = np.float32(0)
            for entry in entries.values():
                mass = mass + (entry if merger.election == "mass" else np.sign(entry))
            agreeing = [v for v in variants if entries[v] * np.sign(mass) > 0]
            numerator = divisor = np.float32(0)
            for v in agreeing:
                numerator = numerator + entries[v]
                divisor = divisor + (weights[v] if merger.normalize == "weights" else np.float32(1))
            if agreeing:
                out[index] = numerator if merger.normalize == "none" else numerator / divisor
        merged[name] = out
    return merged


def dense(task_vector: TaskVector) -> dict[str, np.ndarray]:
    return {name: task_vector.read(name, 0, task_vector.shape(name).numel()).numpy() for name in task_vector}


def assert_same(found: TaskVector, wanted: TaskVector | dict[str, np.ndarray]) -> None:
    """Every bit agrees, but that 0.0 and −0.0 are one and the same change."""
    flat = dense(wanted) if isinstance(wanted, TaskVector) else wanted
    assert set(found) == set(flat)
    for name, values in dense(found).items():
        assert np.array_equal(values, flat[name].reshape(-1)), name


@pytest.fixture(params=[False, True], ids=["plain", "tiny"])
def narrowing(request, monkeypatch):
    """The search for thresholds as it is, and with such small samples and histograms that it takes all its turns."""
    if request.param:
        for name, value in {"_SAMPLED": 6, "_SLICE": 2, "_BINS": 4, "_NARROW": 3, "_WAITING": 4}.items():
            monkeypatch.setattr(thresholds, name, value)


@pytest.mark.usefixtures("narrowing")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some_deltas(),
    ties_settings(),
    st.dictionaries(st.sampled_from(["bio", "cyber", "chem"]), st.floats(0.125, 4, width=32)),
    st.integers(1, 40),
)
def test_ties_equals_stack_sort_sum(deltas, merger, weights, block):
    merger = Ties.model_validate({**merger.dump(), "weights": {v: w for v, w in weights.items() if v in deltas}})
    trimmed = naive_trimmed(deltas, merger)
    empty = [v for v in deltas if any_nonzero(deltas[v]) and not any_nonzero(trimmed[v])]
    if empty:
        assert merger.threshold_ties == "exclude"
        with pytest.raises(RecipeError, match="keeps nothing"):
            merging.merge(merger, task_vectors(deltas), base=base_of_sizes(), options=Options(block=block))
    else:
        merged = merging.merge(merger, task_vectors(deltas), base=base_of_sizes(), options=Options(block=block))
        assert_same(merged.task_vector, naive_ties(deltas, merger))


@settings(deadline=None, max_examples=40)
@given(some_deltas(), ties_settings())
def test_ties_of_the_negated_is_the_negated_ties(deltas, merger):
    assume(merger.threshold_ties == "include")
    negated = {v: {n: -delta for n, delta in entries.items()} for v, entries in deltas.items()}
    merged = merging.merge(merger, task_vectors(deltas), base=base_of_sizes()).task_vector
    opposite = merging.merge(merger, task_vectors(negated), base=base_of_sizes()).task_vector
    assert_same(opposite, {name: -values for name, values in dense(merged).items()})


@settings(deadline=None, max_examples=40)
@given(some_deltas(), st.sampled_from(sorted(set(MERGERS) - {"retain_regmean"})), st.randoms())
def test_the_order_of_the_variants_does_not_matter(deltas, method, random):
    merger = TypeAdapter(AnyMerger).validate_python({"method": method})
    shuffled = list(deltas)
    random.shuffle(shuffled)
    merged = merging.merge(merger, task_vectors(deltas))
    again = merging.merge(merger, task_vectors({variant: deltas[variant] for variant in shuffled}))
    assert_same(merged.task_vector, again.task_vector)


@settings(deadline=None, max_examples=40)
@given(some_deltas(), st.sampled_from(sorted(set(MERGERS) - {"retain_regmean"})), st.integers(1, 30))
def test_blocks_do_not_matter(deltas, method, block):
    merger = TypeAdapter(AnyMerger).validate_python({"method": method})
    whole = merging.merge(merger, task_vectors(deltas))
    blocks = merging.merge(merger, task_vectors(deltas), options=Options(block=block))
    assert_same(blocks.task_vector, whole.task_vector)


@pytest.mark.parametrize("method", sorted(set(MERGERS) - {"retain_regmean"}))
def test_threads_do_not_matter(method):
    merger = TypeAdapter(AnyMerger).validate_python({"method": method})
    variants = random_vectors(shape=(300, 501))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(merging.merge(merger, variants, options=Options(block=1 << 17)).task_vector)
    finally:
        torch.set_num_threads(before)
    assert_same(found[0], found[1])


@pytest.mark.parametrize("merger", [Ties(density=1), Linear(), TaskArithmetic()])
def test_one_variant_whole_is_itself(merger: Merger):
    variants = random_vectors(1)
    assert_same(merging.merge(merger, variants).task_vector, variants["subset 0"])


def test_lambda_and_a_shared_scale_stay_factors():
    """Task vector negation stores τ with −λ: merging τ with positive weights and negating afterwards is exact."""
    variants = random_vectors()
    plain = merging.merge(Ties(), variants).task_vector
    negated = {name: variant.scaled(-0.7) for name, variant in variants.items()}
    merged = merging.merge(Ties(lambda_=2.0), negated).task_vector  # pyright: ignore[reportCallIssue]
    assert merged.scale == pytest.approx(-1.4)
    assert_same(merged, plain)


def test_scales_that_differ_are_applied_before_trimming():
    variants = random_vectors(2)
    first, second = variants.values()
    merged = merging.merge(Ties(), {"a": first.scaled(3.0), "b": second}).task_vector
    by_hand = TaskVector({name: first.delta(name) * 3.0 for name in first})
    assert merged.scale == 1.0
    assert_same(merged, merging.merge(Ties(), {"a": by_hand, "b": second}).task_vector)


def test_entries_that_cancel_elect_nothing():
    variants = {"a": TaskVector({"w": torch.tensor([1.0, 2.0])}), "b": TaskVector({"w": torch.tensor([-1.0, 2.0])})}
    merged = merging.merge(Ties(density=1), variants).task_vector
    assert merged.delta("w").tolist() == [0.0, 2.0]


def test_scope_says_what_the_density_is_a_share_of():
    """One matrix changed little and one much: each is thinned, or only the first, or, in a large model, neither."""
    little, much = torch.linspace(0.1, 0.2, 10), torch.linspace(1, 2, 10)
    variant = {"a": TaskVector({"layers.0.w": little, "embed": much}, provenance=MADE_FROM)}

    def kept(scope: str) -> list[int]:
        merged = merging.merge(Ties.model_validate({"density": 0.5, "scope": scope}), variant, base=base).task_vector
        return [int(merged.delta(name).count_nonzero()) for name in ("layers.0.w", "embed")]

    sizes = {"layers.0.w": (10,), "embed": (10,), "other": (100,)}
    base = Sizes(Path(), {n: StoredTensor(Path(), 0, 0, torch.float32, shape) for n, shape in sizes.items()})
    assert kept("tensor") == [5, 5]
    assert kept("changed") == [0, 10]
    assert kept("model") == [10, 10]


def test_thresholds_are_exact_over_many_blocks():
    """Enough entries that the search works from a sample, in another order of magnitude every few thousand."""
    values = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    values *= 10.0 ** (torch.arange(300_000) // 5000 % 7).float()
    for density in (0.0001, 0.01, 0.2, 0.9):
        merged = merging.merge(
            Ties(density=density), {"a": TaskVector({"w": values})}, options=Options(block=10_000)
        ).task_vector
        wanted = naive_trim(values.numpy(), density, "include")
        assert_same(merged, {"w": wanted})


def test_diagnostics_say_what_became_of_each_removal():
    a = torch.tensor([3.0, 4.0, 0.0, 0.0])
    b = torch.tensor([0.0, -4.0, 0.0, 2.0])
    variants = {"a": TaskVector({"layers.3.w": a}), "b": TaskVector({"layers.3.w": b, "norm": torch.ones(2)})}
    found = merging.merge(TaskArithmetic(lambda_=2.0), variants).diagnostics  # pyright: ignore[reportCallIssue]
    layer = found["layers"]["3"]
    assert found["variants"] == ["a", "b"]
    # merged: 2 · (3, 0, 0, 2)
    assert layer["coverage"] == {"a": pytest.approx(18 / 25), "b": pytest.approx(8 / 20)}
    assert layer["cosines"] == {"a": {"b": pytest.approx(-16 / (5 * 20**0.5), rel=1e-5)}}
    assert layer["sign_conflict"] == pytest.approx(1 / 3, rel=1e-5)
    assert layer["sign_conflict_by_chance"] == pytest.approx(1 / 6, rel=1e-5)  # one entry of three is changed by both
    assert layer["merged_norm"] == pytest.approx(2 * 13**0.5, rel=1e-5)
    assert layer["norm_ratio"] == pytest.approx(2 * 13**0.5 / ((5 + 20**0.5) / 2), rel=1e-5)
    assert found["overall"]["norms"] == {"a": 5.0, "b": pytest.approx(22**0.5, rel=1e-5)}
    assert found["tensors"]["norm"]["coverage"] == {"a": None, "b": 2.0}
    assert found["warnings"] == []


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_sign_conflict_is_counted_after_the_trim_beside_what_chance_gives(density):
    generator = torch.Generator().manual_seed(3)
    values = {name: torch.randn(5000, generator=generator) for name in "abcde"}
    found = merging.merge(Ties(density=density), {name: TaskVector({"w": value}) for name, value in values.items()})
    kept = np.stack([naive_trim(value.numpy(), density, "include") for value in values.values()])
    changed = (kept != 0).any(0)
    conflicting = (kept > 0).any(0) & (kept < 0).any(0)
    overall = found.diagnostics["overall"]
    assert overall["sign_conflict"] == pytest.approx(conflicting.sum() / changed.sum(), rel=1e-5)
    # Every pattern of signs over the variants that keep an entry, weighed alike.
    chances = [
        np.mean([0 < sum(signs) < many for signs in itertools.product((0, 1), repeat=many)])
        for many in (kept != 0).sum(0)[changed]
    ]
    assert overall["sign_conflict_by_chance"] == pytest.approx(np.mean(chances), rel=1e-5)
    assert overall["sign_conflict"] == pytest.approx(np.mean(chances), abs=0.03)  # independent vectors do no better


def test_diagnostics_count_what_trimming_kept_and_what_tied():
    variant = {"a": TaskVector({"w": torch.tensor([4.0, 2.0, -2.0, 2.0, 1.0, 0.0])})}
    include = merging.merge(Ties(density=0.34), variant).diagnostics["overall"]
    exclude = merging.merge(Ties(density=0.34, threshold_ties="exclude"), variant).diagnostics["overall"]
    assert (include["kept"], include["tied"]) == ({"a": 0.8}, {"a": 0.6})
    assert (exclude["kept"], exclude["tied"]) == ({"a": 0.2}, {"a": 0.6})


def test_a_removal_that_is_lost_is_warned_of():
    small, large = torch.tensor([1.0, 0.0]), torch.tensor([-10.0, 10.0])
    variants = {"small": TaskVector({"w": small}), "large": TaskVector({"w": large})}
    warnings = merging.merge(Ties(density=1), variants).diagnostics["warnings"]
    assert len(warnings) == 1
    assert warnings[0].startswith("small:")


@pytest.mark.parametrize(
    ("variants", "error", "message"),
    [
        ({}, RecipeError, "nothing to merge"),
        ({"a": TaskVector({})}, IncompatibleTaskVectors, "no variant changes any weight"),
        (
            {"a": TaskVector({"w": torch.ones(2)}), "b": TaskVector({"w": torch.ones(3)})},
            IncompatibleTaskVectors,
            r"w: the shape is \[2\] in a and \[3\] in b",
        ),
        (
            {"a": TaskVector({"x": torch.ones(2), "w": torch.tensor([1.0, math.nan])})},
            IncompatibleTaskVectors,
            "w: a holds NaN or infinity",
        ),
        (
            {"a": TaskVector({"w": torch.ones(2)}), "b": TaskVector({"w": torch.tensor([-math.inf, 0.0])})},
            IncompatibleTaskVectors,
            "w: b holds NaN or infinity",
        ),
        (
            {
                "a": TaskVector({"w": torch.ones(2)}, provenance={"base": {"id": "m", "tensors": {"w": "1"}}}),
                "b": TaskVector({"w": torch.ones(2)}, provenance={"base": {"id": "m", "tensors": {"w": "2"}}}),
            },
            IncompatibleTaskVectors,
            "w: a and b were made from different base models",
        ),
        (
            {
                "a": TaskVector({"w": torch.ones(2)}, provenance={"base": {"id": "m", "revision": "1"}}),
                "b": TaskVector({"w": torch.ones(2)}, provenance={"base": {"id": "m", "revision": "2"}}),
            },
            IncompatibleTaskVectors,
            "different base models: m@1 and m@2",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(variants, error, message):
    for merger in (Ties(), Linear()):
        with pytest.raises(error, match=message):
            merging.merge(merger, variants)


def test_the_same_variant_twice_is_refused():
    variant = TaskVector({"w": torch.ones(2)})
    with pytest.raises(IncompatibleTaskVectors, match="'a' and 'b' are the same"):
        merging.merge(Linear(), {"a": variant, "b": variant})


def test_huge_but_finite_deltas_are_merged():
    variants = {"a": TaskVector({"w": torch.tensor([3e38, 1e-40])}), "b": TaskVector({"w": torch.tensor([0.0, 1e-40])})}
    merged = merging.merge(Linear(), variants)
    assert_same(merged.task_vector, {"w": np.array([1.5e38, 1e-40], np.float32)})
    json.dumps(merged.diagnostics, allow_nan=False)


def test_what_overflows_is_refused():
    variants = {"a": TaskVector({"w": torch.tensor([2.0])}), "b": TaskVector({"w": torch.tensor([3.0])})}
    with pytest.raises(IncompatibleTaskVectors, match="w: the merged delta is infinite"):
        merging.merge(TaskArithmetic(weights={"a": 3e38, "b": 3e38}), variants)


def test_variants_that_add_nothing_are_warned_of():
    delta = torch.tensor([1.0, -2.0, 0.5])
    variants = {name: TaskVector({"w": delta.clone()}) for name in ("a", "b")}
    variants["c"] = TaskVector({"w": torch.zeros(3)})
    found = merging.merge(TaskArithmetic(), variants).diagnostics["warnings"]
    assert found == ["c: changes nothing: is it the base model?", "a and b are the same task vector: it counts twice"]


def test_weights_are_of_variants_that_exist():
    with pytest.raises(RecipeError, match="no variant is named 'boi'; there are subset 0"):
        merging.merge(Ties(weights={"boi": 2.0}), random_vectors(1))
    with pytest.raises(RecipeError, match="all are zero"):
        merging.merge(Linear(weights={"subset 0": 0.0}), random_vectors(1))


def test_whole_model_scope_needs_the_base():
    with pytest.raises(RecipeError, match="base model must be given"):
        merging.merge(Ties(scope="model"), random_vectors(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "ties", "density": 0},
        {"method": "ties", "density": 1.01},
        {"method": "ties", "densty": 0.2},
        {"method": "ties", "weights": {"a": -1}},
        {"method": "linear", "weights": {"a": -1}},
        {"method": "della", "density": 0.05, "epsilon": 0.2},
        {"method": "breadcrumbs", "density": 0.9, "gamma": 0.2},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyMerger).validate_python(wrong)


def test_model_stock_is_refused_with_the_reason():
    with pytest.raises(ValidationError, match="returns the base model"):
        TypeAdapter(AnyMerger).validate_python({"method": "model_stock"})


def test_settings_are_known_without_torch():
    code = "import sys, spunge.mergers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_variants_are_chosen_by_name():
    variants = {"bio": 1, "chem": 2, "cyber": 3}
    assert merging.select(variants) == variants
    assert list(merging.select(variants, only=["cyber", "bio"])) == ["bio", "cyber"]
    assert list(merging.select(variants, without=["chem"])) == ["bio", "cyber"]
    with pytest.raises(RecipeError, match="no variant is named 'boi'; there are bio, chem, cyber"):
        merging.select(variants, only=["boi"])
    with pytest.raises(RecipeError, match="no variant is named 'boi'"):
        merging.select(variants, without=["boi"])
    with pytest.raises(RecipeError, match="exclude each other"):
        merging.select(variants, only=["bio"], without=["chem"])
    with pytest.raises(RecipeError, match="leaves nothing"):
        merging.select(variants, without=list(variants))


@pytest.mark.parametrize("base", [None, base_of_sizes()], ids=["alone", "with a base"])
def test_layers_are_scaled_on_a_straight_line(base: Checkpoint | None) -> None:
    random = np.random.default_rng(0)
    variants = {
        name: TaskVector(
            {n: torch.tensor(random.normal(size=shape), dtype=torch.float32) for n, shape in SHAPES.items()}
        )
        for name in "ab"
    }
    plain = merging.merge(Ties(density=0.5), variants, base=base).task_vector
    found = merging.merge(Ties(density=0.5, layer_scaling=(0.5, 2)), variants, base=base).task_vector
    last = 1 if base is None else 9  # the base has a layer 9, which nobody changes
    factors = {"embed.weight": 1, "norm": 1, "layers.0.w": 0.5, "layers.1.w": 0.5 + 1.5 / last}
    for name, factor in factors.items():
        torch.testing.assert_close(found.delta(name), plain.delta(name) * factor)
