"""The search for what each subset counts for in a merge: ratios of powers of √2, tried one subset at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Left = TypeVar("Left", float, tuple[float, ...])


def choose_weights(
    names: Sequence[str], left: Callable[[Mapping[str, float]], Left], *, most: int
) -> tuple[dict[str, float], Left]:
    """Finds weights of which little is left, by compass search (Kolda et al. 2003, doi 10.1137/S003614450242889).

    From equal weights each in turn is doubled or halved, and the first that leaves less is kept; when none does, the
    factor is √2. Weights are told up to a factor, as λ is found after them: their geometric mean is 1, and ratios that
    were tried are not tried again.

    Args:
        names: Whose weights.
        left: Of weights what is left; lower is better. It is asked once for equal ratios.
        most: How often it is asked at the most.

    Returns:
        The best weights and what they leave; of equals the first.
    """
    tried: dict[tuple[int, ...], Left] = {}

    def ask(halves: tuple[int, ...]) -> Left | None:
        ratios = tuple(half - min(halves) for half in halves)
        if ratios not in tried:
            if len(tried) == most:
                return None
            tried[ratios] = left(weights_of(names, ratios))
        return tried[ratios]

    best = (0,) * len(names)
    least = ask(best)
    assert least is not None, "at least once"
    for step in (2, 1):
        moved = True
        while moved:
            moved = False
            for place in range(len(names)):
                for move in (step, -step):
                    near = tuple(half + move * (index == place) for index, half in enumerate(best))
                    found = ask(near)
                    if found is not None and found < least:
                        best, least, moved = near, found, True
                        break
    return weights_of(names, best), least


def weights_of(names: Sequence[str], halves: Sequence[int]) -> dict[str, float]:
    """Returns the weights 2^(h/2), brought to a geometric mean of 1."""
    mean = sum(halves) / len(halves)
    return {name: 2.0 ** ((half - mean) / 2) for name, half in zip(names, halves, strict=True)}
