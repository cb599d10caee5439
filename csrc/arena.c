#include "arena.h"

#include <errno.h>
#include <string.h>

#include "checksum.h"
#include "platform.h"
#include "points.h"

#define HEADER       ((uint64_t)sizeof(fp_block))
#define BYTES_MAX    (UINT64_C(1) << 46) /* a segment is never longer: half of a 47-bit address space */
#define HEAP_FLOOR   (UINT64_C(1) << 20)
#define LANES_MAX    UINT32_C(65535)
#define RING_MIN     UINT64_C(1024)
#define RING_MAX     (UINT64_C(1) << 31)
#define GUARD_FACTOR UINT64_C(0x9e3779b97f4a7c15)

/* ------------------------------------------------------------------ the segment */

typedef struct {
  uint64_t feed, applies, controls, lines, lanes, heaps, rings, heap; /* offsets */
} layout;

static layout lay_out(uint32_t lanes, uint64_t ring_bytes) {
  layout at;
  at.feed = fp_align(sizeof(fp_segment), FP_LINE_BYTES);
  at.applies = fp_align(at.feed + FP_FEED_SLOTS * sizeof(fp_feed_slot), FP_LINE_BYTES);
  at.controls = at.applies + FP_APPLY_SLOTS * sizeof(fp_apply_slot);
  at.lines = fp_align(at.controls + lanes * sizeof(fp_control), fp_page_bytes());
  at.lanes = fp_align(at.lines + lanes * sizeof(fp_line), FP_LINE_BYTES);
  at.heaps = fp_align(at.lanes + lanes * sizeof(fp_lane), FP_LINE_BYTES);
  at.rings = fp_align(at.heaps + (lanes + 1) * sizeof(fp_heap), fp_page_bytes());
  at.heap = fp_align(at.rings + lanes * ring_bytes, fp_page_bytes());
  return at;
}

/* Errors that mean "too much", and not "never". */
static int is_refusal(int error) {
  return error == -ENOMEM || error == -EFBIG || error == -ENOSPC || error == -EPERM || error == -EINVAL ||
         error == -EAGAIN || error == -EOVERFLOW;
}

static int reserve(fp_arena *arena, uint64_t bytes) {
  void *address;
  if (bytes > BYTES_MAX) return -EOVERFLOW;
  if (bytes > fp_memory_largest()) return -EFBIG;
  int fd = fp_memory_create(bytes);
  if (fd < 0) return fd;
  int error = fp_memory_map(fd, bytes, &address);
  if (error < 0) {
    fp_memory_close(fd);
    return error;
  }
  *arena = (fp_arena){.segment = address, .bytes = bytes, .fd = fd};
  return 0;
}

static const uint64_t probe_word = FP_MAGIC;

static void init_segment(fp_arena *arena, const layout *at, uint32_t lanes, uint64_t ring_bytes, uint64_t cap,
                         uint64_t heap_bytes) {
  fp_segment *segment = arena->segment;
  segment->bytes = arena->bytes;
  segment->cap = cap;
  segment->lanes = lanes;
  segment->fence_each = !fp_barrier_available();
  segment->ring_bytes = ring_bytes;
  segment->lines_at = at->lines;
  segment->lanes_at = at->lanes;
  segment->heaps_at = at->heaps;
  segment->feed_at = at->feed;
  segment->applies_at = at->applies;
  segment->controls_at = at->controls;
  segment->rings_at = at->rings;
  segment->probe = (uint64_t)(uintptr_t)&probe_word;
  for (int channel = 0; channel < FP_CHANNELS; channel++)
    atomic_store_explicit(&segment->gates[channel].claim, FP_INDEX_CLOSED, memory_order_relaxed);
  for (uint32_t i = 0; i < lanes; i++)
    atomic_store_explicit(&fp_control_of(segment, i)->wake_at, FP_NEVER, memory_order_relaxed);
  for (uint32_t i = 0; i <= lanes; i++) {
    fp_heap *heap = fp_heap_of(segment, i);
    heap->start = at->heap + i * heap_bytes;
    heap->end = heap->start + heap_bytes;
    atomic_store_explicit(&heap->top, heap->start, memory_order_relaxed);
  }
  segment->magic = FP_MAGIC;
}

