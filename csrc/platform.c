/* Every system call of the C core. The Linux ways lie under FP_LINUX; what is outside is POSIX.1-2008, which
 * -DFP_POSIX makes the compiler check. */
#ifdef FP_POSIX
#undef _GNU_SOURCE
#define _POSIX_C_SOURCE 200809L
#elif defined(__linux__)
#define FP_LINUX 1
#endif

#include "platform.h"

#include "points.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#ifdef FP_LINUX
#include <linux/membarrier.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#endif

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* ------------------------------------------------------------------ refusal */

static _Atomic unsigned refused;

void fp_platform_refuse(unsigned mask) { atomic_store(&refused, mask); }

#ifdef FP_LINUX
static int allowed(unsigned facility) { return (atomic_load(&refused) & facility) == 0; }

/* No way on this system, as opposed to no room now, for which the other way would be no better. */
static int is_refusal(int error) {
  return error != EMFILE && error != ENFILE && error != ENOMEM && error != EINTR;
}

/* What a probe found: the answer is kept, so that it is the same for the life of the process. */
enum { UNKNOWN = 0, ABSENT = 1, PRESENT = 2 };
#endif

/* ------------------------------------------------------------------ descriptors */

static void close_kept_errno(int fd) {
  int saved = errno;
  close(fd);
  errno = saved;
}

static void close_and_forget(int *fd) {
  if (*fd >= 0) close_kept_errno(*fd);
  *fd = -1;
}

static int pipe_cloexec(int fds[2]) {
#ifdef FP_LINUX
  return pipe2(fds, O_CLOEXEC) == 0 ? 0 : -errno;
#else
  if (pipe(fds) != 0) return -errno;
  for (int i = 0; i < 2; i++) fcntl(fds[i], F_SETFD, FD_CLOEXEC);
  return 0;
#endif
}

static int set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return -errno;
  return 0;
}

/* ------------------------------------------------------------------ guarded descriptors
 *
 * Write ends that tell of a process's end, and so must not live on in its forks, whoever forks. The lock is
 * held from before the descriptor exists until it is in the table, and from its removal until it is closed,
 * and by every fork: a fork never sees a descriptor without its entry, nor an entry whose number belongs to
 * another file already. In the child the table holds only what the child kept, so a number that the handler
 * closed is never closed twice. */

typedef struct {
  int fd;
  int kept;         /* the next fork made by `keeper` keeps it: a worker's life pipe */
  pthread_t keeper; /* a thread's own identity, also in its fork */
} guard;

static pthread_mutex_t guards_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t guards_once = PTHREAD_ONCE_INIT;
static int guards_error;
static guard *guards;
static size_t guards_n, guards_room;

static void guards_before_fork(void) { pthread_mutex_lock(&guards_lock); }
static void guards_in_parent(void) { pthread_mutex_unlock(&guards_lock); }

static void guards_in_child(void) {
  size_t stay = 0;
  for (size_t i = 0; i < guards_n; i++) {
    if (guards[i].kept && pthread_equal(guards[i].keeper, pthread_self()))
      guards[stay++] = guards[i];
    else
      close_kept_errno(guards[i].fd);
  }
  guards_n = stay;
  pthread_mutex_unlock(&guards_lock);
}

static void guards_start(void) {
  guards_error = pthread_atfork(guards_before_fork, guards_in_parent, guards_in_child);
}

static int guards_ready(void) {
  pthread_once(&guards_once, guards_start);
  int error = guards_error;
  if (error != 0)
    guards_once = (pthread_once_t)PTHREAD_ONCE_INIT; /* no memory: the next caller tries again */
  return -error;
}

/* The table is never freed: an entry may outlive any pool. */
static int guards_make_room(void) {
  if (guards_n < guards_room) return 0;
  size_t room = guards_room == 0 ? 16 : 2 * guards_room;
  guard *table = realloc(guards, room * sizeof *table);
  if (table == NULL) return -ENOMEM;
  guards = table;
  guards_room = room;
  return 0;
}

