#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define MS INT64_C(1000000)

/* Children of a program that has threads start one more here (the follower). */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "die_after_fork=0"; }

#ifdef FP_POSIX
enum { POSIX_ONLY = 1 };
#else
enum { POSIX_ONLY = 0 };
#endif

static int is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }
static int is_cloexec(int fd) { return (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0; }
static int is_nonblocking(int fd) { return (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0; }
static int readable(int fd, int64_t timeout_ns) {
  int ready = 0;
  CHECK(fp_poll(&fd, &ready, 1, timeout_ns) >= 0);
  return ready;
}
static void pause_ns(int64_t ns) { CHECK_EQ(fp_poll(NULL, NULL, 0, ns), 0); }

/* What must hold with the kernel's help and without it. */
static void both_ways(void (*test)(void), unsigned refuse) {
  test();
  fp_platform_refuse(refuse);
  test();
  fp_platform_refuse(0);
}

/* ------------------------------------------------------------------ memory */

static void memory_is_shared(void) {
  uint64_t bytes = 64 * fp_page_bytes();
  int fd = fp_memory_create(bytes);
  CHECK(fd >= 0 && is_cloexec(fd));
  struct stat stat;
  CHECK_EQ(fstat(fd, &stat), 0);
  CHECK_EQ(stat.st_size, bytes);
  CHECK_EQ(stat.st_nlink, 0);
  void *at, *again;
  CHECK_EQ(fp_memory_map(fd, bytes, &at), 0);
  CHECK_EQ(fp_memory_map(fd, bytes, &again), 0);
  CHECK_EQ(fp_memory_commit(at, bytes), 0);
  fp_memory_close(fd);
  CHECK(!is_open(fd));
  volatile unsigned char *left = at, *right = again;
  left[bytes - 1] = 7;
  CHECK_EQ(right[bytes - 1], 7);
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    right[0] = 9;
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK_EQ(left[0], 9);
  CHECK_EQ(fp_memory_unmap(at, bytes), 0);
  CHECK_EQ(fp_memory_unmap(again, bytes), 0);
}
static void test_memory(void) { both_ways(memory_is_shared, FP_REFUSE_MEMFD); }

static void only_whole_pages_go_back(void) {
  uint64_t page = fp_page_bytes(), bytes = 6 * page;
  int fd = fp_memory_create(bytes);
  CHECK(fd >= 0);
  void *address;
  CHECK_EQ(fp_memory_map(fd, bytes, &address), 0);
  unsigned char *at = address;
  memset(at, 0xff, bytes);
  CHECK_EQ(fp_memory_give_back(at + 1, page - 2), 0);     /* inside one page */
  CHECK_EQ(fp_memory_give_back(at + 1, 2 * page - 2), 0); /* parts of two */
  CHECK_EQ(fp_memory_give_back(at, 0), 0);
  for (uint64_t i = 0; i < bytes; i++) CHECK_EQ(at[i], 0xff);
  CHECK_EQ(fp_memory_give_back(at + page - 1, 3 * page + 2), 0);
  fp_memory_expect(at + 1, bytes - 2);
  fp_memory_expect(at + bytes, bytes); /* not mapped */
  for (uint64_t i = 0; i < bytes; i++) CHECK_EQ(at[i], i >= page && i < 4 * page ? 0 : 0xff);
  at[2 * page] = 5;
  CHECK_EQ(at[2 * page], 5);
  fp_memory_unmap(address, bytes);
  fp_memory_close(fd);
}
static void test_give_back(void) { both_ways(only_whole_pages_go_back, FP_REFUSE_MEMFD); }

static void limits_are_errors(void) {
  CHECK_EQ(fp_memory_create(0), -EINVAL);
  CHECK(fp_memory_create(UINT64_MAX) < 0);
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) { /* beyond the limit SIGXFSZ would kill it */
    struct rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_EQ(fp_memory_largest(), 1 << 20);
    CHECK_EQ(fp_memory_create((1 << 20) + 1), -EFBIG);
    CHECK(fp_memory_create(1 << 20) >= 0);
    limit.rlim_cur = limit.rlim_max = 3;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    fp_event event;
    fp_owner owner;
    CHECK_EQ(fp_memory_create(4096), -EMFILE);
    CHECK_EQ(fp_event_open(&event), -EMFILE);
    CHECK_EQ(fp_owner_open(&owner), -EMFILE);
    _exit(0);
  }
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}
static void test_limits(void) { both_ways(limits_are_errors, FP_REFUSE_MEMFD | FP_REFUSE_EVENTFD); }

/* ------------------------------------------------------------------ events, poll */

static void event_keeps_its_ring(void) {
  fp_event event;
  CHECK_EQ(fp_event_open(&event), 0);
  CHECK(is_cloexec(event.read_fd) && is_cloexec(event.write_fd));
  CHECK(is_nonblocking(event.read_fd) && is_nonblocking(event.write_fd));
  CHECK_EQ(readable(event.read_fd, 0), 0);
  fp_event_drain(&event); /* never blocks */
  for (int i = 0; i < 100000; i++) fp_event_ring(&event);
  CHECK_EQ(readable(event.read_fd, -1), 1);
  fp_event_drain(&event);
  CHECK_EQ(readable(event.read_fd, 0), 0);
  errno = 77;
  fp_event_drain(&event);
  CHECK_EQ(errno, 77);
  fp_event_ring(&event);
  CHECK_EQ(readable(event.read_fd, 0), 1);
  int read_fd = event.read_fd, write_fd = event.write_fd;
  fp_event_close(&event);
  CHECK(!is_open(read_fd) && !is_open(write_fd));
  CHECK(event.read_fd == -1 && event.write_fd == -1);
  fp_event_close(&event);
}
static void test_event(void) { both_ways(event_keeps_its_ring, FP_REFUSE_EVENTFD); }

static void test_refusal_is_felt(void) {
  fp_event event;
  CHECK_EQ(fp_event_open(&event), 0);
  CHECK_EQ(event.read_fd != event.write_fd, POSIX_ONLY);
  fp_event_close(&event);
  fp_platform_refuse(FP_REFUSE_EVENTFD | FP_REFUSE_BARRIER);
  CHECK_EQ(fp_event_open(&event), 0);
  CHECK(event.read_fd != event.write_fd);
  fp_event_close(&event);
  CHECK_EQ(fp_barrier_available(), 0);
  fp_platform_refuse(0);
}

static void test_poll(void) {
  fp_event a, b;
  CHECK_EQ(fp_event_open(&a), 0);
  CHECK_EQ(fp_event_open(&b), 0);
  int fds[4] = {a.read_fd, -1, b.read_fd, 900}, ready[4] = {5, 5, 5, 5};
  uint64_t start = fp_now_ns();
  CHECK_EQ(fp_poll(fds, ready, 3, 3 * MS + 1), 0);
  CHECK(fp_now_ns() - start >= 3 * MS + 1);
  CHECK(ready[0] == 0 && ready[1] == 0 && ready[2] == 0 && ready[3] == 5);
  fp_event_ring(&b);
  CHECK_EQ(fp_poll(fds, ready, 3, -1), 1);
  CHECK(ready[0] == 0 && ready[1] == 0 && ready[2] == 1);
  CHECK_EQ(fp_poll(fds, ready, 4, -1), 2); /* no such descriptor: not to be waited for */
  CHECK_EQ(ready[3], 1);
  CHECK_EQ(fp_poll(fds, ready, -1, 0), -EINVAL);
  fp_event_close(&a);
  fp_event_close(&b);
}

static void test_poll_many(void) {
  enum { MANY = 200 };
  int fds[MANY], ready[MANY], ends[2];
  CHECK_EQ(pipe(ends), 0);
  for (int i = 0; i < MANY; i++) fds[i] = i % 3 ? -1 : ends[0];
  CHECK_EQ(fp_poll(fds, ready, MANY, 0), 0);
  close(ends[1]); /* closed counts as ready */
  CHECK_EQ(fp_poll(fds, ready, MANY, -1), (MANY + 2) / 3);
  for (int i = 0; i < MANY; i++) CHECK_EQ(ready[i], i % 3 == 0);
  close(ends[0]);
}

/* ------------------------------------------------------------------ watch */

static int start_watched(fp_watch *watch, void (*child)(void)) {
  CHECK_EQ(fp_watch_prepare(watch), 0);
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    fp_watch_child(watch);
    CHECK_EQ(watch->fd, -1);
    child();
    _exit(0);
  }
  CHECK_EQ(fp_watch_parent(watch, pid), 0);
  CHECK(watch->fd >= 0 && watch->life_fd == -1 && is_cloexec(watch->fd));
  return pid;
}

