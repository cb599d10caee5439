"""WorkerPool: the facade. Signatures, documentation, delegation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import util
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any

import numpy

from fastpool import mapping
from fastpool._signals import Interruptible, completed, uninterrupted
from fastpool.applying import Applier
from fastpool.engine import Engine, Hold, Use
from fastpool.insights import as_table
from fastpool.job import make_apply_job, make_map_job
from fastpool.options import DEFAULT_START_METHOD, CpuIds, check_flag, make_options
from fastpool.results import AsyncResult
from fastpool.supervisor import Supervisor

EXIT_PRIORITY = 15  # of multiprocessing's own pools: before it joins the children that are left

IS_BUSY = "this pool is busy: another map of it is running"
IS_ENCODING = "this pool is busy: an argument of an apply is being pickled, by which it is used"
IS_OVER = "the pool was stopped before this lazy map was exhausted: there are no more results of it"
IS_UNFINISHED = "this pool is busy: a lazy map of it is unfinished (exhaust its generator, or call its close())"


class WorkerPool:
    """A pool of worker processes, or threads.

    Parameters
    ----------
    n_jobs : int, optional
        Number of workers. Default: :func:`fastpool.cpu_count`.
    daemon : bool, default True
        Daemonic workers end with the parent and may not have children of their own; ``False`` allows nested pools.
        Threads may always have some.
    cpu_ids : int or list, optional
        Pins workers to cores, successors too: one core for all; or a list of one entry, which is for all, or of
        ``n_jobs`` entries, one for each worker. An entry is the number of a core or a list of such. The cores this
        process may use are ``os.sched_getaffinity(0)``.
    shared_objects : object, optional
        Given to every function after the worker id, as it is when the workers start; what a worker changes in it stays
        in that worker. Forked workers see it without a copy. For others it is pickled once, and its arrays lie in
        memory that they share until they write. To threads they are given as they are.
    pass_worker_id : bool, default False
        Give every function the worker's number (0 … n_jobs - 1) as its first argument.
    use_worker_state : bool, default False
        Give every function a dict of the worker's own, after the worker id and the shared objects.
    start_method : {"fork", "spawn", "forkserver", "threading"}, default "fork" where there is one, else "spawn"
        As in ``multiprocessing``, whose context of that name is :attr:`ctx`. With spawn and forkserver, functions must
        be importable by name, or `use_dill` be set, and the main program's own work stand behind
        ``if __name__ == "__main__"``. With threading, workers are threads of this process: arguments, results and
        exceptions are the very objects, and ``os._exit`` in a task ends the program. A thread whose result is not
        wanted any more (an error elsewhere, :meth:`terminate`) is interrupted where it runs Python code, by an
        exception that is no ``Exception``; if that takes more than a second, it is abandoned: a ResourceWarning.
    keep_alive : bool, default False
        Workers survive the end of a map, with their state, until :meth:`stop_and_join`, :meth:`terminate` or the end of
        the ``with`` block. A kept worker that ends in between is an error in the next call.
    use_dill : bool, default False
        dill instead of pickle for functions, arguments, results and shared objects. Without fork, the main program's
        functions share their globals in a worker: the values there are when a map begins, and what workers set.
    enable_insights : bool, default False
        Count and time every task, for :meth:`get_insights` and :meth:`print_insights`. Costs some 50 ns a task.
    order_tasks : bool, default False
        Chunk i of a map's input goes to worker i modulo ``n_jobs``, from worker 0 on in every call, instead of the one
        that asks first. What a worker leaves that dies or is replaced is its successor's. A slow worker can make the
        others wait.
    memory_limit : int, optional
        Bytes of shared memory that input and large results may take together; large results beyond it travel in pieces.
        Default: half of what this process may use of the machine.

    Raises
    ------
    TypeError, ValueError
        A parameter has a wrong type or value.
    ImportError
        `use_dill`, and dill is not installed.

    Examples
    --------
    >>> from fastpool import WorkerPool
    >>> with WorkerPool(n_jobs=2) as pool:
    ...     pool.map(abs, range(-3, 3))
    [3, 2, 1, 0, 1, 2]
    """

    def __init__(
        self,
        n_jobs: int | None = None,
        daemon: bool = True,
        cpu_ids: CpuIds | None = None,
        shared_objects: Any = None,
        pass_worker_id: bool = False,
        use_worker_state: bool = False,
        start_method: str = DEFAULT_START_METHOD,
        keep_alive: bool = False,
        use_dill: bool = False,
        enable_insights: bool = False,
        order_tasks: bool = False,
        *,
        memory_limit: int | None = None,
    ) -> None:
        options = make_options(
            n_jobs,
            daemon,
            cpu_ids,
            shared_objects,
            pass_worker_id,
            use_worker_state,
            start_method,
            keep_alive,
            use_dill,
            enable_insights,
            order_tasks,
            memory_limit,
        )
        self._engine = Engine()
        self._supervisor = Supervisor(options, self._engine)
        self._applier: Applier | None = None  # made for the first apply
        self._use = Use()
        # Only while there is something to clean up: Python drops exceptions in finalizers, a KeyboardInterrupt too.
        self._finalizer: util.Finalize | None = None

    @property
    def ctx(self) -> BaseContext:
        """``multiprocessing``'s context of the start method, to make locks, events and queues for `shared_objects`; of
        threads, ``multiprocessing.dummy``, which has the same names."""
        return self._supervisor.options.context

    def map(
        self,
        func: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        iterable_len: int | None = None,
        max_tasks_active: int | None = None,
        chunk_size: float | None = None,
        n_splits: int | None = None,
        worker_lifespan: int | None = None,
        progress_bar: bool = False,
        concatenate_numpy_output: bool = True,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
        progress_bar_options: dict[str, Any] | None = None,
        progress_bar_style: str | None = None,
        *,
        out: numpy.ndarray[Any, Any] | None = None,
        return_exceptions: bool = False,
        retries: int = 0,
        always_exit: bool = False,
    ) -> Any:
        """Call a function with each element of an input, in the workers, and return the results in order.

        An element that is a tuple, a list or another iterable (but no str, bytes or array) is unpacked as positional
        arguments, a dict as keyword arguments; anything else is the one argument. The function gets, before them, what
        the pool was told to pass: worker id, shared objects, worker state.

        A numpy array is cut along axis 0, and the function is called with each chunk, an array. It may overwrite its
        chunk: the caller sees nothing of that, unless the input is shared (:func:`fastpool.asshared`).

        Parameters
        ----------
        func : callable
        iterable_of_args : iterable
            Iterated in the calling thread, lazily, at most a few chunks ahead of the workers.
        iterable_len : int, optional
            The most elements to take.
        max_tasks_active : int, optional
            The most tasks that may be handed out and not collected. Default: a few chunks for each worker.
        chunk_size : int or float, optional
            Tasks a worker takes at a time (a float: on average). Default: from measured speed. Wins over `n_splits`.
            Of an array: rows of a chunk. Default: ``4 * n_jobs`` chunks, more if these had over 2 MB.
        n_splits : int, optional
            Number of chunks. Of an input whose length is not known it is ignored: a RuntimeWarning.
        worker_lifespan : int, optional
            A worker ends after the chunk in which it has run this many tasks, and another takes its place.
        progress_bar : bool, default False
            Show how many tasks are done. Of a map over an array: how many chunks. Needs tqdm.
        concatenate_numpy_output : bool, default True
            Of a map over an array: join array results along axis 0.
        worker_init : callable, optional
            Called once in each worker, before its first task. With `keep_alive`, another one than before does not run
            in workers that live already: a RuntimeWarning.
        worker_exit : callable, optional
            Called once in each worker that ran a task, when it ends; what it returns is in :meth:`get_exit_results`.
            With `keep_alive`, that of the last map is the one that runs: a RuntimeWarning if there was another. Threads
            that tasks have started and that are still there after it end with the worker.
        task_timeout : int or float, optional
            Seconds that `func` may take for one element, from its call to its return (sending arguments and results
            takes no task's time). A worker in which it takes longer is killed, whatever it does there. (A thread cannot
            be: it is interrupted where it runs Python code; if it does not, it is abandoned, a ResourceWarning, and
            another takes its place.) The map ends with a WorkerTimeoutError; with `return_exceptions` that is the
            task's result, and another worker goes on. The task is not run again, whatever `retries` says. The caller
            keeps the time: while the input keeps it waiting for an element, no limit is enforced before that element is
            there.
        worker_init_timeout : int or float, optional
            Seconds that `worker_init` may take in each worker; longer ends the map, also with `return_exceptions`.
        worker_exit_timeout : int or float, optional
            Seconds that `worker_exit` may take in each worker; longer ends the map (or :meth:`stop_and_join`, for which
            the last map's limit holds) with a WorkerTimeoutError, although all results may have been there.
        progress_bar_options : dict, optional
            For tqdm: ``desc``, ``unit``, ``position``, ``file``, … but not ``total`` and ``leave``, which are ignored
            with a RuntimeWarning. A bar stays when it is done, unless it stands below another, as in a worker whose
            pool shows one too: give each worker's a ``position`` of its own. One that ends in an exception stays and
            says so.
        progress_bar_style : {"std", "rich", "notebook"}, optional
            Default: ``"std"``, a line of text on stderr. ``"rich"`` needs rich, ``"notebook"`` ipywidgets.
        out : numpy.ndarray, optional
            Of a map over an array: what the joined results are written into. If it is shared, workers do that without
            a copy.
        return_exceptions : bool, default False
            Put a failed task's exception in the place of its result, and go on. What a task raises is one; so is a
            WorkerDiedError, of a task whose worker died too often, or a WorkerTimeoutError, of one that took too long.
            What `worker_init` raises still ends the map. Of a map over an array whose chunks have not all succeeded the
            results are a list.
        retries : int, default 0
            How often a task whose worker died is given to another worker before that counts as failure. A task whose
            result was there is never run again; of what a dead worker held, only the task that it was at may have been
            begun, and counts as tried. A worker that died has no exit result. Workers that die before they get to a
            task count too, if nothing else was done in between.
        always_exit : bool, default False
            Run `worker_exit` also in the workers that end because of an error (what another raised, its death, an
            interrupt), of :meth:`terminate` or of leaving ``with``, but in none that was killed. They drop what they
            have not begun. The task that a worker is at, and its exit function, must end within `worker_exit_timeout`,
            or 5 seconds where none is given, from then on: else the worker is killed, with a warning in the log. Ctrl-C
            meanwhile kills them at once. Exit functions that fail are logged. Of kept workers, the last map counts.

        Returns
        -------
        list or numpy.ndarray
            ``func``'s results, in the order of the input; of a map over an array, one array, or `out`. Arrays of 1 MB
            and more may lie in shared memory, which is used again when they are gone; a fork of this process, a worker
            too, that writes to such an array writes to the very array.

        Raises
        ------
        Exception
            What a task, `worker_init` or `worker_exit` raised, with its own type, arguments and attributes, caused by
            a :class:`fastpool.RemoteError`; or what the input itself raised while it was iterated. All workers are
            stopped then, without their exit functions (but see `always_exit`); the pool can be used again.
        WorkerDiedError
            A worker ended without being asked to, more often than `retries` allows.
        WorkerTimeoutError
            A task, `worker_init` or `worker_exit` took longer than its limit. It is a TimeoutError.
        SerializationError
            An argument, a result or an exception cannot be pickled, or not be unpickled; without fork, also a function
            or the shared objects.
        MemoryError
            The input does not fit into `memory_limit`, even chunk by chunk.
        RuntimeError
            Another map of this pool is running, or another thread has called :meth:`terminate`, or the pool was made
            in another process.
        TypeError, ValueError
            A parameter has a wrong type or value; no worker was started.
        ImportError
            What draws the progress bar is not installed.
        """
        return self._map(_given(locals()), ordered=True)

    def map_unordered(
        self,
        func: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        iterable_len: int | None = None,
        max_tasks_active: int | None = None,
        chunk_size: float | None = None,
        n_splits: int | None = None,
        worker_lifespan: int | None = None,
        progress_bar: bool = False,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
        progress_bar_options: dict[str, Any] | None = None,
        progress_bar_style: str | None = None,
        *,
        return_exceptions: bool = False,
        retries: int = 0,
        always_exit: bool = False,
    ) -> list[Any]:
        """:meth:`map`, with the results in the order in which they came.

        The parameters are those of :meth:`map`, but for `concatenate_numpy_output` and `out`.

        Returns
        -------
        list
            Of a map over an array too, whose results are not joined.

        Raises
        ------
        Exception
            As :meth:`map`.
        """
        return self._map(_given(locals()), ordered=False)  # type: ignore[no-any-return]

    def imap(
        self,
        func: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        iterable_len: int | None = None,
        max_tasks_active: int | None = None,
        chunk_size: float | None = None,
        n_splits: int | None = None,
        worker_lifespan: int | None = None,
        progress_bar: bool = False,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
        progress_bar_options: dict[str, Any] | None = None,
        progress_bar_style: str | None = None,
        *,
        return_exceptions: bool = False,
        retries: int = 0,
        always_exit: bool = False,
    ) -> Iterator[Any]:
        """A generator of :meth:`map`'s results, in the order of the input, each as soon as it and those before it are
        there.

        The parameters are checked at once; workers start with the first ``next``. While the generator is not asked for
        a result the input is not read on, no time limit is enforced, and workers go on as far as `max_tasks_active` and
        shared memory let them. With `max_tasks_active` the memory it takes does not depend on the length of the input.
        What can be handed out before a failure is, then the exception is raised.

        The generator may be left at any time (``break``, ``close``): what is not begun is not done then. Tasks that run
        go on to their end, and the pool's next map waits for that; :meth:`terminate` does not. While the generator is
        neither exhausted nor closed the pool takes no other map.

        The parameters are those of :meth:`map`, but for `concatenate_numpy_output` and `out`.

        Returns
        -------
        generator

        Raises
        ------
        TypeError, ValueError
            A parameter has a wrong type or value.
        Exception
            From ``next``: as :meth:`map`; a StopIteration of a task as the cause of a RuntimeError.
        """
        return self._imap(_given(locals()), ordered=True)

    def imap_unordered(
        self,
        func: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        iterable_len: int | None = None,
        max_tasks_active: int | None = None,
        chunk_size: float | None = None,
        n_splits: int | None = None,
        worker_lifespan: int | None = None,
        progress_bar: bool = False,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
        progress_bar_options: dict[str, Any] | None = None,
        progress_bar_style: str | None = None,
        *,
        return_exceptions: bool = False,
        retries: int = 0,
        always_exit: bool = False,
    ) -> Iterator[Any]:
        """:meth:`imap`, with each result as soon as it is there.

        The parameters are those of :meth:`map`, but for `concatenate_numpy_output` and `out`.

        Returns
        -------
        generator

        Raises
        ------
        TypeError, ValueError
            A parameter has a wrong type or value.
        Exception
            From ``next``, as :meth:`imap`.
        """
        return self._imap(_given(locals()), ordered=False)

    def apply(
        self,
        func: Callable[..., Any],
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
    ) -> Any:
        """Call a function once, in a worker, and return its result: :meth:`apply_async`, and then ``get()``.

        All parameters are those of :meth:`apply_async`.

        Returns
        -------
        object

        Raises
        ------
        Exception
            As :meth:`fastpool.AsyncResult.get`.
        TypeError, ValueError
            A parameter has a wrong type or value.
        """
        return self._apply(_given(locals()), wait=True).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
        worker_init: Callable[..., Any] | None = None,
        worker_exit: Callable[..., Any] | None = None,
        task_timeout: float | None = None,
        worker_init_timeout: float | None = None,
        worker_exit_timeout: float | None = None,
    ) -> AsyncResult:
        """Have a function called once, in a worker, and do not wait for it.

        May be called at any time, from any thread, also while a map runs: workers take applies between its chunks. The
        function gets, before `args`, what the pool was told to pass: worker id, shared objects, worker state. Workers
        stay until :meth:`stop_and_join`, :meth:`terminate` or the end of the ``with`` block, or that of a map without
        `keep_alive`.

        While the input of a map keeps that map waiting for its next element, results of applies wait too: it must not
        wait for one that another thread has handed in. (It may wait for those that it has handed in itself.)

        What fails, fails alone: an exception is raised by ``get()`` and the worker goes on; a worker that dies, or is
        killed because of a time limit, is replaced. What ends all workers fails all applies: a `worker_init` that
        raises or takes too long, or a map on the same pool that fails.

        Parameters
        ----------
        func : callable
            Goes to the worker as a pickle, as in ``multiprocessing`` (lambdas and the like need `use_dill`), with
            threads as it is.
        args : tuple or object, optional
            Positional arguments; what is no tuple is the one argument.
        kwargs : dict, optional
            Keyword arguments.
        callback, error_callback : callable, optional
            Called with the result, or with the exception, in a thread of the pool's: one after another, in the order in
            which results come. What a callback raises is logged (``"fastpool"``), and harms nothing.
        worker_init, worker_exit : callable, optional
            As in :meth:`map`, for workers that are started now; with others that live already: a RuntimeWarning.
        task_timeout : int or float, optional
            Seconds that this call may take: then its worker is killed, and ``get()`` raises a WorkerTimeoutError.
        worker_init_timeout, worker_exit_timeout : int or float, optional
            Seconds, for workers that are started now.

        Returns
        -------
        AsyncResult

        Raises
        ------
        RuntimeError
            The pool was made in another process.
        TypeError, ValueError
            A parameter has a wrong type or value; no worker was started.

        Examples
        --------
        >>> with WorkerPool(n_jobs=2) as pool:
        ...     results = [pool.apply_async(divmod, (n, 7)) for n in (20, 30)]
        ...     [result.get() for result in results]
        [(2, 6), (4, 2)]
        """
        return self._apply(_given(locals()), wait=False)

    def _apply(self, given: dict[str, Any], wait: bool) -> AsyncResult:
        job = make_apply_job(**given)
        self._supervisor.check_owner()
        applier = self._applier
        if applier is None:
            with self._engine.lock:
                if self._applier is None:
                    self._applier = self._supervisor.applier = Applier(self._supervisor, self._engine)
                applier = self._applier
        self._make_finalizer()
        if job.init is not None or job.exit is not None:
            self._supervisor.warn_of_unused(job, stacklevel=3)
        alone = wait and job.callback is None and job.error_callback is None
        if not alone:
            applier.keep_house()
        result = applier.submit(job, will_wait=alone)
        self._make_finalizer()  # another thread may have stopped the pool meanwhile
        if not alone:
            applier.keep_house()
        return result

    def _map(self, given: dict[str, Any], ordered: bool) -> Any:
        job = make_map_job(self._supervisor.options, lazy=False, ordered=ordered, **given)
        with self._exclusively(begins=True):
            self._supervisor.warn_of_changes(job.functions, stacklevel=3)
            return mapping.run(self._supervisor, job)

    def _imap(self, given: dict[str, Any], ordered: bool) -> Iterator[Any]:
        job = make_map_job(self._supervisor.options, lazy=True, ordered=ordered, **given)
        return mapping.iterate(self._supervisor, job, self._turn)

    def _turn(self, run: mapping.MapRun | None) -> Exclusive:
        """For a step of a lazy map, the first one if there is no `run` yet."""
        return Exclusive(self, run, begins=run is None)

    def _exclusively(self, lazy: object = None, begins: bool = False) -> Exclusive:
        return Exclusive(self, lazy, begins)

    def _check_usable(self, lazy: object) -> None:
        if self._supervisor.running and os.getpid() == self._supervisor.owner_pid:
            raise RuntimeError(IS_BUSY)
        if self._applier is not None and self._applier.is_encoding:
            raise RuntimeError(IS_ENCODING)
        if isinstance(lazy, mapping.MapRun) and lazy.failure is not None:
            raise lazy.failure
        if self._supervisor.unfinished is not lazy:
            raise RuntimeError(IS_OVER if self._supervisor.unfinished is None else IS_UNFINISHED)

    def pass_on_worker_id(self, pass_on: bool = True) -> None:
        """Whether functions get the worker's number: `pass_worker_id` of :class:`WorkerPool`, from the next call on.

        Kept workers were started with what was set before: this, :meth:`set_shared_objects` and
        :meth:`set_use_worker_state` have them restarted at the next call, with a line in the log ``"fastpool"``, unless
        the value is the one they have. They run their exit functions first, whose results are kept.

        Raises
        ------
        TypeError
            `pass_on` is no bool.
        RuntimeError
            A map is running.
        """
        self._set("pass_worker_id", check_flag("pass_on", pass_on))

    def set_shared_objects(self, obj: Any = None) -> None:
        """What functions get as shared objects (None: nothing), from the next call on; see :meth:`pass_on_worker_id`.

        What counts is which object it is: the same one again, even if it has changed, restarts no worker.

        Raises
        ------
        RuntimeError
            A map is running.
        """
        self._set("shared_objects", obj)

    def set_use_worker_state(self, flag: bool = True) -> None:
        """Whether functions get a dict of the worker's own, from the next call on; see :meth:`pass_on_worker_id`.

        Raises
        ------
        TypeError
            `flag` is no bool.
        RuntimeError
            A map is running.
        """
        self._set("use_worker_state", check_flag("flag", flag))

    def set_keep_alive(self, flag: bool = True) -> None:
        """Whether workers survive the end of a map, from the next one on. Restarts no worker.

        Raises
        ------
        TypeError
            `flag` is no bool.
        RuntimeError
            A map is running.
        """
        self._set("keep_alive", check_flag("flag", flag))

    def set_order_tasks(self, flag: bool = True) -> None:
        """Whether chunks go to workers in turn, from the next map on: `order_tasks` of :class:`WorkerPool`. Restarts no
        worker.

        Raises
        ------
        TypeError
            `flag` is no bool.
        RuntimeError
            A map is running.
        """
        self._set("order_tasks", check_flag("flag", flag))

    def _set(self, option: str, value: Any) -> None:
        with self._exclusively():
            setattr(self._supervisor.options, option, value)
            if self._applier is not None:
                self._applier.note_change()

    def get_exit_results(self) -> list[Any]:
        """What `worker_exit` returned in each worker that ran a task and has ended since the workers were last started.

        Returns
        -------
        list
            In no particular order: fewer than ``n_jobs`` for small maps, more with `worker_lifespan`, none before the
            workers end (``keep_alive``: after :meth:`stop_and_join`, but of replaced workers after the map). A map that
            starts no worker, of an empty input, leaves them as they are.
        """
        return list(self._supervisor.exit_results)

    def get_insights(self) -> dict[str, Any]:
        """Where the workers have spent their time since they were last started, and their longest tasks.

        May be called at any time, from any thread: while a map runs, between maps, and when the workers have ended.
        What workers did that are gone, replaced or dead counts for those that came after them under the same number.

        Returns
        -------
        dict
            Empty without `enable_insights`, and before the first worker was started. Durations are strings,
            ``H:MM:SS.mmm``.

            - ``n_completed_tasks``: of each worker; tasks that raised, too.
            - ``start_up_time``, ``init_time``, ``waiting_time``, ``working_time``, ``exit_time``: of each worker: until
              it had come up; in `worker_init`; without work, or without room for results, which shows when it is over;
              in tasks, with getting their arguments; at its end, with `worker_exit`.
            - ``total_start_up_time`` and so on: over all workers; ``total_time``: the sum of these.
            - ``start_up_ratio`` and so on: a float, the share of ``total_time``.
            - ``start_up_time_mean``, ``start_up_time_std`` and so on: over the workers.
            - ``top_5_max_task_durations``, ``top_5_max_task_args``: of the longest tasks, the longest first; their
              arguments as a string, shortened. Those below a millisecond appear when their worker has done all that it
              had taken together.
        """
        insights = self._supervisor.insights
        return {} if insights is None else insights.collect()

    def print_insights(self) -> None:
        """Print what :meth:`get_insights` returns, as a table."""
        print(as_table(self.get_insights()))

    def stop_and_join(self, keep_alive: bool = False) -> None:
        """Wait for all applies, let the workers run their exit functions and end, and collect the exit results.

        The applies' callbacks have run then, too. Memory and descriptors are given back, except for what arrays lie in
        that are still in use. The pool can be used again: its next map starts new workers.

        Parameters
        ----------
        keep_alive : bool, default False
            Only wait for the applies and their callbacks: the workers stay.

        Raises
        ------
        WorkerDiedError
            A kept worker had ended without being asked to.
        WorkerTimeoutError
            An exit function took longer than the last map's `worker_exit_timeout`.
        Exception
            What an exit function raised.
        """
        check_flag("keep_alive", keep_alive)
        applier = self._applier
        if applier is not None and os.getpid() == self._supervisor.owner_pid:
            applier.finish()
        if keep_alive:
            return
        with self._exclusively(self._supervisor.unfinished):
            try:
                self._supervisor.stop()
            finally:
                self._forget_finalizer()
        if applier is not None:
            applier.dismiss_housekeeper()

    join = stop_and_join

    def terminate(self) -> None:
        """Stop all workers now, without their exit functions, unless the last map had `always_exit`. The pool can be
        used again.

        May be called while another thread is in :meth:`map` or :meth:`stop_and_join`, which raises a RuntimeError then;
        this returns when it has: as soon as the input, if that keeps it waiting, gives its next element. Called by a
        signal's handler, or by the input, in the middle of this thread's own call, it returns at once, and that call
        raises the RuntimeError.
        """
        supervisor = self._supervisor
        if supervisor.running and self._engine.is_mine and os.getpid() == supervisor.owner_pid:
            supervisor.end_within()
            return
        with Hold(self._use, self._take_from_another_thread):
            self._terminate()

    def _take_from_another_thread(self) -> bool:
        """Have the thread that uses the pool, if there is one, let go of it."""
        if not self._use.take(blocking=False):
            with self._supervisor.ended_by_another_thread() as patience, Interruptible():
                if not self._use.take(timeout=patience):
                    self._supervisor.kill()
                    self._use.take()
        return True

    def _terminate(self) -> None:
        with self._exclusively(self._supervisor.unfinished):
            self._supervisor.end()
            self._forget_finalizer()
        if self._applier is not None:
            self._applier.dismiss_housekeeper()

    def _make_finalizer(self) -> None:
        if self._finalizer is None:
            self._make_whole_finalizer()

    @uninterrupted
    def _make_whole_finalizer(self) -> None:
        """Half a one fails when it is called."""
        if self._finalizer is None:
            self._finalizer = util.Finalize(
                self, _finalize, (self._supervisor, self._use, self._engine), exitpriority=EXIT_PRIORITY
            )

    @uninterrupted
    def _forget_finalizer(self) -> None:
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None

    def __enter__(self) -> WorkerPool:
        return self

    @uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.terminate()


class Exclusive:
    """A context in which this thread alone uses a pool. It is refused while a map runs, in another thread or (from its
    input) in this one, or is unfinished and not the `lazy` one that is to go on.

    `begins`: workers may be started in it.
    """

    def __init__(self, pool: WorkerPool, lazy: object, begins: bool) -> None:
        self.pool, self.lazy, self.begins = pool, lazy, begins
        # Of a lazy map, who uses the pool then refuses to go on, or ends the pool.
        self.use = Hold(pool._use, partial(pool._use.take, blocking=lazy is not None))
        self.engine = Hold(pool._engine, pool._engine.take)  # from a thread that collects results of applies

    def __enter__(self) -> None:
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise

    def _enter(self) -> None:
        if not self.use.__enter__():
            raise RuntimeError(IS_BUSY)
        self.engine.__enter__()
        self.pool._check_usable(self.lazy)
        if self.begins:
            self.pool._make_finalizer()

    @completed
    def __exit__(self, *_: object) -> None:
        self.engine.let_go()
        self.use.let_go()


def _finalize(supervisor: Supervisor, use: Use, engine: Engine) -> None:
    """The pool was collected, or the interpreter ends, perhaps while a thread is in the middle of a map."""
    with Hold(use, partial(use.take, blocking=False)) as mine:
        if not mine or (supervisor.running and engine.is_mine):
            supervisor.abandon()
            return
        with Hold(engine, engine.take):  # from a thread that collects results of applies
            supervisor.terminate()
        if supervisor.applier is not None:
            supervisor.applier.dismiss_housekeeper()


def _given(variables: dict[str, Any]) -> dict[str, Any]:
    """What a method was called with, of all its local variables."""
    return {name: value for name, value in variables.items() if name != "self"}
