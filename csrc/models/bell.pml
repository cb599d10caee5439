/* Waiting and waking: README.md, "Waiting". The parent, two workers, and a memory with store buffers.
 *
 * Checked in every interleaving:
 *   - nobody sleeps for ever, whoever else stops: whenever nobody but at most one worker can move any more (`quiet`),
 *     every other worker is buried, or sits in a task that never ends, and the parent asleep has nothing to do for
 *     it: no commit at or above wake_at, no news that it has not seen, no death. So no worker sleeps while there
 *     is work for it either. That one worker may be anywhere: it is the one that was stopped (SIGSTOP) for ever right
 *     before its next step, so a stop needs no step of its own, and each search covers a stop at any step;
 *   - everything committed is collected, at the latest when its worker is buried.
 *
 * Memory is TSO: a store goes into its core's FIFO buffer and reaches memory at any later moment; loads read
 * memory (nobody here loads a word of its own). A fence, and an exchange, waits for the own buffer to be empty.
 * `store_fence` is a store and the fence after it in one: with no load between them, to arrive late is to be
 * executed late. `store_now` is for the words of S5, whose delay could only add rings, and of those that follow
 * with a fence anyhow. So the parent needs no buffer here, unless W1 is left out.
 *
 * Death may come before any step of a worker. Its executed stores still reach memory, and its handle becomes
 * readable only after them: a store in the buffer has retired, a core does not take it back, and the kernel's
 * way out of a process passes full fences. A store that was "lost" could not be told from a death just
 * before it: all that a worker does between a commit and its next fence is to load.
 *
 * `avail`, one word for each worker, stands for all that the parent publishes to it (job, avail, total, command,
 * tail); `news` for all that a worker publishes beside commits.
 *
 * The number of a sleep is only ever compared with the owner's current one. So here it is THIS, and what a ringer
 * holds becomes EARLIER when that sleep ends: numbers that never repeat, in two values.
 *
 * The parent may give up the job at any time: it hands out nothing more (work, or space), and every worker must end
 * all the same. One worker may die (DEATHS), before any step.
 *
 * Switches: each MUTATE_* changes one step, and the search must then find an error. */

#define N      2 /* workers 0 … N-1; the parent is number N */
#define PARENT N
#define NEVER  255
#ifndef TASKS
#define TASKS 2 /* of worker 0; the others have one task each */
#endif
#define tasks(i) (i == 0 -> TASKS : 1)
#ifndef DEATHS
#define DEATHS 1
#endif

/* Shared words. */
#define COMMITTED(i) (i)
#define NEWS(i)      (N + (i))
#define AVAIL(i)     (2 * N + (i)) /* tasks that the worker may do */
#define WAKE_AT(i)   (3 * N + (i))
#define SLEEPING(i)  (4 * N + (i)) /* the bell of worker i, or of the parent */
#define ABANDON(i)   (5 * N + 1 + (i))
byte memory[6 * N + 1];
chan buffer[N + 1] = [2] of { byte, byte }; /* word, value */

#define store(me, word, value) buffer[me]!word, value
#define store_now(word, value) memory[word] = value
#define store_fence(me, word, value) atomic { fence(me) -> memory[word] = value }
#define fence(me)              empty(buffer[me])

bool bell[N + 1];   /* the bell's descriptor is readable */
bool killed[N];     /* SIGKILL is on its way */
byte ringing;       /* whose bell the parent rings */
bool endless[N];    /* in a task that never ends */
bool asleep[N + 1]; /* in S4 */
byte held[N + 1];   /* the number of the sleep that this ringer read: 0, THIS, EARLIER */
bool gone[N];       /* the process has ended: its handle is readable */
bool buried[N];     /* the parent has seen that */
byte seen[N];       /* news that the parent has seen */
byte made[N];       /* commits executed */
bool over;          /* the parent has buried everybody */

/* The store buffers reach memory, each at its own pace. */
active proctype cores() {
  byte word, value;
end:
  do
  :: atomic { buffer[0]?word, value -> memory[word] = value; word = 0; value = 0 }
  :: atomic { buffer[1]?word, value -> memory[word] = value; word = 0; value = 0 }
#ifdef MUTATE_NO_W1
  :: atomic { buffer[PARENT]?word, value -> memory[word] = value; word = 0; value = 0 }
#endif
  od
}

#ifdef MUTATE_LATE_REGISTER /* each worker registers for the process-wide barrier after its first commit only */
bool did_register[N];
#define registered(i) did_register[i]
#else
#define registered(i) true
#endif

#define THIS    1
#define EARLIER 2
#ifdef MUTATE_SAME_NUMBER
#define outdated(n) (n)
#else
#define outdated(n) (n == 0 -> 0 : EARLIER)
#endif

