"""Values to tagged bytes."""

from typing import final

@final
class TagWriter:
    def dumps(self, value: object) -> bytes | None: ...
    def begin_anew(self) -> None: ...
