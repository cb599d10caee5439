"""The only extension that links the C core (``csrc/``), and the one place where its error codes become exceptions."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport _exit, close as close_fd, getpid

import os

from fastpool._references cimport Exchange
from fastpool._signals cimport Wakeup, hold_signals, release_signals
from fastpool.errors import DamagedMemoryError


cdef extern from "platform.h" nogil:
    int fp_event_open(fp_event *event)
    void fp_event_close(fp_event *event)
    void fp_event_ring(const fp_event *event)
    int fp_watch_prepare(fp_watch *watch)
    int fp_memory_create(uint64_t bytes)
    int fp_watch_parent(fp_watch *watch, int pid)
    void fp_watch_child(fp_watch *watch)
    int fp_watch_inherit(int life_fd)
    int fp_watch_kill(const fp_watch *watch, int pid, int signum)
    void fp_watch_close(fp_watch *watch)
    int fp_owner_open(fp_owner *owner)
    void fp_owner_close(fp_owner *owner)
    int fp_owner_follow(fp_owner *owner)
    int fp_owner_lend(const fp_owner *owner)
    int fp_owner_arm(int fd, int pid)
    int fp_barrier_register()
    int fp_poll(const int *fds, int *ready, int n, int64_t timeout_ns)
    uint64_t fp_now_ns()
    int fp_fork()
    void fp_memory_expect(void *address, uint64_t bytes)
    int fp_read_process(int pid, uint64_t address, void *to, uint64_t bytes, int forked)
    int fp_write_process(int pid, uint64_t address, const void *data, uint64_t bytes)
    int fp_memory_is_forked(const void *address)
    void fp_platform_refuse(unsigned mask)

cdef extern from "bell.h" nogil:
    int fp_bell_try(fp_spin *spin, fp_predicate predicate, void *context, uint64_t deadline_ns)
    int fp_bell_sleep(fp_bell *bell, const fp_event *event, int barrier_all, fp_predicate predicate, void *context,
                      const int *fds, int *ready, int n, uint64_t deadline_ns)
    int fp_bell_ring(fp_bell *bell, const fp_event *event)

cdef extern from "claim.h" nogil:
    uint64_t fp_gate_close(fp_segment *segment, int channel)
    void fp_gate_open(fp_segment *segment, int channel)
    int fp_claim_join(fp_segment *segment, uint32_t worker, fp_terms *terms)
    int fp_claim_next(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t budget, uint64_t task_ns,
                      uint64_t *first, uint64_t *count)
    int fp_gate_shows(const fp_segment *segment, int channel, uint64_t number)
    int fp_line_holds(const fp_line *line, int channel, uint64_t number, uint64_t *first, uint64_t *count)
    int fp_claim_own(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t unit)
    void fp_claim_begin(fp_segment *segment, uint32_t worker)
    void fp_claim_drop(fp_segment *segment, uint32_t worker)

cdef extern from "lane.h" nogil:
    void fp_writer_attach(fp_writer *writer, const fp_segment *segment, uint32_t worker)
    int fp_writer_open(fp_writer *writer, uint16_t kind, uint8_t phase, uint64_t job, uint64_t first,
                       uint32_t need, uint32_t want)
    void fp_writer_close(fp_writer *writer)
    int fp_writer_has_room(const fp_writer *writer, uint32_t need)
    uint32_t fp_writer_largest(const fp_writer *writer)
    int fp_writer_half_full(const fp_writer *writer)
    void fp_reader_attach(fp_reader *reader, const fp_segment *segment, uint32_t worker)
    int fp_reader_look(fp_reader *reader, fp_view *view)
    int fp_reader_take(fp_reader *reader, uint32_t count, uint32_t bytes)
    void fp_lane_reset(fp_reader *reader)

cdef extern from "board.h" nogil:
    const char *fp_state_name(uint32_t state)
    int fp_state_move(fp_line *line, uint32_t to)
    void fp_line_reset(fp_line *line)
    int fp_call_condemn(fp_line *line, fp_control *control, uint64_t until, int fence_each)
    void fp_line_show_longest(fp_line *line, const fp_longest *table)
    int fp_line_longest(const fp_line *line, fp_longest *table)

cdef extern from "arena.h" nogil:
    const uint64_t FP_WARM_BYTES
    const uint64_t FP_RESERVE
    int fp_arena_create(fp_arena *arena, uint32_t lanes, uint64_t ring_bytes, uint64_t cap)
    int fp_arena_enter(const fp_arena *arena)
    int fp_arena_attach(fp_arena *arena, int fd, uint64_t bytes)
    void fp_arena_destroy(fp_arena *arena)
    int fp_arena_shed(fp_arena *arena, const uint64_t *held, uint64_t n)
    int fp_heap_adopt(fp_segment *segment, uint32_t owner)
    int fp_heap_alloc(fp_segment *segment, uint32_t owner, uint64_t bytes, uint64_t *offset)
    uint64_t fp_heap_trim(fp_segment *segment, uint32_t owner, uint64_t keep)
    int fp_heap_sweep(fp_segment *segment, uint32_t owner, const uint64_t *held, uint64_t n)
    int fp_block_check(const fp_segment *segment, uint32_t owner, uint64_t offset, uint64_t bytes)
    int fp_block_free(fp_segment *segment, uint64_t offset)
    ctypedef struct fp_heap_stats:
        uint64_t blocks_used
        uint64_t blocks_free
        uint64_t bytes_used
        uint64_t bytes_free
        uint64_t top
        uint64_t charged
    int fp_heap_measure(const fp_segment *segment, uint32_t owner, fp_heap_stats *stats)

cdef extern from *:
    """
    #ifdef FP_POSIX
    #define FASTPOOL_IS_POSIX 1
    #else
    #define FASTPOOL_IS_POSIX 0
    #endif
    #ifdef FP_TALLY
    #define FASTPOOL_IS_TALLIED 1
    #else
    #define FASTPOOL_IS_TALLIED 0
    #endif
    """
    bint FASTPOOL_IS_POSIX
    bint FASTPOOL_IS_TALLIED

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

# ---------------------------------------------------------------- the error funnel

cdef int check(int code, str what) except -1:
    """Return a C result that is no error; raise what an error means otherwise."""
    if code >= 0:
        return code
    if code == FP_DAMAGED:
        raise DamagedMemoryError(what)
    if code == FP_MISUSE or code == FP_FULL:
        raise SystemError(f"fastpool: {what}: misuse of the C core ({code})")
    raise OSError(-code, f"{what}: {os.strerror(-code)}")


# ---------------------------------------------------------------- what other modules call of the C core

cdef uint64_t now_ns() noexcept nogil:
    return fp_now_ns()

cdef void line_show_longest(fp_line *line, const fp_longest *table) noexcept nogil:
    fp_line_show_longest(line, table)

cdef int move_state(fp_line *line, uint32_t to) noexcept nogil:
    return fp_state_move(line, to)

cdef int claim_join(fp_segment *segment, uint32_t worker, fp_terms *terms) noexcept nogil:
    return fp_claim_join(segment, worker, terms)

cdef int claim_next(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t budget, uint64_t task_ns,
                    uint64_t *first, uint64_t *count) noexcept nogil:
    return fp_claim_next(segment, worker, terms, budget, task_ns, first, count)

cdef int claim_own(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t unit) noexcept nogil:
    return fp_claim_own(segment, worker, terms, unit)

cdef void claim_begin(fp_segment *segment, uint32_t worker) noexcept nogil:
    fp_claim_begin(segment, worker)

cdef void claim_drop(fp_segment *segment, uint32_t worker) noexcept nogil:
    fp_claim_drop(segment, worker)

cdef void writer_attach(fp_writer *writer, const fp_segment *segment, uint32_t worker) noexcept nogil:
    fp_writer_attach(writer, segment, worker)

cdef int writer_open(fp_writer *writer, uint16_t kind, uint8_t phase, uint64_t job, uint64_t first,
                     uint32_t need, uint32_t want) noexcept nogil:
    return fp_writer_open(writer, kind, phase, job, first, need, want)

cdef void writer_close(fp_writer *writer) noexcept nogil:
    fp_writer_close(writer)

cdef int writer_has_room(const fp_writer *writer, uint32_t need) noexcept nogil:
    return fp_writer_has_room(writer, need)

cdef uint32_t writer_largest(const fp_writer *writer) noexcept nogil:
    return fp_writer_largest(writer)

cdef int writer_half_full(const fp_writer *writer) noexcept nogil:
    return fp_writer_half_full(writer)

cdef void reader_attach(fp_reader *reader, const fp_segment *segment, uint32_t worker) noexcept nogil:
    fp_reader_attach(reader, segment, worker)

cdef int reader_look(fp_reader *reader, fp_view *view) noexcept nogil:
    return fp_reader_look(reader, view)

cdef int reader_take(fp_reader *reader, uint32_t count, uint32_t bytes) noexcept nogil:
    return fp_reader_take(reader, count, bytes)

cdef void lane_reset(fp_reader *reader) noexcept nogil:
    fp_lane_reset(reader)

cdef int read_process(int pid, uint64_t address, void *to, uint64_t bytes, bint forked) noexcept nogil:
    return fp_read_process(pid, address, to, bytes, forked)

cdef int write_process(int pid, uint64_t address, const void *data, uint64_t bytes) noexcept nogil:
    return fp_write_process(pid, address, data, bytes)

cdef bint memory_is_forked(const void *address) noexcept nogil:
    return fp_memory_is_forked(address)

cdef void memory_expect(void *address, uint64_t bytes) noexcept nogil:
    fp_memory_expect(address, bytes)

cdef int heap_adopt(fp_segment *segment, uint32_t owner) noexcept nogil:
    return fp_heap_adopt(segment, owner)

cdef int heap_alloc(fp_segment *segment, uint32_t owner, uint64_t bytes, uint64_t *offset) noexcept nogil:
    return fp_heap_alloc(segment, owner, bytes, offset)

cdef int heap_sweep(fp_segment *segment, uint32_t owner, const uint64_t *held, uint64_t n) noexcept nogil:
    return fp_heap_sweep(segment, owner, held, n)

cdef bint copy_to_block(fp_segment *segment, uint32_t owner, const void *data, uint64_t size,
                        uint64_t *offset) except -1:
    """Copy bytes into a new block of a heap. False: there is no room."""
    cdef int code = fp_heap_alloc(segment, owner, size, offset)
    if code == FP_FULL:
        return False
    check(code, f"large blocks of heap {owner}")
    memcpy(fp_at(segment, offset[0]), data, size)
    return True

cdef int block_check(const fp_segment *segment, uint32_t owner, uint64_t offset, uint64_t bytes) noexcept nogil:
    return fp_block_check(segment, owner, offset, bytes)

cdef int block_free(fp_segment *segment, uint64_t offset) noexcept nogil:
    return fp_block_free(segment, offset)


def refuse(unsigned int mask) -> None:
    """Make the platform layer behave as if the kernel refused some of Linux's own calls (for tests)."""
    fp_platform_refuse(mask)


