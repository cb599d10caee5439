/* The C tests' one tool: CHECK prints what failed and ends the test program. Each test is a function
 * `static void test_…(void)`, run by RUN(test_…) from main, which ends with `return done();`. */
#ifndef FP_CHECK_H
#define FP_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int fp_tests_run;

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition); \
      abort();                                                                                \
    }                                                                                         \
  } while (0)

#define CHECK_EQ(left, right)                                                                          \
  do {                                                                                                 \
    int64_t left_ = (int64_t)(left), right_ = (int64_t)(right);                                        \
    if (left_ != right_) {                                                                             \
      fprintf(stderr, "%s:%d: %s: %s is %" PRId64 ", expected %s = %" PRId64 "\n", __FILE__, __LINE__, \
              __func__, #left, left_, #right, right_);                                                 \
      abort();                                                                                         \
    }                                                                                                  \
  } while (0)

#define RUN(test)   \
  do {              \
    test();         \
    fp_tests_run++; \
  } while (0)

static inline int done(void) {
  printf("%d passed\n", fp_tests_run);
  return 0;
}

/* FP_LONG=1 in the environment multiplies the rounds of stress tests. */
static inline int rounds(int n) { return getenv("FP_LONG") ? n * 50 : n; }

#endif
