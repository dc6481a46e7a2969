"""The structs of the configuration: defaults, modes, and what must not be shown."""

import pytest

from keybroker.config.admin import AuthenticatedAuthorization, DenyAll, InsecureAllowAll
from keybroker.config.attestation import (
    AttestationTokenConfig,
    BuiltInAttestationConfig,
    BuiltInRvpsConfig,
    EarTokenConfig,
    IntelTrustAuthorityConfig,
)
from keybroker.config.http_server import HttpServerConfig, TlsProfile, TlsVersion, parse_socket
from keybroker.config.kbs import KbsConfig
from keybroker.config.plugins import AliyunConfig, Pkcs11PluginConfig, VaultConfig
from keybroker.config.section import Secret
from keybroker.config.storage import PostgresConfig, RedisConfig, StorageType


def test_the_defaults_are_trustees() -> None:
    config = KbsConfig(admin=DenyAll())
    assert config.http_server.sockets == ("127.0.0.1:8080",)
    assert config.http_server.insecure_http is False
    assert config.http_server.payload_bytes == 2 * 1024 * 1024
    assert config.http_server.tls_profile is TlsProfile.INTERMEDIATE
    assert config.http_server.workers >= 1
    assert config.storage_backend.storage_type is StorageType.MEMORY
    assert config.attestation_token == AttestationTokenConfig()
    assert config.plugins == ()
    built_in = config.attestation
    assert isinstance(built_in, BuiltInAttestationConfig)
    assert built_in.timeout == 5
    assert built_in.rvps_config == BuiltInRvpsConfig()
    token = built_in.attestation_token_broker
    assert token.duration_min == 5
    assert token.issuer_name == "CoCo-Attestation-Service"
    assert token.developer_name == "https://confidentialcontainers.org"
    assert token.profile_name == "tag:github.com,2024:confidential-containers/Trustee"
    assert token.build_name.startswith("keybroker ")
    assert token.verbose_token is True
    assert token.signer is None
    verifiers = built_in.verifier_config
    assert verifiers.tpm_verifier.trusted_ak_keys_dir == "/etc/tpm/trusted_ak_keys"
    assert verifiers.tpm_verifier.max_trusted_ak_keys == 100
    assert PostgresConfig().port == 5432
    assert VaultConfig(vault_url="", token=Secret("")).mount_path == "secret"


def test_what_is_ours_is_off_or_cautious_by_default() -> None:
    config = KbsConfig(admin=DenyAll())
    assert config.encryption is None
    assert config.release.allow_rsa1_5 is False
    assert config.metrics.resource_paths.value == "hashed"
    assert config.session.key_file is None


@pytest.mark.parametrize(
    ("token", "passport"),
    [
        (AttestationTokenConfig(), False),
        (AttestationTokenConfig(insecure_header_jwk=True), False),
        (AttestationTokenConfig(trusted_certs_paths=("ca.pem",)), True),
        (AttestationTokenConfig(trusted_jwk_sets=("https://as.example",)), True),
    ],
)
def test_passport_mode_is_trust_in_others_and_no_service(
    token: AttestationTokenConfig, passport: bool
) -> None:
    config = KbsConfig(admin=DenyAll(), attestation_token=token)
    assert config.passport_mode is passport
    assert (config.attestation is None) is passport
    own = KbsConfig(
        admin=DenyAll(), attestation_token=token, attestation_service=BuiltInAttestationConfig()
    )
    assert not own.passport_mode
    assert own.attestation is own.attestation_service


def test_no_secret_shows() -> None:
    shown = repr(
        (
            Secret("hunter2"),
            PostgresConfig(password=Secret("hunter2")),
            RedisConfig(url=Secret("redis://:hunter2@host")),
            VaultConfig(vault_url="https://vault", token=Secret("hunter2")),
            AliyunConfig(
                client_key=Secret("hunter2"),
                kms_instance_id="k",
                password=Secret("hunter2"),
                cert_pem="",
            ),
            Pkcs11PluginConfig(module="m", pin=Secret("hunter2")),
            IntelTrustAuthorityConfig(base_url="b", api_key=Secret("hunter2"), certs_file="c"),
        )
    )
    assert "hunter2" not in shown
    assert "hunter2" not in f"{Secret('hunter2')}"
    assert Secret("hunter2").reveal() == "hunter2"
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


@pytest.mark.parametrize(
    ("socket", "parts"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:8443", ("::1", 8443)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_a_socket_is_an_address_and_a_port(socket: str, parts: tuple[str, int]) -> None:
    assert parse_socket(socket) == parts


@pytest.mark.parametrize(
    "socket",
    ["", "8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
     "127.0.0.1:-1", "127.0.0.1:٣", "::1:8080", "[127.0.0.1]:80", "http://127.0.0.1:80"],
)  # fmt: skip
def test_whatever_else_is_no_socket(socket: str) -> None:
    with pytest.raises(ValueError, match="socket"):
        parse_socket(socket)


def test_tls_versions_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.3 is above"):
        HttpServerConfig(tls_min_version=TlsVersion.TLS_1_3, tls_max_version=TlsVersion.TLS_1_2)


def test_custom_fields_beside_a_profile_are_known() -> None:
    assert HttpServerConfig(tls_groups="X25519").overridden_tls_keys == ["tls_groups"]
    custom = HttpServerConfig(tls_profile=TlsProfile.CUSTOM, tls_groups="X25519")
    assert custom.overridden_tls_keys == []


@pytest.mark.parametrize(
    ("spelling", "type_"),
    [(spelling, member) for member in StorageType for spelling in (member.value, member.key)]
    + [("SQLite", StorageType.SQLITE)],
)
def test_storage_types_have_both_spellings(spelling: str, type_: StorageType) -> None:
    assert StorageType(spelling) is type_


def test_configurations_are_frozen() -> None:
    for section in (InsecureAllowAll(), HttpServerConfig(), EarTokenConfig()):
        with pytest.raises(AttributeError):
            section.x = 1  # type: ignore[union-attr]
    with pytest.raises(AttributeError):
        HttpServerConfig().insecure_http = True  # type: ignore[misc]
    assert AuthenticatedAuthorization.__struct_config__.frozen
