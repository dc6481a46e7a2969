"""The roots that quotes and collateral may end in: Intel's, and those a configuration names."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.verifiers.x509 import Certificate, parse_certificates, verify_issued_by

_log = logging.getLogger(__name__)

#: SHA-256 of the DER of Intel SGX Root CA, valid until 2049-12-31. A file with another certificate
#: is not Intel's root, whatever it says.
INTEL_SGX_ROOT_CA_SHA256: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


@lru_cache(1)
def intel_root() -> Certificate:
    """Load Intel SGX Root CA from this package.

    Raises:
        ConfigError: the file is not that certificate.
    """
    file = resources.files("keybroker.verifiers") / "roots" / "intel" / "sgx-root-ca.pem"
    (certificate,) = parse_certificates(file.read_bytes())
    if certificate.fingerprint() != INTEL_SGX_ROOT_CA_SHA256:
        raise ConfigError("sgx-root-ca.pem of this installation is not Intel SGX Root CA")
    return certificate


def load_roots(extra: Sequence[str]) -> tuple[Certificate, ...]:
    """Return Intel's root and those in files, each of which is reported.

    Args:
        extra: paths of PEM or DER files with one self-signed certificate each.

    Raises:
        ConfigError: a file cannot be read, or holds no self-signed CA certificate.
    """
    roots = [intel_root()]
    for path in extra:
        try:
            (certificate,) = parse_certificates(Path(path).read_bytes())
            verify_issued_by(certificate, certificate)
        except (OSError, ValueError, EvidenceError) as error:
            reason = error.diagnostics() if isinstance(error, EvidenceError) else str(error)
            raise ConfigError(f"extra_trusted_roots: {path}: {reason}") from None
        if certificate.fingerprint() == INTEL_SGX_ROOT_CA_SHA256:
            continue
        _log.warning(
            "TDX and SGX quotes are also trusted under %r (%s): whoever has its key can make up"
            " any guest",
            certificate.subject_cn,
            certificate.fingerprint(),
        )
        roots.append(certificate)
    return tuple(roots)
