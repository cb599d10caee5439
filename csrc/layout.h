/* Every struct that lies in the shared segment. The contract of each word is in README.md ("The words");
 * the comment beside a field names its writer. */
#ifndef FP_LAYOUT_H
#define FP_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define FP_LINE_BYTES 64 /* cache line */
#define FP_NEVER      UINT64_MAX
#define FP_MAGIC      UINT64_C(0x66617374706f6f6c)
#define FP_PAGE       65536 /* no system has larger pages: what is protected by pages begins at multiples of it */

/* Results of functions below the Cython border: 0 or positive is success, negative is an errno negated or
 * one of these. */
enum {
  FP_FULL = -2000,    /* no room now; wait and try again, or go another way */
  FP_DAMAGED = -2001, /* shared memory does not hold what the protocol allows */
  FP_MISUSE = -2002,  /* an argument that no caller should pass */
};

/* Tallies: what was begun and what was ended, compared after each test. Only in builds with FP_TALLY. */
#ifdef FP_TALLY
#define fp_tally(word) ((void)atomic_fetch_add_explicit(&(word), 1, memory_order_relaxed))
#else
#define fp_tally(word) ((void)0)
#endif

/* ------------------------------------------------------------------ claim */

/* What workers take units from: each has a gate, a job and feed slots of its own. */
enum { FP_MAP = 0, FP_APPLY = 1, FP_CHANNELS = 2 };

#define FP_INDEX_BITS   40
#define FP_INDEX_MASK   ((UINT64_C(1) << FP_INDEX_BITS) - 1)
#define FP_INDEX_CLOSED FP_INDEX_MASK /* the gate is closed: nothing to claim */
#define FP_MAX_UNITS    (FP_INDEX_MASK - 1)
#define FP_NUMBER_MASK  ((UINT64_C(1) << 24) - 1)

typedef struct {
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t claim; /* all, by CAS */
} fp_gate;

enum {
  FP_JOB_LAST = 1,         /* workers stop when the job is exhausted */
  FP_JOB_KEEP_GOING = 4,   /* a task's exception is its result: the worker goes on with the next one */
  FP_JOB_INSIGHTS = 8,     /* every task is counted and timed, and the longest are kept */
  FP_JOB_ALWAYS_EXIT = 16, /* the exit function runs also in a worker that ends because of an error */
  FP_JOB_ORDERED = 32,     /* unit u is for worker u modulo n_workers alone; no ranges */
};

#define FP_TOTAL_UNKNOWN UINT64_MAX

typedef struct {
  /* parameters: parent, while the gate is closed. Workers read them once, to a private copy (fp_terms in claim.h),
   * when the parent may already be writing the next job's. */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t number;
  _Atomic uint64_t range_units; /* units below it are tasks of the range, the others chunks in feed[] */
  _Atomic uint64_t flags;
  _Atomic int64_t range_start;
  _Atomic int64_t range_step;
  _Atomic uint64_t chunk_fixed; /* tasks a chunk; 0: by measured speed */
  _Atomic uint64_t chunk_ns;    /* target duration of a chunk */
  _Atomic uint32_t n_workers;   /* for the size of the last chunks */
  _Atomic uint32_t spec;        /* version of the job's functions */
  _Atomic uint64_t lifespan;    /* tasks a worker runs before it retires; 0: no limit */
  _Atomic uint64_t spec_offset; /* pickled functions, in a block; 0: none */
  _Atomic uint64_t spec_bytes;
  _Atomic uint64_t spec_sum;
  _Atomic uint64_t task_limit; /* ns that a call of each function may take; 0: any */
  _Atomic uint64_t init_limit;
  _Atomic uint64_t exit_limit;
  /* progress of the input: parent */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t avail; /* units that may be claimed */
  _Atomic uint64_t total;                         /* units in all, or FP_TOTAL_UNKNOWN */
  _Atomic uint64_t hungry_at;                     /* ring when a claim passes it: feed more */
  _Atomic uint64_t plan;                          /* offset of the fp_plan for array results; 0: none (yet) */
  uint64_t home;                                  /* before plan: private memory of the parent's, where */
  uint64_t home_bytes;                            /* a plan for FP_SPACE_OWNER may let workers write */
} fp_job;

