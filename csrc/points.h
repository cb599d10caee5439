/* Places where a worker can be made to end, for tests (built with -DFP_POINTS; otherwise they are nothing).
 *
 * The tests arm one point before they start workers; each fork made after that, and only such a fork, ends there or
 * is disturbed, the n-th time it passes, until so many have been. */
#ifndef FP_POINTS_H
#define FP_POINTS_H

#include <stdint.h>

typedef enum {
  FP_POINT_NONE = 0,
  FP_POINT_FORKED = 1,    /* the first thing that a fork does */
  FP_POINT_HELLO = 2,     /* before the line says idle for the first time */
  FP_POINT_SPINNING = 3,  /* in a wait that looks at memory */
  FP_POINT_ASLEEP = 4,    /* in a wait: `sleeping` is set, and poll comes next */
  FP_POINT_INTENT = 5,    /* the line shows an intent, which is not claimed yet */
  FP_POINT_CLAIMED = 6,   /* the claim has succeeded, the line shows the intent still */
  FP_POINT_RECORD = 7,    /* a record is open that has no item yet */
  FP_POINT_CLOSING = 8,   /* its items are committed, and it is still open */
  FP_POINT_ALLOCATED = 9, /* a large block is in use that nothing names */
  FP_POINT_RINGING = 10,  /* something is published that the parent has not been rung for */
  FP_POINT_LEAVING = 11   /* before the line says exited */
} fp_point;

#ifdef FP_POINTS
void fp_point_reached(fp_point point);
#define FP_POINT(name) fp_point_reached(FP_POINT_##name)
#else
#define FP_POINT(name) ((void)0)
#endif

/* What happens to a fork that reaches the point: FP_ACT_EXIT, FP_ACT_STOP, or a signal's number. */
enum {
  FP_ACT_EXIT = -1, /* _exit(3) */
  FP_ACT_STOP = -2, /* its pid is stored where fp_points_stopped finds it, then SIGSTOP */
};

/* In the process that will fork: 0, or an errno negated (-ENOSYS: not built with points). */
int fp_points_arm(int point, int action, int nth, int times);
int fp_points_left(void); /* of `times`; or an errno negated */
/* What a test's own code calls in a fork, at a point that it calls `point`. */
void fp_points_reach(int point);
int fp_points_stopped(void); /* pid of the last fork that was stopped, else 0 */

#endif
