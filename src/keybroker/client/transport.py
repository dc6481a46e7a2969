"""Two thin shells that run operations over httpx: one that blocks and one that awaits.

TLS certificates are always verified; a broker with its own root is named by root certificates,
never by switching verification off. Redirects are not followed: a token must not follow them.
"""

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from keybroker import __version__
from keybroker.client.closing import AsyncClosing, Closing
from keybroker.client.errors import (
    ClientError,
    ConnectionFailedError,
    InputError,
    ProtocolError,
    UntrustedServerError,
)
from keybroker.client.exchange import Answer, Call, Operation, Quote

#: Where every broker serves the protocol.
PREFIX = "/kbs/v0/"

#: Seconds. An attestation may wait for a vendor's certificate service, so answers get more time
#: than connections.
CONNECT_TIMEOUT = 10.0
ANSWER_TIMEOUT = 60.0

#: An answer is at most a secret of a few MiB in base64; what is larger is meant to fill memory.
MAX_ANSWER_BYTES = 64 << 20

_T = TypeVar("_T")


def tls_context(root_certs: Sequence[Path | str] = ()) -> ssl.SSLContext:
    """Make a TLS context that trusts the usual roots and the given ones.

    Args:
        root_certs: PEM files of further roots.

    Raises:
        InputError: a file cannot be read or holds no certificate.
    """
    context = httpx.create_ssl_context()
    for path in root_certs:
        try:
            context.load_verify_locations(cafile=str(path))
        except ssl.SSLError:
            raise InputError(f"{path} holds no PEM certificate") from None
        except OSError as error:
            raise InputError(f"root certificate: {error.strerror}: {path}") from None
    return context


class Transport(Closing):
    """Runs operations against one broker, waiting for each answer."""

    def __init__(
        self, url: str, root_certs: Sequence[Path | str] = (), timeout: float = ANSWER_TIMEOUT
    ) -> None:
        self._base = _base_url(url)
        self._http = httpx.Client(**_settings(root_certs, timeout))

    def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return its result.

        Raises:
            ClientError: as the operation says, and :class:`ConnectionFailedError`.
        """
        try:
            step = next(operation)
            while True:
                try:
                    reply = self._perform(step)
                except ClientError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as done:
            result: _T = done.value
            return result

    def _perform(self, step: Call | Quote) -> Any:
        if isinstance(step, Quote):
            return step.attester.evidence(step.report_data)
        body = bytearray()
        try:
            with self._http.stream(**_arguments(self._base, step)) as response:
                for chunk in response.iter_bytes():
                    _append(body, chunk)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _connection_error(error) from error
        return Answer(response.status_code, bytes(body))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncTransport(AsyncClosing):
    """Runs operations against one broker on the running event loop."""

    def __init__(
        self, url: str, root_certs: Sequence[Path | str] = (), timeout: float = ANSWER_TIMEOUT
    ) -> None:
        self._base = _base_url(url)
        self._http = httpx.AsyncClient(**_settings(root_certs, timeout))

    async def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return its result; raises as :meth:`Transport.run`."""
        try:
            step = next(operation)
            while True:
                try:
                    reply = await self._perform(step)
                except ClientError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as done:
            result: _T = done.value
            return result

    async def _perform(self, step: Call | Quote) -> Any:
        if isinstance(step, Quote):
            # Hardware takes milliseconds to seconds to sign.
            return await asyncio.to_thread(step.attester.evidence, step.report_data)
        body = bytearray()
        try:
            async with self._http.stream(**_arguments(self._base, step)) as response:
                async for chunk in response.aiter_bytes():
                    _append(body, chunk)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _connection_error(error) from error
        return Answer(response.status_code, bytes(body))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _base_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError("the broker's URL must start with http:// or https:// and name a host")
    return url.rstrip("/") + PREFIX


def _settings(root_certs: Sequence[Path | str], timeout: float) -> dict[str, Any]:
    return {
        "verify": tls_context(root_certs),
        "timeout": httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
        "headers": {"User-Agent": f"keybroker/{__version__}", "Accept-Encoding": "identity"},
        "follow_redirects": False,
    }


def _arguments(base: str, call: Call) -> dict[str, Any]:
    headers: dict[str, str] = {}
    if call.content_type is not None:
        headers["Content-Type"] = call.content_type
    if call.bearer is not None:
        headers["Authorization"] = f"Bearer {call.bearer}"
    return {
        "method": call.method,
        "url": base + call.path,
        "params": dict(call.query) or None,
        "content": call.content,
        "headers": headers,
    }


def _append(body: bytearray, chunk: bytes) -> None:
    body += chunk
    if len(body) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")


def _connection_error(error: Exception) -> ClientError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedServerError(
                f"the broker's certificate is not trusted: {cause.verify_message}"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return ConnectionFailedError("the broker did not answer in time")
    if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError):
        return ProtocolError(f"the answer is not HTTP: {error}")
    return ConnectionFailedError(f"no answer from the broker: {error}")
