"""The ASGI application of registered workloads.

Below ``<prefix>/kbs/v0``::

    POST   register_workload      administrators (anybody where the configuration says so)
    GET    workloads              administrators: list
    GET    workloads/<id>         administrators: one, without its passphrase
    DELETE workloads/<id>         administrators
    POST   auth                   request → challenge and cookie
    POST   attest                 evidence and cookie → nothing, with status 200
    GET    key/<id>               cookie → the passphrase, encrypted
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final

import msgspec
from starlette.types import Receive, Scope, Send

from keybroker.api.exchange import (
    BodyLimits,
    header,
    read_body,
    require_json,
    send,
    send_json,
)
from keybroker.api.face import Face, segments_below
from keybroker.api.metrics import Metrics
from keybroker.kbs.admin import AdminAccess
from keybroker.kbs.sessions import SessionError
from keybroker.model.errors import (
    ERROR_TYPE_PREFIX,
    KeybrokerError,
    MethodNotAllowedError,
    NotFoundError,
)
from keybroker.model.rcar import ErrorInformation
from keybroker.workloads.service import WorkloadService
from keybroker.workloads.sessions import SESSION_COOKIE, WorkloadSession
from keybroker.workloads.store import RegisteredWorkload

#: Behind the prefix; clients put it behind their server URL.
API_PATH: Final = "/kbs/v0"

#: Guests read the answer to ``attest`` into a buffer of 200 bytes.
MAX_ATTEST_ERROR_BYTES: Final = 199


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One request and the way to answer it."""

    scope: Scope
    out: Send
    method: str
    name: str
    rest: tuple[str, ...]
    body: bytes


class WorkloadFace(Face):
    """Registered workloads over HTTP.

    Args:
        service: what answers.
        admin: who administrates.
        metrics: what counts.
        prefix: what stands before :data:`API_PATH`; empty on a listener of its own.
        limits: size and time of a request's body.
        open_registration: whether anybody may register.
        secure: whether clients reach this process by TLS (the cookie is then ``Secure``).
    """

    def __init__(
        self,
        service: WorkloadService,
        admin: AdminAccess,
        metrics: Metrics,
        *,
        prefix: str,
        limits: BodyLimits,
        open_registration: bool,
        secure: bool,
    ) -> None:
        self._service = service
        self._admin = admin
        super().__init__(metrics)
        self._limits = limits
        self._open_registration = open_registration
        self._base = (prefix + API_PATH).encode("ascii")
        self._cookie_attributes = f"Path={prefix or '/'}; HttpOnly; SameSite=Strict" + (
            "; Secure" if secure else ""
        )
        self._endpoints: dict[str, Callable[[_Exchange], Awaitable[None]]] = {
            "register_workload": self._register,
            "workloads": self._workloads,
            "auth": self._auth,
            "attest": self._attest,
            "key": self._key,
        }

    async def _dispatch(self, scope: Scope, receive: Receive, out: Send) -> None:
        name, *rest = segments_below(scope, self._base)
        endpoint = self._endpoints.get(name)
        body = await read_body(scope, receive, self._limits)
        self._metrics.request_size.observe(len(body))
        if endpoint is None:
            raise NotFoundError("no such endpoint", detail="no such path")
        await endpoint(_Exchange(scope, out, scope["method"], name, tuple(rest), body))

    async def _register(self, exchange: _Exchange) -> None:
        _only(exchange, "POST", path_length=0)
        if not self._open_registration:
            await self._authorize(exchange)
        require_json(exchange.scope)
        await self._service.register(exchange.body)
        await send(exchange.out, 200)

    async def _workloads(self, exchange: _Exchange) -> None:
        if not exchange.rest:
            _only(exchange, "GET", path_length=0)
            await self._authorize(exchange)
            listed = [_description(entry) for entry in await self._service.workloads()]
            await send_json(exchange.out, {"workloads": listed})
            return
        _only(exchange, "GET", "DELETE", path_length=1)
        await self._authorize(exchange)
        workload_id = exchange.rest[0]
        if exchange.method == "DELETE":
            await self._service.delete(workload_id)
            await send(exchange.out, 200)
        else:
            await send_json(exchange.out, _description(await self._service.workload(workload_id)))

    async def _auth(self, exchange: _Exchange) -> None:
        _only(exchange, "POST", path_length=0)
        require_json(exchange.scope)
        challenge, session, value = await self._service.auth(exchange.body)
        await send_json(exchange.out, challenge, [self._set_cookie(session, value)])

    async def _attest(self, exchange: _Exchange) -> None:
        _only(exchange, "POST", path_length=0)
        require_json(exchange.scope)
        try:
            await self._service.attest(_cookie(exchange), exchange.body)
        except KeybrokerError as error:
            error.detail = _short_detail(error)
            raise
        # Guests take any byte of an answer for an error.
        await send(exchange.out, 200)

    async def _key(self, exchange: _Exchange) -> None:
        _only(exchange, "GET", path_length=1)
        await send_json(exchange.out, await self._service.key(_cookie(exchange), exchange.rest[0]))

    async def _authorize(self, exchange: _Exchange) -> None:
        # Access rules see the path that a client puts behind its server URL, whatever that is.
        path = "/".join((API_PATH, exchange.name, *exchange.rest))
        await self._admin.authorize(header(exchange.scope, b"authorization"), exchange.method, path)

    def _set_cookie(self, session: WorkloadSession, value: str) -> tuple[bytes, bytes]:
        expires = formatdate(session.expires_at, usegmt=True)
        text = f"{SESSION_COOKIE}={value}; {self._cookie_attributes}; Expires={expires}"
        return b"set-cookie", text.encode("ascii")


def _cookie(exchange: _Exchange) -> str | None:
    """Return the session cookie.

    Guests send two ``Cookie`` headers, one of their own making and one that their HTTP library
    adds. Both hold the same session.

    Raises:
        SessionError: they do not.
    """
    found = {
        part.partition("=")[2].strip().strip('"')
        for name, value in exchange.scope["headers"]
        if name == b"cookie"
        for part in value.decode("latin-1").split(";")
        if part.partition("=")[0].strip() == SESSION_COOKIE
    }
    if len(found) > 1:
        raise SessionError("the request holds cookies of several sessions")
    return found.pop() if found else None


def _only(exchange: _Exchange, *methods: str, path_length: int) -> None:
    if len(exchange.rest) != path_length:
        raise NotFoundError("another number of segments", detail="no such path")
    if exchange.method not in methods:
        raise MethodNotAllowedError(exchange.method, allowed=methods)


def _description(registered: RegisteredWorkload) -> dict[str, Any]:
    """Say of a workload what its administrator may see; the passphrase never leaves this way."""
    workload = registered.workload
    return {
        "workload_id": workload.workload_id,
        "tee": workload.tee.value,
        "launch_measurement": workload.measurement.hex(),
        "tee_config": workload.tee_config,
        "registered_at": registered.registered_at,
    }


def _short_detail(error: KeybrokerError) -> str:
    detail = error.detail.encode("ascii", "replace").decode("ascii")
    information = ErrorInformation(type=ERROR_TYPE_PREFIX + error.type, detail="")
    room = MAX_ATTEST_ERROR_BYTES - len(msgspec.json.encode(information))
    while len(msgspec.json.encode(detail)) - len('""') > room:
        detail = detail[:-1]
    return detail
