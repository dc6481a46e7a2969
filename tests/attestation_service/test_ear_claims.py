from typing import Any

import pytest

from keybroker.attestation_service.ear import annotate, appraisal, parse_extensions, tier


@pytest.mark.parametrize(
    ("tier_name", "values"),
    [
        ("none", [-1, 0, 1]),
        ("affirming", [2, 3, 31, -2, -32]),
        ("warning", [32, 33, 36, 95, -33, -96]),
        ("contraindicated", [96, 97, 99, 127, -97, -128]),
    ],
)
def test_a_value_belongs_to_its_tier(tier_name: str, values: list[int]) -> None:
    assert [tier(value) for value in values] == [tier_name] * len(values)


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"hardware": 0}, "none"),
        ({"hardware": 2, "executables": 0}, "affirming"),
        ({"hardware": 2, "executables": 33}, "warning"),
        ({"hardware": 97, "executables": 33}, "contraindicated"),
    ],
)
def test_the_status_is_the_worst_tier(claims: dict[str, int], status: str) -> None:
    assert appraisal(claims, {}, {}, "default")["ear.status"] == status


def test_claims_stand_under_their_tee_and_what_was_hashed_beside_the_hash() -> None:
    claims = {"report_data": "aa", "init_data": "bb", "measurement": "cc"}
    runtime_data = {"nonce": "n", "additional-evidence": "x"}
    assert annotate("snp", claims, {"k": "v"}, runtime_data, verbose=True) == {
        "init_data": "bb",
        "init_data_claims": {"k": "v"},
        "report_data": "aa",
        "runtime_data_claims": runtime_data,
        "snp": {"measurement": "cc"},
    }


def test_data_that_the_evidence_does_not_bind_is_no_claim() -> None:
    assert annotate("sgx", {"a": 1}, {"forged": 1}, {"forged": 1}, verbose=True) == {
        "sgx": {"a": 1}
    }


def test_an_extension_without_a_value_is_left_out() -> None:
    extensions: list[Any] = [
        {"name": "a", "key": -18, "value": None},
        {"name": "b", "key": 2, "value": {"x": [1]}},
    ]
    assert parse_extensions(extensions) == {"b": {"x": [1]}}
