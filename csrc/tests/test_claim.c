#include "claim.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "board.h"
#include "plain_segment.h"
#include "platform.h"
#include "tools.h"

#define WRAP (UINT64_C(1) << 24)

static fp_random seed;
static uint64_t below(uint64_t n) { return random_below(&seed, n); }

/* What a worker knows, and what it was told last. */
typedef struct {
  fp_terms terms;
  int found;
  uint64_t first, count;
} hand;

static hand other; /* worker 1's, where the parent is that as well */

enum { NO_RANGE = 0, ALL_RANGE = 1 << 20 }; /* units that are tasks of a range */

static uint64_t publish(fp_segment *segment, uint64_t range_units, uint64_t avail, uint64_t total,
                        uint64_t fixed) {
  uint64_t number = fp_gate_close(segment, FP_MAP);
  fp_job *job = &segment->jobs[FP_MAP];
  job->range_units = range_units;
  job->chunk_fixed = fixed;
  job->chunk_ns = 1000;
  job->n_workers = segment->lanes;
  atomic_store_explicit(&job->avail, avail, memory_order_release);
  atomic_store_explicit(&job->total, total, memory_order_release);
  fp_gate_open(segment, FP_MAP);
  return number;
}

static int next(fp_segment *segment, uint32_t worker, hand *h) {
  h->found = fp_claim_next(segment, worker, &h->terms, 0, 0, &h->first, &h->count);
  return h->found;
}

/* Of whatever job the gate shows. */
static int claim_timed(fp_segment *segment, uint32_t worker, hand *h, uint64_t budget, uint64_t task_ns) {
  for (;;) {
    h->found = fp_claim_next(segment, worker, &h->terms, budget, task_ns, &h->first, &h->count);
    if (h->found != FP_CLAIM_OTHER) return h->found;
    fp_claim_join(segment, worker, &h->terms);
  }
}
static int claim(fp_segment *segment, uint32_t worker, hand *h, uint64_t budget) {
  return claim_timed(segment, worker, h, budget, 0);
}

static uint64_t held(fp_segment *segment, uint32_t worker) {
  return atomic_load(&fp_line_of(segment, worker)->claim);
}
static int holds(fp_segment *segment, uint32_t worker, uint64_t number) {
  uint64_t first, count;
  return fp_line_holds(fp_line_of(segment, worker), FP_MAP, number, &first, &count);
}
static uint64_t gate(fp_segment *segment) { return atomic_load(&segment->gates[FP_MAP].claim); }

/* A new worker in this line. */
static void start_again(fp_segment *segment, uint32_t worker) {
  fp_line_reset(fp_line_of(segment, worker));
  memset(&other, 0, sizeof other);
}

/* ------------------------------------------------------------------ parameters that tell their number */

static uint64_t most_units;

static fp_terms terms_of(uint64_t number) {
  fp_random random = {.state = number * UINT64_C(0x9e3779b97f4a7c15)};
  return (fp_terms){
      .number = number,
      .range_units = random_below(&random, 3) ? random_below(&random, most_units) : 0,
      .flags = number * 13,
      .range_start = -(int64_t)number,
      .range_step = (int64_t)number * 17,
      .chunk_fixed = random_below(&random, 2) ? random_below(&random, 20) : 0,
      .chunk_ns = random_below(&random, 500),
      .n_workers = 1 + (uint32_t)random_below(&random, 8),
      .spec = (uint32_t)number * 3,
      .lifespan = number * 5,
      .spec_offset = number * 11,
      .spec_bytes = 1 + random_below(&random, most_units), /* units in all */
      .spec_sum = number * 7,
      .task_limit = number * 19,
      .init_limit = number * 23,
      .exit_limit = number * 29,
  };
}

static void write_terms(fp_job *job, const fp_terms *terms) {
#define WRITE(field) atomic_store_explicit(&job->field, terms->field, memory_order_relaxed)
  WRITE(range_units), WRITE(flags), WRITE(range_start), WRITE(range_step), WRITE(chunk_fixed),
      WRITE(chunk_ns);
  WRITE(n_workers), WRITE(spec), WRITE(lifespan), WRITE(spec_offset), WRITE(spec_bytes), WRITE(spec_sum);
  WRITE(task_limit), WRITE(init_limit), WRITE(exit_limit);
#undef WRITE
}

static void check_terms(const fp_terms *terms) {
  fp_terms expected = terms_of(terms->number);
  CHECK(memcmp(terms, &expected, sizeof expected) == 0);
}

/* ------------------------------------------------------------------ one after another */

static void test_packing(void) {
  uint64_t word = fp_claim_pack(WRAP + 5, FP_MAX_UNITS);
  CHECK_EQ(fp_claim_number(word), 5);
  CHECK_EQ(fp_claim_index(word), FP_MAX_UNITS);
  uint64_t line = fp_held_pack(FP_MAP, FP_MAX_UNITS, FP_MAX_CHUNK, FP_CLAIM_HELD);
  CHECK_EQ(fp_held_first(line), FP_MAX_UNITS);
  CHECK_EQ(fp_held_count(line), FP_MAX_CHUNK);
  CHECK_EQ(fp_held_state(line), FP_CLAIM_HELD);
  CHECK_EQ(fp_held_channel(line), FP_MAP);
  line = fp_held_pack(FP_APPLY, FP_MAX_UNITS, FP_MAX_CHUNK, FP_CLAIM_INTENT);
  CHECK_EQ(fp_held_first(line), FP_MAX_UNITS);
  CHECK_EQ(fp_held_count(line), FP_MAX_CHUNK);
  CHECK_EQ(fp_held_state(line), FP_CLAIM_INTENT);
  CHECK_EQ(fp_held_channel(line), FP_APPLY);
}

static void test_nothing_published(void) {
  fp_segment *segment = plain_segment(2);
  hand h = {0};
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_CLOSED);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 0);
  CHECK_EQ(fp_gate_close(segment, FP_MAP), 1);
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_CLOSED);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 0);
  CHECK_EQ(held(segment, 0), 0);
  plain_free(segment);
}

