"""Who vouches for a quote's platform: its PCK certificate, and the collateral for it.

The verifiers of TDX and SGX share one endorser::

    quote ──▶ PCK chain up to a trusted root, so that strangers cause no fetching
                 └──▶ collateral for its FMSPC and CA, kept or fetched
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from keybroker import workbench
from keybroker.config.dcap import DcapVerifierConfig
from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.storage.interface import StorageProvider
from keybroker.verifiers.dcap.cache import CollateralCache
from keybroker.verifiers.dcap.collateral import VerifiedCollateral
from keybroker.verifiers.dcap.collateral_service import make_source
from keybroker.verifiers.dcap.pck import parse_pck_chain
from keybroker.verifiers.dcap.qcnl import settle
from keybroker.verifiers.dcap.quote import Quote
from keybroker.verifiers.dcap.roots import load_roots
from keybroker.verifiers.dcap.verification import collateral_key
from keybroker.verifiers.x509 import Certificate, verify_issued_by

#: PCK chains remembered as genuine: one a platform, 4 KiB each.
_REMEMBERED_CHAINS: Final = 1024


class PckChains:
    """Tells genuine PCK certificates from made-up ones, each once."""

    def __init__(self, roots: Sequence[Certificate]) -> None:
        self._roots = tuple(roots)
        self._genuine: OrderedDict[bytes, None] = OrderedDict()

    def are_genuine(self, pem: bytes) -> bool:
        """Tell whether a chain was verified before."""
        known = pem in self._genuine
        if known:
            self._genuine.move_to_end(pem)
        return known

    def verify(self, pem: bytes) -> None:
        """Check the signatures of a chain. Time and revocation are looked at with the quote.

        Raises:
            EvidenceError: no trusted root issued it.
        """
        pck = parse_pck_chain(pem)
        verify_issued_by(pck.leaf, pck.ca)
        for root in self._roots:
            if root.subject != pck.ca.issuer:
                continue
            try:
                verify_issued_by(pck.ca, root)
            except EvidenceError:
                continue
            self._genuine[pem] = None
            if len(self._genuine) > _REMEMBERED_CHAINS:
                self._genuine.popitem(last=False)
            return
        raise EvidenceError("the PCK certificate is not issued under a trusted root")


class DcapEndorser:
    """Finds verified collateral for quotes. Belongs to one event loop."""

    def __init__(self, chains: PckChains, collateral: CollateralCache) -> None:
        self._chains = chains
        self._collateral = collateral

    async def collateral_for(self, quote: Quote) -> VerifiedCollateral:
        """Return collateral for the platform that made a quote.

        Raises:
            EvidenceError: the quote's PCK certificate is not under a trusted root, or there is no
                valid collateral.
        """
        if not self._chains.are_genuine(quote.pck_chain):
            await workbench.run(self._chains.verify, quote.pck_chain)
        return await self._collateral.get(collateral_key(quote))

    def lacking(self, tee: Tee) -> Mapping[str, str]:
        """Say which collateral guests of a TEE need that is not to be had → why."""
        return {
            f"collateral for {key}": reason
            for key, reason in self._collateral.status().items()
            if key.startswith(f"{tee.value} ")
        }

    async def close(self) -> None:
        """Stop what is under way and release connections; may be called more than once."""
        await self._collateral.close()


def make_endorser(config: DcapVerifierConfig, storage: StorageProvider) -> DcapEndorser:
    """Make the endorser that a configuration describes. Nothing is fetched yet.

    Raises:
        ConfigError: a root, the collateral service or Intel's settings file cannot be used.
    """
    settings = settle(config)
    roots = load_roots(config.extra_trusted_roots)
    collateral = CollateralCache(make_source(settings), storage, roots, settings.tcb_update_type)
    return DcapEndorser(PckChains(roots), collateral)