static int pipe_guarded(int fds[2], int kept) {
  int result = guards_ready();
  if (result < 0) return result;
  pthread_mutex_lock(&guards_lock);
  result = guards_make_room();
  if (result == 0) result = pipe_cloexec(fds);
  if (result == 0) guards[guards_n++] = (guard){.fd = fds[1], .kept = kept, .keeper = pthread_self()};
  pthread_mutex_unlock(&guards_lock);
  return result;
}

static guard *guard_find(int fd) {
  for (size_t i = 0; i < guards_n; i++)
    if (guards[i].fd == fd) return &guards[i];
  return NULL;
}

static int is_guarded(int fd) {
  pthread_mutex_lock(&guards_lock);
  int found = guard_find(fd) != NULL;
  pthread_mutex_unlock(&guards_lock);
  return found;
}

/* Not in the table: a fork's handler closed it, and the number may be another file's by now. */
static void guarded_close(int *fd) {
  pthread_mutex_lock(&guards_lock);
  guard *found = guard_find(*fd);
  if (found != NULL) {
    *found = guards[--guards_n];
    close_kept_errno(*fd);
  }
  pthread_mutex_unlock(&guards_lock);
  *fd = -1;
}

static void guarded_keep_no_more(int fd) {
  pthread_mutex_lock(&guards_lock);
  guard *found = guard_find(fd);
  if (found != NULL) found->kept = 0;
  pthread_mutex_unlock(&guards_lock);
}

/* ------------------------------------------------------------------ memory */

/* A size beyond the file system's room is refused here: it would be a SIGBUS when the pages are touched. */
static int named_memory_fits(int fd, uint64_t bytes) {
  struct statvfs fs;
  if (fstatvfs(fd, &fs) != 0 || fs.f_blocks == 0) return 1;
  return bytes / fs.f_frsize <= fs.f_bavail;
}

static int memory_named_for_a_moment(uint64_t bytes) {
  static _Atomic unsigned counter;
  for (int tries = 0; tries < 16; tries++) {
    char name[32];
    snprintf(name, sizeof name, "/fp%lx.%x.%x", (unsigned long)getpid(), (unsigned)(fp_now_ns() & 0xffffff),
             atomic_fetch_add(&counter, 1) & 0xffff);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 && errno == EEXIST) continue;
    if (fd < 0) return -errno;
    shm_unlink(name);
    if (named_memory_fits(fd, bytes)) return fd;
    close(fd);
    return -ENOSPC;
  }
  return -EEXIST;
}

static int memory_unnamed(uint64_t bytes) {
#ifdef FP_LINUX
  if (allowed(FP_REFUSE_MEMFD)) {
    int fd = memfd_create("fastpool", MFD_CLOEXEC);
    if (fd >= 0) return fd;
    if (!is_refusal(errno)) return -errno;
  }
#endif
  return memory_named_for_a_moment(bytes);
}

uint64_t fp_memory_largest(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur > INT64_MAX) return INT64_MAX;
  return limit.rlim_cur;
}

int fp_memory_create(uint64_t bytes) {
  if (bytes == 0) return -EINVAL;
  if (bytes > fp_memory_largest()) return -EFBIG;
  int fd = memory_unnamed(bytes);
  if (fd < 0) return fd;
  int result;
  do result = ftruncate(fd, (off_t)bytes);
  while (result != 0 && errno == EINTR);
  if (result == 0) return fd;
  result = -errno;
  close(fd);
  return result;
}

int fp_memory_map(int fd, uint64_t bytes, void **address) {
  if (bytes > SIZE_MAX) return -ENOMEM;
  void *at = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) return -errno;
#ifdef FP_LINUX
  madvise(at, (size_t)bytes, MADV_DONTDUMP);
#endif
  *address = at;
  return 0;
}

void fp_memory_close(int fd) { close_and_forget(&fd); }

int fp_memory_protect(void *address, uint64_t bytes) {
  return mprotect(address, (size_t)bytes, PROT_READ) < 0 ? -errno : 0;
}

int fp_memory_unmap(void *address, uint64_t bytes) {
  return munmap(address, (size_t)bytes) == 0 ? 0 : -errno;
}

