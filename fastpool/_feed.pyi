"""Input that is no range: iterated in the parent, encoded in chunks, published for workers to claim."""

from collections.abc import Iterable
from typing import Any

from fastpool._native import Segment
from fastpool.serializer import Serializer

class Feed:
    tasks: int
    exhausted: bool
    published: int
    def __init__(
        self,
        segment: Segment,
        iterable: Iterable[Any],
        limit: int | None,
        serializer: Serializer,
        steady: bool = False,
        may_read: bool = False,
        may_inherit: bool = False,
    ) -> None: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def can_publish(self) -> bool: ...
    @property
    def has_pending(self) -> bool: ...
    def encode(self, count: int, patience_ns: int, most_bytes: int) -> int: ...
    def publish(self) -> bool: ...
