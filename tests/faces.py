"""Small ONNX graphs in the formats of SCRFD and ArcFace: what they find and say is known, so it can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessera import faces

SIDE = 640
#: The offsets from an anchor, in strides, that describe a face 14 strides wide and 18 high that looks ahead.
BOX = (7.0, 8.0, 7.0, 10.0)
LANDMARKS = (-3.0, -2.0, 3.0, -2.0, 0.0, 1.0, -2.4, 4.5, 2.4, 4.5)


@dataclass(frozen=True)
class Anchor:
    """A face that the graph finds whatever it sees: at which anchor, and what is said there."""

    stride: int = 16
    row: int = 10
    column: int = 9
    which: int = 0
    score: float = 0.9
    box: Sequence[float] = BOX
    landmarks: Sequence[float] = LANDMARKS


def write_detector(path: Path, anchors: Sequence[Anchor] = (Anchor(),), *, red: bool = False) -> None:
    """Write a detector with the nine outputs of SCRFD.

    Its scores are 0 but at `anchors`; with `red`, at the first anchor of each cell of stride 16, how red the cell is.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    nodes: list[Any] = []
    constants: list[Any] = []
    outputs: list[Any] = []

    def constant(name: str, values: Any, kind: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    zero = constant("zero", [0.0])
    nodes.append(helper.make_node("ReduceMean", ["input.1"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", zero], ["nothing"]))
    for stride in (8, 16, 32):
        cells = SIDE // stride
        tables = {
            1: np.zeros((cells * cells * 2, 1), np.float32),
            4: np.tile(np.float32(BOX), (cells * cells * 2, 1)),
            10: np.tile(np.float32(LANDMARKS), (cells * cells * 2, 1)),
        }
        for anchor in anchors:
            if anchor.stride == stride:
                row = (anchor.row * cells + anchor.column) * 2 + anchor.which
                tables[1][row] = anchor.score
                tables[4][row], tables[10][row] = anchor.box, anchor.landmarks
        for width, table in tables.items():
            name = f"{width}_{stride}"
            constant(f"table_{name}", table)
            # Every output depends on the input, as those of a model do.
            nodes.append(helper.make_node("Add", [f"table_{name}", "nothing"], [name]))
            outputs.append((width, name, len(table)))
    if red:
        # Red less the other two, in the range that the model sees (-1 to 1), averaged over a cell.
        constant("redness", np.float32([[[[0.5]], [[-0.5]], [[-0.5]]], [[[0.0]]] * 3]))
        constant("offset", [-0.6, 0.0])
        constant("rows", [-1, 1], np.int64)
        nodes += [
            helper.make_node("AveragePool", ["input.1"], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
            helper.make_node("Conv", ["cells", "redness", "offset"], ["red"]),
            helper.make_node("Transpose", ["red"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", ["last", "rows"], ["red_16"]),
        ]
        outputs = [(w, "red_16" if name == "1_16" else name, count) for w, name, count in outputs]
    # SCRFD gives all scores, then all boxes, then all landmarks.
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, width])
        for width, name, count in sorted(outputs, key=lambda item: item[0])
    ]
    given = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [given], values, constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def weights() -> tuple[Any, Any]:
    """The matrix and the bias of the embedder that `write_embedder` writes."""
    random = np.random.default_rng(5)
    return random.normal(0, 1, (3, faces.DIMENSIONS)).astype(np.float32), random.normal(
        0, 0.2, faces.DIMENSIONS
    ).astype(np.float32)


def write_embedder(path: Path) -> None:
    """Write an embedder in ArcFace's format that knows a face by its mean colour."""
    from onnx import TensorProto, helper, numpy_helper, save

    matrix, bias = weights()
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("Gemm", ["colour", "matrix", "bias"], ["fc1"]),
    ]
    graph = helper.make_graph(
        nodes,
        "arcface",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["n", faces.DIMENSIONS])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def write_models(folder: Path, anchors: Sequence[Anchor] = (Anchor(),), *, red: bool = False) -> Path:
    """Write both models where `tessera models pull` puts them, and return `folder`."""
    write_detector(folder / "scrfd-2.5g/detection/model.onnx", anchors, red=red)
    write_embedder(folder / "arcface-r100/recognition/model.onnx")
    return folder


def red_square(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A grey picture with a red square."""
    picture = Image.new("RGB", size, (110, 110, 110))
    picture.paste((255, 0, 0), box)
    return picture
