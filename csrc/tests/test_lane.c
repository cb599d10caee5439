#include "lane.h"

#include <pthread.h>
#include <string.h>

#include "arena.h"
#include "checksum.h"
#include "tools.h"

#define RING   UINT64_C(4096)
#define HEADER ((uint64_t)sizeof(fp_record))
#define JOB    0x1234567

typedef struct {
  fp_arena arena;
  fp_writer writer;
  fp_reader reader;
} pipe_;

static pipe_ make(uint64_t ring_bytes) {
  pipe_ p;
  CHECK_EQ(fp_arena_create(&p.arena, 1, ring_bytes, 0), 0);
  fp_writer_attach(&p.writer, p.arena.segment, 0);
  fp_reader_attach(&p.reader, p.arena.segment, 0);
  return p;
}

/* ------------------------------------------------------------------ items that prove themselves */

/* Item number i has contents that follow from i and its kind alone. */
static uint64_t value_of(uint64_t i) { return fp_mix(i + 1); }
static uint32_t length_of(uint64_t i, uint32_t most) {
  return (uint32_t)(value_of(i) % 7 ? value_of(i) / 7 % 40 : value_of(i) / 7 % (most + 1));
}

static uint32_t head_of(uint16_t kind) {
  if (kind == FP_KIND_BLOCK) return sizeof(fp_block_item);
  if (kind == FP_KIND_FRAGMENT) return sizeof(fp_fragment);
  if (kind == FP_KIND_STR || kind == FP_KIND_BYTES) return sizeof(fp_item);
  return sizeof(fp_item) + sizeof(fp_summed);
}

static uint32_t item_bytes(uint16_t kind, uint64_t i, uint32_t most) {
  if (kind == FP_KIND_INT64 || kind == FP_KIND_FLOAT64 || kind == FP_KIND_OBJECT) return 8;
  if (kind == FP_KIND_BOOL) return 1;
  if (kind == FP_KIND_NONE) return 0;
  if (kind == FP_KIND_BLOCK) return sizeof(fp_block_item);
  return head_of(kind) + (uint32_t)fp_align(length_of(i, most), 8);
}

static void write_item(unsigned char *at, uint16_t kind, uint64_t i, uint32_t most) {
  uint64_t value = value_of(i);
  uint32_t length = length_of(i, most), head = head_of(kind);
  if (item_bytes(kind, i, most) <= 8 && (kind <= FP_KIND_NONE || kind == FP_KIND_OBJECT)) {
    memcpy(at, &value, item_bytes(kind, i, most));
    return;
  }
  memset(at, (int)(value & 255), item_bytes(kind, i, most));
  if (kind != FP_KIND_BLOCK) memcpy(at, &length, sizeof length);
  if (kind == FP_KIND_PICKLE || kind == FP_KIND_ERROR || kind == FP_KIND_TAGGED) {
    uint64_t sum = fp_checksum(at + head, length);
    memcpy(at + sizeof(fp_item), &sum, 8);
  }
}

/* Bytes of the item, which must be item i. */
static uint32_t read_item(const unsigned char *at, const unsigned char *end, uint16_t kind, uint64_t i,
                          uint32_t most) {
  unsigned char expected[RING];
  uint32_t bytes = item_bytes(kind, i, most);
  CHECK(bytes <= sizeof expected && at + bytes <= end);
  write_item(expected, kind, i, most);
  CHECK(memcmp(at, expected, bytes) == 0);
  return bytes;
}

/* Item i belongs to task first + k; here simply the task's number. Kinds and phases follow from the record. */
static void read_view(fp_reader *reader, const fp_view *view, uint32_t count, uint64_t *next, uint32_t most) {
  const unsigned char *at = view->at;
  CHECK(count >= 1 && count <= view->count);
  CHECK_EQ(view->first, *next);
  CHECK_EQ(view->job, JOB & 255);
  CHECK(view->at >= reader->ring && view->end <= reader->ring + reader->ring_bytes);
  for (uint32_t k = 0; k < count; k++) at += read_item(at, view->end, view->kind, (*next)++, most);
  CHECK_EQ(fp_reader_take(reader, count, (uint32_t)(at - view->at)), 0);
}

static uint64_t read_all(fp_reader *reader, uint64_t *next, uint32_t most) {
  fp_view view;
  uint64_t before = *next;
  int result;
  while ((result = fp_reader_look(reader, &view)) == 1) read_view(reader, &view, view.count, next, most);
  CHECK_EQ(result, 0);
  return *next - before;
}

/* Write item i: in the open record if that fits, else in a new one of a kind that follows from the random numbers. */
typedef struct {
  fp_random random;
  uint16_t kind;
  uint64_t next;
  uint32_t most; /* data bytes of the largest item */
  int together;  /* with a reader */
} source;

