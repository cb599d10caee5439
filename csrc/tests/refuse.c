/* Makes the system say no: preloaded (LD_PRELOAD) into a Python process, it refuses a chosen call of a chosen
 * function of libc, if fastpool's extensions make it. See tests/refusals.py, which builds it and says what to refuse.
 *
 * What to refuse is in a file that REFUSE_CONTROL names, mapped by every process of the test. */
#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct {         /* the same in tests/refusals.py */
  char function[32];     /* "": refuse nothing */
  int64_t owner;         /* process id of the pool's owner */
  int64_t of_workers;    /* the other processes' calls are counted, not the owner's */
  int64_t first;         /* number of the call to refuse, from 1, in each process */
  int64_t onwards;       /* and all that come after it; else only one, in whichever process it comes first */
  int64_t error;         /* errno that it fails with */
  int64_t anyones;       /* calls of all code, not only of fastpool's extensions */
  _Atomic int64_t calls; /* the most that one process made */
  _Atomic int64_t refused; /* how many were refused */
} control;

static control *shared;

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static void *next(_Atomic(void *) *known, const char *name) {
  if (*known == NULL) *known = dlsym(RTLD_NEXT, name);
  return *known;
}

#define NEXT(name) ((__typeof__(&name))next(&next_##name, #name))

