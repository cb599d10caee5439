"""Helpers around a map's input, with mpire's names."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy

from fastpool.job import check_chunk_size, check_iterable, said_length
from fastpool.options import check_flag, check_int


def chunk_tasks(
    iterable: Iterable[Any],
    iterable_len: int | None = None,
    chunk_size: float | None = None,
    n_splits: int | None = None,
) -> Iterator[Any]:
    """Cut an input into chunks.

    Parameters
    ----------
    iterable : iterable
        Read lazily. Of a numpy array the chunks are slices along axis 0, which share its memory.
    iterable_len : int, optional
        The most elements to take.
    chunk_size : int or float, optional
        Elements of a chunk; a float: on average. Wins over `n_splits`.
    n_splits : int, optional
        Number of chunks, fewer where there are fewer elements.

    Returns
    -------
    iterator
        Of tuples, or of arrays. None is empty.

    Raises
    ------
    TypeError, ValueError
        A parameter has a wrong type or value, or the size of a chunk follows from none of them.

    Examples
    --------
    >>> list(chunk_tasks(range(5), n_splits=2))
    [(0, 1, 2), (3, 4)]
    """
    check_iterable("iterable", iterable)
    limit = check_int("iterable_len", iterable_len, least=0)
    size = check_chunk_size(chunk_size)
    splits = check_int("n_splits", n_splits, least=1)
    if size is None:
        size = _even_size(limit if limit is not None else said_length(iterable), splits)
    if isinstance(iterable, numpy.ndarray):
        return _slices(iterable[:limit], size)
    return _tuples(islice(iterable, None if limit is None else min(limit, sys.maxsize)), size)


def make_single_arguments(iterable: Iterable[Any], generator: bool = True) -> Iterator[tuple[Any]] | list[tuple[Any]]:
    """Wrap each element in a tuple, so that a map gives it to the function as the one argument.

    Parameters
    ----------
    iterable : iterable
    generator : bool, default True
        Return a generator, which reads the input lazily; else a list.

    Returns
    -------
    generator or list
        Of tuples of one element.

    Raises
    ------
    TypeError
        A parameter has a wrong type.

    Examples
    --------
    >>> make_single_arguments([(1, 2), "ab"], generator=False)
    [((1, 2),), ('ab',)]
    """
    check_iterable("iterable", iterable)
    wrapped = ((element,) for element in iterable)
    return wrapped if check_flag("generator", generator) else list(wrapped)


def _even_size(length: int | None, n_splits: int | None) -> float:
    if n_splits is None:
        raise ValueError("chunk_size and n_splits must not both be None")
    if length is None:
        raise ValueError("n_splits needs a known number of elements: give iterable_len, or an iterable with a length")
    return min(length, sys.maxsize // 2) / n_splits


def _sizes(size: float) -> Iterator[int]:
    """Whole numbers, at least 1, that average to `size`: what one rounds up, the next ones have less."""
    due = size
    while True:
        whole = math.ceil(due)
        yield max(1, whole)
        due = due + size - whole


def _slices(array: numpy.ndarray[Any, Any], size: float) -> Iterator[numpy.ndarray[Any, Any]]:
    start = 0
    for count in _sizes(size):
        if start >= len(array):
            return
        yield array[start : start + count]
        start += count


def _tuples(elements: Iterator[Any], size: float) -> Iterator[tuple[Any, ...]]:
    for count in _sizes(size):
        chunk = tuple(islice(elements, count))
        if not chunk:
            return
        yield chunk
