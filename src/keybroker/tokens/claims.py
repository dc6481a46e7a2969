"""Claims of a token whose signature verified: decoded, and their times checked."""

import math
from typing import Any

import msgspec

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import MAX_DEPTH, parse_json

#: How far the clocks of issuer and broker may differ where a token is not valid *yet*. The end of
#: a token is the end: it is not stretched.
CLOCK_LEEWAY_SECONDS = 60


def parse_claims(payload: bytes) -> dict[str, Any]:
    """Decode a claims set as strictly as :func:`keybroker.model.strict_json.parse_json`.

    A payload that comes out of decoding and encoding byte for byte as it went in held no member
    twice, nothing out of range and no stray space; proving it so costs a tenth of the strict
    parser. Issuers write compact JSON, so nearly every token goes that way.

    Raises:
        MalformedError: not a JSON object, a member twice, or nested too deeply.
    """
    try:
        claims = msgspec.json.decode(payload)
        if msgspec.json.encode(claims) != payload:
            claims = parse_json(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        claims = parse_json(payload)
    if not isinstance(claims, dict):
        raise MalformedError("the token's claims are not a JSON object")
    _check_depth(claims)
    return claims


def _check_depth(claims: dict[str, Any]) -> None:
    level: list[Any] = [claims]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise MalformedError(f"the token's claims are nested deeper than {MAX_DEPTH} levels")


def verify_times(claims: dict[str, Any], now: float) -> float:
    """Check that a token is valid now; return when it ends (seconds since 1970).

    Raises:
        MalformedError: no ``exp``, expired, or not valid yet.

    Specification: RFC 7519, sections 4.1.4 to 4.1.6.
    """
    expires_at = _numeric_date(claims, "exp")
    if expires_at is None:
        raise MalformedError("the token does not say when it expires")
    if expires_at <= now:
        raise MalformedError("the token has expired")
    for name in ("nbf", "iat"):
        moment = _numeric_date(claims, name)
        if moment is not None and moment > now + CLOCK_LEEWAY_SECONDS:
            raise MalformedError(f"the token is not valid yet ({name})")
    return expires_at


def _numeric_date(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedError(f"the token's {name} is not a number")
    try:
        moment = float(value)
    except OverflowError:
        raise MalformedError(f"the token's {name} is out of range") from None
    if not math.isfinite(moment):
        raise MalformedError(f"the token's {name} is out of range")
    return moment
