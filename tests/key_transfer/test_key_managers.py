"""Create, register, transfer and delete keys with a real PyKMIP, a real OpenBao, and locally."""

import base64
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.key_servers import (
    KmipServer,
    VaultServer,
    free_port,
    openbao_server,
    pykmip_server,
)
from tests.key_transfer.trust_authority_service import TrustAuthorityService
from tests.key_transfer.wire import Admin, HeldKey, b64, transfer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrustAuthorityService]:
    """What signs attestation results that the brokers believe."""
    with TrustAuthorityService(tmp_path_factory.mktemp("ita"), "v2", "PS384") as service:
        yield service


MANAGERS = ["local", "kmip-1.4", "kmip-2.0", "vault-1", "vault-2"]


def manager_table(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The ``key_manager`` table of a kind of manager, with its server running."""
    kind, _, version = name.partition("-")
    if kind == "local":
        return {"type": "local"}
    if kind == "kmip":
        return request.getfixturevalue("pykmip").config(version=version)
    server: VaultServer = request.getfixturevalue("openbao")
    if version == "1":
        return server.config()
    server.call("POST", "sys/mounts/second", json={"type": "kv", "options": {"version": "2"}})
    return server.config(mount="second", kv_version=2)


def private_pem(key: Any) -> str:
    return b64(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize("name", MANAGERS)
def test_keys_are_made_registered_wrapped_and_deleted(
    name: str, request: pytest.FixtureRequest, start_kbs: StartKbs, held: HeldKey
) -> None:
    admin = start_kbs(key_manager=manager_table(name, request))

    for length in (128, 192, 256):
        made = admin.key(algorithm="AES", key_length=length)
        assert made["key_info"]["algorithm"] == "AES"
        octets = admin.wrap(made["id"], held)
        assert len(octets) * 8 == length
        assert admin.wrap(made["id"], held) == octets

    own = os.urandom(32)
    registered = admin.key(algorithm="AES", key_length=256, key_data=b64(own))
    assert admin.wrap(registered["id"], held) == own

    made_rsa = admin.key(algorithm="RSA", key_length=2048)
    private = load_der_private_key(admin.wrap(made_rsa["id"], held), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    assert private.key_size == 2048

    own_rsa = rsa.generate_private_key(65537, 3072)
    registered_rsa = admin.key(algorithm="RSA", key_length=3072, key_data=private_pem(own_rsa))
    unwrapped = load_der_private_key(admin.wrap(registered_rsa["id"], held), None)
    assert unwrapped.private_numbers() == own_rsa.private_numbers()  # type: ignore[union-attr]

    for curve in ("secp256r1", "secp384r1", "secp521r1"):
        made_ec = admin.key(algorithm="EC", curve_type=curve)
        key = load_der_private_key(admin.wrap(made_ec["id"], held), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == curve

    for document in admin.call("GET", "keys").json():
        assert admin.call("DELETE", f"keys/{document['id']}").status_code == 204
        gone = admin.call(
            "POST",
            f"keys/{document['id']}",
            content=held.pem(),
            headers={"content-type": "application/x-pem-file"},
        )
        assert gone.status_code == 404
    assert admin.call("GET", "keys").json() == []
    assert own.hex() not in admin.broker.log_text
    assert b64(own) not in admin.broker.log_text


@pytest.mark.parametrize("name", MANAGERS)
def test_keys_of_every_manager_are_transferred_to_what_the_policy_names(
    name: str,
    request: pytest.FixtureRequest,
    start_kbs: StartKbs,
    authority: TrustAuthorityService,
    held: HeldKey,
) -> None:
    admin = start_kbs(
        key_manager=manager_table(name, request), trust_authority=authority.table(api=False)
    )
    mrtd = "cf" * 48
    policy = admin.policy({"attestation_type": "TDX", "tdx": {"attributes": {"mrtd": [mrtd]}}})
    own_aes, own_rsa = os.urandom(32), rsa.generate_private_key(65537, 2048)
    aes = admin.key(policy, algorithm="AES", key_length=256, key_data=b64(own_aes))
    registered = {"key_length": 2048, "key_data": private_pem(own_rsa)}
    keys = {
        "AES": aes,
        "RSA": admin.key(policy, algorithm="RSA", **registered),
        "made": admin.key(policy, algorithm="RSA", key_length=2048),
    }
    good = {"tdx_mrtd": mrtd, "attester_held_data": b64(held.user_data("TDX"))}
    released = {}
    for kind, key in keys.items():
        token = authority.token("TDX", good)
        answer = transfer(admin.http, key["id"], json={"attestation_token": token})
        assert answer.status_code == 200, answer.text
        released[kind] = held.unwrap(answer.json())
        token = authority.token("TDX", {**good, "tdx_mrtd": "00" * 48})
        answer = transfer(admin.http, key["id"], json={"attestation_token": token})
        assert answer.status_code == 401
    assert released["AES"] == own_aes
    unwrapped = load_der_private_key(released["RSA"], None)
    assert unwrapped.private_numbers() == own_rsa.private_numbers()  # type: ignore[union-attr]
    assert released["made"] == admin.wrap(keys["made"]["id"], held)
    for key in keys.values():
        assert admin.call("DELETE", f"keys/{key['id']}").status_code == 204
        token = authority.token("TDX", good)
        answer = transfer(admin.http, key["id"], json={"attestation_token": token})
        assert answer.status_code == 404


def test_nothing_is_left_on_the_servers(
    start_kbs: StartKbs, pykmip: KmipServer, openbao: VaultServer
) -> None:
    before_kmip, before_vault = pykmip.objects(), openbao.names()
    for table in (pykmip.config(), openbao.config()):
        admin = start_kbs(key_manager=table)
        ids = [
            admin.key(algorithm="AES", key_length=256)["id"],
            admin.key(algorithm="RSA", key_length=2048)["id"],
        ]
        kept = set(pykmip.objects()) - set(before_kmip) or set(openbao.names()) - set(before_vault)
        assert len(kept) in (2, 3)  # KMIP keeps the public half as well
        for key_id in ids:
            assert admin.call("DELETE", f"keys/{key_id}").status_code == 204
        assert pykmip.objects() == before_kmip
        assert openbao.names() == before_vault


def test_a_key_of_the_kmip_server_is_registered_by_its_id(
    start_kbs: StartKbs, pykmip: KmipServer, held: HeldKey
) -> None:
    from kmip import enums

    admin = start_kbs(key_manager=pykmip.config())
    with pykmip.client() as client:
        kmip_id = client.create(enums.CryptographicAlgorithm.AES, 256)
        octets = client.get(kmip_id).value
    first = admin.key(algorithm="AES", key_length=256, kmip_key_id=kmip_id)
    second = admin.key(algorithm="AES", key_length=256, kmip_key_id=kmip_id)
    assert first["key_info"]["kmip_key_id"] == kmip_id
    assert admin.wrap(first["id"], held) == octets

    # What another record still needs is not destroyed.
    assert admin.call("DELETE", f"keys/{first['id']}").status_code == 204
    assert admin.wrap(second["id"], held) == octets
    assert admin.call("DELETE", f"keys/{second['id']}").status_code == 204
    assert kmip_id not in pykmip.objects()

    wrong_kind = {"algorithm": "RSA", "key_length": 2048, "kmip_key_id": kmip_id}
    absent = {"algorithm": "AES", "key_length": 256, "kmip_key_id": "123456789"}
    for information in (wrong_kind, absent):
        answer = admin.call("POST", "keys", json={"key_information": information})
        assert answer.status_code in (400, 502), answer.text
    assert admin.call("GET", "keys").json() == []


def test_keys_that_an_original_broker_left_in_vault_are_served(
    start_kbs: StartKbs, openbao: VaultServer, held: HeldKey, tmp_path: Path
) -> None:
    # As the original writes them: the key into Vault, its record and its policy on disk.
    key_id, policy_id = (
        "5d3ab1c2-7a5e-4f6b-9a2e-0d1c2b3a4f5e",
        "0855be44-45bd-4ff3-b545-7987e6a1c36b",
    )
    octets = os.urandom(32)
    created = "2023-05-04T06:30:35.085644391Z"
    attributes = {
        "id": key_id,
        "algorithm": "AES",
        "key_length": 256,
        "key_data": b64(octets),
        "transfer_policy_id": "00000000-0000-0000-0000-000000000000",
        "created_at": created,
    }
    openbao.call(
        "POST", f"keybroker/{key_id}", json={key_id: json.dumps(attributes)}
    ).raise_for_status()
    home = tmp_path / "opt-kbs"
    (home / "keys").mkdir(parents=True)
    (home / "keys-transfer-policy").mkdir()
    record = {
        **{name: value for name, value in attributes.items() if name != "key_data"},
        "transfer_policy_id": policy_id,
        "transfer_link": f"/kbs/v1/keys/{key_id}/transfer",
    }
    (home / "keys" / key_id).write_text(json.dumps(record))
    (home / "keys-transfer-policy" / policy_id).write_text(
        json.dumps(
            {
                "id": policy_id,
                "created_at": created,
                "attestation_type": "SGX",
                "sgx": {"attributes": {"mrsigner": ["ab" * 32], "isvsvn": 0}},
            }
        )
    )
    admin = start_kbs(key_manager=openbao.config(), import_from=str(home))
    served = admin.call("GET", f"keys/{key_id}").json()
    assert served["transfer_policy_id"] == policy_id
    assert served["created_at"] == created
    policy = admin.call("GET", f"key-transfer-policies/{policy_id}").json()
    assert policy["sgx"]["attributes"] == {"mrsigner": ["ab" * 32], "isvsvn": 0}
    assert admin.wrap(key_id, held) == octets
    assert admin.call("DELETE", f"keys/{key_id}").status_code == 204
    assert key_id not in openbao.names()


def test_what_is_written_to_vault_can_be_read_by_the_original(
    start_kbs: StartKbs, openbao: VaultServer, held: HeldKey
) -> None:
    admin = start_kbs(key_manager=openbao.config())
    made = admin.key(algorithm="RSA", key_length=2048)
    data = openbao.call("GET", f"keybroker/{made['id']}").json()["data"]
    assert list(data) == [made["id"]]
    attributes = json.loads(data[made["id"]])
    assert attributes["id"] == made["id"]
    assert (attributes["algorithm"], attributes["key_length"]) == ("RSA", 2048)
    assert base64.b64decode(attributes["private_key"]) == admin.wrap(made["id"], held)
    admin.call("DELETE", f"keys/{made['id']}")


def nothing_was_made(admin: Admin) -> None:
    answer = admin.call("POST", "keys", json=AES_KEY)
    assert answer.status_code == 502, answer.text
    assert len(answer.json()["error"]) > len("502: ")
    assert admin.call("GET", "keys").json() == []


AES_KEY = {"key_information": {"algorithm": "AES", "key_length": 256}}


def test_a_server_that_is_down_sealed_or_refuses_gives_502_and_nothing_half_made(
    start_kbs: StartKbs, tmp_path: Path, held: HeldKey
) -> None:
    with openbao_server(tmp_path / "bao") as server:
        admin = start_kbs(key_manager=server.config())
        refused = start_kbs(key_manager=server.config(token="another token"))
        made = admin.key()
        nothing_was_made(refused)
        server.call("POST", "sys/seal").raise_for_status()
        for method, path in (("DELETE", f"keys/{made['id']}"), ("POST", f"keys/{made['id']}")):
            answer = admin.call(
                method,
                path,
                content=held.pem() if method == "POST" else None,
                headers={"content-type": "application/x-pem-file"},
            )
            assert answer.status_code == 502
            assert "sealed" in answer.json()["error"]
        assert [key["id"] for key in admin.call("GET", "keys").json()] == [made["id"]]
    answer = admin.call("POST", "keys", json=AES_KEY)
    assert answer.status_code == 502
    assert "reached" in answer.json()["error"]
    assert server.token not in admin.broker.log_text


def test_a_kmip_server_that_hangs_or_is_gone_gives_502(
    start_kbs: StartKbs, tmp_path: Path, held: HeldKey
) -> None:
    with pykmip_server(tmp_path / "kmip") as server:
        admin = start_kbs(key_manager=server.config(timeout_seconds=1.0))
        made = admin.key()
        os.killpg(server.process.pid, signal.SIGSTOP)
        try:
            answer = admin.call("POST", "keys", json=AES_KEY)
        finally:
            os.killpg(server.process.pid, signal.SIGCONT)
        assert answer.status_code == 502
        assert "in time" in answer.json()["error"]
        assert len(admin.wrap(made["id"], held)) == 32
        assert len(admin.call("GET", "keys").json()) == 1
    answer = admin.call("POST", "keys", json=AES_KEY)
    assert (answer.status_code, "reached" in answer.json()["error"]) == (502, True)


@contextlib.contextmanager
def talking_nonsense(words: bytes) -> Iterator[int]:
    """A server that says the same to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(1)
                        connection.recv(65536)
                        connection.sendall(words)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        stopping.set()
        thread.join(5)


@pytest.mark.parametrize(
    "words",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n<html/>..",
        b"HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["no-http", "list", "html", "redirect", "500"],
)
def test_a_vault_that_answers_nonsense_gives_502(
    start_kbs: StartKbs, held: HeldKey, words: bytes
) -> None:
    with talking_nonsense(words) as port:
        admin = start_kbs(
            key_manager={"type": "vault", "url": f"http://127.0.0.1:{port}", "token": "token"}
        )
        answer = admin.call("POST", "keys", json=AES_KEY)
        if answer.status_code == 201:
            # Whoever answers 200 to a write is believed; what it gives back is not.
            answer = admin.call(
                "POST",
                f"keys/{answer.json()['id']}",
                content=held.pem(),
                headers={"content-type": "application/x-pem-file"},
            )
        assert answer.status_code in (404, 502), answer.text
        assert "Traceback" not in admin.broker.log_text


def test_a_kmip_server_with_another_root_is_not_trusted(
    start_kbs: StartKbs, pykmip: KmipServer, tmp_path: Path
) -> None:
    with pykmip_server(tmp_path / "other") as other:
        other_root = str(other.directory / "root.pem")
    admin = start_kbs(key_manager=pykmip.config(root_cert=other_root))
    answer = admin.call("POST", "keys", json=AES_KEY)
    assert (answer.status_code, "not trusted" in answer.json()["error"]) == (502, True)
    wrong_name = start_kbs(key_manager=pykmip.config(hostname="kms.example"))
    answer = wrong_name.call("POST", "keys", json=AES_KEY)
    assert (answer.status_code, "not trusted" in answer.json()["error"]) == (502, True)


def test_a_broker_starts_before_its_key_manager(start_kbs: StartKbs) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    admin = start_kbs(key_manager={"type": "vault", "url": url, "token": "token"})
    nothing_was_made(admin)
