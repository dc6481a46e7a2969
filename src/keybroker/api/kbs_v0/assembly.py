"""From the parts to the face of the Key Broker Service."""

import anyio

from keybroker.api.kbs_v0.face import PREFIX, KbsFace
from keybroker.api.parts import Parts
from keybroker.kbs.broker import Broker
from keybroker.kbs.decision import ALLOW_RULE, RESOURCE_POLICY_ID, Decisions
from keybroker.kbs.plugins.registry import make_plugins
from keybroker.kbs.policies import RESOURCE_POLICIES, resource_policy
from keybroker.kbs.sessions import Sessions
from keybroker.model.errors import KeybrokerError
from keybroker.policy.store import VERDICT_NAMESPACE, PolicyStore
from keybroker.storage.interface import StorageProvider

#: How often records of ended sessions are deleted.
CLEANUP_SECONDS = 60.0


async def open_face(parts: Parts, *, put_in_force: str | None = None) -> None:
    """Make the broker and serve it below :data:`PREFIX`.

    Args:
        parts: of the application.
        put_in_force: name of a built-in resource policy that replaces the stored one.
    """
    config = parts.config
    policies = await open_resource_policies(parts.storage)
    if put_in_force is not None:
        await policies.set(RESOURCE_POLICY_ID, resource_policy(put_in_force))
    sessions = None
    if parts.attestation is not None and config.attestation is not None:
        sessions = Sessions(
            parts.session_keys,
            await parts.storage.namespace("kbs_protocol_session", config.session_storage_type),
            lifetime=config.attestation.timeout * 60,
        )
        parts.jobs.append(lambda: _clean_up(sessions))
    broker = Broker(
        attestation=parts.attestation,
        sessions=sessions,
        token_verifier=parts.tokens,
        decisions=Decisions(policies),
        admin=parts.admin,
        plugins=await make_plugins(config.plugins, parts.storage),
        allow_rsa1_5=config.release.allow_rsa1_5,
    )
    face = KbsFace(
        broker,
        parts.metrics,
        limits=parts.limits,
        max_attestations=config.limits.max_attestations_in_flight,
        secure=parts.secure,
    )
    parts.faces.append((PREFIX + "/", face))
    parts.documents[""] = "kbs"
    parts.readiness["resource policy"] = lambda: _policy_problem(policies)


async def open_resource_policies(storage: StorageProvider) -> PolicyStore:
    """Open the resource policies; the default one is written where there is none."""
    policies = PolicyStore(
        await storage.namespace("kbs"),
        entrypoints=(ALLOW_RULE,),
        builtins={RESOURCE_POLICY_ID: resource_policy("default")},
        known=[resource_policy(name) for name in RESOURCE_POLICIES],
        verdicts=await storage.namespace(VERDICT_NAMESPACE),
    )
    await policies.seed()
    return policies


async def _policy_problem(policies: PolicyStore) -> str | None:
    try:
        await policies.get(RESOURCE_POLICY_ID)
    except KeybrokerError:
        return "the resource policy cannot be used"
    return None


async def _clean_up(sessions: Sessions) -> None:
    while True:
        await anyio.sleep(CLEANUP_SECONDS)
        await sessions.forget_expired()
