"""The life of a pool's workers, and the loop in which the caller's thread runs a map."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial
from typing import Any

from fastpool import functions, remote, worker
from fastpool._collect import Collector
from fastpool._feed import Feed
from fastpool._native import Segment
from fastpool.errors import WorkerDiedError
from fastpool.functions import Functions
from fastpool.job import MapJob
from fastpool.machine import cpu_count
from fastpool.options import PoolOptions
from fastpool.process import WorkerProcess
from fastpool.schedule import AHEAD, CHUNK_NS, Schedule, collect_grain

logger = logging.getLogger("fastpool")

RING_BYTES = 1 << 20  # of each worker's results: some milliseconds of small ones, so that the parent may come late
LOOK_SECONDS = 0.02
UNIT_TASK, UNIT_CHUNK = 1, 2
JOB_LAST = 1
PATIENCE_NS = 5_000_000  # a chunk is not held back longer for elements that come slowly
CHUNK_BYTES = 4 << 20  # nor made larger than this
NO_LIMIT = 2**63
FEW_TASKS = 16  # for each worker: so few may be too little work for a second worker
MOMENT_NS = 200_000  # less than starting a worker takes


def chunk_bytes(options: PoolOptions) -> int:
    """Most bytes of a chunk whose size the user left to us: several for every worker fit into the memory limit."""
    return max(1, min(CHUNK_BYTES, options.memory_limit // (4 * options.n_jobs + 4)))


class Supervisor:
    """Starts, feeds, watches, stops and buries the workers of one pool, in the process that made it.

    Parameters
    ----------
    options : PoolOptions
        May be changed by the pool between calls.
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.owner_pid = os.getpid()
        self.exit_results: list[Any] = []
        self.running = False  # a map is
        self._segment: Segment | None = None
        self._collector: Collector | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._leaving: list[WorkerProcess] = []  # have written their last word, not yet waited for
        self._functions: Functions | None = None
        self._version = 0
        self._blob: bytes | None = None
        self._next_look = 0.0  # at the process handles, when results keep the parent from sleeping

    # ---------------------------------------------------------------- the map

    def run(self, job: MapJob) -> list[Any]:
        """Run a map to its end. On any error all workers are stopped, and the error is raised."""
        try:
            self.running = True
            self._prepare(job)
            results = _Run(self, job).results()
            if not self.options.keep_alive:
                self._see_out()
            return results
        except BaseException:
            self.terminate()
            raise
        finally:
            self.running = False

    def _prepare(self, job: MapJob) -> None:
        self._check_owner()
        if self._segment is None:
            n_jobs = self.options.n_jobs
            self._segment = Segment(n_jobs, RING_BYTES, self.options.memory_limit, cpu_count())
            self._segment.adopt_heap(n_jobs)
            self._collector = Collector(self._segment)
        self.bury(self._ended_meanwhile())
        if not self._workers:
            self.exit_results = []
        self._learn(job.functions)

    def _learn(self, new: Functions) -> None:
        """Give the job's functions a version: the one that living workers know, if they are the same."""
        blob: bytes | None = None
        if self._functions is not None and functions.is_same(self._functions, new):
            return
        if self._workers:
            try:
                blob = functions.dumps(new)
            except Exception as error:
                logger.info("workers are restarted: the function cannot be pickled for them (%s)", error)
            else:
                if blob == self._blob:
                    return
        self._functions = new
        self._version += 1
        self._blob = blob

    def _check_owner(self) -> None:
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

    def start_worker(self, worker_id: int) -> None:
        """Fork a worker into a free lane."""
        assert self._functions is not None
        options = self.options
        leading: tuple[Any, ...] = ()
        if options.pass_worker_id:
            leading += (worker_id,)
        if options.shared_objects is not None:
            leading += (options.shared_objects,)
        if options.use_worker_state:
            leading += ({},)
        host = worker.Host(worker_id, leading, self._version, self._functions)
        process = WorkerProcess(self.segment, worker_id, partial(worker.run, self.segment, host), options.daemon)
        process.start()
        self._workers[worker_id] = process

    def start_workers(self, wanted: int, is_needed: Any) -> None:
        """Start workers until there are `wanted`, as long as there is something left to claim."""
        for worker_id in range(self.options.n_jobs):
            if len(self._workers) >= wanted or not is_needed():
                return
            if worker_id not in self._workers:
                self.start_worker(worker_id)

    def hand_over_lanes(self) -> None:
        """Free the lanes of workers that have written their last word."""
        for worker_id in self.segment.exited():
            self.collector.drain(worker_id)
            self._raise_failure()
            process = self._workers.pop(worker_id)
            process.popen.detach()
            self._leaving.append(process)
            self._empty_lane(worker_id)
        self._leaving = [process for process in self._leaving if not process.reap(block=False)]

    def _empty_lane(self, worker_id: int) -> None:
        self.collector.reset(worker_id)
        self.segment.sweep_heap(worker_id)

    def bury(self, ended: list[int]) -> None:
        """Deal with workers whose process has ended.

        Raises
        ------
        WorkerDiedError
            One of them had not been asked to end.
        """
        for worker_id in ended:
            process = self._workers[worker_id]
            process.reap(block=True)
            self.collector.drain(worker_id)
            self._raise_failure()
            if self.segment.state(worker_id) != "exited":
                raise self._death(worker_id, process)
            del self._workers[worker_id]
            self._empty_lane(worker_id)

    def _death(self, worker_id: int, process: WorkerProcess) -> WorkerDiedError:
        popen = process.popen
        state = self.segment.state(worker_id)
        self.segment.declare_dead(worker_id)
        exitcode = None if popen.status_lost else popen.returncode
        return WorkerDiedError(worker_id, popen.pid, exitcode, state, self._tasks_of(worker_id))

    def _tasks_of(self, worker_id: int) -> range:
        """Tasks that a dead worker had claimed and that have no result (csrc/README.md, elimination)."""
        first, count, certain = self.segment.held_tasks(worker_id)
        if not count:
            return range(0)
        if not certain:
            for other in self._workers:
                their_first, their_count, theirs = self.segment.held_tasks(other)
                if other != worker_id and theirs and their_first <= first < their_first + their_count:
                    return range(0)
        return self.collector.missing(first, count)

    def _raise_failure(self) -> None:
        if self.collector.failures:
            worker_id, _, task, payload = self.collector.failures[0]
            raise remote.revive(worker_id, task, payload)

    def gather(self) -> bool:
        """Collect what is there. Returns whether that was all: if not, gather again before sleeping.

        Decide what to do next after this and before :meth:`sleep`: what happens after this ends the sleep.
        """
        all_gathered = self.collector.collect()
        self._raise_failure()
        self.hand_over_lanes()
        if time.monotonic() >= self._next_look:  # busy: a death must not wait for a pause
            self._next_look = time.monotonic() + LOOK_SECONDS
            self.bury(self.segment.look_at_handles())
        return all_gathered

    def sleep(self, grain: int, deadline_ns: int | None = None) -> None:
        """Until a worker has `grain` more results, or brings news, or its process ends: at once, if that is so."""
        if self.collector.wait(grain, deadline_ns):
            self.bury(self.segment.ended())

    # ---------------------------------------------------------------- ending

    def _see_out(self) -> None:
        """Workers are on their way out, or have been told to: wait for their last words and their ends."""
        while self._workers:
            if self.gather() and self._workers:
                self.sleep(1)
        for process in self._leaving:
            process.reap(block=True)
        self._leaving.clear()
        self.exit_results.extend(self.collector.exits)
        self.collector.exits.clear()

    def stop(self) -> None:
        """Let idle workers run their exit functions and end."""
        if self._segment is None or os.getpid() != self.owner_pid:
            return
        try:
            for worker_id in list(self._workers):
                self.segment.command_stop(worker_id)
            self._see_out()
        except BaseException:
            self.terminate()
            raise

    def kill(self) -> None:
        """Kill all workers, nothing else: for the end of the process, while another thread still runs a map."""
        if self._segment is not None and os.getpid() == self.owner_pid:
            for worker_id in range(self._segment.lanes):
                self._segment.kill(worker_id, signal.SIGKILL)

    def terminate(self) -> None:
        """Kill all workers, wait for them, give shared memory back. Safe to call in any state, and twice."""
        self.kill()
        segment, self._segment = self._segment, None
        if segment is None or os.getpid() != self.owner_pid:
            return
        if self._collector is not None:
            self._collector.abandon()
        self._collector = None
        processes = [*self._workers.values(), *self._leaving]
        self._workers = {}
        self._leaving = []
        self._functions = self._blob = None
        for process in processes:
            process.reap(block=True)
        for worker_id in range(segment.lanes):
            if pid := segment.pid(worker_id):  # an exception came between its fork and its record here
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:  # somebody else's SIGCHLD handler was faster
                    logger.debug("worker %d was reaped by somebody else", worker_id)
                segment.reaped(worker_id)
        segment.close()


