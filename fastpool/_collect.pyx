"""The parent's loop: collect, check, decode, put in order, while workers go on."""

from cpython.list cimport PyList_GET_SIZE, PyList_New
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastpool._applies cimport Applies
from fastpool._codec cimport INCOMPLETE, PLACED, Decoder
from fastpool._feed cimport Feed
from fastpool._native cimport (
    FP_APPLY, FP_EXITED, FP_IDLE, FP_KIND_BLOCK, FP_KIND_ERROR, FP_KIND_FLOAT64, FP_KIND_FRAGMENT, FP_KIND_INT64,
    FP_KIND_PLACED, FP_MAP, FP_NEVER, FP_PHASE_EXIT, FP_PHASE_TASK, FP_WAIT_HANDLE, FP_WAIT_TIMEOUT, Segment,
    block_free, check, fp_control_of, fp_lane_of, fp_line_of, fp_reader, fp_segment, fp_view, lane_reset, load, now_ns,
    poke, reader_attach, reader_look, reader_take,
)
from fastpool._reserve cimport keep_reserve, use_reserve

from fastpool.errors import DamagedMemoryError, FastpoolError, SerializationError, unsendable

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(object list, Py_ssize_t index)
    void PyList_SET_ITEM(object list, Py_ssize_t index, PyObject *value)
    int PyList_SetSlice(object list, Py_ssize_t low, Py_ssize_t high, PyObject *items) except -1
    PyObject *PyLong_FromLongLong(long long value) except NULL
    PyObject *PyFloat_FromDouble(double value) except NULL
    void PyObject_GC_Track(PyObject *value)
    void PyObject_GC_UnTrack(PyObject *value)
    void Py_DECREF(PyObject *value)
    void Py_SET_SIZE(object value, Py_ssize_t size)

cdef struct Watch:  # what the parent's sleep looks at
    const fp_segment *segment
    uint32_t *news     # of each line, as last seen
    uint64_t *wake_at  # of each lane, as last set
    int called         # another thread wants the one that sleeps

cdef int has_news(void *context) noexcept nogil:
    cdef Watch *watch = <Watch *>context
    cdef uint32_t worker
    if watch.called:
        return 1
    for worker in range(watch.segment.lanes):
        if load(fp_lane_of(watch.segment, worker).committed) >= watch.wake_at[worker]:
            return 1
        if load(fp_line_of(watch.segment, worker).news) != watch.news[worker]:
            return 1
        if load(fp_line_of(watch.segment, worker).state) == FP_EXITED:
            return 1  # its lane has not been handed over yet
    return 0


cdef object undecodable(str what, task, uint32_t worker, error):
    detail = f"unpickling what worker {worker} sent failed with {type(error).__qualname__}: {error}"
    return unsendable(error, what, task, None, detail)


cdef enum:  # what becomes of results
    COLLECT_ALL = 0        # one list
    COLLECT_ORDERED = 1    # taken as soon as those before them are there
    COLLECT_UNORDERED = 2  # taken as soon as they are there
    COLLECT_NOTHING = 3    # the job was abandoned

cdef enum:
    SILENCE_NS = 500_000_000  # longer than this the parent does not sleep: damage may have silenced the bells
    VIEWS_A_PASS = 64  # of one lane, before the caller's thread looks at signals and other lanes


