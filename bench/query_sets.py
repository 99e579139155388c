"""Which search answers best: by meaning (MiniLM), by words (BM25), or by both, fused by scores or by ranks (hybrid).

Over the docstrings of Python's library, each a text of its own that begins with the dotted name. Three sets of
queries: names as they are spelled, questions in other words, and a module's name with a question. They were written
down before anything was measured: the names by a seed, the others in ``query_sets.json``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import random
import statistics
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.pipeline import Pipeline
from bench.place import URI
from bench.servers import tessera

MODULES = [
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "cmath",
    "codecs",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "dis",
    "email.message",
    "enum",
    "filecmp",
    "fileinput",
    "fnmatch",
    "fractions",
    "ftplib",
    "functools",
    "getpass",
    "gettext",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "http.client",
    "imaplib",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "locale",
    "logging",
    "lzma",
    "mailbox",
    "math",
    "mimetypes",
    "multiprocessing",
    "operator",
    "os",
    "os.path",
    "pathlib",
    "pdb",
    "pickle",
    "platform",
    "plistlib",
    "poplib",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "secrets",
    "select",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "sqlite3",
    "ssl",
    "stat",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "symtable",
    "sysconfig",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unittest",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "warnings",
    "wave",
    "weakref",
    "webbrowser",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "zipfile",
    "zlib",
]
#: Characters of a docstring that are taken; the model reads 256 word pieces.
LENGTH = 1000
SHORTEST = 20
NAMES = 60
SEED = 20
DEPTH = 10
_MEANING = {"feature_uri": URI, "query": "{{INPUT.q}}"}
_WORDS = {**_MEANING, "lexical": True}
#: The parameters of each way to search, with one input `q`. Of rank constants from 1 to 60, of weights from 1 to 3 and
#: of three fusions, `hybrid` was the best on the even queries; the odd ones tell whether that was luck.
WAYS: dict[str, dict[str, Any]] = {
    "meaning": {"searches": [_MEANING]},
    "words": {"searches": [_WORDS]},
    "hybrid": {"searches": [{**_MEANING, "weight": 2}, _WORDS], "fusion": "dbsf"},
    "hybrid by ranks alone": {"searches": [_MEANING, _WORDS]},
}
#: What hybrid may lose to the better of the two on a set that suits that one.
MAY_LOSE = 0.01

Query = tuple[str, tuple[str, ...]]


def main() -> None:
    """Print nDCG@10 of each way of searching on each set of queries, and of both halves of each set."""
    texts = documented()
    sets = query_sets(texts)
    with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
        place = Pipeline(client, "query-sets", "text_extractor")
        place.run(place.load([f"{name}\n{text}" for name, text in texts.items()]))
        paths = {
            way: place.retriever(way, {**parameters, "final_top_k": DEPTH})
            for way, parameters in WAYS.items()
        }
        found = {
            name: {
                way: [ndcg(place.first_lines(path, asked), wanted) for asked, wanted in queries]
                for way, path in paths.items()
            }
            for name, queries in sets.items()
        }
    for name, ways in found.items():
        means = {way: statistics.fmean(values) for way, values in ways.items()}
        best = max(means["meaning"], means["words"])
        holds = means["hybrid"] > best if name == "mixed" else means["hybrid"] >= best - MAY_LOSE
        halves = ", ".join(
            f"{way} {statistics.fmean(values[::2]):.3f} and {statistics.fmean(values[1::2]):.3f}"
            for way, values in ways.items()
        )
        told = ", ".join(f"{way} {mean:.3f}" for way, mean in means.items())
        print(
            f"Queries: {len(sets[name])} {name}, nDCG@{DEPTH} over {len(texts)} texts: {told}; hybrid "
            f"{'above both' if name == 'mixed' else f'at least the better one less {MAY_LOSE}'}: "
            f"{'holds' if holds else 'MISSED'}"
        )
        print(f"   even and odd queries: {halves}")


def ndcg(found: Sequence[str], relevant: Collection[str], depth: int = DEPTH) -> float:
    """Return the normalised discounted cumulative gain of `found`, 0 to 1, with gain 1 for each of `relevant`.

    Discount ``1 / log2(rank + 1)``: Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
    """
    gain = sum(1 / math.log2(rank + 1) for rank, name in enumerate(found[:depth], 1) if name in relevant)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), depth) + 1))


def documented() -> dict[str, str]:
    """Return the docstrings of functions and classes of `MODULES` by dotted name, no text twice."""
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for module in MODULES:
        for name, member in inspect.getmembers(importlib.import_module(module)):
            # What one module has from another is told of once, under the name of its own.
            home = (getattr(member, "__module__", None) or "").lstrip("_")
            if name.startswith("_") or not callable(member) or (home != module and home in MODULES):
                continue
            # `inspect.getdoc` gives a class without a docstring that of its base.
            documentation = getattr(member, "__doc__", None)
            text = inspect.cleandoc(documentation)[:LENGTH] if isinstance(documentation, str) else ""
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                texts[f"{module}.{name}"] = text
    return texts


def query_sets(texts: Collection[str]) -> dict[str, list[Query]]:
    """Return the sets of queries: each a text and the names that answer it, of which at least one is among `texts`."""
    written = json.loads(Path(__file__).with_name("query_sets.json").read_text())
    names = random.Random(SEED).sample(sorted(texts), NAMES)
    sets: dict[str, list[Query]] = {"identifier": [(name, (name,)) for name in names]}
    for kind, queries in written.items():
        sets[kind] = [(asked, tuple(name for name in wanted if name in texts)) for asked, wanted in queries]
        unknown = [asked for asked, wanted in sets[kind] if not wanted]
        assert not unknown, f"no text answers {unknown}"
    return sets


if __name__ == "__main__":
    main()
