"""Clients of ``/kbs/v1``: administrators who keep keys, and workloads that get them.

Example, for the administrator::

    with KeyTransferAdmin("https://broker:9443", root_certs=["tls.crt"]) as admin:
        admin.login("admin", password)
        policy = admin.create_policy({"attestation_type": "TDX", "tdx": {"attributes": {…}}})
        key = admin.create_key("AES", length=256, policy_id=policy["id"])

Example, in a confidential guest::

    with KeyTransferGuest("https://broker:9443", root_certs=["tls.crt"]) as guest:
        key = guest.transfer(key_id, attester)
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from keybroker import __version__
from keybroker.client.attesters.interface import Attester
from keybroker.client.closing import Closing
from keybroker.client.errors import (
    ConnectionFailedError,
    InputError,
    ProtocolError,
    UnauthenticatedError,
    broker_error,
)
from keybroker.client.held_key import HeldKeyPair
from keybroker.client.transport import ANSWER_TIMEOUT, CONNECT_TIMEOUT, tls_context
from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee

PREFIX = "/kbs/v1/"

#: Far above any answer here.
MAX_ANSWER_BYTES = 16 << 20

_JSON = "application/json"
_JWT = "application/jwt"
_PEM = "application/x-pem-file"

_SUCCESS = (200, 201, 204)


class _Client(Closing):
    """A connection to one broker; use it as a context manager."""

    def __init__(
        self,
        url: str,
        *,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: root of the broker, such as ``https://broker:9443``.
            root_certs: PEM files of roots to trust beside the usual ones.
            timeout: seconds to wait for an answer.

        Raises:
            InputError: an argument cannot be used.
        """
        if not url.startswith(("https://", "http://")):
            raise InputError("the broker's URL must start with http:// or https://")
        self._token: str | None = None
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            verify=tls_context(root_certs),
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            headers={"user-agent": f"keybroker/{__version__}", "accept-encoding": "identity"},
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        sent = {"accept": accept, **(headers or {})}
        if body is not None:
            sent["content-type"] = content_type
        if self._token is not None:
            sent["authorization"] = f"Bearer {self._token}"
        try:
            answer = self._http.request(
                method, PREFIX + path, content=body, params=query, headers=sent
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionFailedError(f"no answer from the broker: {error}") from None
        if len(answer.content) > MAX_ANSWER_BYTES:
            raise ProtocolError("the answer is too long")
        if answer.status_code not in _SUCCESS:
            raise broker_error(answer.status_code, "", _reason(answer))
        return answer

    def _json(self, method: str, path: str, document: Any = None, **options: Any) -> Any:
        if document is not None:
            options["body"] = json.dumps(document).encode()
        return _parse(self._call(method, path, **options))


class KeyTransferAdmin(_Client):
    """An administrator's client that blocks.

    Every method raises UnauthenticatedError without a valid token or without the permission, and
    otherwise as :mod:`keybroker.client.errors` says.
    """

    def login(self, username: str, password: str) -> str:
        """Get a token, which later calls bring along; return it too.

        Raises:
            UnauthenticatedError: wrong username or password.
            BusyError: the user is locked out.
        """
        self._token = None
        body = json.dumps({"username": username, "password": password}).encode()
        self._token = self._call("POST", "token", body=body, accept=_JWT).text
        return self._token

    def create_key(
        self,
        algorithm: str,
        *,
        length: int | None = None,
        curve: str | None = None,
        policy_id: str | None = None,
        key_data: bytes | None = None,
        kmip_key_id: str | None = None,
    ) -> dict[str, Any]:
        """Make a key, or register one.

        Args:
            algorithm: ``AES``, ``RSA`` or ``EC``.
            length: in bits, for AES and RSA.
            curve: such as ``secp384r1``, for EC.
            policy_id: transfer policy; None: no TEE gets the key.
            key_data: octets of an AES key, or an unencrypted private key in PEM, to register.
            kmip_key_id: id of a key that the KMIP server has already.
        """
        information: dict[str, Any] = {"algorithm": algorithm}
        if length is not None:
            information["key_length"] = length
        if curve is not None:
            information["curve_type"] = curve
        if key_data is not None:
            information["key_data"] = base64.b64encode(key_data).decode("ascii")
        if kmip_key_id is not None:
            information["kmip_key_id"] = kmip_key_id
        document: dict[str, Any] = {"key_information": information}
        if policy_id is not None:
            document["transfer_policy_id"] = policy_id
        return _object(self._json("POST", "keys", document))

    def list_keys(self, **filters: str) -> list[dict[str, Any]]:
        """Return keys; filters are ``algorithm``, ``keyLength``, ``curveType``,
        ``transferPolicyId``.
        """
        return _objects(self._json("GET", "keys", query=filters or None))

    def get_key(self, key_id: str) -> dict[str, Any]:
        """Return the record of a key."""
        return _object(self._json("GET", f"keys/{_id(key_id)}"))

    def set_policy(self, key_id: str, policy_id: str) -> dict[str, Any]:
        """Put a key under another transfer policy."""
        document = {"transfer_policy_id": policy_id}
        return _object(self._json("PUT", f"keys/{_id(key_id)}", document))

    def delete_key(self, key_id: str) -> None:
        """Delete a key, with the key manager too."""
        self._call("DELETE", f"keys/{_id(key_id)}")

    def fetch_key(self, key_id: str, recipient: HeldKeyPair | None = None) -> bytes:
        """Return a key itself; needs ``keys:transfer``.

        Args:
            recipient: to which it is wrapped on the way; None: one that is made for it.
        """
        pair = recipient or HeldKeyPair.generate()
        answer = self._json(
            "POST", f"keys/{_id(key_id)}", body=pair.public_pem(), content_type=_PEM
        )
        return pair.unwrap_for_administrator(_object(answer))

    def create_policy(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Make a transfer policy."""
        return _object(self._json("POST", "key-transfer-policies", dict(policy)))

    def list_policies(self) -> list[dict[str, Any]]:
        """Return all transfer policies."""
        return _objects(self._json("GET", "key-transfer-policies"))

    def get_policy(self, policy_id: str) -> dict[str, Any]:
        """Return a transfer policy."""
        return _object(self._json("GET", f"key-transfer-policies/{_id(policy_id)}"))

    def delete_policy(self, policy_id: str) -> None:
        """Delete a transfer policy that no key names."""
        self._call("DELETE", f"key-transfer-policies/{_id(policy_id)}")

    def create_user(
        self, username: str, password: str, permissions: Sequence[str]
    ) -> dict[str, Any]:
        """Make a user."""
        document = {
            "username": username,
            "password": password,
            "permissions": list(permissions),
        }
        return _object(self._json("POST", "users", document))

    def list_users(self, username: str | None = None) -> list[dict[str, Any]]:
        """Return all users, or the one of a name."""
        query = None if username is None else {"username": username}
        return _objects(self._json("GET", "users", query=query))

    def update_user(self, user_id: str, **changes: Any) -> dict[str, Any]:
        """Change ``username``, ``password`` or ``permissions`` of a user."""
        return _object(self._json("PUT", f"users/{_id(user_id)}", changes))

    def delete_user(self, user_id: str) -> None:
        """Delete a user."""
        self._call("DELETE", f"users/{_id(user_id)}")

    def version(self) -> dict[str, Any]:
        """Say which broker this is."""
        return _object(self._json("GET", "version"))


class KeyTransferGuest(_Client):
    """A workload's client that blocks."""

    def transfer_with_token(self, key_id: str, token: str, held: HeldKeyPair) -> bytes:
        """Return a key for an attestation token (passport mode).

        Args:
            held: the key pair that was attested when the token was issued.

        Raises:
            UnauthenticatedError: the token is not valid, or does not satisfy the policy.
        """
        document = {"attestation_token": token}
        return held.unwrap(_object(self._json("POST", _transfer(key_id), document)))

    def transfer(self, key_id: str, attester: Attester, held: HeldKeyPair | None = None) -> bytes:
        """Return a key for fresh evidence (background mode).

        Args:
            attester: makes the evidence; its TEE must be that of the key's policy.
            held: a key pair of the TEE; None: one that is made for this transfer.

        Raises:
            AttesterError: no evidence could be had.
            UnauthenticatedError: the evidence is refused, or does not satisfy the policy.
        """
        challenge = self._call("POST", _transfer(key_id))
        type_ = challenge.headers.get("attestation-type", "")
        if type_ != attester.tee.value.upper():
            raise UnauthenticatedError(401, "", f"the key is for {type_[:32]}, not for this TEE")
        pair = held or HeldKeyPair.generate()
        nonce = _object(_parse(challenge))
        user_data = pair.user_data(type_)
        evidence = attester.evidence(_report_data(attester.tee, nonce, user_data))
        document = {
            "nonce": nonce,
            "user_data": base64.b64encode(user_data).decode("ascii"),
            **_evidence(attester.tee, evidence),
        }
        headers = {"attestation-type": type_}
        answer = self._json("POST", _transfer(key_id), document, headers=headers)
        return pair.unwrap(_object(answer))


def _report_data(tee: Tee, nonce: Mapping[str, Any], user_data: bytes) -> bytes:
    try:
        val, iat = (base64.b64decode(nonce[name], validate=True) for name in ("val", "iat"))
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise ProtocolError("the broker's nonce is malformed") from None
    digest = hashlib.sha256 if tee is Tee.SGX else hashlib.sha512
    return digest(val + iat + user_data).digest()


def _evidence(tee: Tee, evidence: Any) -> dict[str, str]:
    if tee in (Tee.SGX, Tee.TDX) and isinstance(evidence, Mapping) and "quote" in evidence:
        found = {"quote": str(evidence["quote"])}
        if evidence.get("cc_eventlog"):
            found["event_log"] = str(evidence["cc_eventlog"])
        return found
    return {"quote": base64.b64encode(json.dumps(evidence).encode()).decode("ascii")}


def _transfer(key_id: str) -> str:
    return f"keys/{_id(key_id)}/transfer"


def _id(text: str) -> str:
    if not text or not all(character.isalnum() or character == "-" for character in text):
        raise InputError("an id is a UUID")
    return text


def _parse(answer: httpx.Response) -> Any:
    try:
        return parse_json(answer.content)
    except MalformedError as error:
        raise ProtocolError(f"the answer is malformed: {error.detail}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("the answer is not an object")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ProtocolError("the answer is not a list")
    return [_object(item) for item in value]


def _reason(answer: httpx.Response) -> str:
    try:
        document = parse_json(answer.content)
        text = document.get("error", "") if isinstance(document, dict) else ""
    except MalformedError:
        text = answer.text.strip()
    words = str(text)[:2000].removeprefix(f"{answer.status_code}: ")
    return "".join(character if character.isprintable() else " " for character in words)
