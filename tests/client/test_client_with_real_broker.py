"""The clients and ``kbs-client`` against a real broker in a process of its own."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from keybroker.cli.kbs_client import main
from keybroker.client import AdminClient, AsyncGuestClient, GuestClient, KeyKind, TeeKeyPair
from keybroker.client.attesters import SampleAttester, SampleDeviceAttester, SoftTeeAttester
from keybroker.client.errors import DeniedError, NotFoundError, UnauthenticatedError
from keybroker.kbs.policies import resource_policy
from keybroker.softtee.snp import Flaw, SoftwareSnpPlatform

PATH = "default/key/1"
SECRET = bytes(range(256))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> tuple[SoftwareSnpPlatform, Path]:
    folder = tmp_path_factory.mktemp("snp") / "platform"
    platform = SoftwareSnpPlatform.create("Genoa")
    platform.save(folder)
    return platform, folder


@pytest.fixture
def broker(start_broker: Any, platform: tuple[SoftwareSnpPlatform, Path]) -> Any:
    """A broker that trusts the software platform and holds one secret."""
    snp = {"extra_trusted_roots": [str(platform[1] / "root.pem")]}
    service = {"type": "coco_as_builtin", "verifier_config": {"snp_verifier": snp}}
    running = start_broker(attestation_service=service)
    with AdminClient(running.url) as admin:
        admin.set_resource(PATH, SECRET)
    return running


@pytest.mark.parametrize("kind", list(KeyKind)[:4])
def test_a_software_snp_guest_gets_its_secret(
    broker: Any, platform: tuple[SoftwareSnpPlatform, Path], kind: KeyKind
) -> None:
    key = TeeKeyPair.generate(kind)
    with GuestClient(broker.url, SoftTeeAttester(platform[0]), devices=[], tee_key=key) as guest:
        assert guest.get_resource(PATH) == SECRET
        token = guest.attest()
        with pytest.raises(NotFoundError):
            guest.get_resource("default/key/absent")
    with GuestClient(broker.url, tee_key=key, token=token) as passport_holder:
        assert passport_holder.get_resource(PATH) == SECRET


def test_forged_evidence_is_refused(
    broker: Any, platform: tuple[SoftwareSnpPlatform, Path]
) -> None:
    forger = SoftTeeAttester(platform[0], launch={"flaw": Flaw.BAD_SIGNATURE})
    with (
        GuestClient(broker.url, forger, devices=[]) as guest,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        guest.get_resource(PATH)
    assert "never told" in caught.value.hint()


async def test_many_guests_at_once_each_get_their_secret(broker: Any) -> None:
    with AdminClient(broker.url) as admin:
        admin.set_resource_policy(resource_policy("allow_all"))

    async def one() -> bytes:
        attester, device = SampleAttester(), SampleDeviceAttester()
        async with AsyncGuestClient(broker.url, attester, devices=[device]) as guest:
            return await guest.get_resource(PATH)

    assert await asyncio.gather(*(one() for _ in range(8))) == [SECRET] * 8


def test_an_administrator_sets_and_reads_everything(broker: Any) -> None:
    policy = "package policy\nimport rego.v1\ndefault allow := false\n"
    with AdminClient(broker.url) as admin:
        assert admin.list_resources() == [PATH]
        admin.set_resource_policy(policy)
        assert admin.get_resource_policy() == policy
        assert "default_cpu" in admin.list_attestation_policies()
        assert "package policy" in admin.get_attestation_policy()
        admin.set_sample_reference_value("measurement", ["aa"])
        assert admin.get_reference_value("measurement") == ["aa"]
        admin.delete_resource(PATH)
        assert admin.list_resources() == []


def test_a_denial_is_explained(broker: Any) -> None:
    with GuestClient(broker.url, SampleAttester(), devices=[]) as guest:
        token = guest.attest()
        with pytest.raises(DeniedError):
            guest.get_resource(PATH)
    with AdminClient(broker.url) as admin:
        explanation = admin.explain(PATH, token)
    assert not explanation.allowed
    assert explanation.rules


def test_the_command_line_goes_the_whole_way(
    broker: Any,
    platform: tuple[SoftwareSnpPlatform, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KBS_ATTESTER", f"softtee-snp:{platform[1]}")
    get = ["--url", broker.url, "get-resource", "--path", PATH]
    assert main(get) == 0
    assert base64.b64decode(capsys.readouterr().out) == SECRET
    init_data = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "x = 1"\n'
    assert main([*get, init_data]) == 0
    assert base64.b64decode(capsys.readouterr().out) == SECRET
    monkeypatch.setenv("KBS_ATTESTER", "sample")
    assert main(get) == 1
    assert "--explain" in capsys.readouterr().err
    assert main([*get, "--explain", "--json"]) == 1
    explained = capsys.readouterr().err.splitlines()
    assert json.loads(explained[-1])["allowed"] is False
