#include "platform.h"

static void ring_and_stop(const fp_event *event);
#define fp_event_ring ring_and_stop /* so that fp_bell_ring, itself unchanged, can be stopped inside */
#include "bell.h"
#undef fp_event_ring

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plain_segment.h"

#define MS UINT64_C(1000000)

static int is_set(void *context) {
  return atomic_load_explicit((_Atomic int *)context, memory_order_acquire);
}
static int never(void *context) { return (void)context, 0; }

/* What every waiter does, where no signal matters. */
static int fp_bell_wait(fp_bell *bell, const fp_event *event, fp_spin *spin, int barrier_all,
                        fp_predicate predicate, void *context, const int *fds, int *ready, int n,
                        uint64_t deadline_ns) {
  for (int i = 0; i < n; i++) ready[i] = 0;
  if (fp_bell_try(spin, predicate, context, deadline_ns)) return FP_WAIT_READY;
  return fp_bell_sleep(bell, event, barrier_all, predicate, context, fds, ready, n, deadline_ns);
}

typedef struct {
  fp_bell bell;
  fp_event event;
  fp_spin spin;
  _Atomic int flag;
} waiter;

static void open_waiter(waiter *w) {
  memset(w, 0, sizeof *w);
  CHECK_EQ(fp_event_open(&w->event), 0);
}

static int wait_for(waiter *w, fp_predicate predicate, uint64_t deadline) {
  int ready;
  return fp_bell_wait(&w->bell, &w->event, &w->spin, 0, predicate, &w->flag, &w->event.read_fd, &ready, 1,
                      deadline);
}

static int readable(const fp_event *event) {
  int ready;
  return fp_poll(&event->read_fd, &ready, 1, 0);
}
static int is_rung(const waiter *w) { return readable(&w->event); }

/* The signal that fp_bell_ring gives itself right before, and right after, its write. */
static int before_write, after_write;

static void ring_and_stop(const fp_event *event) {
  if (before_write) kill(getpid(), before_write);
  fp_event_ring(event);
  if (after_write) kill(getpid(), after_write);
}

/* ------------------------------------------------------------------ one after another */

static void test_ready_at_once(void) {
  waiter w;
  open_waiter(&w);
  atomic_store(&w.flag, 1);
  CHECK_EQ(wait_for(&w, is_set, 0), FP_WAIT_READY);
  CHECK_EQ(atomic_load(&w.bell.sleeping), 0);
  CHECK_EQ(fp_bell_ring(&w.bell, &w.event), 0); /* nobody sleeps: no system call */
  CHECK_EQ(is_rung(&w), 0);
  fp_event_close(&w.event);
}

static void test_misuse(void) {
  waiter w;
  open_waiter(&w);
  int ready[2], wrong[2] = {-1, w.event.read_fd};
  CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, 0, never, NULL, wrong, ready, 2, 0), FP_MISUSE);
  CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, 0, never, NULL, wrong, ready, 0, 0), FP_MISUSE);
  fp_event_close(&w.event);
}

static void test_timeout(void) {
  waiter w;
  open_waiter(&w);
  for (uint32_t limit = 0; limit <= 2000; limit += 2000) {
    w.spin.limit_ns = w.spin.budget_ns = limit;
    uint64_t deadline = fp_now_ns() + 20 * MS;
    CHECK_EQ(wait_for(&w, never, deadline), FP_WAIT_TIMEOUT);
    CHECK(fp_now_ns() >= deadline && fp_now_ns() < deadline + 2000 * MS);
    CHECK_EQ(atomic_load(&w.bell.sleeping), 0);
  }
  CHECK_EQ(wait_for(&w, never, 0), FP_WAIT_TIMEOUT);
  fp_event_close(&w.event);
}

/* A ringer that was late: its ring is drained, and does not end the wait. */
static void test_ring_without_a_reason(void) {
  waiter w;
  open_waiter(&w);
  fp_event_ring(&w.event);
  uint64_t deadline = fp_now_ns() + 20 * MS;
  CHECK_EQ(wait_for(&w, never, deadline), FP_WAIT_TIMEOUT);
  CHECK(fp_now_ns() >= deadline);
  CHECK_EQ(is_rung(&w), 0);
  fp_event_close(&w.event);
}

