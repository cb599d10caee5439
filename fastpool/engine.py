"""Who uses a pool's workers: one thread at a time collects, watches and starts them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Engine:
    """The right to use a pool's supervisor: one thread's at a time, which may take it again.

    Calls of the pool (maps, stopping) take it and keep it. Whoever only waits for results of applies takes it while
    nobody else wants it, and lets go of it when somebody does: that one is woken by `call`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._pid = os.getpid()
        self.call: Callable[[], None] | None = None  # wakes who sleeps with the right
        self._owner: int | None = None
        self._depth = 0
        self._wanted = 0

    @property
    def changed(self) -> threading.Condition:
        """Also what applies wait for. A fork has no thread but its own: what others held or wanted is nobody's there.

        (Looked at here, and not in a hook at the fork, which would have to know all engines: a weak set's callbacks run
        when one goes, and an interrupt would be lost in them.)
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._changed = threading.Condition(threading.RLock())
            self._wanted = 0
            if not self.is_mine:
                self._owner, self._depth = None, 0
        return self._changed

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

    def take(self) -> None:
        """Wait until it is this thread's."""
        with self.changed:
            if self._owner not in (None, threading.get_ident()):
                self._wanted += 1
                try:
                    while self._owner is not None:
                        if self.call is not None:
                            self.call()
                        self.changed.wait()
                finally:
                    self._wanted -= 1
                    self.changed.notify_all()  # an exception came: it may be free now for those who gave way
            self._enter()

    def try_to_take(self) -> bool:
        """Only if nobody has it, or wants it more."""
        with self.changed:
            if not self.is_mine and (self._owner is not None or self._wanted):
                return False
            self._enter()
            return True

    def _enter(self) -> None:
        self._owner = threading.get_ident()
        self._depth += 1

    def give_up(self) -> None:
        """This thread lets go of it, however often it has taken it: an interrupt may have kept it from that."""
        with self.changed:
            if self.is_mine:
                self._depth = 1
                self.let_go()

    def let_go(self) -> None:
        with self.changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self.changed.notify_all()
