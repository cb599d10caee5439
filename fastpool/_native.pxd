"""The border to the C core: its structs, its inline functions, and the one class that holds a segment.

Only ``_native`` links ``csrc``. Other modules use the structs and ``static inline`` functions from the headers, and
reach everything else through the functions at the end of this file.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastpool._references cimport Exchange
from fastpool._signals cimport Wakeup


cdef extern from "layout.h" nogil:
    enum:
        FP_FULL
        FP_DAMAGED
        FP_MISUSE
        FP_MAP
        FP_APPLY
        FP_CHANNELS
        FP_JOB_LAST
        FP_JOB_KEEP_GOING
        FP_JOB_INSIGHTS
        FP_LONGEST
        FP_TEXT_BYTES
        FP_JOB_ALWAYS_EXIT
        FP_JOB_ORDERED
        FP_FEED_SLOTS
        FP_STARTING
        FP_IDLE
        FP_INITIALIZING
        FP_RUNNING
        FP_EXITING
        FP_EXITED
        FP_DEAD
        FP_CLAIM_NONE
        FP_CLAIM_INTENT
        FP_CLAIM_HELD
        FP_CLAIM_BEGUN
        FP_CMD_NONE
        FP_CMD_STOP
        FP_CMD_QUIT
        FP_KIND_PAD
        FP_KIND_INT64
        FP_KIND_FLOAT64
        FP_KIND_BOOL
        FP_KIND_NONE
        FP_KIND_STR
        FP_KIND_BYTES
        FP_KIND_PICKLE
        FP_KIND_BLOCK
        FP_KIND_FRAGMENT
        FP_KIND_ERROR
        FP_KIND_TAGGED
        FP_KIND_PACKED
        FP_KIND_PLACED
        FP_KIND_OBJECT
        FP_PHASE_TASK
        FP_PHASE_INIT
        FP_PHASE_EXIT
        FP_READS_UNKNOWN
        FP_READS_YES
        FP_READS_NO
        FP_FORM_ARRAY
        FP_FORM_PICKLE
        FP_INLINE
        FP_IN_BLOCK
        FP_IN_SPACE
        FP_FROM_SPACE
        FP_IN_OWNER
        FP_IN_FORKED
        FP_BORN_WITH
        FP_ARRAY_FORTRAN
        FP_ARRAY_STRIDED
        FP_ARRAY_READ_ONLY
    const uint64_t FP_NEVER
    const uint64_t FP_MAGIC
    const size_t FP_LINE_BYTES
    const uint64_t FP_TOTAL_UNKNOWN
    const uint64_t FP_MAX_CHUNK
    const uint64_t FP_MAX_UNITS
    const uint64_t FP_INDEX_CLOSED
    const uint64_t FP_NUMBER_MASK

    # Cython has no _Atomic: these fields are read and written through the functions of atomic below.
    ctypedef struct fp_job:
        uint64_t number
        uint64_t range_units
        uint64_t flags
        int64_t range_start
        int64_t range_step
        uint64_t chunk_fixed
        uint64_t chunk_ns
        uint32_t n_workers
        uint32_t spec
        uint64_t lifespan
        uint64_t spec_offset
        uint64_t spec_bytes
        uint64_t spec_sum
        uint64_t task_limit
        uint64_t init_limit
        uint64_t exit_limit
        uint64_t avail
        uint64_t total
        uint64_t hungry_at
        uint64_t plan
        uint64_t home
        uint64_t home_bytes

    ctypedef struct fp_feed_slot:
        uint64_t offset
        uint64_t bytes
        uint64_t first
        uint64_t count
        uint64_t skip

    enum:
        FP_APPLY_BYTES
        FP_APPLY_SLOTS
    ctypedef struct fp_apply_slot:
        fp_feed_slot slot
        unsigned char data[216]

    ctypedef struct fp_bell:
        uint32_t sleeping
        uint32_t sleeps
        uint32_t rung
        uint32_t drained

    ctypedef struct fp_gate:
        uint64_t claim

    ctypedef struct fp_longest:
        uint64_t took_ns
        uint64_t text[31]

    ctypedef struct fp_line:
        uint64_t claim
        uint64_t jobs[2]
        uint32_t state
        uint32_t news
        uint64_t call_until
        int32_t pid
        uint32_t generation
        uint64_t tasks
        uint64_t tasks_ns
        uint64_t started_ns
        uint64_t init_ns
        uint64_t waiting_ns
        uint64_t exit_ns
        uint64_t timed
        uint64_t working_ns
        uint32_t reads_owner

    ctypedef struct fp_lane:
        uint64_t committed
        uint64_t head
        uint64_t opened
        uint64_t closed
        fp_bell bell

    ctypedef struct fp_control:
        uint64_t tail
        uint64_t wake_at
        uint64_t abandon
        uint64_t turn
        uint32_t command
        uint64_t condemned

    ctypedef struct fp_record:
        uint64_t closed
        uint64_t first
        uint64_t base
        uint32_t capacity
        uint16_t kind
        uint8_t phase
        uint8_t job

    ctypedef struct fp_item:
        uint32_t bytes
        uint32_t tag

    ctypedef struct fp_summed:
        uint64_t sum

    ctypedef struct fp_block_item:
        uint64_t offset
        uint64_t bytes
        uint64_t sum
        uint32_t kind
        uint32_t tag

    ctypedef struct fp_fragment:
        uint64_t total
        uint64_t at
        uint64_t sum
        uint32_t bytes
        uint16_t kind
        uint16_t tag

    ctypedef struct fp_packed:
        uint32_t form
        uint32_t n_buffers
        uint64_t meta_bytes

    ctypedef struct fp_buffer:
        uint64_t bytes
        uint64_t at
        uint64_t space
        uint64_t where

    ctypedef struct fp_array:
        int32_t type
        uint32_t dtype_bytes
        uint32_t ndim
        uint32_t flags

    const uint64_t FP_SPACE_OWNER
    ctypedef struct fp_plan:
        uint64_t space
        uint64_t at
        uint64_t row_bytes
        uint64_t n_tasks
        uint32_t spoiled
        uint32_t row_ndim
        int32_t type
        uint32_t dtype_bytes

    enum:
        FP_BLOCK_USED
    ctypedef struct fp_block:
        uint64_t size
        uint32_t state
        uint64_t asked

    ctypedef struct fp_heap:
        uint64_t top
        uint64_t start
        uint64_t end
        uint64_t charged
        uint64_t taken
        uint64_t freed

    ctypedef struct fp_segment:
        uint64_t magic
        uint64_t bytes
        uint64_t cap
        uint32_t lanes
        uint32_t fence_each
        uint64_t ring_bytes
        uint64_t probe
        fp_gate gates[2]
        fp_job jobs[2]
        fp_bell bell

    void *fp_at(const fp_segment *segment, uint64_t offset)
    fp_line *fp_line_of(const fp_segment *segment, uint32_t worker)
    fp_lane *fp_lane_of(const fp_segment *segment, uint32_t worker)
    unsigned char *fp_ring_of(const fp_segment *segment, uint32_t worker)
    fp_control *fp_control_of(const fp_segment *segment, uint32_t worker)
    uint16_t fp_kind_of(const fp_record *record)
    fp_heap *fp_heap_of(const fp_segment *segment, uint32_t owner)
    fp_feed_slot *fp_feed_of(const fp_segment *segment, int channel, uint64_t chunk)
    fp_apply_slot *fp_apply_of(const fp_segment *segment, uint64_t unit)
    uint64_t fp_align(uint64_t bytes, uint64_t to)


cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    enum:
        SIG_SETMASK
        SIG_BLOCK
        SIGINT
        SIGKILL
    int sigemptyset(sigset_t *set)
    int sigfillset(sigset_t *set)
    int sigaddset(sigset_t *set, int signum)
    int sigdelset(sigset_t *set, int signum)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)


cdef extern from "checksum.h" nogil:
    uint64_t fp_mix(uint64_t x)
    uint64_t fp_checksum(const void *data, uint64_t bytes)


cdef extern from "claim.h" nogil:
    enum:
        FP_CLAIM_OK
        FP_CLAIM_STARVED
        FP_CLAIM_EXHAUSTED
        FP_CLAIM_OTHER
        FP_CLAIM_CLOSED
    ctypedef struct fp_terms:
        int channel
        uint64_t number
        uint64_t range_units
        uint64_t flags
        int64_t range_start
        int64_t range_step
        uint64_t chunk_fixed
        uint32_t n_workers
        uint32_t spec
        uint64_t lifespan
        uint64_t spec_offset
        uint64_t spec_bytes
        uint64_t spec_sum
        uint64_t task_limit
        uint64_t init_limit
        uint64_t exit_limit
        uint64_t turn
    int fp_held_channel(uint64_t word)
    uint64_t fp_claim_number(uint64_t word)
    uint64_t fp_claim_index(uint64_t word)


cdef extern from "platform.h" nogil:
    ctypedef struct fp_event:
        int read_fd
        int write_fd
    ctypedef struct fp_watch:
        int fd
        int life_fd
    ctypedef struct fp_owner:
        int read_fd
        int write_fd
    void fp_fence()


cdef extern from "bell.h" nogil:
    ctypedef struct fp_spin:
        uint32_t budget_ns
        uint32_t limit_ns
    ctypedef int (*fp_predicate)(void *context) noexcept nogil
    enum:
        FP_WAIT_READY
        FP_WAIT_HANDLE
        FP_WAIT_TIMEOUT
        FP_WAIT_SIGNAL


cdef extern from "lane.h" nogil:
    ctypedef struct fp_writer:
        fp_lane *lane
        const fp_control *control
        unsigned char *ring
        uint64_t ring_bytes
        uint64_t position
        uint64_t committed
        fp_record *record
        unsigned char *at
        unsigned char *end
        int fence_each
    ctypedef struct fp_reader:
        fp_lane *lane
        uint64_t taken
    ctypedef struct fp_view:
        uint16_t kind
        uint8_t phase
        uint8_t job
        uint32_t count
        uint64_t first
        const unsigned char *at
        const unsigned char *end
    int fp_writer_commit(fp_writer *writer, unsigned char *at)


cdef extern from "board.h" nogil:
    void fp_line_news(fp_line *line)
    void fp_call_begin(fp_line *line, uint64_t until)
    int fp_call_end(fp_line *line, const fp_control *control, uint64_t until, int fence_each)


cdef extern from "arena.h" nogil:
    ctypedef struct fp_arena:
        fp_segment *segment
        uint64_t bytes
        int fd


# Atomic access to words of the structs above; the ordering is in the name, the contract in csrc/README.md.
cdef extern from *:
    """
    #define fastpool_load(word) atomic_load_explicit(&(word), memory_order_acquire)
    #define fastpool_peek(word) atomic_load_explicit(&(word), memory_order_relaxed)
    #define fastpool_store(word, value) atomic_store_explicit(&(word), (value), memory_order_release)
    #define fastpool_poke(word, value) atomic_store_explicit(&(word), (value), memory_order_relaxed)
    """
    uint64_t load "fastpool_load"(uint64_t word) nogil
    uint64_t peek "fastpool_peek"(uint64_t word) nogil
    void store "fastpool_store"(uint64_t word, uint64_t value) nogil
    void poke "fastpool_poke"(uint64_t word, uint64_t value) nogil


cdef class Arena:
    """Shared memory with heaps of blocks, in this process."""
    cdef fp_arena arena
    cdef fp_segment *at           # NULL: unmapped
    cdef readonly int lanes       # heaps 0 ... lanes - 1 are the workers', heap `lanes` the owner's
    cdef readonly int owner_pid
    cdef readonly uint64_t ident  # by which other processes know it
    cdef readonly bint public     # its blocks are arrays that workers may write to in place
    cdef set held                 # offsets of blocks that SharedBlocks of this process hold
    cdef bint retired

    cdef bint has_room_beside_reserve(self, uint64_t nbytes) except -1
    cdef SharedBlock hold(self, uint64_t offset, uint64_t bytes)
    cdef void drop(self, uint64_t offset, uint64_t nbytes) noexcept
    cdef uint64_t *held_offsets(self) except NULL
    cdef int map_from(self, tuple place, int fd) except -1
    cdef void unmap(self) noexcept


cdef class SharedBlock:
    """A block of an arena, in use as long as this object lives. A writable buffer of bytes."""
    cdef readonly Arena arena
    cdef readonly uint64_t offset
    cdef readonly uint64_t nbytes


cdef struct Space:  # a mapping that workers forked from this process have at the same address
    uint64_t ident
    unsigned char *base
    uint64_t bytes
    bint public

cdef int public_blocks() noexcept nogil
cdef const Space *space_of(const void *address, uint64_t bytes) noexcept nogil
cdef const Space *demand_space(uint64_t ident) except NULL


cdef class Detached:
    """The process of a worker whose lane is another's."""
    cdef fp_watch watch
    cdef int pid  # 0: it has been waited for
    cdef readonly int status_fd  # where a fork server tells its exit status, or -1


