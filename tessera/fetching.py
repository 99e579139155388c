"""The one fetcher: whatever the server reads from, or sends to, a URL because a user said so passes here.

A name is resolved once, every address of it is checked, and the connection is made to exactly the address that
was checked: `_Pinned` is the only place where a connection begins, and it is given no name to look up again.
Each redirect is a new URL and passes the same way. Proxies, cookies and credentials do not exist here, and size,
time and redirects are bounded. Messages show a URL without user-info and query.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar, TypeVar

import httpcore
import idna

from tessera import __version__, s3_urls
from tessera.errors import TesseraError
from tessera.s3_urls import S3Access

_Taken = TypeVar("_Taken")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 8192
MAX_REDIRECTS = 5
SCHEMES = ("http", "https", "s3")
DEFAULT_PORTS = frozenset({80, 443, 8080, 8443})

#: What compressed content may grow to, at most; a page of zeros grows a thousand times.
_MOST_GROWTH = 100
_GROWTH_FREE_BYTES = 2**20
_PIECE_BYTES = 2**20
_MOST_DRAINED_BYTES = 2**16
#: A wait looks up so often whether it is still wanted.
_LOOK_UP_S = 0.5
#: With more receivers those that had nothing for long are forgotten.
_MOST_WINDOWS = 1000
#: Of a name's addresses so many are tried.
_MOST_ADDRESSES = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})

_URL = re.compile(r"(?i)(https?)://([^/?#]*)([^#]*)(?:#.*)?")
_NAME = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
#: A host that ends so is meant as a number (WHATWG URL, "ends in a number"), whatever a resolver makes of it.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CHARSET = re.compile(r"""charset="?([a-zA-Z0-9_.:-]{1,40})""", re.IGNORECASE)
_FILENAME = re.compile(r"""filename="?([^";]{1,255})"?""", re.IGNORECASE)

#: Networks that are not the public Internet: IANA's special-purpose registries for IPv4 and IPv6, multicast, and
#: the ranges in which an IPv4 address is wrapped (mapped, translated, 6to4, Teredo). Stated here, because what
#: `ipaddress` calls global differs between Python versions and counts multicast and NAT64 in.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
#: All of IPv6 that is given out to the public; the special ranges inside it are listed above.
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")


class FetchError(TesseraError):
    """A URL cannot be fetched, or may not be.

    `kind` is one of ``bad_url``, ``refused_address``, ``unreachable``, ``timeout``, ``too_large``,
    ``bad_status``, ``bad_content``, ``redirect``; `may_pass` says whether trying later can help.
    """

    type, status = "BadRequestError", 400
    #: Kinds that are the URL's own fault: they can be told before anything is fetched.
    KINDS: ClassVar[tuple[str, ...]] = (
        "bad_url",
        "refused_address",
        "unreachable",
        "timeout",
        "too_large",
        "bad_status",
        "bad_content",
        "redirect",
    )

    def __init__(
        self, kind: str, message: str, *, may_pass: bool = False, status_code: int | None = None
    ) -> None:
        super().__init__(message)
        assert kind in self.KINDS
        self.kind = kind
        self.may_pass = may_pass
        #: Of ``bad_status``: what the server answered with.
        self.status_code = status_code


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: its size, and what the server called it (neither is believed any further).

    `url` is where it came from after all redirects, with its query; `charset` is of ``Content-Type``.
    """

    size_bytes: int
    content_type: str | None
    filename: str | None
    url: str = ""
    charset: str | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """What a receiver answered: its status, and the text of ``Retry-After``."""

    status: int
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Called:
    """What a server answered to a call: its status, the whole content, and the text of ``Retry-After``."""

    status: int
    content: bytes
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was taken apart: the host is a lower-case ASCII name or an address in its one plain form."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def shown(self) -> str:
        """The URL as messages may show it."""
        return f"{self.origin}{_cut(self.path.partition('?')[0])}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


def system_addresses(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the system's resolver gives for `host`, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Turns:
    """Lets one at a time through for each key: what two would fetch at once is fetched once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Wait for the turn of `key` and keep it while the block runs."""
        with self._lock:
            turn, waiting = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = (turn, waiting + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                turn, waiting = self._held[key]
                if waiting == 1:
                    del self._held[key]
                else:
                    self._held[key] = (turn, waiting - 1)


class Windows:
    """When requests were sent to whom, for limits on how many may be in a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[str, deque[float]] = {}

    def take(self, key: str, limits: Sequence[tuple[int, float]]) -> bool:
        """Note a request if none of `limits` (number, seconds) is reached; tell whether it may be sent."""
        now = time.monotonic()
        longest = max(seconds for _, seconds in limits)
        with self._lock:
            if len(self._sent) > _MOST_WINDOWS:
                self._sent = {name: sent for name, sent in self._sent.items() if sent[-1] > now - longest}
            sent = self._sent.setdefault(key, deque())
            while sent and sent[0] <= now - longest:
                sent.popleft()
            if any(sum(at > now - seconds for at in sent) >= number for number, seconds in limits):
                return False
            sent.append(now)
            return True


