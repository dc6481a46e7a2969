"""Files of the shapes that Trustee's users have, and what is said about files that are wrong."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keybroker.config.admin import AuthenticatedAuthorization, DenyAll, InsecureAllowAll
from keybroker.config.attestation import (
    AttestationServiceFileConfig,
    BuiltInAttestationConfig,
    BuiltInRvpsConfig,
    GrpcAttestationConfig,
    GrpcRemoteRvpsConfig,
    IntelTrustAuthorityConfig,
    RvpsFileConfig,
)
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import MAX_FILE_BYTES, load_config, load_with_notes
from keybroker.config.plugins import (
    ExternalPluginConfig,
    KvStorageConfig,
    NebulaCaPluginConfig,
    ResourcePluginConfig,
    VaultConfig,
)
from keybroker.config.storage import StorageType
from keybroker.config.verifiers import OfflineStoreSourceConfig, RemoteNvidiaConfig
from keybroker.model.errors import ConfigError

_BUILT_IN = """
session_storage_type = "memory"

[http_server]
sockets = ["0.0.0.0:9443", "[::1]:9443"]
private_key = "/srv/broker/tls.key"
certificate = "/srv/broker/tls.pem"
insecure_http = false
payload_request_size = 4
worker_count = 3

[attestation_token]
trusted_certs_paths = ["/srv/broker/roots.pem"]
extra_teekey_paths = ["/attester_runtime_data/tee-pubkey"]

[attestation_service]
type = "coco_as_builtin"
timeout = 7

[attestation_service.attestation_token_broker]
duration_min = 9
issuer_name = "somebody"

[attestation_service.attestation_token_broker.signer]
key_path = "/srv/broker/token.key"
cert_path = "/srv/broker/token-chain.pem"

[attestation_service.rvps_config]
type = "BuiltIn"
storage_type = "LocalJson"

[attestation_service.rvps_config.extractors]
swid_extractor = {}

[attestation_service.verifier_config.tpm_verifier]
trusted_ak_keys_dir = "/srv/broker/ak"
max_trusted_ak_keys = 12

[attestation_service.verifier_config.nvidia_verifier]
type = "Remote"
verifier_url = "https://nras.example/attest"

[[attestation_service.verifier_config.snp_verifier.vcek_sources]]
type = "OfflineStore"
path = "/srv/broker/kds"

[storage_backend]
storage_type = "local_fs"
backends.local_fs.dir_path = "/srv/broker/storage"
backends.local_json.file_dir_path = "/srv/broker/reference"

[admin]
authorization_mode = "AuthenticatedAuthorization"

[admin.authentication.bearer_jwt]
identity_providers = [
  { issuer = "me", audience = "kbs", public_key_uri = "/srv/broker/admin.pem" },
]

[admin.authorization.regex_acl]
acls = [{ role = "admin", allowed_endpoints = "^/kbs/.+$" }]

[[plugins]]
name = "resource"
storage_backend_type = "kvstorage"
"""


def _write(directory: Path, text: str, suffix: str = ".toml") -> Path:
    path = directory / f"config{suffix}"
    path.write_text(text)
    return path


def _load(directory: Path, text: str, suffix: str = ".toml") -> KbsConfig:
    return load_config(_write(directory, text, suffix), KbsConfig)


def _refusal(directory: Path, text: str, suffix: str = ".toml") -> str:
    with pytest.raises(ConfigError) as refusal:
        _load(directory, text, suffix)
    said = refusal.value.diagnostics()
    assert str(directory / f"config{suffix}") in said
    assert str(directory) not in refusal.value.detail
    return said


def test_a_file_with_everything_of_the_built_in_service(tmp_path: Path) -> None:
    config = _load(tmp_path, _BUILT_IN)
    assert config.http_server.addresses == [("0.0.0.0", 9443), ("::1", 9443)]
    assert config.http_server.payload_bytes == 4 * 1024 * 1024
    assert config.http_server.workers == 3
    assert config.session_storage_type is StorageType.MEMORY
    assert config.storage_backend.storage_type is StorageType.LOCAL_FS
    assert config.storage_backend.backends.local_fs is not None
    assert config.storage_backend.backends.local_fs.dir_path == "/srv/broker/storage"
    service = config.attestation_service
    assert isinstance(service, BuiltInAttestationConfig)
    assert service.timeout == 7
    assert service.attestation_token_broker.signer is not None
    assert isinstance(service.rvps_config, BuiltInRvpsConfig)
    assert service.rvps_config.storage_type is StorageType.LOCAL_JSON
    verifiers = service.verifier_config
    assert isinstance(verifiers.nvidia_verifier, RemoteNvidiaConfig)
    assert verifiers.snp_verifier.vcek_sources == (
        OfflineStoreSourceConfig(path="/srv/broker/kds"),
    )
    assert isinstance(config.admin, AuthenticatedAuthorization)
    assert config.admin.authorization.regex_acl.acls[0].role == "admin"
    assert config.plugins == (ResourcePluginConfig(),)
    assert not config.passport_mode


def test_toml_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    values = tomllib.loads(_BUILT_IN)
    configs = [
        _load(tmp_path, _BUILT_IN),
        _load(tmp_path, json.dumps(values), ".json"),
        _load(tmp_path, yaml.safe_dump(values), ".yaml"),
        _load(tmp_path, yaml.safe_dump(values), ".yml"),
        _load(tmp_path, json.dumps(values), ".yaml"),
        _load(tmp_path, "\ufeff" + _BUILT_IN, ".TOML"),
    ]
    assert all(config == configs[0] for config in configs)


def test_a_passport_file_has_no_attestation_service(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        [http_server]
        sockets = ["127.0.0.1:50002"]
        insecure_http = true
        [admin]
        authorization_mode = "DenyAll"
        [attestation_token]
        trusted_certs_paths = ["./work/ca-cert.pem"]
        [storage_backend]
        storage_type = "LocalFs"
        [storage_backend.backends.local_fs]
        dir_path = "./work/storage"
        [[plugins]]
        name = "resource"
        """,
    )
    assert config.passport_mode
    assert config.attestation is None
    # Paths stay relative to the working directory.
    assert config.attestation_token.trusted_certs_paths == ("./work/ca-cert.pem",)