static int write_next(source *from, fp_writer *writer) {
  if (random_below(&from->random, 12) == 0) fp_writer_close(writer);
  uint32_t need = item_bytes(from->kind, from->next, from->most);
  if (!writer->record || need > (uint64_t)(writer->end - writer->at)) {
    uint16_t kind = (uint16_t)(1 + random_below(&from->random, FP_KINDS - 1));
    need = item_bytes(kind, from->next, from->most);
    uint32_t want = need + (uint32_t)random_below(&from->random, 1 + from->most * 2);
    fp_writer_close(writer);
    int room = fp_writer_has_room(writer, need);
    int result = fp_writer_open(writer, kind, FP_PHASE_TASK, JOB, from->next, need, want);
    CHECK(result == (room ? 0 : FP_FULL) || (from->together && result == 0)); /* tail may have moved since */
    if (result == FP_FULL) return 0;
    from->kind = kind;
    CHECK(writer->end - writer->at >= need && writer->end - writer->at <= (int64_t)fp_align(want, 8));
  }
  write_item(writer->at, from->kind, from->next, from->most);
  fp_writer_commit(writer, writer->at + need);
  from->next++;
  return 1;
}

/* ------------------------------------------------------------------ checksum */

static void test_checksum_sees_each_bit_and_length(void) {
  unsigned char data[100];
  fp_random random = {3};
  for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)random_next(&random);
  for (uint64_t bytes = 0; bytes <= sizeof data; bytes++) {
    uint64_t sum = fp_checksum(data, bytes);
    CHECK(fp_checksum(data, bytes) == sum);
    for (uint64_t bit = 0; bit < bytes * 8; bit++) {
      data[bit / 8] ^= (unsigned char)(1 << bit % 8);
      CHECK(fp_checksum(data, bytes) != sum);
      data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
  }
  memset(data, 0, sizeof data);
  for (uint64_t a = 0; a <= sizeof data; a++)
    for (uint64_t b = 0; b < a; b++) CHECK(fp_checksum(data, a) != fp_checksum(data, b));
}

static void test_checksum_sees_order_and_not_alignment(void) {
  unsigned char data[256], moved[256], other[257];
  for (int i = 0; i < 256; i++) data[i] = (unsigned char)i;
  for (int a = 0; a < 32; a++)
    for (int b = a + 1; b < 32; b++) {
      memcpy(moved, data, 256);
      memcpy(moved + 8 * a, data + 8 * b, 8);
      memcpy(moved + 8 * b, data + 8 * a, 8);
      CHECK(fp_checksum(moved, 256) != fp_checksum(data, 256));
    }
  memcpy(other + 1, data, 256);
  CHECK(fp_checksum(other + 1, 256) == fp_checksum(data, 256));
}

/* ------------------------------------------------------------------ one step after another */

static void test_items_appear_by_their_commit(void) {
  pipe_ p = make(RING);
  fp_view view;
  CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, FP_PHASE_INIT, JOB, 40, 8, 800), 0);
  CHECK_EQ(p.writer.end - p.writer.at, 800);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  for (int64_t i = 0; i < 3; i++) {
    memcpy(p.writer.at, &i, 8);
    CHECK_EQ(fp_reader_look(&p.reader, &view), i > 0);
    fp_writer_commit(&p.writer, p.writer.at + 8);
  }
  CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
  CHECK(view.kind == FP_KIND_INT64 && view.phase == FP_PHASE_INIT && view.job == (JOB & 255));
  CHECK(view.count == 3 && view.first == 40 && view.end - view.at == 800);
  CHECK_EQ(fp_reader_take(&p.reader, 2, 16), 0);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
  CHECK(view.count == 1 && view.first == 42 && view.at[0] == 2);
  CHECK_EQ(fp_reader_take(&p.reader, 1, 8), 0);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  CHECK_EQ(p.writer.control->tail, 0); /* open: nothing is released */
  fp_writer_close(&p.writer);
  fp_writer_close(&p.writer);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  CHECK_EQ(p.writer.control->tail, HEADER + 24);
  CHECK_EQ(p.reader.taken, 3);
  fp_arena_destroy(&p.arena);
}

static void test_bytes_stay_until_the_next_look(void) {
  pipe_ p = make(RING);
  fp_view view;
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_BOOL, 0, JOB, 0, 1, 100), 0);
  fp_writer_commit(&p.writer, p.writer.at + 1);
  fp_writer_close(&p.writer);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
  CHECK_EQ(view.end - view.at, 1);
  CHECK_EQ(fp_reader_take(&p.reader, 1, 1), 0);
  CHECK_EQ(p.writer.control->tail, 0);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  CHECK_EQ(p.writer.control->tail, HEADER + 8);
  fp_arena_destroy(&p.arena);
}

