#include "points.h"

#include <errno.h>

#ifdef FP_POINTS

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
  _Atomic int left;
  _Atomic int stopped;
} shared;

static struct {
  shared *common; /* with all forks */
  int planner;
  int point;
  int action;
  int nth;
  int passed; /* each fork counts for itself */
} plan;

int fp_points_arm(int point, int action, int nth, int times) {
  if (!plan.common) {
    void *at = mmap(0, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return -errno;
    plan.common = at;
  }
  plan.planner = getpid();
  plan.point = point;
  plan.action = action;
  plan.nth = nth;
  atomic_store(&plan.common->left, times);
  atomic_store(&plan.common->stopped, 0);
  return 0;
}

int fp_points_left(void) { return plan.common ? atomic_load(&plan.common->left) : 0; }
int fp_points_stopped(void) { return plan.common ? atomic_load(&plan.common->stopped) : 0; }

static void act(void) {
  if (plan.action == FP_ACT_EXIT) _exit(3);
  if (plan.action == FP_ACT_STOP) {
    atomic_store(&plan.common->stopped, getpid());
    raise(SIGSTOP);
  } else {
    raise(plan.action);
  }
}

void fp_points_reach(int point) {
  if (point != plan.point || !plan.common || getpid() == plan.planner) return;
  if (++plan.passed != plan.nth) return;
  if (atomic_fetch_sub(&plan.common->left, 1) > 0) act();
}

void fp_point_reached(fp_point point) { fp_points_reach((int)point); }

#else

int fp_points_arm(int point, int action, int nth, int times) {
  (void)point, (void)action, (void)nth, (void)times;
  return -ENOSYS;
}
int fp_points_left(void) { return -ENOSYS; }
void fp_points_reach(int point) { (void)point; }
int fp_points_stopped(void) { return 0; }

#endif