cdef class Segment(Arena):
    """The shared segment of one pool, its bells and its owner pipe, in this process."""
    cdef fp_event bell_event
    cdef fp_event *events
    cdef fp_watch *watches
    cdef list deaths       # by worker: workers in its lane that are gone without having exited
    cdef int silences      # after which everybody was rung
    cdef bint ended_whole   # there is no map (any more), and the last one's results were all collected
    cdef uint64_t finished  # number of the last job whose results were all collected
    cdef bint *came_up  # by worker: its line has shown another state than STARTING
    cdef int *pids
    cdef int *status_fds
    cdef int *fds
    cdef int *ready
    cdef fp_owner owner
    cdef int following  # in a worker: what came of the attempt to follow its owner
    cdef int lent_fd
    cdef Wakeup wakeup
    cdef fp_spin spin
    cdef fp_spin worker_spin
    cdef readonly Exchange exchange  # the workers are threads of this process; None: they are processes
    cdef readonly bint closed
    cdef readonly uint64_t number  # of the last map, 0: none, or given up; a worker keeps the one it was forked with
    cdef readonly uint64_t applies  # of the job of applies, 0: none
    cdef readonly uint64_t range_units  # of the map
    cdef uint64_t shortest_limit  # of the map's time limits, in ns; 0: it has none
    cdef uint64_t shortest_of_applies
    cdef uint64_t shortest_of_ends  # of the limits of init and exit functions that applies brought
    cdef uint64_t longest_limit   # of all jobs'

    cdef void _release(self)
    cdef void _unlend(self)
    cdef uint64_t _begin_job(self, int channel, uint64_t flags, uint32_t n_workers, uint32_t spec, bytes blob,
                             tuple limits) except 0
    cdef int _place_spec(self, fp_job *job, bytes blob) except -1
    cdef int _drop_spec(self, fp_job *job) except -1
    cdef bytes read_spec(self, const fp_terms *terms)
    cdef int check_words(self) except -1
    cdef int check_line(self, int worker, const fp_line *line) except -1
    cdef int check_gate(self, int channel, uint64_t number) except -1
    cpdef bint has_exited(self, int worker) except? -1
    cdef object all_claimed_at_rest(self, int channel)
    cdef uint64_t _claimed(self, int channel) except -1
    cdef void ring_everybody(self) noexcept nogil
    cdef uint64_t _offset(self, const void *at)
    cdef void ring_parent(self) noexcept nogil
    cdef void ring_worker(self, uint32_t worker) noexcept nogil
    cdef int wait_as_worker(self, uint32_t worker, fp_predicate predicate, void *context) except -1
    cdef int wait_as_parent(self, fp_predicate predicate, void *context, uint64_t deadline_ns) except -1


