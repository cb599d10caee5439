#include "arena.h"

#include <pthread.h>
#include <string.h>
#include <sys/resource.h>

#include "checksum.h"
#include "platform.h"
#include "tools.h"

#define MB     (UINT64_C(1) << 20)
#define HEADER ((uint64_t)sizeof(fp_block))

static fp_arena make(uint32_t lanes, uint64_t ring_bytes, uint64_t cap) {
  fp_arena arena;
  CHECK_EQ(fp_arena_create(&arena, lanes, ring_bytes, cap), 0);
  return arena;
}

static fp_heap_stats measure(const fp_segment *segment, uint32_t owner) {
  fp_heap_stats stats;
  CHECK_EQ(fp_heap_measure(segment, owner, &stats), 0);
  CHECK_EQ(stats.bytes_used + stats.bytes_free, stats.top - fp_heap_of(segment, owner)->start);
  CHECK(stats.charged >= stats.top - fp_heap_of(segment, owner)->start);
  return stats;
}

static uint64_t alloc(fp_segment *segment, uint32_t owner, uint64_t bytes) {
  uint64_t offset = 0;
  CHECK_EQ(fp_heap_alloc(segment, owner, bytes, &offset), 0);
  CHECK_EQ(offset % FP_LINE_BYTES, 0);
  return offset;
}

static void fill(fp_segment *segment, uint64_t offset, uint64_t bytes, uint64_t seed) {
  fp_random random = {seed * 2 + 1};
  unsigned char *at = fp_at(segment, offset);
  for (uint64_t i = 0; i < bytes; i += 1 + bytes / 64) at[i] = (unsigned char)random_next(&random);
  if (bytes) at[bytes - 1] = (unsigned char)seed;
}

static int is_filled(const fp_segment *segment, uint64_t offset, uint64_t bytes, uint64_t seed) {
  fp_random random = {seed * 2 + 1};
  const unsigned char *at = fp_at(segment, offset);
  if (bytes && at[bytes - 1] != (unsigned char)seed) return 0;
  for (uint64_t i = 0; i + 1 < bytes; i += 1 + bytes / 64)
    if (at[i] != (unsigned char)random_next(&random)) return 0;
  return 1;
}

/* ------------------------------------------------------------------ the segment */

static void test_parts_are_apart_and_aligned(void) {
  for (uint32_t lanes = 1; lanes < 70; lanes += 23) {
    fp_arena arena = make(lanes, 4096, 3 * MB + 1);
    fp_segment *s = arena.segment;
    uint64_t at[] = {0, s->feed_at, s->controls_at, s->lines_at, s->lanes_at, s->heaps_at, s->rings_at};
    uint64_t bytes[] = {sizeof *s,
                        FP_FEED_SLOTS * sizeof(fp_feed_slot),
                        lanes * sizeof(fp_control),
                        lanes * sizeof(fp_line),
                        lanes * sizeof(fp_lane),
                        (lanes + 1) * sizeof(fp_heap),
                        lanes * 4096};
    uint64_t end = 0;
    CHECK_EQ(s->lines_at % fp_page_bytes(), 0); /* what comes before is read-only for workers */
    for (int i = 0; i < 7; i++) {
      CHECK(at[i] >= end);
      CHECK_EQ(at[i] % FP_LINE_BYTES, 0);
      end = at[i] + bytes[i];
    }
    for (uint32_t i = 0; i <= lanes; i++) {
      fp_heap *heap = fp_heap_of(s, i);
      CHECK(heap->start >= end);
      CHECK_EQ(heap->start % fp_page_bytes(), 0);
      CHECK(heap->end - heap->start >= 3 * MB + 1);
      end = heap->end;
    }
    CHECK(end <= s->bytes && s->bytes == arena.bytes);
    ((unsigned char *)s)[s->bytes - 1] = 1; /* the last byte is there */
    fp_arena_destroy(&arena);
  }
}

typedef struct {
  fp_arena *arena;
  void *at;
  int worker;
} stray;

static void write_astray(void *context) {
  const stray *s = context;
  signal(SIGSEGV, SIG_DFL); /* not the sanitizer's */
  if (s->worker) CHECK_EQ(fp_arena_enter(s->arena), 0);
  *(volatile unsigned char *)s->at ^= 0;
}

/* Does a write there stop the process that makes it? */
static int is_stopped(fp_arena *arena, void *at, int worker) {
  int status = join_child(start_child(write_astray, &(stray){arena, at, worker}));
  CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
  return status != 0;
}

static void test_what_one_writes_the_others_cannot(void) {
  fp_arena arena = make(2, 4096, MB);
  fp_segment *s = arena.segment;
  for (int worker = 0; worker < 2; worker++) {
    CHECK(is_stopped(&arena, &s->magic, worker));
    CHECK(is_stopped(&arena, &s->rings_at, worker));
    CHECK_EQ(is_stopped(&arena, &s->jobs[FP_MAP], worker), worker);
    CHECK_EQ(is_stopped(&arena, fp_feed_of(s, FP_APPLY, FP_FEED_SLOTS - 1), worker), worker);
    CHECK_EQ(is_stopped(&arena, &fp_control_of(s, 1)->command, worker), worker);
    CHECK(!is_stopped(&arena, &s->gates[FP_APPLY], worker));
    CHECK(!is_stopped(&arena, &s->bell, worker));
    CHECK(!is_stopped(&arena, fp_line_of(s, 0), worker));
    CHECK(!is_stopped(&arena, fp_lane_of(s, 1), worker));
    CHECK(!is_stopped(&arena, fp_ring_of(s, 0), worker));
  }
  fp_arena_destroy(&arena);
}

