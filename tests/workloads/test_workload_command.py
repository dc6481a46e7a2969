"""``keybroker workloads``, and the SDK beneath it, against a real broker."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import RunningBroker
from tests.workloads.conftest import DATA
from tests.workloads.wire import (
    PASSPHRASE,
    SEV_DIGEST,
    SNP_MEASUREMENT,
    Api,
    SevSession,
    SnpSession,
    sev_policy,
)

from keybroker.client.errors import BadRequestError, NotFoundError
from keybroker.client.workloads import AsyncWorkloadClient, WorkloadClient
from keybroker.model.errors import ConfigError
from keybroker.softtee.sev import SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.workloads.measurement import Hypervisor, Launch, LaunchMode, launch_digest

FIRMWARE = DATA / "ovmf_AmdSev_suffix.bin"
NOTHING = Path("/dev/null")


def run(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "keybroker.cli.main", "workloads", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_workload_that_the_command_registered_gets_its_passphrase(
    workload_broker: RunningBroker,
    tmp_path: Path,
    sev_platform: SoftwareSevPlatform,
    milan: SoftwareSnpPlatform,
) -> None:
    url = ("--url", workload_broker.url + "/workload")
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n", "utf-8")
    done = run(
        "register", *url, "sev-1", "--measurement", SEV_DIGEST, "--tee-config", sev_policy(),
        "--passphrase-file", str(tmp_path / "passphrase"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "registered sev-1\n"), done.stderr
    done = run(
        "register", *url, "snp-1", "--measurement", SNP_MEASUREMENT.hex(), "--passphrase-file", "-",
        stdin=PASSPHRASE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    api = Api(workload_broker)
    launched = SevSession.begin(api, sev_platform)
    assert launched.attest().status_code == 200
    secret = launched.launch.secret(launched.key().json()).rstrip(b"\0")
    assert secret.decode() == PASSPHRASE
    guest = SnpSession.begin(api, milan)
    assert guest.attest().status_code == 200
    assert guest.decrypt(guest.key()) == PASSPHRASE

    listed = json.loads(run("list", *url, "--json").stdout)["workloads"]
    assert [entry["workload_id"] for entry in listed] == ["sev-1", "snp-1"]
    assert "passphrase" not in listed[0]
    text = run("list", *url).stdout
    assert text.splitlines()[0].startswith("sev-1  sev  20")
    assert run("delete", *url, "sev-1").stdout == "deleted sev-1\n"
    gone = run("delete", *url, "sev-1")
    assert gone.returncode == 1
    assert "no such workload" in gone.stderr


def test_what_cannot_be_registered_is_explained(
    workload_broker: RunningBroker, tmp_path: Path
) -> None:
    url = ("--url", workload_broker.url + "/workload")
    wrong = run("register", *url, "w", "--measurement", "00", "--passphrase-file", "-", stdin="p")
    assert wrong.returncode == 1
    assert "has 1 bytes" in wrong.stderr
    wrong = run("register", *url, "w", "--measurement", "xyz", "--passphrase-file", "-", stdin="p")
    assert "hexadecimal" in wrong.stderr
    absent = str(tmp_path / "absent")
    wrong = run("register", *url, "w", "--measurement", SEV_DIGEST, "--passphrase-file", absent)
    assert "No such file" in wrong.stderr
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    wrong = run(
        "register", *url, "w", "--measurement", SEV_DIGEST,
        "--passphrase-file", str(tmp_path / "binary"),
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "UTF-8" in wrong.stderr
    for done in (wrong, run("list", "--url", "http://127.0.0.1:9/workload")):
        assert "Traceback" not in done.stderr


async def test_the_sdk_for_asyncio_does_the_same(workload_broker: RunningBroker) -> None:
    url = workload_broker.url + "/workload"
    async with AsyncWorkloadClient(url) as client:
        await client.register("a:b~c", SNP_MEASUREMENT, PASSPHRASE, tee_config='{"gen": "milan"}')
        (only,) = await client.workloads()
        assert (only.workload_id, only.tee) == ("a:b~c", "snp")
        await client.delete("a:b~c")
        assert await client.workloads() == []
    with WorkloadClient(url) as blocking:
        with pytest.raises(NotFoundError):
            blocking.delete("a:b~c")
        with pytest.raises(BadRequestError, match="245"):
            blocking.register("w", SNP_MEASUREMENT, "p" * 246)


#: Published in the tests of ``sev-snp-measure`` 0.0.13 (``tests/test_guest.py``).
PUBLISHED: list[tuple[dict[str, Any], str]] = [
    (
        {
            "mode": LaunchMode.SNP, "kernel": NOTHING, "initrd": NOTHING, "guest_features": 0x21,
            "append": "console=ttyS0 loglevel=7",
        },
        "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb2"
        "8c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
    ),
    (
        {"mode": LaunchMode.SNP, "guest_features": 0x21},
        "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af"
        "9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
    ),
    (
        {
            "mode": LaunchMode.SNP, "kernel": NOTHING, "initrd": NOTHING, "guest_features": 0x1,
            "hypervisor": Hypervisor.EC2,
        },
        "0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab9"
        "85443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056",
    ),
    (
        {"mode": LaunchMode.SEV_ES, "kernel": NOTHING, "initrd": NOTHING},
        "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c",
    ),
    (
        {"mode": LaunchMode.SEV_ES, "kernel": NOTHING, "initrd": NOTHING, "vcpus": 4},
        "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91",
    ),
    (
        {
            "mode": LaunchMode.SEV, "kernel": NOTHING, "initrd": NOTHING,
            "append": "console=ttyS0 loglevel=7",
        },
        "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("launch", "digest"), PUBLISHED)
def test_launch_digests_are_the_published_ones(launch: dict[str, Any], digest: str) -> None:
    assert launch_digest(Launch(firmware=FIRMWARE, **launch)).hex() == digest


def test_the_command_measures_without_a_broker() -> None:
    launch, digest = PUBLISHED[0]
    done = run(
        "measure", "--mode", "snp", "--firmware", str(FIRMWARE), "--kernel", str(NOTHING),
        "--initrd", str(NOTHING), "--append", launch["append"], "--guest-features", "0x21",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, digest + "\n"), done.stderr
    done = run("measure", "--mode", "sev", "--firmware", str(FIRMWARE), "--json")
    assert len(json.loads(done.stdout)["launch_measurement"]) == 64


@pytest.mark.parametrize(
    "launch",
    [
        {"firmware": Path("/no/such/file")},
        {"firmware": NOTHING},
        {"kernel": Path("/no/such/file")},
        {"append": "quiet"},
        {"initrd": NOTHING},
        {"vcpus": 0},
        {"vcpus": 5000},
        {"vcpu_type": "486"},
    ],
)
def test_what_cannot_be_measured_is_explained(launch: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        launch_digest(Launch(**{"mode": LaunchMode.SNP, "firmware": FIRMWARE} | launch))
    assert caught.value.diagnostics()