static void test_a_job_is_joined_before_it_is_claimed_from(void) {
  fp_segment *segment = plain_segment(1);
  fp_line *line = fp_line_of(segment, 0);
  hand h = {0};
  publish(segment, ALL_RANGE, 10, 10, 4);
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_OTHER);
  CHECK_EQ(atomic_load(&line->jobs[FP_MAP]), 0);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 1);
  CHECK_EQ(h.terms.number, 1);
  CHECK_EQ(atomic_load(&line->jobs[FP_MAP]), 1);
  CHECK_EQ(held(segment, 0), 0);
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_OK);
  CHECK_EQ(held(segment, 0), fp_held_pack(FP_MAP, 0, 4, FP_CLAIM_HELD));
  publish(segment, ALL_RANGE, 10, 10, 3);
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_OTHER);
  CHECK_EQ(held(segment, 0), 0);
  CHECK_EQ(gate(segment), fp_claim_pack(2, 0));
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 1);
  CHECK(next(segment, 0, &h) == FP_CLAIM_OK && h.first == 0 && h.count == 3);
  plain_free(segment);
}

/* The first job whose low 24 bits are 0: a worker that joined none has not joined this one. */
static void test_low_bits_of_zero(void) {
  fp_segment *segment = plain_segment(2);
  hand h = {0};
  segment->jobs[FP_MAP].number = WRAP - 1;
  CHECK_EQ(publish(segment, ALL_RANGE, 10, 10, 4), WRAP);
  CHECK_EQ(gate(segment), 0);
  CHECK_EQ(next(segment, 0, &h), FP_CLAIM_OTHER);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.terms.number == WRAP && h.count == 4);
  plain_free(segment);
}

static uint64_t open_apply(fp_segment *segment, uint64_t avail) {
  uint64_t number = fp_gate_close(segment, FP_APPLY);
  atomic_store(&segment->jobs[FP_APPLY].range_units, 0);
  atomic_store(&segment->jobs[FP_APPLY].avail, avail);
  atomic_store(&segment->jobs[FP_APPLY].total, FP_TOTAL_UNKNOWN);
  fp_gate_open(segment, FP_APPLY);
  return number;
}

/* A worker takes units of both channels in turn; its line shows one claim, of the channel that it is of. */
static void test_two_channels(void) {
  fp_segment *segment = plain_segment(1);
  fp_line *line = fp_line_of(segment, 0);
  hand h = {0}, apply = {.terms.channel = FP_APPLY};
  uint64_t map = publish(segment, ALL_RANGE, 10, 10, 4), applies = open_apply(segment, 2), first, count;
  CHECK(applies == map + 1);
  CHECK_EQ(claim(segment, 0, &apply, 0), FP_CLAIM_OK);
  CHECK(apply.terms.channel == FP_APPLY && apply.terms.number == applies && apply.first == 0 &&
        apply.count == 1);
  CHECK_EQ(fp_line_holds(line, FP_APPLY, applies, &first, &count), FP_CLAIM_HELD);
  CHECK_EQ(fp_line_holds(line, FP_MAP, map, &first, &count), FP_CLAIM_NONE);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_OK);
  CHECK(h.terms.number == map && h.first == 0 && h.count == 4);
  CHECK_EQ(fp_line_holds(line, FP_APPLY, applies, &first, &count), FP_CLAIM_NONE);
  CHECK_EQ(fp_line_holds(line, FP_MAP, map, &first, &count), FP_CLAIM_HELD);
  CHECK(line->jobs[FP_MAP] == map && line->jobs[FP_APPLY] == applies);
  CHECK_EQ(claim(segment, 0, &apply, 0), FP_CLAIM_OK);
  CHECK_EQ(apply.first, 1);
  fp_claim_begin(segment, 0);
  CHECK_EQ(fp_line_holds(line, FP_APPLY, applies, &first, &count), FP_CLAIM_BEGUN);
  CHECK(first == 1 && count == 1);
  CHECK_EQ(claim(segment, 0, &apply, 0), FP_CLAIM_STARVED);
  CHECK_EQ(held(segment, 0), 0);
  map = publish(segment, ALL_RANGE, 10, 10, 3); /* the other channel stays as it is */
  CHECK_EQ(next(segment, 0, &apply), FP_CLAIM_STARVED);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.terms.number == map && h.count == 3);
  plain_free(segment);
}

/* Records have the low 8 bits of a number: those of two channels at a time must differ. */
static void test_numbers_of_two_channels(void) {
  fp_segment *segment = plain_segment(1);
  uint64_t applies = open_apply(segment, 0);
  CHECK_EQ(applies, 1);
  for (uint64_t i = 2; i < 1000; i++) {
    uint64_t number = publish(segment, ALL_RANGE, 10, 10, 4);
    CHECK((uint8_t)number != (uint8_t)applies && number > applies);
    if (i % 300 == 0) applies = open_apply(segment, 0);
    CHECK((uint8_t)number != (uint8_t)applies && number <= segment->jobs[FP_MAP].number);
  }
  plain_free(segment);
}

static void test_joining_shows_no_claim(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, ALL_RANGE, 10, 10, 4);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_OK);
  publish(segment, ALL_RANGE, 10, 10, 4);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 1);
  CHECK_EQ(held(segment, 0), 0);
  CHECK_EQ(atomic_load(&fp_line_of(segment, 0)->jobs[FP_MAP]), 2);
  CHECK_EQ(fp_gate_close(segment, FP_MAP), 3);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 0);
  CHECK_EQ(h.terms.number, 0);
  plain_free(segment);
}

static void test_all_parameters_are_copied(void) {
  fp_segment *segment = plain_segment(1);
  fp_terms terms = {0};
  most_units = 50;
  for (int i = 0; i < 50; i++) {
    fp_terms written = terms_of(fp_gate_close(segment, FP_MAP));
    write_terms(&segment->jobs[FP_MAP], &written);
    fp_gate_open(segment, FP_MAP);
    CHECK_EQ(fp_claim_join(segment, 0, &terms), 1);
    check_terms(&terms);
  }
  plain_free(segment);
}

