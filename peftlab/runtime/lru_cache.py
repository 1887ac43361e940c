"""Things of known size within a budget: the one that was used longest ago goes first, unless it is in use."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Not safe for threads by itself.

    Args:
        budget: The most that all may take together; None for any amount. What is in use stays even beyond it, and goes
            when it is let go.
        size: Of a value, in the budget's unit.
    """

    def __init__(self, budget: int | None, size: Callable[[Value], int]) -> None:
        self.budget = budget
        self.total_size = 0
        self._size = size
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._users: Counter[Key] = Counter()

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._values))

    def get(self, key: Key) -> Value | None:
        """The value, which is now the one used last."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Key, value: Value) -> list[Key]:
        """Add or replace a value; returns those that went for it."""
        self.pop(key)
        size = self._size(value)
        self._values[key] = value, size
        self.total_size += size
        return self._make_room(keep=key)

    def pop(self, key: Key) -> None:
        """Take a value out, if it is there; who uses it goes on with it."""
        _, size = self._values.pop(key, (None, 0))
        self.total_size -= size

    def is_pinned(self, key: Key) -> bool:
        """Whether somebody took it and has not let it go."""
        return bool(self._users[key])

    def pin(self, key: Key) -> None:
        """It is in use from here on."""
        self._users[key] += 1

    def unpin(self, key: Key) -> list[Key]:
        """One of its users is done; returns what could go by that."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        return self._make_room()

    def _make_room(self, keep: Key | None = None) -> list[Key]:
        gone: list[Key] = []
        if self.budget is None or self.total_size <= self.budget:
            return gone
        for key in [key for key in self._values if key != keep and not self._users[key]]:
            if self.total_size <= self.budget:
                break
            self.pop(key)
            gone.append(key)
        return gone
