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


async def test_a_policy_set_through_one_store_is_in_force_in_another(policy_namespace) -> None:
    one, other = policies(policy_namespace), policies(policy_namespace)
    await one.set("default", YES)
    assert await decide(other) is True
    await one.set("default", NO)
    assert await decide(other) is False
    assert await decide(one) is False


async def test_a_policy_is_read_once_a_version(policy_namespace) -> None:
    store = policies(policy_namespace)
    await store.set("default", YES)
    assert await store.get("default") is await store.get("default")


async def test_many_requests_for_a_new_policy_compile_it_once(policy_namespace) -> None:
    await policy_namespace.set("default.rego", YES.encode())
    store = policies(policy_namespace)
    compiled = await asyncio.gather(*(store.get("default") for _ in range(20)))
    assert len(set(map(id, compiled))) == 1


async def test_a_policy_that_does_not_compile_leaves_the_old_one_in_force(policy_namespace) -> None:
    store = policies(policy_namespace)
    await store.set("default", YES)
    with pytest.raises(PolicyError):
        await store.set("default", BROKEN)
    assert await store.source("default") == YES
    assert await decide(store) is True


@pytest.mark.parametrize("stored", [BROKEN.encode(), b"\xff\xfe", b""])
async def test_what_no_longer_compiles_fails_closed(policy_namespace, stored: bytes) -> None:
    store = policies(policy_namespace)
    await store.set("default", YES)
    assert await decide(store) is True
    await policy_namespace.set("default.rego", stored)
    for _ in range(2):
        with pytest.raises(PolicyEngineError) as failed:
            await store.get("default")
        assert failed.value.status == 500
        assert "default" not in failed.value.detail
    await store.set("default", NO)
    assert await decide(store) is False


async def test_a_policy_laid_in_by_hand_is_tried_before_it_is_compiled(policy_namespace) -> None:
    aborting = """package policy
default allow = false
plugin = data.plugin
allow { plugin == "resource" }
other := x { x := data.policy.allow with input as {"a": 1} with data.plugin as "resource" }
"""
    await policy_namespace.set("default.rego", aborting.encode())
    with pytest.raises(PolicyEngineError):
        await policies(policy_namespace).get("default")


async def test_a_deleted_policy_is_not_found(policy_namespace) -> None:
    store = policies(policy_namespace)
    await store.set("default", YES)
    await store.get("default")
    assert await store.delete("default")
    with pytest.raises(NotFoundError):
        await store.get("default")
    assert await store.source("default") is None


#: Compiles at once, but no trial of it ends well.
ENDLESS = "package policy\nallow { count(numbers.range(1, 200000000)) > 0 }"


async def test_a_stored_policy_that_passed_before_gets_no_second_trial(
    policy_namespace, verdicts
) -> None:
    await policy_namespace.set("default.rego", ENDLESS.encode())
    with pytest.raises(PolicyEngineError, match="too much memory"):
        await policies(policy_namespace, verdicts=verdicts).get("default")
    assert await verdicts.keys() == []
    await verdicts.set(trial_id(ENDLESS, [ALLOW]), b"{}")
    assert await policies(policy_namespace, verdicts=verdicts).get("default")


async def test_a_policy_that_ships_with_the_broker_gets_no_trial(policy_namespace) -> None:
    store = policies(policy_namespace, builtins={"default": ENDLESS})
    await store.seed()
    assert await store.get("default")


async def test_a_verdict_is_remembered_when_a_policy_is_set(policy_namespace, verdicts) -> None:
    await policies(policy_namespace, verdicts=verdicts).set("default", YES)
    assert await verdicts.keys() == [trial_id(YES, [ALLOW])]


async def test_seeding_keeps_what_is_there(policy_namespace) -> None:
    store = policies(policy_namespace, builtins={"default": NO, "other": NO})
    await store.set("default", YES)
    await store.seed()
    assert await store.ids() == ["default", "other"]
    assert await decide(store) is True
    assert await decide(store, "other") is False


async def test_overwriting_can_be_forbidden(policy_namespace) -> None:
    store = policies(policy_namespace)
    assert await store.set("default", YES, overwrite=False)
    assert not await store.set("default", NO, overwrite=False)
    assert await decide(store) is True


@pytest.mark.parametrize("policy_id", ["../x", "", "/etc", "a//b", "x" * 300, "a\0b"])
async def test_an_id_is_a_storage_key(policy_namespace, policy_id: str) -> None:
    store = policies(policy_namespace)
    if policy_id == "":
        policy_id = "."
    for call in (store.get(policy_id), store.source(policy_id), store.set(policy_id, YES)):
        with pytest.raises(MalformedError):
            await call
    assert await policy_namespace.keys() == []
