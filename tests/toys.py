"""Small parts that compute: extractors that need no model, and a registry of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tessera.errors import BadSample
from tessera.extractors.base import Extractor, Outputs, Params, VectorOutput
from tessera.models import IndexType, PayloadIndex


def index(name: str, kind: IndexType) -> PayloadIndex:
    schema: dict[str, Any] = {"type": kind.value}
    if kind == IndexType.KEYWORD:
        schema["is_tenant"] = False
    return PayloadIndex(field_name=name, type=kind, field_schema=schema)


class WordParams(Params):
    size: int = Field(4, ge=1, le=64)
    model: str | None = None


class Words(Extractor):
    """A vector whose size is a parameter, and an index on the field that it writes."""

    name = "word_extractor"
    also_named = ("multiword_extractor",)
    description = "Counts words."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text",)}
    Params = WordParams

    def outputs(self, params: WordParams) -> Outputs:
        if params.model == "huge":
            raise BadSample("model_missing", "Model 'huge' is not installed; run `tessera models pull huge`.")
        return Outputs(
            vectors=(
                VectorOutput(
                    "word_extractor_v1_embedding", params.size, "words_v1", "counter", "Counts of words."
                ),
            ),
            indexes=(index("language", IndexType.KEYWORD), index("start_time", IndexType.FLOAT)),
        )

    def extract(self, samples: Sequence[Any], params: Any) -> Iterator[Any]:
        yield from ()


class Nothing(Extractor):
    """No vectors, no indexes."""

    name = "pass_extractor"
    description = "Copies fields."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"content": ("text", "image")}

    def outputs(self, params: Params) -> Outputs:
        return Outputs()

    def extract(self, samples: Sequence[Any], params: Any) -> Iterator[Any]:
        yield from ()


class Toys:
    """The part of `tessera.registry.Registry` that planning uses."""

    def __init__(self) -> None:
        self._by_name: dict[str, Extractor] = {}
        models: Any = None  # none of them runs one
        for extractor in (Words(models), Nothing(models)):
            for name in (extractor.name, *extractor.also_named):
                self._by_name[name] = extractor

    def extractor_names(self) -> list[str]:
        return sorted(self._by_name)

    def versions(self, name: str) -> tuple[str, ...]:
        return ("v1", "1.0.0") if name in self._by_name else ()

    def extractor(self, name: str, version: str) -> Extractor:
        assert version in self.versions(name)
        return self._by_name[name]

    def trouble(self, name: str) -> str:
        return ""


def cross_encoder(home: Path, texts: Sequence[str]) -> Callable[[str], float]:
    """Write a small random cross-encoder that knows the words of `texts`, and return what it computes.

    Its score of a query and a text, given as "query text", is the sum of the random weights of their words.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: 2 + at for at, word in enumerate(words)}}
    weights = np.random.default_rng(7).normal(size=(len(vocabulary), 1)).astype(np.float32)
    weights[:2] = 0
    home.mkdir(parents=True)
    (home / "onnx").mkdir()
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["worth"]),
            helper.make_node("ReduceSum", ["worth", "axis"], ["logits"], keepdims=0),
        ],
        "cross-encoder",
        [info("input_ids", TensorProto.INT64, ["n", "tokens"])],
        [info("logits", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, home / "onnx" / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(home / "tokenizer.json"))
    for name, settings in {
        "tokenizer_config.json": {"model_max_length": 512, "pad_token": "[PAD]", "unk_token": "[UNK]"},
        "config.json": {"pad_token_id": 0},
        "special_tokens_map.json": {"pad_token": "[PAD]"},
    }.items():
        (home / name).write_text(json.dumps(settings))

    def worth(text: str) -> float:
        return float(sum(weights[vocabulary.get(word, 1), 0] for word in re.findall(r"\w+", text.lower())))

    return worth
