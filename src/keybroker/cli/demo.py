"""``make demo``: the whole way of a secret in one terminal, against a broker started for it.

Nothing is simulated but the hardware: the broker runs in a process of its own, over HTTPS, with its
storage encrypted; the guest is a software SNP platform whose root the broker trusts only because
it is told to.
"""

import base64
import json
import os
import re
import signal
import subprocess  # nosec B404
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from keybroker.client import AdminClient, Explanation, GuestClient
from keybroker.client.attesters.softtee import SoftTeeAttester
from keybroker.client.errors import DeniedError
from keybroker.kbs.policies import resource_policy
from keybroker.softtee.snp import SoftwareSnpPlatform

PATH = "demo/disk/key"
SECRET = b"the key of the guest's disk"

GOOD = bytes.fromhex("a1" * 48)
OTHER = bytes.fromhex("b2" * 48)

START_SECONDS = 30.0


def main() -> int:
    """Run the demonstration; returns 0 if every step went as it should."""
    with tempfile.TemporaryDirectory(prefix="keybroker-demo-") as directory:
        return _demonstrate(Path(directory))


def _demonstrate(directory: Path) -> int:
    _step("A software SNP platform: its own ARK, ASK and VCEK, trusted by nobody yet")
    platform = SoftwareSnpPlatform.create("Milan")
    root = directory / "software-ark.pem"
    root.write_bytes(_bytes(platform.root_pem()))
    print(f"  root  {root.name}")

    _step("A broker on its embedded default, over HTTPS, told to trust that root")
    home = directory / "home"
    with _broker(home, root) as url:
        print(f"  {url}")
        return _walk(url, home, platform)


def _walk(url: str, home: Path, platform: SoftwareSnpPlatform) -> int:
    roots = [home / "https.crt"]
    token = (home / "admin-token").read_text().strip()
    with AdminClient(url, token, root_certs=roots) as admin:
        _step("The administrator stores a secret and says what a good guest looks like")
        admin.set_resource(PATH, SECRET)
        print(f"  secret  {PATH} ({len(SECRET)} bytes)")
        for name, value in _reference_values(platform).items():
            admin.set_sample_reference_value(name, value)
            print(f"  reference value  {name} = {_short(value)}")
        admin.set_resource_policy(resource_policy("affirming"))
        print("  resource policy  affirming: every device of the guest must be affirmed")

        _step("A guest attests and reads the secret")
        attester = SoftTeeAttester(platform, launch={"measurement": GOOD})
        with GuestClient(url, attester, devices=[], root_certs=roots) as guest:
            claims = _claims(guest.attest())
            secret = guest.get_resource(PATH)
        _show(claims)
        print(f"  the secret: {secret.decode()!r}")
        if secret != SECRET:
            print("  that is another secret!", file=sys.stderr)
            return 1

        _step("A guest with other software asks for the same")
        attester = SoftTeeAttester(platform, launch={"measurement": OTHER})
        with GuestClient(url, attester, devices=[], root_certs=roots) as guest:
            denied_token = guest.attest()
            _show(_claims(denied_token))
            try:
                guest.get_resource(PATH)
            except DeniedError as error:
                print(f"  refused: {error}")
            else:
                print("  it got the secret!", file=sys.stderr)
                return 1

        _step("The guest is not told why; the administrator is")
        _tell(admin.explain(PATH, denied_token))
    print("\nDone. Start your own with `keybroker up`.")
    return 0


def _reference_values(platform: SoftwareSnpPlatform) -> dict[str, Any]:
    claims = platform.evidence(report_data=b"", measurement=GOOD)["attestation_report"]
    tcb = claims["reported_tcb"]
    return {
        "snp_launch_measurement": [GOOD.hex()],
        "snp_bootloader": [tcb["bootloader"]],
        "snp_microcode": [tcb["microcode"]],
        "snp_snp_svn": [tcb["snp"]],
        "snp_tee_svn": [tcb["tee"]],
    }


def _show(claims: dict[str, Any]) -> None:
    for name, appraisal in claims["submods"].items():
        evidence = appraisal["ear.veraison.annotated-evidence"]["snp"]
        print(f"  {name} claims")
        for claim in ("measurement", "chip_id", "policy_debug_allowed", "reported_tcb_snp"):
            print(f"    {claim:<22}{_short(evidence[claim])}")
        print(f"  {name} appraisal: {appraisal['ear.status']}")
        for claim, value in appraisal["ear.trustworthiness-vector"].items():
            if value:
                print(f"    {claim:<22}{value}")


def _tell(explanation: Explanation) -> None:
    for appraisal in explanation.appraisal:
        print(f"  {appraisal.submodule}: {appraisal.status}")
        for rule in appraisal.rules:
            print(f"    {rule.rule}, line {rule.line}: {rule.expression}")
            if rule.claim is not None:
                print(f"      the evidence says   {_short(rule.value)}")
            if rule.reference_value is not None:
                print(f"      reference values    {_short(rule.reference_value)}")


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return claims


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 44 else f"{text[:36]}…({len(text)} characters)"


def _bytes(pem: "str | bytes") -> bytes:
    return pem.encode() if isinstance(pem, str) else pem


def _step(text: str) -> None:
    print(f"\n\N{BULLET} {text}", flush=True)


@contextmanager
def _broker(home: Path, root: Path) -> Iterator[str]:
    arguments = ["up", "--home", str(home), "--listen", "127.0.0.1:0", "--snp-root", str(root)]
    process = subprocess.Popen(  # noqa: S603 # nosec B603 - our own command
        [sys.executable, "-m", "keybroker.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=(home.parent / "broker.log").open("wb"),
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        text=True,
    )
    try:
        url = _listening(process)
        _wait_until_ready(url, home / "https.crt", process)
        yield url
    except BaseException:
        print((home.parent / "broker.log").read_text(), file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _listening(process: "subprocess.Popen[str]") -> str:
    if process.stdout is None:
        raise RuntimeError("the broker has no output")
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            match = re.search(r"listening on (https://\S+)", line)
            if match:
                return match.group(1).rstrip(",")
    finally:
        timer.cancel()
    raise RuntimeError("the broker did not start")


def _wait_until_ready(url: str, certificate: Path, process: "subprocess.Popen[str]") -> None:
    import ssl

    deadline = time.monotonic() + START_SECONDS
    context = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(verify=context) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    raise RuntimeError("the broker is not ready")


if __name__ == "__main__":
    sys.exit(main())