def is_posix() -> bool:
    """Was this built to use POSIX system calls only (FASTPOOL_POSIX=1)?"""
    return FASTPOOL_IS_POSIX


tallies: list | None = [] if FASTPOOL_IS_TALLIED else None  # of segments that were closed (FASTPOOL_DEBUG=1)


def create_memory(uint64_t size) -> int:
    """A descriptor of `size` bytes of memory without a name, to be mapped by whoever is given it."""
    return check(fp_memory_create(size), f"cannot make {size} bytes of shared memory")


# ---------------------------------------------------------------- shared memory

cdef Space *spaces = NULL  # all that are mapped in this process
cdef int n_spaces = 0

cdef int add_space(uint64_t ident, void *base, uint64_t size, bint public) except -1:
    global spaces, n_spaces
    cdef Space *larger = <Space *>realloc(spaces, (n_spaces + 1) * sizeof(Space))
    if larger is NULL:
        raise MemoryError("fastpool: no memory to note shared memory")
    spaces = larger
    spaces[n_spaces] = Space(ident, <unsigned char *>base, size, public)
    n_spaces += 1
    return 0

cdef void remove_space(uint64_t ident) noexcept:
    global n_spaces
    cdef int i
    for i in range(n_spaces):
        if spaces[i].ident == ident:
            n_spaces -= 1
            spaces[i] = spaces[n_spaces]
            return

cdef int n_public = 0  # blocks of public arenas that are held here

cdef int public_blocks() noexcept nogil:
    return n_public

cdef const Space *space_of(const void *address, uint64_t bytes) noexcept nogil:
    """The space in which these bytes lie, or NULL."""
    cdef const unsigned char *at = <const unsigned char *>address
    cdef int i
    for i in range(n_spaces):
        if spaces[i].base <= at and <uint64_t>(at - spaces[i].base) < spaces[i].bytes:
            return &spaces[i] if bytes <= spaces[i].bytes - <uint64_t>(at - spaces[i].base) else NULL
    return NULL

cdef const Space *demand_space(uint64_t ident) except NULL:
    """The space of that name."""
    cdef int i
    for i in range(n_spaces):
        if spaces[i].ident == ident:
            return &spaces[i]
    raise DamagedMemoryError("something names shared memory that this process does not have")


Place = tuple[int, int, int, int, bool]  # see Arena.place


cdef enum:
    TRIM_BYTES = 1 << 20  # of a public array, when it goes


