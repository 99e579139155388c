"""The classical picture descriptor ``tessera-classic-v1``: colour, edges and texture in 256 numbers.

It stands in where no learned picture model is installed, and is named as such. It finds copies of a picture
(encoded again, scaled, slightly cropped) and pictures of like colours and shapes; it knows no words and no
objects. It is frozen: stored vectors are compared with new ones, so any change is a new id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Vector = npt.NDArray[np.float32]
_Plane = npt.NDArray[np.float32]

MODEL_ID = "tessera-classic-v1"
DIMENSIONS = 256

#: Pictures are squeezed to this square first, so that scale and format drop out.
_SIDE = 128
#: Bins of L*, a*, b* in the joint histogram, and cells of the colour layout.
_COLOUR_BINS = 4
_LAYOUT_CELLS = 4
#: Directions (of 180°) and cells a side of the edge histograms; one more covers the whole picture.
_DIRECTIONS = 8
_EDGE_CELLS = 3
#: A step of L* below this is noise of the codec, neither edge nor texture.
_NOISE = 3.0
#: How much of the squared length each part gets: colours, layout, edges, texture.
_SHARES = (0.34, 0.22, 0.30, 0.14)


def describe(picture: Image) -> Vector:
    """Return the descriptor of a picture: `float32[256]` of unit length, the same on every machine.

    Transparent parts count as white.
    """
    lab = _lab(_square(picture))
    lightness = lab[..., 0]
    parts = (_colours(lab), _layout(lab), _edges(lightness), _texture(lightness))
    return _unit(
        np.concatenate([share**0.5 * _unit(part) for share, part in zip(_SHARES, parts, strict=True)])
    )


def _square(picture: Image) -> _Plane:
    from PIL import Image as Pillow

    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Pillow.new("RGBA", layer.size, "white")
        picture = Pillow.alpha_composite(ground, layer)
    small = picture.convert("RGB").resize((_SIDE, _SIDE), Pillow.Resampling.BOX, reducing_gap=None)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _lab(rgb: _Plane) -> _Plane:
    """Return CIE L*a*b* (D65) of sRGB values in 0…1: distances in it are close to seen ones (IEC 61966-2-1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    white = np.array([0.95047, 1.0, 1.08883])
    xyz = linear @ to_xyz.T / white
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    lab: _Plane = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)
    return lab


def _colours(lab: _Plane) -> Vector:
    """Return the joint histogram of L*, a*, b*, each pixel shared among its eight nearest bins."""
    low, span = np.array([0.0, -64.0, -64.0]), np.array([100.0, 128.0, 128.0])
    last = _COLOUR_BINS - 1
    place = np.clip((lab.reshape(-1, 3) - low) / span, 0, 1) * last
    base = np.minimum(place.astype(np.int64), last - 1)
    above = place - base
    histogram = np.zeros(_COLOUR_BINS**3)
    for corner in range(8):
        step = np.array([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        weight = np.prod(np.where(step == 1, above, 1 - above), axis=1)
        bins = (base + step) @ np.array([_COLOUR_BINS**2, _COLOUR_BINS, 1])
        histogram += np.bincount(bins, weights=weight, minlength=histogram.size)
    # The root makes a dot product the Bhattacharyya coefficient: large areas do not drown small ones.
    return np.sqrt(histogram / len(place)).astype(np.float32)


def _layout(lab: _Plane) -> Vector:
    """Return the mean colour of each cell of a grid: where the colours lie."""
    cell = _SIDE // _LAYOUT_CELLS
    means = lab.reshape(_LAYOUT_CELLS, cell, _LAYOUT_CELLS, cell, 3).mean(axis=(1, 3))
    # Grey of half lightness is the origin, so that dark and light point in opposite directions; it is set
    # off a little, so that a plain grey picture has a direction too.
    layout: Vector = ((means - np.array([50.0, 0.0, 0.0])) / 50 + 1e-3).ravel().astype(np.float32)
    return layout


def _edges(lightness: _Plane) -> Vector:
    """Return histograms of edge directions, for the whole picture and for a grid of cells that overlap softly."""
    down, across = np.gradient(lightness)
    strength = np.hypot(down, across)
    strength = np.where(strength > _NOISE, np.minimum(strength, 40.0), 0.0)
    angle = (np.arctan2(down, across) % np.pi) / np.pi * _DIRECTIONS
    base = np.floor(angle)
    part = angle - base
    first = base.astype(np.int64) % _DIRECTIONS
    planes = np.zeros((_DIRECTIONS, _SIDE, _SIDE))
    rows, columns = np.indices(strength.shape)
    planes[first, rows, columns] += strength * (1 - part)
    planes[(first + 1) % _DIRECTIONS, rows, columns] += strength * part
    # Triangular windows: a small shift or crop moves weight to a neighbour instead of across a border.
    centres = (np.arange(_EDGE_CELLS) + 0.5) * _SIDE / _EDGE_CELLS
    reach = _SIDE / _EDGE_CELLS
    window = np.maximum(0, 1 - np.abs(np.arange(_SIDE)[None] + 0.5 - centres[:, None]) / reach)
    cells = np.einsum("dyx,iy,jx->ijd", planes, window, window, optimize=True).reshape(-1, _DIRECTIONS)
    whole = planes.sum(axis=(1, 2))[None] / 3
    # Nothing but a plain area: the constant keeps the part's direction defined and the same for all of them.
    histograms: Vector = np.sqrt(np.concatenate([cells, whole]) + 1.0).ravel().astype(np.float32)
    return histograms


def _texture(lightness: _Plane) -> Vector:
    """Return histograms of local binary patterns (Ojala 2002, rotation invariant, uniform) and of contrast."""
    fine = _patterns(lightness)
    half = len(fine) // 2
    quarters = (fine[:half, :half], fine[:half, half:], fine[half:, :half], fine[half:, half:])
    coarse = lightness.reshape(_SIDE // 2, 2, _SIDE // 2, 2).mean(axis=(1, 3))
    histograms = [
        np.bincount(area.ravel(), minlength=10) / area.size for area in (fine, *quarters, _patterns(coarse))
    ]
    steps = np.abs(np.diff(lightness, axis=1))
    contrast = np.histogram(steps, bins=[0, 1.5, 6, 20, 1000])[0] / steps.size
    texture: Vector = np.sqrt(np.concatenate([*histograms, contrast])).astype(np.float32)
    return texture


def _patterns(plane: _Plane) -> npt.NDArray[np.int64]:
    """Return each inner pixel's pattern: 0–8 neighbours in one run that are lighter by a step, else 9."""
    size = len(plane)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    inner = plane[1:-1, 1:-1] + _NOISE
    lighter = np.stack([plane[y : y + size - 2, x : x + size - 2] > inner for y, x in around])
    changes = (lighter != np.roll(lighter, 1, axis=0)).sum(axis=0)
    patterns: npt.NDArray[np.int64] = np.where(changes <= 2, lighter.sum(axis=0), 9).astype(np.int64)
    return patterns


def _unit(vector: npt.NDArray[np.float32]) -> Vector:
    unit: Vector = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return unit