static void test_a_new_segment_has_nothing_to_do(void) {
  fp_arena arena = make(3, 4096, MB);
  fp_segment *s = arena.segment;
  CHECK_EQ(s->gates[FP_MAP].claim & FP_INDEX_MASK, FP_INDEX_CLOSED);
  CHECK_EQ(s->gates[FP_MAP].claim >> FP_INDEX_BITS, 0);
  CHECK_EQ(s->jobs[FP_MAP].total, 0);
  CHECK_EQ(s->fence_each, !fp_barrier_available());
  for (uint32_t i = 0; i < 3; i++) {
    fp_lane *lane = fp_lane_of(s, i);
    CHECK(fp_control_of(s, i)->wake_at == FP_NEVER);
    CHECK(lane->committed == 0 && lane->head == 0 && fp_control_of(s, i)->tail == 0);
    CHECK_EQ(fp_line_of(s, i)->state, FP_STARTING);
  }
  for (uint32_t i = 0; i <= 3; i++) {
    CHECK_EQ(fp_heap_adopt(s, i), 0);
    CHECK_EQ(measure(s, i).charged, 0);
  }
  fp_arena_destroy(&arena);
}

static void test_attach_sees_the_same_memory(void) {
  fp_arena arena = make(1, 4096, MB), other;
  CHECK_EQ(fp_arena_attach(&other, dup(arena.fd), arena.bytes), 0);
  CHECK(other.segment != arena.segment);
  uint64_t offset = alloc(arena.segment, 0, 1000);
  fill(arena.segment, offset, 1000, 7);
  CHECK(is_filled(other.segment, offset, 1000, 7));
  CHECK(fp_block_check(other.segment, 0, offset, 1000));
  CHECK_EQ(fp_block_free(other.segment, offset), 0);
  CHECK_EQ(measure(arena.segment, 0).blocks_used, 0);
  fp_arena_destroy(&other);
  int fd = dup(arena.fd);
  CHECK_EQ(fp_arena_attach(&other, fd, arena.bytes - fp_page_bytes()), FP_DAMAGED);
  CHECK_EQ(fp_arena_attach(&other, fd, 8), FP_DAMAGED);
  CHECK_EQ(pwrite(fd, "", 1, offsetof(fp_segment, magic)), 1); /* nobody can write it where it is mapped */
  CHECK_EQ(fp_arena_attach(&other, fd, arena.bytes), FP_DAMAGED);
  close(fd);
  CHECK_EQ(fp_arena_attach(&other, fd, arena.bytes), -EBADF);
  fp_arena_destroy(&arena);
  fp_arena_destroy(&arena);
  CHECK(arena.segment == NULL && arena.fd == -1);
}

static void test_bad_sizes(void) {
  fp_arena arena;
  CHECK_EQ(fp_arena_create(&arena, 0, 4096, MB), -EINVAL);
  CHECK_EQ(fp_arena_create(&arena, 1, 4095, MB), -EINVAL);
  CHECK_EQ(fp_arena_create(&arena, 1, 0, MB), -EINVAL);
  CHECK_EQ(fp_arena_create(&arena, 1, 64, MB), -EINVAL);
  CHECK_EQ(fp_arena_create(&arena, UINT32_MAX, 4096, MB), -EINVAL);
  fp_arena_destroy(&arena);
}

static void test_no_heap_at_all(void) {
  uint64_t offset;
  fp_arena arena = make(2, 4096, 0);
  CHECK_EQ(fp_heap_alloc(arena.segment, 2, 1, &offset), FP_FULL);
  CHECK_EQ(fp_heap_alloc(arena.segment, 2, 0, &offset), FP_FULL);
  fp_arena_destroy(&arena);
}

static void limit(int resource, uint64_t bytes) {
  struct rlimit limits;
  CHECK_EQ(getrlimit((__rlimit_resource_t)resource, &limits), 0);
  limits.rlim_cur = bytes;
  CHECK_EQ(setrlimit((__rlimit_resource_t)resource, &limits), 0);
}

