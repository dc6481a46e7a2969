"""Administrators: their tokens, their roles, and what the rules let them do."""

import asyncio
import base64
import hmac
import json
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OKPKey

from keybroker.config.admin import AdminConfig
from keybroker.kbs.admin import AdminAccess, Administrator
from keybroker.model.errors import AdminAuthError, AdminDeniedError, ConfigError
from keybroker.tokens import base64url
from keybroker.tokens.algorithms import ALGORITHMS
from keybroker.tokens.jwk import public_jwk

KEY = ed25519.Ed25519PrivateKey.generate()
RESOURCES = "^/kbs/v0/resource/.+$"
PATH = "/kbs/v0/resource/a/b/c"


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def configured(
    *providers: dict[str, Any], acls: list[tuple[str, str]] | None = None
) -> AdminConfig:
    rules = [("admin", RESOURCES)] if acls is None else acls
    return msgspec.convert(
        {
            "authorization_mode": "AuthenticatedAuthorization",
            "authentication": {"bearer_jwt": {"identity_providers": list(providers)}},
            "authorization": {
                "regex_acl": {
                    "acls": [{"role": role, "allowed_endpoints": rule} for role, rule in rules]
                }
            },
        },
        AdminConfig,
    )


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "admin.pub").write_bytes(public_pem(KEY))
    return str(tmp_path / "admin.pub")


@pytest.fixture
def access(key_file: str) -> AdminAccess:
    return AdminAccess(configured({"issuer": "ops", "audience": "kbs", "public_key_uri": key_file}))


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": "ops", "aud": "kbs", "sub": "ada", "role": "admin", "exp": now + 60, **changes}
    return {name: value for name, value in made.items() if value is not None}


def bearer(
    payload: dict[str, Any] | None = None,
    key: Any = KEY,
    alg: str = "EdDSA",
    header: dict[str, Any] | None = None,
) -> str:
    segments = [
        base64url.encode_text(json.dumps(part).encode())
        for part in ({"alg": alg, **(header or {})}, claims() if payload is None else payload)
    ]
    signing_input = ".".join(segments)
    signature = ALGORITHMS[alg].sign(key, signing_input.encode())
    return f"Bearer {signing_input}.{base64url.encode_text(signature)}"


async def denied(access: AdminAccess, authorization: str | None) -> str:
    with pytest.raises(AdminAuthError) as error:
        await access.authorize(authorization, "POST", PATH)
    assert (error.value.status, error.value.type) == (401, "AdminAuth")
    assert error.value.detail == AdminAuthError.default_detail
    return error.value.diagnostics()


async def test_everybody_is_let_in_where_the_configuration_says_so(
    caplog: pytest.LogCaptureFixture,
):
    config = msgspec.convert({"authorization_mode": "InsecureAllowAll"}, AdminConfig)
    access = await AdminAccess.create(config)
    assert (await access.authorize(None, "POST", PATH)).role == ""
    assert "InsecureAllowAll" in caplog.text
    await access.close()


async def test_nobody_is_let_in_where_the_configuration_says_so():
    access = AdminAccess(msgspec.convert({"authorization_mode": "DenyAll"}, AdminConfig))
    with pytest.raises(AdminDeniedError) as error:
        await access.authorize(bearer(), "POST", PATH)
    assert (error.value.status, error.value.type) == (403, "AdminAuth")


async def test_a_token_made_by_another_library_is_taken(access: AdminAccess):
    token = jwt.encode(
        {"alg": "EdDSA"}, claims(aud=["other", "kbs"]), OKPKey.import_key(KEY), ["EdDSA"]
    )
    administrator = await access.authorize(f"Bearer {token}", "POST", PATH)
    assert administrator == Administrator(subject="ada", role="admin", issuer="ops")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