#define FP_FEED_SLOTS 1024 /* chunks fed and not collected: at most this many */

typedef struct {   /* parent, before avail passes the chunk */
  uint64_t offset; /* block with the records of the chunk's arguments */
  uint64_t bytes;
  uint64_t first; /* number of its first task */
  uint64_t count;
  uint64_t skip; /* so many of these are done: a dead worker had the chunk before */
} fp_feed_slot;

#define FP_APPLY_SLOTS 4096 /* the same of applies, but those that a worker shows as begun do not count */
#define FP_APPLY_BYTES 216

typedef struct { /* one apply, a chunk of one task; the parent, as above */
  fp_feed_slot slot;
  unsigned char data[FP_APPLY_BYTES]; /* of small arguments: the records that lie in blocks otherwise */
} fp_apply_slot;

/* ------------------------------------------------------------------ bell */

typedef struct {
  _Alignas(FP_LINE_BYTES) _Atomic uint32_t sleeping; /* the sleep's number: owner; 0: ringers too, by CAS */
  uint32_t sleeps;                                   /* its owner alone: the number of its last sleep */
  _Atomic uint32_t rung;                             /* tally */
  _Atomic uint32_t drained;                          /* tally */
} fp_bell;

/* ------------------------------------------------------------------ board */

typedef enum {
  FP_STARTING = 0,
  FP_IDLE = 1,
  FP_INITIALIZING = 2,
  FP_RUNNING = 3,
  FP_EXITING = 4,
  FP_EXITED = 5,
  FP_DEAD = 6, /* written by the parent alone */
  FP_STATES = 7
} fp_state;

enum { FP_READS_UNKNOWN = 0, FP_READS_YES = 1, FP_READS_NO = 2 };
enum { FP_CLAIM_NONE = 0, FP_CLAIM_INTENT = 1, FP_CLAIM_HELD = 2, FP_CLAIM_BEGUN = 3 };
#define FP_COUNT_BITS 21
#define FP_MAX_CHUNK  ((UINT64_C(1) << FP_COUNT_BITS) - 1)

#define FP_LONGEST    5
#define FP_TEXT_BYTES 248

typedef struct {                                           /* one of the longest tasks of a worker */
  _Atomic uint64_t took_ns;                                /* 0: none */
  _Atomic uint64_t text[FP_TEXT_BYTES / sizeof(uint64_t)]; /* its arguments, shortened; zeros at the end */
} fp_longest;

typedef struct {                                  /* the worker, except where noted */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t claim; /* first unit 40 | count 21 | channel 1 | FP_CLAIM_* 2 */
  _Atomic uint64_t jobs[FP_CHANNELS];             /* number of the job it joined last; 0: none yet */
  _Atomic uint32_t state;                         /* fp_state; DEAD by the parent */
  _Atomic uint32_t news;
  _Atomic uint64_t
      call_until; /* monotonic ns: when the time of the task, init or exit function that runs is over;
                                  0: none runs that has a limit */
  _Atomic int32_t pid;
  _Atomic uint32_t generation; /* parent, before it starts the worker */
  _Atomic uint64_t tasks;      /* tasks done since it started */
  _Atomic uint64_t tasks_ns;   /* time those took */
  /* times for insights, ns */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t started_ns;
  _Atomic uint64_t init_ns;
  _Atomic uint64_t waiting_ns;
  _Atomic uint64_t exit_ns;
  _Atomic uint64_t timed;            /* tasks */
  _Atomic uint64_t working_ns;       /* time those took */
  _Atomic uint64_t shown;            /* how often a table of the longest was shown; 0: there is none */
  _Atomic uint32_t reads_owner;      /* FP_READS_*: can it read the memory of its owner? before IDLE */
  fp_longest longest[2][FP_LONGEST]; /* the one that is shown is longest[shown % 2] */
} fp_line;

/* ------------------------------------------------------------------ lane */

enum { FP_CMD_NONE = 0, FP_CMD_STOP = 1, FP_CMD_QUIT = 2 };

typedef struct { /* the worker */
  _Alignas(
      FP_LINE_BYTES) _Atomic uint64_t committed; /* items ever committed in this lane: the commit point */
  _Atomic uint64_t head;                         /* past the header of the newest record */
  _Atomic uint64_t opened;                       /* tally of records */
  _Atomic uint64_t closed;                       /* tally of records */
  fp_bell bell;                                  /* the worker's own */
} fp_lane;

