"""The life of a pool's workers: started, watched, stopped, buried."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from fastpool import _reserve, functions, remote, spawning, worker
from fastpool._applies import Applies
from fastpool._collect import Collector
from fastpool._feed import Feed
from fastpool._native import Segment
from fastpool._references import Exchange
from fastpool._signals import Interruptible, uninterrupted
from fastpool.arrays import public_spaces, shared_memory
from fastpool.definition import Definition, same_defaults
from fastpool.engine import Engine
from fastpool.errors import DamagedMemoryError, RemoteError, SerializationError
from fastpool.functions import Function, Functions, name_of
from fastpool.insights import Insights
from fastpool.job import JOB_INSIGHTS, JOB_KEEP_GOING, ApplyJob
from fastpool.machine import memory_bytes
from fastpool.options import PoolOptions
from fastpool.process import WORKERS, Worker, bury_unknown
from fastpool.recovery import Death, Elimination, Recovery
from fastpool.results import AsyncResult
from fastpool.serializer import make_serializer, make_worker_serializer
from fastpool.threads import WorkerThread
from fastpool.timeouts import NO_LIMITS, Late, make_late

logger = logging.getLogger("fastpool")

RING_BYTES = 1 << 20  # of each worker's results: some milliseconds of small ones, so that the parent may come late
LOOK_SECONDS = 0.02
SLOW_READS = 2  # of memory that forks share, each 0.4 of what it takes to make it the owner's alone


Applied = tuple[AsyncResult, int, Any, Any, BaseException | None]  # see Collector.serve


class AppliesBeside(Protocol):
    """What the supervisor asks and tells whoever has the pool's applies: :class:`fastpool.applying.Applier`."""

    @property
    def unfinished(self) -> int:
        """Applies whose result is not there."""

    @property
    def handed_in(self) -> int:
        """Those that workers have, or can have."""

    def attend(self) -> None:
        """Results may have come, workers have ended, room may be there."""

    def flush_at(self) -> int | None:
        """When results that are held back are to be looked at, on the monotonic clock in ns."""

    def note_death(self, death: Death, unit: int, certain: bool) -> None:
        """A worker that died had claimed this apply, or was about to."""

    def late_job(self, unit: int) -> ApplyJob | None:
        """Of the apply that a worker is late with."""

    def check_none_lost(self) -> None:
        """Has damage swallowed an apply?"""

    def close(self) -> None:
        """Hand in no more: the segment is about to go."""

    def fail_all(self, error: BaseException) -> None:
        """The workers are gone: this is what became of the applies that are not done."""

    def dismiss_housekeeper(self) -> None:
        """End the thread that collects results while nobody waits for them, if there is one."""