@pytest.mark.parametrize("profile", ["old", "intermediate", "modern", "custom"])
def test_tls_profiles_load(profile: str, tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        f"""
        [http_server]
        private_key = "k"
        certificate = "c"
        tls_profile = "{profile}"
        tls_min_version = "1.3"
        tls_ciphers = "TLS_AES_256_GCM_SHA384"
        tls_groups = "X25519MLKEM768:X25519"
        [admin]
        type = "DenyAll"
        [storage_backend]
        storage_type = "memory"
        [attestation_service]
        type = "coco_as_grpc"
        """,
    )
    assert config.http_server.tls_profile.value == profile
    assert config.admin == DenyAll()
    assert config.attestation_service == GrpcAttestationConfig()


@pytest.mark.parametrize("spelling", ["intel_ta", "IntelTA"])
def test_an_intel_trust_authority_file(spelling: str, tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        f"""
        [admin]
        authorization_mode = "InsecureAllowAll"
        [attestation_service]
        type = "{spelling}"
        base_url = "https://api.example"
        api_key = "key-of-mine"
        certs_file = "https://portal.example"
        allow_unmatched_policy = true
        policy_ids = ["a"]
        """,
    )
    service = config.attestation_service
    assert isinstance(service, IntelTrustAuthorityConfig)
    assert service.api_key.reveal() == "key-of-mine"
    assert "key-of-mine" not in repr(config)
    assert config.admin == InsecureAllowAll()


@pytest.mark.parametrize("spelling", ["coco_as_builtin", "CoCoASBuiltIn"])
def test_a_remote_reference_value_service(spelling: str, tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        f"""
        [admin]
        authorization_mode = "DenyAll"
        [attestation_service]
        type = "{spelling}"
        rvps_config = {{ type = "GrpcRemote", address = "http://rvps:50003" }}
        """,
    )
    assert isinstance(config.attestation_service, BuiltInAttestationConfig)
    assert config.attestation_service.rvps_config == GrpcRemoteRvpsConfig(
        address="http://rvps:50003"
    )