static void under_file_limit(void *unused) {
  fp_arena arena;
  (void)unused;
  limit(RLIMIT_FSIZE, 64 * MB);
  CHECK_EQ(fp_arena_create(&arena, 3, 4096, UINT64_MAX), 0);
  CHECK(arena.bytes <= 64 * MB && arena.bytes > 24 * MB);
  CHECK(arena.segment->cap == UINT64_MAX);
  alloc(arena.segment, 3, 5 * MB);
  fp_arena_destroy(&arena);
  limit(RLIMIT_FSIZE, 2 * MB);
  CHECK_EQ(fp_arena_create(&arena, 3, 4096, 1024 * MB), -EFBIG);
  CHECK(arena.segment == NULL && arena.fd == -1);
  fp_arena_destroy(&arena);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void under_address_limit(void *unused) {
  fp_arena arena;
  (void)unused;
  limit(RLIMIT_AS, 512 * MB);
  CHECK_EQ(fp_arena_create(&arena, 1, 4096, UINT64_C(1) << 40), 0);
  CHECK(arena.bytes < 256 * MB && arena.bytes > 32 * MB); /* most is left to the rest of the process */
  fp_arena_destroy(&arena);
}
#endif

static void test_half_is_tried_where_the_range_is_refused(void) {
  run_child(under_file_limit, NULL);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  run_child(under_address_limit, NULL);
#endif
}

/* ------------------------------------------------------------------ one heap */

static void test_a_freed_block_is_used_again(void) {
  fp_arena arena = make(1, 4096, 64 * MB);
  fp_segment *s = arena.segment;
  uint64_t first = alloc(s, 0, MB), second = alloc(s, 0, MB), third = alloc(s, 0, MB);
  uint64_t charged = measure(s, 0).charged;
  CHECK_EQ(fp_block_free(s, second), 0);
  CHECK_EQ(alloc(s, 0, MB), second);
  CHECK_EQ(fp_block_free(s, second), 0);
  CHECK_EQ(fp_block_free(s, first), 0);
  CHECK_EQ(alloc(s, 0, 2 * MB), first); /* joined */
  CHECK_EQ(measure(s, 0).charged, charged);
  CHECK_EQ(fp_block_free(s, first), 0);
  CHECK_EQ(alloc(s, 0, 100), first); /* split */
  CHECK_EQ(measure(s, 0).blocks_free, 1);
  CHECK_EQ(alloc(s, 0, MB), first + 128 + HEADER);
  CHECK_EQ(fp_block_free(s, third), 0);
  CHECK_EQ(alloc(s, 0, 2 * MB + 8192), first + 128 + HEADER + MB + HEADER); /* grown in place, at top */
  CHECK(measure(s, 0).charged < charged + MB + 3 * 8192);
  CHECK_EQ(measure(s, 0).blocks_free, 0);
  fp_arena_destroy(&arena);
}

static void test_check_and_free_of_what_is_no_block(void) {
  fp_arena arena = make(2, 4096, 64 * MB);
  fp_segment *s = arena.segment;
  uint64_t offset = alloc(s, 0, 1000), next = alloc(s, 0, 1000);
  CHECK(fp_block_check(s, 0, offset, 1000));
  CHECK(fp_block_check(s, 0, offset, 0));
  CHECK(!fp_block_check(s, 0, offset, 1001));
  CHECK(!fp_block_check(s, 0, offset, UINT64_MAX));
  CHECK(!fp_block_check(s, 1, offset, 1000));
  CHECK(!fp_block_check(s, 77, offset, 1000));
  CHECK(!fp_block_check(s, 0, offset + 64, 8));
  CHECK(!fp_block_check(s, 0, offset + 1, 8));
  uint64_t wrong[] = {0,
                      8,
                      s->rings_at,
                      fp_heap_of(s, 0)->start,
                      offset + 8,
                      offset + 64,
                      s->bytes,
                      s->bytes + 64,
                      UINT64_MAX,
                      UINT64_MAX - 63,
                      fp_heap_of(s, 1)->start + 64};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    CHECK_EQ(fp_block_check(s, 0, wrong[i], 0), 0);
    CHECK_EQ(fp_block_free(s, wrong[i]), FP_DAMAGED);
  }
  CHECK_EQ(fp_block_free(s, offset), 0);
  CHECK_EQ(fp_block_free(s, offset), FP_DAMAGED);
  CHECK(!fp_block_check(s, 0, offset, 1000));
  CHECK(fp_block_check(s, 0, next, 1000));
  /* a header that was joined away is none, and a copy of one elsewhere is none */
  CHECK_EQ(fp_block_free(s, next), 0);
  CHECK_EQ(alloc(s, 0, 2000), offset);
  CHECK(!fp_block_check(s, 0, next, 0));
  CHECK_EQ(fp_block_free(s, next), FP_DAMAGED);
  memcpy(fp_at(s, offset + 256), fp_at(s, offset - HEADER), HEADER);
  CHECK(!fp_block_check(s, 0, offset + 256 + HEADER, 0));
  CHECK_EQ(fp_block_free(s, offset + 256 + HEADER), FP_DAMAGED);
  fp_arena_destroy(&arena);
}

static void test_the_cap_is_for_all_heaps_together(void) {
  fp_arena arena = make(2, 4096, 12 * MB);
  fp_segment *s = arena.segment;
  uint64_t offset;
  uint64_t first = alloc(s, 0, 6 * MB); /* workers: nine together */
  CHECK_EQ(fp_heap_alloc(s, 0, 3 * MB, &offset), FP_FULL);
  CHECK_EQ(fp_heap_alloc(s, 1, 3 * MB, &offset), FP_FULL);
  CHECK_EQ(measure(s, 1).charged, 0); /* taken back */
  alloc(s, 1, 3 * MB - 2 * HEADER);   /* exactly their part */
  CHECK_EQ(fp_heap_alloc(s, 1, 0, &offset), FP_FULL);
  CHECK_EQ(measure(s, 0).charged + measure(s, 1).charged, 9 * MB);
  CHECK_EQ(fp_heap_alloc(s, 2, 3 * MB, &offset), FP_FULL);
  alloc(s, 2, 3 * MB - HEADER); /* exactly the rest */
  CHECK_EQ(fp_heap_alloc(s, 2, 0, &offset), FP_FULL);
  CHECK_EQ(fp_heap_alloc(s, 0, UINT64_MAX, &offset), FP_FULL);
  CHECK_EQ(fp_heap_alloc(s, 0, UINT64_MAX - 63, &offset), FP_FULL);
  CHECK_EQ(fp_block_free(s, first), 0); /* freeing alone gives others nothing */
  CHECK_EQ(fp_heap_alloc(s, 2, MB, &offset), FP_FULL);
  CHECK(fp_heap_trim(s, 0, 0) >= 6 * MB - fp_page_bytes());
  CHECK_EQ(measure(s, 0).charged, 0);
  alloc(s, 2, 5 * MB);                                 /* the parent may have the workers' part */
  CHECK_EQ(fp_heap_alloc(s, 0, MB, &offset), FP_FULL); /* which is its own then */
  fp_arena_destroy(&arena);
}

