"""What an administrator may ask of a broker, as operations without I/O."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote

from keybroker.client.errors import InputError, ProtocolError
from keybroker.client.exchange import (
    BYTES_TYPE,
    JSON_TYPE,
    Answer,
    Call,
    Operation,
    call,
    parse_answer,
    parse_text,
)
from keybroker.client.explanation import Explanation, read_explanation
from keybroker.client.resource_uri import check_segment, parse_resource_uri

#: Name under which brokers keep the policy that decides on releases.
_RESOURCE_POLICY_ID = "resource-policy"

#: Version and type of a message that the RVPS takes without a signature.
_MESSAGE_VERSION = "0.1.0"
_SAMPLE_EXTRACTOR = "sample"


@dataclass(frozen=True)
class Administration:
    """The operations of one administrator.

    Attributes:
        token: goes into ``Authorization: Bearer``; None asks anonymously.
    """

    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise InputError("the administrator token has characters that no token has")

    def set_resource(self, path: str, secret: bytes) -> Operation[None]:
        uri = parse_resource_uri(path)
        yield from self._call("POST", uri.path, secret, BYTES_TYPE)

    def delete_resource(self, path: str) -> Operation[None]:
        yield from self._call("DELETE", parse_resource_uri(path).path)

    def list_resources(self, repository: str | None = None) -> Operation[list[str]]:
        query = {} if repository is None else {"repository": repository}
        answer = yield from self._call("GET", "resource", query=query)
        document = parse_answer(answer, "the list of resources")
        return _texts(_member(document, "resources"), "the list of resources")

    def set_resource_policy(self, policy: str) -> Operation[None]:
        body = {"policy": _encode_policy(policy)}
        yield from self._call("POST", "resource-policy", _json(body), JSON_TYPE)

    def get_resource_policy(self) -> Operation[str]:
        answer = yield from self._call("GET", f"resource-policy/{_RESOURCE_POLICY_ID}")
        return parse_text(answer, "the policy")

    def set_attestation_policy(
        self, policy_id: str, policy: str, policy_type: str
    ) -> Operation[None]:
        body = {"type": policy_type, "policy_id": policy_id, "policy": _encode_policy(policy)}
        yield from self._call("POST", "attestation-policy", _json(body), JSON_TYPE)

    def list_attestation_policies(self) -> Operation[list[str]]:
        answer = yield from self._call("GET", "attestation-policy")
        document = parse_answer(answer, "the list of policies")
        return _texts(document, "the list of policies")

    def get_attestation_policy(self, policy_id: str) -> Operation[str]:
        check_segment(policy_id)
        answer = yield from self._call("GET", f"attestation-policy/{quote(policy_id, safe='')}")
        return parse_text(answer, "the policy")

    def register_reference_value(self, message: Mapping[str, Any]) -> Operation[None]:
        yield from self._call("POST", "reference-value", _json(message), JSON_TYPE)

    def set_sample_reference_value(self, name: str, value: Any) -> Operation[None]:
        payload = base64.b64encode(_json({name: value})).decode()
        yield from self.register_reference_value(
            {"version": _MESSAGE_VERSION, "type": _SAMPLE_EXTRACTOR, "payload": payload}
        )

    def get_reference_value(self, name: str) -> Operation[Any]:
        for segment in name.split("/"):
            check_segment(segment)
        answer = yield from self._call("GET", f"reference-value/{quote(name)}")
        return parse_answer(answer, "the reference value")

    def explain(self, path: str, token: str) -> Operation[Explanation]:
        uri = parse_resource_uri(path)
        body = {"plugin": uri.plugin, "path": str(uri), "token": token}
        answer = yield from self._call("POST", "explain", _json(body), JSON_TYPE)
        document = parse_answer(answer, "the explanation")
        if not isinstance(document, dict):
            _refuse("the explanation")
        return read_explanation(document)

    def _call(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        content_type: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Operation[Answer]:
        request = Call(method, path, content, content_type, self.token, query or {})
        return (yield from call(request))


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise InputError(f"not a JSON value: {error}") from None


def _encode_policy(policy: str) -> str:
    try:
        return base64.urlsafe_b64encode(policy.encode()).rstrip(b"=").decode()
    except UnicodeEncodeError:
        raise InputError("the policy must be UTF-8 text") from None


def _member(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        _refuse(what)
    if not all(isinstance(item, str) for item in value):
        _refuse(what)
    return list(value)


def _refuse(what: str) -> NoReturn:
    raise ProtocolError(f"{what} does not have the shape of one")
