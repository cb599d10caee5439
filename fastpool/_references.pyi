"""How values travel where workers are threads: by reference."""

from typing import Any

from fastpool.functions import Functions

class Outbox: ...

class Places:
    def __init__(self, whole: Any, starts: list[int]) -> None: ...

class Exchange:
    functions: Functions | None
    applies: dict[int, Any]
    places: Places | None
    workers: dict[int, Any]
    def __init__(self, lanes: int) -> None: ...
    def close(self) -> None: ...
