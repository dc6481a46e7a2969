"""SDK for guests and administrators of a key broker.

Example, in a confidential guest::

    from keybroker.client import GuestClient

    with GuestClient("https://broker:8080") as guest:
        key = guest.get_resource("default/disk/key")

Example, for the administrator::

    from keybroker.client import AdminClient

    with AdminClient("https://broker:8080", token=admin_token) as admin:
        admin.set_resource("default/disk/key", secret)

Both have a twin for asyncio. Errors are in :mod:`keybroker.client.errors`, sources of evidence in
:mod:`keybroker.client.attesters`.
"""

from keybroker.client.admin import AdminClient, AsyncAdminClient
from keybroker.client.errors import BrokerError, ClientError
from keybroker.client.explanation import AppraisalExplanation, Explanation, RuleExplanation
from keybroker.client.guest import AsyncGuestClient, GuestClient
from keybroker.client.tee_key import KeyKind, TeeKeyPair

__all__ = [
    "AdminClient",
    "AppraisalExplanation",
    "AsyncAdminClient",
    "AsyncGuestClient",
    "BrokerError",
    "ClientError",
    "Explanation",
    "GuestClient",
    "KeyKind",
    "RuleExplanation",
    "TeeKeyPair",
]
