"""A running server as commands ask it: found by its data directory or by address, with a key, over HTTP."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tessera.cli.options import load
from tessera.cli.terminal import EXIT_FAILED, EXIT_NO_SERVER, EXIT_REFUSED, EXIT_USAGE, CommandError

if TYPE_CHECKING:
    import httpx

#: A server that is full or starting is asked again, in all for so long.
_PATIENCE_S = 60.0
_LONGEST_WAIT_S = 10.0


class Refused(CommandError):
    """The server answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, EXIT_REFUSED)
        self.status = status


class Api:
    """A server's API, from one thread or several; `is_remote` says that it was named by its address."""

    def __init__(self, client: httpx.Client, *, is_remote: bool) -> None:
        self._client = client
        self.is_remote = is_remote

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send a request below ``/v1`` and return the answer's JSON.

        A server that cannot answer now (429, 503) is asked again for a minute. Raises `Refused`, and `CommandError`
        when no server answers.
        """
        until = time.monotonic() + _PATIENCE_S
        while True:
            answer = self._send(method, f"/v1{path}", json=body, headers=headers)
            wait_s = _retry_after(answer)
            if wait_s is None or time.monotonic() + wait_s > until:
                break
            time.sleep(wait_s)
        if not answer.is_success:
            raise Refused(_message(answer), answer.status_code)
        return answer.json() if answer.content else None

    def put(self, url: str, content: Iterator[bytes], headers: Mapping[str, str]) -> None:
        """PUT a file to the signed URL of an upload."""
        answer = self._send("PUT", url, content=content, headers=headers)
        if not answer.is_success:
            raise Refused(_message(answer), answer.status_code)

    @contextmanager
    def events(self, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Open a stream below ``/v1`` and yield its events: name and data."""
        import httpx

        headers = {"Accept": "text/event-stream"}
        # The server says something every fifteen seconds.
        timeout = httpx.Timeout(60.0, read=45.0)
        with self._client.stream("GET", f"/v1{path}", headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
                raise Refused(_message(answer), answer.status_code)
            yield _parsed(answer.iter_lines())

    def _send(self, method: str, url: str, **named: Any) -> httpx.Response:
        import httpx

        try:
            return self._client.request(method, url, **named)
        except httpx.TransportError as error:
            raise CommandError(
                f"the server at {self._client.base_url} does not answer ({type(error).__name__}).",
                EXIT_NO_SERVER,
            ) from None


@contextmanager
def connected(options: argparse.Namespace, namespace: str | None = None) -> Iterator[Api]:
    """Connect to the server that `options` and the environment name; requests are inside `namespace`."""
    import httpx

    url, key, is_remote = _server(options)
    headers = {b"Authorization": f"Bearer {key}".encode()}
    if namespace is not None:
        # In UTF-8, as the server reads it.
        headers[b"X-Namespace"] = namespace.encode()
    timeout = httpx.Timeout(120.0, connect=10.0)
    # Not through the environment's proxies: the key is for the server alone.
    with httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False) as client:
        yield Api(client, is_remote=is_remote)


def _server(options: argparse.Namespace) -> tuple[str, str, bool]:
    """Return URL, key, and whether the server was named by its address.

    The key of a data directory is for the server that runs on it, and for no other.
    """
    from tessera import config, data_directory

    url, key = config.client_variables()
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise CommandError("TESSERA_URL must begin with http:// or https://.", EXIT_USAGE)
        if key is None:
            raise CommandError(
                "TESSERA_URL is set; set TESSERA_API_KEY to a key of that server too.", EXIT_USAGE
            )
        return url.rstrip("/").removesuffix("/v1"), key, True
    data = load(options).settings.data
    owner = data_directory.holder_of(data)
    if owner is None:
        raise CommandError(f"no server runs on {data}; start it first: tessera up.", EXIT_NO_SERVER)
    key = key or data_directory.read_admin_key(data)
    if key is None:
        raise CommandError(
            f"there is no {data / 'admin.key'}; make one (tessera key create --admin), or set TESSERA_API_KEY.",
            EXIT_FAILED,
        )
    return owner.url, key, False


def _retry_after(answer: httpx.Response) -> float | None:
    """Return after how many seconds the same request may succeed; None when it was answered, or never will be."""
    if answer.status_code not in (429, 503):
        return None
    try:
        details = answer.json()["error"].get("details") or {}
        if details.get("retryable") is False:
            return None
        return min(_LONGEST_WAIT_S, max(0.2, float(answer.headers.get("Retry-After", 1))))
    except (ValueError, KeyError, AttributeError):
        return 1.0


def _message(answer: httpx.Response) -> str:
    """Return what the server says is wrong; what is no error of ours comes from something in between."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code} {answer.reason_phrase}".rstrip()


def _parsed(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
