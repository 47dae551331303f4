"""How often the verdict's intervals hold the truth, how often they cry wolf, and what difference they would find.

Two variants answer the same items in simulation, over clusters and seeds, with a difference that is known. The table is
published in docs/statistics.md; everything follows from `--seed`.

    python benchmarks/verdict_coverage.py
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import product
from statistics import NormalDist

import numpy as np

from spunge.statistics import PairedDifference, compare, standings

SEED_SHARE = 0.01
"""Of the latent variance, for each variant: a standard deviation of four points where half the answers are 1."""
CLUSTER_SHARE = 0.05
"""For each variant, on top of what both share of an item."""
ITEM_SHARE = 0.5
"""What both variants share of an item: pairing takes it out."""


@dataclass(frozen=True)
class Design:
    """How much is asked, and how often each variant answers 1."""

    items: int
    clusters: int | None
    seeds: int
    rates: tuple[float, float]
    """Of both variants; in the skewed case the means, of values that are log-normal."""
    skewed: bool = False
    seed_share: float = SEED_SHARE

    def draw(self, generator: np.random.Generator) -> tuple[PairedDifference, float, float]:
        """Returns a comparison, the true difference over all seeds, and that of the seeds drawn here."""
        labels = None if self.clusters is None else np.arange(self.items) % self.clusters
        shared = generator.normal(size=self.items) * ITEM_SHARE**0.5
        scores, truths, here = [], [], []
        for rate in self.rates:
            trained = generator.normal(size=(self.seeds, 1)) * self.seed_share**0.5
            left = 1 - ITEM_SHARE - self.seed_share
            own = np.zeros(self.items)
            if labels is not None:
                own = generator.normal(size=self.clusters)[labels] * CLUSTER_SHARE**0.5
                left -= CLUSTER_SHARE
            # Half of what is left comes again with every seed: the same question is hard for the variant each time.
            own = own + generator.normal(size=self.items) * (left / 2) ** 0.5
            latent = shared + own + trained + generator.normal(size=(self.seeds, self.items)) * (left / 2) ** 0.5
            if self.skewed:
                scores.append(rate * np.exp(latent - 0.5))
                truths.append(rate)
                here.append(rate * float(np.exp(trained - self.seed_share / 2).mean()))
            else:
                threshold = NormalDist().inv_cdf(rate)
                scores.append((latent + threshold > 0).astype(float))
                truths.append(rate)
                spread = (1 - self.seed_share) ** 0.5
                here.append(float(np.mean([NormalDist().cdf((threshold + at) / spread) for at in trained[:, 0]])))
        clusters = None if labels is None else labels.tolist()
        return compare(*scores, clusters=clusters), truths[0] - truths[1], here[0] - here[1]


def coverage(design: Design, repeats: int, seed: int, *, of_these_seeds: bool = False) -> float:
    """Returns how often the 95 % interval holds the true difference."""
    generator, hits = np.random.default_rng(seed), 0
    for _ in range(repeats):
        comparison, over_all, here = design.draw(generator)
        hits += (here if of_these_seeds else over_all) in comparison.interval()
    return hits / repeats


def power(design: Design, repeats: int, seed: int) -> float:
    """Returns how often the first variant is found lower."""
    generator, found = np.random.default_rng(seed), 0
    for _ in range(repeats):
        comparison, _, _ = design.draw(generator)
        found += comparison.p <= 0.05 and comparison.difference < 0
    return found / repeats


def false_alarms(design: Design, repeats: int, seed: int, *, suites: int = 3) -> float:
    """Returns how often a verdict over several suites calls the first variant better on any of them."""
    generator, alarms = np.random.default_rng(seed), 0
    for _ in range(repeats):
        comparisons = [design.draw(generator)[0] for _ in range(suites)]
        together = zip(comparisons, standings(comparisons), strict=True)
        alarms += any(standing.stands and comparison.difference < 0 for comparison, standing in together)
    return alarms / repeats


def least_found(design: Design, repeats: int, seed: int, *, wanted: float = 0.8) -> float | None:
    """Returns the smallest difference below the second rate, to half a point, that is found so often; None if none."""
    rival = design.rates[1]
    low, high = 0.0, rival - 0.001
    if power(replace(design, rates=(rival - high, rival)), repeats, seed) < wanted:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        enough = power(replace(design, rates=(rival - middle, rival)), repeats, seed) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


CASES = {
    "equal": ((0.4, 0.4), False),
    "30 of 40 %": ((0.3, 0.4), False),
    "3 of 5 %": ((0.03, 0.05), False),
    "skewed": ((1.0, 1.2), True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--clusters", type=int, nargs="+", default=[0, 5, 20], help="0: independent items")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5])
    options = parser.parse_args()
    print(f"| items | clusters | seeds | {' | '.join(CASES)} | false alarms | found |")
    print("|---" * (len(CASES) + 5) + "|")
    for items, clusters, seeds in product(options.items, options.clusters, options.seeds):
        clusters = clusters or None
        design = Design(items, clusters, seeds, (0.4, 0.4))
        cells = [str(items), str(clusters or "–"), str(seeds)]
        for rates, skewed in CASES.values():
            case = replace(design, rates=rates, skewed=skewed)
            shares = [coverage(case, options.repeats, options.seed, of_these_seeds=seeds == 1)]
            shares += [coverage(case, options.repeats, options.seed)] if seeds == 1 else []
            cells.append(in_brackets(shares))
        # Of one seed two questions: of models that do not differ, and of a method whose seeds do.
        still = [replace(design, seed_share=0.0), design] if seeds == 1 else [design]
        cells.append(in_brackets([false_alarms(each, options.repeats, options.seed + 1) for each in still]))
        least = least_found(design, max(200, options.repeats // 4), options.seed + 2)
        cells.append("nothing" if least is None else f"{100 * least:.1f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def in_brackets(shares: list[float]) -> str:
    """Returns a percentage, and a second one in brackets."""
    texts = [f"{100 * share:.1f}" for share in shares]
    return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]})"


if __name__ == "__main__":
    main()
