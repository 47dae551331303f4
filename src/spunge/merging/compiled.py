"""The engine's inner loops compiled by numba, where it is installed: each goes through a block once.

Weights come out bit for bit as the plain way makes them: the same float32 operations in the same order, an element at a
time. Sums that only diagnostics use may round in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_CHUNK = 1 << 11
"""Elements of every variant that are worked on at once, so that they stay in the first cache."""
_TINY = np.frombuffer(np.uint32(1).tobytes(), np.float32)[0]
_SUMS = {"reassoc"}
"""What lets a sum be taken in several lanes. Products and sums are not contracted, which would round once instead of
twice, and NaN and infinity stay what they are: they tell of a diverged training."""


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function when it is first called, and keeps the machine code for the next process where it can."""

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's own cache may be written
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return compile_it


@_compiled()
def subtract_bfloat16(changed: Any, base: Any, out: Any) -> None:
    """Writes the difference of two bfloat16 arrays, given as uint16, in float32."""
    for i in range(len(out)):
        # A bfloat16 is the upper half of a float32.
        minuend = np.uint32(np.uint32(changed[i]) << np.uint32(16)).view(np.float32)
        out[i] = minuend - np.uint32(np.uint32(base[i]) << np.uint32(16)).view(np.float32)


@_compiled(fastmath=_SUMS)
def _add(weight: Any, delta: Any, scale: Any, scaled: bool, out: Any) -> tuple[Any, Any, Any]:
    """Adds one chunk; returns the energies, and the largest magnitude's bits."""
    lost, whole, largest = np.float32(0), np.float32(0), np.uint16(0)
    for i in range(len(out)):
        before = np.uint32(np.uint32(weight[i]) << np.uint32(16)).view(np.float32)
        wanted = delta[i] * scale if scaled else delta[i]
        bits = np.float32(before + wanted).view(np.uint32)
        # To the nearest, to even between two; the carry must not make a number of a NaN.
        carried = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        rounded = np.uint16(np.uint32(0x7FC0) if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000) else carried)
        out[i] = rounded
        magnitude = rounded & np.uint16(0x7FFF)
        largest = magnitude if magnitude > largest else largest
        difference = np.uint32(np.uint32(rounded) << np.uint32(16)).view(np.float32) - before
        difference = difference - wanted
        lost += difference * difference
        whole += wanted * wanted
    return lost, whole, largest


@_compiled()
def add_bfloat16(weight: Any, delta: Any, scale: Any, scaled: bool, out: Any) -> tuple[float, float, bool]:
    """Writes weight + scale · delta, rounded once; weight and result are bfloat16, given as uint16.

    Returns:
        The energy that rounding loses, that of the delta, and whether all results are finite.
    """
    lost, whole, finite = 0.0, 0.0, True
    for start in range(0, len(out), _CHUNK):
        stop = start + _CHUNK
        found = _add(weight[start:stop], delta[start:stop], scale, scaled, out[start:stop])
        lost, whole, finite = lost + found[0], whole + found[1], finite and found[2] < np.uint16(0x7F80)
    return lost, whole, finite


@_compiled()
def _search(bits: Any, low: Any, high: Any, inside: Any) -> tuple[Any, Any, Any]:
    """Searches one chunk; of `inside` nothing beyond the chunk's length is written."""
    nonzero, above, count = np.int32(0), np.int32(0), 0
    for i in range(len(bits)):
        magnitude = bits[i] & np.int32(0x7FFFFFFF)
        nonzero += np.int32(magnitude != 0)
        above += np.int32(magnitude >= high)
    width = np.uint32(high - low)
    for i in range(len(bits)):
        magnitude = bits[i] & np.int32(0x7FFFFFFF)
        # Written in any case, and kept by counting on: a branch would be guessed wrong time and again.
        inside[count] = magnitude
        count += np.uint32(magnitude - low) < width
    return nonzero, above, count


@_compiled()
def search(bits: Any, low: int, high: int, inside: Any) -> tuple[int, int, int]:
    """Counts float32 values, given as int32, by their magnitudes: not zero, from `high` on, and from `low` to `high`.

    Those of the last kind are written to the front of `inside`, which is as long as `bits`.
    """
    nonzero = above = count = 0
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK]
        found = _search(chunk, np.int32(low), np.int32(high), inside[count:])
        nonzero, above, count = nonzero + found[0], above + found[1], count + found[2]
    return nonzero, above, count


@_compiled()
def search_differences(changed: Any, base: Any, low: int, high: int, inside: Any) -> tuple[int, int, int]:
    """Does the same with the differences of two bfloat16 arrays, given as uint16, which nobody keeps."""
    nonzero = above = count = 0
    differences = np.empty(_CHUNK, np.float32)
    for start in range(0, len(base), _CHUNK):
        stop = min(start + _CHUNK, len(base))
        chunk = differences[: stop - start]
        subtract_bfloat16(changed[start:stop], base[start:stop], chunk)
        found = _search(chunk.view(np.int32), np.int32(low), np.int32(high), inside[count:])
        nonzero, above, count = nonzero + found[0], above + found[1], count + found[2]
    return nonzero, above, count


