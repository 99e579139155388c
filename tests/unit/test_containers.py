"""Containers of video that hold nothing but sound are known by their lists of streams, and damage harms nobody."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tessera import containers
from tests import damage
from tests.media import SPEECH, sound_as


@pytest.mark.parametrize(
    ("ending", "codec", "rate"),
    [
        ("mp4", "aac", 44_100),
        ("mov", "aac", 44_100),
        ("3gp", "aac", 44_100),
        ("mkv", "flac", 44_100),
        ("webm", "libopus", 48_000),
        ("asf", "libmp3lame", 44_100),
    ],
)
def test_sound_alone(ending: str, codec: str, rate: int, tmp_path: Path) -> None:
    path = sound_as(SPEECH, tmp_path / f"memo.{ending}", codec, rate=rate, until_s=0.5)
    assert containers.holds_only_sound(path)
    whole, generator = path.read_bytes(), random.Random(ending)
    damaged = tmp_path / "damaged"
    for _ in range(50):
        data = bytearray(whole[: generator.randrange(1, len(whole))])
        for _ in range(8):
            data[generator.randrange(min(len(data), 4000))] = generator.randrange(256)
        damaged.write_bytes(data)
        containers.holds_only_sound(damaged)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "png", "wav"])
def test_what_has_pictures_or_is_no_container(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(damage.whole(kind).data)
    assert not containers.holds_only_sound(path)


def test_lists_that_lead_nowhere_end(tmp_path: Path) -> None:
    """Boxes of size 0 and 1, elements of unknown size, and a list of a million entries."""
    path = tmp_path / "file"
    for data in (
        b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\1moov" + bytes(20),
        b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\0moov" + b"\0\0\0\x08free" * 1_000_000,
        b"\x1aE\xdf\xa3\x80\x18\x53\x80\x67\xff\x16\x54\xae\x6b\xff\xae\xff" * 3,
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        b"",
    ):
        path.write_bytes(data)
        assert not containers.holds_only_sound(path)
