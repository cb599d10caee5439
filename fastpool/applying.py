"""Applies: single calls, handed to the workers at any time, also between the chunks of a map.

Who hands one in encodes and publishes it. What comes of it is collected by whoever has the engine: a map that runs, a
thread in :meth:`fastpool.AsyncResult.get`, or else the housekeeping thread, which also runs the callbacks. It is
started by the first `apply_async`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fastpool import functions
from fastpool._applies import Applies
from fastpool._signals import uninterrupted
from fastpool.definition import Definition
from fastpool.engine import Engine, Hold
from fastpool.errors import DamagedMemoryError, FastpoolError, StaleFunctionError, unsendable
from fastpool.functions import Function, Functions
from fastpool.job import ApplyJob
from fastpool.recovery import Death
from fastpool.remote import revive
from fastpool.results import AsyncResult
from fastpool.supervisor import Applied, Supervisor, is_of_workers

logger = logging.getLogger("fastpool")

MOST_FUNCTIONS = 256  # whose pickles are kept
MOST_HELD_BACK = 256  # results of one worker
FLUSH_NS = 1_000_000  # for which they may be held back
PAUSE_NS = 200_000  # between two looks of the housekeeper, while applies are handed in one after another


class Applier:
    """The applies of one pool.

    Parameters
    ----------
    supervisor : Supervisor
    engine : Engine
    """

    def __init__(self, supervisor: Supervisor, engine: Engine) -> None:
        self.supervisor = supervisor
        self.engine = engine
        self._waiting: deque[AsyncResult] = deque()  # not handed to the workers yet
        self._feed: Applies | None = None  # has those that are out
        self._applied: deque[Applied] = deque()  # what has come of applies, and is not passed on
        self._lost: list[AsyncResult] = []  # were out when the segment went
        self._is_encoding = False
        self._is_outdated = False
        self._unclear: list[tuple[int, Death]] = []  # units that dead workers were about to claim
        self._blobs: dict[int, tuple[Function, Definition, bytes]] = {}  # of functions, by id
        self._callbacks: deque[tuple[AsyncResult, Callable[[Any], Any], Any]] = deque()
        self._due: set[AsyncResult] = set()  # whose callback has not run yet
        self._watchers: set[threading.Thread] = set()  # that wait for a result which another thread collects
        self._submitted = 0  # since the housekeeper looked
        self._pauses = False  # the housekeeper does, if there are no watchers
        self._housekeeper: threading.Thread | None = None
        self._keepers: set[threading.Thread] = set()  # this one and those before it, but for
        self._callers: set[threading.Thread] = set()  # those that run a callback

    @property
    def lock(self) -> threading.RLock:
        return self.engine.lock

    @property
    def changed(self) -> threading.Condition:
        return self.engine.changed

    # ---------------------------------------------------------------- handing in

    @property
    def unfinished(self) -> int:
        """Applies whose result is not there."""
        return len(self._waiting) + len(self._applied) + self.handed_in

    def submit(self, job: ApplyJob, will_wait: bool) -> AsyncResult:
        """Take an apply; hand it to the workers now, if that can be.

        `will_wait`: the caller will, at once, and needs nobody else to collect the result.
        """
        result = AsyncResult(self, job)
        with self.lock:
            self._submitted += 1
            try:
                self._waiting.append(result)
                if self._feed is not None and not self._is_encoding and not self._is_to_open_anew:
                    self._hand_in()
            except BaseException:  # nobody will have the result
                if result in self._waiting:
                    self._waiting.remove(result)
                raise
            wanted = min(self.unfinished + self.supervisor.wanted_by_map, self.supervisor.options.n_jobs)
            needs_more = self._feed is None or self.supervisor.living < wanted
            if not will_wait and self.engine.is_free:
                self.changed.notify_all()
        if job.limit_ns:
            self.supervisor.call()  # who sleeps has a deadline now
        if needs_more:
            self.rouse()
        return result

    def rouse(self) -> None:
        """Have somebody look after what is waiting."""
        with Hold(self.engine, self.engine.try_to_take) as mine:
            if mine:
                self._attempt(self.attend)
            else:
                self.supervisor.call()

    def _hand_in(self) -> None:
        """Encode and publish what is waiting, as far as there is room."""
        self._is_encoding = True  # what is encoded may hand in more
        try:
            while self._waiting and self._feed is not None:
                result = self._waiting[0]
                try:
                    if result.unit is None and not self._publish(self._feed, result):
                        return
                except Exception as error:
                    self._settle(result, None, error)
                if self._waiting and self._waiting[0] is result:
                    self._waiting.popleft()
                if result.unit is not None:
                    self.supervisor.segment.wake(1)
        finally:
            self._is_encoding = False

    def _publish(self, feed: Applies, result: AsyncResult) -> bool:
        job = result.job
        assert job is not None
        given = self._sendable(job.function)
        if job.limit_ns:
            self.supervisor.limit_applies(job.limit_ns)
        is_alone = not len(feed)  # before: others may be collected, in another thread, while this finds no room
        try:
            is_out = feed.publish(given, job.args, job.keywords, job.limit_ns, result)
        except FastpoolError:
            raise
        except Exception as error:
            detail = f"{type(error).__qualname__}: {error}"
            raise unsendable(error, "argument", feed.published, None, detail) from error
        if is_alone and not is_out and self.supervisor.all_idle:
            raise MemoryError(
                "fastpool: the arguments of an apply need more shared memory than the pool's memory_limit "
                f"({self.supervisor.options.memory_limit} bytes) or the system allows"
            )
        return is_out

    def _sendable(self, function: Function) -> Any:
        """What a worker's host makes the function of."""
        if self.supervisor.threads:
            return function
        known = self._blobs.get(id(function))
        if known is not None and known[0] is function and known[1].is_current:
            return known[2]
        whole = Functions(function, None, None)
        definitions = [Definition(part) for part in whole]
        blob = functions.dumps(whole, definitions, self.supervisor.serializer)
        by_value = self.supervisor.options.use_dill and not self.supervisor.inherits  # with what they refer to
        if functions.is_plain(whole) and not by_value:
            if len(self._blobs) == MOST_FUNCTIONS:
                self._blobs.clear()
            self._blobs[id(function)] = function, definitions[0], blob
        return blob

    # ---------------------------------------------------------------- with the engine

    def attend(self) -> None:
        """Take what has come, hand in what is waiting, have workers for it."""
        with self.lock:
            self._take()
            if self._unclear:
                self._clear_up()
            if self._waiting and not self._is_encoding:
                self._open()
                if not self._is_outdated or self.supervisor.mapping:
                    self._hand_in()
        if self._feed is not None:
            self.supervisor.start_workers(self.handed_in + self.supervisor.wanted_by_map, self._has_unclaimed)

    def _has_unclaimed(self) -> bool:
        return self._feed is not None and self.supervisor.segment.claimed_applies < self._feed.published

    def _open(self) -> None:
        """Have a segment with applies in it, and no workers that were started with other options than there are now."""
        is_in_use = self.handed_in or self.supervisor.mapping
        if self._feed is not None and (is_in_use or not self._is_to_open_anew):
            return
        waiting, self._waiting = self._waiting, deque()  # they do not end with the workers that are restarted
        try:
            first = waiting[0].job
            assert first is not None
            self._feed = self.supervisor.open_applies(first, self._applied)
            self._is_outdated = False
        finally:
            self._waiting = waiting + self._waiting

    @property
    def _is_to_open_anew(self) -> bool:
        """Have options changed, or are there no workers left, and the next apply wants others than these were?"""
        if self._is_outdated or self.handed_in or self.supervisor.living:
            return self._is_outdated
        job = self._waiting[0].job
        return job is not None and self.supervisor.wants_other_workers(job)

    def note_change(self) -> None:
        """Workers have to be restarted before the next apply, once the others are done."""
        self._is_outdated = True

    @property
    def handed_in(self) -> int:
        """Applies that workers have, or can have."""
        return 0 if self._feed is None else len(self._feed)

    def _take(self) -> None:
        """Pass on what has come. Each stays where it is until it has been: an interrupt may come anywhere."""
        while self._applied:
            result, worker_id, value, payload, error = self._applied[0]
            if payload is not None:
                error = revive(worker_id, result.unit, payload, self.supervisor.serializer)
            if isinstance(error, StaleFunctionError) and result.tries <= 2 * self.supervisor.options.n_jobs:
                result.tries, result.unit = result.tries + 1, None
                self._waiting.append(result)  # for a worker that is started now
            else:
                if error is not None:
                    self.supervisor.tell_of_dill(error)
                self._settle(result, value, error)
            self._applied.popleft()

    def _settle(self, result: AsyncResult, value: Any, error: BaseException | None) -> None:
        callback = result.settle(value, error)
        if callback is not None:
            self._due.add(result)
            self._callbacks.append((result, *callback))
        if not self.handed_in:
            self.supervisor.limit_applies(0)
        self.changed.notify_all()

    def note_death(self, death: Death, unit: int, certain: bool) -> None:
        """A worker that died had claimed this apply, or was about to."""
        with self.lock:
            self._take()  # it may have been done with it
            if certain:
                self._lose(unit, death)
            else:
                self._unclear.append((unit, death))

    def _clear_up(self) -> None:
        """Of applies that dead workers were about to claim: which of them has nobody else, and no result?"""
        segment = self.supervisor.segment
        claimed = segment.claimed_applies
        shown = [segment.held_apply(worker_id) for worker_id in self.supervisor.worker_ids]
        self.supervisor.collector.catch_up()
        self._take()
        unclear, self._unclear = self._unclear, []
        for unit, death in unclear:
            if unit < claimed and (unit, False) in shown:
                self._unclear.append((unit, death))  # one of the two has it
            elif unit < claimed and (unit, True) not in shown:
                self._lose(unit, death)

    def _lose(self, unit: int, death: Death) -> None:
        result = None if self._feed is None else self._feed.get(unit)
        if result is not None and self._feed is not None:
            self._settle(result, None, death.error([range(unit, unit + 1)]))
            self._feed.drop(unit)

    def late_job(self, unit: int) -> ApplyJob | None:
        """Of the apply that a worker is late with."""
        result = None if self._feed is None else self._feed.get(unit)
        return None if result is None else result.job

    def check_none_lost(self) -> None:
        """Where all workers rested before the last gathering, what had been claimed by then has been gathered."""
        rested_at = self.supervisor.collector.applies_rested_at
        if rested_at is None or self._unclear:
            return
        with self.lock:
            oldest = None if self._feed is None else self._feed.oldest
            if oldest is not None and oldest < rested_at:
                raise DamagedMemoryError("applies were claimed that no worker has, and that have no result")

    @property
    def is_encoding(self) -> bool:
        """Does this thread encode an apply? If another does, this waits."""
        with self.lock:
            return self._is_encoding

    def close(self) -> None:
        """Hand in no more: the segment is about to go."""
        with self.lock:
            self._lost += self._feed or ()
            self._feed = None

    def fail_all(self, error: BaseException) -> None:
        """The workers are gone: this is what became of the applies that are not done."""
        with self.lock:
            self.close()
            for result in (*self._lost, *(result for result, *_ in self._applied), *self._waiting):
                self._settle(result, None, error)
            for emptied in (self._lost, self._applied, self._waiting, self._unclear):
                emptied.clear()

    # ---------------------------------------------------------------- waiting

    def wait_for(self, result: AsyncResult, timeout: float | None) -> bool:
        """Wait for a result and its callback, for so many seconds at most. Returns whether the result is there."""
        if result.ready() and (result not in self._due or os.getpid() != self.supervisor.owner_pid):
            return True
        if os.getpid() != self.supervisor.owner_pid:
            raise RuntimeError(f"this result belongs to process {self.supervisor.owner_pid}, not {os.getpid()}")
        if self.is_encoding:
            raise RuntimeError("no result is waited for while an argument of an apply is pickled in the same thread")
        deadline = None if timeout is None else time.monotonic() + timeout
        self.serve_until(result.ready, deadline)
        self._wait_for_callbacks(lambda: result not in self._due, deadline)
        return result.ready()

    def finish(self) -> None:
        """Wait until all applies are done, and their callbacks have run."""
        done = False
        while not done:
            self.serve_until(lambda: self.unfinished == 0)
            self._wait_for_callbacks(lambda: not self._due or self.unfinished > 0)  # they may have handed in more
            done = self.unfinished == 0

    def _wait_for_callbacks(self, is_done: Callable[[], bool], deadline: float | None = None) -> None:
        """Wait until those that are due have run; not in one of them, nor for one that `terminate` did not wait for."""
        with self.lock:
            while self._housekeeper is not None and threading.current_thread() not in self._callers and not is_done():
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    return
                self.changed.wait(seconds)

    def serve_until(self, is_done: Callable[[], bool], deadline: float | None = None) -> None:
        """Collect results, or wait while another thread does, until something is so, or it is so late."""
        while not is_done() and (deadline is None or time.monotonic() < deadline):
            with Hold(self.engine, self.engine.try_to_take) as mine:
                if mine:
                    self._attempt(lambda: self._serve(is_done, deadline))
            if mine:
                continue
            with self.lock:
                if not is_done() and not self.engine.is_free:
                    self._watch(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _watch(self, seconds: float | None) -> None:
        """Wait until something changes that another thread collects."""
        me = threading.current_thread()
        if me not in self._keepers:
            self._watchers.add(me)
            if self._pauses:
                self.supervisor.call()
        try:
            self.changed.wait(seconds)
        finally:
            self._watchers.discard(me)

    def _attempt(self, part: Callable[[], None]) -> None:
        """With the engine. What fails here has failed all applies, which say so; in a map's input, the map."""
        if self.supervisor.running:
            part()
            return
        try:
            self.supervisor.attempt(part)
        except BaseException as error:
            if not is_of_workers(error):
                raise
            logger.debug("applies have failed", exc_info=error)

    def _serve(self, is_done: Callable[[], bool], deadline: float | None) -> None:
        """Gather until something is so, or it is so late, or the engine is wanted."""
        supervisor = self.supervisor
        deadline_ns = None if deadline is None else int(deadline * 1e9)
        while not is_done() and not self.engine.is_wanted:
            if self._feed is None:
                self.attend()
            if self._feed is None or (deadline is not None and time.monotonic() >= deadline):
                return
            if supervisor.gather() and not is_done() and not self.engine.is_wanted:
                self.check_none_lost()
                self._sleep(deadline_ns)

    def _sleep(self, deadline_ns: int | None) -> None:
        """Until there are results, or they have been held back for long enough. A thread that hands in one apply after
        another would take turns with the housekeeper for each result: so that one pauses, if nobody waits for any."""
        if threading.current_thread() in self._keepers:
            self._pauses, self._submitted = self._submitted > 1, 0
            try:
                if self._pauses and not self._watchers:
                    self.supervisor.sleep(MOST_HELD_BACK, time.monotonic_ns() + PAUSE_NS)
                    return
            finally:
                self._pauses = False
        self.supervisor.sleep(self._grain, deadline_ns)

    @property
    def _grain(self) -> int:
        """How many results of one worker are worth waking for."""
        return max(1, min(MOST_HELD_BACK, self.handed_in // (4 * self.supervisor.options.n_jobs)))

    def flush_at(self) -> int | None:
        """When results that are held back are to be looked at, on the monotonic clock in ns."""
        return time.monotonic_ns() + FLUSH_NS if self.handed_in else None

    # ---------------------------------------------------------------- housekeeping

    def keep_house(self) -> None:
        """Have a thread that collects results while nobody waits for them, and runs callbacks."""
        if self._housekeeper is None:
            with self.lock:
                if self._housekeeper is None:
                    self._start_housekeeper()

    @uninterrupted
    def _start_housekeeper(self) -> None:
        thread = threading.Thread(target=self._keep_house, name="fastpool-housekeeper", daemon=True)
        thread.start()  # it waits for the lock; if it cannot be started there is none
        self._housekeeper = thread
        self._keepers.add(thread)

    def _keep_house(self) -> None:
        me = threading.current_thread()
        try:
            self._collect_and_call_back(me)
        finally:
            with self.lock:
                self._keepers.discard(me)
                self._callers.discard(me)
                if self._housekeeper is me:  # an error of the pool's own: the next apply starts another
                    self._housekeeper = None
                self.changed.notify_all()

    def _collect_and_call_back(self, me: threading.Thread) -> None:
        while True:
            with self.lock:
                while not (self._callbacks or self._is_dismissed(me) or (self.unfinished and self.engine.is_free)):
                    self.changed.wait()
                has_callbacks = bool(self._callbacks)
                if not has_callbacks and self._is_dismissed(me):
                    return
            if has_callbacks:
                self._call_back(me)
            else:
                self.serve_until(lambda: bool(not self.unfinished or self._callbacks or self._is_dismissed(me)))

    def _call_back(self, me: threading.Thread) -> None:
        """Run the oldest callback. What it held goes at the end of this, without the lock: that may be what ends the
        pool."""
        with self.lock:
            if not self._callbacks:  # a housekeeper that was dismissed has run it
                return
            result, callback, value = self._callbacks.popleft()
            self._keepers.discard(me)
            self._callers.add(me)
            self.changed.notify_all()
        try:
            callback(value)
        except BaseException:
            logger.exception("the callback %r of an apply failed", callback)
        with self.lock:
            self._due.discard(result)
            self._callers.discard(me)
            self._keepers.add(me)
            self.changed.notify_all()

    def _is_dismissed(self, keeper: threading.Thread) -> bool:
        return self._housekeeper is not keeper

    @uninterrupted
    def dismiss_housekeeper(self) -> None:
        """End the housekeeping thread, if there is one: after the callbacks that are due; if one of these takes its
        time, this does not wait for it."""
        with self.lock:
            thread, self._housekeeper = self._housekeeper, None
            if os.getpid() != self.supervisor.owner_pid:
                return
            self.changed.notify_all()
            self.supervisor.call()  # it may sleep with the engine, for an apply that came just now
            while thread in self._keepers and thread is not threading.current_thread():
                self.changed.wait()
