"""How long tasks take: counted and timed in a worker of a pool with insights."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastpool._native cimport (
    FP_TEXT_BYTES, SIG_BLOCK, SIG_SETMASK, Segment, fp_line_of, line_show_longest, now_ns, peek, poke, pthread_sigmask,
    sigfillset, sigset_t,
)

cdef enum:
    LONG_NS = 1_000_000  # beside that, it is nothing to describe a task's arguments


@cython.final
cdef class Timing:
    """Counts and times the tasks of one worker, and keeps the longest, on that worker's line.

    A task takes from :meth:`begin`, or the end of the one before it, to its :meth:`end`, when its result is about to be
    committed; so whoever has collected the result finds the task counted. Arguments of short tasks are described at
    the end of a run of tasks, since each of many may be the longest so far.

    Parameters
    ----------
    segment : Segment
    worker : int
    describe : callable
        Arguments, shortened, as UTF-8.
    """

    def __cinit__(self, Segment segment, uint32_t worker, describe):
        self.line = fp_line_of(segment.at, worker)
        self.describe = describe
        self.elements = [None] * FP_LONGEST

    cdef int begin(self, uint64_t waited) except -1:
        """A task begins; `waited` as for :meth:`end`."""
        self.since = now_ns()
        self.waited = waited
        return 0

    cdef int end(self, object element, uint64_t waited, bint last) except -1:
        """The current task ends, and the next one begins.

        `waited`: ns, a clock of times that are no task's. `last`: it is the last one of a run.
        """
        cdef uint64_t now = now_ns()
        cdef uint64_t took = now - self.since - (waited - self.waited)
        self.since = now
        self.waited = waited
        poke(self.line.timed, peek(self.line.timed) + 1)
        poke(self.line.working_ns, peek(self.line.working_ns) + took)
        if took > self.least:
            self.keep(took, element)
        if self.behind and (last or took > LONG_NS):
            self.show()
            self.since = now_ns()
        return 0

    cdef int keep(self, uint64_t took, object element) except -1:
        """One of the longest tasks, in the place of the shortest of them."""
        cdef int i
        for i in range(FP_LONGEST):
            if peek(self.longest[i].took_ns) == self.least:
                break
        poke(self.longest[i].took_ns, took)
        self.elements[i] = (element,)
        self.least = took
        for i in range(FP_LONGEST):
            self.least = min(self.least, peek(self.longest[i].took_ns))
        self.behind = True
        return 0

    cdef int show(self) except -1:
        """Describe what is not described yet, and show the longest on the line.

        No signal handler runs meanwhile: what it raises would be taken for the exception of a ``__repr__``.
        """
        cdef sigset_t every, before
        cdef int i
        if not self.behind:
            return 0
        sigfillset(&every)
        pthread_sigmask(SIG_BLOCK, &every, &before)
        try:
            PyErr_CheckSignals()
            for i in range(FP_LONGEST):
                self.put_text(i)
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)
        line_show_longest(self.line, self.longest)
        self.behind = False
        return 0

    cdef int put_text(self, int i) except -1:
        cdef bytes text
        if self.elements[i] is None:
            return 0
        text = self.describe(self.elements[i][0])
        self.elements[i] = None
        memset(self.longest[i].text, 0, FP_TEXT_BYTES)
        memcpy(self.longest[i].text, <const char *>text, min(<size_t>FP_TEXT_BYTES, <size_t>len(text)))
        return 0
