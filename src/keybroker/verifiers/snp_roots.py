"""The roots that SEV-SNP certificate chains may end in: AMD's own, and those an operator names.

A :class:`TrustAnchor` is one processor generation's root key (ARK) and what it issued: the ASK,
under which the keys of chips (VCEK) hang, and the ASVK, under which the keys of cloud providers
(VLEK) hang. AMD's are shipped in ``roots/amd`` and pinned here by digest.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.verifiers.snp_report import Generation, SigningKey
from keybroker.verifiers.x509 import (
    MAX_CERTIFICATE_BYTES,
    MAX_PEM_CERTIFICATES,
    Certificate,
    parse_certificate,
    parse_certificates,
    verify_issued_by,
)

logger = logging.getLogger(__name__)

#: SHA-256 of the DER of every certificate in ``roots/amd``, by file name.
PINS = MappingProxyType(
    {
        "milan-ark.pem": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        "milan-ask.pem": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
        "milan-asvk.pem": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
        "genoa-ark.pem": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        "genoa-ask.pem": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
        "genoa-asvk.pem": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
        "turin-ark.pem": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
        "turin-ask.pem": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
        "turin-asvk.pem": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
    }
)

#: Largest file of roots in bytes: every certificate of a PEM at its limit, base64 included.
_MAX_ROOT_FILE_BYTES = MAX_PEM_CERTIFICATES * MAX_CERTIFICATE_BYTES * 3 // 2


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A trusted root and the issuing certificates that are known under it.

    Attributes:
        generation: the only processors whose keys this root may vouch for.
        ark: the root; trusted.
        ask: issues VCEKs; None where the evidence has to bring it.
        asvk: issues VLEKs; likewise.
        built_in: whether it is AMD's.
    """

    generation: Generation
    ark: Certificate
    ask: Certificate | None
    asvk: Certificate | None
    built_in: bool

    def issuer_of(self, kind: SigningKey) -> Certificate | None:
        """Return the known certificate that issues keys of this kind."""
        return self.ask if kind is SigningKey.VCEK else self.asvk


def root_name(generation: Generation) -> str:
    """Return the common name of a generation's root."""
    return f"ARK-{generation}"


def issuer_name(generation: Generation, kind: SigningKey) -> str:
    """Return the common name of the certificate that issues a generation's keys of a kind."""
    return f"SEV-{generation}" if kind is SigningKey.VCEK else f"SEV-VLEK-{generation}"


@cache
def amd_anchors() -> tuple[TrustAnchor, ...]:
    """Load AMD's anchors; once a process.

    Raises:
        ConfigError: a shipped file is missing or does not match its pin.
    """
    folder = resources.files(__package__).joinpath("roots", "amd")
    return tuple(
        _anchor(
            [
                load_pinned(name := f"{generation.lower()}-{part}.pem", folder / name)
                for part in ("ark", "ask", "asvk")
            ],
            built_in=True,
        )
        for generation in Generation
    )


def load_pinned(name: str, file: Traversable) -> Certificate:
    """Load a shipped certificate and hold it against its pin.

    Raises:
        ConfigError: it cannot be read, or its SHA-256 is not the one in :data:`PINS`.
    """
    try:
        certificate = parse_certificate(file.read_bytes())
    except (OSError, EvidenceError) as error:
        raise ConfigError(f"the built-in certificate {name} cannot be loaded: {error}") from None
    if certificate.fingerprint() != PINS[name]:
        raise ConfigError(f"the built-in certificate {name} was changed: its SHA-256 is not pinned")
    return certificate


def load_extra_anchor(path: Path) -> TrustAnchor:
    """Load a root that the configuration names, and say so in the log.

    Args:
        path: DER of one ARK, or PEM of one ARK and, if wanted, its ASK and ASVK, in any order. The
            common name of the ARK (``ARK-Milan`` …) says for which processors it may vouch.

    Raises:
        ConfigError: the file cannot be read, or its certificates are no such chain.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_ROOT_FILE_BYTES + 1)
        if len(raw) > _MAX_ROOT_FILE_BYTES:
            raise EvidenceError(f"the file is larger than {_MAX_ROOT_FILE_BYTES} bytes")
        anchor = _anchor(parse_certificates(raw), built_in=False)
    except OSError as error:
        raise ConfigError(f"the root {path} cannot be read: {error.strerror}") from None
    except EvidenceError as error:
        raise ConfigError(f"the root {path} cannot be used: {error.diagnostics()}") from None
    logger.warning(
        "trusting a root that is not AMD's: %s from %s vouches for %s, SHA-256 %s",
        anchor.ark.subject_cn,
        path,
        anchor.generation,
        anchor.ark.fingerprint(),
    )
    return anchor


def trust_anchors(extra_roots: Iterable[str | Path] = ()) -> tuple[TrustAnchor, ...]:
    """Return AMD's anchors and those of the files that are named.

    Raises:
        ConfigError: as :func:`amd_anchors` and :func:`load_extra_anchor`.
    """
    return amd_anchors() + tuple(load_extra_anchor(Path(path)) for path in extra_roots)


def _anchor(certificates: list[Certificate], *, built_in: bool) -> TrustAnchor:
    """Put the certificates of one generation in their places and verify them under the root."""
    roots = [certificate for certificate in certificates if certificate.is_self_issued()]
    if len(roots) != 1:
        raise EvidenceError(f"{len(roots)} self-issued certificates in place of one ARK")
    ark = verify_issued_by(roots[0], roots[0])
    for generation in Generation:
        if ark.subject_cn == root_name(generation):
            break
    else:
        raise EvidenceError(f"{ark.subject_cn!r} is not the name of an ARK (ARK-Milan …)")
    issuers: dict[str, Certificate] = {}
    for certificate in certificates:
        if certificate is ark:
            continue
        for kind in SigningKey:
            if certificate.subject_cn == issuer_name(generation, kind) and kind not in issuers:
                issuers[kind] = verify_issued_by(certificate, ark)
                break
        else:
            raise EvidenceError(
                f"{certificate.subject_cn!r} has no place beside {ark.subject_cn!r}"
            )
    return TrustAnchor(
        generation=generation,
        ark=ark,
        ask=issuers.get(SigningKey.VCEK),
        asvk=issuers.get(SigningKey.VLEK),
        built_in=built_in,
    )