static uint64_t part_of_heap(uint64_t bytes, uint64_t divisor) {
  uint64_t part = fp_align(bytes / divisor, fp_page_bytes());
  return part < HEAP_FLOOR ? HEAP_FLOOR : part;
}

static int protect_constants(fp_segment *segment) { return fp_memory_protect(&segment->magic, FP_PAGE); }

int fp_arena_enter(const fp_arena *arena) {
  return fp_memory_protect(&arena->segment->magic, arena->segment->lines_at - FP_PAGE);
}

int fp_arena_create(fp_arena *arena, uint32_t lanes, uint64_t ring_bytes, uint64_t cap) {
  *arena = (fp_arena){.fd = -1};
  if (lanes == 0 || lanes > LANES_MAX) return -EINVAL;
  if (ring_bytes < RING_MIN || ring_bytes > RING_MAX || (ring_bytes & (ring_bytes - 1))) return -EINVAL;
  layout at = lay_out(lanes, ring_bytes);
  uint64_t heap_bytes = fp_align(cap < BYTES_MAX ? cap : BYTES_MAX, fp_page_bytes());
  int error, scarce = 0;
  while ((error = reserve(arena, at.heap + (lanes + 1) * heap_bytes)) < 0) {
    if (!is_refusal(error) || heap_bytes <= HEAP_FLOOR) return error;
    if (error == -ENOMEM) scarce = 1;
    heap_bytes = part_of_heap(heap_bytes, 2);
  }
  if (scarce && heap_bytes > HEAP_FLOOR) {
    /* That was most of the address space there is: the rest of the process lives on it too. */
    fp_arena_destroy(arena);
    heap_bytes = part_of_heap(heap_bytes, 4);
    if ((error = reserve(arena, at.heap + (lanes + 1) * heap_bytes)) < 0) return error;
  }
  int bounded = fp_memory_is_bounded(arena->fd);
  if (bounded && (error = fp_memory_commit(arena->segment, at.heap)) < 0) {
    fp_arena_destroy(arena);
    return error;
  }
  init_segment(arena, &at, lanes, ring_bytes, cap, heap_bytes);
  arena->segment->bounded = bounded;
  error = protect_constants(arena->segment);
  if (error < 0) fp_arena_destroy(arena);
  return error;
}

int fp_arena_attach(fp_arena *arena, int fd, uint64_t bytes) {
  void *address;
  *arena = (fp_arena){.fd = -1};
  if (bytes < sizeof(fp_segment)) return FP_DAMAGED;
  int error = fp_memory_map(fd, bytes, &address);
  if (error < 0) return error;
  fp_segment *segment = address;
  if (segment->magic != FP_MAGIC || segment->bytes != bytes) {
    fp_memory_unmap(address, bytes);
    return FP_DAMAGED;
  }
  error = protect_constants(segment);
  if (error < 0) {
    fp_memory_unmap(address, bytes);
    return error;
  }
  *arena = (fp_arena){.segment = segment, .bytes = bytes, .fd = fd};
  return 0;
}

int fp_arena_shed(fp_arena *arena, const uint64_t *held, uint64_t n) {
  fp_segment *segment = arena->segment;
  if (arena->fd >= 0) fp_memory_close(arena->fd);
  arena->fd = -1;
  for (uint32_t owner = 0; owner <= segment->lanes; owner++) {
    int error = fp_heap_sweep(segment, owner, held, n);
    if (error < 0) return error;
    fp_heap_trim(segment, owner, 0);
  }
  return fp_memory_give_back(fp_at(segment, segment->rings_at), segment->lanes * segment->ring_bytes);
}

