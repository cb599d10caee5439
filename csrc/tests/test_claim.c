#include "claim.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "plain_segment.h"
#include "platform.h"

#define WRAP (UINT64_C(1) << 24)

static uint64_t random_state = 88172645463325252u;
static uint64_t random_below(uint64_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % n;
}

static uint64_t publish(fp_segment *segment, uint32_t unit, uint64_t avail, uint64_t total, uint64_t fixed) {
  uint64_t number = fp_gate_close(segment);
  CHECK(number != 0);
  segment->job.unit = unit;
  segment->job.chunk_fixed = fixed;
  segment->job.chunk_ns = 1000;
  segment->job.n_workers = segment->lanes;
  atomic_store_explicit(&segment->job.avail, avail, memory_order_release);
  atomic_store_explicit(&segment->job.total, total, memory_order_release);
  fp_gate_open(segment);
  return number;
}

typedef struct {
  int found;
  uint64_t number, first, count;
} claimed;

/* Of whatever job the gate shows. */
static claimed claim_any(fp_segment *segment, uint32_t worker, uint64_t budget, uint64_t task_ns) {
  claimed c = {0};
  do {
    uint64_t known = fp_claim_number(atomic_load(&segment->gate.claim));
    c.found = fp_claim_next(segment, worker, known, budget, task_ns, &c.number, &c.first, &c.count);
  } while (c.found == FP_CLAIM_OTHER);
  return c;
}

static claimed claim(fp_segment *segment, uint32_t worker, uint64_t budget) {
  return claim_any(segment, worker, budget, 0);
}

static uint64_t held(fp_segment *segment, uint32_t worker) {
  return atomic_load(&fp_line_of(segment, worker)->claim);
}

/* ------------------------------------------------------------------ one after another */

static void test_another_job_is_not_claimed_unknown(void) {
  fp_segment *segment = plain_segment(1);
  uint64_t number, first, count;
  publish(segment, FP_UNIT_TASK, 10, 10, 4);
  CHECK_EQ(fp_claim_next(segment, 0, 0, 0, 0, &number, &first, &count), FP_CLAIM_OTHER);
  CHECK_EQ(number, 1);
  CHECK_EQ(fp_held_state(held(segment, 0)), FP_CLAIM_NONE);
  CHECK_EQ(fp_claim_next(segment, 0, number, 0, 0, &number, &first, &count), FP_CLAIM_OK);
  plain_free(segment);
}

static void test_packing(void) {
  uint64_t word = fp_claim_pack(WRAP + 5, FP_MAX_UNITS);
  CHECK_EQ(fp_claim_number(word), 5);
  CHECK_EQ(fp_claim_index(word), FP_MAX_UNITS);
  uint64_t line = fp_held_pack(FP_MAX_UNITS, FP_MAX_CHUNK, FP_CLAIM_HELD);
  CHECK_EQ(fp_held_first(line), FP_MAX_UNITS);
  CHECK_EQ(fp_held_count(line), FP_MAX_CHUNK);
  CHECK_EQ(fp_held_state(line), FP_CLAIM_HELD);
}

static void test_nothing_published(void) {
  fp_segment *segment = plain_segment(2);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_EXHAUSTED);
  CHECK_EQ(fp_gate_close(segment), 1);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_EXHAUSTED);
  CHECK_EQ(held(segment, 0), 0);
  plain_free(segment);
}

