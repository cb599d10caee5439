/* Calls with a time limit: README.md, "Time limits". The parent, one worker, and a memory with store buffers (bell.pml).
 *
 * Checked in every interleaving:
 *   - when the parent has decided to kill the worker (P2), the call that it saw is still the worker's current one, and
 *     nothing has come of it;
 *   - nothing comes of it, or of a later one, from then on, however late the kill is;
 *   - the worker waits (T3) only as long as the parent has not decided: else it would wait for ever (no end state).
 *
 * The worker's stores go through its core's FIFO buffer. The parent's barrier waits until that is empty. The parent's
 * own stores are followed by a fence (P1) or a ring, which begins with one. */

#ifndef CALLS
#define CALLS 3
#endif

byte call_until, condemned; /* shared words; here no two calls are over at the same time */
chan buffer = [4] of { byte };
byte current, committed; /* of the worker's calls: the last that began, the last that something came of */
bool decided, over;

active proctype core() {
end:
  do
  :: buffer?call_until
  od
}

active proctype worker() {
  byte call, sentence;
  for (call : 1 .. CALLS) {
    atomic { buffer!call -> current = call } /* T1 */
#ifdef MUTATE_LOOK_FIRST
    sentence = condemned;
    buffer!0;
#else
    buffer!0;             /* T2 */
    sentence = condemned; /* T3 */
#endif
    do
    :: sentence != call -> break
    :: sentence == call && condemned != call -> break
    :: decided -> goto killed
    od;
    atomic { assert(!decided) -> committed = call }
  }
  over = true;
killed:
  skip
}

active proctype parent() {
  byte until;
  do
  :: over -> break
  :: call_until != 0 ->
    until = call_until;
    if
    :: until == 0 -> skip
    :: else ->
      condemned = until; /* P1 */
#ifndef MUTATE_NO_BARRIER
      empty(buffer);
#endif
      if
#ifdef MUTATE_NO_SECOND_LOOK
      :: true ->
#else
      :: call_until == until -> /* P2 */
#endif
        atomic { decided = true -> assert(current == until && committed < until) };
        break
      :: call_until != until ->
#ifndef MUTATE_NO_PARDON
        condemned = 0
#endif
      fi
    fi
  od
}