static int is_zero(const fp_segment *segment, uint64_t from, uint64_t to) {
  const unsigned char *bytes = fp_at(segment, 0);
  for (uint64_t i = from; i < to; i++)
    if (bytes[i]) return 0;
  return 1;
}

static void test_trim_gives_pages_back(void) {
  fp_arena arena = make(1, 4096, 64 * MB);
  fp_segment *s = arena.segment;
  uint64_t page = fp_page_bytes(), block[6];
  for (int i = 0; i < 6; i++) {
    block[i] = alloc(s, 0, MB);
    memset(fp_at(s, block[i]), 255, MB);
  }
  CHECK_EQ(fp_heap_trim(s, 0, 0), 0);
  CHECK_EQ(fp_block_free(s, block[1]), 0);
  CHECK_EQ(fp_block_free(s, block[3]), 0);
  CHECK_EQ(fp_heap_trim(s, 0, 3 * MB), 0);
  uint64_t given = fp_heap_trim(s, 0, MB + 3 * page); /* keeps the first one and a little of the second */
  CHECK(given <= MB - 2 * page && given >= MB - 4 * page);
  CHECK(!is_zero(s, block[1], block[1] + 8));
  CHECK(is_zero(s, block[3] + 4 * page, block[3] + MB - page));
  CHECK_EQ(fp_heap_trim(s, 0, MB + 3 * page), 0); /* not twice */
  CHECK(((unsigned char *)fp_at(s, block[2]))[MB - 1] == 255 &&
        ((unsigned char *)fp_at(s, block[4]))[0] == 255);
  CHECK_EQ(measure(s, 0).blocks_used, 4);
  CHECK_EQ(alloc(s, 0, MB), block[1]);
  CHECK_EQ(alloc(s, 0, MB), block[3]);
  fp_arena_destroy(&arena);
}

static void test_trim_lowers_top(void) {
  fp_arena arena = make(1, 4096, 64 * MB);
  fp_segment *s = arena.segment;
  uint64_t first = alloc(s, 0, MB), page = fp_page_bytes();
  uint64_t low = measure(s, 0).top, tail[3];
  for (int i = 0; i < 3; i++) memset(fp_at(s, tail[i] = alloc(s, 0, MB)), 255, MB);
  uint64_t high = measure(s, 0).top;
  for (int i = 0; i < 3; i++) CHECK_EQ(fp_block_free(s, tail[i]), 0);
  fp_heap_trim(s, 0, MB);
  fp_heap_stats stats = measure(s, 0);
  CHECK(stats.top >= low + MB && stats.top <= low + MB + page);
  CHECK_EQ(stats.charged, stats.top - fp_heap_of(s, 0)->start);
  CHECK(is_zero(s, fp_align(stats.top, page), high));
  CHECK(!is_zero(s, tail[0], tail[0] + 8));
  fp_heap_trim(s, 0, 0);
  CHECK_EQ(measure(s, 0).top, low);
  CHECK(fp_block_check(s, 0, first, MB));
  CHECK_EQ(alloc(s, 0, MB), tail[0]);
  fp_arena_destroy(&arena);
}

/* ------------------------------------------------------------------ against a model */

#define MODEL_BLOCKS 64

typedef struct {
  uint32_t owner;
  uint64_t offset, bytes, seed;
} model_block;

typedef struct {
  model_block blocks[MODEL_BLOCKS];
  int n;
} model;

static void model_add(model *m, fp_segment *s, uint32_t owner, uint64_t bytes, uint64_t seed) {
  uint64_t offset;
  if (m->n == MODEL_BLOCKS) return;
  int result = fp_heap_alloc(s, owner, bytes, &offset);
  if (result == FP_FULL) return;
  CHECK_EQ(result, 0);
  fp_heap *heap = fp_heap_of(s, owner);
  CHECK(offset >= heap->start + HEADER && offset + bytes <= heap->top && heap->top <= heap->end);
  for (int i = 0; i < m->n; i++) {
    model_block *b = &m->blocks[i];
    CHECK(offset - HEADER >= b->offset + b->bytes || offset + bytes <= b->offset - HEADER);
  }
  fill(s, offset, bytes, seed);
  m->blocks[m->n++] = (model_block){owner, offset, bytes, seed};
}

static void model_remove(model *m, fp_segment *s, int i) {
  model_block b = m->blocks[i];
  CHECK(is_filled(s, b.offset, b.bytes, b.seed));
  CHECK(fp_block_check(s, b.owner, b.offset, b.bytes));
  CHECK_EQ(fp_block_free(s, b.offset), 0);
  m->blocks[i] = m->blocks[--m->n];
}

static void model_check(const model *m, const fp_segment *s) {
  uint64_t charged = 0, used = 0;
  for (uint32_t owner = 0; owner <= s->lanes; owner++) {
    fp_heap_stats stats = measure(s, owner);
    charged += stats.charged;
    used += stats.blocks_used;
  }
  CHECK(charged <= s->cap);
  CHECK_EQ(used, m->n);
  for (int i = 0; i < m->n; i++)
    CHECK(is_filled(s, m->blocks[i].offset, m->blocks[i].bytes, m->blocks[i].seed));
}

