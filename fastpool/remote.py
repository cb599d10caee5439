"""An exception of a worker's, made to stand in the parent."""

from __future__ import annotations

from typing import Any

from fastpool.errors import RemoteError, SerializationError
from fastpool.serializer import Serializer


def revive(worker_id: int, task: int | None, payload: Any, serializer: Serializer) -> BaseException:
    """The exception that :meth:`fastpool.worker.Host.describe` described, caused by a :class:`RemoteError`."""
    blob, reason, summary, phase, arguments, text = payload
    cause = RemoteError(worker_id, phase, task, arguments, text)
    error: BaseException
    if blob is None:
        error = SerializationError("exception", task, worker_id, f"pickling it failed with {reason}; it was {summary}")
    else:
        try:
            error = serializer.loads(blob)
        except Exception as broken:
            detail = f"unpickling it failed with {type(broken).__qualname__}: {broken}; it was {summary}"
            error = SerializationError("exception", task, None, detail)
    error.__cause__ = cause
    return error
