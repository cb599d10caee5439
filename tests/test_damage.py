"""Workers that write over the pool's shared memory.

The parent says that memory was damaged, or that the worker died; or nobody can tell (the bytes of a number), or it did
no harm, and the map goes on. It never crashes, waits for ever, reads or writes elsewhere, or leaves anything behind,
and the pool can be used again.

FASTPOOL_DAMAGES says how many times workers do that in the middle of a map, and how many times it is done to what a
worker has left, read in this process. tools/test_asan.sh runs this with AddressSanitizer.
"""

from __future__ import annotations

import collections
import faulthandler
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pytest
from damage import area_of_own_pool, damage_own_pool, is_acceptable, own_worker, read_word, write_astray, write_word

from fastpool import DamagedMemoryError, WorkerDiedError, WorkerPool
from fastpool._collect import Collector
from fastpool._native import Segment
from fastpool._worker import Loop
from fastpool.errors import FastpoolError
from fastpool.functions import Functions
from fastpool.serializer import make_serializer
from fastpool.worker import Host

DAMAGES = int(os.environ.get("FASTPOOL_DAMAGES", "400"))
SECONDS = 100  # a map that takes longer is taken for one that hangs
JOB_LAST = 1

# ---------------------------------------------------------------- the parent's reader


def mixed(i: int) -> Any:
    """Values of every kind of record."""
    return [i, i / 7, None, i % 2 == 0, f"text {i}", b"bytes" * (i % 5), {"a": i, "b": [i]}, (1, "x", 2.5), 1 << 70][
        i % 9
    ]


def runs(i: int) -> Any:
    return i if i < 60 else i / 3 if i < 120 else f"{i}"


def large(i: int) -> Any:
    """Blocks, fragments when there are none, and pickles with buffers."""
    if i % 3 == 0:
        return "t" * 50_000
    return np.full(9000, i) if i % 3 == 1 else {"array": np.full(6000, i), "set": {i}}


def failing(i: int) -> Any:
    if i == 5:
        raise ValueError("five")
    return mixed(i)


def dying(i: int) -> Any:
    if i == 70:
        os._exit(1)
    return runs(i)


def exits() -> dict[str, int]:
    return {"exit": 1}


@dataclass
class Image:
    """A segment as a worker left it: its memory, and the parent's part."""

    function: Callable[[int], Any]
    tasks: int
    segment: Segment
    memory: mmap.mmap  # a mapping of its own, in which nothing is protected
    pristine: list[tuple[int, bytes]]  # offset and bytes, of all that is used
    areas: dict[str, tuple[int, int]]
    number: int

    def restore(self) -> None:
        for offset, data in self.pristine:
            self.memory[offset : offset + len(data)] = data

    def is_plain(self, task: int) -> bool:
        return not isinstance(self.function(task), np.ndarray | dict)


def take_image(function: Callable[[int], Any], tasks: int) -> Image:
    """Let one worker run a job, and look at what it leaves before anything is collected."""
    segment = Segment(2, 1 << 18, 1 << 24, 1)
    number = segment.publish(
        range_units=tasks,
        flags=JOB_LAST,
        range_start=0,
        range_step=1,
        chunk_fixed=0,
        chunk_ns=1 << 40,
        n_workers=1,
        spec=1,
        lifespan=0,
        spec_blob=None,
        avail=tasks,
        total=tasks,
    )
    segment.command_stop(0)  # once there is nothing to do, also after an exception
    pid = segment.fork_worker(0)
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            segment.enter_worker(0)
            host = Host(0, (), 1, Functions(function, None, exits), make_serializer(False, True))
            Loop(segment, 0, host).run()
        finally:
            os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    areas = segment.areas()
    end = max(offset + size for offset, size in areas.values())
    memory = mmap.mmap(segment.fd, end)
    used = [area for name, area in areas.items() if name not in ("constants", "job", "feed", "ring 1") and area[1]]
    pristine = [(offset, memory[offset : offset + size]) for offset, size in used]
    return Image(function, tasks, segment, memory, pristine, areas, number)


