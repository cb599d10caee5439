"""numpy's memory in a worker: the next large result is born where the parent will read it.

An allocator for numpy (PyDataMem_SetHandler, numpy's NEP 49) that serves allocations of one size, the one the next
result is expected to have, from shared memory, and leaves all others to the allocator that was there before.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from fastpool._native cimport (
    FP_BLOCK_USED, Segment, Space, block_free, fp_at, fp_block, fp_heap, fp_heap_of, heap_alloc, load, space_of,
)

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct Allocator "PyDataMemAllocator":
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept
        void *(*realloc)(void *ctx, void *at, size_t size) noexcept
        void (*free)(void *ctx, void *at, size_t size) noexcept
    ctypedef struct Handler "PyDataMem_Handler":
        char name[127]
        uint8_t version
        Allocator allocator
    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()

cdef Handler handler  # numpy keeps a pointer to it in every array that was made with it
cdef object former    # the capsule of the allocator that was there before

cdef inline Allocator *plain(void *ctx) noexcept:
    return &(<Handler *>(<Nursery *>ctx).plain).allocator

cdef inline bint is_shared(const void *at) noexcept:
    return space_of(at, 1) is not NULL

cdef inline bint is_own(const Nursery *state, const void *at) noexcept:
    return state.base <= <const unsigned char *>at < state.end

cdef void *from_nursery(Nursery *state, size_t size) noexcept:
    """Shared memory for an allocation, or NULL."""
    cdef uint64_t offset = 0
    if size != state.wanted or state.off:
        return NULL
    if state.place is not NULL:
        if state.place_taken:
            return NULL
        state.place_taken = True
        return state.place
    if heap_alloc(state.segment, state.worker, size, &offset) < 0:
        return NULL
    state.blocks = True
    return <unsigned char *>fp_at(state.segment, offset)

cdef void *take(void *ctx, size_t size) noexcept:
    cdef void *at = from_nursery(<Nursery *>ctx, size)
    return at if at is not NULL else plain(ctx).malloc(plain(ctx).ctx, size)

cdef void *take_zeroed(void *ctx, size_t count, size_t size) noexcept:
    cdef void *at = from_nursery(<Nursery *>ctx, count * size)  # numpy has checked the product
    if at is NULL:
        return plain(ctx).calloc(plain(ctx).ctx, count, size)
    memset(at, 0, count * size)
    return at

cdef void give_back(void *ctx, void *at, size_t size) noexcept:
    cdef Nursery *state = <Nursery *>ctx
    if not is_shared(at):
        plain(ctx).free(plain(ctx).ctx, at, size)
    elif state.off:
        return
    elif at == state.given:
        state.given = NULL
    elif at == state.place:
        state.place_taken = False
    elif is_own(state, at):  # else it is a place of an earlier task, which is the parent's
        block_free(state.segment, <uint64_t>(<unsigned char *>at - <unsigned char *>state.segment))

cdef void *resize(void *ctx, void *at, size_t size) noexcept:
    cdef void *other
    cdef const Space *space = space_of(at, 1)
    if space is NULL:
        return plain(ctx).realloc(plain(ctx).ctx, at, size)
    other = plain(ctx).malloc(plain(ctx).ctx, size)
    if other is not NULL:
        # What lies behind the old array is mapped too, if not its own.
        memcpy(other, at, min(size, <size_t>(space.base + space.bytes - <unsigned char *>at)))
        give_back(ctx, at, 0)
    return other


cdef int install(Segment segment, uint32_t worker) except -1:
    """Take part in numpy's allocations in this thread from now on."""
    global former
    if former is None:  # else this process is a fork of a worker
        former = PyDataMem_GetHandler()
        nursery.plain = PyCapsule_GetPointer(former, "mem_handler")
    nursery.wanted = 0
    nursery.place = nursery.given = NULL
    nursery.place_taken = nursery.off = False
    cdef const fp_heap *heap = fp_heap_of(segment.at, worker)
    nursery.segment = segment.at
    nursery.base = <unsigned char *>fp_at(segment.at, heap.start)
    nursery.end = <unsigned char *>fp_at(segment.at, heap.end)
    nursery.worker = worker
    memcpy(handler.name, b"fastpool", sizeof(b"fastpool"))
    handler.version = 1
    handler.allocator = Allocator(&nursery, take, take_zeroed, resize, give_back)
    PyDataMem_SetHandler(PyCapsule_New(&handler, "mem_handler", NULL))
    return 0

cdef bint is_block(void *data, uint64_t size) noexcept:
    """Is this memory a block that the nursery gave for an array of that size?"""
    cdef const fp_block *block
    if not is_own(&nursery, data) or size != nursery.wanted or nursery.place is not NULL:
        return False
    block = <const fp_block *>data - 1
    return block.asked == size and load(block.state) == FP_BLOCK_USED
