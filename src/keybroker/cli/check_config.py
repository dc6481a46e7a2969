"""``keybroker check-config FILE``: say what a configuration means, without starting anything."""

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Iterator

from keybroker.api.tls import groups, suites, versions
from keybroker.config.admin import AuthenticatedAuthorization
from keybroker.config.attestation import BuiltInAttestationConfig, BuiltInRvpsConfig
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_with_notes
from keybroker.config.review import named_files, review
from keybroker.config.storage import StorageBackendConfig, StorageType
from keybroker.kbs.acl import AccessRules
from keybroker.kbs.plugins.registry import make_plugins
from keybroker.model.errors import ConfigError
from keybroker.storage.encryption import load_keyring
from keybroker.storage.provider import check_storage_type, open_storage
from keybroker.workloads.store import check_encryption


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser("check-config", help="say what a configuration file means")
    parser.add_argument(
        "file",
        nargs="?",
        default=os.environ.get("KBS_CONFIG_FILE"),
        help="TOML, JSON or YAML, told by the suffix (default: $KBS_CONFIG_FILE)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the file means; 0 where a broker would start from it, else 1."""
    try:
        if not options.file:
            raise ConfigError("no configuration file: give FILE or set KBS_CONFIG_FILE")
        loaded = load_with_notes(options.file, KbsConfig)
    except ConfigError as error:
        if not options.json:
            raise
        problems = [line.strip() for line in error.diagnostics().splitlines()]
        print(json.dumps({"valid": False, "problems": problems}, ensure_ascii=False, indent=2))
        return 1
    config = loaded.config
    reviewed = review(config)
    problems = [*reviewed.problems, *_refusals(config)]
    warnings = [*reviewed.warnings, *loaded.notes, *_unreadable(config)]
    if options.json:
        document = {
            "valid": not problems,
            "facts": reviewed.facts,
            "warnings": warnings,
            "problems": problems,
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for topic, sentences in reviewed.facts.items():
            for index, sentence in enumerate(sentences):
                print(f"{'' if index else topic + ':':<16}{sentence}")
        for warning in warnings:
            print(f"{'warning:':<16}{warning}")
        for problem in problems:
            print(f"{'problem:':<16}{problem}")
        print("a broker would not start from this file" if problems else "the file is valid")
    return 1 if problems else 0


def _unreadable(config: KbsConfig) -> Iterator[str]:
    for key, path in named_files(config):
        if not os.access(path, os.R_OK):
            yield f"{key}: {path} cannot be read here"


def _refusals(config: KbsConfig) -> Iterator[str]:
    """Yield what the parts of the broker would refuse at start."""
    checks = (
        _check_tls,
        _check_rules,
        _check_storage,
        _check_attestation,
        _check_plugins,
        _check_workloads,
    )
    for check in checks:
        try:
            check(config)
        except ConfigError as error:
            yield error.diagnostics()


def _check_tls(config: KbsConfig) -> None:
    http = config.http_server
    checks: tuple[Callable[..., object], ...] = (versions, suites, groups)
    for check in () if http.insecure_http else checks:
        check(http)


def _check_rules(config: KbsConfig) -> None:
    if isinstance(config.admin, AuthenticatedAuthorization):
        AccessRules(config.admin.authorization.regex_acl.acls)


def _check_storage(config: KbsConfig) -> None:
    types: list[StorageType | None] = [
        config.storage_backend.storage_type,
        config.session_storage_type,
    ]
    if isinstance(config.attestation, BuiltInAttestationConfig):
        types.append(config.attestation.storage_type)
        rvps = config.attestation.rvps_config
        types.append(rvps.storage_type if isinstance(rvps, BuiltInRvpsConfig) else None)
    for type_ in types:
        if type_ is not None:
            check_storage_type(config.storage_backend, type_)
    if config.encryption is not None:
        load_keyring(config.encryption)


def _check_attestation(config: KbsConfig) -> None:
    service = config.attestation
    if service is not None and not isinstance(service, BuiltInAttestationConfig):
        raise ConfigError(
            f"attestation_service.type {type(service).__struct_config__.tag!r}: this build has the"
            ' built-in attestation service (type = "coco_as_builtin")'
        )
    if service is not None and not isinstance(service.rvps_config, BuiltInRvpsConfig):
        raise ConfigError(
            "attestation_service.rvps_config: this build keeps reference values itself"
        )


def _check_plugins(config: KbsConfig) -> None:
    asyncio.run(_make_plugins(config))


def _check_workloads(config: KbsConfig) -> None:
    if config.workloads is not None:
        check_encryption(config)


async def _make_plugins(config: KbsConfig) -> None:
    # In memory: plugins are made for what they refuse, and nothing else happens.
    storage = open_storage(StorageBackendConfig())
    await make_plugins(config.plugins, storage)
    await storage.close()
