"""The modules that stand beside a policy when it is compiled.

A policy sees three things besides its ``input``: ``query_reference_value(id)``, and for a request
``data.plugin``, ``data["resource-path"]``, ``data.query`` and ``data.method``. The engine fixes
base data when it compiles, so the request, which changes with every question, is carried by one
reserved member of the input and laid over ``data`` by an entry module of our own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from keybroker.policy.lexer import literal, tokens

#: Name under which the engine knows the policy; errors name it.
POLICY_MODULE: Final = "policy.rego"

#: Member of the input that carries the request; a policy reads ``data.…`` instead.
REQUEST_MEMBER: Final = "keybroker_request"

#: What of a request a policy sees in ``data``. All are always there.
REQUEST_FIELDS: Final = ("plugin", "resource-path", "query", "method")

#: Entrypoints of the entry module: without and with a request.
PLAIN: Final = "keybroker_entry/plain"
ASKED: Final = "keybroker_entry/asked"

# The built-in reads one member where a reference into the base document would copy all of it.
_REFERENCE_VALUES = """package policy
import rego.v1
query_reference_value(id) := object.get(data.keybroker_reference_values, id, null)
"""

_QUERY: Final = "query_reference_value"


def asked_reference_values(source: str) -> frozenset[str] | None:
    """Return the names of the reference values that a policy asks for; None: any may be asked.

    What a policy does not name costs it nothing, neither in an evaluation nor when it changes.
    """
    names: set[str] = set()
    stream = [token for token in tokens(source) if token.kind != "newline"]
    for index, token in enumerate(stream):
        if token.text != _QUERY:
            continue
        call = stream[index + 1 : index + 4]
        name = literal(call[1]) if [part.text for part in call[::2]] == ["(", ")"] else None
        if name is None:
            return None
        names.add(name)
    return frozenset(names)


def check_entrypoint(entrypoint: str) -> str:
    """Return ``data.policy.<rule>`` for an entrypoint ``policy/<rule>``.

    Raises:
        ValueError: it is not of that form.
    """
    package, _, rule = entrypoint.partition("/")
    if package != "policy" or not rule.isidentifier() or not rule.isascii():
        raise ValueError(f"entrypoint {entrypoint!r} is not policy/<rule>")
    return f"data.policy.{rule}"


def policy_modules(source: str, entrypoints: Sequence[str]) -> dict[str, str]:
    """Return the policy with the modules it is compiled with, by name."""
    return {
        POLICY_MODULE: source,
        "keybroker_reference_values.rego": _REFERENCE_VALUES,
        "keybroker_entry.rego": _entry_module(entrypoints),
    }


def policy_data(reference_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base document of a policy."""
    return {"keybroker_reference_values": dict(reference_values)}


def policy_input(value: Mapping[str, Any], request: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the input of the entry module."""
    if request is None:
        return {name: value[name] for name in value if name != REQUEST_MEMBER}
    fields = {
        "plugin": request.get("plugin", ""),
        "resource-path": request.get("resource-path", []),
        "query": request.get("query", {}),
        "method": request.get("method", "GET"),
    }
    return {**value, REQUEST_MEMBER: fields}


def _entry_module(entrypoints: Sequence[str]) -> str:
    # The engine takes local variables only as the values of `with`; a reference there is silently
    # not applied.
    fields = "; ".join(
        f"r{index} := input.{REQUEST_MEMBER}[{json.dumps(field)}]"
        for index, field in enumerate(REQUEST_FIELDS)
    )
    laid_over = " ".join(
        f"with data[{json.dumps(field)}] as r{index}" for index, field in enumerate(REQUEST_FIELDS)
    )
    lines = ["package keybroker_entry", "import rego.v1"]
    for entrypoint in entrypoints:
        rule = check_entrypoint(entrypoint)
        name = f"name := {json.dumps(entrypoint)}"
        lines.append(f"plain[name] := value if {{ {name}; value := {rule} }}")
        lines.append(f"asked[name] := value if {{ {name}; {fields}; value := {rule} {laid_over} }}")
    return "\n".join(lines) + "\n"
