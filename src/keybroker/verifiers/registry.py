"""The verifiers of a configuration, by the kind of evidence that each takes."""

from collections.abc import Mapping
from types import MappingProxyType

from keybroker.config.verifiers import VerifierConfig
from keybroker.model.tee import Tee
from keybroker.storage.interface import StorageProvider
from keybroker.verifiers.dcap.endorser import make_endorser
from keybroker.verifiers.interface import Verifier
from keybroker.verifiers.sample import SampleVerifier
from keybroker.verifiers.sample_device import SampleDeviceVerifier
from keybroker.verifiers.sgx import SgxVerifier
from keybroker.verifiers.snp import SnpVerifier
from keybroker.verifiers.tdx import TdxVerifier


def make_verifiers(config: VerifierConfig, storage: StorageProvider) -> Mapping[Tee, Verifier]:
    """Make every verifier that is configured. Nothing is fetched yet.

    Args:
        config: the ``verifier_config`` section.
        storage: where verifiers keep what they fetched.

    Raises:
        ConfigError: a trusted root or a collateral service that the configuration names cannot be
            used.
    """
    endorser = make_endorser(config.dcap_verifier, storage)
    verifiers: list[Verifier] = [
        SnpVerifier(config.snp_verifier, storage),
        TdxVerifier(endorser),
        SgxVerifier(endorser),
    ]
    if config.sample_verifier.enabled:
        verifiers += [SampleVerifier(), SampleDeviceVerifier()]
    return MappingProxyType({verifier.tee: verifier for verifier in verifiers})