@_compiled()
def ties(deltas: Any, below: Any, weights: Any, weighted: bool, by_count: bool, divisor: int, out: Any) -> None:
    """Trims, elects and averages: TIES, a chunk of all variants at a time.

    Args:
        deltas: Float32 [variants, elements].
        below: Float32 [variants]: what is no larger is trimmed.
        weights: Float32 [variants].
        weighted: Whether the deltas are multiplied by them.
        by_count: Whether the signs are summed for the election, rather than the deltas.
        divisor: Of the sum: 0 nothing, 1 how many agree, 2 the sum of their weights.
        out: Float32 [elements], written.
    """
    rows, size = deltas.shape
    kept = np.empty((rows, _CHUNK), np.float32)
    totals, sums = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    divisors = np.empty(_CHUNK, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for start in range(0, size, _CHUNK):
        count = min(_CHUNK, size - start)
        total, summed, divide = totals[:count], sums[:count], divisors[:count]
        for row in range(rows):
            edge, weight, delta, survivors = below[row], weights[row], deltas[row, start : start + count], kept[row]
            for i in range(count):
                value = delta[i]
                value = zero if (value <= edge) & (value >= -edge) else value
                value = value * weight if weighted else value
                survivors[i] = value
                vote = (one if value > zero else (-one if value < zero else value)) if by_count else value
                total[i] = vote if row == 0 else total[i] + vote
        for i in range(count):
            value = total[i]
            total[i] = one if value > zero else (-one if value < zero else value)
            summed[i] = zero
            divide[i] = zero
        for row in range(rows):
            share, survivors = weights[row] if divisor == 2 else one, kept[row]
            for i in range(count):
                agreeing = survivors[i] * total[i]
                agreeing = zero if agreeing < zero else agreeing
                summed[i] += agreeing
                divide[i] += share if agreeing > zero else zero
        for i in range(count):
            value = summed[i] * total[i]
            # Where nothing agrees the sum is 0, and stays so divided by the smallest float there is.
            out[start + i] = value / max(divide[i], _TINY) if divisor else value


@_compiled()
def signs(deltas: Any, cutoffs: Any, holding: Any) -> tuple[Any, Any]:
    """Counts the entries that any variant changes, and those that are pulled both ways.

    Args:
        deltas: Float32 [variants, elements].
        cutoffs: Float32 [variants]: the smallest magnitudes that count.
        holding: Int64 [variants + 1]: at m the entries are added that m variants change, from two on.
    """
    rows, size = deltas.shape
    all_ups, all_downs = np.empty(_CHUNK, np.int16), np.empty(_CHUNK, np.int16)
    changed = conflicting = 0
    for start in range(0, size, _CHUNK):
        count = min(_CHUNK, size - start)
        ups, downs = all_ups[:count], all_downs[:count]
        for i in range(count):
            ups[i] = 0
            downs[i] = 0
        for row in range(rows):
            cutoff, delta = cutoffs[row], deltas[row, start : start + count]
            for i in range(count):
                ups[i] += np.int16(delta[i] >= cutoff)
                downs[i] += np.int16(delta[i] <= -cutoff)
        here, both = np.int32(0), np.int32(0)
        for i in range(count):
            here += np.int32((ups[i] | downs[i]) != 0)
            both += np.int32((ups[i] != 0) & (downs[i] != 0))
        changed += here
        conflicting += both
        for many in range(2, rows + 1):
            so_many = np.int32(0)
            for i in range(count):
                so_many += np.int32(ups[i] + downs[i] == many)
            holding[many] += so_many
    return changed, conflicting


@_compiled(fastmath=_SUMS)
def _products(one: Any, first: Any, second: Any, third: Any) -> tuple[Any, Any, Any]:
    a, b, c = np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(one)):
        value = one[i]
        a += value * first[i]
        b += value * second[i]
        c += value * third[i]
    return a, b, c


@_compiled()
def add_products(stacked: Any, gram: Any) -> None:
    """Adds the inner products of all pairs of rows to the upper half of a float64 matrix."""
    rows, size = stacked.shape
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        for row in range(rows):
            one = stacked[row, start:stop]
            for other in range(row, rows, 3):  # three at once: each number of the row is then fetched once for them
                second, third = min(other + 1, rows - 1), min(other + 2, rows - 1)
                a, b, c = _products(
                    one, stacked[other, start:stop], stacked[second, start:stop], stacked[third, start:stop]
                )
                gram[row, other] += a
                if other + 1 < rows:
                    gram[row, second] += b
                if other + 2 < rows:
                    gram[row, third] += c