int fp_memory_give_back(void *address, uint64_t bytes) {
  uintptr_t page = (uintptr_t)fp_page_bytes();
  uintptr_t end = ((uintptr_t)address + (uintptr_t)bytes) & ~(page - 1);
  uintptr_t skip = (page - (uintptr_t)address % page) % page;
  if ((uintptr_t)address + skip >= end) return 0;
  unsigned char *start = (unsigned char *)address + skip;
  size_t length = end - (uintptr_t)start;
#ifdef FP_LINUX
  if (allowed(FP_REFUSE_MEMFD) && madvise(start, length, MADV_REMOVE) == 0) return 0;
#endif
  memset(start, 0, length);
  return 0;
}

void fp_memory_expect(void *address, uint64_t bytes) {
#ifdef MADV_POPULATE_READ
  uintptr_t page = (uintptr_t)fp_page_bytes();
  uintptr_t start = (uintptr_t)address & ~(page - 1);
  /* Reading maps a page of a memfd for writing too, with its neighbours at a time. */
  if (allowed(FP_REFUSE_MEMFD))
    madvise((void *)start, (uintptr_t)address + bytes - start, MADV_POPULATE_READ);
#else
  (void)address, (void)bytes;
#endif
}

int fp_memory_is_bounded(int fd) {
  struct statvfs fs;
  return fstatvfs(fd, &fs) == 0 && fs.f_blocks != 0;
}

int fp_memory_commit(void *address, uint64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  uintptr_t start = (uintptr_t)address & ~((uintptr_t)fp_page_bytes() - 1);
  int result;
  do result = madvise((void *)start, (uintptr_t)address + bytes - start, MADV_POPULATE_WRITE);
  while (result != 0 && (errno == EINTR || errno == EAGAIN));
  return result == 0 || errno == EINVAL ? 0 : -ENOSPC; /* EINVAL: an older Linux */
#else
  (void)address, (void)bytes;
  return 0;
#endif
}

uint64_t fp_page_bytes(void) {
  long bytes = sysconf(_SC_PAGESIZE);
  return bytes > 0 ? (uint64_t)bytes : 4096;
}

#ifdef FP_LINUX
/* /proc/PID/mem of the process read last, -1: none. A process reads from one other: its owner. */
static int memory_of(int pid) {
  static int fd = -1, of;
  if (fd < 0 || of != pid) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    close_and_forget(&fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    of = pid;
  }
  return fd;
}

static ssize_t read_some(int pid, uint64_t address, void *to, uint64_t bytes, int forked) {
  int fd = forked ? memory_of(pid) : -1;
  if (fd >= 0) return pread(fd, to, bytes, (off_t)address);
  struct iovec local = {to, bytes}, remote = {(void *)(uintptr_t)address, bytes};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}
#endif

int fp_read_process(int pid, uint64_t address, void *to, uint64_t bytes, int forked) {
#ifdef FP_LINUX
  unsigned char *at = to;
  if (!allowed(FP_REFUSE_READ)) return -EPERM;
  while (bytes) { /* the kernel may stop anywhere */
    ssize_t done = read_some(pid, address, at, bytes, forked);
    if (done <= 0) return done == 0 || errno == EIO ? -EFAULT : -errno;
    at += done;
    address += (uint64_t)done;
    bytes -= (uint64_t)done;
  }
  return 0;
#else
  (void)pid, (void)address, (void)to, (void)bytes, (void)forked;
  return -ENOSYS;
#endif
}

int fp_write_process(int pid, uint64_t address, const void *from, uint64_t bytes) {
#ifdef FP_LINUX
  const unsigned char *at = from;
  if (!allowed(FP_REFUSE_READ)) return -EPERM;
  while (bytes) { /* the kernel may stop anywhere */
    struct iovec local = {(void *)(uintptr_t)at, bytes}, remote = {(void *)(uintptr_t)address, bytes};
    ssize_t done = process_vm_writev(pid, &local, 1, &remote, 1, 0);
    if (done <= 0) return done == 0 ? -EFAULT : -errno;
    at += done;
    address += (uint64_t)done;
    bytes -= (uint64_t)done;
  }
  return 0;
#else
  (void)pid, (void)address, (void)from, (void)bytes;
  return -ENOSYS;
#endif
}

