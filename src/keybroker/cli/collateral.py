"""``keybroker collateral``: collateral for TDX and SGX, for brokers without internet.

On a machine with internet::

    keybroker collateral fetch --quote quote.bin --output collateral/

On the broker's machine, either name the folder as ``collateral_service = "file:///…/collateral"``,
or put its files into the broker's storage, where its workers find them within a minute::

    keybroker collateral import -c kbs-config.toml collateral/*.json
    keybroker collateral list -c kbs-config.toml
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from keybroker.cli.verify_dcap import fetch_once
from keybroker.config.attestation import BuiltInAttestationConfig
from keybroker.config.dcap import DcapVerifierConfig, TcbUpdateType
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config
from keybroker.model.errors import ConfigError, EvidenceError, MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee
from keybroker.storage.provider import open_configured_storage
from keybroker.verifiers.dcap.cache import (
    NAMESPACE,
    StoredCollateral,
    encode_stored,
    parse_storage_key,
    storage_key,
)
from keybroker.verifiers.dcap.collateral import (
    CollateralKey,
    CollateralParts,
    VerifiedCollateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.collateral_service import make_source
from keybroker.verifiers.dcap.offline import MAX_FILE_BYTES, collateral_in_file, keys_in_file
from keybroker.verifiers.dcap.qcnl import settle
from keybroker.verifiers.dcap.quote import parse_quote
from keybroker.verifiers.dcap.roots import load_roots
from keybroker.verifiers.dcap.verification import collateral_key
from keybroker.verifiers.x509 import Certificate


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "collateral", help="fetch, import and list collateral for TDX and SGX"
    )
    actions = parser.add_subparsers(required=True)

    fetch = actions.add_parser("fetch", help="fetch collateral and write it to a file")
    fetch.add_argument(
        "--quote", type=Path, action="append", default=[], metavar="FILE",
        help="fetch what this quote needs; any number of times",
    )  # fmt: skip
    fetch.add_argument("--fmspc", metavar="HEX", help="of a platform, 6 bytes, with --tee and --ca")
    fetch.add_argument("--tee", choices=["tdx", "sgx"], default="tdx")
    fetch.add_argument("--ca", choices=["platform", "processor"], default="platform")
    fetch.add_argument("--service", metavar="URL", help="Intel PCS or a PCCS (default: Intel PCS)")
    fetch.add_argument("--tcb-update-type", choices=[t.value for t in TcbUpdateType])
    fetch.add_argument(
        "-o", "--output", type=Path, metavar="FILE|DIR",
        help="where to; a folder gets one file a platform (default: standard output)",
    )  # fmt: skip
    fetch.set_defaults(run=run_fetch)

    bring = actions.add_parser("import", help="put collateral into a broker's storage")
    bring.add_argument("files", nargs="+", type=Path, metavar="FILE")
    bring.set_defaults(run=run_import)

    show = actions.add_parser("list", help="say what collateral files or a storage hold")
    show.add_argument("files", nargs="*", type=Path, metavar="FILE")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=run_list)

    for action in (fetch, bring, show):
        action.add_argument(
            "-c", "--config-file", default=os.environ.get("KBS_CONFIG_FILE"),
            help="the broker's configuration (default: $KBS_CONFIG_FILE)",
        )  # fmt: skip
        action.add_argument(
            "--root", dest="roots", action="append", default=[], metavar="FILE",
            help="trust this root too (for software TEEs); any number of times",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a configuration says that matters here."""

    kbs: KbsConfig | None
    dcap: DcapVerifierConfig
    update_type: TcbUpdateType
    roots: tuple[Certificate, ...]


