"""The SDK's clients and ``keybroker keys`` against a running broker."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.wire import PASSWORD, USER, Admin

from keybroker.client.attesters.sample import SampleAttester
from keybroker.client.attesters.softtee import SoftTeeAttester
from keybroker.client.errors import (
    BadRequestError,
    BusyError,
    ClientError,
    ConnectionFailedError,
    InputError,
    NotFoundError,
    ProtocolError,
    SealedSecretError,
    TeeKeyError,
    UnauthenticatedError,
)
from keybroker.client.held_key import HeldKeyPair
from keybroker.client.key_transfer import KeyTransferAdmin, KeyTransferGuest
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel
from keybroker.softtee.intel_pccs import SoftwarePccs

MR_TD = bytes.fromhex("c1" * 48)


@pytest.fixture
def kbs(start_kbs: StartKbs, tmp_path: Path) -> Iterator[tuple[Admin, SoftTeeAttester]]:
    """A broker, and a software TD that it would believe."""
    intel = SoftwareIntel()
    (tmp_path / "root.pem").write_bytes(intel.root_pem)
    platform = intel.platform()

    class Source:
        evidence = staticmethod(platform.td_evidence)

    with SoftwarePccs(intel, [platform]) as pccs:
        dcap = {
            "collateral_service": pccs.url,
            "qcnl_conf": "",
            "extra_trusted_roots": [str(tmp_path / "root.pem")],
        }
        tables = {
            "attestation_service": {
                "type": "coco_as_builtin",
                "verifier_config": {"dcap_verifier": dcap},
            }
        }
        attester = SoftTeeAttester(Source(), Tee.TDX, {"mr_td": MR_TD})
        yield start_kbs(tables, lockout={"max_attempts": 2}), attester


def test_the_sdk_does_what_the_api_offers(kbs: tuple[Admin, SoftTeeAttester]) -> None:
    running, attester = kbs
    with KeyTransferAdmin(running.broker.url) as admin:
        with pytest.raises(UnauthenticatedError):
            admin.list_keys()
        admin.login(USER, PASSWORD)
        assert admin.version()["name"] == "Key Broker Service"
        policy = admin.create_policy(
            {"attestation_type": "TDX", "tdx": {"attributes": {"mrtd": [MR_TD.hex()]}}}
        )
        other = admin.create_policy(
            {"attestation_type": "TDX", "tdx": {"attributes": {"mrtd": ["00" * 48]}}}
        )
        assert [found["id"] for found in admin.list_policies()] == [policy["id"], other["id"]]
        assert admin.get_policy(policy["id"]) == policy
        key = admin.create_key("AES", length=256, policy_id=policy["id"])
        own = admin.create_key("AES", length=128, key_data=bytes(range(16)))
        assert admin.fetch_key(own["id"]) == bytes(range(16))
        assert admin.list_keys(algorithm="AES", keyLength="128") == [own]
        assert admin.get_key(key["id"]) == key

        with KeyTransferGuest(running.broker.url) as guest:
            assert guest.transfer(key["id"], attester) == admin.fetch_key(key["id"])
            held = HeldKeyPair.generate()
            assert guest.transfer(key["id"], attester, held) == admin.fetch_key(key["id"])
            with pytest.raises(UnauthenticatedError):
                guest.transfer(key["id"], SampleAttester())
            with pytest.raises(UnauthenticatedError):
                guest.transfer_with_token(key["id"], "a.b.c", held)
            assert admin.set_policy(key["id"], other["id"])["transfer_policy_id"] == other["id"]
            with pytest.raises(UnauthenticatedError) as denied:
                guest.transfer(key["id"], attester)
            assert "mrtd" not in str(denied.value)

        user = admin.create_user("somebody", "a long password", ["keys:search"])
        assert admin.list_users("somebody") == [user]
        changed = admin.update_user(user["id"], permissions=["users:search"])
        assert changed["permissions"] == ["users:search"]
        admin.delete_user(user["id"])
        with pytest.raises(BadRequestError):
            admin.delete_policy(other["id"])
        admin.delete_key(key["id"])
        admin.delete_policy(other["id"])
        with pytest.raises(NotFoundError):
            admin.get_key(key["id"])
        with pytest.raises(BadRequestError):
            admin.create_key("AES", length=1)
        with pytest.raises(InputError):
            admin.get_key("../users")

    with KeyTransferAdmin(running.broker.url) as stranger:
        for expected in (UnauthenticatedError, UnauthenticatedError, BusyError):
            with pytest.raises(expected):
                stranger.login(USER, "a wrong password")


def test_the_client_opens_nothing_that_was_changed() -> None:
    pair, other = HeldKeyPair.generate(), HeldKeyPair.generate()
    from tests.key_transfer.wire import b64

    from keybroker.release.swk import parse_held_key, seal_to_held_key

    public = parse_held_key(pair.user_data("SGX"), little_endian_modulus=True)
    sealed = seal_to_held_key(public, b"the key")
    assert "the key" not in repr(sealed)
    assert sealed.wrapped_swk is not None
    answer = {"wrapped_key": b64(sealed.wrapped_key), "wrapped_swk": b64(sealed.wrapped_swk)}
    assert pair.unwrap(answer) == b"the key"
    with pytest.raises(SealedSecretError):
        other.unwrap(answer)
    for position in range(len(sealed.wrapped_key)):
        changed = bytearray(sealed.wrapped_key)
        changed[position] ^= 1
        with pytest.raises(ProtocolError):
            pair.unwrap({**answer, "wrapped_key": b64(bytes(changed))})
    for wrong in ({}, {"wrapped_key": 1}, {**answer, "wrapped_key": ""}, {"wrapped_key": "AAAA"}):
        with pytest.raises(ProtocolError):
            pair.unwrap(wrong)
    assert HeldKeyPair.from_pem(pair.to_pem()).unwrap(answer) == b"the key"
    with pytest.raises(TeeKeyError):
        HeldKeyPair.from_pem(b"x")
    with pytest.raises(TeeKeyError):
        HeldKeyPair.generate(2048).user_data("TDX")
    with pytest.raises(ConnectionFailedError), KeyTransferGuest("http://127.0.0.1:1") as guest:
        guest.transfer("00000000-0000-0000-0000-000000000001", SampleAttester())
    with pytest.raises(ClientError):
        KeyTransferGuest("ftp://broker")


def test_the_command_line_does_the_daily_work(
    kbs: tuple[Admin, SoftTeeAttester], tmp_path: Path
) -> None:
    running, _ = kbs
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "own.key").write_bytes(bytes(32))
    policy_document = {"attestation_type": "SAMPLE", "sample": {"attributes": {"svn": ["1"]}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy_document))

    def keys(*arguments: str, code: int = 0) -> Any:
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "keybroker.cli.main",
                "keys",
                "--url",
                running.broker.url,
                "--username",
                USER,
                "--password-file",
                str(tmp_path / "password"),
                *arguments,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stderr
        assert PASSWORD not in result.stdout + result.stderr
        return json.loads(result.stdout) if result.stdout else result.stderr

    policy = keys("policy", "create", "policy.json")
    key = keys("create", "--policy", policy["id"])
    assert key["key_info"] == {"algorithm": "AES", "key_length": 256}
    own = keys("create", "--length", "256", "--key-file", "own.key")
    assert {found["id"] for found in keys("list")} == {key["id"], own["id"]}
    assert keys("list", "--policy", policy["id"]) == [key]
    assert keys("show", key["id"]) == key
    keys("fetch", own["id"], "-o", "fetched")
    assert (tmp_path / "fetched").read_bytes() == bytes(32)
    keys("transfer", key["id"], "--attester", "sample", "-o", "transferred")
    keys("fetch", key["id"], "-o", "fetched")
    assert (tmp_path / "transferred").read_bytes() == (tmp_path / "fetched").read_bytes()
    assert keys("set-policy", own["id"], policy["id"])["transfer_policy_id"] == policy["id"]
    assert "in use" in keys("policy", "delete", policy["id"], code=1)
    for made in (key, own):
        keys("delete", made["id"])
    keys("policy", "delete", policy["id"])
    assert keys("policy", "list") == []
    assert "no such key" in keys("show", key["id"], code=1)
    (tmp_path / "password").write_text("a wrong password")
    assert "username or password" in keys("list", code=1)
