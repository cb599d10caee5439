/* Publishing a job and claiming from it. README.md, "Claiming"; models/claim.pml. */
#ifndef FP_CLAIM_H
#define FP_CLAIM_H

#include "layout.h"

static inline uint64_t fp_claim_pack(uint64_t number, uint64_t index) {
  return ((number & FP_NUMBER_MASK) << FP_INDEX_BITS) | (index & FP_INDEX_MASK);
}
static inline uint64_t fp_claim_number(uint64_t word) { return word >> FP_INDEX_BITS; }
static inline uint64_t fp_claim_index(uint64_t word) { return word & FP_INDEX_MASK; }

static inline uint64_t fp_held_pack(uint64_t first, uint64_t count, uint32_t state) {
  return (first << (FP_COUNT_BITS + 2)) | (count << 2) | state;
}
static inline uint64_t fp_held_first(uint64_t word) { return word >> (FP_COUNT_BITS + 2); }
static inline uint64_t fp_held_count(uint64_t word) { return (word >> 2) & FP_MAX_CHUNK; }
static inline uint32_t fp_held_state(uint64_t word) { return (uint32_t)(word & 3); }

/* Parent. Close the gate for job->number + 1 (A): nobody can claim until fp_gate_open. Returns the new number, which
 * is in job->number then; or 0 if a living worker's line still shows an intent of an older job with the same low 24
 * bits: the gate is closed, job->number as it was; try again when that line has moved. */
uint64_t fp_gate_close(fp_segment *segment);
void fp_gate_open(fp_segment *segment); /* C: job.* is written, workers may claim */

enum {
  FP_CLAIM_OK = 1,        /* *first and *count are claimed */
  FP_CLAIM_STARVED = 2,   /* the job goes on but has no input now */
  FP_CLAIM_EXHAUSTED = 3, /* the job has no more for anybody (or there is none): see *number */
  FP_CLAIM_OTHER = 4,     /* the gate is open for job *number, which is not `known`: learn about it first */
};

/* Worker. Claim the next units for `worker`. `budget`: the most tasks it may take (lifespan), 0: any.
 * task_ns: its measured time per task, 0: not known. *number: the (24-bit) number of the job it looked at; while the
 * gate is closed that is the job to come. What the worker held before must be done: its line no longer shows it. */
int fp_claim_next(fp_segment *segment, uint32_t worker, uint64_t known, uint64_t budget, uint64_t task_ns,
                  uint64_t *number, uint64_t *first, uint64_t *count);
/* Worker. Nothing is held any more. */
void fp_claim_drop(fp_segment *segment, uint32_t worker);

/* How many of `left` TASK units to take: chunk_fixed if given; else guided self-scheduling (Polychronopoulos & Kuck
 * 1987): a share of what is left, bounded by chunk_ns / task_ns; with task_ns unknown a small first chunk. At least 1. */
uint64_t fp_claim_size(const fp_job *job, uint64_t left, uint64_t task_ns);

#endif
