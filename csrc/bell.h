/* Waiting. A bell is handed a predicate and knows nothing of what is waited for. The protocol, its race and
 * why no wake-up is lost: README.md, "Waiting"; models/bell.pml. */
#ifndef FP_BELL_H
#define FP_BELL_H

#include "layout.h"
#include "platform.h"
#include "points.h"

/* How long a waiter spins before it sleeps. It follows what spinning earned: doubles when the wait ended
 * while spinning, halves when it did not, between 0 and limit. Private to its owner. */
typedef struct {
  uint32_t budget_ns;
  uint32_t limit_ns; /* 0: never spin */
} fp_spin;

typedef int (*fp_predicate)(void *context); /* nonzero: what I wait for is there (or wrong: look) */

enum {
  FP_WAIT_READY = 1,  /* the predicate held */
  FP_WAIT_HANDLE = 2, /* one of the watched descriptors is readable (ready[] says which) */
  FP_WAIT_TIMEOUT = 3,
  FP_WAIT_SIGNAL = 4, /* a signal arrived: let its handler run, then wait again */
};

/* Does predicate(context) hold, at once or while spinning? Not after deadline_ns, on fp_now_ns()'s clock (FP_NEVER: none). */
int fp_bell_try(fp_spin *spin, fp_predicate predicate, void *context, uint64_t deadline_ns);

/* Sleep until predicate(context). fds[0] must be the bell's descriptor (event->read_fd); fds[1..n-1] are
 * handles whose readiness ends the wait (-1: ignored). barrier_all: this sleeper waits for words that others
 * store without a fence (the parent, unless the segment says fence_each).
 * Returns FP_WAIT_* or an errno negated. A ready handle is told before the predicate is asked again: after
 * FP_WAIT_HANDLE look at both. The reverse does not hold: a sleep that is READY before it began looked at no
 * handle (ready[] is 0), so whoever is always READY must poll the handles itself from time to time.
 * A signal whose handler ran before the poll began does not end it: the caller has a descriptor that the handler writes to
 * among the handles. */
int fp_bell_sleep(fp_bell *bell, const fp_event *event, int barrier_all, fp_predicate predicate,
                  void *context, const int *fds, int *ready, int n, uint64_t deadline_ns);

/* Wake the bell's owner if it sleeps. The caller has published what the owner waits for. Whoever clears `sleeping`
 * has already written, so a ringer may stop for ever at any instruction here and silence nobody else.
 * Returns 1 if it made a system call. */
static inline int fp_bell_ring(fp_bell *bell, const fp_event *event) {
  FP_POINT(RINGING);
  fp_fence();                                                                   /* W1 */
  uint32_t sleep = atomic_load_explicit(&bell->sleeping, memory_order_acquire); /* W2 */
  if (sleep == 0) return 0;
  fp_tally(bell->rung);
  fp_event_ring(event); /* W3; died before this: the owner also waits for our process handle */
  (void)atomic_compare_exchange_strong_explicit(&bell->sleeping, &sleep, 0, memory_order_seq_cst,
                                                memory_order_relaxed); /* W4; lost: not this sleep any more */
  return 1;
}

#endif
