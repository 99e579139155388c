"""When and where a picture was taken, as its camera wrote it (Exif 2.32, JEITA CP-3451E, 4.6)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

_ZONE = re.compile(r"[+-](0\d|1[0-4]):[0-5]\d")
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
#: (moment, its offset from UTC): of the exposure, else of the digitisation of a slide.
_MOMENTS = ((0x9003, 0x9011), (0x9004, 0x9012))
_NORTH_SOUTH, _LATITUDE, _EAST_WEST, _LONGITUDE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Taken:
    """`at` is a date-time, with its zone only where the camera knew it; `place` is degrees north and east."""

    at: str | None = None
    place: tuple[float, float] | None = None


UNKNOWN = Taken()


class Tags(Protocol):
    """What of Pillow's ``Image.Exif`` is needed."""

    def get_ifd(self, tag: int) -> Mapping[int, Any]:
        """Return the directory of tags that `tag` leads to, empty without one."""


def read(tags: Tags) -> Taken:
    """Return what `tags` say; what is damaged or makes no sense is left out."""
    try:
        shot, place = tags.get_ifd(_EXIF_IFD), tags.get_ifd(_GPS_IFD)
    except Exception:  # noqa: BLE001 - Pillow raises whatever it stumbles over in damaged tags
        return UNKNOWN
    moments = (_moment(shot.get(when), shot.get(offset)) for when, offset in _MOMENTS)
    return Taken(next((moment for moment in moments if moment), None), _place(place))


def _moment(value: object, offset: object) -> str | None:
    if not isinstance(value, str):
        return None
    zone = offset.strip(" \x00") if isinstance(offset, str) else ""
    try:
        moment = datetime.strptime(value.strip(" \x00"), "%Y:%m:%d %H:%M:%S").isoformat()  # noqa: DTZ007
    except ValueError:
        return None
    return f"{moment}{zone}" if _ZONE.fullmatch(zone) else moment


def _place(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    latitude = _degrees(tags.get(_LATITUDE), tags.get(_NORTH_SOUTH), "NS", 90)
    longitude = _degrees(tags.get(_LONGITUDE), tags.get(_EAST_WEST), "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None  # cameras without a fix write zeros
    return latitude, longitude


def _degrees(value: object, reference: object, letters: str, most: float) -> float | None:
    """Return degrees, minutes and seconds as one number; the second of `letters` makes it negative."""
    letter = reference.strip(" \x00").upper() if isinstance(reference, str) else ""
    if not isinstance(value, Sequence) or len(value) != 3 or letter not in (*letters,):
        return None
    try:
        degrees, minutes, seconds = map(float, value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    found = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(found) or not 0 <= found <= most:
        return None
    return round(-found if letter == letters[1] else found, 7)