static void test_one_ring_a_sleep(void) {
  waiter w;
  open_waiter(&w);
  atomic_store(&w.bell.sleeping, 7);
  CHECK_EQ(fp_bell_ring(&w.bell, &w.event), 1);
  CHECK_EQ(atomic_load(&w.bell.sleeping), 0);
  CHECK_EQ(fp_bell_ring(&w.bell, &w.event), 0);
  CHECK_EQ(is_rung(&w), 1);
  fp_event_close(&w.event);
}

typedef struct {
  const fp_bell *bell;
  uint32_t looks, last;
} numbers;

/* Without spinning, looks 2, 4, … are S3, and the others are made awake. */
static int check_number(void *context) {
  numbers *n = context;
  uint32_t number = atomic_load(&n->bell->sleeping);
  if (++n->looks % 2 != 0) {
    CHECK_EQ(number, 0);
  } else {
    CHECK(number != 0 && number != n->last);
    n->last = number;
  }
  return 0;
}

static void test_each_sleep_has_its_number(void) {
  waiter w;
  int ready;
  open_waiter(&w);
  w.bell.sleeps = UINT32_MAX - 2;
  numbers n = {.bell = &w.bell};
  for (int i = 0; i < 4; i++) {
    fp_event_ring(&w.event); /* without a reason: one sleep more */
    n.looks = 0;
    CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, 0, check_number, &n, &w.event.read_fd, &ready, 1,
                          fp_now_ns() + MS),
             FP_WAIT_TIMEOUT);
  }
  CHECK(n.last > 0 && n.last < 100); /* it went round */
  fp_event_close(&w.event);
}

static void test_spin_follows_what_it_earned(void) {
  waiter w;
  open_waiter(&w);
  w.spin = (fp_spin){.budget_ns = 1600, .limit_ns = 2000};
  for (uint32_t budget = 800; budget > 0; budget /= 2) {
    CHECK_EQ(wait_for(&w, never, 0), FP_WAIT_TIMEOUT);
    CHECK_EQ(w.spin.budget_ns, budget);
  }
  w.spin.budget_ns = 0;
  CHECK_EQ(wait_for(&w, never, 0), FP_WAIT_TIMEOUT);
  CHECK_EQ(w.spin.budget_ns, 0);
  fp_event_close(&w.event);
}

/* True from the second look on: what a wait that ends while spinning finds. */
static int second_look(void *context) { return (*(int *)context)++ > 0; }

static void test_spin_grows(void) {
  waiter w;
  open_waiter(&w);
  w.spin.limit_ns = 2000;
  uint32_t last = 0;
  for (int i = 0; i < 6; i++) {
    int looks = 0, ready;
    CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, 0, second_look, &looks, &w.event.read_fd, &ready, 1, 0),
             FP_WAIT_READY);
    CHECK(w.spin.budget_ns > last || last == w.spin.limit_ns);
    last = w.spin.budget_ns;
  }
  CHECK_EQ(last, w.spin.limit_ns);
  fp_event_close(&w.event);
}

static void pause_ns(uint64_t ns) { CHECK_EQ(fp_poll(NULL, NULL, 0, (int64_t)ns), 0); }

/* ------------------------------------------------------------------ deaths and signals */

/* The ringer read `sleeping` and died before it wrote: its handle ends the wait. */
static void test_ringer_dies_before_the_write(void) {
  fp_segment *segment = plain_segment(1);
  fp_event event;
  fp_watch watch;
  fp_spin spin = {0};
  CHECK_EQ(fp_event_open(&event), 0);
  CHECK_EQ(fp_watch_prepare(&watch), 0);
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    fp_watch_child(&watch);
    before_write = SIGKILL;
    while (!fp_bell_ring(&segment->bell, &event)) fp_yield();
    _exit(1);
  }
  CHECK_EQ(fp_watch_parent(&watch, pid), 0);
  int fds[3] = {event.read_fd, -1, watch.fd}, ready[3];
  for (int again = 0; again < 2; again++) { /* a handle stays ready */
    CHECK_EQ(fp_bell_wait(&segment->bell, &event, &spin, fp_barrier_available(), never, NULL, fds, ready, 3,
                          fp_now_ns() + 5000 * MS),
             FP_WAIT_HANDLE);
    CHECK(ready[0] == 0 && ready[1] == 0 && ready[2] == 1);
    CHECK_EQ(atomic_load(&segment->bell.sleeping), 0);
  }
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  fp_watch_close(&watch);
  fp_event_close(&event);
  plain_free(segment);
}