int fp_memory_is_forked(const void *address) {
#ifdef FP_LINUX
  /* Documentation/admin-guide/mm/pagemap.rst */
  const uint64_t present = UINT64_C(1) << 63, exclusive = UINT64_C(1) << 56;
  uint64_t entry = 0;
  int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 1;
  ssize_t done =
      pread(fd, &entry, sizeof entry, (off_t)((uintptr_t)address / fp_page_bytes() * sizeof entry));
  close(fd);
  return done != sizeof entry || ((entry & present) && !(entry & exclusive));
#else
  (void)address;
  return 0;
#endif
}

/* ------------------------------------------------------------------ events */

static int event_by_pipe(fp_event *event) {
  int fds[2];
  int result = pipe_cloexec(fds);
  if (result < 0) return result;
  for (int i = 0; i < 2 && result == 0; i++) result = set_nonblocking(fds[i]);
  if (result == 0) {
    *event = (fp_event){.read_fd = fds[0], .write_fd = fds[1]};
    return 0;
  }
  close(fds[0]);
  close(fds[1]);
  return result;
}

int fp_event_open(fp_event *event) {
  *event = (fp_event){.read_fd = -1, .write_fd = -1};
#ifdef FP_LINUX
  if (allowed(FP_REFUSE_EVENTFD)) {
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd >= 0) {
      *event = (fp_event){.read_fd = fd, .write_fd = fd};
      return 0;
    }
    if (!is_refusal(errno)) return -errno;
  }
#endif
  return event_by_pipe(event);
}

void fp_event_close(fp_event *event) {
  if (event->write_fd != event->read_fd) close_and_forget(&event->write_fd);
  close_and_forget(&event->read_fd);
  event->write_fd = -1;
}

void fp_event_ring(const fp_event *event) {
  uint64_t one = 1;
  size_t length = event->read_fd == event->write_fd ? sizeof one : 1;
  int saved = errno;
  ssize_t written;
  do written = write(event->write_fd, &one, length);
  while (written < 0 && errno == EINTR); /* EAGAIN: full, that is readable */
  errno = saved;
}

void fp_event_drain(const fp_event *event) {
  uint64_t rings[32];
  int saved = errno;
  for (;;) {
    ssize_t got = read(event->read_fd, rings, sizeof rings);
    if (got < 0 && errno == EINTR) continue;
    if (got < (ssize_t)sizeof rings) break;
  }
  errno = saved;
}

/* ------------------------------------------------------------------ poll */

#define NS_PER_S  INT64_C(1000000000)
#define NS_PER_MS INT64_C(1000000)

static int poll_ns(struct pollfd *polled, nfds_t n, int64_t timeout_ns) {
#ifdef FP_LINUX
  struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / NS_PER_S), .tv_nsec = timeout_ns % NS_PER_S};
  return ppoll(polled, n, timeout_ns < 0 ? NULL : &timeout, NULL);
#else
  if (timeout_ns < 0) return poll(polled, n, -1);
  int64_t ms = timeout_ns / NS_PER_MS + (timeout_ns % NS_PER_MS != 0);
  return poll(polled, n, ms > INT_MAX ? INT_MAX : (int)ms);
#endif
}

int fp_poll(const int *fds, int *ready, int n, int64_t timeout_ns) {
  if (n < 0) return -EINVAL;
  struct pollfd few[64], *polled = few;
  if ((size_t)n > sizeof few / sizeof *few) polled = malloc((size_t)n * sizeof *polled);
  if (polled == NULL) return -ENOMEM;
  for (int i = 0; i < n; i++) polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
  int result = poll_ns(polled, (nfds_t)n, timeout_ns);
  if (result < 0) result = -errno;
  for (int i = 0; i < n; i++)
    ready[i] = result > 0 && (polled[i].revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL)) != 0;
  if (polled != few) free(polled);
  return result;
}

