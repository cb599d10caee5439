#include "board.h"

#include "platform.h"
#include "points.h"

static const char *const names[FP_STATES] = {
    [FP_STARTING] = "starting", [FP_IDLE] = "idle",       [FP_INITIALIZING] = "initializing",
    [FP_RUNNING] = "running",   [FP_EXITING] = "exiting", [FP_EXITED] = "exited",
    [FP_DEAD] = "dead",
};

#define BIT(state) (1U << (state))

static const unsigned may[FP_STATES] = {
    [FP_STARTING] = BIT(FP_IDLE) | BIT(FP_DEAD),
    [FP_IDLE] = BIT(FP_INITIALIZING) | BIT(FP_RUNNING) | BIT(FP_EXITING) | BIT(FP_DEAD),
    [FP_INITIALIZING] = BIT(FP_RUNNING) | BIT(FP_EXITING) | BIT(FP_DEAD),
    [FP_RUNNING] = BIT(FP_IDLE) | BIT(FP_EXITING) | BIT(FP_DEAD),
    [FP_EXITING] = BIT(FP_EXITED) | BIT(FP_DEAD),
    [FP_EXITED] = 0,
    [FP_DEAD] = 0,
};

const char *fp_state_name(uint32_t state) { return state < FP_STATES ? names[state] : NULL; }

int fp_state_may(uint32_t from, uint32_t to) {
  return from < FP_STATES && to < FP_STATES && (may[from] & BIT(to)) != 0;
}

/* Load and store: the worker is the only writer until it is gone, then the parent is. */
int fp_state_move(fp_line *line, uint32_t to) {
  uint32_t from = atomic_load_explicit(&line->state, memory_order_acquire);
  if (!fp_state_may(from, to)) return FP_MISUSE;
  if (from == FP_STARTING) FP_POINT(HELLO);
  if (to == FP_EXITED) FP_POINT(LEAVING);
  atomic_store_explicit(&line->state, to, memory_order_release);
  return 0;
}

void fp_line_reset(fp_line *line) {
  uint32_t generation = atomic_load_explicit(&line->generation, memory_order_relaxed);
  atomic_store_explicit(&line->claim, 0, memory_order_relaxed);
  for (int channel = 0; channel < FP_CHANNELS; channel++)
    atomic_store_explicit(&line->jobs[channel], 0, memory_order_relaxed);
  atomic_store_explicit(&line->news, 0, memory_order_relaxed);
  atomic_store_explicit(&line->call_until, 0, memory_order_relaxed);
  atomic_store_explicit(&line->pid, 0, memory_order_relaxed);
  atomic_store_explicit(&line->tasks, 0, memory_order_relaxed);
  atomic_store_explicit(&line->tasks_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->started_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->init_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->waiting_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->exit_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->reads_owner, FP_READS_UNKNOWN, memory_order_relaxed);
  atomic_store_explicit(&line->timed, 0, memory_order_relaxed);
  atomic_store_explicit(&line->working_ns, 0, memory_order_relaxed);
  atomic_store_explicit(&line->shown, 0, memory_order_relaxed);
  atomic_store_explicit(&line->generation, generation + 1, memory_order_relaxed);
  atomic_store_explicit(&line->state, FP_STARTING, memory_order_release);
}

int fp_call_condemn(fp_line *line, fp_control *control, uint64_t until, int fence_each) {
  atomic_store_explicit(&control->condemned, until, memory_order_release); /* P1 */
  fp_fence();
  int result = fence_each ? 0 : fp_barrier_all();
  if (result >= 0 && atomic_load_explicit(&line->call_until, memory_order_acquire) == until)
    return 1; /* P2 */
  atomic_store_explicit(&control->condemned, 0, memory_order_release);
  return result < 0 ? result : 0;
}

#define WORDS (FP_LONGEST * sizeof(fp_longest) / sizeof(uint64_t))

static void copy(void *table, const void *source) {
  _Atomic uint64_t *to = table;
  const _Atomic uint64_t *from = source;
  for (size_t i = 0; i < WORDS; i++) {
    uint64_t word = atomic_load_explicit(&from[i], memory_order_relaxed);
    atomic_store_explicit(&to[i], word, memory_order_relaxed);
  }
}

void fp_line_show_longest(fp_line *line, const fp_longest table[FP_LONGEST]) {
  uint64_t number = atomic_load_explicit(&line->shown, memory_order_relaxed) + 1;
  /* Who copies a word that is stored from here on finds, after its own fence, that another table is shown. */
  atomic_thread_fence(memory_order_release);
  copy(line->longest[number % 2], table);
  atomic_store_explicit(&line->shown, number, memory_order_release);
}

int fp_line_longest(const fp_line *line, fp_longest table[FP_LONGEST]) {
  for (;;) {
    uint64_t number = atomic_load_explicit(&line->shown, memory_order_acquire);
    if (number == 0) return 0;
    copy(table, line->longest[number % 2]);
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&line->shown, memory_order_relaxed) == number) return 1;
  }
}
