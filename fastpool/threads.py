"""Workers that are threads of the pool's owner.

A thread runs the same loop over the same segment as a process. What is different is its end. An event of its own tells
of it in the place of a process handle. And nobody can kill it: it is told to end, which it hears between two tasks, in
a wait, and where Python runs in a task. Who is in a task that does not return is abandoned: that thread has nothing of
the pool's left but memory that stays as long as it does.
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence

from fastpool._native import Event, Segment
from fastpool._signals import uninterrupted
from fastpool._worker import Loop, begin_fork, disown_forks, end_fork
from fastpool.timeouts import Late

GRACE_SECONDS = 1.0  # for what a thread is at when it is told to end
LATE_GRACE_SECONDS = 0.02  # where that, or another's, has taken too long already

# Before other modules' hooks that were there before, and after them: those of this thread's forks are not interrupted.
os.register_at_fork(before=begin_fork, after_in_parent=end_fork, after_in_child=disown_forks)


class WorkerThread:
    """A worker in a thread, with what the supervisor calls of a :class:`fastpool.process.WorkerProcess`.

    The thread is a daemon: the interpreter does not wait for it, and a pool that is open then is terminated.

    Parameters
    ----------
    segment : Segment
    worker_id : int
        Its lane, from 0.
    main : callable
        Makes its loop.
    daemon : bool
        Has no meaning: a thread may have children of any kind.
    descriptors : sequence of int
        It needs none.
    cores : set of int, optional
        Which it may run on.
    """

    exit_status = None

    def __init__(
        self,
        segment: Segment,
        worker_id: int,
        main: Callable[[Segment], Loop],
        daemon: bool,
        descriptors: Sequence[int] = (),
        cores: frozenset[int] | None = None,
    ) -> None:
        self.segment = segment
        self.worker_id = worker_id
        self.pid = os.getpid()
        self.job = segment.number  # the current one when it was started
        self._cores = cores
        self._loop = main(segment)
        self._end = Event()
        self._thread: threading.Thread | None = None  # from its start to its end
        self._has_lane = False
        self._deadline: float | None = None  # of its end, once it is told to
        self.is_abandoned = False
        self._was_warned_of = False
        self.late: Late | None = None  # why it was killed
        self.is_urgent = False  # somebody waits for its end who has waited for too long

    @uninterrupted
    def start(self) -> None:
        self.segment.admit(self.worker_id, self._end.fd, self)
        self._has_lane = True
        try:
            self._thread = threading.Thread(target=self._live, name=f"Worker-{self.worker_id}", daemon=True)
            self._thread.start()
        except BaseException:
            self.detach()
            raise

    def _live(self) -> None:
        try:
            if self._cores is not None:
                os.sched_setaffinity(0, self._cores)  # this thread's own
            self._loop.run()
        except BaseException:
            traceback.print_exc()
        finally:
            self._end.ring()

    def kill(self) -> None:
        """Tell it to end as soon as it can. Any thread may do that at any time."""
        if self._has_lane:
            if self._deadline is None:
                self._deadline = time.monotonic() + self._grace
            self._loop.dismiss()  # before what ends its wait: it looks whether it was dismissed then
            self.segment.command_quit(self.worker_id)

    def detach(self) -> None:
        """Let the lane go to a successor."""
        self._has_lane = False
        self.segment.reaped(self.worker_id)

    def reap(self, block: bool) -> bool:
        """Wait for its end; if it has been killed, not for ever. Returns whether it has ended, or is about to.

        If not, though this may block, it is abandoned; or, if that cannot be, for once (it is in a destructor), the
        segment stays for it as it is.
        """
        if block and self._deadline is None:
            self.segment.wait_for(self._end.fd)
        if not self._ends_in(self._patience if block else 0) and not (block and self.abandon()):
            return False
        if not self.is_abandoned:
            self._join()
        if self._has_lane:
            self.detach()
        return not self.is_abandoned or self._is_current

    @uninterrupted
    def _join(self) -> None:
        """It has nothing left to do. Its object goes here: an interrupt would be lost in the callbacks of its end."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def abandon(self) -> bool:
        """Treat it as dead, though it is in a task that does not return. Only after :meth:`kill`.

        From then on it touches nothing of the pool's: its lane may be a successor's. Returns False where that cannot be
        said: it is about to end by itself.
        """
        if self._loop.sever():
            self.is_abandoned = True
            self._end.ring()
        return self.is_abandoned

    def wait(self, seconds: float) -> None:
        """Until it ends, but not longer."""
        self._ends_in(seconds)

    def give_up(self) -> None:
        """Wait as long as a thread is waited for that was killed. Then it has ended, or is abandoned."""
        if not self._ends_in(self._patience) and self.abandon():
            self.warn()

    @property
    def _grace(self) -> float:
        return LATE_GRACE_SECONDS if self.late is not None or self.is_urgent else GRACE_SECONDS

    @property
    def _is_current(self) -> bool:
        """Does it run this, in a finalizer?"""
        return threading.current_thread() is self._thread

    @property
    def _patience(self) -> float:
        """Seconds."""
        if self._deadline is None or self._is_current:
            return 0
        return max(0.0, self._deadline - time.monotonic())

    def _ends_in(self, seconds: float) -> bool:
        handle = select.poll()
        handle.register(self._end.fd, select.POLLIN)
        return bool(handle.poll(seconds * 1000))

    def warn(self) -> None:
        """Say that it was abandoned, once."""
        if self._was_warned_of:
            return
        self._was_warned_of = True
        message = (
            f"worker {self.worker_id} is a thread in a function that has not ended {self._grace:g} s after it was told "
            "to: it is abandoned, and its result dropped"
        )
        warnings.warn(message, ResourceWarning, stacklevel=2)
