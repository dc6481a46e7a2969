"""Quotes that real machines made."""

import json
import random
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from dcap_material import Recorded

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.claims import quote_claims, verdict_claims
from keybroker.verifiers.dcap.collateral import parse_collateral, verify_collateral
from keybroker.verifiers.dcap.pck import parse_pck_chain
from keybroker.verifiers.dcap.quote import Quote, parse_quote
from keybroker.verifiers.dcap.roots import INTEL_SGX_ROOT_CA_SHA256, intel_root, load_roots
from keybroker.verifiers.dcap.verification import verify_quote
from keybroker.verifiers.eventlog import parse_event_log
from keybroker.verifiers.tdx import verify_event_log
from keybroker.verifiers.x509 import parse_certificates

DAY = timedelta(days=1)


def claims_at(recorded: Recorded, moment: object) -> dict[str, object]:
    return verdict_claims(verify_quote(parse_quote(recorded.raw), recorded.collateral, moment))


def test_intels_root_is_the_pinned_one() -> None:
    assert intel_root().fingerprint() == INTEL_SGX_ROOT_CA_SHA256
    assert load_roots(()) == (intel_root(),)


def test_a_td_is_up_to_date_while_its_collateral_is_valid(recorded_td: Recorded) -> None:
    claims = claims_at(recorded_td, recorded_td.valid_at)
    assert claims["tcb_status"] == "UpToDate"
    assert claims["advisory_ids"] == []
    assert claims["collateral_expiration_status"] == "0"
    assert claims["tcb_date"] == "2024-03-13T00:00:00Z"
    assert claims["tcb_eval_num"] == 17
    assert claims["sgx_type"] == "Scalable"
    assert claims["earliest_issue_date"] == "2018-05-21T10:45:10Z"
    assert claims["earliest_expiration_date"] == "2025-07-19T10:00:35Z"
    assert claims["root_key_id"].startswith("46e403bd34f05a3f2817ab9badcaacc7")
    assert claims["platform_instance_id"] == "d2cde8ff750793dc19703e6074848207"
    assert claims["is_smt_enabled"] is True
    assert claims["td_attributes"]["debug"] is False