static void end_watched(fp_watch *watch, int pid) {
  kill(pid, SIGKILL);
  CHECK_EQ(readable(watch->fd, 5000 * MS), 1);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK_EQ(readable(watch->fd, 0), 1);
  fp_watch_close(watch);
  CHECK_EQ(watch->fd, -1);
}

static void sleep_long(void) { pause_ns(20000 * MS); }

static void watch_tells_the_end(void) {
  fp_watch a, b, none;
  int first = start_watched(&a, sleep_long), second = start_watched(&b, sleep_long);
  CHECK_EQ(readable(a.fd, 20 * MS), 0);
  end_watched(&a, first); /* the second one, started later, holds nothing of it */
  CHECK_EQ(readable(b.fd, 0), 0);
  end_watched(&b, second);
  CHECK_EQ(fp_watch_prepare(&none), 0); /* the fork failed */
  fp_watch_close(&none);
  CHECK(none.fd == -1 && none.life_fd == -1);
}
static void test_watch(void) { both_ways(watch_tells_the_end, FP_REFUSE_PIDFD); }

/* The user's code in a worker forks and the worker ends: its fork must not look like its life. */
static _Atomic int *fork_of_worker;
static void fork_and_sleep(void) {
  int pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) sleep_long();
  atomic_store(fork_of_worker, pid);
  sleep_long();
}
static void fork_is_not_the_worker(void) {
  fp_watch watch;
  atomic_store(fork_of_worker, 0);
  int pid = start_watched(&watch, fork_and_sleep);
  while (atomic_load(fork_of_worker) == 0) sched_yield();
  end_watched(&watch, pid);
  CHECK_EQ(kill(atomic_load(fork_of_worker), SIGKILL), 0);
}
static void test_fork_is_not_the_worker(void) { both_ways(fork_is_not_the_worker, FP_REFUSE_PIDFD); }

