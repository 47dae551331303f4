"""k-means and the silhouette, for splitting by what nobody annotated: pure numpy, every draw from a seed."""

from __future__ import annotations

import numpy as np

from spunge.errors import DataError

_RESTARTS = 8
_MOST_STEPS = 200
_SILHOUETTE_ROWS = 2000


def find_clusters(points: np.ndarray, k: int | None, most: int, seed: int) -> np.ndarray:
    """Returns the cluster of every point, the largest first.

    Args:
        points: [points, dimensions].
        k: How many clusters; None: as many as give the largest silhouette.
        most: The most that are tried for None.
        seed: Of the starts, and of the points that the silhouette is of.

    Raises:
        DataError: There are fewer distinct points than clusters.
    """
    distinct = len(np.unique(points, axis=0))
    if distinct < (k or 3):
        raise DataError(f"split.k: {distinct} distinct rows cannot be {k or 'two or more'} clusters")
    if k is not None:
        return k_means(points, k, seed)
    sample = np.random.default_rng(seed).permutation(len(points))[:_SILHOUETTE_ROWS]
    tried = [k_means(points, k, seed) for k in range(2, min(most, distinct - 1) + 1)]
    return max(tried, key=lambda clusters: silhouette(points[sample], clusters[sample]))


def directions(points: np.ndarray) -> np.ndarray:
    """Returns the points [points, dimensions] at length 1; zeros stay."""
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def k_means(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Returns the cluster of every point, the largest cluster first.

    Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007), the best of eight starts.

    Args:
        points: [points, dimensions].
        k: How many clusters, at most as many as there are distinct points.
        seed: Of the starts.
    """
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(_RESTARTS):
        centres = _start(points, k, rng)
        chosen = np.full(len(points), -1)
        for _ in range(_MOST_STEPS):
            distances = squared_distances(points, centres)
            nearest = distances.argmin(1)
            if (nearest == chosen).all():
                break
            chosen = nearest
            for cluster in range(k):
                members = chosen == cluster
                # A cluster that lost all its points begins again at the point that is farthest from its own centre.
                centres[cluster] = points[members].mean(0) if members.any() else points[distances.min(1).argmax()]
        inertia = float(squared_distances(points, centres).min(1).sum())
        if best is None or inertia < best[0]:
            best = inertia, chosen
    assert best is not None
    sizes = np.bincount(best[1], minlength=k)
    rank = np.empty(k, dtype=int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(k)
    return rank[best[1]]


def silhouette(points: np.ndarray, clusters: np.ndarray) -> float:
    """Returns the mean silhouette (Rousseeuw 1987): 1 where clusters are far apart, 0 where they touch.

    Args:
        points: [points, dimensions].
        clusters: The cluster of every point; a point alone in its cluster counts 0.
    """
    distances = np.sqrt(squared_distances(points, points))
    member = clusters[:, None] == np.unique(clusters)[None]
    sizes = member.sum(0)
    means = distances @ member / np.maximum(sizes, 1)
    columns = member.argmax(1)
    rows = np.arange(len(points))
    inside = means[rows, columns] * sizes[columns] / np.maximum(sizes[columns] - 1, 1)
    outside = np.where(member, np.inf, means).min(1)
    widths = np.where(sizes[columns] > 1, (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12), 0.0)
    return float(widths.mean())


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns [left, right]: the squared Euclidean distances."""
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    return np.maximum(squares, 0.0)


def _start(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    centres = points[[rng.integers(len(points))]]
    for _ in range(k - 1):
        nearest = squared_distances(points, centres).min(1)
        total = nearest.sum()
        chosen = rng.choice(len(points), p=nearest / total) if total > 0 else rng.integers(len(points))
        centres = np.vstack([centres, points[chosen]])
    return centres.copy()
