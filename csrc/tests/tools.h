/* What several C tests share: seeded random numbers, a mapping between guard pages, children that are killed, and
 * children that are stopped after every instruction. */
#ifndef FP_TOOLS_H
#define FP_TOOLS_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

typedef struct {
  uint64_t state;
} fp_random;

static inline uint64_t random_next(fp_random *random) { /* xorshift64* */
  uint64_t x = random->state ? random->state : 88172645463325252u;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  random->state = x;
  return x * UINT64_C(2685821657736338717);
}
static inline uint64_t random_below(fp_random *random, uint64_t n) { return (random_next(random) >> 16) % n; }

/* A shared file mapped once more with an unreadable page on either side. */
static inline void *map_guarded(int fd, uint64_t bytes) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  unsigned char *base = mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(base != MAP_FAILED);
  CHECK(mmap(base + page, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == base + page);
  return base + page;
}
static inline void unmap_guarded(void *address, uint64_t bytes) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  CHECK_EQ(munmap((unsigned char *)address - page, bytes + 2 * page), 0);
}

static inline pid_t start_child(void (*body)(void *), void *context) {
  fflush(NULL);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    body(context);
    _exit(0);
  }
  return pid;
}
static inline int join_child(pid_t pid) {
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return status;
}
static inline void run_child(void (*body)(void *), void *context) {
  CHECK_EQ(join_child(start_child(body, context)), 0);
}
static inline void kill_child(pid_t pid) {
  CHECK_EQ(kill(pid, SIGKILL), 0);
  int status = join_child(pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/* Run body in a child and `look` in this process after each of the child's instructions: what look sees is what a
 * death at that instruction would leave. Once *enough is set (NULL: never), the child runs on by itself. Returns the
 * number of instructions looked at, or 0 where this is refused. */
static inline uint64_t step_child_until(void (*body)(void *), void (*look)(void *), void *context,
                                        const int *enough) {
  uint64_t steps = 0;
  int status;
  fflush(NULL);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(77);
    raise(SIGSTOP);
    body(context);
    _exit(0);
  }
  for (;;) {
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status)) break;
    CHECK(WIFSTOPPED(status));
    look(context);
    steps++;
    if (ptrace(enough && *enough ? PTRACE_CONT : PTRACE_SINGLESTEP, pid, NULL, NULL) < 0) {
      kill_child(pid);
      return 0;
    }
  }
  if (WEXITSTATUS(status) == 77) return 0;
  CHECK_EQ(WEXITSTATUS(status), 0);
  return steps;
}
static inline uint64_t step_child(void (*body)(void *), void (*look)(void *), void *context) {
  return step_child_until(body, look, context, NULL);
}
#define FP_CAN_STEP 1
#endif

#endif
