"""Clients of a guest: attest, and get secrets.

Example::

    with GuestClient("https://broker:8080", root_certs=["ca.pem"]) as guest:
        key = guest.get_resource("default/disk/key")

Without an attester the machine's own TEE is used. The attested session is a cookie that the
client keeps; a token from an earlier attestation, also one of another broker (passport mode), is
passed as ``token`` together with the TEE key that it was made out for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keybroker.client.attesters.detect import detect, detect_devices
from keybroker.client.attesters.interface import Attester
from keybroker.client.closing import AsyncClosing, Closing
from keybroker.client.errors import InputError, UnauthenticatedError
from keybroker.client.exchange import JSON_TYPE, Call, Operation, call, quote
from keybroker.client.handshake import (
    device_report_data,
    encode_additional_evidence,
    encode_attestation,
    encode_request,
    is_token,
    make_init_data,
    parse_challenge,
    parse_token_answer,
    primary_report_data,
)
from keybroker.client.resource_uri import ResourceUri, parse_resource_uri
from keybroker.client.tee_key import TeeKeyPair
from keybroker.client.transport import ANSWER_TIMEOUT, AsyncTransport, Transport
from keybroker.model.rcar import CompositeEvidence, InitData, RuntimeData
from keybroker.model.tee import Tee


def attest(
    attester: Attester,
    devices: Sequence[Attester],
    tee_key: TeeKeyPair,
    init_data: InitData | None,
) -> Operation[str]:
    """Perform the RCAR handshake.

    Returns:
        The attestation token; the session cookie stays with the transport.

    Raises:
        AttesterError: no evidence could be had.
        BrokerError: the broker refused the evidence, or failed.
        ProtocolError: an answer is not one of the protocol.
    """
    answer = yield from call(Call("POST", "auth", encode_request(attester.tee), JSON_TYPE))
    terms = parse_challenge(answer.content)
    runtime_data = RuntimeData(nonce=terms.nonce, tee_pubkey=dict(tee_key.public_jwk()))
    additional: dict[Tee, Any] = {}
    if devices:
        report_data = device_report_data(runtime_data, terms.hash_algorithm)
        for device in devices:
            if device.tee in additional:
                raise InputError(f"two attesters for devices of kind {device.tee.value}")
            additional[device.tee] = yield from quote(device, report_data)
    additional_evidence = encode_additional_evidence(additional)
    report_data = primary_report_data(runtime_data, additional_evidence, terms.hash_algorithm)
    evidence = CompositeEvidence(
        primary_evidence=(yield from quote(attester, report_data)),
        additional_evidence=additional_evidence,
    )
    payload = encode_attestation(runtime_data, evidence, init_data)
    answer = yield from call(Call("POST", "attest", payload, JSON_TYPE))
    return parse_token_answer(answer.content)


class _Guest:
    """What a guest knows and which operations follow from it, for both clients."""

    def __init__(
        self,
        attester: Attester | None,
        devices: Sequence[Attester] | None,
        tee_key: TeeKeyPair | None,
        token: str | None,
        init_data: str | InitData | None,
    ) -> None:
        if token is not None:
            if tee_key is None:
                raise InputError("a token is of use only with the TEE key that it was made out for")
            if not is_token(token):
                raise InputError("the attestation token is not a JWT")
        self.tee_key = tee_key if tee_key is not None else TeeKeyPair.generate()
        self.init_data = make_init_data(init_data) if isinstance(init_data, str) else init_data
        self.attester = attester
        self.devices = devices
        self.passport = token
        self.token: str | None = None

    def attest(self) -> Operation[str]:
        if self.attester is None:
            self.attester = detect()
        if self.devices is None:
            self.devices = detect_devices()
        # A session that may have come before is worth nothing while the new one is not there.
        self.token = None
        self.token = yield from attest(self.attester, self.devices, self.tee_key, self.init_data)
        return self.token

    def get_resource(self, path: str) -> Operation[bytes]:
        uri = parse_resource_uri(path)
        if self.passport is not None:
            return (yield from self._get(uri, bearer=self.passport))
        fresh = self.token is None
        if fresh:
            yield from self.attest()
        try:
            return (yield from self._get(uri))
        except UnauthenticatedError:
            # An old session may have expired. A fresh one that is refused would be refused again.
            if fresh:
                raise
        yield from self.attest()
        return (yield from self._get(uri))

    def _get(self, uri: ResourceUri, bearer: str | None = None) -> Operation[bytes]:
        answer = yield from call(Call("GET", uri.path, bearer=bearer, query=dict(uri.query)))
        return self.tee_key.open_response(answer.content)


class GuestClient(Closing):
    """A guest's client that blocks; use it as a context manager, from one thread at a time."""

    def __init__(
        self,
        url: str,
        attester: Attester | None = None,
        *,
        devices: Sequence[Attester] | None = None,
        tee_key: TeeKeyPair | None = None,
        token: str | None = None,
        init_data: str | InitData | None = None,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: root of the broker, such as ``https://broker:8080``.
            attester: what makes evidence; by default that of this machine.
            devices: what makes evidence of further devices; by default those of this machine.
            tee_key: the key pair that secrets are encrypted to; by default a new one on P-256.
            token: an attestation token to show instead of attesting; needs its ``tee_key``.
            init_data: the plain text that was measured when the guest was launched.
            root_certs: PEM files of roots to trust beside the usual ones.
            timeout: seconds to wait for an answer.

        Raises:
            InputError: an argument cannot be used.
        """
        self._guest = _Guest(attester, devices, tee_key, token, init_data)
        self._transport = Transport(url, root_certs, timeout)

    @property
    def tee_key(self) -> TeeKeyPair:
        """The key pair that secrets are encrypted to."""
        return self._guest.tee_key

    def attest(self) -> str:
        """Attest and return the attestation token (a JWT).

        Raises:
            ClientError: see :func:`attest`, and ConnectionFailedError.
        """
        return self._transport.run(self._guest.attest())

    def get_resource(self, path: str) -> bytes:
        """Return a secret, in the clear.

        Attests first where that has not happened, and once more where the session has expired;
        never after a denial.

        Args:
            path: ``repository/type/tag``, or a URI ``kbs:///…`` or ``kbs+plugin:///…``.

        Raises:
            InputError: not such a path.
            DeniedError: the policy says no.
            NotFoundError: there is no such resource.
            SealedSecretError: the answer cannot be opened with the TEE key.
            ClientError: as :meth:`attest`.
        """
        return self._transport.run(self._guest.get_resource(path))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncGuestClient(AsyncClosing):
    """A guest's client for asyncio; arguments, results and errors are :class:`GuestClient`'s."""

    def __init__(
        self,
        url: str,
        attester: Attester | None = None,
        *,
        devices: Sequence[Attester] | None = None,
        tee_key: TeeKeyPair | None = None,
        token: str | None = None,
        init_data: str | InitData | None = None,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._guest = _Guest(attester, devices, tee_key, token, init_data)
        self._transport = AsyncTransport(url, root_certs, timeout)

    @property
    def tee_key(self) -> TeeKeyPair:
        """The key pair that secrets are encrypted to."""
        return self._guest.tee_key

    async def attest(self) -> str:
        """Attest and return the attestation token."""
        return await self._transport.run(self._guest.attest())

    async def get_resource(self, path: str) -> bytes:
        """Return a secret, in the clear; see :meth:`GuestClient.get_resource`."""
        return await self._transport.run(self._guest.get_resource(path))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
