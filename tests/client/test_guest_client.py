"""Guests: handshake, sessions, tokens, and what each refusal means to them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from broker_simulator import BrokerSimulator, Reply, problem

from keybroker.client import AsyncGuestClient, ClientError, GuestClient, KeyKind, TeeKeyPair
from keybroker.client.attesters import SampleAttester, SampleDeviceAttester
from keybroker.client.errors import (
    AttesterError,
    BadRequestError,
    BrokerFailedError,
    BusyError,
    ConnectionFailedError,
    DeniedError,
    InputError,
    NotFoundError,
    ProtocolError,
    SealedSecretError,
    TooLargeError,
    UnauthenticatedError,
)
from keybroker.model.tee import Tee

PATH = "default/key/1"
SECRET = b"first secret"


def guest(simulator: BrokerSimulator, **options: Any) -> GuestClient:
    options = {"devices": [], **options}
    return GuestClient(simulator.url, SampleAttester(), **options)


@pytest.mark.parametrize("kind", [KeyKind.P256, KeyKind.P521, KeyKind.RSA2048])
def test_a_guest_attests_and_gets_its_secret(simulator: BrokerSimulator, kind: KeyKind) -> None:
    with guest(simulator, tee_key=TeeKeyPair.generate(kind)) as client:
        assert client.get_resource(PATH) == SECRET
        assert client.get_resource(f"kbs:///{PATH}") == SECRET
    assert simulator.count("auth") == simulator.count("attest") == 1


async def test_an_async_guest_attests_and_gets_its_secret(simulator: BrokerSimulator) -> None:
    async with AsyncGuestClient(simulator.url, SampleAttester(), devices=[]) as client:
        token = await client.attest()
        assert await client.get_resource(PATH) == SECRET
    assert token in simulator.tokens


@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512", None])
def test_the_hash_that_the_broker_selects_is_used(
    simulator: BrokerSimulator, name: str | None
) -> None:
    simulator.hash_name = name
    with guest(simulator) as client:
        assert client.attest() in simulator.tokens


def test_devices_are_attested_and_bound(simulator: BrokerSimulator) -> None:
    with guest(simulator, devices=[SampleDeviceAttester()]) as client:
        client.attest()
    additional = simulator.attestations[0]["tee-evidence"]["additional_evidence"]
    assert list(json.loads(additional)) == ["sampledevice"]


def test_two_devices_of_a_kind_are_refused(simulator: BrokerSimulator) -> None:
    with (
        guest(simulator, devices=[SampleDeviceAttester(), SampleDeviceAttester()]) as client,
        pytest.raises(InputError),
    ):
        client.attest()


def test_init_data_goes_along(simulator: BrokerSimulator) -> None:
    with guest(simulator, init_data='algorithm = "sha384"') as client:
        client.attest()
    with guest(simulator, init_data='{"algorithm": "sha384"}') as client:
        client.attest()
    with guest(simulator) as client:
        client.attest()
    assert [attestation["init-data"] for attestation in simulator.attestations] == [
        {"format": "toml", "body": 'algorithm = "sha384"'},
        {"format": "json", "body": '{"algorithm": "sha384"}'},
        None,
    ]


def test_a_token_is_shown_in_place_of_evidence(simulator: BrokerSimulator) -> None:
    key = TeeKeyPair.generate()
    with guest(simulator, tee_key=key) as client:
        token = client.attest()
    with GuestClient(simulator.url, tee_key=key, token=token) as passport_holder:
        assert passport_holder.get_resource(PATH) == SECRET
    assert simulator.count("auth") == 1


def test_an_expired_token_is_not_replaced_behind_the_callers_back(
    simulator: BrokerSimulator,
) -> None:
    with (
        GuestClient(simulator.url, tee_key=TeeKeyPair.generate(), token="an.expired.one") as client,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        client.get_resource(PATH)
    assert "Attest again" in caught.value.hint()
    assert simulator.count("auth") == 0


def test_an_expired_session_is_renewed_once(simulator: BrokerSimulator) -> None:
    with guest(simulator) as client:
        client.attest()
        simulator.expire_sessions()
        assert client.get_resource(PATH) == SECRET
        assert simulator.count("auth") == 2
        resource = f"resource/{PATH}"
        simulator.overrides[resource] = [problem(401, "TokenVerifierError") for _ in range(9)]
        with pytest.raises(UnauthenticatedError):
            client.get_resource(PATH)
    assert simulator.count("auth") == 3
    assert len(simulator.overrides[resource]) == 7


def test_a_denial_is_final(simulator: BrokerSimulator) -> None:
    simulator.denied.add(PATH)
    with guest(simulator) as client, pytest.raises(DeniedError) as caught:
        client.get_resource(PATH)
    assert (caught.value.status, caught.value.problem) == (403, "PolicyDeny")
    assert caught.value.detail == "told by the simulator"
    assert "--explain" in caught.value.hint()
    assert simulator.count("auth") == 1


def test_absence_is_final(simulator: BrokerSimulator) -> None:
    with guest(simulator) as client, pytest.raises(NotFoundError):
        client.get_resource("default/key/absent")
    assert simulator.count("auth") == 1


def test_refused_evidence_is_not_sent_again(simulator: BrokerSimulator) -> None:
    class Liar:
        tee = Tee.SAMPLE

        def evidence(self, report_data: bytes) -> Any:
            return {"svn": "1", "report_data": "AAAA"}

    with (
        GuestClient(simulator.url, Liar(), devices=[]) as client,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        client.get_resource(PATH)
    assert "never told" in caught.value.hint()
    assert simulator.count("attest") == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (401, UnauthenticatedError),
        (403, DeniedError),
        (404, NotFoundError),
        (405, BadRequestError),
        (413, TooLargeError),
        (429, BusyError),
        (500, BrokerFailedError),
        (503, BusyError),
        (302, ProtocolError),
        (206, ProtocolError),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"type": 1}', b"\xff"])
def test_every_refusal_is_a_typed_error_whatever_its_body(
    simulator: BrokerSimulator, status: int, error: type[ClientError], body: bytes
) -> None:
    simulator.overrides["auth"] = [Reply(status, body, {"Location": "http://127.0.0.1:1/"})]
    with guest(simulator) as client, pytest.raises(error) as caught:
        client.attest()
    assert isinstance(caught.value.hint(), str)
    assert simulator.requests == [("POST", "auth")]


def test_another_protocol_version_says_what_to_do(simulator: BrokerSimulator) -> None:
    simulator.overrides["auth"] = [problem(400, "ProtocolVersionMismatch")]
    with guest(simulator) as client, pytest.raises(BadRequestError) as caught:
        client.attest()
    assert "upgrade" in caught.value.hint()


def test_control_characters_of_a_lying_broker_do_not_reach_the_terminal(
    simulator: BrokerSimulator,
) -> None:
    simulator.overrides["auth"] = [problem(400, "X", "\x1b[2J" + "long" * 9999)]
    with guest(simulator) as client, pytest.raises(BadRequestError) as caught:
        client.attest()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("path", ["auth", "attest", f"resource/{PATH}"])
@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{}", b'{"token": "not a token\\n"}'])
def test_a_nonsensical_answer_is_a_protocol_error(
    simulator: BrokerSimulator, path: str, body: bytes
) -> None:
    simulator.overrides[path] = [Reply(200, body)]
    with guest(simulator) as client, pytest.raises(ProtocolError):
        client.get_resource(PATH)


def test_a_secret_for_another_guest_cannot_be_opened(simulator: BrokerSimulator) -> None:
    with guest(simulator) as first:
        token = first.attest()
    with (
        GuestClient(simulator.url, tee_key=TeeKeyPair.generate(), token=token) as second,
        pytest.raises(SealedSecretError),
    ):
        second.get_resource(PATH)


def test_a_broken_attester_is_told_apart_from_a_broken_broker(simulator: BrokerSimulator) -> None:
    class Broken:
        tee = Tee.SNP

        def evidence(self, report_data: bytes) -> Any:
            raise AttesterError("the hardware is on fire")

    with (
        GuestClient(simulator.url, Broken(), devices=[]) as client,
        pytest.raises(AttesterError, match="on fire"),
    ):
        client.attest()
    assert simulator.count("attest") == 0


def test_nobody_listening_is_a_connection_error() -> None:
    with (
        GuestClient("http://127.0.0.1:1", SampleAttester(), devices=[]) as client,
        pytest.raises(ConnectionFailedError),
    ):
        client.attest()


async def test_nobody_listening_is_a_connection_error_for_async_guests_too() -> None:
    async with AsyncGuestClient("http://127.0.0.1:1", SampleAttester(), devices=[]) as client:
        with pytest.raises(ConnectionFailedError):
            await client.attest()


async def test_a_server_that_never_answers_is_left() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with (
        server,
        AsyncGuestClient(url, SampleAttester(), devices=[], timeout=0.2) as client,
    ):
        with pytest.raises(ConnectionFailedError, match="in time"):
            await client.attest()


@pytest.mark.parametrize(
    "noise", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
)
async def test_a_server_that_does_not_speak_http_is_a_client_error(noise: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(noise)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with server, AsyncGuestClient(url, SampleAttester(), devices=[]) as client:
        with pytest.raises(ClientError):
            await client.attest()


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://broker"},
        {"url": "broker:8080"},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"token": "a.b.c"},
        {"token": "no token\r\nX: y", "tee_key": TeeKeyPair.generate()},
        {"init_data": "\ud800"},
        {"root_certs": [Path("/absent.pem")]},
        {"root_certs": [Path(__file__)]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GuestClient(**{"url": "http://127.0.0.1:1", **options})


@pytest.mark.parametrize(
    "path", ["", "/", "a//b", "a/../b", "./a", "a/\0", "http://x/a/b/c", "kbs+:///a", "kbs://h"]
)
def test_path_tricks_are_not_sent(simulator: BrokerSimulator, path: str) -> None:
    with guest(simulator) as client, pytest.raises(InputError):
        client.get_resource(path)
    assert simulator.requests == []


def test_odd_names_arrive_as_they_are(simulator: BrokerSimulator) -> None:
    simulator.resources["r%C3%A9po/a%20b/c%2Fd%3F"] = b"odd"
    with guest(simulator) as client, pytest.raises(NotFoundError):
        client.get_resource("répo/a b/c%2Fd")
    assert simulator.requests[-1] == ("GET", "resource/r%C3%A9po/a%20b/c%252Fd")


def test_neither_token_nor_session_is_in_a_repr(simulator: BrokerSimulator) -> None:
    with guest(simulator) as client:
        token = client.attest()
        text = repr(vars(client)) + repr(client)
    assert token not in text