@dataclass(frozen=True)
class Fetcher:
    """Fetches URLs within bounds.

    `allowed_networks` may be reached although they are not public, on every port; elsewhere only `ports` are
    (None: all). `max_bytes` bounds the content as it is kept, `total_s` the whole fetch with its redirects.
    """

    max_bytes: int
    allowed_networks: tuple[Network, ...] = ()
    ports: frozenset[int] | None = DEFAULT_PORTS
    connect_s: float = 10
    idle_s: float = 30
    total_s: float = 600
    tls: ssl.SSLContext | None = None
    resolve: Callable[[str, int], Sequence[str]] = field(default=system_addresses)
    turns: Turns = field(default_factory=Turns, repr=False)
    windows: Windows = field(default_factory=Windows, repr=False)
    #: What a message about the size says of where the bound comes from.
    bound: str = " (setting max_upload_bytes)"

    def __reduce__(self) -> tuple[Callable[[], Fetcher], tuple[()]]:
        # What travels to another process are the bounds; nobody there has a turn yet, or has sent anything.
        names = (
            "max_bytes",
            "allowed_networks",
            "ports",
            "connect_s",
            "idle_s",
            "total_s",
            "resolve",
            "bound",
        )
        return partial(Fetcher, **{name: getattr(self, name) for name in names}), ()

    def check(self, url: str, access: S3Access | None = None) -> str:
        """Return `url` as it may be shown, if nothing speaks against fetching it before a connection is tried.

        Raises `FetchError` of kind ``bad_url`` or ``refused_address``.
        """
        target = self._target(url, access or S3Access())
        address = _literal(target.host)
        if address is not None:
            self._check_address(address, target)
        return shown(url)

    def fetch(
        self,
        url: str,
        sink: Callable[[bytes], object],
        *,
        access: S3Access | None = None,
        stop: threading.Event | None = None,
    ) -> Fetched:
        """Fetch `url` and hand its content to `sink` in pieces. Raises `FetchError`.

        What `sink` raises goes through. When `stop` is set the fetch ends as a ``timeout`` that may pass.
        """
        deadline = time.monotonic() + self.total_s
        target = self._target(url, access or S3Access())
        # An s3:// URL is shown as it was sent: where its store is, and the signature, are the server's business.
        first = shown(url)
        for _ in range(MAX_REDIRECTS + 1):
            backend = _Pinned(self, target, first, deadline, stop)
            with httpcore.ConnectionPool(
                ssl_context=self.tls or _tls(), max_connections=1, network_backend=backend
            ) as pool:
                try:
                    with pool.stream(
                        "GET",
                        _url(target),
                        headers=_headers(target),
                        extensions={"timeout": {"connect": self.connect_s, "read": self.idle_s}},
                    ) as response:
                        if response.status not in _REDIRECTS:
                            return self._take(response, target, first, sink)
                        location = _header(response, b"location")
                except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
                    raise FetchError(
                        "unreachable", f"{first} broke off before all of it had come.", may_pass=True
                    ) from error
            target = self._follow(target, location, first)
        raise FetchError("redirect", f"{first} redirects more than {MAX_REDIRECTS} times.")

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> Posted:
        """Send `body` to an http(s) URL and return the status of the answer. Raises `FetchError` when none comes.

        Redirects are answers like any other: they are not followed. What the answer holds is not kept.
        """

        def taken(response: httpcore.Response) -> Posted:
            # A receiver that is still writing would take a closed connection for an error of its own.
            with suppress(FetchError, httpcore.NetworkError, httpcore.ProtocolError):
                _drain(response)
            return Posted(response.status, _header(response, b"retry-after"))

        return self._exchange("POST", url, body, headers, timeout_s, stop, taken)

    def call(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        max_bytes: int,
    ) -> Called:
        """Send a request to an http(s) URL and return the answer. Raises `FetchError`, also for more than `max_bytes`.

        Redirects are answers like any other: they are not followed.
        """
        first = shown(url)

        def taken(response: httpcore.Response) -> Called:
            content = bytearray()
            for piece in _decoded(_header(response, b"content-encoding"), response.iter_stream(), first):
                content += piece
                if len(content) > max_bytes:
                    raise FetchError("too_large", f"{first} answers with more than {max_bytes} bytes.")
            return Called(response.status, bytes(content), _header(response, b"retry-after"))

        return self._exchange(method, url, body, headers, timeout_s, None, taken)

    def _exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
        stop: threading.Event | None,
        taken: Callable[[httpcore.Response], _Taken],
    ) -> _Taken:
        target, first = parse(url), shown(url)
        deadline = time.monotonic() + timeout_s
        given = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        stated = {name.lower() for name, _ in given} | {b"accept-encoding"}
        own = [(name, value) for name, value in _headers(target) if name.lower() not in stated]
        if body is not None:
            own.append((b"Content-Length", str(len(body)).encode()))
        backend = _Pinned(self, target, first, deadline, stop)
        with httpcore.ConnectionPool(
            ssl_context=self.tls or _tls(), max_connections=1, network_backend=backend
        ) as pool:
            try:
                with pool.stream(
                    method,
                    _url(target),
                    headers=own + given,
                    content=body,
                    extensions={"timeout": {"connect": self.connect_s, "read": timeout_s}},
                ) as response:
                    return taken(response)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
                raise FetchError("unreachable", f"{first} broke off before it had answered.") from error
            except FetchError as error:
                if error.kind != "timeout":
                    raise
                raise FetchError("timeout", f"{first} did not answer within {timeout_s:g} s.") from error

    def _target(self, url: str, access: S3Access) -> Target:
        if url.strip()[:5].lower() == "s3://":
            if access.endpoint_url is not None:
                # In the form in which it is asked: the host is part of what is signed.
                store = parse(access.endpoint_url)
                access = replace(access, endpoint_url=f"{store.origin}{store.path.rstrip('/')}")
            try:
                return parse(s3_urls.signed_url(url, access))
            except ValueError as error:
                raise FetchError("bad_url", f"The URL {error}.") from None
        return parse(url)

    def _follow(self, target: Target, location: str | None, first: str) -> Target:
        if not location:
            raise FetchError("redirect", f"{first} redirects without saying where to.")
        try:
            following = parse(urllib.parse.urljoin(f"{target.origin}{target.path}", location))
        except (FetchError, ValueError) as error:
            why = error.message if isinstance(error, FetchError) else "It is no valid URL."
            raise FetchError("redirect", f"{first} redirects to a place that is not fetched. {why}") from None
        if target.scheme == "https" and following.scheme == "http":
            raise FetchError("redirect", f"{first} redirects from https to http, which is not followed.")
        return following

    def _check_address(self, address: Address, target: Target) -> None:
        if any(address in network for network in self.allowed_networks if network.version == address.version):
            return
        if not is_public(address):
            raise FetchError(
                "refused_address",
                f"{target.origin} leads into a network that is not public, where this server does not fetch. An "
                "operator can allow networks (setting fetch_allowed_networks).",
            )
        if self.ports is not None and target.port not in self.ports:
            raise FetchError(
                "refused_address",
                f"{target.origin}: port {target.port} is not one that this server fetches from "
                f"({', '.join(map(str, sorted(self.ports)))}; setting fetch_ports).",
            )

    def addresses(self, target: Target, deadline: float) -> list[Address]:
        """Return the addresses of the target's host, each checked. Raises `FetchError` when one is refused."""
        literal = _literal(target.host)
        found = [literal] if literal is not None else self._resolved(target, deadline)
        for address in found:
            # A name that leads inside with one of its addresses is not used with the others either.
            self._check_address(address, target)
        return found[:_MOST_ADDRESSES]

    def _resolved(self, target: Target, deadline: float) -> list[Address]:
        answer: queue.SimpleQueue[Sequence[str] | OSError | UnicodeError] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(self.resolve(target.host, target.port))
            except (OSError, UnicodeError) as error:
                answer.put(error)

        # The system's resolver knows no deadline; a thread that waits for it too long is left to itself.
        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        try:
            found = answer.get(timeout=max(0.0, min(self.connect_s, deadline - time.monotonic())))
        except queue.Empty:
            raise FetchError(
                "timeout", f"{target.origin}: its name was not resolved in time.", may_pass=True
            ) from None
        if isinstance(found, OSError | UnicodeError) or not found:
            raise FetchError("unreachable", f"{target.origin}: its name cannot be resolved.", may_pass=True)
        try:
            # A zone (fe80::1%eth0) makes an address link-local at best: it does not parse as a plain one.
            return [ipaddress.ip_address(_unzoned(text)) for text in found]
        except ValueError:
            raise FetchError("refused_address", f"{target.origin} resolves to no plain address.") from None

    def _take(
        self, response: httpcore.Response, target: Target, first: str, sink: Callable[[bytes], object]
    ) -> Fetched:
        if response.status != 200:
            raise FetchError(
                "bad_status",
                f"{first} answers with status {response.status}, not 200.",
                may_pass=response.status in _MAY_PASS,
                status_code=response.status,
            )
        declared = _header(response, b"content-length") or ""
        if declared.isdecimal() and len(declared) < 20 and int(declared) > self.max_bytes:
            raise self._too_large(first)
        size = 0
        for piece in _decoded(_header(response, b"content-encoding"), response.iter_stream(), first):
            size += len(piece)
            if size > self.max_bytes:
                raise self._too_large(first)
            sink(piece)
        named = _FILENAME.search(_header(response, b"content-disposition") or "")
        content_type = _header(response, b"content-type") or ""
        charset = _CHARSET.search(content_type)
        last = urllib.parse.unquote(target.path.partition("?")[0]).rsplit("/", 1)[-1]
        return Fetched(
            size,
            content_type.partition(";")[0].strip().lower() or None,
            (named[1] if named else last) or None,
            f"{target.origin}{target.path}",
            charset[1] if charset else None,
        )

    def _too_large(self, first: str) -> FetchError:
        return FetchError("too_large", f"{first} is larger than {self.max_bytes} bytes{self.bound}.")


