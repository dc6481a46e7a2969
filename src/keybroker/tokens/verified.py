"""What is left of an attestation token once it is verified: its claims, and the TEE's key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keybroker.model.errors import ConfigError, TokenVerifierError

#: Where the issuers that are known put the TEE's public key, in the order in which they are tried.
KNOWN_TEE_KEY_PATHS = (
    # Intel Trust Authority
    "/tdx/attester_runtime_data/tee-pubkey",
    # Intel Trust Authority, TDX with a virtual TPM
    "/tdx/attester_user_data/tee-pubkey",
    # Trustee's attestation service before EAR tokens
    "/customized_claims/runtime_data/tee-pubkey",
    # EAR: Trustee's attestation service and this one
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    # anyone else
    "/tee-pubkey",
)

Pointer = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """Claims that a trusted issuer vouches for. Only the verifier makes these.

    Attributes:
        claims: the claims set; not to be changed, at any depth, since it is shared by requests.
        digest: SHA-256 of the token, 32 bytes: its name in caches and in the audit log.
        expires_at: seconds since 1970 when neither token nor issuer's certificate is valid more.
    """

    claims: Mapping[str, Any] = field(repr=False)
    digest: bytes
    expires_at: float
    _tee_key_pointers: Sequence[Pointer] = field(repr=False, compare=False, default=())

    def tee_public_key(self) -> dict[str, Any]:
        """Return the public key that lives in the TEE, a JWK as the guest sent it.

        Raises:
            TokenVerifierError: the token carries none where one is looked for.
        """
        for pointer in self._tee_key_pointers:
            found, value = _follow(self.claims, pointer)
            if found:
                if not isinstance(value, dict):
                    raise TokenVerifierError("the tee-pubkey of the token is not a JSON object")
                return value
        raise TokenVerifierError("the token carries no tee-pubkey; see extra_teekey_paths")


def tee_key_pointers(extra_paths: Sequence[str]) -> tuple[Pointer, ...]:
    """Parse the paths where the TEE's key is looked for: the configured ones, then the known ones.

    Raises:
        ConfigError: a path is not a JSON pointer.
    """
    return tuple(_parse_pointer(path) for path in (*extra_paths, *KNOWN_TEE_KEY_PATHS))


def _parse_pointer(path: str) -> Pointer:
    if not path.startswith("/"):
        raise ConfigError(f"extra_teekey_paths: {path!r} is not a JSON pointer (it starts with /)")
    # "~1" before "~0", else "~01" would become "/" (RFC 6901, section 4).
    return tuple(
        token.replace("~1", "/").replace("~0", "~") for token in path.removeprefix("/").split("/")
    )


def _follow(value: Any, pointer: Pointer) -> tuple[bool, Any]:
    for token in pointer:
        if isinstance(value, Mapping) and token in value:
            value = value[token]
        elif isinstance(value, list) and token.isascii() and token.isdigit():
            index = int(token[:10])
            if index >= len(value):
                return False, None
            value = value[index]
        else:
            return False, None
    return True, value
