"""Extractors: how the values are read out of a message's payload, by the message's ``type``."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from keybroker.model.errors import MalformedError
from keybroker.rvps.extractors.sample import extract_sample

#: Reads the payload of a message: values by name.
Extractor = Callable[[str], Mapping[str, Any]]

EXTRACTORS: Final[Mapping[str, Extractor]] = {"sample": extract_sample}


def extract(type_: str, payload: str) -> Mapping[str, Any]:
    """Return the reference values of a payload, by name.

    Raises:
        MalformedError: no extractor of that type, or the payload is not what it takes.
    """
    extractor = EXTRACTORS.get(type_)
    if extractor is None:
        known = ", ".join(sorted(EXTRACTORS))
        raise MalformedError(f"no extractor for messages of type {type_[:32]!r}; known: {known}")
    return extractor(payload)
