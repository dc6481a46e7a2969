"""One software machine of Intel's: its quoting enclaves, and quotes of TDs and enclaves on it.

Specification: Intel SGX ECDSA Quote Library Reference, appendix A; Intel TDX DCAP Quoting Library
API, appendix A.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from keybroker.softtee.intel_eventlog import SoftwareEventLog

_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_ECDSA_P256: Final = 2
_TEE_TYPE: Final = {"sgx": 0x00, "tdx": 0x81}

#: Bits of TD attributes.
TD_DEBUG: Final = 1 << 0
TD_SEPT_VE_DISABLE: Final = 1 << 28
TD_MIGRATABLE: Final = 1 << 29

#: Bits of enclave attributes.
_ENCLAVE_INIT: Final = 1 << 0
_ENCLAVE_DEBUG: Final = 1 << 1
_ENCLAVE_MODE64: Final = 1 << 2

#: What the firmware of a TD may use; a policy has to know it.
DEFAULT_XFAM: Final = bytes.fromhex("e742060000000000")


@dataclass(frozen=True)
class TcbNumbers:
    """Security version numbers of a machine.

    Attributes:
        sgx: 16 SGX TCB components, which are its CPUSVN.
        pce: of the provisioning certification enclave.
        tdx: 16 TDX TCB components; the first two are the module's ISVSVN and version.
    """

    sgx: bytes = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
    pce: int = 11
    tdx: bytes = bytes((5, 1, 2)) + bytes(13)


@dataclass(frozen=True)
class QeReport:
    """Who a quoting enclave is."""

    mr_signer: bytes
    product: int
    svn: int

    @classmethod
    def of(cls, tee: str) -> "QeReport":
        """Return the genuine one for ``tdx`` or ``sgx``."""
        name = f"software quoting enclave {tee}".encode()
        return cls(hashlib.sha256(name).digest(), 2 if tee == "tdx" else 1, 8)


@dataclass(frozen=True)
class Flaws:
    """Ways in which a quote is wrong while all else about it is right.

    Attributes:
        qe: the report of this enclave in place of the genuine quoting enclave's.
        qe_debug: the quoting enclave runs in debug mode.
        unbound_key: the QE report binds another attestation key.
        certification_type: of the innermost certification data; 5 is a certificate chain.
        pck_chain: PEM in place of the machine's own.
    """

    qe: QeReport | None = None
    qe_debug: bool = False
    unbound_key: bool = False
    certification_type: int = 5
    pck_chain: str | None = None


@dataclass(frozen=True)
class SoftwareIntelPlatform:
    """A machine. Made by :meth:`keybroker.softtee.intel.SoftwareIntel.platform`.

    Attributes:
        fmspc: 6 bytes.
        ca: ``platform`` or ``processor``.
        pck_serial: serial number of its PCK certificate.
        pck_chain: PEM of PCK certificate, CA and root.
    """

    fmspc: bytes
    ca: str
    numbers: TcbNumbers
    pck_key: ec.EllipticCurvePrivateKey = field(repr=False)
    pck_serial: int
    pck_chain: str = field(repr=False)
    attestation_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False
    )

    def save(self, path: Path) -> None:
        """Write the machine with its keys into a new file that only the owner may read."""
        document = {
            "fmspc": self.fmspc.hex(),
            "ca": self.ca,
            "numbers": [self.numbers.sgx.hex(), self.numbers.pce, self.numbers.tdx.hex()],
            "pck_key": _pem(self.pck_key),
            "pck_serial": self.pck_serial,
            "pck_chain": self.pck_chain,
            "attestation_key": _pem(self.attestation_key),
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file)

    @classmethod
    def load(cls, path: Path) -> "SoftwareIntelPlatform":
        """Read a machine that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file.
        """
        try:
            document = json.loads(path.read_bytes())
            sgx, pce, tdx = document["numbers"]
            return cls(
                fmspc=bytes.fromhex(document["fmspc"]),
                ca=document["ca"],
                numbers=TcbNumbers(bytes.fromhex(sgx), pce, bytes.fromhex(tdx)),
                pck_key=_key(document["pck_key"]),
                pck_serial=document["pck_serial"],
                pck_chain=document["pck_chain"],
                attestation_key=_key(document["attestation_key"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no software machine: {error}") from None

    def td_quote(
        self,
        *,
        report_data: bytes = b"",
        mr_config_id: bytes = b"",
        mr_td: bytes = hashlib.sha384(b"software firmware").digest(),
        rtmrs: Mapping[int, bytes] | None = None,
        attributes: int = TD_SEPT_VE_DISABLE,
        xfam: bytes = DEFAULT_XFAM,
        version: int = 4,
        tdx_1_5: bool = False,
        tcb_svn: bytes | None = None,
        current_tcb_svn: bytes | None = None,
        mr_servicetd: bytes = bytes(48),
        flaws: Flaws | None = None,
    ) -> bytes:
        """Make a quote of a TD.

        Args:
            report_data: at most 64 bytes, padded with zeros.
            mr_config_id: at most 48 bytes, padded with zeros.
            rtmrs: TCG index 1 to 4 → value of RTMR 0 to 3; zeros where absent.
            attributes: bits as in TDX Module ABI, table 3.23.
            version: 4 or 5.
            tdx_1_5: the longer body, with version 5.
            tcb_svn, current_tcb_svn: at launch, and now; default: the machine's.
        """
        rtmrs = rtmrs if rtmrs is not None else {}
        svn = tcb_svn if tcb_svn is not None else self.numbers.tdx
        body = b"".join(
            (
                svn,
                hashlib.sha384(b"software TDX module").digest(),
                bytes(48),
                bytes(8),
                attributes.to_bytes(8, "little"),
                xfam,
                mr_td,
                mr_config_id.ljust(48, b"\0"),
                bytes(48),
                bytes(48),
                *(rtmrs.get(index, bytes(48)) for index in (1, 2, 3, 4)),
                report_data.ljust(64, b"\0"),
            )
        )
        if tdx_1_5:
            body += (current_tcb_svn if current_tcb_svn is not None else svn) + mr_servicetd
        kind = pack("<HI", 3 if tdx_1_5 else 2, len(body)) if version == 5 else b""
        return self._quote("tdx", version, kind + body, flaws or Flaws())

    def enclave_quote(
        self,
        *,
        report_data: bytes = b"",
        config_id: bytes = b"",
        mr_enclave: bytes = hashlib.sha256(b"software enclave").digest(),
        mr_signer: bytes = hashlib.sha256(b"software signer").digest(),
        product: int = 0,
        svn: int = 0,
        debug: bool = False,
        version: int = 3,
        flaws: Flaws | None = None,
    ) -> bytes:
        """Make a quote of an enclave.

        Args:
            report_data, config_id: at most 64 bytes, padded with zeros.
            version: 3 or 4.
        """
        body = _enclave_report(
            cpu_svn=self.numbers.sgx,
            debug=debug,
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            config_id=config_id,
            product=product,
            svn=svn,
            report_data=report_data,
        )
        return self._quote("sgx", version, body, flaws or Flaws())

    def td_evidence(
        self, *, report_data: bytes, log: SoftwareEventLog | None = None, **launch: Any
    ) -> dict[str, Any]:
        """Make what a TDX guest sends; with an event log, its registers are in the quote.

        Args:
            report_data: as for :meth:`td_quote`, as are further arguments.
            log: what the guest's boot was.
        """
        rtmrs = log.registers if log is not None else None
        quote = self.td_quote(report_data=report_data, rtmrs=rtmrs, **launch)
        evidence = {"quote": base64.b64encode(quote).decode("ascii")}
        if log is not None:
            evidence["cc_eventlog"] = base64.b64encode(log.raw).decode("ascii")
        return evidence

    def enclave_evidence(self, *, report_data: bytes, **launch: Any) -> dict[str, Any]:
        """Make what an SGX enclave sends; further arguments as for :meth:`enclave_quote`."""
        quote = self.enclave_quote(report_data=report_data, **launch)
        return {"quote": base64.b64encode(quote).decode("ascii")}

    def _quote(self, tee: str, version: int, body: bytes, flaws: Flaws) -> bytes:
        reserved = pack("<HH", 8, self.numbers.pce) if tee == "sgx" else bytes(4)
        header = pack("<HHI", version, _ECDSA_P256, _TEE_TYPE[tee]) + reserved
        signed = header + _INTEL_QE_VENDOR + self.fmspc.ljust(20, b"\0") + body
        public = _point(self.attestation_key)
        authentication = bytes(range(32))
        bound = hashlib.sha256(public + authentication).digest()
        enclave = flaws.qe if flaws.qe is not None else QeReport.of(tee)
        qe_report = _enclave_report(
            cpu_svn=self.numbers.sgx,
            debug=flaws.qe_debug,
            provisioning=True,
            mr_enclave=hashlib.sha256(b"software QE").digest(),
            mr_signer=enclave.mr_signer,
            config_id=b"",
            product=enclave.product,
            svn=enclave.svn,
            report_data=bytes(32) if flaws.unbound_key else bound,
        )
        chain = (flaws.pck_chain if flaws.pck_chain is not None else self.pck_chain).encode()
        certification = b"".join(
            (
                qe_report,
                _sign_raw(self.pck_key, qe_report),
                pack("<H", len(authentication)),
                authentication,
                pack("<HI", flaws.certification_type, len(chain)),
                chain,
            )
        )
        if version > 3:
            certification = pack("<HI", 6, len(certification)) + certification
        signature_data = _sign_raw(self.attestation_key, signed) + public + certification
        return signed + pack("<I", len(signature_data)) + signature_data


def _enclave_report(
    *,
    cpu_svn: bytes,
    debug: bool,
    mr_enclave: bytes,
    mr_signer: bytes,
    config_id: bytes,
    product: int,
    svn: int,
    report_data: bytes,
    provisioning: bool = False,
) -> bytes:
    # a quoting enclave has the provisioning key and is judged by that bit too
    flags = _ENCLAVE_INIT | (1 << 4 if provisioning else 0) | _ENCLAVE_MODE64
    flags |= _ENCLAVE_DEBUG if debug else 0
    return b"".join(
        (
            cpu_svn,
            bytes(4 + 12 + 16),
            flags.to_bytes(8, "little"),
            bytes.fromhex("e700000000000000"),
            mr_enclave,
            bytes(32),
            mr_signer,
            bytes(32),
            config_id.ljust(64, b"\0"),
            pack("<HHH", product, svn, 0),
            bytes(42 + 16),
            report_data.ljust(64, b"\0"),
        )
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem.encode("ascii"), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an EC key")  # noqa: TRY004 - what load() documents
    return key


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(frozen=True)
class SoftwareTd:
    """A TD that was launched on a machine: what a TDX guest's attester talks to.

    Attributes:
        platform: the machine.
        log: its boot.
        launch: further arguments of :meth:`SoftwareIntelPlatform.td_quote`.
    """

    platform: SoftwareIntelPlatform
    log: SoftwareEventLog | None = None
    launch: Mapping[str, Any] = field(default_factory=dict)

    def evidence(self, report_data: bytes, **launch: Any) -> dict[str, Any]:
        """Make evidence that binds report data of at most 64 bytes."""
        return self.platform.td_evidence(
            report_data=report_data, log=self.log, **{**self.launch, **launch}
        )


@dataclass(frozen=True)
class SoftwareEnclave:
    """An enclave on a machine: what an SGX attester talks to.

    Attributes:
        platform: the machine.
        launch: further arguments of :meth:`SoftwareIntelPlatform.enclave_quote`.
    """

    platform: SoftwareIntelPlatform
    launch: Mapping[str, Any] = field(default_factory=dict)

    def evidence(self, report_data: bytes, **launch: Any) -> dict[str, Any]:
        """Make evidence that binds report data of at most 64 bytes."""
        return self.platform.enclave_evidence(report_data=report_data, **{**self.launch, **launch})
