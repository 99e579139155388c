"""The guarded fetcher: no trick makes it connect to a private address; what it takes is bounded."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import ipaddress
import json
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tessera import s3_urls
from tessera.fetching import Fetched, Fetcher, FetchError, is_public, parse, shown
from tessera.s3_urls import S3Access
from tests.website import PUBLIC, Site, serving

TRICKS = Path(__file__).parents[1] / "data/fetch_tricks.txt"
PRIVATE = "127.0.0.1"

_attempts: list[Any] = []
_watching = threading.Event()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watching.is_set():
        _attempts.append(arguments[1])


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_watch)


@pytest.fixture
def attempts() -> Iterator[list[Any]]:
    """Every address that this process tries to connect to while the test runs."""
    _attempts.clear()
    _watching.set()
    yield _attempts
    _watching.clear()


@dataclass
class Listener:
    """A port on every loopback address that counts who connects."""

    port: int
    count: int = 0


@pytest.fixture
def private() -> Iterator[Listener]:
    sockets = []
    first = socket.create_server((PRIVATE, 0))
    listener = Listener(first.getsockname()[1])
    sockets.append(first)
    with contextlib.suppress(OSError):
        sockets.append(socket.create_server(("::1", listener.port), family=socket.AF_INET6))

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            listener.count += 1
            connection.close()

    for server in sockets:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    yield listener
    for server in sockets:
        server.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def numbers_only(host: str, port: int) -> list[str]:
    """Resolve as the system does, laxly, without asking anybody: `0x7f.1` is 127.0.0.1."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(item[4][0]) for item in found]


def fetcher(**changes: Any) -> Fetcher:
    values: dict[str, Any] = {
        "max_bytes": 2**20,
        "allowed_networks": (ipaddress.ip_network(PUBLIC),),
        # Every port, so that no trick is refused for its port alone.
        "ports": None,
        "connect_s": 10,
        "idle_s": 10,
        "total_s": 30,
        "resolve": numbers_only,
    }
    return Fetcher(**{**values, **changes})


def fetched(url: str, by: Fetcher | None = None, **arguments: Any) -> tuple[bytes, Fetched]:
    pieces: list[bytes] = []
    result = (by or fetcher()).fetch(url, pieces.append, **arguments)
    return b"".join(pieces), result


def refused(url: str, by: Fetcher | None = None, **arguments: Any) -> FetchError:
    with pytest.raises(FetchError) as error:
        fetched(url, by, **arguments)
    return error.value


def tricks(port: int) -> list[tuple[set[str], str, list[str]]]:
    found = []
    for line in TRICKS.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        kinds, url, *answers = line.split(" | ")
        plain = re.sub(r"\\(x[0-9a-f]{2}|[\\trn])", lambda m: m[0].encode().decode("unicode_escape"), url)
        found.append(
            (set(kinds.split(",")), plain.replace("{port}", str(port)), (answers or [""])[0].split())
        )
    return found


