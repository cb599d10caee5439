"""The checker of leftovers finds each kind and nothing else; its fixture fails the test that left it."""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context, shared_memory
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from leftovers import leftovers, settle, shared_files, snapshot

WAIT_FOR_INPUT = [sys.executable, "-c", "import sys; sys.stdin.read()"]
END_AT_ONCE = [sys.executable, "-c", ""]


@contextmanager
def a_child() -> Iterator[str]:
    with subprocess.Popen(WAIT_FOR_INPUT, stdin=subprocess.PIPE) as process:
        yield f"process {process.pid}: {sys.executable}"


@contextmanager
def a_zombie() -> Iterator[str]:
    with subprocess.Popen(END_AT_ONCE) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield f"process {process.pid} (zombie)"


@contextmanager
def a_descriptor() -> Iterator[str]:
    number = os.open("/dev/zero", os.O_RDONLY)
    try:
        yield f"file descriptor {number}: /dev/zero"
    finally:
        os.close(number)


@contextmanager
def a_pipe() -> Iterator[str]:
    ends = os.pipe()
    try:
        yield f"file descriptor {ends[0]}: pipe:["
    finally:
        for number in ends:
            os.close(number)


@contextmanager
def a_thread() -> Iterator[str]:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left-over")
    thread.start()
    try:
        yield f"thread {thread.native_id}: left-over"
    finally:
        release.set()
        thread.join()


@contextmanager
def a_shared_mapping() -> Iterator[str]:
    number = os.memfd_create("left-over")
    os.ftruncate(number, mmap.PAGESIZE)
    mapping = mmap.mmap(number, mmap.PAGESIZE)  # holds a duplicate of the descriptor
    os.close(number)
    try:
        yield "1 shared mapping(s) of /memfd:left-over"
    finally:
        mapping.close()


@contextmanager
def a_name_in_dev_shm() -> Iterator[str]:
    path = Path("/dev/shm", f"fp{os.getpid():x}.{uuid.uuid4().hex}")
    path.touch()
    try:
        yield f"entry of /dev/shm: {path.name}"
    finally:
        path.unlink()


KINDS = [
    a_child,
    a_zombie,
    a_descriptor,
    a_pipe,
    a_thread,
    a_shared_mapping,
    a_name_in_dev_shm,
]


@pytest.mark.parametrize("leave", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_is_found_and_named(leave: Callable[[], AbstractContextManager[str]]) -> None:
    before = snapshot()
    with leave() as expected:
        settle(before, deadline=0.05)
        found = leftovers(before, snapshot())
    assert any(line.startswith(expected) for line in found), found
    settle(before)
    assert leftovers(before, snapshot()) == []


def test_nothing_is_found_where_nothing_was_left() -> None:
    before = snapshot()
    subprocess.run(END_AT_ONCE, check=True)
    with a_descriptor(), a_thread(), a_shared_mapping():
        pass
    settle(before)
    assert leftovers(before, snapshot()) == []


def test_what_was_there_before_is_no_leftover() -> None:
    with a_child(), a_descriptor(), a_thread(), a_shared_mapping(), a_name_in_dev_shm():
        before = snapshot()
        assert leftovers(before, snapshot()) == []


def test_a_file_opened_again_is_no_growth() -> None:
    first = os.open("/dev/zero", os.O_RDONLY)
    before = snapshot()
    second = os.open("/dev/zero", os.O_RDONLY)
    os.close(first)
    assert leftovers(before, snapshot()) == []
    os.close(second)


def test_a_thread_that_is_ending_is_waited_for() -> None:
    before = snapshot()
    release = threading.Event()
    threading.Thread(target=release.wait).start()
    release.set()
    settle(before)
    assert leftovers(before, snapshot()) == []


def test_garbage_is_collected_first() -> None:
    class Holder:
        def __init__(self) -> None:
            self.itself = self  # a cycle: reference counting alone does not free it
            self.descriptor = os.open("/dev/zero", os.O_RDONLY)

        def __del__(self) -> None:
            os.close(self.descriptor)

    gc.collect()
    before = snapshot()
    gc.disable()
    try:
        Holder()
        assert leftovers(before, snapshot()) != []
        settle(before)
    finally:
        gc.enable()
    assert leftovers(before, snapshot()) == []


def receive_and_end(pipe: Connection) -> None:
    pipe.recv()


def test_lasting_helpers_of_multiprocessing_are_not_counted_but_their_children_are() -> None:
    context = get_context("forkserver")
    before = snapshot()
    ours, theirs = context.Pipe()
    process = context.Process(target=receive_and_end, args=(theirs,))
    process.start()
    shared_memory.SharedMemory(create=True, size=1).unlink()  # starts the resource tracker
    found = [line for line in leftovers(before, snapshot()) if line.startswith("process")]
    assert [line.partition(":")[0] for line in found] == [f"process {process.pid}"]
    ours.send(None)
    process.join()
    process.close()
    for end in (ours, theirs):
        end.close()
    settle(before)
    assert leftovers(before, snapshot()) == []


def test_memory_that_multiprocessing_keeps_is_no_leftover() -> None:
    before = snapshot()
    get_context("fork").Barrier(2)
    assert [line for line in leftovers(before, snapshot()) if "pym-" in line] == []


INNER = """
import os
import subprocess
import threading

def test_clean():
    pass

def test_leaves_a_descriptor():
    os.open("/dev/zero", os.O_RDONLY)

def test_after_it_is_clean():
    pass

def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, name="left-over", daemon=True).start()

def test_failed_already():
    os.open("/dev/zero", os.O_RDONLY)
    assert False
"""


def test_the_fixture_fails_the_test_that_left_something(tmp_path: Path) -> None:
    here = Path(__file__).parent
    for name in ("conftest.py", "leftovers.py", "refusals.py", "tallies.py"):
        shutil.copy(here / name, tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 failed, 4 passed, 2 errors" in done.stdout
    assert "/dev/zero" in done.stdout
    assert "left-over" in done.stdout


def test_a_name_that_a_living_stranger_has_is_not_ours() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    paths = {pid: Path("/dev/shm", f"fp{pid:x}.{uuid.uuid4().hex}") for pid in (os.getppid(), ended.pid)}
    for path in paths.values():
        path.touch()
    try:
        assert shared_files() & {path.name for path in paths.values()} == {paths[ended.pid].name}
    finally:
        for path in paths.values():
            path.unlink()