static void test_chunks_until_exhausted(void) {
  fp_segment *segment = plain_segment(2);
  CHECK_EQ(publish(segment, FP_UNIT_TASK, 10, 10, 4), 1);
  claimed a = claim(segment, 0, 0), b = claim(segment, 1, 0);
  CHECK(a.found == FP_CLAIM_OK && a.first == 0 && a.count == 4 && a.number == 1);
  CHECK(b.found == FP_CLAIM_OK && b.first == 4 && b.count == 4);
  CHECK_EQ(held(segment, 0), fp_held_pack(0, 4, FP_CLAIM_HELD));
  CHECK_EQ(held(segment, 1), fp_held_pack(4, 4, FP_CLAIM_HELD));
  CHECK_EQ(atomic_load(&fp_line_of(segment, 1)->job), 1);
  b = claim(segment, 1, 0);
  CHECK(b.found == FP_CLAIM_OK && b.first == 8 && b.count == 2);
  a = claim(segment, 0, 0);
  CHECK(a.found == FP_CLAIM_EXHAUSTED && a.number == 1);
  CHECK_EQ(held(segment, 0), 0);
  fp_claim_drop(segment, 1);
  CHECK_EQ(held(segment, 1), 0);
  plain_free(segment);
}

static void test_starved_and_fed(void) {
  fp_segment *segment = plain_segment(1);
  publish(segment, FP_UNIT_CHUNK, 0, FP_TOTAL_UNKNOWN, 0);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_STARVED);
  atomic_store(&segment->job.avail, 3);
  for (uint64_t i = 0; i < 3; i++) {
    claimed c = claim(segment, 0, 1);
    CHECK(c.found == FP_CLAIM_OK && c.first == i && c.count == 1);
  }
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_STARVED);
  CHECK_EQ(held(segment, 0), 0);
  atomic_store(&segment->job.total, 4);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_STARVED);
  atomic_store(&segment->job.total, 3);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_EXHAUSTED);
  plain_free(segment);
}

static void test_empty_job(void) {
  fp_segment *segment = plain_segment(1);
  publish(segment, FP_UNIT_TASK, 0, 0, 0);
  CHECK_EQ(claim(segment, 0, 0).found, FP_CLAIM_EXHAUSTED);
  plain_free(segment);
}

static void test_budget(void) {
  fp_segment *segment = plain_segment(1);
  publish(segment, FP_UNIT_TASK, 100, 100, 10);
  CHECK_EQ(claim(segment, 0, 3).count, 3);
  CHECK_EQ(claim(segment, 0, 30).count, 10);
  CHECK_EQ(claim(segment, 0, 0).count, 10);
  /* a chunk is one unit, however many tasks the parent put into it */
  publish(segment, FP_UNIT_CHUNK, 5, 5, 10);
  CHECK_EQ(claim(segment, 0, 3).count, 1);
  CHECK_EQ(claim(segment, 0, 0).count, 1);
  plain_free(segment);
}

static void test_size(void) {
  fp_job job = {.unit = FP_UNIT_TASK, .chunk_ns = 1000000, .n_workers = 4};
  CHECK_EQ(fp_claim_size(&job, 1000000, 0), 16);
  CHECK_EQ(fp_claim_size(&job, 640, 0), 10);
  CHECK_EQ(fp_claim_size(&job, 63, 0), 1);
  CHECK_EQ(fp_claim_size(&job, 1000000, 100), 10000); /* the time decides */
  CHECK_EQ(fp_claim_size(&job, 1600, 100), 100);      /* the share decides */
  CHECK_EQ(fp_claim_size(&job, 7, 100), 1);
  CHECK_EQ(fp_claim_size(&job, 1000000, 1000000000), 1);
  job.chunk_ns = UINT64_MAX;
  CHECK_EQ(fp_claim_size(&job, FP_MAX_UNITS, 1), FP_MAX_CHUNK);
  job.n_workers = 0;
  CHECK_EQ(fp_claim_size(&job, 400, 1), 100);
  job.chunk_fixed = 25;
  CHECK_EQ(fp_claim_size(&job, 400, 1), 25);
  CHECK_EQ(fp_claim_size(&job, 24, 1), 24);
  job.chunk_fixed = UINT64_MAX;
  CHECK_EQ(fp_claim_size(&job, FP_MAX_UNITS, 1), FP_MAX_CHUNK);
  for (uint64_t left = 1; left < 5000; left = left * 3 / 2 + 1) {
    job.chunk_fixed = left % 7;
    uint64_t size = fp_claim_size(&job, left, left % 3);
    CHECK(size >= 1 && size <= left);
  }
}

