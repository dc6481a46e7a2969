"""Things that were costly to find out, remembered up to a number, a weight, and their time."""

from collections import OrderedDict
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Remembered(Generic[_K, _V]):
    """A map that forgets what has expired, and the least recently used where it grows too large.

    Args:
        entries: most entries.
        weight: most weight of all entries together.
    """

    def __init__(self, entries: int, weight: int) -> None:
        self._most_entries = entries
        self._most_weight = weight
        self._weight = 0
        self._entries: OrderedDict[_K, tuple[_V, float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _K, now: float) -> _V | None:
        """Return the value, or None where there is none or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires_at, _ = entry
        if expires_at <= now:
            self.forget(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: _K, value: _V, *, expires_at: float, weight: int = 1) -> None:
        """Remember a value until it expires or room is needed."""
        self.forget(key)
        self._entries[key] = (value, expires_at, weight)
        self._weight += weight
        while len(self._entries) > self._most_entries or self._weight > self._most_weight:
            _, (_, _, dropped) = self._entries.popitem(last=False)
            self._weight -= dropped

    def forget(self, key: _K) -> None:
        """Forget one entry."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry[2]