class Supervisor:
    """Starts, feeds, watches, stops and buries the workers of one pool, in the process that made it.

    Parameters
    ----------
    options : PoolOptions
        May be changed by the pool between calls.
    engine : Engine
        Who has it may use this.
    """

    def __init__(self, options: PoolOptions, engine: Engine) -> None:
        self.options = options
        self.applier: AppliesBeside | None = None  # once there was an apply
        engine.call = self.call
        self.serializer = make_serializer(options.use_dill, self.inherits)
        self.owner_pid = os.getpid()
        self.exit_results: list[Any] = []
        self.insights = Insights(options.n_jobs) if options.enable_insights else None
        self._is_ending = False  # :meth:`terminate` has begun and not come to its end
        self._must_end = False  # something failed, and workers may not have been stopped: that may have failed, too
        self._starts_afresh = True  # the next worker to be started is the first
        self._were_kept = False  # workers of the last map
        self._given: dict[str, Any] = {}  # to the workers, when the first of them was started
        self.running = False  # this process's own part of a map, or of collecting applies, is
        self.mapping = False  # a map has begun, and neither come to its end nor been left
        self.wanted_by_map = 0  # workers
        self.turn_of: Callable[[int], int | None] | None = None  # see :meth:`start_workers`
        self._is_stopping = False  # no more workers are to be started
        self.unfinished: Any = None  # the lazy map that is neither exhausted nor left
        self.limits = NO_LIMITS  # of the last map
        self._patience: float | None = None  # of the last map, see :meth:`end`
        self._was_left = False  # one was, and workers may still hold something of it
        self._left_feed: Feed | None = None  # of that map
        self._enders: set[object] = set()  # see :meth:`ended_by_another_thread`
        self._is_ended_within = False  # see :meth:`end_within`
        self._segment: Segment | None = None
        self._collector: Collector | None = None
        self._workers: dict[int, Worker] = {}
        self._leaving: list[Worker] = []  # have written their last word, not yet waited for
        self.deaths: list[Death] | None = None  # that the map outlives, and has not looked at; None: it does not
        self.last_array_map: tuple[Any, Any, Any] = (None, None, None)  # its function, its input's rows, its results'
        self._in_use_by_workers: list[Any] = []
        self.keeps_places = -1  # version of functions that leave objects of theirs where results belong
        self._functions: Functions | None = None
        self._definitions: list[Definition] = []  # of the functions
        self._known: dict[str, Any] = {}  # functions that living workers have, by name
        self._init: Function | None = None  # the last that was given since the workers were started
        self._exit: Function | None = None  # of the last map
        self._version = 0
        self._blob: bytes | None = None
        self._shared: spawning.Packed | None = None  # for workers that are no forks
        self._could_read = False
        self._forked: tuple[Any, int] = (None, 0)  # memory that was read in the slow way: address and bytes; how often
        self._next_look = 0.0  # at the process handles, when results keep the parent from sleeping

    # ---------------------------------------------------------------- the map

    def attempt(self, part: Callable[[], Any]) -> Any:
        """Do a part of a map, or for applies. On any error all workers are stopped, and the error is raised.

        No context manager: an interrupt at the end of one could leave `running` set.
        """
        self.check_owner()
        if self._is_ended_within:  # when the last call had ended its workers already
            self.terminate()
        try:
            self.running = True
            result = part()
        except BaseException as error:
            self._must_end = True  # before anything that takes memory
            _reserve.let_go()
            self.end(error)
            self.tell_of_dill(error)
            raise
        finally:
            self.running = False  # from here on `terminate()` of a handler does what it says
        if self._is_ended_within:  # the call came to its end all the same
            self.end()
        return result

    def begin(self, new: Functions, outlives_workers: bool, patience: float | None) -> None:
        """Be ready for a map with these functions."""
        self._check_ended()
        self.forget_unfinished()
        self.deaths = [] if outlives_workers else None
        self._patience = patience
        self._prepare(new)
        self.mapping = True

    def complete(self) -> None:
        """All results of the map are there."""
        if not self.options.keep_alive:
            self._see_out()
            if self.applier is not None:
                self.segment.close_map()
        self._take_exit_results()
        self._log_deaths()
        self.unfinished = None
        self._end_map()

    def _end_map(self) -> None:
        self.mapping, self.wanted_by_map, self.turn_of = False, 0, None
        self._were_kept = self.options.keep_alive

    def _log_deaths(self) -> None:
        """Nothing was lost by them."""
        for death in self.deaths or ():
            logger.warning("%s", death.error([]))
        self.deaths = None

    @uninterrupted
    def leave(self) -> None:
        """No more results of the lazy map are wanted. Workers go on to the end of the tasks that run."""
        if os.getpid() != self.owner_pid:
            return
        self._left_feed = self.collector.feed
        self.collector.drop()
        self.segment.abandon_job()
        if not self.options.keep_alive:
            self._command_stop()
        self.unfinished, self._was_left = None, True
        self._end_map()

    def forget_unfinished(self) -> None:
        """Wait until no worker holds anything of a lazy map that was left."""
        if not self._was_left:
            return
        self.deaths = []  # not of interest to anybody any more
        at_rest = False
        while not at_rest:
            if self.gather():
                at_rest = self.segment.is_at_rest
                if not at_rest:
                    self.sleep(1)
        self.collector.catch_up()
        if not self.options.keep_alive:
            self._command_stop()  # those too that were started since, for applies, or were to be kept then
            self._see_out()
        self._take_exit_results()
        if self._left_feed is not None:
            self._left_feed.release()
        self.collector.abandon()
        self._log_deaths()
        self._left_feed, self._was_left = None, False

    # ---------------------------------------------------------------- applies

    def call(self) -> None:
        """From any thread: whoever sleeps in :meth:`sleep` is to look again."""
        collector = self._collector
        if collector is not None:
            collector.call()

    def open_applies(self, job: ApplyJob, applied: deque[Applied]) -> Applies:
        """Have a segment, workers with this one's init and exit function if there are none, and applies in it, of which
        the results are appended to a deque."""
        self._check_ended()
        if not self.mapping and (not self._workers or self._outdated):
            self.forget_unfinished()
            self._prepare(Functions(functions.no_task, job.init, job.exit))
            self.segment.close_map()
            self._patience, self.limits = None, job.limits
            self._init, self._exit = job.init, job.exit
        applies = Applies(self.segment, self.serializer)
        self.segment.publish_applies(
            flags=JOB_KEEP_GOING | (JOB_INSIGHTS if self.options.enable_insights else 0),
            n_workers=self.options.n_jobs,
            spec=self._version,
            spec_blob=self._blob,
            limits=self.limits.ns[1:],
        )
        self.collector.serve(applies, applied)
        return applies

    def limit_applies(self, limit_ns: int) -> None:
        """There is an apply that may not take longer than so many nanoseconds; 0: there is none."""
        if self._segment is not None and not self._segment.closed:
            self._segment.limit_applies(limit_ns)

    @property
    def busy_with_applies(self) -> int:
        """Workers that applies need, at most."""
        return 0 if self.applier is None else self.applier.handed_in

    @property
    def worker_ids(self) -> list[int]:
        """Of the living."""
        return list(self._workers)

    def wants_other_workers(self, job: ApplyJob) -> bool:
        """Are an init or exit function given, or limits of theirs, that workers would not have that are started now?"""
        given = (job.init, job.exit, job.limits.worker_init, job.limits.worker_exit)
        were = (self._init, self._exit, self.limits.worker_init, self.limits.worker_exit)
        return any(new is not None and new != was for new, was in zip(given, were, strict=True))

    def warn_of_unused(self, job: ApplyJob, stacklevel: int) -> None:
        """Live workers run no other init and exit function because of an apply."""
        if not self._workers:
            return
        for name, given, was in (("worker_init", job.init, self._init), ("worker_exit", job.exit, self._exit)):
            if given is not None and given != was:
                message = f"{name} {name_of(given)} of this apply does not run in workers that live already"
                warnings.warn(message, RuntimeWarning, stacklevel + 1)

    # ---------------------------------------------------------------- preparing

    def tell_of_dill(self, error: BaseException) -> None:
        """So that it is not advised to those who use it."""
        if isinstance(error, SerializationError):
            error.use_dill = self.options.use_dill

    def _prepare(self, new: Functions) -> None:
        if self._must_end:
            self.terminate()
        restarts = bool(self._outdated)
        if restarts:
            logger.info("workers are restarted: %s has been set anew", ", ".join(self._outdated))
            self.stop()
        were_kept = self._were_kept and self._segment is not None  # but may all have reached their lifespan
        if self._segment is None:
            shared_memory()  # mapped in workers too, whenever an array is made in it
            n_jobs = self.options.n_jobs
            exchange = Exchange(n_jobs) if self.threads else None
            self._segment = Segment(n_jobs, RING_BYTES, self.options.memory_limit, self.options.cores, exchange)
            self._collector = Collector(self._segment, self.serializer.loads)
        self.bury(self._ended_meanwhile())
        self.serializer.begin_job()
        if not self._workers:
            if not restarts and not were_kept:
                self._starts_afresh = True
            self._given = self.options.given_to_workers
            self._pack_shared_objects()
        self._learn(new)

    @property
    def _outdated(self) -> list[str]:
        """Options that have other values than the living workers were started with."""
        now = self.options.given_to_workers
        return [name for name, value in now.items() if self._workers and self._given[name] is not value]

    @property
    def threads(self) -> bool:
        """Are workers threads of this process?"""
        return self.options.start_method == "threading"

    @property
    def inherits(self) -> bool:
        """Do workers have what this process has? (Forks, as it was at the fork; threads, the very same.)"""
        return self.options.start_method in ("fork", "threading")

    def _pack_shared_objects(self) -> None:
        """Once for all workers of a pool, as they are when the first of them is started."""
        self._drop_shared_objects()
        if self.options.shared_objects is not None and not self.inherits:
            self._shared = spawning.pack(self.options.shared_objects, self.serializer)

    def _drop_shared_objects(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            os.close(shared.fd)

    def _learn(self, new: Functions) -> None:
        """Give the job's functions a version: the one that living workers know, if they are the same.

        What a function captured or has as a default is, like shared objects, as it was when the worker was forked.
        """
        if self.segment.exchange is not None:
            self._functions = self.segment.exchange.functions = new
            self._version += 1
            return
        old, blob = self._functions, None
        same = old is not None and all(map(operator.is_, old, new)) and all(d.is_current for d in self._definitions)
        by_value = self.options.use_dill and not self.inherits  # with what they refer to, which may have changed
        if same and functions.is_plain(new) and not by_value:
            return
        definitions = [Definition(function) for function in new]
        if self._workers or not self.inherits:
            try:
                blob = functions.dumps(new, definitions, self.serializer)
            except SerializationError as error:
                if not self.inherits:
                    raise
                if same:
                    return
                logger.info("workers are restarted: the function cannot be pickled for them (%s)", error)
            else:
                if self.inherits and not self._have_known_defaults(new):
                    logger.info("workers are restarted: a function's defaults are new, which do not travel")
                    blob = None
                elif blob == self._blob:
                    return
        self._functions, self._definitions = new, definitions
        if blob is None:  # for workers that are to come
            self._known.clear()
        self._known.update((name_of(function), function) for function in new)
        self._version += 1
        self._blob = blob

    def _have_known_defaults(self, new: Functions) -> bool:
        """Do the functions have the defaults that workers know with these names?"""
        return all(same_defaults(self._known.get(name_of(function), function), function) for function in new)

    def warn_of_changes(self, new: Functions, stacklevel: int) -> None:
        """Live workers do not run another init, and run another exit than the map before said."""
        was, self._exit = self._exit, new.exit
        if not self._workers or self._outdated:
            self._init = new.init
            return
        if new.init is not None and new.init != self._init:
            message = f"worker_init {name_of(new.init)} does not run in workers that live already (keep_alive)"
            warnings.warn(message, RuntimeWarning, stacklevel + 1)
            self._init = new.init
        if was is not None and new.exit != was:
            given = "no worker_exit" if new.exit is None else f"worker_exit {name_of(new.exit)}"
            message = f"{given} runs in workers that live already (keep_alive), instead of {name_of(was)}"
            warnings.warn(message, RuntimeWarning, stacklevel + 1)

    def check_owner(self) -> None:
        if os.getpid() != self.owner_pid:
            raise RuntimeError(
                f"this pool belongs to process {self.owner_pid}; make a new WorkerPool in process {os.getpid()}"
            )

    def _ended_meanwhile(self) -> list[int]:
        return [worker_id for worker_id, process in self._workers.items() if process.reap(block=False)]

    # ---------------------------------------------------------------- workers

    @property
    def segment(self) -> Segment:
        assert self._segment is not None
        return self._segment

    @property
    def collector(self) -> Collector:
        assert self._collector is not None
        return self._collector

    @property
    def version(self) -> int:
        """Of the current functions."""
        return self._version

    @property
    def blob(self) -> bytes | None:
        """The pickled functions for workers that were there before them."""
        return self._blob

    @property
    def living(self) -> int:
        """Workers that can take tasks."""
        return len(self._workers)

    @property
    def can_read(self) -> bool | None:
        """Can the living workers read this process's memory? That is up to the system: one speaks for those that are
        still coming up. None: there is nobody to tell."""
        answers = {self.segment.reads_owner(worker_id) for worker_id in self._workers}
        return None if not answers else answers <= {True, None} and True in answers

    def reach(self) -> bool:
        """Can workers read, and write, this process's memory? Of those that lived last, where nobody does."""
        answer = self.can_read
        return self._could_read if answer is None else answer

    def note_forked(self, array: Any, unshared: bool) -> None:
        """Workers have read this array in the slow way, because some fork shares its memory; or it was `unshared`, and
        what has been paid for that begins anew (another fork may share it again)."""
        if unshared:
            self._forked = (None, 0)
            return
        where = array.ctypes.data, array.nbytes
        seen, times = self._forked
        self._forked = (where, times + 1 if seen == where else 1)

    def pays_to_unshare(self, array: Any) -> bool:
        """Has this memory been read in the slow way so often that a copy of it, once and for good, would have been
        paid for? (The workers keep the pages they share until they end.)"""
        seen, times = self._forked
        return times >= SLOW_READS and seen == (array.ctypes.data, array.nbytes) and array.nbytes <= memory_bytes() // 8

    @property
    def all_idle(self) -> bool:
        """Do all workers rest? They have given back what they do not need."""
        return all(self.segment.state(worker_id) == "idle" for worker_id in self._workers)

    def keep_until_workers_end(self, memory: Any) -> None:
        """A worker has an object of the user's in this memory. The next map of these functions keeps away from it."""
        self._in_use_by_workers.append(memory)
        self.keeps_places = self._version

    def start_worker(self, worker_id: int) -> None:
        """Start a worker in a free lane."""
        main, descriptors = self._inheritance(worker_id) if self.inherits else self._outfit(worker_id)
        if self._starts_afresh:
            self._starts_afresh = False
            self.exit_results = []
            if self.insights is not None:
                self.insights.start_afresh()
        kind = WORKERS[self.options.start_method]
        cores = None if self.options.cpu_ids is None else self.options.cpu_ids[worker_id]
        process = kind(self.segment, worker_id, main, self.options.daemon, descriptors, cores)
        if self.insights is not None:
            self.insights.note_start(worker_id, self.segment)
        process.start()
        self._workers[worker_id] = process
        self._check_ended()

    def _inheritance(self, worker_id: int) -> tuple[Callable[[Segment], Any], list[int]]:
        """What a fork runs, or makes a thread's loop, and descriptors to give it."""
        assert self._functions is not None
        options = self.options
        shared = () if options.shared_objects is None else (options.shared_objects,)
        leading = worker.leading_arguments(worker_id, shared, options.pass_worker_id, options.use_worker_state)
        if self.segment.exchange is not None:
            return partial(worker.make_loop, worker.ThreadHost(worker_id, leading, self.segment.exchange)), []
        serializer = make_worker_serializer(options.use_dill)
        host = worker.Host(worker_id, leading, self._version, self._functions, serializer)
        return partial(worker.run, host), []

    def _outfit(self, worker_id: int) -> tuple[Callable[[Segment], Any], list[int]]:
        """What any other worker runs, and descriptors to give it."""
        options, shared, spaces = self.options, self._shared, public_spaces()
        outfit = worker.Outfit(
            worker_id, options.pass_worker_id, options.use_worker_state, options.use_dill, shared, spaces
        )
        descriptors = [fd for _, fd in spaces] + ([] if shared is None else shared.descriptors)
        return partial(worker.run_fresh, outfit), descriptors

    @property
    def free_lanes(self) -> list[int]:
        """Where workers can be started."""
        return [worker_id for worker_id in range(self.options.n_jobs) if worker_id not in self._workers]

    def start_workers(self, wanted: int, is_needed: Any) -> None:
        """Start workers until there are `wanted`, or as many as can be, as long as there is something left to claim.

        While an ordered map runs, `turn_of` says which chunk a lane's next worker takes first; None: that is not known.
        """
        for worker_id in self.free_lanes:
            if len(self._workers) >= wanted or self._is_stopping or not is_needed():
                return
            if self.turn_of is not None:
                turn = self.turn_of(worker_id)
                if turn is None:
                    return
                self.segment.begin_at(worker_id, turn)
            self.start_worker(worker_id)

    def hand_over_lanes(self) -> None:
        """Free the lanes of workers that have written their last word."""
        for worker_id in self.segment.exited():
            self.collector.drain(worker_id)
            self._raise_failure()
            process = self._workers[worker_id]
            self._could_read = self.segment.reads_owner(worker_id) is True
            self._leaving.append(process)
            process.detach()
            del self._workers[worker_id]
            self._empty_lane(worker_id)
        self._leaving = [process for process in self._leaving if not process.reap(block=False)]

    def _empty_lane(self, worker_id: int) -> None:
        self._note_end(worker_id)
        self.collector.reset(worker_id)
        self.segment.sweep_heap(worker_id)

    def _note_end(self, worker_id: int) -> None:
        if self.insights is not None:
            self.insights.note_end(worker_id)

    def bury(self, ended: list[int]) -> None:
        """Deal with workers whose process has ended.

        Raises
        ------
        WorkerDiedError, WorkerTimeoutError
            One of them had not been asked to end, or was killed, and the map does not outlive that.
        """
        for worker_id in ended:
            self._check_ended()
            process = self._workers[worker_id]
            process.reap(block=True)
            self.collector.drain(worker_id)
            self._raise_failure()
            del self._workers[worker_id]
            if not self.segment.has_exited(worker_id):
                self._mourn(worker_id, process)
            self._empty_lane(worker_id)

    def _mourn(self, worker_id: int, process: Worker) -> None:
        assert process.pid is not None
        pid, exitcode = process.pid, process.exit_status
        state = self.segment.state(worker_id)
        units, certain = self.segment.held_units(worker_id)
        apply = self.segment.held_apply(worker_id)
        method = self.options.start_method
        death = Death(worker_id, pid, exitcode, state, units, certain, process.job, method, process.late)
        self.segment.declare_dead(worker_id)
        if apply is not None and self.applier is not None:
            self.applier.note_death(death, *apply)
        is_idle = self.applier is not None and not self.mapping and state not in ("starting", "exiting")
        if not death.ends_every_map and (is_idle or (apply is not None and apply[1])):
            logger.warning("%s", death.error([] if apply is None else [range(apply[0], apply[0] + 1)]))
            return
        if self._was_left and death.late is not None and state != "exiting":
            return  # like an exception, which nobody waits for either
        if self.deaths is None or death.ends_every_map:
            lost = Elimination(self.segment, self.collector, self._workers).lost_by(death)
            if death.late is not None:
                self._hasten_end()
            raise death.error(lost)
        self.deaths.append(death)

    def settle(self, recovery: Recovery) -> None:
        """Let the map find out what the dead have left."""
        assert self.deaths is not None
        deaths, self.deaths = self.deaths, []
        recovery.settle(deaths, self._workers)

    def _raise_failure(self) -> None:
        if self.collector.failures and not self.collector.is_closing:
            worker_id, _, task, payload = self.collector.failures[0]
            raise remote.revive(worker_id, task, payload, self.serializer)

    def gather(self) -> bool:
        """Collect what is there. Returns whether that was all: if not, gather again before sleeping.

        Decide what to do next after this and before :meth:`sleep`: what happens after this ends the sleep.
        """
        self.collector.heed()
        all_gathered = self.collector.collect()
        self._raise_failure()
        self.hand_over_lanes()
        self._check_ended()
        self.look()
        if self.applier is not None:
            self.applier.attend()
        return all_gathered

    def look(self) -> None:
        """At what must not wait for a pause: whether the pool was ended; every now and then deadlines, and ends of
        processes."""
        self._check_ended()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._stop_late()
            self.bury(self.segment.look_at_handles())

    def _stop_late(self) -> int | None:
        """Kill workers whose function has run for longer than its limit; :meth:`bury` finds their ends.

        Returns when to look again, on the monotonic clock in ns; None: never.
        """
        late, again = self.segment.late_calls()
        for worker_id, until in late:
            if self.segment.condemn(worker_id, until):  # from here on its line stays as it is
                assert self._functions is not None
                self._workers[worker_id].late = self._late(worker_id)
                self.segment.kill(worker_id, signal.SIGKILL)
        if late and self.threads:
            self._give_up_late()
        return again

    def _late(self, worker_id: int) -> Late:
        """What a worker is late with."""
        assert self._functions is not None
        state, apply = self.segment.state(worker_id), self.segment.held_apply(worker_id)
        if apply is not None and self.applier is not None and state == "running":
            job = self.applier.late_job(apply[0])
            if job is not None:
                return make_late(worker_id, state, Functions(job.function, None, None), job.limits)
        return make_late(worker_id, state, self._functions, self.limits)

    def _hasten_end(self) -> None:
        """The map ends because of a time limit: the caller does not wait for other threads either."""
        for process in self._workers.values():
            if isinstance(process, WorkerThread):
                process.is_urgent = True

    def _give_up_late(self) -> None:
        """Threads that do not end though they were told to are as good as dead."""
        for process in self._workers.values():
            if isinstance(process, WorkerThread) and process.late is not None:
                process.give_up()

    def sleep(self, grain: int, deadline_ns: int | None = None) -> None:
        """Until a worker has `grain` more results, or brings news, or its process ends, or a function of the user's has
        run for long enough: at once, if that is so."""
        flush_at = None if self.applier is None or grain == 1 else self.applier.flush_at()
        deadlines = [at for at in (deadline_ns, self._stop_late(), flush_at) if at is not None]
        deadline_ns = min(deadlines, default=None)
        if self.collector.wait(grain, deadline_ns):
            self.bury(self.segment.ended())

    # ---------------------------------------------------------------- ending

    def _finish_applies(self) -> None:
        while self.applier is not None and self.applier.unfinished:
            if self.gather() and self.applier.unfinished:
                self.applier.check_none_lost()
                self.sleep(1)

    def _see_out(self) -> None:
        """Workers are on their way out, or have been told to: wait for their last words and their ends."""
        self._is_stopping = True
        try:
            while self._workers:
                if self.gather() and self._workers:
                    self.sleep(1)
            for process in self._leaving:
                self._check_ended()
                process.reap(block=True)
            self._leaving.clear()
        finally:
            self._is_stopping = False

    def _take_exit_results(self) -> None:
        self.exit_results.extend(self.collector.exits)
        self.collector.exits.clear()

    def stop(self) -> None:
        """Let idle workers run their exit functions and end, and give shared memory back."""
        if self._must_end:
            self.terminate()
        if self._segment is None or os.getpid() != self.owner_pid:
            return
        try:
            if self.unfinished is not None:
                self.leave()
            self.forget_unfinished()
            self._finish_applies()
            self._command_stop()
            self._see_out()
        except BaseException as error:
            self._must_end = True
            self.end(error)
            raise
        self.terminate()

    def end(self, error: BaseException | None = None) -> None:
        """Stop all workers now, because of an error or because it was asked for; with their exit functions, if the last
        map wanted that (`always_exit`). Where shared memory is damaged nobody can be told anything: they are killed."""
        try:
            if self._patience is not None and not isinstance(error, DamagedMemoryError):
                with Interruptible():
                    self._let_exit(self._patience)
        finally:
            if self.unfinished is not None:
                self.unfinished.failure = error
            self.terminate(error)

    def _command_stop(self) -> None:
        for worker_id in list(self._workers):
            self.segment.command_stop(worker_id)

    def _let_exit(self, seconds: float) -> None:
        """Have the workers drop the job, run their exit functions and end, as far as they do so in time."""
        if self._segment is None or self._collector is None or self._is_ending or os.getpid() != self.owner_pid:
            return
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._collector.close()
        buried = [worker_id for worker_id in self._workers if not self._segment.pid(worker_id)]  # bury() raised then
        for worker_id in buried:
            del self._workers[worker_id]
        for worker_id in (*buried, *self._bury_unknown()):
            self._empty_lane(worker_id)
        self._segment.give_up()
        for worker_id in self._workers:
            if self._segment.state(worker_id) == "starting":  # it has nothing to exit from, and can claim nothing now
                self._segment.kill(worker_id, signal.SIGKILL)
        while self._workers and time.monotonic_ns() < deadline_ns:
            all_gathered = self._collector.collect()
            self.hand_over_lanes()
            if all_gathered and self._workers and self._collector.wait(1, deadline_ns):
                self._drop_dead()
        for process in self._leaving:
            process.wait(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9))
        for worker_id in self._workers:
            logger.warning("worker %d did not come to its end within %g s and is killed", worker_id, seconds)
        for worker_id, _, task, payload in self._collector.failures:
            failure = remote.revive(worker_id, task, payload, self.serializer)
            logger.warning("worker_exit failed in worker %d, which was ending", worker_id, exc_info=failure)

    def _drop_dead(self) -> None:
        """Workers whose process has ended without their last word, while all are ending."""
        for worker_id in self.segment.ended():
            if not self.segment.has_exited(worker_id):
                self._workers.pop(worker_id).reap(block=True)
                self.collector.drain(worker_id)
                self.segment.declare_dead(worker_id)

    def _bury_unknown(self) -> list[int]:
        """Kill and wait for workers that an exception left without a record here, between their start and that."""
        assert self._segment is not None
        unknown = [lane for lane in range(self._segment.lanes) if self._segment.pid(lane) and lane not in self._workers]
        for worker_id in unknown:
            self._segment.kill(worker_id, signal.SIGKILL)
            bury_unknown(self._segment, worker_id)
        return unknown

    @contextlib.contextmanager
    def ended_by_another_thread(self) -> Iterator[float]:
        """While this is entered, the thread that uses the pool lets go of it: its call raises, and cleans up.

        Yields how long (seconds, -1: for ever) to wait for that before :meth:`kill` is called, if workers were told to
        run their exit functions.

        This thread first says so (a token in `_enders`), then kills; the other one first makes a process known (its pid
        in the segment, or the process in `_leaving`), then looks for tokens, then sleeps or waits. So either the kill
        reaches the process, whose end ends the sleep or the wait, or the look finds the token. Nothing else is touched
        here: what belongs to the pool stays the other thread's.
        """
        token = object()
        self._enders.add(token)
        try:
            yield self._ask_to_end()
        except BaseException:
            self.kill()
            raise
        finally:
            self._enders.discard(token)

    def _ask_to_end(self) -> float:
        """In another thread than the pool's: kill all workers, or have them run their exit functions first. Returns how
        many seconds these have, -1: they have been killed."""
        segment, patience = self._segment, self._patience
        if segment is None or patience is None:
            self.kill()
            return -1.0
        segment.give_up()
        return patience

    def end_within(self) -> None:
        """The same from what this thread's call runs, a signal's handler or the input: that call raises, and cleans up,
        when it goes on."""
        self._is_ended_within = True
        self._ask_to_end()

    def _check_ended(self) -> None:
        if self._is_ended_within:
            raise RuntimeError(
                "the pool was terminated in the middle of this call, by a signal's handler or by the input"
            )
        if self._enders:
            raise RuntimeError("the pool was terminated by another thread")

    def abandon(self) -> None:
        """The process ends while a thread still uses the pool: no worker must stay, or come."""
        self._enders.add(self)
        self.kill()

    def kill(self) -> None:
        """Kill all workers, nothing else. Any thread may do that at any time."""
        if self._segment is not None and os.getpid() == self.owner_pid:
            for worker_id in range(self._segment.lanes):
                self._segment.kill(worker_id, signal.SIGKILL)
            for process in list(self._leaving):
                process.kill()

    def terminate(self, error: BaseException | None = None) -> None:
        """Kill all workers, wait for them, give shared memory back; applies that are not done have failed, because of
        this error, if there is one. Safe to call in any state, and twice."""
        mapping = self.mapping
        self._end_map()
        applier = None if os.getpid() != self.owner_pid else self.applier
        try:
            if applier is not None:
                applier.close()
        finally:
            try:
                self._terminate()
            finally:
                if applier is not None:
                    applier.fail_all(as_failure(error, mapping))

    @uninterrupted
    def _terminate(self) -> None:
        """Each step may fail where there is no memory left: then the rest is done before the pool is used again."""
        if os.getpid() != self.owner_pid:
            self._segment = None
        self._is_ended_within = False
        if self._segment is None:
            self._must_end = False
            return
        self._is_ending = self._must_end = True
        self.kill()
        if self._collector is not None:
            self._take_exit_results()
            self._collector.abandon()
            self._collector = None
        self._functions = self._blob = self.unfinished = self._left_feed = None
        self._was_left = False
        self._drop_shared_objects()
        abandoned = [process for process in (*self._workers.values(), *self._leaving) if not process.reap(block=True)]
        self._workers.clear()
        self._bury_unknown()
        for worker_id in range(self._segment.lanes):
            self._note_end(worker_id)
        self._leaving.clear()
        self._in_use_by_workers.clear()
        self._segment.close()
        self._segment = None
        self._is_ending = self._must_end = False
        for thread in abandoned:
            assert isinstance(thread, WorkerThread)
            thread.warn()


def is_of_workers(error: BaseException) -> bool:
    """Or has a handler of a signal raised it here?"""
    return isinstance(error, Exception) or isinstance(error.__cause__, RemoteError)


def as_failure(error: BaseException | None, mapping: bool) -> BaseException:
    """What an apply raises that is not done when the workers are stopped: because of an error, in a map or not."""
    if error is not None and is_of_workers(error) and not mapping:
        return error
    because = " because a map on the same pool failed" if mapping and error is not None else ""
    failure = RuntimeError(f"the pool's workers were stopped{because} before this apply had a result")
    failure.__cause__ = error
    return failure