typedef struct {                                 /* the parent: the lane's control line */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t tail; /* bytes before it may be overwritten */
  _Atomic uint64_t wake_at;                      /* ring when committed reaches it */
  _Atomic uint64_t abandon;                      /* drop jobs with numbers up to this one */
  _Atomic uint64_t turn;                         /* the first unit of an ORDERED job that this worker takes */
  _Atomic uint32_t command;                      /* FP_CMD_* */
  _Atomic uint64_t condemned;                    /* call_until of a call that nothing may come of; 0: none */
} fp_control;

typedef enum {
  FP_KIND_PAD = 0, /* fills the ring's end; no items */
  FP_KIND_INT64 = 1,
  FP_KIND_FLOAT64 = 2,
  FP_KIND_BOOL = 3,
  FP_KIND_NONE = 4,
  FP_KIND_STR = 5,
  FP_KIND_BYTES = 6,
  FP_KIND_PICKLE = 7,
  FP_KIND_BLOCK = 8,
  FP_KIND_FRAGMENT = 9,
  FP_KIND_ERROR = 10,
  FP_KIND_TAGGED = 11,
  FP_KIND_PACKED = 12,
  FP_KIND_PLACED = 13,
  FP_KIND_OBJECT = 14,
  FP_KINDS = 15
} fp_kind;

typedef enum { FP_PHASE_TASK = 0, FP_PHASE_INIT = 1, FP_PHASE_EXIT = 2, FP_PHASES = 3 } fp_phase;

typedef struct {
  _Atomic uint64_t closed; /* 0 while open, else FP_CLOSED | count 31 | used bytes 32 */
  uint64_t first;          /* number of the first task */
  uint64_t base;           /* lane.committed when it was opened */
  uint32_t capacity;       /* bytes of payload it may use */
  uint16_t kind; /* fp_kind in the low FP_KIND_BITS; above them a sum of all but `closed` (lane.c) */
  uint8_t phase; /* fp_phase */
  uint8_t job;   /* low 8 bits of the job's number */
} fp_record;

#define FP_CLOSED    (UINT64_C(1) << 63)
#define FP_KIND_BITS 4

static inline uint16_t fp_kind_of(const fp_record *record) {
  return record->kind & ((1U << FP_KIND_BITS) - 1);
}

/* Items of variable length: header, then data, padded to 8 bytes. */
typedef struct {
  uint32_t bytes; /* of data, without padding */
  uint32_t tag; /* STR: bytes a character (1, 2, 4); BYTES: 0; PICKLE, PACKED, ERROR: FP_KIND_PICKLE; TAGGED:
                     FP_KIND_TAGGED; ERROR of a thread: FP_KIND_OBJECT */
} fp_item;

typedef struct { /* PICKLE, TAGGED, PACKED, ERROR: after fp_item */
  uint64_t sum;  /* fp_checksum of the data */
} fp_summed;

typedef struct {   /* BLOCK item: the whole payload of one item */
  uint64_t offset; /* of the block's data in the segment */
  uint64_t bytes;
  uint64_t sum;  /* PICKLE, TAGGED: checksum; else 0 */
  uint32_t kind; /* STR, BYTES, PICKLE, TAGGED */
  uint32_t tag;  /* as in fp_item */
} fp_block_item;

typedef struct {  /* FRAGMENT item: then `bytes` of data, padded to 8 */
  uint64_t total; /* bytes of the whole item */
  uint64_t at;    /* where this piece begins */
  uint64_t sum;   /* PICKLE, TAGGED, ERROR: checksum of the whole; else 0 */
  uint32_t bytes; /* of this piece */
  uint16_t kind;  /* STR, BYTES, PICKLE, TAGGED, ERROR */
  uint16_t tag;
} fp_fragment;

/* PACKED item: fp_item, fp_summed (over all that follows), then fp_packed, its fp_buffers, `meta_bytes` of meta, and
 * the data of the INLINE buffers one after another. Meta is an fp_array for FP_FORM_ARRAY, else a pickle. */
