/* The worker's line and its state machine. README.md, "The worker's states". */
#ifndef FP_BOARD_H
#define FP_BOARD_H

#include "layout.h"

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

#endif