/* Another thread forks between prepare and the fork of the worker. */
static void *fork_a_sleeper(void *argument) {
  int *pid = argument;
  *pid = fork();
  if (*pid == 0) {
    sleep_long();
    _exit(0);
  }
  return NULL;
}
static void others_fork_between(void) {
  fp_watch watch;
  pthread_t thread;
  int other = 0;
  CHECK_EQ(fp_watch_prepare(&watch), 0);
  CHECK_EQ(pthread_create(&thread, NULL, fork_a_sleeper, &other), 0);
  pthread_join(thread, NULL);
  CHECK(other > 0);
  int pid = fp_fork();
  if (pid == 0) {
    fp_watch_child(&watch);
    sleep_long();
    _exit(0);
  }
  CHECK_EQ(fp_watch_parent(&watch, pid), 0);
  CHECK_EQ(readable(watch.fd, 20 * MS), 0);
  end_watched(&watch, pid);
  kill(other, SIGKILL);
  CHECK_EQ(waitpid(other, NULL, 0), other);
}
static void test_others_fork_between(void) { both_ways(others_fork_between, FP_REFUSE_PIDFD); }

/* What a worker that was started by others was given: its own forks do not keep it. */
static void test_watch_in_a_process_that_is_no_fork(void) {
  int life[2];
  atomic_store(fork_of_worker, 0);
  CHECK_EQ(pipe(life), 0);
  int pid = fp_fork();
  if (pid == 0) {
    CHECK_EQ(fp_watch_inherit(life[1]), 0);
    fork_and_sleep();
    _exit(0);
  }
  close(life[1]);
  while (atomic_load(fork_of_worker) == 0) fp_yield();
  CHECK_EQ(readable(life[0], 0), 0);
  kill(pid, SIGKILL);
  CHECK_EQ(readable(life[0], 5000 * MS), 1);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK_EQ(kill(atomic_load(fork_of_worker), SIGKILL), 0); /* it lives */
  close(life[0]);
}

static void watch_kills(void) {
  fp_watch watch, late;
  int pid = start_watched(&watch, sleep_long);
  CHECK_EQ(fp_watch_kill(&watch, pid, 0), 0);
  CHECK_EQ(fp_watch_kill(&watch, pid, SIGKILL), 0);
  CHECK_EQ(readable(watch.fd, 5000 * MS), 1);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK_EQ(fp_watch_kill(&watch, getpid(), SIGKILL), -ESRCH); /* not whoever has the pid now */
  fp_watch_close(&watch);
  CHECK_EQ(fp_watch_prepare(&late), 0);
  CHECK_EQ(fp_watch_parent(&late, pid), 0);
  CHECK_EQ(readable(late.fd, 0), 1);
  fp_watch_close(&late);
}
static void test_watch_kills(void) { both_ways(watch_kills, FP_REFUSE_PIDFD); }

