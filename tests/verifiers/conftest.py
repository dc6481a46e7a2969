"""Software platforms and the verifiers that trust them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keybroker.config.storage import StorageBackendConfig
from keybroker.config.verifiers import SnpVerifierConfig
from keybroker.softtee.kds import SoftwareKds
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.storage.interface import StorageProvider
from keybroker.storage.provider import open_storage
from keybroker.verifiers.snp import SnpVerifier

PlatformMaker = Callable[[str], SoftwareSnpPlatform]
VerifierMaker = Callable[..., SnpVerifier]


@pytest.fixture(scope="session")
def platform_of() -> PlatformMaker:
    """A software platform of a generation; the same one each time."""
    made: dict[str, SoftwareSnpPlatform] = {}

    def make(generation: str) -> SoftwareSnpPlatform:
        if generation not in made:
            made[generation] = SoftwareSnpPlatform.create(generation)
        return made[generation]

    return make


@pytest.fixture
def milan(platform_of: PlatformMaker) -> SoftwareSnpPlatform:
    return platform_of("Milan")


@pytest.fixture
def storage() -> StorageProvider:
    return open_storage(StorageBackendConfig())


@pytest.fixture
def snp_verifier(tmp_path: Path, storage: StorageProvider) -> VerifierMaker:
    """Make a verifier that trusts the roots of some software platforms beside AMD's."""

    def make(*platforms: SoftwareSnpPlatform, whole_chain: bool = False, **config: object):
        roots = []
        for number, platform in enumerate(platforms):
            path = tmp_path / f"root-{number}.pem"
            path.write_bytes(platform.chain_pem() if whole_chain else platform.root_pem())
            roots.append(str(path))
        settings = SnpVerifierConfig(extra_trusted_roots=tuple(roots), **config)  # type: ignore[arg-type]
        return SnpVerifier(settings, storage)

    return make


@pytest.fixture
def kds(milan: SoftwareSnpPlatform) -> Iterator[SoftwareKds]:
    """A running key distribution service that knows the Milan platform."""
    with SoftwareKds([milan]) as service:
        yield service
