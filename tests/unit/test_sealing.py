"""Credentials at rest: unreadable without their key, never altered unnoticed; the key can be replaced."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tessera.errors import StorageError
from tessera.sealing import (
    MasterKeyError,
    Vault,
    _cipher,
    key_id,
    open_vault,
    parse_key,
    read_keys,
    rotate,
    write_keys,
)

KEY, OTHER = b"k" * 32, b"o" * 32


def test_what_was_sealed_comes_back() -> None:
    vault = Vault([KEY])
    sealed = vault.seal("pässword")
    assert "ssword" not in sealed and key_id(KEY) in sealed
    assert sealed != vault.seal("pässword")
    assert vault.unseal(sealed) == "pässword"
    assert KEY.decode() not in repr(vault)


@pytest.mark.parametrize(
    ("keys", "spoil"),
    [
        ([OTHER], lambda text: text),
        ([KEY], lambda text: text[:-8] + "AAAAAAA="),
        ([KEY], lambda text: text[:12]),
        ([KEY], lambda text: "in clear"),
        ([KEY, OTHER], lambda text: text.replace(key_id(KEY), key_id(OTHER))),
    ],
)
def test_another_key_or_an_altered_text_opens_nothing(keys: list[bytes], spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(StorageError, match=r"master\.key"):
        Vault(keys).unseal(spoil(Vault([KEY]).seal("secret")))


def test_what_the_first_release_sealed_still_opens() -> None:
    nonce = os.urandom(12)
    box = _cipher(b"s" * 32).encrypt(nonce, b"old", b"sealed:1:")
    old = "sealed:1:" + base64.b64encode(nonce + box).decode()
    vault = Vault([KEY], signing_key=b"s" * 32)
    assert vault.unseal(old) == "old"
    assert Vault([KEY]).unseal(vault.reseal(old)) == "old"
    with pytest.raises(StorageError):
        Vault([KEY]).unseal(old)


def test_resealing_walks_through_json_and_can_be_repeated() -> None:
    old = Vault([OTHER]).seal("secret")
    vault = Vault([KEY, OTHER])
    fresh = vault.reseal({"a": [old, 1, None], "b": "sealedish"})
    assert vault.is_current(fresh["a"][0]) and fresh["a"][1:] == [1, None] and fresh["b"] == "sealedish"
    assert vault.reseal(fresh) == fresh
    assert Vault([KEY]).unseal(fresh["a"][0]) == "secret"


def test_the_master_key_is_hex_or_base64_and_never_quoted() -> None:
    assert parse_key(KEY.hex(), "x") == parse_key(base64.b64encode(KEY).decode(), "x") == KEY
    for wrong in ("", "short", "z" * 64, KEY.hex()[:-2]):
        with pytest.raises(MasterKeyError, match="openssl rand") as error:
            parse_key(wrong, "The setting master_key")
        assert not wrong or wrong not in error.value.message


def test_the_file_of_keys_is_private(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    sealed = open_vault(path).seal("secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_vault(path).unseal(sealed) == "secret"
    path.chmod(0o640)
    with pytest.raises(MasterKeyError, match="chmod 600"):
        open_vault(path)


def test_a_stated_key_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    old = open_vault(path).seal("secret")
    vault = open_vault(path, [KEY.hex()])
    assert vault.unseal(old) == "secret" and key_id(KEY) in vault.seal("x")
    assert not (tmp_path / "none").exists() and open_vault(tmp_path / "none", [KEY.hex()])
    assert not (tmp_path / "none").exists()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", ["before", "after"])
def test_a_rotation_that_is_killed_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, killed_at: str
) -> None:
    path = tmp_path / "master.key"
    column = open_vault(path).seal("secret")
    (first,) = read_keys(path)

    def reseal(vault: Vault) -> int:
        nonlocal column
        column = vault.reseal(column)
        return 1

    def killed(vault: Vault) -> int:
        if killed_at == "after":
            reseal(vault)
        raise KilledError

    with pytest.raises(KilledError):
        rotate(path, [], None, killed)
    assert open_vault(path).unseal(column) == "secret"
    count, name = rotate(path, [], None, reseal)
    (last,) = read_keys(path)
    assert count == 1 and name == key_id(last) and last != first
    assert open_vault(path).unseal(column) == "secret"
    with pytest.raises(StorageError):
        Vault([first]).unseal(column)


def test_rotation_to_a_stated_key_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    write_keys(path, [OTHER])
    column = open_vault(path).seal("secret")
    changed: list[str] = []
    rotate(path, [KEY.hex()], None, lambda vault: changed.append(vault.reseal(column)) or 1)
    assert not path.exists()
    assert open_vault(path, [KEY.hex()]).unseal(changed[0]) == "secret"