/* ------------------------------------------------------------------ the number's 24 bits */

static void put_line(fp_segment *segment, fp_state state, uint64_t job, uint32_t claim_state) {
  fp_line *line = fp_line_of(segment, 1);
  atomic_store(&line->state, state);
  atomic_store(&line->job, job);
  atomic_store(&line->claim, fp_held_pack(3, 2, claim_state));
}

static void test_wrap_waits_for_an_old_intent(void) {
  fp_segment *segment = plain_segment(2);
  segment->job.number = WRAP + 4;
  atomic_store(&segment->job.avail, 8);
  put_line(segment, FP_RUNNING, 5, FP_CLAIM_INTENT);
  CHECK_EQ(fp_gate_close(segment), 0);
  CHECK_EQ(fp_gate_close(segment), 0);
  CHECK_EQ(segment->job.number, WRAP + 4);
  CHECK_EQ(fp_claim_index(atomic_load(&segment->gate.claim)), FP_INDEX_CLOSED);
  put_line(segment, FP_RUNNING, 5, FP_CLAIM_HELD);
  CHECK_EQ(fp_gate_close(segment), WRAP + 5);
  CHECK_EQ(segment->job.number, WRAP + 5);
  fp_gate_open(segment);
  CHECK_EQ(atomic_load(&segment->gate.claim), fp_claim_pack(5, 0));
  plain_free(segment);
}

static void test_wrap_ignores_others(void) {
  const struct {
    fp_state state;
    uint64_t job;
    uint32_t claim;
  } harmless[] = {{FP_DEAD, 5, FP_CLAIM_INTENT},    {FP_EXITED, 5, FP_CLAIM_INTENT},
                  {FP_RUNNING, 4, FP_CLAIM_INTENT}, {FP_RUNNING, WRAP + 5, FP_CLAIM_INTENT},
                  {FP_RUNNING, 5, FP_CLAIM_NONE},   {FP_RUNNING, 5, FP_CLAIM_HELD}};
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
    fp_segment *segment = plain_segment(2);
    segment->job.number = WRAP + 4;
    put_line(segment, harmless[i].state, harmless[i].job, harmless[i].claim);
    CHECK_EQ(fp_gate_close(segment), WRAP + 5);
    plain_free(segment);
  }
}

/* ------------------------------------------------------------------ many jobs, many workers */

enum { WORKERS = 4, MOST_UNITS = 600 };

static struct {
  fp_segment *segment;
  _Atomic int times[MOST_UNITS]; /* each unit of the present job was claimed so often */
  _Atomic uint64_t finished;     /* units of the present job that were run */
  _Atomic int stop;
  uint64_t most_units;
  pthread_t threads[WORKERS];
} stress;

/* spec_bytes and spec_sum are plain words: a claim must order them, and TSan watches. */
static void run_units(fp_segment *segment, uint32_t worker, const claimed *c) {
  const fp_job *job = &segment->job;
  uint64_t number = atomic_load(&fp_line_of(segment, worker)->job);
  CHECK_EQ(c->number, number & FP_NUMBER_MASK);
  CHECK_EQ(job->spec_sum, number * 7);
  CHECK(c->count >= 1 && c->first + c->count <= job->spec_bytes);
  CHECK(c->count == 1 || job->unit == FP_UNIT_TASK);
  for (uint64_t i = c->first; i < c->first + c->count; i++) atomic_fetch_add(&stress.times[i], 1);
  atomic_fetch_add_explicit(&stress.finished, c->count, memory_order_release);
}

static void *stress_worker(void *argument) {
  uint32_t worker = (uint32_t)(uintptr_t)argument;
  fp_segment *segment = stress.segment;
  atomic_store(&fp_line_of(segment, worker)->state, FP_RUNNING);
  while (!atomic_load(&stress.stop)) {
    claimed c = claim_any(segment, worker, worker == 2 ? 3 : 0, worker * 10);
    if (c.found == FP_CLAIM_OK)
      run_units(segment, worker, &c);
    else
      sched_yield();
  }
  return NULL;
}

