"""HashiCorp Vault or OpenBao: keys in a KV secrets engine, as the original lays them there.

A key stands at ``<mount>/<id>``; the secret there has one member, named by the id too, whose value
is a JSON document as a string::

    {"id": …, "algorithm": "AES", "key_length": 256, "key_data": <base64>, …}
    {"id": …, "algorithm": "RSA", …, "public_key": <base64 of DER>, "private_key": <base64 of DER>}

so that what this broker writes can be read by the original and the other way round.

hvac blocks; every call runs in a thread, with a time limit on the connection and on each answer.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

import hvac
import msgspec
import requests
from hvac import exceptions

from keybroker.config.key_transfer import VaultKeyManagerConfig
from keybroker.key_transfer.errors import KeyGoneError, KeyManagerError
from keybroker.key_transfer.generation import generate_key
from keybroker.key_transfer.material import AES, KeySpec, Material, check_octets
from keybroker.key_transfer.records import NIL_ID, KeyRecord
from keybroker.model.errors import MalformedError

#: The most that a secret of ours has, with a wide margin: an answer beyond it is not one.
_MAX_DOCUMENT_CHARS = 64 * 1024

_T = TypeVar("_T")


class _VaultKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """The document that holds a key."""

    id: str
    algorithm: str
    key_length: int = 0
    key_data: str = ""
    curve_type: str = ""
    public_key: str = ""
    private_key: str = ""
    transfer_policy_id: str = ""
    created_at: str = ""

    def __repr__(self) -> str:
        return f"_VaultKey({self.id})"


class VaultKeyManager:
    """Keeps keys in Vault."""

    def __init__(self, config: VaultKeyManagerConfig) -> None:
        self._mount = config.mount.strip("/")
        self._version = config.kv_version
        self._client = hvac.Client(
            url=config.url.rstrip("/"),
            token=config.token.reveal(),
            verify=config.ca_cert if config.ca_cert is not None else True,
            timeout=config.timeout_seconds,
            # A token must not follow a redirect to wherever an answer points.
            allow_redirects=False,
        )

    async def create(self, key_id: str, spec: KeySpec, created_at: str) -> str | None:
        return await self.register(key_id, spec, await generate_key(spec), created_at)

    async def register(
        self, key_id: str, spec: KeySpec, material: Material, created_at: str
    ) -> str | None:
        octets = base64.b64encode(material.octets).decode("ascii")
        public = base64.b64encode(material.public or b"").decode("ascii")
        aes = spec.algorithm == AES
        document = _VaultKey(
            id=key_id,
            algorithm=spec.algorithm,
            key_length=spec.length or 0,
            key_data=octets if aes else "",
            curve_type=spec.curve or "",
            public_key=public,
            private_key="" if aes else octets,
            transfer_policy_id=NIL_ID,
            created_at=created_at,
        )
        text = msgspec.json.encode(document).decode("ascii")
        await self._call(lambda: self._write(key_id, {key_id: text}))
        return None

    async def adopt(self, spec: KeySpec, kmip_key_id: str) -> None:  # noqa: ARG002
        raise MalformedError("kmip_key_id needs a KMIP key manager; register key_data instead")

    async def fetch(self, record: KeyRecord) -> bytes:
        answer = await self._call(lambda: self._read(record.id))
        text = answer.get(record.id) if isinstance(answer, dict) else None
        if not isinstance(text, str) or len(text) > _MAX_DOCUMENT_CHARS:
            raise KeyManagerError("Vault holds something else than a key there")
        try:
            document = msgspec.json.decode(text, type=_VaultKey)
            encoded = document.key_data if record.algorithm == AES else document.private_key
            octets = base64.b64decode(encoded, validate=True)
            spec = KeySpec(record.algorithm, record.key_length, record.curve_type)
            return check_octets(octets, spec)
        except (msgspec.DecodeError, binascii.Error, ValueError, MalformedError):
            raise KeyManagerError("Vault holds something else than this key there") from None

    async def delete(self, record: KeyRecord) -> None:
        await self.discard(record.id)

    async def discard(self, key_id: str) -> None:
        try:
            await self._call(lambda: self._delete(key_id))
        except KeyGoneError:
            return

    async def problem(self) -> str | None:
        try:
            # An id that is no key's: what matters is that Vault answers for the mount.
            await self._call(lambda: self._read(NIL_ID))
        except KeyGoneError:
            return None
        except KeyManagerError as error:
            return error.detail
        return None

    async def close(self) -> None:
        await asyncio.to_thread(self._client.adapter.close)

    def _write(self, path: str, secret: dict[str, str]) -> None:
        kv = self._client.secrets.kv
        if self._version == 1:
            kv.v1.create_or_update_secret(path, secret, mount_point=self._mount)
        else:
            kv.v2.create_or_update_secret(path, secret, mount_point=self._mount)

    def _read(self, path: str) -> Any:
        kv = self._client.secrets.kv
        if self._version == 1:
            return kv.v1.read_secret(path, mount_point=self._mount)["data"]
        answer = kv.v2.read_secret_version(
            path, mount_point=self._mount, raise_on_deleted_version=True
        )
        return answer["data"]["data"]

    def _delete(self, path: str) -> None:
        kv = self._client.secrets.kv
        if self._version == 1:
            kv.v1.delete_secret(path, mount_point=self._mount)
        else:
            kv.v2.delete_metadata_and_all_versions(path, mount_point=self._mount)

    async def _call(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except exceptions.InvalidPath:
            raise KeyGoneError from None
        except exceptions.Forbidden:
            raise KeyManagerError("Vault refuses the broker's token") from None
        except exceptions.VaultDown:
            raise KeyManagerError("Vault is sealed") from None
        except exceptions.VaultError as error:
            raise KeyManagerError("Vault failed", f"Vault: {type(error).__name__}") from None
        except requests.Timeout:
            raise KeyManagerError("Vault does not answer in time") from None
        except requests.exceptions.SSLError:
            raise KeyManagerError("Vault's certificate is not trusted") from None
        except requests.exceptions.JSONDecodeError:
            raise KeyManagerError("Vault does not answer as Vault does") from None
        except requests.RequestException as error:
            raise KeyManagerError("Vault cannot be reached", type(error).__name__) from None
        except (KeyError, TypeError, AttributeError, ValueError):
            # What hvac makes of an answer that is not Vault's.
            raise KeyManagerError("Vault does not answer as Vault does") from None
