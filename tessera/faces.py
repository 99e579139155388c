"""Faces in pictures: where they are, an upright crop of each, how good it is, and its vector.

Two ONNX models in the formats that InsightFace publishes: SCRFD finds faces (Guo et al., arXiv 2105.04714), ArcFace
tells them apart (Deng et al., arXiv 1801.07698). What is computed around them, in numpy and Pillow, is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Vectors = npt.NDArray[np.float32]
#: Points as complex numbers, x + iy: a similarity transform is then one multiplication and one addition.
Points = npt.NDArray[np.complex128]
Box = tuple[float, float, float, float]

#: Side of the square that a picture is fitted into, where the model leaves it open.
DETECTION_SIDE = 640
#: Side of the crop that the embedder reads.
CROP_SIDE = 112
DIMENSIONS = 512
#: Of two boxes that share more of their union than this, the surer one stays.
MOST_OVERLAP = 0.4
#: Most faces of one picture, the surest first.
MAX_FACES = 1000

_STRIDES = (8, 16, 32)
#: Where both eyes, the tip of the nose and both corners of the mouth of a face that looks into the camera lie in the
#: crop; ArcFace was trained on faces that were brought there (insightface/utils/face_align.py, ``arcface_dst``).
_CANONICAL: Points = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)
#: A face is as large as the crop needs from `CROP_SIDE` pixels on, as sharp as it needs from about this variance of
#: the Laplacian on, and not usable when its landmarks lie so many pixels from their places.
_SHARP_VARIANCE = 100.0
_FARTHEST = 16.0
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Face:
    """A face that was found, in pixels of the picture. `landmarks` are eyes, nose and corners of the mouth.

    Left is the picture's left, in boxes and in the order of eyes and corners. `score` is 0…1.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    score: float

    @property
    def smaller_side(self) -> float:
        """Width or height of the box, whichever is less."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)

    @property
    def area(self) -> float:
        """What the box covers, in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector:
    """Finds faces with a SCRFD model. One instance a process.

    The model gives, for each of the strides 8, 16 and 32, three outputs with a row for each anchor: a score, the
    distances of the four sides from the anchor, and the offsets of the five landmarks, distances in strides. The
    outputs are told apart by their shapes. Raises `ValueError` for a model of another form.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        given = session.get_inputs()[0]
        self._input = given.name
        sides = [side for side in given.shape[2:] if isinstance(side, int) and side > 0]
        self._height, self._width = sides if len(sides) == 2 else (DETECTION_SIDE, DETECTION_SIDE)
        if len(session.get_outputs()) != 9:
            raise ValueError(
                f"it has {len(session.get_outputs())} outputs; a SCRFD model with landmarks (kps) has nine"
            )
        if self._height % 32 or self._width % 32:
            raise ValueError(f"its input is {self._width}×{self._height}, no multiple of 32")

    def find(self, picture: Image, threshold: float = 0.5) -> list[Face]:
        """Return the faces of a picture whose score reaches `threshold`, the largest first."""
        pixels, across, down = self._fitted(picture)
        outputs = self._session.run(None, {self._input: pixels})
        boxes, landmarks, scores = self._decoded(outputs, threshold)
        kept = surest(boxes, scores)[:MAX_FACES]
        width, height = picture.size
        faces = [
            Face(
                (
                    float(np.clip(boxes[index, 0] / across, 0, width)),
                    float(np.clip(boxes[index, 1] / down, 0, height)),
                    float(np.clip(boxes[index, 2] / across, 0, width)),
                    float(np.clip(boxes[index, 3] / down, 0, height)),
                ),
                tuple((float(x / across), float(y / down)) for x, y in landmarks[index]),
                float(min(1.0, scores[index])),
            )
            for index in kept
        ]
        usable = [face for face in faces if face.smaller_side >= 1 and _spread(_points(face)) >= 1]
        return sorted(usable, key=lambda face: (-face.area, face.box))

    def _fitted(self, picture: Image) -> tuple[Vectors, float, float]:
        """Return the picture in the upper left corner of what the model sees, and its scales across and down."""
        from PIL import Image

        width, height = picture.size
        scale = min(self._width / width, self._height / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (self._width, self._height))
        canvas.paste(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        pixels = (np.asarray(canvas, np.float32) - 127.5) / 128.0
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), size[0] / width, size[1] / height

    def _decoded(self, outputs: Sequence[Any], threshold: float) -> tuple[Vectors, Vectors, Vectors]:
        """Return boxes `[n, 4]`, landmarks `[n, 5, 2]` and scores `[n]` of the anchors that reach `threshold`."""
        by_rows: dict[int, dict[int, Vectors]] = {}
        for output in outputs:
            table = np.asarray(output, np.float32).reshape(-1, output.shape[-1])
            by_rows.setdefault(len(table), {})[table.shape[1]] = table
        boxes, landmarks, scores = [], [], []
        for stride in _STRIDES:
            down, across = self._height // stride, self._width // stride
            for anchors in (2, 1):
                tables = by_rows.get(down * across * anchors, {})
                if {1, 4, 10} <= set(tables):
                    break
            else:
                raise ValueError(f"its outputs have no scores, boxes and landmarks for stride {stride}")
            found = np.flatnonzero(tables[1][:, 0] >= threshold)
            cells = found // anchors
            centres = np.stack([cells % across, cells // across], axis=1).astype(np.float32) * stride
            sides = tables[4][found] * stride
            boxes.append(np.concatenate([centres - sides[:, :2], centres + sides[:, 2:]], axis=1))
            landmarks.append(centres[:, None] + tables[10][found].reshape(-1, 5, 2) * stride)
            scores.append(tables[1][found, 0])
        return np.concatenate(boxes), np.concatenate(landmarks), np.concatenate(scores)


class Embedder:
    """Turns upright crops of faces into vectors with an ArcFace model. One instance a process.

    Raises `ValueError` for a model that does not turn 112×112 pixels into 512 numbers.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        given, made = session.get_inputs()[0], session.get_outputs()[0]
        self._input = given.name
        self._batch = 1 if given.shape[0] == 1 else _BATCH
        if list(given.shape[1:]) != [3, CROP_SIDE, CROP_SIDE] or made.shape[-1] != DIMENSIONS:
            raise ValueError(
                f"it turns {given.shape[1:]} into {made.shape[1:]}, not [3, 112, 112] into [512]"
            )

    def embed(self, crops: Sequence[Image]) -> Vectors:
        """Return `float32[len(crops), 512]`, of unit length."""
        vectors = np.empty((len(crops), DIMENSIONS), np.float32)
        for begin in range(0, len(crops), self._batch):
            part = crops[begin : begin + self._batch]
            pixels = np.stack([np.asarray(crop.convert("RGB"), np.float32) for crop in part])
            fed = np.ascontiguousarray(((pixels - 127.5) / 127.5).transpose(0, 3, 1, 2))
            vectors[begin : begin + len(part)] = self._session.run(None, {self._input: fed})[0]
        unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


