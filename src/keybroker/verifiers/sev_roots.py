"""The roots that SEV certificate chains may end in: AMD's own, and those an operator names.

AMD's root keys (ARK), one a processor generation, are shipped in ``roots/amd/sev`` and pinned here
by digest. Those of Milan, Genoa and Turin are the same keys as in AMD's X.509 roots for SEV-SNP.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.verifiers.sev_certificate import (
    MAX_CERTIFICATE_BYTES,
    AmdCertificate,
    Usage,
    parse_amd_certificate,
    verify_signed_by_amd,
)

logger = logging.getLogger(__name__)

#: SHA-256 of every certificate in ``roots/amd/sev``, by file name.
SEV_PINS = MappingProxyType(
    {
        "naples-ark.cert": "dedabca561e1dece8cc00b7bda864cf5f20b95017864408cfe18eaee0dce24b9",
        "rome-ark.cert": "865977b268c16d5b27772b00aaefb4e737ba9499e818ed8e9f65b0cecefbc529",
        "milan-ark.cert": "1246469862b78a7a8625579b0378d1f8e975eb8b82a1623b579d7968a5969888",
        "genoa-ark.cert": "8f4e3fd36589c23f1fe0c8338465bac7e2e066d97fc92f228bbee4fd356fb674",
        "turin-ark.cert": "f6405e5096a6eee1eb7d5df75c49f9b9f7c8357a31c7fff150149d68588a7bf7",
    }
)


@dataclass(frozen=True, slots=True)
class SevTrustAnchor:
    """A trusted ARK; ``built_in`` says whether it is AMD's."""

    ark: AmdCertificate
    built_in: bool

    @property
    def sha256(self) -> str:
        """SHA-256 of the certificate in hexadecimal."""
        return hashlib.sha256(self.ark.raw).hexdigest()


@cache
def amd_sev_anchors() -> tuple[SevTrustAnchor, ...]:
    """Load AMD's anchors; once a process.

    Raises:
        ConfigError: a shipped file is missing or does not match its pin.
    """
    folder = resources.files(__package__).joinpath("roots", "amd", "sev")
    anchors = []
    for name, pin in SEV_PINS.items():
        try:
            anchor = _anchor(folder.joinpath(name).read_bytes(), built_in=True)
        except (OSError, EvidenceError) as error:
            raise ConfigError(f"the built-in root {name} cannot be loaded: {error}") from None
        if anchor.sha256 != pin:
            raise ConfigError(f"the built-in root {name} was changed: its SHA-256 is not pinned")
        anchors.append(anchor)
    return tuple(anchors)


def load_extra_sev_anchor(path: Path) -> SevTrustAnchor:
    """Load an ARK, in AMD's binary form, that the configuration names, and say so in the log.

    Raises:
        ConfigError: the file cannot be read, or is not a self-signed ARK.
    """
    try:
        with path.open("rb") as file:
            anchor = _anchor(file.read(MAX_CERTIFICATE_BYTES + 1), built_in=False)
    except OSError as error:
        raise ConfigError(f"the SEV root {path} cannot be read: {error.strerror}") from None
    except EvidenceError as error:
        raise ConfigError(f"the SEV root {path} cannot be used: {error.diagnostics()}") from None
    logger.warning("trusting an SEV root that is not AMD's: %s, SHA-256 %s", path, anchor.sha256)
    return anchor


def sev_trust_anchors(extra_roots: Iterable[str | Path] = ()) -> tuple[SevTrustAnchor, ...]:
    """Return AMD's anchors and those of the files that are named.

    Raises:
        ConfigError: as :func:`amd_sev_anchors` and :func:`load_extra_sev_anchor`.
    """
    return amd_sev_anchors() + tuple(load_extra_sev_anchor(Path(path)) for path in extra_roots)


def _anchor(raw: bytes, *, built_in: bool) -> SevTrustAnchor:
    ark = parse_amd_certificate(raw, Usage.ARK)
    verify_signed_by_amd(ark, ark)
    return SevTrustAnchor(ark, built_in)
