"""The source of collateral that a configuration's ``collateral_service`` names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from keybroker.model.errors import ConfigError
from keybroker.verifiers.dcap.offline import OfflineSource
from keybroker.verifiers.dcap.pcs import PcsSource
from keybroker.verifiers.dcap.qcnl import CollateralSettings
from keybroker.verifiers.dcap.source import CollateralSource


def make_source(settings: CollateralSettings) -> CollateralSource:
    """Make the source that settings name. Nothing is fetched yet.

    Raises:
        ConfigError: the URL is of a kind that is not known.
    """
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