static uint64_t some_size(fp_random *random) {
  uint64_t scale = random_below(random, 20);
  return random_below(random, UINT64_C(1) << scale) + (scale == 19 ? random_below(random, MB) : 0);
}

static void test_against_a_model(void) {
  for (uint64_t seed = 1; seed <= 4; seed++) {
    fp_arena arena = make(2, 4096, 6 * MB);
    fp_random random = {seed};
    model m = {.n = 0};
    for (int step = 0; step < rounds(4000); step++) {
      uint64_t choice = random_below(&random, 100);
      uint32_t owner = (uint32_t)random_below(&random, 3);
      if (choice < 52)
        model_add(&m, arena.segment, owner, some_size(&random), random_next(&random));
      else if (choice < 96 && m.n)
        model_remove(&m, arena.segment, (int)random_below(&random, (uint64_t)m.n));
      else if (choice < 98)
        fp_heap_trim(arena.segment, owner, random_below(&random, 2 * MB));
      else if (choice == 98)
        CHECK_EQ(fp_heap_adopt(arena.segment, owner), 0);
      if (step % 16 == 0) model_check(&m, arena.segment);
    }
    while (m.n) model_remove(&m, arena.segment, 0);
    for (uint32_t owner = 0; owner < 3; owner++) {
      fp_heap_trim(arena.segment, owner, 0);
      CHECK_EQ(measure(arena.segment, owner).charged, 0);
    }
    fp_arena_destroy(&arena);
  }
}

static int compare(const void *left, const void *right) {
  uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
  return a < b ? -1 : a > b;
}

static void test_sweep_frees_what_nobody_holds(void) {
  fp_arena arena = make(1, 4096, 64 * MB);
  fp_segment *s = arena.segment;
  fp_random random = {5};
  uint64_t held[20], all[60];
  int n = 0;
  for (int i = 0; i < 60; i++) {
    all[i] = alloc(s, 0, 1 + some_size(&random));
    fill(s, all[i], 1, (uint64_t)i);
    if (i % 3 == 0) held[n++] = all[i];
  }
  qsort(held, (size_t)n, sizeof *held, compare);
  CHECK_EQ(fp_block_free(s, held[4]), 0); /* freed already: stays so */
  CHECK_EQ(fp_heap_sweep(s, 0, held, (uint64_t)n), 0);
  for (int i = 0; i < 60; i++) CHECK_EQ(fp_block_check(s, 0, all[i], 1), i % 3 == 0 && i != 12);
  for (int i = 0; i < 60; i += 3) CHECK(is_filled(s, all[i], 1, (uint64_t)i));
  CHECK_EQ(fp_heap_sweep(s, 0, NULL, 0), 0);
  CHECK_EQ(measure(s, 0).blocks_used, 0);
  fp_arena_destroy(&arena);
}

/* ------------------------------------------------------------------ at once */

#define GROWERS 3

typedef struct {
  fp_segment *segment;
  uint32_t owner;
  _Atomic int *ready;
  int64_t grown;
} grower;

static void *grow(void *context) {
  grower *g = context;
  fp_segment *s = g->segment;
  uint64_t offset;
  atomic_fetch_add(g->ready, 1);
  while (atomic_load(g->ready) < GROWERS) fp_yield();
  for (;;) {
    int result = fp_heap_alloc(s, g->owner, 3000, &offset);
    if (result == FP_FULL) break;
    CHECK_EQ(result, 0);
    uint64_t sum = 0;
    for (uint32_t i = 0; i <= s->lanes; i++) {
      fp_heap *heap = fp_heap_of(s, i);
      sum += atomic_load(&heap->top) - heap->start;
    }
    CHECK(sum <= s->cap);
    g->grown++;
  }
  return NULL;
}

static void test_heaps_that_grow_at_once_keep_the_cap(void) {
  for (int round = 0; round < rounds(40); round++) {
    fp_arena arena = make(GROWERS - 1, 4096, MB + (uint64_t)round * 100);
    _Atomic int ready = 0;
    pthread_t threads[GROWERS];
    grower growers[GROWERS];
    int64_t grown = 0;
    for (uint32_t i = 0; i < GROWERS; i++) {
      growers[i] = (grower){arena.segment, i, &ready, 0};
      CHECK_EQ(pthread_create(&threads[i], NULL, grow, &growers[i]), 0);
    }
    for (int i = 0; i < GROWERS; i++) {
      pthread_join(threads[i], NULL);
      grown += growers[i].grown;
    }
    /* the last one to give up saw nobody else: the workers' part of the cap is nearly reached */
    CHECK(grown >= (int64_t)(MB / 4 * 3 / 3072) - 2);
    fp_arena_destroy(&arena);
  }
}

#define QUEUE 16

typedef struct {
  fp_segment *segment;
  _Atomic uint64_t queue[QUEUE];
  int items;
} hand_over;

static void *hold(void *context) {
  hand_over *h = context;
  for (int i = 0; i < h->items; i++) {
    uint64_t offset;
    while (!(offset = atomic_exchange_explicit(&h->queue[i % QUEUE], 0, memory_order_acq_rel))) fp_yield();
    uint64_t bytes = 64 + (uint64_t)i * 977 % 30000;
    CHECK(fp_block_check(h->segment, 0, offset, bytes));
    CHECK(is_filled(h->segment, offset, bytes, (uint64_t)i));
    CHECK_EQ(fp_block_free(h->segment, offset), 0);
  }
  return NULL;
}

