"""Finds the attester that ``--attester`` names."""

from pathlib import Path
from typing import Any

from keybroker.cli.client_output import warn
from keybroker.client.attesters import (
    Attester,
    ConfigfsTsmAttester,
    FileAttester,
    SampleAttester,
    SoftTeeAttester,
)
from keybroker.client.errors import AttesterError, InputError
from keybroker.client.handshake import init_data_digest
from keybroker.model.errors import MalformedError
from keybroker.model.hashes import fit
from keybroker.model.rcar import InitData, parse_tee
from keybroker.model.tee import Tee

#: Size of an SNP report's field for what the host chose at launch, in bytes.
_HOST_DATA_BYTES = 32


def make_attester(name: str, init_data: InitData | None) -> Attester | None:
    """Make an attester.

    Args:
        name: ``auto``, ``tsm``, ``sample``, ``file:PATH``, ``file:TEE:PATH`` or
            ``softtee-snp:FOLDER``.
        init_data: what a software guest is launched with.

    Returns:
        The attester, or None for this machine's own.

    Raises:
        InputError: no such attester.
        AttesterError: it cannot be had here.
    """
    kind, _, argument = name.partition(":")
    match kind, argument:
        case "auto", "":
            return None
        case "tsm", "":
            return ConfigfsTsmAttester()
        case "sample", "":
            return SampleAttester()
        case "file", path if path:
            return _file_attester(path)
        case "softtee-snp", folder if folder:
            return _software_snp_attester(Path(folder), init_data)
    raise InputError(
        f"there is no attester {name!r}: use auto, tsm, sample, file:PATH or softtee-snp:FOLDER"
    )


def _file_attester(argument: str) -> FileAttester:
    name, colon, path = argument.partition(":")
    tee: Tee | None = None
    if colon:
        try:
            tee = parse_tee(name)
        except MalformedError:
            path = argument  # the colon is the path's own
    return FileAttester(path if colon else argument, tee)


def _software_snp_attester(folder: Path, init_data: InitData | None) -> SoftTeeAttester:
    # Imported here: no guest that has a TEE of its own needs the code that imitates one.
    from keybroker.softtee.snp import SoftwareSnpPlatform

    try:
        if folder.exists():
            platform = SoftwareSnpPlatform.load(folder)
        else:
            platform = SoftwareSnpPlatform.create()
            platform.save(folder)
            warn(
                f"made a software SNP platform; brokers that are to trust it need {folder}/root.pem"
            )
    except OSError as error:
        raise AttesterError(f"software SNP platform: {error.strerror}: {folder}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AttesterError(f"there is no software SNP platform in {folder}") from None
    launch: dict[str, Any] = {}
    if init_data is not None:
        launch["host_data"] = fit(init_data_digest(init_data), _HOST_DATA_BYTES)
    return SoftTeeAttester(platform, launch=launch)
