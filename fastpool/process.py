"""Worker processes: what a user of ``multiprocessing`` expects, whichever way they are started.

A worker is a ``multiprocessing`` process (``current_process()``, ``parent_process()``, ``active_children()``, the
daemon flag, after-fork hooks, exit handlers). Forks are made by the core, so that the process handle, the owner pipe
and the record of its pid cannot come apart; spawned workers and those of the fork server are started by
``multiprocessing``, and put on record before anything can interrupt.
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import (
    connection,
    context,
    forkserver,
    popen_forkserver,
    popen_spawn_posix,
    process,
    reduction,
    resource_tracker,
    spawn,
    util,
)
from typing import Any

from fastpool._native import Detached, Segment
from fastpool._signals import disregard, uninterrupted
from fastpool.machine import pin
from fastpool.spawning import Descriptors, refusals_named, take
from fastpool.threads import WorkerThread
from fastpool.timeouts import Late

SERVER_DESCRIPTORS = 8  # that a start through the fork server has open at once
EXIT_UNKNOWN = 255  # as in multiprocessing, where somebody else collected the status


def exit_code(segment: Segment, pid: int, handle: int, status_fd: int, block: bool) -> int | None:
    """Wait for a process: its exit code (minus a signal's number), None while it runs. Signals are heard meanwhile.

    Raises
    ------
    ChildProcessError
        It has ended, and somebody else has its status.
    """
    if block and handle >= 0:
        segment.wait_for(handle)
    if status_fd < 0:
        ended, status = os.waitpid(pid, 0 if block else os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    if handle >= 0 and not connection.wait([handle], 0):
        return None
    try:
        return forkserver.read_signed(status_fd)  # type: ignore[no-any-return]
    except EOFError:
        raise ChildProcessError("the fork server is gone") from None


class Popen(abc.ABC):
    """The interface ``multiprocessing`` has for a started process, over a worker of a segment.

    Subclasses say how it is started.
    """

    method: str

    def __init__(self, worker: WorkerProcess) -> None:
        self.segment = worker.segment
        self.worker_id = worker.worker_id
        self.returncode: int | None = None
        self.status_lost = False
        self._detached: Detached | None = None  # its handle, no longer the segment's
        util._flush_std_streams()  # type: ignore[attr-defined]
        self.pid = self._launch(worker)
        self.sentinel = self.segment.handle(self.worker_id)

    @abc.abstractmethod
    def _launch(self, worker: WorkerProcess) -> int:
        """Start it and have the segment record its pid."""

    def reap(self, block: bool) -> int | None:
        """Wait for the ended process: its exit code (minus a signal's number), None while it runs.

        Only the pool's supervisor calls this. What ``multiprocessing`` calls, at any time and in any thread
        (``active_children()`` does), is :meth:`poll`, which takes no process away from the supervisor.
        """
        if self.returncode is None:
            detached = self._detached
            handle = self.sentinel if detached is None else detached.handle
            status_fd = self.segment.status_fd(self.worker_id) if detached is None else detached.status_fd
            try:
                code = exit_code(self.segment, self.pid, handle, status_fd, block)
            except ChildProcessError:  # SIGCHLD ignored, or reaped by somebody else, or no fork server to tell
                self.status_lost = True
                code = EXIT_UNKNOWN
            if code is not None:
                self._reaped(code)
        return self.returncode

    def poll(self) -> int | None:
        """Exit code, once the supervisor has seen the end."""
        if self.returncode is None and self._detached is None and self.segment.pid(self.worker_id) != self.pid:
            self.returncode = EXIT_UNKNOWN  # an interrupt came during its start, and it was reaped by its pid
        return self.returncode

    def _reaped(self, returncode: int) -> None:
        self.returncode = returncode
        if self._detached is None:
            self.segment.reaped(self.worker_id)
        else:
            self._detached.close()

    @uninterrupted
    def detach(self) -> None:
        """Let the lane go to a successor; this process only remains to be waited for."""
        self._detached = self.segment.detach(self.worker_id)

    def wait(self, timeout: float | None = None) -> int | None:
        """Until the process ends, or `timeout` seconds."""
        if self.poll() is None:
            connection.wait([self.sentinel], timeout)
        return self.returncode

    def _send(self, signum: int) -> None:
        if self._detached is not None:
            self._detached.kill(signum)
        elif self.poll() is None:
            self.segment.kill(self.worker_id, signum)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def close(self) -> None:  # noqa: B027
        """Nothing is held beyond what reaping gives back."""


class ForkPopen(Popen):
    """A fork that the core makes."""

    method = "fork"

    def _launch(self, worker: WorkerProcess) -> int:
        pid = self.segment.fork_worker(self.worker_id)
        if pid == 0:
            self._be_worker(worker)
        return pid

    def _be_worker(self, worker: WorkerProcess) -> None:
        """In the child: never returns."""
        code = 1
        try:
            gc.freeze()  # before the first collection copies the parent's pages
            atexit._clear()  # the owner's own
            atexit.register(util._exit_function)  # type: ignore[attr-defined]
            worker.come_up()
            sys.stdin = io.StringIO()  # `_bootstrap` closes it: the owner's may be locked by a thread that reads it
            forget_executor()
            code = worker._bootstrap(parent_sentinel=self.segment.owner_fd)  # type: ignore[attr-defined]
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def forget_executor() -> None:
    """In a fork: the thread that made it may be one of a ``ThreadPoolExecutor`` of the owner's. At the end of this
    process it would be told to wait for itself."""
    executors = sys.modules.get("concurrent.futures.thread")
    getattr(executors, "_threads_queues", {}).pop(threading.current_thread(), None)


class FreshProcess(popen_spawn_posix.Popen):
    """A spawned process; what its start has opened is closed when that fails, not when somebody collects garbage."""

    def _launch(self, worker: Any) -> None:
        try:
            super()._launch(worker)  # type: ignore[misc]
        except BaseException:
            self.close()
            raise


class ServedProcess(popen_forkserver.Popen):
    """A fork of the server's. It ignores SIGINT from the first that it is sent, and its start leaves nothing when it
    fails: ``multiprocessing``'s would leave a process that waits, and both its pipes."""

    def _launch(self, worker: Any) -> None:
        message = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump({"interrupts": Ignored(), **spawn.get_preparation_data(worker.name)}, message)
            reduction.dump(worker, message)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, inlet = forkserver.connect_to_new_process(self._fds)  # type: ignore[attr-defined]
        self.finalizer = util.Finalize(self, os.close, (self.sentinel,))
        try:
            with open(inlet, "wb", closefd=False) as pipe:
                pipe.write(message.getvalue())
            self.pid = forkserver.read_signed(self.sentinel)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(inlet)


class Ignored:
    """Unpickling this ignores SIGINT."""

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.signal, (signal.SIGINT, signal.SIG_IGN)


class SpawnPopen(Popen):
    """A new interpreter, started by ``multiprocessing``."""

    method = "spawn"

    def _launch(self, worker: WorkerProcess) -> int:
        spawn.get_preparation_data("")  # refuses while the main program is being imported
        with refusals_named("cannot start a worker"):
            return self._launch_fresh(worker)

    def _launch_fresh(self, worker: WorkerProcess) -> int:
        self._start_helpers()
        with interrupts_blocked():  # in the new process too, until it ignores them
            return self._start_and_adopt(worker)

    @uninterrupted
    def _start_and_adopt(self, worker: WorkerProcess) -> int:
        worker.lent = self.segment.lend(self.worker_id)
        try:
            with stdin_is_no_file():
                started = self._start(worker)
        except BaseException:
            self.segment.reaped(self.worker_id)
            raise
        try:
            self.segment.adopt(self.worker_id, started.pid, self._status_fd(started))
        except BaseException:
            if not self.segment.pid(self.worker_id):  # else the process is on record
                self.segment.reaped(self.worker_id)
            raise
        finally:
            started.close()  # its descriptors: the segment has better ones
        return started.pid  # type: ignore[no-any-return]

    def _start_helpers(self) -> None:
        """Processes that outlive this start, and must not inherit blocked signals."""
        resource_tracker.ensure_running()

    def _start(self, worker: WorkerProcess) -> Any:
        return FreshProcess(worker)

    def _status_fd(self, started: Any) -> int:
        return -1


class ForkServerPopen(SpawnPopen):
    """A fork of ``multiprocessing``'s server, which alone can wait for it."""

    method = "forkserver"

    def _start_helpers(self) -> None:
        try:
            forkserver.ensure_running()
        except ChildProcessError:  # this is a fork of the server's parent; or somebody else has reaped the server
            forget_server()
            forkserver.ensure_running()

    def _start(self, worker: WorkerProcess) -> Any:
        check_room(SERVER_DESCRIPTORS)
        return ServedProcess(worker)

    def _status_fd(self, started: Any) -> int:
        try:
            return os.dup(started.sentinel)
        except OSError:
            os.kill(started.pid, signal.SIGKILL)
            forkserver.read_signed(started.sentinel)  # the server has waited for it
            raise


def forget_server() -> None:
    """What ``multiprocessing`` knows of a fork server that is not this process's."""
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)  # the server is to end with its parent
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """SIGINT waits for the end of the block, in this thread and in processes started from it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_room(count: int) -> None:
    """Can this process open so many more descriptors? (When they run out half-way, the fork server ends.)

    Raises
    ------
    OSError
    """
    read, write = os.pipe()
    taken = [read, write]
    try:
        while len(taken) < count:
            taken.append(os.dup(read))
    finally:
        for fd in taken:
            os.close(fd)


_main_lock = threading.Lock()


@contextlib.contextmanager
def stdin_is_no_file() -> Iterator[None]:
    """A program read from stdin calls itself a file, which every spawned process would try to import."""
    main = sys.modules["__main__"]
    if getattr(main, "__file__", "<stdin>") != "<stdin>":
        yield
        return
    with _main_lock:
        file = vars(main).pop("__file__", None)
        try:
            yield
        finally:
            if file is not None:
                main.__file__ = file


def _forget_workers() -> None:
    """In a fork of the owner: the workers are not its children, to be terminated at its exit."""
    children = process._children  # type: ignore[attr-defined]
    for child in list(children):
        if isinstance(child, WorkerProcess):
            children.discard(child)


os.register_at_fork(after_in_child=_forget_workers)


class WorkerProcess(process.BaseProcess):
    """A worker that runs ``main(segment)``. ``WORKERS`` has the subclass of each start method.

    Parameters
    ----------
    segment : Segment
    worker_id : int
        Its lane, from 0.
    main : callable
        What it runs. Pickled where the worker is no fork.
    daemon : bool
    descriptors : sequence of int
        Given to a worker that is no fork, in which :func:`fastpool.spawning.take` finds them.
    cores : set of int, optional
        What it is pinned to.
    """

    def __init__(
        self,
        segment: Segment,
        worker_id: int,
        main: Callable[[Segment], None],
        daemon: bool,
        descriptors: Sequence[int] = (),
        cores: frozenset[int] | None = None,
    ) -> None:
        super().__init__(name=f"Worker-{worker_id}", daemon=daemon)
        # A set of weak references: their callbacks would drop a KeyboardInterrupt that comes while one runs.
        process._dangling.discard(self)  # type: ignore[attr-defined]
        self.segment = segment
        self.worker_id = worker_id
        self.descriptors = descriptors
        self.lent: tuple[int, ...] = ()  # the segment's descriptors for a worker that is no fork
        self.job = segment.number  # the current one when it was started
        self.late: Late | None = None  # why it was killed
        self._main = main
        self._cores = cores

    def run(self) -> None:
        """The worker's life, and its exit handlers.

        The interpreter would wait for threads that tasks have started, perhaps for ever, and the caller for the
        process. Nothing is left for them to do that anybody could see: they end with the process.
        """
        code = 1
        try:
            self._main(self.segment)
            code = 0
        except BaseException:
            traceback.print_exc()
        try:
            self._run_exit_handlers()
            util._flush_std_streams()  # type: ignore[attr-defined]
        finally:
            others = set(threading.enumerate()) - {threading.current_thread()}
            if code or not all(thread.daemon for thread in others):
                os._exit(code)

    _run_exit_handlers = staticmethod(atexit._run_exitfuncs)

    def come_up(self) -> None:
        """First thing in the worker."""
        if self._cores is not None:
            pin(self._cores)
        disregard(signal.SIGINT)  # the parent decides; Ctrl-C reaches the whole group
        signal.set_wakeup_fd(-1)  # the parent's event loop is not ours
        self.segment.enter_worker(self.worker_id)

    @property
    def popen(self) -> Popen:
        """The started process."""
        return self._popen  # type: ignore[attr-defined, no-any-return]

    @property
    def exit_status(self) -> int | None:
        """As in ``multiprocessing``, once it has been waited for; None if somebody else has collected it."""
        return None if self.popen.status_lost else self.popen.returncode

    def detach(self) -> None:
        """Let the lane go to a successor; this process only remains to be waited for."""
        self.popen.detach()

    def wait(self, seconds: float) -> None:
        """Until it ends, but not longer."""
        self.popen.wait(seconds)

    def reap(self, block: bool) -> bool:
        """Wait for the ended process. Returns whether it has ended (always, if it may block)."""
        if self.popen.reap(block) is None:
            return False
        self.join()
        return True


class ForkedWorker(WorkerProcess, context.ForkProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return ForkPopen(process_obj)


class SpawnedWorker(WorkerProcess, context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return SpawnPopen(process_obj)

    def __getstate__(self) -> dict[str, Any]:
        given = Descriptors([*self.lent, *self.descriptors])
        return {**self.__dict__, "segment": self.segment.shape, "descriptors": given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.segment = Segment.attach_worker(self.worker_id, state["segment"], take(self.lent))

    def _bootstrap(self, parent_sentinel: int) -> int:
        self.come_up()
        os.close(parent_sentinel)  # the owner pipe tells the same
        return super()._bootstrap(self.segment.owner_fd)  # type: ignore[misc, no-any-return]


class ServedWorker(SpawnedWorker, context.ForkServerProcess):
    _start_method = "forkserver"
    _run_exit_handlers = staticmethod(util._exit_function)  # type: ignore[attr-defined]  # atexit has the server's own
    _after_fork = staticmethod(process.BaseProcess._after_fork)  # type: ignore[attr-defined]

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return ForkServerPopen(process_obj)


Worker = WorkerProcess | WorkerThread

WORKERS: dict[str, type[Worker]] = {
    "fork": ForkedWorker,
    "spawn": SpawnedWorker,
    "forkserver": ServedWorker,
    "threading": WorkerThread,
}


def bury_unknown(segment: Segment, worker_id: int) -> None:
    """Wait for a killed worker that an exception left without a process object."""
    if segment.exchange is not None:
        segment.exchange.workers[worker_id].reap(block=True)
        return
    pid = segment.pid(worker_id)
    # somebody else's SIGCHLD handler was faster, or the fork server is gone: it has ended all the same
    with contextlib.suppress(ChildProcessError):
        exit_code(segment, pid, segment.handle(worker_id), segment.status_fd(worker_id), block=True)
    segment.reaped(worker_id)
