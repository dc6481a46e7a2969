"""Which TCB level a platform has, and what that is worth.

TCB info lists levels as minimum security version numbers. A platform has the first level, from the
highest down, none of whose numbers exceeds its own. The status of the quoting enclave and, for
TDX, of the TDX module is found in the same way, and a component that is out of date brings the
whole down.

Specification: Intel SGX and TDX Provisioning Certification Service API, version 4, "Get TCB Info"
and "Enclave Identity"; Intel TDX Module Base Specification for the two SVNs of TDX 1.5.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import msgspec

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.quote import Fields

UP_TO_DATE: Final = "UpToDate"
OUT_OF_DATE: Final = "OutOfDate"
REVOKED: Final = "Revoked"
CONFIGURATION_NEEDED: Final = "ConfigurationNeeded"
SW_HARDENING_NEEDED: Final = "SWHardeningNeeded"
CONFIGURATION_AND_SW_HARDENING_NEEDED: Final = "ConfigurationAndSWHardeningNeeded"
OUT_OF_DATE_CONFIGURATION_NEEDED: Final = "OutOfDateConfigurationNeeded"
RELAUNCH_ADVISED: Final = "TDRelaunchAdvised"
RELAUNCH_ADVISED_CONFIGURATION_NEEDED: Final = "TDRelaunchAdvisedConfigurationNeeded"

_PLATFORM_STATUSES: Final = frozenset(
    (
        UP_TO_DATE,
        OUT_OF_DATE,
        REVOKED,
        CONFIGURATION_NEEDED,
        SW_HARDENING_NEEDED,
        CONFIGURATION_AND_SW_HARDENING_NEEDED,
        OUT_OF_DATE_CONFIGURATION_NEEDED,
    )
)
_MODULE_STATUSES: Final = frozenset((UP_TO_DATE, OUT_OF_DATE, REVOKED))
_ENCLAVE_STATUSES: Final = frozenset(
    (
        UP_TO_DATE,
        OUT_OF_DATE,
        REVOKED,
        CONFIGURATION_NEEDED,
        OUT_OF_DATE_CONFIGURATION_NEEDED,
    )
)
_NEEDING_CONFIGURATION: Final = frozenset(
    (
        CONFIGURATION_NEEDED,
        CONFIGURATION_AND_SW_HARDENING_NEEDED,
        OUT_OF_DATE_CONFIGURATION_NEEDED,
    )
)
_NOT_OUT_OF_DATE: Final = frozenset(
    (
        UP_TO_DATE,
        SW_HARDENING_NEEDED,
        CONFIGURATION_NEEDED,
        CONFIGURATION_AND_SW_HARDENING_NEEDED,
    )
)

#: Number of security version numbers of a TCB.
COMPONENTS: Final = 16

_U8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Component(msgspec.Struct, frozen=True):
    """One security version number."""

    svn: _U8


class Tcb(msgspec.Struct, frozen=True):
    """The numbers of one level; ``tdxtcbcomponents`` only in TCB info for TDX."""

    sgxtcbcomponents: tuple[Component, ...]
    pcesvn: _U16
    tdxtcbcomponents: tuple[Component, ...] = ()


class TcbLevel(msgspec.Struct, frozen=True, rename="camel"):
    """One level of platforms."""

    tcb: Tcb
    tcb_date: _Moment
    tcb_status: str
    advisory_ids: tuple[str, ...] = msgspec.field(default=(), name="advisoryIDs")


class IsvSvn(msgspec.Struct, frozen=True):
    """The number of one level of an enclave or module."""

    isvsvn: _U16


class IsvLevel(msgspec.Struct, frozen=True, rename="camel"):
    """One level of an enclave or module."""

    tcb: IsvSvn
    tcb_date: _Moment
    tcb_status: str
    advisory_ids: tuple[str, ...] = msgspec.field(default=(), name="advisoryIDs")


class TdxModule(msgspec.Struct, frozen=True, rename="camel"):
    """What the TDX module must be; hexadecimal."""

    mrsigner: str
    attributes: str
    attributes_mask: str


class TdxModuleIdentity(TdxModule, frozen=True, rename="camel"):
    """What a TDX module of one major version must be, and its levels."""

    id: str
    tcb_levels: tuple[IsvLevel, ...]


class TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    """TCB info of one FMSPC."""

    id: str
    version: int
    issue_date: _Moment
    next_update: _Moment
    fmspc: str
    pce_id: str
    tcb_type: int
    tcb_evaluation_data_number: int
    tcb_levels: tuple[TcbLevel, ...]
    tdx_module: TdxModule | None = None
    tdx_module_identities: tuple[TdxModuleIdentity, ...] = ()

    def __post_init__(self) -> None:
        if len(self.fmspc) != 12 or not set(self.fmspc) <= set(string.hexdigits):
            raise ValueError("fmspc is not 6 bytes in hexadecimal")

    def check_for(self, tee: Tee) -> None:
        """Check that it is for a TEE.

        Raises:
            EvidenceError: it is for another, of another version, or incomplete.
        """
        if self.version != 3 or self.id != tee.value.upper():
            raise EvidenceError(
                f"the TCB info is for {self.id!r} version {self.version}, not {tee.value}"
            )
        with_tdx = COMPONENTS if tee is Tee.TDX else 0
        for level in self.tcb_levels:
            if len(level.tcb.sgxtcbcomponents) != COMPONENTS or (
                with_tdx and len(level.tcb.tdxtcbcomponents) != COMPONENTS
            ):
                raise EvidenceError("a TCB level has not 16 components")
        if with_tdx and self.tdx_module is None:
            raise EvidenceError("the TCB info for TDX says nothing about the TDX module")


class QeIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """Which quoting enclaves are genuine; hexadecimal."""

    id: str
    version: int
    issue_date: _Moment
    next_update: _Moment
    tcb_evaluation_data_number: int
    miscselect: str
    miscselect_mask: str
    attributes: str
    attributes_mask: str
    mrsigner: str
    isvprodid: _U16
    tcb_levels: tuple[IsvLevel, ...]

    def check_for(self, tee: Tee) -> None:
        """Check that it is for a TEE.

        Raises:
            EvidenceError: it is for another, or of another version.
        """
        expected = "TD_QE" if tee is Tee.TDX else "QE"
        if self.id != expected or self.version not in (2, 3):
            raise EvidenceError(
                f"the QE identity is {self.id!r} version {self.version}, not {expected!r}"
            )


@dataclass(frozen=True, slots=True)
class Level:
    """The level of something.

    Attributes:
        status: one of the statuses above.
        date: when the last change that it has was published.
        advisory_ids: advisories that apply.
    """

    status: str
    date: datetime
    advisory_ids: tuple[str, ...]

    def converge(self, component: "Level") -> "Level":
        """Return the level of the whole, of which ``component`` is part."""
        status = self.status
        if component.status == REVOKED:
            status = REVOKED
        elif component.status == OUT_OF_DATE:
            if status in (UP_TO_DATE, SW_HARDENING_NEEDED):
                status = OUT_OF_DATE
            elif status in (CONFIGURATION_NEEDED, CONFIGURATION_AND_SW_HARDENING_NEEDED):
                status = OUT_OF_DATE_CONFIGURATION_NEEDED
        advisory_ids = dict.fromkeys((*self.advisory_ids, *component.advisory_ids))
        return Level(status, min(self.date, component.date), tuple(advisory_ids))

    def after_update(self, current: "Level") -> "Level":
        """Return the level of a TD that was launched at this one and now runs at ``current``."""
        if (
            self.status in (OUT_OF_DATE, OUT_OF_DATE_CONFIGURATION_NEEDED)
            and current.status in _NOT_OUT_OF_DATE
        ):
            needs_configuration = not _NEEDING_CONFIGURATION.isdisjoint(
                (self.status, current.status)
            )
            status = (
                RELAUNCH_ADVISED_CONFIGURATION_NEEDED if needs_configuration else RELAUNCH_ADVISED
            )
            return Level(status, self.date, self.advisory_ids)
        return self


def platform_level(
    tcb_info: TcbInfo, sgx_svns: bytes, pce_svn: int, tdx_svns: bytes | None = None
) -> Level:
    """Find the level of a platform.

    Args:
        tcb_info: of the platform's FMSPC.
        sgx_svns: its 16 SGX TCB components.
        pce_svn: its PCE's security version.
        tdx_svns: 16 TDX TCB components of the TD report; None for SGX.

    Raises:
        EvidenceError: below every level, or the level has no known status.
    """
    module: Level | None = None
    first_tdx = 0
    if tdx_svns is not None and tdx_svns[1] > 0:
        # a module that has a version of its own is judged by its identity, not by these two
        first_tdx = 2
        module = _module_level(tcb_info, tdx_svns)
    for level in sorted(tcb_info.tcb_levels, key=_rank, reverse=True):
        tcb = level.tcb
        if pce_svn < tcb.pcesvn or not _reaches(sgx_svns, tcb.sgxtcbcomponents):
            continue
        if tdx_svns is not None and not _reaches(
            tdx_svns[first_tdx:], tcb.tdxtcbcomponents[first_tdx:]
        ):
            continue
        _check_status(level.tcb_status, _PLATFORM_STATUSES, "TCB info")
        found = Level(level.tcb_status, level.tcb_date, level.advisory_ids)
        return found.converge(module) if module is not None else found
    raise EvidenceError("the platform is below every TCB level that Intel knows")


def qe_level(identity: QeIdentity, report: Fields) -> Level:
    """Check that a report is of a genuine quoting enclave, and find its level.

    Raises:
        EvidenceError: of another enclave, in debug mode, or below every level.
    """
    flags = report["attributes.flags"] + report["attributes.xfrm"]
    if (
        report["mr_signer"] != _bytes(identity.mrsigner, 32)
        or int.from_bytes(report["isv_prod_id"], "little") != identity.isvprodid
        or not _equal_under_mask(
            report["misc_select"],
            _bytes(identity.miscselect, 4),
            _bytes(identity.miscselect_mask, 4),
        )
        or not _equal_under_mask(
            flags, _bytes(identity.attributes, 16), _bytes(identity.attributes_mask, 16)
        )
        or is_debug_enclave(report)
    ):
        raise EvidenceError("the quote is not by a quoting enclave that Intel vouches for")
    return _isv_level(
        identity.tcb_levels,
        int.from_bytes(report["isv_svn"], "little"),
        _ENCLAVE_STATUSES,
        "quoting enclave",
    )


def verify_tdx_module(tcb_info: TcbInfo, report: Fields) -> None:
    """Check that a TD report is by a TDX module that Intel vouches for.

    Raises:
        EvidenceError: by another signer, or with attributes that it must not have.
    """
    expected: TdxModule | None = tcb_info.tdx_module
    if report["tcb_svn"][1] > 0:
        expected = _module_identity(tcb_info, report["tcb_svn"][1])
    if expected is None:
        raise EvidenceError("the TCB info says nothing about the TDX module")
    mask = _bytes(expected.attributes_mask, 8)
    attributes = report["seam_attributes"]
    if report["mrsigner_seam"] != _bytes(expected.mrsigner, 48):
        raise EvidenceError("the TDX module is not signed by whom the TCB info names")
    outside = any(a & ~m & 0xFF for a, m in zip(attributes, mask, strict=True))
    if outside or not _equal_under_mask(attributes, _bytes(expected.attributes, 8), mask):
        raise EvidenceError("the TDX module has attributes that the TCB info does not allow")


def is_debug_enclave(report: Fields) -> bool:
    """Tell whether an enclave's report says that its memory can be read from outside."""
    return bool(report["attributes.flags"][0] & 0x02)


