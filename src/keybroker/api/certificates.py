"""A TLS key and a self-signed certificate, for a broker that is started without any."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from keybroker.model.errors import ConfigError

#: Long enough that nobody's trial ends in an expired certificate, short enough to be no habit.
VALID_DAYS = 825

#: Clocks of clients may be behind by this much.
_BACKDATED = datetime.timedelta(hours=1)

#: Letters, digits and hyphens; a wildcard may stand for the first label (RFC 9525, section 6.3).
_DNS_NAME = re.compile(
    r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9\-_]*[A-Za-z0-9])?(\.[A-Za-z0-9][A-Za-z0-9\-_]*)*"
)


class CertificateFiles(NamedTuple):
    """Where the key (mode 0600) and the certificate are, both PEM."""

    private_key: Path
    certificate: Path


def self_signed(directory: Path, names: Sequence[str]) -> CertificateFiles:
    """Make ``https.key`` and ``https.crt`` in the directory, unless both are there already.

    The certificate is its own trust anchor: clients pin the file. Its key cannot sign others.

    Args:
        names: DNS names and IP addresses for the certificate's subject alternative names.

    Raises:
        ConfigError: no name, a name that is neither, or the files cannot be written.
    """
    files = CertificateFiles(directory / "https.key", directory / "https.crt")
    if files.private_key.exists() and files.certificate.exists():
        return files
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, names)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(files.private_key, pem, 0o600)
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def _certificate(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> x509.Certificate:
    if not names:
        raise ConfigError("a certificate needs at least one name")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "keybroker")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        ascii_name = name.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    if not _DNS_NAME.fullmatch(ascii_name):
        raise ConfigError(f"{name[:64]!r} is neither a DNS name nor an IP address")
    return x509.DNSName(ascii_name)


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
