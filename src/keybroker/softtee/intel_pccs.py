"""A PCCS for software machines: real HTTP on the loopback interface.

Serves the paths of the real one and counts what it is asked. It can be told to misbehave::

    with SoftwarePccs(intel, [platform]) as pccs:
        pccs.behaviour = Behaviour.HANG
        …                                # pccs.url goes into the broker's configuration

Specification: Intel PCCS Design Guide, section 3; Intel PCS API, version 4.
"""

import gzip
import ssl
from collections.abc import Iterable, Mapping
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, urlsplit

from keybroker.softtee.http_service import SoftwareService, answer
from keybroker.softtee.intel import SoftwareCollateral, SoftwareIntel, Terms
from keybroker.softtee.intel_quote import SoftwareIntelPlatform

#: Much more than any collateral; the asker has to stop reading by itself.
_HUGE_BYTES = 8 * 1024 * 1024


class Behaviour(StrEnum):
    """How the service answers."""

    HONEST = "the collateral that was asked for"
    HANG = "nothing, until the service is closed"
    ERROR = "status 500"
    NOT_FOUND = "status 404"
    HTML = "a page of a proxy that is in the way"
    HUGE = "megabytes"
    BOMB = "a compressed answer of megabytes"
    REDIRECT = "a redirection to itself"
    OTHER_PLATFORM = "genuine collateral of another platform"
    OTHER_INTEL = "collateral signed under another root"
    NO_CHAIN = "documents without their issuer chains"


class SoftwarePccs(SoftwareService[Behaviour]):
    """A service for some machines.

    Attributes:
        terms: what its collateral says from now on.
    """

    def __init__(
        self,
        intel: SoftwareIntel,
        platforms: Iterable[SoftwareIntelPlatform],
        terms: Terms | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Take what is served.

        Args:
            intel: signs the collateral.
            platforms: for these machines.
            terms: what it says; default: that all is well.
            tls: serve HTTPS with this certificate.
        """
        super().__init__(Behaviour.HONEST, tls=tls)
        self.terms = terms if terms is not None else Terms()
        self._intel = intel
        self._platforms = {(p.fmspc, p.ca): p for p in platforms}
        self._made: dict[tuple[object, ...], SoftwareCollateral] = {}

    @property
    def url(self) -> str:
        """The address, as it stands in a configuration."""
        return f"{super().url}/sgx/certification/v4/"

    def asked_for(self, part: str) -> int:
        """Count the requests for ``tcb``, ``qe/identity``, ``pckcrl`` or ``rootcacrl``."""
        with self._lock:
            return sum(urlsplit(path).path.endswith(f"/{part}") for path in self.requests)

    def _respond(self, handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
        match behaviour:
            case Behaviour.HANG:
                self._hang(handler)
            case Behaviour.ERROR:
                answer(handler, 500, b"")
            case Behaviour.NOT_FOUND:
                answer(handler, 404, b"No cache data for this platform.")
            case Behaviour.HTML:
                answer(handler, 200, b"<html><body>Please log in</body></html>")
            case Behaviour.HUGE:
                answer(handler, 200, b" " * _HUGE_BYTES)
            case Behaviour.BOMB:
                bomb = gzip.compress(bytes(_HUGE_BYTES))
                answer(handler, 200, bomb, {"Content-Encoding": "gzip"})
            case Behaviour.REDIRECT:
                answer(handler, 302, b"", {"Location": handler.path})
            case _:
                self._answer_truly(handler, behaviour)

    def _answer_truly(self, handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/", 3)
        if len(parts) != 4 or parts[1:3] != ["certification", "v4"]:
            answer(handler, 404, b"")
            return
        tee, part = parts[0], parts[3]
        with self._lock:
            found = self._part(tee, part, query, behaviour)
        if found is None:
            answer(handler, 404, b"No cache data for this platform.")
        else:
            body, headers = found
            answer(handler, 200, body, {} if behaviour is Behaviour.NO_CHAIN else headers)

    def _part(
        self, tee: str, part: str, query: Mapping[str, str], behaviour: Behaviour
    ) -> tuple[bytes, dict[str, str]] | None:
        match part:
            case "tcb":
                platform = self._platform(fmspc=query.get("fmspc", ""))
                if platform is None:
                    return None
                made = self._collateral(platform, tee, behaviour)
                body = (
                    f'{{"tcbInfo":{made.tcb_info},"signature":"{made.tcb_info_signature.hex()}"}}'
                )
                return body.encode(), {"TCB-Info-Issuer-Chain": quote(made.signer_chain)}
            case "qe/identity":
                made = self._collateral(next(iter(self._platforms.values())), tee, behaviour)
                signature = made.qe_identity_signature.hex()
                body = f'{{"enclaveIdentity":{made.qe_identity},"signature":"{signature}"}}'
                chain = quote(made.signer_chain)
                return body.encode(), {"SGX-Enclave-Identity-Issuer-Chain": chain}
            case "pckcrl":
                platform = self._platform(ca=query.get("ca", ""))
                if platform is None or query.get("encoding") != "der":
                    return None
                made = self._collateral(platform, tee, behaviour)
                return made.pck_crl, {"SGX-PCK-CRL-Issuer-Chain": quote(made.pck_ca_chain)}
            case "rootcacrl":
                made = self._collateral(next(iter(self._platforms.values())), tee, behaviour)
                return made.root_crl.hex().encode(), {}
        return None

    def _platform(self, *, fmspc: str = "", ca: str = "") -> SoftwareIntelPlatform | None:
        for platform in self._platforms.values():
            if platform.fmspc.hex().upper() == fmspc or platform.ca == ca:
                return platform
        return None

    def _collateral(
        self, platform: SoftwareIntelPlatform, tee: str, behaviour: Behaviour
    ) -> SoftwareCollateral:
        name = (platform.fmspc, platform.ca, tee, behaviour, id(self.terms))
        if name not in self._made:
            intel = self._intel
            if behaviour is Behaviour.OTHER_INTEL:
                intel = SoftwareIntel()
            elif behaviour is Behaviour.OTHER_PLATFORM:
                other = bytes((platform.fmspc[0] ^ 1, *platform.fmspc[1:]))
                platform = intel.platform(fmspc=other, ca=platform.ca)
            self._made[name] = intel.collateral(platform, tee, self.terms)
        return self._made[name]
