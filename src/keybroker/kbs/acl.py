"""Access rules: which role may use which paths."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from keybroker.kbs.path_pattern import PathPattern, PatternError
from keybroker.model.errors import ConfigError

#: Longest path that a rule can allow; the longest path of the protocol is some 700 characters.
MAX_PATH_CHARS = 2048


class AclRule(Protocol):
    """One entry of ``regex_acl.acls``."""

    @property
    def role(self) -> str:
        """The role, compared exactly."""
        ...

    @property
    def allowed_endpoints(self) -> str:
        """A regular expression that begins with ``^/kbs`` and ends with ``$``."""
        ...


class AccessRules:
    """The rules in force.

    The anchors hold for the whole expression: a rule allows a path only where the rule matches
    all of it, so that ``^/kbs/v0/a|b$`` does not allow ``/kbs/v0/ab…`` or whatever ends in ``b``.

    Args:
        rules: of the configuration.

    Raises:
        ConfigError: a rule is not anchored or not a regular expression that is supported.
    """

    def __init__(self, rules: Iterable[AclRule]) -> None:
        self._patterns: dict[str, Sequence[PathPattern]] = {}
        for rule in rules:
            pattern = _compile(rule)
            self._patterns[rule.role] = (*self._patterns.get(rule.role, ()), pattern)

    def allow(self, role: str, path: str) -> bool:
        """Return whether a rule of the role matches the whole path (without its query)."""
        if len(path) > MAX_PATH_CHARS or not path.startswith("/kbs"):
            return False
        return any(pattern.matches(path) for pattern in self._patterns.get(role, ()))


def _compile(rule: AclRule) -> PathPattern:
    source = rule.allowed_endpoints
    where = f"admin rule of role {rule.role!r}: allowed_endpoints {source!r}"
    if not source.startswith("^/kbs") or not source.endswith("$"):
        raise ConfigError(f'{where} must begin with "^/kbs" and end with "$"')
    try:
        return PathPattern(source)
    except PatternError as error:
        raise ConfigError(f"{where}: {error}") from None
