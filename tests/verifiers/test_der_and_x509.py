"""The certificate reader: against another implementation, and against anything at all."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509 as other
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import EvidenceError
from keybroker.softtee import der as writer
from keybroker.softtee.certificates import Extension, issue_certificate, issuer_extensions
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.verifiers import der
from keybroker.verifiers.der import DerError, DerReader, decode_integer, decode_oid
from keybroker.verifiers.x509 import (
    MAX_CERTIFICATE_BYTES,
    parse_certificate,
    parse_certificates,
    verify_issued_by,
    verify_signed_by,
    verify_valid_at,
)

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
START = datetime(2020, 2, 29, 12, 30, 15, tzinfo=UTC)
END = datetime(2055, 1, 1, tzinfo=UTC)
VCEK = SoftwareSnpPlatform.create("Milan").vek().certificate


def make_certificate(key=EC_KEY, *, ca=True, algorithm=None, rsa_padding=None, name="a name"):
    subject = other.Name([other.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        other.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(0x1234)
        .not_valid_before(START)
        .not_valid_after(END)
        .add_extension(other.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(other.SubjectKeyIdentifier(b"id"), critical=False)
    )
    certificate = builder.sign(key, algorithm or hashes.SHA256(), rsa_padding=rsa_padding)
    return certificate.public_bytes(Encoding.DER), certificate


def pss(algorithm, salt=None):
    return padding.PSS(padding.MGF1(algorithm), salt or algorithm.digest_size)


def test_fields_are_what_another_implementation_reads():
    raw, expected = make_certificate()
    certificate = parse_certificate(raw)
    assert certificate.serial == expected.serial_number
    assert certificate.tbs == expected.tbs_certificate_bytes
    assert certificate.signature == expected.signature
    assert certificate.subject_cn == certificate.issuer_cn == "a name"
    assert certificate.subject == expected.subject.public_bytes()
    assert (certificate.not_before, certificate.not_after) == (START, END)
    assert certificate.public_key_info == expected.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert set(certificate.extensions) == {e.oid.dotted_string for e in expected.extensions}
    assert certificate.extensions["2.5.29.19"].critical
    assert not certificate.extensions["2.5.29.14"].critical
    assert certificate.fingerprint() == expected.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
@pytest.mark.parametrize("kind", ["ecdsa", "pkcs1", "pss"])
def test_signatures_of_every_kind_verify_and_break_with_one_bit(algorithm, kind):
    key = EC_KEY if kind == "ecdsa" else RSA_KEY
    scheme = pss(algorithm) if kind == "pss" else None
    raw, _ = make_certificate(key, algorithm=algorithm, rsa_padding=scheme)
    certificate = parse_certificate(raw)
    assert verify_issued_by(certificate, certificate) is certificate
    broken = parse_certificate(raw.replace(b"a name", b"b name"))
    with pytest.raises(EvidenceError, match="not signed by"):
        verify_signed_by(broken, key.public_key())


def test_a_key_of_the_other_kind_does_not_verify():
    by_ec, by_rsa = (parse_certificate(make_certificate(key)[0]) for key in (EC_KEY, RSA_KEY))
    with pytest.raises(EvidenceError, match="not for an RSA key"):
        verify_signed_by(by_ec, RSA_KEY.public_key())
    with pytest.raises(EvidenceError, match="not for an EC key"):
        verify_signed_by(by_rsa, EC_KEY.public_key())


def test_a_pss_salt_of_another_length_is_refused():
    raw, _ = make_certificate(RSA_KEY, rsa_padding=pss(hashes.SHA256(), 20))
    with pytest.raises(EvidenceError, match="salt of 20"):
        verify_signed_by(parse_certificate(raw), RSA_KEY.public_key())


def test_a_pss_mask_with_another_hash_is_refused():
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 32)
    raw, _ = make_certificate(RSA_KEY, rsa_padding=scheme)
    with pytest.raises(EvidenceError, match="two different hashes"):
        verify_signed_by(parse_certificate(raw), RSA_KEY.public_key())


def test_who_may_not_sign_certificates_by_its_key_usage_cannot_issue():
    constraints, _ = issuer_extensions()
    usage = Extension("2.5.29.15", writer.bit_string(b"\x80", unused_bits=7), critical=True)
    raw = issue_certificate(
        subject="a", issuer="a", public_key=RSA_KEY.public_key(), signing_key=RSA_KEY,
        not_before=START, not_after=END, extensions=[constraints, usage],
    )  # fmt: skip
    certificate = parse_certificate(raw)
    with pytest.raises(EvidenceError, match="key usage"):
        verify_issued_by(certificate, certificate)


def test_who_is_no_ca_cannot_issue():
    certificate = parse_certificate(make_certificate(ca=False)[0])
    with pytest.raises(EvidenceError, match="not a CA"):
        verify_issued_by(certificate, certificate)


def test_a_critical_extension_that_nobody_understands_is_refused():
    oid = "1.3.6.1.4.1.3704.1.99"
    platform = SoftwareSnpPlatform.create("Milan")
    issuer = parse_certificate(platform.issuer_certificate("ask"))
    for critical in (False, True):
        extension = Extension(oid, b"\x05\x00", critical=critical)
        leaf = parse_certificate(
            platform.vek_certificate(
                "vcek", platform.vek().key.public_key(), further_extensions=(extension,)
            )
        )
        if critical:
            with pytest.raises(EvidenceError, match="critical extension"):
                verify_issued_by(leaf, issuer)
        verify_issued_by(leaf, issuer, understood=[oid])


def test_the_issuers_name_has_to_be_the_one_that_is_named():
    one, two = (parse_certificate(make_certificate(name=name)[0]) for name in ("one", "two"))
    with pytest.raises(EvidenceError, match="names 'one' as its issuer"):
        verify_issued_by(one, two)


def test_validity_includes_both_ends():
    certificate = parse_certificate(make_certificate()[0])
    for moment in (START, END):
        assert verify_valid_at(certificate, moment) is certificate
    for moment in (START - timedelta(seconds=1), END + timedelta(seconds=1)):
        with pytest.raises(EvidenceError, match=r"expired|not valid before"):
            verify_valid_at(certificate, moment)


def test_a_common_name_that_would_flood_a_log_is_refused():
    name = f"ARK-{'x' * 300}"
    raw = issue_certificate(
        subject=name, issuer=name, public_key=RSA_KEY.public_key(), signing_key=RSA_KEY,
        not_before=START, not_after=END, extensions=issuer_extensions(),
    )  # fmt: skip
    with pytest.raises(EvidenceError, match="common name is too long"):
        parse_certificate(raw)


def test_serial_number_zero_is_read():
    assert parse_certificate(VCEK).serial == 0


def test_pem_and_der_give_the_same():
    raw, certificate = make_certificate()
    pem = certificate.public_bytes(Encoding.PEM)
    assert parse_certificate(pem) == parse_certificate(raw)
    assert [c.der for c in parse_certificates(b"text\n" + pem + b"\n" + pem)] == [raw, raw]
    with pytest.raises(EvidenceError, match="more than one"):
        parse_certificate(pem + pem)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAA=A\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" * 17,
    ],
)
def test_broken_pem_is_refused(pem):
    with pytest.raises(EvidenceError):
        parse_certificates(pem)


def test_a_certificate_beyond_the_limit_is_refused_unread():
    with pytest.raises(EvidenceError, match="larger than"):
        parse_certificate(b"\x30" + bytes(MAX_CERTIFICATE_BYTES))


def test_every_truncation_is_refused():
    for size in range(len(VCEK)):
        with pytest.raises(EvidenceError):
            parse_certificate(VCEK[:size])


def test_bytes_after_the_end_are_refused():
    with pytest.raises(EvidenceError, match="after the last element"):
        parse_certificate(VCEK + b"\0")


def swap(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in raw
    return raw.replace(old, new, 1)


def test_an_algorithm_that_differs_inside_and_outside_is_refused():
    raw, _ = make_certificate()
    sha256, sha384 = (bytes.fromhex(f"06082a8648ce3d04030{n}") for n in (2, 3))
    with pytest.raises(EvidenceError, match="inside and outside differ"):
        parse_certificate(swap(raw, sha256, sha384))


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_anything_at_all_is_refused_in_one_way(raw):
    for data in (raw, b"\x30" + raw, b"-----BEGIN CERTIFICATE-----" + raw):
        with pytest.raises(EvidenceError):
            parse_certificate(data)


@settings(deadline=None)
@given(st.integers(0, len(VCEK) - 1), st.integers(0, 255), st.binary(max_size=8))
def test_a_mutated_certificate_parses_or_is_refused_in_one_way(position, value, inserted):
    for mutated in (
        VCEK[:position] + bytes((value,)) + VCEK[position + 1 :],
        VCEK[:position] + inserted + VCEK[position:],
        VCEK[:position] + VCEK[position + 1 :],
    ):
        try:
            certificate = parse_certificate(mutated)
            verify_signed_by(certificate, RSA_KEY.public_key())
        except EvidenceError:
            pass
        else:
            pytest.fail("a certificate verified under a key that did not sign it")


@settings(deadline=None)
@given(st.integers(0, 2**200))
def test_integers_come_back(value):
    reader = DerReader(writer.integer(value))
    assert reader.integer() == value
    reader.finish()


@settings(deadline=None)
@given(st.integers(0, 2), st.lists(st.integers(0, 2**40), max_size=8), st.integers(0, 39))
def test_object_identifiers_come_back(first, arcs, second):
    dotted = ".".join(map(str, (first, second, *arcs)))
    assert DerReader(writer.oid(dotted)).oid() == dotted


@settings(deadline=None)
@given(st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)))
def test_times_come_back_to_the_second(moment):
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    raw = writer.element(der.GENERALIZED_TIME, f"{moment:%Y%m%d%H%M%S}Z".rjust(15, "0").encode())
    assert DerReader(raw).time() == moment
    if moment.year < 2050:
        assert DerReader(writer.time(moment)).time() == moment


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x02",
        b"\x02\x80\x00\x00",  # indefinite
        b"\x02\x81\x01\x05",  # longer than need be
        b"\x02\x82\x00\x81" + bytes(0x81),
        b"\x02\x85\x00\x00\x00\x00\x01\x05",
        b"\x02\x02\x01",  # longer than what holds it
        b"\x1f\x81\x01\x00",  # high tag number
        b"\x04\x01\x05",  # another tag
    ],
)
def test_what_is_not_canonical_is_refused(raw):
    with pytest.raises(DerError):
        DerReader(raw).integer()


@pytest.mark.parametrize("content", [b"", b"\x00\x05", b"\xff\x80"])
def test_empty_and_padded_integers_are_refused(content):
    with pytest.raises(DerError):
        decode_integer(content)


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x80\x01", b"\x2a\x86", b"\x2a" * 65])
def test_broken_object_identifiers_are_refused(content):
    with pytest.raises(DerError):
        decode_oid(content)


@pytest.mark.parametrize(
    "text", [b"20210229120000Z", b"20210228240000Z", b"20210228120000+", b"2021022812000 Z"]
)
def test_times_that_do_not_exist_are_refused(text):
    with pytest.raises(DerError):
        DerReader(writer.element(der.GENERALIZED_TIME, text)).time()


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_a_reader_raises_nothing_but_its_error(raw):
    for read in ("integer", "oid", "boolean", "bit_string", "time", "any", "enter"):
        try:
            getattr(DerReader(raw), read)()
        except DerError:
            pass
