"""When handlers of signals run: at once though the main thread sleeps, and not at all where they would break things.

Python runs the handlers that a program has set between two of its instructions, in the main thread. Two things follow
that this module is for. A thread that is about to sleep in C must be woken by a signal that comes after its last look,
whichever thread of the process the system gives it to: :class:`Wakeup`. And where an exception out of a handler would
be dropped, or leave behind what it interrupts, handlers have to wait: :func:`uninterrupted`.
"""

from posix.unistd cimport close as close_fd, read as read_fd, write as write_fd

from fastpool._reserve cimport use_reserve

import functools
import os
import threading

import _signal
from _signal import getsignal, set_wakeup_fd, signal as set_signal

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    int PyErr_CheckSignals() except -1
    int PyErr_SetInterruptEx(int signum)

cdef extern from "platform.h" nogil:
    void fp_fence()

# What Python's way to set a handler does not keep: SA_RESTART (siginterrupt), a library's C handler over Python's.
cdef extern from *:
    """
    #include <signal.h>

    static struct sigaction fastpool_kept[NSIG];

    static void fastpool_keep(int signum) { sigaction(signum, NULL, &fastpool_kept[signum]); }
    static void fastpool_put_back(int signum) { sigaction(signum, &fastpool_kept[signum], NULL); }

    static void fastpool_do_nothing(int signum) { (void)signum; }

    static void fastpool_catch(int signum) {
      struct sigaction action = {.sa_handler = fastpool_do_nothing, .sa_flags = SA_RESTART};
      sigaction(signum, &action, NULL); /* else it stays ignored */
    }
    """
    enum:
        NSIG
    void keep "fastpool_keep"(int signum) nogil
    void put_back "fastpool_put_back"(int signum) nogil
    void do_nothing_at "fastpool_catch"(int signum) nogil


def disregard(int signum) -> None:
    """Ignore a signal in this process and its forks, but not in other programs that are started from here: what a
    handler catches has its default again there, what is ignored is ignored there too (POSIX, ``exec``)."""
    set_signal(signum, _signal.SIG_IGN)
    do_nothing_at(signum)


# ---------------------------------------------------------------- the main thread

cdef unsigned long main_thread = threading.main_thread().ident

cdef bint is_main() noexcept nogil:
    """Is this the thread that runs handlers?"""
    return PyThread_get_thread_ident() == main_thread


# ---------------------------------------------------------------- sleeping

cdef saying(str what, error):
    """The same error; its text says what was refused."""
    return OSError(error.errno, f"{what}: {error.strerror}")

cdef int restore_wakeup_fd(int fd) except -2:
    """Set the program's descriptor again; none, if it has been closed. Returns the one that was set."""
    try:
        return set_wakeup_fd(fd)
    except (OSError, ValueError):
        return set_wakeup_fd(-1)

cdef class Wakeup:
    """A descriptor that ends the main thread's sleep when a signal comes, whichever thread the system gives it to.

    Python's own C handler writes to it (``signal.set_wakeup_fd``). The program's descriptor for that, if it has one, is
    put back after each sleep, and told what came meanwhile.
    """

    def __cinit__(self):
        self.fd = self.inlet = self.users = -1

    def __init__(self):
        try:
            self.fd, self.inlet = os.pipe()
        except OSError as error:
            raise saying("cannot open the pipe that signals write to", error) from error
        os.set_blocking(self.fd, False)
        os.set_blocking(self.inlet, False)

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        if self.fd >= 0:
            close_fd(self.fd)
            close_fd(self.inlet)
        self.fd = self.inlet = -1

    cdef int listen(self) except -2:
        """Before a sleep: run the handlers of signals that are in. Returns what later ones make readable, -1 in a
        thread that runs no handlers, or where there was no descriptor left to be made."""
        PyErr_CheckSignals()
        if not is_main() or self.fd < 0:
            return -1
        try:
            self.users = set_wakeup_fd(self.inlet, warn_on_full_buffer=False)
        except OSError as error:
            raise saying("cannot have signals end a sleep", error) from error
        self.listening = True
        fp_fence()  # the C handler stores that there is a signal, then loads the descriptor
        try:
            PyErr_CheckSignals()
        except BaseException:
            self.cease()
            raise
        return self.fd

    cdef int cease(self) except -1:
        """After a sleep: the program's descriptor is its own again."""
        cdef int now
        if not self.listening or not is_main():
            return 0
        self.listening = False
        now = restore_wakeup_fd(self.users)
        if now != self.inlet:  # a handler that ran in listen() has set another
            restore_wakeup_fd(now)
        self.drain()
        return 0

    cdef void drain(self) noexcept nogil:
        cdef unsigned char signals[64]
        cdef ssize_t n = read_fd(self.fd, signals, sizeof(signals))
        while n > 0:
            if self.users >= 0 and write_fd(self.users, signals, n) < 0:
                self.users = -1  # full, as it may be for the C handler
            n = read_fd(self.fd, signals, sizeof(signals))


