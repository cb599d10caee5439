"""Damage: seeded random writes into a pool's shared segment, and what may come of them."""

from __future__ import annotations

import ctypes
import multiprocessing
import random
from typing import Any

from fastpool._native import Segment

PLAIN = (int, float, bool, str, bytes)  # what travels as it is, without a sum
RESERVED = 8  # among the constants: the segment's size (csrc/layout.h)


def some_bytes(source: random.Random, was: bytes) -> bytes:
    """What a stray write might leave in the place of a word."""
    word = int.from_bytes(was, "little")
    most = (1 << 8 * len(was)) - 1
    way = source.randrange(6)
    if way == 0:
        word = source.randint(0, most)
    elif way == 1:
        word ^= 1 << source.randrange(8 * len(was))
    elif way == 2:
        word += source.randint(-3, 3)
    elif way == 3:
        word = source.choice([0, most, 1 << (8 * len(was) - 1), 1 << 32, 4096, 64])
    elif way == 4:
        word = source.randrange(8)
    else:
        word = word & ~0xFF | source.randrange(256)
    return (word & most).to_bytes(len(was), "little")


def write_astray(source: random.Random, memory: Any, area: tuple[int, int]) -> None:
    """One to three stray writes into an area, of a byte to a cache line, often near its beginning."""
    offset, size = area
    for _ in range(source.choice([1, 1, 1, 2, 3])):
        length = min(size, source.choice([1, 4, 8, 8, 8, 64]))
        within = min(size, source.choice([64, 256, 4096, size]))
        at = offset + source.randrange((within - length) // min(4, length) + 1) * min(4, length)
        if length <= 8:
            memory[at : at + length] = some_bytes(source, bytes(memory[at : at + length]))
        else:
            memory[at : at + length] = source.randbytes(length)


def own_segment() -> Segment:
    """In a worker: the segment of its pool."""
    return multiprocessing.current_process().segment  # type: ignore[attr-defined, no-any-return]


def own_worker() -> int:
    """In a worker: its number."""
    return multiprocessing.current_process().worker_id  # type: ignore[attr-defined, no-any-return]


def memory_of(segment: Segment, end: int) -> memoryview:
    """The segment's first bytes, as this process has them mapped."""
    array = (ctypes.c_ubyte * end).from_address(segment.address)
    return memoryview(array).cast("B")


def area_of_own_pool(area: str) -> tuple[int, int] | None:
    """In a task: where an area of the pool's memory is; None: nowhere, or an earlier damage was to what says that."""
    segment = own_segment()
    offset, size = segment.areas()[area]
    return (offset, size) if 0 < size <= read_word("constants", RESERVED) - offset else None


def damage_own_pool(seed: int, area: tuple[int, int]) -> None:
    """In a task: write somewhere into the pool's memory."""
    write_astray(random.Random(seed), memory_of(own_segment(), sum(area)), area)


def write_word(area: str, at: int, value: int, size: int = 8) -> None:
    """In a task: write one word."""
    segment = own_segment()
    offset = segment.areas()[area][0] + at
    memory_of(segment, offset + size)[offset : offset + size] = value.to_bytes(size, "little")


def read_word(area: str, at: int) -> int:
    segment = own_segment()
    offset = segment.areas()[area][0] + at
    return int.from_bytes(memory_of(segment, offset + 8)[offset : offset + 8], "little")


def is_acceptable(results: Any, expected: Any) -> bool:
    """Are these the results, but for the bytes of plain values, of which nobody can tell that they were damaged?"""
    return len(results) == len(expected) and all(map(_is_like, results, expected))


def _is_like(result: Any, expected: Any) -> bool:
    if type(result) is not type(expected):
        return False
    return isinstance(expected, PLAIN) or bool(result == expected)