static void test_gate_shows(void) {
  fp_segment *segment = plain_segment(1);
  CHECK(!fp_gate_shows(segment, FP_MAP, 0));
  fp_gate_close(segment, FP_MAP);
  CHECK(!fp_gate_shows(segment, FP_MAP, 1));
  fp_gate_open(segment, FP_MAP);
  CHECK(fp_gate_shows(segment, FP_MAP, 1));
  CHECK(!fp_gate_shows(segment, FP_MAP, 2) && !fp_gate_shows(segment, FP_MAP, WRAP + 1));
  segment->jobs[FP_MAP].number = WRAP + 1;
  CHECK(!fp_gate_shows(segment, FP_MAP, 1) && fp_gate_shows(segment, FP_MAP, WRAP + 1));
  segment->jobs[FP_MAP].number = 1;
  segment->gates[FP_MAP].claim = fp_claim_pack(2, 0);
  CHECK(!fp_gate_shows(segment, FP_MAP, 1) && !fp_gate_shows(segment, FP_MAP, 2));
  plain_free(segment);
}

static void test_line_holds(void) {
  fp_segment *segment = plain_segment(1);
  fp_line *line = fp_line_of(segment, 0);
  uint64_t first = 9, count = 9;
  CHECK_EQ(fp_line_holds(line, FP_MAP, 1, &first, &count), FP_CLAIM_NONE);
  CHECK(first == 0 && count == 0);
  for (int state = FP_CLAIM_INTENT; state <= FP_CLAIM_HELD; state++) {
    line->jobs[FP_MAP] = WRAP + 1;
    line->claim = fp_held_pack(FP_MAP, 3, 2, (uint32_t)state);
    CHECK_EQ(fp_line_holds(line, FP_MAP, WRAP + 1, &first, &count), state);
    CHECK(first == 3 && count == 2);
    CHECK_EQ(fp_line_holds(line, FP_MAP, 1, &first, &count), FP_CLAIM_NONE);
    CHECK(first == 0 && count == 0);
  }
  plain_free(segment);
}

static void test_chunks_until_exhausted(void) {
  fp_segment *segment = plain_segment(2);
  hand a = {0}, b = {0};
  CHECK_EQ(publish(segment, ALL_RANGE, 10, 10, 4), 1);
  CHECK(claim(segment, 0, &a, 0) == FP_CLAIM_OK && a.first == 0 && a.count == 4 && a.terms.number == 1);
  CHECK(claim(segment, 1, &b, 0) == FP_CLAIM_OK && b.first == 4 && b.count == 4);
  CHECK_EQ(held(segment, 0), fp_held_pack(FP_MAP, 0, 4, FP_CLAIM_HELD));
  CHECK_EQ(held(segment, 1), fp_held_pack(FP_MAP, 4, 4, FP_CLAIM_HELD));
  CHECK(claim(segment, 1, &b, 0) == FP_CLAIM_OK && b.first == 8 && b.count == 2);
  CHECK_EQ(claim(segment, 0, &a, 0), FP_CLAIM_EXHAUSTED);
  CHECK_EQ(held(segment, 0), 0);
  fp_claim_drop(segment, 1);
  CHECK_EQ(held(segment, 1), 0);
  fp_gate_close(segment, FP_MAP);
  CHECK_EQ(claim(segment, 0, &a, 0), FP_CLAIM_CLOSED);
  plain_free(segment);
}

static void test_starved_and_fed(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, NO_RANGE, 0, FP_TOTAL_UNKNOWN, 0);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_STARVED);
  atomic_store(&segment->jobs[FP_MAP].avail, 3);
  for (uint64_t i = 0; i < 3; i++)
    CHECK(claim(segment, 0, &h, 1) == FP_CLAIM_OK && h.first == i && h.count == 1);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_STARVED);
  CHECK_EQ(held(segment, 0), 0);
  atomic_store(&segment->jobs[FP_MAP].total, 4);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_STARVED);
  atomic_store(&segment->jobs[FP_MAP].total, 3);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_EXHAUSTED);
  plain_free(segment);
}

/* Units in turn: nobody is kept waiting by the others, and nobody takes what is another's. */
static void test_units_of_its_own(void) {
  fp_segment *segment = plain_segment(2);
  hand h = {0};
  fp_control_of(segment, 0)->turn = 4;
  uint64_t number = publish(segment, NO_RANGE, 5, FP_TOTAL_UNKNOWN, 0);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 0), FP_CLAIM_OTHER);
  CHECK_EQ(fp_claim_join(segment, 0, &h.terms), 1);
  CHECK_EQ(h.terms.turn, 4);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 4), FP_CLAIM_OK);
  CHECK_EQ(held(segment, 0), fp_held_pack(FP_MAP, 4, 1, FP_CLAIM_HELD));
  CHECK_EQ(gate(segment), fp_claim_pack(number, 0));
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 6), FP_CLAIM_STARVED);
  CHECK_EQ(held(segment, 0), 0);
  atomic_store(&segment->jobs[FP_MAP].total, 5);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 6), FP_CLAIM_EXHAUSTED);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 0), FP_CLAIM_OK);
  fp_gate_close(segment, FP_MAP);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 2), FP_CLAIM_CLOSED);
  CHECK_EQ(held(segment, 0), 0);
  fp_gate_open(segment, FP_MAP);
  CHECK_EQ(fp_claim_own(segment, 0, &h.terms, 2), FP_CLAIM_OTHER);
  plain_free(segment);
}

static void test_empty_job(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, ALL_RANGE, 0, 0, 0);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_EXHAUSTED);
  plain_free(segment);
}

static void test_budget(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, ALL_RANGE, 100, 100, 10);
  CHECK(claim(segment, 0, &h, 3) == FP_CLAIM_OK && h.count == 3);
  CHECK(claim(segment, 0, &h, 30) == FP_CLAIM_OK && h.count == 10);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.count == 10);
  /* a chunk is one unit, however many tasks the parent put into it */
  publish(segment, NO_RANGE, 5, 5, 10);
  CHECK(claim(segment, 0, &h, 3) == FP_CLAIM_OK && h.count == 1);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.count == 1);
  plain_free(segment);
}

