"""The worker's loop: claim, call, encode, commit.

What a person might want to change (functions, errors, signals) is the host's, a Python object (``fastpool.worker``);
this module calls it once per job, per error and per life, never per task.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from fastpool._codec cimport Decoder, put
from fastpool._lane cimport LaneEncoder, ReferenceEncoder
from fastpool._native cimport (
    FP_APPLY, FP_CLAIM_CLOSED, FP_CLAIM_EXHAUSTED, FP_CLAIM_OK, FP_CLAIM_OTHER, FP_CLAIM_STARVED, FP_CMD_QUIT,
    FP_CMD_STOP, FP_EXITED, FP_EXITING, FP_FEED_SLOTS, FP_IDLE, FP_INDEX_CLOSED, FP_INITIALIZING, FP_JOB_ALWAYS_EXIT,
    FP_JOB_INSIGHTS, FP_JOB_KEEP_GOING, FP_JOB_LAST, FP_JOB_ORDERED, FP_KIND_FLOAT64, FP_KIND_INT64, FP_KIND_NONE,
    FP_KIND_OBJECT, FP_KIND_PACKED, FP_KIND_PICKLE, FP_KIND_TAGGED, FP_MAP, FP_NEVER, FP_PHASE_EXIT, FP_PHASE_INIT,
    FP_PHASE_TASK, FP_RUNNING, FP_TOTAL_UNKNOWN, SIG_BLOCK, SIG_SETMASK, Segment, claim_begin, claim_drop, claim_join,
    claim_next, claim_own, fp_align, fp_at, fp_call_begin, fp_call_end, fp_claim_index, fp_claim_number, fp_control,
    fp_control_of, fp_feed_of, fp_feed_slot, fp_job, fp_kind_of, fp_line, fp_line_news, fp_line_of, fp_record,
    fp_segment, fp_terms, load, memory_expect, move_state, now_ns, peek, poke, pthread_sigmask, sigemptyset, sigfillset,
    sigset_t, store,
)
from fastpool._nursery cimport install, nursery
from fastpool._packed cimport KEEP_BYTES
from fastpool._references cimport Exchange
from fastpool._signals cimport is_main
from fastpool._timing cimport Timing

from collections.abc import Iterable

import numpy

from fastpool.errors import DamagedMemoryError, Interruption, StaleFunctionError

cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(object callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
    vectorcallfunc PyVectorcall_Function(object callable)
    const size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_Vectorcall(object callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
    object PyObject_VectorcallDict(object callable, PyObject *const *args, size_t nargsf, PyObject *kwdict)
    object PyLong_FromLongLong(long long value)
    object PyFloat_FromDouble(double value)
    ctypedef struct PyThreadState
    PyThreadState *PyThreadState_Get()
    unsigned long PyThread_get_thread_ident()

cdef extern from *:
    """
    /* An exception for another thread, which it meets where it next runs Python.

       Before 3.13, PyThreadState_SetAsyncExc makes every thread look for it, with every call, until the one that is
       meant has met it, and a traced thread in 3.11 goes on looking without end. A thread looks by itself when it gets
       the GIL: so the exception is left with that thread alone. */
    static void fastpool_interrupt(PyThreadState *thread, PyObject *error) {
    #if PY_VERSION_HEX >= 0x030D0000
      PyThreadState_SetAsyncExc(thread->thread_id, error);
    #else
      PyObject *before = thread->async_exc;
      thread->async_exc = Py_NewRef(error);
      Py_XDECREF(before);
    #endif
    }

    static int fastpool_is_interrupted(void) { return PyThreadState_Get()->async_exc != NULL; }

    static void fastpool_take_back(void) { Py_CLEAR(PyThreadState_Get()->async_exc); }
    """
    void interrupt "fastpool_interrupt"(PyThreadState *thread, PyObject *error)
    bint is_interrupted "fastpool_is_interrupted"()
    void take_back "fastpool_take_back"()  # the interrupt of this thread, which has not met it

cdef dict threads = {}  # of each worker that is a thread, by the thread's identifier: its loop


def begin_fork() -> None:
    """A hook, before a fork: see :meth:`Loop.hold_interruption`."""
    loop = threads.get(PyThread_get_thread_ident())
    if loop is not None:
        (<Loop>loop).hold_interruption()


def end_fork() -> None:
    """A hook, in the parent of a fork."""
    loop = threads.get(PyThread_get_thread_ident())
    if loop is not None:
        (<Loop>loop).release_interruption()


def thread_loops() -> list:
    """Those of all workers of this process that are threads, and live."""
    return list(threads.values())


def disown_forks() -> None:
    """A hook, in a fork that a task has made, or any other thread: it is nobody's worker."""
    for loop in thread_loops():
        loop.disown()
    threads.clear()


