"""Permissions of users: which of three kinds of things, and what may be done with them."""

from collections.abc import Iterable

from keybroker.model.errors import MalformedError

KEYS = "keys"
POLICIES = "key_transfer_policies"
USERS = "users"

CREATE = "create"
DELETE = "delete"
SEARCH = "search"
TRANSFER = "transfer"
UPDATE = "update"

#: Every permission that some endpoint asks for.
ALL_PERMISSIONS = (
    f"{KEYS}:{SEARCH}",
    f"{KEYS}:{CREATE}",
    f"{KEYS}:{DELETE}",
    f"{KEYS}:{TRANSFER}",
    f"{KEYS}:{UPDATE}",
    f"{POLICIES}:{CREATE}",
    f"{POLICIES}:{SEARCH}",
    f"{POLICIES}:{DELETE}",
    f"{USERS}:{DELETE}",
    f"{USERS}:{SEARCH}",
    f"{USERS}:{CREATE}",
    f"{USERS}:{UPDATE}",
)

#: More entries than there are permissions, in every spelling.
MAX_PERMISSIONS = 64

#: The original takes this spelling where users are made, though no endpoint of it asks for it.
_OTHER_SPELLINGS = {"key-transfer-policies": POLICIES}

_ACTIONS = frozenset({CREATE, DELETE, SEARCH, TRANSFER, UPDATE, "*"})


def check_permissions(permissions: Iterable[str]) -> tuple[str, ...]:
    """Return the permissions, as they were spelled, if each is one.

    Raises:
        MalformedError: none, too many, or one that is not ``<things>:<action>``; the action may
            be ``*``.
    """
    given = tuple(permissions)
    if not given:
        raise MalformedError("a user needs at least one permission")
    if len(given) > MAX_PERMISSIONS:
        raise MalformedError("too many permissions")
    for permission in given:
        things, colon, action = permission.partition(":")
        known = _OTHER_SPELLINGS.get(things, things) in (KEYS, POLICIES, USERS)
        if not colon or not known or action not in _ACTIONS:
            raise MalformedError(
                f"{permission[:64]!r} is not a permission; they are of the form users:create"
            )
    return given


def permits(permissions: Iterable[str], needed: str) -> bool:
    """Say whether permissions hold the needed one."""
    wanted_things, _, wanted_action = needed.partition(":")
    for permission in permissions:
        things, _, action = permission.partition(":")
        if _OTHER_SPELLINGS.get(things, things) == wanted_things and action in (wanted_action, "*"):
            return True
    return False
