"""From an error to its answer and its log line."""

import logging

import msgspec
from starlette.types import Send

from keybroker.api.exchange import Headers, send
from keybroker.model.errors import ERROR_TYPE_PREFIX, KeybrokerError, MethodNotAllowedError
from keybroker.model.rcar import ErrorInformation

logger = logging.getLogger(__name__)


async def send_error(out: Send, error: KeybrokerError, *, request_id: str) -> None:
    """Answer with an error of ours: the detail to the client, the diagnostics to the log."""
    level = logging.ERROR if error.status >= 500 else logging.INFO
    logger.log(
        level,
        "request refused: %s",
        error.diagnostics(),
        extra={"request_id": request_id, "status": error.status, "error": error.type},
    )
    information = ErrorInformation(type=ERROR_TYPE_PREFIX + error.type, detail=error.detail)
    headers: Headers = [(b"x-request-id", request_id.encode("ascii"))]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="keybroker"'))
    elif isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", b", ".join(m.encode() for m in error.allowed) or b"GET, POST"))
    elif error.status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send(out, error.status, msgspec.json.encode(information), "application/json", headers)


async def send_internal_error(out: Send, request_id: str) -> None:
    """Answer after something that should not happen; the traceback is in the log alone."""
    logger.exception("unexpected failure", extra={"request_id": request_id})
    error = KeybrokerError("unexpected failure, see the traceback above")
    information = ErrorInformation(type=ERROR_TYPE_PREFIX + error.type, detail=error.detail)
    await send(
        out,
        500,
        msgspec.json.encode(information),
        "application/json",
        [(b"x-request-id", request_id.encode("ascii"))],
    )