static int is_readable(int fd) {
  int ready = 0;
  while (fp_poll(&fd, &ready, 1, 0) == -EINTR) continue;
  return ready;
}

/* ------------------------------------------------------------------ watching a child */

#ifdef FP_LINUX
static int pidfd_open_(int pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  return fd >= 0 ? fd : -errno;
}

/* 1 or 0, or an errno negated when this cannot be found out now. */
static int pidfd_available(void) {
  static _Atomic int known = UNKNOWN;
  if (!allowed(FP_REFUSE_PIDFD)) return 0;
  if (atomic_load(&known) != UNKNOWN) return atomic_load(&known) == PRESENT;
  int fd = pidfd_open_(getpid());
  if (fd < 0 && !is_refusal(-fd)) return fd;
  if (fd >= 0) close(fd);
  atomic_store(&known, fd >= 0 ? PRESENT : ABSENT);
  return fd >= 0;
}
#endif

int fp_watch_prepare(fp_watch *watch) {
  *watch = (fp_watch){.fd = -1, .life_fd = -1};
#ifdef FP_LINUX
  int available = pidfd_available();
  if (available != 0) return available < 0 ? available : 0;
#endif
  int fds[2];
  int result = pipe_guarded(fds, 1);
  if (result == 0) *watch = (fp_watch){.fd = fds[0], .life_fd = fds[1]};
  return result;
}

#ifdef FP_LINUX
/* Readable at once: a handle of a process that is gone. */
static int handle_of_nobody(void) {
  int fds[2];
  int result = pipe_cloexec(fds);
  if (result < 0) return result;
  close(fds[1]);
  return fds[0];
}
#endif

int fp_watch_parent(fp_watch *watch, int pid) {
  if (watch->life_fd >= 0) {
    guarded_close(&watch->life_fd);
    return 0;
  }
#ifdef FP_LINUX
  int fd = pidfd_open_(pid);
  if (fd == -ESRCH) fd = handle_of_nobody();
  if (fd < 0) return fd;
  watch->fd = fd;
  return 0;
#else
  (void)pid;
  return -EINVAL;
#endif
}

void fp_watch_child(fp_watch *watch) {
  close_and_forget(&watch->fd);
  if (watch->life_fd >= 0) guarded_keep_no_more(watch->life_fd);
}

int fp_watch_inherit(int life_fd) {
  int result = guards_ready();
  if (result < 0) return result;
  pthread_mutex_lock(&guards_lock);
  result = guards_make_room();
  if (result == 0) guards[guards_n++] = (guard){.fd = life_fd};
  pthread_mutex_unlock(&guards_lock);
  return result;
}

int fp_watch_kill(const fp_watch *watch, int pid, int signum) {
#ifdef FP_LINUX
  if (watch->fd >= 0) {
    if (syscall(SYS_pidfd_send_signal, watch->fd, signum, NULL, 0) == 0) return 0;
    if (errno == ESRCH) return -ESRCH; /* else refused, or the handle is a pipe */
  }
#endif
  if (watch->fd >= 0 && is_readable(watch->fd)) return -ESRCH;
  return kill(pid, signum) == 0 ? 0 : -errno;
}

void fp_watch_close(fp_watch *watch) {
  close_and_forget(&watch->fd);
  if (watch->life_fd >= 0) guarded_close(&watch->life_fd);
}

/* ------------------------------------------------------------------ the owner */

int fp_owner_open(fp_owner *owner) {
  *owner = (fp_owner){.read_fd = -1, .write_fd = -1};
  int fds[2];
  int result = pipe_guarded(fds, 0);
  if (result == 0) *owner = (fp_owner){.read_fd = fds[0], .write_fd = fds[1]};
  return result;
}

void fp_owner_close(fp_owner *owner) {
  if (owner->write_fd >= 0) guarded_close(&owner->write_fd);
  close_and_forget(&owner->read_fd);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  _exit(128 + SIGKILL); /* the first process of a name space cannot be killed from inside */
}

