"""A cache of values of known size that evicts the least recently used value, unless it is pinned."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """A least-recently-used cache; it is not safe for threads by itself.

    Args:
        capacity: The largest total size of all values; None for no limit. Pinned values stay even beyond it, and are
            evicted when they are unpinned.
        size: Computes the size of a value, in the unit of `capacity`.
    """

    def __init__(self, capacity: int | None, size: Callable[[Value], int]) -> None:
        self.capacity = capacity
        self.total_size = 0
        self._size = size
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._pins: Counter[Key] = Counter()

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._entries))

    def get(self, key: Key) -> Value | None:
        """Return a value and mark it as the most recently used."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Key, value: Value) -> list[Key]:
        """Add or replace a value; return the keys that were evicted for it."""
        self.pop(key)
        size = self._size(value)
        self._entries[key] = value, size
        self.total_size += size
        return self._evict(except_key=key)

    def pop(self, key: Key) -> None:
        """Remove a value if it is present; its current users keep it."""
        _, size = self._entries.pop(key, (None, 0))
        self.total_size -= size

    def is_pinned(self, key: Key) -> bool:
        """Whether a key was pinned more often than unpinned."""
        return bool(self._pins[key])

    def pin(self, key: Key) -> None:
        """Protect a key from eviction until it is unpinned; it need not be present yet."""
        self._pins[key] += 1

    def unpin(self, key: Key) -> list[Key]:
        """Undo one `pin`; return the keys that were evicted because of it."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]
        return self._evict()

    def _evict(self, except_key: Key | None = None) -> list[Key]:
        evicted: list[Key] = []
        if self.capacity is None or self.total_size <= self.capacity:
            return evicted
        for key in [key for key in self._entries if key != except_key and not self._pins[key]]:
            if self.total_size <= self.capacity:
                break
            self.pop(key)
            evicted.append(key)
        return evicted
