"""``s3://bucket/key`` as a signed https URL, so that objects in a store are fetched as every other URL is.

Pure: the signature (AWS Signature Version 4, in the query) needs nothing but the credentials and the time. No
client of a store takes part, so nobody looks for credentials in the environment or asks a metadata service.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime

#: How long the signed URL works; it is used at once.
LIFETIME_S = 900

#: The naming rules of AWS, and underscores and capitals for the stores that allow them.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_UNRESERVED = "-._~"


@dataclass(frozen=True, slots=True)
class S3Access:
    """How buckets are read: without keys only what is public.

    `endpoint_url` is a store other than AWS (``https://minio.example.org:9000``); `secret_access_key` and
    `session_token` never appear in a message.
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


def split(url: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``. Raises `ValueError` that says what is wrong."""
    bucket, slash, key = url.strip()[len("s3://") :].partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ValueError("names no bucket: write it as s3://bucket/key")
    if not slash or not key or len(key.encode(errors="replace")) > 1024:
        raise ValueError(
            "names no object of the bucket: write it as s3://bucket/key, the key up to 1024 bytes"
        )
    if any(part in (".", "..") for part in key.split("/")) or not key.isprintable():
        raise ValueError("has a key with relative parts or control characters")
    return bucket, key


def signed_url(url: str, access: S3Access, at: datetime | None = None) -> str:
    """Return the URL that fetches an ``s3://`` URL with `access`; without a signature when there are no keys.

    Raises `ValueError` as `split` does.
    """
    bucket, key = split(url)
    endpoint = (access.endpoint_url or f"https://s3.{access.region}.amazonaws.com").rstrip("/")
    # The bucket stands in the path: as a part of the name, one with dots would fit no certificate.
    path = f"/{bucket}/{urllib.parse.quote(key, safe=_UNRESERVED + '/')}"
    if not access.access_key_id or not access.secret_access_key:
        return endpoint + path
    at = at or datetime.now(UTC)
    prefix = urllib.parse.urlsplit(endpoint)
    day = at.strftime("%Y%m%d")
    scope = f"{day}/{access.region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{access.access_key_id}/{scope}",
        "X-Amz-Date": at.strftime("%Y%m%dT%H%M%SZ"),
        "X-Amz-Expires": str(LIFETIME_S),
        "X-Amz-SignedHeaders": "host",
    }
    if access.session_token:
        query["X-Amz-Security-Token"] = access.session_token
    encoded = "&".join(
        f"{name}={urllib.parse.quote(query[name], safe=_UNRESERVED)}" for name in sorted(query)
    )
    canonical = "\n".join(
        ["GET", prefix.path + path, encoded, f"host:{prefix.netloc}", "", "host", "UNSIGNED-PAYLOAD"]
    )
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    signing_key = f"AWS4{access.secret_access_key}".encode()
    for part in (day, access.region, "s3", "aws4_request"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
    return f"{endpoint}{path}?{encoded}&X-Amz-Signature={signature}"
