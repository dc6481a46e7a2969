"""AMD's key distribution service for software platforms: real HTTP on the loopback interface.

Serves the paths of the real one and counts what it is asked. It can be told to misbehave::

    with SoftwareKds([platform]) as kds:
        kds.behaviour = Behaviour.LIE
        …                                # kds.url goes into the broker's configuration

Specification: AMD 57230, VCEK Certificate and KDS Interface, section 4.
"""

import gzip
import re
from collections.abc import Iterable
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from keybroker.softtee.certificates import PatchLevels, pem
from keybroker.softtee.http_service import SoftwareService, answer
from keybroker.softtee.snp import SoftwareSnpPlatform

_VCEK_PATH = re.compile(r"/vcek/v1/(Milan|Genoa|Turin)/([0-9a-fA-F]{16}|[0-9a-fA-F]{128})")
_CHAIN_PATH = re.compile(r"/(vcek|vlek)/v1/(Milan|Genoa|Turin)/cert_chain")

#: Much more than any certificate; the asker has to stop reading by itself.
_HUGE_BYTES = 8 * 1024 * 1024


class Behaviour(StrEnum):
    """How the service answers."""

    HONEST = "the certificate that was asked for"
    HANG = "nothing, until the service is closed"
    ERROR = "status 500"
    BUSY = "status 429"
    NOT_FOUND = "status 404"
    LIE = "a genuine certificate of another chip"
    GARBAGE = "bytes that are no certificate"
    HUGE = "megabytes"
    COMPRESSED = "the certificate, compressed without being asked to"
    REDIRECT = "a redirection to itself"


class SoftwareKds(SoftwareService[Behaviour]):
    """A service for some platforms."""

    def __init__(self, platforms: Iterable[SoftwareSnpPlatform]) -> None:
        super().__init__(Behaviour.HONEST)
        self._platforms = tuple(platforms)

    def _respond(self, handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
        match behaviour:
            case Behaviour.HANG:
                self._hang(handler)
            case Behaviour.ERROR:
                answer(handler, 500, b"")
            case Behaviour.BUSY:
                answer(handler, 429, b"")
            case Behaviour.NOT_FOUND:
                answer(handler, 404, b"")
            case Behaviour.GARBAGE:
                answer(handler, 200, b"<html>not a certificate</html>")
            case Behaviour.HUGE:
                answer(handler, 200, bytes(_HUGE_BYTES))
            case Behaviour.REDIRECT:
                answer(handler, 302, b"", {"Location": self.url + handler.path})
            case _:
                self._answer_truly(handler, behaviour)

    def _answer_truly(self, handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
        found = self._certificate(handler.path, lie=behaviour is Behaviour.LIE)
        if found is None:
            answer(handler, 404, b"")
        elif behaviour is Behaviour.COMPRESSED:
            answer(handler, 200, gzip.compress(found), {"Content-Encoding": "gzip"})
        else:
            answer(handler, 200, found)

    def _certificate(self, target: str, *, lie: bool) -> bytes | None:
        url = urlsplit(target)
        if chain := _CHAIN_PATH.fullmatch(url.path):
            issuer = "ask" if chain[1] == "vcek" else "asvk"
            for platform in self._platforms:
                if platform.generation == chain[2]:
                    certificates = (issuer, "ark")
                    return b"".join(pem(platform.issuer_certificate(name)) for name in certificates)
            return None
        wanted = _VCEK_PATH.fullmatch(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = {"bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}
        if wanted is None or not all(query.get(name, "").isdigit() for name in parts.values()):
            return None
        if (wanted[1] == "Turin") is not query.get("fmcSPL", "").isdigit():
            return None
        levels = {part: int(query[name]) for part, name in parts.items()}
        tcb = PatchLevels(**levels, fmc=int(query["fmcSPL"]) if "fmcSPL" in query else None)
        for platform in self._platforms:
            if platform.generation == wanted[1] and platform.hardware_id.hex() == wanted[2].lower():
                chip_id = bytes((platform.chip_id[0] ^ 1, *platform.chip_id[1:])) if lie else None
                with self._lock:
                    return platform.vek("vcek", chip_id=chip_id, tcb=tcb).certificate
        return None
