"""Credentials at rest: unreadable without the signing key, and never altered unnoticed."""

from __future__ import annotations

import pytest

from tessera.errors import StorageError
from tessera.sealing import seal, unseal

KEY = b"k" * 32


def test_what_was_sealed_comes_back() -> None:
    sealed = seal(KEY, "pässword")
    assert "ssword" not in sealed
    assert sealed != seal(KEY, "pässword")
    assert unseal(KEY, sealed) == "pässword"


@pytest.mark.parametrize(
    ("key", "spoil"),
    [
        (b"o" * 32, lambda text: text),
        (KEY, lambda text: text[:-8] + "AAAAAAA="),
        (KEY, lambda text: text[:12]),
        (KEY, lambda text: "in clear"),
    ],
)
def test_another_key_or_an_altered_text_opens_nothing(key: bytes, spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(StorageError, match=r"signing\.key"):
        unseal(key, spoil(seal(KEY, "secret")))