enum { FP_FORM_ARRAY = 1, FP_FORM_PICKLE = 2 };
typedef struct {
  uint32_t form;
  uint32_t n_buffers;
  uint64_t meta_bytes;
} fp_packed;

typedef enum {
  FP_INLINE = 0,
  FP_IN_BLOCK = 1, /* a large block of the writer's heap; of a result: the reader's to free */
  /* below: only from parent to worker */
  FP_IN_SPACE = 2,   /* shared memory that the reader may use in place */
  FP_FROM_SPACE = 3, /* shared memory that the reader copies */
  FP_IN_OWNER = 4,   /* private memory of the owner's, which the reader copies */
  FP_IN_FORKED = 5,  /* the same, of pages that forks may share: see fp_read_process */
  FP_BORN_WITH = 6,  /* IN_OWNER, and a worker forked during the job has it as its own */
} fp_where;

typedef struct {
  uint64_t bytes;
  uint64_t at;    /* offset in the segment or space, or the owner's address */
  uint64_t space; /* IN_SPACE, FROM_SPACE: whose offset it is */
  uint64_t where; /* fp_where */
} fp_buffer;

typedef struct { /* then int64 dims[ndim], int64 strides[ndim] if STRIDED, then the pickled dtype */
  int32_t type;  /* numpy's type number, or -1: the dtype is pickled */
  uint32_t dtype_bytes;
  uint32_t ndim;
  uint32_t flags; /* FP_ARRAY_* */
} fp_array;
/* READ_ONLY: so is the view of shared memory that an argument is */
enum { FP_ARRAY_FORTRAN = 1, FP_ARRAY_STRIDED = 2, FP_ARRAY_READ_ONLY = 4 };

#define FP_SPACE_OWNER 2 /* names of spaces are odd */

/* Where array results of a map belong: written by the parent before job.plan names it, then constant but for `spoiled`.
 * Task i's result has rows starts[i] ... starts[i + 1] of one array. */
typedef struct {
  uint64_t space;     /* 0: this segment; FP_SPACE_OWNER: job.home, see fp_write_process */
  uint64_t at;        /* offset of the array's data */
  uint64_t row_bytes; /* of one row */
  uint64_t n_tasks;
  _Atomic uint32_t spoiled; /* workers: an object of the user's lies in a place; not to be handed out */
  uint32_t row_ndim;
  int32_t type;         /* as in fp_array */
  uint32_t dtype_bytes; /* then int64 row_dims[row_ndim], uint64 starts[n_tasks + 1], the pickled dtype */
} fp_plan;

/* ------------------------------------------------------------------ arena */

enum { FP_BLOCK_FREE = 1, FP_BLOCK_USED = 2 };

typedef struct {
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t size; /* heap's owner: header and data */
  _Atomic uint32_t state;                        /* owner: FREE→USED; holder: USED→FREE */
  uint32_t guard;                                /* owner: tells a header from data */
  uint64_t asked;                                /* owner: bytes the user asked for */
  uint64_t dirty;                                /* owner: bytes from the start whose pages are ours */
} fp_block;

typedef struct {                                /* the heap's owner */
  _Alignas(FP_LINE_BYTES) _Atomic uint64_t top; /* offset in the segment: blocks lie below it */
  _Atomic uint64_t charged;                     /* bytes counted against the cap */
  uint64_t start;                               /* constant */
  uint64_t end;                                 /* constant */
  _Atomic uint64_t taken;                       /* tally of blocks */
  _Atomic uint64_t freed;                       /* tally of blocks, by whoever freed one */
} fp_heap;

