"""What all faces have in common: counting, paths, and the one place where errors become answers."""

import os
import re
import time
from abc import ABC, abstractmethod

from starlette.types import Message, Receive, Scope, Send

from keybroker.api.errors import send_error, send_internal_error
from keybroker.api.metrics import Metrics
from keybroker.model.errors import KeybrokerError, NotFoundError

#: Longer than any path of a protocol: a plugin, and three names of a resource.
MAX_PATH_LENGTH = 1024

#: Segments that are neither empty nor ``.`` nor ``..``, of visible ASCII without escapes.
_SEGMENTS = re.compile(rb"(?:/(?!\.{1,2}(?:/|$))[!-$&-.0-~]+)+")


class Face(ABC):
    """An ASGI application that speaks one protocol.

    Args:
        metrics: what counts.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, out: Send) -> None:
        """Handle one request."""
        metrics = self._metrics
        started = time.perf_counter()
        metrics.requests.inc()
        metrics.active.inc()
        answered = False

        async def counted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
            else:
                body = message.get("body", b"")
                metrics.response_size.observe(len(body) if isinstance(body, bytes) else 0)
            await out(message)

        try:
            await self._dispatch(scope, receive, counted)
        except KeybrokerError as error:
            if not answered:
                await self._refuse(counted, error, request_id())
        except Exception:
            if not answered:
                await self._fail(counted, request_id())
        finally:
            metrics.active.dec()
            metrics.duration.observe(time.perf_counter() - started)

    @abstractmethod
    async def _dispatch(self, scope: Scope, receive: Receive, out: Send) -> None:
        """Answer a request, or raise KeybrokerError before anything is sent."""

    async def _refuse(self, out: Send, error: KeybrokerError, request_id: str) -> None:
        """Answer with an error in the protocol's form."""
        await send_error(out, error, request_id=request_id)

    async def _fail(self, out: Send, request_id: str) -> None:
        """Answer after something that should not happen, inside its ``except``."""
        await send_internal_error(out, request_id)


def request_id() -> str:
    """Return a random name for a request, which its answer and the log have in common."""
    return os.urandom(8).hex()


def segments_below(scope: Scope, base: bytes) -> tuple[str, ...]:
    """Take a path apart as it was sent; return its segments below ``base``.

    No name of a protocol needs an escape, so an escaped path is a trick (``%2f``, ``%00``,
    ``%2e%2e``) or a mistake: there is nothing under it.

    Raises:
        NotFoundError: it does not begin so, has no segment below, or one that is no name.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    relative = raw[len(base) :]
    if len(raw) > MAX_PATH_LENGTH or not raw.startswith(base) or not _SEGMENTS.fullmatch(relative):
        raise NotFoundError("a path that no name of the protocol makes", detail="no such path")
    return tuple(relative.decode("ascii").split("/")[1:])
