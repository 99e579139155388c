"""Fitting clusters to vectors: the program of a process of its own, ``python -m tessera.clustering <folder>``.

The folder holds ``spec.json``, ``vectors.f32`` (one row a document) and ``texts.jsonl``; the result is
``result.json`` and ``labels.npz``. Nothing here knows of documents, namespaces or a database. The same input
gives the same result: every method that draws at random has a seed, and clusters are numbered by size.

scikit-learn is an extra, imported where it is used. The process ends when its standard input closes: with the server
that started it.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

#: Most documents of one execution by method. Above the first, methods keep distances of pairs: four times the memory
#: for twice the documents.
MAX_DOCUMENTS: Mapping[str, int] = {
    "kmeans": 200_000,
    "gaussian_mixture": 50_000,
    "dbscan": 20_000,
    "hdbscan": 20_000,
    "optics": 10_000,
    "agglomerative": 10_000,
    "mean_shift": 5_000,
    "spectral": 5_000,
}
#: Most numbers (documents × dimensions): half a GiB.
MAX_NUMBERS = 128 * 1024 * 1024
#: Scores that compare pairs look at a sample of so many documents.
SCORED_DOCUMENTS = 2_000
SEED = 42
#: Terms of a label, and keywords that are kept.
_LABEL_TERMS, _KEYWORDS = 3, 10
#: What is answered where the library is not there.
MISSING = (
    "Clusters need scikit-learn, which is not installed. Install it with: pip install 'tessera[clusters]'"
)

_WORD = re.compile(r"[^\W\d_]{3,}")
#: Words that say nothing of a topic, in the language that most texts are in; in others the weights do that alone.
_COMMON = frozenset(
    [
        "about",
        "above",
        "after",
        "again",
        "all",
        "also",
        "and",
        "any",
        "are",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "can",
        "could",
        "did",
        "does",
        "doing",
        "down",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "has",
        "have",
        "having",
        "her",
        "here",
        "hers",
        "him",
        "his",
        "how",
        "into",
        "its",
        "itself",
        "just",
        "may",
        "might",
        "more",
        "most",
        "must",
        "nor",
        "not",
        "now",
        "off",
        "once",
        "one",
        "only",
        "other",
        "our",
        "out",
        "over",
        "own",
        "same",
        "shall",
        "she",
        "should",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "too",
        "two",
        "under",
        "until",
        "upon",
        "use",
        "used",
        "using",
        "very",
        "was",
        "well",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def is_installed() -> bool:
    """Say whether scikit-learn is there; it is not imported for that."""
    from importlib.util import find_spec

    return find_spec("sklearn") is not None


def model(method: str, params: Mapping[str, Any], count: int) -> Any:
    """Return the scikit-learn estimator of `method`; parameters that only make sense below `count` are cut to it."""
    from sklearn import cluster, mixture

    given = dict(params)
    for name in ("n_clusters", "n_components", "min_samples", "min_cluster_size"):
        if isinstance(given.get(name), int) and not isinstance(given[name], bool):
            given[name] = min(given[name], count)
    if method == "agglomerative":
        if given.get("distance_threshold") is not None:
            given["n_clusters"] = None
        return cluster.AgglomerativeClustering(**given)
    if method == "spectral":
        if given.get("affinity") == "nearest_neighbors":
            given["n_neighbors"] = min(given.get("n_neighbors", 10), count)
        return cluster.SpectralClustering(**given)
    if method == "optics" and given.get("max_eps") is None:
        given["max_eps"] = math.inf
    if method == "hdbscan":
        given["copy"] = True  # what is given stays as it is, in every release
    kinds = {
        "kmeans": cluster.KMeans,
        "dbscan": cluster.DBSCAN,
        "hdbscan": cluster.HDBSCAN,
        "gaussian_mixture": mixture.GaussianMixture,
        "mean_shift": cluster.MeanShift,
        "optics": cluster.OPTICS,
    }
    return kinds[method](**given)


def assign(method: str, params: Mapping[str, Any], vectors: Floats) -> Integers:
    """Return the cluster of each row, numbered from the largest; -1 for what belongs to none."""
    count = len(vectors)
    if count == 1 or (method in ("hdbscan", "optics") and count < 3):
        # Not enough to compare: the methods themselves would raise.
        return (
            np.zeros(count, np.int32) if method not in ("hdbscan", "optics") else np.full(count, -1, np.int32)
        )
    if method == "spectral" and count <= int(params.get("n_clusters", 8)):
        return np.arange(count, dtype=np.int32)
    found = model(method, params, count).fit_predict(vectors)
    return numbered(np.asarray(found, np.int32))


def numbered(found: Integers) -> Integers:
    """Return clusters numbered by size, the largest 0, of equal ones the one that comes first; -1 stays."""
    names, firsts, sizes = np.unique(found, return_index=True, return_counts=True)
    order = sorted(
        (index for index, name in enumerate(names) if name >= 0),
        key=lambda index: (-sizes[index], firsts[index]),
    )
    new = {int(names[index]): number for number, index in enumerate(order)}
    return np.array([new.get(int(name), -1) for name in found], np.int32)


def blended(vectors: Floats, blocks: Sequence[Mapping[str, Any]], *, normalize: bool) -> Floats:
    """Return the rows with each feature's block of length one (unless not wanted), times its weight."""
    result = np.array(vectors, np.float32)
    start = 0
    for block in blocks:
        part = result[:, start : start + block["dimensions"]]
        if normalize:
            norms = np.linalg.norm(part, axis=1, keepdims=True)
            part /= np.where(norms == 0, 1, norms)
        part *= np.float32(block["weight"])
        start += block["dimensions"]
    return result


