"""No key without its record, no record without its key, no key under a policy out of force."""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.key_transfer.conftest import StartKbs
from tests.key_transfer.trust_authority_service import TrustAuthorityService
from tests.key_transfer.wire import Admin, HeldKey, b64, transfer

from keybroker.key_transfer.errors import InUseError, KeyGoneError, KeyManagerError
from keybroker.key_transfer.keys import KeyFilter, KeyRequest, KeyStore
from keybroker.key_transfer.managers.local import LocalKeyManager
from keybroker.key_transfer.material import KeySpec
from keybroker.key_transfer.policy_store import PolicyStore
from keybroker.key_transfer.records import KeyRecord
from keybroker.model.errors import MalformedError, NotFoundError, StorageError
from keybroker.storage.memory import MemoryStore

AES = KeySpec("AES", 256)
POLICY = {"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": ["ab" * 32]}}}


class UnreliableManager(LocalKeyManager):
    """A key manager that does what it is asked, and then perhaps says that it failed."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.kept = store
        self.lose_answer = False
        self.down = False

    async def create(self, key_id: str, spec: KeySpec, created_at: str) -> str | None:
        self._check()
        await super().create(key_id, spec, created_at)
        return self._answer()

    async def delete(self, record: KeyRecord) -> None:
        self._check()
        await super().delete(record)
        self._answer()

    async def discard(self, key_id: str) -> None:
        self._check()
        await super().discard(key_id)

    def _check(self) -> None:
        if self.down:
            raise KeyManagerError("down")

    def _answer(self) -> None:
        if self.lose_answer:
            self.down = True
            raise KeyManagerError("the answer was lost")


class FullStore(MemoryStore):
    """A store that takes nothing."""

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        raise StorageError("the disk is full")


@dataclass
class Room:
    """A key store over memory."""

    records: MemoryStore = field(default_factory=MemoryStore)
    intents: MemoryStore = field(default_factory=MemoryStore)
    manager: UnreliableManager = field(default_factory=lambda: UnreliableManager(MemoryStore()))
    policies: PolicyStore = field(default_factory=lambda: PolicyStore(MemoryStore()))

    @property
    def keys(self) -> KeyStore:
        # What was interrupted is settled as soon as it is asked for.
        return KeyStore(
            self.records, self.intents, self.manager, self.policies, intent_seconds=-1.0
        )

    async def counts(self) -> tuple[int, int, int]:
        """Records, keys, intents."""
        found = [await store.keys() for store in (self.records, self.manager.kept, self.intents)]
        return tuple(len(names) for names in found)  # type: ignore[return-value]


async def test_a_creation_whose_answer_is_lost_leaves_nothing_in_the_end() -> None:
    room = Room()
    room.manager.lose_answer = True
    with pytest.raises(KeyManagerError):
        await room.keys.create(KeyRequest(AES))
    assert await room.counts() == (0, 1, 1)
    assert await room.keys.settle() == 0  # still down
    room.manager.down = False
    assert await room.keys.settle() == 1
    assert await room.counts() == (0, 0, 0)


async def test_a_key_that_is_made_after_its_creation_was_given_up_does_not_stay() -> None:
    room = Room()
    room.manager.lose_answer = True
    with pytest.raises(KeyManagerError):
        await room.keys.create(KeyRequest(AES))
    # The server was down for the taking back as well; then it comes back, and settling finds it.
    room.manager.down = room.manager.lose_answer = False
    (key_id,) = await room.intents.keys()
    await room.manager.kept.set(key_id, bytes(32))
    assert await room.keys.settle() == 1
    assert await room.counts() == (0, 0, 0)


async def test_a_record_that_cannot_be_written_takes_its_key_along() -> None:
    room = Room(records=FullStore())
    with pytest.raises(StorageError):
        await room.keys.create(KeyRequest(AES))
    assert await room.counts() == (0, 0, 0)


async def test_a_key_manager_that_is_down_makes_nothing() -> None:
    room = Room()
    room.manager.down = True
    with pytest.raises(KeyManagerError):
        await room.keys.create(KeyRequest(AES))
    assert (await room.counts())[:2] == (0, 0)


async def test_a_cancelled_creation_leaves_nothing() -> None:
    room = Room()
    for turns in range(12):
        task = asyncio.create_task(room.keys.create(KeyRequest(AES)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        records, kept, _ = await room.counts()
        assert records == kept


async def test_a_deletion_whose_answer_is_lost_is_brought_to_its_end() -> None:
    room = Room()
    record = await room.keys.create(KeyRequest(AES))
    room.manager.lose_answer = True
    with pytest.raises(KeyManagerError):
        await room.keys.delete(record.id)
    assert await room.counts() == (1, 0, 1)
    with pytest.raises(NotFoundError):
        await room.keys.fetch(record)
    assert await room.keys.settle() == 1
    assert await room.counts() == (0, 0, 0)


async def test_a_deletion_that_did_not_come_about_leaves_the_key() -> None:
    room = Room()
    record = await room.keys.create(KeyRequest(AES))
    room.manager.down = True
    with pytest.raises(KeyManagerError):
        await room.keys.delete(record.id)
    room.manager.down = False
    assert await room.keys.settle() == 1
    assert await room.counts() == (1, 1, 0)
    assert len(await room.keys.fetch(record)) == 32
    await room.keys.delete(record.id)
    assert await room.counts() == (0, 0, 0)


async def deletes(room: Room, policy_id: str) -> bool:
    """Whether the policy could be deleted."""
    keys = room.keys
    try:
        await room.policies.delete(policy_id, lambda: keys.names_policy(policy_id))
    except InUseError:
        return False
    return True


async def names(room: Room, policy_id: str, turns: int) -> bool:
    """Whether a key could name the policy, some turns of the loop later."""
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await room.keys.create(KeyRequest(AES, policy_id))
    except MalformedError:
        return False
    return True


async def test_deleting_a_policy_and_naming_it_never_both_come_about() -> None:
    for turns in range(40):
        room = Room()
        policy = await room.policies.create(POLICY)
        deleted, named = await asyncio.gather(
            deletes(room, policy.id), names(room, policy.id, turns % 10)
        )
        assert not (deleted and named)
        left = await room.keys.search(KeyFilter(transfer_policy_id=policy.id))
        assert len(left) == named
        if named:
            assert (await room.policies.get(policy.id)).id == policy.id
        records, kept, intents = await room.counts()
        assert (records, intents) == (kept, 0)


async def test_a_key_that_vanished_from_its_manager_is_not_found() -> None:
    room = Room()
    record = await room.keys.create(KeyRequest(AES))
    await room.manager.kept.delete(record.id)
    with pytest.raises(NotFoundError):
        await room.keys.fetch(record)
    with pytest.raises(KeyGoneError):
        await room.manager.fetch(record)


#: What the concurrent test is about; each key is always under one of two policies.
KEYS = 20
CLIENTS = 50
SECONDS = 8.0
SIGNERS = ("ab" * 32, "ef" * 32)


@dataclass
class Ledger:
    """Under which policy a key may have been at what time, by what the administrator was told."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    spans: dict[str, list[list[Any]]] = field(default_factory=dict)

    def begin(self, key_id: str, signer: str) -> None:
        """A change to this policy is about to be asked for."""
        with self.lock:
            self.spans.setdefault(key_id, []).append([signer, time.monotonic(), None])

    def end_others(self, key_id: str, signer: str | None) -> None:
        """The broker confirmed: nothing but this policy is in force (None: no key)."""
        now = time.monotonic()
        with self.lock:
            for span in self.spans[key_id]:
                if span[2] is None and span[0] != signer:
                    span[2] = now

    def in_force(self, key_id: str, signer: str, start: float, end: float) -> bool:
        """Whether the policy may have been in force at some moment of a request."""
        with self.lock:
            return any(
                span[0] == signer and span[1] <= end and (span[2] is None or span[2] >= start)
                for span in self.spans.get(key_id, [])
            )


