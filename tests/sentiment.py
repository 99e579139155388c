"""A classification model of a few words, in the form of the hub's ONNX exports: each word has its own weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

#: Words, and what each adds to the two logits (NEGATIVE, POSITIVE).
WORDS = {"[UNK]": (0.0, 0.0), "good": (0.0, 2.0), "bad": (1.5, 0.0), "lamp": (0.1, 0.2)}
LABELS = ("NEGATIVE", "POSITIVE")


def write_classifier(folder: Path, **config: object) -> None:
    """Write graph, tokenizer and config; `config` replaces entries of the last."""
    from onnx import TensorProto, helper, numpy_helper, save
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    (folder / "onnx").mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"id2label": {str(n): label for n, label in enumerate(LABELS)}, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(said | config))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["words", "wide"], ["read"]),
        helper.make_node("ReduceSum", ["read", "tokens"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.float32(list(WORDS.values())), "table"),
            numpy_helper.from_array(np.int64([2]), "last"),
            numpy_helper.from_array(np.int64([1]), "tokens"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(made, str(folder / "onnx/model.onnx"))
