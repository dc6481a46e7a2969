from typing import Any

import pytest

from keybroker.attestation_service.challenge import agree_on_hash
from keybroker.model.errors import MalformedError
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.tee import Tee

ALL = ["sha256", "sha384", "sha512", "sm3"]


def offer(*names: Any) -> dict[str, Any]:
    return {"supported-hash-algorithms": list(names)}


@pytest.mark.parametrize(
    ("tee", "extra_params", "algorithm", "answer"),
    [
        (Tee.SNP, "", "sha384", ""),
        (Tee.SNP, None, "sha384", ""),
        (Tee.SNP, {}, "sha384", ""),
        (Tee.SNP, offer(*ALL), "sha384", ""),
        (Tee.SNP, offer("SHA-256", "unknown", 7), "sha256", "sha256"),
        (Tee.SNP, offer("sha256", "sha512"), "sha512", "sha512"),
        (Tee.SE, "", "sha512", ""),
        (Tee.SE, offer(*ALL), "sha512", "sha512"),
        (Tee.SE, offer("SHA512"), "sha512", "sha512"),
    ],
)
def test_a_hash_is_chosen_for_the_tee(
    tee: Tee, extra_params: Any, algorithm: str, answer: str
) -> None:
    said = {"selected-hash-algorithm": answer} if answer else ""
    assert agree_on_hash(tee, extra_params) == (HashAlgorithm(algorithm), said)


@pytest.mark.parametrize(
    ("tee", "extra_params"),
    [
        (Tee.SE, offer("sha256", "sha384")),
        (Tee.SNP, offer("md5")),
        (Tee.SNP, offer()),
        (Tee.SNP, {"supported-hash-algorithms": "sha384"}),
    ],
)
def test_no_hash_in_common_is_said(tee: Tee, extra_params: Any) -> None:
    with pytest.raises(MalformedError):
        agree_on_hash(tee, extra_params)