static void test_owner_allocates_while_the_holder_frees(void) {
  fp_arena arena = make(1, 4096, MB);
  hand_over h = {.segment = arena.segment, .items = rounds(20000)};
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, hold, &h), 0);
  for (int i = 0; i < h.items; i++) {
    uint64_t offset, bytes = 64 + (uint64_t)i * 977 % 30000;
    int result;
    while ((result = fp_heap_alloc(arena.segment, 0, bytes, &offset)) == FP_FULL) fp_yield();
    CHECK_EQ(result, 0);
    fill(arena.segment, offset, bytes, (uint64_t)i);
    while (atomic_load_explicit(&h.queue[i % QUEUE], memory_order_acquire)) fp_yield();
    atomic_store_explicit(&h.queue[i % QUEUE], offset, memory_order_release);
    if (i % 500 == 0) fp_heap_trim(arena.segment, 0, 10000);
  }
  pthread_join(thread, NULL);
  CHECK_EQ(measure(arena.segment, 0).blocks_used, 0);
  fp_arena_destroy(&arena);
}

/* ------------------------------------------------------------------ death of the owner */

typedef struct {
  fp_segment *segment;
  uint64_t seed;
  _Atomic uint64_t *steps; /* shared */
} churner;

static void churn_once(fp_segment *s, fp_random *random, uint64_t *blocks, int n) {
  int i = (int)random_below(random, (uint64_t)n);
  if (blocks[i]) CHECK_EQ(fp_block_free(s, blocks[i]), 0);
  blocks[i] = 0;
  int result = fp_heap_alloc(s, 0, some_size(random) / 4, &blocks[i]);
  CHECK(result == 0 || result == FP_FULL);
  if (result == FP_FULL) blocks[i] = 0;
  if (random_below(random, 16) == 0) fp_heap_trim(s, 0, random_below(random, MB));
}

static void churn(void *context) {
  churner *c = context;
  fp_random random = {c->seed};
  uint64_t blocks[24] = {0};
  for (;; atomic_fetch_add(c->steps, 1)) churn_once(c->segment, &random, blocks, 24);
}

