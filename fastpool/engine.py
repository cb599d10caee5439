"""Who uses a pool's workers: one thread at a time collects, watches and starts them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from fastpool._signals import completed


class Engine:
    """The right to use a pool's supervisor: one thread's at a time.

    Calls of the pool (maps, stopping) take it and keep it. Whoever only waits for results of applies takes it while
    nobody else wants it, and lets go of it when somebody does: that one is woken by `call`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pid = os.getpid()
        self.call: Callable[[], None] | None = None  # wakes who sleeps with the right
        self._owner: int | None = None
        self._wanted = 0

    @property
    def lock(self) -> threading.RLock:
        """Protects what says who has it, and applies. Entered rather than `changed`: the end of that is Python code, in
        which an interrupt may come before it has let go of the lock."""
        self._look_for_fork()
        return self._lock

    @property
    def changed(self) -> threading.Condition:
        """Also what applies wait for, with the lock."""
        self._look_for_fork()
        return self._changed

    def _look_for_fork(self) -> None:
        """A fork has no thread but its own: what others held or wanted is nobody's there.

        (Looked at here, and not in a hook at the fork, which would have to know all engines: a weak set's callbacks run
        when one goes, and an interrupt would be lost in them.)
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._changed = threading.Condition(self._lock)
            self._wanted = 0
            if not self.is_mine:
                self._owner = None

    @property
    def is_wanted(self) -> bool:
        """Does a call of the pool wait for it?"""
        return self._wanted > 0

    @property
    def is_free(self) -> bool:
        """May :meth:`try_to_take` succeed?"""
        return self._owner is None and not self._wanted

    @property
    def is_mine(self) -> bool:
        return self._owner == threading.get_ident()

    def take(self) -> bool:
        """Wait until it is this thread's. Returns True."""
        with self.lock:
            if not self.is_mine and self._owner is not None:
                self._wanted += 1
                try:
                    while self._owner is not None:
                        if self.call is not None:
                            self.call()
                        self.changed.wait()
                finally:
                    self._wanted -= 1
                    self.changed.notify_all()  # an exception came: it may be free now for those who gave way
            self._owner = threading.get_ident()
            return True

    def try_to_take(self) -> bool:
        """Only if nobody has it, or wants it more."""
        with self.lock:
            if not self.is_mine and not self.is_free:
                return False
            self._owner = threading.get_ident()
            return True

    @completed
    def let_go(self) -> None:
        """It is no longer this thread's, if it was."""
        with self.lock:
            if self.is_mine:
                self.changed.notify_all()  # before: this may be cut short, and done again
                self._owner = None


class Use:
    """Who uses a pool: the thread that called it, for the whole of the call. Others are refused, or wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @property
    def is_mine(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def take(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._lock.acquire(blocking, timeout)

    @completed
    def let_go(self) -> None:
        """It is no longer this thread's, if it was."""
        while self.is_mine:
            self._lock.release()


class Hold:
    """A context in which something is this thread's, as far as that could be had; afterwards it is not, if it was not
    before.

    An interrupt may come anywhere, also right after it was taken: so nothing is counted, and whose it is tells what is
    to be let go of. The end is C from the first instruction on (:func:`fastpool._signals.completed`).

    Parameters
    ----------
    what : Engine or Use
    take : callable
        Returns whether it could be had.
    """

    def __init__(self, what: Engine | Use, take: Callable[[], bool]) -> None:
        self.what, self.take = what, take
        self.was_mine = what.is_mine

    def __enter__(self) -> bool:
        try:
            return self.was_mine or self.take()
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        if not self.was_mine:
            self.what.let_go()

    @completed
    def __exit__(self, *_: object) -> None:
        self.let_go()
