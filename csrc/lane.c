#include "lane.h"

#include "checksum.h"
#include "points.h"

#define HEADER  ((uint64_t)sizeof(fp_record))
#define PAYLOAD (UINT32_MAX & ~UINT32_C(7)) /* a record's `capacity` and `used` are 32 bits wide */
#define COUNT   UINT32_C(0x7fffffff)        /* and its count 31 */

/* Where the record after the one at `position` begins. Fewer bytes than a header at the ring's end are skipped:
 * writer and reader both place records by this function and nothing else. */
static uint64_t next_position(uint64_t position, uint64_t used, uint64_t ring_bytes) {
  uint64_t next = position + HEADER + fp_align(used, 8);
  uint64_t rest = ring_bytes - (next & (ring_bytes - 1));
  return rest < HEADER ? next + rest : next;
}

uint16_t fp_record_seal(const fp_record *header, uint16_t kind) {
  uint64_t sum = (uint64_t)kind << 48 | (uint64_t)header->phase << 40 | (uint64_t)header->job << 32;
  sum = fp_mix(fp_mix(fp_mix(sum | header->capacity) ^ header->first) ^ header->base);
  return (uint16_t)(sum >> (48 + FP_KIND_BITS) << FP_KIND_BITS | kind);
}

/* ------------------------------------------------------------------ writer */

void fp_writer_attach(fp_writer *writer, const fp_segment *segment, uint32_t worker) {
  fp_lane *lane = fp_lane_of(segment, worker);
  fp_control *control = fp_control_of(segment, worker);
  *writer = (fp_writer){
      .lane = lane,
      .control = control,
      .ring = fp_ring_of(segment, worker),
      .ring_bytes = segment->ring_bytes,
      .position = atomic_load_explicit(&control->tail, memory_order_acquire),
      .committed = atomic_load_explicit(&lane->committed, memory_order_relaxed),
      .fence_each = (int)segment->fence_each,
  };
}

static fp_record *record_at(const fp_writer *writer, uint64_t position) {
  return (fp_record *)(void *)(writer->ring + (position & (writer->ring_bytes - 1)));
}

static uint32_t used_of(const fp_writer *writer) {
  return (uint32_t)(writer->at - (unsigned char *)(writer->record + 1));
}

static uint64_t next_of(const fp_writer *writer) {
  if (!writer->record) return writer->position;
  return next_position(writer->position, used_of(writer), writer->ring_bytes);
}

/* Where a record with `need` bytes of payload can begin, and the most payload it can have there: without end of
 * the ring, and without unread bytes. 0: not enough room now. */
static int place(const fp_writer *writer, uint64_t need, uint64_t *start, uint64_t *most) {
  uint64_t ring_bytes = writer->ring_bytes;
  uint64_t next = next_of(writer);
  /* Acquire: the reader's last reads come before this worker writes there again. */
  uint64_t tail = atomic_load_explicit(&writer->control->tail, memory_order_acquire);
  uint64_t rest = ring_bytes - (next & (ring_bytes - 1));
  if (rest < HEADER + need) {
    next += rest; /* behind a PAD */
    rest = ring_bytes;
  }
  if (next + HEADER + need > tail + ring_bytes) return 0;
  uint64_t free = tail + ring_bytes - next;
  *most = (rest < free ? rest : free) - HEADER;
  *start = next;
  return 1;
}

static fp_record *write_record(const fp_writer *writer, uint64_t position, fp_record header) {
  fp_record *record = record_at(writer, position);
  atomic_store_explicit(&record->closed, header.closed, memory_order_relaxed);
  record->first = header.first;
  record->base = writer->committed;
  record->capacity = header.capacity;
  record->phase = header.phase;
  record->job = header.job;
  record->kind = fp_record_seal(record, header.kind);
  return record;
}

static void write_pad(const fp_writer *writer, uint64_t bytes) {
  uint32_t used = (uint32_t)(bytes - HEADER);
  write_record(writer, writer->position,
               (fp_record){.closed = FP_CLOSED | used, .capacity = used, .kind = FP_KIND_PAD});
}

int fp_writer_open(fp_writer *writer, uint16_t kind, uint8_t phase, uint64_t job, uint64_t first,
                   uint32_t need, uint32_t want) {
  uint64_t start, most;
  fp_writer_close(writer);
  if (need > want || need > fp_writer_largest(writer)) return FP_MISUSE;
  if (kind == FP_KIND_PAD || kind >= FP_KINDS || phase >= FP_PHASES) return FP_MISUSE;
  if (!place(writer, fp_align(need, 8), &start, &most)) return FP_FULL;
  if (start != writer->position) write_pad(writer, start - writer->position);
  if (most > fp_align(want, 8)) most = fp_align(want, 8);
  if (most > PAYLOAD) most = PAYLOAD;
  fp_record header = {
      .first = first, .capacity = (uint32_t)most, .kind = kind, .phase = phase, .job = (uint8_t)job};
  writer->position = start;
  writer->record = write_record(writer, start, header);
  writer->at = (unsigned char *)(writer->record + 1);
  writer->end = writer->at + most;
  fp_tally(writer->lane->opened);
  /* Release: publishes the header, and the PAD before it. */
  atomic_store_explicit(&writer->lane->head, start + HEADER, memory_order_release);
  FP_POINT(RECORD);
  return 0;
}

