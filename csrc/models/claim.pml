/* Publishing jobs, claiming from them, and settling a death: README.md, "Claiming". The parent and W workers.
 *
 * Checked in every interleaving:
 *   - each task of a job that is not abandoned is collected exactly once, and the parent never waits for ever;
 *   - a worker runs only units below the job's total, with the parameters of the job it claimed them from;
 *   - a task that was begun twice was begun by one that died: at most one such task a death.
 *
 * Death may come before any step of a worker. A step here is one load, one store or one compare-and-swap of a
 * shared word; memory is sequentially consistent (stores reach it in order on TSO, and are releases elsewhere; the
 * two places that need more say "fence").
 *
 * Units 0 … tasks-1 of a job are its tasks (`unit = TASK`); units from there on are tasks given again (`feed`). A
 * lane is a queue of results that are committed and not yet collected. Waiting is a guard here; that a wait by bell
 * ends when its guard holds is what bell.pml shows. `news` is a call on the parent to settle again, if it has to.
 *
 * Switches: each MUTATE_* leaves out or misplaces one step, and the search must then find an error. ABANDON: the
 * parent may leave job 1 early. NUMBERS: how many job numbers the claim word has room for; with fewer than JOBS + 1
 * they repeat, as they do after 2^24 jobs. (W=3, TASKS=1, JOBS=1 is whole too: 130 million states, 6 GB.)
 */

#ifndef W
#define W 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef JOBS
#define JOBS 2
#endif
#ifndef NUMBERS
#define NUMBERS 5 /* at least W + 1 */
#endif
#ifndef TASKS
#define TASKS 2 /* of job 1; the others have one */
#endif
#define tasks(job) (job == 1 -> TASKS : 1)
#define UNITS 6 /* at most: tasks and what is given again */

#define CLOSED 15
#define NONE   0
#define INTENT 1
#define HELD   2
#define NO     99

/* gate.claim: one word */
byte gate_number, gate_index = CLOSED;
/* job.*: `job_is` stands for all the parameters; `tasks(job_is)` is one of them */
byte job_is, job_avail, job_total;
bool job_last;
byte feed[UNITS];
/* each worker's line: first, count and state are one word. line.job has all bits of the number, and whoever compares
 * it with job.number tells jobs of the same low bits apart; here it has the low ones only, which is less to go by */
byte line_job[W] = NO, line_first[W], line_count[W], line_state[W];
chan lane[W] = [UNITS] of { byte, byte }; /* job, task */
byte abandon; /* jobs up to this one are dropped */
bool stop;
/* the parent's, private but for `tell_news` */
bool need, unclear;

bool killed[W], gone[W], buried[W];

/* Ghosts: what really is, for assertions only. */
byte now_is;      /* the job that is published */
byte begun;       /* its tasks that were begun, a bit each */
byte begun_lost;  /* tasks that were begun and lost with their worker */
byte deaths;
byte buried_count;

#define bit(n) (1 << (n))

inline set_line(first, count, state) {
  atomic { line_first[me] = first; line_count[me] = count; line_state[me] = state }
}

