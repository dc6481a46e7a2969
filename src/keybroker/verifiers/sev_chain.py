"""From a platform's Diffie-Hellman key up to AMD's root.

::

    ARK (root, trusted) ──▶ ASK ──▶ CEK  one chip
                                     └──▶ PEK ──▶ PDH   the platform's Diffie-Hellman key
                     OCA (its owner) ──▶ PEK

The OCA is self-signed and proves nothing: it says who owns the platform. It is verified because the
firmware does so too, and because a chain is genuine as a whole or not at all.

Specification: AMD 55766, Secure Encrypted Virtualization API, section 2.1 and appendix C.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from keybroker.model.errors import EvidenceError
from keybroker.verifiers.sev_certificate import (
    Usage,
    parse_amd_certificate,
    parse_platform_certificate,
    verify_signed_by_amd,
    verify_signed_by_platform,
)
from keybroker.verifiers.sev_roots import SevTrustAnchor

#: Verified chains that are remembered: some 200 bytes each, one a platform.
MAX_REMEMBERED_CHAINS: Final = 2048


@dataclass(frozen=True, slots=True)
class SevChain:
    """The six certificates of a platform as they came, in AMD's binary forms."""

    pdh: bytes = field(repr=False)
    pek: bytes = field(repr=False)
    oca: bytes = field(repr=False)
    cek: bytes = field(repr=False)
    ask: bytes = field(repr=False)
    ark: bytes = field(repr=False)

    def digest(self) -> bytes:
        """Return a digest of all six; lengths keep them apart."""
        digest = hashlib.sha256()
        for part in (self.pdh, self.pek, self.oca, self.cek, self.ask, self.ark):
            digest.update(len(part).to_bytes(4, "big") + part)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """A PDH whose chain verified up to a trusted root.

    Attributes:
        key: the P-384 public key that a launch session is agreed on with.
        root_sha256: SHA-256 of the root in hexadecimal.
        amd_root: whether the root is AMD's own.
    """

    key: ec.EllipticCurvePublicKey = field(repr=False)
    root_sha256: str
    amd_root: bool


class SevChainVerifier:
    """Verifies chains up to given anchors, each once: verified ones are remembered.

    Safe to use from several threads.
    """

    def __init__(self, anchors: Sequence[SevTrustAnchor]) -> None:
        self._anchors = tuple(anchors)
        self._remembered: OrderedDict[bytes, PlatformKey] = OrderedDict()
        self._lock = Lock()

    def verify(self, chain: SevChain) -> PlatformKey:
        """Verify a chain and return its Diffie-Hellman key.

        Raises:
            EvidenceError: a certificate is malformed or in the place of another, a signature does
                not verify, or the root is not trusted; the diagnostics say which.
        """
        digest = chain.digest()
        with self._lock:
            known = self._remembered.get(digest)
            if known is not None:
                self._remembered.move_to_end(digest)
                return known
        verified = self._verify(chain)
        with self._lock:
            self._remembered[digest] = verified
            if len(self._remembered) > MAX_REMEMBERED_CHAINS:
                self._remembered.popitem(last=False)
        return verified

    def _verify(self, chain: SevChain) -> PlatformKey:
        ark = parse_amd_certificate(chain.ark, Usage.ARK)
        ask = parse_amd_certificate(chain.ask, Usage.ASK)
        cek = parse_platform_certificate(chain.cek, Usage.CEK)
        oca = parse_platform_certificate(chain.oca, Usage.OCA)
        pek = parse_platform_certificate(chain.pek, Usage.PEK)
        pdh = parse_platform_certificate(chain.pdh, Usage.PDH)
        anchor = self._anchor(ark.raw)
        verify_signed_by_amd(ask, ark)
        verify_signed_by_amd(cek, ask)
        verify_signed_by_platform(oca, oca)
        verify_signed_by_platform(pek, oca)
        verify_signed_by_platform(pek, cek)
        verify_signed_by_platform(pdh, pek)
        for certificate, signers in ((cek, 1), (oca, 1), (pek, 2), (pdh, 1)):
            if len(certificate.signatures) != signers:
                raise EvidenceError(f"the {certificate.usage.name} has a signature too many")
        return PlatformKey(pdh.key, anchor.sha256, anchor.built_in)

    def _anchor(self, ark: bytes) -> SevTrustAnchor:
        for anchor in self._anchors:
            if hmac.compare_digest(anchor.ark.raw, ark):
                return anchor
        raise EvidenceError(
            f"the root of the SEV chain (SHA-256 {hashlib.sha256(ark).hexdigest()}) is not trusted"
        )
