"""What clients must not send, and what the broker makes of it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kmip.core.enums import Operation
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.wire import PASSWORD, USER, Admin, HeldKey, b64, transfer

from keybroker.api.kbs_v1.payloads import (
    parse_background_request,
    parse_key_filter,
    parse_key_request,
)
from keybroker.config.kbs_env import EnvPlaces, load_env, parse_env
from keybroker.config.key_transfer import KmipVersion
from keybroker.key_transfer.attested import held_key, read_attested, verify_policy
from keybroker.key_transfer.errors import KeyManagerError, TransferDeniedError
from keybroker.key_transfer.material import KeySpec, parse_key_data
from keybroker.key_transfer.migration import parse_original_key
from keybroker.key_transfer.transfer_policy import parse_policy
from keybroker.model.errors import ConfigError, JweError, KeybrokerError, MalformedError
from keybroker.release.swk import parse_held_key, parse_recipient_pem

NIL = "00000000-0000-0000-0000-000000000001"
AES = {"algorithm": "AES", "key_length": 256}
SGX = {"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": ["ab" * 32]}}}


@pytest.fixture
def admin(start_kbs: StartKbs) -> Admin:
    return start_kbs()


def test_unknown_fields_and_wrong_shapes_are_refused(admin: Admin) -> None:
    user = {"username": "somebody", "password": "long enough", "permissions": ["keys:search"]}
    bodies: list[tuple[str, str, Any]] = [
        ("POST", "keys", {"key_information": AES, "more": 1}),
        ("POST", "keys", {"key_information": {**AES, "more": 1}}),
        ("POST", "keys", {"key_information": {"algorithm": "AES"}}),
        ("POST", "keys", {"key_information": {"algorithm": "AES", "key_length": 255}}),
        ("POST", "keys", {"key_information": {"algorithm": "DES", "key_length": 64}}),
        ("POST", "keys", {"key_information": {"algorithm": "RSA", "key_length": 1024}}),
        ("POST", "keys", {"key_information": {"algorithm": "EC", "curve_type": "secp256k1"}}),
        ("POST", "keys", {"key_information": AES, "transfer_policy_id": "no uuid"}),
        ("POST", "keys", {"key_information": AES, "transfer_policy_id": NIL}),
        ("POST", "keys", {"key_information": {**AES, "key_data": "no base64"}}),
        ("POST", "keys", {"key_information": {**AES, "key_data": b64(bytes(16))}}),
        ("POST", "keys", {"key_information": {**AES, "kmip_key_id": "1"}}),
        ("POST", "keys", {"key_information": {**AES, "kmip_key_id": "1", "key_data": "AA=="}}),
        ("PUT", f"keys/{NIL}", {"transfer_policy_id": NIL.replace("1", "0")}),
        ("PUT", f"keys/{NIL}", {}),
        ("POST", "users", {**user, "more": 1}),
        ("POST", "users", {**user, "password": "short"}),
        ("POST", "users", {**user, "password": "x" * 73}),
        ("POST", "users", {**user, "password": "control \n character"}),
        ("POST", "users", {**user, "username": "spaces in it"}),
        ("POST", "users", {**user, "username": "x" * 256}),
        ("POST", "users", {**user, "username": USER}),
        ("POST", "users", {**user, "permissions": []}),
        ("POST", "users", {**user, "permissions": ["secrets:read"]}),
        ("POST", "users", {**user, "permissions": ["keys"]}),
        ("POST", "key-transfer-policies", {**SGX, "more": 1}),
        ("POST", "key-transfer-policies", {**SGX, "tdx": {}}),
        ("POST", "key-transfer-policies", {"attestation_type": "SGX"}),
        ("POST", "key-transfer-policies", {"attestation_type": "SGX", "sgx": {}}),
        ("POST", "key-transfer-policies", {"attestation_type": "SGX", "sgx": {"attributes": {}}}),
        (
            "POST",
            "key-transfer-policies",
            {"attestation_type": "SGX", "sgx": {"attributes": {"enforce_tcb_upto_date": True}}},
        ),
        (
            "POST",
            "key-transfer-policies",
            {"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": [], "policy": 1}}},
        ),
        (
            "POST",
            "key-transfer-policies",
            {"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": ["ab"]}}},
        ),
        (
            "POST",
            "key-transfer-policies",
            {"attestation_type": "TDX", "tdx": {"attributes": {"seamsvn": 65536}}},
        ),
        ("POST", "key-transfer-policies", {"attestation_type": "XYZ", "xyz": {}}),
        ("POST", "token", {"username": USER}),
        ("POST", "token", {"username": USER, "password": PASSWORD, "more": 1}),
        ("POST", "token", []),
    ]
    for method, path, body in bodies:
        headers = {"accept": "application/jwt"} if path == "token" else {}
        answer = admin.call(method, path, json=body, headers=headers)
        assert answer.status_code == 400, (path, body, answer.text)
        assert set(answer.json()) == {"error"}
    assert admin.call("GET", "keys").json() == []
    assert admin.call("GET", "key-transfer-policies").json() == []
    assert len(admin.call("GET", "users").json()) == 1


def test_raw_bodies_that_are_no_json_are_refused(admin: Admin) -> None:
    for body in (b"", b"{", b"\xff", b'{"a":1,"a":2}', b"[" * 100, b"NaN", b"null", b'"text"'):
        answer = admin.call(
            "POST", "keys", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, body


def test_wrong_media_types_are_415(admin: Admin) -> None:
    body = json.dumps({"key_information": AES})
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json", "accept": "*/*"},
        {"content-type": "application/json", "accept": "text/html"},
        {"content-type": "application/json", "accept": ""},
    ):
        answer = admin.call("POST", "keys", content=body, headers=headers)
        assert answer.status_code == 415, headers
    for path in ("keys", "users", "key-transfer-policies", f"keys/{NIL}", f"users/{NIL}"):
        answer = admin.call("GET", path, headers={"accept": "*/*"})
        assert answer.status_code == 415
    login = {"username": USER, "password": PASSWORD}
    assert admin.call("POST", "token", json=login).status_code == 415
    assert admin.call("POST", f"keys/{NIL}", json={}).status_code == 415
    answer = admin.http.post(f"/kbs/v1/keys/{NIL}/transfer", headers={"accept": "text/plain"})
    assert answer.status_code == 415
    lists = {"accept": "text/html, application/json;q=0.9"}
    assert admin.call("GET", "keys", headers=lists).status_code == 200


def test_paths_methods_and_filters_that_are_not_there(admin: Admin) -> None:
    for path in (
        "",
        "nothing",
        "keys/",
        "keys/1",
        "keys/not-a-uuid",
        f"keys/{NIL}/",
        f"keys/{NIL}/transfer/more",
        f"keys/{NIL[:-1]}g",
        f"keys/%2e%2e/{NIL}",
        "keys//",
        "x" * 500,
    ):
        assert admin.call("GET", path).status_code == 404, path
    answer = admin.call("PATCH", "keys")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert admin.call("GET", f"keys/{NIL}/transfer").status_code == 405
    for query in ("size=1", "algorithm=DES", "keyLength=1", "keyLength=x", "curveType=x"):
        assert admin.call("GET", f"keys?{query}").status_code == 400, query
    assert admin.call("GET", "keys?transferPolicyId=x").status_code == 400
    assert admin.call("GET", "keys?algorithm=AES&algorithm=RSA").status_code == 400
    assert admin.call("GET", "users?name=x").status_code == 400
    assert admin.call("GET", "key-transfer-policies?x=y").status_code == 400


def test_a_search_finds_by_each_of_the_four_filters(admin: Admin) -> None:
    policy = admin.policy(SGX)
    made = {
        "aes": admin.key(policy, algorithm="aes", key_length=128)["id"],
        "rsa": admin.key(algorithm="rsa", key_length=2048)["id"],
        "ec": admin.key(algorithm="EC", curve_type="prime256v1", key_length=2048)["id"],
    }

    def found(query: str) -> set[str]:
        return {key["id"] for key in admin.call("GET", f"keys?{query}").json()}

    assert found("algorithm=AES") == {made["aes"]}
    assert found("keyLength=2048") == {made["rsa"]}
    assert found("curveType=secp256r1") == {made["ec"]}
    assert found(f"transferPolicyId={policy.upper()}") == {made["aes"]}
    assert found(f"transferPolicyId={policy}&algorithm=RSA") == set()
    assert found("") == set(made.values())


def test_the_policies_of_the_original_instructions_are_taken(admin: Admin) -> None:
    document = {
        "attestation_type": ["TDX"],
        "tdx": {
            "attributes": {
                "mrseam": ["2f" * 48],
                "seamsvn": "3",
                "rtmr0": "00" * 48,
                "enforce_tcb_upto_date": "false",
            }
        },
    }
    stored = admin.call("GET", f"key-transfer-policies/{admin.policy(document)}").json()
    assert stored["attestation_type"] == "TDX"
    assert stored["tdx"] == document["tdx"]


def test_transfers_that_are_malformed_or_about_nothing(admin: Admin, held: HeldKey) -> None:
    key_id = admin.key(admin.policy(SGX))["id"]
    nonce = transfer(admin.http, key_id).json()
    good = {"quote": "AAAA", "nonce": nonce, "user_data": b64(held.user_data("SGX"))}
    sgx = {"attestation-type": "SGX"}
    cases: list[tuple[Any, dict[str, str]]] = [
        ({}, {}),
        ({"attestation_token": ""}, {}),
        (good, {}),
        ({**good, "attestation_token": "x"}, sgx),
        ({"attestation_token": "x", "quote": "AAAA"}, {}),
        ({**good, "more": 1}, sgx),
        ({**good, "quote": "no base64"}, sgx),
        ({**good, "quote": None}, sgx),
        ({**good, "nonce": {}}, sgx),
        ({**good, "nonce": {**nonce, "more": ""}}, sgx),
        ({**good, "nonce": {**nonce, "val": 1}}, sgx),
        ({**good, "user_data": "A" * 20_000}, sgx),
        (good, {"attestation-type": "XYZ"}),
    ]
    for body, headers in cases:
        answer = transfer(admin.http, key_id, json=body, headers=headers)
        assert answer.status_code == 400, (body, answer.text)
    assert transfer(admin.http, key_id, headers=sgx).status_code == 400
    assert transfer(admin.http, NIL).status_code == 404
    assert transfer(admin.http, NIL, json={"attestation_token": "x"}).status_code == 404
    assert transfer(admin.http, NIL, json=good, headers=sgx).status_code == 404
    for pem in (b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        answer = admin.call(
            "POST",
            f"keys/{key_id}",
            content=pem,
            headers={"content-type": "application/x-pem-file"},
        )
        assert answer.status_code == 400


def test_base64_with_line_breaks_is_taken_as_the_original_does(admin: Admin, held: HeldKey) -> None:
    own = bytes(range(32))
    encoded = b64(own)
    made = admin.key(**AES, key_data=encoded[:20] + "\r\n" + encoded[20:] + "\n")
    assert admin.wrap(made["id"], held) == own


def test_a_policy_that_a_key_names_is_not_deleted(admin: Admin) -> None:
    policy = admin.policy(SGX)
    key_id = admin.key(policy)["id"]
    assert admin.call("DELETE", f"key-transfer-policies/{policy}").status_code == 400
    assert admin.call("GET", f"key-transfer-policies/{policy}").status_code == 200
    assert transfer(admin.http, key_id).status_code == 200
    assert admin.call("DELETE", f"keys/{key_id}").status_code == 204
    assert admin.call("DELETE", f"key-transfer-policies/{policy}").status_code == 204
    assert admin.call("DELETE", f"key-transfer-policies/{policy}").status_code == 404


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=70),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "attestation_type",
                    "sgx",
                    "tdx",
                    "snp",
                    "attributes",
                    "policy_ids",
                    "mrsigner",
                    "x",
                ]
            ),
            children,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
@settings(max_examples=200, deadline=None)
def test_any_value_is_a_policy_or_malformed(value: Any) -> None:
    try:
        policy = parse_policy(value, policy_id=NIL, created_at="")
    except MalformedError:
        return
    assert policy.attributes or policy.policy_ids


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_octets_are_read_or_refused_with_the_documented_error(octets: bytes) -> None:
    spec = KeySpec("RSA", 2048)
    for parse in (
        lambda: parse_held_key(octets, little_endian_modulus=True),
        lambda: parse_recipient_pem(b"-----BEGIN PUBLIC KEY-----" + octets),
        lambda: parse_key_data(b64(octets), spec),
        lambda: parse_key_request(octets),
        lambda: parse_background_request(octets, "SGX"),
        lambda: parse_original_key(octets),
        lambda: parse_key_filter({octets.decode("latin-1"): "1"}),
    ):
        with pytest.raises((JweError, MalformedError)):
            parse()


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_kbs_env_or_refused(text: str) -> None:
    try:
        values, _ = parse_env(text)
    except ConfigError:
        return
    assert all(isinstance(value, str) for value in values.values())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ADMIN_USERNAME=", "ADMIN_USERNAME"),
        ("KEY_MANAGER=HSM", "KEY_MANAGER"),
        ("SERVICE_PORT=x", "SERVICE_PORT"),
        ("LOG_LEVEL=loud", "LOG_LEVEL"),
        ("BEARER_TOKEN_VALIDITY_IN_MINUTES=31", "token_validity_minutes"),
        ("KEY_MANAGER=VAULT", "VAULT_SERVER_IP"),
        ("KEY_MANAGER=KMIP", "KMIP_SERVER_IP"),
        ("TRUSTAUTHORITY_BASE_URL=http://portal", "portal_url"),
    ],
)
def test_a_kbs_env_that_cannot_be_says_which_variable(tmp_path: Any, line: str, said: str) -> None:
    name, _, value = line.partition("=")
    values = {
        "ADMIN_USERNAME": "admin",
        "ADMIN_PASSWORD": "a secret password",
        "KEY_MANAGER": "local",
        name: value,
    }
    path = tmp_path / "kbs.env"
    path.write_text("".join(f"{key}={item}\n" for key, item in values.items()))
    with pytest.raises(KeybrokerError) as caught:
        load_env(path, EnvPlaces(tmp_path, tmp_path / "certs"))
    assert said in caught.value.diagnostics()
    assert "a secret password" not in caught.value.diagnostics()


def test_both_generations_of_variables_name_trust_authority(tmp_path: Any) -> None:
    path = tmp_path / "kbs.env"
    common = "ADMIN_USERNAME=admin\nADMIN_PASSWORD='a secret password'\nKEY_MANAGER=KMIP\n"
    needed = ("SERVER_IP", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH", "ROOT_CERT_PATH")
    kmip = "".join(f"KMIP_{name}=x\n" for name in needed)
    for own in (
        "AS_BASE_URL=https://amber.example\nAS_API_KEY=a2V5\n",
        "TRUSTAUTHORITY_API_URL=https://amber.example\nTRUSTAUTHORITY_API_KEY=a2V5\n"
        "TRUSTAUTHORITY_BASE_URL=https://amber.example\n",
    ):
        path.write_text(common + kmip + own)
        loaded = load_env(path, EnvPlaces(tmp_path, tmp_path / "certs"))
        table = loaded.config.key_transfer
        assert table is not None
        assert table.trust_authority is not None
        assert table.trust_authority.api_url == "https://amber.example"
        assert table.trust_authority.portal_url == "https://amber.example"
        assert table.admin_password is not None
        assert table.admin_password.reveal() == "a secret password"
        assert "a secret password" not in repr(loaded)


#: A Response Message up to its batch item, so that the rest is what a server can lie in.
RESPONSE_HEAD = bytes.fromhex(
    "42007b0100000090"
    "42007a0100000048"
    "4200690100000020"
    "42006a02000000040000000100000000"
    "42006b02000000040000000400000000"
    "4200920900000008000000006900e0a0"
    "42000d02000000040000000100000000"
    "42000f0100000038"
    "42005c05000000040000000a00000000"
    "42007f05000000040000000000000000"
    "42007c0100000010"
)


@given(st.binary(max_size=200), st.binary(max_size=12), st.integers(0, len(RESPONSE_HEAD)))
@settings(max_examples=200, deadline=None)
def test_any_answer_of_a_kmip_server_is_read_or_refused(
    tail: bytes, noise: bytes, position: int
) -> None:
    messages = pytest.importorskip("keybroker.key_transfer.managers.kmip_messages")
    reader = messages.KmipMessages(KmipVersion.V1_4, None, None)
    damaged = RESPONSE_HEAD[:position] + noise + RESPONSE_HEAD[position + len(noise) :]
    for answer in (tail, RESPONSE_HEAD + tail, damaged + tail):
        try:
            payload = reader.read(answer, Operation.GET)
            messages.key_octets(payload, "AES")
        except KeyManagerError:
            continue


def test_a_kmip_credential_is_in_every_request_and_in_no_repr() -> None:
    messages = pytest.importorskip("keybroker.key_transfer.managers.kmip_messages")
    for version in KmipVersion:
        writer = messages.KmipMessages(version, "kbs", "a secret password")
        for request in (
            writer.get("1"),
            writer.destroy("1"),
            writer.locate("name"),
            writer.create("name", KeySpec("AES", 256)),
            writer.create_key_pair("name", KeySpec("RSA", 2048)),
        ):
            assert b"a secret password" in request
        assert "a secret password" not in repr(writer)


CLAIM_NAMES = [
    *("sgx", "tdx", "submods", "cpu0", "ear.veraison.annotated-evidence", "body", "quote"),
    *("mr_td", "tcb_svn", "isv_svn", "attester_type", "attester_held_data", "tdx_mrtd"),
    *("policy_ids_matched", "attester_runtime_data", "tee-pubkey", "runtime_data_claims"),
]
CLAIMS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["SGX", "TDX", "ab" * 48, "AAAA", "zz"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(CLAIM_NAMES), inner, max_size=4)
    ),
    max_leaves=20,
)
TDX_POLICY = parse_policy(
    {"attestation_type": "TDX", "tdx": {"attributes": {"mrtd": ["ab" * 48], "seamsvn": 1}}},
    policy_id=NIL,
    created_at="",
)


@given(st.dictionaries(st.sampled_from(CLAIM_NAMES), CLAIMS, max_size=6))
@settings(max_examples=300, deadline=None)
def test_whatever_a_token_claims_is_read_or_denied(claims: dict[str, Any]) -> None:
    try:
        attested = read_attested(claims, TDX_POLICY)
        verify_policy(TDX_POLICY, attested)
        held_key(attested, TDX_POLICY)
    except (TransferDeniedError, JweError):
        return
    raise AssertionError("nothing here carries an RSA key")
