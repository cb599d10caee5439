"""How long tasks take."""

from collections.abc import Callable
from typing import Any

from fastpool._native import Segment

class Timing:
    def __init__(self, segment: Segment, worker: int, describe: Callable[[Any], bytes]) -> None: ...