/* sleeping = 0; that sleep is over. The parent's bell is rung by workers, a worker's by the parent. */
inline disarm(me) {
  store_now(SLEEPING(me), 0);
  if
  :: me == PARENT -> held[0] = outdated(held[0]); held[1] = outdated(held[1])
  :: else -> held[PARENT] = (ringing == me -> outdated(held[PARENT]) : held[PARENT])
  fi
}

inline note_ringing(me, owner) {
  ringing = (me == PARENT -> owner : ringing)
}

/* Wake the owner of a bell, if it sleeps. What it waits for is published, and W1 is done. */
inline ring(me, owner) {
  if
  :: memory[SLEEPING(owner)] == 0                                 /* W2 */
  :: atomic { memory[SLEEPING(owner)] != 0 -> held[me] = memory[SLEEPING(owner)]; note_ringing(me, owner) };
#ifdef MUTATE_CLEAR_BEFORE_WRITE
     atomic { fence(me) -> held[me] = memory[SLEEPING(owner)]; memory[SLEEPING(owner)] = 0 };
     atomic { bell[owner] = bell[owner] || held[me] != 0; held[me] = 0 }
#else
     bell[owner] = true;                                           /* W3 */
     atomic {                                                      /* W4 */
       fence(me) ->
#ifdef MUTATE_NO_CAS
       memory[SLEEPING(owner)] = 0;
#else
       memory[SLEEPING(owner)] = (memory[SLEEPING(owner)] == held[me] -> 0 : memory[SLEEPING(owner)]);
#endif
       held[me] = 0; note_ringing(me, 0)
     }
#endif
  fi
}

inline tell_news(me) {
#ifdef MUTATE_RING_BEFORE_NEWS
  fence(me);
  ring(me, PARENT);
#endif
  news++;
#if defined(MUTATE_NO_W1) || defined(MUTATE_RING_BEFORE_NEWS)
  store(me, NEWS(me), news);
#else
  store_fence(me, NEWS(me), news);                                 /* with W1 */
#endif
#ifndef MUTATE_RING_BEFORE_NEWS
  ring(me, PARENT)
#endif
}

#ifdef MUTATE_SLEEP_THROUGH_ABANDON
#define has_work(i) (done < memory[AVAIL(i)])
#else
#define has_work(i) (done < memory[AVAIL(i)] || memory[ABANDON(i)] != 0)
#endif

proctype worker(byte me) {
  byte done, news;
  {
    do
    :: memory[ABANDON(me)] != 0 -> break
    :: done < memory[AVAIL(me)] && memory[ABANDON(me)] == 0 ->
       atomic { store(me, COMMITTED(me), done + 1); done++; made[me]++ };  /* the commit, */
       if                                                          /* which looks at wake_at without a fence */
       :: done >= memory[WAKE_AT(me)] ->
          fence(me);                                               /* W1 */
          ring(me, PARENT)                            /* W2 */
       :: else
       fi;
#ifdef MUTATE_LATE_REGISTER
       atomic { fence(me) -> did_register[me] = true };
#endif
       if
       :: done == tasks(me) -> break
       :: done < tasks(me)
       :: endless[me] = true; end_task: false                      /* the next task, or exit, never ends */
       fi
    :: else ->
#ifndef MUTATE_SILENT_STARVATION
       tell_news(me);                                              /* starved */
#endif
#ifdef MUTATE_WORKER_NO_S2
       store(me, SLEEPING(me), THIS);                      /* S1 */
#else
       store_fence(me, SLEEPING(me), THIS);                /* S1, S2 */
#endif
       if
       :: has_work(me)                                             /* S3 */
       :: atomic { !has_work(me) -> asleep[me] = true };
end_S4:   atomic { bell[me] -> asleep[me] = false }                /* S4 */
       fi;
       atomic { disarm(me); bell[me] = false }                     /* S5 */
    od;
    tell_news(me)                                                  /* EXITED */
  } unless { killed[me] };
  atomic {
    fence(me) -> gone[me] = true; asleep[me] = false; endless[me] = false; held[me] = 0; done = 0; news = 0
  }
}

