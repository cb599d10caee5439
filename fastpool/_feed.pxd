from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from fastpool._codec cimport Encoder
from fastpool._native cimport Segment, fp_control, fp_lane


cdef int free_blocks(Segment segment, list blocks) except -1


cdef class BufferEncoder(Encoder):
    """Encodes into private memory that grows."""
    cdef fp_lane *lane
    cdef fp_control *control
    cdef list blobs  # items too large for a record: (position of the item, address, bytes, object that owns them)
    cdef uint64_t blob_bytes
    cdef list placed       # offsets of blocks that items of this chunk name
    cdef list kept         # objects whose memory items of this chunk name
    cdef object make_pickler
    cdef bint steady
    cdef bint may_read
    cdef bint may_inherit
    cdef bint unshare
    cdef bint read_forked  # something was left for workers to read in the slow way
    cdef bint unshared     # something was left for them that is not shared any more when they have read it

    cdef uint64_t put_numbers(self, list items, uint64_t start, uint64_t count) except? 0
    cdef int clear(self) except -1
    cdef bint lay_down(self, uint64_t *offset, list blocks, unsigned char *here, uint64_t room) except? True
    cdef bint take_block(self, const void *data, uint64_t size, uint64_t *offset, list blocks) except? True


cdef class ListEncoder(BufferEncoder):
    """Takes elements as they are, for threads."""


cdef class Feed:
    """Input that the parent iterates, encodes in chunks and hands to whoever claims them."""
    cdef Segment segment
    cdef BufferEncoder encoder
    cdef object iterator
    cdef list plain                   # the input, if it is exactly a list
    cdef bint quick                   # no code of the user's runs between elements
    cdef readonly uint64_t tasks      # taken from the iterator so far
    cdef readonly bint exhausted      # the iterator has ended or the limit is reached
    cdef readonly uint64_t published  # chunks
    cdef uint64_t limit
    cdef readonly uint64_t base       # the first unit that is a chunk: those before it are tasks of a range
    cdef readonly uint64_t pending    # tasks encoded but not yet published
    cdef uint64_t pending_first       # the first of them
    cdef uint64_t oldest              # chunk: all before it are collected, or given again
    cdef uint64_t *order              # by chunk, modulo FP_FEED_SLOTS: its first task; if it was given again, the next
    cdef uint64_t *left               # tasks of the chunk that are not collected
    cdef list blocks                  # offsets of the blocks the chunk lies in
    cdef list kept                    # what the chunk refers to
    cdef list again                   # chunks that are out of order: what a dead worker left
    cdef list lost                    # (slot, blocks, kept) of chunks that wait to be given again

    cdef PyObject *next_item(self) except? NULL
    cdef uint64_t chunk_of(self, uint64_t first) except? 0
    cdef int drop(self, uint64_t chunk) except -1
    cdef int collected(self, uint64_t first, uint64_t count) except -1
