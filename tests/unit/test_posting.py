"""What the guarded fetcher sends: nowhere private, once, without following, within its time."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tessera.fetching import FetchError, Posted
from tests.receiver import Receiver, hanging, receiving
from tests.unit.test_fetching import fetcher, numbers_only, tricks
from tests.website import PUBLIC

_connected: list[Any] = []
_watching = threading.Event()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watching.is_set():
        _connected.append(arguments[1])


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_watch)


@pytest.fixture
def connected() -> Iterator[list[Any]]:
    """Every address that this process tries to connect to while the test runs."""
    _connected.clear()
    _watching.set()
    yield _connected
    _watching.clear()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def post(url: str, body: bytes = b"{}", *, timeout_s: float = 30, **changes: Any) -> Posted:
    headers = {"Content-Type": "application/json", "X-Mine": "yes"}
    return fetcher(**changes).post(url, body, headers, timeout_s=timeout_s)


def test_no_trick_has_anything_sent_to_a_private_address(connected: list[Any]) -> None:
    table = tricks(80)
    assert len(table) >= 200
    for _, url, answers in table:
        if url.strip().lower().startswith("s3:"):
            continue  # signed for a store, and never posted to
        with pytest.raises(FetchError) as refused:
            post(url, resolve=lambda host, port, answers=answers: answers or numbers_only(host, port))
        assert refused.value.kind in ("bad_url", "refused_address", "unreachable"), url
    assert connected == []


def test_a_body_arrives_as_it_is_with_its_headers(receiver: Receiver) -> None:
    body = '{"word": "Ünïcode"}'.encode()
    assert post(receiver.url("/hook?a=b%20c"), body) == Posted(200, None)
    (call,) = receiver.calls
    assert (call.path, call.body) == ("/hook?a=b%20c", body)
    assert call.headers["host"] == f"{PUBLIC}:{receiver.port}"
    assert (call.headers["content-length"], call.headers["x-mine"]) == (str(len(body)), "yes")
    assert not {"cookie", "authorization", "transfer-encoding"} & call.headers.keys()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers(receiver: Receiver, status: int, connected: list[Any]) -> None:
    url = receiver.answer("/from", status, Location=receiver.url("/to"))
    assert post(url).status == status
    assert [call.path for call in receiver.calls] == ["/from"]
    assert connected == [(PUBLIC, receiver.port)]


def test_what_the_receiver_says_of_later(receiver: Receiver) -> None:
    assert post(receiver.answer("/busy", 429, Retry_After="7")) == Posted(429, "7")


def test_an_answer_without_end_ends(receiver: Receiver) -> None:
    """A receiver that never stops to answer, or that begins and goes on drop by drop, is worth its status."""

    def endless(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65536)

    def drip(request: Any) -> None:
        request.send_response(204)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b"x")
            time.sleep(0.05)

    receiver.answers.update({"/endless": endless, "/drip": drip})
    assert post(receiver.url("/endless")).status == 200
    assert post(receiver.url("/drip"), timeout_s=2).status == 204


def test_time_is_bounded_and_a_server_that_ends_does_not_wait(receiver: Receiver) -> None:
    released = threading.Event()
    receiver.answers["/silent"] = hanging(released)
    with pytest.raises(FetchError, match=r"did not answer within 0\.3 s"):
        post(receiver.url("/silent"), timeout_s=0.3)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(FetchError):
        fetcher().post(receiver.url("/silent"), b"", {}, timeout_s=3600, stop=stop)
    released.set()


def test_what_is_no_answer(receiver: Receiver) -> None:
    receiver.answers["/junk"] = lambda request: request.wfile.write(b"\x00\x01junk\r\n\r\n")
    receiver.answers["/cut"] = lambda _: None
    for path in ("/junk", "/cut"):
        with pytest.raises(FetchError) as error:
            post(receiver.url(f"{path}?token=s3cret"))
        assert error.value.kind == "unreachable" and "s3cret" not in error.value.message
    with socket.create_server((PUBLIC, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match="nothing answers"):
        post(f"http://{PUBLIC}:{port}/")
