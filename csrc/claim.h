/* Publishing a job and claiming from it. README.md, "Claiming"; models/claim.pml. */
#ifndef FP_CLAIM_H
#define FP_CLAIM_H

#include "layout.h"

static inline uint64_t fp_claim_pack(uint64_t number, uint64_t index) {
  return ((number & FP_NUMBER_MASK) << FP_INDEX_BITS) | (index & FP_INDEX_MASK);
}
static inline uint64_t fp_claim_number(uint64_t word) { return word >> FP_INDEX_BITS; }
static inline uint64_t fp_claim_index(uint64_t word) { return word & FP_INDEX_MASK; }

static inline uint64_t fp_held_pack(int channel, uint64_t first, uint64_t count, uint32_t state) {
  return (first << (FP_COUNT_BITS + 3)) | (count << 3) | ((uint64_t)channel << 2) | state;
}
static inline uint64_t fp_held_first(uint64_t word) { return word >> (FP_COUNT_BITS + 3); }
static inline uint64_t fp_held_count(uint64_t word) { return (word >> 3) & FP_MAX_CHUNK; }
static inline int fp_held_channel(uint64_t word) { return (int)(word >> 2) & 1; }
static inline uint32_t fp_held_state(uint64_t word) { return (uint32_t)(word & 3); }

/* A worker's private copy of a job's parameters (job.*). A worker that joined no job has number = 0: no job has
 * that number. */
typedef struct {
  int channel; /* FP_MAP, FP_APPLY: set before the first join */
  uint64_t number;
  uint64_t range_units;
  uint64_t flags;
  int64_t range_start;
  int64_t range_step;
  uint64_t chunk_fixed;
  uint64_t chunk_ns;
  uint32_t n_workers;
  uint32_t spec;
  uint64_t lifespan;
  uint64_t spec_offset;
  uint64_t spec_bytes;
  uint64_t spec_sum;
  uint64_t task_limit;
  uint64_t init_limit;
  uint64_t exit_limit;
  uint64_t turn; /* of this worker: its first unit, if the job is ORDERED */
} fp_terms;

/* Parent. Close a channel's gate (A): nobody can claim until fp_gate_open. Returns the number of the job to come, which is
 * in job.number then: the next one of all channels whose low 24 bits no living worker's line shows for this one, and
 * whose low 8 bits, which records have, are not those of another channel's job. It never waits. */
uint64_t fp_gate_close(fp_segment *segment, int channel);
void fp_gate_open(fp_segment *segment, int channel); /* C: job.* is written, workers may claim */
/* A full fence, then: is the gate open for job `number`? */
int fp_gate_shows(const fp_segment *segment, int channel, uint64_t number);

/* Worker. Join the job that the gate of terms->channel shows (1a, 1b): the line shows its number, and no claim; *terms is a copy of its
 * parameters, taken while the gate was open for it. Returns 1; or 0 if the gate is closed or changed meanwhile
 * (terms->number = 0): look again. What the worker held before must be done. */
int fp_claim_join(fp_segment *segment, uint32_t worker, fp_terms *terms);

enum {
  FP_CLAIM_OK = 1,        /* *first and *count are claimed */
  FP_CLAIM_STARVED = 2,   /* the job goes on but has no input now */
  FP_CLAIM_EXHAUSTED = 3, /* all of the job is claimed */
  FP_CLAIM_OTHER = 4,     /* the gate is open for another job: join that first */
  FP_CLAIM_CLOSED = 5,    /* the gate is closed: nothing to claim now */
};

/* Worker. Claim the next units of the job that it joined last with these terms. `budget`: the most tasks it may take
 * (lifespan), 0: any. task_ns: its measured time per task, 0: not known. What the worker held before must be done:
 * its line no longer shows it. After any answer but OK the line shows no claim. */
int fp_claim_next(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t budget,
                  uint64_t task_ns, uint64_t *first, uint64_t *count);
/* Worker. The same in an ORDERED job: claim this unit, which is nobody else's. */
int fp_claim_own(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t unit);
/* Worker. What it read of its slot will not be read again: the slot is the parent's. */
void fp_claim_begin(fp_segment *segment, uint32_t worker);
/* Worker. Nothing is held any more. */
void fp_claim_drop(fp_segment *segment, uint32_t worker);

/* Parent. What a line shows of a channel's job `number`: FP_CLAIM_NONE (*first = *count = 0), INTENT, HELD or
 * BEGUN. */
int fp_line_holds(const fp_line *line, int channel, uint64_t number, uint64_t *first, uint64_t *count);

/* How many of `left` TASK units to take: chunk_fixed if given; else guided self-scheduling (Polychronopoulos & Kuck
 * 1987): a share of what is left, bounded by chunk_ns / task_ns; with task_ns unknown a small first chunk. At least 1. */
uint64_t fp_claim_size(const fp_terms *terms, uint64_t left, uint64_t task_ns);

#endif
