"""From a chip's certificate to a trusted root, and from a report to that certificate.

::

    ARK (root, trusted) ──▶ ASK  ──▶ VCEK  one chip at one firmware level
                       └──▶ ASVK ──▶ VLEK  one cloud provider at one firmware level

A VCEK or VLEK certificate says for which hardware and which firmware its key is: every extension of
it that has a counterpart in the report must agree with the report, or a key of an old, broken
firmware could speak for a patched one.

Specification: AMD 57230, VCEK Certificate and KDS Interface, tables 9 to 13.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keybroker.model.errors import EvidenceError
from keybroker.verifiers import der
from keybroker.verifiers.der import DerError, DerReader
from keybroker.verifiers.snp_report import Generation, SigningKey, SnpReport, Tcb
from keybroker.verifiers.snp_roots import TrustAnchor, issuer_name
from keybroker.verifiers.x509 import (
    Certificate,
    parse_certificate,
    verify_issued_by,
    verify_valid_at,
)

_AMD = "1.3.6.1.4.1.3704.1"
PRODUCT_NAME: Final = f"{_AMD}.2"
BOOTLOADER_SPL: Final = f"{_AMD}.3.1"
TEE_SPL: Final = f"{_AMD}.3.2"
SNP_SPL: Final = f"{_AMD}.3.3"
MICROCODE_SPL: Final = f"{_AMD}.3.8"
FMC_SPL: Final = f"{_AMD}.3.9"
HARDWARE_ID: Final = f"{_AMD}.4"
PROVIDER_ID: Final = f"{_AMD}.5"

_COMMON_NAMES = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}

#: Verified chains that are remembered: some 5 KiB each, one a chip and firmware level.
MAX_REMEMBERED_CHAINS: Final = 2048


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """A VCEK or VLEK whose chain verified up to a trusted root.

    Attributes:
        kind: VCEK or VLEK.
        generation: the processors that it is for.
        tcb: the firmware that it is for.
        hardware_id: the chip that it is for, 64 bytes or 8 (Turin); None for a VLEK.
        provider: the cloud provider that a VLEK is for; None for a VCEK.
        key: the P-384 public key.
        chain: the certificate, its issuer and the root, in this order.
        root_sha256: SHA-256 of the root's DER in hexadecimal.
        amd_root: whether the root is AMD's own.
    """

    kind: SigningKey
    generation: Generation
    tcb: Tcb
    hardware_id: bytes | None
    provider: str | None
    key: ec.EllipticCurvePublicKey = field(repr=False)
    chain: tuple[Certificate, Certificate, Certificate]
    root_sha256: str
    amd_root: bool

    def verify_valid_at(self, moment: datetime) -> Self:
        """Check that a moment lies in the validity of every certificate of the chain.

        Raises:
            EvidenceError: it does not.
        """
        for certificate in self.chain:
            verify_valid_at(certificate, moment)
        return self

    def verify_is_for(self, tcb: Tcb, hardware_id: bytes | None) -> Self:
        """Check that the key is for this firmware and, if it is a VCEK, for this chip.

        Args:
            tcb: the reported TCB.
            hardware_id: None where it is not known: then no chip is compared.

        Raises:
            EvidenceError: it is for others; the diagnostics name the part that differs.
        """
        if self.tcb != tcb:
            for part in ("bootloader", "tee", "snp", "microcode", "fmc"):
                certified, reported = getattr(self.tcb, part), getattr(tcb, part)
                if certified != reported:
                    raise EvidenceError(
                        f"the certificate is for {part} version {certified},"
                        f" the report says {reported}"
                    )
        if None not in (self.hardware_id, hardware_id) and self.hardware_id != hardware_id:
            raise EvidenceError("the certificate is for another chip than the report's chip id")
        return self


class ChainVerifier:
    """Verifies chains up to given anchors, each once: verified ones are remembered.

    Safe to use from several threads.
    """

    def __init__(self, anchors: Sequence[TrustAnchor]) -> None:
        self._anchors = tuple(anchors)
        self._remembered: OrderedDict[bytes, EndorsementKey] = OrderedDict()
        self._lock = Lock()

    def verify(
        self,
        certificate: bytes,
        *,
        kind: SigningKey,
        generation: Generation,
        at: datetime,
        ask: bytes | None = None,
        ark: bytes | None = None,
    ) -> EndorsementKey:
        """Verify the chain of a VCEK or VLEK.

        Args:
            certificate: the VCEK or VLEK, DER or PEM.
            kind: which of the two it must be.
            generation: the processor that it must be for.
            at: the moment at which all of the chain must be valid.
            ask: the ASK (or ASVK) that came with it; it must verify. None: the known one is taken.
            ark: the ARK that came with it; it must be a trusted one.

        Raises:
            EvidenceError: the chain does not verify; the diagnostics say where.
        """
        # lengths keep the parts apart; certificates are far shorter than 2**32 bytes
        digest = hashlib.sha256(f"{kind} {generation}".encode())
        for part in (certificate, ask, ark):
            digest.update(b"-" if part is None else len(part).to_bytes(4, "big") + part)
        memory_key = digest.digest()
        with self._lock:
            endorsement = self._remembered.get(memory_key)
            if endorsement is not None:
                self._remembered.move_to_end(memory_key)
        if endorsement is None:
            endorsement = self._verify_signatures(certificate, kind, generation, ask, ark)
            with self._lock:
                self._remembered[memory_key] = endorsement
                if len(self._remembered) > MAX_REMEMBERED_CHAINS:
                    self._remembered.popitem(last=False)
        return endorsement.verify_valid_at(at)

    def _verify_signatures(
        self,
        certificate: bytes,
        kind: SigningKey,
        generation: Generation,
        ask: bytes | None,
        ark: bytes | None,
    ) -> EndorsementKey:
        leaf = parse_certificate(certificate)
        if _COMMON_NAMES.get(leaf.subject_cn) is not kind:
            raise EvidenceError(
                f"the report is signed by a {kind.upper()}, the certificate is of"
                f" {leaf.subject_cn!r}"
            )
        issuer, anchor = self._issuer(leaf, kind, generation, ask, ark)
        verify_issued_by(leaf, issuer)
        return _endorsement_key(leaf, kind, issuer, anchor)

    def _issuer(
        self,
        leaf: Certificate,
        kind: SigningKey,
        generation: Generation,
        ask: bytes | None,
        ark: bytes | None,
    ) -> tuple[Certificate, TrustAnchor]:
        """Find the certificate that must have issued the leaf, verified under an anchor."""
        anchors = [anchor for anchor in self._anchors if anchor.generation is generation]
        if ark is not None:
            root = parse_certificate(ark)
            anchors = [
                anchor
                for anchor in anchors
                if anchor.ark.subject == root.subject
                and anchor.ark.public_key_info == root.public_key_info
            ]
            if not anchors:
                raise EvidenceError(
                    f"the ARK that came with the report ({root.subject_cn!r}, SHA-256"
                    f" {root.fingerprint()}) is not a trusted root for {generation}"
                )
        if ask is not None:
            return _verify_issuer(parse_certificate(ask), kind, anchors, generation)
        known = [
            (issuer, anchor)
            for anchor in anchors
            if (issuer := anchor.issuer_of(kind)) is not None and issuer.subject == leaf.issuer
        ]
        for issuer, anchor in known[:-1]:
            # several roots may go by one name; the signature tells whose it is
            try:
                verify_issued_by(leaf, issuer)
            except EvidenceError:
                continue
            return issuer, anchor
        if not known:
            raise EvidenceError(f"no trusted issuer is known by the name {leaf.issuer_cn!r}")
        return known[-1]


def _verify_issuer(
    issuer: Certificate, kind: SigningKey, anchors: list[TrustAnchor], generation: Generation
) -> tuple[Certificate, TrustAnchor]:
    expected = issuer_name(generation, kind)
    if issuer.subject_cn != expected:
        raise EvidenceError(
            f"the issuer that came with the report is {issuer.subject_cn!r}, not {expected!r}"
        )
    failure = EvidenceError(f"{issuer.subject_cn!r} names a root that is not trusted")
    for anchor in anchors:
        known = anchor.issuer_of(kind)
        if known is not None and known.der == issuer.der:
            return known, anchor  # it was verified when the anchor was loaded
        try:
            return verify_issued_by(issuer, anchor.ark), anchor
        except EvidenceError as error:
            failure = error
    raise failure


def _endorsement_key(
    leaf: Certificate, kind: SigningKey, issuer: Certificate, anchor: TrustAnchor
) -> EndorsementKey:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceError(f"the key of {leaf.subject_cn!r} is not on P-384")
    generation = anchor.generation
    product = _text(leaf, PRODUCT_NAME)
    # "Milan-B0" in a VCEK, "Milan" in a VLEK
    if product.partition("-")[0] != generation:
        raise EvidenceError(f"the certificate is for the product {product!r}, not {generation}")
    is_vcek = kind is SigningKey.VCEK
    if (HARDWARE_ID in leaf.extensions) is not is_vcek:
        raise EvidenceError(
            f"a certificate of a {kind.upper()} {'lacks' if is_vcek else 'has'} a hardware id"
        )
    return EndorsementKey(
        kind=kind,
        generation=generation,
        tcb=Tcb(
            bootloader=_patch_level(leaf, BOOTLOADER_SPL),
            tee=_patch_level(leaf, TEE_SPL),
            snp=_patch_level(leaf, SNP_SPL),
            microcode=_patch_level(leaf, MICROCODE_SPL),
            fmc=_patch_level(leaf, FMC_SPL) if generation.has_fmc else None,
        ),
        hardware_id=_hardware_id(leaf, generation) if is_vcek else None,
        provider=None if is_vcek else _text(leaf, PROVIDER_ID),
        key=key,
        chain=(leaf, issuer, anchor.ark),
        root_sha256=anchor.ark.fingerprint(),
        amd_root=anchor.built_in,
    )


def _extension(certificate: Certificate, oid: str) -> bytes:
    extension = certificate.extensions.get(oid)
    if extension is None:
        raise EvidenceError(f"{certificate.subject_cn!r} lacks the extension {oid}")
    return extension.value


def _patch_level(certificate: Certificate, oid: str) -> int:
    try:
        reader = DerReader(_extension(certificate, oid))
        level = reader.integer()
        reader.finish()
    except DerError as error:
        raise EvidenceError(f"the extension {oid}: {error}") from None
    if not 0 <= level <= 0xFF:
        raise EvidenceError(f"the extension {oid} is not a number of one byte")
    return level


def _text(certificate: Certificate, oid: str) -> str:
    try:
        reader = DerReader(_extension(certificate, oid))
        text = reader.read(der.IA5_STRING)
        reader.finish()
        return text.decode("ascii")
    except (DerError, UnicodeDecodeError) as error:
        raise EvidenceError(f"the extension {oid} is not an IA5String: {error}") from None


def _hardware_id(certificate: Certificate, generation: Generation) -> bytes:
    value = _extension(certificate, HARDWARE_ID)
    size = generation.hardware_id_bytes
    # older certificates hold the bare id, newer ones an OCTET STRING; only the length tells
    if len(value) == size:
        return value
    if len(value) == size + 2 and value[:2] == bytes((der.OCTET_STRING, size)):
        return value[2:]
    raise EvidenceError(f"the hardware id is not one of {size} bytes")


def verify_report(report: SnpReport, endorsement: EndorsementKey) -> SnpReport:
    """Check that a verified key signed a report and is the key for what the report says.

    Raises:
        EvidenceError: another kind of key, chip, firmware or processor, or a bad signature.
    """
    if endorsement.kind is not report.signing_key:
        raise EvidenceError(
            f"the report says that a {report.signing_key.upper()} signed it, the certificate is of"
            f" a {endorsement.kind.upper()}"
        )
    if endorsement.generation is not report.generation:
        raise EvidenceError(
            f"the certificate is for {endorsement.generation}, the report from {report.generation}"
        )
    try:
        endorsement.key.verify(
            encode_dss_signature(report.signature_r, report.signature_s),
            report.signed,
            ec.ECDSA(hashes.SHA384()),
        )
    except InvalidSignature:
        raise EvidenceError(
            f"the signature of the report is not by the {endorsement.kind.upper()}"
        ) from None
    # A masked chip id cannot be compared; the signature still ties the report to one chip.
    endorsement.verify_is_for(
        report.reported_tcb, None if report.chip_id_is_masked else report.hardware_id
    )
    return report
