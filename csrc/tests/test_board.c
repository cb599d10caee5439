#include "board.h"

#include <string.h>

#include "check.h"

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
  const size_t last = offsetof(fp_line, exit_ns) + sizeof line.exit_ns;
  CHECK(memcmp(&line, &clean, offsetof(fp_line, chunks) + sizeof line.chunks) == 0);
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

int main(void) {
  RUN(test_names);
  RUN(test_every_move);
  RUN(test_no_such_state);
  RUN(test_reset);
  RUN(test_news);
  return done();
}
