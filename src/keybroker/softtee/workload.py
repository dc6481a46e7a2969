"""Guests of the registered-workload API on software platforms: they attest and unwrap their key.

Both do what the wire format says and nothing more, as the guests of libkrun do::

    passphrase = fetch_snp_passphrase(url, "my-workload", snp_platform, measurement=digest)
    passphrase = fetch_sev_passphrase(url, "my-workload", sev_platform, memory=[firmware, kernel])

``url`` is what a client is configured with, for example ``http://127.0.0.1:8080/workload``.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keybroker.softtee.sev import SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform

_TIMEOUT_SECONDS = 30.0
_RSA_BITS = 2048


class RefusedError(Exception):
    """The broker refused a step.

    Attributes:
        status: of its answer.
        step: ``auth``, ``attest`` or ``key``.
    """

    def __init__(self, step: str, status: int, answer: str) -> None:
        super().__init__(f"{step}: status {status}: {answer}")
        self.step = step
        self.status = status


def fetch_snp_passphrase(
    url: str,
    workload_id: str,
    platform: SoftwareSnpPlatform,
    *,
    http: httpx.Client | None = None,
    with_certificates: bool = False,
    **report: Any,
) -> bytes:
    """Attest as an SNP guest and return its passphrase.

    Args:
        with_certificates: send the platform's certificates along; else the broker has to find the
            VCEK.
        report: of :meth:`SoftwareSnpPlatform.report`: ``measurement``, ``policy``, ``flaw``, …

    Raises:
        RefusedError: the broker refused.
    """
    with _Client(url, http) as client:
        challenge = client.auth("snp", {"workload_id": workload_id})
        key = rsa.generate_private_key(65537, _RSA_BITS)
        numbers = key.public_key().public_numbers()
        modulus, exponent = _base64(numbers.n), _base64(numbers.e)
        bound = hashlib.sha512((challenge["nonce"] + modulus + exponent).encode()).digest()
        table = "[]"
        if with_certificates:
            names = {k: v for k, v in report.items() if k in ("flaw", "signing", "chip_id", "tcb")}
            table = json.dumps(platform.evidence(bound, **names)["cert_chain"])
        evidence = {
            "gen": platform.generation.lower(),
            "report": platform.report(bound, **report).hex().upper(),
            "cert_chain": table,
        }
        client.attest(evidence, {"alg": "RSA", "k-mod": modulus, "k-exp": exponent})
        return key.decrypt(bytes.fromhex(client.key(workload_id)), padding.PKCS1v15())


def fetch_sev_passphrase(
    url: str,
    workload_id: str,
    platform: SoftwareSevPlatform,
    *,
    memory: Iterable[bytes],
    http: httpx.Client | None = None,
) -> bytes:
    """Launch an SEV guest and return the passphrase that its firmware unwraps.

    Args:
        memory: what is put into the guest before it is measured.

    Raises:
        RefusedError: the broker refused.
        FirmwareError: the firmware refused what the broker sent.
    """
    with _Client(url, http) as client:
        challenge = client.auth(
            "sev",
            {
                "workload_id": workload_id,
                "build": platform.build_json(),
                "chain": platform.chain.as_json(),
            },
        )
        launch = platform.launch_start(json.loads(challenge["extra-params"])["start"])
        for part in memory:
            launch.update_data(part)
        client.attest(launch.measure(), {"alg": "", "k-mod": "", "k-exp": ""})
        return launch.secret(client.key(workload_id)).rstrip(b"\0")


def _base64(number: int) -> str:
    return base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode()


class _Client:
    """The three requests of a guest; its session is the cookie of the first answer."""

    def __init__(self, url: str, http: httpx.Client | None) -> None:
        self._url = url.rstrip("/") + "/kbs/v0"
        self._http = http or httpx.Client(timeout=_TIMEOUT_SECONDS)
        self._own = http is None
        self._cookie = ""

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._http.close()

    def auth(self, tee: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Ask for a challenge."""
        request = {"version": "0.0.0", "tee": tee, "extra-params": json.dumps(parameters)}
        answer = self._send("auth", "POST", "/auth", json=request)
        self._cookie = answer.cookies["session_id"]
        self._http.cookies.clear()
        challenge: dict[str, Any] = answer.json()
        return challenge

    def attest(self, evidence: dict[str, Any], public_key: dict[str, str]) -> None:
        """Send evidence; an answer with a body is an error."""
        attestation = {"tee-pubkey": public_key, "tee-evidence": json.dumps(evidence)}
        answer = self._send("attest", "POST", "/attest", json=attestation)
        if answer.content:
            raise RefusedError("attest", answer.status_code, answer.text)

    def key(self, workload_id: str) -> Any:
        """Fetch the encrypted passphrase."""
        return self._send("key", "GET", f"/key/{workload_id}").json()

    def _send(self, step: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"cookie": f"session_id={self._cookie}"} if self._cookie else {}
        answer = self._http.request(method, self._url + path, headers=headers, **options)
        if answer.status_code != 200:
            raise RefusedError(step, answer.status_code, answer.text)
        return answer
