"""Applies: encoded one by one, published for workers to claim, beside a map."""

from collections.abc import Callable
from typing import Any

from typing_extensions import Self

from fastpool._native import Segment
from fastpool.serializer import Serializer

class Applies:
    published: int
    def __new__(cls, segment: Segment, serializer: Serializer) -> Self: ...
    @property
    def unfinished(self) -> int: ...
    def publish(
        self, function: Callable[..., Any] | bytes, args: tuple[Any, ...], keywords: dict[str, Any], limit_ns: int
    ) -> int | None: ...
    def drop(self, unit: int) -> None: ...
