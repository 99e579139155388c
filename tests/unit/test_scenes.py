"""Cuts of videos whose cuts are known."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tessera import sample_media
from tessera.media import scenes
from tests.media import BLUE, GREEN, RED, video

#: A cut is found when it is told so near to its time; a fade may be told anywhere while it is dark.
NEAR_S, NEAR_FADE_S = 0.1, 0.5


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sample_media.CutsVideo]:
    made = sample_media.cuts_video(scenes=45)
    path = tmp_path_factory.mktemp("cuts") / "cuts.mp4"
    path.write_bytes(made.data)
    return path, made


def f1(found: Sequence[float], known: sample_media.CutsVideo) -> float:
    """Harmonic mean of precision and recall; each known cut may be met by one that was found."""
    left = list(found)
    for cut in known.cuts_s:
        near = NEAR_FADE_S if cut in known.fades_s else NEAR_S
        best = min(left, key=lambda one: abs(one - cut), default=-9.0)
        if abs(best - cut) <= near:
            left.remove(best)
    hits = len(found) - len(left)
    return 2 * hits / (len(found) + len(known.cuts_s))


def test_the_measure_counts_what_is_missed_and_what_is_too_much() -> None:
    known = sample_media.CutsVideo(b"", (1.0, 2.0, 3.0), (), (3.0,))
    assert f1([1.0, 2.0, 3.4], known) == 1
    assert f1([1.0, 1.05, 2.0, 3.0], known) == pytest.approx(6 / 7)
    assert f1([1.0, 2.3], known) == pytest.approx(2 / 5)
    assert f1([], known) == 0


def test_cuts_are_told_from_flashes_pans_and_fades(known: tuple[Path, sample_media.CutsVideo]) -> None:
    path, made = known
    assert len(made.cuts_s) >= 40
    assert len(made.flashes_s) >= 5
    assert len(made.fades_s) >= 3
    found = scenes.cuts(path)
    reached = f1(found, made)
    print(f"F1 {reached:.3f} over {len(made.cuts_s)} cuts")
    assert reached >= 0.95
    assert not [flash for flash in made.flashes_s if any(0 <= cut - flash < 0.2 for cut in found)]


@pytest.mark.slow
def test_no_worse_than_the_scenedetect_command(
    known: tuple[Path, sample_media.CutsVideo], tmp_path: Path
) -> None:
    """On the same file, with the command's own default detector."""
    command = shutil.which("scenedetect", path=f"{Path(sys.executable).parent}:.bench-venv/bin")
    if command is None:
        pytest.skip("the scenedetect command is installed by `make bench`")
    path, made = known
    subprocess.run(
        [command, "-i", str(path), "-o", str(tmp_path), "-q", "detect-adaptive", "list-scenes"], check=True
    )
    (listing,) = tmp_path.glob("*.csv")
    rows = list(csv.reader(listing.open()))
    place = rows[1].index("Start Time (seconds)")
    theirs = f1([float(row[place]) for row in rows[3:]], made)
    print(f"scenedetect F1 {theirs:.3f}")
    assert f1(scenes.cuts(path), made) >= theirs


@pytest.mark.parametrize("rate", [10, 25, 60])
def test_plain_cuts_at_any_frame_rate(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "plain.mp4"
    path.write_bytes(video([(2, RED), (3, GREEN), (1, BLUE)], rate=rate))
    assert scenes.cuts(path) == pytest.approx([2, 5], abs=0.05)


def test_a_video_of_one_scene_has_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    for shots in ([(3, RED)], [(0.1, RED)]):
        path.write_bytes(video(shots))
        assert scenes.cuts(path) == []


def test_a_threshold_chooses_how_clear_a_cut_must_be(tmp_path: Path) -> None:
    path = tmp_path / "alike.mp4"
    path.write_bytes(video([(2, (100, 100, 100)), (2, (123, 123, 123)), (2, (255, 20, 20))]))
    assert len(scenes.cuts(path, 0.0)) == 2
    assert scenes.cuts(path, 1.0) == pytest.approx([4], abs=0.05)


def test_black_at_begin_and_end_is_no_fade_and_between_is_one_cut(tmp_path: Path) -> None:
    """Dark times that are come to slowly: steps of light are too small to be cuts themselves."""
    black = (0, 0, 0)
    falling = [(0.1, (level, level, level)) for level in range(150, -1, -12)]
    shots = [(1, black), *reversed(falling), (2, (150, 150, 150)), *falling, (0.4, black), *reversed(falling)]
    shots += [(1, (150, 150, 150)), *falling, (1, black)]
    path = tmp_path / "fades.mp4"
    path.write_bytes(video(shots))
    begins = np.cumsum([seconds for seconds, _ in shots])
    dark = begins[1 + 2 * len(falling)] + 0.2
    assert scenes.cuts(path) == pytest.approx([dark], abs=0.35)


def test_hue_is_an_angle_and_grey_has_none() -> None:
    """As OpenCV has it: half degrees; a red on either side of 0 is the same red."""
    colours = np.array([[[[255, 0, 0]]], [[[0, 255, 0]]], [[[0, 0, 255]]], [[[255, 0, 4]]]], np.uint8)
    hsv = scenes.to_hsv(colours)
    assert hsv[:, 0, 0, 0] == pytest.approx([0, 60, 120, 179.5], abs=0.1)
    assert hsv[:3, 1:, 0, 0] == pytest.approx(255)
    assert scenes.difference(hsv[0], hsv[3]) < 1 < scenes.difference(hsv[0], hsv[1])
    greys = scenes.to_hsv(np.array([[[[80, 80, 80]]], [[[80, 81, 80]]]], np.uint8))
    assert scenes.difference(greys[0], greys[1]) < 1
