"""Collateral over HTTP: from Intel's PCS, or from a PCCS that caches it.

Both have the same paths below ``/{sgx,tdx}/certification/v4/``. They differ in the root's
revocation list: a PCCS serves it too, in hexadecimal; Intel's lies where the root certificate says.

Specification: Intel SGX and TDX Provisioning Certification Service API, version 4; Intel PCCS
Design Guide, section 3.
"""

import asyncio
import base64
import binascii
import re
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from keybroker.config.dcap import TcbUpdateType
from keybroker.verifiers import der
from keybroker.verifiers.dcap.collateral import MAX_PART_BYTES, CollateralKey, CollateralParts
from keybroker.verifiers.dcap.roots import intel_root
from keybroker.verifiers.dcap.source import SourceError
from keybroker.verifiers.der import DerError, DerReader

if TYPE_CHECKING:
    import httpx

#: Requests to one service at a time; one platform needs four.
MAX_CONCURRENT_REQUESTS = 16

_INTEL_HOST = "trustedservices.intel.com"
_API_PATH = re.compile(r"/(?:sgx|tdx)/certification/v\d+/?$")
_CRL_DISTRIBUTION_POINTS = "2.5.29.31"
_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]*)-----END X509 CRL-----")

#: An issuer chain has two certificates of about 1 KiB, escaped.
_MAX_CHAIN_CHARACTERS = 32 * 1024


class _TcbInfoAnswer(msgspec.Struct):
    """``Raw`` keeps the bytes as they were signed."""

    tcbInfo: msgspec.Raw
    signature: str


class _QeIdentityAnswer(msgspec.Struct):
    enclaveIdentity: msgspec.Raw
    signature: str


class PcsSource:
    """One service. Belongs to one event loop."""

    is_remote = True

    def __init__(
        self,
        url: str,
        *,
        update_type: TcbUpdateType,
        timeout_seconds: float,
        verify_tls: bool = True,
    ) -> None:
        """Take the address of the service.

        Args:
            url: with or without ``/sgx/certification/v4/`` at its end.
            update_type: which TCB evaluation is asked for.
            timeout_seconds: for all parts of one collateral.
            verify_tls: whether its TLS certificate must be valid.
        """
        self._base = _API_PATH.sub("", url.rstrip("/")).rstrip("/")
        self._update_type = update_type
        self._timeout_seconds = timeout_seconds
        self._verify_tls = verify_tls
        host = urlsplit(self._base).hostname or ""
        self._is_intel = host == _INTEL_HOST or host.endswith(f".{_INTEL_HOST}")
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    @property
    def name(self) -> str:
        return self._base

    @property
    def root_crl_url(self) -> str:
        """Where the root's revocation list is.

        Raises:
            SourceError: nobody says it.
        """
        if self._is_intel:
            return _intel_root_crl_url()
        return f"{self._base}/sgx/certification/v4/rootcacrl"

    async def fetch(self, key: CollateralKey) -> CollateralParts:
        """See :class:`keybroker.verifiers.dcap.source.CollateralSource`."""
        if self._client is None:
            self._client = self._make_client()
        client = self._client
        update = f"update={self._update_type.value}"
        tee = f"{self._base}/{key.tee.value}/certification/v4"
        sgx = f"{self._base}/sgx/certification/v4"
        try:
            async with asyncio.timeout(self._timeout_seconds), asyncio.TaskGroup() as group:
                tcb = group.create_task(
                    self._get(client, f"{tee}/tcb?fmspc={key.fmspc.hex().upper()}&{update}")
                )
                qe = group.create_task(self._get(client, f"{tee}/qe/identity?{update}"))
                crl = group.create_task(self._get(client, f"{sgx}/pckcrl?ca={key.ca}&encoding=der"))
                root = group.create_task(self._get(client, self.root_crl_url))
        except TimeoutError:
            raise SourceError(
                f"no answer within {self._timeout_seconds:g} s", unavailable=True
            ) from None
        except BaseExceptionGroup as failures:
            raise _first_source_error(failures) from None
        tcb_info, tcb_signature = _signed(tcb.result()[0], _TcbInfoAnswer)
        qe_identity, qe_signature = _signed(qe.result()[0], _QeIdentityAnswer)
        return CollateralParts(
            pck_crl_issuer_chain=_chain(crl.result()[1], "SGX-PCK-CRL-Issuer-Chain"),
            root_ca_crl=_crl(root.result()[0]).hex(),
            pck_crl=_crl(crl.result()[0]).hex(),
            tcb_info_issuer_chain=_chain(
                tcb.result()[1], "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"
            ),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=_chain(qe.result()[1], "SGX-Enclave-Identity-Issuer-Chain"),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _make_client(self) -> "httpx.AsyncClient":
        # Imported where it is used: a broker that no such platform asks starts without it.
        import httpx

        verify: ssl.SSLContext | bool = True
        if not self._verify_tls:
            verify = ssl.create_default_context()
            verify.check_hostname = False
            verify.verify_mode = ssl.CERT_NONE
        # redirects are not followed: the service has none, and one could lead anywhere
        return httpx.AsyncClient(
            timeout=self._timeout_seconds,
            follow_redirects=False,
            verify=verify,
            headers={"accept-encoding": "identity", "user-agent": "keybroker"},
        )

    async def _get(self, client: "httpx.AsyncClient", url: str) -> "tuple[bytes, httpx.Headers]":
        import httpx

        path = urlsplit(url).path
        try:
            async with self._slots, client.stream("GET", url) as response:
                status = response.status_code
                if status != HTTPStatus.OK:
                    busy = status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS
                    raise SourceError(f"status {status} for {path}", unavailable=busy)
                # undone, a compressed answer could be of any size
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise SourceError(f"the answer for {path} is compressed, which was not asked")
                answer = bytearray()
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) > MAX_PART_BYTES:
                        raise SourceError(
                            f"the answer for {path} is larger than {MAX_PART_BYTES} bytes"
                        )
                return bytes(answer), response.headers
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"{type(error).__name__}: {error}", unavailable=True) from None


