"""Say in words what a configuration means, and what in it deserves a second look.

Nothing is opened, fetched or started; what needs that is checked where it happens, at start.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from keybroker.config.admin import AuthenticatedAuthorization, DenyAll, InsecureAllowAll
from keybroker.config.attestation import (
    BuiltInAttestationConfig,
    BuiltInRvpsConfig,
    GrpcAttestationConfig,
)
from keybroker.config.http_server import TlsProfile
from keybroker.config.kbs import KbsConfig
from keybroker.config.key_transfer import KeyTransferConfig
from keybroker.config.plugins import KvStorageConfig, PluginConfig, ResourcePluginConfig
from keybroker.config.storage import KeySource, StorageType
from keybroker.config.verifiers import KdsSourceConfig, VerifierConfig
from keybroker.config.workloads import WorkloadsConfig


@dataclass(frozen=True, slots=True)
class Review:
    """What a configuration means.

    Attributes:
        facts: topic → sentences.
        warnings: what is allowed but seldom meant, or never in production.
        problems: what would keep the broker from starting.
    """

    facts: Mapping[str, Sequence[str]]
    warnings: Sequence[str]
    problems: Sequence[str]


def review(config: KbsConfig) -> Review:
    """Read the configuration as an operator would."""
    facts = {
        "listens": list(_listening(config)),
        "administration": list(_administration(config)),
        "storage": list(_storage(config)),
        "attestation": list(_attestation(config)),
        "tokens": list(_tokens(config)),
        "plugins": [_plugin(plugin) for plugin in config.plugins] or ["none"],
        "service": list(_service(config)),
    }
    if config.key_transfer is not None:
        facts["key transfer"] = list(_key_transfer(config.key_transfer))
    if config.workloads is not None:
        facts["workloads"] = list(_workloads(config.workloads))
    return Review(facts, list(_warnings(config)), list(_problems(config)))


def named_files(config: KbsConfig) -> Iterator[tuple[str, Path]]:
    """Yield the files that must be readable at start, each with the path of its key."""
    http = config.http_server
    if not http.insecure_http:
        for key in ("private_key", "certificate"):
            if path := getattr(http, key):
                yield f"http_server.{key}", Path(path)
    for trusted in config.attestation_token.trusted_certs_paths:
        yield "attestation_token.trusted_certs_paths", Path(trusted)
    if isinstance(config.attestation, BuiltInAttestationConfig):
        signer = config.attestation.attestation_token_broker.signer
        if signer is not None:
            prefix = "attestation_service.attestation_token_broker.signer"
            yield f"{prefix}.key_path", Path(signer.key_path)
            if signer.cert_path is not None:
                yield f"{prefix}.cert_path", Path(signer.cert_path)
        for key, root in _extra_roots(config.attestation.verifier_config):
            where = f"attestation_service.verifier_config.{key}.extra_trusted_roots"
            yield where, Path(root)
    if isinstance(config.admin, AuthenticatedAuthorization):
        for provider in config.admin.authentication.bearer_jwt.identity_providers:
            for uri in (provider.public_key_uri, provider.jwk_set_uri):
                if uri and not uri.startswith("https://"):
                    yield (
                        "admin.authentication.bearer_jwt.identity_providers",
                        Path(urlsplit(uri).path if uri.startswith("file://") else uri),
                    )
    if config.session.key_file is not None:
        yield "session.key_file", Path(config.session.key_file)


def _listening(config: KbsConfig) -> Iterator[str]:
    http = config.http_server
    scheme = "http" if http.insecure_http else "https"
    yield ", ".join(f"{scheme}://{socket}" for socket in http.sockets)
    yield f"request bodies up to {http.payload_request_size} MiB"
    if config.storage_backend.storage_type is StorageType.MEMORY:
        yield "one worker process, since memory cannot be shared"
    else:
        yield f"{http.worker_count or 'as many'} worker process(es)" + (
            "" if http.worker_count else " as there are CPUs"
        )
    if http.insecure_http:
        yield "without TLS"
        return
    versions = {TlsProfile.MODERN: "TLS 1.3 only"}.get(http.tls_profile, "TLS 1.2 and 1.3")
    if http.tls_min_version or http.tls_max_version:
        oldest = http.tls_min_version or ("1.3" if http.tls_profile is TlsProfile.MODERN else "1.2")
        newest = http.tls_max_version or "1.3"
        versions = f"TLS {oldest} only" if oldest == newest else f"TLS {oldest} to {newest}"
    yield f"TLS profile {http.tls_profile.value}: {versions}"
    yield f"ciphers: {http.tls_ciphers or 'those of the profile'}"
    yield f"key exchange groups: {http.tls_groups or 'those that OpenSSL prefers'}"


def _administration(config: KbsConfig) -> Iterator[str]:
    match config.admin:
        case InsecureAllowAll():
            yield "everybody who reaches the broker administrates it"
        case DenyAll():
            yield "nobody administrates the broker"
        case AuthenticatedAuthorization() as admin:
            for provider in admin.authentication.bearer_jwt.identity_providers:
                keys = provider.public_key_uri or provider.jwk_set_uri or "no key"
                yield (
                    f"tokens of issuer {provider.issuer or '(any)'}"
                    f" for audience {provider.audience or '(any)'}, signed by {keys}"
                )
            for rule in admin.authorization.regex_acl.acls:
                yield f"role {rule.role} may use {rule.allowed_endpoints or '(nothing)'}"


def _place(config: KbsConfig, type_: StorageType) -> str:
    table = getattr(config.storage_backend.backends, type_.key, None)
    for name in ("path", "dir_path", "file_dir_path"):
        if hasattr(table, name):
            return f"{type_.value} at {getattr(table, name)}"
    return "the memory of the process" if type_ is StorageType.MEMORY else type_.value


def is_encrypted(config: KbsConfig, type_: StorageType) -> bool:
    """Whether values in a back end of that type are encrypted."""
    if config.encryption is None or type_ is StorageType.MEMORY:
        return False
    return type_ is not StorageType.LOCAL_FS or config.encryption.encrypt_local_fs


def _storage(config: KbsConfig) -> Iterator[str]:
    type_ = config.storage_backend.storage_type
    yield f"{_place(config, type_)}, {'encrypted' if is_encrypted(config, type_) else 'in clear'}"
    if config.session_storage_type is not None:
        yield f"sessions in {_place(config, config.session_storage_type)}"
    if isinstance(config.attestation, BuiltInAttestationConfig):
        if (own := config.attestation.storage_type) is not None:
            yield f"attestation policies and reference values in {_place(config, own)}"
        rvps = config.attestation.rvps_config
        if isinstance(rvps, BuiltInRvpsConfig) and rvps.storage_type is not None:
            yield f"reference values in {_place(config, rvps.storage_type)}"
    if (encryption := config.encryption) is not None:
        from_file = encryption.source is KeySource.FILE
        origin = encryption.path if from_file else f"the variable {encryption.variable}"
        yield f"master key from {origin}"


def _attestation(config: KbsConfig) -> Iterator[str]:
    match config.attestation:
        case None:
            yield "none: releases on tokens of other services alone (passport mode)"
        case BuiltInAttestationConfig() as built_in:
            absent = config.attestation_service is None
            yield "by the built-in service" + (", as no other is configured" if absent else "")
            token = built_in.attestation_token_broker
            yield f"tokens of issuer {token.issuer_name}, valid for {token.duration_min} min"
            yield "signed by " + (token.signer.key_path if token.signer else "a key of its own")
            yield f"{built_in.timeout} min from auth to attest"
            rvps = built_in.rvps_config
            if isinstance(rvps, BuiltInRvpsConfig):
                yield "reference values built in"
            else:
                yield f"reference values at {rvps.address}"
            yield from _verifiers(built_in.verifier_config)
        case GrpcAttestationConfig() as remote:
            yield f"by the service at {remote.as_addr}, up to {remote.pool_size} connections"
        case trust_authority:
            yield f"by Intel Trust Authority at {trust_authority.base_url}"


def _verifiers(config: VerifierConfig) -> Iterator[str]:
    sources = ", ".join(
        source.base_url if isinstance(source, KdsSourceConfig) else source.path
        for source in config.snp_verifier.vcek_sources
    )
    yield f"SEV-SNP: AMD's roots, certificates from {sources}"
    yield from (
        f"SEV-SNP: also trusts the root in {root}"
        for root in config.snp_verifier.extra_trusted_roots
    )
    dcap = config.dcap_verifier
    service = dcap.collateral_service or f"the service of {dcap.qcnl_conf}, else Intel PCS"
    yield f"TDX and SGX: collateral from {service}"
    yield from (f"TDX and SGX: also trusts the root in {root}" for root in dcap.extra_trusted_roots)
    if config.sample_verifier.enabled:
        yield "sample evidence, which proves nothing, is taken too"


def _extra_roots(config: VerifierConfig) -> Iterator[tuple[str, str]]:
    """Yield each root that is trusted beside the vendors' own, with the table that names it."""
    for key in config.__struct_fields__:
        for root in getattr(getattr(config, key), "extra_trusted_roots", ()):
            yield key, root