/* Behind the tasks of a range come chunks: no claim holds both. */
static void test_range_then_chunks(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, 12, 15, FP_TOTAL_UNKNOWN, 10);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.first == 0 && h.count == 10);
  CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.first == 10 && h.count == 2);
  for (uint64_t unit = 12; unit < 15; unit++)
    CHECK(claim(segment, 0, &h, 0) == FP_CLAIM_OK && h.first == unit && h.count == 1);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_STARVED);
  plain_free(segment);
}

static void test_size(void) {
  fp_terms terms = {.range_units = ALL_RANGE, .chunk_ns = 1000000, .n_workers = 4};
  CHECK_EQ(fp_claim_size(&terms, 1000000, 0), 16);
  CHECK_EQ(fp_claim_size(&terms, 640, 0), 10);
  CHECK_EQ(fp_claim_size(&terms, 63, 0), 1);
  CHECK_EQ(fp_claim_size(&terms, 1000000, 100), 10000); /* the time decides */
  CHECK_EQ(fp_claim_size(&terms, 1600, 100), 100);      /* the share decides */
  CHECK_EQ(fp_claim_size(&terms, 7, 100), 1);
  CHECK_EQ(fp_claim_size(&terms, 1000000, 1000000000), 1);
  terms.chunk_ns = UINT64_MAX;
  CHECK_EQ(fp_claim_size(&terms, FP_MAX_UNITS, 1), FP_MAX_CHUNK);
  terms.n_workers = 0;
  CHECK_EQ(fp_claim_size(&terms, 400, 1), 100);
  terms.chunk_fixed = 25;
  CHECK_EQ(fp_claim_size(&terms, 400, 1), 25);
  CHECK_EQ(fp_claim_size(&terms, 24, 1), 24);
  terms.chunk_fixed = UINT64_MAX;
  CHECK_EQ(fp_claim_size(&terms, FP_MAX_UNITS, 1), FP_MAX_CHUNK);
  for (uint64_t left = 1; left < 5000; left = left * 3 / 2 + 1) {
    terms.chunk_fixed = left % 7;
    uint64_t size = fp_claim_size(&terms, left, left % 3);
    CHECK(size >= 1 && size <= left);
  }
}

/* ------------------------------------------------------------------ the number's 24 bits */

static void put_line(fp_segment *segment, uint32_t worker, fp_state state, uint64_t job, int claim_state) {
  fp_line *line = fp_line_of(segment, worker);
  atomic_store(&line->state, state);
  atomic_store(&line->jobs[FP_MAP], job);
  atomic_store(&line->claim, fp_held_pack(FP_MAP, 3, 2, (uint32_t)claim_state));
}

static void test_a_shown_number_is_not_used_again(void) {
  for (fp_state state = FP_STARTING; state <= FP_EXITING; state++)
    for (int claim_state = FP_CLAIM_NONE; claim_state <= FP_CLAIM_HELD; claim_state++) {
      fp_segment *segment = plain_segment(2);
      segment->jobs[FP_MAP].number = WRAP + 4;
      put_line(segment, 1, state, 5, claim_state);
      CHECK_EQ(fp_gate_close(segment, FP_MAP), WRAP + 6);
      CHECK_EQ(segment->jobs[FP_MAP].number, WRAP + 6);
      CHECK_EQ(gate(segment), fp_claim_pack(6, FP_INDEX_CLOSED));
      fp_gate_open(segment, FP_MAP);
      CHECK_EQ(gate(segment), fp_claim_pack(6, 0));
      plain_free(segment);
    }
}

static void test_other_numbers_are_used(void) {
  const struct {
    fp_state state;
    uint64_t job, number;
  } harmless[] = {{FP_DEAD, 5, WRAP + 5},    {FP_EXITED, 5, WRAP + 5},  {FP_RUNNING, 4, WRAP + 5},
                  {FP_RUNNING, 6, WRAP + 5}, {FP_RUNNING, 0, 2 * WRAP}, {FP_RUNNING, WRAP + 4, WRAP + 5}};
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
    fp_segment *segment = plain_segment(2);
    segment->jobs[FP_MAP].number = harmless[i].number - 1;
    put_line(segment, 1, harmless[i].state, harmless[i].job, FP_CLAIM_INTENT);
    CHECK_EQ(fp_gate_close(segment, FP_MAP), harmless[i].number);
    plain_free(segment);
  }
}

static void test_many_shown_numbers(void) {
  fp_segment *segment = plain_segment(5);
  const uint64_t shown[5] = {WRAP - 1, WRAP, 3, WRAP + 1, 2};
  for (uint32_t i = 0; i < 5; i++) put_line(segment, i, FP_IDLE, shown[i], FP_CLAIM_NONE);
  segment->jobs[FP_MAP].number = 3 * WRAP - 2;
  CHECK_EQ(fp_gate_close(segment, FP_MAP), 3 * WRAP + 4);
  put_line(segment, 2, FP_IDLE, 3 * WRAP + 4, FP_CLAIM_NONE);
  segment->jobs[FP_MAP].number = 4 * WRAP - 2;
  CHECK_EQ(fp_gate_close(segment, FP_MAP), 4 * WRAP + 3);
  plain_free(segment);
}

/* ------------------------------------------------------------------ at every instruction */

#ifdef FP_CAN_STEP

/* A child runs `body` as worker 0; after `at` instructions of it the world changes under it. `taken` are the units
 * that others, who run in this process, have claimed: of the first job and of the later one. */
typedef struct {
  fp_segment *segment;
  int joined; /* the child has joined the first job before it begins */
  void (*change)(fp_segment *);
  uint64_t at, steps;
  int changed;
  struct {
    hand h;
    int begun, over;
  } *child;
} stepped;

static int taken[2][16];

static void claim_as_other(fp_segment *segment, uint64_t budget, int most_claims) {
  while (most_claims-- > 0 && claim(segment, 1, &other, budget) == FP_CLAIM_OK)
    for (uint64_t i = other.first; i < other.first + other.count; i++) taken[other.terms.number != 1][i]++;
  fp_claim_drop(segment, 1);
}

static void step_look(void *context) {
  stepped *s = context;
  if (!s->child->begun || s->changed || s->child->over || s->steps++ != s->at) return;
  s->change(s->segment);
  s->changed = 1;
}

