"""Passport mode: tokens of a Trust-Authority-like issuer, and of the broker's own service."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.key_transfer.conftest import StartKbs, starting
from tests.key_transfer.key_servers import Authority
from tests.key_transfer.trust_authority_service import (
    Signer,
    TrustAuthorityService,
    token_claims,
)
from tests.key_transfer.wire import Admin, HeldKey, b64, transfer

POLICY_ID = "37965f5f-ccaf-4cdc-a356-a8ed5268a5bf"
OTHER_ID = "9846bf40-e380-4842-ae15-1b60996d1190"

#: Every attribute of the wire format: its value in the policy, and the claim.
SGX = {
    "mrsigner": (["cd" * 32, "ab" * 32], "ab" * 32),
    "isvprodid": ([11, 12], 12),
    "mrenclave": (["01" * 32], "01" * 32),
    "isvsvn": (1, 1),
}
TDX = {
    "mrsignerseam": (["00" * 48], "00" * 48),
    "mrseam": (["0f" * 48, "0e" * 48], "0e" * 48),
    "seamsvn": (258, 258),
    "mrtd": (["cf" * 48], "cf" * 48),
    "rtmr0": ("b9" * 48, "b9" * 48),
    "rtmr1": ("a5" * 48, "a5" * 48),
    "rtmr2": ("00" * 48, "00" * 48),
    "rtmr3": ("11" * 48, "11" * 48),
}
KINDS = {"SGX": SGX, "TDX": TDX}


def attributes(type_: str) -> dict[str, Any]:
    named = {name: value for name, (value, _) in KINDS[type_].items()}
    return {**named, "enforce_tcb_upto_date": True}


def claims(type_: str, held: HeldKey, **over: Any) -> dict[str, Any]:
    found = {f"{type_.lower()}_{name}": claim for name, (_, claim) in KINDS[type_].items()}
    return {**found, "attester_held_data": b64(held.user_data(type_)), **over}


def matched(*ids: str) -> list[dict[str, str]]:
    return [{"id": id_, "version": "v1"} for id_ in ids]


@pytest.fixture(scope="module", params=["v1", "v2"])
def authority(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrustAuthorityService]:
    alg = "RS256" if request.param == "v1" else "PS384"
    with TrustAuthorityService(tmp_path_factory.mktemp("ita"), request.param, alg) as service:
        yield service


@pytest.fixture(scope="module")
def admin(
    authority: TrustAuthorityService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Admin]:
    """One broker for all tests that change nothing of each other's."""
    with starting(tmp_path_factory.mktemp("kbs")) as start:
        table = authority.table(api=False)
        yield start(trust_authority=table, token_validity_minutes=30)


def full_policy(admin: Admin, type_: str) -> str:
    body = {"attributes": attributes(type_), "policy_ids": [OTHER_ID, POLICY_ID]}
    return admin.policy({"attestation_type": type_, type_.lower(): body})


@pytest.mark.parametrize("type_", ["SGX", "TDX"])
def test_a_token_that_satisfies_the_policy_gets_the_key(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey, type_: str
) -> None:
    made = admin.key(full_policy(admin, type_))
    expected = admin.wrap(made["id"], held)
    token = authority.token(type_, claims(type_, held), policy_ids_matched=matched(POLICY_ID))
    answer = transfer(admin.http, made["id"], json={"attestation_token": token})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"wrapped_key", "wrapped_swk"}
    assert held.unwrap(answer.json()) == expected
    again = transfer(admin.http, made["id"], json={"attestation_token": token})
    assert again.json()["wrapped_key"] != answer.json()["wrapped_key"]
    for secret in (expected.hex(), b64(expected), token):
        assert secret not in admin.broker.log_text

    rsa_key = admin.key(made["transfer_policy_id"], algorithm="RSA", key_length=2048)
    answer = transfer(admin.http, rsa_key["id"], json={"attestation_token": token})
    assert held.unwrap(answer.json()) == admin.wrap(rsa_key["id"], held)


