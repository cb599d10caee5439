/* Two channels of claims beside one line: README.md, "Applies: a second channel". The parent and two workers, which
 * take from the two gates in any order. claim.pml has what one channel is checked for (numbers that repeat, copies of
 * parameters, units given again); here a map's units that a dead worker had have failed, as an apply does.
 *
 * Checked in every interleaving, with DEATHS deaths before any step of a worker:
 *   - what the parent settles as lost was claimed by a worker that is dead, in that channel and that job; each unit is
 *     collected once or lost, and the parent never waits for ever, unless all workers are dead;
 *   - a worker finds in an apply's slot what was put there for the unit that it claimed, though slots are used again as
 *     soon as a line shows BEGUN, or the result is there.
 *
 * A step is one load, store or compare-and-swap of a shared word, as in claim.pml. MUTATE_*: an error must be found. */

#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef MAPS
#define MAPS 1 /* with 2, while the job of applies stays, the search is not known to end in 4 GB */
#endif
#ifndef TASKS
#define TASKS 1 /* of each map */
#endif
#ifndef APPLIES
#define APPLIES 2
#endif
#define SLOTS 1
#define W     2

#define MAP    0
#define APPLY  1
#define CLOSED 15
#define NONE   0
#define INTENT 1
#define HELD   2
#define BEGUN  3

byte gate_number[2], gate_index[2] = CLOSED, avail[2];
byte slot[SLOTS];                                         /* the unit whose apply lies there */
/* A worker's line. channel, unit and state are one word. */
byte line_jobs[4];                                        /* of worker w in channel c: [2 * w + c] */
byte line_channel[W], line_unit[W], line_state[W];
chan lane[W] = [5] of { byte, byte };                     /* channel, unit */
bool stop, need, unclear, killed[W], gone[W], buried[W];

byte owner[8];                                            /* ghost: 1 + who claimed unit u of channel c: [4 * c + u] */
byte deaths, buried_count;

#define bit(n) (1 << (n))
#ifdef MUTATE_ONE_JOB_WORD
#define job_of(w, c) line_jobs[2 * (w)]
#else
#define job_of(w, c) line_jobs[2 * (w) + (c)]
#endif
#ifdef MUTATE_NO_CHANNEL
#define in_channel(w, c) true
#else
#define in_channel(w, c) (line_channel[w] == (c))
#endif

inline set_line(c, u, s) {
  atomic { line_channel[me] = c; line_unit[me] = u; line_state[me] = s }
}
#define has_work(c) (gate_index[c] != CLOSED && (gate_number[c] != joined[c] || gate_index[c] < avail[c]))

proctype worker(byte me) {
  byte c, number, index, found;
  byte joined[2]; /* its own copies of the jobs' numbers */
  {
    true;
again:
    atomic {
      if
      :: c = MAP
      :: c = APPLY
      fi;
      number = gate_number[c]; index = gate_index[c]; found = 0
    };
    if
    :: index == CLOSED -> goto rest
    :: index != CLOSED && number != joined[c] -> /* join */
       set_line(0, 0, NONE);
       job_of(me, c) = number;
       joined[c] = number;
       goto again
    :: index != CLOSED && number == joined[c] -> skip
    fi;
    if
    :: index >= avail[c] -> goto rest
    :: else
    fi;
    set_line(c, index, INTENT);
    atomic {
      if
      :: gate_number[c] == number && gate_index[c] == index ->
         gate_index[c] = index + 1; owner[4 * c + index] = me + 1
      :: else -> goto again
      fi
    };
    set_line(c, index, HELD);
    if
    :: c == APPLY ->
#ifdef MUTATE_BEGUN_FIRST
       set_line(c, index, BEGUN);
#endif
       found = slot[index % SLOTS];
       assert(found == index);
#ifndef MUTATE_BEGUN_FIRST
       set_line(c, index, BEGUN)
#endif
    :: else
    fi;
    atomic { lane[me]!c, index };                /* commit */
    goto again;
rest:
    set_line(0, 0, NONE);
    need = need || unclear;                      /* news */
    atomic {
      stop || has_work(MAP) || has_work(APPLY);
      if
      :: stop -> goto exit
      :: else -> goto again
      fi
    };
exit:
    set_line(0, 0, NONE)
  } unless { killed[me] };
  atomic { gone[me] = true; c = 0; number = 0; index = 0; found = 0; joined[0] = 0; joined[1] = 0 }
}

inline collect(w) {
  d_step {
    do
    :: nempty(lane[w]) ->
       lane[w]?c, unit;
       assert(!((got[c] | lost[c]) & bit(unit)));
       got[c] = got[c] | bit(unit);
       if
       :: c == APPLY && users[unit % SLOTS] == unit + 1 -> users[unit % SLOTS] = 0
       :: else
       fi;
       need = need || unclear
    :: empty(lane[w]) -> break
    od;
    c = 0; unit = 0
  }
}

