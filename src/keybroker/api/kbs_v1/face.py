"""The ASGI application of ``/kbs/v1``: finds the endpoint of a request, and answers errors."""

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from keybroker.api.exchange import BodyLimits, Headers, read_body, send
from keybroker.api.face import Face
from keybroker.api.kbs_v1.endpoints import Endpoints, Exchange, no_such_path
from keybroker.api.metrics import Metrics
from keybroker.key_transfer.errors import AccessError, LockedOutError
from keybroker.key_transfer.records import parse_id
from keybroker.key_transfer.service import KeyTransfer
from keybroker.model.errors import (
    KeybrokerError,
    MalformedError,
    MethodNotAllowedError,
)

logger = logging.getLogger(__name__)

#: Where the face is mounted.
PREFIX = "/kbs/v1"

#: Longer than any path here.
MAX_PATH_LENGTH = 256

#: The description of the API, which is public and served beside the face.
_PAGES = frozenset({"openapi.json", "docs"})

#: Stands for an id in the table of paths.
_ID = "{id}"

_Endpoint = Callable[[Exchange], Awaitable[None]]


class KeyTransferFace(Face):
    """The Trust Authority key broker over HTTP.

    Args:
        key_transfer: what answers.
        metrics: what counts.
        limits: size and time of a request's body.
        max_attestations: evidence in work at once in this process; more is told to come back.
        pages: serves the description of the API.
    """

    def __init__(
        self,
        key_transfer: KeyTransfer,
        metrics: Metrics,
        *,
        limits: BodyLimits,
        max_attestations: int,
        pages: ASGIApp,
    ) -> None:
        super().__init__(metrics)
        self._limits = limits
        self._pages = pages
        self._table = _table(Endpoints(key_transfer, max_attestations=max_attestations))

    async def __call__(self, scope: Scope, receive: Receive, out: Send) -> None:
        """Handle one request."""
        if scope["path"].removeprefix(PREFIX + "/") in _PAGES:
            await self._pages(scope, receive, out)
        else:
            await super().__call__(scope, receive, out)

    async def _dispatch(self, scope: Scope, receive: Receive, out: Send) -> None:
        path, id_ = _path(scope)
        methods = self._table.get(path)
        if methods is None:
            raise no_such_path()
        endpoint = methods.get(scope["method"])
        if endpoint is None:
            raise MethodNotAllowedError(scope["method"], allowed=tuple(methods))
        body = await read_body(scope, receive, self._limits)
        self._metrics.request_size.observe(len(body))
        await endpoint(Exchange(scope, out, body, id_))

    async def _refuse(self, out: Send, error: KeybrokerError, request_id: str) -> None:
        await _send_error(out, error, request_id)

    async def _fail(self, out: Send, request_id: str) -> None:
        logger.exception("unexpected failure", extra={"request_id": request_id})
        await _send_error(out, KeybrokerError("see the traceback above"), request_id)


def _table(endpoints: Endpoints) -> Mapping[tuple[str, ...], Mapping[str, _Endpoint]]:
    return {
        ("version",): {"GET": endpoints.version},
        ("token",): {"POST": endpoints.token},
        ("users",): {"GET": endpoints.search_users, "POST": endpoints.create_user},
        ("users", _ID): {
            "GET": endpoints.get_user,
            "PUT": endpoints.update_user,
            "DELETE": endpoints.delete_user,
        },
        ("key-transfer-policies",): {
            "GET": endpoints.search_policies,
            "POST": endpoints.create_policy,
        },
        ("key-transfer-policies", _ID): {
            "GET": endpoints.get_policy,
            "DELETE": endpoints.delete_policy,
        },
        ("keys",): {"GET": endpoints.search_keys, "POST": endpoints.create_key},
        ("keys", _ID): {
            "GET": endpoints.get_key,
            "PUT": endpoints.update_key,
            "DELETE": endpoints.delete_key,
            "POST": endpoints.wrap_key,
        },
        ("keys", _ID, "transfer"): {"POST": endpoints.transfer_key},
    }


def _path(scope: Scope) -> tuple[tuple[str, ...], str]:
    """Take the path apart; an id in it becomes a placeholder.

    No path of the protocol needs an escape, so there is nothing under one that has any.
    """
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or path.encode("utf-8", "surrogateescape")
    if b"%" in raw or len(raw) > MAX_PATH_LENGTH or not path.isascii():
        raise no_such_path()
    segments = path.removeprefix(PREFIX).removeprefix("/").split("/")
    if len(segments) < 2:
        return tuple(segments), ""
    try:
        id_ = parse_id(segments[1])
    except MalformedError:
        raise no_such_path() from None
    return (segments[0], _ID, *segments[2:]), id_


async def _send_error(out: Send, error: KeybrokerError, request_id: str) -> None:
    """Answer with an error in the original's form: the detail to the client, more to the log."""
    level = logging.ERROR if error.status >= 500 else logging.INFO
    logger.log(
        level,
        "request refused: %s",
        error.diagnostics(),
        extra={"request_id": request_id, "status": error.status, "error": error.type},
    )
    headers: Headers = [(b"x-request-id", request_id.encode("ascii"))]
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", ", ".join(error.allowed).encode("ascii")))
    elif error.status == 429:
        seconds = b"60" if isinstance(error, LockedOutError) else b"1"
        headers.append((b"retry-after", seconds))
    if isinstance(error, AccessError):
        headers.append((b"www-authenticate", b'Bearer realm="keybroker"'))
        if error.detail == AccessError.default_detail:
            # Where the token is looked at, the original answers in plain text.
            await send(out, 401, b"Unauthorized\n", "text/plain; charset=utf-8", headers)
            return
    body = msgspec.json.encode({"error": f"{error.status}: {error.detail}"})
    await send(out, error.status, body, "application/json", headers)