static uint64_t close_gate(fp_segment *segment, uint64_t step) {
  atomic_store(&segment->job.number, atomic_load(&segment->job.number) + step - 1);
  uint64_t number;
  while ((number = fp_gate_close(segment)) == 0) sched_yield();
  return number;
}

static void publish_random(fp_segment *segment, uint64_t step) {
  uint64_t number = close_gate(segment, step);
  uint64_t total = 1 + random_below(stress.most_units);
  fp_job *job = &segment->job;
  job->unit = random_below(3) ? FP_UNIT_TASK : FP_UNIT_CHUNK;
  job->chunk_fixed = random_below(2) ? random_below(20) : 0;
  job->chunk_ns = random_below(500);
  job->n_workers = WORKERS;
  job->spec_sum = number * 7;
  job->spec_bytes = total;
  for (uint64_t i = 0; i < total; i++) atomic_store_explicit(&stress.times[i], 0, memory_order_relaxed);
  atomic_store(&stress.finished, 0);
  atomic_store(&job->total, random_below(2) ? total : FP_TOTAL_UNKNOWN);
  atomic_store_explicit(&job->avail, 1 + random_below(total), memory_order_release);
  fp_gate_open(segment);
}

static void feed_and_finish(fp_segment *segment) {
  fp_job *job = &segment->job;
  uint64_t total = job->spec_bytes;
  while (atomic_load_explicit(&stress.finished, memory_order_acquire) < total) {
    uint64_t avail = atomic_load(&job->avail);
    if (avail < total)
      atomic_store_explicit(&job->avail, avail + 1 + random_below(total - avail), memory_order_release);
    else
      sched_yield();
  }
  atomic_store(&job->total, total);
  CHECK_EQ(atomic_load(&stress.finished), total);
  for (uint64_t i = 0; i < total; i++) CHECK_EQ(atomic_load(&stress.times[i]), 1);
}

static void with_workers(void (*parent)(fp_segment *)) {
  memset(&stress, 0, sizeof stress);
  stress.most_units = MOST_UNITS;
  stress.segment = plain_segment(WORKERS);
  for (uintptr_t i = 0; i < WORKERS; i++)
    CHECK_EQ(pthread_create(&stress.threads[i], NULL, stress_worker, (void *)i), 0);
  parent(stress.segment);
  atomic_store(&stress.stop, 1);
  for (int i = 0; i < WORKERS; i++) pthread_join(stress.threads[i], NULL);
  plain_free(stress.segment);
}

static void successive_jobs(fp_segment *segment) {
  for (int i = 0; i < rounds(1000); i++) {
    publish_random(segment, 1);
    feed_and_finish(segment);
  }
}
static void test_successive_jobs(void) { with_workers(successive_jobs); }

/* Every job has the same low 24 bits, so any word that a worker still looks at appears again. A signal stops the
 * worker at some instruction, and the parent, being worker 1 as well, goes on to the middle of the next job. */
static struct {
  pthread_t thread;
  _Atomic int stopped, go;
} victim;

static void stop_here(int signal_number) {
  (void)signal_number;
  atomic_store(&victim.stopped, 1);
  while (!atomic_load(&victim.go)) fp_relax();
  atomic_store(&victim.stopped, 0);
}

static void *victim_run(void *argument) {
  fp_segment *segment = argument;
  while (!atomic_load(&stress.stop)) {
    claimed c = claim(segment, 0, 0);
    if (c.found == FP_CLAIM_OK) run_units(segment, 0, &c);
  }
  return NULL;
}

static void run_as_worker_one(fp_segment *segment, uint64_t most_claims) {
  while (most_claims-- > 0) {
    claimed c = claim(segment, 1, 0);
    if (c.found != FP_CLAIM_OK) return;
    run_units(segment, 1, &c);
  }
}