def surest(boxes: Vectors, scores: Vectors) -> list[int]:
    """Return which boxes stay when, of those that overlap too much, only the surest does; the surest first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while left.size:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        corners = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.prod(np.maximum(0, corners[1] - corners[0]), axis=1)
        left = left[shared <= MOST_OVERLAP * (areas[best] + areas[left] - shared)]
    return kept


def aligned(picture: Image, face: Face) -> Image:
    """Return the crop of 112×112 pixels in which a face stands upright, its landmarks near their places."""
    from PIL import Image

    turn, shift = _similarity(_points(face))
    # Pillow asks where in the picture a pixel of the crop comes from, and counts from corners, not from middles.
    back = 1 / turn
    start = -shift * back + (0.5 + 0.5j) - back * (0.5 + 0.5j)
    coefficients = (back.real, -back.imag, start.real, back.imag, back.real, start.imag)
    rgb = picture.convert("RGB")
    return rgb.transform(
        (CROP_SIDE, CROP_SIDE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


def quality(face: Face, crop: Image, enlarged: float = 1.0) -> float:
    """Return how good a face is to be known by, 0…1: the geometric mean of its size, sharpness and pose.

    `enlarged` is how much larger the face is in its source than in the picture it was found in.
    """
    size = min(1.0, face.smaller_side * enlarged / CROP_SIDE)
    grey = np.asarray(crop.convert("L"), np.float64)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    variance = float(laplacian.var())
    sharpness = variance / (variance + _SHARP_VARIANCE)
    points = _points(face)
    turn, shift = _similarity(points)
    away = float(np.sqrt(np.mean(np.abs(turn * points + shift - _CANONICAL) ** 2)))
    pose = max(0.0, 1 - away / _FARTHEST)
    return float(np.cbrt(size * sharpness * pose))


def _similarity(points: Points) -> tuple[complex, complex]:
    """Return `turn` and `shift` by which ``turn * points + shift`` comes nearest to the places in the crop.

    Least squares over rotation, scale and translation (Umeyama 1991, without reflections), in complex numbers.
    """
    here, there = points - points.mean(), _CANONICAL - _CANONICAL.mean()
    turn = complex(np.vdot(here, there) / np.vdot(here, here).real)
    return turn, complex(_CANONICAL.mean() - turn * points.mean())


def _points(face: Face) -> Points:
    return np.array([complex(x, y) for x, y in face.landmarks])


def _spread(points: Points) -> float:
    """Return how far landmarks lie from their middle, in pixels."""
    return float(np.abs(points - points.mean()).max())