static void test_empty_records_are_passed(void) {
  pipe_ p = make(RING);
  fp_view view;
  for (int i = 0; i < 500; i++) {
    CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_STR, 0, JOB, 0, 8, 100), 0);
    CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
    fp_writer_close(&p.writer);
    if (i % 3 == 0) CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
  }
  fp_arena_destroy(&p.arena);
}

static void test_misuse(void) {
  pipe_ p = make(RING);
  CHECK_EQ(fp_writer_largest(&p.writer), RING / 4);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_STR, 0, JOB, 0, RING / 4 + 1, RING), FP_MISUSE);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_STR, 0, JOB, 0, 9, 8), FP_MISUSE);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_PAD, 0, JOB, 0, 8, 8), FP_MISUSE);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KINDS, 0, JOB, 0, 8, 8), FP_MISUSE);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_STR, FP_PHASES, JOB, 0, 8, 8), FP_MISUSE);
  CHECK(!fp_writer_has_room(&p.writer, RING / 4 + 1));
  CHECK(!fp_writer_has_room(&p.writer, UINT32_MAX));
  CHECK_EQ(fp_reader_take(&p.reader, 1, 8), FP_MISUSE);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_STR, 0, JOB, 0, 8, UINT32_MAX), 0);
  CHECK_EQ(p.writer.end - p.writer.at, RING - HEADER);
  fp_arena_destroy(&p.arena);
}

static void test_take_never_leaves_the_payload(void) {
  pipe_ p = make(RING);
  fp_view view;
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, 0, JOB, 0, 8, 80), 0);
  fp_writer_commit(&p.writer, p.writer.at + 8);
  CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
  CHECK_EQ(fp_reader_take(&p.reader, 1, 88), FP_DAMAGED);
  CHECK_EQ(fp_reader_take(&p.reader, UINT32_MAX, 8), FP_DAMAGED);
  CHECK_EQ(fp_reader_take(&p.reader, 1, 80), 0);
  CHECK_EQ(fp_reader_take(&p.reader, 1, UINT32_MAX), FP_DAMAGED);
  fp_writer_close(&p.writer);
  CHECK_EQ(fp_reader_look(&p.reader, &view), FP_DAMAGED); /* more than its 8 were taken */
  fp_arena_destroy(&p.arena);
}

static void test_commit_says_when_to_ring(void) {
  pipe_ p = make(RING);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_NONE, 0, JOB, 0, 0, 0), 0);
  CHECK(!fp_writer_commit(&p.writer, p.writer.at));
  atomic_store(&p.reader.control->wake_at, 3);
  CHECK(!fp_writer_commit(&p.writer, p.writer.at));
  CHECK(fp_writer_commit(&p.writer, p.writer.at));
  CHECK(fp_writer_commit(&p.writer, p.writer.at));
  p.writer.fence_each = !p.writer.fence_each;
  CHECK(fp_writer_commit(&p.writer, p.writer.at));
  atomic_store(&p.reader.control->wake_at, FP_NEVER);
  CHECK(!fp_writer_commit(&p.writer, p.writer.at));
  uint64_t next = 0;
  CHECK_EQ(read_all(&p.reader, &next, 8), 6);
  fp_arena_destroy(&p.arena);
}

static void test_half_full(void) {
  pipe_ p = make(RING);
  uint64_t next = 0;
  CHECK(!fp_writer_half_full(&p.writer));
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, 0, JOB, 0, 8, RING), 0);
  while (p.writer.position + HEADER + 8 * next < RING / 2) {
    CHECK(!fp_writer_half_full(&p.writer));
    write_item(p.writer.at, FP_KIND_INT64, next++, 8);
    fp_writer_commit(&p.writer, p.writer.at + 8);
  }
  CHECK(!fp_writer_half_full(&p.writer)); /* exactly half */
  write_item(p.writer.at, FP_KIND_INT64, next++, 8);
  fp_writer_commit(&p.writer, p.writer.at + 8);
  CHECK(fp_writer_half_full(&p.writer));
  next = 0;
  read_all(&p.reader, &next, 8);
  CHECK(fp_writer_half_full(&p.writer));
  fp_writer_close(&p.writer);
  CHECK(fp_writer_half_full(&p.writer));
  read_all(&p.reader, &next, 8);
  CHECK(!fp_writer_half_full(&p.writer));
  fp_arena_destroy(&p.arena);
}

