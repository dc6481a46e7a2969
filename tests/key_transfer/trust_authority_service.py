"""A service that speaks Trust Authority's API over HTTPS: keys, nonces and appraisal.

What it appraises it does not verify: it issues tokens with the claims that a test tells it, bound
to the nonce and the user data that it is sent, and signs them properly.
"""

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from tests.key_transfer.key_servers import Authority
from tests.key_transfer.wire import b64

API_KEY = "YW4gQVBJIGtleSBvZiBhIHRlc3Q="
ISSUER = "Intel Trust Authority"


def _b64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


@dataclass
class Signer:
    """A key that signs tokens."""

    kid: str
    alg: str = "PS384"
    key: rsa.RSAPrivateKey = field(
        default_factory=lambda: rsa.generate_private_key(65537, 3072), repr=False
    )

    def jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        return {
            "kty": "RSA",
            "use": "sig",
            "alg": self.alg,
            "kid": self.kid,
            "n": _b64url(numbers.n.to_bytes(self.key.key_size // 8, "big")),
            "e": _b64url(numbers.e.to_bytes(3, "big")),
        }

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        head = {"alg": self.alg, "kid": self.kid, "typ": "JWT", **header}
        signed = ".".join(
            _b64url(json.dumps(part, separators=(",", ":")).encode()) for part in (head, claims)
        )
        if self.alg == "PS384":
            scheme: Any = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
            digest: Any = hashes.SHA384()
        else:
            scheme, digest = padding.PKCS1v15(), hashes.SHA256()
        return f"{signed}.{_b64url(self.key.sign(signed.encode(), scheme, digest))}"


def token_claims(
    type_: str, own: dict[str, Any], *, version: str = "v2", **more: Any
) -> dict[str, Any]:
    """Claims of a token, as version 1 or 2 arranges them."""
    now = int(time.time())
    common = {"iss": ISSUER, "iat": now, "nbf": now, "exp": now + 300, "ver": version, **more}
    own = {"attester_type": type_, "attester_tcb_status": "UpToDate", **own}
    if version == "v2":
        return {type_.lower(): own, **common}
    return {**own, **common}


class TrustAuthorityService:
    """The service. A context manager; listens while it is entered.

    Attributes:
        signer: signs tokens; its key is published.
        claims: makes the claims of a token from the kind of TEE and the quote.
        status: what the appraisal answers instead, where it is not 200.
        requests: bodies that were sent to the appraisal.
    """

    def __init__(self, directory: Path, version: str = "v2", alg: str = "PS384") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.version = version
        self.signer = Signer(
            "3fd751f2e0d0f52846c0ecd4972c6e99dfc642051cd339dd9b04381af8c0ddb8", alg
        )
        self.claims: Callable[[str, bytes], dict[str, Any]] = lambda type_, quote: {}
        self.common: dict[str, Any] = {}
        self.status = 200
        self.requests: list[dict[str, Any]] = []
        self.issued: set[str] = set()
        authority = Authority("Test Portal Root CA")
        self.trusted_ca = directory / "trustedca"
        self.trusted_ca.mkdir()
        (self.trusted_ca / "ca.pem").write_bytes(authority.pem)
        certificate, key = authority.issue("localhost", directory, "portal")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service._get(self)

            def do_POST(self) -> None:
                service._post(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_port}"

    def table(self, *, api: bool = True, **over: Any) -> dict[str, Any]:
        """The ``trust_authority`` table for it."""
        table = {
            "portal_url": self.url,
            "api_url": self.url,
            "api_version": self.version,
            "trusted_ca_certs": str(self.trusted_ca),
            **over,
        }
        return {**table, "api_key": API_KEY} if api else table

    def token(self, type_: str, own: dict[str, Any], **more: Any) -> str:
        """A token of its own."""
        return self.signer.sign(token_claims(type_, own, version=self.version, **more))

    def __enter__(self) -> "TrustAuthorityService":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/certs":
            _answer(handler, 200, {"keys": [self.signer.jwk()]})
        elif handler.path == f"/appraisal/{self.version}/nonce":
            if handler.headers["x-api-key"] != API_KEY:
                _answer(handler, 401, {"error": "no"})
                return
            value = b64(os.urandom(64))
            self.issued.add(value)
            iat = time.strftime("%Y-%m-%d %H:%M:%S.123456 +0000 UTC", time.gmtime()).encode()
            nonce = {"val": value, "iat": b64(iat), "signature": b64(os.urandom(384))}
            _answer(handler, 200, nonce)
        else:
            _answer(handler, 404, {})

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.requests.append(body)
        right = handler.path == f"/appraisal/{self.version}/attest"
        if not right or handler.headers["x-api-key"] != API_KEY:
            _answer(handler, 404 if not right else 401, {"error": "no"})
            return
        if self.status != 200:
            _answer(handler, self.status, {"error": "told to"})
            return
        type_, own = ("SGX", body["sgx"]) if "sgx" in body else ("TDX", body.get("tdx", body))
        if self.version == "v1":
            type_ = "SGX" if base64.b64decode(own["quote"]).startswith(b"sgx") else "TDX"
        if own["verifier_nonce"]["val"] not in self.issued:
            _answer(handler, 400, {"error": "nonce"})
            return
        claims = {
            "attester_held_data": own["runtime_data"],
            "verifier_nonce": own["verifier_nonce"],
            **self.claims(type_, base64.b64decode(own["quote"])),
        }
        _answer(handler, 200, {"token": self.token(type_, claims, **self.common)})


def _answer(handler: BaseHTTPRequestHandler, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