@pytest.fixture(scope="module")
def images() -> Iterator[list[Image]]:
    made = [take_image(function, tasks) for function, tasks in JOBS]
    yield made
    for image in made:
        image.memory.close()
        os.waitpid(image.segment.pid(0), 0)
        image.segment.reaped(0)
        image.segment.close()


JOBS = [(mixed, 90), (runs, 180), (large, 12), (failing, 40), (dying, 180)]
EACH = ["line", "lane", "ring", "heap", "blocks"]
UNPROTECTED = ["gate", "bell", *(f"{what} {i}" for what in EACH for i in range(2))]
OWN = ["line 0", "lane 0", "ring 0", "ring 0", "ring 0", "heap 0", "blocks 0", "blocks 0"]  # where something is


def read_all(image: Image) -> str:
    """What the parent does with a lane: the outcome in a word. Any error but fastpool's own goes through."""
    segment, collector = image.segment, Collector(image.segment, make_serializer(False, True).loads)
    results: Any = None
    try:
        collector.begin(image.number, image.tasks, None)
        while not collector.collect():
            pass
        for worker in range(2):
            segment.state(worker)
            segment.held_units(worker)
            segment.reads_owner(worker)
            segment.heap(worker)
        segment.totals()
        segment.exited()
        if collector.failures:
            return "failure"
        if collector.collected < image.tasks:
            return "incomplete"
        results = collector.finish(image.tasks)
        assert is_acceptable([as_plain(x) for x in results], [as_plain(image.function(i)) for i in range(image.tasks)])
        return "right"
    except FastpoolError as error:
        return type(error).__name__
    finally:
        collector.abandon()
        del results, collector
        for worker in range(2):
            image.restore()
            segment.empty_line(worker)
        image.restore()


def as_plain(value: Any) -> Any:
    """Arrays are bytes that nobody can check; their types and shapes are not."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape)
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    return value


def test_what_an_undamaged_image_holds(images: list[Image]) -> None:
    assert [read_all(image) for image in images] == ["right", "right", "right", "failure", "incomplete"]


@pytest.mark.timeout(3000)
def test_the_reader_of_damaged_memory(images: list[Image]) -> None:
    source = random.Random(5)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(DAMAGES):
        image = source.choice(images)
        area = source.choice(source.choice([OWN, OWN, UNPROTECTED]))
        if image.areas[area][1]:
            write_astray(source, image.memory, image.areas[area])
        outcomes[read_all(image)] += 1
    print(dict(outcomes))
    assert set(outcomes) <= {"right", "failure", "incomplete", "DamagedMemoryError"}
    assert outcomes["DamagedMemoryError"] > DAMAGES / 10
    assert outcomes["right"] > DAMAGES / 20


# ---------------------------------------------------------------- whole pools


class Hang(BaseException):
    """Nothing in the library may take it for something else."""


def give_up(signum: int, frame: FrameType | None) -> None:
    raise Hang


@pytest.fixture
def patience() -> Iterator[Callable[[int], int]]:
    """Called with a number of seconds: after them the test is interrupted, unless it is called again."""
    before = signal.signal(signal.SIGALRM, give_up)
    yield signal.alarm
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Vandal:
    """A task that damages its pool's memory at some elements: for each of these, the seed and the area."""

    made = mmap.mmap(-1, 2)  # damages by each worker of the pool, since somebody looked

    def __init__(self, function: Callable[[Any], Any], acts: dict[int, tuple[int, str]]) -> None:
        self.function, self.acts = function, acts

    def __call__(self, x: Any) -> Any:
        seed, name = self.acts.get(number_of(x), (0, None))
        area = None if name is None else area_of_own_pool(name)
        if area is not None:
            faulthandler.disable()  # a write to what is protected is expected to end this process
            self.made[own_worker()] += 1
            damage_own_pool(seed, area)
        return self.function(x)

    @classmethod
    def take_made(cls) -> int:
        made, cls.made[:] = sum(cls.made[:]), bytes(2)
        return made


def number_of(x: Any) -> int:
    return int(x[0]) if isinstance(x, np.ndarray) else len(x) if isinstance(x, str) else int(x)


def as_dict(x: Any) -> Any:
    return {"x": x, "y": [x]}


def as_block(x: Any) -> Any:
    return np.full(10_000, x)


