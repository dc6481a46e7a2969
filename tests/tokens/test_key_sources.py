"""Key sets over real HTTPS, from servers that are slow, down, lying or silly."""

import asyncio
import contextlib
import http.server
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from token_pki import Trust, certify, claims, pem, private_pem, public_pem, token, write

from keybroker.model.errors import ConfigError, MalformedError, TokenVerifierError
from keybroker.tokens import fetch as fetch_module
from keybroker.tokens import key_sources
from keybroker.tokens.fetch import MAX_DOCUMENT_BYTES, FetchError, fetch
from keybroker.tokens.jwk import public_jwk
from keybroker.tokens.key_sources import KeySource, parse_jwk_set, parse_pem_key
from keybroker.tokens.verifier import TokenVerifier

CA = certify("test authority")
SITE = certify(
    "localhost",
    CA,
    ca=False,
    san=[x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
)
KEY = ec.generate_private_key(ec.SECP256R1())
NEW_KEY = ec.generate_private_key(ec.SECP256R1())

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def jwks(**keys: Any) -> bytes:
    return json.dumps(
        {"keys": [{**public_jwk(k.public_key()), "kid": kid} for kid, k in keys.items()]}
    ).encode()


def signed(key: Any = KEY, kid: str = "one") -> str:
    return token(key, {"alg": "ES256", "kid": kid}, claims(at=time.perf_counter()))


def body(content: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


class Issuer:
    """An HTTPS server that answers each path as it is told."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.released = threading.Event()
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                with contextlib.suppress(OSError):
                    issuer.answers.get(self.path, body(b"not here", 404))(self)

            def log_message(self, *args: object) -> None:
                return

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain = write(folder / "site.pem", private_pem(SITE.key) + pem(SITE))
        context.load_cert_chain(chain)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def hang(self, _: http.server.BaseHTTPRequestHandler) -> None:
        self.released.wait(30)

    def stop(self) -> None:
        self.released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    made = Issuer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def tls() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pem(CA).decode())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "FETCH_SECONDS", 0.3)
    monkeypatch.setattr(key_sources, "LOAD_SECONDS", 0.5)


async def verifier(issuer: Issuer, tls: ssl.SSLContext, path: str = "/keys") -> TokenVerifier:
    trust = Trust(trusted_jwk_sets=[issuer.url + path])
    return await TokenVerifier.create(trust, tls=tls)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.005)


async def test_a_published_set_is_fetched_once_for_many_tokens(issuer: Issuer, tls: ssl.SSLContext):
    issuer.answers["/keys"] = body(jwks(one=KEY))
    made = await verifier(issuer, tls)
    await asyncio.gather(*(made.verify(signed()) for _ in range(50)))
    assert issuer.requests == ["/keys"]
    await made.close()


async def test_an_issuer_is_asked_where_its_keys_are(issuer: Issuer, tls: ssl.SSLContext):
    discovery = json.dumps({"issuer": issuer.url, "jwks_uri": issuer.url + "/elsewhere"}).encode()
    issuer.answers["/realm"] = body(b"<html>Welcome</html>")
    issuer.answers["/realm/.well-known/openid-configuration"] = body(discovery)
    issuer.answers["/elsewhere"] = body(jwks(one=KEY))
    await (await verifier(issuer, tls, "/realm/")).verify(signed())
    assert issuer.requests[-1] == "/elsewhere"


@pytest.mark.parametrize(
    "document",
    [b"[]", b"{}", b'{"jwks_uri":7}', b"<html>", b'{"jwks_uri":"http://localhost/keys"}'],
)
async def test_a_discovery_document_that_names_no_https_address_is_refused(
    issuer: Issuer, tls: ssl.SSLContext, document: bytes
):
    issuer.answers["/.well-known/openid-configuration"] = body(document)
    with pytest.raises(TokenVerifierError):
        await (await verifier(issuer, tls, "")).verify(signed())


async def test_an_unknown_kid_has_the_set_fetched_again_but_not_for_every_token(
    issuer: Issuer, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
):
    issuer.answers["/keys"] = body(jwks(one=KEY))
    made = await verifier(issuer, tls)
    await made.verify(signed())
    issuer.answers["/keys"] = body(jwks(one=KEY, two=NEW_KEY))
    for number in range(20):
        with pytest.raises(TokenVerifierError):
            await made.verify(signed(NEW_KEY, f"invented-{number}"))
    assert len(issuer.requests) == 1
    monkeypatch.setattr(key_sources, "MIN_INTERVAL_SECONDS", 0.0)
    await made.verify(signed(NEW_KEY, "two"))
    assert len(issuer.requests) == 2


async def test_a_set_is_refreshed_behind_the_back_of_requests(
    issuer: Issuer, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(key_sources, "MIN_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(key_sources, "MIN_INTERVAL_SECONDS", 0.0)
    issuer.answers["/keys"] = body(jwks(one=KEY), Cache_Control="public, max-age=0")
    made = await verifier(issuer, tls)
    await made.verify(signed())
    issuer.answers["/keys"] = issuer.hang
    await made.verify(signed())
    await until(lambda: len(issuer.requests) == 2)
    await made.verify(signed())
    await made.close()


async def test_a_key_that_left_the_set_is_not_trusted_after_the_refresh(
    issuer: Issuer, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(key_sources, "MIN_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(key_sources, "MIN_INTERVAL_SECONDS", 0.0)
    issuer.answers["/keys"] = body(jwks(one=KEY), Cache_Control="max-age=0")
    source = KeySource(issuer.url + "/keys", tls=tls)
    assert await source.find("one")
    issuer.answers["/keys"] = body(jwks(two=NEW_KEY), Cache_Control="max-age=0")
    async with asyncio.timeout(10):
        while await source.find("one"):  # noqa: ASYNC110 - the refresh is in the background
            await asyncio.sleep(0.005)
    await source.close()


async def test_a_dead_server_does_not_matter_while_the_set_is_held(
    issuer: Issuer, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
):
    issuer.answers["/keys"] = body(jwks(one=KEY))
    made = await verifier(issuer, tls)
    await made.verify(signed())
    issuer.stop()
    monkeypatch.setattr(key_sources, "MIN_INTERVAL_SECONDS", 0.0)
    for source in made._sources:
        source._fresh_until = 0.0
    for _ in range(5):
        await made.verify(signed())
    await until(lambda: all(source._loading is None for source in made._sources))
    await made.verify(signed())
    for source in made._sources:
        source._loaded_at -= key_sources.STALE_SECONDS + 1
    with pytest.raises(TokenVerifierError):
        await made.verify(signed())
    await made.close()


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_hangs_delays_a_token_only_shortly(issuer: Issuer, tls: ssl.SSLContext):
    issuer.answers["/keys"] = issuer.hang
    began = time.monotonic()
    made = await verifier(issuer, tls)
    assert time.monotonic() - began < 0.2
    results = await asyncio.gather(
        *(made.verify(signed()) for _ in range(10)), return_exceptions=True
    )
    assert all(isinstance(result, TokenVerifierError) for result in results)
    assert time.monotonic() - began < 5


async def test_a_client_that_leaves_does_not_cancel_the_fetch_of_others(
    issuer: Issuer, tls: ssl.SSLContext
):
    arrived = threading.Event()

    def slow(request: http.server.BaseHTTPRequestHandler) -> None:
        arrived.set()
        issuer.released.wait(30)
        body(jwks(one=KEY))(request)

    issuer.answers["/keys"] = slow
    made = await verifier(issuer, tls)
    leaving, staying = (asyncio.create_task(made.verify(signed())) for _ in range(2))
    await asyncio.to_thread(arrived.wait, 10)
    leaving.cancel()
    issuer.released.set()
    await staying
    assert len(issuer.requests) == 1


async def test_a_dead_source_holds_up_no_token_of_another(issuer: Issuer, tls: ssl.SSLContext):
    issuer.answers["/dead"] = issuer.hang
    issuer.answers["/keys"] = body(jwks(one=KEY))
    trust = Trust(trusted_jwk_sets=[issuer.url + "/dead", issuer.url + "/keys"])
    made = await TokenVerifier.create(trust, tls=tls)
    async with asyncio.timeout(2):
        await made.verify(signed())
        await made.verify(signed())
    await made.close()


async def test_issuers_that_use_one_kid_do_not_hide_each_other(tmp_path: Path):
    paths = [
        write(tmp_path / str(number), jwks(one=key)) for number, key in enumerate((KEY, NEW_KEY))
    ]
    made = TokenVerifier(Trust(trusted_jwk_sets=paths))
    for key in (KEY, NEW_KEY):
        await made.verify(signed(key))


@pytest.mark.parametrize(
    "answer",
    [
        body(b"", 500),
        body(b"", 204),
        body(jwks(one=KEY), 404),
        body(b"<!doctype html><title>Sign in</title>"),
        body(b""),
        body(b"\x00\xff" * 100),
        body(b'{"keys":[]}'),
        body(json.dumps({"keys": [{}] * 201}).encode()),
        body(jwks(one=KEY) + b" " * MAX_DOCUMENT_BYTES),
        body(jwks(one=KEY), Content_Encoding="gzip"),
        body(b"", 302, Location="http://localhost/keys"),
        body(b"", 302, Location="file:///etc/passwd"),
        body(b"", 302, Location="/keys"),
        body(b"", 302, Location="https://[half"),
    ],
)
async def test_whatever_a_server_answers_instead_of_keys_is_no_key(
    issuer: Issuer, tls: ssl.SSLContext, answer: Answer
):
    issuer.answers["/keys"] = answer
    with pytest.raises(TokenVerifierError):
        await (await verifier(issuer, tls)).verify(signed())


async def test_an_endless_answer_is_cut_off(issuer: Issuer, tls: ssl.SSLContext):
    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not issuer.released.is_set():
            request.wfile.write(b" " * 65536)

    issuer.answers["/keys"] = endless
    with pytest.raises(FetchError, match="too large"):
        await fetch(issuer.url + "/keys", tls=tls)


async def test_a_redirect_to_https_is_followed(issuer: Issuer, tls: ssl.SSLContext):
    issuer.answers["/old"] = body(b"", 301, Location="/keys")
    issuer.answers["/keys"] = body(b"new", Cache_Control="max-age=7")
    document = await fetch(issuer.url + "/old", tls=tls)
    assert (document.body, document.max_age) == (b"new", 7)


async def test_a_server_that_no_authority_vouches_for_is_not_asked(issuer: Issuer):
    issuer.answers["/keys"] = body(jwks(one=KEY))
    with pytest.raises(FetchError):
        await fetch(issuer.url + "/keys")
    assert issuer.requests == []


@pytest.mark.parametrize("url", ["http://localhost/", "file:///etc/passwd", "localhost", ""])
async def test_only_https_is_fetched(url: str):
    with pytest.raises(FetchError):
        await fetch(url)


async def test_a_file_is_read_again_when_a_key_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "keys of issuer.jwks", jwks(one=KEY))
    source = KeySource("file://" + path.replace(" ", "%20"))
    assert await source.find("one")
    write(Path(path), jwks(two=NEW_KEY))
    monkeypatch.setattr(key_sources, "MIN_INTERVAL_SECONDS", 0.0)
    assert await source.find("two")
    write(Path(path), b"half wri")
    assert not await source.find("three")
    assert await source.find("two")


async def test_a_pem_key_is_found_whatever_the_kid(issuer: Issuer, tls: ssl.SSLContext):
    issuer.answers["/key.pem"] = body(public_pem(KEY))
    (key,) = await KeySource(issuer.url + "/key.pem", parse_pem_key, tls=tls).find("any")
    assert key.key == KEY.public_key()


async def test_discovery_is_for_key_sets_only(issuer: Issuer, tls: ssl.SSLContext):
    assert not await KeySource(issuer.url + "/key.pem", parse_pem_key, tls=tls).find(None)
    assert issuer.requests == ["/key.pem"]


def test_a_file_of_absurd_size_is_a_configuration_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="too large"):
        KeySource(write(tmp_path / "keys", b" " * (MAX_DOCUMENT_BYTES + 1)))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_octets_are_keys_or_refused(raw: bytes):
    for parse in (parse_jwk_set, parse_pem_key):
        with pytest.raises(MalformedError):
            parse(raw)


@given(
    st.lists(
        st.none()
        | st.dictionaries(
            st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "key_ops"]),
            st.none() | st.integers() | st.text(max_size=44) | st.lists(st.text(max_size=3)),
        ),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_unusable_keys_of_a_set_do_not_spoil_it(keys: list[Any]):
    good = {**public_jwk(KEY.public_key()), "kid": "good key"}
    found = parse_jwk_set(json.dumps({"keys": [*keys, good]}).encode()).find("good key")
    assert [key.key for key in found] == [KEY.public_key()]