async def test_the_scheme_is_read_in_any_case(access: AdminAccess, scheme: str):
    await access.authorize(scheme + bearer()[6:], "POST", PATH)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer ..", "token"],
)
async def test_a_request_without_a_token_is_not_authenticated(
    access: AdminAccess, authorization: str | None
):
    await denied(access, authorization)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": int(time.time()) - 1},
        {"nbf": int(time.time()) + 3600},
        {"iss": "else"},
        {"iss": None},
        {"aud": "else"},
        {"aud": None},
        {"aud": []},
        {"aud": ["else", 7]},
        {"role": None},
        {"role": ""},
        {"role": ["admin"]},
        {"role": "r" * 257},
        {"sub": 7},
    ],
)
async def test_a_token_with_other_claims_is_refused(access: AdminAccess, changes: dict[str, Any]):
    await denied(access, bearer(claims(**changes)))


async def test_a_token_of_another_key_is_refused(access: AdminAccess):
    await denied(access, bearer(key=ed25519.Ed25519PrivateKey.generate()))


async def test_a_key_in_the_header_proves_nothing(access: AdminAccess):
    attacker = ed25519.Ed25519PrivateKey.generate()
    header = {"jwk": public_jwk(attacker.public_key())}
    await denied(access, bearer(key=attacker, header=header))
    await access.authorize(bearer(header=header), "POST", PATH)


async def test_the_algorithm_must_fit_the_key(access: AdminAccess):
    for alg, key in (
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("RS256", rsa.generate_private_key(65537, 2048)),
    ):
        await denied(access, bearer(key=key, alg=alg))


async def test_a_public_key_is_never_a_secret_nor_is_none_an_algorithm(access: AdminAccess):
    payload = base64url.encode_text(json.dumps(claims()).encode())
    for alg in ("HS256", "HS512", "none"):
        unsigned = f"{base64url.encode_text(json.dumps({'alg': alg}).encode())}.{payload}"
        mac = hmac.digest(public_pem(KEY), unsigned.encode(), "sha512" if "5" in alg else "sha256")
        for signature in ("", base64url.encode_text(mac)):
            await denied(access, f"Bearer {unsigned}.{signature}")


async def test_a_tampered_token_is_refused(access: AdminAccess):
    token = bearer()
    for position in range(len("Bearer "), len(token)):
        changed = (
            token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        )
        await denied(access, changed)


async def test_an_enormous_token_is_refused(access: AdminAccess):
    assert "too long" in await denied(access, bearer(claims(text="x" * 20_000)))


async def test_each_provider_vouches_for_its_own_issuer_only(tmp_path: Path):
    keys = [ed25519.Ed25519PrivateKey.generate() for _ in range(2)]
    providers = []
    for number, key in enumerate(keys):
        (tmp_path / str(number)).write_bytes(public_pem(key))
        providers.append(
            {"issuer": f"issuer-{number}", "public_key_uri": str(tmp_path / str(number))}
        )
    access = AdminAccess(configured(*providers))
    for number, key in enumerate(keys):
        await access.authorize(bearer(claims(iss=f"issuer-{number}"), key), "GET", PATH)
        await denied(access, bearer(claims(iss=f"issuer-{1 - number}"), key))


async def test_keys_come_from_a_set_by_their_kid(tmp_path: Path):
    jwk = {**public_jwk(KEY.public_key()), "kid": "one", "alg": "EdDSA"}
    (tmp_path / "keys").write_text(json.dumps({"keys": [jwk]}))
    access = AdminAccess(configured({"jwk_set_uri": f"file://{tmp_path / 'keys'}"}))
    await access.authorize(bearer(header={"kid": "one"}), "GET", PATH)
    await denied(access, bearer(header={"kid": "two"}))
    await denied(access, bearer())


async def test_a_provider_that_does_not_answer_holds_up_no_token_of_another(key_file: str):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/keys"
        access = await AdminAccess.create(
            configured(
                {"issuer": "dead", "jwk_set_uri": url},
                {"issuer": "ops", "public_key_uri": key_file},
            )
        )
        async with asyncio.timeout(2):
            await access.authorize(bearer(header={"kid": "any"}), "GET", PATH)
        await access.close()


