"""``[key_transfer]``: the Trust Authority (Amber) key broker on ``/kbs/v1``."""

from enum import StrEnum
from typing import Annotated, ClassVar, TypeAlias
from urllib.parse import urlsplit

import msgspec

from keybroker.config.section import Secret, Section

#: The public service; other regions have addresses of their own.
DEFAULT_PORTAL_URL = "https://portal.trustauthority.intel.com"
DEFAULT_API_URL = "https://api.trustauthority.intel.com"

#: The longest that one request of a client may wait for a key manager or for Trust Authority.
_MAX_WAIT_SECONDS = 120

Wait = Annotated[float, msgspec.Meta(gt=0, le=_MAX_WAIT_SECONDS)]


class LocalKeyManagerConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="local"):
    """Keys are kept in the broker's own storage, encrypted where that is."""

    default_variant: ClassVar[bool] = True


class VaultKeyManagerConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="vault"):
    """Keys are kept in a KV secrets engine of HashiCorp Vault or OpenBao.

    Attributes:
        url: such as ``https://vault:8200``.
        token: with read, create, update and delete below the mount.
        mount: path of the KV secrets engine.
        kv_version: 1, as the engine that the original's instructions enable; or 2.
        ca_cert: PEM file of roots for the server's certificate; None: those of the system.
    """

    url: str
    token: Secret
    mount: str = "keybroker"
    kv_version: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    ca_cert: str | None = None
    timeout_seconds: Wait = 10.0

    def __post_init__(self) -> None:
        _check_url("url", self.url, ("http", "https"))
        if not self.token.reveal():
            raise ValueError("token is empty")
        if not self.mount.strip("/"):
            raise ValueError("mount names no secrets engine")


class KmipVersion(StrEnum):
    """Versions of KMIP that are spoken."""

    V1_4 = "1.4"
    V2_0 = "2.0"


class KmipKeyManagerConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="kmip"):
    """Keys are kept by a KMIP server, reached over mutual TLS.

    Attributes:
        address: IP address or name that is connected to.
        hostname: name in the server's certificate; None: the address.
        username: sent with the password as credential in every request; None: none is sent.
        client_cert: PEM file of the client's certificate, and ``client_key`` that of its key.
        root_cert: PEM file of roots for the server's certificate.
    """

    version: KmipVersion = KmipVersion.V2_0
    address: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 5696
    hostname: str | None = None
    username: str | None = None
    password: Secret | None = None
    client_cert: str
    client_key: str
    root_cert: str
    timeout_seconds: Wait = 10.0

    def __post_init__(self) -> None:
        if not self.address:
            raise ValueError("address is empty")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")


KeyManagerConfig: TypeAlias = LocalKeyManagerConfig | VaultKeyManagerConfig | KmipKeyManagerConfig


class ApiVersion(StrEnum):
    """Versions of Trust Authority's appraisal API."""

    V1 = "v1"
    V2 = "v2"


class TrustAuthorityConfig(Section, kw_only=True, frozen=True):
    """Intel Trust Authority, or a service that speaks its API.

    Attributes:
        portal_url: where the keys of tokens are published, at ``/certs``; empty: nowhere, tokens
            are verified with ``trusted_jwt_certs`` alone.
        api_url: evidence in background mode goes there. Needs ``api_key``.
        api_key: None: evidence in background mode goes to the broker's own attestation service.
        issuers: values of ``iss`` that are taken; empty: whatever the portal's keys signed.
        trusted_jwt_certs: folder of PEM certificates whose keys sign tokens.
        trusted_ca_certs: folder of PEM certificates of authorities: for the TLS certificates of
            portal and API besides those of the system; and if there is any, the certificates in
            ``trusted_jwt_certs`` must be issued by one.
    """

    portal_url: str = DEFAULT_PORTAL_URL
    api_url: str = DEFAULT_API_URL
    api_key: Secret | None = None
    api_version: ApiVersion = ApiVersion.V2
    issuers: tuple[str, ...] = ()
    trusted_jwt_certs: str | None = None
    trusted_ca_certs: str | None = None
    timeout_seconds: Wait = 20.0

    def __post_init__(self) -> None:
        if self.portal_url:
            _check_url("portal_url", self.portal_url, ("https",))
        _check_url("api_url", self.api_url, ("https",))
        if self.api_key is not None and not self.api_key.reveal():
            raise ValueError("api_key is empty")


class LockoutConfig(Section, kw_only=True, frozen=True):
    """When repeated wrong passwords lock a user out.

    Attributes:
        max_attempts: wrong passwords within the interval that lock the user out.
        interval_minutes: after this long without a wrong password they are forgotten.
        lockout_minutes: how long the user stays locked out.
    """

    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    interval_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 5
    lockout_minutes: Annotated[int, msgspec.Meta(ge=1, le=10080)] = 15


class KeyTransferConfig(Section, kw_only=True, frozen=True):
    """The table; where it is absent nothing is served on ``/kbs/v1``.

    Attributes:
        admin_username: a user with every permission, made at start if there is none of the name.
        admin_password: its first password, 8 to 72 characters.
        token_validity_minutes: how long the token of ``POST /kbs/v1/token`` is valid.
        nonce_seconds: how long a nonce of the broker's own is valid.
        import_from: home folder of an original broker (``/opt/kbs``), whose keys and transfer
            policies are taken over, each once.
        trust_authority: None: tokens and evidence are the own attestation service's.
    """

    admin_username: str | None = None
    admin_password: Secret | None = None
    token_validity_minutes: Annotated[int, msgspec.Meta(ge=1, le=30)] = 5
    nonce_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 120
    import_from: str | None = None
    lockout: LockoutConfig = LockoutConfig()
    key_manager: KeyManagerConfig = LocalKeyManagerConfig()
    trust_authority: TrustAuthorityConfig | None = None

    def __post_init__(self) -> None:
        if (self.admin_username is None) != (self.admin_password is None):
            raise ValueError("admin_username and admin_password go together")


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in schemes:
        raise ValueError(f"{name} must be an address that begins with {' or '.join(schemes)}://")
