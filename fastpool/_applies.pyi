"""Applies: encoded one by one, published for workers to claim, beside a map."""

from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import Self

from fastpool._native import Segment
from fastpool.results import AsyncResult
from fastpool.serializer import Serializer

class Applies:
    published: int
    def __new__(cls, segment: Segment, serializer: Serializer) -> Self: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[AsyncResult]: ...
    @property
    def oldest(self) -> int | None: ...
    def get(self, unit: int) -> AsyncResult | None: ...
    def publish(
        self,
        function: Callable[..., Any] | bytes,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        limit_ns: int,
        result: AsyncResult,
    ) -> bool: ...
    def drop(self, unit: int) -> None: ...