void fp_writer_close(fp_writer *writer) {
  if (!writer->record) return;
  uint64_t used = used_of(writer), count = writer->committed - writer->record->base;
  FP_POINT(CLOSING);
  fp_tally(writer->lane->closed);
  /* Release, and after the last commit: who sees a record closed sees all its items. */
  atomic_store_explicit(&writer->record->closed, FP_CLOSED | count << 32 | used, memory_order_release);
  writer->position = next_position(writer->position, used, writer->ring_bytes);
  writer->record = NULL;
  writer->at = writer->end = NULL;
}

int fp_writer_has_room(const fp_writer *writer, uint32_t need) {
  uint64_t start, most;
  return need <= fp_writer_largest(writer) && place(writer, fp_align(need, 8), &start, &most);
}

/* Empty of a quarter of the ring is enough even behind a PAD: 2 * (HEADER + ring / 4) <= ring. */
uint32_t fp_writer_largest(const fp_writer *writer) {
  uint64_t quarter = writer->ring_bytes / 4;
  return quarter < PAYLOAD ? (uint32_t)quarter : PAYLOAD;
}

int fp_writer_half_full(const fp_writer *writer) {
  uint64_t tail = atomic_load_explicit(&writer->control->tail, memory_order_acquire);
  return next_of(writer) - tail > writer->ring_bytes / 2;
}

/* ------------------------------------------------------------------ reader */

void fp_reader_attach(fp_reader *reader, const fp_segment *segment, uint32_t worker) {
  fp_control *control = fp_control_of(segment, worker);
  uint64_t tail = atomic_load_explicit(&control->tail, memory_order_relaxed);
  *reader = (fp_reader){
      .lane = fp_lane_of(segment, worker),
      .control = control,
      .ring = fp_ring_of(segment, worker),
      .ring_bytes = segment->ring_bytes,
      .position = tail,
      .released = tail,
  };
}

/* The fewest bytes an item of each kind has. */
static const uint8_t item_bytes[FP_KINDS] = {
    [FP_KIND_INT64] = 8,
    [FP_KIND_FLOAT64] = 8,
    [FP_KIND_BOOL] = 1,
    [FP_KIND_STR] = sizeof(fp_item),
    [FP_KIND_BYTES] = sizeof(fp_item),
    [FP_KIND_PICKLE] = sizeof(fp_item) + sizeof(fp_summed),
    [FP_KIND_BLOCK] = sizeof(fp_block_item),
    [FP_KIND_FRAGMENT] = sizeof(fp_fragment),
    [FP_KIND_ERROR] = sizeof(fp_item) + sizeof(fp_summed),
    [FP_KIND_PACKED] = sizeof(fp_item) + sizeof(fp_summed),
    [FP_KIND_TAGGED] = sizeof(fp_item) + sizeof(fp_summed),
    [FP_KIND_OBJECT] = 8,
};

static const unsigned char *payload_of(const fp_reader *reader) {
  return reader->ring + (reader->position & (reader->ring_bytes - 1)) + HEADER;
}

static const fp_record *shared_header(const fp_reader *reader) {
  return (const fp_record *)(const void *)(payload_of(reader) - HEADER);
}

/* Copy the header at position to private memory, then check the copy. */
static int enter_record(fp_reader *reader, uint64_t head) {
  if (head - reader->position < HEADER) return FP_DAMAGED;
  const fp_record *shared = shared_header(reader);
  reader->header = (fp_record){
      .first = shared->first,
      .base = shared->base,
      .capacity = shared->capacity,
      .kind = shared->kind,
      .phase = shared->phase,
      .job = shared->job,
  };
  fp_record *header = &reader->header;
  uint16_t kind = fp_kind_of(header);
  if (header->kind != fp_record_seal(header, kind)) return FP_DAMAGED;
  header->kind = kind;
  uint64_t rest = reader->ring_bytes - (reader->position & (reader->ring_bytes - 1)) - HEADER;
  if (header->kind >= FP_KINDS || header->phase >= FP_PHASES) return FP_DAMAGED;
  if (header->base != reader->taken) return FP_DAMAGED;
  if (header->capacity % 8 || header->capacity > rest) return FP_DAMAGED;
  if (header->kind == FP_KIND_PAD && header->capacity != rest) return FP_DAMAGED;
  reader->in_record = 1;
  reader->used = reader->items = 0;
  return 0;
}

/* What the record being read has now: items in all, and the bytes in which they lie. */
typedef struct {
  int closed;
  uint32_t items;
  uint32_t bytes;
} extent;