def identity(x: Any) -> Any:
    return x


def texts(n: int) -> list[str]:
    return ["x" * i for i in range(n)]


MAPS: list[tuple[Callable[[Any], Any], Any]] = [
    (identity, range(2000)),
    (as_dict, range(300)),
    (as_block, range(40)),
    (identity, texts(200)),
    (as_dict, list(range(300))),
    (as_block, list(range(40))),
]
PROTECTED = ["constants", "job", "feed", "control 0", "control 1"]  # whoever writes there ends there
AREAS = [*UNPROTECTED, "gate", *[f"{what} {i}" for what in ("line", "lane") for i in range(2)], "heap 2", "blocks 2"]
MOST_ACTS = 40  # a pool that notices nothing goes on


def damaged_pool(seed: int) -> tuple[collections.Counter[str], int]:
    """Damaged maps on one pool, until one fails. Returns what came of them, and how many damages there were."""
    source = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    areas: list[str] = []
    with WorkerPool(n_jobs=2, keep_alive=source.random() < 0.5) as pool:
        try:
            while len(areas) < MOST_ACTS:
                damaged_map(pool, source, areas)
                outcomes["right"] += 1
            pool.terminate()
        except (DamagedMemoryError, WorkerDiedError, MemoryError) as error:
            outcomes[type(error).__name__] += 1
        assert not outcomes["MemoryError"] or any(area.startswith("heap") for area in areas), areas
        made = Vandal.take_made()
        assert pool.map(abs, range(-20, 20)) == [abs(x) for x in range(-20, 20)]
        return outcomes, made


def damaged_map(pool: WorkerPool, source: random.Random, areas: list[str]) -> None:
    """A map that is damaged at some of its elements; `areas`: of the pool, where it was damaged."""
    function, iterable = source.choice(MAPS)
    acts = {
        number_of(x): (source.getrandbits(32), source.choice(PROTECTED if source.random() < 0.02 else AREAS))
        for x in source.sample(iterable, source.choice([1, 1, 2, 3, 20]))
    }
    areas += [area for _, area in acts.values()]
    lifespan = source.choice([None, None, 70])  # a fork takes long under AddressSanitizer
    chunk_size = source.choice([None, 5])
    results = pool.map(Vandal(function, acts), iterable, chunk_size=chunk_size, worker_lifespan=lifespan)
    is_right = is_acceptable([as_plain(x) for x in results], [as_plain(function(x)) for x in iterable])
    assert is_right or any(area.startswith("blocks") for area in areas), areas  # arguments are payload too


@pytest.mark.timeout(20_000)
def test_pools_whose_workers_damage_them(patience: Callable[[int], int]) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    damages, seed = 0, 0
    Vandal.take_made()
    while damages < DAMAGES:
        patience(SECONDS)
        try:
            came, made = damaged_pool(seed)
        except Hang:
            pytest.fail(f"the pool hangs: seed {seed}")
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        outcomes += came
        damages, seed = damages + made, seed + 1
    print(f"{damages} damages by workers of {seed} pools:", dict(outcomes))
    assert outcomes["right"] > 0
    assert outcomes["DamagedMemoryError"] > 0
    assert outcomes["WorkerDiedError"] > 0


# ---------------------------------------------------------------- word by word: what somebody waits for

STATE, NEWS, EXIT_NS = 24, 28, 88  # in a line
EXITED = 5
CLOSED = (1 << 40) - 1


def close_gate() -> None:
    write_word("gate", 0, read_word("gate", 0) | CLOSED)


def skip_tasks() -> None:
    write_word("gate", 0, read_word("gate", 0) + 20)


def skip_all() -> None:
    write_word("gate", 0, read_word("gate", 0) | CLOSED - 1)


def give_twice() -> None:
    write_word("gate", 0, read_word("gate", 0) - 5)


def change_number() -> None:
    write_word("gate", 0, read_word("gate", 0) ^ 1 << 50)


def claim_that_both_have_exited() -> None:
    for worker in range(2):
        write_word(f"line {worker}", STATE, EXITED, 4)


def start_again() -> None:
    for worker in range(2):
        write_word(f"line {worker}", STATE, 0, 4)