def test_an_enclave_needs_configuration_and_hardening(recorded_enclave: Recorded) -> None:
    claims = claims_at(recorded_enclave, recorded_enclave.valid_at)
    assert claims["tcb_status"] == "ConfigurationAndSWHardeningNeeded"
    assert claims["advisory_ids"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    assert claims["sgx_type"] == "Standard"
    assert "is_smt_enabled" not in claims
    assert "platform_instance_id" not in claims
    assert claims["debug"] is False


@pytest.mark.parametrize("name", ["recorded_td", "recorded_enclave"])
def test_collateral_that_expired_is_said_to_have(name: str, request: pytest.FixtureRequest) -> None:
    recorded: Recorded = request.getfixturevalue(name)
    expires = recorded.collateral.earliest_expiration
    for moment, status in ((expires - DAY, "0"), (expires, "0"), (expires + DAY, "1")):
        claims = claims_at(recorded, moment)
        assert claims["collateral_expiration_status"] == status
        assert claims["tcb_status"] == claims_at(recorded, recorded.valid_at)["tcb_status"]
    next_update = recorded.collateral.tcb_info.next_update
    assert claims_at(recorded, next_update + DAY)["collateral_expiration_status"] == "1"


def test_collateral_says_nothing_about_the_time_before_it(recorded_td: Recorded) -> None:
    with pytest.raises(EvidenceError, match="before"):
        claims_at(recorded_td, recorded_td.valid_at - DAY)


def test_a_platform_below_every_level_is_refused(evidence_dir: Path) -> None:
    recorded = Recorded(evidence_dir, Tee.TDX, "dcap-qvl-tdx_quote_outdated")
    with pytest.raises(EvidenceError, match="below every TCB level"):
        claims_at(recorded, recorded.valid_at)


def signed_ranges(quote: Quote) -> list[range]:
    """Offsets of header and body, both signatures, attestation key, QE report and its binding."""
    start = len(quote.signed) + 4
    ranges = [range(len(quote.signed)), range(start, start + 128)]
    report = quote.raw.index(quote.qe_report)
    authentication = report + len(quote.qe_report) + 64 + 2
    ranges.append(range(report, report + len(quote.qe_report) + 64))
    ranges.append(range(authentication, authentication + len(quote.qe_auth_data)))
    return ranges


@pytest.mark.parametrize("name", ["recorded_td", "recorded_enclave"])
def test_each_of_500_flipped_bits_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    recorded: Recorded = request.getfixturevalue(name)
    genuine = parse_quote(recorded.raw)
    offsets = [offset for part in signed_ranges(genuine) for offset in part]
    chosen = random.Random(20)
    for _ in range(500):
        changed = bytearray(recorded.raw)
        changed[chosen.choice(offsets)] ^= 1 << chosen.randrange(8)
        with pytest.raises(EvidenceError):
            verify_quote(parse_quote(bytes(changed)), recorded.collateral, recorded.valid_at)


def test_flipped_bits_in_the_pck_certificate_are_refused(recorded_td: Recorded) -> None:
    genuine = parse_quote(recorded_td.raw)
    start = recorded_td.raw.index(genuine.pck_chain)
    chosen = random.Random(21)
    # the first certificate is the platform's; base64 may change case and still be a certificate
    end = start + genuine.pck_chain.index(b"-----END")
    for _ in range(60):
        changed = bytearray(recorded_td.raw)
        offset = chosen.randrange(start + 30, end)
        changed[offset] ^= 1 << chosen.randrange(6)
        if changed[offset] in b" \r\n\t" or recorded_td.raw[offset] in b"\n":
            continue
        with pytest.raises(EvidenceError):
            verify_quote(parse_quote(bytes(changed)), recorded_td.collateral, recorded_td.valid_at)


@pytest.mark.parametrize("name", ["recorded_td", "recorded_enclave"])
def test_each_changed_part_of_collateral_is_refused(
    name: str, request: pytest.FixtureRequest
) -> None:
    recorded: Recorded = request.getfixturevalue(name)
    document = json.loads(recorded.collateral_path.read_bytes())
    for member in ("tcb_info", "qe_identity"):
        changed = {**document, member: document[member].replace("UpToDate", "UpToDatf", 1)}
        changed[member] = changed[member].replace("nextUpdate", "nextUpdatf", 1)
        with pytest.raises(EvidenceError):
            parts = parse_collateral(json.dumps(changed).encode())
            verify_collateral(parts, recorded.tee, [intel_root()])
    for member in ("tcb_info_signature", "qe_identity_signature", "root_ca_crl", "pck_crl"):
        raw = bytearray.fromhex(document[member])
        raw[-1] ^= 1
        with pytest.raises(EvidenceError):
            parts = parse_collateral(json.dumps({**document, member: raw.hex()}).encode())
            verify_collateral(parts, recorded.tee, [intel_root()])


def test_collateral_of_another_platform_or_kind_is_refused(
    recorded_td: Recorded, recorded_enclave: Recorded, evidence_dir: Path
) -> None:
    other = Recorded(evidence_dir, Tee.TDX, "dcap-qvl-tdx_quote_outdated")
    with pytest.raises(EvidenceError, match="the quote is of"):
        verify_quote(parse_quote(recorded_td.raw), other.collateral, other.valid_at)
    with pytest.raises(EvidenceError, match="the quote is of"):
        verify_quote(parse_quote(recorded_td.raw), recorded_enclave.collateral, other.valid_at)
    parts = parse_collateral(recorded_enclave.collateral_path.read_bytes())
    with pytest.raises(EvidenceError, match="not tdx"):
        verify_collateral(parts, Tee.TDX, [intel_root()])


def test_the_claims_of_a_recorded_td_with_its_event_log(evidence_dir: Path) -> None:
    quote = parse_quote((evidence_dir / "tdx" / "tdx_quote_4.dat").read_bytes())
    log = parse_event_log((evidence_dir / "eventlog" / "CCEL_data").read_bytes())
    claims = quote_claims(quote, parse_pck_chain(quote.pck_chain))
    # the two were recorded on different boots, so the log is not held against the quote here
    claims["uefi_event_logs"] = log.claims()
    expected = json.loads((evidence_dir / "tdx" / "parse_tdx_claims_expected.json").read_bytes())
    assert claims == expected


def test_the_log_of_another_td_is_refused(evidence_dir: Path) -> None:
    quote = parse_quote((evidence_dir / "tdx" / "tdx_quote_4.dat").read_bytes())
    log = parse_event_log((evidence_dir / "eventlog" / "CCEL_data_ovmf").read_bytes())
    with pytest.raises(EvidenceError, match="does not give measurement register"):
        verify_event_log(quote, log)


@pytest.mark.parametrize(
    ("name", "version", "body_type"),
    [
        ("tdx_quote_4.dat", 4, None),
        ("tdx_quote_5.dat", 5, (b"\x03\0", (648).to_bytes(4, "little"))),
        ("tdx_quote_6.dat", 4, None),
    ],
)
def test_recorded_td_quotes_are_read(
    name: str, version: int, body_type: object, evidence_dir: Path
) -> None:
    quote = parse_quote((evidence_dir / "tdx" / name).read_bytes())
    assert (quote.tee, quote.version, quote.body_type) == (Tee.TDX, version, body_type)
    claims = quote_claims(quote, parse_pck_chain(quote.pck_chain))
    assert claims["quote"]["header"]["version"] == f"0{version}00"
    assert len(claims["init_data"]) == 96
    assert ("tee_tcb_svn2" in claims["quote"]["body"]) is (body_type is not None)


def test_the_claims_of_a_recorded_enclave(evidence_dir: Path) -> None:
    quote = parse_quote((evidence_dir / "sgx" / "occlum_quote.dat").read_bytes())
    claims = quote_claims(quote, parse_pck_chain(quote.pck_chain))
    assert claims["header"] == {
        "version": "0300",
        "att_key_type": "0200",
        "att_key_data_0": "00000000",
        "qe_svn": "0800",
        "pce_svn": "0d00",
        "vendor_id": "939a7233f79c4ca9940a0db3957f0607",
        "user_data": "dccde9b31ce8860548173bb4a2a57a1600000000",
    }
    body = claims["body"]
    assert body["mr_enclave"] == "8f173e4613ff05c52aaf04162d234edae8c9977eae47eb2299ae16a553011c68"
    assert body["attributes.flags"] == "0700000000000000"
    assert body["isv_family_id"] == "00" * 16
    assert claims["report_data"].startswith("74657374" + "00" * 8)
    assert claims["init_data"] == "00" * 64
    assert claims["platform_instance_id"] == "7a3a6941065cd5060bd93d3db2cfc0c8"
    assert claims["debug"] is True


@pytest.mark.parametrize(
    ("name", "member"), [("tcbInfo.json", "tcbInfo"), ("enclaveIdentity.json", "enclaveIdentity")]
)
def test_intels_signature_holds_over_the_bytes_that_are_taken(
    name: str, member: str, evidence_dir: Path, recorded_td: Recorded
) -> None:
    raw = (evidence_dir / "tdx" / name).read_bytes()
    document = json.loads(raw)
    (signer, _) = parse_certificates(
        recorded_td.collateral.parts.tcb_info_issuer_chain.encode("ascii")
    )
    key = signer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signature = bytes.fromhex(document["signature"])
    encoded = encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )
    # as they lie in a service's answer, and as they are written anew from a file of Intel's tool
    start = raw.index(b"{", 1)
    sliced = raw[start : raw.rindex(b',"signature"')]
    rewritten = json.dumps(document[member], separators=(",", ":"), ensure_ascii=False).encode()
    assert sliced == rewritten
    key.verify(encoded, sliced, ec.ECDSA(hashes.SHA256()))