/* `committed` was loaded before: an item that it counts and that is not of this record would have shown `closed`. */
static int measure_record(const fp_reader *reader, uint64_t committed, uint64_t head, extent *now) {
  const fp_record *header = &reader->header;
  uint64_t closed = atomic_load_explicit(&shared_header(reader)->closed, memory_order_acquire);
  uint64_t items = committed - header->base;
  if (closed & FP_CLOSED) {
    items = closed >> 32 & COUNT;
    *now = (extent){1, (uint32_t)items, (uint32_t)closed};
    if (items > committed - header->base) /* the latest of them were committed after that load */
      committed = atomic_load_explicit(&reader->lane->committed, memory_order_acquire);
    if (committed < header->base || items > committed - header->base) return FP_DAMAGED;
    if (now->bytes > header->capacity) return FP_DAMAGED;
  } else {
    if (closed || items > COUNT) return FP_DAMAGED;
    *now = (extent){0, (uint32_t)items, header->capacity};
    /* Only the newest record is open, and a PAD never is. */
    if (head != reader->position + HEADER || header->kind == FP_KIND_PAD) return FP_DAMAGED;
  }
  if (header->kind == FP_KIND_PAD && (items || now->bytes != header->capacity)) return FP_DAMAGED;
  if (now->items < reader->items || now->bytes < reader->used) return FP_DAMAGED;
  uint64_t items_left = now->items - reader->items;
  return items_left * item_bytes[header->kind] > now->bytes - reader->used ? FP_DAMAGED : 0;
}

/* A closed record, all items taken: on to the next one. */
static int pass_record(fp_reader *reader, const extent *now) {
  if (reader->header.kind != FP_KIND_PAD && reader->used != now->bytes) return FP_DAMAGED;
  reader->position = next_position(reader->position, now->bytes, reader->ring_bytes);
  reader->in_record = 0;
  reader->released = reader->position;
  /* Release: after this store the worker may overwrite every byte before it. */
  atomic_store_explicit(&reader->control->tail, reader->released, memory_order_release);
  return 0;
}

static void fill_view(const fp_reader *reader, const extent *now, fp_view *view) {
  const unsigned char *payload = payload_of(reader);
  *view = (fp_view){
      .kind = reader->header.kind,
      .phase = reader->header.phase,
      .job = reader->header.job,
      .count = now->items - reader->items,
      .first = reader->header.first + reader->items,
      .at = payload + reader->used,
      .end = payload + now->bytes,
  };
}

int fp_reader_look(fp_reader *reader, fp_view *view) {
  extent now;
  /* `committed` before everything else: each item it counts lies in a record that `head` is past. `head` once, so
   * that a look ends however fast the writer is. */
  uint64_t committed = atomic_load_explicit(&reader->lane->committed, memory_order_acquire);
  uint64_t head = atomic_load_explicit(&reader->lane->head, memory_order_acquire);
  uint64_t promised = committed;
  if (committed < reader->taken || head % 8) return FP_DAMAGED;
  if (head > reader->position && head - reader->released > reader->ring_bytes) return FP_DAMAGED;
  while (reader->in_record || head > reader->position) {
    if (!reader->in_record && enter_record(reader, head) < 0) return FP_DAMAGED;
    if (measure_record(reader, committed, head, &now) < 0) return FP_DAMAGED;
    if (now.items > reader->items) {
      fill_view(reader, &now, view);
      return 1;
    }
    if (!now.closed) return 0;
    if (pass_record(reader, &now) < 0) return FP_DAMAGED;
    committed = atomic_load_explicit(&reader->lane->committed, memory_order_acquire);
    if (committed < reader->taken) return FP_DAMAGED;
  }
  return promised > reader->taken ? FP_DAMAGED : 0;
}

int fp_reader_take(fp_reader *reader, uint32_t count, uint32_t bytes) {
  if (!reader->in_record) return FP_MISUSE;
  if (bytes > reader->header.capacity - reader->used || count > COUNT - reader->items) return FP_DAMAGED;
  reader->used += bytes;
  reader->items += count;
  reader->taken += count;
  return 0;
}

/* ------------------------------------------------------------------ between two writers */

void fp_lane_reset(fp_reader *reader) {
  fp_lane *lane = reader->lane;
  fp_control *control = reader->control;
  atomic_store_explicit(&lane->committed, 0, memory_order_relaxed);
  atomic_store_explicit(&lane->head, 0, memory_order_relaxed);
  atomic_store_explicit(&control->tail, 0, memory_order_relaxed);
  atomic_store_explicit(&control->wake_at, FP_NEVER, memory_order_relaxed);
  atomic_store_explicit(&control->command, FP_CMD_NONE, memory_order_relaxed);
  atomic_store_explicit(&lane->bell.sleeping, 0, memory_order_release);
  reader->position = reader->taken = reader->released = 0;
  reader->in_record = 0;
}