/* ------------------------------------------------------------------ owner */

/* `gone` is the read end of a pipe whose write end only the worker holds. */
typedef struct {
  int gone, worker, extra;
} family;

typedef struct {
  int stop_before; /* the worker waits so long before it follows */
  int spin;        /* with all signals blocked, never making a system call */
  int worker_forks, owner_forks, by_thread;
  int armed; /* the worker does not follow: the owner has armed what it lent */
} plot;

static void follow_and_check(fp_owner *owner) {
  int before = owner->read_fd;
  CHECK_EQ(fp_owner_follow(owner), 0);
  CHECK(owner->write_fd == -1 && is_open(owner->read_fd) && is_cloexec(owner->read_fd));
  CHECK(owner->read_fd == before || !is_open(before));
}

static void play_worker(const plot *p, fp_owner *owner, int tell, int self) {
  if (p->stop_before) pause_ns(p->stop_before * MS);
  if (!p->armed) follow_and_check(owner);
  sigset_t all;
  sigfillset(&all);
  if (p->spin) CHECK_EQ(sigprocmask(SIG_BLOCK, &all, NULL), 0);
  family f = {.worker = getpid()};
  if (p->worker_forks && (f.extra = fork()) == 0) {
    close(self);
    close(tell);
    sleep_long();
    _exit(0);
  }
  CHECK_EQ(write(tell, &f, sizeof f), sizeof f);
  close(tell);
  for (volatile int i = 0; p->spin; i++) fp_relax();
  sleep_long();
  _exit(0);
}

typedef struct {
  const plot *p;
  fp_owner *owner;
  int tell, self;
} start;

static void *start_worker(void *argument) {
  start *s = argument;
  int lent = s->p->armed ? fp_owner_lend(s->owner) : -1;
  int pid = fp_fork();
  CHECK(pid >= 0);
  if (pid == 0) play_worker(s->p, s->owner, s->tell, s->self);
  if (lent >= 0) {
    CHECK(is_cloexec(lent));
    CHECK_EQ(fp_owner_arm(lent, pid), 0);
    close(lent);
  }
  close(s->self);
  return NULL;
}

static void play_owner(const plot *p, int tell, int self) {
  fp_owner owner;
  pthread_t thread;
  CHECK_EQ(fp_owner_open(&owner), 0);
  CHECK(is_cloexec(owner.read_fd) && is_cloexec(owner.write_fd));
  CHECK_EQ(fp_owner_follow(&owner), -EINVAL);
  start s = {p, &owner, tell, self};
  if (p->by_thread) {
    CHECK_EQ(pthread_create(&thread, NULL, start_worker, &s), 0);
    pthread_join(thread, NULL);
  } else {
    start_worker(&s);
  }
  int extra = 0;
  if (p->owner_forks && (extra = fork()) == 0) {
    close(tell);
    sleep_long();
    _exit(0);
  }
  family f = {.extra = extra};
  if (p->stop_before || extra) CHECK_EQ(write(tell, &f, sizeof f), sizeof f);
  if (p->stop_before) kill(getpid(), SIGKILL);
  sleep_long();
  _exit(0);
}

static void owner_dies(const plot *p) {
  int tell[2], self[2];
  CHECK_EQ(pipe(tell), 0);
  CHECK_EQ(pipe(self), 0);
  int owner = fp_fork();
  CHECK(owner >= 0);
  if (owner == 0) {
    close(tell[0]);
    close(self[0]);
    play_owner(p, tell[1], self[1]);
  }
  close(tell[1]);
  close(self[1]);
  int extra = 0;
  for (int reports = p->owner_forks && !p->stop_before ? 2 : 1; reports > 0; reports--) {
    family f;
    CHECK_EQ(read(tell[0], &f, sizeof f), sizeof f);
    if (f.extra) extra = f.extra;
  }
  if (!p->stop_before) CHECK_EQ(readable(self[0], 20 * MS), 0);
  kill(owner, SIGKILL);
  CHECK_EQ(waitpid(owner, NULL, 0), owner);
  uint64_t start_ns = fp_now_ns();
  CHECK_EQ(readable(self[0], 5000 * MS), 1);
  CHECK(fp_now_ns() - start_ns < (uint64_t)(1000 * MS));
  if (extra) CHECK_EQ(kill(extra, SIGKILL), 0); /* it lives: the worker's end was not its doing */
  close(self[0]);
  close(tell[0]);
}