/* The parent sees that unit u of channel c is lost. */
inline lose(c, u) {
  assert(owner[4 * c + u] != 0 && gone[owner[4 * c + u] - 1]);
  lost[c] = lost[c] | bit(u);
  if
  :: c == APPLY && users[u % SLOTS] == u + 1 -> users[u % SLOTS] = 0
  :: else
  fi
}

/* What the lines of the living show of channel c. */
inline look_at_lines(c) {
  w = 0;
  do
  :: w < W && buried[w] -> w++
  :: w < W && !buried[w] ->
     same = (job_of(w, c) == gate_number[c]);
     d_step {
       if
       :: same && in_channel(w, c) && line_state[w] == INTENT -> intended = intended | bit(line_unit[w])
       :: same && in_channel(w, c) && line_state[w] > INTENT -> held = held | bit(line_unit[w])
       :: else
       fi;
       same = false; w++
     }
  :: else -> w = 0; break
  od
}

/* Elimination in channel c, of the units in `asked`. */
inline settle(c) {
  upto = (gate_index[c] == CLOSED -> 0 : gate_index[c]);
  look_at_lines(c);
  collect(0);
  collect(1);
  d_step {
    unit = 0;
    do
    :: unit < 4 ->
       if
       :: !(asked & bit(unit)) || unit >= upto || ((got[c] | lost[c] | held) & bit(unit))
       :: else ->
          if
          :: intended & bit(unit) -> again = again | bit(unit)
          :: else -> lose(c, unit)
          fi
       fi;
       unit++
    :: else -> break
    od;
    unit = 0; upto = 0; held = 0; intended = 0; asked = 0
  }
}

inline bury(i) {
  atomic { gone[i] && !buried[i] -> buried[i] = true; buried_count++ };
  collect(i);
  d_step {
    if
    :: line_state[i] != NONE && in_channel(i, APPLY) && job_of(i, APPLY) == gate_number[APPLY] ->
       if
       :: line_state[i] == INTENT -> doubtful = doubtful | bit(line_unit[i])
       :: line_state[i] != INTENT && !(got[APPLY] & bit(line_unit[i])) -> lose(APPLY, line_unit[i])
       :: else
       fi
    :: else
    fi;
    need = true
  }
}

/* A slot is free if it has no user, or that one has begun. */
#define begun(w) (!buried[w] && line_state[w] == BEGUN && in_channel(w, APPLY) && job_of(w, APPLY) == gate_number[APPLY] && \
                  line_unit[w] + 1 == users[avail[APPLY] % SLOTS])
#define has_slot (users[avail[APPLY] % SLOTS] == 0 || begun(0) || begun(1))

#define all(n) (bit(n) - 1)
#define map_is_over ((got[MAP] | lost[MAP]) == all(TASKS))
#define applies_are_over ((got[APPLY] | lost[APPLY]) == all(APPLIES))

active proctype parent() {
  byte got[2], lost[2], users[SLOTS], maps, w, c, unit, upto, held, intended, asked, again, doubtful;
  bool same, look_again;
  gate_number[APPLY] = 10;
  gate_index[APPLY] = 0;
  got[MAP] = all(TASKS);
  do
  :: map_is_over && maps < MAPS ->
     gate_index[MAP] = CLOSED;
     avail[MAP] = TASKS;
     d_step { got[MAP] = 0; lost[MAP] = 0; owner[0] = 0; owner[1] = 0; maps++ };
     atomic { gate_number[MAP] = maps; gate_index[MAP] = 0 }
  :: avail[APPLY] < APPLIES && has_slot ->
     users[avail[APPLY] % SLOTS] = avail[APPLY] + 1;
     slot[avail[APPLY] % SLOTS] = avail[APPLY];
     avail[APPLY] = avail[APPLY] + 1
  :: nempty(lane[0]) -> collect(0)
  :: nempty(lane[1]) -> collect(1)
  :: gone[0] && !buried[0] -> bury(0)
  :: gone[1] && !buried[1] -> bury(1)
  :: need ->
     need = false;
     unclear = true; /* news from here on: look again */
     asked = 255;
     settle(MAP);
     d_step { look_again = (again != 0); again = 0; asked = doubtful };
     settle(APPLY);
     d_step { doubtful = again; unclear = look_again || again != 0; look_again = false; again = 0 }
  :: map_is_over && applies_are_over && maps == MAPS -> break
  :: buried_count == W && !need -> break
  od;
  assert(buried_count == W || (map_is_over && applies_are_over));
  stop = true
}

active proctype fate() {
  do
  :: atomic { deaths < DEATHS && !killed[0] -> killed[0] = true; deaths++ }
  :: atomic { deaths < DEATHS && !killed[1] -> killed[1] = true; deaths++ }
  :: break
  od
}

init {
  atomic {
    run worker(0);
    run worker(1)
  }
}
