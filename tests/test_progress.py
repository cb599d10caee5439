"""Progress bars: what is shown, when, and what is left alone."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import tqdm
from conftest import START_METHODS

from fastpool import WorkerPool, progress
from fastpool._collect import Collector
from fastpool._native import Segment
from fastpool.progress import Frames, bar_class, make_bar_options, show_progress

pytest.importorskip("rich")
STYLES = ["std", "rich"]

tqdm.tqdm.get_lock()  # for the life of the process


def double(x: int) -> int:
    return 2 * x


def fail_at_50(x: int) -> int:
    if x == 50:
        raise ZeroDivisionError(x)
    return x


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x


class Screen(io.StringIO):
    """A stream that shows what it was given as frames."""

    @property
    def frames(self) -> list[str]:
        return [frame for frame in re.split(r"[\r\n]+", self.getvalue()) if frame.strip()]

    @property
    def counts(self) -> list[tuple[str, str]]:
        """Tasks done, and in all, of each frame."""
        return [(found[1], found[2]) for frame in self.frames if (found := re.search(r"(\d+)/(\d+|\?)", frame))]


def show(screen: Any, **options: Any) -> dict[str, Any]:
    return {"progress_bar": True, "progress_bar_options": {"file": screen, **options}}


def bars() -> list[Any]:
    """Those that tqdm knows to be open."""
    return list(getattr(tqdm.tqdm, "_instances", ()))


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", ["map", "map_unordered"])
def test_a_bar_counts_the_tasks(method: str, style: str, start_method: str) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = getattr(pool, method)(double, range(100), **show(screen), progress_bar_style=style)
    assert sorted(results) == [2 * x for x in range(100)]
    assert screen.counts[-1] == ("100", "100")
    assert {total for _, total in screen.counts} == {"100"}
    assert not bars()


@pytest.mark.parametrize("style", STYLES)
def test_a_bar_whose_total_is_not_known_has_it_in_the_end(style: str) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, iter(range(30)), **show(screen), progress_bar_style=style)
    assert screen.counts[-1] == ("30", "30")


@pytest.mark.parametrize("style", STYLES)
def test_an_input_that_is_shorter_than_was_said(style: str) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, iter(range(30)), iterable_len=50, **show(screen, mininterval=0), progress_bar_style=style)
    assert screen.counts[-1] == ("30", "30")
    if style == "std":
        assert screen.counts[0] == ("0", "50")


def test_no_tasks() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(double, [], **show(screen)) == []
    assert screen.frames[-1].startswith("0it")


def test_chunks_of_an_array_are_counted() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(numpy.sqrt, numpy.ones(80), n_splits=8, **show(screen))
    assert screen.counts[-1] == ("8", "8")


def test_failed_tasks_count_as_well() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(fail_on_odd, range(20), return_exceptions=True, **show(screen))
    assert screen.counts[-1] == ("20", "20")


def die_once(path: str, x: int) -> int:
    if x == 5 and not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT))
        os._exit(1)
    return x


def test_a_task_that_is_given_again_counts_once(tmp_path: Any) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(die_once, [(str(tmp_path / "died"), x) for x in range(20)], retries=1, **show(screen))
    assert screen.counts[-1] == ("20", "20")


class Released(Screen):
    """Lets workers go on when it shows a frame."""

    def __init__(self, wanted: str, event: Any) -> None:
        super().__init__()
        self.wanted, self.event = wanted, event

    def write(self, text: str) -> int:
        if self.wanted in text:
            self.event.set()
        return super().write(text)


def wait_behind(event: Any, x: int) -> int:
    if x >= 3:
        event.wait()
    return x


def test_a_bar_shows_what_is_done_while_other_tasks_run() -> None:
    """The caller is not woken for three results of a hundred: its sleep ends to draw them."""
    pool = WorkerPool(n_jobs=2)
    event = pool.ctx.Event()
    with WorkerPool(n_jobs=2, shared_objects=event) as pool:
        assert pool.map(wait_behind, range(100), chunk_size=1, **show(Released("3/100", event))) == [*range(100)]


def test_several_maps_of_kept_workers() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for n in (10, 20, 30):
            screen = Screen()
            pool.map(double, range(n), **show(screen))
            assert screen.counts[-1] == (str(n), str(n))


def test_without_a_bar_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10))
        pool.map(double, range(10), progress_bar=False, progress_bar_options={"desc": "x"}, progress_bar_style="std")
    assert capfd.readouterr() == ("", "")


def test_the_streams_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10), progress_bar=True)
        out, err = capfd.readouterr()
        assert out == ""
        assert "10/10" in err
        pool.map(double, range(10), progress_bar=True, progress_bar_style="rich")
        out, err = capfd.readouterr()
        assert "10/10" in out
        assert err == ""


def test_options_are_tqdms() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10), **show(screen, desc="work", unit="pieces", initial=5))
    assert screen.frames[-1].startswith("work: 100%")
    assert screen.counts[-1] == ("15", "15")
    assert "pieces/s" in screen.frames[-1]


def test_the_width_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10), **show(screen, ncols=50))
    assert len(screen.frames[-1].rstrip("\n")) == 50


@pytest.mark.parametrize("seconds", [None, 0, 1e-9, float("inf"), float("nan")])
def test_any_interval(seconds: float | None) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10), **show(screen, mininterval=seconds))
    assert screen.counts[-1] == ("10", "10")


def test_a_disabled_bar_shows_nothing() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, range(10), **show(screen, disable=True))
    assert screen.getvalue() == ""


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("style", STYLES)
def test_a_bar_that_ends_in_an_exception_says_so(style: str, start_method: str) -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.map(fail_at_50, range(100), **show(screen, desc="work"), progress_bar_style=style)
        assert not bars()
        assert "work failed (ZeroDivisionError)" in screen.getvalue()
        screen = Screen()
        pool.map(double, range(10), **show(screen), progress_bar_style=style)
    assert screen.counts[-1] == ("10", "10")
    assert "failed" not in screen.getvalue()


def interrupted() -> Iterator[int]:
    yield from range(10)
    raise KeyboardInterrupt


def test_a_bar_that_is_interrupted_says_so() -> None:
    screen = Screen()
    with WorkerPool(n_jobs=2) as pool, pytest.raises(KeyboardInterrupt):
        pool.map(double, interrupted(), **show(screen))
    assert screen.frames[-1].startswith("interrupted:")
    assert not bars()


@pytest.mark.parametrize("style", STYLES)
def test_a_map_that_is_left_early_leaves_its_bar_as_it_is(style: str) -> None:
    screen = Screen()
    bar = show_progress(make_bar_options(True, {"file": screen}, style, 1), 10)
    bar.update(4)
    bar.close(GeneratorExit())
    assert screen.counts[-1] == ("4", "10")
    assert "failed" not in screen.getvalue()
    assert not bars()


class Broken(Screen):
    def write(self, text: str) -> int:
        if "/" in text and " 0/" not in text:
            raise OSError("the disk is full")
        return super().write(text)


def test_a_bar_that_cannot_be_drawn_is_given_up_and_the_map_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(n_jobs=2) as pool, caplog.at_level(logging.WARNING, "fastpool"):
        assert pool.map(double, range(100), **show(Broken(), mininterval=0)) == [2 * x for x in range(100)]
    [record] = caplog.records
    assert "the progress bar cannot be drawn" in record.message
    assert "the disk is full" in str(record.exc_info)


def test_the_lock_is_free_after_a_bar_that_could_not_be_drawn() -> None:
    bar = show_progress(make_bar_options(True, {"file": Broken(), "mininterval": 0}, None, 1), 10)
    bar.update(5)
    taken: list[bool] = []

    def take() -> None:
        lock = tqdm.std.TqdmDefaultWriteLock.th_lock
        taken.append(lock.acquire(blocking=False))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert taken == [True]


def test_a_fork_draws_nothing() -> None:
    screen = Screen()
    bar = show_progress(make_bar_options(True, {"file": screen}, None, 1), 10)
    drawn = screen.getvalue()
    pid = os.fork()
    if pid == 0:
        bar.close()
        os._exit(screen.getvalue() != drawn)
    assert os.waitpid(pid, 0)[1] == 0
    bar.close()
    assert screen.getvalue() != drawn


# ---------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("style", STYLES)
def test_neither_tqdms_lock_nor_threads_nor_streams_change(style: str) -> None:
    lock, streams = tqdm.tqdm.get_lock(), (sys.stdout, sys.stderr)
    threads = threading.active_count()
    seen: list[Any] = []

    def elements() -> Iterator[int]:
        for x in range(100):
            seen.append((threading.active_count(), tqdm.tqdm.get_lock(), (sys.stdout, sys.stderr)))
            yield x

    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, elements(), **show(Screen()), progress_bar_style=style)
    seen.append((threading.active_count(), tqdm.tqdm.get_lock(), (sys.stdout, sys.stderr)))
    assert all(found == (threads, lock, streams) for found in seen)
    assert tqdm.tqdm.monitor_interval


def test_a_bar_of_the_programs_own_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # a thread for good
    outer, inner = Screen(), Screen()
    with WorkerPool(n_jobs=2) as pool:
        for n in tqdm.tqdm([10, 20], file=outer):
            pool.map(double, range(n), **show(inner))
    assert outer.counts[-1] == ("2", "2")
    assert inner.getvalue().count("\n\r") == inner.getvalue().count("\x1b[A")  # down to its line and up again
    assert ("0", "20") in inner.counts


def test_there_is_a_timer_only_while_a_bar_is_shown() -> None:
    assert show_progress(None, 10).deadline_ns is None
    bar = show_progress(make_bar_options(True, {"file": Screen()}, None, 1), 10)
    assert bar.deadline_ns is not None
    bar.close()
    assert bar.deadline_ns is None
    disabled = show_progress(make_bar_options(True, {"file": Screen(), "disable": True}, None, 1), 10)
    assert disabled.deadline_ns is None


def test_silence_is_noticed_in_several_short_sleeps() -> None:
    segment = Segment(1, 1 << 16, 1 << 24, 2)
    collector = Collector(segment, None)
    try:
        for _ in range(10_000):
            collector.wait(1, time.monotonic_ns() + 5_000_000)
            if collector.rested_at is not None:
                break
        assert collector.rested_at == 0
    finally:
        segment.close()


# ---------------------------------------------------------------- nested


class Piecewise(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def test_a_frame_is_one_piece() -> None:
    screen = Piecewise()
    bar = show_progress(make_bar_options(True, {"file": screen, "position": 2, "mininterval": 0}, None, 1), 10)
    for done in range(1, 11):
        bar.update(done)
    frames = [piece for piece in screen.pieces if "/10" in piece]
    assert len(frames) > 5
    assert all(piece.startswith("\n\n\r") and piece.endswith("\x1b[A\x1b[A") for piece in frames)
    bar.close()


def test_frames_look_like_their_stream() -> None:
    assert Frames(sys.stderr) == sys.stderr
    assert Frames(sys.stderr) != sys.stdout
    assert Frames(sys.stderr).fileno() == sys.stderr.fileno()


def inner_map(worker_id: int, path: str, n: int) -> int:
    with open(path, "a") as stream, WorkerPool(n_jobs=2) as pool:
        options = {"position": worker_id + 1, "desc": f"inner {worker_id}", "file": stream, "mininterval": 0}
        return sum(pool.map(double, range(n), progress_bar=True, progress_bar_options=options))


@pytest.mark.parametrize("start_method", START_METHODS)
def test_nested_pools_keep_to_their_lines(start_method: str, tmp_path: Any) -> None:
    path = tmp_path / "screen"
    with open(path, "a") as stream, WorkerPool(2, daemon=False, pass_worker_id=True, start_method=start_method) as pool:
        sums = pool.map(
            inner_map, [(str(path), 50)] * 6, chunk_size=1, **show(stream, desc="outer", position=0, mininterval=0)
        )
    assert sums == [2450] * 6
    text = path.read_bytes().decode()
    assert re.search(r"\router: 100%\|[^\r]*\| 6/6 ", text)
    inner = re.findall(r"\n*\rinner \d:[^\r\x1b\n]*(?:\x1b\[A)*", text)
    assert inner
    for frame in inner:  # whoever writes at the same time
        line = int(frame.split("inner ")[1][0]) + 1
        assert frame.count("\n") >= line
        assert frame.endswith("\x1b[A" * line)


# ---------------------------------------------------------------- what is refused


def refused(kind: type[Exception], match: str, **given: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        for method in ("map", "map_unordered", "imap", "imap_unordered"):
            with pytest.raises(kind, match=match):
                getattr(pool, method)(double, range(3), **given)
        assert pool._supervisor._segment is None  # nothing was begun


@pytest.mark.parametrize(
    ("kind", "match", "given"),
    [
        (TypeError, "progress_bar must be a bool, not int", {"progress_bar": 1}),
        (TypeError, "progress_bar must be a bool, not NoneType", {"progress_bar": None}),
        (TypeError, "progress_bar must be a bool, not numpy.bool", {"progress_bar": numpy.bool_(True)}),
        (TypeError, "progress_bar_options must be a dict or None, not list", {"progress_bar_options": []}),
        (TypeError, "progress_bar_style must be a str or None, not int", {"progress_bar_style": 3}),
        (ValueError, "'std', 'rich', 'notebook' or None, not 'x'", {"progress_bar_style": "x"}),
        (ValueError, "'dashboard' is not there yet", {"progress_bar_style": "dashboard"}),
        (
            TypeError,
            r"progress_bar_options: .*nonsense",
            {"progress_bar": True, "progress_bar_options": {"nonsense": 1}},
        ),
        (
            TypeError,
            r"progress_bar_options: .*iterable",
            {"progress_bar": True, "progress_bar_options": {"iterable": []}},
        ),
        (TypeError, "'mininterval' as 'soon'", {"progress_bar": True, "progress_bar_options": {"mininterval": "soon"}}),
        (
            TypeError,
            "progress_bar_options: tqdm does not take 'position' as 'top': ",
            {"progress_bar": True, "progress_bar_options": {"desc": "x", "position": "top"}},
        ),
        (TypeError, "progress_bar_options", {"progress_bar": True, "progress_bar_options": {"initial": "x"}}),
        (
            TypeError,
            "progress_bar_options: 'file' must be a stream to write to, not str",
            {"progress_bar": True, "progress_bar_options": {"file": "bar.txt"}},
        ),
        (TypeError, "progress_bar_options", {"progress_bar": True, "progress_bar_options": {3: 1}}),
        (ValueError, "progress_bar_options: .*mud", {"progress_bar": True, "progress_bar_options": {"colour": "mud"}}),
        (
            ValueError,
            "progress_bar_options: 'position' is not for progress_bar_style 'rich'",
            {"progress_bar": True, "progress_bar_style": "rich", "progress_bar_options": {"position": 1}},
        ),
    ],
)
def test_wrong_arguments(kind: type[Exception], match: str, given: dict[str, Any]) -> None:
    refused(kind, match, **given)


@pytest.mark.parametrize("name", ["total", "leave"])
@pytest.mark.parametrize("shown", [True, False])
def test_total_and_leave_are_ours(name: str, shown: bool) -> None:
    screen = Screen()
    options = {name: 3, "file": screen}
    with (
        WorkerPool(n_jobs=1) as pool,
        pytest.warns(RuntimeWarning, match=f"progress_bar_options: '{name}' is for fastpool to say") as caught,
    ):
        pool.map(double, range(10), progress_bar=shown, progress_bar_options=options)
    assert caught[0].filename == __file__
    assert options == {name: 3, "file": screen}
    assert screen.counts[-1:] == ([("10", "10")] if shown else [])


@pytest.mark.parametrize(
    ("style", "missing", "extra"),
    [(None, "tqdm", "progress"), ("rich", "rich.console", "rich"), ("notebook", "ipywidgets", "notebook")],
)
def test_what_is_not_installed_is_named(
    style: str | None, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    bar_class.cache_clear()
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(ImportError, match=rf"pip install 'fastpool\[{extra}\]'"):
            pool.map(double, range(3), progress_bar=True, progress_bar_style=style)
        assert pool.map(double, range(3)) == [0, 2, 4]
    bar_class.cache_clear()


# ---------------------------------------------------------------- notebooks, with widgets that only remember


class Widget:
    def __init__(self, **given: Any) -> None:
        self.layout, self.style = types.SimpleNamespace(), types.SimpleNamespace()
        self.bar_style = self.value = ""
        self.__dict__.update(given)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    shown: list[Any] = []
    widgets: Any = types.ModuleType("ipywidgets")
    widgets.HTML = widgets.FloatProgress = widgets.HBox = Widget
    display: Any = types.ModuleType("IPython.display")
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.delitem(sys.modules, "tqdm.notebook", raising=False)
    bar_class.cache_clear()
    yield shown
    bar_class.cache_clear()


@pytest.mark.parametrize("iterable", [range(20), iter(range(20))], ids=["range", "iterator"])
def test_a_notebook(notebook: list[Any], iterable: Any) -> None:
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, iterable, progress_bar=True, progress_bar_style="notebook")
    [container] = notebook
    _, bar, text = container.children
    assert (bar.value, bar.max, bar.bar_style) == (20, 20, "success")
    assert "20/20" in text.value


def test_a_notebook_after_an_exception(notebook: list[Any]) -> None:
    with WorkerPool(n_jobs=2) as pool, pytest.raises(ZeroDivisionError):
        pool.map(fail_at_50, range(100), progress_bar=True, progress_bar_style="notebook")
    [container] = notebook
    label, bar, _ = container.children
    assert bar.bar_style == "danger"
    assert "failed" in label.value
    assert progress.bar_class.cache_info().currsize
