"""KMIP messages: requests built and answers read, without a connection.

PyKMIP gives the encoding (TTLV) and the payloads; its client is not used, since that blocks, never
looks at the name in the server's certificate, and holds one connection that dies with the server.

Specification: KMIP 1.4 and 2.0, operations Create, Create Key Pair, Register, Get, Destroy, Locate.
"""

from typing import Any

from kmip.core import attributes, enums, misc, objects, primitives, secrets
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages import contents, messages, payloads
from kmip.core.utils import BytearrayStream

from keybroker.config.key_transfer import KmipVersion
from keybroker.key_transfer.errors import KeyGoneError, KeyManagerError
from keybroker.key_transfer.material import AES, EC, RSA, KeySpec, Material

_VERSIONS = {
    KmipVersion.V1_4: enums.KMIPVersion.KMIP_1_4,
    KmipVersion.V2_0: enums.KMIPVersion.KMIP_2_0,
}

_ALGORITHMS = {
    AES: enums.CryptographicAlgorithm.AES,
    RSA: enums.CryptographicAlgorithm.RSA,
    EC: enums.CryptographicAlgorithm.EC,
}

_ENCRYPT = enums.CryptographicUsageMask.ENCRYPT
_DECRYPT = enums.CryptographicUsageMask.DECRYPT
_SIGN = enums.CryptographicUsageMask.SIGN

_ATTRIBUTES = AttributeFactory()


class KmipMessages:
    """Builds requests of one protocol version, with the credential in each."""

    def __init__(self, version: KmipVersion, username: str | None, password: str | None) -> None:
        self._version = _VERSIONS[version]
        major, minor = version.value.split(".")
        self._protocol_version = contents.ProtocolVersion(int(major), int(minor))
        self._authentication: contents.Authentication | None = None
        if username is not None and password is not None:
            credential = objects.Credential(
                credential_type=enums.CredentialType.USERNAME_AND_PASSWORD,
                credential_value=objects.UsernamePasswordCredential(
                    username=username, password=password
                ),
            )
            self._authentication = contents.Authentication([credential])

    def create(self, name: str, spec: KeySpec) -> bytes:
        """Make a symmetric key, named so that it can be found again."""
        wanted = [*_kind(spec), _usage(_ENCRYPT, _DECRYPT), _name(name)]
        payload = payloads.CreateRequestPayload(
            enums.ObjectType.SYMMETRIC_KEY, objects.TemplateAttribute(attributes=wanted)
        )
        return self._request(enums.Operation.CREATE, payload)

    def create_key_pair(self, name: str, spec: KeySpec) -> bytes:
        """Make an RSA key pair, both halves named."""
        payload = payloads.CreateKeyPairRequestPayload(
            common_template_attribute=objects.TemplateAttribute(
                attributes=_kind(spec), tag=enums.Tags.COMMON_TEMPLATE_ATTRIBUTE
            ),
            private_key_template_attribute=objects.TemplateAttribute(
                attributes=[_usage(_DECRYPT), _name(name)],
                tag=enums.Tags.PRIVATE_KEY_TEMPLATE_ATTRIBUTE,
            ),
            public_key_template_attribute=objects.TemplateAttribute(
                attributes=[_usage(_ENCRYPT), _name(public_name(name))],
                tag=enums.Tags.PUBLIC_KEY_TEMPLATE_ATTRIBUTE,
            ),
        )
        return self._request(enums.Operation.CREATE_KEY_PAIR, payload)

    def register(self, name: str, spec: KeySpec, material: Material) -> bytes:
        """Register a key: octets of AES, PKCS #8 of RSA and EC."""
        symmetric = spec.algorithm == AES
        format_ = enums.KeyFormatType.RAW if symmetric else enums.KeyFormatType.PKCS_8
        block = objects.KeyBlock(
            key_format_type=misc.KeyFormatType(format_),
            key_value=objects.KeyValue(objects.KeyMaterial(material.octets)),
            cryptographic_algorithm=attributes.CryptographicAlgorithm(_ALGORITHMS[spec.algorithm]),
            cryptographic_length=attributes.CryptographicLength(spec.bits),
        )
        usage = [_ENCRYPT, _DECRYPT] if symmetric else [_DECRYPT, _SIGN]
        payload = payloads.RegisterRequestPayload(
            enums.ObjectType.SYMMETRIC_KEY if symmetric else enums.ObjectType.PRIVATE_KEY,
            objects.TemplateAttribute(attributes=[_usage(*usage), _name(name)]),
            secrets.SymmetricKey(block) if symmetric else secrets.PrivateKey(block),
        )
        return self._request(enums.Operation.REGISTER, payload)

    def get(self, unique_id: str) -> bytes:
        """Get a key."""
        return self._request(
            enums.Operation.GET, payloads.GetRequestPayload(unique_identifier=unique_id)
        )

    def destroy(self, unique_id: str) -> bytes:
        """Destroy a key."""
        payload = payloads.DestroyRequestPayload(
            unique_identifier=attributes.UniqueIdentifier(unique_id)
        )
        return self._request(enums.Operation.DESTROY, payload)

    def locate(self, name: str) -> bytes:
        """Find what has a name."""
        payload = payloads.LocateRequestPayload(attributes=[_name(name)])
        return self._request(enums.Operation.LOCATE, payload)

    def read(self, answer: bytes, operation: enums.Operation) -> Any:
        """Read the payload of an answer.

        Raises:
            KeyGoneError: the server has no such object.
            KeyManagerError: the server failed, refuses, or its answer is nonsense.
        """
        message = messages.ResponseMessage()
        try:
            message.read(BytearrayStream(answer), self._version)
            (item,) = message.batch_items
            status = item.result_status.value
        except Exception as error:
            # PyKMIP's parser raises whatever the foreign bytes lead it into.
            raise KeyManagerError(
                "the KMIP server does not answer as one", type(error).__name__
            ) from None
        if status is not enums.ResultStatus.SUCCESS:
            reason = item.result_reason.value if item.result_reason is not None else None
            if reason is enums.ResultReason.ITEM_NOT_FOUND:
                raise KeyGoneError
            name = reason.name if reason is not None else "no reason"
            raise KeyManagerError("the KMIP server refuses the request", f"KMIP: {name}")
        if item.operation is None or item.operation.value is not operation:
            raise KeyManagerError("the KMIP server does not answer what it was asked")
        return item.response_payload

    def _request(self, operation: enums.Operation, payload: Any) -> bytes:
        item = messages.RequestBatchItem(
            operation=primitives.Enumeration(enums.Operation, operation, tag=enums.Tags.OPERATION),
            request_payload=payload,
        )
        header = messages.RequestHeader(
            protocol_version=self._protocol_version,
            authentication=self._authentication,
            batch_count=contents.BatchCount(1),
        )
        stream = BytearrayStream()
        messages.RequestMessage(request_header=header, batch_items=[item]).write(
            stream, self._version
        )
        return bytes(stream.buffer)


