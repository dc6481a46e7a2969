"""The steps of the API one by one, in any order, as bytes on the wire."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from tests.conftest import RunningBroker

from keybroker.softtee.sev import SoftwareLaunch, SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform

MEMORY = [b"firmware" * 512, b"kernel" * 700, b"initrd"]
SEV_DIGEST = hashlib.sha256(b"".join(MEMORY)).hexdigest()
SNP_MEASUREMENT = bytes(range(48))
PASSPHRASE = "correct horse battery stäple"
NO_DEBUG = 0x3B


def sev_policy(bits: int = NO_DEBUG, major: int = 0, minor: int = 0) -> str:
    return json.dumps({"flags": {"bits": bits}, "minfw": {"major": major, "minor": minor}})


def sev_workload(workload_id: str = "sev-1", **changes: Any) -> dict[str, Any]:
    return {
        "workload_id": workload_id,
        "launch_measurement": SEV_DIGEST,
        "tee_config": sev_policy(),
        "passphrase": PASSPHRASE,
    } | changes


def snp_workload(workload_id: str = "snp-1", **changes: Any) -> dict[str, Any]:
    return {
        "workload_id": workload_id,
        "launch_measurement": SNP_MEASUREMENT.hex(),
        "tee_config": "",
        "passphrase": PASSPHRASE,
    } | changes


@dataclass
class Api:
    """One client of a broker; keeps no cookie by itself."""

    broker: RunningBroker
    prefix: str = "/workload/kbs/v0"
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url or self.broker.url, timeout=30)

    def post(self, path: str, body: Any, cookie: str | None = None) -> httpx.Response:
        return self._send("POST", path, cookie, json=body)

    def get(self, path: str, cookie: str | None = None) -> httpx.Response:
        return self._send("GET", path, cookie)

    def delete(self, path: str) -> httpx.Response:
        return self._send("DELETE", path, None)

    def _send(self, method: str, path: str, cookie: str | None, **options: Any) -> httpx.Response:
        headers = dict(self.headers)
        if cookie is not None:
            headers["cookie"] = f"session_id={cookie}"
        answer = self.http.request(method, self.prefix + path, headers=headers, **options)
        self.http.cookies.clear()
        return answer

    def register(self, workload: dict[str, Any]) -> None:
        answer = self.post("/register_workload", workload)
        assert (answer.status_code, answer.content) == (200, b""), answer.text

    def auth(self, tee: str, parameters: Any, *, nested: bool = False) -> httpx.Response:
        extra = parameters if nested else json.dumps(parameters)
        return self.post("/auth", {"version": "0.0.0", "tee": tee, "extra-params": extra})


def cookie_of(answer: httpx.Response) -> str:
    """Find the session id as the host of libkrun does: cut at semicolons, then at equals signs."""
    for part in answer.headers["set-cookie"].split(";"):
        pieces = part.split("=")
        if len(pieces) == 2 and "session_id" in pieces[0]:
            return str(pieces[1])
    raise AssertionError("no session_id cookie")


@dataclass
class SevSession:
    """An SEV launch that was begun, and its cookie."""

    api: Api
    cookie: str
    launch: SoftwareLaunch
    start: dict[str, Any]
    nonce: str
    nested: bool = False
    measurement: dict[str, Any] | None = None

    @classmethod
    def begin(
        cls,
        api: Api,
        platform: SoftwareSevPlatform,
        workload_id: str = "sev-1",
        *,
        nested: bool = False,
        memory: list[bytes] = MEMORY,
    ) -> "SevSession":
        answer = api.auth("sev", sev_parameters(platform, workload_id), nested=nested)
        assert answer.status_code == 200, answer.text
        challenge = answer.json()
        extra = challenge["extra-params"]
        extra = extra if nested else json.loads(extra)
        assert extra["id"] == challenge["nonce"]
        launch = platform.launch_start(extra["start"])
        for part in memory:
            launch.update_data(part)
        nonce = challenge["nonce"]
        return cls(api, cookie_of(answer), launch, extra["start"], nonce, nested)

    def attest(
        self, measurement: dict[str, Any] | None = None, cookie: str | None = None
    ) -> httpx.Response:
        if measurement is None:
            self.measurement = measurement = self.measurement or self.launch.measure()
        evidence = measurement if self.nested else json.dumps(measurement)
        body = {"tee-pubkey": {"alg": "", "k-mod": "", "k-exp": ""}, "tee-evidence": evidence}
        return self.api.post("/attest", body, cookie or self.cookie)

    def key(self, key_id: str = "sev-1") -> httpx.Response:
        return self.api.get(f"/key/{key_id}", self.cookie)


def sev_parameters(platform: SoftwareSevPlatform, workload_id: str) -> dict[str, Any]:
    return {
        "workload_id": workload_id,
        "build": platform.build_json(),
        "chain": platform.chain.as_json(),
    }


def _number(value: int) -> str:
    return base64.b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()


@dataclass
class SnpSession:
    """A challenged SNP guest with a key of its own."""

    api: Api
    platform: SoftwareSnpPlatform
    cookie: str
    nonce: str
    key_pair: rsa.RSAPrivateKey

    @classmethod
    def begin(
        cls,
        api: Api,
        platform: SoftwareSnpPlatform,
        workload_id: str = "snp-1",
        *,
        nested: bool = False,
        bits: int = 2048,
    ) -> "SnpSession":
        answer = api.auth("snp", {"workload_id": workload_id}, nested=nested)
        assert answer.status_code == 200, answer.text
        challenge = answer.json()
        assert challenge["extra-params"] == ""
        key = rsa.generate_private_key(65537, bits)
        return cls(api, platform, cookie_of(answer), challenge["nonce"], key)

    def public_key(self, alg: str = "RSA") -> dict[str, str]:
        numbers = self.key_pair.public_key().public_numbers()
        return {"alg": alg, "k-mod": _number(numbers.n), "k-exp": _number(numbers.e)}

    def bound(self, key: dict[str, str] | None = None) -> bytes:
        key = key or self.public_key()
        return hashlib.sha512((self.nonce + key["k-mod"] + key["k-exp"]).encode()).digest()

    def evidence(self, bound: bytes | None = None, **report: Any) -> dict[str, Any]:
        report.setdefault("measurement", SNP_MEASUREMENT)
        bound = self.bound() if bound is None else bound
        raw = self.platform.report(bound, **report)
        names = {k: v for k, v in report.items() if k in ("flaw", "signing", "chip_id", "tcb")}
        table = self.platform.evidence(bound, **names)["cert_chain"]
        return {
            "gen": self.platform.generation.lower(),
            "report": raw.hex().upper(),
            "cert_chain": json.dumps(table),
        }

    def attest(
        self,
        evidence: dict[str, Any] | None = None,
        *,
        key: dict[str, str] | None = None,
        cookie: str | None = None,
        nested: bool = False,
    ) -> httpx.Response:
        evidence = self.evidence() if evidence is None else evidence
        body = {
            "tee-pubkey": key or self.public_key(),
            "tee-evidence": evidence if nested else json.dumps(evidence),
        }
        return self.api.post("/attest", body, cookie or self.cookie)

    def key(self, key_id: str = "snp-1") -> httpx.Response:
        return self.api.get(f"/key/{key_id}", self.cookie)

    def decrypt(
        self, answer: httpx.Response, scheme: padding.AsymmetricPadding | None = None
    ) -> str:
        assert answer.status_code == 200, answer.text
        # as guests do: without the first and the last character, the quotes
        sealed = bytes.fromhex(answer.text[1:-1])
        return self.key_pair.decrypt(sealed, scheme or padding.PKCS1v15()).decode()