static void test_a_heap_is_whole_after_its_owner_was_killed(void) {
  fp_arena arena = make(1, 4096, 2 * MB);
  fp_segment *s = arena.segment;
  fp_random random = {11};
  uint64_t kept = alloc(s, 0, 5000);
  fill(s, kept, 5000, 3);
  _Atomic uint64_t *steps =
      mmap(NULL, sizeof *steps, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(steps != MAP_FAILED);
  for (int round = 0; round < rounds(60); round++) {
    churner c = {s, random_next(&random), steps};
    atomic_store(steps, 0);
    pid_t pid = start_child(churn, &c);
    for (uint64_t until = random_below(&random, 1000); atomic_load(steps) < until;) fp_yield();
    kill_child(pid);
    CHECK_EQ(fp_heap_sweep(s, 0, &kept, 1), 0);
    CHECK_EQ(fp_heap_adopt(s, 0), 0);
    fp_heap_stats stats = measure(s, 0);
    CHECK_EQ(stats.blocks_used, 1);
    CHECK_EQ(stats.charged, stats.top - fp_heap_of(s, 0)->start);
    CHECK(stats.charged <= s->cap);
    CHECK(is_filled(s, kept, 5000, 3));
  }
  fp_heap_trim(s, 0, 0);
  CHECK(is_zero(s, fp_align(measure(s, 0).top, fp_page_bytes()), fp_heap_of(s, 0)->end));
  CHECK_EQ(alloc(s, 0, MB) - HEADER, kept + fp_align(5000, 64));
  fp_arena_destroy(&arena);
}

static void test_more_charged_than_a_heap_can_have_is_damage(void) {
  fp_arena arena = make(2, 4096, 8 * MB);
  fp_segment *s = arena.segment;
  uint64_t room = fp_heap_of(s, 0)->end - fp_heap_of(s, 0)->start, offset;
  for (uint32_t damaged = 0; damaged < 3; damaged++) {
    for (uint32_t owner = 0; owner < 3; owner++) {
      if (owner == damaged) continue;
      atomic_store(&fp_heap_of(s, damaged)->charged, room);
      CHECK_EQ(fp_heap_alloc(s, owner, 1000, &offset), FP_FULL);
      atomic_store(&fp_heap_of(s, damaged)->charged, room + 1);
      CHECK_EQ(fp_heap_alloc(s, owner, 1000, &offset), FP_DAMAGED);
      CHECK_EQ(measure(s, owner).charged, 0);
      atomic_store(&fp_heap_of(s, damaged)->charged, UINT64_MAX - 63);
      CHECK_EQ(fp_heap_alloc(s, owner, 1000, &offset), FP_DAMAGED);
    }
    atomic_store(&fp_heap_of(s, damaged)->charged, 0);
  }
  alloc(s, 0, 1000);
  fp_arena_destroy(&arena);
}

static void test_adopt_takes_back_what_lies_above_top(void) {
  fp_arena arena = make(1, 4096, 8 * MB);
  fp_segment *s = arena.segment;
  fp_heap *heap = fp_heap_of(s, 0);
  uint64_t low = alloc(s, 0, 1000), top = measure(s, 0).top, high = alloc(s, 0, MB);
  memset(fp_at(s, high), 255, MB);
  uint64_t charged = measure(s, 0).charged;
  CHECK_EQ(charged, top - heap->start + HEADER + MB);
  atomic_store(&heap->top, top); /* dead between lowering top and uncharging */
  CHECK_EQ(fp_heap_adopt(s, 0), 0);
  CHECK_EQ(measure(s, 0).charged, top - heap->start);
  CHECK(is_zero(s, fp_align(top, fp_page_bytes()), heap->end));
  CHECK(fp_block_check(s, 0, low, 1000));
  atomic_store(&heap->charged, UINT64_MAX); /* damaged: set right */
  CHECK_EQ(fp_heap_adopt(s, 0), 0);
  CHECK_EQ(measure(s, 0).charged, top - heap->start);
  atomic_store(&heap->charged, 0);
  CHECK_EQ(fp_heap_adopt(s, 0), 0);
  CHECK_EQ(measure(s, 0).charged, top - heap->start);
  fp_arena_destroy(&arena);
}

#ifdef FP_POSIX /* giving back is a memset there: too many steps */
#undef FP_CAN_STEP
#endif
#ifdef FP_CAN_STEP
static void churn_a_little(void *context) {
  churner *c = context;
  fp_random random = {c->seed};
  uint64_t blocks[6] = {0};
  for (int i = 0; i < 25; i++) churn_once(c->segment, &random, blocks, 6);
  for (int i = 0; i < 6; i++)
    if (blocks[i]) CHECK_EQ(fp_block_free(c->segment, blocks[i]), 0);
  fp_heap_trim(c->segment, 0, 4096);
  fp_heap_trim(c->segment, 0, 0);
}

static void see_a_whole_heap(void *context) {
  churner *c = context;
  fp_heap_stats stats = measure(c->segment, 0);
  CHECK(stats.charged <= c->segment->cap + 2 * MB); /* over it for the moment of the look alone */
}

static void test_every_instruction_leaves_a_whole_list(void) {
  for (uint64_t seed = 1; seed <= (uint64_t)rounds(2); seed++) {
    fp_arena arena = make(1, 4096, MB);
    churner c = {arena.segment, seed, NULL};
    if (step_child(churn_a_little, see_a_whole_heap, &c) == 0) puts("single steps are refused here");
    CHECK_EQ(fp_heap_sweep(arena.segment, 0, NULL, 0), 0);
    CHECK_EQ(fp_heap_adopt(arena.segment, 0), 0);
    fp_arena_destroy(&arena);
  }
}
#endif

/* ------------------------------------------------------------------ damage */

static void use_damaged(fp_segment *s, fp_random *random, const uint64_t *blocks, int n) {
  fp_heap_stats stats;
  uint64_t offset;
  int result = fp_heap_measure(s, 0, &stats);
  CHECK(result == 0 || result == FP_DAMAGED);
  for (int i = 0; i < n; i++) {
    uint64_t bytes = random_below(random, 2) ? random_next(random) : random_below(random, 20000);
    if (fp_block_check(s, 0, blocks[i], bytes)) {
      fp_heap *heap = fp_heap_of(s, 0);
      CHECK(blocks[i] >= heap->start && bytes <= heap->end - blocks[i]);
    }
    offset = random_next(random) >> random_below(random, 64);
    fp_block_check(s, (uint32_t)random_below(random, 4), offset, bytes);
    fp_block_free(s, random_below(random, 2) ? blocks[i] : offset);
  }
  result = fp_heap_alloc(s, 0, random_below(random, 30000), &offset);
  CHECK(result == 0 || result == FP_DAMAGED || result == FP_FULL);
  fp_heap_trim(s, 0, random_below(random, 50000));
  result = fp_heap_sweep(s, 0, blocks, 3);
  CHECK(result == 0 || result == FP_DAMAGED);
  result = fp_heap_adopt(s, 0);
  CHECK(result == 0 || result == FP_DAMAGED);
}

static uint64_t some_damage(fp_random *random, uint64_t was) {
  switch (random_below(random, 5)) {
    case 0:
      return random_next(random);
    case 1:
      return was ^ UINT64_C(1) << random_below(random, 64);
    case 2:
      return was + 64 * random_below(random, 100) - 3200;
    case 3:
      return random_below(random, 100000) & ~UINT64_C(63);
    default:
      return random_below(random, 2) ? 0 : UINT64_MAX;
  }
}

static void test_damaged_heaps_are_errors_and_not_crashes(void) {
  fp_random random = {21};
  fp_arena arena = make(1, 4096, 2 * MB);
  fp_segment *s = map_guarded(arena.fd, arena.bytes);
  for (int round = 0; round < rounds(3000); round++) {
    fp_heap *heap = fp_heap_of(s, 0), clean = *heap;
    uint64_t blocks[12], *word;
    for (int i = 0; i < 12; i++) blocks[i] = alloc(s, 0, random_below(&random, 20000));
    for (int i = 0; i < 12; i += 3) CHECK_EQ(fp_block_free(s, blocks[i]), 0);
    for (uint64_t hits = 1 + random_below(&random, 3); hits; hits--) {
      int in_heap = random_below(&random, 4) == 0;
      void *at = in_heap ? (void *)heap : fp_at(s, blocks[random_below(&random, 12)] - HEADER);
      word = (uint64_t *)at + random_below(&random, 4);
      *word = some_damage(&random, *word);
    }
    use_damaged(s, &random, blocks, 12);
    *heap = clean;
    atomic_store(&heap->top, heap->start);
    atomic_store(&heap->charged, 0);
  }
  unmap_guarded(s, arena.bytes);
  fp_arena_destroy(&arena);
}

static void test_each_damaged_word_is_seen(void) {
  fp_arena arena = make(1, 4096, 2 * MB);
  fp_segment *s = arena.segment;
  uint64_t first = alloc(s, 0, 1000), second = alloc(s, 0, 1000), offset;
  uint64_t held[] = {first, second};
  fp_heap *heap = fp_heap_of(s, 0);
  fp_block *block = fp_at(s, first - HEADER);
  struct {
    void *at;
    size_t bytes;
    uint64_t value;
  } damages[] = {
      {&block->size, 8, 0},
      {&block->size, 8, 65},
      {&block->size, 8, UINT64_MAX & ~UINT64_C(63)},
      {&block->size, 8, 128},
      {&block->state, 4, 0},
      {&block->state, 4, 3},
      {&block->guard, 4, 12345},
      {&heap->top, 8, heap->start - 64},
      {&heap->top, 8, heap->end + 64},
      {&heap->top, 8, heap->top + 1},
      {&heap->start, 8, heap->start + 64},
      {&heap->end, 8, UINT64_MAX},
      {&heap->top, 8, second - HEADER + 64},
  };
  for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
    uint64_t was = 0;
    fp_heap_stats stats;
    memcpy(&was, damages[i].at, damages[i].bytes);
    memcpy(damages[i].at, &damages[i].value, damages[i].bytes);
    CHECK_EQ(fp_heap_measure(s, 0, &stats), FP_DAMAGED);
    CHECK_EQ(fp_heap_adopt(s, 0), FP_DAMAGED);
    CHECK_EQ(fp_heap_sweep(s, 0, held, 2), FP_DAMAGED);
    CHECK_EQ(fp_heap_alloc(s, 0, 2000, &offset), FP_DAMAGED);
    memcpy(damages[i].at, &was, damages[i].bytes);
    CHECK_EQ(measure(s, 0).blocks_used, 2);
  }
  block->asked = UINT64_MAX;
  CHECK(!fp_block_check(s, 0, first, 1000));
  fp_arena_destroy(&arena);
}

