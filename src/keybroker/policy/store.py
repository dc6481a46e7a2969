"""Policies kept in a storage namespace, compiled when they are used and once a revision.

A policy that was set through one worker or replica is in force in all of them at the next use:
before each use the store is asked for the version of the stored text, which is cheap, and only a
new version is read and compiled.
"""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keybroker.model.errors import NotFoundError, PolicyEngineError, PolicyError
from keybroker.policy.engine import CompiledPolicy, compile_policy, trial_id
from keybroker.policy.rego import ENGINE_VERSION
from keybroker.storage.interface import KeyValueStore, check_key

logger = logging.getLogger(__name__)

#: Namespace where it is remembered which policies passed their trial.
VERDICT_NAMESPACE: Final = "policy_verdicts"

_SUFFIX = ".rego"

#: A stored policy that failed is not tried again before this, unless it changes: a request must
#: not be able to start a trial each time, and a trial can fail because the machine was busy.
RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Held:
    version: object
    policy: CompiledPolicy | None
    failure: str
    at: float


class PolicyStore:
    """Policies of one kind: what one caller asks, in one namespace.

    Args:
        store: the namespace; a policy is kept under ``<id>.rego``, as Trustee does.
        entrypoints: what will be asked of every policy in it, as ``policy/<rule>``.
        builtins: policies that ship with the broker, by id. They need no trial, and
            :meth:`seed` writes them where nothing is.
        known: texts of further policies that ship with the broker and need no trial.
        verdicts: namespace that remembers which policies passed their trial
            (:data:`VERDICT_NAMESPACE`); without it each process tries a stored policy once.
    """

    def __init__(
        self,
        store: KeyValueStore,
        *,
        entrypoints: Sequence[str],
        builtins: Mapping[str, str] | None = None,
        known: Iterable[str] = (),
        verdicts: KeyValueStore | None = None,
    ) -> None:
        self._store = store
        self._entrypoints = tuple(entrypoints)
        self._builtins = dict(builtins or {})
        self._verdicts = verdicts
        self._passed = {
            trial_id(source, entrypoints) for source in (*self._builtins.values(), *known)
        }
        self._held: dict[str, _Held] = {}
        self._compiling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def seed(self) -> None:
        """Write the policies that ship with the broker where nothing is stored under their id."""
        for policy_id, source in self._builtins.items():
            await self._store.set(_key(policy_id), source.encode(), overwrite=False)

    async def get(self, policy_id: str) -> CompiledPolicy:
        """Return the policy in force.

        Raises:
            NotFoundError: there is none of that id.
            PolicyEngineError: what is stored does not compile. An older policy is never used
                instead.
            MalformedError: the id is not a storage key.
        """
        key = _key(policy_id)
        version = await self._store.version(key)
        held = self._held.get(policy_id)
        if held is None or not _current(held, version):
            if version is None:
                self._held.pop(policy_id, None)
                raise NotFoundError(f"no policy {policy_id!r} is stored", detail="no such policy")
            async with self._compiling[policy_id]:
                held = self._held.get(policy_id)
                if held is None or not _current(held, version):
                    held = await self._load(policy_id, version)
                    self._held[policy_id] = held
        if held.policy is None:
            raise PolicyEngineError(held.failure)
        return held.policy

    async def source(self, policy_id: str) -> str | None:
        """Return the text of a policy, or None where there is none of that id.

        Raises:
            PolicyEngineError: what is stored is not text.
            MalformedError: the id is not a storage key.
        """
        raw = await self._store.get(_key(policy_id))
        if raw is None:
            return None
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise PolicyEngineError(f"the stored policy {policy_id!r} is not UTF-8") from None

    async def set(self, policy_id: str, source: str, *, overwrite: bool = True) -> bool:
        """Check a policy and put it in force; return False where ``overwrite`` forbade it.

        Raises:
            PolicyError: the policy is refused; what was in force stays so.
            MalformedError: the id is not a storage key.
        """
        key = _key(policy_id)
        await self._compile(policy_id, source)
        return await self._store.set(key, source.encode(), overwrite=overwrite)

    async def delete(self, policy_id: str) -> bool:
        """Delete a policy; return whether there was one."""
        return await self._store.delete(_key(policy_id))

    async def ids(self) -> list[str]:
        """Return the ids of all policies, sorted."""
        keys = await self._store.keys()
        return sorted(key.removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX))

    async def _load(self, policy_id: str, version: object) -> _Held:
        # The version was read before the text: if both changed in between, the next use sees
        # yet another version and reads again.
        try:
            source = await self.source(policy_id)
            if source is None:
                raise PolicyError("it was deleted")
            held = self._held.get(policy_id)
            if held is not None and held.policy is not None and held.policy.source == source:
                return _Held(version, held.policy, "", time.monotonic())
            return _Held(version, await self._compile(policy_id, source), "", time.monotonic())
        except (PolicyError, PolicyEngineError) as error:
            failure = f"the stored policy {policy_id!r} cannot be used: {error.diagnostics()}"
            logger.error("%s", failure)
            return _Held(version, None, failure, time.monotonic())

    async def _compile(self, policy_id: str, source: str) -> CompiledPolicy:
        trial = trial_id(source, self._entrypoints)
        known = await self._has_passed(trial)
        policy = await compile_policy(
            source, entrypoints=self._entrypoints, name=policy_id, tried=known
        )
        if not known:
            self._passed.add(trial)
            if self._verdicts is not None:
                verdict = json.dumps({"passed": True, "engine": ENGINE_VERSION}).encode()
                await self._verdicts.set(trial, verdict)
        return policy

    async def _has_passed(self, trial: str) -> bool:
        if trial in self._passed:
            return True
        if self._verdicts is None or await self._verdicts.get(trial) is None:
            return False
        self._passed.add(trial)
        return True


def _key(policy_id: str) -> str:
    return check_key(f"{policy_id}{_SUFFIX}")


def _current(held: _Held, version: object | None) -> bool:
    if held.version != version:
        return False
    return held.policy is not None or time.monotonic() - held.at < RETRY_SECONDS
