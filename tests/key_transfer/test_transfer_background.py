"""Background mode: software TEEs with our own attestation service, and with Trust Authority."""

import base64
import concurrent.futures
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.trust_authority_service import TrustAuthorityService
from tests.key_transfer.wire import Admin, HeldKey, b64, background, report_data, transfer

from keybroker.client import GuestClient, KeyKind, TeeKeyPair
from keybroker.client.attesters.softtee import SoftTeeAttester
from keybroker.key_transfer.nonces import Nonce, Nonces, ReplayedNonceError
from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_pccs import SoftwarePccs
from keybroker.softtee.intel_quote import TD_DEBUG, TD_SEPT_VE_DISABLE
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.storage.memory import MemoryStore

KEY_ID = "5d3ab1c2-7a5e-4f6b-9a2e-0d1c2b3a4f5e"
ENCLAVE, SIGNER = hashlib.sha256(b"enclave").digest(), hashlib.sha256(b"signer").digest()
FIRMWARE = hashlib.sha384(b"firmware").digest()
RTMRS = {index: hashlib.sha384(b"rtmr %d" % index).digest() for index in range(1, 5)}
SEAM = hashlib.sha384(b"software TDX module").hexdigest()

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "SGX": {
        "mrsigner": [SIGNER.hex()],
        "isvprodid": [6, 7],
        "mrenclave": [ENCLAVE.hex().upper()],
        "isvsvn": 3,
        "enforce_tcb_upto_date": True,
    },
    "TDX": {
        "mrsignerseam": ["00" * 48],
        "mrseam": [SEAM],
        "seamsvn": 0x0105,
        "mrtd": [FIRMWARE.hex()],
        **{f"rtmr{index}": RTMRS[index + 1].hex() for index in range(4)},
        "enforce_tcb_upto_date": True,
    },
}

#: Another value of each attribute.
OTHERS: dict[str, dict[str, Any]] = {
    "SGX": {
        "mrsigner": ["77" * 32],
        "isvprodid": [8],
        "mrenclave": ["77" * 32],
        "isvsvn": 2,
    },
    "TDX": {
        "mrsignerseam": ["77" * 48],
        "mrseam": ["77" * 48],
        "seamsvn": 5,
        "mrtd": ["77" * 48],
        **{f"rtmr{index}": "77" * 48 for index in range(4)},
    },
}


@dataclass
class Machine:
    """A software platform of Intel's, with a service for its collateral."""

    intel: SoftwareIntel
    pccs: SoftwarePccs
    tables: dict[str, Any]
    platform: Any = field(repr=False)

    def enclave(self, report: bytes, **launch: Any) -> bytes:
        settings = {"mr_enclave": ENCLAVE, "mr_signer": SIGNER, "product": 7, "svn": 3, **launch}
        quote: bytes = self.platform.enclave_quote(report_data=report, **settings)
        return quote

    def td(self, report: bytes, **launch: Any) -> bytes:
        settings = {"mr_td": FIRMWARE, "rtmrs": RTMRS, **launch}
        quote: bytes = self.platform.td_quote(report_data=report, **settings)
        return quote

    def quote(self, type_: str) -> Callable[..., bytes]:
        return self.enclave if type_ == "SGX" else self.td


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    intel = SoftwareIntel()
    root = tmp_path / "software-intel.pem"
    root.write_bytes(intel.root_pem)
    platform = intel.platform()
    with SoftwarePccs(intel, [platform]) as pccs:
        verifiers = {
            "dcap_verifier": {
                "collateral_service": pccs.url,
                "qcnl_conf": "",
                "extra_trusted_roots": [str(root)],
            }
        }
        tables = {"attestation_service": {"type": "coco_as_builtin", "verifier_config": verifiers}}
        yield Machine(intel, pccs, tables, platform)


def key_for(admin: Admin, type_: str, **attributes: Any) -> str:
    body = {"attributes": attributes or ATTRIBUTES[type_]}
    return str(admin.key(admin.policy({"attestation_type": type_, type_.lower(): body}))["id"])


