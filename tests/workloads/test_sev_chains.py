"""SEV certificate chains: real ones, software ones, and everything that is none."""

import base64
import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workloads.conftest import platform_chain

from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.softtee.sev import (
    CEK,
    OCA,
    PDH,
    PEK,
    SoftwareAmd,
    SoftwareSevPlatform,
    certificate_body,
    signed_certificate,
)
from keybroker.verifiers import sev_roots
from keybroker.verifiers.sev_certificate import (
    MAX_CERTIFICATE_BYTES,
    PLATFORM_CERTIFICATE_BYTES,
    Usage,
    parse_amd_certificate,
    parse_platform_certificate,
)
from keybroker.verifiers.sev_chain import SevChain, SevChainVerifier
from keybroker.verifiers.sev_roots import amd_sev_anchors, load_extra_sev_anchor, sev_trust_anchors

REAL = ("naples", "rome", "milan", "milan-other")
NAMES = ("pdh", "pek", "oca", "cek", "ask", "ark")


def software_chain(platform: SoftwareSevPlatform) -> SevChain:
    return SevChain(**dataclasses.asdict(platform.chain))


@pytest.fixture
def verifier(tmp_path: Path, sev_platform: SoftwareSevPlatform) -> SevChainVerifier:
    path = tmp_path / "ark.cert"
    path.write_bytes(sev_platform.root())
    return SevChainVerifier(sev_trust_anchors([path]))


