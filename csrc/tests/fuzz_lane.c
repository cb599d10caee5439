/* A deterministic fuzz of the record reader: lanes that may hold anything, and that change while they are read.
 *
 *   fuzz_lane CORPUS ROUNDS          run the corpus as it is, then ROUNDS mutations of it; abort at the first fault
 *   fuzz_lane CORPUS ROUNDS --grow   the same, and keep each mutation that reached something new
 *
 * An input is a lane as the reader finds it (committed, head, the ring; what is cut off at its end is zero), then
 * patches (offset, value), one of which is made after each step of the reader. Coverage is what lane.c tells when it is
 * compiled with -fsanitize-coverage=trace-pc; what lies beside the ring is the address sanitizer's. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "lane.h"
#include "tools.h"

#define RING        1024
#define IMAGE       (16 + RING)
#define PATCH       10
#define PATCHES     16
#define INPUT       (IMAGE + PATCHES * PATCH)
#define MOST_INPUTS 4096
#define HEADER      ((uint64_t)sizeof(fp_record))

typedef struct {
  unsigned char bytes[INPUT];
} input;

/* ------------------------------------------------------------------ coverage */

static unsigned char reached[1 << 16];
static uint32_t n_reached;
static uintptr_t last;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) {
  uintptr_t at =
      (uintptr_t)__builtin_return_address(0) - (uintptr_t)fp_reader_look; /* wherever it is loaded */
  unsigned char *edge = &reached[fp_mix(at ^ last << 20) & 0xffff];
  last = at;
  if (!*edge) *edge = 1, n_reached++;
}

/* ------------------------------------------------------------------ one input */

typedef struct {
  fp_lane lane;
  fp_control control;
  unsigned char *ring; /* of RING bytes, not one more */
  const input *from;
  int patches; /* made so far */
} target;

static void patch(target *t) {
  uint16_t at;
  uint64_t value;
  if (t->patches == PATCHES) return;
  const unsigned char *next = t->from->bytes + IMAGE + t->patches++ * PATCH;
  memcpy(&at, next, 2);
  memcpy(&value, next + 2, 8);
  at = (uint16_t)(at % (IMAGE / 8));
  if (value == 0) return; /* none: most inputs have few */
  if (at == 0)
    atomic_store(&t->lane.committed, value);
  else if (at == 1)
    atomic_store(&t->lane.head, value);
  else
    memcpy(t->ring + 8 * (at - 2), &value, 8);
}

/* What a collector does with a view: never beyond its end. 0, or FP_DAMAGED. */
static int take(fp_reader *reader, const fp_view *view) {
  static const uint32_t fixed[] = {0, 8, 8, 1, 0};
  static volatile uint64_t sum;
  const unsigned char *at = view->at;
  uint64_t room = (uint64_t)(view->end - at);
  CHECK(view->count >= 1 && view->kind > FP_KIND_PAD && view->kind < FP_KINDS && view->phase < FP_PHASES);
  CHECK(at >= reader->ring && view->end >= at && view->end <= reader->ring + RING);
  if (view->kind <= FP_KIND_NONE) {
    CHECK(room >= (uint64_t)fixed[view->kind] * view->count);
    sum += fp_checksum(at, fixed[view->kind] * view->count);
    return fp_reader_take(reader, view->count, fixed[view->kind] * view->count);
  }
  uint32_t length, head = view->kind == FP_KIND_STR || view->kind == FP_KIND_BYTES ? 8 : 16;
  if (view->kind == FP_KIND_BLOCK || view->kind == FP_KIND_FRAGMENT) head = 32;
  if (view->kind == FP_KIND_PLACED) head = 0;
  if (view->kind == FP_KIND_OBJECT) head = 8;
  CHECK(room >= head);
  memcpy(&length, at, head ? 4 : 0);
  if (view->kind == FP_KIND_OBJECT) length = 0;
  uint64_t bytes = head < 32 && head ? head + fp_align(length, 8) : head;
  if (bytes > room) return FP_DAMAGED;
  sum += fp_checksum(at, bytes);
  return fp_reader_take(reader, 1, (uint32_t)bytes);
}

/* A record that the reader has just entered: what README.md says of headers. */
static void see_record(const target *t, const fp_reader *reader) {
  fp_record shared;
  uint64_t at = reader->position % RING, head = atomic_load(&t->lane.head);
  memcpy(&shared, t->ring + at, HEADER);
  CHECK(shared.kind == fp_record_seal(&shared, fp_kind_of(&shared)) &&
        fp_kind_of(&shared) == reader->header.kind);
  CHECK(reader->position % 8 == 0 && at + HEADER + shared.capacity <= RING && shared.capacity % 8 == 0);
  CHECK(fp_kind_of(&shared) != FP_KIND_PAD || at + HEADER + shared.capacity == RING);
  CHECK(shared.base == reader->taken - reader->items);
  CHECK(reader->position + HEADER <= head && head <= reader->released + RING && head % 8 == 0);
}

