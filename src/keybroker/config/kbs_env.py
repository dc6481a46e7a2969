"""``kbs.env``: the configuration of an original Trust Authority (Amber) key broker.

The file is what Docker takes with ``--env-file``: a line for each variable, ``NAME=value``.
Comments, empty lines, ``export`` before a name and quotes around a value are taken too, since older
installers read the same file with a shell.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import MAX_FILE_BYTES
from keybroker.config.reader import nearest, read_values
from keybroker.model.errors import ConfigError

#: Where the original keeps its state and its certificates.
DEFAULT_HOME = Path("/opt/kbs")
DEFAULT_CERTS = Path("/etc/kbs/certs")

DEFAULT_PORT = 9443
DEFAULT_SAN_LIST = "127.0.0.1,localhost"
DEFAULT_VAULT_PORT = 8200
DEFAULT_KMIP_PORT = 5696

#: The original's log levels, by what is written at least.
_LOG_LEVELS = {
    "TRACE": "debug",
    "DEBUG": "debug",
    "INFO": "info",
    "WARN": "warning",
    "WARNING": "warning",
    "ERROR": "error",
    "FATAL": "error",
    "PANIC": "error",
}

_VARIABLES = (
    "ADMIN_PASSWORD",
    "ADMIN_USERNAME",
    "AS_API_KEY",
    "AS_API_URL",
    "AS_BASE_URL",
    "AUTHENTICATION_DEFEND_INTERVAL_MINUTES",
    "AUTHENTICATION_DEFEND_LOCKOUT_MINUTES",
    "AUTHENTICATION_DEFEND_MAX_ATTEMPTS",
    "BEARER_TOKEN_VALIDITY_IN_MINUTES",
    "KEY_MANAGER",
    "KMIP_CLIENT_CERT_PATH",
    "KMIP_CLIENT_KEY_PATH",
    "KMIP_HOSTNAME",
    "KMIP_PASSWORD",
    "KMIP_ROOT_CERT_PATH",
    "KMIP_SERVER_IP",
    "KMIP_SERVER_PORT",
    "KMIP_USERNAME",
    "KMIP_VERSION",
    "LOG_LEVEL",
    "SAN_LIST",
    "SERVICE_PORT",
    "TRUSTAUTHORITY_API_KEY",
    "TRUSTAUTHORITY_API_URL",
    "TRUSTAUTHORITY_BASE_URL",
    "VAULT_CLIENT_TOKEN",
    "VAULT_SERVER_IP",
    "VAULT_SERVER_PORT",
)

#: Variables that are the original's, or every program's, and say nothing to this broker.
_WITHOUT_EFFECT = frozenset({"HTTP_READ_HEADER_TIMEOUT", "LOG_CALLER"})
_OTHERS = frozenset({"TZ", "PATH", "HOME", "LANG"})

#: Variables of the process, in either case, which Docker would set from the same file.
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})


@dataclass(frozen=True, slots=True)
class EnvPlaces:
    """Where a broker that is configured by environment keeps things.

    Attributes:
        home: the original's home, whose records are taken over; ours is a folder in it.
        certs: folder of ``tls``, ``trustedjwt`` and ``trustedca``.
    """

    home: Path = DEFAULT_HOME
    certs: Path = DEFAULT_CERTS

    @property
    def state(self) -> Path:
        """Folder of the broker's own storage and master key."""
        return self.home / "keybroker"

    @property
    def tls_key(self) -> Path:
        """PEM file of the TLS key."""
        return self.certs / "tls" / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """PEM file of the TLS certificate."""
        return self.certs / "tls" / "tls.crt"

    @property
    def master_key(self) -> Path:
        """File of the key that encrypts what is stored."""
        return self.state / "master.key"


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """What a ``kbs.env`` means.

    Attributes:
        names: for the TLS certificate that is made on first start.
        proxies: variables for the environment of the process.
        notes: what is read without effect.
    """

    config: KbsConfig
    names: Sequence[str]
    proxies: Mapping[str, str]
    notes: Sequence[str]


def load_env(path: str | Path, places: EnvPlaces) -> EnvConfig:
    """Read a ``kbs.env``.

    Raises:
        ConfigError: it cannot be read, or says what cannot be; never with a value of it.
    """
    values, notes = parse_env(_read(Path(path)))
    try:
        tables = _tables(values, places)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.diagnostics()}") from None
    reading = read_values(tables, KbsConfig)
    if reading.problems:
        problems = "".join(f"\n  {problem}" for problem in reading.problems)
        raise ConfigError(f"{path} is not valid:{problems}")
    proxies = {name: value for name, value in values.items() if name.upper() in _PROXIES}
    return EnvConfig(reading.value, _san_list(values), proxies, notes)


def parse_env(text: str) -> tuple[Mapping[str, str], Sequence[str]]:
    """Take the lines apart.

    Returns:
        Values by name, and notes about what is not known.

    Raises:
        ConfigError: a line that is no assignment, or a name twice.
    """
    values: dict[str, str] = {}
    notes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.replace("_", "").isalnum() or not name.isascii():
            raise ConfigError(f"line {number} is not of the form NAME=value")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if name in values:
            raise ConfigError(f"{name} stands twice, in line {number} again")
        if name in _VARIABLES or name.upper() in _PROXIES:
            values[name] = value
        elif name in _WITHOUT_EFFECT:
            notes.append(f"{name} has no effect here")
        elif name.upper() not in _OTHERS:
            notes.append(f"{name} is not known; {nearest(name, _VARIABLES)}")
    return values, notes


