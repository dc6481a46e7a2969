"""What a guest does, as scripts for a connection: one class for each kind of operation."""

import base64
import json
import os
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from benchmarks.connection import Script, UnexpectedAnswerError, require_ok
from keybroker.client import KeyKind, TeeKeyPair
from keybroker.client.attesters import Attester, SampleAttester
from keybroker.client.handshake import (
    encode_attestation,
    encode_request,
    parse_challenge,
    parse_token_answer,
    primary_report_data,
)
from keybroker.model.rcar import SESSION_COOKIE, CompositeEvidence, RuntimeData
from keybroker.model.tee import Tee
from keybroker.softtee.intel_eventlog import SoftwareEventLog
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform

#: What the resource scenarios ask for.
RESOURCE_PATH = "bench/key/1"

#: Files of a platform folder: a software TDX machine, its root, and collateral for it.
INTEL_MACHINE = "intel-machine.json"
INTEL_ROOT = "intel-root.pem"
INTEL_COLLATERAL = "intel-collateral.json"

#: Of the one image that all guests run but for the scenario of unseen ones.
_MEASUREMENT = bytes(range(48))

_COOKIE_START = f"set-cookie: {SESSION_COOKIE}=".encode()


class Operation(StrEnum):
    """What one operation is."""

    AUTH = "auth"
    HANDSHAKE = "handshake"
    COOKIE = "resource by cookie"
    BEARER = "resource by bearer token"


@dataclass(frozen=True)
class Scenario:
    """One line of the table.

    Attributes:
        tee: ``sample``, ``snp`` or ``tdx``.
        unseen_image: each operation is of a guest with another launch measurement.
        maximum_ratio: target: CPU time at most this many times the bare cryptography's.
        maximum_cpu: target: CPU time in seconds.
    """

    operation: Operation
    tee: Tee = Tee.SAMPLE
    key: KeyKind = KeyKind.P256
    unseen_image: bool = False
    maximum_ratio: float | None = None
    maximum_cpu: float | None = None

    @property
    def name(self) -> str:
        """How the table calls it."""
        match self.operation:
            case Operation.AUTH:
                return "auth"
            case Operation.HANDSHAKE:
                image = ", unseen image" if self.unseen_image else ""
                return f"handshake {self.tee.value}{image}"
        return f"{self.operation.value}, {self.key.value}"


SCENARIOS = (
    Scenario(Operation.AUTH, maximum_cpu=100e-6),
    Scenario(Operation.HANDSHAKE, Tee.SAMPLE),
    Scenario(Operation.HANDSHAKE, Tee.SNP, maximum_ratio=3.0),
    Scenario(Operation.HANDSHAKE, Tee.SNP, unseen_image=True),
    Scenario(Operation.HANDSHAKE, Tee.TDX, maximum_ratio=3.0),
    Scenario(Operation.HANDSHAKE, Tee.TDX, unseen_image=True),
    Scenario(Operation.COOKIE, key=KeyKind.P256),
    Scenario(Operation.COOKIE, key=KeyKind.RSA2048),
    Scenario(Operation.BEARER, key=KeyKind.P256, maximum_ratio=4.0),
    Scenario(Operation.BEARER, key=KeyKind.RSA2048, maximum_ratio=4.0),
)


class _SnpAttester:
    """Guests of one image on a chip of its own; every report is of another guest.

    The certificates are encoded only once.
    """

    tee = Tee.SNP

    def __init__(self, platform: SoftwareSnpPlatform, *, unseen_image: bool) -> None:
        self._platform = platform
        self._unseen_image = unseen_image
        self._chip_id = os.urandom(len(platform.hardware_id)).ljust(64, b"\0")
        chain = platform.evidence(b"", chip_id=self._chip_id)["cert_chain"]
        self._chain = msgspec.Raw(msgspec.json.encode(chain))

    def evidence(self, report_data: bytes) -> Any:
        evidence = self._platform.evidence(
            report_data,
            with_table=False,
            chip_id=self._chip_id,
            report_id=os.urandom(32),
            measurement=os.urandom(48) if self._unseen_image else _MEASUREMENT,
        )
        return {**evidence, "cert_chain": self._chain}


class _TdxAttester:
    """TDs of one image on one machine; every quote binds another challenge."""

    tee = Tee.TDX

    def __init__(self, platform: SoftwareIntelPlatform, *, unseen_image: bool) -> None:
        self._platform = platform
        self._unseen_image = unseen_image
        log = td_boot()
        self._registers = log.registers
        self._log = base64.b64encode(log.raw).decode("ascii")

    def evidence(self, report_data: bytes) -> Any:
        image = os.urandom(48) if self._unseen_image else _MEASUREMENT
        quote = self._platform.td_quote(report_data=report_data, rtmrs=self._registers, mr_td=image)
        return {"quote": base64.b64encode(quote).decode("ascii"), "cc_eventlog": self._log}


