"""From a text to the sparse vector of its words, as keyword search stores and asks for them.

**Tokens.** The text is brought to NFKC, and runs of scripts that write no blanks between words (Han, Kana, Thai,
Lao, Khmer, Myanmar) are cut into single characters and overlapping pairs. The engine then takes runs of letters and
digits (``XK-4471`` is ``xk`` and ``4471``), lower case, without accents, each brought to its English stem
(Snowball). Nothing is left out: common words weigh little by themselves, and a query of nothing else still finds.

**Weights.** Of a document BM25's term frequency (Robertson and Zaragoza, 2009) with k = 1.2, b = 0.75 and
a constant average length of 256 tokens, so that a document weighs the same whenever it is written; of a query 1 for
each word. The engine multiplies by the inverse document frequency in the view, which is that of one namespace.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import qdrant_edge

from tessera.ports import Payload

#: Goes up with every change of what is stored for a text: views made before are made anew.
RECIPE = 1
#: So much of a document's texts is read; a book is better cut into pieces.
MAX_TEXT_CHARS = 200_000
#: So much of a query: each of its words is looked up, and a stored document may be the query.
MAX_QUERY_CHARS = 10_000

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


class Words(NamedTuple):
    """A sparse vector: a number for each word, and its weight."""

    indices: list[int]
    values: list[float]


def words_of(payload: Payload, fields: Sequence[str]) -> Words | None:
    """Return the words of a document, None when its `fields` hold none."""
    texts: list[str] = []
    for name in fields:
        value = payload.get(name)
        texts += [item for item in (value if isinstance(value, list) else (value,)) if isinstance(item, str)]
    if not texts:
        return None
    return _words(_model().embed_document(_tokenizable("\n".join(texts)[:MAX_TEXT_CHARS])))


def words_asked(text: str) -> Words | None:
    """Return the words of a query, None when it holds none."""
    return _words(_model().embed_query(_tokenizable(text[:MAX_QUERY_CHARS])))


@functools.cache
def _model() -> qdrant_edge.Bm25:
    return qdrant_edge.Bm25(
        qdrant_edge.Bm25Config(
            k=1.2,
            b=0.75,
            avg_len=256.0,
            tokenizer=qdrant_edge.TokenizerType.Word,
            language="english",
            lowercase=True,
            ascii_folding=True,
            stopwords=qdrant_edge.StopwordsSet(languages=set(), custom=set()),
        )
    )


def _words(vector: qdrant_edge.SparseVector) -> Words | None:
    return Words(list(vector.indices), list(vector.values)) if vector.indices else None


def _tokenizable(text: str) -> str:
    if text.isascii():
        return text
    return _UNSPACED.sub(_cut, unicodedata.normalize("NFKC", text))


def _cut(run: re.Match[str]) -> str:
    characters = run[0]
    pairs = (characters[number : number + 2] for number in range(len(characters) - 1))
    return f" {' '.join((*characters, *pairs))} "