static void publish_same_low_bits(fp_segment *segment) {
  publish_random(segment, WRAP);
  segment->job.total = segment->job.avail = segment->job.spec_bytes;
}

static int stop_in_the_middle(fp_segment *segment) {
  publish_same_low_bits(segment);
  for (uint64_t spins = random_below(20); spins > 0; spins--) fp_relax();
  atomic_store(&victim.go, 0);
  pthread_kill(victim.thread, SIGUSR1);
  while (!atomic_load(&victim.stopped)) sched_yield();
  int between = held(segment, 0) == 0;
  if (between) {
    run_as_worker_one(segment, UINT64_MAX);
    feed_and_finish(segment);
    publish_same_low_bits(segment);
    run_as_worker_one(segment, random_below(6));
  }
  atomic_store(&victim.go, 1);
  while (atomic_load(&victim.stopped)) sched_yield();
  run_as_worker_one(segment, UINT64_MAX);
  feed_and_finish(segment);
  return between;
}

static void test_same_low_bits(void) {
  struct sigaction action = {.sa_handler = stop_here};
  CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
  memset(&stress, 0, sizeof stress);
  stress.most_units = 8;
  stress.segment = plain_segment(2);
  CHECK_EQ(pthread_create(&victim.thread, NULL, victim_run, stress.segment), 0);
  int between = 0;
  for (int i = 0; i < rounds(500); i++) between += stop_in_the_middle(stress.segment);
  CHECK(between > 0);
  atomic_store(&stress.stop, 1);
  pthread_join(victim.thread, NULL);
  plain_free(stress.segment);
}

/* What the parent reads of a line: the claim belongs to the job if the job is the same before and after. */
static uint64_t held_in(fp_line *line, uint64_t number) {
  for (;;) {
    uint64_t job = atomic_load(&line->job);
    uint64_t word = atomic_load(&line->claim);
    if (atomic_load(&line->job) == job) return job == number ? word : 0;
  }
}

/* The parent leaves early: it closes the gate in the middle, and waits until no line shows the job. */
static void abandoned_jobs(fp_segment *segment) {
  for (int i = 0; i < rounds(1000); i++) {
    publish_random(segment, 1);
    for (uint64_t spins = random_below(200); spins > 0; spins--) fp_relax();
    uint64_t total = segment->job.spec_bytes;
    uint64_t number = close_gate(segment, 1) - 1;
    for (uint32_t worker = 0; worker < WORKERS; worker++)
      while (held_in(fp_line_of(segment, worker), number) != 0) sched_yield();
    uint64_t claimed_units = 0;
    while (claimed_units < total && atomic_load(&stress.times[claimed_units])) claimed_units++;
    CHECK_EQ(atomic_load(&stress.finished), claimed_units);
    for (uint64_t k = 0; k < total; k++) CHECK_EQ(atomic_load(&stress.times[k]), k < claimed_units);
  }
}
static void test_abandoned_jobs(void) { with_workers(abandoned_jobs); }

/* ------------------------------------------------------------------ a death: who held what */

enum { MORTALS = 3, MORTAL_UNITS = 400 };

typedef struct {
  _Atomic int done[MORTAL_UNITS]; /* committed so often */
  _Atomic int begun[MORTAL_UNITS];
} ledger;

static void mortal(fp_segment *segment, ledger *book, uint32_t worker) {
  fp_line *line = fp_line_of(segment, worker);
  for (;;) {
    claimed c = claim(segment, worker, 0);
    if (c.found != FP_CLAIM_OK) _exit(0);
    for (uint64_t i = c.first; i < c.first + c.count; i++) {
      atomic_fetch_add(&book->begun[i], 1);
      for (int k = 0; k < 40; k++) fp_relax();
      atomic_fetch_add(&book->done[i], 1);
    }
    atomic_fetch_add(&line->chunks, 1);
  }
}

