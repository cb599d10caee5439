from libc.stdint cimport uint32_t, uint64_t

from fastpool._native cimport Segment, fp_segment


cdef struct Nursery:
    void *plain            # numpy's own allocator, for everything else
    fp_segment *segment
    unsigned char *base    # of the worker's own heap
    unsigned char *end
    uint32_t worker
    size_t wanted          # allocations of this size are served; 0: none
    unsigned char *place   # where the first of them goes, NULL: into a block
    bint place_taken       # and has not been freed
    void *given            # memory that was given away with its array, which is about to die
    bint off               # this process is a fork of the worker
    bint blocks            # the worker has allocated a block, for an array or not, since the loop last set this

cdef Nursery nursery  # of this worker

cdef int install(Segment segment, uint32_t worker) except -1
cdef bint is_block(void *data, uint64_t size) noexcept