def _rank(level: TcbLevel) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    return (
        tuple(component.svn for component in level.tcb.sgxtcbcomponents),
        level.tcb.pcesvn,
        tuple(component.svn for component in level.tcb.tdxtcbcomponents),
    )


def _reaches(svns: bytes, required: Sequence[Component]) -> bool:
    return all(svn >= component.svn for svn, component in zip(svns, required, strict=True))


def _module_identity(tcb_info: TcbInfo, version: int) -> TdxModuleIdentity:
    wanted = f"TDX_{version:02X}"
    for identity in tcb_info.tdx_module_identities:
        if identity.id.upper() == wanted:
            return identity
    raise EvidenceError(f"the TCB info knows no TDX module {wanted}")


def _module_level(tcb_info: TcbInfo, tdx_svns: bytes) -> Level:
    identity = _module_identity(tcb_info, tdx_svns[1])
    return _isv_level(identity.tcb_levels, tdx_svns[0], _MODULE_STATUSES, "TDX module")


def _isv_level(levels: Sequence[IsvLevel], svn: int, statuses: frozenset[str], what: str) -> Level:
    for level in levels:
        if svn >= level.tcb.isvsvn:
            _check_status(level.tcb_status, statuses, what)
            return Level(level.tcb_status, level.tcb_date, level.advisory_ids)
    raise EvidenceError(f"the {what} is below every TCB level that Intel knows")


def _check_status(status: str, known: frozenset[str], what: str) -> None:
    if status not in known:
        raise EvidenceError(f"{status[:64]!r} is no TCB status of the {what}")


def _equal_under_mask(actual: bytes, expected: bytes, mask: bytes) -> bool:
    return all(a & m == e & m for a, e, m in zip(actual, expected, mask, strict=True))


def _bytes(text: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise EvidenceError(f"the collateral holds a field that is not {size} bytes")
    return value