cdef class Collector:
    """Reads every lane of a segment, decodes what was committed, and places results by task number.

    A list of all results is made with empty places, and is invisible to the garbage collector (and so to everybody)
    until it is whole. Of results that are handed out meanwhile the places are those from the first task that has none,
    or is not handed out, to the last that has one.

    Parameters
    ----------
    segment : Segment
    loads : callable
        For results that have no record of their own kind.
    """
    cdef Segment segment
    cdef object loads
    cdef fp_reader *readers
    cdef Watch watch
    cdef list decoders
    cdef object results        # the places, a list; None: nothing is expected
    cdef readonly uint64_t first      # task of the first place
    cdef uint64_t handed_out          # tasks that there are: results of others are damage
    cdef uint64_t reached             # tasks up to here, without it, may have results
    cdef int way               # COLLECT_*
    cdef list arrived          # results in the order in which they came, if that is wanted
    cdef readonly Feed feed
    cdef object revive         # makes the exception of a failed task, to stand for its result; None: it ends the map
    cdef uint8_t job           # low bits of the current job's number
    cdef readonly uint64_t collected  # tasks of the current job
    cdef readonly uint64_t placed     # of these, how many lie where the plan wants them
    cdef readonly object sample       # (task, result) of the first that is neither placed nor a number, or None
    cdef readonly list failures       # (worker, phase, task or None, payload) of exceptions, in order of arrival
    cdef uint64_t patience            # end of the silence that the parent listens to; 0: none has begun
    cdef readonly object rested_at    # after a silence: units claimed by workers that all rested before; else None
    cdef readonly list exits          # results of exit functions, in order of arrival
    cdef readonly bint is_closing     # failures raise nothing any more
    cdef Applies applies              # or None
    cdef object applied               # deque, see :meth:`serve`
    cdef readonly object applies_rested_at  # the same as `rested_at`, of applies

    def __cinit__(self, Segment segment, loads):
        cdef int i
        self.segment = segment
        self.readers = <fp_reader *>calloc(segment.lanes, sizeof(fp_reader))
        self.watch.segment = segment.at
        self.watch.news = <uint32_t *>calloc(segment.lanes, sizeof(uint32_t))
        self.watch.wake_at = <uint64_t *>calloc(segment.lanes, sizeof(uint64_t))
        if self.readers is NULL or self.watch.news is NULL or self.watch.wake_at is NULL:
            raise MemoryError("fastpool: no memory to collect results with")
        self.loads = loads
        self.decoders = [self.decoder_of(i) for i in range(segment.lanes)]
        for i in range(segment.lanes):
            reader_attach(&self.readers[i], segment.at, i)
        self.failures = []
        self.exits = []

    def __dealloc__(self):
        free(self.readers)
        free(self.watch.news)
        free(self.watch.wake_at)

    cdef Decoder decoder_of(self, uint32_t worker):
        cdef Decoder decoder = Decoder(self.segment, worker, False)
        decoder.loads = self.loads
        if self.segment.exchange is not None:
            decoder.outbox = self.segment.exchange.outbox(worker)
        return decoder

    # ------------------------------------------------------------ the list of results

    def begin(self, uint64_t number, size, Feed feed, revive=None, bint lazy=False, bint ordered=True) -> None:
        """Collect for job `number`, of which `size` tasks are handed out, more with :meth:`expect`.

        `lazy`: what is there is asked for while the job runs, with :meth:`hand_out`.
        `ordered`: in the order of the tasks, else in that in which results come.
        `revive`: ``revive(worker, task, payload)`` makes the exception of a failed task, which takes the place of its
        result; without it, failed tasks are in ``failures``.
        """
        self.job = number & 0xFF
        self.feed = feed
        self.revive = revive
        self.collected = self.placed = self.first = self.reached = self.patience = 0
        self.handed_out = size
        self.failures.clear()
        self.sample = self.rested_at = None
        self.arrived = []
        keep_reserve()
        self.way = COLLECT_ALL if ordered and not lazy else COLLECT_ORDERED if ordered else COLLECT_UNORDERED
        try:
            self.results = PyList_New(size if self.way == COLLECT_ALL else 0)
        except MemoryError:
            raise MemoryError(f"fastpool: no memory for a list of {size} results") from None
        if self.way == COLLECT_ALL:
            PyObject_GC_UnTrack(<PyObject *>self.results)

    def serve(self, Applies applies, applied) -> None:
        """From now on collect the results of these, too, and append to a deque what comes.

        An entry: what the apply was published with, worker, its value, the description of its exception or None, an
        exception of this side's or None.
        """
        self.applies, self.applied = applies, applied

    def expect(self, uint64_t tasks) -> None:
        """So many tasks are handed out now."""
        self.handed_out = max(self.handed_out, tasks)
        if self.way == COLLECT_ALL:
            self.make_places(tasks)

    cdef int reach(self, uint64_t tasks) except -1:
        """Results of tasks up to this one, without it, are about to be placed."""
        self.reached = max(self.reached, tasks)
        return self.make_places(tasks)

    cdef int make_places(self, uint64_t tasks) except -1:
        """Have places for tasks up to this one, without it."""
        cdef uint64_t end = self.first + <uint64_t>PyList_GET_SIZE(self.results)
        if tasks > end:
            self.results.extend([INCOMPLETE] * (tasks - end))
        return 0

    def hand_out(self) -> list:
        """What can be handed out now of a lazy job's results."""
        cdef list taken
        cdef Py_ssize_t ready = 0, size = PyList_GET_SIZE(self.results)
        while ready < size and PyList_GET_ITEM(self.results, ready) is not <PyObject *>INCOMPLETE:
            ready += 1
        taken, self.arrived = self.arrived, []
        if self.way == COLLECT_ORDERED:
            taken = self.results[:ready]
        if ready:
            PyList_SetSlice(self.results, 0, ready, NULL)
            self.first += ready
        return taken

    def finish(self, uint64_t tasks) -> list:
        """The job is over. Returns the results of tasks 0 … tasks - 1, as far as they were not taken."""
        cdef object results = self.results
        if self.way == COLLECT_ALL:
            if <uint64_t>PyList_GET_SIZE(results) > tasks:
                PyList_SetSlice(results, tasks, PyList_GET_SIZE(results), NULL)
            PyObject_GC_Track(<PyObject *>results)
        else:
            results = self.hand_out()
        self.segment.finished = self.segment.number
        self.abandon()
        return results

    def abandon(self) -> None:
        """Drop the results collected so far, and expect none."""
        self.cut_off_untouched()
        self.results = self.sample = self.arrived = None
        self.feed = self.revive = None
        self.end_exchange()

    cdef void cut_off_untouched(self):
        """Places that nothing has reached are empty: not to look at each makes the end of a long list short."""
        if self.results is None or self.reached >= <uint64_t>PyList_GET_SIZE(self.results):
            return
        if self.way == COLLECT_ALL and PyList_GET_ITEM(self.results, self.reached) is NULL:
            Py_SET_SIZE(self.results, self.reached)

    cdef void end_exchange(self) noexcept:
        if self.segment.exchange is not None:
            self.segment.exchange.end_job()

    def drop(self) -> None:
        """The job was given up. From now on pass over everything but what exit functions return and raise."""
        self.abandon()
        self.way = COLLECT_NOTHING

    def close(self) -> None:
        """The same, because of the first failure, if there is one, and the pool ends."""
        self.drop()
        self.is_closing = True
        self.failures[:] = [failure for failure in self.failures[1:] if failure[1] == FP_PHASE_EXIT]

    def missing(self, uint64_t first, uint64_t count) -> list:
        """Of tasks first … first + count - 1, those without a result, as ranges in order."""
        cdef uint64_t task, since = first
        cdef uint64_t end = first + count
        cdef PyObject *there
        cdef list found = []
        if self.results is None:  # the job is over: all have been collected
            return found
        cdef uint64_t known = self.first + <uint64_t>PyList_GET_SIZE(self.results)
        since = first = max(first, self.first)  # those before it have been taken
        end = min(end, self.handed_out)
        for task in range(first, min(end, known)):
            there = PyList_GET_ITEM(self.results, task - self.first)
            if there is not NULL and there is not <PyObject *>INCOMPLETE:
                if since < task:
                    found.append(range(since, task))
                since = task + 1
        if since < end:
            found.append(range(since, end))
        return found

    def fail(self, uint64_t task, error) -> None:
        """This exception takes the place of a task's result that will not come."""
        self.take_failure(task, error)

    cdef int place(self, uint64_t task, PyObject *value) except -1:
        """Put a result (its reference is taken over) where it belongs."""
        cdef PyObject *there = NULL
        if task >= self.first:
            there = PyList_GET_ITEM(self.results, task - self.first)
        if task < self.first or (there is not NULL and there is not <PyObject *>INCOMPLETE):
            Py_DECREF(value)
            raise DamagedMemoryError(f"a second result of task {task}")
        if self.way == COLLECT_UNORDERED:
            self.arrived.append(<object>value)
            Py_DECREF(value)
            Py_INCREF(PLACED)
            value = <PyObject *>PLACED  # is no longer incomplete
        elif self.way == COLLECT_ALL:
            if <object>value is PLACED:
                self.placed += 1
            elif self.sample is None:
                self.sample = (task, <object>value)
        PyList_SET_ITEM(self.results, task - self.first, value)
        if there is not NULL:
            Py_DECREF(there)
        return 0

    cdef int place_failure(self, uint64_t task, error) except -1:
        cdef object sample = self.sample
        Py_INCREF(error)
        self.place(task, <PyObject *>error)
        self.sample = sample  # it does not show what results are like
        return 0

    # ------------------------------------------------------------ collecting

    def collect(self) -> bool:
        """Take what is committed in every lane. False: some was left for the next call, because there is much."""
        cdef int worker
        cdef bint all_taken = True
        for worker in range(self.segment.lanes):
            self.watch.news[worker] = load(fp_line_of(self.segment.at, worker).news)
            if not self.collect_lane(worker):
                all_taken = False
        self.segment.check_words()  # after that: with a result comes what its task did to them
        return all_taken

    def catch_up(self) -> None:
        """Take, in every lane, everything that is committed now; how fast workers go on does not matter."""
        cdef int worker
        cdef uint64_t committed
        for worker in range(self.segment.lanes):
            committed = load(fp_lane_of(self.segment.at, worker).committed)
            while self.readers[worker].taken < committed and not self.collect_lane(worker):
                pass

    def drain(self, int worker) -> None:
        """Take everything from the lane of a worker that writes no more."""
        while not self.collect_lane(worker):
            pass

    cdef bint collect_lane(self, uint32_t worker) except -1:
        """Take what is committed in one lane, up to VIEWS_A_PASS runs. Returns whether that was all."""
        cdef fp_reader *reader = &self.readers[worker]
        cdef fp_view view
        cdef int passes = 0
        cdef int found
        while passes < VIEWS_A_PASS:
            found = check(reader_look(reader, &view), f"the results of worker {worker}")
            if found == 0:
                break
            self.take(worker, reader, &view)
            passes += 1
        if passes and load(fp_line_of(self.segment.at, worker).state) != FP_IDLE:
            self.segment.ring_worker(worker)  # it may wait for room
        return passes < VIEWS_A_PASS

    cdef int take(self, uint32_t worker, fp_reader *reader, fp_view *view) except -1:
        """Decode the items of a view and release them."""
        cdef const unsigned char *at = view.at
        cdef uint32_t count = view.count
        if view.phase == FP_PHASE_TASK and self.segment.applies and view.job == (self.segment.applies & 0xFF):
            self.take_apply(worker, view, &at)
            count = 1
        elif self.way == COLLECT_NOTHING and view.phase != FP_PHASE_EXIT:
            self.discard(worker, view, &at)
        elif view.phase != FP_PHASE_TASK or view.kind == FP_KIND_ERROR or view.kind == FP_KIND_FRAGMENT \
                or view.kind == FP_KIND_BLOCK:
            self.take_one(worker, view, &at)
            count = 1
        else:
            self.demand_places(view, count)
            self.take_run(worker, view, &at)
            self.collected += count
            if self.feed is not None:
                self.feed.collected(view.first, count)
        check(reader_take(reader, count, <uint32_t>(at - view.at)), f"the results of worker {worker}")
        return 0

    cdef int discard(self, uint32_t worker, fp_view *view, const unsigned char **at) except -1:
        """All of a view, whose items nobody wants. They are made all the same, to give back the memory they lie in."""
        cdef Decoder decoder = <Decoder>self.decoders[worker]
        for _ in range(view.count):
            try:
                if view.kind == FP_KIND_FRAGMENT:
                    decoder.pass_over(view.kind, at, view.end)
                else:
                    decoder.item(view.kind, at, view.end)
            except FastpoolError:
                raise
            except Exception:  # of an object's own making, when `at` has moved on
                pass
            if view.kind == FP_KIND_BLOCK:
                check(block_free(self.segment.at, decoder.block_at), f"a large block of worker {worker}")
        return 0

    cdef int take_apply(self, uint32_t worker, fp_view *view, const unsigned char **at) except -1:
        """The result of an apply, or its exception, or a piece of that."""
        cdef Decoder decoder = <Decoder>self.decoders[worker]
        cdef tuple entry = self.applies.entry_of(view.first)
        cdef object value = None, payload = None, failure = None
        if view.kind == FP_KIND_PLACED:
            raise DamagedMemoryError("a result of an apply in the place of a map's")
        try:
            value = self.decode(decoder, worker, view.kind, at, view.end, "result", view.first)
        except DamagedMemoryError:
            raise
        except Exception as error:  # of an object's own making, when `at` has moved on
            failure = error
        if value is INCOMPLETE:
            return 0
        if self.unwrap(decoder, worker, view.kind) == FP_KIND_ERROR:
            value, payload = None, value
        self.applied.append((entry[2], worker, value, payload, failure))
        self.applies.forget(view.first, entry)
        return 0

    cdef int demand_places(self, const fp_view *view, uint64_t count) except -1:
        """Results of these tasks must be waited for."""
        if view.job != self.job or self.results is None:
            raise DamagedMemoryError("a result of a job that is over")
        if view.first > self.handed_out or count > self.handed_out - view.first:
            raise DamagedMemoryError("a result of a task that was not handed out")
        return self.reach(view.first + count)

    cdef int take_run(self, uint32_t worker, fp_view *view, const unsigned char **at) except -1:
        """All of a view: results of consecutive tasks."""
        cdef uint64_t task = view.first
        cdef uint64_t end = task + view.count
        cdef const unsigned char *here = at[0]
        cdef Decoder decoder = <Decoder>self.decoders[worker]
        cdef object value, failure
        while task < end:
            try:
                try:
                    if view.kind == FP_KIND_INT64 or view.kind == FP_KIND_FLOAT64:
                        self.take_numbers(task, end, view.kind == FP_KIND_INT64, here)
                        here += 8 * <uint64_t>view.count  # whole items: fp_reader_look has checked
                        task = end
                    while task < end:
                        value = decoder.item(view.kind, &here, view.end)
                        Py_INCREF(value)
                        self.place(task, <PyObject *>value)
                        task += 1
                finally:
                    if task < end:
                        use_reserve()
            except FastpoolError:
                raise
            except Exception as error:  # of an object's own making, when `here` has moved on
                failure = undecodable("result", task, worker, error)
                failure.__cause__ = error
                if self.revive is None or isinstance(failure, MemoryError):
                    raise failure
                self.place_failure(task, failure)
                task += 1
        at[0] = here
        return 0

    cdef int take_numbers(self, uint64_t task, uint64_t end, bint integer, const unsigned char *at) except -1:
        cdef object results = self.results
        cdef uint64_t first = self.first
        cdef PyObject *value
        while task < end:
            value = PyLong_FromLongLong((<const int64_t *>at)[0]) if integer \
                else PyFloat_FromDouble((<const double *>at)[0])
            if task >= first and PyList_GET_ITEM(results, task - first) is NULL:  # COLLECT_ALL
                PyList_SET_ITEM(results, task - first, value)
            else:
                self.place(task, value)
            at += 8
            task += 1
        return 0

    cdef int take_one(self, uint32_t worker, fp_view *view, const unsigned char **at) except -1:
        """One item that is an exception, an exit result, large, or a piece of something larger."""
        cdef Decoder decoder = <Decoder>self.decoders[worker]
        cdef uint8_t phase = view.phase
        cdef int kind = view.kind
        cdef str what = "result" if phase == FP_PHASE_TASK else "exit result"
        cdef object value
        try:
            value = self.decode(decoder, worker, kind, at, view.end, what, view.first)
        except SerializationError as error:
            if phase != FP_PHASE_TASK or self.revive is None:
                raise
            self.unwrap(decoder, worker, kind)
            self.demand_places(view, 1)
            return self.take_failure(view.first, error)
        if value is INCOMPLETE:
            return 0
        kind = self.unwrap(decoder, worker, kind)
        if kind == FP_KIND_ERROR:
            self.take_error(worker, view, value)
        elif phase == FP_PHASE_EXIT:
            self.exits.append(value)
        elif phase == FP_PHASE_TASK:
            self.demand_places(view, 1)
            Py_INCREF(value)
            self.place(view.first, <PyObject *>value)
            self.collected += 1
            if self.feed is not None:
                self.feed.collected(view.first, 1)
        else:
            raise DamagedMemoryError("a result in a phase that has none")
        return 0

    cdef int take_error(self, uint32_t worker, fp_view *view, payload) except -1:
        """The description of an exception."""
        cdef object error
        if view.phase == FP_PHASE_TASK and self.revive is not None:
            self.demand_places(view, 1)
            error = self.revive(worker, view.first, payload)
            if not isinstance(error, DamagedMemoryError):
                return self.take_failure(view.first, error)
        self.failures.append((worker, view.phase, view.first if view.phase == FP_PHASE_TASK else None, payload))
        return 0

    cdef int take_failure(self, uint64_t task, error) except -1:
        self.reach(task + 1)
        self.place_failure(task, error)
        self.collected += 1
        if self.feed is not None:
            self.feed.collected(task, 1)
        return 0

    cdef int unwrap(self, Decoder decoder, uint32_t worker, int kind) except -1:
        """An item is decoded: give its block back, if it lay in one. Returns the kind of what was in it."""
        if kind == FP_KIND_BLOCK:
            check(block_free(self.segment.at, decoder.block_at), f"a large block of worker {worker}")
        return decoder.inner_kind if kind == FP_KIND_BLOCK or kind == FP_KIND_FRAGMENT else kind

    cdef object decode(self, Decoder decoder, uint32_t worker, int kind, const unsigned char **at,
                       const unsigned char *end, str what, uint64_t task):
        try:
            if kind == FP_KIND_FRAGMENT:
                return decoder.fragment(at, end)
            return decoder.item(kind, at, end)
        except FastpoolError:
            raise
        except Exception as error:
            raise undecodable(what, task if what == "result" else None, worker, error) from error

    # ------------------------------------------------------------ lanes

    def reset(self, int worker) -> None:
        """Empty the lane and the line of a worker that is gone (or writes no more), for its successor."""
        lane_reset(&self.readers[worker])
        self.segment.empty_line(worker)
        if self.segment.exchange is not None:
            self.segment.exchange.replace_outbox(worker)
        self.decoders[worker] = self.decoder_of(worker)
        self.watch.news[worker] = 0

    # ------------------------------------------------------------ waiting

    def call(self) -> None:
        """From any thread: end the wait of the one that is in :meth:`wait`, or the next one, at once."""
        self.watch.called = True
        self.segment.ring_parent()

    def heed(self) -> None:
        """Before a look at what :meth:`call` was for."""
        self.watch.called = False

    def wait(self, uint64_t grain, deadline_ns=None) -> bool:
        """Sleep until some worker has `grain` more results, or brings news, or a worker's process ends.

        Returns whether a process ended (``segment.ended()`` says whose). Returns also after SILENCE_NS, in this wait
        and those before it that ended at their deadlines, having rung all workers: nothing that damage may have
        silenced is waited for for ever.
        """
        cdef uint64_t deadline = FP_NEVER if deadline_ns is None else deadline_ns
        cdef int worker
        cdef int why
        self.rested_at = None
        self.applies_rested_at = None
        if self.patience == 0:
            self.patience = now_ns() + SILENCE_NS
        for worker in range(self.segment.lanes):
            self.watch.wake_at[worker] = self.readers[worker].taken + grain
            poke(fp_control_of(self.segment.at, worker).wake_at, self.watch.wake_at[worker])
        try:
            why = self.segment.wait_as_parent(has_news, &self.watch, min(deadline, self.patience))
        finally:
            for worker in range(self.segment.lanes):
                poke(fp_control_of(self.segment.at, worker).wake_at, FP_NEVER)
        if why == FP_WAIT_TIMEOUT and deadline < self.patience:
            return False
        self.patience = 0
        if why == FP_WAIT_TIMEOUT:
            self.rested_at = self.segment.all_claimed_at_rest(FP_MAP)
            self.applies_rested_at = self.segment.all_claimed_at_rest(FP_APPLY) if self.segment.applies else None
            self.segment.ring_everybody()
        return why == FP_WAIT_HANDLE