void fp_arena_destroy(fp_arena *arena) {
  if (arena->segment) fp_memory_unmap(arena->segment, arena->bytes);
  if (arena->fd >= 0) fp_memory_close(arena->fd);
  *arena = (fp_arena){.fd = -1};
}

/* ------------------------------------------------------------------ blocks */

static uint32_t guard_of(uint64_t offset) { return (uint32_t)(fp_mix(offset * GUARD_FACTOR) >> 16) | 1; }

static uint64_t size_of(const fp_block *block) {
  return atomic_load_explicit(&block->size, memory_order_acquire);
}

static int is_free(const fp_block *block) { /* acquire: the holder has done with its bytes */
  return atomic_load_explicit(&block->state, memory_order_acquire) == FP_BLOCK_FREE;
}

/* The block at `offset` of a list that ends at `top`, or NULL if no block can be there. */
static fp_block *block_at(const fp_segment *segment, uint64_t offset, uint64_t top, uint64_t *size) {
  if (offset % FP_LINE_BYTES || offset > top || top - offset < HEADER) return NULL;
  fp_block *block = fp_at(segment, offset);
  uint32_t state = atomic_load_explicit(&block->state, memory_order_acquire);
  *size = size_of(block);
  if (block->guard != guard_of(offset) || (state != FP_BLOCK_FREE && state != FP_BLOCK_USED)) return NULL;
  if (*size < HEADER || *size % FP_LINE_BYTES || *size > top - offset) return NULL;
  return block;
}

static uint64_t heaps_start(const fp_segment *segment) {
  return fp_align(segment->rings_at + segment->lanes * segment->ring_bytes, fp_page_bytes());
}

/* How long each heap may become. */
static uint64_t room_of(const fp_segment *segment) {
  return (segment->bytes - heaps_start(segment)) / (segment->lanes + 1);
}

/* The heap and its top, or NULL if its words are damaged. */
static fp_heap *heap_at(const fp_segment *segment, uint32_t owner, uint64_t *top) {
  if (owner > segment->lanes) return NULL;
  fp_heap *heap = fp_heap_of(segment, owner);
  uint64_t first = heaps_start(segment), room = room_of(segment);
  *top = atomic_load(&heap->top);
  if (heap->start != first + owner * room || heap->end != heap->start + room) return NULL;
  if (heap->start > *top || *top > heap->end || *top % FP_LINE_BYTES) return NULL;
  return heap;
}

/* The heap in which a block lies. */
static inline fp_heap *holder_of(const fp_segment *segment, uint64_t offset) {
  uint64_t first = heaps_start(segment), room = room_of(segment);
  uint64_t owner = (offset - first) / room;
  return fp_heap_of(segment, owner < segment->lanes ? (uint32_t)owner : segment->lanes);
}

/* A free block at `offset`, where until now no list has a header. */
static void write_header(fp_segment *segment, uint64_t offset, uint64_t size, uint64_t dirty) {
  fp_block *block = fp_at(segment, offset);
  atomic_store_explicit(&block->size, size, memory_order_relaxed);
  atomic_store_explicit(&block->state, FP_BLOCK_FREE, memory_order_relaxed);
  block->guard = guard_of(offset);
  block->asked = 0;
  block->dirty = dirty;
}

static uint64_t dirty_of(const fp_block *block, uint64_t size) {
  return block->dirty < size ? block->dirty : size;
}

/* Join the free neighbours behind a free block to it. Its size then, or 0: the list is not whole. */
static uint64_t join(fp_segment *segment, uint64_t offset, uint64_t top) {
  uint64_t size, next;
  fp_block *block = block_at(segment, offset, top, &size);
  while (block && offset + size < top) {
    fp_block *neighbour = block_at(segment, offset + size, top, &next);
    if (!neighbour) return 0;
    if (!is_free(neighbour)) break;
    uint64_t dirty = dirty_of(neighbour, next);
    if (dirty > HEADER) block->dirty = size + dirty; /* before size: never says less than is touched */
    size += next;
    atomic_store_explicit(&block->size, size,
                          memory_order_release); /* the neighbour is gone, by this store */
  }
  return block ? size : 0;
}