@pytest.mark.parametrize(
    ("type_", "name"), [(type_, name) for type_ in KINDS for name in KINDS[type_]]
)
def test_each_attribute_refuses_another_value_and_none_at_all(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey, type_: str, name: str
) -> None:
    body = {"attributes": {name: KINDS[type_][name][0]}}
    policy = admin.policy({"attestation_type": type_, type_.lower(): body})
    key_id = admin.key(policy)["id"]
    said_before = len(admin.broker.log)
    claim = f"{type_.lower()}_{name}"
    good = KINDS[type_][name][1]
    other = good + 1 if isinstance(good, int) else "77" + good[2:]
    for value, status in ((good, 200), (other, 401), (None, 401), (str(good) + " ", 401)):
        own = claims(type_, held)
        if value is None:
            del own[claim]
        else:
            own[claim] = value
        token = authority.token(type_, own)
        answer = transfer(admin.http, key_id, json={"attestation_token": token})
        assert answer.status_code == status, (value, answer.text)
    # Which claim failed is for the administrator to know.
    assert name not in answer.text
    assert name in "".join(admin.broker.log[said_before:])


@pytest.mark.parametrize("type_", ["SGX", "TDX"])
def test_tcb_policy_ids_debug_and_kind_refuse(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey, type_: str
) -> None:
    key_id = admin.key(full_policy(admin, type_))["id"]
    other_type = "TDX" if type_ == "SGX" else "SGX"

    def status(token: str) -> int:
        return transfer(admin.http, key_id, json={"attestation_token": token}).status_code

    good, ids = claims(type_, held), {"policy_ids_matched": matched(POLICY_ID)}
    assert status(authority.token(type_, good, **ids)) == 200
    assert status(authority.token(type_, {**good, "attester_tcb_status": "OK"}, **ids)) == 200
    refused = [
        authority.token(type_, {**good, "attester_tcb_status": "OutOfDate"}, **ids),
        authority.token(type_, {**good, "attester_tcb_status": None}, **ids),
        authority.token(type_, good),
        authority.token(type_, good, policy_ids_matched=[]),
        authority.token(type_, good, policy_ids_matched=matched("00" * 16)),
        authority.token(type_, good, policy_ids_unmatched=matched(POLICY_ID)),
        authority.token(type_, {**good, f"{type_.lower()}_is_debuggable": True}, **ids),
        authority.token(other_type, {**good, **claims(other_type, held)}, **ids),
        authority.token(type_, {**good, "attester_type": other_type}, **ids),
    ]
    assert [status(token) for token in refused] == [401] * len(refused)


def test_tokens_that_are_not_valid_are_refused(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey
) -> None:
    body = {"attributes": {"mrsigner": ["ab" * 32]}}
    key_id = admin.key(admin.policy({"attestation_type": "SGX", "sgx": body}))["id"]

    def claims_of(**more: Any) -> dict[str, Any]:
        return token_claims("SGX", claims("SGX", held), version=authority.version, **more)

    signer = authority.signer
    good = signer.sign(claims_of())
    head, payload, signature = good.split(".")
    other = Signer(signer.kid, signer.alg)
    refused = [
        signer.sign(claims_of(exp=int(time.time()) - 1)),
        signer.sign(claims_of(nbf=int(time.time()) + 600)),
        signer.sign({name: value for name, value in claims_of().items() if name != "exp"}),
        other.sign(claims_of()),
        Signer("another kid", signer.alg, signer.key).sign(claims_of()),
        signer.sign(claims_of(), kid=None),
        signer.sign(claims_of(), alg="none"),
        signer.sign(claims_of(), alg="HS256"),
        signer.sign(claims_of(), alg="RS512"),
        signer.sign(claims_of(), crit=["exp"]),
        f"{head}.{payload}.",
        f"{head}.{payload[:-2]}AA.{signature}",
        "not.a.token",
        "x" * 70_000,
    ]
    for token in refused:
        answer = transfer(admin.http, key_id, json={"attestation_token": token})
        assert answer.status_code == 401, answer.text
    assert transfer(admin.http, key_id, json={"attestation_token": good}).status_code == 200


def test_another_issuer_is_refused_where_issuers_are_named(
    start_kbs: StartKbs, authority: TrustAuthorityService, held: HeldKey
) -> None:
    admin = start_kbs(trust_authority=authority.table(api=False, issuers=["Intel Trust Authority"]))
    body = {"attributes": {"mrsigner": ["ab" * 32]}}
    key_id = admin.key(admin.policy({"attestation_type": "SGX", "sgx": body}))["id"]
    good = authority.token("SGX", claims("SGX", held))
    other = authority.token("SGX", claims("SGX", held), iss="Somebody Else")
    assert transfer(admin.http, key_id, json={"attestation_token": good}).status_code == 200
    assert transfer(admin.http, key_id, json={"attestation_token": other}).status_code == 401