cdef int check(int code, str what) except -1

# What other modules call of the C core.
cdef uint64_t now_ns() noexcept nogil
cdef void line_show_longest(fp_line *line, const fp_longest *table) noexcept nogil
cdef int move_state(fp_line *line, uint32_t to) noexcept nogil
cdef int claim_join(fp_segment *segment, uint32_t worker, fp_terms *terms) noexcept nogil
cdef int claim_next(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t budget, uint64_t task_ns,
                    uint64_t *first, uint64_t *count) noexcept nogil
cdef int claim_own(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t unit) noexcept nogil
cdef void claim_begin(fp_segment *segment, uint32_t worker) noexcept nogil
cdef void claim_drop(fp_segment *segment, uint32_t worker) noexcept nogil
cdef void writer_attach(fp_writer *writer, const fp_segment *segment, uint32_t worker) noexcept nogil
cdef int writer_open(fp_writer *writer, uint16_t kind, uint8_t phase, uint64_t job, uint64_t first,
                     uint32_t need, uint32_t want) noexcept nogil
cdef void writer_close(fp_writer *writer) noexcept nogil
cdef int writer_has_room(const fp_writer *writer, uint32_t need) noexcept nogil
cdef uint32_t writer_largest(const fp_writer *writer) noexcept nogil
cdef int writer_half_full(const fp_writer *writer) noexcept nogil
cdef void reader_attach(fp_reader *reader, const fp_segment *segment, uint32_t worker) noexcept nogil
cdef int reader_look(fp_reader *reader, fp_view *view) noexcept nogil
cdef int reader_take(fp_reader *reader, uint32_t count, uint32_t bytes) noexcept nogil
cdef void lane_reset(fp_reader *reader) noexcept nogil
cdef int read_process(int pid, uint64_t address, void *to, uint64_t bytes, bint forked) noexcept nogil
cdef int write_process(int pid, uint64_t address, const void *data, uint64_t bytes) noexcept nogil
cdef bint memory_is_forked(const void *address) noexcept nogil
cdef void memory_expect(void *address, uint64_t bytes) noexcept nogil
cdef int heap_adopt(fp_segment *segment, uint32_t owner) noexcept nogil
cdef int heap_alloc(fp_segment *segment, uint32_t owner, uint64_t bytes, uint64_t *offset) noexcept nogil
cdef int heap_sweep(fp_segment *segment, uint32_t owner, const uint64_t *held, uint64_t n) noexcept nogil
cdef bint copy_to_block(fp_segment *segment, uint32_t owner, const void *data, uint64_t size,
                        uint64_t *offset) except -1
cdef int block_check(const fp_segment *segment, uint32_t owner, uint64_t offset, uint64_t bytes) noexcept nogil
cdef int block_free(fp_segment *segment, uint64_t offset) noexcept nogil
