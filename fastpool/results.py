"""What `apply_async` returns: a result to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fastpool.job import ApplyJob
from fastpool.timeouts import check_wait


class Waiter(Protocol):
    """Who knows how to wait for a result: :class:`fastpool.applying.Applier`."""

    def wait_for(self, result: AsyncResult, timeout: float | None) -> bool:
        """For so many seconds at most. Returns whether it is there."""


class AsyncResult:
    """The result of :meth:`fastpool.WorkerPool.apply_async`, which is there or will be.

    It never waits for ever: when the pool is stopped before the result is there, that is an error.
    """

    __slots__ = ("__weakref__", "_applier", "_error", "_is_done", "_value", "job", "tries", "unit")

    def __init__(self, applier: Waiter, job: ApplyJob) -> None:
        self._applier = applier
        self.job: ApplyJob | None = job  # until it is there
        self.unit: int | None = None  # its number, once it was handed to the workers
        self.tries = 0  # workers that had an older definition of its function
        self._is_done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self) -> bool:
        """Is the result, or an exception, there?"""
        return self._is_done

    def successful(self) -> bool:
        """Did the call return, rather than raise?

        Raises
        ------
        ValueError
            It is not there yet.
        """
        if not self._is_done:
            raise ValueError("the result is not ready yet: call wait() or get() first")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. Default: as long as it takes.

        Raises
        ------
        TypeError, ValueError
            `timeout` is no number.
        RuntimeError
            In a fork of the process that the pool belongs to.
        """
        self._applier.wait_for(self, check_wait("timeout", timeout))

    def get(self, timeout: float | None = None) -> Any:
        """The result, as soon as it is there.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. Default: as long as it takes.

        Returns
        -------
        object

        Raises
        ------
        TypeError, ValueError
            `timeout` is no number.
        TimeoutError
            It was not there in time. The call goes on.
        Exception
            What the call raised, with its own type, arguments and attributes, caused by a RemoteError.
        WorkerDiedError
            The worker ended in the call.
        WorkerTimeoutError
            The call took longer than its `task_timeout`.
        SerializationError
            The function, an argument, the result or the exception cannot be pickled, or not be unpickled.
        RuntimeError
            The pool was stopped, or failed, before the result was there.
        """
        if not self._applier.wait_for(self, check_wait("timeout", timeout)):
            raise TimeoutError(f"the result was not there after {timeout} seconds; the call goes on")
        if self._error is not None:
            raise self._error
        return self._value

    def settle(self, value: Any, error: BaseException | None) -> tuple[Callable[[Any], Any], Any] | None:
        """It is there, if it was not before. Returns the callback that wants it, and what that is to be given.

        (For the pool. An interrupt may come anywhere: who waits must not wait for ever.)
        """
        if self._is_done:
            return None
        assert self.job is not None
        self._value, self._error = value, error
        callback = self.job.callback if error is None else self.job.error_callback
        self._is_done = True
        self.job = None
        return None if callback is None else (callback, value if error is None else error)

    def __repr__(self) -> str:
        state = "waiting" if not self._is_done else "returned" if self._error is None else "raised"
        return f"<fastpool.AsyncResult: {state}>"
