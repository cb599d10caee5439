#include "claim.h"

#include "platform.h"

/* ------------------------------------------------------------------ the parent */

static int is_living(const fp_line *line) {
  uint32_t state = atomic_load_explicit(&line->state, memory_order_acquire);
  return state != FP_EXITED && state != FP_DEAD;
}

/* Might this worker still compare the gate with a word that the new number would make appear again? */
static int remembers(const fp_line *line, uint64_t number) {
  if (!is_living(line)) return 0;
  uint64_t held = atomic_load_explicit(&line->claim, memory_order_acquire);
  uint64_t job = atomic_load_explicit(&line->job, memory_order_acquire);
  return fp_held_state(held) == FP_CLAIM_INTENT && job < number && ((job ^ number) & FP_NUMBER_MASK) == 0;
}

uint64_t fp_gate_close(fp_segment *segment) {
  uint64_t number = atomic_load_explicit(&segment->job.number, memory_order_relaxed) + 1;
  atomic_store_explicit(&segment->gate.claim, fp_claim_pack(number, FP_INDEX_CLOSED), memory_order_release);
  /* Release alone lets the stores of B and the looks below pass the store above. With this, a worker either
   * showed its intent before the looks, or finds the gate closed when it looks again (step 5). */
  fp_fence();
  for (uint32_t worker = 0; worker < segment->lanes; worker++)
    if (remembers(fp_line_of(segment, worker), number)) return 0;
  atomic_store_explicit(&segment->job.number, number, memory_order_release);
  return number;
}

void fp_gate_open(fp_segment *segment) {
  uint64_t number = atomic_load_explicit(&segment->job.number, memory_order_relaxed);
  atomic_store_explicit(&segment->gate.claim, fp_claim_pack(number, 0), memory_order_release);
}

/* ------------------------------------------------------------------ the worker */

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

uint64_t fp_claim_size(const fp_job *job, uint64_t left, uint64_t task_ns) {
  uint64_t fixed = atomic_load_explicit(&job->chunk_fixed, memory_order_acquire);
  uint64_t workers = atomic_load_explicit(&job->n_workers, memory_order_acquire);
  uint64_t target_ns = atomic_load_explicit(&job->chunk_ns, memory_order_acquire);
  uint64_t size;
  if (workers == 0) workers = 1;
  if (fixed != 0)
    size = smaller(fixed, left);
  else if (task_ns == 0)
    size = smaller(left / (16 * workers), 16);
  else
    size = smaller(left / (4 * workers), target_ns / task_ns);
  size = smaller(size, FP_MAX_CHUNK);
  return size > 0 ? size : 1;
}

typedef struct {
  uint64_t word;   /* the gate as it was seen */
  uint64_t number; /* of the job, all 64 bits */
  uint64_t count;
} offer;

enum { LOOK_AGAIN = 0 }; /* beside FP_CLAIM_* */

static int gate_is(const fp_segment *segment, uint64_t word) {
  return atomic_load_explicit(&segment->gate.claim, memory_order_acquire) == word;
}

/* Steps 1 to 3. Every load acquires: whoever reads a newer job's parameter here finds the gate changed later. */
static int look(const fp_segment *segment, uint64_t known, uint64_t budget, uint64_t task_ns, offer *seen) {
  const fp_job *job = &segment->job;
  seen->word = atomic_load_explicit(&segment->gate.claim, memory_order_acquire);
  uint64_t index = fp_claim_index(seen->word);
  if (index == FP_INDEX_CLOSED) return FP_CLAIM_EXHAUSTED;
  if (fp_claim_number(seen->word) != (known & FP_NUMBER_MASK)) return FP_CLAIM_OTHER;
  seen->number = atomic_load_explicit(&job->number, memory_order_acquire);
  if ((seen->number & FP_NUMBER_MASK) != fp_claim_number(seen->word)) return LOOK_AGAIN;
  uint64_t avail = atomic_load_explicit(&job->avail, memory_order_acquire);
  if (index >= avail) {
    uint64_t total = atomic_load_explicit(&job->total, memory_order_acquire);
    if (!gate_is(segment, seen->word)) return LOOK_AGAIN;
    return total != FP_TOTAL_UNKNOWN && index >= total ? FP_CLAIM_EXHAUSTED : FP_CLAIM_STARVED;
  }
  seen->count = 1;
  if (atomic_load_explicit(&job->unit, memory_order_acquire) == FP_UNIT_TASK) {
    seen->count = fp_claim_size(job, avail - index, task_ns);
    if (budget != 0) seen->count = smaller(seen->count, budget);
  }
  return FP_CLAIM_OK;
}

/* Step 4. Between two jobs the line shows no claim, so that whoever reads job, claim and the same job again
 * knows that they belong together. */
static void show_intent(fp_line *line, const offer *seen) {
  uint64_t first = fp_claim_index(seen->word);
  if (atomic_load_explicit(&line->job, memory_order_relaxed) != seen->number) {
    atomic_store_explicit(&line->claim, 0, memory_order_release);
    atomic_store_explicit(&line->job, seen->number, memory_order_release);
  }
  atomic_store_explicit(&line->claim, fp_held_pack(first, seen->count, FP_CLAIM_INTENT),
                        memory_order_release);
}

/* Step 5. Until the intent was shown, nothing kept the parent from going once round the 24-bit numbers: the word
 * may be a younger job's by now. From here on the intent keeps it, so this look decides. */
static int still_offered(const fp_segment *segment, const offer *seen) {
  const fp_job *job = &segment->job;
  fp_fence();
  if (!gate_is(segment, seen->word)) return 0;
  if (atomic_load_explicit(&job->number, memory_order_acquire) != seen->number) return 0;
  uint64_t end = fp_claim_index(seen->word) + seen->count;
  if (end > atomic_load_explicit(&job->avail, memory_order_acquire)) return 0;
  return seen->count == 1 || atomic_load_explicit(&job->unit, memory_order_acquire) == FP_UNIT_TASK;
}

int fp_claim_next(fp_segment *segment, uint32_t worker, uint64_t known, uint64_t budget, uint64_t task_ns,
                  uint64_t *number, uint64_t *first, uint64_t *count) {
  fp_line *line = fp_line_of(segment, worker);
  for (;;) {
    offer seen;
    int found = look(segment, known, budget, task_ns, &seen);
    if (found == LOOK_AGAIN) continue;
    *number = fp_claim_number(seen.word);
    if (found != FP_CLAIM_OK) {
      fp_claim_drop(segment, worker);
      return found;
    }
    show_intent(line, &seen);
    if (!still_offered(segment, &seen)) continue;
    uint64_t word = seen.word;
    if (!atomic_compare_exchange_strong_explicit(&segment->gate.claim, &word, word + seen.count,
                                                 memory_order_acq_rel, memory_order_relaxed))
      continue;
    *first = fp_claim_index(seen.word);
    *count = seen.count;
    atomic_store_explicit(&line->claim, fp_held_pack(*first, *count, FP_CLAIM_HELD), memory_order_release);
    return FP_CLAIM_OK;
  }
}

void fp_claim_drop(fp_segment *segment, uint32_t worker) {
  fp_line *line = fp_line_of(segment, worker);
  if (atomic_load_explicit(&line->claim, memory_order_relaxed) != 0)
    atomic_store_explicit(&line->claim, 0, memory_order_release);
}
