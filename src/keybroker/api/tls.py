"""TLS for the listener: from ``[http_server]`` to a context that offers what was configured.

Profiles follow Mozilla's recommendations, with TLS 1.2 as the oldest version in all of them.

Python's ``ssl`` can set versions and the ciphers of TLS 1.2, but neither the cipher suites of
TLS 1.3 nor the list of key exchange groups. OpenSSL takes both from a configuration file, which it
reads once, when it is loaded. So a configuration that names them needs two steps::

    restart_with_settings(config)     # may replace this process by one that read the file
    context = server_context(config)  # refuses where the first step was left out

or, for a process that is to be started, :func:`openssl_environment` in place of the first.

The file is in force for the whole process, so connections that the broker itself opens offer the
same suites and groups.

Specification: Mozilla Server Side TLS 5.7 (https://wiki.mozilla.org/Security/Server_Side_TLS).
"""

import hashlib
import logging
import os
import re
import ssl
import stat
import sys
import tempfile
from pathlib import Path

from keybroker.config.http_server import HttpServerConfig, TlsProfile, TlsVersion
from keybroker.config.reader import nearest
from keybroker.model.errors import ConfigError

_log = logging.getLogger(__name__)

#: Ciphers of TLS 1.2 in Mozilla's intermediate profile: forward secrecy and AEAD only.
_INTERMEDIATE_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)

#: What Mozilla's old profile adds, without triple DES.
_OLD_CIPHERS = (
    *_INTERMEDIATE_CIPHERS,
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES256-SHA384",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA256",
    "AES256-SHA256",
)

#: Cipher suites of TLS 1.3 (RFC 8446, appendix B.4), by their names in OpenSSL.
_SUITES = (
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
)

#: Other names of groups → the name that every OpenSSL 3 takes.
_GROUPS = {
    "x25519": "X25519",
    "x448": "X448",
    "secp256r1": "P-256",
    "prime256v1": "P-256",
    "p-256": "P-256",
    "secp384r1": "P-384",
    "p-384": "P-384",
    "secp521r1": "P-521",
    "p-521": "P-521",
    "ffdhe2048": "ffdhe2048",
    "ffdhe3072": "ffdhe3072",
    "ffdhe4096": "ffdhe4096",
    "x25519mlkem768": "X25519MLKEM768",
    "secp256r1mlkem768": "SecP256r1MLKEM768",
    "x448mlkem1024": "X448MLKEM1024",
    "secp384r1mlkem1024": "SecP384r1MLKEM1024",
}

#: First OpenSSL with the post-quantum hybrid groups; with it they are among its defaults.
_POST_QUANTUM_OPENSSL = (3, 5)

_VERSIONS = {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}

#: A name of one cipher, as against an expression such as ``HIGH:!aNULL``.
_ONE_CIPHER = re.compile(r"[A-Z0-9]+(-[A-Z0-9]+)+")


def openssl_environment(config: HttpServerConfig, directory: Path) -> dict[str, str]:
    """Write the OpenSSL configuration file that the listener needs.

    Whatever OpenSSL would have read otherwise is included, so that providers such as FIPS and the
    policies of the distribution stay in force.

    Args:
        directory: where the file goes; must be there and outlive the process to be started.

    Returns:
        Variables to start the serving process with; empty where none is needed.

    Raises:
        ConfigError: a suite or group that OpenSSL does not know, or the file cannot be written.
    """
    settings = _settings(config)
    if not settings:
        return {}
    text = _inherited() + settings
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = directory.absolute() / f"openssl-{name}.cnf"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return {"OPENSSL_CONF": str(path)}


def restart_with_settings(config: HttpServerConfig) -> None:
    """Start this program anew, with the same arguments, where OpenSSL must read a file first.

    Returns where nothing is needed or it has been read; else the process becomes the new one, so
    call this before anything is opened, bound or started.

    Raises:
        ConfigError: as :func:`openssl_environment`.
    """
    settings = _settings(config)
    if not settings or _in_force(settings):
        return
    environment = os.environ | openssl_environment(config, _runtime_directory())
    sys.stdout.flush()
    sys.stderr.flush()
    # No other program: the arguments that this one was started with.
    os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 # nosec B606


def _runtime_directory() -> Path:
    """Return a directory that only this user can write to."""
    kept = os.environ.get("RUNTIME_DIRECTORY") or os.environ.get("XDG_RUNTIME_DIR")
    directory = Path(kept or tempfile.gettempdir()) / f"keybroker-{os.geteuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{directory} is not a directory that only this user can write to")
    return directory