class Names:
    """A resolver stand-in: its answers by name, one after another; the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        known = self.answers.get(host.split(".", maxsplit=1)[0])
        if known is None:
            return numbers_only(host, port)
        return known.pop(0) if len(known) > 1 else known[0]


# --- addresses ----------------------------------------------------------------------------------------


def test_no_trick_leads_to_a_private_address(private: Listener, attempts: list[Any]) -> None:
    table = tricks(private.port)
    assert len(table) >= 200
    wrong = []
    for kinds, url, answers in table:
        by = fetcher(resolve=lambda host, port, answers=answers: answers or numbers_only(host, port))
        try:
            fetched(url, by)
        except FetchError as error:
            if error.kind not in kinds:
                wrong.append((url, error.kind, error.message))
        else:
            wrong.append((url, "fetched", ""))
    assert not wrong, wrong
    assert attempts == []
    assert private.count == 0


def test_no_redirect_leads_to_a_private_address(private: Listener, site: Site, attempts: list[Any]) -> None:
    """Each trick as the target of a redirect: only the first server is ever connected to."""
    wrong = []
    for number, (_, url, answers) in enumerate(tricks(private.port)):
        if any(ord(c) < 32 for c in url):
            continue  # it would end the header
        location = url if url.isascii() else url.encode().decode("latin-1")
        start = site.redirect(f"/{number}", location)
        by = fetcher(resolve=lambda host, port, answers=answers: answers or numbers_only(host, port))
        try:
            fetched(start, by)
        except FetchError as error:
            # What is no URL is a path of the same server, which it does not have.
            if error.kind not in ("redirect", "refused_address", "bad_url", "unreachable"):
                wrong.append((url, error.kind))
        else:
            wrong.append((url, "fetched"))
    assert not wrong, wrong
    assert {address[0] for address in attempts} == {PUBLIC}
    assert private.count == 0


def test_the_check_that_is_tested_can_fail(private: Listener, attempts: list[Any]) -> None:
    """The same listener and the same hook see a connection when the network is allowed."""
    by = fetcher(allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),))
    assert refused(f"http://{PRIVATE}:{private.port}/", by).kind == "unreachable"
    assert attempts == [(PRIVATE, private.port)]
    deadline = time.monotonic() + 10
    while private.count == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert private.count == 1


def test_a_name_is_resolved_once(private: Listener, site: Site, attempts: list[Any]) -> None:
    """It answers publicly first and privately ever after: the connection goes where the check was."""
    names = Names(rebind=[[PUBLIC], [PRIVATE]])
    site.serve("/x", b"public")
    body, _ = fetched(f"http://rebind.example:{site.port}/x", fetcher(resolve=names))
    assert body == b"public"
    assert names.asked == ["rebind.example"]
    assert attempts == [(PUBLIC, site.port)]
    # A new fetch is a new look-up, and a new check.
    assert refused(f"http://rebind.example:{site.port}/x", fetcher(resolve=names)).kind == "refused_address"
    assert attempts == [(PUBLIC, site.port)]
    assert private.count == 0


def test_a_redirect_to_the_same_name_is_checked_again(site: Site, attempts: list[Any]) -> None:
    names = Names(rebind=[[PUBLIC], [PRIVATE]])
    site.redirect("/x", "/y")
    assert refused(f"http://rebind.example:{site.port}/x", fetcher(resolve=names)).kind == "refused_address"
    assert attempts == [(PUBLIC, site.port)]


def test_chains_of_redirects(site: Site, attempts: list[Any]) -> None:
    site.serve("/end", b"end")
    for number in range(8):
        site.redirect(f"/{number}", f"/{number + 1}" if number < 7 else "/end")
    assert fetched(site.url("/3"))[0] == b"end"
    assert refused(site.url("/0")).kind == "redirect"
    assert refused(site.redirect("/loop", "/loop")).kind == "redirect"
    assert refused(site.serve("/nowhere", b"", 302)).kind == "redirect"


def test_proxies_cookies_and_credentials_do_not_exist(
    site: Site, monkeypatch: pytest.MonkeyPatch, attempts: list[Any]
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{PRIVATE}:9/")
    site.serve("/set", b"", 302, Location="/get", Set_Cookie="a=b", WWW_Authenticate="Basic")
    site.serve("/get", b"ok")
    assert fetched(site.url("/set"))[0] == b"ok"
    assert {name for _, headers in site.requests for name in headers} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
    }
    assert {address[0] for address in attempts} == {PUBLIC}


def test_ports() -> None:
    by = fetcher(ports=frozenset({80, 443}), resolve=lambda *_: ["192.0.43.8"])
    for url in ("http://192.0.43.8:22/", "http://name.example:6379/"):
        assert refused(url, by).kind == "refused_address"


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "192.0.43.8", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    assert parse(f"https://{host}/a b".replace(" ", "%20")).host == address


def test_a_setting_opens_one_network_and_no_other() -> None:
    by = fetcher(allowed_networks=(ipaddress.ip_network("10.1.0.0/16"),))
    by.check("http://10.1.2.3:9000/x")
    for url in ("http://10.2.0.1/", "http://[::ffff:10.1.2.3]/", "http://127.0.0.1/"):
        with pytest.raises(FetchError, match="not public"):
            by.check(url)


# --- bounds -------------------------------------------------------------------------------------------


def test_its_bounds_travel_to_another_process() -> None:
    """Everything that bounds it, and a lock of nobody."""
    fetcher = Fetcher(
        max_bytes=5,
        allowed_networks=(ipaddress.ip_network("10.1.0.0/16"),),
        ports=frozenset({80}),
        connect_s=1,
        idle_s=2,
        total_s=3,
        bound=" (here)",
    )
    with fetcher.turns.of("x"):
        there = pickle.loads(pickle.dumps(fetcher))
    with there.turns.of("x"):
        assert replace(there, turns=fetcher.turns, windows=fetcher.windows) == fetcher
    assert there.tls is None


def test_what_is_fetched(site: Site) -> None:
    body = os.urandom(300_000)
    url = site.serve("/a/clip.mp4", body, Content_Type="Video/MP4; x=y")
    came = Fetched(len(body), "video/mp4", "clip.mp4", f"{url}?signature=1")
    assert fetched(f"{url}?signature=1") == (body, came)
    site.serve("/download", b"x", Content_Disposition='attachment; filename="report.pdf"')
    assert fetched(site.url("/download"))[1].filename == "report.pdf"
    assert site.requests[0][0] == "/a/clip.mp4?signature=1"


def test_too_large_is_refused_before_and_while_it_comes(site: Site) -> None:
    by = fetcher(max_bytes=1000)
    assert refused(site.serve("/said", b"", Content_Length="1001"), by).kind == "too_large"

    def endless(request: Any) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"x" * 4096)

    site.pages["/endless"] = endless
    assert refused(site.url("/endless"), by).kind == "too_large"
    assert len(fetched(site.serve("/just", b"x" * 1000), by)[0]) == 1000


def test_compressed_content_is_bounded(site: Site) -> None:
    text = os.urandom(50_000).hex().encode()
    for encoding, packed in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text))):
        assert fetched(site.serve("/x", packed, Content_Encoding=encoding))[0] == text
    # A chain of members, and pieces that fill what is handed on to the last byte.
    for body in (text, b"z" * 2**20, bytes(3 * 2**18) + os.urandom(2**18)):
        chain = gzip.compress(body[:1000]) + gzip.compress(body[1000:])
        assert fetched(site.serve("/x", chain, Content_Encoding="gzip"))[0] == body
    bomb = gzip.compress(b"\0" * 20_000_000)
    assert (
        refused(site.serve("/bomb", bomb, Content_Encoding="gzip"), fetcher(max_bytes=2**40)).kind
        == "too_large"
    )
    cut = refused(site.serve("/cut", gzip.compress(text)[:-9], Content_Encoding="gzip"))
    assert cut.kind == "bad_content"
    assert refused(site.serve("/no", b"no gzip", Content_Encoding="gzip")).kind == "bad_content"
    assert refused(site.serve("/br", b"x", Content_Encoding="br")).kind == "bad_content"


def test_time_is_bounded(site: Site) -> None:
    released = threading.Event()

    def drip(request: Any) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not released.wait(0.02):
                request.wfile.write(b"x")

    def drip_head(request: Any) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while not released.wait(0.02):
                request.wfile.write(b"X-A: b\r\n")

    site.pages.update({"/drip": drip, "/head": drip_head, "/silent": lambda _request: released.wait(30)})
    begun = time.monotonic()
    for path in ("/drip", "/head"):
        late = refused(site.url(path), fetcher(total_s=0.5))
        assert (late.kind, late.may_pass) in {("timeout", True), ("unreachable", True)}
    assert refused(site.url("/silent"), fetcher(idle_s=0.3)).kind == "timeout"
    slow = fetcher(connect_s=0.3, resolve=lambda *_: released.wait(30) and [])
    assert refused("http://slow.example/", slow).kind == "timeout"
    stop = threading.Event()
    stop.set()
    assert refused(site.url("/drip"), stop=stop).may_pass
    assert time.monotonic() - begun < 25, "a bound of half a second was not kept"
    released.set()


@pytest.mark.parametrize(
    ("status", "may_pass"), [(404, False), (403, False), (206, False), (503, True), (429, True)]
)
def test_other_statuses(site: Site, status: int, may_pass: bool) -> None:
    error = refused(site.serve("/x", b"x", status))
    assert (error.kind, error.may_pass) == ("bad_status", may_pass)
    assert str(status) in error.message


def test_what_breaks_off_or_is_no_http(site: Site) -> None:
    assert refused(site.serve("/cut", b"half", Content_Length="100")).kind == "unreachable"
    site.pages["/junk"] = lambda request: request.wfile.write(b"\x00\x01junk\r\n\r\n")
    assert refused(site.url("/junk")).kind == "unreachable"
    with socket.create_server((PUBLIC, 0)) as free:
        port = free.getsockname()[1]
    assert refused(f"http://{PUBLIC}:{port}/").kind == "unreachable"
    assert refused("http://no-such-name.example/").kind == "unreachable"


def test_messages_show_no_secret(site: Site) -> None:
    secret = "s3cr3t"
    site.serve("/missing", b"", 404)
    site.redirect("/away", f"http://{secret}@{PRIVATE}/?{secret}")
    urls = [
        f"{site.url('/missing')}?token={secret}#{secret}",
        f"{site.url('/away')}?{secret}",
        f"http://user:{secret}@example.com/",
        f"http://{secret}@{PRIVATE}/?{secret}",
        f"ftp://{secret}@example.com/",
        f"http://exa mple/?{secret}",
        f"http://{PRIVATE}/?{secret}",
    ]
    for url in urls:
        assert secret not in refused(url).message
        assert secret not in shown(url)


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], tuple[ssl.SSLContext, ssl.SSLContext]]:
    """A function that makes a certificate for a name; it returns the server's context and one that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        at = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - datetime.timedelta(days=1))
            .not_valid_after(at + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        file = tmp_path / f"{name}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(file)
        return server, ssl.create_default_context(cafile=file)

    return make


def test_certificates_are_verified_for_the_name(
    authority: Callable[[str], tuple[ssl.SSLContext, ssl.SSLContext]],
) -> None:
    server_side, trusting = authority("files.example")
    named: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: named.append(name)
    by = fetcher(resolve=lambda *_: [PUBLIC], tls=trusting)
    with serving(server_side) as site:
        site.serve("/x", b"secret")
        assert fetched(f"https://files.example:{site.port}/x", by)[0] == b"secret"
        assert fetched(f"https://FILES.example.:{site.port}/x", by)[0] == b"secret"
        assert named == ["files.example"] * 2
        for url, who in (
            (f"https://other.example:{site.port}/x", by),
            (f"https://{PUBLIC}:{site.port}/x", by),
            (f"https://files.example:{site.port}/x", fetcher(resolve=lambda *_: [PUBLIC])),
        ):
            assert "certificate is not valid" in refused(url, who).message
        site.redirect("/down", f"http://files.example:{site.port}/x")
        assert "https to http" in refused(f"https://files.example:{site.port}/down", by).message


# --- s3:// --------------------------------------------------------------------------------------------

_SIGN = """
import json, sys, datetime, obstore
from obstore.store import S3Store
config, key = json.loads(sys.argv[1]), sys.argv[2]
print(obstore.sign(S3Store("my-bucket", config=config), "GET", key, datetime.timedelta(seconds=900)))
"""


@pytest.mark.parametrize("token", [None, "session/token="])
@pytest.mark.parametrize("endpoint", [None, f"http://{PUBLIC}:9000"])
def test_signatures_are_those_of_obstore(endpoint: str | None, token: str | None) -> None:
    key = "a b/ü+&%41~.mp4"
    config: dict[str, Any] = {"access_key_id": "AKID", "secret_access_key": "s/ecret+", "region": "eu-west-1"}
    if endpoint:
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False, "allow_http": True}
    if token:
        config["session_token"] = token
    signed = subprocess.run(
        [sys.executable, "-c", _SIGN, json.dumps(config), key],
        capture_output=True,
        text=True,
        check=True,
        env={},
    ).stdout.strip()
    at = re.search(r"X-Amz-Date=(\w+)", signed)
    assert at is not None
    moment = datetime.datetime.strptime(at[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    access = S3Access(endpoint, "eu-west-1", "AKID", "s/ecret+", token)
    ours = s3_urls.signed_url(f"s3://my-bucket/{key}", access, moment)

    def parts(url: str) -> tuple[str, set[str]]:
        place, _, query = url.partition("?")
        return place, set(query.split("&"))

    if endpoint is None:
        # The bucket in the path or in the name: another signature, for the same object.
        assert ours.startswith("https://s3.eu-west-1.amazonaws.com/my-bucket/a%20b/")
        assert parts(ours)[1] - parts(signed)[1] <= {p for p in parts(ours)[1] if "Signature=" in p}
    else:
        assert parts(ours) == parts(signed)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://Minio.example:443", "minio.example"),
        ("http://minio.example.:80/", "minio.example"),
        ("http://minio.example:443", "minio.example:443"),
        ("http://[2001:DB8:0::1]:9000", "[2001:db8::1]:9000"),
    ],
)
def test_what_is_signed_for_a_store_is_the_host_that_it_is_asked_for(endpoint: str, host: str) -> None:
    target = fetcher()._target("s3://bucket/key", S3Access(endpoint, "r", "a", "b"))
    assert target.authority == host
    at = re.search(r"X-Amz-Date=(\w+)", target.path)
    assert at is not None
    moment = datetime.datetime.strptime(at[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    asked = S3Access(f"{target.scheme}://{host}", "r", "a", "b")
    assert s3_urls.signed_url("s3://bucket/key", asked, moment).endswith(f"{host}{target.path}")


def test_s3_urls_are_fetched_from_the_stated_store(site: Site, attempts: list[Any]) -> None:
    site.serve("/bucket/a/b.txt", b"stored")
    access = S3Access(f"http://{PUBLIC}:{site.port}", "us-east-1", "AKID", "secret")
    assert fetched("s3://bucket/a/b.txt", access=access)[0] == b"stored"
    assert "X-Amz-Signature=" in site.requests[0][0]
    anonymous = S3Access(f"http://{PUBLIC}:{site.port}")
    assert fetched("s3://bucket/a/b.txt", access=anonymous)[0] == b"stored"
    assert site.requests[1][0] == "/bucket/a/b.txt"
    site.serve("/bucket/none", b"", 403)
    error = refused("s3://bucket/none", access=access)
    assert error.message == "s3://bucket/none answers with status 403, not 200."
    # A store inside a private network needs the setting as any other address, metadata services too.
    for endpoint in (
        f"http://{PRIVATE}:{site.port}",
        "http://169.254.169.254",
        "http://[::1]:80",
        "file:///etc",
    ):
        assert refused("s3://bucket/key", access=S3Access(endpoint, "r", "a", "b")).kind in (
            "refused_address",
            "bad_url",
        )
    assert {address[0] for address in attempts} == {PUBLIC}


def test_credentials_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ENVSECRET")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "ENVTOKEN")
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{PRIVATE}:9")
    site.serve("/bucket/x", b"open")
    assert fetched("s3://bucket/x", access=S3Access(f"http://{PUBLIC}:{site.port}"))[0] == b"open"
    assert "ENV" not in site.requests[0][0]