cdef object run_python = eval("lambda: [None for _ in range(2)]")  # in which exceptions of other threads are met

# ---------------------------------------------------------------- arguments

cdef enum:
    SINGLE = 0    # the element is the one argument
    POSITIONAL = 1
    KEYWORD = 2

cdef dict common_shapes = {tuple: POSITIONAL, list: POSITIONAL, dict: KEYWORD, str: SINGLE, bytes: SINGLE}

cdef int shape_of(object element, dict shapes) except -1:
    """How an element becomes arguments: iterables are unpacked, but not str, bytes and arrays; dicts by keyword."""
    cdef object kind = type(element)
    cdef object known = shapes.get(kind)
    if known is None:
        if isinstance(element, dict):
            known = KEYWORD
        elif isinstance(element, (str, bytes, numpy.ndarray)) or not isinstance(element, Iterable):
            known = SINGLE
        else:
            known = POSITIONAL
        shapes[kind] = known
    return known


# ---------------------------------------------------------------- the loop

cdef enum:  # what a worker is at when an exception comes
    DECODING = 0
    CALLING = 1
    ENCODING = 2

cdef tuple phrases = ("argument", "task", "result")

cdef enum:
    PIECE_BYTES = 1 << 21        # that a resting worker maps before it looks for work again
    NUMBER_MASK = (1 << 24) - 1  # what the gate shows of a job's number

cdef struct Look:  # what a worker that has nothing to do looks at
    fp_segment *segment
    const fp_control *control
    uint64_t number     # of the map it joined
    uint64_t applies    # of the job of applies that it joined; FP_NEVER: it takes none
    bint starved        # it waits for input of that job; else for another job
    bint abandoned      # it takes nothing more of that job
    bint in_turn        # that job is ordered: this worker takes certain units,
    uint64_t unit       # the next one

cdef int has_work(void *context) noexcept nogil:
    cdef Look *look = <Look *>context
    cdef uint64_t word, total, index
    if load(look.control.command) != 0:
        return 1
    word = load(look.segment.gates[FP_APPLY].claim)
    if fp_claim_index(word) != FP_INDEX_CLOSED and look.applies != FP_NEVER:
        if fp_claim_number(word) != look.applies & NUMBER_MASK:
            return 1
        if fp_claim_index(word) < load(look.segment.jobs[FP_APPLY].avail):
            return 1
    word = load(look.segment.gates[FP_MAP].claim)
    if fp_claim_index(word) == FP_INDEX_CLOSED:
        return 0
    if fp_claim_number(word) != look.number & NUMBER_MASK:
        return 1
    if look.abandoned:
        return 0
    index = look.unit if look.in_turn else fp_claim_index(word)
    if index < load(look.segment.jobs[FP_MAP].avail):
        return 1
    total = load(look.segment.jobs[FP_MAP].total)
    return look.starved and total != FP_TOTAL_UNKNOWN and index >= total


cdef struct Sentence:  # what a worker waits for whose call is condemned
    const fp_control *control
    uint64_t until

cdef int is_pardoned(void *context) noexcept nogil:
    cdef Sentence *sentence = <Sentence *>context
    return load(sentence.control.condemned) != sentence.until or load(sentence.control.command) == FP_CMD_QUIT


cdef enum:
    OF_RANGE = -1  # kind of an element that is computed


