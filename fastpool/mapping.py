"""One map call in the caller's thread: publish, feed, collect, to the list of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from fastpool._feed import Feed
from fastpool._plan import is_public
from fastpool.arrays import Joiner, RowKind, Slices, ThreadJoiner
from fastpool.errors import DamagedMemoryError
from fastpool.job import JOB_ALWAYS_EXIT, JOB_INSIGHTS, JOB_KEEP_GOING, JOB_LAST, JOB_ORDERED, MapJob
from fastpool.progress import Progress, show_progress
from fastpool.recovery import Recovery
from fastpool.remote import revive
from fastpool.schedule import CHUNK_NS, Schedule, bounded_grain, collect_grain
from fastpool.supervisor import Supervisor

PATIENCE_NS = 5_000_000  # a chunk is not held back longer for elements that come slowly
NO_LIMIT = 2**63
NEVER = 2**64 - 1  # a unit that is never claimed
FEW_TASKS = 16  # for each worker: so few may be too little work for a second worker
MOMENT_NS = 200_000  # less than starting a worker takes
LAZY_AHEAD = 1 << 17  # tasks that an ordered lazy map is ahead of what was handed out, if nothing else is said
FLUSH_NS = 1_000_000  # results of a lazy map that are there are not held back longer

Turn = Callable[["MapRun | None"], AbstractContextManager[None]]


def run(supervisor: Supervisor, job: MapJob) -> Any:
    """Run a map to its end. On any error all workers are stopped, and the error is raised."""

    with show_progress(job.bar, job.length) as progress:

        def whole() -> Any:
            supervisor.begin(job.functions, job.outlives_workers, job.patience)
            results = MapRun(supervisor, job, progress).results()
            supervisor.complete()
            return results

        return supervisor.attempt(whole)


def iterate(supervisor: Supervisor, job: MapJob, turn: Turn) -> Iterator[Any]:
    """Run a map step by step, between which its results are handed out.

    Parameters
    ----------
    supervisor : Supervisor
    job : MapJob
    turn : callable
        Makes a context in which this thread alone uses the pool; what it is given is the lazy map that is to go on.
    """
    with show_progress(job.bar, job.length) as progress:
        yield from _steps(supervisor, job, turn, progress)


def _steps(supervisor: Supervisor, job: MapJob, turn: Turn, progress: Progress) -> Iterator[Any]:
    run: MapRun | None = None
    there: list[Any] = []  # when the map fails: results that can still be handed out

    def step() -> list[Any] | None:
        nonlocal run
        is_new = run is None
        if run is None:
            supervisor.begin(job.functions, job.outlives_workers, job.patience)
            run = supervisor.unfinished = MapRun(supervisor, job, progress)
        try:
            if is_new:
                run.begin()
            ready = run.more()
        except Exception:
            there.extend(supervisor.collector.hand_out())
            raise
        if ready is None:
            supervisor.complete()
        return ready

    try:
        while True:
            with turn(run):
                if run is None:
                    supervisor.warn_of_changes(job.functions, stacklevel=3)
                ready = supervisor.attempt(step)
            if ready is None:
                return
            yield from ready
    except Exception:
        yield from there
        raise
    finally:
        if run is not None and supervisor.unfinished is run:  # the generator is closed, or an interrupt came
            with turn(run):
                supervisor.leave()


def _nobody() -> bool:
    return False


class MapRun:
    """One map call: publishing, feeding, collecting, to the list of results."""

    def __init__(self, supervisor: Supervisor, job: MapJob, progress: Progress) -> None:
        self.supervisor = supervisor
        self.supervisor.limits = job.limits
        self.segment = supervisor.segment
        self.collector = supervisor.collector
        self.job = job
        self.progress = progress
        self.n_jobs = supervisor.options.n_jobs
        self.most_active = job.max_tasks_active
        if self.most_active is None and job.lazy and job.ordered:
            self.most_active = LAZY_AHEAD
        # What of a range is given again comes at its end, and a lazy map may not read on to there.
        self.range = None if job.lazy and job.outlives_workers else job.as_range
        self.size = 0 if self.range is None else len(self.range)  # tasks of the range
        self.feed: Feed | None = None
        self.workers = self.n_jobs if job.length is None else min(self.n_jobs, job.length)
        self.schedule = Schedule(job, self.n_jobs, self.most_active)
        self.chunk_bytes = NO_LIMIT if job.chunk_size is not None else supervisor.options.chunk_bytes
        self.before = self.segment.totals()
        self.joiner: Joiner | None = None
        self.recovery: Recovery | None = None  # if the map outlives its workers
        self.window = 0  # units of a range that may be claimed
        self.all_gathered = False
        self.is_behind = False  # there may be input that nobody has taken yet
        self.next_size = 0  # of the chunk that is being encoded
        self.failure: BaseException | None = None  # of a lazy map: what ended it between two steps
        self.is_over = False  # all results of a lazy map have been handed out

    def results(self) -> Any:
        """All of them, when they are there."""
        self.begin()
        while not self._go_on():
            if self.all_gathered and not self.is_behind:
                self.supervisor.sleep(self._grain(), self.progress.deadline_ns)
        results = self._finish()
        return results if self.joiner is None else self._join(self.joiner, results)

    def more(self) -> list[Any] | None:
        """Of a lazy map the results that can be handed out next, as soon as there are some; None: that was all."""
        while not self.is_over:
            collected = self.collector.collected
            self.is_over = self._go_on()
            ready = self._finish() if self.is_over else self.collector.hand_out()
            if ready:
                return ready
            if self.all_gathered and not self.is_over:
                self._doze(self.collector.collected > collected)
        return None

    def begin(self) -> None:
        """Make the job known, and have workers for it."""
        self.supervisor.wanted_by_map = self.workers
        self._publish()
        self.supervisor.turn_of = self._turn_of if self.job.in_turn else None
        self.segment.wake(self.n_jobs)
        if not self.supervisor.living and self._is_little():
            self._try_one_worker()

    def _go_on(self) -> bool:
        """Gather what is there, and decide what comes next. Returns whether the map is done."""
        self.all_gathered = self.supervisor.gather()
        self.progress.update(self.collector.collected, self._known_length)
        if self.joiner is not None:
            self.joiner.consider(self.collector.sample)
        if self.recovery is not None:
            self._recover(self.recovery)
        if self.feed is not None:
            self._feed()
        elif self.most_active is not None:
            self._open_window()
        if self._is_done():
            return True
        if self.all_gathered:
            self._check_none_lost()
        self._start_workers(self.workers)
        return False

    def _doze(self, busy: bool) -> None:
        """Sleep until there may be something to hand out: much, if tasks are quick; anything, if nothing comes soon or
        more input may be there, for which this is only a moment."""
        grain = self._stream_grain() if busy and not self.is_behind else 1
        moment = MOMENT_NS if self.is_behind else FLUSH_NS if grain > 1 else None
        deadlines = [self.progress.deadline_ns, None if moment is None else time.monotonic_ns() + moment]
        self.supervisor.sleep(grain, min((at for at in deadlines if at is not None), default=None))

    def _finish(self) -> list[Any]:
        """The results, or those that were not handed out yet."""
        if self.recovery is not None:  # so far nobody knew that no more would come
            self.segment.finish_input(self._published)
            self.segment.wake(self.n_jobs)
        return self.collector.finish(self.size if self.feed is None else self.feed.tasks)

    @property
    def _input_rows(self) -> RowKind:
        assert isinstance(self.job.iterable, Slices)
        array = self.job.iterable.array
        return RowKind(array.dtype, array.shape[1:])

    @property
    def _expected_rows(self) -> RowKind | None:
        """Results of the same function for the same kind of rows are probably alike."""
        function, rows, found = self.supervisor.last_array_map
        return found if function is self.job.functions.task and rows == self._input_rows else None

    def _join(self, joiner: Joiner, results: list[Any]) -> Any:
        if self.feed is not None and (self.feed.read_forked or self.feed.unshared):
            self.supervisor.note_forked(joiner.slices.array, self.feed.unshared)
        if joiner.is_spoiled:
            self.supervisor.keep_until_workers_end(joiner.whole)  # once: memory that cannot be used again
        self.supervisor.last_array_map = self.job.functions.task, self._input_rows, joiner.found
        return joiner.join(results)

    def _is_little(self) -> bool:
        """May this be too little work for a second worker? Only of input that does not keep us waiting, and where a
        worker comes up quickly."""
        if not self.supervisor.inherits or self.job.in_turn:
            return False
        quick = self.range is not None or type(self.job.iterable) in (list, tuple)
        return quick and self.job.length is not None and self.job.length <= FEW_TASKS * self.n_jobs

    def _try_one_worker(self) -> None:
        """A few tiny tasks are done by one worker before a second could be forked: give it a moment to show that."""
        every, self.workers = self.workers, 0
        if self.feed is not None:
            self._feed()
        self.segment.call_when_claimed(1)  # before there is anybody who could claim
        self.supervisor.start_workers(1, self._has_unclaimed)
        if self.supervisor.living:
            self.supervisor.sleep(FEW_TASKS * self.n_jobs)  # until it claims, which is when it has come up
            self.segment.call_when_claimed(NEVER)
            deadline = time.monotonic_ns() + MOMENT_NS
            while self.supervisor.living and not self._is_done() and time.monotonic_ns() < deadline:
                self.supervisor.gather()
                self.supervisor.sleep(FEW_TASKS * self.n_jobs, deadline)
        self.workers = every

    def _publish(self) -> None:
        job, options = self.job, self.supervisor.options
        places = self.size
        whole = int(job.chunk_size) if job.chunk_size is not None else 0
        if self.range is None:
            self.feed = self._make_feed()
            exact = type(job.iterable) in (list, tuple, range, Slices) and not job.lazy
            places = job.length if exact and job.length is not None else 0
        flags = (0 if options.keep_alive else JOB_LAST) | (JOB_KEEP_GOING if job.return_exceptions else 0)
        flags |= JOB_INSIGHTS if options.enable_insights else 0
        flags |= (JOB_ALWAYS_EXIT if job.always_exit else 0) | (JOB_ORDERED if job.in_turn else 0)
        self.window = min(self.size, self.most_active or self.size)
        number = self.segment.publish(
            range_units=self.size,
            flags=flags,
            range_start=self.range.start if self.range is not None else 0,
            range_step=self.range.step if self.range is not None else 0,
            chunk_fixed=whole if self.range is not None else 0,
            chunk_ns=CHUNK_NS,
            n_workers=self.n_jobs,
            spec=self.supervisor.version,
            lifespan=job.worker_lifespan or 0,
            spec_blob=self.supervisor.blob,
            avail=self.window,
            total=None if self.range is None or job.outlives_workers else self.size,
            limits=job.limits.ns,
        )
        feed = self.feed
        if job.outlives_workers:
            self.recovery = self._make_recovery()
            feed = self.recovery.feed
        revive = self._revive if job.return_exceptions else None
        self.collector.begin(number, self.window if job.lazy else places, feed, revive, job.lazy, job.ordered)
        if job.join:
            assert isinstance(job.iterable, Slices)
            in_place = self.supervisor.keeps_places != self.supervisor.version
            expected = self._expected_rows
            # Shared memory is worth its first touch where the next map, and workers that have it mapped, use it again.
            is_shared = options.keep_alive and expected is not None
            reach = _nobody if is_shared else self.supervisor.reach
            kind = ThreadJoiner if self.supervisor.threads else Joiner
            self.joiner = kind(self.segment, job.iterable, job.out, reach, expected, in_place)

    def _make_feed(self) -> Feed:
        job = self.job
        can_read = self.supervisor.can_read
        may_read = can_read is True
        to_come = self.supervisor.inherits and self.supervisor.living < self.workers
        # Not of a list, whose elements a task may take out of it.
        may_inherit = to_come and can_read is not False and type(job.iterable) is Slices
        steady = type(job.iterable) in (list, tuple, Slices)
        is_shared = isinstance(job.iterable, Slices) and is_public(job.iterable.array)
        if isinstance(job.iterable, Slices) and (may_read or may_inherit or is_shared or self.supervisor.threads):
            self.schedule.ahead = len(job.iterable)  # chunks are no more than where they are
        unshare = isinstance(job.iterable, Slices) and self.supervisor.pays_to_unshare(job.iterable.array)
        serializer = self.supervisor.serializer
        copied = isinstance(job.iterable, Slices) and not is_shared
        return Feed(
            self.segment, job.iterable, job.limit, serializer, steady, may_read, may_inherit, unshare, copied=copied
        )

    def _make_recovery(self) -> Recovery:
        job, values, feed = self.job, range(0), self.feed
        if feed is None:
            assert self.range is not None
            values = self.range
            feed = Feed(self.segment, (), None, self.supervisor.serializer, base=len(values))
        return Recovery(self.segment, self.collector, feed, values, job.retries, job.return_exceptions, job.in_turn)

    def _revive(self, worker_id: int, task: int, payload: Any) -> BaseException:
        error = revive(worker_id, task, payload, self.supervisor.serializer)
        self.supervisor.tell_of_dill(error)
        return error

    def _recover(self, recovery: Recovery) -> None:
        """Give to others what dead workers have left: of a range, when all of it may be claimed."""
        self.supervisor.settle(recovery)
        if not recovery.is_open or (self.range is not None and self.window < self.size):
            return
        if recovery.give_again():
            self.segment.wake(self.n_jobs)
        elif recovery.feed is not self.feed and recovery.feed.outstanding == 0 and recovery.feed.pending:
            self._check_room()

    @property
    def _published(self) -> int:
        """Units that may be claimed, or have been."""
        if self.recovery is not None:
            return self.recovery.feed.published
        return self.segment.range_units if self.feed is None else self.feed.published

    @property
    def _known_length(self) -> int | None:
        """Tasks in all, once the input has ended."""
        return self.feed.tasks if self.feed is not None and self.feed.exhausted else self.job.length

    def _start_workers(self, wanted: int) -> None:
        """Start workers until there are `wanted`, as far as there is something for them; in an ordered job, those whose
        chunks are there."""
        if not self.job.in_turn:
            self.supervisor.start_workers(wanted + self.supervisor.busy_with_applies, self._has_unclaimed)
            return
        assert self.feed is not None
        for worker_id in self.supervisor.free_lanes:
            chunk = self._turn_of(worker_id)
            if chunk is not None and chunk < self.feed.published:
                self.segment.begin_at(worker_id, chunk)
                self.supervisor.start_worker(worker_id)

    def _turn_of(self, worker_id: int) -> int | None:
        """In an ordered job, the chunk that the next worker in this lane takes first; None: what a dead worker has left
        of its chunk is not known yet."""
        assert self.feed is not None
        if self.supervisor.deaths and self.recovery is not None:
            self.supervisor.settle(self.recovery)
        if self.supervisor.deaths or (self.recovery is not None and self.recovery.unsettled):
            return None
        return self.feed.next_for(worker_id, self.n_jobs)

    def _has_unclaimed(self) -> bool:
        if self.feed is not None and not self.feed.exhausted:
            return True
        if self.recovery is not None and self.recovery.is_open:
            return True
        return self.segment.claimed() < self._published

    def _is_done(self) -> bool:
        if self.feed is None:
            return self.collector.collected == self.size
        feed = self.feed
        return feed.exhausted and not feed.pending and self.collector.collected == feed.tasks

    def _check_none_lost(self) -> None:
        """Where all workers rested before the last gathering, what had been claimed by then has been gathered."""
        claimed = self.collector.rested_at
        if claimed is None or (self.recovery is not None and self.recovery.is_open) or self.job.in_turn:
            return
        if self.feed is not None:
            lost = claimed >= self.feed.published and self.feed.outstanding > 0
        elif self.recovery is None:
            lost = self.collector.collected < claimed
        else:
            lost = claimed >= self._published
        if lost:
            raise DamagedMemoryError("tasks were claimed that no worker has, and that have no result")

    def _grain(self) -> int:
        if self.recovery is not None and self.recovery.unsettled:
            return 1
        if self.joiner is not None and not self.joiner.considered:
            return 1
        left = None if self.job.length is None else self.job.length - self.collector.collected
        return collect_grain(left, self.n_jobs, self.most_active)

    def _stream_grain(self) -> int:
        """How many results of one worker come in the time for which they may be held back."""
        task_ns = self._task_ns()
        return 1 if task_ns is None else bounded_grain(FLUSH_NS / max(task_ns, 1), self.n_jobs, self.most_active)

    @property
    def _done_with(self) -> int:
        """Tasks that are no longer active: collected; if results wait for those before them, handed out."""
        return self.collector.first if self.job.lazy and self.job.ordered else self.collector.collected

    def _open_window(self) -> None:
        assert self.most_active is not None
        inactive = 0 if self.recovery is None else self.recovery.inactive
        window = min(self.size, self._done_with + inactive + self.most_active)
        if window > self.window:
            self.window = window
            self.collector.expect(window)
            self.segment.raise_avail(window)
        self.segment.wake(self.n_jobs)

    def _task_ns(self) -> float | None:
        tasks, took = self.segment.totals()
        tasks, took = tasks - self.before[0], took - self.before[1]
        return took / tasks if tasks > 0 else None

    def _feed(self) -> None:
        """Encode and publish chunks until the window is full or the input ends."""
        feed = self.feed
        assert feed is not None
        if feed.exhausted and not feed.pending:
            return
        task_ns = self._task_ns()
        until = time.monotonic_ns() + PATIENCE_NS
        while not feed.exhausted or feed.pending:
            if not self._fill_chunk(feed, task_ns) or not self._publish_chunk(feed):
                break
            if time.monotonic_ns() > until:  # the input is slow, or long: see what has come meanwhile
                break
        self.is_behind = time.monotonic_ns() > until and not feed.exhausted
        self.supervisor.look()
        if feed.exhausted and not feed.pending:
            if self.recovery is None:
                self.segment.finish_input(feed.published)
            else:
                self.segment.call_when_claimed(NEVER)
            self.segment.wake(self.n_jobs)
        else:
            late = feed.published - self.schedule.ahead // 2
            self.segment.call_when_claimed(0 if self.job.in_turn else max(0, late))  # claims come in no order then

    def _fill_chunk(self, feed: Feed, task_ns: float | None) -> bool:
        """Encode elements of the next chunk. Returns whether it can be published."""
        if not feed.pending:
            unclaimed = self._waiting_chunks(feed)
            self.next_size = self.schedule.next_size(feed.tasks, self._done_with, unclaimed, task_ns)
            if self.next_size == 0:
                return False
        elif not self._is_too_small(feed):
            return True
        return feed.encode(self.next_size, PATIENCE_NS, self.chunk_bytes) > 0 and not self._is_too_small(feed)

    def _is_too_small(self, feed: Feed) -> bool:
        return self.schedule.is_exact and feed.pending < self.next_size and not feed.exhausted

    def _waiting_chunks(self, feed: Feed) -> int:
        """Chunks that nobody has claimed; in an ordered job, at least so many."""
        if self.job.in_turn:
            return max(0, feed.outstanding - self.supervisor.living)
        return feed.published - self.segment.claimed()

    def _check_room(self) -> None:
        """There is no room for a chunk, and none of those before it is out."""
        if self.supervisor.all_idle:  # else workers may give memory back
            raise MemoryError(
                "fastpool: a chunk of the input needs more shared memory than the pool's memory_limit "
                f"({self.supervisor.options.memory_limit} bytes) or the system allows; use a smaller chunk_size or "
                "smaller elements"
            )

    def _publish_chunk(self, feed: Feed) -> bool:
        self.collector.expect(feed.tasks)
        if not feed.can_publish:
            return False
        if not feed.publish():
            if feed.outstanding == 0:
                self._check_room()
            return False
        self.schedule.chunks += 1
        if self.job.in_turn:
            self._start_workers(self.workers)
            self.segment.wake(self.n_jobs)  # the one whose chunk it is among them
        elif self.supervisor.living < self.workers:  # before the input may make us wait for its next element
            self._start_workers(self.supervisor.living + 1)
        else:
            self.segment.wake(1)
        return True
