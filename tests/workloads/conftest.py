"""Fixtures of registered workloads: software platforms, and brokers that trust their roots."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import BrokerFactory, RunningBroker

from keybroker.cli.admin_token import issue_admin_token
from keybroker.cli.keygen import write_admin_key_pair
from keybroker.softtee.sev import SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform

WorkloadBrokerFactory = Callable[..., RunningBroker]

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def sev_platform() -> SoftwareSevPlatform:
    """A software SEV platform under a root of its own."""
    return SoftwareSevPlatform.create()


@pytest.fixture(scope="session")
def milan() -> SoftwareSnpPlatform:
    """A software Milan platform under a root of its own."""
    return SoftwareSnpPlatform.create("Milan")


@pytest.fixture(scope="session")
def genoa() -> SoftwareSnpPlatform:
    """A software Genoa platform under a root of its own."""
    return SoftwareSnpPlatform.create("Genoa")


@pytest.fixture
def roots(
    tmp_path: Path,
    sev_platform: SoftwareSevPlatform,
    milan: SoftwareSnpPlatform,
    genoa: SoftwareSnpPlatform,
) -> dict[str, Any]:
    """Settings of ``[workloads]`` that trust the software platforms."""
    for name, content in {
        "sev-ark.cert": sev_platform.root(),
        "milan.pem": milan.chain_pem(),
        "genoa.pem": genoa.chain_pem(),
    }.items():
        (tmp_path / name).write_bytes(content)
    return {
        "extra_trusted_sev_roots": [str(tmp_path / "sev-ark.cert")],
        "snp_verifier": {
            "extra_trusted_roots": [str(tmp_path / "milan.pem"), str(tmp_path / "genoa.pem")],
            "vcek_sources": [],
        },
    }


@pytest.fixture
def encryption(tmp_path: Path) -> dict[str, Any]:
    """Settings of ``[encryption]`` with a new master key."""
    path = tmp_path / "master.key"
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    path.chmod(0o600)
    return {"source": "file", "path": str(path)}


@pytest.fixture
def start_workloads(
    start_broker: BrokerFactory, roots: dict[str, Any], encryption: dict[str, Any]
) -> WorkloadBrokerFactory:
    """Start brokers that serve workloads; keywords are laid over the table ``[workloads]``.

    ``tables`` holds other tables, ``directory`` the home (to share a storage).
    """

    def start(
        *, tables: dict[str, Any] | None = None, directory: Path | None = None, **workloads: Any
    ) -> RunningBroker:
        return start_broker(
            directory, encryption=encryption, workloads={**roots, **workloads}, **(tables or {})
        )

    return start


@pytest.fixture
def workload_broker(start_workloads: WorkloadBrokerFactory) -> RunningBroker:
    """A broker that trusts the software platforms and lets anybody administrate."""
    return start_workloads()


@pytest.fixture
def administration(tmp_path: Path) -> tuple[dict[str, Any], str]:
    """The table ``[admin]`` and a token that it takes for workloads."""
    write_admin_key_pair(tmp_path / "admin.key", tmp_path / "admin.pub")
    table = {
        "authorization_mode": "AuthenticatedAuthorization",
        "authentication": {
            "bearer_jwt": {
                "identity_providers": [
                    {"issuer": "test", "public_key_uri": str(tmp_path / "admin.pub")}
                ]
            }
        },
        "authorization": {
            "regex_acl": {
                "acls": [
                    {
                        "role": "owner",
                        "allowed_endpoints": "^/kbs/v0/(register_workload|workloads(/.+)?)$",
                    }
                ]
            }
        },
    }
    token = issue_admin_token(
        (tmp_path / "admin.key").read_bytes(), role="owner", issuer="test", seconds=600
    )
    return table, token


def platform_chain(name: str) -> dict[str, bytes]:
    """Read the chain of a real platform, by certificate."""
    raw = (DATA / f"{name}.chain").read_bytes()
    names = ("pdh", "pek", "oca", "cek")
    chain = {name: raw[at * 2084 : (at + 1) * 2084] for at, name in enumerate(names)}
    rest = raw[4 * 2084 :]
    return chain | {"ask": rest[: len(rest) // 2], "ark": rest[len(rest) // 2 :]}
