"""The narrow binding to the Rego engine (rego-cpp, through its Python package ``regopy``).

Only what a broker needs: build modules and base data into a bundle, give it an input, query an
entrypoint. A :class:`RegoEngine` belongs to one thread at a time.

Calls that build or query let go of the interpreter lock, so a slow policy does not hold up the
event loop. The many tiny calls that hand over an input keep it: each would otherwise be a chance
to lose the processor for a whole switch interval.
"""

import ctypes
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import regopy
from regopy import rego_shared as _shared

# The engine writes its own diagnostics to standard output unless told not to.
regopy.set_default_log_level("none")

#: Version of the engine; a verdict about a policy holds for one version only.
ENGINE_VERSION: Final[str] = str(regopy.rego_version())


class Undefined:
    """The value of a rule that no body defines."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = Undefined()


#: What is said where the engine fails in an evaluation without saying why: nearly always because
#: two bodies of one rule give it different values.
CONFLICT: Final = "a rule has two values, or its evaluation failed"


class RegoError(Exception):
    """The engine refused modules or failed in a query.

    Attributes:
        message: what the engine said.
        module: name of the module it was said about, or "".
        offset: place in that module in bytes, or None where the engine does not say.
    """

    def __init__(self, message: str, module: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.module = module
        self.offset = offset


def _prototype(name: str, *arguments: type) -> Any:
    function = getattr(_held, name)
    function.argtypes = list(arguments)
    function.restype = ctypes.c_uint32
    return function


#: The same library as regopy's, called without letting go of the interpreter lock.
_held = ctypes.PyDLL(_shared.rego._name)
_put_int = _prototype("regoInputInt", ctypes.c_void_p, ctypes.c_int64)
_put_float = _prototype("regoInputFloat", ctypes.c_void_p, ctypes.c_double)
_put_string = _prototype("regoInputString", ctypes.c_void_p, ctypes.c_char_p)
_put_boolean = _prototype("regoInputBoolean", ctypes.c_void_p, ctypes.c_bool)
_put_null = _prototype("regoInputNull", ctypes.c_void_p)
_put_item = _prototype("regoInputObjectItem", ctypes.c_void_p)
_put_object = _prototype("regoInputObject", ctypes.c_void_p, ctypes.c_size_t)
_put_array = _prototype("regoInputArray", ctypes.c_void_p, ctypes.c_size_t)
_set_input = _prototype("regoSetInput", ctypes.c_void_p, ctypes.c_void_p)
_set_input_json = _prototype("regoSetInputJSON", ctypes.c_void_p, ctypes.c_char_p)
_new_input = _held.regoNewInput
_new_input.argtypes = []
_new_input.restype = ctypes.c_void_p
_free_input = _held.regoFreeInput
_free_input.argtypes = [ctypes.c_void_p]
_free_input.restype = None

_INT64_MAX = 2**63 - 1


class _NeedsJsonError(Exception):
    """The value holds an integer beyond 64 bits, which the fast way cannot carry."""


class RegoEngine:
    """Modules and base data in compiled form, ready to be queried. Not for two threads at once.

    Args:
        modules: source by module name.
        data: the base document; fixed for the life of the engine.
        entrypoints: paths that may be queried, as ``package/rule``.

    Raises:
        RegoError: the modules do not compile.
    """

    def __init__(
        self, modules: Mapping[str, str], data: Mapping[str, Any], entrypoints: Sequence[str]
    ) -> None:
        self._builder = regopy.Interpreter()
        try:
            for name, source in modules.items():
                self._builder.add_module(name, source)
            if data:
                self._builder.add_data_json(json.dumps(data))
            self._bundle = self._builder.build(None, list(entrypoints))
        except _shared.RegoError as error:
            raise _parse_error(str(error)) from None
        if not self._bundle.ok():
            raise RegoError("the policy does not compile")
        self._runner = regopy.Interpreter()

    def query(self, entrypoint: str, value: Any) -> Any:
        """Return the value of an entrypoint under an input, or :data:`UNDEFINED`.

        Args:
            entrypoint: one of those given to the constructor.
            value: the input, made of JSON types.

        Raises:
            RegoError: evaluation failed (two values for one rule, recursion, an unknown
                function), or the input is not made of JSON types.
        """
        self._give_input(value)
        try:
            output = _shared.rego_bundle_query_entrypoint(
                self._runner._impl, self._bundle._impl, entrypoint
            )
        except _shared.RegoError as error:
            raise _parse_error(str(error)) from None
        try:
            return _read_output(output)
        finally:
            _shared.rego_free_output(output)

    def _give_input(self, value: Any) -> None:
        handle = _new_input()
        try:
            _put(handle, value)
            failed = _set_input(self._runner._impl, handle)
        except _NeedsJsonError:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            failed = _set_input_json(self._runner._impl, text)
        except (ValueError, RecursionError, UnicodeEncodeError) as error:
            raise RegoError(f"the input cannot be given to the engine: {error}") from None
        finally:
            _free_input(handle)
        if failed:
            raise RegoError("the engine refused the input")


def is_builtin(name: str) -> bool:
    """Return whether the engine has a built-in function of that (dotted) name."""
    global _probe  # noqa: PLW0603 - one interpreter answers for all
    if _probe is None:
        _probe = regopy.Interpreter()
    return bool(_shared.rego_is_available_builtin(_probe._impl, name))


_probe: Any = None


# The engine keeps strings as they stand between the quotes of JSON, and writes them out again
# without a look: a string that is not escaped here could end itself there and add members to the
# answer.
_MUST_ESCAPE = re.compile(r'["\\\x00-\x1f]')


def _escaped(text: str) -> bytes:
    if _MUST_ESCAPE.search(text):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text.encode()


def _put(handle: int, value: Any) -> None:
    kind = type(value)
    if kind is str:
        _put_string(handle, _escaped(value))
    elif kind is bool:
        _put_boolean(handle, value)
    elif kind is int:
        if not -_INT64_MAX <= value <= _INT64_MAX:
            raise _NeedsJsonError
        _put_int(handle, value)
    elif value is None:
        _put_null(handle)
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
        _put_float(handle, value)
    elif isinstance(value, Mapping):
        for name, member in value.items():
            _put_string(handle, _escaped(name))
            _put(handle, member)
            _put_item(handle)
        _put_object(handle, len(value))
    elif isinstance(value, str):  # enumerations of strings
        _put(handle, str(value))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for item in value:
            _put(handle, item)
        _put_array(handle, len(value))
    else:
        raise ValueError(f"{kind.__name__} is not a JSON type")


def _read_output(output: Any) -> Any:
    text = _shared.rego_output_string(output)
    if not _shared.rego_output_ok(output):
        raise RegoError(CONFLICT)
    if text == "undefined":
        return UNDEFINED
    if not text.startswith("{"):
        raise _parse_error(text)
    try:
        expressions = json.loads(text).get("expressions", [])
    except (ValueError, RecursionError):
        raise RegoError("the value of a rule is not JSON or is nested too deeply") from None
    return expressions[0] if expressions else UNDEFINED


# The engine describes an error as a tree:
#   (error 11:policy.rego|31|2 (errormsg 24:Invalid boolean operator) (errorast |31|2 …
# with the length of a text before it, and a place as module|offset|length.
_MESSAGE = re.compile(r"\(errormsg (\d+):")
_PLACE = re.compile(r"\(error (\d+):([^|\s()]+)\|(\d+)\|(\d+)")


def _parse_error(tree: str) -> RegoError:
    message = "the policy does not compile"
    found = _MESSAGE.search(tree)
    if found:
        message = tree[found.end() : found.end() + int(found[1])]
    place = _PLACE.search(tree)
    if place:
        return RegoError(message, place[2], int(place[3]))
    return RegoError(message)
