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
    if isinstance(blob, BaseException):  # a thread's, which is the very object
        return _caused(blob, cause)
    if blob is None:
        error = SerializationError("exception", task, worker_id, f"pickling it failed with {reason}; it was {summary}")
    else:
        try:
            error = serializer.loads(blob)
        except Exception as broken:
            detail = f"unpickling it failed with {type(broken).__qualname__}: {broken}; it was {summary}"
            error = SerializationError("exception", task, None, detail)
    return _caused(error, cause)


def _caused(error: BaseException, cause: RemoteError) -> BaseException:
    """The exception, with what says where it came from between it and a cause of its own.

    Its class may not let its attributes be read or set.
    """
    own = BaseException.__getattribute__(error, "__cause__")
    if not isinstance(own, RemoteError):
        cause.__cause__ = own
    BaseException.__setattr__(error, "__cause__", cause)
    return error