def public_name(name: str) -> str:
    """Return the name that the public half of a key pair has."""
    return f"{name}-public"


def key_octets(payload: Any, algorithm: str) -> bytes:
    """Take the key out of the answer to Get.

    Raises:
        KeyManagerError: it is another kind of object, or its key is wrapped or structured.
    """
    expected = enums.ObjectType.SYMMETRIC_KEY if algorithm == AES else enums.ObjectType.PRIVATE_KEY
    try:
        if payload.object_type is not expected:
            raise KeyManagerError("the KMIP server keeps another kind of object there")
        octets = payload.secret.key_block.key_value.key_material.value
    except AttributeError:
        octets = None
    if not isinstance(octets, bytes) or not octets:
        raise KeyManagerError("the KMIP server keeps the key in a form that cannot be used")
    return octets


def unique_id(payload: Any, member: str = "unique_identifier") -> str:
    """Take an id out of an answer.

    Raises:
        KeyManagerError: there is none.
    """
    value = getattr(payload, member, None)
    value = getattr(value, "value", value)
    if not isinstance(value, str) or not value:
        raise KeyManagerError("the KMIP server gives no id")
    return value


def _kind(spec: KeySpec) -> list[Any]:
    return [
        _ATTRIBUTES.create_attribute(
            enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM, _ALGORITHMS[spec.algorithm]
        ),
        _ATTRIBUTES.create_attribute(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, spec.length),
    ]


def _usage(*masks: enums.CryptographicUsageMask) -> Any:
    return _ATTRIBUTES.create_attribute(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, list(masks))


def _name(name: str) -> Any:
    return _ATTRIBUTES.create_attribute(enums.AttributeType.NAME, name)
