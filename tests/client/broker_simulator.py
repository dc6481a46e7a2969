"""The protocol's other side, small, over real HTTP, able to misbehave in one exact way.

It checks what a guest sends with code of its own and seals secrets with joserfc, so that client
and broker cannot share a mistake.
"""

import base64
import hashlib
import json
import secrets
import threading
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

ERROR = "https://github.com/confidential-containers/kbs/errors/"
ADMIN_TOKEN = "administrator.of.all"


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def problem(status: int, kind: str, detail: str = "told by the simulator") -> Reply:
    return Reply(status, json.dumps({"type": ERROR + kind, "detail": detail}).encode())


def document(value: Any, **headers: str) -> Reply:
    return Reply(200, json.dumps(value).encode(), headers)


def seal(jwk: dict[str, str], plaintext: bytes) -> bytes:
    key = RSAKey.import_key(jwk) if jwk["kty"] == "RSA" else ECKey.import_key(jwk)
    header = {"alg": jwk["alg"], "enc": "A256GCM"}
    compact = jwe.encrypt_compact(header, plaintext, key, algorithms=[*header.values()])
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    return json.dumps(dict(zip(names, compact.split("."), strict=True))).encode()


class BrokerSimulator:
    """Holds sessions, secrets and policies; ``overrides`` replaces what a path answers, once."""

    def __init__(self) -> None:
        self.hash_name: str | None = "sha384"
        self.sessions: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, str]] = {}
        self.resources: dict[str, bytes] = {"default/key/1": b"first secret"}
        self.denied: set[str] = set()
        self.policies: dict[str, str] = {}
        self.resource_policy = "package policy"
        self.reference_values: dict[str, Any] = {}
        self.overrides: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, str]] = []
        self.attestations: list[dict[str, Any]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def expire_sessions(self) -> None:
        self.sessions.clear()

    def count(self, path: str) -> int:
        return sum(1 for _, requested in self.requests if requested == path)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        simulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = simulator.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        return Handler

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        path = target.removeprefix("/kbs/v0/").partition("?")[0]
        self.requests.append((method, path))
        if self.overrides.get(path):
            return self.overrides[path].pop(0)
        if method == "POST" and path == "auth":
            return self._auth(json.loads(body))
        if method == "POST" and path == "attest":
            return self._attest(self._session(headers), json.loads(body))
        if method == "GET" and path.startswith("resource/"):
            return self._release(path.removeprefix("resource/"), headers)
        if headers.get("Authorization") != f"Bearer {ADMIN_TOKEN}":
            return problem(401, "AdminAuth")
        return self._administer(method, path, target.partition("?")[2], body)

    def _auth(self, request: dict[str, Any]) -> Reply:
        if request["version"] != "0.4.0":
            return problem(400, "ProtocolVersionMismatch")
        assert "sha384" in request["extra-params"]["supported-hash-algorithms"]
        session = secrets.token_hex(8)
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        self.sessions[session] = {"nonce": nonce, "tee": request["tee"]}
        extra = {"selected-hash-algorithm": self.hash_name} if self.hash_name else ""
        cookie = f"kbs-session-id={session}; Path=/kbs; HttpOnly"
        return document({"nonce": nonce, "extra-params": extra}, Set_Cookie=cookie)

    def _attest(self, session: dict[str, Any] | None, attestation: dict[str, Any]) -> Reply:
        self.attestations.append(attestation)
        if session is None or attestation["runtime-data"]["nonce"] != session["nonce"]:
            return problem(401, "AttestationError")
        evidence = attestation["tee-evidence"]
        runtime = attestation["runtime-data"]
        if evidence["additional_evidence"]:
            for device in json.loads(evidence["additional_evidence"]).values():
                if device["report_data"] != self._digest(runtime):
                    return problem(401, "AttestationError")
        bound = {**runtime, "additional-evidence": evidence["additional_evidence"]}
        if evidence["primary_evidence"]["report_data"] != self._digest(bound):
            return problem(401, "AttestationError")
        token = f"{secrets.token_hex(4)}.{secrets.token_hex(4)}.sig"
        self.tokens[token] = session["key"] = runtime["tee-pubkey"]
        return document({"token": token})

    def _digest(self, structured: dict[str, Any]) -> str:
        # ASCII member names only, so sorting by code point is canonical.
        text = json.dumps(structured, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.new(self.hash_name or "sha384", text.encode()).digest()
        return base64.b64encode(digest).decode()

    def _session(self, headers: dict[str, str]) -> dict[str, Any] | None:
        cookies = SimpleCookie(headers.get("Cookie", ""))
        morsel = cookies.get("kbs-session-id")
        return self.sessions.get(morsel.value) if morsel else None

    def _release(self, path: str, headers: dict[str, str]) -> Reply:
        session = self._session(headers)
        key = session.get("key") if session else None
        if key is None:
            key = self.tokens.get(headers.get("Authorization", "").removeprefix("Bearer "))
        if key is None:
            return problem(401, "TokenNotFound")
        if path in self.denied:
            return problem(403, "PolicyDeny")
        if path not in self.resources:
            return problem(404, "InvalidRequestPath")
        return Reply(200, seal(key, self.resources[path]))

    def _administer(self, method: str, path: str, query: str, body: bytes) -> Reply:
        room, _, rest = path.partition("/")
        match method, room, rest:
            case "GET", "resource", "":
                prefix = query.removeprefix("repository=") + "/" if query else ""
                return document(
                    {"resources": [name for name in self.resources if name.startswith(prefix)]}
                )
            case "POST", "resource", name:
                self.resources[name] = body
            case "DELETE", "resource", name:
                if self.resources.pop(name, None) is None:
                    return problem(404, "InvalidRequestPath")
            case "POST", "resource-policy", "":
                self.resource_policy = _policy(body)
            case "GET", "resource-policy", "resource-policy":
                return Reply(200, self.resource_policy.encode())
            case "POST", "attestation-policy", "":
                self.policies[json.loads(body)["policy_id"]] = _policy(body)
            case "GET", "attestation-policy", "":
                return document(sorted(self.policies))
            case "GET", "attestation-policy", name if name in self.policies:
                return Reply(200, self.policies[name].encode())
            case "POST", "reference-value", "":
                message = json.loads(body)
                assert (message["version"], message["type"]) == ("0.1.0", "sample")
                self.reference_values |= json.loads(base64.b64decode(message["payload"]))
            case "GET", "reference-value", name if name in self.reference_values:
                return document(self.reference_values[name])
            case "POST", "explain", "":
                return document(self._explain(json.loads(body)))
            case _:
                return problem(404, "InvalidRequestPath")
        return Reply()

    def _explain(self, question: dict[str, Any]) -> dict[str, Any]:
        assert question["token"] in self.tokens
        allowed = question["path"] not in self.denied
        rule = {
            "rule": "policy/allow",
            "line": 6,
            "head": "allow := true",
            "expression": 'status == "affirming"',
            "expression_line": 7,
            "claim": "submods.cpu0.ear.status",
            "value": "warning",
        }
        appraised = {
            "rule": "executables",
            "line": 40,
            "expression": "measurement in query_reference_value(name)",
            "claim": "input.snp.measurement",
            "value": "aa",
            "reference": "snp_measurement",
            "reference_value": ["bb"],
        }
        return {
            "allowed": allowed,
            "appraisal": {"cpu0": {"status": "warning", "rules": [appraised]}},
            "rules": [] if allowed else [rule],
        }


def _policy(body: bytes) -> str:
    encoded = json.loads(body)["policy"]
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
