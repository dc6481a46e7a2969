"""Payloads of the attestation protocol."""

import hashlib
import json

import pytest

from keybroker.model.errors import MalformedError
from keybroker.model.hashes import HashAlgorithm, fit
from keybroker.model.rcar import (
    RuntimeData,
    device_runtime_data,
    parse_attestation,
    parse_tee,
    primary_runtime_data,
    runtime_data_bytes,
)
from keybroker.model.tee import Tee

KEY = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}


def test_the_primary_binding_is_the_canonical_json_of_key_nonce_and_devices() -> None:
    data = RuntimeData(nonce="bm9uY2U=", tee_pubkey=KEY)
    expected = (
        b'{"additional-evidence":"{\\"nvidia\\":{}}","nonce":"bm9uY2U=","tee-pubkey":'
        b'{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}}'
    )
    assert runtime_data_bytes(primary_runtime_data(data, '{"nvidia":{}}')) == expected
    assert b"additional" not in runtime_data_bytes(device_runtime_data(data))


def test_members_that_the_protocol_does_not_know_do_not_change_the_binding() -> None:
    plain = RuntimeData(nonce="n", tee_pubkey=KEY)
    more = RuntimeData(nonce="n", tee_pubkey={**KEY, "kid": "x", "use": "enc"})
    assert primary_runtime_data(plain, "") == primary_runtime_data(more, "")


@pytest.mark.parametrize(
    "key", [{}, {"kty": "oct"}, {"kty": ["EC"]}, {**KEY, "x": 1}, {"kty": "RSA", "n": "AQ"}]
)
def test_a_key_of_another_shape_is_malformed(key: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match="tee-pubkey"):
        device_runtime_data(RuntimeData(nonce="n", tee_pubkey=key))


def test_an_attestation_of_the_old_protocol_is_told_apart() -> None:
    old = {"tee-pubkey": {"k-mod": "a", "k-exp": "b", "alg": "RSA1_5"}, "tee-evidence": "{}"}
    with pytest.raises(MalformedError, match=r"0\.1\.x"):
        parse_attestation(old)


@pytest.mark.parametrize("value", [None, [], {}, "x", {"runtime-data": {}}, {"tee-evidence": {}}])
def test_another_shape_is_malformed(value: object) -> None:
    with pytest.raises(MalformedError):
        parse_attestation(json.loads(json.dumps(value)))


def test_tee_names_are_those_of_the_wire() -> None:
    assert parse_tee("az-snp-vtpm") is Tee.AZ_SNP_VTPM
    assert parse_tee("nvidiadpu") is Tee.NVIDIA_DPU
    with pytest.raises(MalformedError, match="unknown tee"):
        parse_tee("SNP")


@pytest.mark.parametrize(
    ("name", "size"), [("sha256", 32), ("SHA-384", 48), ("sha-512", 64), ("Sha384", 48)]
)
def test_hash_names_are_read_in_every_spelling(name: str, size: int) -> None:
    assert len(HashAlgorithm.parse(name).digest(b"")) == size


def test_a_digest_is_cut_or_padded_to_the_field() -> None:
    digest = hashlib.sha384(b"x").digest()
    assert fit(digest, 64) == digest + bytes(16)
    assert fit(digest, 32) == digest[:32]
