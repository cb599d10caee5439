"""Progress bars: tqdm's, drawn by the thread that waits for results."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import reprlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fastpool.options import check_flag

logger = logging.getLogger("fastpool")

STYLES = ("std", "rich", "notebook")
DEFAULTS = {"mininterval": 0.1, "miniters": 0}
OURS = ("total", "leave")
OWN = {"std": (), "rich": ("progress", "options"), "notebook": ("display",)}  # options that tqdm has for a style alone
NEEDS = {"std": "tqdm", "rich": "tqdm and rich", "notebook": "tqdm and ipywidgets"}
EXTRAS = {"std": "progress", "rich": "rich", "notebook": "notebook"}
LEAST_INTERVAL, MOST_INTERVAL = 0.02, 3600.0  # s, between refreshes that nothing but the clock asks for


@dataclass(frozen=True)
class BarOptions:
    """What a progress bar was asked to be, checked.

    Attributes
    ----------
    style : str
    options : dict
        For tqdm.
    """

    style: str
    options: dict[str, Any]


def make_bar_options(shown: Any, options: Any, style: Any, stacklevel: int) -> BarOptions | None:
    """Check `progress_bar`, `progress_bar_options` and `progress_bar_style`; None: no bar is wanted.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter.
    ImportError
        What draws a bar of this style is not installed.
    """
    check_flag("progress_bar", shown)
    if options is not None and not isinstance(options, dict):
        raise TypeError(f"progress_bar_options must be a dict or None, not {type(options).__name__}")
    style = _check_style(style)
    given = dict(options or {})
    for name in OURS:
        if name in given:
            del given[name]
            message = f"progress_bar_options: {name!r} is for fastpool to say, and is ignored"
            warnings.warn(message, RuntimeWarning, stacklevel + 1)
    if not shown:
        return None
    given = DEFAULTS | {"dynamic_ncols": "ncols" not in given} | given  # tqdm's dynamic width wins over a given one
    _check_options(style, given)
    return BarOptions(style, given)


def _check_style(style: Any) -> str:
    if style is None:
        return "std"
    if not isinstance(style, str):
        raise TypeError(f"progress_bar_style must be a str or None, not {type(style).__name__}")
    if style == "dashboard":
        raise ValueError("progress_bar_style 'dashboard' is not there yet: use 'std', 'rich' or 'notebook'")
    if style not in STYLES:
        raise ValueError(f"progress_bar_style must be one of {', '.join(map(repr, STYLES))} or None, not {style!r}")
    return style


def _check_options(style: str, given: dict[str, Any]) -> None:
    """Try them where nobody sees it."""
    bar_class(style)
    if style == "rich" and "position" in given:
        raise ValueError("progress_bar_options: 'position' is not for progress_bar_style 'rich'")
    from tqdm import TqdmKeyError

    stream = given.get("file")
    if stream is not None and not callable(getattr(stream, "write", None)):
        raise TypeError(f"progress_bar_options: 'file' must be a stream to write to, not {type(stream).__name__}")
    tried = {name: value for name, value in given.items() if name not in OWN[style]}
    if "iterable" in tried:
        raise TypeError("progress_bar_options: tqdm's 'iterable' is the input of the map")
    if (error := _refused(tried)) is None:
        return
    kind = TypeError if isinstance(error, (TqdmKeyError, TypeError)) else ValueError
    alone = next((name for name in tried if _refused({name: tried[name]}) is not None), None)
    which = "" if alone is None else f"tqdm does not take {alone!r} as {reprlib.repr(tried[alone])}: "
    reason = error.args[0] if len(error.args) == 1 else error  # a KeyError's text is quoted
    raise kind(f"progress_bar_options: {which}{reason}") from error


def _refused(options: dict[str, Any]) -> Exception | None:
    """What tqdm says to these."""
    from tqdm import TqdmWarning

    bar = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", TqdmWarning)
            bar = bar_class("std").shown({**options, "file": Nowhere(), "disable": False}, 1)
            bar.refresh()
            bar.update(1)
            bar.close()
    except Exception as error:
        if bar is not None:
            bar.disable = True  # or it is closed when it is collected
        return error
    return None


class Nowhere(io.TextIOBase):
    """A stream that takes everything."""

    def write(self, _: Any) -> int:
        return 0


# ---------------------------------------------------------------- what a map drives


class Progress:
    """What a map tells how far it has come: this one shows nothing."""

    @property
    def deadline_ns(self) -> int | None:
        """When to come back and :meth:`update` though nothing has happened, on the monotonic clock; None: never."""
        return None

    def update(self, done: int, total: int | None = None) -> None:
        """So many tasks are done, of so many, if that is known better than at the beginning."""

    def close(self, error: BaseException | None = None) -> None:
        """The map is over; with a GeneratorExit, it was left early."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close(error)