def td_boot() -> SoftwareEventLog:
    """Return a boot of two dozen events, as the smaller ones of real firmware have."""
    log = SoftwareEventLog.linux()
    for number in range(20):
        log.add(1, 0x80000001, bytes(16) + struct.pack("<QQ", 0, 64) + bytes((number,)) * 64)
    return log


def make_script(scenario: Scenario, url: str, platform_folder: Path | None) -> Script:
    """Make a new guest that plays a scenario."""
    attester: Attester = SampleAttester()
    if scenario.tee is Tee.SNP:
        if platform_folder is None:
            raise ValueError("the SNP scenario needs a software platform")
        attester = _SnpAttester(
            SoftwareSnpPlatform.load(platform_folder), unseen_image=scenario.unseen_image
        )
    if scenario.tee is Tee.TDX:
        if platform_folder is None:
            raise ValueError("the TDX scenario needs a software machine")
        attester = _TdxAttester(
            SoftwareIntelPlatform.load(platform_folder / INTEL_MACHINE),
            unseen_image=scenario.unseen_image,
        )
    if scenario.operation is Operation.AUTH:
        return _Auth(url, attester)
    handshake = _Handshake(url, attester, TeeKeyPair.generate(scenario.key))
    if scenario.operation is Operation.HANDSHAKE:
        return handshake
    return _Resource(handshake, by_cookie=scenario.operation is Operation.COOKIE)


class _Auth:
    def __init__(self, url: str, attester: Attester) -> None:
        host = urlsplit(url).netloc
        self._request = post(host, "auth", encode_request(attester.tee))

    def start(self) -> bytes:
        return self._request

    def advance(self, head: bytes, body: bytes) -> None:
        require_ok(head, body)


class _Handshake:
    """``auth`` and ``attest``."""

    def __init__(self, url: str, attester: Attester, tee_key: TeeKeyPair) -> None:
        self.host = urlsplit(url).netloc
        self.cookie = b""
        self.token = ""
        self._attester = attester
        self.tee_key = tee_key
        self._public_key = dict(tee_key.public_jwk())
        self._auth = post(self.host, "auth", encode_request(attester.tee))
        self._challenged = False

    def start(self) -> bytes:
        self._challenged = False
        return self._auth

    def advance(self, head: bytes, body: bytes) -> bytes | None:
        require_ok(head, body)
        if self._challenged:
            self.token = parse_token_answer(body)
            return None
        self._challenged = True
        self.cookie = session_cookie(head)
        terms = parse_challenge(body)
        runtime_data = RuntimeData(nonce=terms.nonce, tee_pubkey=self._public_key)
        report_data = primary_report_data(runtime_data, "", terms.hash_algorithm)
        evidence = CompositeEvidence(primary_evidence=self._attester.evidence(report_data))
        payload = encode_attestation(runtime_data, evidence, None)
        return post(self.host, "attest", payload, b"Cookie: " + self.cookie + b"\r\n")


class _Resource:
    """``GET /resource/…``, after a handshake that the first operation begins with."""

    def __init__(self, handshake: _Handshake, *, by_cookie: bool) -> None:
        self._handshake = handshake
        self._by_cookie = by_cookie
        self._request = b""
        self._checked = False

    def start(self) -> bytes:
        return self._request or self._handshake.start()

    def advance(self, head: bytes, body: bytes) -> bytes | None:
        if not self._request:
            further = self._handshake.advance(head, body)
            if further is not None:
                return further
            if self._by_cookie:
                header = b"Cookie: " + self._handshake.cookie
            else:
                header = b"Authorization: Bearer " + self._handshake.token.encode()
            self._request = get(self._handshake.host, f"resource/{RESOURCE_PATH}", header + b"\r\n")
            return self._request
        require_ok(head, body)
        if not self._checked:  # opening every one would measure the client
            self._handshake.tee_key.open_response(body)
            self._checked = True
        elif not body.startswith(b'{"'):
            raise UnexpectedAnswerError("the answer is not an encrypted secret")
        return None


def post(host: str, path: str, body: bytes, headers: bytes = b"") -> bytes:
    """Write a POST of JSON."""
    return (
        (
            f"POST /kbs/v0/{path} HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        ).encode()
        + headers
        + b"\r\n"
        + body
    )


def get(host: str, path: str, headers: bytes) -> bytes:
    """Write a GET."""
    return f"GET /kbs/v0/{path} HTTP/1.1\r\nHost: {host}\r\n".encode() + headers + b"\r\n"


def session_cookie(head: bytes) -> bytes:
    """Find the session cookie in an answer's headers, as ``name=value``."""
    start = head.lower().find(_COOKIE_START)
    if start < 0:
        raise UnexpectedAnswerError("the answer sets no session cookie")
    line = head[start + len(b"set-cookie: ") :].split(b"\r\n", 1)[0]
    return line.split(b";", 1)[0]


def describe(scenario: Scenario) -> dict[str, Any]:
    """Describe a scenario for the JSON report."""
    described: dict[str, Any] = json.loads(
        json.dumps({"operation": scenario.operation, "tee": scenario.tee, "key": scenario.key})
    )
    return described