def test_fifty_clients_see_only_200_401_and_404_while_everything_changes(
    start_kbs: StartKbs, held: HeldKey, tmp_path: Path
) -> None:
    with TrustAuthorityService(tmp_path / "ita") as service:
        admin = start_kbs(
            {"http_server": {"worker_count": 2}},
            trust_authority=service.table(api=False),
            token_validity_minutes=30,
        )
        held_data = b64(held.user_data("SGX"))
        tokens = {
            signer: service.token("SGX", {"sgx_mrsigner": signer, "attester_held_data": held_data})
            for signer in SIGNERS
        }
        ledger = Ledger()
        stopping = threading.Event()
        statuses: dict[int, int] = {}
        wrong: list[str] = []

        def policy_of(signer: str) -> str:
            body = {"attributes": {"mrsigner": [signer]}}
            return administrator.policy({"attestation_type": "SGX", "sgx": body})

        def administrate(index: int) -> None:
            chance = random.Random(index)
            with admin.broker.http() as http:
                mine = Admin(http, admin.token)
                while not stopping.is_set():
                    position = chance.randrange(index, KEYS, 2)
                    key_id, signer, policy = current[position]
                    other = SIGNERS[1 - SIGNERS.index(signer)]
                    if chance.random() < 0.15:
                        assert mine.call("DELETE", f"keys/{key_id}").status_code == 204
                        ledger.end_others(key_id, None)
                        made = mine.key(policy)["id"]
                        ledger.begin(made, signer)
                        current[position] = (made, signer, policy)
                        continue
                    new = mine.policy(
                        {"attestation_type": "SGX", "sgx": {"attributes": {"mrsigner": [other]}}}
                    )
                    ledger.begin(key_id, other)
                    answer = mine.call("PUT", f"keys/{key_id}", json={"transfer_policy_id": new})
                    assert answer.status_code == 201, answer.text
                    ledger.end_others(key_id, other)
                    current[position] = (key_id, other, new)
                    answer = mine.call("DELETE", f"key-transfer-policies/{policy}")
                    assert answer.status_code == 204, answer.text

        def ask(index: int) -> None:
            chance = random.Random(1000 + index)
            with admin.broker.http() as http:
                while not stopping.is_set():
                    key_id, _, _ = current[chance.randrange(KEYS)]
                    signer = chance.choice(SIGNERS)
                    start = time.monotonic()
                    try:
                        answer = transfer(http, key_id, json={"attestation_token": tokens[signer]})
                    except httpx.TransportError as error:
                        wrong.append(repr(error))
                        return
                    end = time.monotonic()
                    with ledger.lock:
                        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                    if answer.status_code not in (200, 401, 404):
                        wrong.append(f"{answer.status_code} {answer.text}")
                    elif answer.status_code == 200 and not ledger.in_force(
                        key_id, signer, start, end
                    ):
                        wrong.append(f"key {key_id} under the policy of {signer[:2]}")

        administrator = admin
        current: list[tuple[str, str, str]] = []
        for number in range(KEYS):
            signer = SIGNERS[number % 2]
            policy = policy_of(signer)
            key_id = admin.key(policy)["id"]
            ledger.begin(key_id, signer)
            current.append((key_id, signer, policy))
        with ThreadPoolExecutor(CLIENTS + 2) as pool:
            work = [pool.submit(administrate, index) for index in range(2)]
            work += [pool.submit(ask, index) for index in range(CLIENTS)]
            stopping.wait(SECONDS)
            stopping.set()
            for job in work:
                job.result()
        assert not wrong, wrong[:5]
        assert statuses.get(200, 0) > 20, statuses
        assert statuses.get(401, 0) > 20, statuses
        assert "Traceback" not in admin.broker.log_text
