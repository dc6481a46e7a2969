"""The endpoints below ``/kbs/v1``, each with the permission that it asks for.

Statuses are the original's, also where others would fit better (201 for an update, 401 where a
permission is missing): its clients look at them.
"""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.types import Scope, Send

from keybroker import __version__
from keybroker.api.exchange import Headers, header, query, send
from keybroker.api.kbs_v1.payloads import (
    TokenRequest,
    UserRequest,
    key_answer,
    parse_attestation_token,
    parse_background_request,
    parse_body,
    parse_key_filter,
    parse_key_request,
    parse_key_update,
    parse_user_filter,
    user_answer,
    wrapped_answer,
)
from keybroker.key_transfer.permissions import (
    CREATE,
    DELETE,
    KEYS,
    POLICIES,
    SEARCH,
    TRANSFER,
    UPDATE,
    USERS,
)
from keybroker.key_transfer.service import KeyTransfer
from keybroker.model.errors import (
    MalformedError,
    NotFoundError,
    TooManyRequestsError,
    UnsupportedMediaTypeError,
)
from keybroker.model.strict_json import parse_json

JSON = "application/json"
JWT = "application/jwt"
PEM = "application/x-pem-file"

ATTESTATION_TYPE = b"attestation-type"

#: Longer than any username or password that can be set.
MAX_CREDENTIAL_CHARS = 255

_SERVICE_NAME = "Key Broker Service"

_T = TypeVar("_T")

