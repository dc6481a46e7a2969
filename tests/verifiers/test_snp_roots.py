"""The trusted roots: AMD's by their pins, others by name and with a warning."""

import logging
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.softtee.certificates import issue_certificate, issuer_extensions
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.verifiers.snp_report import Generation, SigningKey
from keybroker.verifiers.snp_roots import (
    PINS,
    amd_anchors,
    load_extra_anchor,
    load_pinned,
    trust_anchors,
)
from keybroker.verifiers.x509 import parse_certificate, verify_issued_by

ROOTS = resources.files("keybroker.verifiers") / "roots" / "amd"

#: Held against AMD's publications by hand; written out again so that code and test agree on them.
PUBLISHED = {
    "ARK-Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "SEV-Milan": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
    "SEV-VLEK-Milan": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
    "ARK-Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "SEV-Genoa": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
    "SEV-VLEK-Genoa": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
    "ARK-Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    "SEV-Turin": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
    "SEV-VLEK-Turin": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
}


def test_the_built_in_certificates_are_the_published_ones():
    found = {}
    for anchor in amd_anchors():
        for certificate in (anchor.ark, anchor.ask, anchor.asvk):
            assert certificate is not None
            found[certificate.subject_cn] = certificate.fingerprint()
    assert found == PUBLISHED
    assert sorted(PINS.values()) == sorted(PUBLISHED.values())


def test_every_generation_has_a_whole_anchor():
    assert [anchor.generation for anchor in amd_anchors()] == list(Generation)
    for anchor in amd_anchors():
        assert anchor.built_in
        for kind in SigningKey:
            issuer = anchor.issuer_of(kind)
            assert issuer is not None
            verify_issued_by(issuer, anchor.ark)


def test_a_changed_built_in_file_is_refused(tmp_path: Path):
    other = tmp_path / "milan-ark.pem"
    other.write_bytes((ROOTS / "genoa-ark.pem").read_bytes())
    with pytest.raises(ConfigError, match="not pinned"):
        load_pinned("milan-ark.pem", other)
    other.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pinned("milan-ark.pem", other)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pinned("milan-ark.pem", tmp_path / "absent")


@pytest.mark.parametrize("form", ["pem", "der", "chain"])
def test_another_root_is_taken_and_reported(form, tmp_path, caplog, platform_of):
    platform = platform_of("Genoa")
    content = {
        "pem": platform.root_pem(),
        "der": platform.issuer_certificate("ark"),
        "chain": platform.chain_pem(),
    }[form]
    path = tmp_path / "root"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        anchor = trust_anchors([path])[-1]
    assert anchor.generation is Generation.GENOA
    assert not anchor.built_in
    assert (anchor.ask is not None) is (anchor.asvk is not None) is (form == "chain")
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert anchor.ark.fingerprint() in warning.getMessage()


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "root"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_extra_anchor(path)
    return caught.value.diagnostics()


def test_what_is_no_root_is_refused(tmp_path, platform_of):
    milan, genoa = platform_of("Milan"), platform_of("Genoa")
    assert "0 self-issued" in refused(tmp_path, milan.issuer_certificate("ask"))
    assert "2 self-issued" in refused(tmp_path, milan.root_pem() + genoa.root_pem())
    assert "has no place" in refused(tmp_path, milan.chain_pem() + milan.chain_pem().replace(
        milan.root_pem(), b""))  # fmt: skip
    stranger = SoftwareSnpPlatform.create("Milan").chain_pem().split(b"-----END CERTIFICATE-----\n")
    ask = stranger[1] + b"-----END CERTIFICATE-----\n"
    assert "not signed by" in refused(tmp_path, milan.root_pem() + ask)
    assert "neither DER nor PEM" in refused(tmp_path, b"")
    assert "larger than" in refused(tmp_path, bytes(1024 * 1024))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_extra_anchor(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_extra_anchor(tmp_path)


def test_a_root_that_is_not_named_as_one_is_refused(tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    root = issue_certificate(
        subject="my root",
        issuer="my root",
        public_key=key.public_key(),
        signing_key=key,
        not_before=datetime(2020, 1, 1, tzinfo=UTC),
        not_after=datetime(2060, 1, 1, tzinfo=UTC),
        extensions=issuer_extensions(),
    )
    assert "not the name of an ARK" in refused(tmp_path, root)


def test_amds_certificates_are_what_their_names_say():
    for name in PINS:
        certificate = parse_certificate((ROOTS / name).read_bytes())
        product, kind = name.removesuffix(".pem").split("-")
        prefix = {"ark": "ARK-", "ask": "SEV-", "asvk": "SEV-VLEK-"}[kind]
        assert certificate.subject_cn == prefix + product.capitalize()


def test_a_root_whose_signature_is_broken_is_refused(tmp_path, platform_of):
    raw = bytearray(platform_of("Milan").issuer_certificate("ark"))
    raw[-1] ^= 1
    assert "not signed by" in refused(tmp_path, bytes(raw))
    with pytest.raises(EvidenceError):
        verify_issued_by(parse_certificate(bytes(raw)), parse_certificate(bytes(raw)))
