"""Collateral from files, for a broker without internet.

A file is either collateral in the form of ``dcap-qvl`` (one platform; what ``keybroker collateral
fetch`` writes) or ``platform_collaterals.json`` of Intel's PCS Client Tool (many). A folder holds
any number of both; their names do not matter.

Specification: Intel SGX DCAP, tools/PcsClientTool.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from keybroker.config.dcap import TcbUpdateType
from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.model.strict_json import convert_struct, parse_json
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.collateral import CollateralKey, CollateralParts, describe_parts
from keybroker.verifiers.dcap.source import SourceError

#: Largest file that is read. Collateral of one platform has 20 KiB; a tool's file a few MiB.
MAX_FILE_BYTES = 64 * 1024 * 1024

#: Most files of a folder that are looked at.
MAX_FILES = 10_000

_Stamp = tuple[int, int]


class OfflineSource:
    """A file or a folder, read anew where it has changed."""

    is_remote = False

    def __init__(self, path: Path, update_type: TcbUpdateType) -> None:
        self._path = path
        self._update_type = update_type
        self._files: dict[Path, tuple[_Stamp, Any]] = {}

    @property
    def name(self) -> str:
        return str(self._path)

    async def fetch(self, key: CollateralKey) -> CollateralParts:
        """See :class:`keybroker.verifiers.dcap.source.CollateralSource`."""
        return await asyncio.to_thread(self._find, key)

    async def close(self) -> None:
        return None

    def _find(self, key: CollateralKey) -> CollateralParts:
        problems: list[str] = []
        for path in self._paths():
            try:
                found = collateral_in_file(self._load(path), key, self._update_type)
            except (EvidenceError, MalformedError) as error:
                problems.append(f"{path.name}: {error.diagnostics()}")
                continue
            if found is not None:
                return found
        reason = f"no collateral for {key}"
        raise SourceError("; ".join((reason, *problems[:3])))

    def _paths(self) -> list[Path]:
        try:
            if not self._path.is_dir():
                return [self._path]
            return sorted(self._path.glob("*.json"))[:MAX_FILES]
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", unavailable=True) from None

    def _load(self, path: Path) -> Any:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = (status.st_mtime_ns, status.st_size)
                known = self._files.get(path)
                if known is not None and known[0] == stamp:
                    return known[1]
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}", unavailable=True) from None
        if len(raw) > MAX_FILE_BYTES:
            raise SourceError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        content = parse_json(raw)
        self._files[path] = (stamp, content)
        return content


def collateral_in_file(
    content: Any, key: CollateralKey, update_type: TcbUpdateType
) -> CollateralParts | None:
    """Find the collateral of a platform in the content of a file.

    Args:
        content: a parsed JSON value.
        key: of which platform.
        update_type: which TCB evaluation, where the file holds both.

    Returns:
        Collateral, not verified; None where the file holds none for this platform.

    Raises:
        EvidenceError, MalformedError: the file has neither of the forms.
    """
    if isinstance(content, dict) and "collaterals" in content:
        try:
            return _from_tool(content["collaterals"], key, update_type)
        except (KeyError, TypeError, AttributeError):
            raise MalformedError("not a file of the PCS Client Tool") from None
    parts = convert_struct(content, CollateralParts)
    return parts if describe_parts(parts) == key else None


def keys_in_file(content: Any) -> list[CollateralKey]:
    """Say which platforms a file has collateral for.

    Raises:
        EvidenceError, MalformedError: the file has neither of the forms.
    """
    if not (isinstance(content, dict) and "collaterals" in content):
        return [describe_parts(convert_struct(content, CollateralParts))]
    keys: list[CollateralKey] = []
    try:
        for entry in content["collaterals"]["tcbinfos"]:
            for tee in (Tee.SGX, Tee.TDX):
                if any(entry.get(f"{tee.value}_tcbinfo{suffix}") for suffix in ("", "_early")):
                    keys += (
                        CollateralKey(tee, bytes.fromhex(entry["fmspc"]), ca)
                        for ca in ("platform", "processor")
                    )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise MalformedError("not a file of the PCS Client Tool") from None
    return keys


def _from_tool(
    collaterals: dict[str, Any], key: CollateralKey, update_type: TcbUpdateType
) -> CollateralParts | None:
    def evaluated(holder: dict[str, Any], name: str) -> dict[str, Any] | None:
        early = holder.get(f"{name}_early") if update_type is TcbUpdateType.EARLY else None
        found: dict[str, Any] | None = early or holder.get(name)
        return found

    wanted = key.fmspc.hex()
    entries = [e for e in collaterals["tcbinfos"] if str(e["fmspc"]).lower() == wanted]
    tcb_info = evaluated(entries[0], f"{key.tee.value}_tcbinfo") if entries else None
    identity = evaluated(collaterals, "tdqeidentity" if key.tee is Tee.TDX else "qeidentity")
    if tcb_info is None or identity is None:
        return None
    certificates = collaterals["certificates"]
    ca_chain = certificates["SGX-PCK-Certificate-Issuer-Chain"][key.ca.upper()]
    return CollateralParts(
        pck_crl_issuer_chain=unquote(ca_chain),
        root_ca_crl=collaterals["rootcacrl"],
        pck_crl=collaterals["pckcacrl"][f"{key.ca}Crl"],
        tcb_info_issuer_chain=unquote(certificates["TCB-Info-Issuer-Chain"]),
        tcb_info=_as_signed(tcb_info["tcbInfo"]),
        tcb_info_signature=tcb_info["signature"],
        qe_identity_issuer_chain=unquote(certificates["SGX-Enclave-Identity-Issuer-Chain"]),
        qe_identity=_as_signed(identity["enclaveIdentity"]),
        qe_identity_signature=identity["signature"],
    )


def _as_signed(document: Any) -> str:
    """Write a document as Intel signs it: members in their order, without white space."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)