/* Cut a free block to `keep` bytes; the rest is a free block of its own. */
static void split(fp_segment *segment, uint64_t offset, uint64_t keep) {
  fp_block *block = fp_at(segment, offset);
  uint64_t size = size_of(block), dirty = dirty_of(block, size);
  write_header(segment, offset + keep, size - keep, dirty > keep + HEADER ? dirty - keep : HEADER);
  atomic_store_explicit(&block->size, keep, memory_order_release); /* the rest appears, by this store */
}

/* ------------------------------------------------------------------ the cap */

/* 0, FP_FULL: over it, or FP_DAMAGED. */
static int check_cap(const fp_segment *segment, const fp_heap *grown) {
  /* A quarter is the parent's alone, and the last eighth too, whatever the parent's heap holds: what workers keep warm must
   * not leave their next arguments without room. */
  uint64_t workers = 0, parent = atomic_load(&fp_heap_of(segment, segment->lanes)->charged);
  uint64_t room = room_of(segment);
  int is_parents = grown == fp_heap_of(segment, segment->lanes);
  uint64_t all = segment->cap - (is_parents ? 0 : segment->cap / FP_RESERVE);
  for (uint32_t i = 0; i < segment->lanes; i++) {
    uint64_t charged = atomic_load(&fp_heap_of(segment, i)->charged);
    if (charged > room) return FP_DAMAGED; /* no heap can grow so far */
    workers += charged;
  }
  if (parent > room) return FP_DAMAGED;
  return workers > segment->cap - segment->cap / 4 || workers + parent > all ? FP_FULL : 0;
}

/* Count the heap as `bytes` long. More may stay charged from before: pages that could not be given back. */
static int charge(const fp_segment *segment, fp_heap *heap, uint64_t bytes) {
  uint64_t before = atomic_load(&heap->charged);
  if (bytes <= before) return 0;
  /* Charge, fence, look: of two heaps that grow at once at least one sees the other. */
  atomic_store(&heap->charged, bytes);
  fp_fence();
  int error = check_cap(segment, heap);
  if (error < 0) atomic_store(&heap->charged, before);
  return error;
}

/* Before the first store to bytes that may lie in pages which do not exist. */
static int have_pages(const fp_segment *segment, uint64_t offset, uint64_t bytes) {
  return !segment->bounded || fp_memory_commit(fp_at(segment, offset), bytes) == 0;
}

/* Put a free block of `bytes` on top. */
static int raise_top(fp_segment *segment, fp_heap *heap, uint64_t bytes) {
  uint64_t top = atomic_load(&heap->top), charged = atomic_load(&heap->charged);
  if (bytes > heap->end - top) return FP_FULL;
  int error = charge(segment, heap, top + bytes - heap->start);
  if (error < 0) return error;
  if (!have_pages(segment, top, bytes)) {
    atomic_store(&heap->charged, charged);
    return FP_FULL;
  }
  write_header(segment, top, bytes, HEADER);
  atomic_store(&heap->top, top + bytes); /* after the header: what is below top is always a whole list */
  return 0;
}

/* ------------------------------------------------------------------ the owner */

/* Where a free block of at least `need` bytes is; else *offset is that of the free block that ends at top (of *size
 * bytes), or top itself (*size 0). 1: found, 0: not. */
static int first_fit(fp_segment *segment, fp_heap *heap, uint64_t need, uint64_t *offset, uint64_t *size) {
  uint64_t top = atomic_load(&heap->top), at = heap->start;
  *size = 0;
  *offset = top;
  while (at < top) {
    fp_block *block = block_at(segment, at, top, size);
    if (!block) return FP_DAMAGED;
    int can_use = is_free(block);
    if (can_use && !(*size = join(segment, at, top))) return FP_DAMAGED;
    *offset = at;
    if (can_use && *size >= need) return 1;
    at += *size;
    if (!can_use) *offset = at, *size = 0;
  }
  return 0;
}