def _tables(values: Mapping[str, str], places: EnvPlaces) -> dict[str, Any]:
    port = _number(values, "SERVICE_PORT", DEFAULT_PORT)
    level = values.get("LOG_LEVEL") or "INFO"
    if level.upper() not in _LOG_LEVELS:
        raise ConfigError(f"LOG_LEVEL: {level[:32]!r} is not a level")
    return {
        "http_server": {
            "sockets": [f"0.0.0.0:{port}"],  # nosec B104 - as the original
            "private_key": str(places.tls_key),
            "certificate": str(places.tls_certificate),
        },
        "admin": {"authorization_mode": "DenyAll"},
        "storage_backend": {
            "storage_type": "Sqlite",
            "backends": {"sqlite": {"path": str(places.state / "keybroker.db")}},
        },
        "encryption": {"source": "file", "path": str(places.master_key)},
        "log": {"level": _LOG_LEVELS[level.upper()]},
        "key_transfer": _key_transfer(values, places),
    }


def _key_transfer(values: Mapping[str, str], places: EnvPlaces) -> dict[str, Any]:
    table: dict[str, Any] = {
        "admin_username": _required(values, "ADMIN_USERNAME"),
        "admin_password": _required(values, "ADMIN_PASSWORD"),
        "token_validity_minutes": _number(values, "BEARER_TOKEN_VALIDITY_IN_MINUTES", 5),
        "import_from": str(places.home),
        "lockout": {
            "max_attempts": _number(values, "AUTHENTICATION_DEFEND_MAX_ATTEMPTS", 5),
            "interval_minutes": _number(values, "AUTHENTICATION_DEFEND_INTERVAL_MINUTES", 5),
            "lockout_minutes": _number(values, "AUTHENTICATION_DEFEND_LOCKOUT_MINUTES", 15),
        },
        "key_manager": _key_manager(values),
    }
    authority = _trust_authority(values, places)
    if authority is not None:
        table["trust_authority"] = authority
    return table


def _key_manager(values: Mapping[str, str]) -> dict[str, Any]:
    kind = (values.get("KEY_MANAGER") or "vault").lower()
    if kind == "local":
        return {"type": "local"}
    if kind == "vault":
        address = _host(_required(values, "VAULT_SERVER_IP"))
        port = _number(values, "VAULT_SERVER_PORT", DEFAULT_VAULT_PORT)
        # The original knows no other scheme; an address with one is ours.
        url = address if "://" in address else f"http://{address}"
        return {
            "type": "vault",
            "url": f"{url}:{port}",
            "token": _required(values, "VAULT_CLIENT_TOKEN"),
        }
    if kind == "kmip":
        table: dict[str, Any] = {
            "type": "kmip",
            "address": _required(values, "KMIP_SERVER_IP"),
            "port": _number(values, "KMIP_SERVER_PORT", DEFAULT_KMIP_PORT),
            "client_cert": _required(values, "KMIP_CLIENT_CERT_PATH"),
            "client_key": _required(values, "KMIP_CLIENT_KEY_PATH"),
            "root_cert": _required(values, "KMIP_ROOT_CERT_PATH"),
        }
        optional = {
            "version": "KMIP_VERSION",
            "hostname": "KMIP_HOSTNAME",
            "username": "KMIP_USERNAME",
            "password": "KMIP_PASSWORD",  # nosec B105 - a name
        }
        table.update({key: values[name] for key, name in optional.items() if values.get(name)})
        # One without the other is no credential, in the original too.
        if ("username" in table) != ("password" in table):
            table.pop("username", None)
            table.pop("password", None)
        return table
    raise ConfigError("KEY_MANAGER must be VAULT, KMIP or LOCAL")


def _trust_authority(values: Mapping[str, str], places: EnvPlaces) -> dict[str, Any] | None:
    def first(*names: str) -> str:
        return next((values[name] for name in names if values.get(name)), "")

    api_url = first("TRUSTAUTHORITY_API_URL", "AS_API_URL", "AS_BASE_URL")
    portal_url = first("TRUSTAUTHORITY_BASE_URL", "AS_BASE_URL")
    api_key = first("TRUSTAUTHORITY_API_KEY", "AS_API_KEY")
    if not (api_url or portal_url or api_key):
        return None
    table: dict[str, Any] = {
        "trusted_jwt_certs": str(places.certs / "trustedjwt"),
        "trusted_ca_certs": str(places.certs / "trustedca"),
    }
    if api_url:
        table["api_url"] = api_url
    if portal_url:
        table["portal_url"] = portal_url
    if api_key:
        table["api_key"] = api_key
    return table


def _san_list(values: Mapping[str, str]) -> list[str]:
    names = (values.get("SAN_LIST") or DEFAULT_SAN_LIST).split(",")
    return [name.strip() for name in names if name.strip()]


def _host(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return f"[{address}]" if parsed.version == 6 else address


def _required(values: Mapping[str, str], name: str) -> str:
    value = values.get(name)
    if not value:
        raise ConfigError(f"{name} is missing")
    return value


def _number(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise ConfigError(f"{name} must be a number")
    return int(text)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is too large for a kbs.env")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None