# ---------------------------------------------------------------- working

cdef dict held = {}  # handlers that wait, by signal
cdef list noted = []  # signals that came meanwhile
cdef int holders = 0


def _note(signum, frame) -> None:
    noted.append(signum)


cdef object hold_signals():
    """From now on no handler runs. Returns the exception of one that was due, or None. Only in the main thread has this
    a meaning; in others it does nothing."""
    global holders
    cdef object due = None
    cdef int signum
    if not is_main():
        return None
    holders += 1
    if holders > 1:
        return None
    for signum in range(1, NSIG):
        handler = getsignal(signum)
        if callable(handler):
            keep(signum)
            due = set_handler(signum, _note, due)
            held[signum] = handler
    return due

cdef object set_handler(int signum, handler, due):
    """`due`, or the exception of a handler that ran before this one could be set: that is its place in Python."""
    while True:
        try:
            set_signal(signum, handler)
            return due
        except BaseException as error:
            due = error

cdef object release_signals():
    """Signals that came since :func:`hold_signals` come now. Returns the exception of one that was faster, or None."""
    global holders
    cdef object due = None
    if not is_main() or holders == 0:
        return None
    holders -= 1
    if holders:
        return None
    for signum, handler in held.items():
        if getsignal(signum) is _note:  # else somebody has set another meanwhile
            due = set_handler(signum, handler, due)
            put_back(signum)
    held.clear()
    if noted:
        users = set_wakeup_fd(-1)  # was told when they came
        for signum in noted:
            PyErr_SetInterruptEx(signum)
        noted.clear()
        restore_wakeup_fd(users)
    return due


def _in_fork() -> None:
    """The fork's one thread is its main thread. What came to the parent is not the fork's."""
    global main_thread, holders
    main_thread = PyThread_get_thread_ident()
    holders = min(holders, 1)
    noted.clear()
    release_signals()


os.register_at_fork(after_in_child=_in_fork)


def uninterrupted(function):
    """A decorator: no handler of a signal runs in the function; signals that come meanwhile are heard after it.

    A handler that was due before, and raises, raises after it. Nothing can come between the call and the hold: there is
    no Python code in between. The function must end soon, whatever happens.
    """
    @functools.wraps(function)
    def call(*args):
        due = hold_signals()
        try:
            return function(*args)
        finally:
            due = release_signals() or due
            if due is not None:
                raise due
    return call


def completed(function):
    """A decorator, for what is soon done and may be done again: where the exception of a handler has cut it short, it
    is done again, while handlers wait, before the exception goes on. Where none comes, it costs nothing.
    """
    @functools.wraps(function)
    def call(*args):
        cdef bint failed = True
        try:
            try:
                result = function(*args)
                failed = False
                return result
            finally:
                if failed:
                    use_reserve()
        except BaseException:
            due = hold_signals()
            try:
                function(*args)
            finally:
                due = release_signals() or due
            if due is not None:
                raise due
            raise
    return call


cdef class Interruptible:
    """Within an :func:`uninterrupted` function, a block in which handlers run."""
    cdef int holders

    def __enter__(self):
        global holders
        if is_main() and holders:
            self.holders, holders = holders, 1
            due = release_signals()
            if due is not None:
                raise due

    def __exit__(self, *_):
        global holders
        if self.holders:
            due = hold_signals()
            holders, self.holders = self.holders, 0
            if due is not None:
                raise due
