"""Faces: every number around the two models, against graphs whose answers are known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tessera import faces, sample_media
from tessera.errors import BadSample, InferenceServiceUnavailableError
from tessera.extractors.base import Feature, Input, Sample
from tessera.inference import Models
from tessera.registry import Registry
from tests.faces import (
    BOX,
    LANDMARKS,
    Anchor,
    red_square,
    weights,
    write_detector,
    write_embedder,
    write_models,
)


def detector(folder: Path, *anchors: Anchor, red: bool = False) -> faces.Detector:
    path = folder / "model.onnx"
    write_detector(path, anchors, red=red)
    return faces.Detector(onnxruntime.InferenceSession(str(path)))


def test_an_anchor_becomes_a_box_with_landmarks_in_pixels_of_the_picture(tmp_path: Path) -> None:
    """1280×960 is seen at half its size: an anchor at (144, 160) stands for (288, 320)."""
    (face,) = detector(tmp_path, Anchor(stride=16, row=10, column=9)).find(Image.new("RGB", (1280, 960)))
    x, y, stride = 9 * 16, 10 * 16, 16
    left, top, right, bottom = BOX
    expected = np.array([x - left * stride, y - top * stride, x + right * stride, y + bottom * stride]) * 2
    np.testing.assert_allclose(face.box, expected)
    points = (np.array([x, y]) + np.reshape(LANDMARKS, (5, 2)) * stride) * 2
    np.testing.assert_allclose(face.landmarks, points)
    assert face.score == pytest.approx(0.9)


def test_all_three_strides_and_both_anchors_of_a_cell_are_read(tmp_path: Path) -> None:
    small = Anchor(8, 30, 40, 1, 0.7)
    large = Anchor(32, 9, 5, 0, 0.8)
    found = detector(tmp_path, small, large, Anchor(16, 5, 30, 1, 0.4)).find(Image.new("RGB", (640, 640)))
    assert [(face.score, face.box[0]) for face in found] == [
        (pytest.approx(0.8), max(0.0, 5 * 32 - 7 * 32)),
        (pytest.approx(0.7), 40 * 8 - 7 * 8),
    ], "the largest first; the third is below the threshold"
    assert found[0].box[3] == 9 * 32 + 10 * 32, "cut off at the left edge only"


def test_of_overlapping_boxes_the_surest_stays(tmp_path: Path) -> None:
    near = [Anchor(column=9, score=0.7), Anchor(column=10, score=0.95), Anchor(column=11, score=0.6)]
    far = Anchor(column=30, score=0.5)
    found = detector(tmp_path, *near, far).find(Image.new("RGB", (640, 640)))
    assert sorted(face.score for face in found) == [pytest.approx(0.5), pytest.approx(0.95)]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 3.9], [20, 0, 30, 10]], np.float32)
    assert faces.surest(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32)) == [0, 2, 3]


@pytest.mark.parametrize("size", [(1600, 400), (300, 900), (640, 640), (200, 150)])
def test_a_picture_is_fitted_in_without_distortion_and_in_the_order_red_green_blue(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """The graph finds what is red: the cell that it names must be the one where the square is."""
    side = max(size) / 640 * 16
    column, row = 8, 6
    square = tuple(round(side * edge) for edge in (column, row, column + 1, row + 1))
    found = detector(tmp_path, red=True).find(red_square(size, square), 0.5)
    assert len(found) == 1
    centre = np.mean(np.reshape(found[0].landmarks, (5, 2))[:2], axis=0)
    # Between the eyes, two strides above the anchor.
    np.testing.assert_allclose(centre, [column * side, (row - 2) * side], atol=side / 10)


def test_alignment_brings_the_landmarks_to_their_places() -> None:
    """A picture in which each landmark is a spot, turned by 30°, small and off the middle."""
    canonical = faces._CANONICAL
    turned = (canonical - 56 - 56j) * 0.8 * np.exp(1j * np.pi / 6) + 130 + 90j
    pixels = np.zeros((200, 260, 3), np.uint8)
    across, down = np.meshgrid(np.arange(260), np.arange(200))
    for point in turned:
        spot = np.exp(-((across - point.real) ** 2 + (down - point.imag) ** 2) / (2 * 1.5**2))
        pixels = np.maximum(pixels, (255 * spot)[..., None].astype(np.uint8))
    box = (60.0, 30.0, 200.0, 160.0)
    face = faces.Face(box, tuple((point.real, point.imag) for point in turned), 1.0)
    crop = np.asarray(faces.aligned(Image.fromarray(pixels), face).convert("L"), float)
    assert crop.shape == (112, 112)
    across, down = np.meshgrid(np.arange(112), np.arange(112))
    for point in canonical:
        near = np.hypot(across - point.real, down - point.imag) < 7
        weight = crop * near
        found = complex((weight * across).sum(), (weight * down).sum()) / weight.sum()
        assert abs(found - point) < 0.1


def test_vectors_are_what_the_model_says_at_unit_length(tmp_path: Path) -> None:
    write_embedder(tmp_path / "model.onnx")
    embedder = faces.Embedder(onnxruntime.InferenceSession(str(tmp_path / "model.onnx")))
    colours = [(255, 0, 0), (10, 200, 40)] * 10
    vectors = embedder.embed([Image.new("RGB", (112, 112), colour) for colour in colours])
    matrix, bias = weights()
    for colour, vector in zip(colours, vectors, strict=True):
        raw = (np.array(colour, np.float32) - 127.5) / 127.5 @ matrix + bias
        np.testing.assert_allclose(vector, raw / np.linalg.norm(raw), atol=1e-5)
    assert embedder.embed([]).shape == (0, 512)


def test_quality_is_less_for_small_blurred_and_averted_faces() -> None:
    canonical = tuple((float(point.real), float(point.imag)) for point in faces._CANONICAL)
    noise = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    sharp = Image.fromarray(noise)
    good = faces.Face((0, 0, 112, 112), canonical, 1.0)
    assert faces.quality(good, sharp) == pytest.approx(1, abs=0.01)
    small = faces.Face((0, 0, 28, 28), canonical, 1.0)
    assert faces.quality(small, sharp) == pytest.approx(0.25 ** (1 / 3), abs=0.01)
    assert faces.quality(small, sharp, 4.0) == pytest.approx(1, abs=0.01), "large in its source"
    assert faces.quality(good, Image.new("RGB", (112, 112), (90, 90, 90))) == 0
    averted = faces.Face((0, 0, 112, 112), ((38, 52), (44, 52), (36, 72), (40, 92), (44, 92)), 1.0)
    assert faces.quality(averted, sharp) < 0.8


def test_a_model_of_another_form_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    write_embedder(tmp_path / "scrfd-2.5g/model.onnx")
    write_detector(tmp_path / "arcface-r100/model.onnx")
    models = Models(tmp_path, offline=True)
    with pytest.raises(InferenceServiceUnavailableError, match="nine"):
        models.face_detector("scrfd-2.5g")
    with pytest.raises(InferenceServiceUnavailableError, match=r"\[512\]"):
        models.face_embedder()


# --- the extractor ------------------------------------------------------------------------------------


def extracted(folder: Path, source: Input, name: str = "image", **params: object) -> list[Feature]:
    extractor = Registry.load(folder, offline=True).extractor("face_identity_extractor", "v1")
    (outcome,) = extractor.extract([Sample({name: source})], extractor.Params.model_validate(params))
    if isinstance(outcome, BadSample):
        raise outcome
    return list(outcome)


@pytest.fixture(scope="module")
def red_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), (), red=True)


def saved(picture: Image.Image, path: Path) -> Input:
    picture.save(path)
    return Input(path=path, filename=path.name)


def test_faces_of_a_picture_with_place_landmarks_and_vector(red_models: Path, tmp_path: Path) -> None:
    """4000 pixels across are read at 1920: what is said is in pixels of the file."""
    picture = red_square((4000, 2000), (1000, 500, 1100, 600))
    picture.paste((255, 0, 0), (3000, 1000, 3100, 1100))
    made = extracted(red_models, saved(picture, tmp_path / "p.png"), include_face_crops=True)
    assert [feature.position for feature in made] == [("image", 0), ("image", 1)]
    for feature, x, y in zip(made, (3000, 1000), (1000, 500), strict=True):
        fields = feature.fields
        np.testing.assert_allclose(
            fields["bbox"], [x - 700, max(0, y - 800), x + 700, min(2000, y + 1000)], atol=8
        )
        assert feature.locator is not None
        assert feature.locator.to_json() == {
            "kind": "region",
            "bbox": fields["bbox"],
            "width": 4000.0,
            "height": 2000.0,
        }
        np.testing.assert_allclose(fields["landmarks"][2], [x, y + 100], atol=8)
        assert 0 <= fields["quality_score"] <= 1
        assert 0.5 <= fields["detection_score"] <= 1
        crop = Image.open(io.BytesIO(feature.files["face_crop_url"][0]))
        assert crop.size == (112, 112)
        raw = (np.asarray(crop, np.float32).mean((0, 1)) - 127.5) / 127.5 @ weights()[0] + weights()[1]
        np.testing.assert_allclose(
            feature.vectors["face_identity_extractor_v1_embedding"], raw / np.linalg.norm(raw), atol=1e-4
        )


def test_parameters_leave_out_faces_and_fields(red_models: Path, tmp_path: Path) -> None:
    picture = red_square((640, 640), (160, 160, 176, 176))
    picture.paste((255, 0, 0), (400, 400, 416, 416))
    source = saved(picture, tmp_path / "p.png")
    assert len(extracted(red_models, source)) == 2
    assert len(extracted(red_models, source, max_faces_per_image=1)) == 1
    assert extracted(red_models, source, detection_threshold=1.0) == []
    assert extracted(red_models, source, quality_threshold=1.0) == []
    (feature, _) = extracted(red_models, source, store_detection_metadata=False, enable_quality_scoring=False)
    assert set(feature.fields) == {"face_index"}
    (whole,) = extracted(red_models, source, output_mode="per_image", include_source_frame_thumbnail=True)
    assert whole.fields["face_count"] == 2
    assert [face["face_index"] for face in whole.fields["faces"]] == [0, 1]
    assert (not whole.vectors, list(whole.files)) == (True, ["thumbnail_url"])
    small = saved(red_square((80, 80), (20, 20, 22, 22)), tmp_path / "small.png")
    assert extracted(red_models, small, min_face_size=30) == []
    assert len(extracted(red_models, small, min_face_size=20)) == 1, "28 pixels wide"
    assert extracted(red_models, saved(Image.new("RGB", (300, 300)), tmp_path / "none.png")) == []


def test_a_face_in_a_video_is_one_document_for_as_long_as_it_stays(tmp_path: Path) -> None:
    """The graph finds a face in every frame, and knows it by its colour: three shots, three faces."""
    pytest.importorskip("av")
    shots, lines = sample_media.SHOTS[:3], sample_media.LINES[:2]
    (tmp_path / "v.mp4").write_bytes(sample_media.video(shots=shots, lines=lines))
    source = Input(path=tmp_path / "v.mp4")
    folder = write_models(tmp_path / "models")
    every = extracted(folder, source, "video", video_deduplication=False)
    assert len(every) > len(shots)
    assert [feature.fields["start_time"] for feature in every] == list(range(len(every)))
    made = extracted(folder, source, "video", video_deduplication_threshold=0.99)
    assert 1 < len(made) < len(every)
    ends = [feature.fields["end_time"] for feature in made]
    assert [feature.fields["start_time"] for feature in made] == [0.0, *ends[:-1]], "one after the other"
    for feature in made:
        assert feature.locator is not None
        place = feature.locator.to_json()
        assert place["kind"] == "time"
        assert (place["start_ms"], place["bbox"]) == (feature.position[0], feature.fields["bbox"])
        assert feature.fields["start_time"] <= feature.fields["best_time"] <= feature.fields["end_time"]
    with pytest.raises(BadSample, match="max_video_length") as caught:
        extracted(folder, source, "video", max_video_length=1)
    assert caught.value.kind == "limit"


def test_a_query_is_the_largest_face_of_its_picture(red_models: Path, tmp_path: Path) -> None:
    extractor = Registry.load(red_models, offline=True).extractor("face_identity_extractor", "v1")
    (vector,) = extractor.outputs(extractor.Params()).vectors
    source = saved(red_square((640, 480), (160, 160, 176, 176)), tmp_path / "p.png")
    (feature,) = extracted(red_models, source)
    assert source.path is not None
    query = extractor.embed_query(vector, "image", source.path)
    assert float(query @ feature.vectors[vector.name]) == pytest.approx(1, abs=1e-4)
    none = saved(Image.new("RGB", (64, 64)), tmp_path / "none.png")
    assert none.path is not None
    with pytest.raises(BadSample, match="No face"):
        extractor.embed_query(vector, "image", none.path)


def test_weights_that_bind_their_user_are_never_fetched_unasked(tmp_path: Path) -> None:
    """Also where the hub may be asked."""
    with pytest.raises(InferenceServiceUnavailableError, match="non-commercial research") as caught:
        Models(tmp_path, offline=False).face_embedder()
    assert "tessera models pull arcface-r100" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_says_which_command_brings_it(tmp_path: Path) -> None:
    source = saved(red_square((640, 480), (160, 160, 176, 176)), tmp_path / "p.png")
    with pytest.raises(BadSample, match=r"tessera models pull scrfd-2\.5g") as caught:
        extracted(tmp_path / "empty", source)
    assert caught.value.kind == "model_missing"
    write_detector(tmp_path / "half/scrfd-2.5g/model.onnx")
    with pytest.raises(BadSample, match="tessera models pull arcface-r100"):
        extracted(tmp_path / "half", source)
    with pytest.raises(BadSample, match="tessera models pull scrfd-10g"):
        extracted(tmp_path / "half", source, detection_model="scrfd_10g")
    extractor = Registry.load(tmp_path / "empty", offline=True).extractor("face_identity_extractor", "v1")
    (vector,) = extractor.outputs(extractor.Params(model="arcface-r100")).vectors
    assert vector.model_id == "arcface-r100", "a namespace that has it can still be searched for other things"
    with pytest.raises(BadSample, match="for text, not for face identity"):
        extractor.outputs(extractor.Params(model="all-MiniLM-L6-v2"))
    with pytest.raises(ValueError, match="quality_threshold needs enable_quality_scoring"):
        extractor.Params(quality_threshold=0.5, enable_quality_scoring=False)
