"""``keybroker admin-token``: issue a token with which an administrator may use the broker."""

import argparse
import re
import time
from pathlib import Path

import msgspec

from keybroker.model.errors import ConfigError, MalformedError
from keybroker.tokens import base64url
from keybroker.tokens.algorithms import default_algorithm, load_private_key
from keybroker.tokens.jwk import thumbprint
from keybroker.tokens.jws import issue_compact

#: A token cannot be taken back before it ends, other than by taking back its key.
MAX_SECONDS = 366 * 24 * 3600

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9})([smhd]?)")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser("admin-token", help="issue an administrator's token")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="private key, PEM (see keygen)"
    )
    parser.add_argument("--role", default="admin", help="default: %(default)s")
    parser.add_argument("--issuer", help="as the broker's identity_providers entry says")
    parser.add_argument("--audience", help="as the broker's identity_providers entry says")
    parser.add_argument("--subject", help="who it is for; appears in the audit log")
    parser.add_argument(
        "--ttl",
        type=parse_duration,
        default=3600,
        metavar="TIME",
        help="how long it is valid: 90s, 15m, 1h, 7d (default: 1h)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a token."""
    try:
        private_key = options.key.read_bytes()
    except OSError as error:
        raise ConfigError(f"{options.key}: {error.strerror}") from None
    print(
        issue_admin_token(
            private_key,
            role=options.role,
            issuer=options.issuer,
            audience=options.audience,
            subject=options.subject,
            seconds=options.ttl,
        )
    )
    return 0


def issue_admin_token(
    private_key: bytes,
    *,
    role: str,
    issuer: str | None = None,
    audience: str | None = None,
    subject: str | None = None,
    seconds: int = 3600,
) -> str:
    """Sign an administrator's token.

    Args:
        private_key: PEM: Ed25519, EC P-256, P-384, P-521, or RSA of at least 2048 bits.
        role: what the broker's access rules go by.
        issuer: ``iss``; left out where None, like the next two.
        audience: ``aud``.
        subject: ``sub``.
        seconds: from now until it expires.

    Raises:
        ConfigError: the key cannot sign tokens, no role, or too long a life.
    """
    if not role:
        raise ConfigError("an administrator token needs a role")
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(f"an administrator token is valid for 1 to {MAX_SECONDS} seconds")
    try:
        key = load_private_key(private_key)
    except MalformedError as error:
        raise ConfigError(f"the administrator's key: {error.diagnostics()}") from None
    public_key = key.public_key()
    algorithm = default_algorithm(public_key)
    now = int(time.time())
    optional = {"iss": issuer, "aud": audience, "sub": subject}
    claims = {
        **{name: value for name, value in optional.items() if value is not None},
        "role": role,
        "iat": now,
        "exp": now + seconds,
    }
    header = {"typ": "JWT", "alg": algorithm.name, "kid": thumbprint(public_key)}
    segment = base64url.encode(msgspec.json.encode(header))
    return issue_compact(segment, msgspec.json.encode(claims), algorithm, key)


def parse_duration(text: str) -> int:
    """Read a duration such as ``90s``, ``15m``, ``1h`` or ``7d``; return seconds.

    Raises:
        argparse.ArgumentTypeError: something else, or nothing, or more than a year.
    """
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 15m, 1h or 7d")
    return seconds