def _tokens(config: KbsConfig) -> Iterator[str]:
    token = config.attestation_token
    yield from (f"trusted root: {path}" for path in token.trusted_certs_paths)
    yield from (f"trusted key set: {uri}" for uri in token.trusted_jwk_sets)
    if token.insecure_header_jwk:
        yield "any key that stands in a token's header"
    if config.attestation is not None:
        yield "those of the attestation service"


def _plugin(plugin: PluginConfig) -> str:
    name = str(type(plugin).__struct_config__.tag)
    if isinstance(plugin, ResourcePluginConfig):
        backend = plugin.backend
        if isinstance(backend, KvStorageConfig):
            return "resource: secrets in the broker's storage"
        return f"resource: secrets in {type(backend).__struct_config__.tag}"
    return name


def _service(config: KbsConfig) -> Iterator[str]:
    if config.metrics.enabled:
        yield f"/metrics with resource paths {config.metrics.resource_paths.value}"
    if config.openapi.enabled:
        yield "/openapi.json and its page"
    yield f"log from level {config.log.level.value}, format {config.log.format.value}"


def _key_transfer(config: KeyTransferConfig) -> Iterator[str]:
    yield f"on /kbs/v1; keys are kept by {config.key_manager.__struct_config__.tag}"
    authority = config.trust_authority
    yield "tokens of the broker's own attestation service" + (
        f", and of Trust Authority at {authority.portal_url}"
        if authority is not None and authority.portal_url
        else ""
    )
    if authority is not None and authority.api_key is not None:
        yield f"evidence of SGX and TDX is sent to {authority.api_url}"
    yield (
        f"{config.lockout.max_attempts} wrong passwords within {config.lockout.interval_minutes}"
        f" minutes lock a user out for {config.lockout.lockout_minutes}"
    )