/* Advance an empty lane to where its next record begins `rest` bytes before the ring's end. */
static void advance_to(pipe_ *p, uint64_t rest, uint64_t *next) {
  for (;;) {
    uint64_t left = RING - (p->writer.position & (RING - 1));
    if (left == rest) return;
    uint64_t gap = left > rest ? left - rest : left;
    uint64_t payload = gap >= 2 * HEADER + 512 ? 512 : gap - HEADER;
    if (gap < HEADER) payload = 0;
    CHECK_EQ(fp_writer_open(&p->writer, FP_KIND_INT64, 0, JOB, *next, 0, (uint32_t)payload), 0);
    for (uint64_t i = 0; i < payload / 8; i++) {
      write_item(p->writer.at, FP_KIND_INT64, *next + i, 8);
      fp_writer_commit(&p->writer, p->writer.at + 8);
    }
    fp_writer_close(&p->writer);
    read_all(&p->reader, next, 8);
    CHECK_EQ(p->writer.position, p->writer.control->tail);
  }
}

static void test_every_place_at_the_end_of_the_ring(void) {
  pipe_ p = make(RING);
  uint64_t next = 0;
  for (uint64_t rest = HEADER; rest <= 320; rest += 8)
    for (uint32_t count = 0; count <= 36; count++) {
      advance_to(&p, rest, &next);
      CHECK(fp_writer_has_room(&p.writer, count * 8));
      CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_FLOAT64, 0, JOB, next, count * 8, count * 8), 0);
      int padded = rest < HEADER + count * 8;
      CHECK_EQ((unsigned char *)p.writer.record == p.writer.ring, padded);
      CHECK_EQ(p.writer.end - p.writer.at, count * 8);
      CHECK(p.writer.end <= p.writer.ring + RING);
      for (uint32_t i = 0; i < count; i++) {
        write_item(p.writer.at, FP_KIND_FLOAT64, next + i, 8);
        fp_writer_commit(&p.writer, p.writer.at + 8);
      }
      if (count % 2) CHECK_EQ(read_all(&p.reader, &next, 8), count);
      fp_writer_close(&p.writer);
      CHECK_EQ(read_all(&p.reader, &next, 8), count % 2 ? 0 : count);
      CHECK_EQ(p.writer.position, p.writer.control->tail);
    }
  fp_arena_destroy(&p.arena);
}

static void test_the_largest_fits_an_empty_ring_anywhere(void) {
  for (uint64_t ring_bytes = 1024; ring_bytes <= RING; ring_bytes *= 4) {
    pipe_ p = make(ring_bytes);
    fp_view view;
    for (uint64_t i = 0; i < ring_bytes / 8 * 3; i++) {
      uint32_t largest = fp_writer_largest(&p.writer);
      CHECK_EQ(p.writer.position, p.writer.control->tail);
      CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, 0, JOB, i, largest, largest), 0);
      memset(p.writer.at, 1, largest);
      fp_writer_commit(&p.writer, p.writer.at + 8); /* a step of 40 bytes: every offset is met */
      fp_writer_close(&p.writer);
      CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
      CHECK_EQ(fp_reader_take(&p.reader, 1, 8), 0);
      CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
    }
    fp_arena_destroy(&p.arena);
  }
}

static void test_a_full_ring_is_never_overwritten(void) {
  for (uint64_t seed = 1; seed <= (uint64_t)rounds(300); seed++) {
    pipe_ p = make(seed % 2 ? 1024 : RING);
    source from = {.random = {seed}, .most = 200};
    uint64_t next = 0;
    for (int laps = 0; laps < 4; laps++) {
      while (write_next(&from, &p.writer) && from.next < next + 3000) continue;
      read_all(&p.reader, &next, from.most);
      CHECK_EQ(next, from.next);
    }
    fp_arena_destroy(&p.arena);
  }
}

static void test_random_steps(void) {
  for (uint64_t seed = 1; seed <= (uint64_t)rounds(60); seed++) {
    pipe_ p = make(seed % 2 ? 1024 : RING);
    source from = {.random = {seed}, .most = 180};
    fp_random random = {seed + 1000};
    fp_view view;
    uint64_t next = 0;
    for (int step = 0; step < 2000; step++) {
      if (random_below(&random, 2)) {
        for (uint64_t n = random_below(&random, 10); n; n--) write_next(&from, &p.writer);
      } else {
        int result = fp_reader_look(&p.reader, &view);
        CHECK_EQ(result, next < from.next);
        if (result)
          read_view(&p.reader, &view, 1 + (uint32_t)random_below(&random, view.count), &next, from.most);
      }
      CHECK(p.reader.taken == next && p.writer.committed == from.next);
    }
    fp_arena_destroy(&p.arena);
  }
}