def test_plugins_of_all_kinds(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        admin = { authorization_mode = "DenyAll" }
        [[plugins]]
        name = "sample"
        item = "value1"
        [[plugins]]
        name = "resource"
        storage_backend_type = "Vault"
        vault_url = "https://vault:8200"
        token = "hvs.token"
        ca_certs = ["/ca.pem"]
        [[plugins]]
        name = "nebula-ca"
        [plugins.self_signed_ca]
        duration = "4380h0m0s"
        [[plugins]]
        name = "pkcs11"
        module = "/usr/lib/softhsm.so"
        pin = "1234"
        [[plugins]]
        name = "external"
        backends = [
          { name = "echo", endpoint = "http://127.0.0.1:50051", tls_mode = "insecure" },
        ]
        [[plugins]]
        name = "provisioner"
        [[plugins]]
        name = "ResourceStorage"
        type = "KvStorage"
        """,
    )
    vault = config.plugins[1]
    assert isinstance(vault, ResourcePluginConfig)
    assert isinstance(vault.backend, VaultConfig)
    assert vault.backend.token.reveal() == "hvs.token"
    assert vault.backend.ca_certs == ("/ca.pem",)
    assert isinstance(config.plugins[2], NebulaCaPluginConfig)
    assert config.plugins[2].self_signed_ca.duration == "4380h0m0s"
    assert isinstance(config.plugins[4], ExternalPluginConfig)
    assert config.plugins[6] == ResourcePluginConfig(backend=KvStorageConfig())
    assert "1234" not in repr(config)


def test_files_of_the_services_on_their_own(tmp_path: Path) -> None:
    service = load_with_notes(
        _write(
            tmp_path,
            json.dumps(
                {
                    "work_dir": "/var/lib/as",
                    "policy_engine": "opa",
                    "rvps_config": {"type": "BuiltIn", "storage_type": "LocalFs"},
                    "attestation_token_broker": {"type": "Ear", "duration_min": 6},
                    "verifier_config": {"dcap_verifier": {"collateral_service": "https://pccs"}},
                    "storage_backend": {
                        "storage_type": "LocalFs",
                        "backends": {"local_fs": {"dir_path": "/s"}, "postgres": {}, "redis": {}},
                    },
                }
            ),
            ".json",
        ),
        AttestationServiceFileConfig,
    )
    assert service.config.attestation_token_broker.duration_min == 6
    assert [note.split(":")[0] for note in service.notes] == [
        "work_dir",
        "policy_engine",
        "attestation_token_broker.type",
    ]
    rvps = load_config(
        _write(tmp_path, '{"storage": {"storage_type": "Memory"}, "extractors": {}}', ".json"),
        RvpsFileConfig,
    )
    assert rvps.storage.storage_type is StorageType.MEMORY


def test_every_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    said = _refusal(
        tmp_path,
        """
        [http_serfer]
        [http_server]
        sokets = []
        [admin]
        authorization_mode = "DenyAll"
        role = "x"
        [storage_backend.backends.local_sf]
        [[plugins]]
        name = "resource"
        storage_backend_type = "Vault"
        vault_url = "u"
        tokn = "t"
        """,
    )
    for sentence in (
        "http_serfer: unknown key; did you mean 'http_server'?",
        "http_server.sokets: unknown key; did you mean 'sockets'?",
        "admin.role: unknown key; there is none to be set here",
        "storage_backend.backends.local_sf: unknown key; did you mean 'local_fs'?",
        "plugins[0].tokn: unknown key; did you mean 'token'?",
    ):
        assert sentence in said
    assert "is missing" not in said


_ILL_TYPED: list[tuple[str, Any, str]] = [
    ("http_server", 1, "must be a table, but is an integer"),
    ("http_server.sockets", "127.0.0.1:1", "must be an array, but is a string"),
    ("http_server.sockets[0]", 8080, "must be a string, but is an integer"),
    ("http_server.insecure_http", "no", "must be true or false, but is a string"),
    ("http_server.payload_request_size", 0, "must be an integer from 1 to 1024, but is 0"),
    ("http_server.payload_request_size", 2.5, "must be an integer from 1 to 1024, but is a number"),
    ("http_server.payload_request_size", True, "but is a boolean"),
    ("http_server.worker_count", -1, "must be an integer from 1 to 1024, but is -1"),
    ("http_server.tls_profile", "modem", "did you mean 'modern'?"),
    ("http_server.tls_min_version", 1.2, "must be one of 1.2, 1.3 in quotes, but is a number"),
    ("http_server.tls_min_version", "1.1", "'1.1' is not a value"),
    ("http_server.private_key", ["k"], "must be a string, but is an array"),
    ("attestation_token.trusted_certs_paths", {}, "must be an array, but is a table"),
    ("attestation_service.type", 5, "must be a string, but is an integer"),
    ("attestation_service.type", "coco_as_buildin", "did you mean 'coco_as_builtin'?"),
    ("attestation_service", {}, "'type' is missing; it is one of coco_as_builtin"),
    ("storage_backend.storage_type", "LocalFS", "did you mean 'LocalFs'?"),
    ("storage_backend.backends.postgres.port", 65536, "from 0 to 65535, but is 65536"),
    ("storage_backend.backends.redis.url", 1, "must be a string, but is an integer"),
    ("session_storage_type", [], "must be one of Memory"),
    ("plugins", {}, "must be an array, but is a table"),
    ("plugins[0]", "resource", "must be a table, but is a string"),
    ("plugins[0].name", "resorce", "did you mean 'resource'?"),
    ("limits.request_timeout_seconds", 0, "must be a number above 0 up to 86400, but is 0"),
    ("admin.authorization_mode", "AllowAll", "did you mean 'InsecureAllowAll'?"),
    ("admin", None, "must be a table, but is empty (null)"),
    ("encryption", {}, 'path is needed where source is "file"'),
    ("http_server.sockets", ["localhost:80"], "does not begin with an IP address"),
    ("http_server.sockets", [], "at least one address"),
]


@pytest.mark.parametrize(("path", "value", "said"), _ILL_TYPED)
def test_an_ill_typed_value_is_said_in_words(
    path: str, value: Any, said: str, tmp_path: Path
) -> None:
    document: Any = value
    for part in reversed(re.findall(r"\[0\]|[^.\[\]]+", path)):
        document = [document] if part == "[0]" else {part: document}
    document.setdefault("admin", {"authorization_mode": "DenyAll"})
    refusal = _refusal(tmp_path, json.dumps(document), ".json")
    where = path.partition(".sockets")[0] if isinstance(value, list) and "[0]" not in path else path
    line = next(line for line in refusal.splitlines()[1:] if line.strip().startswith(where))
    assert said in line


def test_required_keys_are_named(tmp_path: Path) -> None:
    assert "admin: is missing" in _refusal(tmp_path, "")
    said = _refusal(tmp_path, '[attestation_service]\ntype = "intel_ta"\n[admin]\n')
    for key in ("base_url", "api_key", "certs_file"):
        assert f"attestation_service.{key}: is missing" in said
    assert "admin: 'authorization_mode' is missing" in said


def test_a_key_in_two_spellings_is_refused(tmp_path: Path) -> None:
    said = _refusal(
        tmp_path, '[admin]\nauthorization_mode = "DenyAll"\ntype = "InsecureAllowAll"\n'
    )
    assert "admin.type: is another spelling of 'authorization_mode'" in said


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("a = \n", ".toml", "line 1"),
        ("a = 1\na = 2\n", ".toml", "line 2"),
        ("{", ".json", "line 1 column 2"),
        ('{"admin": {}, "admin": {}}', ".json", "'admin' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', ".json", "'b' stands twice"),
        ("[]", ".json", "must be a table"),
        ("a: 1\na: 2", ".yaml", "'a' stands twice in one table at line 2"),
        ("a: {b: 1, b: 2}", ".yaml", "'b' stands twice"),
        ("a: &x [1]\nb: *x", ".yaml", "aliases are not taken here at line 2"),
        ("1: 2", ".yaml", "a key must be a string"),
        ("a: !!python/object/apply:os.system [x]", ".yaml", "could not determine a constructor"),
        ("a: b: c", ".yaml", "line 1"),
        ("- a", ".yaml", "must be a table"),
        ("", ".yaml", "admin: is missing"),
        ("a = 1", ".ini", "suffix must be one of .toml, .json, .yaml, .yml"),
        ("[" * 50_000, ".json", "nested too deep"),
        ("[" * 50_000, ".yaml", "nested too deep"),
        ("a = " + "[" * 50_000, ".toml", "nested too deep"),
        ('{"a":' * 40 + "1" + "}" * 40, ".json", "nested too deep"),
        ("# " + "x" * MAX_FILE_BYTES, ".toml", "larger than"),
    ],
)
def test_a_file_that_is_no_configuration(text: str, suffix: str, said: str, tmp_path: Path) -> None:
    assert said in _refusal(tmp_path, text, suffix)


def test_a_file_that_is_not_utf_8_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(path, KbsConfig)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "absent.toml", KbsConfig)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, KbsConfig)


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "name", "http_server", "admin", "plugins", "storage_backend", "backends",
             "sqlite", "path", "authorization_mode", "attestation_service", "timeout", "x"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(values=st.dictionaries(st.sampled_from(KbsConfig.__struct_fields__), _VALUES, max_size=5))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_values_are_taken_or_refused_in_words(values: dict[str, Any], tmp_path: Path) -> None:
    path = _write(tmp_path, json.dumps(values), ".json")
    try:
        load_config(path, KbsConfig)
    except ConfigError as error:
        assert error.diagnostics().count("\n") >= 1


@given(raw=st.binary(max_size=60), suffix=st.sampled_from([".toml", ".json", ".yaml"]))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_a_configuration_or_an_error(raw: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):  # never valid: admin is missing
        load_config(path, KbsConfig)


def test_the_structs_stand_without_the_loader() -> None:
    # What tests and `up` build by hand goes through no file.
    assert msgspec.structs.replace(KbsConfig(admin=DenyAll()), plugins=()).admin == DenyAll()
