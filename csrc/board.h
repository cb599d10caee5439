/* The worker's line and its state machine. README.md, "The worker's states". */
#ifndef FP_BOARD_H
#define FP_BOARD_H

#include "layout.h"
#include "platform.h"

const char *fp_state_name(uint32_t state);    /* "starting", … ; NULL for no state */
int fp_state_may(uint32_t from, uint32_t to); /* is it a legal move? */
/* Move the line's state: 0, or FP_MISUSE if the move is not legal (the state stays). */
int fp_state_move(fp_line *line, uint32_t to);
/* A new worker starts in this line: everything zero, generation + 1, STARTING. Parent, before the fork. */
void fp_line_reset(fp_line *line);
/* Worker: something other than a commit happened that the parent must see; ring after it. */
static inline void fp_line_news(fp_line *line) {
  atomic_fetch_add_explicit(&line->news, 1, memory_order_release);
}
/* Worker: show its longest tasks, in any order. The table shown before stays whole until the next but one. */
void fp_line_show_longest(fp_line *line, const fp_longest table[FP_LONGEST]);
/* Anybody: a whole copy of the table that is shown. 0: there is none. */
int fp_line_longest(const fp_line *line, fp_longest table[FP_LONGEST]);

/* The calls of the user's functions that have a time limit. README.md, "Time limits".
 * T1: the worker is about to call one, whose time is over at `until`. */
static inline void fp_call_begin(fp_line *line, uint64_t until) {
  atomic_store_explicit(&line->call_until, until, memory_order_release);
}
/* It has returned. 1: it is condemned: nothing may come of it unless it is pardoned
 * (`condemned` is something else again). */
static inline int fp_call_end(fp_line *line, const fp_control *control, uint64_t until, int fence_each) {
  atomic_store_explicit(&line->call_until, 0, memory_order_release); /* T2 */
  if (fence_each)
    fp_fence();
  else
    atomic_signal_fence(memory_order_seq_cst); /* the parent's process-wide barrier does the rest */
  return atomic_load_explicit(&control->condemned, memory_order_acquire) == until; /* T3 */
}
/* Parent: condemn the call whose time was over at `until`. 1: it goes on, or its worker finds that it is condemned before
 * anything comes of it; 0: it is over, and pardoned: ring the worker; an errno negated. */
int fp_call_condemn(fp_line *line, fp_control *control, uint64_t until, int fence_each);

#endif