static void take(fp_segment *segment, uint64_t offset, uint64_t size, uint64_t need, uint64_t bytes) {
  fp_block *block = fp_at(segment, offset);
  if (size - need >= FP_BLOCK_MIN) split(segment, offset, need);
  block->asked = bytes;
  block->dirty = size_of(block);
  atomic_store_explicit(&block->state, FP_BLOCK_USED, memory_order_release);
}

int fp_heap_alloc(fp_segment *segment, uint32_t owner, uint64_t bytes, uint64_t *offset) {
  uint64_t top, at, size;
  fp_heap *heap = heap_at(segment, owner, &top);
  if (!heap) return FP_DAMAGED;
  if (bytes > heap->end - heap->start) return FP_FULL;
  uint64_t need = HEADER + fp_align(bytes, FP_LINE_BYTES);
  int found = first_fit(segment, heap, need, &at, &size);
  if (found < 0) return found;
  if (!found) {
    int error = raise_top(segment, heap, need - size);
    if (error < 0) return error;
    size = join(segment, at, at + need);
    if (size != need) return FP_DAMAGED;
  } else if (!have_pages(segment, at, size < need + HEADER ? size : need + HEADER)) {
    return FP_FULL;
  }
  take(segment, at, size, need, bytes);
  fp_tally(heap->taken);
  FP_POINT(ALLOCATED);
  *offset = at + HEADER;
  return 0;
}

/* Give back the whole pages in [from, to); 0 or an errno negated. */
static int give_back(fp_segment *segment, uint64_t from, uint64_t to, uint64_t *given) {
  uint64_t page = fp_page_bytes();
  from = fp_align(from, page);
  to &= ~(page - 1);
  if (from >= to) return 0;
  int error = fp_memory_give_back(fp_at(segment, from), to - from);
  if (error == 0) *given += to - from;
  return error;
}

/* The free block at `offset` ends at top: lower top so that `keep` bytes of it stay. */
static int lower_top(fp_segment *segment, fp_heap *heap, uint64_t offset, uint64_t size, uint64_t keep,
                     uint64_t *given) {
  uint64_t old = offset + size;
  keep = fp_align(keep, fp_page_bytes());
  if (keep >= size) return 0;
  if (keep) split(segment, offset, keep);
  atomic_store(&heap->top, offset + keep);
  /* Uncharge last: what is touched lies below start + charged at every instruction, see fp_heap_adopt. */
  int error = give_back(segment, offset + keep, fp_align(old, fp_page_bytes()), given);
  if (error == 0) atomic_store(&heap->charged, offset + keep - heap->start);
  return error;
}

/* Trim one free block, of which `keep` bytes may stay warm. */
static int trim_block(fp_segment *segment, fp_heap *heap, uint64_t offset, uint64_t size, uint64_t keep,
                      uint64_t *given) {
  fp_block *block = fp_at(segment, offset);
  uint64_t dirty = dirty_of(block, size);
  if (offset + size == atomic_load(&heap->top)) return lower_top(segment, heap, offset, size, keep, given);
  if (keep < HEADER) keep = HEADER;
  if (dirty <= keep) return 0;
  int error = give_back(segment, offset + keep, offset + dirty, given);
  if (error == 0) block->dirty = keep;
  return error;
}

uint64_t fp_heap_trim(fp_segment *segment, uint32_t owner, uint64_t keep) {
  uint64_t top, size, given = 0;
  fp_heap *heap = heap_at(segment, owner, &top);
  if (!heap) return 0;
  for (uint64_t at = heap->start; at < top; at += size) {
    fp_block *block = block_at(segment, at, top, &size);
    if (!block) break;
    if (!is_free(block)) continue;
    if (!(size = join(segment, at, top))) break;
    uint64_t dirty = dirty_of(block, size);
    if (trim_block(segment, heap, at, size, keep, &given) < 0) break;
    keep -= dirty < keep ? dirty : keep;
  }
  return given;
}