@pytest.mark.parametrize("type_", ["SGX", "TDX"])
def test_genuine_evidence_gets_the_key_without_any_cloud(
    start_kbs: StartKbs, machine: Machine, held: HeldKey, type_: str
) -> None:
    admin = start_kbs(machine.tables)
    key_id = key_for(admin, type_)
    answer = background(admin.http, key_id, held, machine.quote(type_))
    assert answer.status_code == 200, admin.broker.log_text
    assert held.unwrap(answer.json()) == admin.wrap(key_id, held)
    rsa_key = admin.key(
        admin.call("GET", f"keys/{key_id}").json()["transfer_policy_id"],
        algorithm="RSA",
        key_length=3072,
    )
    answer = background(admin.http, rsa_key["id"], held, machine.quote(type_))
    assert held.unwrap(answer.json()) == admin.wrap(rsa_key["id"], held)


@pytest.mark.parametrize("type_", ["SGX", "TDX"])
def test_evidence_is_refused_for_each_attribute_and_each_flaw(
    start_kbs: StartKbs, machine: Machine, held: HeldKey, type_: str
) -> None:
    admin = start_kbs(machine.tables)
    quote = machine.quote(type_)
    for name, other in OTHERS[type_].items():
        key_id = key_for(admin, type_, **{name: other})
        assert background(admin.http, key_id, held, quote).status_code == 401, name
        key_id = key_for(admin, type_, **{name: ATTRIBUTES[type_][name]})
        assert background(admin.http, key_id, held, quote).status_code == 200, name

    key_id = key_for(admin, type_)
    debug = {"debug": True} if type_ == "SGX" else {"attributes": TD_SEPT_VE_DISABLE | TD_DEBUG}
    foreign = Machine(machine.intel, machine.pccs, {}, SoftwareIntel().platform())
    other = machine.quote("TDX" if type_ == "SGX" else "SGX")
    flawed: list[Callable[[bytes], bytes]] = [
        lambda report: quote(report, **debug),
        lambda report: quote(bytes(64)),
        lambda report: quote(report[:31] + b"\0" + report[32:]),
        foreign.quote(type_),
        other,
        lambda report: quote(report)[:-200],
        lambda report: quote(report)[:100] + b"\1" + quote(report)[101:],
        lambda report: b"no quote",
    ]
    for make in flawed:
        answer = background(admin.http, key_id, held, make)
        assert answer.status_code == 401, answer.text
    answer = background(admin.http, key_id, held, quote, user_data=b64(bytes(388)))
    assert answer.status_code == 401
    assert background(admin.http, key_id, held, quote).status_code == 200
    assert "Traceback" not in admin.broker.log_text


@pytest.mark.parametrize("type_", ["SGX", "TDX"])
def test_a_tcb_that_is_out_of_date_is_refused_where_the_policy_says_so(
    start_kbs: StartKbs, machine: Machine, held: HeldKey, type_: str
) -> None:
    machine.pccs.terms = Terms(tcb_status="SWHardeningNeeded", advisory_ids=["INTEL-SA-1"])
    admin = start_kbs(machine.tables)
    first = next(iter(OTHERS[type_]))
    named = {first: ATTRIBUTES[type_][first]}
    lax = key_for(admin, type_, **named, enforce_tcb_upto_date=False)
    strict = key_for(admin, type_, **named, enforce_tcb_upto_date=True)
    assert background(admin.http, lax, held, machine.quote(type_)).status_code == 200
    assert background(admin.http, strict, held, machine.quote(type_)).status_code == 401


def test_nonces_are_used_once_for_one_key_and_are_ours(
    start_kbs: StartKbs, machine: Machine, held: HeldKey
) -> None:
    admin = start_kbs(machine.tables)
    key_id, other_id = key_for(admin, "SGX"), key_for(admin, "SGX")
    nonce = transfer(admin.http, key_id).json()
    user_data = held.user_data("SGX")
    body = {
        "quote": b64(machine.enclave(report_data(nonce, user_data, "SGX"))),
        "nonce": nonce,
        "user_data": b64(user_data),
    }

    def send(key: str = key_id, type_: str = "SGX", **over: Any) -> int:
        return transfer(
            admin.http, key, json={**body, **over}, headers={"attestation-type": type_}
        ).status_code

    assert send(other_id) == 401
    assert send(type_="TDX") == 401
    assert send(type_="sgx") == 400
    forged = {**nonce, "val": b64(bytes(64))}
    assert send(nonce=forged) == 401
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(lambda _: send(), range(6)))
    assert statuses == [200] + [401] * 5
    assert send() == 401