static void test_a_reset_lane_is_new(void) {
  pipe_ p = make(1024);
  source from = {.random = {9}, .most = 100};
  for (int round = 0; round < 20; round++) {
    uint64_t next = from.next = 0;
    atomic_store(&p.reader.control->wake_at, 5);
    atomic_store(&p.reader.control->command, FP_CMD_STOP);
    atomic_store(&p.writer.lane->bell.sleeping, 1);
    for (int i = 0; i < 50 * round; i++)
      if (!write_next(&from, &p.writer)) read_all(&p.reader, &next, from.most);
    read_all(&p.reader, &next, from.most);
    CHECK_EQ(next, from.next);
    fp_lane_reset(&p.reader);
    fp_lane *lane = p.writer.lane;
    CHECK(lane->committed == 0 && lane->head == 0 && p.reader.control->tail == 0 &&
          p.reader.control->wake_at == FP_NEVER);
    CHECK(p.reader.control->command == FP_CMD_NONE && lane->bell.sleeping == 0);
    fp_writer_attach(&p.writer, p.arena.segment, 0);
    CHECK(p.writer.position == 0 && p.writer.committed == 0 && p.writer.record == NULL);
  }
  fp_arena_destroy(&p.arena);
}

/* ------------------------------------------------------------------ at once */

typedef struct {
  pipe_ *pipe;
  uint64_t seed, items;
  uint32_t most;
} stream;

static void write_stream(void *context) {
  stream *s = context;
  source from = {.random = {s->seed}, .most = s->most, .together = 1};
  fp_writer writer = s->pipe->writer;
  while (from.next < s->items)
    if (!write_next(&from, &writer)) fp_yield();
  fp_writer_close(&writer);
}
static void *write_stream_thread(void *context) {
  write_stream(context);
  return NULL;
}

static void read_stream(stream *s) {
  uint64_t next = 0;
  while (next < s->items)
    if (!read_all(&s->pipe->reader, &next, s->most)) fp_yield();
}

static void test_two_threads(void) {
  for (uint64_t seed = 1; seed <= 4; seed++) {
    pipe_ p = make(seed % 2 ? RING : 1024);
    stream s = {&p, seed, (uint64_t)rounds(15000), seed < 3 ? 150 : 20};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, write_stream_thread, &s), 0);
    read_stream(&s);
    pthread_join(thread, NULL);
    fp_arena_destroy(&p.arena);
  }
}

static void test_two_processes(void) {
  for (uint64_t seed = 1; seed <= 4; seed++) {
    pipe_ p = make(seed % 2 ? RING : 1024);
    stream s = {&p, seed, (uint64_t)rounds(30000), seed < 3 ? 150 : 20};
    pid_t pid = start_child(write_stream, &s);
    read_stream(&s);
    CHECK_EQ(join_child(pid), 0);
    fp_arena_destroy(&p.arena);
  }
}

static void test_a_killed_writer_leaves_whole_items(void) {
  pipe_ p = make(RING);
  fp_random random = {17};
  for (int round = 0; round < rounds(80); round++) {
    stream s = {&p, random_next(&random), UINT64_MAX, 200};
    uint64_t next = 0, until = random_below(&random, 1500);
    pid_t pid = start_child(write_stream, &s);
    while (next < until) read_all(&p.reader, &next, s.most);
    kill_child(pid);
    read_all(&p.reader, &next, s.most);
    CHECK_EQ(next, p.writer.lane->committed);
    fp_lane_reset(&p.reader);
  }
  fp_arena_destroy(&p.arena);
}

#ifdef FP_CAN_STEP
typedef struct {
  pipe_ pipe;
  uint64_t seed, next;
} stepped;

static void write_a_little(void *context) {
  stepped *s = context;
  source from = {.random = {s->seed}, .most = 100, .together = 1};
  for (int i = 0; i < 40; i++) write_next(&from, &s->pipe.writer);
}

static void see_whole_items(void *context) {
  stepped *s = context;
  read_all(&s->pipe.reader, &s->next, 100);
  CHECK_EQ(s->next, s->pipe.writer.lane->committed);
}

static void test_every_instruction_leaves_whole_items(void) {
  for (uint64_t seed = 1; seed <= (uint64_t)rounds(2); seed++) {
    stepped s = {.pipe = make(1024), .seed = seed};
    if (step_child(write_a_little, see_whole_items, &s) == 0)
      puts("single steps are refused here");
    else
      CHECK_EQ(s.next, 40);
    fp_arena_destroy(&s.pipe.arena);
  }
}
#endif

/* ------------------------------------------------------------------ damage */

/* Three closed records (2, 0 and 3 items) and an open one (1 item). */
static void write_four_records(fp_writer *writer) {
  uint64_t i = 0;
  int counts[] = {2, 0, 3, 1};
  for (int r = 0; r < 4; r++) {
    CHECK_EQ(fp_writer_open(writer, FP_KIND_INT64, 0, JOB, i, 8, 64), 0);
    for (int k = 0; k < counts[r]; k++) {
      write_item(writer->at, FP_KIND_INT64, i++, 8);
      fp_writer_commit(writer, writer->at + 8);
    }
  }
}