int fp_heap_adopt(fp_segment *segment, uint32_t owner) {
  uint64_t top, size, given = 0;
  fp_heap *heap = heap_at(segment, owner, &top);
  if (!heap) return FP_DAMAGED;
  for (uint64_t at = heap->start; at < top; at += size)
    if (!block_at(segment, at, top, &size)) return FP_DAMAGED;
  /* Its owner may have died with more charged, and touched, than lies below top. */
  uint64_t charged = atomic_load(&heap->charged), room = heap->end - heap->start;
  if (charged > room) charged = room;
  if (give_back(segment, top, fp_align(heap->start + charged, fp_page_bytes()), &given) == 0)
    atomic_store(&heap->charged, top - heap->start);
  else if (charged < top - heap->start)
    atomic_store(&heap->charged, top - heap->start);
  return 0;
}

/* ------------------------------------------------------------------ others */

static int is_held(const uint64_t *held, uint64_t n, uint64_t offset) {
  uint64_t low = 0, high = n;
  while (low < high) {
    uint64_t middle = low + (high - low) / 2;
    if (held[middle] < offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low < n && held[low] == offset;
}

static int mark_free(fp_block *block) {
  uint32_t used = FP_BLOCK_USED;
  /* Release: the holder's last reads come before the owner writes here again. An exchange, because of two
   * holders only one may free. */
  return atomic_compare_exchange_strong_explicit(&block->state, &used, FP_BLOCK_FREE, memory_order_release,
                                                 memory_order_relaxed);
}

int fp_heap_sweep(fp_segment *segment, uint32_t owner, const uint64_t *held, uint64_t n) {
  uint64_t top, size;
  fp_heap *heap = heap_at(segment, owner, &top);
  if (!heap) return FP_DAMAGED;
  for (uint64_t at = heap->start; at < top; at += size) {
    fp_block *block = block_at(segment, at, top, &size);
    if (!block) return FP_DAMAGED;
    if (!is_held(held, n, at + HEADER) && mark_free(block)) fp_tally(heap->freed);
  }
  return 0;
}

int fp_block_check(const fp_segment *segment, uint32_t owner, uint64_t offset, uint64_t bytes) {
  uint64_t top, size;
  fp_heap *heap = heap_at(segment, owner, &top);
  if (!heap || offset < heap->start + HEADER) return 0;
  fp_block *block = block_at(segment, offset - HEADER, top, &size);
  if (!block || is_free(block)) return 0;
  return bytes <= block->asked && block->asked <= size - HEADER;
}

int fp_block_free(fp_segment *segment, uint64_t offset) {
  uint64_t size;
  if (offset < heaps_start(segment) + HEADER) return FP_DAMAGED;
  fp_block *block = block_at(segment, offset - HEADER, segment->bytes, &size);
  if (!block || !mark_free(block)) return FP_DAMAGED;
  fp_tally(holder_of(segment, offset)->freed);
  return 0;
}

int fp_heap_measure(const fp_segment *segment, uint32_t owner, fp_heap_stats *stats) {
  uint64_t top, size;
  fp_heap *heap = heap_at(segment, owner, &top);
  *stats = (fp_heap_stats){0};
  if (!heap) return FP_DAMAGED;
  stats->top = top;
  stats->charged = atomic_load(&heap->charged);
  for (uint64_t at = heap->start; at < top; at += size) {
    fp_block *block = block_at(segment, at, top, &size);
    if (!block) return FP_DAMAGED;
    int free = is_free(block);
    stats->blocks_free += free;
    stats->blocks_used += !free;
    stats->bytes_free += free ? size : 0;
    stats->bytes_used += free ? 0 : size;
  }
  return 0;
}
