"""A client that does only what the wire format says, without any code of the broker."""

import base64
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

JSON = {"accept": "application/json"}

USER = "admin@kbs"
PASSWORD = "a long password"


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


@dataclass
class HeldKey:
    """The key pair of an attester."""

    key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def generate(cls, bits: int = 3072) -> "HeldKey":
        return cls(rsa.generate_private_key(65537, bits))

    def user_data(self, type_: str) -> bytes:
        """The public key as evidence binds it."""
        numbers = self.key.public_key().public_numbers()
        order = "little" if type_ == "SGX" else "big"
        modulus = numbers.n.to_bytes(self.key.key_size // 8, order)
        return numbers.e.to_bytes(4, "little") + modulus

    def pem(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def unwrap(self, answer: dict[str, str], digest: Any = None) -> bytes:
        """Open the answer to a transfer."""
        digest = digest or hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(digest), digest, None)
        wrapped = base64.b64decode(answer["wrapped_key"])
        if "wrapped_swk" not in answer:
            return self.key.decrypt(wrapped, oaep)
        swk = self.key.decrypt(base64.b64decode(answer["wrapped_swk"]), oaep)
        assert len(swk) == 32
        iv_length, tag_length, length = struct.unpack("<III", wrapped[:12])
        assert (iv_length, tag_length) == (12, 16)
        iv, ciphertext = wrapped[12:24], wrapped[24:]
        assert len(ciphertext) == length
        return AESGCM(swk).decrypt(iv, ciphertext, None)


def report_data(nonce: dict[str, str], user_data: bytes, type_: str) -> bytes:
    """What a quote must hold."""
    bound = base64.b64decode(nonce["val"]) + base64.b64decode(nonce["iat"]) + user_data
    digest = hashlib.sha256 if type_ == "SGX" else hashlib.sha512
    return digest(bound).digest().ljust(64, b"\0")


class Admin:
    """An administrator of ``/kbs/v1``."""

    def __init__(self, http: httpx.Client, token: str | None = None) -> None:
        self.http = http
        self.token = token
        self.broker: Any = None
        self.id = ""

    def login(self, username: str = USER, password: str = PASSWORD) -> httpx.Response:
        answer = self.http.post(
            "/kbs/v1/token",
            json={"username": username, "password": password},
            headers={"accept": "application/jwt"},
        )
        if answer.status_code == 200:
            self.token = answer.text
        return answer

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = dict(JSON) | options.pop("headers", {})
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        return self.http.request(method, f"/kbs/v1/{path}", headers=headers, **options)

    def policy(self, document: dict[str, Any]) -> str:
        answer = self.call("POST", "key-transfer-policies", json=document)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def key(self, policy_id: str | None = None, **information: Any) -> dict[str, Any]:
        body: dict[str, Any] = {
            "key_information": information or {"algorithm": "AES", "key_length": 256}
        }
        if policy_id is not None:
            body["transfer_policy_id"] = policy_id
        answer = self.call("POST", "keys", json=body)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def wrap(self, key_id: str, held: HeldKey) -> bytes:
        answer = self.call(
            "POST",
            f"keys/{key_id}",
            content=held.pem(),
            headers={"content-type": "application/x-pem-file"},
        )
        assert answer.status_code == 200, answer.text
        return held.unwrap(answer.json(), hashes.SHA384())


def transfer(http: httpx.Client, key_id: str, **options: Any) -> httpx.Response:
    headers = dict(JSON) | options.pop("headers", {})
    return http.post(f"/kbs/v1/keys/{key_id}/transfer", headers=headers, **options)


def background(
    http: httpx.Client, key_id: str, held: HeldKey, quote: Any, **over: Any
) -> httpx.Response:
    """Both requests of background mode; ``quote`` makes evidence of report data and kind."""
    challenge = transfer(http, key_id)
    assert challenge.status_code == 200, challenge.text
    type_ = challenge.headers["attestation-type"]
    nonce = challenge.json()
    user_data = held.user_data(type_)
    body = {
        "quote": b64(quote(report_data(nonce, user_data, type_))),
        "nonce": nonce,
        "user_data": b64(user_data),
        **over,
    }
    return transfer(http, key_id, json=body, headers={"attestation-type": type_})