/* What lies side by side has the same writers, and what few may write the others have mapped read-only. */
typedef struct {
  fp_gate gates[FP_CHANNELS]; /* written by all */
  fp_bell bell;               /* the parent's */
  unsigned char unused[FP_PAGE - FP_CHANNELS * sizeof(fp_gate) - sizeof(fp_bell)];
  /* constant after the segment is made: nobody can write it */
  uint64_t magic;
  uint64_t bytes;      /* reserved */
  uint64_t cap;        /* bytes that heaps may use together */
  uint32_t lanes;      /* workers; heap number `lanes` is the parent's */
  uint32_t fence_each; /* no process-wide barrier here: workers fence after each commit */
  uint64_t ring_bytes; /* of each lane, a power of two */
  uint64_t lines_at;   /* offsets of the arrays below */
  uint64_t lanes_at;
  uint64_t heaps_at;
  uint64_t feed_at;
  uint64_t applies_at;
  uint64_t controls_at;
  uint64_t rings_at;
  uint64_t bounded; /* 1: pages come from a file system of limited size, and may be refused by a SIGBUS */
  uint64_t probe;   /* address of a private word of the owner's that holds FP_MAGIC */
  unsigned char unused_too[FP_PAGE - 14 * sizeof(uint64_t)];
  /* from here to lines_at (the feed's slots and the control lines follow): the parent alone */
  fp_job jobs[FP_CHANNELS];
} fp_segment;

static inline void *fp_at(const fp_segment *segment, uint64_t offset) {
  return (void *)((uintptr_t)segment +
                  (uintptr_t)offset); /* an offset may be damaged: no pointer before it is checked */
}
static inline fp_line *fp_line_of(const fp_segment *segment, uint32_t worker) {
  return (fp_line *)fp_at(segment, segment->lines_at) + worker;
}
static inline fp_lane *fp_lane_of(const fp_segment *segment, uint32_t worker) {
  return (fp_lane *)fp_at(segment, segment->lanes_at) + worker;
}
static inline fp_control *fp_control_of(const fp_segment *segment, uint32_t worker) {
  return (fp_control *)fp_at(segment, segment->controls_at) + worker;
}
static inline fp_heap *fp_heap_of(const fp_segment *segment, uint32_t owner) {
  return (fp_heap *)fp_at(segment, segment->heaps_at) + owner;
}
static inline fp_apply_slot *fp_apply_of(const fp_segment *segment, uint64_t unit) {
  return (fp_apply_slot *)fp_at(segment, segment->applies_at) + unit % FP_APPLY_SLOTS;
}
static inline fp_feed_slot *fp_feed_of(const fp_segment *segment, int channel, uint64_t chunk) {
  if (channel == FP_APPLY) return &fp_apply_of(segment, chunk)->slot;
  return (fp_feed_slot *)fp_at(segment, segment->feed_at) + chunk % FP_FEED_SLOTS;
}
static inline unsigned char *fp_ring_of(const fp_segment *segment, uint32_t worker) {
  return (unsigned char *)fp_at(segment, segment->rings_at + worker * segment->ring_bytes);
}

static inline uint64_t fp_align(uint64_t bytes, uint64_t to) { return (bytes + to - 1) & ~(to - 1); }

_Static_assert(sizeof(fp_record) == 32, "a record's header is half a cache line");
_Static_assert(sizeof(fp_item) == 8 && sizeof(fp_block_item) == 32 && sizeof(fp_fragment) == 32,
               "item headers");
_Static_assert(sizeof(fp_packed) == 16 && sizeof(fp_buffer) == 32 && sizeof(fp_array) == 16, "packed items");
_Static_assert(sizeof(fp_longest) == sizeof(uint64_t) + FP_TEXT_BYTES,
               "a table of the longest is whole words");
_Static_assert(sizeof(fp_block) == FP_LINE_BYTES, "block data is aligned to a cache line");
_Static_assert(sizeof(fp_bell) == FP_LINE_BYTES && sizeof(fp_gate) == FP_LINE_BYTES, "one writer a line");
_Static_assert(sizeof(fp_apply_slot) == 256, "an apply is whole cache lines");
_Static_assert(sizeof(fp_control) == FP_LINE_BYTES, "the parent's line of a lane is its own");
_Static_assert(offsetof(fp_segment, magic) == FP_PAGE && offsetof(fp_segment, jobs) == 2 * FP_PAGE,
               "what has other writers lies on other pages");
_Static_assert(FP_KINDS <= 1 << FP_KIND_BITS, "kinds fit beside their sum");
_Static_assert(offsetof(fp_job, avail) % FP_LINE_BYTES == 0, "avail changes while parameters do not");
_Static_assert(FP_INDEX_BITS + FP_COUNT_BITS + 3 == 64 && FP_CHANNELS <= 2,
               "line.claim packs first, count, channel and state");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "shared words must be lock-free");

#endif
