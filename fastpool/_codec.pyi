"""Objects to items of records and back."""

from typing import Any

from typing_extensions import Self

from fastpool._native import Segment
from fastpool._packed import Packer, Unpacker

class Encoder(Packer): ...

class Decoder(Unpacker):
    def __new__(cls, segment: Segment, heap: int, in_worker: bool) -> Self: ...

def is_placed(value: Any) -> bool: ...