/* Take what lane i holds, and give its worker more if it has no more. */
inline collect(i) {
  if
  :: buried[i]
  :: d_step {
       !buried[i] ->
       seen[i] = memory[NEWS(i)];
       taken[i] = memory[COMMITTED(i)];
       if
       :: gone[i] ->
          assert(taken[i] == made[i]);
          buried[i] = true;
          taken[i] = 0; seen[i] = 0; made[i] = 0; given[i] = 0; bell[i] = false;  /* fewer states */
          memory[COMMITTED(i)] = 0; memory[NEWS(i)] = 0; memory[WAKE_AT(i)] = 0; memory[AVAIL(i)] = 0;
          memory[SLEEPING(i)] = 0; memory[ABANDON(i)] = 0
       :: else
       fi
     };
     if
     :: !buried[i] && taken[i] == given[i] && given[i] < tasks(i) && !abandoned ->
        given[i]++;
#ifdef MUTATE_NO_W1
        store(PARENT, AVAIL(i), given[i]);
#else
        store_fence(PARENT, AVAIL(i), given[i]);                   /* with W1 */
#endif
        ring(PARENT, i)
     :: else
     fi
  fi
}

/* Give up the job in lane i. */
inline abandon(i) {
  if
  :: buried[i]
  :: else ->
     store_fence(PARENT, ABANDON(i), 1);                           /* with W1 */
#ifndef MUTATE_SILENT_ABANDON
     ring(PARENT, i)
#endif
  fi
}

/* wake_at of lane i. */
inline want_from(i) {
  if
  :: buried[i]
  :: else -> store_now(WAKE_AT(i), taken[i] + want)
  fi
}

/* Is there something in lane i to wake for? */
inline look(i) {
  found = found || (!buried[i] && (memory[COMMITTED(i)] >= taken[i] + want || memory[NEWS(i)] != seen[i]))
}

#ifdef MUTATE_NO_HANDLE
#define handle(i) false
#else
#define handle(i) (gone[i] && !buried[i])
#endif

proctype parent() {
  byte taken[N], given[N] = 1, want;
  bool found, abandoned;
  do
  :: collect(0);
     collect(1);
     if
     :: buried[0] && buried[1] -> break
     :: else
     fi;
     if
     :: !abandoned -> abandoned = true; abandon(0); abandon(1)
     :: true
     fi;
     if
     :: want = 1
     :: want = 2                                                   /* may be more than will ever come */
     fi;
     want_from(0);
     want_from(1);
#ifdef MUTATE_LOOK_BEFORE_S1
     look(0);
     look(1);
#endif
     store_now(SLEEPING(PARENT), THIS);                  /* S1, and S2 on this core */
#ifndef MUTATE_NO_BARRIER
     !registered(0) || fence(0);                                   /* S2 on the cores of the workers */
     !registered(1) || fence(1);
#endif
#ifndef MUTATE_LOOK_BEFORE_S1
     look(0);                                                      /* S3 */
     look(1);
#endif
     if
     :: found -> found = false
     :: atomic { !found -> asleep[PARENT] = true };
#ifdef MUTATE_DRAIN_AFTER_LOOK
        bell[PARENT] = false;
#endif
end_S4:
        atomic { bell[PARENT] || handle(0) || handle(1) -> asleep[PARENT] = false }  /* S4 */
     fi;
     atomic { disarm(PARENT) };                                    /* S5 */
     bell[PARENT] = false;
     atomic {
       if
       :: buried[0]
       :: else -> store_now(WAKE_AT(0), NEVER)
       fi;
       if
       :: buried[1]
       :: else -> store_now(WAKE_AT(1), NEVER)
       fi;
       want = 0
     }
  od;
  over = true
}

/* Who dies. */
active proctype fate() {
  byte deaths;
  do
  :: deaths < DEATHS && !killed[0] -> killed[0] = true; deaths++
  :: deaths < DEATHS && !killed[1] -> killed[1] = true; deaths++
  :: break
  od
}

#define parent_rests (over || (asleep[PARENT] && !bell[PARENT] && !handle(0) && !handle(1)))
#define rests(i)     (gone[i] || (!killed[i] && (endless[i] || (asleep[i] && !bell[i]))))
#define empty_buffers (empty(buffer[0]) && empty(buffer[1]) && empty(buffer[PARENT]))
#define harmless(i)  (buried[i] || \
  (endless[i] && memory[NEWS(i)] == seen[i] && made[i] < memory[WAKE_AT(i)]))

/* Nothing moves any more, but for a worker that has been stopped. One that is gone, or will be, is not. */
active proctype quiet() {
end:
  do
  :: atomic { parent_rests && rests(0) && empty_buffers && (!killed[1] || gone[1]) -> assert(harmless(0)) }
  :: atomic { parent_rests && rests(1) && empty_buffers && (!killed[0] || gone[0]) -> assert(harmless(1)) }
  od
}

init {
  atomic {
    memory[WAKE_AT(0)] = NEVER; memory[AVAIL(0)] = 1; run worker(0);
    memory[WAKE_AT(1)] = NEVER; memory[AVAIL(1)] = 1; run worker(1);
    run parent()
  }
}