def be_in_no_state() -> None:
    write_word(f"line {own_worker()}", STATE, 1000, 4)


BELIEVED = [close_gate, skip_tasks, skip_all, change_number, be_in_no_state]


@pytest.mark.parametrize(
    ("damage", "keep_alive"),
    # A worker that is about to exit may have done so in truth before the parent looks.
    [(damage, keep_alive) for damage in BELIEVED for keep_alive in (False, True)]
    + [(claim_that_both_have_exited, True)],
)
@pytest.mark.parametrize("tasks", [range(100), list(range(100))], ids=["range", "list"])
def test_words_that_are_believed(
    damage: Callable[[], None], keep_alive: bool, tasks: Any, patience: Callable[[int], int]
) -> None:
    def task(x: int) -> int:
        if x == 30:
            damage()
        return x

    patience(SECONDS)
    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        pool.map(abs, range(10))
        with pytest.raises(DamagedMemoryError):
            pool.map(task, tasks, chunk_size=1)
        assert pool.map(abs, [-1]) == [1]


class Late:
    """A number that the parent takes its time to read."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Callable[[int], int], tuple[int]]:
        return read_late, (self.value,)


def read_late(value: int) -> int:
    time.sleep(0.3)
    return value


@pytest.mark.parametrize("damage", [claim_that_both_have_exited, be_in_no_state])
def test_damage_while_the_parent_reads(damage: Callable[[], None], patience: Callable[[int], int]) -> None:
    """The results that are left come with one look, and the damage with them."""
    late: list[int] = []

    def task(worker_id: int, x: int) -> Any:
        if x == 39:
            damage()
        if worker_id == 0 and not late:
            late.append(x)
            return Late(x)
        time.sleep(0.001)  # so that both workers have some
        return x

    patience(SECONDS)
    with WorkerPool(n_jobs=2, keep_alive=True, pass_worker_id=True) as pool:
        pool.map(max, range(10))
        with pytest.raises(DamagedMemoryError):
            pool.map(task, range(40), chunk_size=1)
        assert pool.map(max, [(-1,)]) == [0]


@pytest.mark.parametrize("damage", [start_again, give_twice])
def test_words_that_may_do_no_harm(damage: Callable[[], None], patience: Callable[[int], int]) -> None:
    """If the parent has not seen these workers come up, or has all results before the second ones come."""

    def task(x: int) -> int:
        if x == 30:
            damage()
        return x

    patience(SECONDS)
    outcomes = collections.Counter[str]()
    for _ in range(5):
        with WorkerPool(n_jobs=2, keep_alive=True) as pool:
            pool.map(time.sleep, [0.01] * 4, chunk_size=1)
            try:
                assert pool.map(task, list(range(100)), chunk_size=1) == list(range(100))
                outcomes["right"] += 1
            except (DamagedMemoryError, WorkerDiedError):
                outcomes["error"] += 1
    assert outcomes.total() == 5


def silence_the_parent() -> None:
    write_word("bell", 0, 0, 4)


def silence_the_workers() -> None:
    for worker in range(2):
        write_word(f"lane {worker}", 64, 0, 4)


@pytest.mark.parametrize("damage", [silence_the_parent, silence_the_workers])
@pytest.mark.parametrize("window", [None, 2])
def test_bells_that_were_silenced(
    damage: Callable[[], None], window: int | None, patience: Callable[[int], int]
) -> None:
    """Whoever sleeps says so in a word, and nobody rings for whom that word says that he is awake."""

    def task(x: int) -> int:
        time.sleep(0.01)  # the others are asleep by then
        damage()
        return x

    patience(SECONDS)
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(task, list(range(6)), max_tasks_active=window, chunk_size=1) == list(range(6))


@pytest.mark.parametrize("area", PROTECTED)
def test_what_the_parent_alone_writes_is_protected(area: str) -> None:
    """The write itself ends the worker, where it is made."""

    def task(x: int) -> int:
        faulthandler.disable()
        write_word(area, 0, 0)
        return x

    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(WorkerDiedError) as caught:
            pool.map(task, range(10))
        assert caught.value.exitcode == -signal.SIGSEGV
        assert pool.map(abs, [-1]) == [1]
