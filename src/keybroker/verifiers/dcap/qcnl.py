"""Intel's ``sgx_default_qcnl.conf``, and what it gives together with our own configuration.

The file is JSON with comments (``//`` and ``/* */``). In releases before 2021 it was a list of
``NAME=value`` lines; both are read.

Specification: Intel SGX DCAP, "Quote Provider Library", ``sgx_default_qcnl.conf``.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keybroker.config.dcap import INTEL_PCS_URL, DcapVerifierConfig, TcbUpdateType
from keybroker.model.errors import ConfigError, MalformedError
from keybroker.model.strict_json import parse_json

_log = logging.getLogger(__name__)

#: Largest file that is read; a real one has some 4 KiB, most of it comments.
_MAX_BYTES = 1024 * 1024

#: A string (in which nothing is a comment), or a comment.
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_COMMA_BEFORE_END = re.compile(r'("(?:[^"\\]|\\.)*")|,(\s*[}\]])')
_LINE = re.compile(r"\s*([A-Z_]+)\s*=\s*(.*?)\s*", re.ASCII)

#: Names of the old form → of the new.
_OLD_NAMES = {"PCCS_URL": "pccs_url", "USE_SECURE_CERT": "use_secure_cert"}


@dataclass(frozen=True, slots=True)
class CollateralSettings:
    """Where collateral comes from, decided.

    Attributes:
        collateral_service: a URL.
        verify_tls: whether the service must show a valid certificate.
    """

    collateral_service: str
    verify_tls: bool
    tcb_update_type: TcbUpdateType
    timeout_seconds: float


def settle(config: DcapVerifierConfig) -> CollateralSettings:
    """Decide where collateral comes from: by configuration, else by Intel's file, else PCS.

    Raises:
        ConfigError: the file is there and cannot be used.
    """
    file = read_qcnl_conf(Path(config.qcnl_conf)) if config.qcnl_conf else {}
    service = config.collateral_service or file.get("collateral_service") or file.get("pccs_url")
    secure = config.use_secure_cert
    if secure is None:
        secure = file.get("use_secure_cert", True)
    update_type = config.tcb_update_type or TcbUpdateType(
        file.get("tcb_update_type", TcbUpdateType.EARLY)
    )
    if file and not config.collateral_service:
        _log.info("the collateral service is that of %s", config.qcnl_conf)
    if not secure:
        _log.warning("the TLS certificate of the collateral service is not verified")
    return CollateralSettings(
        collateral_service=service or INTEL_PCS_URL,
        verify_tls=secure,
        tcb_update_type=update_type,
        timeout_seconds=config.timeout_seconds,
    )


def read_qcnl_conf(path: Path) -> dict[str, Any]:
    """Read the file; an absent one is empty.

    Raises:
        ConfigError: it cannot be read, or a value that is needed has another type.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        return parse_qcnl_conf(raw)
    except MalformedError as error:
        raise ConfigError(f"{path}: {error.diagnostics()}") from None


def parse_qcnl_conf(raw: bytes) -> dict[str, Any]:
    """Parse the text of the file; return the keys that matter here.

    Raises:
        MalformedError: neither of its forms, or a value has another type than it must.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedError("not UTF-8") from None
    values = _parse_json(text) if text.lstrip().startswith(("{", "/")) else _parse_lines(text)
    found: dict[str, Any] = {}
    for name, type_ in (
        ("pccs_url", str),
        ("collateral_service", str),
        ("use_secure_cert", bool),
        ("tcb_update_type", str),
    ):
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, type_):
            raise MalformedError(f"{name} is not a {type_.__name__}")
        found[name] = value
    update_type = found.get("tcb_update_type")
    if update_type is not None and update_type not in tuple(TcbUpdateType):
        raise MalformedError("tcb_update_type is neither early nor standard")
    return found


def _parse_json(text: str) -> dict[str, Any]:
    without = _STRING_OR_COMMENT.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)
    # Intel's parser forgives a comma after the last member
    without = _COMMA_BEFORE_END.sub(lambda m: m[1] or m[2], without)
    value = parse_json(without.encode())
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value


def _parse_lines(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"line {number} is not NAME=value")
        name = _OLD_NAMES.get(match[1])
        if name == "use_secure_cert":
            values[name] = match[2].upper() == "TRUE"
        elif name is not None:
            values[name] = match[2]
    return values
