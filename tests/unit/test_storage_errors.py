"""What the system and the libraries say of a disk, and what clients are told."""

from __future__ import annotations

import errno

import pytest

from tessera.errors import storage_error, storage_trouble


@pytest.mark.parametrize(
    ("error", "number", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, 507),
        (OSError(errno.EIO, "Input/output error"), errno.EIO, 503),
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE, 503),
        (Exception("failed to open file: Too many open files (os error 24)"), errno.EMFILE, 503),
        (
            Exception("Service runtime error: IO Error: No space left on device (os error 28)"),
            errno.ENOSPC,
            507,
        ),
        (Exception("database or disk is full"), errno.ENOSPC, 507),
    ],
)
def test_trouble_with_storage(error: BaseException, number: int, status: int) -> None:
    assert storage_trouble(error) == number
    told = storage_error(error)
    assert told is not None
    assert (told.status, told.retryable) == (status, True)
    assert told.retry_after_s is not None


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        Exception("No such file or directory (os error 2)"),
        ValueError("the room is full"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert storage_trouble(error) is None
    assert storage_error(error) is None