def run_fetch(options: argparse.Namespace) -> int:
    """Fetch, verify and write."""
    setting = _setting(options)
    dcap = msgspec.structs.replace(
        setting.dcap,
        collateral_service=options.service or setting.dcap.collateral_service,
        tcb_update_type=(options.tcb_update_type and TcbUpdateType(options.tcb_update_type))
        or setting.dcap.tcb_update_type,
        timeout_seconds=max(30.0, setting.dcap.timeout_seconds),
    )
    keys = dict.fromkeys(_wanted(options))
    for key in keys:
        source = make_source(settle(dcap))
        parts = asyncio.run(fetch_once(source, key))
        collateral = _verify(parts, key, setting.roots)
        document = msgspec.json.format(msgspec.json.encode(parts), indent=2)
        if options.output is None:
            print(document.decode())
            continue
        path = options.output
        if path.is_dir() or len(keys) > 1 or not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
            path /= f"{key.tee.value}-{key.fmspc.hex().upper()}-{key.ca}.json"
        path.write_bytes(document + b"\n")
        until = collateral.earliest_expiration.isoformat()
        print(f"{path}: {key}, valid until {until}", file=sys.stderr)
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Verify what files hold and put it into storage."""
    setting = _setting(options)
    kbs = setting.kbs
    if kbs is None:
        raise ConfigError("whose storage: give the broker's configuration with -c FILE")
    found = [
        collateral
        for path in options.files
        for collateral in _in_file(path, setting.update_type, setting.roots)
    ]

    async def store() -> None:
        storage = open_configured_storage(kbs)
        try:
            namespace = await storage.namespace(NAMESPACE)
            for collateral in found:
                await namespace.set(
                    storage_key(collateral.key, setting.update_type),
                    encode_stored(collateral.parts, time.time()),
                )
        finally:
            await storage.close()

    asyncio.run(store())
    for collateral in found:
        print(f"imported: {_line(collateral)}")
    return 0 if found else 1


def run_list(options: argparse.Namespace) -> int:
    """Print what is held; 0 where all of it is valid now, else 1."""
    setting = _setting(options)
    if options.files:
        found = [
            collateral
            for path in options.files
            for collateral in _in_file(path, setting.update_type, setting.roots)
        ]
    elif setting.kbs is not None:
        found = asyncio.run(_in_storage(setting.kbs, setting.update_type, setting.roots))
    else:
        raise ConfigError("give files, or the broker's configuration with -c FILE")
    if options.json:
        print(json.dumps([_as_json(collateral) for collateral in found], indent=2))
    else:
        for collateral in found:
            print(_line(collateral))
        if not found:
            print("there is none", file=sys.stderr)
    return 0 if found and all(map(_is_valid, found)) else 1


def _setting(options: argparse.Namespace) -> _Setting:
    kbs = load_config(options.config_file, KbsConfig) if options.config_file else None
    dcap = DcapVerifierConfig()
    if kbs is not None and isinstance(kbs.attestation, BuiltInAttestationConfig):
        dcap = kbs.attestation.verifier_config.dcap_verifier
    roots = load_roots((*dcap.extra_trusted_roots, *options.roots))
    return _Setting(kbs, dcap, settle(dcap).tcb_update_type, roots)


def _wanted(options: argparse.Namespace) -> list[CollateralKey]:
    keys = []
    for path in options.quote:
        try:
            keys.append(collateral_key(parse_quote(_read(path))))
        except EvidenceError as error:
            raise EvidenceError(f"{path}: {error.diagnostics()}") from None
    if options.fmspc is not None:
        try:
            fmspc = bytes.fromhex(options.fmspc)
        except ValueError:
            fmspc = b""
        if len(fmspc) != 6:
            raise ConfigError("--fmspc is not 6 bytes in hexadecimal")
        keys.append(CollateralKey(Tee(options.tee), fmspc, options.ca))
    if not keys:
        raise ConfigError("for which platform: give --quote FILE or --fmspc HEX")
    return keys


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _in_file(
    path: Path, update_type: TcbUpdateType, roots: Sequence[Certificate]
) -> list[VerifiedCollateral]:
    try:
        content = parse_json(_read(path))
        parts = [
            (found, key)
            for key in keys_in_file(content)
            if (found := collateral_in_file(content, key, update_type)) is not None
        ]
        return [_verify(found, key, roots) for found, key in parts]
    except (EvidenceError, MalformedError) as error:
        raise EvidenceError(f"{path}: {error.diagnostics()}") from None


async def _in_storage(
    kbs: KbsConfig, update_type: TcbUpdateType, roots: Sequence[Certificate]
) -> list[VerifiedCollateral]:
    storage = open_configured_storage(kbs)
    found = []
    try:
        items = await (await storage.namespace(NAMESPACE)).items()
    finally:
        await storage.close()
    for name, value in items.items():
        key = parse_storage_key(name, update_type)
        if key is None:
            continue
        try:
            stored = msgspec.json.decode(value, type=StoredCollateral)
            found.append(_verify(stored.parts, key, roots))
        except (msgspec.MsgspecError, EvidenceError) as error:
            print(f"{key}: not usable: {error}", file=sys.stderr)
    return found


def _verify(
    parts: CollateralParts, key: CollateralKey, roots: Sequence[Certificate]
) -> VerifiedCollateral:
    collateral = verify_collateral(parts, key.tee, roots)
    if collateral.key != key:
        raise EvidenceError(f"the collateral is for {collateral.key}, not {key}")
    return collateral


def _is_valid(collateral: VerifiedCollateral) -> bool:
    return datetime.now(UTC) < collateral.earliest_expiration


def _line(collateral: VerifiedCollateral) -> str:
    word = "valid until" if _is_valid(collateral) else "EXPIRED at"
    return (
        f"{collateral.key}  TCB evaluation {collateral.tcb_info.tcb_evaluation_data_number}"
        f"  {word} {collateral.earliest_expiration.isoformat()}"
    )


def _as_json(collateral: VerifiedCollateral) -> dict[str, object]:
    return {
        "tee": collateral.key.tee.value,
        "fmspc": collateral.key.fmspc.hex().upper(),
        "ca": collateral.key.ca,
        "tcb_evaluation_data_number": collateral.tcb_info.tcb_evaluation_data_number,
        "issued": collateral.latest_issue.isoformat(),
        "expires": collateral.earliest_expiration.isoformat(),
        "valid": _is_valid(collateral),
    }
