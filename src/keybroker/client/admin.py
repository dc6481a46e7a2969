"""Clients of an administrator: secrets, policies, reference values, and why a guest was denied.

Example::

    with AdminClient("https://broker:8080", token, root_certs=["ca.pem"]) as admin:
        admin.set_resource("default/disk/key", b"…")
        admin.set_sample_reference_value("snp_launch_measurement", ["8a4f…"])
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keybroker.client.administration import Administration
from keybroker.client.closing import AsyncClosing, Closing
from keybroker.client.explanation import Explanation
from keybroker.client.transport import ANSWER_TIMEOUT, AsyncTransport, Transport

#: Policy that a broker appraises CPUs with.
DEFAULT_POLICY_ID = "default_cpu"


class AdminClient(Closing):
    """An administrator's client that blocks; use it as a context manager.

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
            url: root of the broker, such as ``https://broker:8080``.
            token: administrator token; None asks anonymously.
            root_certs: PEM files of roots to trust beside the usual ones.
            timeout: seconds to wait for an answer.

        Raises:
            InputError: an argument cannot be used.
        """
        self._administration = Administration(token)
        self._transport = Transport(url, root_certs, timeout)

    def set_resource(self, path: str, secret: bytes) -> None:
        """Store a secret under ``repository/type/tag``, over the old one if there is one."""
        self._transport.run(self._administration.set_resource(path, secret))

    def delete_resource(self, path: str) -> None:
        """Delete a secret."""
        self._transport.run(self._administration.delete_resource(path))

    def list_resources(self, repository: str | None = None) -> list[str]:
        """Return the paths of all secrets, or of those in one repository."""
        return self._transport.run(self._administration.list_resources(repository))

    def set_resource_policy(self, policy: str) -> None:
        """Set the policy that decides on every release.

        Raises:
            BadRequestError: it does not compile; ``detail`` says where.
        """
        self._transport.run(self._administration.set_resource_policy(policy))

    def get_resource_policy(self) -> str:
        """Return the text of the policy that decides on every release."""
        return self._transport.run(self._administration.get_resource_policy())

    def set_attestation_policy(
        self, policy: str, policy_id: str = DEFAULT_POLICY_ID, policy_type: str = "rego"
    ) -> None:
        """Set a policy that appraises evidence.

        Raises:
            BadRequestError: it does not compile; ``detail`` says where.
        """
        self._transport.run(
            self._administration.set_attestation_policy(policy_id, policy, policy_type)
        )

    def get_attestation_policy(self, policy_id: str = DEFAULT_POLICY_ID) -> str:
        """Return the text of a policy that appraises evidence."""
        return self._transport.run(self._administration.get_attestation_policy(policy_id))

    def list_attestation_policies(self) -> list[str]:
        """Return the names of all policies that appraise evidence."""
        return self._transport.run(self._administration.list_attestation_policies())

    def register_reference_value(self, message: Mapping[str, Any]) -> None:
        """Register reference values by a message of the RVPS: version, type and payload."""
        self._transport.run(self._administration.register_reference_value(message))

    def set_sample_reference_value(self, name: str, value: Any) -> None:
        """Register a reference value without provenance; the sample extractor must be on."""
        self._transport.run(self._administration.set_sample_reference_value(name, value))

    def get_reference_value(self, name: str) -> Any:
        """Return a reference value; None where the broker knows none and says so by null."""
        return self._transport.run(self._administration.get_reference_value(name))

    def explain(self, path: str, token: str) -> Explanation:
        """Return why the holder of an attestation token may have a resource or not."""
        return self._transport.run(self._administration.explain(path, token))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncAdminClient(AsyncClosing):
    """An administrator's client for asyncio; methods and errors are :class:`AdminClient`'s."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        root_certs: Sequence[Path | str] = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._administration = Administration(token)
        self._transport = AsyncTransport(url, root_certs, timeout)

    async def set_resource(self, path: str, secret: bytes) -> None:
        """Store a secret."""
        await self._transport.run(self._administration.set_resource(path, secret))

    async def delete_resource(self, path: str) -> None:
        """Delete a secret."""
        await self._transport.run(self._administration.delete_resource(path))

    async def list_resources(self, repository: str | None = None) -> list[str]:
        """Return the paths of all secrets, or of those in one repository."""
        return await self._transport.run(self._administration.list_resources(repository))

    async def set_resource_policy(self, policy: str) -> None:
        """Set the policy that decides on every release."""
        await self._transport.run(self._administration.set_resource_policy(policy))

    async def get_resource_policy(self) -> str:
        """Return the text of the policy that decides on every release."""
        return await self._transport.run(self._administration.get_resource_policy())

    async def set_attestation_policy(
        self, policy: str, policy_id: str = DEFAULT_POLICY_ID, policy_type: str = "rego"
    ) -> None:
        """Set a policy that appraises evidence."""
        await self._transport.run(
            self._administration.set_attestation_policy(policy_id, policy, policy_type)
        )

    async def get_attestation_policy(self, policy_id: str = DEFAULT_POLICY_ID) -> str:
        """Return the text of a policy that appraises evidence."""
        return await self._transport.run(self._administration.get_attestation_policy(policy_id))

    async def list_attestation_policies(self) -> list[str]:
        """Return the names of all policies that appraise evidence."""
        return await self._transport.run(self._administration.list_attestation_policies())

    async def register_reference_value(self, message: Mapping[str, Any]) -> None:
        """Register reference values by a message of the RVPS."""
        await self._transport.run(self._administration.register_reference_value(message))

    async def set_sample_reference_value(self, name: str, value: Any) -> None:
        """Register a reference value without provenance."""
        await self._transport.run(self._administration.set_sample_reference_value(name, value))

    async def get_reference_value(self, name: str) -> Any:
        """Return a reference value."""
        return await self._transport.run(self._administration.get_reference_value(name))

    async def explain(self, path: str, token: str) -> Explanation:
        """Return why the holder of an attestation token may have a resource or not."""
        return await self._transport.run(self._administration.explain(path, token))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