cdef class Arena:
    """Shared memory with heaps of blocks. It stays mapped as long as this object, or a block of it, is in use.

    Parameters
    ----------
    lanes : int
        Number of workers it has room for.
    ring_bytes : int
        Size of each worker's ring of results, a power of two.
    cap : int
        Bytes that blocks may take together.
    public : bool, keyword-only
        Its blocks are arrays that workers may write to in place.
    """

    def __cinit__(self, int lanes, *_, **__):
        self.arena.fd = -1
        self.lanes = lanes
        self.held = set()

    def __init__(self, int lanes, uint64_t ring_bytes, uint64_t cap, *, bint public=False):
        self.owner_pid = getpid()
        self.ident = int.from_bytes(os.urandom(8), "little") | 1
        self.public = public
        check(fp_arena_create(&self.arena, lanes, ring_bytes, cap), "cannot reserve shared memory")
        self.at = self.arena.segment
        check(fp_heap_adopt(self.at, lanes), "the owner's large blocks")
        add_space(self.ident, self.at, self.arena.bytes, public)

    @property
    def place(self) -> tuple[int, int, int, int, bool]:
        """What another process must know to map it, besides its descriptor, ``fd``."""
        return self.lanes, self.arena.bytes, self.owner_pid, self.ident, self.public

    @property
    def fd(self) -> int:
        return self.arena.fd

    @staticmethod
    def attach(place, int fd) -> Arena:
        """In a process that was not forked: map an arena of another process. The descriptor belongs to it then."""
        cdef Arena arena = Arena.__new__(Arena, place[0])
        arena.map_from(place, fd)
        return arena

    cdef int map_from(self, tuple place, int fd) except -1:
        _, size, self.owner_pid, self.ident, self.public = place
        check(fp_arena_attach(&self.arena, fd, size), "cannot map shared memory of the pool's owner")
        self.at = self.arena.segment
        return add_space(self.ident, self.at, size, self.public)

    def __dealloc__(self):
        self.unmap()

    cdef void unmap(self) noexcept:
        if self.at is not NULL:
            remove_space(self.ident)
        fp_arena_destroy(&self.arena)
        self.at = NULL

    def allocate(self, uint64_t nbytes, bint keep_reserve=False) -> SharedBlock | None:
        """A block of the owner's heap; None if there is no room, or none but the reserve for arguments."""
        cdef uint64_t offset = 0
        if keep_reserve and not self.has_room_beside_reserve(nbytes):
            return None
        cdef int code = fp_heap_alloc(self.at, self.lanes, nbytes, &offset)
        if code == FP_FULL:
            return None
        check(code, "the owner's large blocks")
        return self.hold(offset, nbytes)

    cdef bint has_room_beside_reserve(self, uint64_t nbytes) except -1:
        cdef uint64_t taken = 0
        cdef fp_heap_stats stats
        cdef uint32_t owner
        for owner in range(<uint32_t>self.lanes + 1):
            taken += load(fp_heap_of(self.at, owner).charged)
        check(fp_heap_measure(self.at, self.lanes, &stats), "the owner's large blocks")
        return taken - stats.bytes_free + nbytes + self.at.cap // FP_RESERVE <= self.at.cap

    cdef SharedBlock hold(self, uint64_t offset, uint64_t bytes):
        """Take over a block that is in use."""
        global n_public
        cdef SharedBlock block = SharedBlock.__new__(SharedBlock)
        block.offset = offset
        block.nbytes = bytes
        self.held.add(offset)
        block.arena = self
        n_public += self.public
        return block

    cdef void drop(self, uint64_t offset, uint64_t nbytes) noexcept:
        """Nobody holds this block any more. A fork of the owner frees nothing."""
        global n_public
        cdef int owner
        n_public -= self.public
        if self.at is NULL or getpid() != self.owner_pid:
            return
        self.held.discard(offset)
        fp_block_free(self.at, offset)
        if self.public and nbytes >= TRIM_BYTES and not FASTPOOL_IS_POSIX:  # else it would only be zeroed
            fp_heap_trim(self.at, self.lanes, FP_WARM_BYTES)
        if not self.retired:
            return
        if not self.held:
            self.unmap()
            return
        for owner in range(self.lanes + 1):
            fp_heap_trim(self.at, owner, 0)

    cdef uint64_t *held_offsets(self) except NULL:
        """Where the blocks that are held lie, in order; the caller frees this."""
        cdef list held = sorted(self.held)
        cdef uint64_t *offsets = <uint64_t *>calloc(len(held) + 1, sizeof(uint64_t))
        cdef Py_ssize_t i
        if offsets is NULL:
            raise MemoryError("fastpool: no memory to sort blocks")
        for i in range(len(held)):
            offsets[i] = held[i]
        return offsets

    def sweep_heap(self, int owner) -> None:
        """Free all blocks of a heap without an owner, except those that are held."""
        cdef uint64_t *offsets = self.held_offsets()
        cdef int code = fp_heap_sweep(self.at, owner, offsets, len(self.held))
        free(offsets)
        check(code, f"large blocks of worker {owner}")

    def retire(self) -> None:
        """No other process uses it any more: give back what nobody holds, and the rest when it is dropped."""
        if self.retired or self.at is NULL:
            return
        self.retired = True
        if not self.held:
            self.unmap()
            return
        cdef uint64_t *offsets = self.held_offsets()
        cdef int code = fp_arena_shed(&self.arena, offsets, len(self.held))
        free(offsets)
        check(code, "shared memory of a pool that has ended")

    def heap(self, int owner) -> dict[str, int]:
        """Counts of a heap's blocks and bytes (heap number ``lanes`` is the owner's)."""
        cdef fp_heap_stats stats
        check(fp_heap_measure(self.at, owner, &stats), f"large blocks of worker {owner}")
        return stats


