import asyncio

import pytest

from keybroker.model.errors import MalformedError, NotFoundError, PolicyEngineError, PolicyError
from keybroker.policy.engine import trial_id
from keybroker.policy.store import PolicyStore

ALLOW = "policy/allow"
YES = "package policy\nallow := true"
NO = "package policy\nallow := false"
BROKEN = "package policy\nallow := {"


def policies(store, **more) -> PolicyStore:
    return PolicyStore(store, entrypoints=[ALLOW], **more)


async def decide(store: PolicyStore, policy_id: str = "default") -> object:
    return (await store.get(policy_id)).evaluate({}).get(ALLOW)


async def test_a_policy_set_through_one_store_is_in_force_in_another(plain_store) -> None:
    one, other = policies(plain_store), policies(plain_store)
    await one.set("default", YES)
    assert await decide(other) is True
    await one.set("default", NO)
    assert await decide(other) is False
    assert await decide(one) is False


async def test_a_policy_is_read_once_a_version(plain_store) -> None:
    store = policies(plain_store)
    await store.set("default", YES)
    first = await store.get("default")
    reads = plain_store.reads
    assert await store.get("default") is first
    assert plain_store.reads == reads


async def test_many_requests_for_a_new_policy_compile_it_once(plain_store) -> None:
    await plain_store.set("default.rego", YES.encode())
    store = policies(plain_store)
    compiled = await asyncio.gather(*(store.get("default") for _ in range(20)))
    assert len(set(map(id, compiled))) == 1


async def test_a_policy_that_does_not_compile_leaves_the_old_one_in_force(plain_store) -> None:
    store = policies(plain_store)
    await store.set("default", YES)
    with pytest.raises(PolicyError):
        await store.set("default", BROKEN)
    assert await store.source("default") == YES
    assert await decide(store) is True


@pytest.mark.parametrize("stored", [BROKEN.encode(), b"\xff\xfe", b""])
async def test_what_no_longer_compiles_fails_closed(plain_store, stored: bytes) -> None:
    store = policies(plain_store)
    await store.set("default", YES)
    assert await decide(store) is True
    await plain_store.set("default.rego", stored)
    for _ in range(2):
        with pytest.raises(PolicyEngineError) as failed:
            await store.get("default")
        assert failed.value.status == 500
        assert "default" not in failed.value.detail
    await store.set("default", NO)
    assert await decide(store) is False


async def test_a_policy_laid_in_by_hand_is_tried_before_it_is_compiled(plain_store) -> None:
    aborting = """package policy
default allow = false
plugin = data.plugin
allow { plugin == "resource" }
other := x { x := data.policy.allow with input as {"a": 1} with data.plugin as "resource" }
"""
    await plain_store.set("default.rego", aborting.encode())
    with pytest.raises(PolicyEngineError):
        await policies(plain_store).get("default")


async def test_a_deleted_policy_is_not_found(plain_store) -> None:
    store = policies(plain_store)
    await store.set("default", YES)
    await store.get("default")
    assert await store.delete("default")
    with pytest.raises(NotFoundError):
        await store.get("default")
    assert await store.source("default") is None


#: Compiles at once, but no trial of it ends well.
ENDLESS = "package policy\nallow { count(numbers.range(1, 200000000)) > 0 }"


async def test_a_stored_policy_that_passed_before_gets_no_second_trial(
    plain_store, verdicts
) -> None:
    await plain_store.set("default.rego", ENDLESS.encode())
    with pytest.raises(PolicyEngineError, match="too much memory"):
        await policies(plain_store, verdicts=verdicts).get("default")
    assert verdicts.values == {}
    await verdicts.set(trial_id(ENDLESS, [ALLOW]), b"{}")
    assert await policies(plain_store, verdicts=verdicts).get("default")


async def test_a_policy_that_ships_with_the_broker_gets_no_trial(plain_store) -> None:
    store = policies(plain_store, builtins={"default": ENDLESS})
    await store.seed()
    assert await store.get("default")


async def test_a_verdict_is_remembered_when_a_policy_is_set(plain_store, verdicts) -> None:
    await policies(plain_store, verdicts=verdicts).set("default", YES)
    assert list(verdicts.values) == [trial_id(YES, [ALLOW])]


async def test_seeding_keeps_what_is_there(plain_store) -> None:
    store = policies(plain_store, builtins={"default": NO, "other": NO})
    await store.set("default", YES)
    await store.seed()
    assert await store.ids() == ["default", "other"]
    assert await decide(store) is True
    assert await decide(store, "other") is False


async def test_overwriting_can_be_forbidden(plain_store) -> None:
    store = policies(plain_store)
    assert await store.set("default", YES, overwrite=False)
    assert not await store.set("default", NO, overwrite=False)
    assert await decide(store) is True


@pytest.mark.parametrize("policy_id", ["../x", "", "/etc", "a//b", "x" * 300, "a\0b"])
async def test_an_id_is_a_storage_key(plain_store, policy_id: str) -> None:
    store = policies(plain_store)
    if policy_id == "":
        policy_id = "."
    for call in (store.get(policy_id), store.source(policy_id), store.set(policy_id, YES)):
        with pytest.raises(MalformedError):
            await call
    assert plain_store.values == {}
