"""A software AMD SEV-SNP platform: root, intermediate keys, chip keys, reports, certificate tables.

The keys of the chip are derived from a secret of the platform, the chip id and the firmware level,
as hardware derives them: a platform that was saved and loaded, and a key distribution service in
another process, come to the same VCEK.

Example::

    platform = SoftwareSnpPlatform.create("Milan")
    raw = platform.report(bytes(64))                            # 1184 bytes
    evidence = platform.evidence(bytes(64), host_data=digest)   # as a guest sends it
    broken = platform.evidence(bytes(64), flaw=Flaw.EXPIRED)
"""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from keybroker.softtee.certificates import (
    Extension,
    PatchLevels,
    endorsement_extensions,
    issue_certificate,
    issuer_extensions,
    pem,
)
from keybroker.softtee.snp_report import CPUID, ReportFields, encode_signature, report_json

#: AMD's own keys have 4096 bits, which take seconds to make; a demonstration must start at once.
DEFAULT_RSA_BITS = 2048

#: Order of P-384 (FIPS 186-5, SP 800-186 section 3.2.1.4).
_P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)

_DEFAULT_LEVELS = {
    "Milan": PatchLevels(bootloader=4, tee=0, snp=24, microcode=219),
    "Genoa": PatchLevels(bootloader=10, tee=0, snp=23, microcode=84),
    "Turin": PatchLevels(fmc=1, bootloader=1, tee=1, snp=4, microcode=86),
}
_ISSUERS = ("ark", "ask", "asvk")
_KEY_INFO = {"vcek": 0, "vlek": 1 << 2, "none": 7 << 2}


class Flaw(StrEnum):
    """One exact way to misbehave. All else about the evidence stays right."""

    BAD_SIGNATURE = "the report's signature is of other bytes"
    NO_SIGNATURE = "the report's signature is zero"
    OTHER_KEY = "the report is signed by a key that no certificate is for"
    OTHER_CHIP = "the VCEK certificate is for another chip"
    OTHER_BOOTLOADER = "the certificate is for another boot loader"
    OTHER_TEE = "the certificate is for another PSP operating system"
    OTHER_SNP = "the certificate is for another SNP firmware"
    OTHER_MICROCODE = "the certificate is for another microcode"
    OTHER_FMC = "the certificate is for another FMC firmware"
    OTHER_PRODUCT = "the certificate is for another product"
    EXPIRED = "the certificate has expired"
    NOT_YET_VALID = "the certificate is not valid yet"
    DUPLICATE_EXTENSION = "the certificate holds an extension twice"
    BAD_CERTIFICATE = "the certificate's signature is broken"
    OTHER_ROOT = "the chain has the right names but ends in another root"
    FOREIGN_ARK = "the table's ARK is another one"
    SWAPPED_ISSUER = "the table holds the ASVK in place of the ASK, or the other way round"
    OTHER_KIND = "the certificate is of a VLEK where a VCEK signed, or the other way round"
    NO_CERTIFICATE = "the table lacks the certificate of the key that signed"


@dataclass(frozen=True, slots=True)
class _Issuer:
    key: rsa.RSAPrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SoftwareVek:
    """The private key of a VCEK or VLEK, and its certificate (DER)."""

    kind: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)