/* Items that the reader has found: committed, and of a record that is closed or the newest. */
static void see_items(const target *t, const fp_reader *reader, const fp_view *view) {
  uint64_t closed;
  memcpy(&closed, t->ring + reader->position % RING, 8);
  CHECK(reader->taken + view->count <= atomic_load(&t->lane.committed));
  CHECK(closed == 0 ? atomic_load(&t->lane.head) == reader->position + HEADER : closed >> 63);
  if (closed) CHECK_EQ(reader->items + view->count, closed >> 32 & 0x7fffffff);
}

static void run(const input *from) {
  target t = {.from = from, .ring = malloc(RING)};
  CHECK(t.ring != NULL);
  memcpy(&t.lane, from->bytes, 16);
  memcpy(t.ring, from->bytes + 16, RING);
  fp_reader reader = {.lane = &t.lane, .control = &t.control, .ring = t.ring, .ring_bytes = RING};
  fp_view view;
  last = 0;
  for (int steps = 0;; steps++) {
    uint64_t taken = reader.taken, released = reader.released,
             was_in = reader.in_record ? reader.position + 1 : 0;
    CHECK(steps <=
          RING); /* each step takes an item or a patch; an item of no bytes needs a commit of its own */
    int result = fp_reader_look(&reader, &view);
    CHECK(result == 0 || result == 1 || result == FP_DAMAGED);
    CHECK(reader.taken == taken && reader.released >= released && reader.released == t.control.tail);
    CHECK(reader.position == reader.released || reader.in_record);
    if (result >= 0 && reader.in_record && reader.position + 1 != was_in) see_record(&t, &reader);
    if (result == 1) see_items(&t, &reader, &view);
    if (result == 0) CHECK(reader.taken == atomic_load(&t.lane.committed));
    if (result == FP_DAMAGED) {
      CHECK_EQ(fp_reader_look(&reader, &view), FP_DAMAGED); /* and so it stays */
      break;
    }
    patch(&t);
    if (result == 1) {
      if (view.kind == FP_KIND_NONE || view.kind == FP_KIND_PLACED) {
        if (fp_reader_take(&reader, view.count, 0) < 0) break; /* as many as there are: they have no bytes */
      } else if (take(&reader, &view) < 0)
        break;
    } else if (t.patches == PATCHES)
      break;
    patch(&t);
  }
  free(t.ring);
}

/* ------------------------------------------------------------------ mutations */

static uint64_t some_word(fp_random *random, uint64_t was) {
  switch (random_below(random, 7)) {
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
    case 5:
      return was - (was & 0xff) + random_below(random, 256);
    default:
      return random_below(random, 2) ? 0 : UINT64_MAX;
  }
}

/* Give headers their sums again, as far as the chain of records can be followed, so that what is behind that check is
 * reached too. */
static void reseal(input *made, fp_random *random) {
  fp_record header;
  uint64_t at = 0;
  for (int i = 0; i < 40 && at + HEADER <= RING; i++) {
    unsigned char *here = made->bytes + 16 + at;
    memcpy(&header, here, HEADER);
    header.kind = fp_record_seal(&header, fp_kind_of(&header));
    if (random_below(random, 16)) memcpy(here, &header, HEADER);
    at += HEADER + fp_align(header.closed ? (uint32_t)header.closed : header.capacity, 8);
  }
}

static void mutate(input *made, const input *other, fp_random *random) {
  for (uint64_t hits = 1 + random_below(random, 4); hits; hits--) {
    uint64_t word, at = random_below(random, INPUT - 8);
    switch (random_below(random, 5)) {
      case 0: /* committed or head */
        at = 8 * random_below(random, 2);
        break;
      case 1: /* a word near the beginning, where records are */
        at = 16 + 8 * random_below(random, 32);
        break;
      case 2: /* a patch */
        at = IMAGE + PATCH * random_below(random, PATCHES);
        made->bytes[at] = (unsigned char)random_below(random, random_below(random, 2) ? 2 : 24);
        made->bytes[at + 1] = 0;
        at += 2;
        break;
      case 3: /* a piece of another input */
        memcpy(made->bytes + at, other->bytes + at, 8 + random_below(random, INPUT - at - 7));
        continue;
      default:
        break;
    }
    memcpy(&word, made->bytes + at, 8);
    word = some_word(random, word);
    memcpy(made->bytes + at, &word, 8);
  }
  if (random_below(random, 8)) reseal(made, random);
}

