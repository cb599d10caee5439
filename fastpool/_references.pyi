"""How values travel where workers are threads: by reference."""

from typing import Any

from typing_extensions import Self

from fastpool.functions import Functions

class Outbox: ...

class Places:
    def __new__(cls, whole: Any, starts: list[int]) -> Self: ...

class Exchange:
    functions: Functions | None
    applies: dict[int, Any]
    places: Places | None
    workers: dict[int, Any]
    def __new__(cls, lanes: int) -> Self: ...
    def close(self) -> None: ...
