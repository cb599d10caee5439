/* A lane: the ring of records from one worker (fp_writer) to the parent (fp_reader). Neither ever waits:
 * a full ring is FP_FULL, an empty one is 0 items. README.md, "Records". */
#ifndef FP_LANE_H
#define FP_LANE_H

#include "layout.h"
#include "platform.h"

typedef struct { /* private to the worker */
  fp_lane *lane;
  const fp_control *control;
  unsigned char *ring;
  uint64_t ring_bytes;
  uint64_t position;  /* of the open record's header, or of the next record's */
  uint64_t committed; /* = lane->committed */
  fp_record *record;  /* open record, or NULL */
  unsigned char *at;  /* where the next item goes */
  unsigned char *end; /* of the open record's capacity */
  int fence_each;
} fp_writer;

/* The lane must be empty (new, or reset by the parent). */
void fp_writer_attach(fp_writer *writer, const fp_segment *segment, uint32_t worker);

/* Open a record with room for at least `need` and, if the ring has it, `want` bytes of payload
 * (need <= want). Closes the open one. FP_FULL: the reader must free first (fp_writer_has_room waits for it);
 * FP_MISUSE: `need` can never fit (more than fp_writer_largest). */
int fp_writer_open(fp_writer *writer, uint16_t kind, uint8_t phase, uint64_t job, uint64_t first,
                   uint32_t need, uint32_t want);
void fp_writer_close(fp_writer *writer);
int fp_writer_has_room(const fp_writer *writer, uint32_t need); /* would fp_writer_open(need) succeed? */
uint32_t fp_writer_largest(
    const fp_writer *writer); /* payload that always fits an empty ring: a quarter of it */
int fp_writer_half_full(const fp_writer *writer); /* unread bytes exceed half the ring */

/* The commit point: the item that ends at `at` is there. Returns nonzero if the parent wants to be rung. */
static inline int fp_writer_commit(fp_writer *writer, unsigned char *at) {
  writer->at = at;
  atomic_store_explicit(&writer->lane->committed, ++writer->committed, memory_order_release);
  if (writer->fence_each)
    fp_fence();
  else
    atomic_signal_fence(memory_order_seq_cst); /* the parent's process-wide barrier does the rest */
  return writer->committed >= atomic_load_explicit(&writer->control->wake_at, memory_order_relaxed);
}

/* What `kind` of a record's header must be: the kind, and a sum of the rest of the header but `closed`. */
uint16_t fp_record_seal(const fp_record *header, uint16_t kind);

typedef struct { /* private to the parent */
  fp_lane *lane;
  fp_control *control;
  const unsigned char *ring;
  uint64_t ring_bytes;
  uint64_t position; /* of the record being read */
  uint64_t taken;    /* items taken in all: base of the record + taken of it */
  uint64_t released; /* = control->tail */
  fp_record header; /* private copy of the record being read, `kind` without its sum; valid while in_record */
  uint32_t in_record;
  uint32_t used;  /* bytes of the record's payload already taken */
  uint32_t items; /* items of it already taken */
  uint32_t unused;
} fp_reader;

typedef struct { /* what can be taken now from one record */
  uint16_t kind;
  uint8_t phase;
  uint8_t job;
  uint32_t count;           /* items that are committed and not taken */
  uint64_t first;           /* task number of the first of these */
  const unsigned char *at;  /* their bytes in the ring */
  const unsigned char *end; /* the record's payload never goes beyond */
} fp_view;

void fp_reader_attach(fp_reader *reader, const fp_segment *segment, uint32_t worker);
/* Look at the next committed items, all of one record. 1: *view is filled, count >= 1; 0: nothing is there now; FP_DAMAGED.
 * Fully read closed records (PADs too) are passed and released on the way. */
int fp_reader_look(fp_reader *reader, fp_view *view);
/* `count` items that took `bytes` bytes were taken (all of a closed record's bytes, in the end). FP_DAMAGED if that leaves
 * the payload. The bytes stay until the next fp_reader_look, which may pass the record and release it. */
int fp_reader_take(fp_reader *reader, uint32_t count, uint32_t bytes);

/* Empty a lane that has no writer, for the next one. Parent only, after all was read. `abandon` stays. */
void fp_lane_reset(fp_reader *reader);

#endif