@pytest.mark.parametrize("name", REAL)
def test_chains_of_real_platforms_verify_up_to_amds_roots(name: str) -> None:
    chain = SevChain(**platform_chain(name))
    key = SevChainVerifier(amd_sev_anchors()).verify(chain)
    assert key.amd_root
    assert key.root_sha256 == sev_roots.SEV_PINS[f"{name.split('-')[0]}-ark.cert"]
    x = int.from_bytes(chain.pdh[20:68], "little")
    assert key.key.public_numbers().x == x


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_the_roots_hold_the_same_keys_as_amds_x509_roots(product: str) -> None:
    folder = Path(sev_roots.__file__).parent / "roots" / "amd"
    pem = (folder / f"{product}-ark.pem").read_text()
    der = base64.b64decode("".join(line for line in pem.splitlines() if "-" not in line))
    ark = parse_amd_certificate((folder / "sev" / f"{product}-ark.cert").read_bytes(), Usage.ARK)
    assert ark.key.public_numbers().n.to_bytes(512, "big") in der


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_in_a_real_chain_is_refused(name: str) -> None:
    verifier = SevChainVerifier(amd_sev_anchors())
    chain = SevChain(**platform_chain("milan"))
    certificate = getattr(chain, name)
    # every byte that has a meaning of its own, and the rest in steps
    places = sorted({*range(24), *range(24, len(certificate), 61), len(certificate) - 1})
    for place in places:
        changed = bytearray(certificate)
        changed[place] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            verifier.verify(dataclasses.replace(chain, **{name: bytes(changed)}))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_software_chain_is_refused(
    data: st.DataObject, sev_platform: SoftwareSevPlatform
) -> None:
    chain = software_chain(sev_platform)
    name = data.draw(st.sampled_from(NAMES))
    certificate = bytearray(getattr(chain, name))
    bit = data.draw(st.integers(0, len(certificate) * 8 - 1))
    certificate[bit // 8] ^= 1 << bit % 8
    ark = parse_amd_certificate(chain.ark, Usage.ARK)
    verifier = SevChainVerifier([sev_roots.SevTrustAnchor(ark, built_in=False)])
    with pytest.raises(EvidenceError):
        verifier.verify(dataclasses.replace(chain, **{name: bytes(certificate)}))


def test_a_software_chain_verifies_under_a_configured_root_alone(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    chain = software_chain(sev_platform)
    assert not verifier.verify(chain).amd_root
    with pytest.raises(EvidenceError, match="not trusted"):
        SevChainVerifier(amd_sev_anchors()).verify(chain)


def test_a_chip_with_keys_of_4096_bits_verifies() -> None:
    amd = SoftwareAmd.create(4096)
    assert len(amd.ark) == len(amd.ask) == 1600
    ark = parse_amd_certificate(amd.ark, Usage.ARK)
    verifier = SevChainVerifier([sev_roots.SevTrustAnchor(ark, built_in=False)])
    verifier.verify(software_chain(SoftwareSevPlatform.create(amd=amd)))


def test_what_clients_send_behind_a_shorter_certificate_does_not_count(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    chain = software_chain(sev_platform)
    assert len(chain.ask) == 832
    verifier.verify(
        dataclasses.replace(chain, ask=chain.ask + b"\xaa" * 768, ark=chain.ark + b"\xbb" * 768)
    )


@pytest.mark.parametrize(("one", "other"), [("pdh", "pek"), ("oca", "cek"), ("ask", "ark")])
def test_a_chain_in_the_wrong_order_is_refused(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform, one: str, other: str
) -> None:
    chain = software_chain(sev_platform)
    swapped = {one: getattr(chain, other), other: getattr(chain, one)}
    with pytest.raises(EvidenceError, match="in the place of"):
        verifier.verify(dataclasses.replace(chain, **swapped))


@pytest.mark.parametrize("name", ["pdh", "pek", "cek", "oca"])
def test_a_certificate_of_another_platform_is_refused(name: str) -> None:
    verifier = SevChainVerifier(amd_sev_anchors())
    chain, other = (SevChain(**platform_chain(which)) for which in ("milan", "milan-other"))
    with pytest.raises(EvidenceError, match="not signed"):
        verifier.verify(dataclasses.replace(chain, **{name: getattr(other, name)}))


def test_a_pdh_that_another_platform_signed_is_refused(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    other = SoftwareSevPlatform.create()
    with pytest.raises(EvidenceError, match="PDH certificate is not signed by the PEK"):
        verifier.verify(dataclasses.replace(software_chain(sev_platform), pdh=other.chain.pdh))


def test_an_owners_authority_alone_proves_nothing(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    """A PEK that only an OCA of the attacker's own signed does not verify."""
    keys = {usage: ec.generate_private_key(ec.SECP384R1()) for usage in (OCA, PEK, PDH)}
    bodies = {usage: certificate_body(usage, key.public_key()) for usage, key in keys.items()}
    forged = dataclasses.replace(
        software_chain(sev_platform),
        oca=signed_certificate(bodies[OCA], (OCA, keys[OCA])),
        pek=signed_certificate(bodies[PEK], (OCA, keys[OCA])),
        pdh=signed_certificate(bodies[PDH], (PEK, keys[PEK])),
    )
    with pytest.raises(EvidenceError, match="no signature by CEK"):
        verifier.verify(forged)
    signed_by_itself = signed_certificate(bodies[PEK], (OCA, keys[OCA]), (CEK, keys[OCA]))
    with pytest.raises(EvidenceError, match="not signed by the CEK"):
        verifier.verify(dataclasses.replace(forged, pek=signed_by_itself))


def test_a_signature_too_many_is_refused(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    chain = software_chain(sev_platform)
    doubled = chain.oca[:1044] + chain.oca[1044:1564] * 2
    with pytest.raises(EvidenceError, match="too many"):
        verifier.verify(dataclasses.replace(chain, oca=doubled))


def test_a_key_off_the_curve_is_refused(sev_platform: SoftwareSevPlatform) -> None:
    raw = bytearray(sev_platform.chain.pdh)
    raw[92:140] = bytes(48)
    with pytest.raises(EvidenceError, match="not a point"):
        parse_platform_certificate(bytes(raw), Usage.PDH)


@pytest.mark.parametrize("size", [0, 63, 64, 831, 1599])
def test_a_cut_off_certificate_is_refused(size: int) -> None:
    raw = platform_chain("rome")["ark"][:size]
    with pytest.raises(EvidenceError):
        parse_amd_certificate(raw, Usage.ARK)


@settings(max_examples=150, deadline=None)
@given(
    raw=st.binary(max_size=MAX_CERTIFICATE_BYTES + 8)
    | st.binary(min_size=PLATFORM_CERTIFICATE_BYTES, max_size=PLATFORM_CERTIFICATE_BYTES),
    usage=st.sampled_from(Usage),
)
def test_foreign_bytes_give_a_certificate_or_the_one_error(raw: bytes, usage: Usage) -> None:
    for parse in (parse_platform_certificate, parse_amd_certificate):
        with pytest.raises(EvidenceError):
            parse(raw, usage)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    place=st.integers(0, PLATFORM_CERTIFICATE_BYTES - 1),
    change=st.binary(min_size=1, max_size=64),
)
def test_changed_certificates_give_a_certificate_or_the_one_error(
    name: str, place: int, change: bytes
) -> None:
    raw = bytearray(platform_chain("rome")[name])
    raw[place : place + len(change)] = change
    try:
        if name in ("ask", "ark"):
            parse_amd_certificate(bytes(raw), Usage[name.upper()])
        else:
            parse_platform_certificate(bytes(raw), Usage[name.upper()])
    except EvidenceError as error:
        assert error.diagnostics()


def test_a_root_that_is_not_self_signed_is_not_taken(
    tmp_path: Path, sev_platform: SoftwareSevPlatform
) -> None:
    path = tmp_path / "ark.cert"
    raw = bytearray(sev_platform.root())
    raw[-1] ^= 1
    for content in (bytes(raw), b"", sev_platform.chain.ask, b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be used"):
            load_extra_sev_anchor(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_extra_sev_anchor(tmp_path / "absent")


def test_a_verified_chain_is_verified_once(
    verifier: SevChainVerifier, sev_platform: SoftwareSevPlatform
) -> None:
    chain = software_chain(sev_platform)
    assert verifier.verify(chain) is verifier.verify(software_chain(sev_platform))


def test_small_exponents_do_not_make_a_key(sev_platform: SoftwareSevPlatform) -> None:
    raw = bytearray(sev_platform.chain.ark)
    raw[64:320] = bytes(256)
    with pytest.raises(EvidenceError):
        parse_amd_certificate(bytes(raw), Usage.ARK)
    assert isinstance(
        parse_amd_certificate(sev_platform.chain.ark, Usage.ARK).key, rsa.RSAPublicKey
    )
