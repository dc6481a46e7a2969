"""A quote, held against collateral at a moment.

``dcap-qvl`` checks the signatures: collateral, PCK chain, QE report, quote. Which TCB level the
platform has is found here as well, since the claims say more about it than the library tells, and
the two must agree.

Two kinds of quotes the library refuses on principle though they are genuine: SGX quotes of version
4, and those of debug TDs and debug enclaves. Their signatures are checked here. Whether a guest in
debug mode gets anything is the appraisal's business; the claims say what it is.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap import tcb
from keybroker.verifiers.dcap.collateral import CollateralKey, VerifiedCollateral
from keybroker.verifiers.dcap.crl import verify_not_revoked
from keybroker.verifiers.dcap.pck import PckCertificate, parse_pck_chain
from keybroker.verifiers.dcap.quote import Quote
from keybroker.verifiers.dcap.tcb import Level
from keybroker.verifiers.x509 import verify_issued_by, verify_valid_at

#: Collateral that is fetched when it is issued may be from a clock a little ahead of ours.
CLOCK_SKEW: Final = timedelta(minutes=5)

#: A list is no longer valid at the very second of its next update.
_SECOND: Final = timedelta(seconds=1)

TD_DEBUG: Final = 1 << 0
TD_SEPT_VE_DISABLE: Final = 1 << 28
TD_MIGRATABLE: Final = 1 << 29
_TD_SERVICE_TD_EXTENSION: Final = 1 << 17
#: Bits that a verifier must refuse: TDX Module ABI Specification 348551-008, table 3.23.
_TD_RESERVED: Final = 0x3FFF_FFFF_0780_FF8E


@dataclass(frozen=True, slots=True)
class QuoteVerdict:
    """What a genuine quote's platform is worth. Only :func:`verify_quote` makes these.

    Attributes:
        quote, pck, collateral: what was verified, and with what.
        level: TCB level that the workload was launched at, quoting enclave included.
        current: TCB level it runs at now; differs after an update that kept the TD running.
        expired: whether anything that it was verified with was past its time.
        earliest_issue, latest_issue, earliest_expiration: over all of that.
    """

    quote: Quote
    pck: PckCertificate
    collateral: VerifiedCollateral
    level: Level
    current: Level
    expired: bool
    earliest_issue: datetime = field(repr=False)
    latest_issue: datetime = field(repr=False)
    earliest_expiration: datetime = field(repr=False)


def collateral_key(quote: Quote) -> CollateralKey:
    """Say which collateral a quote needs.

    Raises:
        EvidenceError: its certificate chain is none of a PCK.
    """
    pck = parse_pck_chain(quote.pck_chain)
    return CollateralKey(quote.tee, pck.fmspc, pck.ca_name)


def verify_quote(quote: Quote, collateral: VerifiedCollateral, moment: datetime) -> QuoteVerdict:
    """Verify a quote.

    Expired collateral does not make a quote false. It is then verified at the last moment at which
    all of it was valid, and the verdict says so.

    Args:
        quote: what :func:`keybroker.verifiers.dcap.quote.parse_quote` made.
        collateral: for its platform.
        moment: when the question is asked, with a time zone.

    Raises:
        EvidenceError: not genuine, revoked, of another platform than the collateral, below every
            TCB level, or with attributes that no TD may have.
    """
    pck = parse_pck_chain(quote.pck_chain)
    key = CollateralKey(quote.tee, pck.fmspc, pck.ca_name)
    if key != collateral.key:
        raise EvidenceError(f"the quote is of {key}, the collateral of {collateral.key}")
    if pck.pce_id.hex().upper() != collateral.tcb_info.pce_id.upper():
        raise EvidenceError("the PCK certificate and the TCB info are of different PCEs")
    earliest_expiration = min(collateral.earliest_expiration, pck.leaf.not_after, pck.ca.not_after)
    latest_issue = max(collateral.latest_issue, pck.leaf.not_before, pck.ca.not_before)
    if moment + CLOCK_SKEW < latest_issue:
        raise EvidenceError(f"the collateral says nothing about a time before {latest_issue}")
    last_moment = earliest_expiration - _SECOND
    if last_moment < latest_issue:
        raise EvidenceError(
            "the parts of the collateral were never valid at one time: fetch them together"
        )
    valid_moment = max(latest_issue, min(moment, last_moment))

    level, current = _find_levels(quote, pck, collateral)
    if _refused_on_principle(quote):
        _verify_signatures(quote, pck, collateral, valid_moment)
        _check_td_attributes(quote)
    else:
        _verify_with_library(quote, collateral, valid_moment, level)
    if tcb.REVOKED in (level.status, current.status):
        raise EvidenceError("the TCB level of the platform is revoked")
    return QuoteVerdict(
        quote=quote,
        pck=pck,
        collateral=collateral,
        level=level,
        current=current,
        expired=moment > earliest_expiration,
        earliest_issue=min(collateral.earliest_issue, pck.leaf.not_before, pck.ca.not_before),
        latest_issue=latest_issue,
        earliest_expiration=earliest_expiration,
    )


def is_debug(quote: Quote) -> bool:
    """Tell whether the host can look into the TD or enclave."""
    if quote.tee is Tee.SGX:
        return tcb.is_debug_enclave(quote.body)
    return bool(td_attributes(quote) & TD_DEBUG)


def td_attributes(quote: Quote) -> int:
    """Return the attributes of a TD as a number."""
    return int.from_bytes(quote.body["td_attributes"], "little")


def _refused_on_principle(quote: Quote) -> bool:
    return is_debug(quote) or (quote.tee is Tee.SGX and quote.version != 3)


def _find_levels(
    quote: Quote, pck: PckCertificate, collateral: VerifiedCollateral
) -> tuple[Level, Level]:
    """Return the level at launch and the level now."""
    info = collateral.tcb_info
    enclave = tcb.qe_level(collateral.qe_identity, quote.qe_report_fields)
    if quote.tee is Tee.SGX:
        level = tcb.platform_level(info, pck.tcb_components, pck.pce_svn).converge(enclave)
        return level, level
    tcb.verify_tdx_module(info, quote.body)

    def level_at(svns: bytes) -> Level:
        found = tcb.platform_level(info, pck.tcb_components, pck.pce_svn, svns)
        return found.converge(enclave)

    launch = level_at(quote.body["tcb_svn"])
    current_svns = quote.body.get("tee_tcb_svn2")
    if current_svns is None:
        return launch, launch
    current = level_at(current_svns)
    return launch.after_update(current), current


def _verify_with_library(
    quote: Quote, collateral: VerifiedCollateral, moment: datetime, level: Level
) -> None:
    import dcap_qvl  # loaded by now, see keybroker.verifiers.dcap.collateral

    try:
        report = dcap_qvl.verify_with_root_ca(
            quote.raw, collateral.prepared, collateral.root.der, int(moment.timestamp())
        )
    except ValueError as error:
        raise EvidenceError(f"dcap-qvl: {error}") from None
    if report.status != level.status or set(report.advisory_ids) != set(level.advisory_ids):
        raise EvidenceError(
            f"two appraisals of the TCB differ: {report.status} {report.advisory_ids} and"
            f" {level.status} {list(level.advisory_ids)}"
        )


def _verify_signatures(
    quote: Quote, pck: PckCertificate, collateral: VerifiedCollateral, moment: datetime
) -> None:
    """Check PCK chain, QE report and quote; the collateral has been."""
    verify_issued_by(pck.ca, collateral.root)
    verify_issued_by(pck.leaf, pck.ca)
    if pck.ca.public_key_info != collateral.pck_ca.public_key_info:
        raise EvidenceError("the PCK certificate is by another CA than its revocation list")
    verify_not_revoked(pck.ca, collateral.root_crl)
    verify_not_revoked(pck.leaf, collateral.pck_crl)
    for certificate in (pck.leaf, pck.ca, collateral.root):
        verify_valid_at(certificate, moment)

    pck_key = pck.leaf.public_key()
    if not isinstance(pck_key, ec.EllipticCurvePublicKey):
        raise EvidenceError("the PCK is not an EC key")
    _verify_ecdsa(pck_key, quote.qe_report_signature, quote.qe_report, "QE report")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if not hmac.compare_digest(bound + bytes(32), quote.qe_report_fields["report_data"]):
        raise EvidenceError("the QE report does not bind the attestation key")
    try:
        attestation_key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + quote.attestation_key
        )
    except ValueError:
        raise EvidenceError("the attestation key is not a point of P-256") from None
    _verify_ecdsa(attestation_key, quote.signature, quote.signed, "quote")


def _verify_ecdsa(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, what: str
) -> None:
    der_signature = encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )
    try:
        key.verify(der_signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EvidenceError(f"the signature of the {what} is not valid") from None


def _check_td_attributes(quote: Quote) -> None:
    """Refuse what the library refuses in TDs that are not in debug mode."""
    if quote.tee is not Tee.TDX:
        return
    attributes = td_attributes(quote)
    if (
        attributes & (_TD_RESERVED | TD_MIGRATABLE | _TD_SERVICE_TD_EXTENSION)
        or not attributes & TD_SEPT_VE_DISABLE
        or any(quote.body.get("mr_servicetd", b""))
    ):
        raise EvidenceError("the TD has attributes with which its memory is not its own")