/* A ringer that is stopped, or dies, inside fp_bell_ring: in the first sleep's S3, so that no timing is needed. Each
 * look that is an S3 plays one of these; each must end its sleep at once. */
enum { OTHERS_RING = 1, NOBODY_ELSE_RINGS = 2, IT_CONTINUES = 3 };
typedef struct {
  fp_segment *segment;
  fp_event event;
  int looks, play, status;
  int ringer; /* its process; 0: not started */
} stopped_ringer;

static uint32_t sleeping_of(const stopped_ringer *s) { return atomic_load(&s->segment->bell.sleeping); }

/* A failed CHECK must not leave a stopped process behind. */
static volatile sig_atomic_t stopped_process;
static void on_abort(int number) {
  (void)number;
  if (stopped_process > 0) kill(stopped_process, SIGKILL);
}

static void start_ringer(stopped_ringer *s, int before, int after) {
  s->ringer = fp_fork();
  CHECK(s->ringer >= 0);
  if (s->ringer == 0) {
    before_write = before;
    after_write = after;
    atomic_store(&s->segment->jobs[FP_MAP].avail, 1);
    _exit(fp_bell_ring(&s->segment->bell, &s->event) != 1);
  }
  CHECK_EQ(waitpid(s->ringer, &s->status, WUNTRACED), s->ringer);
  if (WIFSTOPPED(s->status)) stopped_process = s->ringer;
}

static int look_at_avail(void *context) {
  stopped_ringer *s = context;
  int seen = atomic_load(&s->segment->jobs[FP_MAP].avail) != 0;
  if (++s->looks != 2) return seen; /* S3 is the second look of a wait that does not spin */
  uint32_t number = sleeping_of(s);
  CHECK(number != 0);
  if (s->play == IT_CONTINUES) {
    CHECK_EQ(kill(s->ringer, SIGCONT), 0);
    CHECK_EQ(waitpid(s->ringer, &s->status, 0), s->ringer);
    stopped_process = 0;
    CHECK(WIFEXITED(s->status) && WEXITSTATUS(s->status) == 0);
    CHECK_EQ(sleeping_of(s), number); /* this sleep is not the one it had read */
  } else if (s->ringer == 0) {
    start_ringer(s, before_write, after_write);
    CHECK_EQ(sleeping_of(s), number); /* nobody has cleared it */
    CHECK_EQ(readable(&s->event), s->play == NOBODY_ELSE_RINGS);
  }
  if (s->play != NOBODY_ELSE_RINGS) {
    int before = before_write, after = after_write;
    before_write = after_write = 0;
    atomic_store(&s->segment->jobs[FP_MAP].avail, 1);
    CHECK_EQ(fp_bell_ring(&s->segment->bell, &s->event), 1);
    before_write = before;
    after_write = after;
  }
  return 0; /* what came after this look must be told by the bell */
}

static void play(stopped_ringer *s, int what) {
  fp_spin spin = {0};
  int ready;
  s->play = what;
  s->looks = 0;
  atomic_store(&s->segment->jobs[FP_MAP].avail, 0);
  CHECK_EQ(fp_bell_wait(&s->segment->bell, &s->event, &spin, 0, look_at_avail, s, &s->event.read_fd, &ready,
                        1, fp_now_ns() + 2000 * MS),
           FP_WAIT_READY);
  CHECK(s->looks >= 3);
  CHECK_EQ(sleeping_of(s), 0);
}