static void step_claim(void *context) {
  stepped *s = context;
  s->child->begun = 1;
  claim(s->segment, 0, &s->child->h, 0);
  s->child->over = 1;
}

/* Before each instruction of the child in turn, until there are no more. 0 where this is refused. */
static int at_every_instruction(int joined, void (*prepare)(fp_segment *), void (*change)(fp_segment *),
                                void (*body)(void *), void (*check)(fp_segment *, const hand *)) {
  int before = 0, after = 0;
  for (uint64_t at = 0;; at++) {
    stepped s = {.segment = plain_segment(2), .joined = joined, .change = change, .at = at};
    s.child = mmap(NULL, sizeof *s.child, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s.child != MAP_FAILED);
    memset(&other, 0, sizeof other);
    memset(taken, 0, sizeof taken);
    prepare(s.segment);
    if (joined) CHECK_EQ(fp_claim_join(s.segment, 0, &s.child->h.terms), 1);
    uint64_t steps = step_child_until(body, step_look, &s, &s.changed);
    if (steps != 0 && s.changed) {
      check(s.segment, &s.child->h);
      before += s.child->h.terms.number == 1;
      after += s.child->h.terms.number != 1;
    }
    munmap(s.child, sizeof *s.child);
    plain_free(s.segment);
    if (steps == 0) return 0;
    if (!s.changed) break;
  }
  CHECK(before > 0 && after > 0);
  return 1;
}

static void prepare_round(fp_segment *segment) {
  publish(segment, ALL_RANGE, 6, 6, 2);
  claim_as_other(segment, 0, 1);
}

static int repeats;

/* One whole round of numbers, and the index is where it was. Only worker 0 is as old as that. */
static void change_round(fp_segment *segment) {
  claim_as_other(segment, 0, 100);
  start_again(segment, 1);
  segment->jobs[FP_MAP].number = WRAP;
  repeats += publish(segment, ALL_RANGE, 9, 9, 3) == WRAP + 1;
  claim_as_other(segment, 2, 1);
  CHECK_EQ(fp_claim_index(gate(segment)), 2);
}

static void check_round(fp_segment *segment, const hand *h) {
  CHECK_EQ(h->found, FP_CLAIM_OK);
  int later = h->terms.number != 1;
  if (later) CHECK(h->terms.number == segment->jobs[FP_MAP].number && h->first == 2);
  CHECK_EQ(h->terms.chunk_fixed, later ? 3 : 2);
  CHECK_EQ(h->count, later ? 3 : 2);
  for (uint64_t i = h->first; i < h->first + h->count; i++) CHECK_EQ(taken[later][i], 0);
  CHECK_EQ(holds(segment, 0, h->terms.number), FP_CLAIM_HELD);
}

static void test_a_round_of_numbers_at_every_instruction(void) {
  repeats = 0;
  if (!at_every_instruction(1, prepare_round, change_round, step_claim, check_round)) return;
  CHECK_EQ(repeats, 0);
  at_every_instruction(0, prepare_round, change_round, step_claim, check_round);
  CHECK(repeats > 0);
}

static void prepare_endless(fp_segment *segment) {
  publish(segment, ALL_RANGE, 2, FP_TOTAL_UNKNOWN, 2);
  claim_as_other(segment, 0, 1);
}
static void prepare_ended(fp_segment *segment) {
  publish(segment, ALL_RANGE, 2, 2, 2);
  claim_as_other(segment, 0, 1);
}
static void change_to_ended(fp_segment *segment) { publish(segment, ALL_RANGE, 0, 0, 2); }
static void change_to_endless(fp_segment *segment) { publish(segment, ALL_RANGE, 0, FP_TOTAL_UNKNOWN, 2); }
static void check_endless_first(fp_segment *segment, const hand *h) {
  CHECK_EQ(h->found, h->terms.number == 1 ? FP_CLAIM_STARVED : FP_CLAIM_EXHAUSTED);
  CHECK_EQ(held(segment, 0), 0);
}
static void check_ended_first(fp_segment *segment, const hand *h) {
  CHECK_EQ(h->found, h->terms.number == 1 ? FP_CLAIM_EXHAUSTED : FP_CLAIM_STARVED);
  CHECK_EQ(held(segment, 0), 0);
}

static void test_the_end_of_another_job_at_every_instruction(void) {
  at_every_instruction(1, prepare_endless, change_to_ended, step_claim, check_endless_first);
  at_every_instruction(1, prepare_ended, change_to_endless, step_claim, check_ended_first);
}

static void publish_terms(fp_segment *segment) {
  most_units = 16;
  fp_terms terms = terms_of(fp_gate_close(segment, FP_MAP));
  write_terms(&segment->jobs[FP_MAP], &terms);
  segment->jobs[FP_MAP].avail = segment->jobs[FP_MAP].total = terms.spec_bytes;
  fp_gate_open(segment, FP_MAP);
}
static void check_joined(fp_segment *segment, const hand *h) {
  CHECK_EQ(h->found, FP_CLAIM_OK);
  check_terms(&h->terms);
  CHECK_EQ(atomic_load(&fp_line_of(segment, 0)->jobs[FP_MAP]), h->terms.number);
  CHECK(h->first == 0 && h->count <= h->terms.spec_bytes);
}
static void step_join(void *context) {
  stepped *s = context;
  s->child->begun = 1;
  while (!fp_claim_join(s->segment, 0, &s->child->h.terms)) continue;
  s->child->over = 1;
}
static void check_copied(fp_segment *segment, const hand *h) {
  check_terms(&h->terms);
  CHECK_EQ(atomic_load(&fp_line_of(segment, 0)->jobs[FP_MAP]), h->terms.number);
}
static void test_joining_at_every_instruction(void) {
  at_every_instruction(0, publish_terms, publish_terms, step_join, check_copied);
  at_every_instruction(0, publish_terms, publish_terms, step_claim, check_joined);
}

