/* A segment without heaps and rings, shared with forks, for tests that need only lines, lanes and feed. */
#ifndef FP_PLAIN_SEGMENT_H
#define FP_PLAIN_SEGMENT_H

#include <sys/mman.h>

#include "check.h"
#include "layout.h"

static inline uint64_t plain_bytes(uint32_t lanes) {
  return sizeof(fp_segment) + lanes * (sizeof(fp_line) + sizeof(fp_lane) + sizeof(fp_control)) +
         FP_FEED_SLOTS * sizeof(fp_feed_slot);
}

static inline fp_segment *plain_segment(uint32_t lanes) {
  fp_segment *segment =
      mmap(NULL, plain_bytes(lanes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(segment != MAP_FAILED);
  segment->magic = FP_MAGIC;
  segment->bytes = plain_bytes(lanes);
  segment->lanes = lanes;
  segment->lines_at = sizeof(fp_segment);
  segment->lanes_at = segment->lines_at + lanes * sizeof(fp_line);
  segment->controls_at = segment->lanes_at + lanes * sizeof(fp_lane);
  segment->feed_at = segment->controls_at + lanes * sizeof(fp_control);
  atomic_store(&segment->gates[FP_MAP].claim, FP_INDEX_CLOSED);
  for (uint32_t i = 0; i < lanes; i++) atomic_store(&fp_control_of(segment, i)->wake_at, FP_NEVER);
  return segment;
}

static inline void plain_free(fp_segment *segment) { munmap(segment, segment->bytes); }

#endif