static _Atomic(void *) next_open, next_mmap;

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("REFUSE_CONTROL");
  int fd = path == NULL ? -1 : NEXT(open)(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *at = NEXT(mmap)(NULL, sizeof(control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (at != MAP_FAILED) shared = at;
}

/* Which places in the code are fastpool's: found out once for each. */
static int is_fastpool(void *caller) {
  enum { PLACES = 4096 };
  static _Atomic uintptr_t known[PLACES]; /* the address, and whether it is, in its lowest bit */
  uintptr_t address = (uintptr_t)caller << 1;
  _Atomic uintptr_t *place = &known[((uintptr_t)caller * 0x9e3779b97f4a7c15u) >> 52];
  uintptr_t seen = *place;
  if ((seen | 1) == (address | 1)) return seen & 1;
  Dl_info info;
  int answer = dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/fastpool/_");
  *place = address | (uintptr_t)answer;
  return answer;
}

static int is_refused(const char *function, void *caller) {
  static _Atomic int64_t calls, pid;
  if (shared == NULL || strcmp(function, shared->function) != 0 || !(shared->anyones || is_fastpool(caller)))
    return 0;
  int64_t self = (int64_t)getpid();
  if ((self != shared->owner) != (shared->of_workers != 0)) return 0;
  if (pid != self) calls = 0; /* a fork of a process that counted */
  pid = self;
  int64_t number = ++calls;
  if (number > shared->calls) shared->calls = number;
  if (number < shared->first || (number > shared->first && !shared->onwards)) return 0;
  if (shared->refused++ && !shared->onwards) return 0;
  errno = (int)shared->error;
  return 1;
}

#define REFUSED(name) is_refused(name, __builtin_return_address(0))

/* A function that is called with `given`, and whose failure is the value `failure`. */
#define WRAP(type, name, failure, parameters, given) \
  static _Atomic(void *) next_##name;                \
  type name parameters {                             \
    if (REFUSED(#name)) return failure;              \
    return NEXT(name) given;                         \
  }

WRAP(int, memfd_create, -1, (const char *name, unsigned flags), (name, flags))
WRAP(int, shm_open, -1, (const char *name, int flags, mode_t mode), (name, flags, mode))
WRAP(int, fstatvfs, -1, (int fd, struct statvfs *fs), (fd, fs))
WRAP(int, ftruncate, -1, (int fd, off_t bytes), (fd, bytes))
WRAP(int, mprotect, -1, (void *at, size_t bytes, int protection), (at, bytes, protection))
WRAP(int, madvise, -1, (void *at, size_t bytes, int advice), (at, bytes, advice))
WRAP(int, eventfd, -1, (unsigned count, int flags), (count, flags))
WRAP(int, pipe2, -1, (int fds[2], int flags), (fds, flags))
WRAP(int, pipe, -1, (int fds[2]), (fds))
WRAP(ssize_t, pread, -1, (int fd, void *to, size_t bytes, off_t at), (fd, to, bytes, at))
WRAP(ssize_t, pwrite64, -1, (int fd, const void *from, size_t bytes, off64_t at), (fd, from, bytes, at))
WRAP(ssize_t, read, -1, (int fd, void *to, size_t bytes), (fd, to, bytes))
WRAP(ssize_t, write, -1, (int fd, const void *from, size_t bytes), (fd, from, bytes))
WRAP(ssize_t, process_vm_readv, -1,
     (pid_t pid, const struct iovec *to, unsigned long n, const struct iovec *from, unsigned long m,
      unsigned long flags),
     (pid, to, n, from, m, flags))
WRAP(ssize_t, process_vm_writev, -1,
     (pid_t pid, const struct iovec *from, unsigned long n, const struct iovec *to, unsigned long m,
      unsigned long flags),
     (pid, from, n, to, m, flags))
WRAP(int, ppoll, -1, (struct pollfd * fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask),
     (fds, n, timeout, mask))
WRAP(int, poll, -1, (struct pollfd * fds, nfds_t n, int timeout), (fds, n, timeout))
WRAP(pid_t, fork, -1, (void), ())
WRAP(int, pthread_create, errno,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument),
     (thread, attributes, body, argument))
WRAP(long, sysconf, -1, (int name), (name))

extern int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *);
WRAP(int, __register_atfork, errno,
     (void (*before)(void), void (*parent)(void), void (*child)(void), void *object),
     (before, parent, child, object))

static _Atomic(void *) next_getrlimit;
int getrlimit(__rlimit_resource_t what, struct rlimit *limit) {
  if (REFUSED("getrlimit")) return -1;
  return NEXT(getrlimit)(what, limit);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (REFUSED("mmap")) return MAP_FAILED;
  return NEXT(mmap)(at, bytes, protection, flags, fd, offset);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (REFUSED("open")) return -1;
  return NEXT(open)(path, flags, mode);
}

/* fcntl64 is what Python calls. */
#define WRAP_FCNTL(name)                      \
  static _Atomic(void *) next_##name;         \
  int name(int fd, int command, ...) {        \
    va_list rest;                             \
    va_start(rest, command);                  \
    void *argument = va_arg(rest, void *);    \
    va_end(rest);                             \
    if (REFUSED(#name)) return -1;            \
    return NEXT(name)(fd, command, argument); \
  }
WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

/* Linux closes a descriptor also where it reports an error. */
static _Atomic(void *) next_close;
int close(int fd) {
  int refused = REFUSED("close"), error = errno;
  int result = NEXT(close)(fd);
  if (!refused) return result;
  errno = error;
  return -1;
}

static const char *name_of(long number, long command) {
  if (number == SYS_pidfd_open) return "pidfd_open";
  if (number == SYS_pidfd_send_signal) return "pidfd_send_signal";
  if (number != SYS_membarrier) return "syscall";
  if (command == MEMBARRIER_CMD_GLOBAL_EXPEDITED) return "membarrier all";
  return command == MEMBARRIER_CMD_QUERY ? "membarrier query" : "membarrier register";
}

static _Atomic(void *) next_syscall;
long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
  long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
  va_end(rest);
  if (REFUSED(name_of(number, a))) return -1;
  return NEXT(syscall)(number, a, b, c, d, e, f);
}

void *malloc(size_t bytes) { return REFUSED("malloc") ? NULL : __libc_malloc(bytes); }
void *calloc(size_t n, size_t bytes) { return REFUSED("calloc") ? NULL : __libc_calloc(n, bytes); }
void *realloc(void *at, size_t bytes) { return REFUSED("realloc") ? NULL : __libc_realloc(at, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) {
  return REFUSED("aligned_alloc") ? NULL : __libc_memalign(alignment, bytes);
}