/* Here the child is the parent that reads the line of worker 1: for the first job, and for the second. */
static void read_line(void *context, uint64_t number) {
  stepped *s = context;
  hand *h = &s->child->h;
  s->child->begun = 1;
  h->found = fp_line_holds(fp_line_of(s->segment, 1), FP_MAP, number, &h->first, &h->count);
  h->terms.number = h->found == FP_CLAIM_NONE ? 3 - number : number;
  s->child->over = 1;
}
static void read_first(void *context) { read_line(context, 1); }
static void read_second(void *context) { read_line(context, 2); }
static void prepare_line(fp_segment *segment) {
  publish(segment, ALL_RANGE, 6, 6, 2);
  CHECK_EQ(claim(segment, 1, &other, 0), FP_CLAIM_OK);
}
static void change_line(fp_segment *segment) {
  publish(segment, ALL_RANGE, 6, 6, 3);
  CHECK_EQ(claim(segment, 1, &other, 0), FP_CLAIM_OK);
}
static void check_reading(const hand *h, uint64_t count) {
  CHECK(h->found == FP_CLAIM_NONE || h->found == FP_CLAIM_HELD);
  CHECK(h->first == 0 && h->count == (h->found == FP_CLAIM_NONE ? 0 : count));
}
static void check_first(fp_segment *segment, const hand *h) {
  CHECK_EQ(holds(segment, 1, 2), FP_CLAIM_HELD);
  check_reading(h, 2);
}
static void check_second(fp_segment *segment, const hand *h) {
  CHECK_EQ(holds(segment, 1, 1), FP_CLAIM_NONE);
  check_reading(h, 3);
}
static void test_reading_a_line_at_every_instruction(void) {
  at_every_instruction(0, prepare_line, change_line, read_first, check_first);
  at_every_instruction(0, prepare_line, change_line, read_second, check_second);
}

/* A worker goes on to the next job: never does its line show the old claim as one of the new job. */
static void go_on(void *context) {
  fp_terms terms = {0};
  CHECK_EQ(fp_claim_join(context, 0, &terms), 1);
}
static void see_no_claim(void *context) { CHECK_EQ(holds(context, 0, 2), FP_CLAIM_NONE); }
static void test_going_on_at_every_instruction(void) {
  fp_segment *segment = plain_segment(1);
  hand h = {0};
  publish(segment, ALL_RANGE, 6, 6, 2);
  CHECK_EQ(claim(segment, 0, &h, 0), FP_CLAIM_OK);
  publish(segment, ALL_RANGE, 6, 6, 2);
  if (step_child(go_on, see_no_claim, segment) != 0)
    CHECK_EQ(atomic_load(&fp_line_of(segment, 0)->jobs[FP_MAP]), 2);
  plain_free(segment);
}

/* What a death would leave: each unit below the gate's index is done, or the line shows it. */
typedef struct {
  fp_segment *segment;
  _Atomic int *done;
  uint64_t most;
} dying;

static void die_body(void *context) {
  dying *d = context;
  hand h = {0};
  while (claim(d->segment, 0, &h, 0) == FP_CLAIM_OK)
    for (uint64_t i = h.first; i < h.first + h.count; i++) atomic_store(&d->done[i], 1);
}

static void die_look(void *context) {
  dying *d = context;
  uint64_t first, count, index = fp_claim_index(gate(d->segment));
  int state = fp_line_holds(fp_line_of(d->segment, 0), FP_MAP, 1, &first, &count);
  CHECK(state != FP_CLAIM_HELD || first + count <= index);
  for (uint64_t i = 0; i < index; i++) CHECK(d->done[i] || (i >= first && i < first + count));
  for (uint64_t i = index; i < 8; i++) CHECK(!d->done[i]);
  if (index > d->most) d->most = index;
}

static void test_a_death_at_every_instruction(void) {
  dying d = {.segment = plain_segment(1)};
  d.done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(d.done != MAP_FAILED);
  publish(d.segment, ALL_RANGE, 8, 8, 3);
  if (step_child(die_body, die_look, &d) != 0) CHECK_EQ(d.most, 8);
  munmap((void *)d.done, 4096);
  plain_free(d.segment);
}

static void test_stepped(void) {
  test_a_round_of_numbers_at_every_instruction();
  test_the_end_of_another_job_at_every_instruction();
  test_joining_at_every_instruction();
  test_reading_a_line_at_every_instruction();
  test_going_on_at_every_instruction();
  test_a_death_at_every_instruction();
}

#else
static void test_stepped(void) {}
#endif

/* ------------------------------------------------------------------ many jobs, many workers */

enum { WORKERS = 4, MOST_UNITS = 600 };

static struct {
  fp_segment *segment;
  _Atomic int times[MOST_UNITS]; /* each unit of the present job was claimed so often */
  _Atomic uint64_t finished;     /* units of the present job that were run */
  _Atomic int stop;
  int even_is_endless; /* jobs of even numbers have no end, the others are whole from the start */
  pthread_t threads[WORKERS];
} stress;

/* The feed is plain words: a claim must order them, and TSan watches. */
static void run_units(fp_segment *segment, uint32_t worker, const hand *h) {
  check_terms(&h->terms);
  CHECK_EQ(atomic_load(&fp_line_of(segment, worker)->jobs[FP_MAP]), h->terms.number);
  CHECK(h->count >= 1 && h->first + h->count <= h->terms.spec_bytes);
  CHECK(h->count == 1 || h->first + h->count <= h->terms.range_units);
  for (uint64_t i = h->first; i < h->first + h->count; i++) {
    CHECK_EQ(fp_feed_of(segment, FP_MAP, i)->first, h->terms.number + i);
    atomic_fetch_add(&stress.times[i], 1);
  }
  atomic_fetch_add_explicit(&stress.finished, h->count, memory_order_release);
}

static void check_no_work(const hand *h) {
  if (!stress.even_is_endless || h->found == FP_CLAIM_CLOSED) return;
  CHECK_EQ(h->found, h->terms.number % 2 ? FP_CLAIM_EXHAUSTED : FP_CLAIM_STARVED);
}