static void workers_end_with_the_owner(void) {
  owner_dies(&(plot){.spin = 0});
  owner_dies(&(plot){.spin = 1});
  owner_dies(&(plot){.spin = 1, .worker_forks = 1});
  owner_dies(&(plot){.spin = 1, .owner_forks = 1});
  owner_dies(&(plot){.spin = 1, .by_thread = 1});
  owner_dies(&(plot){.stop_before = 50});
  owner_dies(&(plot){.stop_before = 50, .owner_forks = 1}); /* which shares the old description */
}
static void test_owner(void) { both_ways(workers_end_with_the_owner, FP_REFUSE_SIGIO); }

static void test_owner_of_a_worker_that_cannot_follow_yet(void) {
  fp_owner owner;
  CHECK_EQ(fp_owner_open(&owner), 0);
  fp_platform_refuse(FP_REFUSE_SIGIO);
  CHECK_EQ(fp_owner_lend(&owner), -ENOSYS);
  fp_platform_refuse(0);
  fp_owner_close(&owner);
  if (POSIX_ONLY) return;
  owner_dies(&(plot){.armed = 1});
  owner_dies(&(plot){.armed = 1, .spin = 1});
  owner_dies(&(plot){.armed = 1, .owner_forks = 1});
  owner_dies(&(plot){.armed = 1, .worker_forks = 1});
}

static void in_a_fork(void (*test)(void *), void *argument) {
  int status, pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    test(argument);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}

static void write_end_is_closed_and_reused(void *argument) {
  fp_owner *owner = argument;
  int number = owner->write_fd;
  CHECK(!is_open(number));
  CHECK_EQ(dup2(2, number), number);
  fp_owner_close(owner); /* the number is another file's */
  CHECK(is_open(number));
}
static void number_is_open(void *argument) { CHECK(is_open(*(int *)argument)); }

static void test_fork_closes_once(void) {
  fp_owner owner, other;
  CHECK_EQ(fp_owner_open(&owner), 0);
  CHECK_EQ(fp_owner_open(&other), 0);
  in_a_fork(write_end_is_closed_and_reused, &owner);
  int number = owner.write_fd;
  fp_owner_close(&owner);
  CHECK(!is_open(number) && owner.read_fd == -1);
  CHECK_EQ(dup2(2, number), number);
  in_a_fork(number_is_open, &number);
  close(number);
  in_a_fork(write_end_is_closed_and_reused, &other);
  fp_owner_close(&other);
}

static void test_many_owners(void) {
  enum { MANY = 70 };
  fp_owner owners[MANY];
  for (int i = 0; i < MANY; i++) CHECK_EQ(fp_owner_open(&owners[i]), 0);
  for (int i = 0; i < MANY; i += 2) fp_owner_close(&owners[i]);
  for (int i = 1; i < MANY; i += 2) in_a_fork(write_end_is_closed_and_reused, &owners[i]);
  for (int i = 1; i < MANY; i += 2) fp_owner_close(&owners[i]);
}

/* One thread forks while another opens and closes: whatever the instant, no fork holds a write end. */
static _Atomic int churn_ends;
static void *churn(void *argument) {
  while (!atomic_load(&churn_ends)) {
    fp_owner owner;
    CHECK_EQ(fp_owner_open(&owner), 0);
    int read_end = dup(owner.read_fd);
    fp_owner_close(&owner);
    CHECK_EQ(readable(read_end, 5000 * MS), 1);
    close(read_end);
  }
  return argument;
}

static void test_forks_while_others_open(void) {
  enum { FORKS = 60 };
  int pids[FORKS];
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, churn, NULL), 0);
  for (int i = 0; i < FORKS; i++) {
    pids[i] = fork();
    CHECK(pids[i] >= 0);
    if (pids[i] == 0) {
      sleep_long();
      _exit(0);
    }
  }
  atomic_store(&churn_ends, 1);
  pthread_join(thread, NULL);
  for (int i = 0; i < FORKS; i++) kill(pids[i], SIGKILL);
  for (int i = 0; i < FORKS; i++) CHECK_EQ(waitpid(pids[i], NULL, 0), pids[i]);
}

/* ------------------------------------------------------------------ the rest */

static void barrier_answers(void) {
  int available = fp_barrier_available();
  CHECK_EQ(fp_barrier_register() == 0, available);
  CHECK_EQ(fp_barrier_all() == 0, available);
  CHECK_EQ(fp_barrier_available(), available);
  if (POSIX_ONLY) CHECK_EQ(available, 0);
}
static void test_barrier(void) { both_ways(barrier_answers, FP_REFUSE_BARRIER); }