async def test_a_nonce_expires() -> None:
    used = MemoryStore()
    nonces = Nonces(bytes(32), used, lifetime=60)
    nonce = nonces.issue(KEY_ID)
    nonces.verify(nonce, KEY_ID)
    # Another broker with the same key, whose nonces are over as soon as they are made.
    with pytest.raises(EvidenceError, match="expired"):
        Nonces(bytes(32), used, lifetime=-1).verify(nonce, KEY_ID)
    with pytest.raises(EvidenceError, match="not of this broker"):
        Nonces(bytes(31) + b"\1", used, lifetime=60).verify(nonce, KEY_ID)
    for changed in (
        Nonce(nonce.val[:-1], nonce.iat, nonce.signature),
        Nonce(nonce.val + nonce.iat[:1], nonce.iat[1:], nonce.signature),
        Nonce(nonce.val, nonce.iat.replace(b"20", b"21", 1), nonce.signature),
        Nonce(nonce.val, nonce.iat, b""),
    ):
        with pytest.raises(EvidenceError):
            nonces.verify(changed, KEY_ID)
    assert await used.keys() == []
    await nonces.use(nonce, own=True)
    with pytest.raises(ReplayedNonceError):
        await nonces.use(nonce, own=True)
    assert await nonces.forget_expired() == 0


def test_nothing_is_stored_for_who_only_asks_for_nonces(
    start_kbs: StartKbs, machine: Machine
) -> None:
    admin = start_kbs(machine.tables)
    key_id = key_for(admin, "SGX")
    database = admin.broker.directory / "keybroker.db"
    transfer(admin.http, key_id)
    log = database.with_name(database.name + "-wal")
    before = log.stat().st_size
    for _ in range(200):
        assert transfer(admin.http, key_id).status_code == 200
    # Two hundred stored nonces would take a page of the log each.
    assert log.stat().st_size - before < 100 * 1024


def test_snp_guests_get_keys_by_the_claims_of_their_verifier(
    start_kbs: StartKbs, held: HeldKey, tmp_path: Path
) -> None:
    platform = SoftwareSnpPlatform.create("Milan")
    root = tmp_path / "ark.pem"
    pem = platform.root_pem()
    root.write_bytes(pem if isinstance(pem, bytes) else pem.encode())
    snp = {"snp_verifier": {"extra_trusted_roots": [str(root)]}}
    admin = start_kbs({"attestation_service": {"type": "coco_as_builtin", "verifier_config": snp}})
    measurement = bytes.fromhex("a1" * 48)

    def quote(report: bytes, **launch: Any) -> bytes:
        evidence = platform.evidence(report_data=report, measurement=measurement, **launch)
        return json.dumps(evidence).encode()

    key_id = key_for(admin, "SNP", measurement=["00" * 48, measurement.hex()])
    answer = background(admin.http, key_id, held, quote)
    assert answer.status_code == 200, admin.broker.log_text
    assert held.unwrap(answer.json()) == admin.wrap(key_id, held)
    for attributes in (
        {"measurement": "b2" * 48},
        {"measurement": measurement.hex(), "no_such_claim": 1},
        {"measurement/deeper": measurement.hex()},
    ):
        refused = key_for(admin, "SNP", **attributes)
        assert background(admin.http, refused, held, quote).status_code == 401


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_trust_authority_appraises_evidence_with_its_own_nonces(
    start_kbs: StartKbs, held: HeldKey, tmp_path: Path, version: str
) -> None:
    with TrustAuthorityService(tmp_path / "ita", version) as service:
        service.claims = lambda type_, quote: (
            {"sgx_mrsigner": "ab" * 32} if type_ == "SGX" else {"tdx_mrtd": "cf" * 48}
        )
        admin = start_kbs(trust_authority=service.table())
        ids = ["37965f5f-ccaf-4cdc-a356-a8ed5268a5bf"]
        service.common = {"policy_ids_matched": [{"id": ids[0], "version": "v1"}]}
        for type_, attributes in (
            ("SGX", {"mrsigner": ["ab" * 32]}),
            ("TDX", {"mrtd": ["cf" * 48]}),
        ):
            body = {"attributes": attributes, "policy_ids": ids}
            policy = admin.policy({"attestation_type": type_, type_.lower(): body})
            key_id = admin.key(policy)["id"]

            def quote(report: bytes, kind: str = type_) -> bytes:
                return kind.lower().encode() + report

            answer = background(admin.http, key_id, held, quote)
            assert answer.status_code == 200, admin.broker.log_text
            assert held.unwrap(answer.json()) == admin.wrap(key_id, held)
            sent = service.requests[-1]
            own = sent if version == "v1" else sent[type_.lower()]
            assert base64.b64decode(own["runtime_data"]) == held.user_data(type_)
            assert sent["policy_ids"] == ids

            # The same nonce and evidence again: the service would take it, this broker does not.
            again = {
                "quote": own["quote"],
                "nonce": own["verifier_nonce"],
                "user_data": own["runtime_data"],
            }
            headers = {"attestation-type": type_}
            assert transfer(admin.http, key_id, json=again, headers=headers).status_code == 401

        def status(told: int) -> int:
            service.status = told
            return background(admin.http, key_id, held, quote).status_code

        assert [status(told) for told in (200, 400, 401, 500, 503)] == [200, 401, 502, 502, 502]
        assert service.table()["api_key"] not in admin.broker.log_text
    assert transfer(admin.http, key_id).status_code == 502


