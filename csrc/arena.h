/* The segment: reserving it, and heaps of large blocks in it. README.md, "Arena". */
#ifndef FP_ARENA_H
#define FP_ARENA_H

#include "layout.h"

#define FP_RESERVE    8 /* part of the cap that is for what is on its way to workers: an eighth */
#define FP_WARM_BYTES (UINT64_C(64) << 20) /* free bytes a heap keeps its pages for */
#define FP_BLOCK_MIN  UINT64_C(4096)       /* a rest smaller than this is not split off */

typedef struct { /* private to each process */
  fp_segment *segment;
  uint64_t bytes;
  int fd; /* -1 once closed */
} fp_arena;

/* Make a segment for `lanes` workers: rings of ring_bytes (a power of two), heaps that may use `cap` bytes together.
 * Reserves lanes + 1 heaps of up to `cap` bytes of address space each; halves that while the system refuses.
 * 0 or an errno negated (nothing is left). */
int fp_arena_create(fp_arena *arena, uint32_t lanes, uint64_t ring_bytes, uint64_t cap);
/* Map a segment made by another process from its descriptor. */
int fp_arena_attach(fp_arena *arena, int fd, uint64_t bytes);
/* A worker, first of all: what the parent alone writes becomes read-only here. Whoever writes there by mistake is stopped by
 * the processor. */
int fp_arena_enter(const fp_arena *arena);
/* The only process left, with the blocks in held[0..n-1] (sorted) still in use: close the descriptor, free all other
 * blocks, give their pages and the rings' back. */
int fp_arena_shed(fp_arena *arena, const uint64_t *held, uint64_t n);
void fp_arena_destroy(fp_arena *arena); /* unmap, close; idempotent */

/* Owner: take over a heap whose former owner is gone (or that is new): walk the list, set charged from top.
 * The parent first frees what nobody holds, see fp_heap_sweep. FP_DAMAGED if the list is not whole. */
int fp_heap_adopt(fp_segment *segment, uint32_t owner);
/* Owner: a block of `bytes`; *offset of its data (aligned to 64). FP_FULL: no room in the heap or under the cap.
 * FP_DAMAGED: the list is not whole. */
int fp_heap_alloc(fp_segment *segment, uint32_t owner, uint64_t bytes, uint64_t *offset);
/* Owner: give pages of free blocks back beyond `keep` bytes of free space. Returns the bytes given back. */
uint64_t fp_heap_trim(fp_segment *segment, uint32_t owner, uint64_t keep);
/* Parent, for a heap without an owner: free every USED block whose data offset is not in held[0..n-1] (sorted). */
int fp_heap_sweep(fp_segment *segment, uint32_t owner, const uint64_t *held, uint64_t n);

/* Any reader: is [offset, offset + bytes) the data of a USED block of heap `owner`? 1 or 0. Reads nothing outside the segment. */
int fp_block_check(const fp_segment *segment, uint32_t owner, uint64_t offset, uint64_t bytes);
/* Holder: the block may be used again: after this store its bytes are the owner's. 0 or FP_DAMAGED. */
int fp_block_free(fp_segment *segment, uint64_t offset);

typedef struct {
  uint64_t blocks_used, blocks_free;
  uint64_t bytes_used, bytes_free; /* with headers: together top - start */
  uint64_t top, charged;           /* as in fp_heap */
} fp_heap_stats;
/* Owner, or when nobody allocates there: a list that changes meanwhile may look damaged. */
int fp_heap_measure(const fp_segment *segment, uint32_t owner, fp_heap_stats *stats);

#endif
