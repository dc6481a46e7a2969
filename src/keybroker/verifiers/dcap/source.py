"""Where collateral comes from: what a source is."""

from typing import Protocol

from keybroker.verifiers.dcap.collateral import CollateralKey, CollateralParts


class SourceError(Exception):
    """A source has no such collateral.

    Attributes:
        unavailable: whether the source itself is the cause, so that asking it for another
            platform would not help now either.
    """

    def __init__(self, reason: str, *, unavailable: bool = False) -> None:
        super().__init__(reason)
        self.unavailable = unavailable


class CollateralSource(Protocol):
    """One place that collateral comes from."""

    @property
    def name(self) -> str:
        """What the source is called in diagnostics."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether asking costs network requests: then answers are kept, failures waited out."""
        ...

    async def fetch(self, key: CollateralKey) -> CollateralParts:
        """Return collateral, not verified.

        Raises:
            SourceError: there is none.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