static void ringer_stops(int before, int after) {
  stopped_ringer s = {.segment = plain_segment(1)};
  int how = before + after;
  CHECK_EQ(fp_event_open(&s.event), 0);
  CHECK(signal(SIGABRT, on_abort) != SIG_ERR);
  before_write = before;
  after_write = after;
  play(&s, before ? OTHERS_RING : NOBODY_ELSE_RINGS);
  CHECK(how == SIGSTOP ? WIFSTOPPED(s.status) : WIFSIGNALED(s.status));
  play(&s, OTHERS_RING); /* now and for ever */
  play(&s, OTHERS_RING);
  if (how == SIGSTOP) play(&s, IT_CONTINUES);
  play(&s, OTHERS_RING);
  before_write = after_write = 0;
  fp_event_close(&s.event);
  plain_free(s.segment);
}

static void test_ringer_stops_before_the_write(void) { ringer_stops(SIGSTOP, 0); }
static void test_ringer_stops_after_the_write(void) { ringer_stops(0, SIGSTOP); }
static void test_ringer_dies_after_the_write(void) { ringer_stops(0, SIGKILL); }

/* Handle and predicate at once: the handle is told, and the bell is drained. */
static int rings_and_holds(void *context) {
  fp_event_ring(context);
  return 0;
}
static void test_handle_beside_a_ring(void) {
  waiter w;
  fp_event handle;
  open_waiter(&w);
  CHECK_EQ(fp_event_open(&handle), 0);
  fp_event_ring(&handle);
  int fds[2] = {w.event.read_fd, handle.read_fd}, ready[2];
  CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, 0, rings_and_holds, &w.event, fds, ready, 2, FP_NEVER),
           FP_WAIT_HANDLE);
  CHECK(ready[0] == 1 && ready[1] == 1);
  CHECK_EQ(is_rung(&w), 0);
  fp_event_close(&handle);
  fp_event_close(&w.event);
}

static void on_signal(int number) { (void)number; }

static void test_signal_ends_the_wait(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
  waiter w;
  open_waiter(&w);
  int parent = getpid(), pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    for (;;) { /* again and again: one may come before the poll */
      pause_ns(10 * MS);
      if (kill(parent, SIGUSR1) != 0) _exit(0);
    }
  }
  CHECK_EQ(wait_for(&w, never, fp_now_ns() + 5000 * MS), FP_WAIT_SIGNAL);
  CHECK_EQ(atomic_load(&w.bell.sleeping), 0);
  kill(pid, SIGKILL);
  while (waitpid(pid, NULL, 0) != pid) continue;
  fp_event_close(&w.event);
}

/* Whoever publishes between a look and the next step is seen by the next look, or rings. A ring without a reason
 * makes the waiter go round once more: two looks for each round, after the first. */
typedef struct {
  waiter *w;
  int looks, publish_after;
} intruder;

static int look_then_publish(void *context) {
  intruder *i = context;
  int seen = atomic_load(&i->w->flag);
  if (++i->looks < i->publish_after) {
    fp_event_ring(&i->w->event);
  } else if (i->looks == i->publish_after) {
    atomic_store(&i->w->flag, 1);
    fp_bell_ring(&i->w->bell, &i->w->event);
  }
  return seen;
}

static void published_after_look(int after, uint32_t spin_limit) {
  waiter w;
  int ready;
  open_waiter(&w);
  w.spin = (fp_spin){.budget_ns = spin_limit / 2, .limit_ns = spin_limit};
  intruder i = {.w = &w, .publish_after = after};
  uint64_t start = fp_now_ns();
  CHECK_EQ(fp_bell_wait(&w.bell, &w.event, &w.spin, after % 2 && fp_barrier_available(), look_then_publish,
                        &i, &w.event.read_fd, &ready, 1, start + 5000 * MS),
           FP_WAIT_READY);
  CHECK(fp_now_ns() - start < 2000 * MS);
  CHECK_EQ(i.looks, after + 1);
  CHECK_EQ(atomic_load(&w.bell.sleeping), 0);
  fp_event_close(&w.event);
}

static void test_published_after_any_look(void) {
  for (int after = 1; after <= 60; after++) {
    published_after_look(after, 0);
    published_after_look(after, 2);
  }
}

