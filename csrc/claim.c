#include "claim.h"

#include "platform.h"
#include "points.h"

static int same_low_bits(uint64_t a, uint64_t b) { return ((a ^ b) & FP_NUMBER_MASK) == 0; }

static int is_open_for(uint64_t word, uint64_t number) {
  return fp_claim_index(word) != FP_INDEX_CLOSED && same_low_bits(fp_claim_number(word), number);
}

/* ------------------------------------------------------------------ the parent */

static int is_living(const fp_line *line) {
  uint32_t state = atomic_load_explicit(&line->state, memory_order_acquire);
  return state != FP_EXITED && state != FP_DEAD;
}

/* Would a claim word of job `number` look to this worker like one of the job that it joined? */
static int is_shown(const fp_line *line, int channel, uint64_t number) {
  uint64_t job = atomic_load_explicit(&line->jobs[channel], memory_order_acquire);
  return job != 0 && job != number && same_low_bits(job, number) && is_living(line);
}

static int is_shown_anywhere(const fp_segment *segment, int channel, uint64_t number) {
  for (uint32_t worker = 0; worker < segment->lanes; worker++)
    if (is_shown(fp_line_of(segment, worker), channel, number)) return 1;
  return 0;
}

static uint64_t number_of(const fp_segment *segment, int channel) {
  return atomic_load_explicit(&segment->jobs[channel].number, memory_order_relaxed);
}

uint64_t fp_gate_close(fp_segment *segment, int channel) {
  uint64_t other = number_of(segment, !channel), number = number_of(segment, channel);
  if (number < other) number = other;
  do {
    do number++;
    while (other != 0 && (uint8_t)number == (uint8_t)other);
    atomic_store_explicit(&segment->gates[channel].claim, fp_claim_pack(number, FP_INDEX_CLOSED),
                          memory_order_release);
    /* Release alone lets the stores of B and the looks at the lines pass the store above. With this, a worker that
     * joins a job has either shown it before the looks, or finds the gate closed when it looks again (1a). */
    fp_fence();
  } while (is_shown_anywhere(segment, channel, number));
  atomic_store_explicit(&segment->jobs[channel].number, number, memory_order_release);
  return number;
}

void fp_gate_open(fp_segment *segment, int channel) {
  uint64_t word = fp_claim_pack(number_of(segment, channel), 0);
  atomic_store_explicit(&segment->gates[channel].claim, word, memory_order_release);
}

/* Job, claim, job: between two jobs the line shows no claim, so the same job twice means that they belong together. */
int fp_line_holds(const fp_line *line, int channel, uint64_t number, uint64_t *first, uint64_t *count) {
  const _Atomic uint64_t *job = &line->jobs[channel];
  *first = *count = 0;
  if (atomic_load_explicit(job, memory_order_acquire) != number) return FP_CLAIM_NONE;
  uint64_t word = atomic_load_explicit(&line->claim, memory_order_acquire);
  if (atomic_load_explicit(job, memory_order_acquire) != number) return FP_CLAIM_NONE;
  if (fp_held_state(word) == FP_CLAIM_NONE || fp_held_channel(word) != channel) return FP_CLAIM_NONE;
  *first = fp_held_first(word);
  *count = fp_held_count(word);
  return (int)fp_held_state(word);
}

/* ------------------------------------------------------------------ the worker: joining */

/* The gate first: once it has opened for a job, job.number is that job's or a later one's. */
int fp_gate_shows(const fp_segment *segment, int channel, uint64_t number) {
  fp_fence();
  uint64_t word = atomic_load_explicit(&segment->gates[channel].claim, memory_order_acquire);
  return is_open_for(word, number) &&
         atomic_load_explicit(&segment->jobs[channel].number, memory_order_acquire) == number;
}

/* 1b. Relaxed: whoever reads a newer job's parameter here finds, after a full fence, the gate closed or changed. */
static fp_terms copy_terms(const fp_segment *segment, int channel, uint64_t number) {
  const fp_job *job = &segment->jobs[channel];
#define COPY(field) .field = atomic_load_explicit(&job->field, memory_order_relaxed)
  return (fp_terms){
      .channel = channel,
      .number = number,
      COPY(range_units),
      COPY(flags),
      COPY(range_start),
      COPY(range_step),
      COPY(chunk_fixed),
      COPY(chunk_ns),
      COPY(n_workers),
      COPY(spec),
      COPY(lifespan),
      COPY(spec_offset),
      COPY(spec_bytes),
      COPY(spec_sum),
      COPY(task_limit),
      COPY(init_limit),
      COPY(exit_limit),
  };
#undef COPY
}

int fp_claim_join(fp_segment *segment, uint32_t worker, fp_terms *terms) {
  fp_line *line = fp_line_of(segment, worker);
  int channel = terms->channel;
  terms->number = 0;
  uint64_t word = atomic_load_explicit(&segment->gates[channel].claim, memory_order_acquire);
  uint64_t number = atomic_load_explicit(&segment->jobs[channel].number, memory_order_acquire);
  if (!is_open_for(word, number)) return 0;
  atomic_store_explicit(&line->claim, 0, memory_order_release);
  atomic_store_explicit(&line->jobs[channel], number, memory_order_release);
  /* 1a. Up to here the numbers may have gone round once behind this worker's back. From this look on its line keeps
   * the parent from using the number again. The look after the copy says the same and more; this one is the step of
   * the model, where the copy is proved by the CAS alone. */
  if (!fp_gate_shows(segment, channel, number)) return 0;
  fp_terms copy = copy_terms(segment, channel, number);
  copy.turn = atomic_load_explicit(&fp_control_of(segment, worker)->turn, memory_order_relaxed);
  if (!fp_gate_shows(segment, channel, number)) return 0;
  *terms = copy;
  return 1;
}

