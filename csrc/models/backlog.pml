/* Who is rung for how much: README.md, "Waiting". The parent raises `avail` bit by bit; any worker claims from one line
 * of units. The bell is taken as right (bell.pml): memory is sequentially consistent, to ring is one step.
 *
 * Checked in every interleaving, with DEATHS deaths of workers before any step, and one worker stopped for ever: when
 * nobody else moves any more, no unit waits while a worker sleeps, unless the stopped one was rung for it.
 * MUTATE_*: see each; an error must be found. */

#ifndef N
#define N 3
#endif
#ifndef UNITS
#define UNITS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

byte avail, claimed;
bool idle[N] = true;
bool asleep[N];
bool killed[N], gone[N], buried[N];
bool endless[N];      /* in a task that never ends */
bool news[N];         /* what the parent has not seen; also the parent's bell */
bool rung[N];         /* the parent rang it, and has not heard from it since */
bool parent_asleep;
byte deaths;

proctype worker(byte me) {
  {
    do
    :: atomic { claimed < avail -> claimed++ };
       idle[me] = false;
#ifndef MUTATE_SILENT_CLAIM
       news[me] = true;                                            /* the state changed */
#endif
       if
       :: true
       :: endless[me] = true; end_task: false
       fi
    :: claimed >= avail ->
       idle[me] = true;
       news[me] = true;                                            /* starved */
       if
       :: claimed < avail
       :: atomic { claimed >= avail -> asleep[me] = true };
end_S4:   !asleep[me]
       fi
    od
  } unless { killed[me] };
  atomic { gone[me] = true; asleep[me] = false; endless[me] = false }
}

#define awaits(i) (rung[i] && !buried[i])

/* See what worker i has told. */
inline gather(i) {
  d_step {
#ifndef MUTATE_RUNG_FOR_EVER
    rung[i] = rung[i] && !news[i] && !gone[i];
#endif
    news[i] = false;
    buried[i] = gone[i]
  }
}

inline ring(i) {
  if
  :: waiting > 0 && asleep[i] -> atomic { asleep[i] = false; rung[i] = true }; waiting = more
  :: else
  fi
}

proctype parent() {
  byte waiting, more;
  do
  :: gather(0); gather(1); gather(2);
     if
     :: avail < UNITS -> avail++
     :: avail + 1 < UNITS -> avail = avail + 2
     :: avail == UNITS
     fi;
     if /* one, and the next when that one has spoken; or one for each unit */
     :: awaits(0) || awaits(1) || awaits(2)
     :: else ->
        waiting = avail - claimed;
#ifdef MUTATE_ONE_RING
        waiting = (avail == UNITS && claimed > 0 -> 0 : waiting);  /* the last ones are left to who works */
#endif
        if
        :: more = 0
        :: waiting > 1 -> more = waiting - 1
        :: waiting > 2 -> more = 1
        fi;
        ring(0); ring(1); ring(2);
        waiting = 0; more = 0
     fi;
     if
     :: avail < UNITS                                              /* it has more to do */
     :: avail == UNITS ->
        parent_asleep = true;
end_S4: atomic {
          news[0] || news[1] || news[2] || (gone[0] && !buried[0]) || (gone[1] && !buried[1]) || (gone[2] && !buried[2])
          -> parent_asleep = false
        }
     fi
  od
}

active proctype fate() {
  do
  :: deaths < DEATHS && !killed[0] -> killed[0] = true; deaths++
  :: deaths < DEATHS && !killed[1] -> killed[1] = true; deaths++
  :: break
  od
}

#define rests(i) (gone[i] || (!killed[i] && (endless[i] || asleep[i])))
#define quiet_but(i, j, k) (parent_asleep && rests(j) && rests(k) && (!killed[i] || gone[i]) && \
  !news[0] && !news[1] && !news[2] && gone[0] == buried[0] && gone[1] == buried[1] && gone[2] == buried[2])
#define served(i, j, k) (awaits(i) || claimed == avail || !(asleep[j] || asleep[k]))

active proctype quiet() {
end:
  do
  :: atomic { quiet_but(0, 1, 2) -> assert(served(0, 1, 2)) }
  :: atomic { quiet_but(1, 0, 2) -> assert(served(1, 0, 2)) }
  :: atomic { quiet_but(2, 0, 1) -> assert(served(2, 0, 1)) }
  od
}

init { atomic { run worker(0); run worker(1); run worker(2); run parent() } }
