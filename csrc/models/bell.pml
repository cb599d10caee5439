/* Waiting and waking: README.md, "Waiting". The parent, two workers, and a memory with store buffers.
 *
 * Checked in every interleaving:
 *   - nobody sleeps for ever: when nothing can move any more (`quiet`), each worker is buried, or sits in a task
 *     that never ends, and the parent asleep has nothing to do for it: no commit at or above wake_at, no
 *     news that it has not seen, no death. So no worker sleeps while there is work for it either;
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
 * abandon, tail); `news` for all that a worker publishes beside commits.
 *
 * Switches: each MUTATE_* leaves one step out, and the search must then find an error. STOPS: worker 1 may be
 * stopped (SIGSTOP) for ever before any step, and worker 0 may not suffer from it. OWN_FLAG: each worker has its
 * own word `sleeping` to ring the parent by, instead of one for all. STOPS without OWN_FLAG has an error: a worker
 * stopped between its exchange and its write keeps everybody else's rings from the parent. */

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
#define SLEEPING(i)  (4 * N + (i)) /* worker i's bell */
#ifdef OWN_FLAG
#define PARENTS(i) (5 * N + (i)) /* the parent's bell, as worker i sees it */
#else
#define PARENTS(i) (5 * N)
#endif
byte memory[6 * N];
chan buffer[N + 1] = [2] of { byte, byte }; /* word, value */

#define store(me, word, value) buffer[me]!word, value
#define store_now(word, value) memory[word] = value
#define store_fence(me, word, value) atomic { fence(me) -> memory[word] = value }
#define fence(me)              empty(buffer[me])

bool bell[N + 1];   /* the bell's descriptor is readable */
bool killed[N];     /* SIGKILL is on its way */
bool stopped[N];    /* SIGSTOP, and never continued */
bool endless[N];    /* in a task that never ends */
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

/* Wake the owner of a bell, if it sleeps. What it waits for is published, and W1 is done. */
inline ring(me, flag, owner) {
  if
  :: memory[flag] == 0                                             /* W2: look, */
  :: else ->
     atomic { fence(me) -> took = memory[flag]; memory[flag] = 0 };  /* exchange, */
     if
     :: took != 0 -> bell[owner] = true; took = 0                  /*     write */
     :: else
     fi
  fi
}

inline tell_news(me) {
#ifdef MUTATE_RING_BEFORE_NEWS
  fence(me);
  ring(me, PARENTS(me), PARENT);
#endif
  news++;
#if defined(MUTATE_NO_W1) || defined(MUTATE_RING_BEFORE_NEWS)
  store(me, NEWS(me), news);
#else
  store_fence(me, NEWS(me), news);                                 /* with W1 */
#endif
#ifndef MUTATE_RING_BEFORE_NEWS
  ring(me, PARENTS(me), PARENT)
#endif
}

proctype worker(byte me) {
  byte done, news, took;
  {
    do
    :: done < memory[AVAIL(me)] ->
       atomic { store(me, COMMITTED(me), done + 1); done++; made[me]++ };  /* the commit, */
       if                                                          /* which looks at wake_at without a fence */
       :: done >= memory[WAKE_AT(me)] ->
          fence(me);                                               /* W1 */
          ring(me, PARENTS(me), PARENT)                            /* W2 */
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
       store(me, SLEEPING(me), 1);                               /* S1 */
#else
       store_fence(me, SLEEPING(me), 1);                         /* S1, S2 */
#endif
       if
       :: done < memory[AVAIL(me)]                                 /* S3 */
       :: else ->
end_S4:   bell[me]                                                 /* S4 */
       fi;
       atomic { store_now(SLEEPING(me), 0); bell[me] = false }     /* S5 */
    od;
    tell_news(me)                                                  /* EXITED */
  } unless { killed[me] || stopped[me] };
  if
  :: stopped[me] && !killed[me] ->
end_stopped:
     killed[me]
  :: else
  fi;
  atomic { fence(me) -> gone[me] = true; done = 0; news = 0; took = 0 }
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
          memory[SLEEPING(i)] = 0
       :: else
       fi
     };
     if
     :: !buried[i] && taken[i] == given[i] && given[i] < tasks(i) ->
        given[i]++;
#ifdef MUTATE_NO_W1
        store(PARENT, AVAIL(i), given[i]);
#else
        store_fence(PARENT, AVAIL(i), given[i]);                   /* with W1 */
#endif
        ring(PARENT, SLEEPING(i), i)
     :: else
     fi
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
  byte took;
  bool found;
  do
  :: collect(0);
     collect(1);
     if
     :: buried[0] && buried[1] -> break
     :: else
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
     atomic { store_now(PARENTS(0), 1); store_now(PARENTS(1), 1) };  /* S1, and S2 on this core */
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
     :: else ->
#ifdef MUTATE_DRAIN_AFTER_LOOK
        bell[PARENT] = false;
#endif
end_S4:
        bell[PARENT] || handle(0) || handle(1)                     /* S4 */
     fi;
     atomic { store_now(PARENTS(0), 0); store_now(PARENTS(1), 0) };  /* S5 */
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

/* Who dies, and who is stopped. */
active proctype fate() {
  byte deaths;
  do
  :: deaths < DEATHS && !killed[0] -> killed[0] = true; deaths++
  :: deaths < DEATHS && !killed[1] -> killed[1] = true; deaths++
#ifdef STOPS
  :: !stopped[1] -> stopped[1] = true
#endif
  :: break
  od
}

#define harmless(i) (buried[i] || stopped[i] || \
  (endless[i] && !gone[i] && memory[NEWS(i)] == seen[i] && made[i] < memory[WAKE_AT(i)]))

/* Nothing moves any more. */
active proctype quiet() {
  timeout ->
  assert(harmless(0));
  assert(harmless(1));
  assert(over || !buried[0] || !buried[1])
}

init {
  atomic {
    memory[WAKE_AT(0)] = NEVER; memory[AVAIL(0)] = 1; run worker(0);
    memory[WAKE_AT(1)] = NEVER; memory[AVAIL(1)] = 1; run worker(1);
    run parent()
  }
}
