"""Texts to labels: a classification model in the form in which the hub's ONNX exports come.

A folder has the graph (inputs ``input_ids``, ``attention_mask``, perhaps ``token_type_ids``; output ``logits``),
``tokenizer.json``, and ``config.json`` with the names of the labels (``id2label``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Texts of one run hold at most this many tokens, padding included.
_BATCH_TOKENS = 2_048


class Classifier:
    """Says how likely each label is for a text. One instance a process.

    Raises `ValueError` or `OSError` for a folder of another form.
    """

    def __init__(self, session: Any, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("id2label") or {}
        self.labels = tuple(str(named[key]) for key in sorted(named, key=int))
        if len(self.labels) < 2:
            raise ValueError("its config.json names no labels (id2label)")
        made = session.get_outputs()[0].shape[-1]
        if isinstance(made, int) and made != len(self.labels):
            raise ValueError(f"it gives {made} numbers for {len(self.labels)} labels")
        self._many = config.get("problem_type") == "multi_label_classification"
        self._longest = int(config.get("max_position_embeddings") or 512)
        self._session = session
        self._inputs = {given.name for given in session.get_inputs()}
        if not self._inputs <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise ValueError(f"it wants {sorted(self._inputs)}")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()

    def scores(self, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.float32]:
        """Return `float32[len(texts), labels]`, 0…1; of a text the first `max_tokens` word pieces are read.

        They add up to 1, but for a model of which several labels may hold at once.
        """
        from tessera.inference import batches_by_length

        limit = min(max_tokens, self._longest)
        self._tokenizer.enable_truncation(limit)
        # A word piece has hardly more than a few letters: what lies far behind the limit is not tokenized in vain.
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch([t[: limit * 80] for t in texts])]
        found = np.empty((len(texts), len(self.labels)), np.float32)
        for batch in batches_by_length([len(ids) for ids in tokens], _BATCH_TOKENS):
            found[batch] = self._run([tokens[index] for index in batch], max(1, len(tokens[batch[-1]])))
        return found

    def _run(self, tokens: Sequence[Sequence[int]], longest: int) -> npt.NDArray[np.float32]:
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, of_text in enumerate(tokens):
            ids[row, : len(of_text)] = of_text
            mask[row, : len(of_text)] = 1
        fed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (logits,) = self._session.run(None, {name: fed[name] for name in self._inputs})[:1]
        if self._many:
            likely: npt.NDArray[np.float32] = 1 / (1 + np.exp(-logits))
            return likely
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return shares
