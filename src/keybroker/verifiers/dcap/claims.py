"""Claims of TDX and SGX, by the names and encodings of Trustee's claims page."""

from datetime import UTC, datetime
from typing import Any, Final

from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.pck import PckCertificate
from keybroker.verifiers.dcap.quote import Fields, Quote
from keybroker.verifiers.dcap.tcb import is_debug_enclave
from keybroker.verifiers.dcap.verification import QuoteVerdict, td_attributes

_TD_ATTRIBUTES: Final = {
    "debug": 1 << 0,
    "septve_disable": 1 << 28,
    "protection_keys": 1 << 30,
    "key_locker": 1 << 31,
    "perfmon": 1 << 63,
}

_SGX_TYPES: Final = {0: "Standard", 1: "Scalable", 2: "Scalable with Integrity"}

#: Values of ``collateral_expiration_status``, those of Intel's own library.
_NOT_EXPIRED, _EXPIRED = "0", "1"


def quote_claims(quote: Quote, pck: PckCertificate) -> dict[str, Any]:
    """Return the claims that the quote itself makes, and its certificate."""
    claims = _td_claims(quote) if quote.tee is Tee.TDX else _enclave_claims(quote)
    claims["report_data"] = quote.report_data.hex()
    claims["init_data"] = quote.init_data.hex()
    if pck.platform_instance_id is not None:
        claims["platform_instance_id"] = pck.platform_instance_id.hex()
    return claims


def _td_claims(quote: Quote) -> dict[str, Any]:
    quote_part: dict[str, Any] = {
        "header": _hexadecimal(quote.header),
        "body": _hexadecimal(quote.body),
    }
    if quote.body_type is not None:
        quote_part["type"], quote_part["size"] = (part.hex() for part in quote.body_type)
    attributes = td_attributes(quote)
    return {
        "quote": quote_part,
        "td_attributes": {name: bool(attributes & bit) for name, bit in _TD_ATTRIBUTES.items()},
    }


def _enclave_claims(quote: Quote) -> dict[str, Any]:
    header = _hexadecimal(quote.header)
    # in quotes of SGX the fields of the header go by older names
    header["att_key_data_0"] = header.pop("tee_type")
    reserved = header.pop("reserved")
    header["qe_svn"], header["pce_svn"] = reserved[:4], reserved[4:]
    return {
        "header": header,
        "body": _hexadecimal(quote.body),
        "debug": is_debug_enclave(quote.body),
    }


def verdict_claims(verdict: QuoteVerdict) -> dict[str, Any]:
    """Return all claims: of the quote, of the platform and of the collateral."""
    collateral, pck = verdict.collateral, verdict.pck
    claims = quote_claims(verdict.quote, pck)
    claims.update(
        {
            "tcb_status": verdict.level.status,
            "tcb_date": _rfc3339(verdict.level.date),
            "advisory_ids": list(verdict.level.advisory_ids),
            "tcb_eval_num": min(
                collateral.tcb_info.tcb_evaluation_data_number,
                collateral.qe_identity.tcb_evaluation_data_number,
            ),
            "collateral_expiration_status": _EXPIRED if verdict.expired else _NOT_EXPIRED,
            "earliest_issue_date": _rfc3339(verdict.earliest_issue),
            "latest_issue_date": _rfc3339(verdict.latest_issue),
            "earliest_expiration_date": _rfc3339(verdict.earliest_expiration),
            "pck_crl_num": collateral.pck_crl.number,
            "root_ca_crl_num": collateral.root_crl.number,
            "root_key_id": collateral.root_key_id.hex(),
            "platform_provider_id": pck.ppid.hex(),
            "sgx_type": _SGX_TYPES.get(pck.sgx_type, f"Unknown ({pck.sgx_type})"),
        }
    )
    if verdict.quote.tee is Tee.TDX:
        claims["tcb_status_current"] = verdict.current.status
        claims["tcb_date_current"] = _rfc3339(verdict.current.date)
        claims["advisory_ids_current"] = list(verdict.current.advisory_ids)
    if pck.sgx_type > 0:
        claims["is_dynamic_platform"] = bool(pck.dynamic_platform)
        claims["is_cached_keys"] = bool(pck.cached_keys)
        claims["is_smt_enabled"] = bool(pck.smt_enabled)
    return claims


def _hexadecimal(fields: Fields) -> dict[str, Any]:
    return {name: value.hex() for name, value in fields.items()}


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