static int read_until_damage(fp_reader *reader) {
  fp_view view;
  for (int i = 0; i < 100; i++) {
    int result = fp_reader_look(reader, &view);
    if (result != 1) return result;
    result = fp_reader_take(reader, view.count, view.kind == FP_KIND_NONE ? 0 : view.count * 8);
    if (result < 0) return result;
  }
  CHECK(!"the reader comes to an end");
  return 0;
}

typedef struct {
  size_t offset; /* in the record, or in the lane */
  size_t bytes;
  uint64_t value;
} damage;

static void expect_damage(int in_lane, uint64_t record_at, damage d) {
  pipe_ p = make(RING);
  write_four_records(&p.writer);
  unsigned char *base = in_lane ? (unsigned char *)p.writer.lane : p.writer.ring + record_at;
  memcpy(base + d.offset, &d.value, d.bytes);
  int result = read_until_damage(&p.reader);
  if (result != FP_DAMAGED)
    fprintf(stderr, "offset %zu of %s: %" PRIx64 "\n", d.offset, in_lane ? "lane" : "record", d.value);
  CHECK_EQ(result, FP_DAMAGED);
  CHECK_EQ(read_until_damage(&p.reader), FP_DAMAGED); /* and so it stays */
  fp_arena_destroy(&p.arena);
}

static void test_each_damaged_word_is_seen(void) {
#define AT(member) offsetof(fp_record, member), sizeof(((fp_record *)0)->member)
  const damage records[] = {
      {AT(kind), FP_KINDS},
      {AT(kind), 65535},
      {AT(kind), FP_KIND_PAD},
      {AT(kind), FP_KIND_BLOCK},
      {AT(phase), FP_PHASES},
      {AT(base), 1},
      {AT(base), UINT64_MAX},
      {AT(capacity), UINT32_MAX},
      {AT(capacity), RING},
      {AT(capacity), 63},
      {AT(capacity), 8},
      {AT(closed), 0},
      {AT(closed), 1},
      {AT(closed), FP_CLOSED},
      {AT(closed), FP_CLOSED | UINT64_C(2) << 32 | 72},
      {AT(closed), FP_CLOSED | UINT64_C(2) << 32 | 8},
      {AT(closed), FP_CLOSED | UINT64_C(1) << 32 | 16},
      {AT(closed), FP_CLOSED | UINT64_C(3) << 32 | 16},
      {AT(closed), FP_CLOSED | UINT64_C(7) << 32 | 64},
      {AT(closed), UINT64_MAX},
  };
#undef AT
#define AT(member) offsetof(fp_lane, member), 8
  const damage lanes[] = {
      {AT(committed), 0},
      {AT(committed), 1},
      {AT(committed), 4},
      {AT(committed), 60},
      {AT(head), 0},
      {AT(head), 8},
      {AT(head), HEADER + 1},
      {AT(head), HEADER},
      {AT(head), RING + 8},
      {AT(head), 2 * RING},
      {AT(head), UINT64_MAX - 7},
      {AT(head), 64},
      {AT(committed), UINT64_MAX},
  };
#undef AT
  for (size_t i = 0; i < sizeof records / sizeof *records; i++) expect_damage(0, 0, records[i]);
  for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++) expect_damage(1, 0, lanes[i]);
  expect_damage(0, HEADER + 16 + HEADER, (damage){offsetof(fp_record, base), 8, 5});
}

static void test_each_bit_of_a_header_is_seen(void) {
  for (size_t bit = 8 * offsetof(fp_record, first); bit < 8 * HEADER; bit++) {
    pipe_ p = make(RING);
    write_four_records(&p.writer);
    p.writer.ring[bit / 8] ^= (unsigned char)(1 << bit % 8);
    CHECK_EQ(read_until_damage(&p.reader), FP_DAMAGED);
    fp_arena_destroy(&p.arena);
  }
}

/* A closed record of one item, and what the reader says to it after `d`. */
static void expect_damage_alone(damage d, int in_lane) {
  pipe_ p = make(RING);
  CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, 0, JOB, 0, 8, 64), 0);
  fp_writer_commit(&p.writer, p.writer.at + 8);
  fp_writer_close(&p.writer);
  memcpy((in_lane ? (unsigned char *)p.writer.lane : p.writer.ring) + d.offset, &d.value, d.bytes);
  CHECK_EQ(read_until_damage(&p.reader), FP_DAMAGED);
  fp_arena_destroy(&p.arena);
}