def test_tokens_are_verified_with_certificates_laid_into_a_folder(
    start_kbs: StartKbs, held: HeldKey, tmp_path: Path
) -> None:
    root = Authority("Test Amber Root CA")
    trusted_ca, trusted_jwt = tmp_path / "trustedca", tmp_path / "trustedjwt"
    trusted_ca.mkdir()
    trusted_jwt.mkdir()
    (trusted_ca / "root.pem").write_bytes(root.pem)
    signer, other = Signer("any kid", "PS384"), Signer("any kid", "PS384")
    root.issue("Attestation Token Signing", trusted_jwt, "ats", key=signer.key)
    (trusted_jwt / "ats.key").unlink()
    admin = start_kbs(
        trust_authority={
            "portal_url": "",
            "trusted_jwt_certs": str(trusted_jwt),
            "trusted_ca_certs": str(trusted_ca),
        }
    )
    body = {"attributes": {"mrsigner": ["ab" * 32]}, "policy_ids": [POLICY_ID]}
    key_id = admin.key(admin.policy({"attestation_type": "SGX", "sgx": body}))["id"]
    now = int(time.time())
    amber = {
        "amber_sgx_mrsigner": "ab" * 32,
        "amber_evidence_type": "SGX",
        "amber_matched_policy_ids": [POLICY_ID],
        "amber_tcb_status": "OK",
        "amber_tee_held_data": b64(held.user_data("SGX")),
        "iss": "AS Attestation Token Issuer",
        "iat": now,
        "exp": now + 300,
    }
    answer = transfer(admin.http, key_id, json={"attestation_token": signer.sign(amber)})
    assert answer.status_code == 200, answer.text
    assert held.unwrap(answer.json()) == admin.wrap(key_id, held)
    refused = transfer(admin.http, key_id, json={"attestation_token": other.sign(amber)})
    assert refused.status_code == 401


def test_a_held_key_that_is_too_small_or_none_is_refused(
    admin: Admin, authority: TrustAuthorityService
) -> None:
    body = {"attributes": {"mrsigner": ["ab" * 32]}}
    key_id = admin.key(admin.policy({"attestation_type": "SGX", "sgx": body}))["id"]
    small = HeldKey.generate(2048)
    for data in (
        b64(small.user_data("SGX")),
        b64(b"\x01\x00\x01\x00"),
        b64(b""),
        b64(bytes(388)),
        b64((1).to_bytes(4, "little") + HeldKey.generate(3072).user_data("SGX")[4:]),
        "no base64",
        None,
    ):
        own = {**claims("SGX", small), "attester_held_data": data}
        token = authority.token("SGX", own)
        answer = transfer(admin.http, key_id, json={"attestation_token": token})
        assert answer.status_code == 400, answer.text


def test_a_key_without_policy_is_transferred_to_nobody(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey
) -> None:
    made = admin.key()
    assert made["transfer_policy_id"] == "00000000-0000-0000-0000-000000000000"
    token = authority.token("SGX", claims("SGX", held))
    assert transfer(admin.http, made["id"], json={"attestation_token": token}).status_code == 401
    assert transfer(admin.http, made["id"]).status_code == 401


def test_after_a_policy_is_changed_only_the_new_one_counts(
    admin: Admin, authority: TrustAuthorityService, held: HeldKey
) -> None:
    first, second = (
        admin.policy({"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": [signer]}}})
        for signer in ("ab" * 32, "ef" * 32)
    )
    key_id = admin.key(first)["id"]
    token = authority.token("SGX", claims("SGX", held))
    assert transfer(admin.http, key_id, json={"attestation_token": token}).status_code == 200
    answer = admin.call("PUT", f"keys/{key_id}", json={"transfer_policy_id": second})
    assert (answer.status_code, answer.json()["transfer_policy_id"]) == (201, second)
    assert transfer(admin.http, key_id, json={"attestation_token": token}).status_code == 401
    assert admin.call("DELETE", f"key-transfer-policies/{second}").status_code == 400
    assert admin.call("DELETE", f"key-transfer-policies/{first}").status_code == 204
