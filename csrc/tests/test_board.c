#include "board.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "platform.h"

static void test_names(void) {
  CHECK(strcmp(fp_state_name(FP_STARTING), "starting") == 0);
  CHECK(strcmp(fp_state_name(FP_DEAD), "dead") == 0);
  for (uint32_t i = 0; i < FP_STATES; i++) {
    CHECK(fp_state_name(i) != NULL);
    for (uint32_t k = 0; k < i; k++) CHECK(strcmp(fp_state_name(i), fp_state_name(k)) != 0);
  }
  CHECK(fp_state_name(FP_STATES) == NULL);
  CHECK(fp_state_name(UINT32_MAX) == NULL);
}

/* The states of README.md, row: from, column: to. */
static const char expected[FP_STATES][FP_STATES + 1] = {
    [FP_STARTING] = "-x----x", [FP_IDLE] = "--xxx-x",    [FP_INITIALIZING] = "---xx-x",
    [FP_RUNNING] = "-x--x-x",  [FP_EXITING] = "-----xx", [FP_EXITED] = "-------",
    [FP_DEAD] = "-------",
};

static void test_every_move(void) {
  for (uint32_t from = 0; from < FP_STATES; from++) {
    for (uint32_t to = 0; to < FP_STATES; to++) {
      int legal = expected[from][to] == 'x';
      CHECK_EQ(fp_state_may(from, to), legal);
      fp_line line = {.state = from};
      CHECK_EQ(fp_state_move(&line, to), legal ? 0 : FP_MISUSE);
      CHECK_EQ(atomic_load(&line.state), legal ? to : from);
    }
  }
}

static void test_no_such_state(void) {
  fp_line line = {.state = FP_IDLE};
  CHECK_EQ(fp_state_move(&line, FP_STATES), FP_MISUSE);
  CHECK_EQ(fp_state_move(&line, UINT32_MAX), FP_MISUSE);
  CHECK_EQ(fp_state_move(&line, 32 + FP_RUNNING), FP_MISUSE);
  CHECK_EQ(atomic_load(&line.state), FP_IDLE);
  atomic_store(&line.state, 77);
  CHECK_EQ(fp_state_move(&line, FP_DEAD), FP_MISUSE);
}

static void test_reset(void) {
  fp_line line, clean;
  memset(&line, 0xa5, sizeof line);
  memset(&clean, 0, sizeof clean);
  atomic_store(&line.generation, 41);
  fp_line_reset(&line);
  CHECK_EQ(atomic_load(&line.generation), 42);
  atomic_store(&line.generation, 0);
  const size_t last = offsetof(fp_line, reads_owner) + sizeof line.reads_owner;
  CHECK(memcmp(&line, &clean, offsetof(fp_line, tasks_ns) + sizeof line.tasks_ns) == 0);
  const size_t times = offsetof(fp_line, started_ns);
  CHECK(memcmp((char *)&line + times, (char *)&clean + times, last - times) == 0);
  fp_line_reset(&line);
  CHECK_EQ(atomic_load(&line.generation), 1);
}

static void test_news(void) {
  fp_line line = {.news = UINT32_MAX};
  fp_line_news(&line);
  CHECK_EQ(atomic_load(&line.news), 0);
  fp_line_news(&line);
  CHECK_EQ(atomic_load(&line.news), 1);
}

/* ------------------------------------------------------------------ calls with a time limit */

static void test_a_condemned_call(void) {
  fp_line line = {0};
  fp_control control = {0};
  for (int fence_each = 0; fence_each < 2; fence_each++) {
    if (!fence_each && !fp_barrier_available()) continue;
    fp_call_begin(&line, 7);
    CHECK_EQ(atomic_load(&line.call_until), 7);
    CHECK_EQ(fp_call_end(&line, &control, 7, fence_each), 0);
    CHECK_EQ(atomic_load(&line.call_until), 0);

    CHECK_EQ(fp_call_condemn(&line, &control, 7, fence_each), 0); /* it is over */
    CHECK_EQ(atomic_load(&control.condemned), 0);

    fp_call_begin(&line, 8);
    CHECK_EQ(fp_call_condemn(&line, &control, 7, fence_each), 0); /* so is that, and this is another */
    CHECK_EQ(fp_call_condemn(&line, &control, 8, fence_each), 1);
    CHECK_EQ(fp_call_end(&line, &control, 8, fence_each), 1);
    fp_call_begin(&line, 9); /* as if the sentence were for an earlier one */
    CHECK_EQ(fp_call_end(&line, &control, 9, fence_each), 0);
    atomic_store(&control.condemned, 0);
  }
}