/* A description of its own, because owner and signal belong to the description, which forks share. */
int fp_owner_lend(const fp_owner *owner) {
#ifdef FP_LINUX
  if (!allowed(FP_REFUSE_SIGIO)) return -ENOSYS;
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", owner->read_fd);
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  return fd >= 0 ? fd : -errno;
#else
  (void)owner;
  return -ENOSYS;
#endif
}

int fp_owner_arm(int fd, int pid) {
#ifdef FP_LINUX
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETOWN, pid) != 0 || fcntl(fd, F_SETSIG, SIGKILL) != 0 ||
      fcntl(fd, F_SETFL, flags | O_ASYNC) != 0)
    return -errno;
  return 0;
#else
  (void)fd;
  (void)pid;
  return -ENOSYS;
#endif
}

static int follow_by_signal(fp_owner *owner) {
  int fd = fp_owner_lend(owner);
  if (fd < 0) return fd;
  int result = fp_owner_arm(fd, getpid());
  if (result < 0) {
    close(fd);
    return result;
  }
  close(owner->read_fd);
  owner->read_fd = fd;
  return 0;
}

/* poll and not read: whether the description blocks is shared with every other worker. */
static void *follow(void *argument) {
  int fd = (int)(intptr_t)argument;
  int ready = 0;
  do fp_poll(&fd, &ready, 1, -1);
  while (!ready);
  die();
  return NULL;
}

static int start_follower(int fd) {
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return -error;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  long least = sysconf(_SC_THREAD_STACK_MIN);
  pthread_attr_setstacksize(&attributes, (size_t)(least > 0 ? least : 0) + 65536); /* refused: the default */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  error = pthread_create(&thread, &attributes, follow, (void *)(intptr_t)fd);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return -error;
}

/* The thread has a descriptor of its own: the worker may close the other one. */
static int follow_by_thread(const fp_owner *owner) {
  int fd = fcntl(owner->read_fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return -errno;
  int result = start_follower(fd);
  if (result < 0) close(fd);
  return result;
}

int fp_owner_follow(fp_owner *owner) {
  if (is_guarded(owner->write_fd)) return -EINVAL; /* the owner itself */
  owner->write_fd = -1;
  int result = follow_by_signal(owner);
  if (result < 0) result = follow_by_thread(owner);
  /* after the above: an owner that ended before it was noticed by nobody */
  if (result == 0 && is_readable(owner->read_fd)) die();
  return result;
}

/* ------------------------------------------------------------------ barrier */

#ifdef FP_LINUX
static int membarrier_(int command) {
  int result = (int)syscall(SYS_membarrier, command, 0, 0);
  return result >= 0 ? result : -errno;
}

int fp_barrier_available(void) {
  static _Atomic int known = UNKNOWN;
  const int needed = MEMBARRIER_CMD_GLOBAL_EXPEDITED | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
  if (!allowed(FP_REFUSE_BARRIER)) return 0;
  if (atomic_load(&known) == UNKNOWN) {
    int commands = membarrier_(MEMBARRIER_CMD_QUERY);
    atomic_store(&known, commands >= 0 && (commands & needed) == needed ? PRESENT : ABSENT);
  }
  return atomic_load(&known) == PRESENT;
}

int fp_barrier_register(void) {
  return fp_barrier_available() ? membarrier_(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) : -ENOSYS;
}

int fp_barrier_all(void) {
  return fp_barrier_available() ? membarrier_(MEMBARRIER_CMD_GLOBAL_EXPEDITED) : -ENOSYS;
}
#else
int fp_barrier_available(void) { return 0; }
int fp_barrier_register(void) { return -ENOSYS; }
int fp_barrier_all(void) { return -ENOSYS; }
#endif

/* ------------------------------------------------------------------ the rest */

uint64_t fp_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * (uint64_t)NS_PER_S + (uint64_t)now.tv_nsec;
}

void fp_yield(void) { sched_yield(); }

int fp_fork(void) {
  pid_t pid = fork();
  if (pid == 0) FP_POINT(FORKED);
  return pid >= 0 ? pid : -errno;
}