/* ------------------------------------------------------------------ no wake-up is lost
 *
 * A worker commits as README.md says: store, load wake_at, ring only if it is reached; with a fence between
 * only where there is no process-wide barrier. It stops when `window` commits are not collected, so that each
 * side waits for the other all the time. A wait that lasts seconds is a lost wake-up. */

typedef struct {
  fp_segment *segment;
  fp_event parents, workers;
  uint64_t items, window;
  uint32_t parent_spin, worker_spin;
} game;

static int space(void *context) {
  const game *g = context;
  const fp_lane *lane = fp_lane_of(g->segment, 0);
  const fp_control *control = fp_control_of(g->segment, 0);
  return atomic_load_explicit(&lane->committed, memory_order_relaxed) -
             atomic_load_explicit(&control->tail, memory_order_acquire) <
         g->window;
}

static void commit_and_ring(const game *g, fp_lane *lane, uint64_t count) {
  atomic_store_explicit(&lane->committed, count, memory_order_release);
  if (g->segment->fence_each) fp_fence();
  if (count >= atomic_load_explicit(&fp_control_of(g->segment, 0)->wake_at, memory_order_relaxed))
    fp_bell_ring(&g->segment->bell, &g->parents);
}

/* So that the two meet at any instruction. */
static void relax_for(uint64_t times) {
  for (volatile uint64_t i = 0; i < times; i++) {
  }
}

static void play_worker(game *g) {
  fp_lane *lane = fp_lane_of(g->segment, 0);
  fp_spin spin = {.budget_ns = g->worker_spin, .limit_ns = g->worker_spin};
  int ready;
  if (!g->segment->fence_each) CHECK_EQ(fp_barrier_register(), 0);
  for (uint64_t count = 1; count <= g->items; count++) {
    CHECK_EQ(fp_bell_wait(&lane->bell, &g->workers, &spin, 0, space, g, &g->workers.read_fd, &ready, 1,
                          fp_now_ns() + 8000 * MS),
             FP_WAIT_READY);
    if (g->worker_spin > 0) relax_for(count % 8);
    fp_relax(); /* meet it at any instruction */
    commit_and_ring(g, lane, count);
  }
}

static int reached(void *context) {
  const game *g = context;
  const fp_lane *lane = fp_lane_of(g->segment, 0);
  const fp_control *control = fp_control_of(g->segment, 0);
  return atomic_load_explicit(&lane->committed, memory_order_acquire) >=
         atomic_load_explicit(&control->wake_at, memory_order_relaxed);
}

static void play_parent(game *g) {
  fp_lane *lane = fp_lane_of(g->segment, 0);
  fp_control *control = fp_control_of(g->segment, 0);
  fp_spin spin = {.budget_ns = g->parent_spin, .limit_ns = g->parent_spin};
  uint64_t collected = 0;
  int ready;
  while (collected < g->items) {
    if (g->worker_spin > 0) relax_for(collected / 8 % 32);
    uint64_t want = 1 + collected % g->window, left = g->items - collected;
    atomic_store_explicit(&control->wake_at, collected + (want < left ? want : left), memory_order_relaxed);
    CHECK_EQ(fp_bell_wait(&g->segment->bell, &g->parents, &spin, fp_barrier_available(), reached, g,
                          &g->parents.read_fd, &ready, 1, fp_now_ns() + 5000 * MS),
             FP_WAIT_READY);
    atomic_store_explicit(&control->wake_at, FP_NEVER, memory_order_relaxed);
    collected = atomic_load_explicit(&lane->committed, memory_order_acquire);
    atomic_store_explicit(&control->tail, collected, memory_order_release);
    fp_bell_ring(&lane->bell, &g->workers);
  }
}

static void open_game(game *g, int items, uint64_t window, uint32_t parent_spin, uint32_t worker_spin) {
  *g = (game){.items = (uint64_t)rounds(items), .window = window};
  g->parent_spin = parent_spin;
  g->worker_spin = worker_spin;
  g->segment = plain_segment(1);
  g->segment->fence_each = !fp_barrier_available();
  CHECK_EQ(fp_event_open(&g->parents), 0);
  CHECK_EQ(fp_event_open(&g->workers), 0);
}

