"""Reading requests and writing answers, with the limits that hold for every face."""

import asyncio
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from keybroker.model.errors import (
    KeybrokerError,
    MalformedError,
    TooLargeError,
    UnsupportedMediaTypeError,
)

#: More query parameters than any request of the protocols has.
MAX_QUERY_PARAMETERS = 32

Headers = list[tuple[bytes, bytes]]

#: Where a request's headers stand by name, made when the first is asked for.
_BY_NAME = "keybroker.headers"


class RequestTimeoutError(KeybrokerError):
    """The body did not arrive in time: 408."""

    type = "RequestTimeout"
    status = 408
    default_detail = "the request took too long to arrive"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much, and how long, a request's body may take."""

    max_bytes: int
    seconds: float


async def read_body(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    """Read a request's body.

    Raises:
        TooLargeError: more bytes than allowed; said as soon as it is known.
        RequestTimeoutError: the client stalls.
    """
    announced = header(scope, b"content-length")
    if announced is None and header(scope, b"transfer-encoding") is None:
        return b""  # a request without a body has nothing to wait for (RFC 9112, section 6.3)
    if announced is not None and (not announced.isdigit() or int(announced) > limits.max_bytes):
        raise TooLargeError(f"content-length {announced[:20]!r}")
    message = await _receive(receive, limits.seconds)
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        chunks = [body]
        size = len(body)
        deadline = asyncio.get_running_loop().time() + limits.seconds
        while message.get("more_body", False):
            left = deadline - asyncio.get_running_loop().time()
            message = await _receive(receive, left)
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > limits.max_bytes:
                raise TooLargeError("the body is larger than allowed")
            chunks.append(chunk)
        body = b"".join(chunks)
    if len(body) > limits.max_bytes:
        raise TooLargeError("the body is larger than allowed")
    return body


async def _receive(receive: Receive, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
    except TimeoutError:
        raise RequestTimeoutError("the body stalls") from None
    if message["type"] == "http.disconnect":
        raise RequestTimeoutError("the client went away")
    return message


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's value by its lower-case name, or None.

    Raises:
        MalformedError: the header is there twice, or is not ASCII; which of two values counts is
            not for us to guess.
    """
    headers = scope["headers"]
    by_name = scope.get(_BY_NAME)
    if by_name is None:
        by_name = scope[_BY_NAME] = dict(headers)
    found: bytes | None = by_name.get(name)
    if len(by_name) != len(headers) and sum(key == name for key, _ in headers) > 1:
        raise MalformedError(f"the header {name.decode()} is there twice")
    if found is None:
        return None
    try:
        return found.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError(f"the header {name.decode()} is not ASCII") from None


def cookie(scope: Scope, name: str) -> str | None:
    """Return a cookie's value, or None."""
    if header(scope, b"cookie") is None:
        return None
    for key, value in scope["headers"]:
        if key != b"cookie":
            continue
        # The plain case, which is all that guests send, without the cost of a full parser.
        text = value.decode("latin-1")
        if text.startswith(name) and text[len(name) : len(name) + 1] == "=" and ";" not in text:
            return str(text[len(name) + 1 :].strip().strip('"'))
        try:
            morsel = SimpleCookie(text).get(name)
        except CookieError:
            continue
        if morsel is not None:
            return str(morsel.value)
    return None


def query(scope: Scope) -> dict[str, str]:
    """Return the query parameters.

    Raises:
        MalformedError: one that is there twice, too many, or not UTF-8.
    """
    raw: bytes = scope.get("query_string", b"")
    if not raw:
        return {}
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_PARAMETERS,
        )
    except ValueError:
        raise MalformedError("the query cannot be parsed") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise MalformedError("a query parameter is there twice")
    return parameters


def require_json(scope: Scope) -> None:
    """Refuse a body that is declared to be something else than JSON.

    No declaration is taken for JSON, as other implementations of the protocol do.

    Raises:
        UnsupportedMediaTypeError: another content type.
    """
    declared = header(scope, b"content-type")
    if declared is not None:
        media_type = declared.partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise UnsupportedMediaTypeError(
                media_type, detail="the content type must be application/json"
            )


async def send(
    out: Send,
    status: int,
    body: bytes = b"",
    media_type: str | None = None,
    headers: Headers | None = None,
) -> None:
    """Send a whole answer. Nothing here may be cached by anything on the way."""
    all_headers: Headers = [
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if media_type is not None:
        all_headers.append((b"content-type", media_type.encode("ascii")))
    if headers:
        all_headers += headers
    await out({"type": "http.response.start", "status": status, "headers": all_headers})
    await out({"type": "http.response.body", "body": body})


async def send_json(out: Send, value: Any, headers: Headers | None = None) -> None:
    """Send a value as JSON with status 200."""
    await send(out, 200, msgspec.json.encode(value), "application/json", headers)
