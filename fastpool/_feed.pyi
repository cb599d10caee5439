"""Input that is no range: iterated in the parent, encoded in chunks, published for workers to claim."""

from collections.abc import Iterable
from typing import Any

from fastpool._native import Segment
from fastpool.serializer import Serializer

class Feed:
    tasks: int
    exhausted: bool
    published: int
    base: int
    def __init__(
        self,
        segment: Segment,
        iterable: Iterable[Any],
        limit: int | None,
        serializer: Serializer,
        steady: bool = False,
        may_read: bool = False,
        may_inherit: bool = False,
        unshare: bool = False,
        base: int = 0,
        copied: bool = False,
    ) -> None: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def read_forked(self) -> bool: ...
    @property
    def can_publish(self) -> bool: ...
    @property
    def has_pending(self) -> bool: ...
    def encode(self, count: int, patience_ns: int, most_bytes: int) -> int: ...
    def publish(self) -> bool: ...
    def open_tasks(self, chunk: int) -> range: ...
    def take_back(self, chunk: int) -> None: ...
    @property
    def has_lost(self) -> bool: ...
    def give_again(self) -> None: ...
    def encode_tasks(self, first: int, values: range) -> None: ...
