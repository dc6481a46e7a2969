"""Where collateral comes from: what a source is, and which one a configuration names."""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from keybroker.model.errors import ConfigError
from keybroker.verifiers.dcap.collateral import CollateralKey, CollateralParts
from keybroker.verifiers.dcap.qcnl import CollateralSettings


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


def make_source(settings: CollateralSettings) -> CollateralSource:
    """Make the source that settings name. Nothing is fetched yet.

    Raises:
        ConfigError: the URL is of a kind that is not known.
    """
    from keybroker.verifiers.dcap.offline import OfflineSource
    from keybroker.verifiers.dcap.pcs import PcsSource

    url = urlsplit(settings.collateral_service)
    if url.scheme == "file":
        if url.netloc not in ("", "localhost"):
            raise ConfigError("collateral_service: a file:// URL has three slashes")
        return OfflineSource(Path(unquote(url.path)), settings.tcb_update_type)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"collateral_service: {settings.collateral_service!r} is no http, https or file URL"
        )
    return PcsSource(
        settings.collateral_service,
        update_type=settings.tcb_update_type,
        timeout_seconds=settings.timeout_seconds,
        verify_tls=settings.verify_tls,
    )
