"""After the death of a worker: what it held (csrc/README.md, elimination), what others get of that, what has failed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from fastpool._collect import Collector
from fastpool._feed import Feed
from fastpool._native import Segment
from fastpool.errors import WorkerDiedError, WorkerTimeoutError
from fastpool.timeouts import Late

logger = logging.getLogger("fastpool")

MOST_TASKS = 1 << 14  # of a range in one chunk, when they are given again


class Death(NamedTuple):
    """A worker that ended without having been asked to, or was killed, and what its line showed.

    Attributes
    ----------
    worker_id, pid : int
    exitcode : int or None
    state : str
    units : range
        It had claimed, or was about to claim.
    certain : bool
        It had claimed them.
    job : int
        During which it was started.
    start_method : str
    late : Late or None
        Why it was killed.
    """

    worker_id: int
    pid: int
    exitcode: int | None
    state: str
    units: range
    certain: bool
    job: int
    start_method: str
    late: Late | None = None

    @property
    def ends_every_map(self) -> bool:
        """A failed init or exit function does that, whatever the map outlives."""
        return self.late is not None and self.late.phase != "task"

    def error(self, lost: list[range], tries: int = 1) -> WorkerDiedError | WorkerTimeoutError:
        """The exception that says so, and names the first of the tasks that it left."""
        tasks = lost[0] if lost else range(0)
        if self.late is not None:
            task = tasks[0] if tasks and self.late.phase == "task" else None
            return self.late.error(self.worker_id, self.pid, task)
        return WorkerDiedError(self.worker_id, self.pid, self.exitcode, self.state, tasks, self.start_method, tries)


class Elimination:
    """Which tasks only the dead can have claimed: the others are collected, or on the line of a living worker.

    What there is is looked at in the order that the protocol wants: the claim word, the lines of the living, what they
    have committed.

    Parameters
    ----------
    segment : Segment
    collector : Collector
    living : iterable of int
        Workers.
    """

    def __init__(self, segment: Segment, collector: Collector, living: Iterable[int]) -> None:
        self.claimed = segment.claimed()
        self.lines = [segment.held_units(worker_id) for worker_id in living]
        collector.catch_up()
        self.collector = collector
        self.range_units = segment.range_units

    def is_unclear(self, death: Death) -> bool:
        """Was the dead worker about to claim what a living one is about to claim? Then one of them has, or will."""
        units = self._units(death)
        return not death.certain and any(not certain and overlap(units, shown) for shown, certain in self.lines)

    def lost_by(self, death: Death) -> list[range]:
        """The tasks without a result that this worker had claimed, as far as that is clear."""
        parts = [self._units(death)]
        if not death.certain:
            parts = without_all(parts, (shown for shown, certain in self.lines if certain))
        return [tasks for units in parts for tasks in self._tasks(units) if tasks]

    def _units(self, death: Death) -> range:
        return overlap(death.units, range(self.claimed))

    def _tasks(self, units: range) -> list[range]:
        """Those of them that are not collected. A claim is of tasks of the range, or of one chunk."""
        if units.start < self.range_units:
            return self.collector.missing(units.start, len(units))
        feed = self.collector.feed
        return [] if feed is None else [feed.open_tasks(unit) for unit in units]


class Recovery:
    """What becomes, in one map, of the tasks of workers that died: each is given to another worker, so many times.

    A task has been tried if its worker died while it ran, or might have begun. Workers that die before they get to a
    task, one after another, while nothing else gets done, are an error.

    Parameters
    ----------
    segment : Segment
    collector : Collector
    feed : Feed
        Of the map; for a map over a range one without input of its own, whose `base` is the range's length.
    values : range
        The input, if it is a range, else empty.
    retries : int
        How often a task is given to another worker.
    keep_going : bool
        A task that has failed for good does not end the map: the error is its result.
    in_turn : bool
        Each chunk has its worker: what is left of a dead worker's is its successor's.
    """

    def __init__(
        self,
        segment: Segment,
        collector: Collector,
        feed: Feed,
        values: range,
        retries: int,
        keep_going: bool,
        in_turn: bool,
    ) -> None:
        self.segment = segment
        self.collector = collector
        self.feed = feed
        self.values = values
        self.retries = retries
        self.keep_going = keep_going
        self.in_turn = in_turn
        self.unsettled: list[Death] = []
        self._waiting: list[range] = []  # tasks of the range that are to be given again
        self._given: list[range] = []  # these, and those that have been
        self._tries: dict[int, int] = {}  # of tasks
        self._in_vain = 0  # deaths in a row, without a task to blame, and without a result in between
        self._collected = 0  # when the last of them came

    @property
    def is_open(self) -> bool:
        """Does anything wait to be settled, or to be given again?"""
        return bool(self.unsettled or self._waiting or self.feed.has_lost)

    @property
    def inactive(self) -> int:
        """Tasks of the range that are claimed, but with nobody."""
        return sum(map(len, self._waiting))

    def settle(self, deaths: list[Death], living: Iterable[int]) -> None:
        """Find out what the dead have left; it waits then for :meth:`give_again`.

        Raises
        ------
        WorkerDiedError, WorkerTimeoutError
            A task has failed for good; or workers die before they get to one.
        """
        deaths, self.unsettled = self.unsettled + deaths, []
        if not deaths:
            return
        elimination = Elimination(self.segment, self.collector, living)
        for death in sorted(deaths, key=lambda death: not death.certain):  # what is certain is not another's
            if elimination.is_unclear(death):
                self.unsettled.append(death)
            else:
                self._take_back(death, without_all(elimination.lost_by(death), self._given_of(death)))

    def _given_of(self, death: Death) -> list[range]:
        """What was given again as a chunk is no longer the range's."""
        return self._given if death.units.start < self.feed.base else []

    def _take_back(self, death: Death, lost: list[range]) -> None:
        if death.late is None:
            logger.warning("%s", death.error(lost))
        if death.certain and death.state == "running" and lost:
            lost = self._blame(death, lost)
        else:
            self._count_in_vain(death, lost)
        if death.units.start >= self.feed.base:
            if lost and self.in_turn:
                self.feed.resume(death.units.start)
            elif lost:
                self.feed.take_back(death.units.start)
            return
        self._given += lost
        self._waiting += [part[at : at + MOST_TASKS] for part in lost for at in range(0, len(part), MOST_TASKS)]

    def _blame(self, death: Death, lost: list[range]) -> list[range]:
        """The first of these tasks has been tried. Returns those that are to be given again. Of one that took too long
        no other worker would have the result earlier."""
        task = lost[0][0]
        tries = self._tries[task] = self._tries.get(task, 0) + 1
        if tries <= self.retries and death.late is None:
            return lost
        error = death.error(lost, tries)
        if not self.keep_going:
            raise error
        self.collector.fail(task, error)
        return [part for part in (lost[0][1:], *lost[1:]) if part]

    def _count_in_vain(self, death: Death, lost: list[range]) -> None:
        if death.job < self.segment.number:
            return  # a kept worker's, which cannot come again
        if self.collector.collected > self._collected:
            self._in_vain = 0
        self._collected = self.collector.collected
        self._in_vain += 1
        if self._in_vain > self.retries:
            raise death.error(lost, self._in_vain)

    def give_again(self) -> bool:
        """Hand out what can be handed out now. Returns whether anything was."""
        before = self.feed.published
        self.feed.give_again()
        while self._waiting or (self.feed.base and self.feed.pending):
            if not self.feed.pending:
                tasks = self._waiting.pop(0)
                self.feed.encode_tasks(tasks.start, self.values[tasks.start : tasks.stop])
            if not self.feed.can_publish or not self.feed.publish():
                break
        return self.feed.published > before


def overlap(a: range, b: range) -> range:
    """What two ranges of step 1 have in common; nothing of `a` is at the start of `a`."""
    common = range(max(a.start, b.start), min(a.stop, b.stop))
    return common if common else a[:0]


def without(parts: Iterable[range], taken: range) -> list[range]:
    """What remains of ranges of step 1."""
    rests = []
    for part in parts:
        common = overlap(part, taken)
        if not common:
            rests.append(part)
            continue
        rests += [rest for rest in (range(part.start, common.start), range(common.stop, part.stop)) if rest]
    return rests


def without_all(parts: list[range], taken: Iterable[range]) -> list[range]:
    for one in taken:
        parts = without(parts, one)
    return parts
