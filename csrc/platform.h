/* The platform: every system call of the C core is in platform.c, and nowhere else.
 *
 * Linux gives memfd, eventfd, pidfd, membarrier and SIGIO with a chosen signal. Each has a POSIX way round
 * it, taken at run time where the kernel refuses, and always when compiled with -DFP_POSIX:
 *   memfd → shm_open + shm_unlink;  eventfd → pipe;  pidfd → a pipe whose write end the worker holds;
 *   membarrier → a fence after every commit;  process_vm_readv → refused: the caller has another way;  F_SETSIG → a thread in the worker that reads the owner pipe.
 * All descriptors are close-on-exec. Functions return 0 or a descriptor, or an errno negated. */
#ifndef FP_PLATFORM_H
#define FP_PLATFORM_H

#include <stdint.h>

/* Test hook: from now on this process (and its forks) behaves as if the kernel refused these. Nothing is
 * refused at first; without effect under -DFP_POSIX, which has none of them. */
enum {
  FP_REFUSE_MEMFD = 1, /* memfd_create, and punching holes with MADV_REMOVE */
  FP_REFUSE_EVENTFD = 2,
  FP_REFUSE_PIDFD = 4,
  FP_REFUSE_SIGIO = 8, /* reopening the owner pipe for a signal of its own */
  FP_REFUSE_BARRIER = 16,
  FP_REFUSE_READ = 32, /* reading and writing another process's memory */
};
void fp_platform_refuse(unsigned mask);

/* Memory without a name in the file system. */
int fp_memory_create(uint64_t bytes);
int fp_memory_map(int fd, uint64_t bytes, void **address); /* shared, read-write, not in core dumps */
int fp_memory_protect(void *address,
                      uint64_t bytes); /* these whole pages cannot be written by this process */
int fp_memory_unmap(void *address, uint64_t bytes);
void fp_memory_close(int fd);
/* The longest fp_memory_create may be asked for: beyond RLIMIT_FSIZE the kernel answers with a signal, not an error. */
uint64_t fp_memory_largest(void);
/* Pages wholly inside [address, address + bytes) of a shared mapping go back to the system and read as zero. */
int fp_memory_give_back(void *address, uint64_t bytes);
/* Map the pages of [address, address + bytes) of a shared mapping now: they will be written to. Cheaper than a fault for each,
 * above all where another process has made them. Does nothing where the system has no way for it. */
void fp_memory_expect(void *address, uint64_t bytes);
/* Does memory of this descriptor come from a file system of limited size? Then a store to a page that was never touched
 * can be a SIGBUS, and fp_memory_commit has the pages first, or tells that there are none (-ENOSPC). Where the system has no
 * way to ask, it answers 0. */
int fp_memory_is_bounded(int fd);
int fp_memory_commit(void *address, uint64_t bytes);
uint64_t fp_page_bytes(void);
/* Copy from the private memory of another process. Many systems refuse (-EPERM, -ENOSYS); so does FP_POSIX.
 * `forked`: pages that forks may share. process_vm_readv pins pages, and Linux copies a shared page before it is pinned
 * ("unsharing"): the other process's memory would double, and its large pages be split. Those are read through /proc/PID/mem,
 * which pins nothing and is half as fast. */
int fp_read_process(int pid, uint64_t address, void *to, uint64_t bytes, int forked);
/* Copy to the private memory of another process. Refused where reading is. */
int fp_write_process(int pid, uint64_t address, const void *from, uint64_t bytes);
/* May a fork share the page at this address? 0: certainly not. */
int fp_memory_is_forked(const void *address);

/* A descriptor that becomes readable when rung and stays so until drained. */
typedef struct {
  int read_fd;
  int write_fd; /* the same descriptor for an eventfd */
} fp_event;
int fp_event_open(fp_event *event);
void fp_event_close(fp_event *event);
void fp_event_ring(const fp_event *event); /* async-signal-safe, never blocks */
void fp_event_drain(const fp_event *event);

/* Wait until one of the descriptors (-1: ignored) is readable or closed, or the time is over (timeout_ns < 0:
 * never). ready[i] is set to 1 or 0. Returns the number ready, 0 after the time, -EINTR on a signal. */
int fp_poll(const int *fds, int *ready, int n, int64_t timeout_ns);

/* A handle that becomes readable when a child process has ended.
 * Protocol: fp_watch_prepare before fork; fp_watch_parent in the parent, fp_watch_child in the child after
 * it. The parent's handle is watch->fd, closed with fp_watch_close. */
typedef struct {
  int fd;      /* readable when the process has ended; -1: none */
  int life_fd; /* POSIX way: write end, held by the child alone; -1 otherwise */
} fp_watch;
int fp_watch_prepare(fp_watch *watch);
int fp_watch_parent(fp_watch *watch, int pid); /* gone already: the handle is readable at once */
void fp_watch_child(fp_watch *watch);
void fp_watch_close(fp_watch *watch);
/* In a process that was not forked by the owner but was given watch->life_fd (-1 otherwise: nothing to do): its
 * own forks do not keep it. */
int fp_watch_inherit(int life_fd);
/* Signal the watched process, and with Linux's handle no other that has got its pid meanwhile. -ESRCH: it is gone. */
int fp_watch_kill(const fp_watch *watch, int pid, int signum);

/* The owner pipe: its write end is held by the owner alone (forks close it by an atfork handler), so its
 * read end tells everybody else when the owner is gone. */
typedef struct {
  int read_fd;
  int write_fd;
} fp_owner;
int fp_owner_open(fp_owner *owner);
void fp_owner_close(fp_owner *owner);
/* In a worker: from now on this process is killed with SIGKILL when the owner is gone, in whatever state it
 * is; at once if it is gone already. Replaces owner->read_fd by a description of its own. */
int fp_owner_follow(fp_owner *owner);
/* For a worker that cannot follow yet, because it has to start its interpreter first: fp_owner_lend gives a read end
 * with a description of its own, which the worker is given in the place of owner->read_fd; fp_owner_arm, once its pid is
 * known, has it killed with SIGKILL when the owner is gone. -ENOSYS where there is no such signal. */
int fp_owner_lend(const fp_owner *owner);
int fp_owner_arm(int fd, int pid);

/* A full fence on every core that runs a process which registered. */
int fp_barrier_available(void); /* 1 or 0; the same answer for the life of the process */
int fp_barrier_register(void);  /* each worker, at its start */
int fp_barrier_all(void);       /* the parent */

uint64_t fp_now_ns(void); /* CLOCK_MONOTONIC */
void fp_yield(void);
int fp_fork(void); /* fork(2), or an errno negated */

/* A full fence of this core. */
static inline void fp_fence(void) {
#ifdef __SANITIZE_THREAD__ /* TSan does not know fences */
  uint64_t here = 0;
  __atomic_fetch_add(&here, 1, __ATOMIC_SEQ_CST);
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
static inline void fp_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif
