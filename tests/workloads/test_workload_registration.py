"""What may be registered, and how it is kept."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workloads.wire import SEV_DIGEST, sev_policy, sev_workload, snp_workload

from keybroker.cli.main import main
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config
from keybroker.config.storage import EncryptionConfig, StorageBackendConfig
from keybroker.kbs.sessions import SessionError, SessionKeys
from keybroker.model.errors import (
    ConfigError,
    JweError,
    MalformedError,
    StorageError,
    TooManyRequestsError,
)
from keybroker.storage.memory import MemoryStore
from keybroker.storage.provider import open_configured_storage
from keybroker.verifiers.snp_report import Generation
from keybroker.workloads.payloads import (
    parse_attestation,
    parse_auth_request,
    parse_launch_measurement,
    parse_snp_attestation,
)
from keybroker.workloads.registration import (
    SnpConfiguration,
    Workload,
    WorkloadTee,
    parse_registration,
)
from keybroker.workloads.sessions import (
    MAX_SNP_COOKIE_CHARS,
    Attested,
    SevLaunch,
    WorkloadSessions,
)
from keybroker.workloads.sev_launch import Build, TransportKeys
from keybroker.workloads.sev_policy import DEFAULT_POLICY, SevPolicy
from keybroker.workloads.snp_guest import parse_guest_key
from keybroker.workloads.store import WorkloadStore, open_workload_records


def parse(workload: dict[str, Any], *, allow_debug: bool = False) -> Workload:
    return parse_registration(json.dumps(workload).encode(), allow_debug=allow_debug)


def test_the_size_of_the_measurement_tells_the_tee() -> None:
    assert parse(sev_workload()).tee is WorkloadTee.SEV
    assert parse(snp_workload()).tee is WorkloadTee.SNP


def test_a_workload_without_policy_gets_the_strict_one() -> None:
    configuration = parse(sev_workload(tee_config="")).configuration
    assert configuration == DEFAULT_POLICY
    assert isinstance(configuration, SevPolicy)
    assert not configuration.allows_debug


def test_registrations_of_image_builders_are_taken() -> None:
    """buildah registers SNP workloads with a configuration of its own, which binds nothing."""
    config = '{"flags":{"bits":851969},"minfw":{"major":0,"minor":0}}'
    assert parse(snp_workload(tee_config=config)).configuration == SnpConfiguration(None)
    config = '{"gen":"milan"}'
    parsed = parse(snp_workload(tee_config=config)).configuration
    assert parsed == SnpConfiguration(Generation.MILAN)


@pytest.mark.parametrize(
    "changes",
    [
        {"launch_measurement": ""},
        {"launch_measurement": SEV_DIGEST[:-2]},
        {"launch_measurement": SEV_DIGEST + "00"},
        {"launch_measurement": SEV_DIGEST[:-1]},
        {"launch_measurement": "g" * 64},
        {"launch_measurement": SEV_DIGEST + "\n"},
        {"launch_measurement": 5},
        {"workload_id": ""},
        {"workload_id": "."},
        {"workload_id": ".."},
        {"workload_id": "a/b"},
        {"workload_id": "a b"},
        {"workload_id": "ä"},
        {"workload_id": "a\n"},
        {"workload_id": "a" * 129},
        {"passphrase": ""},
        {"passphrase": "a\0b"},
        {"passphrase": "p" * 513},
        {"passphrase": "ü" * 257},
        {"passphrase": "\ud800"},
        {"tee_config": "no JSON"},
        {"tee_config": "[]"},
        {"tee_config": sev_policy(0x3A)},
        {"tee_config": sev_policy(0x7B)},
        {"tee_config": sev_policy(0x1003B)},
        {"tee_config": sev_policy(major=256)},
        {"tee_config": '{"flags": {"bits": 59}}'},
        {"tee_config": '{"flags": 59, "minfw": {"major": 0, "minor": 0}}'},
        {"tee_config": " " * 5000},
        {"tee_config": "[" * 100},
    ],
)
def test_what_could_never_be_served_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        parse(sev_workload(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"passphrase": "p" * 246},
        {"tee_config": '{"gen": "naples"}'},
        {"tee_config": '{"gen": 1}'},
        {"tee_config": "milan"},
    ],
)
def test_what_an_snp_guest_could_never_get_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        parse(snp_workload(**changes))


def test_the_longest_passphrases_are_taken() -> None:
    assert len(parse(sev_workload(passphrase="p" * 512)).passphrase) == 512
    assert len(parse(snp_workload(passphrase="p" * 245)).passphrase) == 245


def test_passphrases_are_in_no_repr_and_no_error() -> None:
    assert "battery" not in repr(parse(sev_workload()))
    with pytest.raises(MalformedError) as caught:
        parse(sev_workload(passphrase="battery" * 100))
    assert "battery" not in caught.value.detail + caught.value.diagnostics()
    with pytest.raises(MalformedError) as caught:
        parse(sev_workload(passphrase=["battery"]))
    assert "battery" not in caught.value.detail + caught.value.diagnostics()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_foreign_bodies_are_malformed_and_nothing_else(body: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_registration(body, allow_debug=False)
    for parse_body in (parse_auth_request, parse_attestation):
        with pytest.raises(MalformedError):
            parse_body(body)


@settings(max_examples=150, deadline=None)
@given(value=json_values, tee=st.sampled_from(["sev", "snp"]), as_text=st.booleans())
def test_foreign_values_inside_are_malformed_and_nothing_else(
    value: Any, tee: str, as_text: bool
) -> None:
    inner = json.dumps(value) if as_text else value
    body = json.dumps({"version": "0.0.0", "tee": tee, "extra-params": inner}).encode()
    with pytest.raises(MalformedError):
        parse_auth_request(body)
    for parse_evidence in (parse_launch_measurement, parse_snp_attestation):
        with pytest.raises(MalformedError):
            parse_evidence(value)
    if isinstance(value, dict):
        with pytest.raises(JweError):
            parse_guest_key(value)
    try:
        parse(sev_workload(tee_config=json.dumps(value)))
    except MalformedError:
        return
    assert value == {}


@settings(max_examples=100, deadline=None)
@given(
    alg=st.sampled_from(["", "RSA", "RSA-OAEP-256", "none", "rsa"]) | st.none() | st.integers(),
    modulus=st.text(max_size=50) | st.binary(min_size=200, max_size=400).map(lambda b: b.hex()),
    exponent=st.text(max_size=8) | st.just("AQAB"),
)
def test_foreign_keys_are_keys_or_the_one_error(alg: Any, modulus: str, exponent: str) -> None:
    try:
        key = parse_guest_key({"alg": alg, "k-mod": modulus, "k-exp": exponent})
    except JweError:
        return
    assert 2048 <= key.key.key_size <= 8192


def test_keys_below_2048_bits_are_refused() -> None:
    small = base64.b64encode(b"\xff" * 128).decode()
    with pytest.raises(JweError, match="2048"):
        parse_guest_key({"alg": "RSA", "k-mod": small, "k-exp": "AQAB"})


# --- the store ------------------------------------------------------------------------------------


async def test_a_workload_is_replaced_as_a_whole_and_gets_another_revision() -> None:
    store = WorkloadStore(MemoryStore(), max_workloads=10)
    await store.register(parse(sev_workload()))
    before = await store.get("sev-1")
    await store.register(parse(snp_workload("sev-1", passphrase="other")))
    after = await store.get("sev-1")
    assert before is not None
    assert after is not None
    assert before.workload == parse(sev_workload())
    assert after.workload == parse(snp_workload("sev-1", passphrase="other"))
    assert before.revision != after.revision
    assert [entry.workload.workload_id for entry in await store.all()] == ["sev-1"]


async def test_there_are_no_more_workloads_than_may_be() -> None:
    store = WorkloadStore(MemoryStore(), max_workloads=2)
    for name in ("one", "two", "one"):
        await store.register(parse(sev_workload(name)))
    with pytest.raises(TooManyRequestsError):
        await store.register(parse(sev_workload("three")))
    assert await store.delete("one")
    assert not await store.delete("one")
    await store.register(parse(sev_workload("three")))
    assert [entry.workload.workload_id for entry in await store.all()] == ["three", "two"]


async def test_readers_see_one_registration_or_the_other_while_writers_write() -> None:
    store = WorkloadStore(MemoryStore(), max_workloads=10)
    versions = [
        sev_workload("w", passphrase=f"passphrase {number}", launch_measurement=f"{number:064x}")
        for number in range(8)
    ]
    await store.register(parse(versions[0]))

    async def write() -> None:
        for number in range(64):
            await store.register(parse(versions[number % 8]))
            await asyncio.sleep(0)

    async def read() -> None:
        for _ in range(200):
            found = await store.get("w")
            assert found is not None
            number = int.from_bytes(found.workload.measurement, "big")
            assert found.workload.passphrase == f"passphrase {number}".encode()
            await asyncio.sleep(0)

    await asyncio.gather(write(), write(), read(), read())


async def test_a_damaged_record_is_an_error_of_the_storage() -> None:
    records = MemoryStore()
    store = WorkloadStore(records, max_workloads=10)
    await store.register(parse(sev_workload()))
    (key,) = await records.keys()
    value = await records.get(key)
    assert value is not None
    record = msgspec.msgpack.decode(value)
    for damaged in (
        b"",
        b"\xc1",
        value[:-3],
        msgspec.msgpack.encode(record | {"format": 2}),
        msgspec.msgpack.encode(record | {"measurement": {"launch_measurement": b"short"}}),
        msgspec.msgpack.encode(record | {"config": {"tee_config": "{"}}),
    ):
        await records.set(key, damaged)
        with pytest.raises(StorageError):
            await store.get("sev-1")


# --- sessions -------------------------------------------------------------------------------------


def sessions(lifetime: int = 60) -> WorkloadSessions:
    return WorkloadSessions(SessionKeys(MemoryStore()), MemoryStore(), lifetime=lifetime)


async def test_a_session_survives_its_cookie() -> None:
    own = sessions()
    launch = SevLaunch(TransportKeys(b"E" * 16, b"I" * 16), DEFAULT_POLICY, Build(1, 55, 21))
    for tee, state in ((WorkloadTee.SEV, launch), (WorkloadTee.SNP, None)):
        session, cookie = await own.issue(tee, b"w" * 16, b"r" * 16, state)
        assert await own.open(cookie) == session
    assert len(cookie) <= MAX_SNP_COOKIE_CHARS
    assert "EEE" not in repr(session)
    assert "III" not in repr(launch)


async def test_challenges_are_never_the_same() -> None:
    own = sessions()
    issued = [await own.issue(WorkloadTee.SNP, b"w" * 16, b"r" * 16) for _ in range(64)]
    assert len({session.nonce for session, _ in issued}) == 64


async def test_a_session_attests_once() -> None:
    own = sessions()
    session, _ = await own.issue(WorkloadTee.SNP, b"w" * 16, b"r" * 16)
    assert await own.attested(session) is None
    results = await asyncio.gather(
        *(own.attest(session, Attested(alg=str(number))) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, SessionError) for result in results) == 7


async def test_an_expired_session_is_refused_and_its_record_deleted() -> None:
    own = sessions(lifetime=-10)
    session, cookie = await own.issue(WorkloadTee.SNP, b"w" * 16, b"r" * 16)
    await own.attest(session, Attested())
    with pytest.raises(SessionError):
        await own.open(cookie)
    assert await own.forget_expired() == 1
    assert await own.attested(session) is None


@settings(max_examples=60, deadline=None)
@given(cookie=st.text(max_size=140) | st.binary(max_size=120).map(lambda raw: raw.hex()))
async def test_foreign_cookies_are_refused(cookie: str) -> None:
    with pytest.raises(SessionError):
        await sessions().open(cookie)


# --- configuration --------------------------------------------------------------------------------


def config_of(tmp_path: Path, text: str) -> KbsConfig:
    path = tmp_path / "config.toml"
    path.write_text('[admin]\nauthorization_mode = "DenyAll"\n' + text)
    return load_config(path, KbsConfig)


def test_workloads_are_off_unless_configured(tmp_path: Path) -> None:
    assert config_of(tmp_path, "").workloads is None
    workloads = config_of(tmp_path, "[workloads]\n").workloads
    assert workloads is not None
    assert workloads.prefix == "/workload"
    assert not workloads.open_registration
    assert workloads.session_minutes == 180


@pytest.mark.parametrize(
    "line",
    [
        'prefix = "workload"',
        'prefix = "/workload/"',
        'prefix = "/"',
        'prefix = ""',
        'prefix = "/kbs"',
        'prefix = "/kbs/v0"',
        'prefix = "/metrics"',
        'prefix = "/../x"',
        'prefix = "/a b"',
        'socket = "localhost:80"',
        "session_minutes = 181",
        "session_minutes = 0",
        "allow_debugging = true",
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError):
        config_of(tmp_path, f"[workloads]\n{line}\n")


def test_check_config_says_that_a_master_key_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encryption: dict[str, Any]
) -> None:
    path = tmp_path / "config.json"
    config: dict[str, Any] = {
        "http_server": {"insecure_http": True},
        "admin": {"authorization_mode": "DenyAll"},
        "storage_backend": {
            "storage_type": "Sqlite",
            "backends": {"sqlite": {"path": str(tmp_path / "db")}},
        },
        "workloads": {},
    }
    path.write_text(json.dumps(config))
    assert main(["check-config", str(path)]) == 1
    assert "never stored in clear" in capsys.readouterr().out
    path.write_text(json.dumps(config | {"encryption": encryption}))
    assert main(["check-config", str(path)]) == 0


async def test_passphrases_are_never_kept_in_clear(
    tmp_path: Path, encryption: dict[str, Any]
) -> None:
    storage = {
        "Sqlite": {"sqlite": {"path": str(tmp_path / "db")}},
        "LocalFs": {"local_fs": {"dir_path": str(tmp_path / "fs")}},
        "LocalJson": {"local_json": {"file_dir_path": str(tmp_path / "json")}},
    }
    for kind, backends in storage.items():
        table = {"storage_type": kind, "backends": backends}
        clear = KbsConfig(
            admin=config_of(tmp_path, "").admin,
            storage_backend=msgspec.convert(table, StorageBackendConfig),
        )
        provider = open_configured_storage(clear)
        with pytest.raises(ConfigError, match="encryption"):
            await open_workload_records(clear, provider)
        await provider.close()
        secret = msgspec.structs.replace(
            clear, encryption=msgspec.convert(encryption, EncryptionConfig)
        )
        provider = open_configured_storage(secret)
        store = WorkloadStore(await open_workload_records(secret, provider), max_workloads=5)
        await store.register(parse(sev_workload()))
        found = await store.get("sev-1")
        assert found is not None
        assert found.workload.passphrase == parse(sev_workload()).passphrase
        await provider.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"battery" not in path.read_bytes()
