"""The decision: may the bearer of these verified claims make this request?

The resource policy (``data.policy.allow``) decides, with the token's claims as ``input`` and the
request as ``data``. What was decided once for a token, a request and a revision of the policy is
not decided again while all three stay what they are, unless the policy reads the clock, chance or
the network.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keybroker.model.errors import NotFoundError, PolicyDenyError, PolicyEngineError
from keybroker.policy.engine import CompiledPolicy
from keybroker.policy.store import PolicyStore
from keybroker.tokens.verifier import VerifiedToken
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: Id under which the resource policy is stored (``resource-policy.rego`` in namespace ``kbs``).
RESOURCE_POLICY_ID = "resource-policy"

#: The rule that decides.
ALLOW_RULE = "policy/allow"

#: Decisions remembered by each worker.
REMEMBERED_DECISIONS = 8192

#: A remembered decision is used this long at most, however long the token lives.
DECISION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What is asked for, as the policy sees it in ``data``."""

    plugin: str
    path: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    method: str

    def as_data(self) -> dict[str, Any]:
        """Give the request the shape that policies read."""
        return {
            "plugin": self.plugin,
            "resource-path": list(self.path),
            "query": dict(self.query),
            "method": self.method,
        }


class Decisions:
    """Decides by the resource policy in force."""

    def __init__(self, policies: PolicyStore) -> None:
        self.policies = policies
        self._known: OrderedDict[
            tuple[bytes, ResourceRequest], tuple[CompiledPolicy, float, bool]
        ] = OrderedDict()

    async def require(self, token: VerifiedToken, request: ResourceRequest) -> None:
        """Return if the policy allows the request.

        Raises:
            PolicyDenyError: it does not.
            PolicyEngineError: it could not be asked; nothing is released then.
        """
        try:
            policy = await self.policies.get(RESOURCE_POLICY_ID)
        except NotFoundError:
            raise PolicyEngineError("there is no resource policy: nothing is released") from None
        key = (token.digest, request)
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and known[0] is policy and known[1] > now:
            self._known.move_to_end(key)
            allowed = known[2]
        else:
            allowed = await self._evaluate(policy, token.claims, request)
            if policy.deterministic:
                self._known[key] = (policy, now + DECISION_SECONDS, allowed)
                if len(self._known) > REMEMBERED_DECISIONS:
                    self._known.popitem(last=False)
        if not allowed:
            raise PolicyDenyError("the resource policy does not allow this request")

    async def _evaluate(
        self, policy: CompiledPolicy, claims: Mapping[str, Any], request: ResourceRequest
    ) -> bool:
        evaluation = await run(policy.evaluate, claims, request=request.as_data())
        value = evaluation.get(ALLOW_RULE)
        if value is None:
            logger.warning("the resource policy does not define data.policy.allow: denied")
            return False
        if not isinstance(value, bool):
            raise PolicyEngineError("data.policy.allow is not a boolean")
        return value