static uint64_t resident(const fp_arena *arena) {
  uint64_t page = fp_page_bytes(), n = 0;
  for (uint64_t at = arena->segment->rings_at; at + page <= arena->bytes; at += page) {
    const unsigned char *bytes = fp_at(arena->segment, at);
    int used = 0;
    for (uint64_t i = 0; i < page && !used; i += 8) used = bytes[i] != 0;
    n += used;
  }
  return n * page;
}

static void test_shed_keeps_what_is_held(void) {
  fp_arena arena = make(2, 4096, 2 * MB);
  fp_segment *segment = arena.segment;
  uint64_t held[2], lost[6], n = 0;
  memset(fp_at(segment, segment->rings_at), 0xff, 2 * 4096);
  for (uint32_t owner = 0; owner < 3;
       owner++) { /* of three blocks each, the middle ones of two heaps are held */
    for (int i = 0; i < 3; i++) {
      uint64_t offset = alloc(segment, owner, 100000);
      memset(fp_at(segment, offset), 0x11 + (int)owner, 100000);
      if (i == 1 && owner < 2)
        held[owner] = offset;
      else if (n < 6)
        lost[n++] = offset;
    }
  }
  CHECK_EQ(fp_arena_shed(&arena, held, 2), 0);
  CHECK_EQ(arena.fd, -1);
  for (uint32_t owner = 0; owner < 2; owner++) {
    const unsigned char *at = fp_at(segment, held[owner]);
    for (int i = 0; i < 100000; i++) CHECK_EQ(at[i], 0x11 + (int)owner);
    CHECK(fp_block_check(segment, owner, held[owner], 100000));
  }
  CHECK(resident(&arena) < 2 * 100000 + 16 * fp_page_bytes());
  for (uint64_t i = 0; i < n; i++) CHECK_EQ(fp_block_free(segment, lost[i]), FP_DAMAGED);
  CHECK_EQ(fp_block_free(segment, held[0]), 0);
  fp_heap_trim(segment, 0, 0);
  CHECK_EQ(measure(segment, 0).bytes_used, 0);
  CHECK(resident(&arena) < 100000 + 16 * fp_page_bytes());
  fp_arena_destroy(&arena);
}

int main(void) {
  RUN(test_parts_are_apart_and_aligned);
  RUN(test_what_one_writes_the_others_cannot);
  RUN(test_a_new_segment_has_nothing_to_do);
  RUN(test_attach_sees_the_same_memory);
  RUN(test_bad_sizes);
  RUN(test_no_heap_at_all);
  RUN(test_half_is_tried_where_the_range_is_refused);
  RUN(test_a_freed_block_is_used_again);
  RUN(test_check_and_free_of_what_is_no_block);
  RUN(test_the_cap_is_for_all_heaps_together);
  RUN(test_trim_gives_pages_back);
  RUN(test_trim_lowers_top);
  RUN(test_against_a_model);
  RUN(test_sweep_frees_what_nobody_holds);
  RUN(test_shed_keeps_what_is_held);
  RUN(test_heaps_that_grow_at_once_keep_the_cap);
  RUN(test_owner_allocates_while_the_holder_frees);
  RUN(test_a_heap_is_whole_after_its_owner_was_killed);
  RUN(test_more_charged_than_a_heap_can_have_is_damage);
  RUN(test_adopt_takes_back_what_lies_above_top);
#ifdef FP_CAN_STEP
  RUN(test_every_instruction_leaves_a_whole_list);
#endif
  RUN(test_damaged_heaps_are_errors_and_not_crashes);
  RUN(test_each_damaged_word_is_seen);
  return done();
}