def centers(vectors: Floats, labels: Integers, how: str) -> Floats:
    """Return the centre of each cluster: ``mean``, ``median``, or ``medoid``, the member next to the mean."""
    rows = []
    for number in range(int(labels.max(initial=-1)) + 1):
        members = vectors[labels == number]
        if how == "median":
            rows.append(np.median(members, axis=0))
            continue
        mean = members.mean(axis=0)
        rows.append(members[np.linalg.norm(members - mean, axis=1).argmin()] if how == "medoid" else mean)
    return np.array(rows, np.float32).reshape(len(rows), vectors.shape[1])


def distances(vectors: Floats, labels: Integers, middle: Floats) -> Floats:
    """Return how far each row lies from the centre of its cluster; NaN for what belongs to none."""
    found = np.full(len(vectors), np.nan, np.float32)
    for number, center in enumerate(middle):
        members = labels == number
        found[members] = np.linalg.norm(vectors[members] - center, axis=1)
    return found


def plane(vectors: Floats, middle: Floats) -> tuple[Floats, Floats]:
    """Return two coordinates for each row and each centre: their place on the two principal axes."""
    from sklearn.decomposition import PCA

    if len(vectors) < 2 or vectors.shape[1] < 2:
        return np.zeros((len(vectors), 2), np.float32), np.zeros((len(middle), 2), np.float32)
    axes = PCA(n_components=2, svd_solver="auto", random_state=SEED)
    points = np.asarray(axes.fit_transform(vectors), np.float32)
    return points, np.asarray(axes.transform(middle), np.float32) if len(middle) else np.zeros(
        (0, 2), np.float32
    )


def scores(vectors: Floats, labels: Integers) -> dict[str, float] | None:
    """Return silhouette and its kin over a sample of the clustered rows; None where there is nothing to compare."""
    from sklearn import metrics

    chosen = np.flatnonzero(labels >= 0)
    if len(chosen) > SCORED_DOCUMENTS:
        chosen = np.sort(np.random.default_rng(SEED).choice(chosen, SCORED_DOCUMENTS, replace=False))
    rows, names = vectors[chosen], labels[chosen]
    if not 2 <= len(np.unique(names)) < len(rows):
        return None
    found = {
        "silhouette_score": metrics.silhouette_score(rows, names),
        "davies_bouldin_index": metrics.davies_bouldin_score(rows, names),
        "calinski_harabasz_score": metrics.calinski_harabasz_score(rows, names),
    }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def terms(texts: Iterable[str], labels: Sequence[int]) -> dict[int, list[str]]:
    """Return the words that are frequent in a cluster and rare elsewhere (class-based TF-IDF), the heaviest first."""
    counts: dict[int, Counter[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        if label >= 0:
            words = (word for word in _WORD.findall(text.lower()) if word not in _COMMON)
            counts.setdefault(int(label), Counter()).update(words)
    everywhere: Counter[str] = Counter()
    for counter in counts.values():
        everywhere.update(counter)
    mean = sum(everywhere.values()) / max(1, len(counts))
    found = {}
    for label, counter in counts.items():
        total = sum(counter.values()) or 1
        weight = {word: n / total * math.log(1 + mean / everywhere[word]) for word, n in counter.items()}
        found[label] = sorted(weight, key=lambda word: (-weight[word], word))[:_KEYWORDS]
    return found


def label_of(keywords: Sequence[str], number: int) -> str:
    """Return a cluster's label: its heaviest terms, or its number where its documents have no words."""
    return ", ".join(keywords[:_LABEL_TERMS]) or f"Cluster {number}"


def run(folder: Path) -> None:
    """Fit what `folder` asks for and write the result there."""
    spec = json.loads((folder / "spec.json").read_text())
    width = sum(block["dimensions"] for block in spec["blocks"])
    stored = np.fromfile(folder / "vectors.f32", np.float32).reshape(-1, width)
    vectors = blended(stored, spec["blocks"], normalize=spec["normalize"])
    del stored
    labels = assign(spec["method"], spec["params"], vectors)
    middle = centers(vectors, labels, spec["center"])
    far = distances(vectors, labels, middle)
    points, center_points = plane(vectors, middle)
    with (folder / "texts.jsonl").open(encoding="utf-8") as lines:
        keywords = terms((json.loads(line) for line in lines), labels.tolist())
    np.savez(folder / "labels.npz", labels=labels, distances=far, points=points)
    centroids = [
        {
            "cluster_id": f"cl_{number}",
            "num_members": int((labels == number).sum()),
            "label": label_of(keywords.get(number, []), number),
            "keywords": keywords.get(number, []),
            "x": float(center_points[number][0]),
            "y": float(center_points[number][1]),
        }
        for number in range(len(middle))
    ]
    result = {"centroids": centroids, "metrics": scores(vectors, labels), "noise": int((labels < 0).sum())}
    (folder / "result.json").write_text(json.dumps(result))


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held when the fit has ended
        pass
    os._exit(3)


def main() -> None:
    """Run in the folder that the command line names; on Linux with at most the memory that the spec allows."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    most = int(json.loads((folder / "spec.json").read_text())["memory_mib"])
    if most and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (most * 1024 * 1024,) * 2)
    from threadpoolctl import threadpool_limits

    try:
        # One thread: the server's workers have the other processors, and sums come out the same everywhere.
        with threadpool_limits(1):
            run(folder)
    except MemoryError:
        (folder / "error.txt").write_text(
            f"The fit needs more than {most} MiB (setting worker_memory_mib). Cluster fewer documents (sample_size), "
            "choose kmeans, or raise the setting."
        )
        sys.exit(1)
    except ValueError as error:
        # What scikit-learn says of parameters that do not fit the data.
        (folder / "error.txt").write_text(f"The method refused: {error}"[:2000])
        sys.exit(1)


if __name__ == "__main__":
    main()