def _workloads(config: WorkloadsConfig) -> Iterator[str]:
    yield f"below {config.prefix}" + (f", and on {config.socket}" if config.socket else "")
    yield f"registered by {'everybody' if config.open_registration else 'administrators'}"


def _warnings(config: KbsConfig) -> Iterator[str]:
    http, token = config.http_server, config.attestation_token
    if http.insecure_http:
        yield "http_server.insecure_http: tokens and administrators' requests travel in clear"
    if not http.insecure_http and http.overridden_tls_keys:
        yield (
            f"http_server.tls_profile is {http.tls_profile.value!r}, but"
            f" {', '.join(http.overridden_tls_keys)} override(s) it; say 'custom' if so meant"
        )
    if isinstance(config.admin, InsecureAllowAll):
        yield "admin: InsecureAllowAll lets everybody set policies and secrets"
    if token.insecure_header_jwk:
        yield "attestation_token.insecure_header_jwk: anybody can sign a token that is believed"
    type_ = config.storage_backend.storage_type
    if type_ is StorageType.MEMORY:
        yield "storage_backend: Memory loses everything at the end and allows one worker only"
    elif not is_encrypted(config, type_):
        yield f"storage_backend: secrets are stored in clear in {_place(config, type_)}"
    if config.encryption is not None and config.encryption.accept_plaintext:
        yield "encryption.accept_plaintext: who can write to the storage can plant values"
    if config.release.allow_rsa1_5:
        yield "release.allow_rsa1_5: RSA1_5 padding is known to be weak"
    if config.workloads is not None and config.workloads.open_registration:
        yield "workloads.open_registration: everybody can register, and replace those of others"
    if config.workloads is not None and config.workloads.allow_debug:
        yield "workloads.allow_debug: hosts can read the passphrases of guests that they may debug"
    if isinstance(config.attestation, BuiltInAttestationConfig):
        verifiers = config.attestation.verifier_config
        for key, root in _extra_roots(verifiers):
            yield f"verifier_config.{key}: evidence under the root in {root} is trusted"
        if verifiers.dcap_verifier.use_secure_cert is False:
            yield "verifier_config.dcap_verifier: the collateral service's TLS is not verified"
    if not config.plugins:
        yield "plugins: none, so this broker serves no secret on /kbs/v0"


def _problems(config: KbsConfig) -> Iterator[str]:
    http = config.http_server
    if not http.insecure_http and not (http.private_key and http.certificate):
        yield "http_server: HTTPS needs private_key and certificate (or insecure_http = true)"
    if isinstance(config.admin, AuthenticatedAuthorization):
        providers = config.admin.authentication.bearer_jwt.identity_providers
        where = "admin.authentication.bearer_jwt.identity_providers"
        if not providers:
            yield f"{where}: is empty, so nobody can authenticate"
        for index, provider in enumerate(providers):
            if not provider.public_key_uri and not provider.jwk_set_uri:
                yield f"{where}[{index}]: needs public_key_uri or jwk_set_uri"
