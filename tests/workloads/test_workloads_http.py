"""The whole way of both TEEs over HTTP, against a broker in a process of its own."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from tests.conftest import RunningBroker
from tests.workloads.conftest import WorkloadBrokerFactory, platform_chain
from tests.workloads.wire import (
    MEMORY,
    PASSPHRASE,
    SNP_MEASUREMENT,
    Api,
    SevSession,
    SnpSession,
    cookie_of,
    sev_parameters,
    sev_policy,
    sev_workload,
    snp_workload,
)

from keybroker.softtee.kds import SoftwareKds
from keybroker.softtee.sev import FirmwareError, SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.softtee.workload import RefusedError, fetch_sev_passphrase, fetch_snp_passphrase


@pytest.fixture
def api(workload_broker: RunningBroker) -> Api:
    api = Api(workload_broker)
    api.register(sev_workload())
    api.register(snp_workload())
    return api


@pytest.mark.parametrize("nested", [False, True], ids=["strings", "nested"])
def test_an_sev_guest_gets_its_passphrase(
    api: Api, sev_platform: SoftwareSevPlatform, nested: bool
) -> None:
    session = SevSession.begin(api, sev_platform, nested=nested)
    assert session.start["policy"] == json.loads(sev_policy())
    answer = session.attest()
    assert (answer.status_code, answer.content) == (200, b"")
    for _ in range(2):
        secret = session.launch.secret(session.key().json())
        assert len(secret) == 512
        assert secret.rstrip(b"\0").decode() == PASSPHRASE


@pytest.mark.parametrize("nested", [False, True], ids=["strings", "nested"])
@pytest.mark.parametrize("generation", ["milan", "genoa"])
def test_an_snp_guest_gets_its_passphrase(
    api: Api, request: pytest.FixtureRequest, generation: str, nested: bool
) -> None:
    platform: SoftwareSnpPlatform = request.getfixturevalue(generation)
    session = SnpSession.begin(api, platform, nested=nested)
    answer = session.attest(nested=nested)
    assert (answer.status_code, answer.content) == (200, b"")
    for _ in range(2):
        assert session.decrypt(session.key()) == PASSPHRASE


def test_the_clients_of_softtee_get_their_passphrases(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    url = api.broker.url + "/workload"
    passphrase = fetch_sev_passphrase(url, "sev-1", sev_platform, memory=MEMORY)
    assert passphrase.decode() == PASSPHRASE
    passphrase = fetch_snp_passphrase(
        url, "snp-1", milan, measurement=SNP_MEASUREMENT, with_certificates=True
    )
    assert passphrase.decode() == PASSPHRASE
    with pytest.raises(RefusedError, match="attest: status 401"):
        fetch_sev_passphrase(url, "sev-1", sev_platform, memory=[b"another kernel"])


def test_the_vcek_is_fetched_where_a_guest_sends_no_certificates(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform, tmp_path: Path
) -> None:
    (tmp_path / "chain.pem").write_bytes(milan.chain_pem())
    with SoftwareKds([milan]) as kds:
        broker = start_workloads(
            snp_verifier={
                "extra_trusted_roots": [str(tmp_path / "chain.pem")],
                "vcek_sources": [{"type": "KDS", "base_url": kds.url}],
            }
        )
        Api(broker).register(snp_workload())
        for version in (2, 3, 5):  # a report of version 2 does not name its processor; gen does
            passphrase = fetch_snp_passphrase(
                broker.url + "/workload",
                "snp-1",
                milan,
                measurement=SNP_MEASUREMENT,
                version=version,
            )
            assert passphrase.decode() == PASSPHRASE
        assert len(kds.requests) == 1


def test_the_verifier_of_the_built_in_attestation_service_is_the_default(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform, tmp_path: Path
) -> None:
    (tmp_path / "ark.pem").write_bytes(milan.root_pem())
    broker = start_workloads(
        snp_verifier=None,
        tables={
            "attestation_service": {
                "verifier_config": {
                    "snp_verifier": {"extra_trusted_roots": [str(tmp_path / "ark.pem")]}
                }
            }
        },
    )
    api = Api(broker)
    api.register(snp_workload())
    session = SnpSession.begin(api, milan)
    assert session.attest().status_code == 200


@pytest.mark.parametrize(
    ("alg", "scheme"),
    [
        ("RSA", padding.PKCS1v15()),
        ("", padding.PKCS1v15()),
        ("RSA1_5", padding.PKCS1v15()),
        ("RSA-OAEP", padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)),
        ("RSA-OAEP-256", padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)),
    ],
)
def test_the_secret_is_padded_as_the_guest_asks(
    api: Api, milan: SoftwareSnpPlatform, alg: str, scheme: padding.AsymmetricPadding
) -> None:
    session = SnpSession.begin(api, milan)
    assert session.attest(key=session.public_key(alg)).status_code == 200
    assert session.decrypt(session.key(), scheme) == PASSPHRASE


def test_newer_guests_spell_the_numbers_of_their_key_as_a_jwk_does(
    api: Api, milan: SoftwareSnpPlatform
) -> None:
    session = SnpSession.begin(api, milan)
    old = session.public_key()
    new = {"kty": "RSA", "alg": "RSA", "n": old["k-mod"], "e": old["k-exp"]}
    assert session.attest(key=new).status_code == 200
    assert session.decrypt(session.key()) == PASSPHRASE


def test_without_a_configured_root_no_software_platform_is_believed(
    start_workloads: WorkloadBrokerFactory,
    sev_platform: SoftwareSevPlatform,
    milan: SoftwareSnpPlatform,
    genoa: SoftwareSnpPlatform,
) -> None:
    broker = start_workloads(extra_trusted_sev_roots=[], snp_verifier={"vcek_sources": []})
    api = Api(broker)
    api.register(sev_workload())
    api.register(snp_workload())
    assert api.auth("sev", sev_parameters(sev_platform, "sev-1")).status_code == 401
    for platform in (milan, genoa):
        session = SnpSession.begin(api, platform)
        assert session.attest().status_code == 401
        assert session.key().status_code == 401


@pytest.mark.parametrize("name", ["naples", "rome", "milan", "milan-other"])
def test_real_platforms_are_challenged(start_workloads: WorkloadBrokerFactory, name: str) -> None:
    """Their certificates as a client sends them, with a buffer that has room for the larger."""
    api = Api(start_workloads(extra_trusted_sev_roots=[]))
    api.register(sev_workload())
    chain = {key: list(value.ljust(1600, b"\xa5")) for key, value in platform_chain(name).items()}
    parameters = {
        "workload_id": "sev-1",
        "build": {"version": {"major": 1, "minor": 49}, "build": 6},
        "chain": {
            "ca": {key: chain[key] for key in ("ask", "ark")},
            "sev": {key: chain[key] for key in ("pdh", "pek", "oca", "cek")},
        },
    }
    answer = api.auth("sev", parameters)
    assert answer.status_code == 200
    start = json.loads(answer.json()["extra-params"])["start"]
    assert len(start["cert"]) == 2084
    parameters["chain"]["sev"]["pdh"][1043] ^= 1
    assert api.auth("sev", parameters).status_code == 401


def test_every_step_out_of_order_is_refused(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    assert api.get("/key/sev-1").status_code == 401
    assert api.get("/key/snp-1", "no-cookie-of-ours").status_code == 401
    evidence = {"tee-pubkey": {}, "tee-evidence": "{}"}
    assert api.post("/attest", evidence).status_code == 401
    assert api.post("/attest", evidence, "AAAA").status_code == 401
    for session in (SevSession.begin(api, sev_platform), SnpSession.begin(api, milan)):
        own = "sev-1" if isinstance(session, SevSession) else "snp-1"
        answer = session.key(own)
        assert answer.status_code == 401
        assert "not attested" in answer.json()["detail"]
        assert session.attest().status_code == 200
        again = session.attest()
        assert again.status_code == 401
        assert "attested already" in again.json()["detail"]
        assert session.key(own).status_code == 200


def test_a_session_gets_the_key_of_its_own_workload_alone(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    sev, snp = SevSession.begin(api, sev_platform), SnpSession.begin(api, milan)
    assert sev.attest().status_code == snp.attest().status_code == 200
    answers = [sev.key("snp-1"), snp.key("sev-1"), snp.key("no-such-workload")]
    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert len({answer.text for answer in answers}) == 1
    # where a cookie was not good for a key, it is still good for its own
    assert snp.decrypt(snp.key()) == PASSPHRASE


def test_a_cookie_of_another_session_is_refused(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    one, other = SevSession.begin(api, sev_platform), SevSession.begin(api, sev_platform)
    assert one.attest(cookie=other.cookie).status_code == 401
    first, second = SnpSession.begin(api, milan), SnpSession.begin(api, milan)
    assert first.attest(cookie=second.cookie).status_code == 401
    assert first.attest(cookie=one.cookie).status_code == 400  # evidence of the other TEE
    # nobody's failure used up anybody's session
    for session in (one, other, first, second):
        assert session.attest().status_code == 200


def test_of_two_clients_on_one_cookie_one_attests(api: Api, milan: SoftwareSnpPlatform) -> None:
    one = SnpSession.begin(api, milan)
    thief = SnpSession.begin(api, milan)
    thief.cookie, thief.nonce = one.cookie, one.nonce
    assert one.attest().status_code == 200
    assert thief.attest().status_code == 401
    answer = thief.key()
    assert one.decrypt(answer) == PASSPHRASE  # what the thief gets is for the one alone
    with pytest.raises((ValueError, AssertionError)):
        assert thief.decrypt(answer) == PASSPHRASE


def test_a_tampered_cookie_is_refused(api: Api, milan: SoftwareSnpPlatform) -> None:
    session = SnpSession.begin(api, milan)
    for place in range(0, len(session.cookie), 5):
        letter = "A" if session.cookie[place] != "A" else "B"
        changed = session.cookie[:place] + letter + session.cookie[place + 1 :]
        assert session.attest(cookie=changed).status_code == 401
    assert session.attest(cookie=session.cookie * 40).status_code == 401
    assert session.attest().status_code == 200


def test_a_cookie_of_the_handshake_is_no_cookie_of_a_workload(api: Api) -> None:
    request = {"version": "0.4.0", "tee": "sample", "extra-params": {}}
    answer = api.http.post("/kbs/v0/auth", json=request)
    assert answer.status_code == 200
    foreign = answer.cookies["kbs-session-id"]
    assert api.get("/key/snp-1", foreign).status_code == 401
    own = cookie_of(api.auth("snp", {"workload_id": "snp-1"}))
    answer = api.http.post(
        "/kbs/v0/attest",
        headers={"cookie": f"kbs-session-id={own}"},
        json={"runtime-data": {"nonce": "", "tee-pubkey": {}}, "tee-evidence": {}},
    )
    assert answer.status_code == 401


def test_a_workload_that_is_registered_anew_ends_its_sessions(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    before = SnpSession.begin(api, milan)
    attested = SnpSession.begin(api, milan)
    assert attested.attest().status_code == 200
    launched = SevSession.begin(api, sev_platform)
    api.register(snp_workload(passphrase="the new one"))
    api.register(sev_workload(passphrase="the new one"))
    for answer in (before.attest(), attested.key(), launched.attest()):
        assert answer.status_code == 401
        assert "has changed" in answer.json()["detail"]
    session = SnpSession.begin(api, milan)
    assert session.attest().status_code == 200
    assert session.decrypt(session.key()) == "the new one"


def test_a_deleted_workload_ends_its_sessions(api: Api, milan: SoftwareSnpPlatform) -> None:
    session = SnpSession.begin(api, milan)
    assert session.attest().status_code == 200
    assert api.delete("/workloads/snp-1").status_code == 200
    assert session.key().status_code == 401
    assert api.auth("snp", {"workload_id": "snp-1"}).status_code == 404
    assert api.delete("/workloads/snp-1").status_code == 404
    # registered again, even word for word, it is another registration
    api.register(snp_workload())
    assert session.key().status_code == 401


def test_a_guest_may_send_its_cookie_in_two_headers(api: Api, milan: SoftwareSnpPlatform) -> None:
    """libcurl adds the cookie that it keeps to the header that the guest makes itself."""
    session, other = SnpSession.begin(api, milan), SnpSession.begin(api, milan)
    assert session.attest().status_code == 200
    path = "/workload/kbs/v0/key/snp-1"
    own, foreign = (("cookie", f"session_id={one.cookie}") for one in (session, other))
    for headers in ([own, own], [("cookie", f"a=b; session_id={session.cookie}; c=d")]):
        assert session.decrypt(api.http.get(path, headers=headers)) == PASSPHRASE
    for headers in ([own, foreign], [foreign, own]):
        answer = api.http.get(path, headers=headers)
        assert answer.status_code == 401


def test_answers_fit_the_buffers_of_guests(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    """The cookie 100 characters, an error of ``attest`` 200, each with its zero byte."""
    session = SnpSession.begin(api, milan)
    assert len(session.cookie) <= 99
    assert len(session.nonce) == 32
    wrong = [
        session.attest({"report": "00", "gen": "milan"}),
        session.attest({"report": "00"}),
        session.attest({"x" * 400: "ü" * 400}),
        session.attest(key={"alg": '\\"' * 200, "k-mod": "", "k-exp": ""}),
        session.attest(cookie="x"),
        api.post("/attest", {"tee-evidence": "[" * 40}, session.cookie),
    ]
    for answer in wrong:
        assert answer.status_code in (400, 401)
        assert 0 < len(answer.content) < 200
        assert answer.json()["type"].startswith("https://github.com/confidential-containers/")
    for value in (session.cookie, SevSession.begin(api, sev_platform).cookie):
        assert "=" not in value


def test_a_measurement_of_something_else_is_refused(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    other = SevSession.begin(api, sev_platform, memory=[*MEMORY, b"one byte more"])
    assert other.attest().status_code == 401
    session = SnpSession.begin(api, milan)
    changed = bytes((SNP_MEASUREMENT[0] ^ 1, *SNP_MEASUREMENT[1:]))
    assert session.attest(session.evidence(measurement=changed)).status_code == 401


def test_a_report_that_binds_something_else_is_refused(
    api: Api, milan: SoftwareSnpPlatform
) -> None:
    session, other = SnpSession.begin(api, milan), SnpSession.begin(api, milan)
    assert session.attest(session.evidence(other.bound())).status_code == 401
    assert session.attest(session.evidence(bytes(64))).status_code == 401
    assert session.attest(session.evidence(), key=other.public_key()).status_code == 401
    assert session.attest(session.evidence(vmpl=1)).status_code == 401
    assert session.attest(session.evidence() | {"gen": "genoa"}).status_code == 401


def test_a_guest_that_its_host_may_debug_is_refused(
    start_workloads: WorkloadBrokerFactory,
    api: Api,
    sev_platform: SoftwareSevPlatform,
    milan: SoftwareSnpPlatform,
) -> None:
    debug = 1 << 19 | 1 << 17 | 1 << 16
    session = SnpSession.begin(api, milan)
    assert session.attest(session.evidence(policy=debug)).status_code == 401
    answer = api.post("/register_workload", sev_workload(tee_config=sev_policy(0x3A)))
    assert answer.status_code == 400
    assert "debug" in answer.json()["detail"]

    lenient = Api(start_workloads(allow_debug=True))
    lenient.register(snp_workload())
    lenient.register(sev_workload(tee_config=sev_policy(0)))
    session = SnpSession.begin(lenient, milan)
    assert session.attest(session.evidence(policy=debug)).status_code == 200
    launched = SevSession.begin(lenient, sev_platform)
    assert launched.attest().status_code == 200


def test_a_workload_may_be_bound_to_a_generation(
    api: Api, milan: SoftwareSnpPlatform, genoa: SoftwareSnpPlatform
) -> None:
    api.register(snp_workload("bound", tee_config='{"gen": "Genoa"}'))
    for platform, status in ((milan, 401), (genoa, 200)):
        assert SnpSession.begin(api, platform, "bound").attest().status_code == status


def test_firmware_older_than_the_policy_demands_is_refused(
    api: Api, sev_platform: SoftwareSevPlatform
) -> None:
    api.register(sev_workload("new", tee_config=sev_policy(minor=56, major=1)))
    assert api.auth("sev", sev_parameters(sev_platform, "new")).status_code == 401
    api.register(sev_workload("old", tee_config=sev_policy(minor=55, major=1)))
    assert SevSession.begin(api, sev_platform, "old").attest().status_code == 200


def test_a_request_for_the_other_tee_is_refused(
    api: Api, sev_platform: SoftwareSevPlatform
) -> None:
    assert api.auth("snp", {"workload_id": "sev-1"}).status_code == 400
    assert api.auth("sev", sev_parameters(sev_platform, "snp-1")).status_code == 400
    assert api.auth("tdx", {"workload_id": "snp-1"}).status_code == 400
    assert api.auth("snp", {"workload_id": "none"}).status_code == 404
    assert api.auth("snp", {"workload_id": "\ud800"}).status_code == 404


def test_a_guest_whose_key_is_too_small_for_the_passphrase_is_told_when_it_attests(
    api: Api, milan: SoftwareSnpPlatform
) -> None:
    api.register(snp_workload(passphrase="p" * 245))
    session = SnpSession.begin(api, milan)
    answer = session.attest(key=session.public_key("RSA-OAEP-256"))
    assert answer.status_code == 400
    assert "too small" in answer.json()["detail"]
    assert session.attest().status_code == 200
    assert session.decrypt(session.key()) == "p" * 245


@pytest.mark.parametrize("what", ["policy", "wrap_tk", "wrap_mac", "nonce", "cert"])
def test_the_firmware_refuses_a_start_in_which_a_bit_was_flipped(
    api: Api, sev_platform: SoftwareSevPlatform, what: str
) -> None:
    start = SevSession.begin(api, sev_platform).start
    if what == "policy":
        start["policy"]["flags"]["bits"] ^= 1
    elif what == "cert":
        start["cert"][20] ^= 1
    else:
        start["session"][what][0] ^= 1
    with pytest.raises(FirmwareError):
        sev_platform.launch_start(start)


def test_the_firmware_refuses_a_packet_in_which_a_bit_was_flipped(
    api: Api, sev_platform: SoftwareSevPlatform
) -> None:
    session = SevSession.begin(api, sev_platform)
    assert session.attest().status_code == 200
    packet = session.key().json()
    for place in (0, 100, 511):
        changed = json.loads(json.dumps(packet))
        changed["ciphertext"][place] ^= 4
        with pytest.raises(FirmwareError):
            session.launch.secret(changed)
    for name in ("iv", "mac"):
        changed = json.loads(json.dumps(packet))
        changed["header"][name][7] ^= 1
        with pytest.raises(FirmwareError):
            session.launch.secret(changed)
    changed = json.loads(json.dumps(packet))
    changed["header"]["flags"]["bits"] = 1
    with pytest.raises(FirmwareError):
        session.launch.secret(changed)
    other = SevSession.begin(api, sev_platform)
    other.launch.measure()
    with pytest.raises(FirmwareError):
        other.launch.secret(packet)


def test_a_flipped_bit_of_report_or_measurement_is_refused_over_the_wire(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    session = SnpSession.begin(api, milan)
    evidence = session.evidence()
    report = bytes.fromhex(evidence["report"])
    for place in range(0, len(report), 29):
        changed = bytearray(report)
        changed[place] ^= 1 << place % 8
        answer = session.attest(evidence | {"report": changed.hex()})
        assert answer.status_code == 401, place
    assert session.attest(evidence).status_code == 200
    launched = SevSession.begin(api, sev_platform)
    measurement = launched.launch.measure()
    for name in ("measure", "mnonce"):
        for place in range(0, len(measurement[name]), 5):
            flipped = json.loads(json.dumps(measurement))
            flipped[name][place] ^= 1 << place % 8
            assert launched.attest(flipped).status_code == 401
    assert launched.attest(measurement).status_code == 200


def test_no_secret_and_no_key_is_in_the_log(
    api: Api, sev_platform: SoftwareSevPlatform, milan: SoftwareSnpPlatform
) -> None:
    for session in (SevSession.begin(api, sev_platform), SnpSession.begin(api, milan)):
        session.key("sev-1")
        session.attest()
        session.key("sev-1")
        assert session.cookie not in api.broker.log_text
    api.post("/register_workload", sev_workload(passphrase="n0t-shown" * 100))
    log = api.broker.log_text
    assert "horse" not in log
    assert "n0t-shown" not in log
    assert "Traceback" not in log