static void test_damage_of_the_last_record_is_seen(void) {
  for (uint64_t used = 0; used <= 80; used += 8)
    if (used != 8) expect_damage_alone((damage){0, 8, FP_CLOSED | UINT64_C(1) << 32 | used}, 0);
  for (uint64_t head = 0; head < HEADER; head++)
    expect_damage_alone((damage){offsetof(fp_lane, head), 8, head}, 1);
}

static void test_a_record_that_shrinks_is_seen(void) {
  const uint16_t kinds[] = {FP_KIND_NONE, FP_KIND_BOOL, FP_KIND_INT64};
  for (int i = 0; i < 3; i++) {
    pipe_ p = make(RING);
    fp_view view;
    uint32_t bytes = item_bytes(kinds[i], 0, 0);
    CHECK_EQ(fp_writer_open(&p.writer, kinds[i], 0, JOB, 0, 8, 64), 0);
    for (int k = 0; k < 2; k++) fp_writer_commit(&p.writer, p.writer.at + bytes);
    CHECK_EQ(fp_reader_look(&p.reader, &view), 1);
    CHECK_EQ(fp_reader_take(&p.reader, 2, 2 * bytes), 0);
    atomic_store(&p.writer.record->closed, FP_CLOSED | UINT64_C(1) << 32 | bytes);
    CHECK_EQ(fp_reader_look(&p.reader, &view), FP_DAMAGED);
    atomic_store(&p.writer.record->closed, FP_CLOSED | UINT64_C(2) << 32 | 2 * bytes);
    CHECK_EQ(fp_reader_look(&p.reader, &view), 0);
    fp_arena_destroy(&p.arena);
  }
}

static void test_a_damaged_pad_is_seen(void) {
  const uint64_t closed[] = {0, FP_CLOSED, FP_CLOSED | UINT64_C(1) << 32 | 64, FP_CLOSED | 56,
                             FP_CLOSED | 72};
  for (int i = 0; i < 8; i++) {
    pipe_ p = make(RING);
    uint64_t next = 0;
    advance_to(&p, HEADER + 64, &next);
    fp_record *pad = (fp_record *)(void *)(p.writer.ring + RING - HEADER - 64);
    CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_INT64, 0, JOB, next, 72, 72), 0);
    for (int k = 0; k < 9; k++) fp_writer_commit(&p.writer, p.writer.at + 8);
    CHECK(fp_kind_of(pad) == FP_KIND_PAD && pad->capacity == 64 && pad->closed == (FP_CLOSED | 64));
    if (i < 5) atomic_store(&pad->closed, closed[i]);
    if (i == 5) pad->capacity = 56, atomic_store(&pad->closed, FP_CLOSED | 56);
    if (i == 6) pad->base++;
    if (i == 7) pad->capacity = 0, atomic_store(&pad->closed, FP_CLOSED);
    CHECK_EQ(read_until_damage(&p.reader), FP_DAMAGED);
    CHECK_EQ(p.reader.taken, next);
    fp_arena_destroy(&p.arena);
  }
}

static void test_a_ring_of_empty_records_is_not_read_for_ever(void) {
  pipe_ p = make(RING);
  fp_view view;
  for (uint64_t i = 0; i < RING / HEADER; i++) {
    CHECK_EQ(fp_writer_open(&p.writer, FP_KIND_NONE, 0, JOB, 0, 0, 0), 0);
    fp_writer_close(&p.writer);
  }
  CHECK(!fp_writer_has_room(&p.writer, 0));
  atomic_store(&p.writer.lane->head, UINT64_MAX - 7);
  CHECK_EQ(fp_reader_look(&p.reader, &view), FP_DAMAGED);
  fp_arena_destroy(&p.arena);
}

/* What a collector does with a view: never beyond `end`, whatever the lengths say. */
static int decode_blindly(fp_reader *reader, const fp_view *view, uint64_t *sum) {
  const unsigned char *at = view->at;
  uint32_t fixed[] = {0, 8, 8, 1, 0};
  CHECK(view->count >= 1 && view->kind > FP_KIND_PAD && view->kind < FP_KINDS && view->phase < FP_PHASES);
  CHECK(view->at >= reader->ring && view->end >= view->at && view->end <= reader->ring + reader->ring_bytes);
  if (view->kind <= FP_KIND_NONE) {
    CHECK((uint64_t)(view->end - at) >= (uint64_t)fixed[view->kind] * view->count);
    for (uint32_t i = 0; i < fixed[view->kind] * view->count; i++) *sum += at[i];
    return fp_reader_take(reader, view->count, fixed[view->kind] * view->count);
  }
  for (uint32_t i = 0; i < view->count; i++) {
    uint32_t length, head = head_of(view->kind);
    if (view->end - at < head) return FP_DAMAGED;
    memcpy(&length, at, 4);
    uint64_t bytes = view->kind == FP_KIND_BLOCK ? head : head + fp_align(length, 8);
    if (bytes > (uint64_t)(view->end - at)) return FP_DAMAGED;
    *sum += fp_checksum(at, bytes);
    at += bytes;
  }
  return fp_reader_take(reader, view->count, (uint32_t)(at - view->at));
}

