"""Client of an administrator of registered workloads.

Example::

    with WorkloadClient("https://broker:8080/workload", token) as workloads:
        workloads.register("my-workload", digest, passphrase, tee_config='{"gen": "milan"}')
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote as percent_encode

import msgspec

from keybroker.client.closing import AsyncClosing, Closing
from keybroker.client.errors import ProtocolError
from keybroker.client.exchange import JSON_TYPE, Answer, Call, Operation, call
from keybroker.client.transport import ANSWER_TIMEOUT, AsyncTransport, Transport
from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_struct

#: What stands in a URL path as it is (RFC 3986, ``pchar``), beside letters and digits.
_PATH_SAFE = "-._~!$&'()*+,;=:@"


class WorkloadDescription(msgspec.Struct, frozen=True):
    """A registered workload, without its passphrase.

    Attributes:
        tee: ``sev`` or ``snp``.
        launch_measurement: hexadecimal.
        registered_at: Unix time in seconds.
    """

    workload_id: str
    tee: str
    launch_measurement: str
    tee_config: str
    registered_at: int


class _Listing(msgspec.Struct, frozen=True):
    workloads: list[WorkloadDescription]


@dataclass(frozen=True)
class WorkloadAdministration:
    """What an administrator of workloads asks, without I/O; ``token`` may be None."""

    token: str | None = None

    def register(
        self, workload_id: str, measurement: bytes, passphrase: str, tee_config: str
    ) -> Operation[None]:
        """Register a workload, or register it anew."""
        body = {
            "workload_id": workload_id,
            "launch_measurement": measurement.hex(),
            "tee_config": tee_config,
            "passphrase": passphrase,
        }
        content = json.dumps(body).encode()
        yield from call(Call("POST", "register_workload", content, JSON_TYPE, self.token))

    def workloads(self) -> Operation[list[WorkloadDescription]]:
        """List the registered workloads."""
        answer = yield from call(Call("GET", "workloads", bearer=self.token))
        return _parse(answer, _Listing).workloads

    def delete(self, workload_id: str) -> Operation[None]:
        """Delete a workload and its passphrase."""
        path = f"workloads/{percent_encode(workload_id, safe=_PATH_SAFE)}"
        yield from call(Call("DELETE", path, bearer=self.token))


def _parse(answer: Answer, type_: type[_Listing]) -> _Listing:
    try:
        return parse_struct(answer.content, type_)
    except MalformedError as error:
        raise ProtocolError(f"the list of workloads is malformed: {error.detail}") from None


class WorkloadClient(Closing):
    """A client that blocks; use it as a context manager.

    Every method raises UnauthenticatedError without a valid token, DeniedError where the token's
    role does not reach so far, and otherwise as :mod:`keybroker.client.errors` says.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: where workloads are served, such as ``https://broker:8080/workload``.
            token: administrator token; None asks anonymously.
            root_certs: PEM files of roots to trust beside the usual ones.
            timeout: seconds to wait for an answer.

        Raises:
            InputError: an argument cannot be used.
        """
        self._administration = WorkloadAdministration(token)
        self._transport = Transport(url, root_certs, timeout)

    def register(
        self, workload_id: str, measurement: bytes, passphrase: str, *, tee_config: str = ""
    ) -> None:
        """Register a workload, or register it anew.

        Args:
            measurement: launch digest, 32 bytes for SEV and SEV-ES, 48 for SEV-SNP.
            tee_config: JSON; the guest policy for SEV.

        Raises:
            BadRequestError: it could never be served; ``detail`` says why.
        """
        self._transport.run(
            self._administration.register(workload_id, measurement, passphrase, tee_config)
        )

    def workloads(self) -> list[WorkloadDescription]:
        """Return the registered workloads by their ids."""
        return self._transport.run(self._administration.workloads())

    def delete(self, workload_id: str) -> None:
        """Delete a workload and its passphrase.

        Raises:
            NotFoundError: there is none of that id.
        """
        self._transport.run(self._administration.delete(workload_id))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncWorkloadClient(AsyncClosing):
    """The twin of :class:`WorkloadClient` for asyncio."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """See :class:`WorkloadClient`."""
        self._administration = WorkloadAdministration(token)
        self._transport = AsyncTransport(url, root_certs, timeout)

    async def register(
        self, workload_id: str, measurement: bytes, passphrase: str, *, tee_config: str = ""
    ) -> None:
        """See :meth:`WorkloadClient.register`."""
        await self._transport.run(
            self._administration.register(workload_id, measurement, passphrase, tee_config)
        )

    async def workloads(self) -> list[WorkloadDescription]:
        """See :meth:`WorkloadClient.workloads`."""
        return await self._transport.run(self._administration.workloads())

    async def delete(self, workload_id: str) -> None:
        """See :meth:`WorkloadClient.delete`."""
        await self._transport.run(self._administration.delete(workload_id))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
