"""Worker processes: started by a fork of our own, and all the same what a user of ``multiprocessing`` expects.

A worker is a ``multiprocessing`` process (``current_process()``, ``parent_process()``, ``active_children()``, the
daemon flag, after-fork hooks, exit handlers). Only the way it is forked differs: the core does it, so that the process
handle, the owner pipe and the record of its pid cannot come apart.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import connection, process, util
from multiprocessing.context import ForkProcess

from fastpool._native import Segment

EXIT_UNKNOWN = 255  # as in multiprocessing, where somebody else collected the status


class Popen:
    """The interface ``multiprocessing`` has for a started process, over a worker of a segment."""

    method = "fork"

    def __init__(self, worker: WorkerProcess) -> None:
        self.segment = worker.segment
        self.worker_id = worker.worker_id
        self.returncode: int | None = None
        self.status_lost = False
        self._detached_fd = -1
        util._flush_std_streams()  # type: ignore[attr-defined]
        self.pid = self.segment.fork_worker(self.worker_id)
        if self.pid == 0:
            self._be_worker(worker)
        self.sentinel = self.segment.handle(self.worker_id)

    def _be_worker(self, worker: WorkerProcess) -> None:
        """In the child: never returns."""
        code = 1
        try:
            gc.freeze()  # before the first collection copies the parent's pages
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches the whole group
            signal.set_wakeup_fd(-1)  # the parent's event loop is not ours
            self.segment.enter_worker(self.worker_id)
            code = worker._bootstrap(parent_sentinel=self.segment.owner_fd)  # type: ignore[attr-defined]
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reap(self, flag: int = os.WNOHANG) -> int | None:
        """Wait for the ended process: its exit code (minus a signal's number), None while it runs.

        Only the pool's supervisor calls this. What ``multiprocessing`` calls, at any time and in any thread
        (``active_children()`` does), is :meth:`poll`, which takes no process away from the supervisor.
        """
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, flag)
            except ChildProcessError:  # SIGCHLD ignored, or reaped by somebody else
                self.status_lost = True
                self._reaped(EXIT_UNKNOWN)
            else:
                if pid == self.pid:
                    self._reaped(os.waitstatus_to_exitcode(status))
        return self.returncode

    def poll(self) -> int | None:
        """Exit code, once the supervisor has seen the end."""
        if self.returncode is None and self._detached_fd < 0 and self.segment.pid(self.worker_id) != self.pid:
            self.returncode = EXIT_UNKNOWN  # an interrupt came during its start, and it was reaped by its pid
        return self.returncode

    def _reaped(self, returncode: int) -> None:
        self.returncode = returncode
        if self._detached_fd < 0:
            self.segment.reaped(self.worker_id)
        else:
            os.close(self._detached_fd)

    def detach(self) -> None:
        """Let the lane go to a successor; this process only remains to be waited for."""
        self._detached_fd = self.segment.detach(self.worker_id)

    def wait(self, timeout: float | None = None) -> int | None:
        """Until the process ends, or `timeout` seconds."""
        if self.poll() is None:
            connection.wait([self.sentinel], timeout)
        return self.returncode

    def _send(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """Nothing is held beyond what reaping gives back."""


def _forget_workers() -> None:
    """In a fork of the owner: the workers are not its children, to be terminated at its exit."""
    children = process._children  # type: ignore[attr-defined]
    for child in list(children):
        if isinstance(child, WorkerProcess):
            children.discard(child)


os.register_at_fork(after_in_child=_forget_workers)


class WorkerProcess(ForkProcess):
    """A forked worker that runs ``main()``.

    Parameters
    ----------
    segment : Segment
    worker_id : int
        Its lane, from 0.
    main : callable
        What it runs, without arguments.
    daemon : bool
    """

    def __init__(self, segment: Segment, worker_id: int, main: Callable[[], None], daemon: bool) -> None:
        super().__init__(name=f"Worker-{worker_id}", daemon=daemon)
        # A set of weak references: their callbacks would drop a KeyboardInterrupt that comes while one runs.
        process._dangling.discard(self)  # type: ignore[attr-defined]
        self.segment = segment
        self.worker_id = worker_id
        self._main = main

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> Popen:  # type: ignore[override]
        return Popen(process_obj)

    def run(self) -> None:
        self._main()

    @property
    def popen(self) -> Popen:
        """The started process."""
        return self._popen  # type: ignore[attr-defined, no-any-return]

    def reap(self, block: bool) -> bool:
        """Wait for the ended process. Returns whether it has ended (always, if it may block)."""
        if self.popen.reap(0 if block else os.WNOHANG) is None:
            return False
        self.join()
        return True
