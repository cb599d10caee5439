"""How long tasks take."""

from collections.abc import Callable
from typing import Any, final

from typing_extensions import Self

from fastpool._native import Segment

@final
class Timing:
    def __new__(cls, segment: Segment, worker: int, describe: Callable[[Any], bytes]) -> Self: ...