static void *stress_worker(void *argument) {
  uint32_t worker = (uint32_t)(uintptr_t)argument;
  fp_segment *segment = stress.segment;
  hand h = {0};
  atomic_store(&fp_line_of(segment, worker)->state, FP_RUNNING);
  while (!atomic_load(&stress.stop)) {
    if (worker == 3 && fp_claim_join(segment, worker, &h.terms)) check_terms(&h.terms);
    if (claim_timed(segment, worker, &h, worker == 2 ? 3 : 0, worker * 10) == FP_CLAIM_OK) {
      run_units(segment, worker, &h);
    } else {
      check_no_work(&h);
      sched_yield();
    }
  }
  return NULL;
}

/* A and B: of the units, `avail` may be claimed at once. */
static uint64_t prepare_job(fp_segment *segment) {
  fp_job *job = &segment->jobs[FP_MAP];
  fp_terms terms = terms_of(fp_gate_close(segment, FP_MAP));
  write_terms(job, &terms);
  for (uint64_t i = 0; i < terms.spec_bytes; i++) {
    atomic_store_explicit(&stress.times[i], 0, memory_order_relaxed);
    fp_feed_of(segment, FP_MAP, i)->first = terms.number + i;
  }
  atomic_store(&stress.finished, 0);
  return terms.spec_bytes;
}

static void publish_whole(fp_segment *segment) {
  uint64_t total = prepare_job(segment);
  int endless = stress.even_is_endless && segment->jobs[FP_MAP].number % 2 == 0;
  atomic_store(&segment->jobs[FP_MAP].total, endless ? FP_TOTAL_UNKNOWN : total);
  atomic_store_explicit(&segment->jobs[FP_MAP].avail, total, memory_order_release);
  fp_gate_open(segment, FP_MAP);
}

static void publish_in_parts(fp_segment *segment) {
  uint64_t total = prepare_job(segment);
  atomic_store(&segment->jobs[FP_MAP].total, below(2) ? total : FP_TOTAL_UNKNOWN);
  atomic_store_explicit(&segment->jobs[FP_MAP].avail, 1 + below(total), memory_order_release);
  fp_gate_open(segment, FP_MAP);
}

static void feed(fp_segment *segment) {
  fp_job *job = &segment->jobs[FP_MAP];
  uint64_t total = job->spec_bytes;
  while (atomic_load_explicit(&stress.finished, memory_order_acquire) < total) {
    uint64_t avail = atomic_load(&job->avail);
    if (avail < total)
      atomic_store_explicit(&job->avail, avail + 1 + below(total - avail), memory_order_release);
    else
      sched_yield();
  }
}

static void check_finished(fp_segment *segment) {
  uint64_t total = segment->jobs[FP_MAP].spec_bytes;
  CHECK_EQ(atomic_load(&stress.finished), total);
  for (uint64_t i = 0; i < total; i++) CHECK_EQ(atomic_load(&stress.times[i]), 1);
}

static void stress_begin(uint32_t workers, uint64_t units) {
  memset(&stress, 0, sizeof stress);
  most_units = units;
  memset(&other, 0, sizeof other);
  stress.segment = plain_segment(workers);
}

static void with_workers(uint64_t units, int even_is_endless, void (*parent)(fp_segment *)) {
  stress_begin(WORKERS, units);
  stress.even_is_endless = even_is_endless;
  for (uintptr_t i = 0; i < WORKERS; i++)
    CHECK_EQ(pthread_create(&stress.threads[i], NULL, stress_worker, (void *)i), 0);
  parent(stress.segment);
  atomic_store(&stress.stop, 1);
  for (int i = 0; i < WORKERS; i++) pthread_join(stress.threads[i], NULL);
  plain_free(stress.segment);
}

static void successive_jobs(fp_segment *segment) {
  for (int i = 0; i < rounds(1000); i++) {
    publish_in_parts(segment);
    feed(segment);
    check_finished(segment);
    atomic_store(&segment->jobs[FP_MAP].total, segment->jobs[FP_MAP].spec_bytes);
  }
}
static void test_successive_jobs(void) { with_workers(MOST_UNITS, 0, successive_jobs); }

/* Jobs with an end and jobs without one in turn. */
static void ends_in_turn(fp_segment *segment) {
  for (int i = 0; i < rounds(3000); i++) {
    publish_whole(segment);
    feed(segment);
    check_finished(segment);
    for (uint64_t spins = below(100); spins > 0; spins--) fp_relax();
  }
}
static void test_starved_or_exhausted(void) { with_workers(3, 1, ends_in_turn); }

/* The numbers are about to repeat at every job. */
static void repeated_numbers(fp_segment *segment) {
  for (int i = 0; i < rounds(500); i++) {
    segment->jobs[FP_MAP].number += WRAP - 1 - below(2);
    publish_in_parts(segment);
    feed(segment);
    check_finished(segment);
  }
}
static void test_repeated_numbers(void) { with_workers(8, 0, repeated_numbers); }

/* The parent leaves early: it closes the gate in the middle, and waits until no line shows a claim of the job. */
static void abandoned_jobs(fp_segment *segment) {
  for (int i = 0; i < rounds(1000); i++) {
    publish_in_parts(segment);
    for (uint64_t spins = below(200); spins > 0; spins--) fp_relax();
    uint64_t number = segment->jobs[FP_MAP].number, total = segment->jobs[FP_MAP].spec_bytes;
    fp_gate_close(segment, FP_MAP);
    for (uint32_t worker = 0; worker < WORKERS; worker++)
      while (holds(segment, worker, number) != FP_CLAIM_NONE) sched_yield();
    uint64_t claimed = 0;
    while (claimed < total && atomic_load(&stress.times[claimed])) claimed++;
    CHECK_EQ(atomic_load(&stress.finished), claimed);
    for (uint64_t k = 0; k < total; k++) CHECK_EQ(atomic_load(&stress.times[k]), k < claimed);
  }
}
static void test_abandoned_jobs(void) { with_workers(MOST_UNITS, 0, abandoned_jobs); }

/* As above, at some instruction, and with sanitizers: a signal stops worker 0, and the parent, being worker 1 as
 * well, goes on to the middle of a job one round of numbers later. */
static struct {
  pthread_t thread;
  _Atomic int stopped, go;
} victim;