def test_unset_issuer_and_audience_are_warned_of(key_file: str, caplog: pytest.LogCaptureFixture):
    AdminAccess(configured({"public_key_uri": key_file}))
    assert "whatever their issuer" in caplog.text
    assert "whatever their audience" in caplog.text


@pytest.mark.parametrize(
    "providers",
    [
        [],
        [{"issuer": "ops"}],
        [{"issuer": "ops", "public_key_uri": "", "jwk_set_uri": ""}],
        [{"public_key_uri": "/absent/key.pem"}],
        [{"public_key_uri": "http://localhost/key.pem"}],
        [{"jwk_set_uri": "/absent/keys.jwks"}],
        [{"public_key_uri": __file__}],
    ],
)
def test_a_provider_without_a_readable_key_is_a_configuration_error(
    providers: list[dict[str, Any]],
):
    with pytest.raises(ConfigError):
        AdminAccess(configured(*providers))


async def test_a_remembered_token_is_forgotten_when_it_expires(access: AdminAccess):
    authorization = bearer(claims(exp=time.time() + 0.05))
    await access.authorize(authorization, "GET", PATH)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            await access.authorize(authorization, "GET", PATH)
        except AdminAuthError:
            return
    pytest.fail("an expired token was still remembered")


async def test_a_role_without_a_rule_is_authenticated_but_not_allowed(access: AdminAccess):
    for role, path in (("else", PATH), ("admin", "/kbs/v0/resource-policy"), ("Admin", PATH)):
        with pytest.raises(AdminDeniedError) as error:
            await access.authorize(bearer(claims(role=role)), "POST", path)
        assert (error.value.status, error.value.type) == (403, "AdminAuth")


async def test_the_rules_of_a_role_add_up(key_file: str):
    access = AdminAccess(
        configured(
            {"public_key_uri": key_file},
            acls=[
                ("admin", "^/kbs/v0/resource-policy$"),
                ("reader", "^/kbs/v0/reference-value/.+$"),
                ("admin", RESOURCES),
            ],
        )
    )
    for path in ("/kbs/v0/resource-policy", PATH):
        await access.authorize(bearer(), "POST", path)
    with pytest.raises(AdminDeniedError):
        await access.authorize(bearer(), "GET", "/kbs/v0/reference-value/x")


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "/kbs/v0/resource/.+",
        "^/kbs/v0/resource/.+",
        "/kbs/v0/resource/.+$",
        "^/other$",
        ".*^/kbs/x$",
        "^/kbs/(x$",
        "^/kbs/x)$",
        "^/kbs/[x$",
        "^/kbs/x**$",
        "^/kbs/(?=x)$",
        "^/kbs/(?P<n>x)$",
        "^/kbs/(?i:x)$",
        r"^/kbs/(x)\1$",
        r"^/kbs/\bx$",
        "^/kbs/x{5,2}$",
        "^/kbs/x{1000}$",
        "^/kbs/((((x{99}){99}){99}){99})$",
        "^/kbs/[a-z&&[b]]$",
        "^/kbs" + "(" * 50 + ")" * 50 + "$",
        "^/kbs" + "x" * 2000 + "$",
    ],
)
def test_a_rule_that_is_not_anchored_or_not_supported_is_a_configuration_error(
    key_file: str, rule: str
):
    with pytest.raises(ConfigError, match="allowed_endpoints"):
        AdminAccess(configured({"public_key_uri": key_file}, acls=[("admin", rule)]))


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=100, deadline=None)
async def test_any_header_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.mktemp("keys") / "admin.pub"
    path.write_bytes(public_pem(KEY))
    access = AdminAccess(configured({"public_key_uri": str(path)}))
    await denied(access, text)
    await denied(access, f"Bearer {text}")


def test_nothing_of_the_token_is_in_the_error():
    raw = base64.b64encode(b"x" * 30).decode()
    assert raw not in str(AdminAuthError("x"))
