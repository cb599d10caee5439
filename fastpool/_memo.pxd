"""Numbers by address: open addressing, at most half full, emptied by one addition."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef enum:
    MEMO_PLACES = 1 << 8
    LARGE_PLACES = 1 << 14  # a memo of more is not kept


cdef struct Entry:
    const void *key
    uint32_t number
    uint32_t age  # of the memo when it was written: entries of another age are empty

cdef struct Memo:  # numbers by address: open addressing, at most half full, emptied by one addition
    Entry *entries
    uint64_t mask   # places - 1
    uint64_t count
    uint32_t age


cdef inline int memo_open(Memo *memo, uint64_t places=MEMO_PLACES) except -1:
    memo.entries = <Entry *>calloc(places, sizeof(Entry))
    if memo.entries is NULL:
        raise MemoryError("fastpool: no memory to remember objects by")
    memo.mask = places - 1
    memo.count = 0
    memo.age = 1
    return 0

cdef inline Entry *memo_place(const Memo *memo, const void *key) noexcept:
    """The entry of a key, or the empty one where it would be."""
    cdef uint64_t at = (<uint64_t>key >> 4) * <uint64_t>0x9E3779B97F4A7C15
    cdef Entry *entry
    at ^= at >> 32
    while True:
        entry = &memo.entries[at & memo.mask]
        if entry.age != memo.age or entry.key == key:
            return entry
        at += 1

cdef inline int memo_add(Memo *memo, Entry *place, const void *key, uint32_t number) except -1:
    """Give a key that is not there a number; `place` is from memo_place."""
    cdef Memo larger
    cdef uint64_t i
    cdef Entry *entry
    if 2 * memo.count >= memo.mask:
        memo_open(&larger, 2 * (memo.mask + 1))
        for i in range(memo.mask + 1):
            if memo.entries[i].age == memo.age:
                entry = memo_place(&larger, memo.entries[i].key)
                entry[0] = memo.entries[i]
                entry.age = larger.age
        larger.count = memo.count
        free(memo.entries)
        memo[0] = larger
        place = memo_place(memo, key)
    place.key = key
    place.number = number
    place.age = memo.age
    memo.count += 1
    return 0

cdef inline void memo_clear(Memo *memo) noexcept:
    cdef Entry *smaller
    memo.count = 0
    memo.age += 1
    if memo.age == 0:
        memset(memo.entries, 0, (memo.mask + 1) * sizeof(Entry))
        memo.age = 1
    if memo.mask >= LARGE_PLACES:
        smaller = <Entry *>calloc(MEMO_PLACES, sizeof(Entry))
        if smaller is not NULL:
            free(memo.entries)
            memo.entries = smaller
            memo.mask = MEMO_PLACES - 1
            memo.age = 1