def server_context(config: HttpServerConfig) -> ssl.SSLContext:
    """Make the context of the listener.

    Raises:
        ConfigError: key or certificate is missing or unusable, a cipher is unknown, or the
            process was not started with :func:`openssl_environment` though it must be.
    """
    settings = _settings(config)
    if settings and not _in_force(settings):
        raise ConfigError(
            "the configured TLS suites or groups are not in force: the process was started without"
            " the OpenSSL configuration file that holds them"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = versions(config)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _set_ciphers(context, config)
    _load_certificate(context, config)
    return context


def versions(config: HttpServerConfig) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """Return the oldest and the newest version that is spoken.

    Raises:
        ConfigError: the one is above the other.
    """
    modern = config.tls_profile is TlsProfile.MODERN
    oldest = config.tls_min_version or (TlsVersion.TLS_1_3 if modern else TlsVersion.TLS_1_2)
    newest = config.tls_max_version or TlsVersion.TLS_1_3
    if oldest > newest:
        raise ConfigError(
            f"the profile {config.tls_profile.value!r} starts at TLS {oldest.value}, but"
            f" tls_max_version is {newest.value}"
        )
    return _VERSIONS[oldest], _VERSIONS[newest]


def _named(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(":") if name.strip()]


def suites(config: HttpServerConfig) -> list[str]:
    """Return the configured suites of TLS 1.3; empty: OpenSSL's defaults.

    Raises:
        ConfigError: one of them does not exist.
    """
    names = [name for name in _named(config.tls_ciphers) if name.startswith("TLS_")]
    for name in names:
        if name not in _SUITES:
            raise ConfigError(f"tls_ciphers: unknown suite {name[:64]!r}; {nearest(name, _SUITES)}")
    return names


def groups(config: HttpServerConfig) -> list[str]:
    """Return the configured key exchange groups that can be offered; empty: OpenSSL's defaults.

    Post-quantum groups that this OpenSSL lacks are left out with a warning, as with Trustee.

    Raises:
        ConfigError: one of them does not exist, or none of them can be offered.
    """
    names: list[str] = []
    missing: list[str] = []
    for name in _named(config.tls_groups):
        group = _GROUPS.get(name.lower())
        if group is None:
            raise ConfigError(
                f"tls_groups: unknown group {name[:64]!r}; {nearest(name, list(_GROUPS))}"
            )
        lacking = "MLKEM" in group and ssl.OPENSSL_VERSION_INFO[:2] < _POST_QUANTUM_OPENSSL
        (missing if lacking else names).append(group)
    if missing:
        lacks = f"{ssl.OPENSSL_VERSION} has no {', '.join(missing)} (they need OpenSSL 3.5)"
        if not names:
            raise ConfigError(f"tls_groups: {lacks}, and no other group is configured")
        _log.warning("%s; offering %s", lacks, ", ".join(names))
    return names


def _settings(config: HttpServerConfig) -> str:
    """Return the sections of the OpenSSL file, or nothing where defaults are right."""
    if config.insecure_http:
        return ""
    lines = []
    if wanted_suites := suites(config):
        lines.append(f"Ciphersuites = {':'.join(wanted_suites)}")
    if wanted_groups := groups(config):
        lines.append(f"Groups = {':'.join(wanted_groups)}")
    if not lines:
        return ""
    return "\n".join(
        (
            "ssl_conf = keybroker_ssl",
            "[keybroker_ssl]",
            "system_default = keybroker_tls",
            "[keybroker_tls]",
            *lines,
            "",
        )
    )


def _inherited() -> str:
    """Return the start of the file: what OpenSSL would have read, and its main section reopened."""
    certificates = Path(ssl.get_default_verify_paths().openssl_cafile)
    previous = Path(os.environ.get("OPENSSL_CONF", certificates.with_name("openssl.cnf")))
    section, include = "keybroker_init", ""
    try:
        found = re.search(r"^\s*openssl_conf\s*=\s*(\w+)", previous.read_text("utf-8"), re.M)
    except (OSError, UnicodeDecodeError):
        found = None
    else:
        include = f".include = {previous}\n"
    if found:
        section = found[1]
    return f"{include}[default]\nopenssl_conf = {section}\n[{section}]\n"


def _in_force(settings: str) -> bool:
    try:
        return Path(os.environ["OPENSSL_CONF"]).read_text("utf-8").endswith(settings)
    except (KeyError, OSError, UnicodeDecodeError):
        return False


def _set_ciphers(context: ssl.SSLContext, config: HttpServerConfig) -> None:
    names = [name for name in _named(config.tls_ciphers) if not name.startswith("TLS_")]
    old = config.tls_profile is TlsProfile.OLD
    profile = _OLD_CIPHERS if old else _INTERMEDIATE_CIPHERS
    try:
        context.set_ciphers(":".join(names or profile))
    except ssl.SSLError:
        raise ConfigError("tls_ciphers: OpenSSL knows none of these ciphers") from None
    offered = {str(cipher["name"]) for cipher in context.get_ciphers()}
    for name in names:
        if _ONE_CIPHER.fullmatch(name) and name not in offered:
            known = sorted(name for name in offered | set(_OLD_CIPHERS) if "TLS_" not in name)
            raise ConfigError(
                f"tls_ciphers: OpenSSL does not offer {name[:64]!r}; {nearest(name, known)}"
            )


def _load_certificate(context: ssl.SSLContext, config: HttpServerConfig) -> None:
    if config.private_key is None or config.certificate is None:
        raise ConfigError(
            "http_server needs private_key and certificate for HTTPS (or insecure_http = true)"
        )
    for path in (config.certificate, config.private_key):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"http_server: {path} cannot be read: {error.strerror}") from None

    def no_passphrase() -> str:
        raise ConfigError(f"http_server: {config.private_key} is encrypted; store it in clear")

    try:
        context.load_cert_chain(config.certificate, config.private_key, no_passphrase)
    except ssl.SSLError as error:
        raise ConfigError(
            f"http_server: {config.certificate} and {config.private_key} are not a PEM certificate"
            f" and its key ({error.reason or 'not PEM'})"
        ) from None
