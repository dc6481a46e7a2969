"""The ``sample`` extractor: values as they stand, signed by nobody.

Whoever may register reference values is believed; the administrator's access control is the only
guard. The payload is base64 of a JSON object that gives every name its value::

    {"snp_launch_measurement": ["…"], "snp_bootloader": [3, 4]}
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_json


def extract_sample(payload: str) -> Mapping[str, Any]:
    """Return the values of a payload.

    Args:
        payload: standard base64, with padding, of a JSON object.

    Raises:
        MalformedError: not base64, not JSON, or not an object.
    """
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("the payload of a sample message must be standard base64") from None
    values = parse_json(raw)
    if not isinstance(values, dict):
        raise MalformedError("the payload of a sample message must be an object: name → value")
    return values
