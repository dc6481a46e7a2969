"""Key transfer as a whole: everything that ``/kbs/v1`` needs, made from a configuration."""

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass

from keybroker.config.key_transfer import KeyTransferConfig
from keybroker.key_transfer.access import Access, make_administrator
from keybroker.key_transfer.evidence import (
    AppraiserByKind,
    Attestation,
    EvidenceAppraiser,
    OwnAppraiser,
    TokenVerification,
    TrustAuthorityAppraiser,
)
from keybroker.key_transfer.keys import KeyStore
from keybroker.key_transfer.lockout import Lockout
from keybroker.key_transfer.managers.registry import open_key_manager
from keybroker.key_transfer.migration import take_over
from keybroker.key_transfer.nonces import Nonces
from keybroker.key_transfer.passwords import Passwords
from keybroker.key_transfer.policy_store import PolicyStore
from keybroker.key_transfer.transfer import Transfers
from keybroker.key_transfer.trust_authority import TrustAuthority
from keybroker.key_transfer.users import UserStore
from keybroker.model.errors import KeybrokerError, StorageError
from keybroker.storage.interface import KeyValueStore, StorageProvider
from keybroker.tokens.signer import TokenSigner

logger = logging.getLogger(__name__)

#: Namespaces of the storage.
USERS = "key_transfer_users"
USERNAMES = "key_transfer_usernames"
LOCKOUTS = "key_transfer_lockouts"
POLICIES = "key_transfer_policies"
KEYS = "key_transfer_keys"
INTENTS = "key_transfer_intents"
NONCES = "key_transfer_nonces"
SECRETS = "key_transfer_secrets"
TAKEN_OVER = "key_transfer_taken_over"

#: How often used nonces are forgotten and interrupted operations brought to an end.
CLEANUP_SECONDS = 60.0

_NONCE_KEY = "nonce-key"
_NONCE_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyTransfer:
    """What ``/kbs/v1`` is made of."""

    access: Access
    users: UserStore
    policies: PolicyStore
    keys: KeyStore
    transfers: Transfers
    nonces: Nonces

    async def clean_up(self) -> None:
        """Forget used nonces, settle interrupted operations and watch the key manager, for ever."""
        said: str | None = None
        while True:
            try:
                await self.nonces.forget_expired()
                await self.keys.settle()
                problem = await self.keys.problem()
                if problem != said:
                    # Not part of readiness: a broker whose key manager is down still serves the
                    # rest, and would only be restarted in vain.
                    logger.warning("the key manager: %s", problem or "all is well again")
                    said = problem
            except KeybrokerError as error:
                logger.warning("key transfer could not clean up: %s", error.diagnostics())
            await asyncio.sleep(CLEANUP_SECONDS)


async def open_key_transfer(
    config: KeyTransferConfig,
    storage: StorageProvider,
    stack: AsyncExitStack,
    *,
    attestation: Attestation | None,
    tokens: TokenVerification,
) -> KeyTransfer:
    """Make it all; what must be closed is left to the stack.

    Args:
        attestation: the attestation service of this broker, or None.
        tokens: verifies attestation results, its own and those of services that are trusted.

    Raises:
        ConfigError: the configuration cannot be carried out.
        StorageError: the storage failed.
    """
    passwords = Passwords()
    stack.callback(passwords.close)
    users = UserStore(await storage.namespace(USERS), await storage.namespace(USERNAMES), passwords)
    secrets = await storage.namespace(SECRETS)
    signer = await TokenSigner.create(None, secrets)
    lockout = Lockout(await storage.namespace(LOCKOUTS), config.lockout)
    access = Access(
        users, passwords, lockout, signer, token_seconds=config.token_validity_minutes * 60
    )
    nonces = Nonces(
        await _nonce_key(secrets), await storage.namespace(NONCES), lifetime=config.nonce_seconds
    )
    policies = PolicyStore(await storage.namespace(POLICIES))
    manager = await open_key_manager(config.key_manager, storage)
    stack.push_async_callback(manager.close)
    records = await storage.namespace(KEYS)
    keys = KeyStore(records, await storage.namespace(INTENTS), manager, policies)
    authority: TrustAuthority | None = None
    if config.trust_authority is not None:
        authority = TrustAuthority(config.trust_authority)
        stack.push_async_callback(authority.close)
        authority.start()
    own = None if attestation is None else OwnAppraiser(attestation, tokens, nonces)
    appraiser: EvidenceAppraiser | None = own
    if authority is not None and authority.attests:
        appraiser = TrustAuthorityAppraiser(authority, nonces)
        if own is not None:
            appraiser = AppraiserByKind(appraiser, own)
    if config.import_from is not None:
        await take_over(
            config.import_from,
            records=records,
            policies=policies,
            taken=await storage.namespace(TAKEN_OVER),
        )
    await make_administrator(users, config)
    transfers = Transfers(keys, policies, appraiser=appraiser, tokens=tokens, authority=authority)
    return KeyTransfer(access, users, policies, keys, transfers, nonces)


async def _nonce_key(secrets: KeyValueStore) -> bytes:
    key = await secrets.get(_NONCE_KEY)
    if key is None:
        await secrets.set(_NONCE_KEY, os.urandom(_NONCE_KEY_BYTES), overwrite=False)
        key = await secrets.get(_NONCE_KEY)  # another worker may have been first
    if key is None or len(key) != _NONCE_KEY_BYTES:
        raise StorageError("the key of nonces could not be kept")
    return key