proctype worker(byte me) {
  byte number, index, avail, total, count, task, really;
  byte copy_is; /* the private copy of job.*; 0: none */
  bool copy_last, won;
  {
    true;
again:
    atomic { count = 0; avail = 0; total = 0; task = 0; really = 0; won = false;
             number = gate_number; index = gate_index };                     /* 1: one load */
    if
    :: index == CLOSED -> goto rest
    :: index != CLOSED && number != line_job[me] ->                          /* 1a: show the number, look again */
#ifndef MUTATE_NO_NONE
       set_line(0, 0, NONE);
#endif
       copy_is = 0;
       line_job[me] = number;                                                /* fence */
       goto again
#ifndef MUTATE_PARAMETERS_AFTER_CLAIM
    :: index != CLOSED && number == line_job[me] && copy_is == 0 ->          /* 1b: copy the parameters; if they are */
       copy_last = job_last;                                                 /*     a newer job's, 5 will fail */
       copy_is = job_is
#endif
    :: else
    fi;
    avail = job_avail;                                                       /* 2 */
    if
    :: index >= avail ->
       total = job_total;
#ifdef MUTATE_EXHAUSTED_UNCHECKED
       copy_last = job_last;
#else
       if
       :: gate_number == number && gate_index == index
       :: else -> goto again
       fi;
#endif
       if
       :: index >= total && copy_last -> assert(number == gate_number); goto exit
       :: else -> goto rest
       fi
    :: else
    fi;
    if                                                                       /* 3 */
    :: count = 1
    :: index + 2 <= avail && index + 2 <= tasks(copy_is) -> count = 2
    fi;
#ifndef MUTATE_NO_INTENT
    set_line(index, count, INTENT);                                          /* 4 */
#endif
    atomic {                                                                 /* 5 */
      if
#ifdef MUTATE_NO_NUMBER
      :: gate_index == index ->
#else
      :: gate_number == number && gate_index == index ->
#endif
         gate_index = index + count; won = true; really = now_is
      :: else
      fi
    };
    if
    :: won
    :: else -> goto again
    fi;
    set_line(index, count, HELD);                                            /* 6 */
#ifdef MUTATE_PARAMETERS_AFTER_CLAIM
    copy_last = job_last;
    copy_is = job_is;
#endif
    do                                                                       /* 7 */
    :: count == 0 -> break
    :: count != 0 && abandon >= copy_is -> break
    :: count != 0 && abandon < copy_is ->
       atomic {                                                              /* call */
         assert(copy_is == really);
         assert(now_is != really || index < job_total);
         task = (index < tasks(copy_is) -> index : feed[index]);
         if
         :: now_is == really -> begun = begun | bit(task)
         :: else
         fi
       };
#ifdef MUTATE_LINE_BEFORE_COMMIT
       if
       :: count == 1 -> set_line(0, 0, NONE)
       :: else
       fi;
#endif
       atomic { lane[me]!copy_is, task; index++; count-- }                   /* commit */
    od;
    goto again;                                                              /* 8 */
rest:
    set_line(0, 0, NONE);                                                    /* 8: nothing left */
    need = need || unclear;                                                  /*    news */
    atomic {
      stop || (gate_index != CLOSED && (gate_number != line_job[me] || gate_index < job_avail
              || (copy_last && job_total <= gate_index)));
      if
      :: stop -> goto exit
      :: else -> goto again
      fi
    };
exit:
    set_line(0, 0, NONE)
  } unless { killed[me] };
  atomic { gone[me] = true; number = 0; index = 0; avail = 0; total = 0; count = 0; task = 0; really = 0;
           copy_is = 0; copy_last = false; won = false }
}

/* Take everything from lane w. */
inline collect(w) {
  d_step {
    do
    :: nempty(lane[w]) ->
       lane[w]?is, task;
       assert(is == now_is || is <= abandon);
       if
       :: is == now_is -> assert(!(got & bit(task))); got = got | bit(task); need = need || unclear
       :: else
       fi
    :: empty(lane[w]) -> break
    od;
    is = 0; task = 0
  }
}
inline collect_all() {
  w = 0;
  do
  :: w < W -> collect(w); w++
  :: else -> w = 0; break
  od
}

inline look_at_gate() { settle_to = gate_index }

/* Job first, claim second: a line that shows another job had no intent in this one when the gate was read. (While the
 * parent settles there is no newer job to go on to; the third read, job again, is for other readers.) */
inline look_at_lines() {
  w = 0;
  do
  :: w < W && buried[w] -> w++
  :: w < W && !buried[w] ->
     same = (line_job[w] == gate_number);
     atomic {
       unit = line_first[w];
       do
       :: same && line_state[w] != NONE && unit < line_first[w] + line_count[w] ->
          if
          :: line_state[w] == HELD -> held = held | bit(unit)
#ifdef MUTATE_INTENT_IGNORED
          :: else
#else
          :: else -> intended = intended | bit(unit)
#endif
          fi;
          unit++
       :: else -> break
       od;
       unit = 0; same = false; w++
     }
  :: else -> w = 0; break
  od
}