/* ------------------------------------------------------------------ the corpus */

static input inputs[MOST_INPUTS];
static int n_inputs;

/* What a writer leaves: records of every kind, some closed, the last open or not, read up to somewhere. */
static void plant(uint64_t seed) {
  fp_random random = {seed};
  input *made = &inputs[n_inputs++];
  _Alignas(FP_LINE_BYTES) fp_lane lane = {0};
  fp_control control = {.wake_at = FP_NEVER};
  fp_writer writer = {.lane = &lane, .control = &control, .ring = calloc(1, RING), .ring_bytes = RING};
  uint64_t task = 0;
  CHECK(writer.ring != NULL);
  for (int i = 0; i < 12; i++) {
    uint16_t kind = (uint16_t)(1 + random_below(&random, FP_KINDS - 1));
    uint32_t item = kind <= FP_KIND_FLOAT64 || kind == FP_KIND_OBJECT ? 8 : kind == FP_KIND_BOOL ? 1 : 24;
    if (kind == FP_KIND_NONE || kind == FP_KIND_PLACED) item = 0;
    if (kind == FP_KIND_BLOCK || kind == FP_KIND_FRAGMENT) item = 32;
    if (fp_writer_open(&writer, kind, (uint8_t)random_below(&random, FP_PHASES), 7, task, item, 64) < 0)
      break;
    for (uint64_t n = random_below(&random, 4); n && writer.end - writer.at >= item; n--, task++) {
      memset(writer.at, 0, item);
      if (item == 24) *writer.at = (unsigned char)(kind == FP_KIND_STR || kind == FP_KIND_BYTES ? 16 : 8);
      fp_writer_commit(&writer, writer.at + item);
    }
  }
  if (random_below(&random, 2)) fp_writer_close(&writer);
  memcpy(made->bytes, &lane, 16);
  memcpy(made->bytes + 16, writer.ring, RING);
  free(writer.ring);
}

static void path_of(char *path, size_t size, const char *folder, const input *kept) {
  snprintf(path, size, "%s/%016" PRIx64 ".lane", folder, fp_checksum(kept->bytes, INPUT));
}

static void keep(const char *folder, const input *kept) {
  char path[4096];
  size_t size = INPUT;
  path_of(path, sizeof path, folder, kept);
  while (size && kept->bytes[size - 1] == 0) size--;
  FILE *file = fopen(path, "wb");
  CHECK(file != NULL);
  CHECK_EQ(fwrite(kept->bytes, 1, size, file), size);
  fclose(file);
}

static int is_lane(const struct dirent *entry) {
  size_t length = strlen(entry->d_name);
  return length > 5 && strcmp(entry->d_name + length - 5, ".lane") == 0;
}

static void load(const char *folder) {
  struct dirent **entries;
  int n = scandir(folder, &entries, is_lane, alphasort);
  CHECK(n >= 0 && n < MOST_INPUTS / 2);
  for (int i = 0; i < n; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    (void)fread(inputs[n_inputs++].bytes, 1, INPUT, file);
    fclose(file);
    free(entries[i]);
  }
  free(entries);
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: fuzz_lane CORPUS ROUNDS [--grow]\n"), 2;
  int grow = argc > 3 && strcmp(argv[3], "--grow") == 0;
  uint64_t rounds_left = strtoull(argv[2], NULL, 10), rounds_made = rounds_left;
  fp_random random = {20};
  for (uint64_t seed = 1; seed <= 16; seed++) plant(seed);
  load(argv[1]);
  int n_given = n_inputs;
  for (int i = 0; i < n_given; i++) run(&inputs[i]);
  CHECK(n_reached > 20); /* lane.c was compiled to tell */
  uint32_t before = n_reached;
  while (rounds_left--) {
    input made = inputs[random_below(&random, (uint64_t)n_inputs)];
    mutate(&made, &inputs[random_below(&random, (uint64_t)n_inputs)], &random);
    uint32_t was = n_reached;
    run(&made);
    if (n_reached == was || n_inputs == MOST_INPUTS) continue;
    inputs[n_inputs++] = made;
    if (grow) keep(argv[1], &made);
  }
  printf("%d inputs, %" PRIu64 " mutations, %" PRIu32 " edges of lane.c, %" PRIu32 " of them by mutation\n",
         n_given, rounds_made, n_reached, n_reached - before);
  return 0;
}