@cython.final
cdef class Elements:
    """The elements of a run, one after another, for the loop that calls the function with them."""
    cdef LaneEncoder out
    cdef Decoder decoder
    cdef Timing timing                 # None: nobody asks how long tasks take
    cdef const fp_control *control
    cdef uint64_t job                  # of a map
    cdef bint is_apply                 # it is an apply: (function, arguments, keywords, ns that it may take)
    cdef int kind                      # of the items, or OF_RANGE
    cdef const unsigned char *item     # the next one
    cdef const unsigned char *end
    cdef int64_t value                 # the next one of a range
    cdef int64_t step
    cdef list objects                  # where the items are references
    cdef Py_ssize_t index              # the next one
    cdef bint copied                   # they are arrays of the caller's
    cdef uint64_t left                 # elements whose result is not committed
    cdef bint foreign                  # this process is a fork that a task made
    cdef int doing                     # for whoever asks after an exception
    cdef bint failed_for_good          # the elements behind the one that failed cannot be had
    cdef object element

    cdef inline bint advance(self) except -1:
        """Make the next element the current one. False: there is none, or the job was abandoned."""
        if self.left == 0 or (peek(self.control.abandon) >= self.job and not self.is_apply):
            return False
        self.doing = DECODING
        if self.kind == OF_RANGE:
            self.value += self.step
            self.element = PyLong_FromLongLong(self.value - self.step)
        elif self.kind == FP_KIND_FLOAT64:
            self.item += 8
            self.element = PyFloat_FromDouble((<const double *>(self.item - 8))[0])
        elif self.kind == FP_KIND_INT64:
            self.item += 8
            self.element = PyLong_FromLongLong((<const int64_t *>(self.item - 8))[0])
        elif self.kind == FP_KIND_OBJECT:
            self.index += 1
            self.element = self.objects[self.index - 1]
            if self.copied:
                self.element = self.element.copy("K")
        else:
            self.element = None  # its memory may be the next one's
            self.element = self.decoder.item(self.kind, &self.item, self.end)
            if self.kind == FP_KIND_PACKED and self.left == 1 and not self.is_apply:
                self.out.expect(self.out.number)
        self.doing = CALLING
        return True

    cdef int skip(self, uint64_t count) except -1:
        """Move on past elements whose results another worker has committed."""
        for _ in range(count):
            self.decoder.pass_over(self.kind, &self.item, self.end)
        self.left -= count
        return 0

    cdef bint may_continue(self, error):
        """Is the next element where it should be, although this one has failed?"""
        if isinstance(error, DamagedMemoryError):
            return False
        return self.doing != DECODING or self.kind != FP_KIND_TAGGED  # others may refer to what could not be read

    cdef inline int commit(self, result) except -1:
        """The current element's result."""
        if self.foreign:
            raise SystemExit(0)  # the task has returned in a fork of its own: see run_elements
        if self.timing is not None:
            self.timing.end(self.element, self.out.waited_ns, self.left == 1)
        self.doing = ENCODING
        if self.out.plan is not None:
            self.out.settle(result)
        put(self.out, result)
        if self.timing is not None and (self.out.kind < 0 or self.out.kind > FP_KIND_NONE):
            self.timing.begin(self.out.waited_ns)  # to encode it may have taken long
        self.left -= 1
        return 0


cdef void hold_signals(sigset_t *before) noexcept:
    """In a process. The signals of a thread's process are none of its business."""
    cdef sigset_t every
    if is_main():
        sigfillset(&every)
    else:
        sigemptyset(&every)
    pthread_sigmask(SIG_BLOCK, &every, before)

cdef int hear_signals() except -1:
    """Run the handlers of signals that are in already. There is an exception to report: theirs would be the second."""
    while True:
        try:
            return PyErr_CheckSignals()
        except BaseException:
            continue