static int covers(uint64_t word, uint64_t unit) {
  return fp_held_state(word) != FP_CLAIM_NONE && unit >= fp_held_first(word) &&
         unit < fp_held_first(word) + fp_held_count(word);
}

/* Elimination, in the order of README.md. A unit that a living intent covers is asked for again. */
static int settle(fp_segment *segment, ledger *book, uint32_t dead, int lost[MORTAL_UNITS]) {
  uint64_t gate = atomic_load_explicit(&segment->gate.claim, memory_order_acquire);
  uint64_t lines[MORTALS];
  for (uint32_t i = 0; i < MORTALS; i++)
    lines[i] = i == dead ? 0 : held_in(fp_line_of(segment, i), segment->job.number);
  int unsure = 0;
  for (uint64_t unit = 0; unit < fp_claim_index(gate); unit++) {
    lost[unit] = !atomic_load_explicit(&book->done[unit], memory_order_acquire);
    for (uint32_t i = 0; i < MORTALS && lost[unit]; i++) {
      if (!covers(lines[i], unit)) continue;
      lost[unit] = 0;
      unsure |= fp_held_state(lines[i]) == FP_CLAIM_INTENT;
    }
  }
  return unsure;
}

static void check_lost(fp_segment *segment, ledger *book, uint32_t dead, const int lost[MORTAL_UNITS]) {
  uint64_t last = held(segment, dead);
  int begun = 0;
  for (uint64_t unit = 0; unit < MORTAL_UNITS; unit++) {
    if (!lost[unit]) continue;
    CHECK(covers(last, unit));
    begun += atomic_load(&book->begun[unit]);
  }
  CHECK(begun <= 1);
}

static void one_death(int round) {
  fp_segment *segment = plain_segment(MORTALS);
  ledger *book = mmap(NULL, sizeof *book, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(book != MAP_FAILED);
  publish(segment, FP_UNIT_TASK, MORTAL_UNITS, MORTAL_UNITS, 1 + random_below(5));
  int pids[MORTALS];
  for (uint32_t i = 0; i < MORTALS; i++) {
    pids[i] = fp_fork();
    CHECK(pids[i] >= 0);
    if (pids[i] == 0) mortal(segment, book, i);
  }
  uint32_t dead = (uint32_t)round % MORTALS;
  uint64_t until = random_below(MORTAL_UNITS);
  int status;
  while (fp_claim_index(atomic_load(&segment->gate.claim)) < until) sched_yield();
  kill(pids[dead], SIGKILL);
  CHECK_EQ(waitpid(pids[dead], &status, 0), pids[dead]);
  int lost[MORTAL_UNITS] = {0}, now[MORTAL_UNITS] = {0};
  while (settle(segment, book, dead, lost)) sched_yield();
  check_lost(segment, book, dead, lost);
  for (uint32_t i = 0; i < MORTALS; i++)
    if (i != dead) CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
  /* with everybody gone the truth is plain, and the answer given while they ran was it */
  CHECK_EQ(settle(segment, book, dead, now), 0);
  for (int unit = 0; unit < MORTAL_UNITS; unit++) {
    CHECK_EQ(lost[unit], now[unit]);
    CHECK_EQ(atomic_load(&book->done[unit]), !lost[unit]);
  }
  munmap(book, sizeof *book);
  plain_free(segment);
}

static void test_deaths(void) {
  for (int i = 0; i < rounds(40); i++) one_death(i);
}

int main(void) {
  RUN(test_another_job_is_not_claimed_unknown);
  RUN(test_packing);
  RUN(test_nothing_published);
  RUN(test_chunks_until_exhausted);
  RUN(test_starved_and_fed);
  RUN(test_empty_job);
  RUN(test_budget);
  RUN(test_size);
  RUN(test_wrap_waits_for_an_old_intent);
  RUN(test_wrap_ignores_others);
  RUN(test_successive_jobs);
  RUN(test_same_low_bits);
  RUN(test_abandoned_jobs);
  RUN(test_deaths);
  return done();
}
