#include "bell.h"

#include <errno.h>

#include "points.h"

#define YIELDS          8   /* after spinning, before sleeping */
#define LOOKS_A_CLOCK   16  /* looks at the predicate for each look at the clock */
#define FIRST_BUDGET_NS 500 /* what a wait that ended while yielding is trusted with */

static int spin_until(uint64_t end, fp_predicate predicate, void *context) {
  do {
    for (int i = 0; i < LOOKS_A_CLOCK; i++) {
      if (predicate(context)) return 1;
      fp_relax();
    }
  } while (fp_now_ns() < end);
  return 0;
}

static int spin_and_yield(const fp_spin *spin, fp_predicate predicate, void *context, uint64_t deadline_ns) {
  FP_POINT(SPINNING);
  if (spin->budget_ns > 0) {
    uint64_t end = fp_now_ns() + spin->budget_ns;
    if (spin_until(end < deadline_ns ? end : deadline_ns, predicate, context)) return 1;
  }
  for (int i = 0; i < YIELDS; i++) {
    fp_yield();
    if (predicate(context)) return 1;
  }
  return 0;
}

/* A budget of 0 still yields, so it can be earned back. */
static void learn(fp_spin *spin, int earned) {
  uint64_t budget = spin->budget_ns;
  if (!earned)
    budget /= 2;
  else
    budget = budget < FIRST_BUDGET_NS ? FIRST_BUDGET_NS : 2 * budget;
  spin->budget_ns = budget < spin->limit_ns ? (uint32_t)budget : spin->limit_ns;
}

static int arm(fp_bell *bell, int barrier_all) {
  if (++bell->sleeps == 0) bell->sleeps = 1;
  atomic_store_explicit(&bell->sleeping, bell->sleeps, memory_order_seq_cst); /* S1 */
  fp_fence();                                                                 /* S2 */
  return barrier_all ? fp_barrier_all() : 0;
}

/* A ringer that read `sleeping` before this may write to the descriptor long after it: the next wait then
 * finds a ring without a reason, drains it and goes on waiting. That ringer cannot clear the next sleep's number. */
static void disarm(fp_bell *bell) { atomic_store_explicit(&bell->sleeping, 0, memory_order_seq_cst); }

static int64_t time_left(uint64_t deadline_ns) {
  if (deadline_ns == FP_NEVER) return -1;
  uint64_t now = fp_now_ns();
  if (deadline_ns <= now) return 0;
  return deadline_ns - now < INT64_MAX ? (int64_t)(deadline_ns - now) : INT64_MAX;
}

/* One sleep: FP_WAIT_*, an errno negated, or 0 for a ring without a reason. */
static int sleep_once(fp_bell *bell, const fp_event *event, int barrier_all, fp_predicate predicate,
                      void *context, const int *fds, int *ready, int n, uint64_t deadline_ns) {
  int result = arm(bell, barrier_all);
  if (result < 0 || predicate(context)) { /* S3 */
    disarm(bell);
    return result < 0 ? result : FP_WAIT_READY;
  }
  FP_POINT(ASLEEP);
  result = fp_poll(fds, ready, n, time_left(deadline_ns)); /* S4 */
  disarm(bell);                                            /* S5 */
  /* before the look below: whoever published after this drain finds sleeping 0 and writes nothing, and whoever
   * published before it is seen by the next look */
  if (result > 0 && ready[0]) {
    fp_event_drain(event);
    fp_tally(bell->drained);
  }
  if (result == -EINTR) return FP_WAIT_SIGNAL;
  if (result < 0) return result;
  if (result > (ready[0] ? 1 : 0)) return FP_WAIT_HANDLE;
  if (predicate(context)) return FP_WAIT_READY;
  return time_left(deadline_ns) == 0 ? FP_WAIT_TIMEOUT : 0;
}

int fp_bell_try(fp_spin *spin, fp_predicate predicate, void *context, uint64_t deadline_ns) {
  if (predicate(context)) return 1;
  if (spin->limit_ns == 0) return 0;
  int earned = spin_and_yield(spin, predicate, context, deadline_ns);
  learn(spin, earned);
  return earned;
}

int fp_bell_sleep(fp_bell *bell, const fp_event *event, int barrier_all, fp_predicate predicate,
                  void *context, const int *fds, int *ready, int n, uint64_t deadline_ns) {
  if (n < 1 || fds[0] != event->read_fd) return FP_MISUSE;
  for (int i = 0; i < n; i++) ready[i] = 0;
  int result;
  do result = sleep_once(bell, event, barrier_all, predicate, context, fds, ready, n, deadline_ns);
  while (result == 0);
  return result;
}