class _Run:
    """One map call: publishing, feeding, collecting, to the list of results."""

    def __init__(self, supervisor: Supervisor, job: MapJob) -> None:
        self.supervisor = supervisor
        self.segment = supervisor.segment
        self.collector = supervisor.collector
        self.job = job
        self.n_jobs = supervisor.options.n_jobs
        self.range = job.as_range
        self.feed: Feed | None = None
        self.workers = self.n_jobs if job.length is None else min(self.n_jobs, job.length)
        self.schedule = Schedule(job, self.n_jobs)
        self.chunk_bytes = NO_LIMIT if job.chunk_size is not None else chunk_bytes(supervisor.options)
        self.before = self.segment.totals()

    def results(self) -> list[Any]:
        size = self._publish()
        self.segment.wake(self.n_jobs)
        if not self.supervisor.living and self.job.length is not None and self.job.length <= FEW_TASKS * self.n_jobs:
            self._try_one_worker(self.job.length)
        while True:
            all_gathered = self.supervisor.gather()
            if self.feed is not None:
                self._feed()
            elif self.job.max_tasks_active is not None:
                self._open_window(size)
            if self._is_done():
                break
            self.supervisor.start_workers(self.workers, self._has_unclaimed)
            if all_gathered:
                self.supervisor.sleep(self._grain())
        if self.feed is not None:
            size = self.feed.tasks
        return self.collector.finish(size)

    def _try_one_worker(self, tasks: int) -> None:
        """A few tiny tasks are done by one worker before a second could be forked: give it a moment to show that."""
        every, self.workers = self.workers, min(1, self.workers)
        if self.feed is not None:
            self._feed()
        self.segment.call_when_claimed(1)
        self.supervisor.start_workers(self.workers, self._has_unclaimed)
        if self.supervisor.living:
            self.supervisor.sleep(tasks)  # until it claims, which is when it has come up
            self.supervisor.gather()
            self.supervisor.sleep(tasks, time.monotonic_ns() + MOMENT_NS)
        self.workers = every

    def _publish(self) -> int:
        """Make the job known; returns the number of places in the list of results."""
        job, options = self.job, self.supervisor.options
        size = len(self.range) if self.range is not None else 0
        whole = int(job.chunk_size) if job.chunk_size is not None else 0
        if self.range is None:
            self.feed = Feed(self.segment, job.iterable, job.limit)
            exact = type(job.iterable) in (list, tuple, range)
            size = job.length if exact and job.length is not None else 0
        number = self.segment.publish(
            unit=UNIT_TASK if self.range is not None else UNIT_CHUNK,
            flags=0 if options.keep_alive else JOB_LAST,
            range_start=self.range.start if self.range is not None else 0,
            range_step=self.range.step if self.range is not None else 0,
            chunk_fixed=whole if self.range is not None else 0,
            chunk_ns=CHUNK_NS,
            n_workers=self.n_jobs,
            spec=self.supervisor.version,
            lifespan=job.worker_lifespan or 0,
            spec_blob=self.supervisor.blob,
            avail=0 if self.range is None else min(size, job.max_tasks_active or size),
            total=None if self.range is None else size,
        )
        self.collector.begin(number, size, self.feed)
        return size

    def _has_unclaimed(self) -> bool:
        if self.feed is not None:
            return not self.feed.exhausted or self.segment.claimed() < self.feed.published
        assert self.range is not None
        return self.segment.claimed() < len(self.range)

    def _is_done(self) -> bool:
        if self.feed is None:
            assert self.range is not None
            return self.collector.collected == len(self.range)
        feed = self.feed
        return feed.exhausted and not feed.has_pending and self.collector.collected == feed.tasks

    def _grain(self) -> int:
        left = None if self.job.length is None else self.job.length - self.collector.collected
        return collect_grain(left, self.n_jobs, self.job.max_tasks_active)

    def _open_window(self, size: int) -> None:
        assert self.job.max_tasks_active is not None
        self.segment.raise_avail(min(size, self.collector.collected + self.job.max_tasks_active))
        self.segment.wake(self.n_jobs)

    def _task_ns(self) -> float | None:
        tasks, took = self.segment.totals()
        tasks, took = tasks - self.before[0], took - self.before[1]
        return took / tasks if tasks > 0 else None

    def _feed(self) -> None:
        """Encode and publish chunks until the window is full or the input ends."""
        feed, schedule = self.feed, self.schedule
        assert feed is not None
        if feed.exhausted and not feed.has_pending:
            return
        task_ns = self._task_ns()
        while not feed.exhausted or feed.has_pending:
            if not feed.has_pending:
                unclaimed = feed.published - self.segment.claimed()
                most = schedule.may_feed(feed.tasks, self.collector.collected, unclaimed)
                size = min(most, schedule.next_size(feed.tasks, task_ns))
                if size == 0 or feed.encode(size, PATIENCE_NS, self.chunk_bytes) == 0:
                    break
            if not self._publish_chunk(feed):
                break
        if feed.exhausted and not feed.has_pending:
            self.segment.finish_input(feed.published)
            self.segment.wake(self.n_jobs)
        else:
            self.segment.call_when_claimed(max(0, feed.published - AHEAD * self.n_jobs // 2))

    def _publish_chunk(self, feed: Feed) -> bool:
        self.collector.expect(feed.tasks)
        if not feed.can_publish:
            return False
        if not feed.publish():
            if feed.outstanding == 0:
                raise MemoryError(
                    "fastpool: a chunk of the input needs more shared memory than the pool's memory_limit "
                    f"({self.supervisor.options.memory_limit} bytes) allows; use a smaller chunk_size or elements"
                )
            return False
        self.schedule.chunks += 1
        if self.supervisor.living < self.workers:  # before the input may make us wait for its next element
            self.supervisor.start_workers(self.supervisor.living + 1, self._has_unclaimed)
        else:
            self.segment.wake(1)
        return True