static void close_game(game *g) {
  fp_event_close(&g->parents);
  fp_event_close(&g->workers);
  plain_free(g->segment);
}

static void *worker_thread(void *argument) {
  play_worker(argument);
  return NULL;
}

static void with_thread(int items, uint64_t window, uint32_t parent_spin, uint32_t worker_spin) {
  game g;
  pthread_t thread;
  open_game(&g, items, window, parent_spin, worker_spin);
  CHECK_EQ(pthread_create(&thread, NULL, worker_thread, &g), 0);
  play_parent(&g);
  pthread_join(thread, NULL);
  close_game(&g);
}

static void with_process(int items, uint64_t window, uint32_t parent_spin, uint32_t worker_spin) {
  game g;
  int status;
  open_game(&g, items, window, parent_spin, worker_spin);
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    play_worker(&g);
    _exit(0);
  }
  play_parent(&g);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  close_game(&g);
}

static void every_game(void) {
  with_thread(2000, 1, 0, 0);
  with_thread(10000, 1, 0, 1000000);
  with_thread(20000, 7, 0, 0);
  with_thread(20000, 3, 2000, 2000);
  with_process(2000, 1, 0, 0);
  with_process(10000, 1, 0, 1000000);
  with_process(20000, 7, 0, 0);
  with_process(20000, 3, 2000, 2000);
}

static void test_commits_without_a_fence(void) { every_game(); }

static void test_commits_refused_everything(void) {
  fp_platform_refuse(FP_REFUSE_BARRIER | FP_REFUSE_EVENTFD | FP_REFUSE_PIDFD);
  every_game();
  test_ringer_dies_before_the_write();
  test_ringer_stops_before_the_write();
  test_ringer_stops_after_the_write();
  test_ring_without_a_reason();
  fp_platform_refuse(0);
}

/* Many ringers, one sleeper: each publication is seen. */
enum { RINGERS = 3 };
static struct {
  waiter w;
  _Atomic uint64_t published, seen;
  uint64_t each;
} crowd;

static void *ringer(void *argument) {
  for (uint64_t i = 0; i < crowd.each; i++) {
    uint64_t mine = atomic_fetch_add(&crowd.published, 1) + 1;
    fp_bell_ring(&crowd.w.bell, &crowd.w.event);
    while (atomic_load(&crowd.seen) < mine) fp_yield();
  }
  return argument;
}

static int unseen(void *context) {
  (void)context;
  return atomic_load_explicit(&crowd.published, memory_order_acquire) > atomic_load(&crowd.seen);
}

static void test_crowd(void) {
  pthread_t threads[RINGERS];
  open_waiter(&crowd.w);
  crowd.each = (uint64_t)rounds(2000);
  for (int i = 0; i < RINGERS; i++) CHECK_EQ(pthread_create(&threads[i], NULL, ringer, NULL), 0);
  while (atomic_load(&crowd.seen) < RINGERS * crowd.each) {
    CHECK_EQ(wait_for(&crowd.w, unseen, fp_now_ns() + 5000 * MS), FP_WAIT_READY);
    atomic_store(&crowd.seen, atomic_load(&crowd.published));
  }
  for (int i = 0; i < RINGERS; i++) pthread_join(threads[i], NULL);
  fp_event_close(&crowd.w.event);
}

int main(void) {
  RUN(test_ready_at_once);
  RUN(test_misuse);
  RUN(test_timeout);
  RUN(test_ring_without_a_reason);
  RUN(test_one_ring_a_sleep);
  RUN(test_each_sleep_has_its_number);
  RUN(test_spin_follows_what_it_earned);
  RUN(test_spin_grows);
  RUN(test_ringer_dies_before_the_write);
  RUN(test_ringer_stops_before_the_write);
  RUN(test_ringer_stops_after_the_write);
  RUN(test_ringer_dies_after_the_write);
  RUN(test_handle_beside_a_ring);
  RUN(test_signal_ends_the_wait);
  RUN(test_published_after_any_look);
  RUN(test_commits_without_a_fence);
  RUN(test_commits_refused_everything);
  RUN(test_crowd);
  return done();
}