#: Two years, as in the original.
_TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the way to answer it.

    Attributes:
        id: the last id in the path; empty where the path has none.
    """

    scope: Scope
    out: Send
    body: bytes = field(repr=False)
    id: str = ""

    async def answer(self, status: int, value: Any, headers: Headers | None = None) -> None:
        """Answer with JSON."""
        await send(self.out, status, msgspec.json.encode(value), JSON, headers)

    def require_accept(self, media_type: str) -> None:
        """Refuse a client that does not say that it takes this, as the original does.

        Raises:
            UnsupportedMediaTypeError: the header Accept does not name the media type.
        """
        accepted = header(self.scope, b"accept") or ""
        names = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
        if media_type not in names:
            raise UnsupportedMediaTypeError(
                "accept", detail=f"the header Accept must be {media_type}"
            )

    def require_body(self, media_type: str) -> None:
        """Refuse a body of another kind, or none.

        Raises:
            UnsupportedMediaTypeError: the header Content-Type says something else.
            MalformedError: there is no body.
        """
        said = (header(self.scope, b"content-type") or "").partition(";")[0].strip().lower()
        if said != media_type:
            raise UnsupportedMediaTypeError(
                "content-type", detail=f"the header Content-Type must be {media_type}"
            )
        if not self.body:
            raise MalformedError("a body is needed")


class Endpoints:
    """Everything that is served."""

    def __init__(self, key_transfer: KeyTransfer, *, max_attestations: int) -> None:
        self._access = key_transfer.access
        self._users = key_transfer.users
        self._policies = key_transfer.policies
        self._keys = key_transfer.keys
        self._transfers = key_transfer.transfers
        self._max_attestations = max_attestations
        self._attestations = 0

    async def version(self, exchange: Exchange) -> None:
        """``GET /version``."""
        await exchange.answer(
            200,
            {"name": _SERVICE_NAME, "version": __version__, "gitHash": "", "buildDate": ""},
        )

    async def token(self, exchange: Exchange) -> None:
        """``POST /token``: name and password → token."""
        exchange.require_body(JSON)
        exchange.require_accept(JWT)
        request = parse_body(exchange.body, TokenRequest)
        if not request.username or not request.password:
            raise MalformedError("username and password are needed")
        if max(len(request.username), len(request.password)) > MAX_CREDENTIAL_CHARS:
            raise MalformedError("username or password is too long")
        token = await self._access.issue_token(request.username, request.password)
        await send(exchange.out, 200, token.encode("ascii"), JWT, [_TRANSPORT_SECURITY])

    async def create_user(self, exchange: Exchange) -> None:
        """``POST /users``."""
        await self._require(exchange, USERS, CREATE)
        exchange.require_body(JSON)
        exchange.require_accept(JSON)
        request = parse_body(exchange.body, UserRequest)
        if request.username is None or request.password is None or request.permissions is None:
            raise MalformedError("username, password and permissions are needed")
        user = await self._users.create(request.username, request.password, request.permissions)
        await exchange.answer(201, user_answer(user))

    async def search_users(self, exchange: Exchange) -> None:
        """``GET /users``."""
        await self._require(exchange, USERS, SEARCH)
        exchange.require_accept(JSON)
        username = parse_user_filter(query(exchange.scope))
        if username is None:
            users = await self._users.all()
        else:
            found = await self._users.find(username)
            users = [] if found is None else [found]
        await exchange.answer(200, [user_answer(user) for user in users])

    async def get_user(self, exchange: Exchange) -> None:
        """``GET /users/{id}``."""
        await self._require(exchange, USERS, SEARCH)
        exchange.require_accept(JSON)
        await exchange.answer(200, user_answer(await self._users.get(exchange.id)))

    async def update_user(self, exchange: Exchange) -> None:
        """``PUT /users/{id}``."""
        await self._require(exchange, USERS, UPDATE)
        exchange.require_body(JSON)
        exchange.require_accept(JSON)
        request = parse_body(exchange.body, UserRequest)
        user = await self._users.update(
            exchange.id,
            username=request.username or None,
            password=request.password or None,
            permissions=request.permissions or None,
        )
        await exchange.answer(201, user_answer(user))

    async def delete_user(self, exchange: Exchange) -> None:
        """``DELETE /users/{id}``."""
        await self._require(exchange, USERS, DELETE)
        await self._users.delete(exchange.id)
        await send(exchange.out, 204)

    async def create_policy(self, exchange: Exchange) -> None:
        """``POST /key-transfer-policies``."""
        await self._require(exchange, POLICIES, CREATE)
        exchange.require_body(JSON)
        exchange.require_accept(JSON)
        policy = await self._policies.create(parse_json(exchange.body))
        await exchange.answer(201, policy.document)

    async def search_policies(self, exchange: Exchange) -> None:
        """``GET /key-transfer-policies``."""
        await self._require(exchange, POLICIES, SEARCH)
        exchange.require_accept(JSON)
        if query(exchange.scope):
            raise MalformedError("there is no filter for key transfer policies")
        await exchange.answer(200, [policy.document for policy in await self._policies.all()])

    async def get_policy(self, exchange: Exchange) -> None:
        """``GET /key-transfer-policies/{id}``."""
        await self._require(exchange, POLICIES, SEARCH)
        exchange.require_accept(JSON)
        await exchange.answer(200, (await self._policies.get(exchange.id)).document)

    async def delete_policy(self, exchange: Exchange) -> None:
        """``DELETE /key-transfer-policies/{id}``."""
        await self._require(exchange, POLICIES, DELETE)
        await self._policies.delete(exchange.id, lambda: self._keys.names_policy(exchange.id))
        await send(exchange.out, 204)

    async def create_key(self, exchange: Exchange) -> None:
        """``POST /keys``: make or register a key."""
        await self._require(exchange, KEYS, CREATE)
        exchange.require_body(JSON)
        exchange.require_accept(JSON)
        record = await self._keys.create(parse_key_request(exchange.body))
        await exchange.answer(201, key_answer(record))

    async def search_keys(self, exchange: Exchange) -> None:
        """``GET /keys``."""
        await self._require(exchange, KEYS, SEARCH)
        exchange.require_accept(JSON)
        records = await self._keys.search(parse_key_filter(query(exchange.scope)))
        await exchange.answer(200, [key_answer(record) for record in records])

    async def get_key(self, exchange: Exchange) -> None:
        """``GET /keys/{id}``."""
        await self._require(exchange, KEYS, SEARCH)
        exchange.require_accept(JSON)
        await exchange.answer(200, key_answer(await self._keys.get(exchange.id)))

    async def update_key(self, exchange: Exchange) -> None:
        """``PUT /keys/{id}``: put a key under another policy."""
        await self._require(exchange, KEYS, UPDATE)
        exchange.require_body(JSON)
        exchange.require_accept(JSON)
        record = await self._keys.set_policy(exchange.id, parse_key_update(exchange.body))
        await exchange.answer(201, key_answer(record))

    async def delete_key(self, exchange: Exchange) -> None:
        """``DELETE /keys/{id}``."""
        await self._require(exchange, KEYS, DELETE)
        await self._keys.delete(exchange.id)
        await send(exchange.out, 204)

    async def wrap_key(self, exchange: Exchange) -> None:
        """``POST /keys/{id}``: the key, wrapped to a public key in the body."""
        await self._require(exchange, KEYS, TRANSFER)
        exchange.require_body(PEM)
        exchange.require_accept(JSON)
        wrapped = await self._transfers.to_recipient(exchange.id, exchange.body)
        await exchange.answer(200, wrapped_answer(wrapped))

    async def transfer_key(self, exchange: Exchange) -> None:
        """``POST /keys/{id}/transfer``: the key, wrapped for a TEE that attests."""
        exchange.require_accept(JSON)
        attestation_type = header(exchange.scope, ATTESTATION_TYPE)
        if not exchange.body:
            if attestation_type:
                raise MalformedError("evidence is needed with the header Attestation-Type")
            # With Trust Authority a nonce is a request to its API.
            challenge = await self._bounded(self._transfers.challenge(exchange.id))
            said = (ATTESTATION_TYPE, challenge.attestation_type.encode("ascii"))
            await exchange.answer(200, challenge.nonce.to_json(), [said])
            return
        exchange.require_body(JSON)
        if attestation_type:
            request = parse_background_request(exchange.body, attestation_type)
            wrapped = await self._bounded(self._transfers.with_evidence(exchange.id, request))
        else:
            wrapped = await self._transfers.with_token(
                exchange.id, parse_attestation_token(exchange.body)
            )
        await exchange.answer(200, wrapped_answer(wrapped))

    async def _bounded(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._attestations >= self._max_attestations:
            work.close()
            raise TooManyRequestsError(f"{self._attestations} attestations in work")
        self._attestations += 1
        try:
            return await work
        finally:
            self._attestations -= 1

    async def _require(self, exchange: Exchange, things: str, action: str) -> None:
        await self._access.require(header(exchange.scope, b"authorization"), f"{things}:{action}")


def no_such_path() -> NotFoundError:
    """Make the error of a path that is not served."""
    return NotFoundError("no such path", detail="no such path")