static void read_damaged(fp_reader *reader, uint64_t *sum) {
  fp_view view;
  int result = 1;
  for (uint64_t i = 0; result == 1; i++) {
    CHECK(i <= reader->ring_bytes / 8);
    result = fp_reader_look(reader, &view);
    CHECK(result == 0 || result == 1 || result == FP_DAMAGED);
    if (result == 1 && decode_blindly(reader, &view, sum) < 0) return;
  }
}

static uint64_t some_damage(fp_random *random, uint64_t was) {
  switch (random_below(random, 6)) {
    case 0:
      return random_next(random);
    case 1:
      return was ^ UINT64_C(1) << random_below(random, 64);
    case 2:
      return was + random_below(random, 64) - 32;
    case 3:
      return FP_CLOSED | random_below(random, 8) << 32 | random_below(random, 2 * RING);
    case 4:
      return random_below(random, 3 * RING) & ~UINT64_C(7);
    default:
      return random_below(random, 2) ? 0 : UINT64_MAX;
  }
}

static void damage_words(fp_segment *segment, fp_random *random, uint64_t near) {
  for (uint64_t hits = 1 + random_below(random, 4); hits; hits--) {
    uint64_t *word = (uint64_t *)(void *)fp_lane_of(segment, 0) + random_below(random, 2);
    uint64_t choice = random_below(random, 4);
    if (choice == 1) word = (uint64_t *)(void *)fp_ring_of(segment, 0) + random_below(random, RING / 8);
    if (choice >= 2)
      word = (uint64_t *)(void *)fp_ring_of(segment, 0) + (near / 8 + random_below(random, 8)) % (RING / 8);
    *word = some_damage(random, *word);
  }
}

/* The ring is the last thing in the segment, an unreadable page follows. */
static void test_random_damage_is_never_a_crash(void) {
  fp_random random = {33};
  uint64_t sum = 0;
  pipe_ p = make(RING);
  fp_segment *segment = map_guarded(p.arena.fd, p.arena.bytes);
  CHECK_EQ(segment->rings_at + RING, p.arena.bytes);
  for (int round = 0; round < rounds(4000); round++) {
    source from = {.random = {random_next(&random)}, .most = 150};
    uint64_t next = 0, warm = random_below(&random, 400);
    fp_reader_attach(&p.reader, segment, 0);
    fp_lane_reset(&p.reader);
    fp_writer_attach(&p.writer, segment, 0);
    while (from.next < warm)
      if (!write_next(&from, &p.writer)) read_all(&p.reader, &next, from.most);
    for (int i = 0; i < 3; i++) {
      damage_words(segment, &random, p.reader.position);
      read_damaged(&p.reader, &sum);
    }
  }
  CHECK(sum != 0);
  unmap_guarded(segment, p.arena.bytes);
  fp_arena_destroy(&p.arena);
}

int main(void) {
  RUN(test_checksum_sees_each_bit_and_length);
  RUN(test_checksum_sees_order_and_not_alignment);
  RUN(test_items_appear_by_their_commit);
  RUN(test_bytes_stay_until_the_next_look);
  RUN(test_empty_records_are_passed);
  RUN(test_misuse);
  RUN(test_take_never_leaves_the_payload);
  RUN(test_commit_says_when_to_ring);
  RUN(test_half_full);
  RUN(test_every_place_at_the_end_of_the_ring);
  RUN(test_the_largest_fits_an_empty_ring_anywhere);
  RUN(test_a_full_ring_is_never_overwritten);
  RUN(test_random_steps);
  RUN(test_a_reset_lane_is_new);
  RUN(test_two_threads);
  RUN(test_two_processes);
  RUN(test_a_killed_writer_leaves_whole_items);
#ifdef FP_CAN_STEP
  RUN(test_every_instruction_leaves_whole_items);
#endif
  RUN(test_each_damaged_word_is_seen);
  RUN(test_each_bit_of_a_header_is_seen);
  RUN(test_damage_of_the_last_record_is_seen);
  RUN(test_a_record_that_shrinks_is_seen);
  RUN(test_a_damaged_pad_is_seen);
  RUN(test_a_ring_of_empty_records_is_not_read_for_ever);
  RUN(test_random_damage_is_never_a_crash);
  return done();
}