@cython.final
@cython.no_gc
cdef class SharedBlock:
    """A block of an arena, in use as long as this object lives. A writable buffer of bytes."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, fp_at(self.arena.at, self.offset), <Py_ssize_t>self.nbytes, 0, flags)

    def __dealloc__(self):
        if self.arena is not None:
            self.arena.drop(self.offset, self.nbytes)


# ---------------------------------------------------------------- the segment

@cython.final
cdef class Detached:
    """The process of a worker that has written its last word and whose lane is another's.

    Any thread may call :meth:`kill` while another waits for the process and closes this: each is one step under the
    GIL, so that no descriptor is used after it was closed.
    """

    def __cinit__(self):
        self.watch.fd = self.watch.life_fd = self.status_fd = -1

    def __dealloc__(self):
        self.close()

    @property
    def handle(self) -> int:
        """Descriptor that is readable once the process has ended, or -1."""
        return self.watch.fd

    def kill(self, int signum) -> None:
        """Send a signal, unless the process has been waited for."""
        if self.pid:
            fp_watch_kill(&self.watch, self.pid, signum)

    def close(self) -> None:
        """The process has been waited for."""
        self.pid = 0
        fp_watch_close(&self.watch)
        if self.status_fd >= 0:
            close_fd(self.status_fd)
        self.status_fd = -1


cdef enum:
    SKEW_NS = 1_000_000  # that two processors' clocks may differ by


@cython.final
cdef class Event:
    """Something that happens once: ``fd`` is readable from then on."""
    cdef fp_event event

    def __cinit__(self):
        self.event.read_fd = self.event.write_fd = -1

    def __init__(self):
        check(fp_event_open(&self.event), "cannot open a worker's handle")

    def __dealloc__(self):
        fp_event_close(&self.event)

    @property
    def fd(self) -> int:
        return self.event.read_fd

    def ring(self) -> None:
        fp_event_ring(&self.event)


cdef tuple _bell_tally(const fp_bell *bell):
    return bell.sleeps, load(bell.rung), load(bell.drained)


cdef class Segment(Arena):
    """The shared segment of one pool, its bells, and its workers' process handles.

    Parameters
    ----------
    lanes, ring_bytes, cap : int
        As for :class:`Arena`.
    cores : int
        Cores this pool may use; decides who may spin.
    exchange : Exchange, optional
        Workers are threads of this process, and values go through this.
    """

    def __cinit__(self, int lanes, *_):
        self.closed = True
        self.owner.read_fd = self.owner.write_fd = -1
        self.lent_fd = -1
        self.bell_event.read_fd = self.bell_event.write_fd = -1
        self.events = <fp_event *>calloc(lanes, sizeof(fp_event))
        self.watches = <fp_watch *>calloc(lanes, sizeof(fp_watch))
        self.pids = <int *>calloc(lanes, sizeof(int))
        self.came_up = <bint *>calloc(lanes, sizeof(bint))
        self.deaths = [0] * lanes
        self.status_fds = <int *>calloc(lanes, sizeof(int))
        self.fds = <int *>calloc(lanes + 2, sizeof(int))
        self.ready = <int *>calloc(lanes + 2, sizeof(int))
        if not (self.events and self.watches and self.pids and self.came_up and self.status_fds and self.fds
                and self.ready):
            raise MemoryError("fastpool: no memory for the pool's bookkeeping")
        cdef int i
        for i in range(lanes):
            self.events[i].read_fd = self.events[i].write_fd = -1
            self.watches[i].fd = self.watches[i].life_fd = -1
            self.status_fds[i] = -1
            self.fds[i + 1] = -1
        memset(&self.spin, 0, sizeof(self.spin))
        self.closed = False

    def __init__(self, int lanes, uint64_t ring_bytes, uint64_t cap, int cores, Exchange exchange=None):
        cdef int i
        Arena.__init__(self, lanes, ring_bytes, cap)
        self.exchange = exchange
        # Nobody spins when the pool's processes outnumber the cores, nor where one at a time runs Python.
        if lanes < cores and exchange is None:
            self.spin.limit_ns = 30_000
        if exchange is not None and not self.at.fence_each:
            check(fp_barrier_register(), "cannot register for process-wide barriers")
        self.worker_spin = self.spin
        try:
            check(fp_event_open(&self.bell_event), "cannot open the pool's bell")
            for i in range(lanes):
                check(fp_event_open(&self.events[i]), "cannot open a worker's bell")
            check(fp_owner_open(&self.owner), "cannot open the owner pipe")
            self.wakeup = Wakeup()
        except BaseException:
            self.close()
            raise
        self.fds[0] = self.bell_event.read_fd

    @staticmethod
    def attach_worker(int worker, shape, descriptors) -> Segment:
        """In a worker that was not forked: the segment whose ``shape`` and ``descriptors(worker)`` it was given.

        The descriptors are this process's own, in the same order, and belong to the segment from now on.
        """
        place, spin_ns = shape
        cdef Segment segment = Segment.__new__(Segment, place[0])
        cdef int memory_fd, life_fd
        (memory_fd, segment.bell_event.read_fd, segment.bell_event.write_fd, segment.events[worker].read_fd,
         segment.events[worker].write_fd, segment.owner.read_fd, life_fd) = descriptors
        segment.worker_spin.limit_ns = spin_ns
        if life_fd >= 0:
            check(fp_watch_inherit(life_fd), "cannot keep a worker's life pipe")
        segment.map_from(place, memory_fd)
        segment.following = fp_owner_follow(&segment.owner)
        return segment

    def __dealloc__(self):
        self._release()
        free(self.events)
        free(self.watches)
        free(self.pids)
        free(self.came_up)
        free(self.status_fds)
        free(self.fds)
        free(self.ready)

    cdef void _release(self):
        if self.closed:
            return
        self.closed = True
        for i in range(self.lanes):
            fp_event_close(&self.events[i])
            self.reaped(i)
        fp_event_close(&self.bell_event)
        fp_owner_close(&self.owner)
        if self.wakeup is not None:
            self.wakeup.close()

    def close(self) -> None:
        """Give everything back, memory that is held when it is dropped. All workers must have ended; a thread that
        could not be made to let go of the segment keeps it until it ends."""
        if self.exchange is not None:
            self.exchange.close()
            if self.exchange.workers:
                return
        if FASTPOOL_IS_TALLIED and not self.closed and not self.retired and self.at is not NULL:
            tallies.append(self.tally())
        self._release()
        self.retire()

    # ------------------------------------------------------------ processes

    def fork_worker(self, int worker) -> int:
        """Fork a worker: its pid in the parent, 0 in the child.

        The child blocks SIGINT until it calls :meth:`enter_worker`. The pid is on record before any Python code can
        run in the parent, so that an exception in between leaves no process that nobody knows. From its first
        instruction on the child follows its owner: whatever at-fork hooks do, it is gone when that is.
        """
        cdef sigset_t block, old
        cdef int pid
        if self.pids[worker]:
            raise SystemError(f"fastpool: worker {worker} is still there")
        check(fp_watch_prepare(&self.watches[worker]), "cannot prepare a worker's process handle")
        sigemptyset(&block)
        sigaddset(&block, SIGINT)
        # Until all hooks have run: an exception in one of them is printed and lost, a KeyboardInterrupt too.
        pthread_sigmask(SIG_BLOCK, &block, &old)
        due = hold_signals()
        if due is not None:
            due = release_signals() or due
            pthread_sigmask(SIG_SETMASK, &old, NULL)
            raise due
        PyOS_BeforeFork()
        pid = fp_fork()
        if pid == 0:
            self.following = fp_owner_follow(&self.owner)
            PyOS_AfterFork_Child()
            fp_watch_child(&self.watches[worker])
            return 0
        if pid > 0:
            self.pids[worker] = pid
            store(fp_line_of(self.at, worker).pid, pid)
        PyOS_AfterFork_Parent()
        due = release_signals()
        pthread_sigmask(SIG_SETMASK, &old, NULL)
        if pid < 0:
            fp_watch_close(&self.watches[worker])
            check(pid, "cannot fork a worker")
        check(fp_watch_parent(&self.watches[worker], pid), "cannot open a worker's process handle")
        self.fds[worker + 1] = self.watches[worker].fd
        if due is not None:
            raise due
        PyErr_CheckSignals()
        return pid

    @property
    def shape(self) -> tuple[Place, int]:
        """What a worker must know to attach, besides its descriptors."""
        return self.place, self.worker_spin.limit_ns

    def lend(self, int worker) -> tuple[int, ...]:
        """Prepare the start of a worker that is not a fork of this process: the descriptors it needs, -1: none.

        Its start is completed by :meth:`adopt`, or given up by :meth:`reaped`.
        """
        if self.pids[worker]:
            raise SystemError(f"fastpool: worker {worker} is still there")
        check(fp_watch_prepare(&self.watches[worker]), "cannot prepare a worker's process handle")
        self._unlend()
        self.lent_fd = fp_owner_lend(&self.owner)
        return (self.arena.fd, self.bell_event.read_fd, self.bell_event.write_fd, self.events[worker].read_fd,
                self.events[worker].write_fd, self.owner.read_fd if self.lent_fd < 0 else self.lent_fd,
                self.watches[worker].life_fd)

    def adopt(self, int worker, int pid, int status_fd) -> None:
        """A worker that was lent its descriptors has started.

        `status_fd`: where a fork server tells its exit status, for a process that is no child of this one; else -1.
        """
        self.pids[worker] = pid
        self.status_fds[worker] = status_fd
        store(fp_line_of(self.at, worker).pid, pid)
        if self.lent_fd >= 0:
            fp_owner_arm(self.lent_fd, pid)  # refused: the worker follows the owner once it has come up
            self._unlend()
        check(fp_watch_parent(&self.watches[worker], pid), "cannot open a worker's process handle")
        self.fds[worker + 1] = self.watches[worker].fd

    cdef void _unlend(self):
        if self.lent_fd >= 0:
            close_fd(self.lent_fd)
        self.lent_fd = -1

    def admit(self, int worker, int handle, thread) -> None:
        """A worker that is a thread of this process is being started.

        `handle` is readable once it has ended; ``thread.kill()`` makes it end as soon as it can.
        """
        if self.pids[worker]:
            raise SystemError(f"fastpool: worker {worker} is still there")
        self.exchange.workers[worker] = thread
        self.pids[worker] = self.owner_pid
        store(fp_line_of(self.at, worker).pid, self.owner_pid)
        self.fds[worker + 1] = handle

    def enter_worker(self, int worker) -> None:
        """First call in a worker, SIGINT being ignored: take part in barriers, unblock SIGINT."""
        cdef sigset_t block
        check(fp_arena_enter(&self.arena), "cannot protect what the pool's owner alone writes")
        check(self.following, "cannot follow the pool's owner")
        try:
            self.wakeup = Wakeup()
        except OSError:  # no descriptor left: a signal in the moment before a sleep is heard after it
            self.wakeup = Wakeup.__new__(Wakeup)
        cdef uint64_t word = 0
        cdef int code = fp_read_process(self.owner_pid, self.at.probe, &word, sizeof(word), False)
        store(fp_line_of(self.at, worker).reads_owner, FP_READS_YES if code == 0 and word == FP_MAGIC else FP_READS_NO)
        if not self.at.fence_each:
            check(fp_barrier_register(), "cannot register for process-wide barriers")
        pthread_sigmask(SIG_BLOCK, NULL, &block)
        sigdelset(&block, SIGINT)
        pthread_sigmask(SIG_SETMASK, &block, NULL)

    @property
    def owner_fd(self) -> int:
        """Read end of the owner pipe: readable (at its end) when the owner is gone."""
        return self.owner.read_fd

    def pid(self, int worker) -> int:
        """Process id of a worker that was started and not yet reaped, else 0."""
        return self.pids[worker]

    def handle(self, int worker) -> int:
        """Descriptor that is readable once the worker's process has ended, or -1."""
        return self.watches[worker].fd

    def status_fd(self, int worker) -> int:
        """Where a fork server tells the worker's exit status, or -1 for a child of this process."""
        return self.status_fds[worker]

    def detach(self, int worker) -> Detached:
        """Forget a worker whose lane goes to its successor."""
        cdef Detached process = Detached.__new__(Detached)
        process.watch = self.watches[worker]
        process.status_fd = self.status_fds[worker]
        process.pid = self.pids[worker]
        self.watches[worker].fd = self.watches[worker].life_fd = -1
        self.status_fds[worker] = -1
        self.fds[worker + 1] = -1
        self.pids[worker] = 0
        return process

    def reaped(self, int worker) -> None:
        """The worker's process has been waited for, or could not be started."""
        self._unlend()
        if self.exchange is not None:
            self.exchange.workers.pop(worker, None)
        self.pids[worker] = 0
        self.fds[worker + 1] = -1
        if self.status_fds[worker] >= 0:
            close_fd(self.status_fds[worker])
        self.status_fds[worker] = -1
        fp_watch_close(&self.watches[worker])

    def kill(self, int worker, int signum) -> None:
        """Send a signal to a worker that has not been reaped. A thread has no signals of its own: it is told to end."""
        if not self.pids[worker]:
            return
        if self.exchange is not None:
            self.exchange.workers[worker].kill()
        else:
            fp_watch_kill(&self.watches[worker], self.pids[worker], signum)  # gone already: nothing to do

    # ------------------------------------------------------------ board

    def state(self, int worker) -> str:
        """State of a worker: ``starting``, ``idle``, … (csrc/README.md)."""
        cdef const char *name = fp_state_name(<uint32_t>load(fp_line_of(self.at, worker).state))
        return "damaged" if name is NULL else name.decode()

    def declare_dead(self, int worker) -> None:
        """The worker's process is gone without having reached ``exited``."""
        if fp_state_move(fp_line_of(self.at, worker), FP_DEAD) < 0:
            raise DamagedMemoryError(f"the state of worker {worker}")
        self.deaths[worker] += 1

    cdef int check_words(self) except -1:
        """Is what workers write besides their records what the protocol allows? The rest is protected from them."""
        cdef int worker
        self.check_gate(FP_MAP, self.number)
        self.check_gate(FP_APPLY, self.applies)
        for worker in range(self.lanes):
            self.check_line(worker, fp_line_of(self.at, worker))
        return 0

    cdef int check_gate(self, int channel, uint64_t number) except -1:
        """Does the gate show the job, and no more claimed than there is?"""
        cdef uint64_t word = load(self.at.gates[channel].claim)
        if number and (fp_claim_number(word) != number & FP_NUMBER_MASK
                       or fp_claim_index(word) > load(self.at.jobs[channel].avail)):
            raise DamagedMemoryError("the claim word")
        return 0

    cdef int check_line(self, int worker, const fp_line *line) except -1:
        """Can the worker be in the state that its line shows?"""
        cdef uint64_t state = load(line.state)
        cdef bint possible = state < FP_DEAD if self.pids[worker] else state == FP_DEAD
        if state == FP_STARTING:
            possible = not self.came_up[worker]
        elif state == FP_EXITED:
            possible = self.pids[worker] and self.has_exited(worker)
        if not possible:
            raise DamagedMemoryError(f"the state of worker {worker}")
        self.came_up[worker] = state != FP_STARTING
        return 0

    def abandon_job(self) -> None:
        """Tell the workers to begin no more tasks of the current job."""
        cdef int worker
        for worker in range(self.lanes):
            poke(fp_control_of(self.at, worker).abandon, self.number)
            if self.pids[worker]:
                self.ring_worker(worker)

    @property
    def is_at_rest(self) -> bool:
        """Does no worker hold anything of a map?"""
        return self.all_claimed_at_rest(FP_MAP) is not None

    cdef object all_claimed_at_rest(self, int channel):
        """Of a channel's job, the units that are claimed, if no worker holds one of them; else None.

        The gate first, then the lines, as after a death (csrc/README.md, elimination): what is collected after this
        has the results of all these units.
        """
        cdef uint64_t claimed = self._claimed(channel)
        cdef uint64_t word
        cdef int worker
        for worker in range(self.lanes):
            if not self.pids[worker]:
                continue
            word = load(fp_line_of(self.at, worker).claim)
            if fp_held_channel(word) == channel if word else load(fp_line_of(self.at, worker).state) != FP_IDLE:
                return None
        return claimed

    cdef void ring_everybody(self) noexcept nogil:
        """Whether they say that they sleep or not."""
        cdef int worker
        self.silences += 1
        for worker in range(self.lanes):
            if self.pids[worker]:
                fp_event_ring(&self.events[worker])

    def held_units(self, int worker) -> tuple[range, bool]:
        """The units of the current map that a worker's line shows, and whether it has claimed them; if not, it is about
        to."""
        cdef uint64_t first = 0, count = 0
        cdef int holds = fp_line_holds(fp_line_of(self.at, worker), FP_MAP, self.at.jobs[FP_MAP].number, &first, &count)
        return range(first, first + count), holds == FP_CLAIM_HELD

    def held_apply(self, int worker) -> tuple[int, bool] | None:
        """The apply that a worker's line shows, and whether it has claimed it; if not, it is about to."""
        cdef uint64_t unit = 0, count = 0
        cdef int holds = fp_line_holds(fp_line_of(self.at, worker), FP_APPLY, self.applies, &unit, &count)
        return None if holds == FP_CLAIM_NONE else (unit, holds != FP_CLAIM_INTENT)

    def begun_apply(self, int worker) -> int | None:
        """The apply that a worker has begun: what it was told of it is not looked at again."""
        cdef uint64_t unit = 0, count = 0
        cdef int holds = fp_line_holds(fp_line_of(self.at, worker), FP_APPLY, self.applies, &unit, &count)
        return unit if holds == FP_CLAIM_BEGUN else None

    def totals(self) -> tuple[int, int]:
        """Tasks that the workers have done since they started, and the nanoseconds those took, over all lines."""
        cdef uint64_t tasks = 0, took = 0
        cdef int worker
        for worker in range(self.lanes):
            tasks += peek(fp_line_of(self.at, worker).tasks)
            took += peek(fp_line_of(self.at, worker).tasks_ns)
        return tasks, took

    def times(self, int worker) -> tuple[int, int, int, int, int, int]:
        """Of a worker, for insights: how many tasks it has done; when it had come up (0: not yet); then how many ns its
        init function, waiting, tasks and its end took."""
        cdef const fp_line *line = fp_line_of(self.at, worker)
        return (peek(line.timed), peek(line.started_ns), peek(line.init_ns), peek(line.waiting_ns),
                peek(line.working_ns), peek(line.exit_ns))

    def longest(self, int worker) -> list[tuple[int, bytes]]:
        """The longest tasks of a worker: how many ns they took, and their arguments."""
        cdef fp_longest table[FP_LONGEST]
        cdef int i
        if not fp_line_longest(fp_line_of(self.at, worker), table):
            return []
        return [(peek(table[i].took_ns), (<const char *>table[i].text)[:FP_TEXT_BYTES].rstrip(b"\0"))
                for i in range(FP_LONGEST) if peek(table[i].took_ns)]

    def reads_owner(self, int worker) -> bool | None:
        """Can this worker read the private memory of its owner? None: it has not tried yet."""
        cdef uint64_t answer = load(fp_line_of(self.at, worker).reads_owner)
        return None if answer == FP_READS_UNKNOWN else answer == FP_READS_YES

    def exited(self) -> list[int]:
        """Workers that have written their last word, and whose lane is not yet another's."""
        cdef int worker
        return [worker for worker in range(self.lanes) if self.pids[worker] and self.has_exited(worker)]

    cpdef bint has_exited(self, int worker) except? -1:
        """Has this worker written its last word?

        Raises
        ------
        DamagedMemoryError
            Its line says so, but shows that it did not come to its end. Who believes that takes the lane of a worker
            that lives, and waits for a process that does not end.
        """
        cdef const fp_line *line = fp_line_of(self.at, worker)
        if load(line.state) != FP_EXITED:
            return False
        if not load(line.exit_ns) or load(line.claim):
            raise DamagedMemoryError(f"the state of worker {worker}")
        return True

    def command_stop(self, int worker) -> None:
        """Ask a worker to run its exit function and end once it has nothing to do; unless it is to end at once."""
        if load(fp_control_of(self.at, worker).command) != FP_CMD_QUIT:
            store(fp_control_of(self.at, worker).command, FP_CMD_STOP)
        self.ring_worker(worker)

    def give_up(self) -> None:
        """The job will not be finished: workers claim nothing more, drop what they hold before their next task, and
        end. The segment takes no other job then."""
        cdef int worker
        cdef uint64_t number
        if self.closed:
            return
        number = self.at.jobs[FP_MAP].number
        fp_gate_close(self.at, FP_MAP)
        fp_gate_close(self.at, FP_APPLY)
        self.number = self.applies = 0
        self.ended_whole = False
        for worker in range(self.lanes):
            poke(fp_control_of(self.at, worker).abandon, number)
            if self.pids[worker]:
                self.command_stop(worker)

    def close_map(self) -> None:
        """The map is over: workers that come now have nothing to do with it."""
        if self.number:
            self.ended_whole = self.finished == self.number
            fp_gate_close(self.at, FP_MAP)
            self.number = 0

    def command_quit(self, int worker) -> None:
        """Make a thread end, wherever it waits."""
        store(fp_control_of(self.at, worker).command, FP_CMD_QUIT)
        self.ring_worker(worker)

    def wake(self, int count) -> None:
        """Wake up to `count` workers that sleep for want of work. What they wait for has been published."""
        cdef int worker
        fp_fence()  # W1, for the looks at their states too: who goes to sleep after this sees what was published
        for worker in range(self.lanes):
            if count <= 0:
                break
            if self.pids[worker] and load(fp_line_of(self.at, worker).state) == FP_IDLE \
                    and load(fp_lane_of(self.at, worker).bell.sleeping):
                self.ring_worker(worker)
                count -= 1

    # ------------------------------------------------------------ time limits

    def late_calls(self) -> tuple[list[tuple[int, int]], int | None]:
        """Workers in whose task, init or exit function the time is over, and when it was; and when to look again, on
        the monotonic clock in ns (None: never)."""
        cdef uint64_t until, now, again
        cdef int worker
        cdef list late = []
        if self.longest_limit == 0:
            return late, None
        # For calls that begin after this look:
        again = min(self.shortest_limit or FP_NEVER, self.shortest_of_applies or FP_NEVER)
        again = min(again, self.shortest_of_ends or FP_NEVER)
        if again != FP_NEVER:
            again += now_ns()
        for worker in range(self.lanes):
            until = load(fp_line_of(self.at, worker).call_until)
            if until == 0 or not self.pids[worker] or load(fp_control_of(self.at, worker).condemned):
                continue
            now = now_ns()
            if until > now + self.longest_limit + SKEW_NS:
                raise DamagedMemoryError(f"the time limit of worker {worker}")
            if until <= now:
                late.append((worker, until))
            else:
                again = min(again, until)
        return late, None if again == FP_NEVER else again

    def condemn(self, int worker, uint64_t until) -> bool:
        """Let nothing come of the worker's call whose time was over at `until`. False: it had ended, and its worker
        goes on."""
        cdef int code = fp_call_condemn(fp_line_of(self.at, worker), fp_control_of(self.at, worker), until,
                                        self.at.fence_each)
        if code == 0:
            self.ring_worker(worker)
        return check(code, "a barrier before a worker is killed") == 1

    # ------------------------------------------------------------ jobs

    def publish(self, *, uint64_t range_units, uint64_t flags, int64_t range_start, int64_t range_step,
                uint64_t chunk_fixed, uint64_t chunk_ns, uint32_t n_workers, uint32_t spec, uint64_t lifespan,
                bytes spec_blob, avail, total, limits=(0, 0, 0)) -> int:
        """Close the gate, describe the job, open the gate; returns the job's number.

        `limits`: ns that a call of the task, init and exit function may take; 0: any.
        """
        cdef fp_job *job = &self.at.jobs[FP_MAP]
        cdef uint64_t number = self._begin_job(FP_MAP, flags, n_workers, spec, spec_blob, limits)
        cdef int worker
        for worker in range(self.lanes):
            self.begin_at(worker, worker)
        job.range_units = self.range_units = range_units
        job.range_start = range_start
        job.range_step = range_step
        job.chunk_fixed = chunk_fixed
        job.chunk_ns = chunk_ns
        job.lifespan = lifespan
        self.shortest_limit = min(filter(None, limits), default=0)
        store(job.avail, <uint64_t>avail)
        store(job.total, FP_TOTAL_UNKNOWN if total is None else <uint64_t>total)
        store(job.plan, 0)
        job.home = job.home_bytes = 0
        self.number = number
        self.ended_whole = False
        fp_gate_open(self.at, FP_MAP)
        return number

    def publish_applies(self, *, uint64_t flags, uint32_t n_workers, uint32_t spec, bytes spec_blob,
                        tuple limits) -> int:
        """The same for applies, of which none are there yet. `limits`: of the init and the exit function."""
        cdef uint64_t number = self._begin_job(FP_APPLY, flags, n_workers, spec, spec_blob, (0, *limits))
        store(self.at.jobs[FP_APPLY].avail, 0)
        store(self.at.jobs[FP_APPLY].total, FP_TOTAL_UNKNOWN)
        self.applies = number
        self.shortest_of_ends = min(filter(None, limits), default=0)
        fp_gate_open(self.at, FP_APPLY)
        return number

    def limit_applies(self, given_ns: int) -> None:
        """There is an apply that may take so long; 0: there is none that has a limit."""
        self.shortest_of_applies = min(given_ns, self.shortest_of_applies or FP_NEVER)
        self.longest_limit = max(self.longest_limit, given_ns)

    cdef uint64_t _begin_job(self, int channel, uint64_t flags, uint32_t n_workers, uint32_t spec, bytes blob,
                             tuple limits) except 0:
        """Close a channel's gate and describe what all jobs have. Returns the job's number."""
        cdef fp_job *job = &self.at.jobs[channel]
        cdef uint64_t number = fp_gate_close(self.at, channel)
        self._drop_spec(job)
        job.flags = flags
        job.n_workers = n_workers
        job.spec = spec
        job.task_limit, job.init_limit, job.exit_limit = limits
        self.longest_limit = max(self.longest_limit, *limits)
        store(job.hungry_at, FP_NEVER)
        if blob is not None:
            self._place_spec(job, blob)
        return number

    def begin_at(self, int worker, uint64_t unit) -> None:
        """The next worker in this lane, of an ordered job, takes this unit first."""
        poke(fp_control_of(self.at, worker).turn, unit)

    cdef int _place_spec(self, fp_job *job, bytes blob) except -1:
        cdef uint64_t offset = 0
        cdef const unsigned char *data = blob
        cdef uint64_t size = <uint64_t>len(blob)
        if not copy_to_block(self.at, self.lanes, data, size, &offset):
            raise MemoryError(
                f"fastpool: the map's functions take {size} bytes when pickled, more than memory_limit or the system "
                "leaves"
            )
        job.spec_offset = offset
        job.spec_bytes = size
        job.spec_sum = fp_checksum(data, size)
        return 0

    cdef int _drop_spec(self, fp_job *job) except -1:
        """Free the block of the last job's functions. Only while the gate is closed."""
        if job.spec_offset:
            check(fp_block_free(self.at, job.spec_offset), "the block of the job's functions")
        job.spec_offset = job.spec_bytes = job.spec_sum = 0
        return 0

    cdef bytes read_spec(self, const fp_terms *terms):
        """Worker: the pickled functions of the job it joined; None if another job has replaced it meanwhile."""
        cdef bytes blob = (<const char *>fp_at(self.at, terms.spec_offset))[:terms.spec_bytes]
        if not fp_gate_shows(self.at, terms.channel, terms.number):
            return None
        if fp_checksum(<const char *>blob, terms.spec_bytes) != terms.spec_sum:
            raise DamagedMemoryError("the pickled functions of the job were overwritten")
        return blob

    def raise_avail(self, uint64_t avail) -> None:
        """Let workers claim units below `avail`."""
        store(self.at.jobs[FP_MAP].avail, avail)

    def finish_input(self, uint64_t total) -> None:
        """The job has `total` units in all: no more will come."""
        store(self.at.jobs[FP_MAP].hungry_at, FP_NEVER)
        store(self.at.jobs[FP_MAP].total, total)

    def call_when_claimed(self, uint64_t unit) -> None:
        """Wake the parent when a claim passes `unit`."""
        store(self.at.jobs[FP_MAP].hungry_at, unit)

    def claimed(self) -> int:
        """Units claimed so far in the current map; of an ordered one, whose units nobody competes for, those that may
        be."""
        return self._claimed(FP_MAP)

    @property
    def claimed_applies(self) -> int:
        """Applies claimed so far."""
        return self._claimed(FP_APPLY)

    cdef uint64_t _claimed(self, int channel) except -1:
        cdef uint64_t word = load(self.at.gates[channel].claim)
        if fp_claim_index(word) == FP_INDEX_CLOSED:
            return 0
        if self.at.jobs[channel].flags & FP_JOB_ORDERED:
            return load(self.at.jobs[channel].avail)
        return fp_claim_index(word)

    def tally(self) -> dict[str, object]:
        """What was begun and what was ended in this segment, in builds that count (tests/tallies.py)."""
        cdef fp_heap_stats stats
        cdef const fp_heap *heap
        cdef const fp_lane *lane
        cdef int i
        heaps, lanes = [], []
        for i in range(self.lanes + 1):
            heap = fp_heap_of(self.at, i)
            if fp_heap_measure(self.at, i, &stats) < 0:
                return {"damaged": True}
            held = sum(heap.start <= offset < heap.end for offset in self.held)
            heaps.append((load(heap.taken), load(heap.freed), stats.blocks_used, held))
        for i in range(self.lanes):
            lane = fp_lane_of(self.at, i)
            killed = self.deaths[i] + (self.state(i) not in ("starting", "exited", "dead"))
            lanes.append((killed, load(lane.opened), load(lane.closed), _bell_tally(&lane.bell)))
        whole = self.ended_whole if self.number == 0 else self.finished == self.number
        return {"heaps": heaps, "lanes": lanes, "bell": _bell_tally(&self.at.bell), "silences": self.silences,
                "functions": sum([self.at.jobs[i].spec_offset != 0 for i in range(FP_CHANNELS)]), "finished": whole}

    # ------------------------------------------------------------ memory

    @property
    def address(self) -> int:
        """Where the segment is mapped in this process."""
        return <size_t>self.at

    def areas(self) -> dict[str, tuple[int, int]]:
        """What lies where in the segment, as offset and bytes (for tests)."""
        cdef int i
        cdef const fp_heap *heap
        found = {
            "gate": (self._offset(&self.at.gates[FP_MAP]), sizeof(fp_gate)),
            "gate of applies": (self._offset(&self.at.gates[FP_APPLY]), sizeof(fp_gate)),
            "bell": (self._offset(&self.at.bell), sizeof(fp_bell)),
            "constants": (self._offset(&self.at.magic), FP_LINE_BYTES),
            "job": (self._offset(&self.at.jobs[FP_MAP]), sizeof(fp_job)),
            "job of applies": (self._offset(&self.at.jobs[FP_APPLY]), sizeof(fp_job)),
            "feed": (self._offset(fp_feed_of(self.at, FP_MAP, 0)), FP_FEED_SLOTS * sizeof(fp_feed_slot)),
            "applies": (self._offset(fp_apply_of(self.at, 0)), FP_APPLY_SLOTS * sizeof(fp_apply_slot)),
        }
        if load(self.at.jobs[FP_MAP].plan):
            found["plan"] = load(self.at.jobs[FP_MAP].plan), sizeof(fp_plan)
        for i in range(self.lanes + 1):
            heap = fp_heap_of(self.at, i)
            found[f"heap {i}"] = self._offset(heap), sizeof(fp_heap)
            found[f"blocks {i}"] = heap.start, load(heap.top) - heap.start
        for i in range(self.lanes):
            found[f"control {i}"] = self._offset(fp_control_of(self.at, i)), sizeof(fp_control)
            found[f"line {i}"] = self._offset(fp_line_of(self.at, i)), sizeof(fp_line)
            found[f"lane {i}"] = self._offset(fp_lane_of(self.at, i)), sizeof(fp_lane)
            found[f"ring {i}"] = self._offset(fp_ring_of(self.at, i)), self.at.ring_bytes
        return found

    cdef uint64_t _offset(self, const void *at):
        return <const unsigned char *>at - <const unsigned char *>self.at

    def empty_line(self, int worker) -> None:
        """Make a line ready for the next worker. The last one writes no more."""
        store(fp_control_of(self.at, worker).condemned, 0)
        fp_line_reset(fp_line_of(self.at, worker))
        self.came_up[worker] = False

    def adopt_heap(self, int owner) -> None:
        """Become the owner of a heap whose former owner is gone."""
        check(fp_heap_adopt(self.at, owner), f"large blocks of worker {owner}")

    def trim_heap(self, int owner) -> None:
        """Give pages of free blocks back, beyond what is kept warm. Only its owner calls this."""
        fp_heap_trim(self.at, owner, min(FP_WARM_BYTES, self.at.cap // (4 * (self.lanes + 1))))

    # ------------------------------------------------------------ bells

    cdef void ring_parent(self) noexcept nogil:
        fp_bell_ring(&self.at.bell, &self.bell_event)

    cdef void ring_worker(self, uint32_t worker) noexcept nogil:
        fp_bell_ring(&fp_lane_of(self.at, worker).bell, &self.events[worker])

    cdef int wait_as_worker(self, uint32_t worker, fp_predicate predicate, void *context) except -1:
        """Sleep until the predicate holds. Does not return if the owner is gone."""
        cdef int fds[3]
        cdef int ready[3]
        cdef int why
        with nogil:
            if fp_bell_try(&self.worker_spin, predicate, context, FP_NEVER):
                return 0
        fds[0] = self.events[worker].read_fd
        fds[1] = self.owner.read_fd if self.exchange is None else -1
        while True:
            fds[2] = self.wakeup.listen()
            with nogil:
                why = fp_bell_sleep(&fp_lane_of(self.at, worker).bell, &self.events[worker], 0, predicate, context,
                                    fds, ready, 3, FP_NEVER)
            self.wakeup.cease()
            if why == FP_WAIT_READY:
                return 0
            if why == FP_WAIT_HANDLE and ready[1]:
                _exit(1)  # the owner is gone; the kernel's SIGKILL is on its way too
            check(why, "a worker's wait")

    cdef int wait_as_parent(self, fp_predicate predicate, void *context, uint64_t deadline_ns) except -1:
        """Sleep until the predicate holds, a worker's process ended (FP_WAIT_HANDLE), or the deadline."""
        cdef int why
        with nogil:
            if fp_bell_try(&self.spin, predicate, context, deadline_ns):
                return FP_WAIT_READY
        while True:
            self.fds[self.lanes + 1] = self.wakeup.listen()
            with nogil:
                why = fp_bell_sleep(&self.at.bell, &self.bell_event, not self.at.fence_each, predicate, context,
                                    self.fds, self.ready, self.lanes + 2, deadline_ns)
            self.wakeup.cease()
            if why != FP_WAIT_SIGNAL and not (why == FP_WAIT_HANDLE and not self.ended()):
                return check(why, "the parent's wait")

    def wait_for(self, int handle) -> None:
        """Sleep until a descriptor is readable."""
        cdef int fds[2]
        cdef int ready[2]
        cdef int why
        fds[0] = handle
        ready[0] = 0
        while not ready[0]:
            fds[1] = self.wakeup.listen()
            with nogil:
                why = fp_poll(fds, ready, 2, -1)
            self.wakeup.cease()
            if why != -EINTR:
                check(why, "a wait for a process")

    def look_at_handles(self) -> list[int]:
        """Workers whose process has ended, without waiting."""
        cdef int code = fp_poll(self.fds, self.ready, self.lanes + 1, 0)
        if code != -EINTR:  # else nothing is ready, and the caller will look again
            check(code, "a look at the workers")
        return self.ended()

    def ended(self) -> list[int]:
        """Workers whose process handle was readable in the last wait or look."""
        return [i for i in range(self.lanes) if self.ready[i + 1] and self.fds[i + 1] >= 0]
