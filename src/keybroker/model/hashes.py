"""Hash algorithms by the names of the protocol, and the truncate-or-pad rule."""

import hashlib
from enum import StrEnum


class HashAlgorithm(StrEnum):
    """A hash that binds runtime data or init-data to evidence (kbs-types ``HashAlgorithm``)."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    SM3 = "sm3"

    @classmethod
    def parse(cls, name: str) -> "HashAlgorithm":
        """Read a name in any case, with or without the hyphen (``SHA-384``).

        Raises:
            ValueError: no such algorithm.
        """
        return cls(name.lower().replace("-", ""))

    def digest(self, data: bytes) -> bytes:
        """Return the digest: 32, 48 or 64 bytes.

        Raises:
            ValueError: the platform's OpenSSL lacks the algorithm (SM3 in FIPS builds).
        """
        return hashlib.new(self.value, data).digest()


def fit(digest: bytes, size: int) -> bytes:
    """Make a digest as long as an evidence field: cut at the end, or pad with zero bytes.

    Args:
        digest: any length.
        size: length of the field in bytes.

    Specification: Initdata Specification, "Integrity Binding for Different TEEs".
    """
    return digest[:size].ljust(size, b"\0")
