"""One reference value, and the form it is stored in.

Trustee's form, so that its storage can be taken over::

    {"version": "0.1.0", "name": "svn", "expiration": "2027-01-31T12:00:00Z", "value": [1, 2]}
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_struct

#: Version of the stored form.
STORED_VERSION = "0.1.0"

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """What evidence is held against.

    Attributes:
        name: what policies ask for.
        value: any JSON value; most are lists of what is good.
        expiration: when it stops being given out; whole seconds, UTC.
    """

    name: str
    value: Any
    expiration: datetime

    def expired(self, at: datetime) -> bool:
        """Return whether the value is no longer given out."""
        return at > self.expiration


class _Stored(msgspec.Struct, frozen=True):
    name: str
    expiration: str
    value: Any
    version: str = STORED_VERSION


def serialize(reference_value: ReferenceValue) -> bytes:
    """Return the stored form."""
    return json.dumps(
        {
            "version": STORED_VERSION,
            "name": reference_value.name,
            "expiration": reference_value.expiration.strftime(_TIME_FORMAT),
            "value": reference_value.value,
        }
    ).encode()


def parse_stored(raw: bytes) -> ReferenceValue:
    """Read the stored form.

    Raises:
        MalformedError: it is not one.
    """
    stored = parse_struct(raw, _Stored)
    try:
        expiration = datetime.strptime(stored.expiration, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise MalformedError("expiration must be a time like 2027-01-31T12:00:00Z") from None
    return ReferenceValue(stored.name, stored.value, expiration)


def a_year_after(moment: datetime) -> datetime:
    """Return the same time twelve months later; 28 February for 29 February."""
    moment = moment.replace(microsecond=0)
    try:
        return moment.replace(year=moment.year + 1)
    except ValueError:
        return moment.replace(year=moment.year + 1, day=28)
