"""Evidence that is a quote: how it comes, and what it must bind."""

import base64
import binascii
import hmac
from typing import Any, Final

from keybroker.model.errors import EvidenceError
from keybroker.model.hashes import fit
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.quote import MAX_QUOTE_BYTES, Quote, parse_quote
from keybroker.verifiers.interface import ExpectedBinding

_MAX_QUOTE_CHARACTERS: Final = 4 * MAX_QUOTE_BYTES // 3 + 4


def parse_quote_member(evidence: Any, tee: Tee) -> Quote:
    """Read the quote of ``{"quote": …}``.

    Args:
        evidence: a parsed JSON value; the member is standard base64.
        tee: the kind that the quote must be of.

    Raises:
        EvidenceError: it has another form, or the quote is of another kind.
    """
    text = evidence.get("quote") if isinstance(evidence, dict) else None
    if not isinstance(text, str) or not text:
        raise EvidenceError(f"{tee.value} evidence is a JSON object with a quote in base64")
    if len(text) > _MAX_QUOTE_CHARACTERS:
        raise EvidenceError(f"the quote is larger than {MAX_QUOTE_BYTES} bytes")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceError("the quote is not base64") from None
    return verify_kind(parse_quote(raw), tee)


def verify_kind(quote: Quote, tee: Tee) -> Quote:
    """Check that a quote is of a TEE.

    Raises:
        EvidenceError: it is of another.
    """
    if quote.tee is not tee:
        raise EvidenceError(f"the quote is of {quote.tee.value}, not {tee.value}")
    return quote


def verify_binding(quote: Quote, expected: ExpectedBinding) -> Quote:
    """Check what a quote binds.

    Raises:
        EvidenceError: report data or init-data is not the expected digest.
    """
    for what, digest, actual in (
        ("report data", expected.report_data, quote.report_data),
        ("field for init-data", expected.init_data, quote.init_data),
    ):
        if digest is not None and not hmac.compare_digest(fit(digest, len(actual)), actual):
            raise EvidenceError(f"the quote's {what} does not hold the expected digest")
    return quote