/* A death: who held what, and give it again. */
inline settle() {
  need = false;
  look_again = false;
  unclear = true;                                                            /* news from here on: look again */
#ifdef MUTATE_LINES_FIRST
  look_at_lines();
  look_at_gate();
  collect_all();
#else
#ifdef MUTATE_COLLECT_FIRST
  look_at_gate();
  collect_all();
  look_at_lines();
#else
  look_at_gate();                                                            /* a */
  look_at_lines();                                                           /* b */
  collect_all();                                                             /* c */
#endif
#endif
  unit = 0;
  do
  :: unit < settle_to ->
     d_step { task = (unit < tasks(now_is) -> unit : feed[unit]) };
     if
     :: (got & bit(task)) || (moved & bit(unit)) || (held & bit(unit))
     :: else ->
        if
        :: intended & bit(unit) -> look_again = true                       /* its CAS may have failed */
        :: else ->
           d_step {
             moved = moved | bit(unit);
             if
             :: begun & bit(task) -> begun_lost++; begun = begun & ~bit(task)
             :: else
             fi;
             assert(begun_lost <= deaths);
             assert(job_total < UNITS);
             feed[job_total] = task
           };
           job_total++
        fi
     fi;
     unit++; task = 0
  :: else -> break
  od;
  unclear = look_again;
  settle_to = 0; held = 0; intended = 0; unit = 0; look_again = false
}

/* A: the next number, which no living worker shows; its gate closed. */
inline close_gate() {
  number = (number + 1) % NUMBERS;
#ifndef MUTATE_NO_CLOSE
  atomic { gate_number = number; gate_index = CLOSED };                      /* fence */
#endif
  w = 0;
  do
  :: w < W ->
#ifdef MUTATE_NUMBERS_OF_INTENTS_ONLY
     if
     :: !buried[w] && line_job[w] == number && line_state[w] == INTENT ->
#else
     if
     :: !buried[w] && line_job[w] == number ->
#endif
        number = (number + 1) % NUMBERS;
        atomic { gate_number = number; gate_index = CLOSED };
        w = 0
     :: else -> w++
     fi
  :: else -> w = 0; break
  od
}

active proctype parent() {
  byte number, w, is, task, unit, got, moved, held, intended, settle_to;
  bool same, look_again;
  do
  :: now_is == JOBS -> break
  :: now_is < JOBS && buried_count == W -> break
  :: now_is < JOBS && buried_count < W ->
     close_gate();                                                           /* A */
     atomic { now_is++; begun = 0; got = 0; moved = 0; unclear = false; need = false };
     job_is = now_is;                                                        /* B */
     if
     :: job_last = (now_is == JOBS)
     :: job_last = false
     fi;
     job_total = tasks(now_is);
     job_avail = 1;                                                          /*    the rest is fed bit by bit */
     atomic { gate_number = number; gate_index = 0 };                        /* C */
     do
     :: got == bit(tasks(now_is)) - 1 -> break
     :: got != bit(tasks(now_is)) - 1 && buried_count == W && !need -> break
     :: job_avail < job_total -> job_avail++                                 /* feed */
     :: nempty(lane[0]) -> collect(0)
     :: nempty(lane[1]) -> collect(1)
#if W > 2
     :: nempty(lane[2]) -> collect(2)
#endif
     :: atomic { gone[0] && !buried[0] -> buried[0] = true; buried_count++; need = true }
     :: atomic { gone[1] && !buried[1] -> buried[1] = true; buried_count++; need = true }
#if W > 2
     :: atomic { gone[2] && !buried[2] -> buried[2] = true; buried_count++; need = true }
#endif
     :: need -> settle()
#ifdef ABANDON
     :: now_is == 1 -> abandon = 1; break
#endif
     od;
     need = false
  od;
  assert(buried_count == W || got == bit(tasks(now_is)) - 1);
  stop = true
}

active proctype fate() {
  do
  :: atomic { deaths < DEATHS && !killed[0] -> killed[0] = true; deaths++ }
  :: atomic { deaths < DEATHS && !killed[1] -> killed[1] = true; deaths++ }
#if W > 2
  :: atomic { deaths < DEATHS && !killed[2] -> killed[2] = true; deaths++ }
#endif
  :: break
  od
}

init {
  atomic {
    run worker(0);
    run worker(1);
#if W > 2
    run worker(2)
#endif
  }
}