def parse(url: str) -> Target:
    """Take an http(s) URL apart, strictly: what two parsers could read differently is refused.

    Raises `FetchError` of kind ``bad_url`` or, for a host that is a number in disguise, ``refused_address``.
    """
    url = url.strip()
    if len(url) > MAX_URL_LENGTH:
        raise FetchError("bad_url", f"The URL is longer than {MAX_URL_LENGTH} characters.")
    if "\\" in url or not url.isprintable() or any(c.isspace() for c in url):
        raise FetchError(
            "bad_url", "The URL holds a backslash, a blank or a control character; encode it (%20)."
        )
    match = _URL.fullmatch(url)
    if match is None:
        other = re.match(r"[a-z][a-z0-9+.-]{0,31}(?=:)", url.lower())
        named = f"is of scheme {other[0]}" if other else "is none"
        raise FetchError("bad_url", f"The URL {named}; http://, https:// and s3:// are fetched.")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise FetchError(
            "bad_url", "The URL holds a user name or a password before its host; credentials are not sent."
        )
    host, port = _host_and_port(authority, scheme)
    if not path.startswith("/"):
        path = f"/{path}"
    return Target(scheme, host, port, urllib.parse.quote(path, safe="%/:?[]@!$&'()*+,;=-._~"))


def shown(url: str) -> str:
    """Return `url` as a message or an answer may show it: without user-info, query and fragment."""
    bare = re.split(r"[?#]", url.strip(), maxsplit=1)[0]
    scheme, separator, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    return _cut(f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet."""
    if isinstance(address, ipaddress.IPv6Address) and (address not in _PUBLIC_IPV6 or address.scope_id):
        return False
    return not any(address in network for network in _SPECIAL if network.version == address.version)


# --- connecting ---------------------------------------------------------------------------------------


class _Pinned(httpcore.NetworkBackend):
    """Where connections of one hop begin: to an address that was checked, never to a name."""

    def __init__(
        self, fetcher: Fetcher, target: Target, first: str, deadline: float, stop: threading.Event | None
    ) -> None:
        self._fetcher, self._target, self._first = fetcher, target, first
        self._deadline, self._stop = deadline, stop

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that answers; `host` is never handed to a resolver again."""
        assert (host, port) == (self._target.host, self._target.port)
        addresses = self._fetcher.addresses(self._target, self._deadline)
        clock = _Clock(self._first, self._deadline, self._stop)
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # a machine without IPv6
            try:
                sock.settimeout(clock.left(timeout))
                sock.connect((str(address), port))
                # The kernel's word for whom we talk to.
                if ipaddress.ip_address(sock.getpeername()[0]) != address:
                    raise FetchError("refused_address", f"{self._first} was answered by another address.")
            except OSError:
                sock.close()
            except BaseException:
                sock.close()
                raise
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Stream(sock, clock)
        raise FetchError(
            "unreachable", f"{self._first}: nothing answers at {self._target.origin}.", may_pass=True
        )

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        """Nothing local is ever fetched."""
        raise FetchError("refused_address", "Sockets of this machine are not fetched from.")


@dataclass(frozen=True, slots=True)
class _Clock:
    """The time that a fetch has left; each wait takes the smaller of it and its own bound."""

    first: str
    deadline: float
    stop: threading.Event | None

    def left(self, bound_s: float | None) -> float:
        if self.stop is not None and self.stop.is_set():
            raise FetchError("timeout", "The server ends; this is fetched by the next one.", may_pass=True)
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise self.late()
        return min(left_s, bound_s) if bound_s else left_s

    def late(self) -> FetchError:
        return FetchError("timeout", f"{self.first} did not come in time.", may_pass=True)


class _Stream(httpcore.NetworkStream):
    """A connected socket whose every wait is bounded by the fetch's clock."""

    def __init__(self, sock: socket.socket, clock: _Clock) -> None:
        self._sock, self._clock = sock, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has come, at most `max_bytes`."""
        until = time.monotonic() + (timeout or self._clock.left(None))
        try:
            while True:
                self._sock.settimeout(self._clock.left(_LOOK_UP_S))
                try:
                    return self._sock.recv(max_bytes)
                except TimeoutError:
                    if time.monotonic() >= until:
                        raise self._clock.late() from None
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        try:
            while buffer:
                self._sock.settimeout(self._clock.left(timeout))
                buffer = buffer[self._sock.send(buffer) :]
        except TimeoutError:
            raise self._clock.late() from None
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        """Let go of the connection."""
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Go on in TLS; the certificate must be for `server_hostname`, the name in the URL."""
        self._sock.settimeout(self._clock.left(timeout))
        try:
            return _Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname), self._clock)
        except TimeoutError:
            self._sock.close()
            raise self._clock.late() from None
        except ssl.SSLCertVerificationError as error:
            self._sock.close()
            raise FetchError(
                "unreachable", f"{self._clock.first}: its certificate is not valid ({error.verify_message})."
            ) from None
        except OSError:
            self._sock.close()
            raise FetchError("unreachable", f"{self._clock.first} does not speak TLS as it should.") from None

    def get_extra_info(self, info: str) -> Any:
        """Tell what the library asks for: nothing that it needs here."""
        return self._sock if info == "socket" else None


