"""Packed items: arrays, and pickles with their buffers beside them."""

from typing import Any

class Packer:
    def pack(self, array: Any) -> bytes | None: ...

class Unpacker:
    def unpack_bytes(self, data: bytes | bytearray) -> Any: ...

SPACE: object

def reduce_array(value: Any) -> Any: ...
def attach_array(
    ident: int, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], writeable: bool
) -> Any: ...