/* One thread calls and commits, another condemns what it finds running. */
typedef struct {
  fp_line line;
  fp_control control;
  int fence_each;
  _Atomic uint64_t committed; /* the last call that something came of */
  _Atomic uint64_t waiting;   /* the call that the worker has found condemned */
  _Atomic uint64_t executed;  /* the call that the parent has ended */
  _Atomic int enough;
} court;

static void *caller(void *context) {
  court *c = context;
  if (!c->fence_each) CHECK_EQ(fp_barrier_register(), 0);
  for (uint64_t start = 1; !atomic_load(&c->enough); start++) {
    fp_call_begin(&c->line, start);
    for (uint64_t i = 0; i < start % 64; i++) fp_relax();
    if (start % 64 == 0) fp_yield();
    if (fp_call_end(&c->line, &c->control, start, c->fence_each)) {
      atomic_store(&c->waiting, start);
      while (atomic_load(&c->control.condemned) == start && atomic_load(&c->executed) != start) fp_yield();
      if (atomic_load(&c->executed) == start) continue;
    }
    atomic_store(&c->committed, start);
  }
  return NULL;
}

static void condemn(court *c, int calls) {
  while (calls > 0) {
    uint64_t start = atomic_load(&c->line.call_until);
    if (start == 0) continue;
    if (fp_call_condemn(&c->line, &c->control, start, c->fence_each) == 0) continue;
    while (atomic_load(&c->waiting) != start) {
      CHECK(atomic_load(&c->committed) < start);
      fp_yield();
    }
    CHECK(atomic_load(&c->committed) < start);
    calls--;
    atomic_store(&c->executed, start);
    atomic_store(&c->control.condemned, 0);
  }
}

static void test_nothing_comes_of_condemned_calls(void) {
  for (int fence_each = 0; fence_each < 2; fence_each++) {
    if (!fence_each && !fp_barrier_available()) continue;
    court c = {.fence_each = fence_each};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, caller, &c), 0);
    condemn(&c, rounds(200));
    atomic_store(&c.enough, 1);
    pthread_join(thread, NULL);
  }
}

/* A table all of whose words are one number. */
static void fill(fp_longest table[FP_LONGEST], uint64_t number) {
  for (int i = 0; i < FP_LONGEST; i++) {
    table[i].took_ns = number;
    for (size_t k = 0; k < FP_TEXT_BYTES / sizeof(uint64_t); k++) table[i].text[k] = number;
  }
}

static int holds(const fp_longest table[FP_LONGEST], uint64_t number) {
  fp_longest wanted[FP_LONGEST];
  fill(wanted, number);
  return memcmp((const void *)table, (const void *)wanted, sizeof wanted) == 0;
}

static void test_longest(void) {
  fp_line line = {.state = FP_RUNNING};
  fp_longest table[FP_LONGEST], found[FP_LONGEST];
  CHECK_EQ(fp_line_longest(&line, found), 0);
  for (uint64_t number = 1; number <= 3; number++) {
    fill(table, number);
    fp_line_show_longest(&line, table);
    CHECK_EQ(fp_line_longest(&line, found), 1);
    CHECK(holds(found, number));
  }
  fill(&line.longest[0][0], 77); /* the writer dies in the middle of the fourth */
  CHECK_EQ(fp_line_longest(&line, found), 1);
  CHECK(holds(found, 3));
  fp_line_reset(&line);
  CHECK_EQ(fp_line_longest(&line, found), 0);
}

#define SHOWS 20000

static void *show_many(void *context) {
  fp_longest table[FP_LONGEST];
  for (uint64_t number = 1; number <= SHOWS; number++) {
    fill(table, number);
    fp_line_show_longest(context, table);
  }
  return NULL;
}

static void test_longest_while_it_changes(void) {
  fp_line line = {.state = FP_RUNNING};
  fp_longest found[FP_LONGEST];
  uint64_t last = 0;
  pthread_t writer;
  CHECK_EQ(pthread_create(&writer, NULL, show_many, &line), 0);
  while (last < SHOWS) {
    if (!fp_line_longest(&line, found)) continue;
    CHECK(found[0].took_ns >= last);
    last = found[0].took_ns;
    CHECK(holds(found, last));
  }
  pthread_join(writer, NULL);
}

int main(void) {
  alarm(600); /* whoever waits for ever */
  RUN(test_names);
  RUN(test_every_move);
  RUN(test_no_such_state);
  RUN(test_reset);
  RUN(test_news);
  RUN(test_a_condemned_call);
  RUN(test_nothing_comes_of_condemned_calls);
  RUN(test_longest);
  RUN(test_longest_while_it_changes);
  return done();
}
