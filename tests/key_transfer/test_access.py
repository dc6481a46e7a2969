"""Lock-out, permissions, expiry and the start from kbs.env, over HTTPS."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from tests.conftest import RunningBroker, start_process
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.key_servers import KmipServer, free_port
from tests.key_transfer.wire import PASSWORD, USER, Admin, HeldKey, transfer

from keybroker.api.certificates import self_signed
from keybroker.config.kbs import KbsConfig
from keybroker.config.key_transfer import LockoutConfig
from keybroker.config.loader import load_config
from keybroker.key_transfer.access import Access
from keybroker.key_transfer.errors import AccessError
from keybroker.key_transfer.lockout import Lockout
from keybroker.key_transfer.passwords import Passwords
from keybroker.key_transfer.permissions import ALL_PERMISSIONS
from keybroker.key_transfer.service import LOCKOUTS, SECRETS, USERNAMES, USERS
from keybroker.key_transfer.users import UserStore
from keybroker.storage.memory import MemoryStore
from keybroker.storage.provider import open_configured_storage
from keybroker.tokens.signer import TokenSigner

NIL = "00000000-0000-0000-0000-000000000001"

#: Every endpoint that needs a token: method, path, what is sent, and the permission.
ENDPOINTS: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "users", {"json": {}}, "users:create"),
    ("GET", "users", {}, "users:search"),
    ("GET", f"users/{NIL}", {}, "users:search"),
    ("PUT", f"users/{NIL}", {"json": {}}, "users:update"),
    ("DELETE", f"users/{NIL}", {}, "users:delete"),
    ("POST", "key-transfer-policies", {"json": {}}, "key_transfer_policies:create"),
    ("GET", "key-transfer-policies", {}, "key_transfer_policies:search"),
    ("GET", f"key-transfer-policies/{NIL}", {}, "key_transfer_policies:search"),
    ("DELETE", f"key-transfer-policies/{NIL}", {}, "key_transfer_policies:delete"),
    ("POST", "keys", {"json": {}}, "keys:create"),
    ("GET", "keys", {}, "keys:search"),
    ("GET", f"keys/{NIL}", {}, "keys:search"),
    ("PUT", f"keys/{NIL}", {"json": {}}, "keys:update"),
    ("DELETE", f"keys/{NIL}", {}, "keys:delete"),
    (
        "POST",
        f"keys/{NIL}",
        {"content": b"x", "headers": {"content-type": "application/x-pem-file"}},
        "keys:transfer",
    ),
]


@pytest.fixture
def secure_kbs(start_kbs: StartKbs, tmp_path: Path) -> Iterator[StartKbs]:
    """Brokers over HTTPS, asked by clients that verify their certificate."""
    files = self_signed(tmp_path, ["localhost", "127.0.0.1"])
    opened: list[httpx.Client] = []

    def start(**table: Any) -> Admin:
        server = {
            "insecure_http": False,
            "private_key": str(files.private_key),
            "certificate": str(files.certificate),
        }
        admin = start_kbs({"http_server": server}, certificate=files.certificate, **table)
        opened.append(admin.http)
        return admin

    yield start


def another_user(admin: Admin, name: str, permissions: list[str]) -> Admin:
    answer = admin.call(
        "POST",
        "users",
        json={"username": name, "password": "another password", "permissions": permissions},
    )
    assert answer.status_code == 201, answer.text
    assert "password" not in answer.text.replace("another password", "")
    user = Admin(admin.http)
    user.id = answer.json()["id"]
    assert user.login(name, "another password").status_code == 200
    return user


def test_every_endpoint_needs_its_permission_and_no_other(secure_kbs: StartKbs) -> None:
    admin = secure_kbs()
    for needed in sorted({permission for *_, permission in ENDPOINTS}):
        name = needed.replace(":", ".")
        every_other = [p for p in ALL_PERMISSIONS if p != needed]
        without = another_user(admin, f"without.{name}", every_other)
        only = another_user(admin, f"only.{name}", [needed])
        for method, path, options, permission in ENDPOINTS:
            refused, let_through = (without, only) if permission == needed else (only, without)
            answer = refused.call(method, path, **dict(options))
            assert answer.status_code == 401, (method, path, needed)
            assert answer.text == "Unauthorized\n"
            answer = let_through.call(method, path, **dict(options))
            assert answer.status_code in (200, 400, 404), (method, path, needed, answer.text)


def test_a_wildcard_and_the_other_spelling_are_permissions_too(secure_kbs: StartKbs) -> None:
    admin = secure_kbs()
    user = another_user(admin, "wild@card", ["keys:*", "key-transfer-policies:search"])
    assert user.call("GET", "keys").status_code == 200
    assert user.call("GET", "key-transfer-policies").status_code == 200
    assert user.call("GET", "users").status_code == 401


def test_tokens_that_are_none_are_refused(secure_kbs: StartKbs) -> None:
    admin = secure_kbs()
    token = admin.token
    assert token is not None
    head, payload, signature = token.split(".")
    for wrong in (
        None,
        "x",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f"{head}.{payload[:-3]}AAA.{signature}",
        "a" * 9000,
    ):
        stranger = Admin(admin.http, wrong)
        assert stranger.call("GET", "keys").status_code == 401
    basic = admin.http.get(
        "/kbs/v1/keys", headers={"authorization": f"Basic {token}", "accept": "application/json"}
    )
    assert basic.status_code == 401


def test_a_token_ends_with_its_time_its_user_and_its_password(secure_kbs: StartKbs) -> None:
    import base64
    import json

    admin = secure_kbs(token_validity_minutes=1)
    assert admin.token is not None
    payload = admin.token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] - claims["iat"] == 60
    user = another_user(admin, "somebody", ["users:update", "users:search"])
    changed = user.call("PUT", f"users/{user.id}", json={"password": "a new password"})
    assert changed.status_code == 201
    assert user.call("GET", "users").status_code == 401
    assert user.login("somebody", "another password").status_code == 401
    assert user.login("somebody", "a new password").status_code == 200
    taken = admin.call("PUT", f"users/{user.id}", json={"permissions": ["keys:search"]})
    assert taken.json()["permissions"] == ["keys:search"]
    assert user.call("GET", "users").status_code == 401
    assert user.call("GET", "keys").status_code == 200
    assert admin.call("DELETE", f"users/{user.id}").status_code == 204
    assert user.call("GET", "keys").status_code == 401
    assert user.login("somebody", "a new password").status_code == 401


async def expired_token(broker: RunningBroker) -> str:
    """Make a token as the broker does, with its own key, that ended a second ago."""
    config = load_config(broker.directory / "config.json", KbsConfig)
    async with contextlib.AsyncExitStack() as stack:
        storage = open_configured_storage(config)
        stack.push_async_callback(storage.close)
        passwords = Passwords()
        stack.callback(passwords.close)
        users = UserStore(
            await storage.namespace(USERS), await storage.namespace(USERNAMES), passwords
        )
        signer = await TokenSigner.create(None, await storage.namespace(SECRETS))
        lockout = Lockout(await storage.namespace(LOCKOUTS), LockoutConfig())
        access = Access(users, passwords, lockout, signer, token_seconds=-1)
        return await access.issue_token(USER, PASSWORD)


def test_an_expired_token_is_refused(secure_kbs: StartKbs) -> None:
    admin = secure_kbs()
    assert admin.call("GET", "keys").status_code == 200
    expired = asyncio.run(expired_token(admin.broker))
    headers = {"authorization": f"Bearer {expired}"}
    answer = admin.http.get("/kbs/v1/keys", headers={"accept": "application/json", **headers})
    assert answer.status_code == 401
    admin.broker.wait_for_log("expired")
    # The key is the broker's: a token of the same key that has not ended is let in.
    own = admin.http.get(
        "/kbs/v1/keys",
        headers={"accept": "application/json", "authorization": f"Bearer {admin.token}"},
    )
    assert own.status_code == 200


async def test_a_token_of_another_broker_is_refused() -> None:
    passwords = Passwords()
    users = UserStore(MemoryStore(), MemoryStore(), passwords)
    await users.create("somebody", "a long password", ["keys:search"])
    lockout = Lockout(MemoryStore(), LockoutConfig())
    one, other = [
        Access(users, passwords, lockout, await TokenSigner.create(None, None), token_seconds=60)
        for _ in range(2)
    ]
    token = await one.issue_token("somebody", "a long password")
    assert (await one.require(f"Bearer {token}", "keys:search")).username == "somebody"
    with pytest.raises(AccessError):
        await other.require(f"Bearer {token}", "keys:search")
    passwords.close()


def test_repeated_failures_lock_a_user_out_and_nobody_else(secure_kbs: StartKbs) -> None:
    admin = secure_kbs(lockout={"max_attempts": 3, "interval_minutes": 1, "lockout_minutes": 1})
    another_user(admin, "victim", ["keys:search"])
    stranger = Admin(admin.http)
    for name in ("victim", "nobody"):
        failed = [stranger.login(name, f"wrong password {i}") for i in range(3)]
        assert [answer.status_code for answer in failed] == [401] * 3
        assert len({answer.text for answer in failed}) == 1
        locked = stranger.login(name, "another password")
        assert (locked.status_code, "retry-after" in locked.headers) == (429, True)
    assert admin.login().status_code == 200
    # A right password in time forgets the wrong ones.
    for _ in range(3):
        assert stranger.login(USER, "a wrong password").status_code == 401
        assert stranger.login(USER, "a wrong password").status_code == 401
        assert stranger.login().status_code == 200


def test_guesses_that_come_at_once_are_counted(start_kbs: StartKbs) -> None:
    import concurrent.futures

    admin = start_kbs(lockout={"max_attempts": 4})
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        guesses = pool.map(lambda i: Admin(admin.http).login(USER, f"guess number {i}"), range(12))
        statuses = sorted(answer.status_code for answer in guesses)
    assert statuses == [401] * 4 + [429] * 8
    assert admin.login().status_code == 429


def test_all_workers_count_together(start_kbs: StartKbs) -> None:
    import concurrent.futures

    admin = start_kbs({"http_server": {"worker_count": 2}}, lockout={"max_attempts": 4})

    def guess(number: int) -> int:
        with admin.broker.http() as http:
            return Admin(http).login(USER, f"guess number {number}").status_code

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(guess, range(24)))
    # Each worker may be looking at one guess when another fills the count.
    assert statuses.count(401) in (4, 5)
    assert statuses.count(429) == 24 - statuses.count(401)
    assert guess(24) == 429


def test_an_unknown_user_costs_as_much_as_a_known_one(start_kbs: StartKbs) -> None:
    admin = start_kbs(lockout={"max_attempts": 1000})
    process = Path(f"/proc/{admin.broker.process.pid}/stat")
    ticks: dict[str, int] = {}
    for name in ("nobody", USER, "nobody", USER):
        before = sum(int(part) for part in process.read_text().split()[13:15])
        for _ in range(10):
            assert Admin(admin.http).login(name, "a wrong password").status_code == 401
        after = sum(int(part) for part in process.read_text().split()[13:15])
        ticks[name] = ticks.get(name, 0) + after - before
    assert 0.6 < ticks["nobody"] / ticks[USER] < 1.7, ticks


def env_file(path: Path, port: int, **over: str) -> Path:
    lines = {
        "LOG_LEVEL": "INFO",
        "KEY_MANAGER": "LOCAL",
        "ADMIN_USERNAME": "kbsadmin",
        "ADMIN_PASSWORD": "kbs admin's password",
        "SERVICE_PORT": str(port),
        "SAN_LIST": "127.0.0.1, localhost,kbs.example,0.0.0.0",
        "BEARER_TOKEN_VALIDITY_IN_MINUTES": "7",
        "HTTP_READ_HEADER_TIMEOUT": "10",
        **over,
    }
    path.write_text("# an original's file\n\n" + "".join(f"{k}={v}\n" for k, v in lines.items()))
    return path


@pytest.fixture
def start_from_env(tmp_path: Path) -> Iterator[Any]:
    running: list[RunningBroker] = []

    def start(home: Path, **over: str) -> RunningBroker:
        # The certificate is made by the broker itself, before it listens.
        env = env_file(tmp_path / f"kbs-{len(running)}.env", free_port(), **over)
        certificate = home / "certs" / "tls" / "tls.crt"
        broker = start_process(
            ["kbs", "--env-file", str(env), "--home", str(home)], tmp_path, certificate=certificate
        )
        running.append(broker)
        return broker

    yield start
    for broker in running:
        broker.stop()


def test_an_original_kbs_env_starts_a_broker(
    start_from_env: Any, tmp_path: Path, held: HeldKey
) -> None:
    home = tmp_path / "opt-kbs"
    broker = start_from_env(home)
    url = broker.url.replace("0.0.0.0", "127.0.0.1")
    certificate = home / "certs" / "tls" / "tls.crt"
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    san = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(san.get_values_for_type(x509.DNSName)) == {"localhost", "kbs.example"}
    tls = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=url, verify=tls, timeout=30) as http:
        admin = Admin(http)
        answer = admin.login("kbsadmin", "kbs admin's password")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/jwt"
        made = admin.key(algorithm="AES", key_length=256)
        octets = admin.wrap(made["id"], held)
        assert transfer(http, made["id"]).status_code == 401
    assert broker.stop() == 0
    assert "kbs admin's password" not in broker.log_text

    again = start_from_env(home, ADMIN_PASSWORD="another in the file now")
    with httpx.Client(
        base_url=again.url.replace("0.0.0.0", "127.0.0.1"), verify=tls, timeout=30
    ) as http:
        admin = Admin(http)
        assert admin.login("kbsadmin", "another in the file now").status_code == 401
        assert admin.login("kbsadmin", "kbs admin's password").status_code == 200
        assert admin.wrap(made["id"], held) == octets
    stored = (home / "keybroker" / "keybroker.db").read_bytes()
    assert octets not in stored


@pytest.mark.parametrize("version", ["1.4", "2.0"])
def test_a_kbs_env_for_kmip_starts_a_broker(
    start_from_env: Any, pykmip: KmipServer, tmp_path: Path, held: HeldKey, version: str
) -> None:
    table = pykmip.config()
    home = tmp_path / "opt-kbs"
    broker = start_from_env(
        home,
        KEY_MANAGER="KMIP",
        KMIP_VERSION=version,
        KMIP_SERVER_IP="127.0.0.1",
        KMIP_SERVER_PORT=str(pykmip.port),
        KMIP_HOSTNAME="localhost",
        KMIP_USERNAME=table["username"],
        KMIP_PASSWORD=table["password"],
        KMIP_CLIENT_CERT_PATH=table["client_cert"],
        KMIP_CLIENT_KEY_PATH=table["client_key"],
        KMIP_ROOT_CERT_PATH=table["root_cert"],
    )
    with broker.http() as http:
        admin = Admin(http)
        assert admin.login("kbsadmin", "kbs admin's password").status_code == 200
        made = admin.key(algorithm="AES", key_length=192)
        assert len(admin.wrap(made["id"], held)) == 24
        assert admin.call("DELETE", f"keys/{made['id']}").status_code == 204
    assert table["password"] not in broker.log_text


def test_the_password_of_the_configuration_is_in_no_message(start_kbs: StartKbs) -> None:
    admin = start_kbs()
    assert PASSWORD not in admin.broker.log_text