static void test_read_process(void) {
  static uint64_t words[3] = {1, 2, 3};
  uint64_t copy[3] = {0};
  int owner = getpid(), pipe_fds[2], status;
  CHECK_EQ(pipe(pipe_fds), 0);
  int pid = fp_fork(); /* whose memory is its own: it reads ours, as it is when it reads */
  CHECK(pid >= 0);
  if (pid == 0) {
    char go;
    if (read(pipe_fds[0], &go, 1) != 1) _exit(1);
    int error = fp_read_process(owner, (uint64_t)(uintptr_t)words, copy, sizeof copy, 0);
    if (error == -EPERM || error == -ENOSYS) _exit(77); /* this system does not let us */
    if (error || copy[0] != 9 || copy[2] != 3 || words[0] != 1) _exit(2);
    if (fp_read_process(owner, (uint64_t)(uintptr_t)(words + 1), copy, 8, 1) != 0 || copy[0] != 2) _exit(6);
    for (int forked = 0; forked < 2; forked++) {
      if (fp_read_process(owner, 8, copy, 8, forked) != -EFAULT) _exit(3);
      if (fp_read_process(owner, 8, copy, 0, forked) != 0) _exit(4);
    }
    copy[1] = 7;
    if (fp_write_process(owner, (uint64_t)(uintptr_t)(words + 1), copy + 1, 8) != 0 || words[1] != 2)
      _exit(7);
    if (fp_write_process(owner, 8, copy, 8) != -EFAULT || fp_write_process(owner, 8, copy, 0) != 0) _exit(8);
    fp_platform_refuse(FP_REFUSE_READ);
    if (fp_write_process(owner, (uint64_t)(uintptr_t)words, copy, 8) != -EPERM) _exit(9);
    _exit(fp_read_process(owner, (uint64_t)(uintptr_t)words, copy, sizeof copy, 0) == -EPERM ? 0 : 5);
  }
  words[0] = 9;
  CHECK_EQ(write(pipe_fds[1], "g", 1), 1);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
#ifdef FP_POSIX
  CHECK_EQ(WEXITSTATUS(status), 77);
#else
  CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
  if (WEXITSTATUS(status) == 0) CHECK(words[0] == 9 && words[1] == 7 && words[2] == 3);
#endif
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

static void test_forked_memory(void) {
#ifndef FP_POSIX
  uint64_t bytes = 4 * fp_page_bytes();
  int fds[2];
  volatile unsigned char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  CHECK(!fp_memory_is_forked((const void *)at)); /* not there yet */
  memset((void *)at, 1, bytes);
  CHECK(!fp_memory_is_forked((const void *)at));
  CHECK_EQ(pipe(fds), 0);
  int pid = fp_fork();
  if (pid == 0) {
    char end;
    close(fds[1]);
    _exit(read(fds[0], &end, 1) != 0);
  }
  close(fds[0]);
  CHECK(fp_memory_is_forked((const void *)at));
  at[0] = 2;
  CHECK(!fp_memory_is_forked((const void *)at)); /* a copy of ours now */
  CHECK(fp_memory_is_forked((const void *)(at + bytes - 1)));
  close(fds[1]);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK(!fp_memory_is_forked((const void *)(at + bytes - 1)));
  munmap((void *)at, bytes);
#endif
}

static void test_clock(void) {
  uint64_t before = fp_now_ns();
  fp_yield();
  fp_fence();
  CHECK(fp_now_ns() >= before);
}

int main(void) {
  fork_of_worker = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(fork_of_worker != MAP_FAILED);
  RUN(test_memory);
  RUN(test_give_back);
  RUN(test_limits);
  RUN(test_event);
  RUN(test_refusal_is_felt);
  RUN(test_poll);
  RUN(test_poll_many);
  RUN(test_watch);
  RUN(test_watch_in_a_process_that_is_no_fork);
  RUN(test_watch_kills);
  RUN(test_fork_is_not_the_worker);
  RUN(test_others_fork_between);
  RUN(test_owner);
  RUN(test_owner_of_a_worker_that_cannot_follow_yet);
  RUN(test_fork_closes_once);
  RUN(test_many_owners);
  RUN(test_forks_while_others_open);
  RUN(test_barrier);
  RUN(test_read_process);
  RUN(test_forked_memory);
  RUN(test_clock);
  munmap(fork_of_worker, sizeof(int));
  return done();
}