class SoftwareSnpPlatform:
    """One host: a chip of a generation, at a firmware level, under a root of its own."""

    def __init__(
        self,
        generation: str,
        *,
        issuers: dict[str, _Issuer],
        secret: bytes,
        chip_id: bytes,
        tcb: PatchLevels,
    ) -> None:
        self.generation = generation
        self.chip_id = chip_id
        self.tcb = tcb
        self._issuers = issuers
        self._secret = secret
        self._veks: dict[tuple[str, bytes, PatchLevels], SoftwareVek] = {}
        self._tables: dict[tuple[str, bytes, PatchLevels, Flaw | None], list[dict[str, Any]]] = {}

    @classmethod
    def create(
        cls,
        generation: str = "Milan",
        *,
        chip_id: bytes | None = None,
        tcb: PatchLevels | None = None,
        rsa_bits: int = DEFAULT_RSA_BITS,
    ) -> "SoftwareSnpPlatform":
        """Make a platform with new keys.

        Args:
            generation: ``Milan``, ``Genoa`` or ``Turin``.
            chip_id: up to 64 bytes, Turin 8; None: random.
            tcb: the firmware level; None: one that such processors had in 2025.
            rsa_bits: of ARK, ASK and ASVK.
        """
        if generation not in CPUID:
            raise ValueError(f"no such generation: {generation}")
        size = 8 if generation == "Turin" else 64
        return cls(
            generation,
            issuers=_make_issuers(generation, rsa_bits),
            secret=secrets.token_bytes(48),
            chip_id=(secrets.token_bytes(size) if chip_id is None else chip_id).ljust(64, b"\0"),
            tcb=tcb or _DEFAULT_LEVELS[generation],
        )

    def save(self, folder: Path) -> None:
        """Write the whole platform to a folder, private keys included, readable by its owner."""
        folder.mkdir(parents=True, exist_ok=True)
        tcb = {part: getattr(self.tcb, part) for part in PatchLevels.__slots__}
        description = {
            "generation": self.generation,
            "chip_id": self.chip_id.hex(),
            "tcb": tcb,
            "secret": self._secret.hex(),
        }
        _write_private(folder / "platform.json", json.dumps(description, indent=2).encode())
        for name, issuer in self._issuers.items():
            key = issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write_private(folder / f"{name}.key.pem", key)
            (folder / f"{name}.der").write_bytes(issuer.certificate)
        (folder / "root.pem").write_bytes(self.root_pem())
        (folder / "chain.pem").write_bytes(self.chain_pem())

    @classmethod
    def load(cls, folder: Path) -> "SoftwareSnpPlatform":
        """Read a platform that :meth:`save` wrote.

        Raises:
            OSError, ValueError, TypeError, KeyError: the folder does not hold one.
        """
        description = json.loads((folder / "platform.json").read_bytes())
        issuers = {}
        for name in _ISSUERS:
            key = load_pem_private_key((folder / f"{name}.key.pem").read_bytes(), None)
            if not isinstance(key, rsa.RSAPrivateKey):
                raise TypeError(f"{name}.key.pem does not hold an RSA key")
            issuers[name] = _Issuer(key, (folder / f"{name}.der").read_bytes())
        return cls(
            description["generation"],
            issuers=issuers,
            secret=bytes.fromhex(description["secret"]),
            chip_id=bytes.fromhex(description["chip_id"]),
            tcb=PatchLevels(**description["tcb"]),
        )

    def root_pem(self) -> bytes:
        """Return the ARK: what a broker has to be told to trust."""
        return pem(self._issuers["ark"].certificate)

    def chain_pem(self) -> bytes:
        """Return ARK, ASK and ASVK: with them a broker can do without the evidence's table."""
        return b"".join(pem(self._issuers[name].certificate) for name in _ISSUERS)

    def issuer_certificate(self, name: str) -> bytes:
        """Return the DER of ``ark``, ``ask`` or ``asvk``."""
        return self._issuers[name].certificate

    @property
    def hardware_id(self) -> bytes:
        """The id that names the chip to the key distribution service."""
        return self._hardware_id(self.chip_id)

    def _hardware_id(self, chip_id: bytes) -> bytes:
        return chip_id[:8] if self.generation == "Turin" else chip_id

    def vek(
        self, kind: str = "vcek", *, chip_id: bytes | None = None, tcb: PatchLevels | None = None
    ) -> SoftwareVek:
        """Return the VCEK (of a chip) or VLEK at a firmware level, with its certificate.

        Args:
            kind: ``vcek`` or ``vlek``.
            chip_id, tcb: None: the platform's own.
        """
        chip_id, tcb = chip_id or self.chip_id, tcb or self.tcb
        if (kind, chip_id, tcb) not in self._veks:
            key = self._derive_key(kind, chip_id, tcb)
            certificate = self.vek_certificate(kind, key.public_key(), chip_id=chip_id, tcb=tcb)
            self._veks[kind, chip_id, tcb] = SoftwareVek(kind, key, certificate)
        return self._veks[kind, chip_id, tcb]

    def _derive_key(
        self, kind: str, chip_id: bytes, tcb: PatchLevels
    ) -> ec.EllipticCurvePrivateKey:
        owner = chip_id if kind == "vcek" else b""
        levels = repr([getattr(tcb, part) for part in PatchLevels.__slots__]).encode()
        seed = hmac.digest(self._secret, kind.encode() + owner + levels, hashlib.sha512)
        number = int.from_bytes(seed, "big") % (_P384_ORDER - 1) + 1
        return ec.derive_private_key(number, ec.SECP384R1())

    def vek_certificate(
        self,
        kind: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        chip_id: bytes | None = None,
        tcb: PatchLevels | None = None,
        product: str | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        wrap_hardware_id: bool = False,
        further_extensions: tuple[Extension, ...] = (),
    ) -> bytes:
        """Issue a certificate for a VCEK or VLEK; what is None is as it should be.

        Args:
            product: by default ``Milan-B0`` and the like for a VCEK, ``Milan`` for a VLEK.
            wrap_hardware_id: write the hardware id as an OCTET STRING.
            further_extensions: added at the end as they are.
        """
        is_vcek = kind == "vcek"
        now = datetime.now(UTC)
        extensions = endorsement_extensions(
            product=product or (f"{self.generation}-B0" if is_vcek else self.generation),
            levels=tcb or self.tcb,
            hardware_id=self._hardware_id(chip_id or self.chip_id) if is_vcek else None,
            provider=None if is_vcek else "CN=software.invalid",
            wrap_hardware_id=wrap_hardware_id,
        )
        return issue_certificate(
            subject=f"SEV-{kind.upper()}",
            issuer=f"SEV-{self.generation}" if is_vcek else f"SEV-VLEK-{self.generation}",
            public_key=public_key,
            signing_key=self._issuers["ask" if is_vcek else "asvk"].key,
            not_before=not_before or now - timedelta(days=1),
            not_after=not_after or now + timedelta(days=7 * 365 if is_vcek else 365),
            extensions=[*extensions, *further_extensions],
        )

    def report(
        self,
        report_data: bytes = b"",
        *,
        version: int = 3,
        signing: str = "vcek",
        chip_id: bytes | None = None,
        tcb: PatchLevels | None = None,
        mask_chip_id: bool = False,
        flaw: Flaw | None = None,
        **fields: Any,
    ) -> bytes:
        """Make and sign a report.

        Args:
            report_data: up to 64 bytes.
            version: 2 to 5.
            signing: ``vcek``, ``vlek`` or ``none``.
            chip_id, tcb: None: the platform's own.
            mask_chip_id: leave the chip id zero, as the owner of a host may choose.
            flaw: how to misbehave; only flaws of the report itself matter here.
            fields: of :class:`keybroker.softtee.snp_report.ReportFields`: ``host_data``,
                ``measurement``, ``vmpl``, ``policy``, ``platform_info``, …
        """
        tcb = tcb or self.tcb
        content = ReportFields(
            **{
                "generation": self.generation,
                "version": version,
                "tcb": tcb,
                "chip_id": b"" if mask_chip_id else chip_id or self.chip_id,
                "report_data": report_data,
                "key_info": _KEY_INFO[signing],
                **fields,
            }
        ).encode()
        if signing == "none" or flaw is Flaw.NO_SIGNATURE:
            return content + encode_signature(0, 0)
        key = self.vek(signing, chip_id=chip_id, tcb=tcb).key
        if flaw is Flaw.OTHER_KEY:
            key = self._derive_key("other", self.chip_id, tcb)
        signed = content if flaw is not Flaw.BAD_SIGNATURE else content[::-1]
        signature = key.sign(signed, ec.ECDSA(hashes.SHA384()))
        return content + encode_signature(*decode_dss_signature(signature))

    def evidence(
        self,
        report_data: bytes = b"",
        *,
        signing: str = "vcek",
        with_table: bool = True,
        chip_id: bytes | None = None,
        tcb: PatchLevels | None = None,
        flaw: Flaw | None = None,
        **report: Any,
    ) -> dict[str, Any]:
        """Make evidence as a guest sends it: a report, and the host's certificate table.

        Args:
            with_table: send ARK, ASK (or ASVK) and VCEK (or VLEK) along; else ``cert_chain`` is
                null and the broker has to find the VCEK.
            report: further arguments of :meth:`report`.
        """
        raw = self.report(
            report_data, signing=signing, chip_id=chip_id, tcb=tcb, flaw=flaw, **report
        )
        table = None
        if with_table:
            memory_key = (signing, chip_id or self.chip_id, tcb or self.tcb, flaw)
            if memory_key not in self._tables:
                self._tables[memory_key] = self._table(*memory_key)
            table = self._tables[memory_key]
        return {"attestation_report": report_json(raw), "cert_chain": table}

    def _table(
        self, kind: str, chip_id: bytes, tcb: PatchLevels, flaw: Flaw | None
    ) -> list[dict[str, Any]]:
        chain: SoftwareSnpPlatform = self
        other = "vlek" if kind == "vcek" else "vcek"
        if flaw is Flaw.OTHER_ROOT:
            chain = SoftwareSnpPlatform.create(self.generation, chip_id=chip_id, tcb=tcb)
        issuer, ark, content_kind = ("ask" if kind == "vcek" else "asvk"), chain, kind
        if flaw is Flaw.SWAPPED_ISSUER:
            issuer = "asvk" if kind == "vcek" else "ask"
        if flaw is Flaw.FOREIGN_ARK:
            ark = SoftwareSnpPlatform.create(self.generation)
        if flaw is Flaw.OTHER_KIND:
            content_kind = other
        entries = {
            "ARK": ark.issuer_certificate("ark"),
            "ASK": chain.issuer_certificate(issuer),
            kind.upper(): chain._flawed_certificate(
                content_kind, self._derive_key(kind, chip_id, tcb).public_key(), chip_id, tcb, flaw
            ),
        }
        if flaw is Flaw.OTHER_ROOT:
            # else the ARK alone would give it away
            del entries["ARK"]
        if flaw is Flaw.NO_CERTIFICATE:
            entries[other.upper()] = entries.pop(kind.upper())
        return [{"cert_type": name, "data": list(data)} for name, data in entries.items()]

    def _flawed_certificate(
        self,
        kind: str,
        key: ec.EllipticCurvePublicKey,
        chip_id: bytes,
        tcb: PatchLevels,
        flaw: Flaw | None,
    ) -> bytes:
        now = datetime.now(UTC)
        changes: dict[str, Any] = {}
        match flaw:
            case Flaw.OTHER_CHIP:
                changes["chip_id"] = bytes((chip_id[0] ^ 1, *chip_id[1:]))
            case (
                Flaw.OTHER_BOOTLOADER
                | Flaw.OTHER_TEE
                | Flaw.OTHER_SNP
                | Flaw.OTHER_MICROCODE
                | Flaw.OTHER_FMC
            ):
                part = flaw.name.removeprefix("OTHER_").lower()
                changes["tcb"] = replace(tcb, **{part: (getattr(tcb, part) or 0) ^ 1})
            case Flaw.OTHER_PRODUCT:
                changes["product"] = "Genoa-B1" if self.generation != "Genoa" else "Milan-B1"
            case Flaw.EXPIRED:
                changes["not_before"] = now - timedelta(days=800)
                changes["not_after"] = now - timedelta(days=1)
            case Flaw.NOT_YET_VALID:
                changes["not_before"] = now + timedelta(days=1)
            case Flaw.DUPLICATE_EXTENSION:
                changes["further_extensions"] = (Extension("1.3.6.1.4.1.3704.1.3.8", b"\2\1\0"),)
        options = {"chip_id": chip_id, "tcb": tcb, **changes}
        certificate = self.vek_certificate(kind, key, **options)
        if flaw is Flaw.BAD_CERTIFICATE:
            certificate = certificate[:-1] + bytes((certificate[-1] ^ 1,))
        return certificate


def _make_issuers(generation: str, rsa_bits: int) -> dict[str, _Issuer]:
    names = {
        "ark": f"ARK-{generation}",
        "ask": f"SEV-{generation}",
        "asvk": f"SEV-VLEK-{generation}",
    }
    keys = {name: rsa.generate_private_key(65537, rsa_bits) for name in _ISSUERS}
    now = datetime.now(UTC)
    return {
        name: _Issuer(
            keys[name],
            issue_certificate(
                subject=names[name],
                issuer=names["ark"],
                public_key=keys[name].public_key(),
                signing_key=keys["ark"],
                not_before=now - timedelta(days=2),
                not_after=now + timedelta(days=25 * 365),
                extensions=issuer_extensions(),
            ),
        )
        for name in _ISSUERS
    }


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
