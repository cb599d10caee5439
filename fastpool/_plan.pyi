"""Where array results of a map belong."""

from collections.abc import Sequence
from typing import Any

import numpy

from fastpool._native import Segment, SharedBlock

class Plan: ...

def make_plan(segment: Segment, array: numpy.ndarray[Any, Any], starts: Sequence[int]) -> SharedBlock | None: ...
def is_spoiled(plan: SharedBlock) -> bool: ...
def is_public(array: numpy.ndarray[Any, Any]) -> bool: ...