cdef class Loop:
    """One worker's life.

    Parameters
    ----------
    segment : Segment
    worker : int
    host : object
        ``adopt(version, blob)`` returns the task function and its leading arguments, or None if this worker cannot have
        the function in its current form; ``initialize()``, ``finalize()``, ``flush()``;
        ``describe(error, what, task, element)`` returns the description of an exception, as the parent is to get it,
        ``describe_arguments(element)`` that of arguments; ``dumps`` and ``loads`` are for what has no record of its own
        kind.
    """
    cdef Segment segment
    cdef uint32_t worker
    cdef object host
    cdef LaneEncoder out
    cdef Decoder decoder
    cdef Elements elements
    cdef Timing timing
    cdef fp_line *line
    cdef Look look
    cdef object function
    cdef vectorcallfunc vectorcall  # its own, PEP 590; NULL: it has none
    cdef PyObject **args      # [0] is for the callee, then the leading arguments, then the task's
    cdef Py_ssize_t args_size
    cdef tuple leading
    cdef Py_ssize_t n_leading
    cdef bint initialized
    cdef bint ran             # it has run a task
    cdef fp_terms terms       # of the map it joined
    cdef fp_terms applies     # of the job of applies that it joined
    cdef fp_terms *latest     # of the two, that which it joined last
    cdef bint stale           # its process has an older definition of a function than it was given
    cdef uint64_t task_ns     # measured; 0: not known
    cdef uint64_t tasks
    cdef dict shapes          # of elements, by type
    # Of a worker that is a thread. All of these are read and written under the GIL.
    cdef Exchange exchange    # None: it is a process
    cdef PyThreadState *thread  # NULL: it does not run
    cdef bint inside          # it runs code of the user's, in which it touches nothing of the segment's
    cdef bint dismissed       # nobody wants anything of it any more
    cdef bint interrupted     # an Interruption has been sent to it
    cdef bint forking         # hooks of a fork run
    cdef bint withheld        # it is sent when they have run

    def __cinit__(self, Segment segment, uint32_t worker, host):
        self.segment = segment
        self.worker = worker
        self.host = host
        self.line = fp_line_of(segment.at, worker)
        segment.adopt_heap(worker)
        self.exchange = segment.exchange
        self.out = LaneEncoder(segment, worker) if self.exchange is None else ReferenceEncoder(segment, worker)
        self.shapes = dict(common_shapes)
        self.out.dumps = host.dumps
        self.out.dump_exception = host.dump_exception
        self.decoder = Decoder(segment, segment.lanes, True)
        self.decoder.loads = host.loads
        self.leading = ()
        self.timing = Timing(segment, worker, host.describe_arguments)
        self.elements = Elements()
        self.elements.out = self.out
        self.elements.decoder = self.decoder
        self.elements.control = fp_control_of(segment.at, worker)
        self.applies.channel = FP_APPLY
        self.latest = &self.terms
        self.look.segment = segment.at
        self.look.control = fp_control_of(segment.at, worker)
        self.reserve(16)

    def __dealloc__(self):
        free(self.args)

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Make room for `count` arguments in all."""
        cdef Py_ssize_t size = count + 1
        cdef void *larger
        if size > self.args_size:
            larger = realloc(self.args, 2 * size * sizeof(PyObject *))
            if larger is NULL:
                raise MemoryError()
            self.args = <PyObject **>larger
            self.args_size = 2 * size
        return 0

    cdef void become(self, uint32_t state) noexcept:
        if peek(self.line.state) != state:
            move_state(self.line, state)

    # ------------------------------------------------------------ life

    def run(self) -> None:
        """The worker's life. An exception that comes outside of the user's functions ends it, and is reported."""
        self.thread = PyThreadState_Get()
        if self.exchange is not None:
            threads[PyThread_get_thread_ident()] = self
        try:
            self.live()
        except BaseException as error:  # of a signal handler that ran between tasks, or of our own
            if self.elements.foreign:
                self.host.end_fork(error)
            if self.dismissed:  # as a process that is killed: without a last word
                self.meet_interruption()
                return
            if peek(self.line.state) == FP_EXITED:
                raise
            self.out.close()
            self.out.phase = FP_PHASE_INIT
            self.out.number = 0
            self.report(error, "worker", None, None)
            if not self.latest.flags & FP_JOB_ALWAYS_EXIT:
                self.ran = False
            self.leave()
        finally:
            threads.pop(PyThread_get_thread_ident(), None)
            self.thread = NULL

    cdef int live(self) except -1:
        """Work until told to stop, or until the job says so, or the lifespan is over."""
        cdef uint64_t first, count
        cdef int found
        cdef bint served
        if self.exchange is None:
            install(self.segment, self.worker)
        store(self.line.started_ns, now_ns())
        self.become(FP_IDLE)
        while True:
            if self.dismissed or load(self.look.control.command) == FP_CMD_QUIT:
                self.dismissed = True
                raise Interruption()
            served = self.serve()
            if self.stale:
                break
            found = FP_CLAIM_CLOSED
            if not (self.look.abandoned and self.gate_is_ours()):
                found = self.claim(&first, &count)
            if found == FP_CLAIM_OTHER:
                if not self.join():
                    break
            elif found == FP_CLAIM_OK:
                if not self.work(&self.terms, first, count):
                    self.look.abandoned = True
                elif self.budget_spent():
                    break
            elif found == FP_CLAIM_EXHAUSTED and self.terms.flags & FP_JOB_LAST:
                break
            elif served:
                continue
            elif load(self.look.control.command) == FP_CMD_STOP:
                break
            else:
                self.rest(found == FP_CLAIM_STARVED)
        self.leave()

    cdef int claim(self, uint64_t *first, uint64_t *count) noexcept:
        """Claim the next units of the job: FP_CLAIM_*."""
        cdef int found
        if not self.look.in_turn:
            return claim_next(self.segment.at, self.worker, &self.terms, self.budget(), self.task_ns, first, count)
        found = claim_own(self.segment.at, self.worker, &self.terms, self.look.unit)
        if found == FP_CLAIM_OK:
            first[0] = self.look.unit
            count[0] = 1
            self.look.unit += self.terms.n_workers
        return found

    cdef bint serve(self) except -1:
        """Between two chunks of a map: run one apply, if there is one. False: there is none."""
        cdef uint64_t unit, count
        cdef int found
        if self.look.applies == FP_NEVER:
            return False
        found = claim_next(self.segment.at, self.worker, &self.applies, 0, 0, &unit, &count)
        if found == FP_CLAIM_OTHER:
            return self.join_applies()
        if found != FP_CLAIM_OK:
            return False
        self.work(&self.applies, unit, 1)
        return True

    def disown(self) -> None:
        """In a fork of the worker: it must not act as the worker."""
        self.elements.foreign = True
        if self.exchange is None:
            nursery.off = True

    # ------------------------------------------------------------ a thread's end

    def dismiss(self) -> None:
        """From any thread: begin nothing more, drop what is being done, and end, as a process does that is killed.

        Code of the user's that it runs gets an :class:`fastpool.errors.Interruption` as soon as that is Python; not if
        it is what calls this.
        """
        self.dismissed = True
        if self.inside and not self.interrupted and self.thread is not NULL and self.thread != PyThreadState_Get():
            self.interrupted = True
            self.withheld = self.forking
            if not self.forking:
                interrupt(self.thread, <PyObject *>Interruption)

    cdef int hold_interruption(self) except -1:
        """This thread is about to fork. In hooks of that an exception is printed and swallowed: it would be lost, and a
        lock that a hook was to let go of (logging has such) would stay locked, until the next fork waits for it."""
        self.forking = True
        if self.interrupted and is_interrupted():
            take_back()
            self.withheld = True
        return 0

    cdef int release_interruption(self) except -1:
        self.forking = False
        if self.withheld:
            self.withheld = False
            interrupt(self.thread, <PyObject *>Interruption)
        return 0

    def sever(self) -> bool:
        """From any thread: after :meth:`dismiss`, is nothing of the segment's touched any more?

        Not while code of the user's runs, and so never again: the lane may be a successor's, the segment may go. If the
        worker is elsewhere, it will find out by itself that it was dismissed.
        """
        return self.dismissed and self.inside

    cdef inline int enter(self) except -1:
        """Code of the user's begins."""
        if self.dismissed:
            self.heed()
        self.inside = True
        return 0

    cdef inline int come_out(self) except -1:
        """It has ended, without an exception."""
        if self.dismissed:
            self.heed()
        self.inside = False
        return 0

    cdef int heed(self) except -1:
        """The worker was dismissed: out of here."""
        self.meet_interruption()
        raise Interruption()

    cdef int meet_interruption(self) except -1:
        """Where it came too late to be raised in code of the user's, it is met here."""
        while self.interrupted and is_interrupted():
            try:
                run_python()
            except Interruption:
                pass
        return 0

    cdef bint gate_is_ours(self):
        return fp_claim_number(load(self.segment.at.gates[FP_MAP].claim)) == self.terms.number & NUMBER_MASK

    cdef uint64_t budget(self):
        """The most tasks to claim, so that the lifespan is not exceeded; 0: any. A given chunk size is not cut."""
        if self.terms.chunk_fixed or self.terms.lifespan <= self.tasks:
            return 0
        return self.terms.lifespan - self.tasks

    cdef bint budget_spent(self):
        return self.terms.lifespan != 0 and self.tasks >= self.terms.lifespan

    cdef int rest(self, bint starved) except -1:
        """Nothing to claim: say so, and sleep until there is."""
        cdef uint64_t since = now_ns()
        self.look.starved = starved
        self.out.close()
        claim_drop(self.segment.at, self.worker)
        self.flush()
        if self.exchange is None and nursery.blocks:
            nursery.blocks = False
            self.segment.trim_heap(self.worker)
        self.become(FP_IDLE)
        self.out.tell_parent()
        self.map_ahead()
        self.segment.wait_as_worker(self.worker, has_work, &self.look)
        poke(self.line.waiting_ns, peek(self.line.waiting_ns) + now_ns() - since)
        return 0

    cdef int flush(self) except -1:
        """Show what tasks have printed. What a stream raises does not matter; what a signal handler raises does, and
        so none runs meanwhile."""
        cdef sigset_t before
        hold_signals(&before)
        try:
            PyErr_CheckSignals()
            self.host.flush()
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)
        return PyErr_CheckSignals()

    cdef int map_ahead(self) except -1:
        """After a map over an array, while there is nothing else to do: map the pages that others have touched, for the
        next map over the same memory. All of them exist: every chunk was read, and every place is written."""
        if self.out.whole is not NULL:
            if self.decoder.lowest is not NULL:
                self.map_range(self.decoder.lowest, self.decoder.highest - self.decoder.lowest)
            self.map_range(self.out.whole, self.out.whole_bytes)
        self.out.whole = self.decoder.lowest = self.decoder.highest = NULL
        return 0

    cdef int map_range(self, unsigned char *start, uint64_t size) except -1:
        """Map a range of shared memory piece by piece; give up as soon as there is work."""
        cdef uint64_t at = 0
        if size < KEEP_BYTES or self.out.is_mapped(start, size):
            return 0
        while at < size:
            if has_work(&self.look):
                return 0
            memory_expect(start + at, min(PIECE_BYTES, size - at))
            at += PIECE_BYTES
        self.out.mapped.add((<size_t>start, size))
        return 0

    cdef bint join(self) except -1:
        """Join the job the gate shows, and learn its functions. False: this worker cannot have them; its successor
        will."""
        cdef bytes blob = None
        if not claim_join(self.segment.at, self.worker, &self.terms):
            self.terms.number = 0
            return True  # it is over already: look again
        if self.terms.spec_offset:
            blob = self.segment.read_spec(&self.terms)
            if blob is None:
                self.terms.number = 0
                return True
        self.latest = &self.terms
        self.look.number = self.terms.number
        self.look.abandoned = False
        self.look.in_turn = (self.terms.flags & FP_JOB_ORDERED) != 0
        self.look.unit = self.terms.turn
        self.task_ns = 0
        self.out.phase = FP_PHASE_INIT
        self.out.job = self.terms.number
        self.out.number = 0
        try:
            known = self.host.adopt(self.terms.spec, blob)
        except BaseException as error:
            self.report(error, "function", None, None)
            self.out.close()
            self.look.abandoned = True
            return True
        if known is None:
            return False
        self.use(known[0], known[1])
        return True

    cdef bint join_applies(self) except -1:
        """The same for applies. False: they are closed."""
        cdef bytes blob = None
        if not claim_join(self.segment.at, self.worker, &self.applies):
            return False
        if self.applies.spec_offset:
            blob = self.segment.read_spec(&self.applies)
            if blob is None:
                self.applies.number = 0
                return True  # look again
        self.latest = &self.applies
        self.look.applies = self.applies.number
        self.out.phase = FP_PHASE_INIT
        self.out.job = self.applies.number
        self.out.number = 0
        try:
            self.lead(self.host.adopt_first(self.applies.spec, blob))
        except BaseException as error:
            self.report(error, "function", None, None)
            self.out.close()
            self.look.applies = FP_NEVER
        return True

    cdef int use(self, function, tuple leading) except -1:
        """Call this function for each task of the map, with these arguments first."""
        self.function = function
        self.elements.job = self.terms.number
        return self.lead(leading)

    cdef int lead(self, tuple leading) except -1:
        """Call functions with these arguments first."""
        cdef Py_ssize_t i
        cdef object argument
        self.leading = leading
        self.n_leading = len(leading)
        self.reserve(self.n_leading + 16)
        for i in range(self.n_leading):
            argument = leading[i]
            self.args[1 + i] = <PyObject *>argument
        return 0

    cdef int leave(self) except -1:
        """Run the exit function of a worker that ran a task; after this nothing shared is written."""
        cdef uint64_t since = now_ns()
        self.out.close()
        claim_drop(self.segment.at, self.worker)
        self.become(FP_EXITING)
        if self.ran:
            self.ran = False  # once, whatever comes
            self.out.phase = FP_PHASE_EXIT
            self.out.number = 0
            what = "worker_exit"
            try:
                if self.host.has_exit():
                    value = self.call_timed(self.host.finalize, self.latest.exit_limit)
                    what = "exit result"
                    self.out.put(value)
            except BaseException as error:
                self.report(error, what, None, None)
        self.flush()
        self.out.close()
        store(self.line.exit_ns, max(1, now_ns() - since))  # not 0: a second word that it has exited
        fp_line_news(self.line)
        self.become(FP_EXITED)  # after this store the line and the lane may be a successor's
        self.segment.ring_parent()
        return 0

    cdef bint initialize(self) except -1:
        """Run the init function before the first task. False if it failed (and was reported)."""
        cdef uint64_t since = now_ns()
        if self.initialized:
            return True
        if self.host.has_init():
            self.become(FP_INITIALIZING)
            self.out.phase = FP_PHASE_INIT
            self.out.number = 0
            try:
                self.call_timed(self.host.initialize, self.latest.init_limit)
            except BaseException as error:
                self.report(error, "worker_init", None, None)
                self.out.close()
                self.look.applies = FP_NEVER
                return False
            store(self.line.init_ns, now_ns() - since)
        self.initialized = True
        return True

    # ------------------------------------------------------------ tasks

    cdef bint work(self, const fp_terms *terms, uint64_t first, uint64_t count) except -1:
        """Run the claimed units. False if the job is to be abandoned."""
        cdef fp_job *job = &self.segment.at.jobs[terms.channel]
        cdef bint is_apply = terms.channel == FP_APPLY
        cdef fp_feed_slot *slot
        cdef uint64_t since, done, took
        cdef uint64_t unit = first
        cdef bint complete
        if peek(self.look.control.abandon) >= terms.number and not is_apply:
            return False
        if first + count >= load(job.hungry_at):
            self.out.tell_parent()
        if not self.initialize():
            return False
        self.become(FP_RUNNING)
        self.ran = True
        self.out.phase = FP_PHASE_TASK
        self.out.job = terms.number
        self.out.of_map = not is_apply
        self.out.waited_ns = 0
        self.elements.is_apply = is_apply
        self.elements.timing = self.timing if terms.flags & FP_JOB_INSIGHTS else None
        since = now_ns()
        if self.elements.timing is not None:
            self.timing.begin(0)
        if first < terms.range_units:
            self.out.number = first
            complete = self.run_range(first, count)
        else:
            slot = fp_feed_of(self.segment.at, terms.channel, first)
            first = self.out.number = slot.first + slot.skip
            if self.exchange is not None and is_apply:
                complete = self.run_objects([self.exchange.applies[unit]], 0, False)
            elif self.exchange is not None:
                complete = self.run_objects(
                    self.exchange.chunk(unit % FP_FEED_SLOTS), slot.skip, self.exchange.copied)
            else:
                complete = self.run_chunk(
                    <const unsigned char *>fp_at(self.segment.at, slot.offset), slot.bytes, slot.skip)
        done = self.out.number - first
        self.out.close()
        took = now_ns() - since - self.out.waited_ns
        if done and not is_apply:
            self.tasks += done
            self.task_ns = max(1, took // done)
            poke(self.line.tasks, peek(self.line.tasks) + done)
            poke(self.line.tasks_ns, peek(self.line.tasks_ns) + took)
        poke(self.line.waiting_ns, peek(self.line.waiting_ns) + self.out.waited_ns)
        PyErr_CheckSignals()
        return complete

    cdef bint run_range(self, uint64_t first, uint64_t count) except -1:
        """Tasks first … first + count - 1 of a range."""
        cdef Elements elements = self.elements
        elements.kind = OF_RANGE
        elements.value = self.terms.range_start + <int64_t>first * self.terms.range_step
        elements.step = self.terms.range_step
        elements.left = count
        return self.run_elements(elements)

    cdef bint run_chunk(self, const unsigned char *at, uint64_t size, uint64_t skip) except -1:
        """Tasks of a chunk that the parent encoded, but for the first `skip`, which are done."""
        cdef const unsigned char *end = at + size
        cdef const fp_record *record
        cdef const unsigned char *items
        cdef uint64_t closed, used, count, done
        while at < end:
            record = <const fp_record *>at
            closed = record.closed
            used = <uint32_t>closed
            items = at + sizeof(fp_record)
            at = items + fp_align(used, 8)
            count = (closed >> 32) & 0x7FFFFFFF
            done = min(skip, count)
            skip -= done
            if done < count and not self.run_record(fp_kind_of(record), count, done, items, items + used):
                return False
        return True

    cdef bint run_objects(self, list objects, uint64_t skip, bint copied) except -1:
        """The same in a thread, of a chunk that is a list."""
        cdef Elements elements = self.elements
        elements.kind = FP_KIND_OBJECT
        elements.objects = objects
        elements.index = skip
        elements.copied = copied
        elements.left = 0 if objects is None else len(objects) - skip
        return self.run_elements(elements)

    cdef bint run_record(self, int kind, uint64_t count, uint64_t done, const unsigned char *item,
                         const unsigned char *end) except -1:
        """Tasks whose elements are the items of one record, but for the first `done`."""
        cdef Elements elements = self.elements
        elements.kind = kind
        elements.item = item
        elements.end = end
        elements.left = count
        elements.skip(done)
        return self.run_elements(elements)

    cdef bint run_elements(self, Elements elements) except -1:
        """Call the function with each element, and commit each result. False if the job is to be abandoned."""
        self.vectorcall = PyVectorcall_Function(self.function)
        try:
            while not self.run_until_failure(elements):
                if elements.is_apply or not self.terms.flags & FP_JOB_KEEP_GOING or elements.failed_for_good:
                    return False
        finally:
            if not self.dismissed:
                self.timing.show()
            self.out.relax()
            elements.element = elements.objects = None  # keep nothing alive between runs
        return elements.left == 0

    cdef bint run_until_failure(self, Elements elements) except -1:
        """Call the function with each element, and commit each result, up to the first that fails, which is reported.
        False: there was one."""
        cdef object result
        cdef object description
        cdef sigset_t before
        try:
            if elements.is_apply:
                while elements.advance():
                    elements.commit(self.call_apply(elements))
                return True
            if self.terms.task_limit:
                while elements.advance():
                    elements.commit(self.call_task_timed(elements))
                return True
            while elements.advance():
                self.enter()
                if elements.kind < FP_KIND_PICKLE:
                    result = self.call_single(elements.element)
                else:
                    result = self.call(elements.element)
                self.come_out()
                elements.commit(result)
            return True
        except BaseException as error:
            if elements.foreign:
                self.host.end_fork(error)
            self.enter()  # an exception has methods of the user's
            hold_signals(&before)  # until it is reported: a handler's exception would be the second
            try:
                description = self.describe(error, phrases[elements.doing], self.out.number, elements.element)
                self.come_out()
                if elements.timing is not None and elements.doing != ENCODING:
                    elements.timing.end(elements.element, self.out.waited_ns, True)
            except BaseException:
                pthread_sigmask(SIG_SETMASK, &before, NULL)
                raise
            elements.failed_for_good = not elements.may_continue(error)
        result = elements.element = None
        try:
            if self.out.plan is not None:
                self.out.settle(None)  # what the task has left in its place is not a result
            self.out.put_error(description)
            elements.left -= 1
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)
        return False

    # ------------------------------------------------------------ calls

    cdef object call_task_timed(self, Elements elements):
        """Call with the current element, and let the parent see when its time is over."""
        cdef uint64_t until = self.begin_call(self.terms.task_limit)
        try:
            self.enter()
            if elements.kind < FP_KIND_PICKLE:
                return self.call_single(elements.element)
            return self.call(elements.element)
        finally:
            self.come_out()
            self.end_call(until)

    cdef object call_apply(self, Elements elements):
        """Call what an apply is to call, with its arguments. From here on it is told of by these."""
        cdef object function, args, keywords
        cdef uint64_t limit, until = 0
        function, args, keywords, limit = elements.element
        elements.element = args if not keywords else (*args, *keywords.items())
        claim_begin(self.segment.at, self.worker)
        function = self.resolve(function)
        if limit:
            until = self.begin_call(limit)
        try:
            self.enter()
            return function(*self.leading, *args, **keywords)
        finally:
            self.come_out()
            if limit:
                self.end_call(until)

    cdef object resolve(self, function):
        """The callable, of what the host gets for it."""
        try:
            self.enter()  # modules may be imported
            function = self.host.resolve(function)
            self.come_out()
            return function
        except StaleFunctionError:
            self.stale = True
            raise

    cdef object call_timed(self, method, uint64_t limit):
        """Call a method of the host that runs a function of the user's, the same way if it has a limit."""
        cdef uint64_t until = self.begin_call(limit) if limit else 0
        try:
            self.enter()
            return method()
        finally:
            self.come_out()
            if limit:
                self.end_call(until)

    cdef inline uint64_t begin_call(self, uint64_t limit) noexcept:
        cdef uint64_t until = now_ns() + limit
        fp_call_begin(self.line, until)
        return until

    cdef inline int end_call(self, uint64_t until) except -1:
        """The user's function has returned."""
        if not self.elements.foreign and fp_call_end(self.line, self.look.control, until, self.segment.at.fence_each):
            self.await_sentence(until)
        return 0

    cdef int await_sentence(self, uint64_t until) except -1:
        """The call took too long, and nothing comes of it: the parent is about to kill this process, or dismisses this
        thread. It returns if the parent finds that the call was over before."""
        cdef Sentence sentence
        sentence.control = self.look.control
        sentence.until = until
        raised = None
        while not is_pardoned(&sentence):
            try:
                self.segment.wait_as_worker(self.worker, is_pardoned, &sentence)
            except BaseException as error:  # of a signal handler
                raised = error
        if self.dismissed:
            self.heed()
        if raised is not None:
            raise raised
        return 0

    cdef inline object call_single(self, object element):
        """Call with one argument after the leading ones."""
        cdef PyObject **args = self.args + 1
        cdef size_t nargsf = (self.n_leading + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET
        args[self.n_leading] = <PyObject *>element
        if self.vectorcall is NULL:
            return PyObject_Vectorcall(self.function, args, nargsf, NULL)
        return self.vectorcall(self.function, args, nargsf, NULL)

    cdef object call(self, object element):
        """Call with an element that may have to be unpacked."""
        cdef int shape = shape_of(element, self.shapes)
        cdef Py_ssize_t n = self.n_leading
        cdef Py_ssize_t i
        cdef tuple given
        cdef dict keywords
        cdef object argument
        if shape == SINGLE:
            return self.call_single(element)
        if shape == KEYWORD:
            keywords = dict(element)
            return PyObject_VectorcallDict(self.function, self.args + 1, n | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                           <PyObject *>keywords)
        given = tuple(element)
        self.reserve(n + len(given))
        for i in range(len(given)):
            argument = given[i]
            self.args[1 + n + i] = <PyObject *>argument
        return PyObject_Vectorcall(self.function, self.args + 1,
                                   (n + len(given)) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)

    cdef int report(self, error, str what, task, element) except -1:
        """Send the description of an exception in the place of a result. No signal handler runs meanwhile."""
        cdef object description
        cdef sigset_t before
        self.enter()
        hold_signals(&before)
        try:
            description = self.describe(error, what, task, element)
            self.come_out()
            self.out.put_error(description)
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)
        return 0

    cdef object describe(self, error, str what, task, element):
        """The description of an exception, while signals are held."""
        hear_signals()
        return self.host.describe(error, what, task, element)