/* ------------------------------------------------------------------ the worker: claiming */

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

uint64_t fp_claim_size(const fp_terms *terms, uint64_t left, uint64_t task_ns) {
  uint64_t workers = terms->n_workers > 0 ? terms->n_workers : 1;
  uint64_t size;
  if (terms->chunk_fixed != 0)
    size = smaller(terms->chunk_fixed, left);
  else if (task_ns == 0)
    size = smaller(left / (16 * workers), 16);
  else
    size = smaller(left / (4 * workers), terms->chunk_ns / task_ns);
  size = smaller(size, FP_MAX_CHUNK);
  return size > 0 ? size : 1;
}

/* Step 3. */
static uint64_t how_many(const fp_terms *terms, uint64_t index, uint64_t left, uint64_t budget,
                         uint64_t task_ns) {
  if (index >= terms->range_units) return 1;
  uint64_t count = fp_claim_size(terms, smaller(left, terms->range_units - index), task_ns);
  return budget != 0 ? smaller(count, budget) : count;
}

enum { LOOK_AGAIN = 0 }; /* beside FP_CLAIM_* */

/* Steps 1 and 2: the gate's word, and how many units from its index, or the worker's own, on are there. */
static int look(const fp_segment *segment, const fp_terms *terms, const uint64_t *own, uint64_t *word,
                uint64_t *left) {
  const fp_gate *gate = &segment->gates[terms->channel];
  const fp_job *job = &segment->jobs[terms->channel];
  *word = atomic_load_explicit(&gate->claim, memory_order_acquire);
  uint64_t index = fp_claim_index(*word);
  if (index == FP_INDEX_CLOSED) return FP_CLAIM_CLOSED;
  if (own) index = *own;
  if (terms->number == 0 || !is_open_for(*word, terms->number)) return FP_CLAIM_OTHER;
  uint64_t avail = atomic_load_explicit(&job->avail, memory_order_acquire);
  if (index < avail) {
    *left = avail - index;
    return FP_CLAIM_OK;
  }
  uint64_t total = atomic_load_explicit(&job->total, memory_order_acquire);
  if (atomic_load_explicit(&gate->claim, memory_order_acquire) != *word) return LOOK_AGAIN;
  return total != FP_TOTAL_UNKNOWN && index >= total ? FP_CLAIM_EXHAUSTED : FP_CLAIM_STARVED;
}

int fp_claim_next(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t budget,
                  uint64_t task_ns, uint64_t *first, uint64_t *count) {
  fp_line *line = fp_line_of(segment, worker);
  for (;;) {
    uint64_t word, left;
    int found = look(segment, terms, NULL, &word, &left);
    if (found == LOOK_AGAIN) continue;
    if (found != FP_CLAIM_OK) {
      fp_claim_drop(segment, worker);
      return found;
    }
    uint64_t index = fp_claim_index(word), n = how_many(terms, index, left, budget, task_ns);
    atomic_store_explicit(&line->claim, fp_held_pack(terms->channel, index, n, FP_CLAIM_INTENT),
                          memory_order_release);
    FP_POINT(INTENT);
    if (!atomic_compare_exchange_strong_explicit(&segment->gates[terms->channel].claim, &word, word + n,
                                                 memory_order_acq_rel, memory_order_relaxed))
      continue;
    FP_POINT(CLAIMED);
    atomic_store_explicit(&line->claim, fp_held_pack(terms->channel, index, n, FP_CLAIM_HELD),
                          memory_order_release);
    *first = index;
    *count = n;
    return FP_CLAIM_OK;
  }
}

int fp_claim_own(fp_segment *segment, uint32_t worker, const fp_terms *terms, uint64_t unit) {
  fp_line *line = fp_line_of(segment, worker);
  for (;;) {
    uint64_t word, left;
    int found = look(segment, terms, &unit, &word, &left);
    if (found == LOOK_AGAIN) continue;
    if (found != FP_CLAIM_OK) {
      fp_claim_drop(segment, worker);
      return found;
    }
    atomic_store_explicit(&line->claim, fp_held_pack(terms->channel, unit, 1, FP_CLAIM_INTENT),
                          memory_order_release);
    FP_POINT(INTENT);
    if (!fp_gate_shows(segment, terms->channel, terms->number)) continue;
    FP_POINT(CLAIMED);
    atomic_store_explicit(&line->claim, fp_held_pack(terms->channel, unit, 1, FP_CLAIM_HELD),
                          memory_order_release);
    return FP_CLAIM_OK;
  }
}

void fp_claim_begin(fp_segment *segment, uint32_t worker) {
  fp_line *line = fp_line_of(segment, worker);
  uint64_t word = atomic_load_explicit(&line->claim, memory_order_relaxed);
  atomic_store_explicit(&line->claim, word | FP_CLAIM_BEGUN, memory_order_release);
}

void fp_claim_drop(fp_segment *segment, uint32_t worker) {
  fp_line *line = fp_line_of(segment, worker);
  if (atomic_load_explicit(&line->claim, memory_order_relaxed) != 0)
    atomic_store_explicit(&line->claim, 0, memory_order_release);
}
