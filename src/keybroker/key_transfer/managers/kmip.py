"""A KMIP server, over mutual TLS.

Every request has a connection of its own, as with the original: a server that was restarted or a
connection that an appliance cut then costs nothing. What the broker makes there is named by the
id of the key's record, so that what an interrupted creation left can be found and destroyed.
"""

import asyncio
import ssl
import struct

from kmip.core import enums

from keybroker.config.key_transfer import KmipKeyManagerConfig
from keybroker.key_transfer.errors import KeyGoneError, KeyManagerError
from keybroker.key_transfer.generation import generate_key
from keybroker.key_transfer.managers.kmip_messages import (
    KmipMessages,
    key_octets,
    public_name,
    unique_id,
)
from keybroker.key_transfer.material import (
    AES,
    RSA,
    KeySpec,
    Material,
    check_octets,
)
from keybroker.key_transfer.records import NIL_ID, KeyRecord
from keybroker.model.errors import ConfigError, MalformedError
from keybroker.workbench import run

#: Tag and type of every KMIP message: a structure, Response Message (KMIP 1.4, section 9.1).
_RESPONSE_MESSAGE = b"\x42\x00\x7b\x01"
_HEADER_BYTES = 8

#: Far above any answer to what is asked here.
MAX_ANSWER_BYTES = 256 * 1024


class KmipKeyManager:
    """Keeps keys on a KMIP server.

    Raises:
        ConfigError: certificates or key cannot be read.
    """

    def __init__(self, config: KmipKeyManagerConfig) -> None:
        self._config = config
        self._messages = KmipMessages(
            config.version,
            config.username,
            None if config.password is None else config.password.reveal(),
        )
        self._tls = _tls_context(config)

    async def create(self, key_id: str, spec: KeySpec, created_at: str) -> str | None:
        if spec.algorithm == AES:
            request = self._messages.create(key_id, spec)
            return unique_id(await self._call(request, enums.Operation.CREATE))
        if spec.algorithm == RSA:
            request = self._messages.create_key_pair(key_id, spec)
            payload = await self._call(request, enums.Operation.CREATE_KEY_PAIR)
            return unique_id(payload, "private_key_unique_identifier")
        # KMIP servers disagree on how curves are named when they make keys; keeping one is easy.
        return await self.register(key_id, spec, await generate_key(spec), created_at)

    async def register(
        self,
        key_id: str,
        spec: KeySpec,
        material: Material,
        created_at: str,  # noqa: ARG002 - the server keeps a time of its own
    ) -> str | None:
        request = self._messages.register(key_id, spec, material)
        return unique_id(await self._call(request, enums.Operation.REGISTER))

    async def adopt(self, spec: KeySpec, kmip_key_id: str) -> None:
        try:
            octets = await self._get(kmip_key_id, spec.algorithm)
        except KeyGoneError:
            raise MalformedError("the KMIP server has no such key") from None
        await run(check_octets, octets, spec)

    async def fetch(self, record: KeyRecord) -> bytes:
        if record.kmip_key_id is None:
            raise KeyManagerError("the key was not made with a KMIP server")
        octets = await self._get(record.kmip_key_id, record.algorithm)
        spec = KeySpec(record.algorithm, record.key_length, record.curve_type)
        try:
            # As the server keeps it, which may be PKCS #1: the original hands out no other form.
            return await run(check_octets, octets, spec)
        except MalformedError:
            raise KeyManagerError("the KMIP server keeps something else than this key") from None

    async def delete(self, record: KeyRecord) -> None:
        if record.kmip_key_id is not None:
            await self._destroy(record.kmip_key_id)
        if record.algorithm == RSA:
            await self._destroy_named(public_name(record.id))

    async def discard(self, key_id: str) -> None:
        await self._destroy_named(key_id)
        await self._destroy_named(public_name(key_id))

    async def problem(self) -> str | None:
        try:
            await self._call(self._messages.locate(NIL_ID), enums.Operation.LOCATE)
        except KeyManagerError as error:
            return error.detail
        return None

    async def close(self) -> None:
        return

    async def _get(self, kmip_key_id: str, algorithm: str) -> bytes:
        payload = await self._call(self._messages.get(kmip_key_id), enums.Operation.GET)
        return key_octets(payload, algorithm)

    async def _destroy(self, kmip_key_id: str) -> None:
        try:
            await self._call(self._messages.destroy(kmip_key_id), enums.Operation.DESTROY)
        except KeyGoneError:
            return

    async def _destroy_named(self, name: str) -> None:
        try:
            payload = await self._call(self._messages.locate(name), enums.Operation.LOCATE)
        except KeyGoneError:
            return
        for found in getattr(payload, "unique_identifiers", None) or ():
            await self._destroy(found)

    async def _call(self, request: bytes, operation: enums.Operation) -> object:
        config = self._config
        try:
            async with asyncio.timeout(config.timeout_seconds):
                answer = await self._exchange(request)
        except TimeoutError:
            raise KeyManagerError("the KMIP server does not answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise KeyManagerError(
                "the KMIP server's certificate is not trusted", error.verify_message
            ) from None
        except asyncio.IncompleteReadError:
            raise KeyManagerError("the KMIP server closes the connection") from None
        except OSError as error:
            raise KeyManagerError(
                "the KMIP server cannot be reached", type(error).__name__
            ) from None
        payload: object = await run(self._messages.read, answer, operation)
        return payload

    async def _exchange(self, request: bytes) -> bytes:
        config = self._config
        reader, writer = await asyncio.open_connection(
            config.address,
            config.port,
            ssl=self._tls,
            server_hostname=config.hostname or config.address,
        )
        try:
            writer.write(request)
            await writer.drain()
            header = await reader.readexactly(_HEADER_BYTES)
            (length,) = struct.unpack(">I", header[4:])
            if header[:4] != _RESPONSE_MESSAGE or length > MAX_ANSWER_BYTES:
                raise KeyManagerError("the KMIP server does not answer as one")
            return header + await reader.readexactly(length)
        finally:
            writer.transport.abort()


def _tls_context(config: KmipKeyManagerConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(config.root_cert)
        context.load_cert_chain(config.client_cert, config.client_key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"key_transfer.key_manager: certificates or key: {reason}") from None
    return context
