/* A sum over bytes that tells damage from data, at memory speed; no defence against an adversary.
 * Four lanes of multiply and xor-shift over 64-bit words: the mixing step is the finaliser of MurmurHash3
 * (Appleby, public domain), folded per word. */
#ifndef FP_CHECKSUM_H
#define FP_CHECKSUM_H

#include <stdint.h>
#include <string.h>

static inline uint64_t fp_mix(uint64_t x) {
  x ^= x >> 33;
  x *= UINT64_C(0xff51afd7ed558ccd);
  x ^= x >> 33;
  return x;
}

/* The last 1 to 7 bytes: each is in it at least once. */
static inline uint64_t fp_last_bytes(const unsigned char *at, uint64_t bytes) {
  uint32_t first, last;
  if (bytes < 4) return at[0] | (uint64_t)at[bytes / 2] << 8 | (uint64_t)at[bytes - 1] << 16;
  memcpy(&first, at, 4);
  memcpy(&last, at + bytes - 4, 4);
  return first | (uint64_t)last << 32;
}

static inline uint64_t fp_checksum(const void *data, uint64_t bytes) {
  const unsigned char *at = (const unsigned char *)data;
  uint64_t sum = bytes ^ UINT64_C(0x9e3779b97f4a7c15);
  uint64_t word;
  if (bytes >= 32) {
    uint64_t lane[4] = {bytes, ~bytes, UINT64_C(0x9e3779b97f4a7c15), UINT64_C(0xc2b2ae3d27d4eb4f)};
    while (bytes >= 32) {
      for (int i = 0; i < 4; i++) {
        memcpy(&word, at + 8 * i, 8);
        lane[i] = (lane[i] ^ word) * UINT64_C(0xff51afd7ed558ccd);
        lane[i] ^= lane[i] >> 32;
      }
      at += 32;
      bytes -= 32;
    }
    sum = lane[0] ^ fp_mix(lane[1]) ^ fp_mix(lane[2] + 1) ^ fp_mix(lane[3] + 2);
  }
  while (bytes >= 8) {
    memcpy(&word, at, 8);
    sum = fp_mix(sum ^ word);
    at += 8;
    bytes -= 8;
  }
  if (bytes) sum = fp_mix(sum ^ fp_last_bytes(at, bytes));
  return fp_mix(sum);
}

#endif