def test_a_token_of_our_own_attestation_service_is_a_passport(
    start_kbs: StartKbs, machine: Machine
) -> None:
    admin = start_kbs(machine.tables)
    for tee, type_, source in (
        (Tee.SGX, "SGX", machine.platform.enclave_evidence),
        (Tee.TDX, "TDX", machine.platform.td_evidence),
    ):

        class Source:
            evidence = staticmethod(source)

        launch: dict[str, Any] = (
            {"mr_enclave": ENCLAVE, "mr_signer": SIGNER, "product": 7, "svn": 3}
            if tee is Tee.SGX
            else {"mr_td": FIRMWARE, "rtmrs": RTMRS}
        )
        if tee is Tee.TDX:
            launch = {"mr_td": FIRMWARE}
        attester = SoftTeeAttester(Source(), tee, launch)
        tee_key = TeeKeyPair.generate(KeyKind.RSA3072)
        with GuestClient(admin.broker.url, attester, devices=[], tee_key=tee_key) as guest:
            token = guest.attest()
        name = "mrenclave" if tee is Tee.SGX else "mrtd"
        key_id = key_for(admin, type_, **{name: ATTRIBUTES[type_][name]})
        answer = transfer(admin.http, key_id, json={"attestation_token": token})
        assert answer.status_code == 200, admin.broker.log_text
        pair = HeldKey(tee_key._key)  # type: ignore[arg-type]
        assert pair.unwrap(answer.json()) == admin.wrap(key_id, pair)
        refused = key_for(admin, type_, **{name: OTHERS[type_][name]})
        assert transfer(admin.http, refused, json={"attestation_token": token}).status_code == 401


def test_a_passport_with_an_elliptic_key_cannot_be_wrapped_to(
    start_kbs: StartKbs, machine: Machine
) -> None:
    admin = start_kbs(machine.tables)

    class Source:
        evidence = staticmethod(machine.platform.td_evidence)

    attester = SoftTeeAttester(Source(), Tee.TDX, {"mr_td": FIRMWARE})
    with GuestClient(admin.broker.url, attester, devices=[]) as guest:
        token = guest.attest()
    key_id = key_for(admin, "TDX", mrtd=ATTRIBUTES["TDX"]["mrtd"])
    assert transfer(admin.http, key_id, json={"attestation_token": token}).status_code == 400


def test_other_tees_go_to_our_own_service_beside_trust_authority(
    start_kbs: StartKbs, held: HeldKey, tmp_path: Path
) -> None:
    with TrustAuthorityService(tmp_path / "ita") as service:
        admin = start_kbs(trust_authority=service.table())
        key_id = key_for(admin, "SAMPLE", svn="1")

        def quote(report: bytes) -> bytes:
            evidence = {"svn": "1", "report_data": base64.b64encode(report).decode()}
            return json.dumps(evidence).encode()

        answer = background(admin.http, key_id, held, quote)
        assert answer.status_code == 200, admin.broker.log_text
        assert service.issued == set()