def show_progress(wanted: BarOptions | None, total: int | None) -> Progress:
    """Show a bar for a map of `total` tasks (None: not known), if one is wanted. To be closed, whatever happens."""
    return Progress() if wanted is None else ShownProgress(wanted, total)


class ShownProgress(Progress):
    """A progress bar.

    It must be shown before workers are forked, who find then that the first line is taken. A bar that cannot be drawn
    any more is given up, with a log line, and the map goes on.
    """

    def __init__(self, wanted: BarOptions, total: int | None) -> None:
        self._before = wanted.options.get("initial", 0)
        self._total = total
        interval = max(LEAST_INTERVAL, wanted.options["mininterval"] or 0)
        self._interval_ns = int(min(MOST_INTERVAL, interval) * 1e9)
        self._bar = bar_class(wanted.style).shown(wanted.options, None if total is None else total + self._before)

    @property
    def deadline_ns(self) -> int | None:
        return None if self._bar.disable else time.monotonic_ns() + self._interval_ns

    def update(self, done: int, total: int | None = None) -> None:
        bar = self._bar
        if bar.disable:
            return
        if total is not None and total != self._total:
            self._total = total
            self._draw(bar.take_total, total + self._before)
        if done + self._before > bar.last_print_n:
            self._draw(bar.update, done + self._before - bar.n)

    def close(self, error: BaseException | None = None) -> None:
        bar = self._bar
        if bar.disable:
            return
        if error is None:
            self._draw(bar.take_total, bar.n)
        elif not isinstance(error, GeneratorExit):
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed ({type(error).__name__})"
            self._draw(bar.fail, how)
        self._draw(bar.close)

    def _draw(self, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception:
            self._bar.disable = True
            logger.warning("the progress bar cannot be drawn, and is given up", exc_info=True)


# ---------------------------------------------------------------- what is drawn


class Frames:
    """A stream that passes on what makes up one frame in one piece.

    Bars of several processes share a terminal. tqdm goes down to a bar's line, writes it and goes back up; nothing of
    another's must come in between. A lock would do that, too, until its holder is killed.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._frame: list[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._stream == other)  # tqdm looks whether it is sys.stderr

    __hash__ = None  # type: ignore[assignment]

    def write(self, text: Any) -> None:
        if self._frame is None:
            self._stream.write(text)
        else:
            self._frame.append(text)

    def flush(self) -> None:
        if self._frame is None and hasattr(self._stream, "flush"):
            self._stream.flush()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        frame = self._frame = []
        try:
            yield
        finally:
            self._frame = None
        if frame:
            self._stream.write(frame[0][:0].join(frame))
            self.flush()


class OurBar:
    """What our bars have that tqdm's do not."""

    monitor_interval = 0  # no thread looks after them

    @classmethod
    def shown(cls, options: dict[str, Any], total: int | None) -> Any:
        """Make one, and show it."""
        bar = cls(**cls.completed(options), total=total)  # type: ignore[call-arg]
        bar.owner_pid = os.getpid()  # type: ignore[attr-defined]
        return bar

    @classmethod
    def completed(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "leave": True}

    def take_total(self, total: int) -> None:
        self.total = total

    def fail(self, how: str) -> None:
        """Say that the map has not come to its end."""
        described = self.desc.removesuffix(": ")  # type: ignore[attr-defined]
        self.leave = True
        self.colour = "red"
        self.set_description(f"{described} {how}".strip(), refresh=False)  # type: ignore[attr-defined]

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> bool:
        """tqdm's own keeps the lock when drawing raises."""
        if self.disable or not (nolock or self._lock.acquire(*(lock_args or ()))):  # type: ignore[attr-defined]
            return False
        try:
            self.display()  # type: ignore[attr-defined]
        finally:
            if not nolock:
                self._lock.release()  # type: ignore[attr-defined]
        return True

    def close(self) -> None:
        """In a fork, nothing is drawn."""
        if getattr(self, "owner_pid", None) == os.getpid():
            super().close()  # type: ignore[misc]
        self.disable = True


@functools.cache
def bar_class(style: str) -> Any:
    """tqdm's class of a style, with what is ours.

    tqdm's own lock is left alone. Ours keeps threads apart and is no other process's: a worker may be killed while it
    draws a bar of its own.

    Raises
    ------
    ImportError
    """
    try:
        made = {"std": _make_std, "rich": _make_rich, "notebook": _make_notebook}[style]()
        from tqdm.std import TqdmDefaultWriteLock
    except ImportError as error:
        raise ImportError(
            f"progress_bar_style {style!r} needs {NEEDS[style]}: pip install 'fastpool[{EXTRAS[style]}]'"
        ) from error
    made.set_lock(TqdmDefaultWriteLock.th_lock)
    return made


def _make_std() -> Any:
    from tqdm import tqdm

    class StdBar(OurBar, tqdm):  # type: ignore[misc]
        """A bar of text. Those below the first line vanish at their end, as bars inside others do with tqdm."""

        @classmethod
        def completed(cls, options: dict[str, Any]) -> dict[str, Any]:
            stream = options.get("file")
            return {**options, "file": Frames(sys.stderr if stream is None else stream), "leave": None}

        def display(self, *args: Any, **kwargs: Any) -> Any:
            with self.fp.whole():
                return super().display(*args, **kwargs)

    return StdBar


def _make_rich() -> Any:
    from rich.console import Console
    from tqdm import TqdmExperimentalWarning
    from tqdm.rich import tqdm

    class RichBar(OurBar, tqdm):  # type: ignore[misc]
        """A bar of rich's, without its thread, and without its hold on the program's streams, which workers inherit."""

        @classmethod
        def shown(cls, options: dict[str, Any], total: int | None) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TqdmExperimentalWarning)
                return super().shown(options, total)

        @classmethod
        def completed(cls, options: dict[str, Any]) -> dict[str, Any]:
            quiet = {"auto_refresh": False, "redirect_stdout": False, "redirect_stderr": False}
            own = {"console": Console(file=options.get("file")), **quiet, **options.get("options", {})}
            return {**options, "options": own, "leave": True}

        def display(self, *args: Any, **kwargs: Any) -> None:
            super().display(*args, **kwargs)
            if hasattr(self, "_task_id"):
                self._prog.update(self._task_id, total=self.total, refresh=True)

    return RichBar


def _make_notebook() -> Any:
    import ipywidgets  # noqa: F401  (tqdm finds out too late that it is missing)
    from tqdm.notebook import tqdm

    class NotebookBar(OurBar, tqdm):  # type: ignore[misc]
        """A widget."""

        def take_total(self, total: int) -> None:
            super().take_total(total)
            widget = self.container.children[1]
            widget.max = total
            widget.bar_style = ""

    return NotebookBar
