"""Objects to items of records and back."""

from typing import Any

from fastpool._native import Segment
from fastpool._packed import Packer, Unpacker

class Encoder(Packer): ...

class Decoder(Unpacker):
    def __init__(self, segment: Segment, heap: int, in_worker: bool) -> None: ...

def is_placed(value: Any) -> bool: ...
