"""What schemathesis needs to know: a PEM file is text, and large RSA keys take their time."""

from typing import Any

import schemathesis

schemathesis.serializer.alias("application/x-pem-file", "text/plain")

#: Seconds of a core go into each larger one; that it is made is shown elsewhere.
QUICK_RSA_BITS = 2048


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """Leave out requests to make an RSA key that is large."""
    information = body.get("key_information") if isinstance(body, dict) else None
    length = information.get("key_length") if isinstance(information, dict) else None
    return not (type(length) is int and length > QUICK_RSA_BITS)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make a large RSA key of the coverage phase a quick one."""
    information = case.body.get("key_information") if isinstance(case.body, dict) else None
    if isinstance(information, dict) and information.get("key_length") in (3072, 4096, 7680):
        information["key_length"] = QUICK_RSA_BITS