@cache
def _tls() -> ssl.SSLContext:
    """Return what verifies servers: the system's authorities and, where it has none, those of certifi."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


# --- reading ------------------------------------------------------------------------------------------


def _decoded(encoding: str | None, pieces: Iterable[bytes], first: str) -> Iterator[bytes]:
    """Yield content without the encoding that a server put on it unasked, a bounded piece at a time."""
    wanted = (encoding or "identity").strip().lower()
    if wanted in ("", "identity"):
        yield from pieces
        return
    if wanted not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(
            "bad_content", f"{first} comes in the encoding {wanted[:32]!r}, which was not asked for."
        )
    inflater = _inflater()
    came = made = 0
    try:
        for piece in pieces:
            came += len(piece)
            left, has_more = piece, True
            while left or has_more:
                if inflater.eof and left:
                    inflater = _inflater()  # gzip may be a chain of members (RFC 1952, 2.2)
                out = inflater.decompress(left, _PIECE_BYTES)
                left = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                # A full piece says that there may be more of it inside, although all that came was taken in.
                has_more = len(out) == _PIECE_BYTES and not inflater.eof
                made += len(out)
                if made > came * _MOST_GROWTH + _GROWTH_FREE_BYTES:
                    raise FetchError(
                        "too_large", f"{first} unpacks to more than {_MOST_GROWTH} times its size."
                    )
                yield out
    except zlib.error as error:
        raise FetchError("bad_content", f"{first} is not the {wanted} that it says it is.") from error
    if not inflater.eof:
        raise FetchError("bad_content", f"{first} ends in the middle of its {wanted}.", may_pass=True)


def _inflater() -> zlib._Decompress:
    # 32 + the window: zlib and gzip headers are both recognised.
    return zlib.decompressobj(32 + zlib.MAX_WBITS)


def _url(target: Target) -> httpcore.URL:
    return httpcore.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=target.path.encode(),
    )


def _drain(response: httpcore.Response) -> None:
    """Read what may still come of an answer that nobody wants, up to a bound."""
    seen = 0
    for piece in response.iter_stream():
        seen += len(piece)
        if seen > _MOST_DRAINED_BYTES:
            return


def _headers(target: Target) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", target.authority.encode()),
        (b"User-Agent", f"tessera/{__version__}".encode()),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


# --- taking URLs apart --------------------------------------------------------------------------------


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?", authority)
    if match is None:
        raise FetchError("bad_url", "The URL's host or port is not valid.")
    port = int(match[2]) if match[2] else _default_port(scheme)
    if not 1 <= port <= 65535:
        raise FetchError("bad_url", f"The URL's port {port} is not valid.")
    host = match[1]
    if host.startswith("["):
        try:
            # Without a zone: it would name an interface of this machine.
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise FetchError("bad_url", "The URL's host is no valid IPv6 address.") from None
        if address.scope_id:
            raise FetchError("refused_address", "The URL's host is an address with a zone, which is local.")
        return str(address), port
    return _name(host), port


def _name(host: str) -> str:
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True, transitional=False).decode()
        except (idna.IDNAError, UnicodeError):
            raise FetchError("bad_url", "The URL's host is no valid international name.") from None
    name = host.lower().removesuffix(".")
    if not _NAME.fullmatch(name):
        raise FetchError("bad_url", "The URL's host is not valid.")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise FetchError(
                "refused_address",
                "The URL's host is a number; write an address as four decimal numbers (192.0.2.1).",
            ) from None
    return name


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _unzoned(address: str) -> str:
    if "%" in address:
        raise ValueError("an address with a zone")
    return address


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