static void stop_here(int signal_number) {
  (void)signal_number;
  atomic_store(&victim.stopped, 1);
  while (!atomic_load(&victim.go)) sched_yield();
  atomic_store(&victim.stopped, 0);
}

static void *victim_run(void *argument) {
  fp_segment *segment = argument;
  hand h = {0};
  while (!atomic_load(&stress.stop))
    if (claim(segment, 0, &h, 0) == FP_CLAIM_OK) run_units(segment, 0, &h);
  return NULL;
}

static void run_as_worker_one(fp_segment *segment, uint64_t most_claims) {
  while (most_claims-- > 0 && claim(segment, 1, &other, 0) == FP_CLAIM_OK) run_units(segment, 1, &other);
}

static void publish_a_round_later(fp_segment *segment) {
  start_again(segment, 1);
  segment->jobs[FP_MAP].number += WRAP - 1;
  publish_whole(segment);
}

static int stop_in_the_middle(fp_segment *segment) {
  publish_a_round_later(segment);
  for (uint64_t spins = below(20); spins > 0; spins--) fp_relax();
  atomic_store(&victim.go, 0);
  pthread_kill(victim.thread, SIGUSR1);
  while (!atomic_load(&victim.stopped)) sched_yield();
  run_as_worker_one(segment, UINT64_MAX);
  int between = atomic_load(&stress.finished) == segment->jobs[FP_MAP].spec_bytes; /* it holds nothing */
  if (between) {
    check_finished(segment);
    publish_a_round_later(segment);
    run_as_worker_one(segment, below(6));
  }
  atomic_store(&victim.go, 1);
  while (atomic_load(&victim.stopped)) sched_yield();
  run_as_worker_one(segment, UINT64_MAX);
  feed(segment);
  check_finished(segment);
  return between;
}

static void test_a_round_of_numbers(void) {
  struct sigaction action = {.sa_handler = stop_here};
  CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
  stress_begin(2, 8);
  CHECK_EQ(pthread_create(&victim.thread, NULL, victim_run, stress.segment), 0);
  int between = 0;
  for (int i = 0; i < rounds(500); i++) between += stop_in_the_middle(stress.segment);
  CHECK(between > 0);
  atomic_store(&stress.stop, 1);
  pthread_join(victim.thread, NULL);
  plain_free(stress.segment);
}

/* ------------------------------------------------------------------ a death: who held what */

enum { MORTALS = 3, MORTAL_UNITS = 400 };

typedef struct {
  _Atomic int done[MORTAL_UNITS]; /* committed so often */
  _Atomic int begun[MORTAL_UNITS];
} ledger;

static void mortal(fp_segment *segment, ledger *book, uint32_t worker) {
  hand h = {0};
  while (claim(segment, worker, &h, 0) == FP_CLAIM_OK)
    for (uint64_t i = h.first; i < h.first + h.count; i++) {
      atomic_fetch_add(&book->begun[i], 1);
      for (int k = 0; k < 40; k++) fp_relax();
      atomic_fetch_add(&book->done[i], 1);
    }
  _exit(0);
}

typedef struct {
  int state;
  uint64_t first, count;
} shown;

static shown show(fp_segment *segment, uint32_t worker) {
  shown s;
  s.state =
      fp_line_holds(fp_line_of(segment, worker), FP_MAP, segment->jobs[FP_MAP].number, &s.first, &s.count);
  return s;
}
static int covers(shown s, uint64_t unit) { return unit >= s.first && unit < s.first + s.count; }

/* Elimination, in the order of README.md. A unit that a living intent covers is asked for again. */
static int settle(fp_segment *segment, ledger *book, uint32_t dead, int lost[MORTAL_UNITS]) {
  uint64_t word = atomic_load_explicit(&segment->gates[FP_MAP].claim, memory_order_acquire);
  shown lines[MORTALS] = {0};
  for (uint32_t i = 0; i < MORTALS; i++)
    if (i != dead) lines[i] = show(segment, i);
  int unsure = 0;
  for (uint64_t unit = 0; unit < fp_claim_index(word); unit++) {
    lost[unit] = !atomic_load_explicit(&book->done[unit], memory_order_acquire);
    for (uint32_t i = 0; i < MORTALS && lost[unit]; i++) {
      if (!covers(lines[i], unit)) continue;
      lost[unit] = 0;
      unsure |= lines[i].state == FP_CLAIM_INTENT;
    }
  }
  return unsure;
}

static void check_lost(fp_segment *segment, ledger *book, uint32_t dead, const int lost[MORTAL_UNITS]) {
  shown last = show(segment, dead);
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
  publish(segment, ALL_RANGE, MORTAL_UNITS, MORTAL_UNITS, 1 + below(5));
  int pids[MORTALS];
  for (uint32_t i = 0; i < MORTALS; i++) {
    pids[i] = fp_fork();
    CHECK(pids[i] >= 0);
    if (pids[i] == 0) mortal(segment, book, i);
  }
  uint32_t dead = (uint32_t)round % MORTALS;
  uint64_t until = below(MORTAL_UNITS);
  int status;
  while (fp_claim_index(gate(segment)) < until) sched_yield();
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
  RUN(test_packing);
  RUN(test_nothing_published);
  RUN(test_a_job_is_joined_before_it_is_claimed_from);
  RUN(test_low_bits_of_zero);
  RUN(test_two_channels);
  RUN(test_numbers_of_two_channels);
  RUN(test_joining_shows_no_claim);
  RUN(test_all_parameters_are_copied);
  RUN(test_gate_shows);
  RUN(test_line_holds);
  RUN(test_chunks_until_exhausted);
  RUN(test_starved_and_fed);
  RUN(test_units_of_its_own);
  RUN(test_empty_job);
  RUN(test_budget);
  RUN(test_range_then_chunks);
  RUN(test_size);
  RUN(test_a_shown_number_is_not_used_again);
  RUN(test_other_numbers_are_used);
  RUN(test_many_shown_numbers);
  RUN(test_stepped);
  RUN(test_successive_jobs);
  RUN(test_starved_or_exhausted);
  RUN(test_repeated_numbers);
  RUN(test_abandoned_jobs);
  RUN(test_a_round_of_numbers);
  RUN(test_deaths);
  return done();
}