def _first_source_error(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the cause of a group: a source's refusal before anything else."""
    refusals, others = failures.split(SourceError)
    if others is not None:
        return others
    first: BaseException = failures if refusals is None else refusals.exceptions[0]
    return first


def _signed(body: bytes, type_: type[_TcbInfoAnswer] | type[_QeIdentityAnswer]) -> tuple[str, str]:
    try:
        answer = msgspec.json.decode(body, type=type_)
        raw = answer.tcbInfo if isinstance(answer, _TcbInfoAnswer) else answer.enclaveIdentity
        return bytes(raw).decode("utf-8"), answer.signature
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SourceError("the answer is not a signed document of the service") from None


def _chain(headers: "httpx.Headers", *names: str) -> str:
    for name in names:
        value = headers.get(name)
        if value is not None and len(value) <= _MAX_CHAIN_CHARACTERS:
            return unquote(value)
    raise SourceError(f"the answer has no {names[0]}")


def _crl(body: bytes) -> bytes:
    """Read a revocation list as services send it: DER, PEM, or DER in hexadecimal."""
    if body.startswith((b"\x30\x81", b"\x30\x82")):
        return body
    if match := _PEM_CRL.search(body):
        try:
            return base64.b64decode(b"".join(match[1].split()), validate=True)
        except binascii.Error:
            raise SourceError("a revocation list is not base64") from None
    try:
        return bytes.fromhex(body.decode("ascii"))
    except ValueError:
        raise SourceError("the answer is not a revocation list") from None


def _intel_root_crl_url() -> str:
    """Return where Intel's root says that its revocation list is."""
    extension = intel_root().extensions.get(_CRL_DISTRIBUTION_POINTS)
    try:
        if extension is not None:
            points = DerReader(extension.value).enter()
            names = points.enter().enter(der.context(0)).enter(der.context(0))
            return names.read(der.context(6, constructed=False)).decode("ascii")
    except (DerError, UnicodeDecodeError):
        pass
    raise SourceError("the root does not say where its revocation list is")
