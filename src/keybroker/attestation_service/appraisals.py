"""What a policy answered for claims, kept while policy and reference values stay what they are.

Guests of one image on one firmware make the same claims as far as a policy reads them: nonce, key
and the identity of the one guest are in its evidence, but not in what the policy reads. A policy
that can read more of its input than can be told, or that reads the clock, chance or the network,
is asked each time.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keybroker.policy.engine import CompiledPolicy
from keybroker.policy.reads import InputReads, input_reads

#: Different claims remembered for each policy; an entry takes about one KiB.
REMEMBERED_ANSWERS = 2048

Answer = Mapping[str, Any]


@dataclass(slots=True)
class _Memory:
    """Of one policy under one set of reference values."""

    policy: CompiledPolicy
    reference_values: Mapping[str, Any]
    reads: InputReads | None
    known: OrderedDict[bytes, Answer] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Question:
    """Claims, as far as their policy reads them.

    Attributes:
        read: what the policy is asked with.
        key: names the question in the memory; None: the answer is not to be kept.
    """

    read: Mapping[str, Any]
    key: bytes | None
    memory: _Memory


class AppraisalMemory:
    """Asks policies, and remembers. Safe to use from several threads."""

    def __init__(self) -> None:
        self._by_policy: dict[str, _Memory] = {}
        self._lock = threading.Lock()

    def question(
        self,
        policy: CompiledPolicy,
        claims: Mapping[str, Any],
        reference_values: Mapping[str, Any],
    ) -> Question:
        """Prepare what a policy is to be asked."""
        memory = self._memory(policy, reference_values)
        if memory.reads is None or not policy.deterministic:
            return Question(claims, None, memory)
        read = memory.reads.project(claims)
        try:
            key = hashlib.sha256(msgspec.json.encode(read, order="sorted")).digest()
        except OverflowError:  # an integer beyond 64 bits, which the encoder does not take
            return Question(read, None, memory)
        return Question(read, key, memory)

    def recall(self, question: Question) -> Answer | None:
        """Return the answer if the question was asked before; it is not to be changed."""
        if question.key is None:
            return None
        known = question.memory.known
        with self._lock:
            answer = known.get(question.key)
            if answer is not None:
                known.move_to_end(question.key)
        return answer

    def ask(self, question: Question) -> Answer:
        """Return the answer by entrypoint, which is not to be changed; asks the policy if need be.

        Raises:
            PolicyEngineError: the policy cannot answer.
        """
        answer = self.recall(question)
        if answer is not None:
            return answer
        memory = question.memory
        answer = memory.policy.evaluate(
            question.read, reference_values=memory.reference_values
        ).values
        if question.key is not None:
            with self._lock:
                memory.known[question.key] = answer
                if len(memory.known) > REMEMBERED_ANSWERS:
                    memory.known.popitem(last=False)
        return answer

    def _memory(self, policy: CompiledPolicy, reference_values: Mapping[str, Any]) -> _Memory:
        memory = self._by_policy.get(policy.name)
        if (
            memory is None
            or memory.policy is not policy
            or memory.reference_values is not reference_values
        ):
            memory = _Memory(policy, reference_values, input_reads(policy.source))
            self._by_policy[policy.name] = memory
        return memory
