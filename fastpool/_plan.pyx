"""Where array results of a map belong (csrc/layout.h, ``fp_plan``): made by the parent, followed by workers."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastpool._native cimport (
    FP_MAP, FP_SPACE_OWNER, Segment, SharedBlock, Space, demand_space, fp_at, fp_job, fp_plan, load, poke, space_of,
    store, write_process,
)
from fastpool._packed cimport array_data, dtype_bytes, dtype_from, native_type, view_of

import numpy


def make_plan(Segment segment, array, starts) -> SharedBlock | None:
    """Tell the workers of the current job where results belong. None if there is no room to say it.

    Parameters
    ----------
    segment : Segment
    array : numpy.ndarray
        The whole result, C-contiguous: in memory of the segment, in public shared memory, or in private memory, which
        workers write to as the system lets them write to another process's.
    starts : list of int
        Rows with which the results of the tasks begin, and the number of rows.

    Returns
    -------
    SharedBlock or None
        The plan itself, to be held until the job is over.
    """
    cdef const Space *space = space_of(array_data(array), array.nbytes)
    cdef int kind = native_type(array.dtype)
    cdef bytes pickled = b"" if kind >= 0 else dtype_bytes(array.dtype)
    cdef uint64_t n = len(starts), ndim = array.ndim - 1, i
    cdef SharedBlock block = segment.allocate(sizeof(fp_plan) + 8 * (ndim + n) + len(pickled))
    if block is None:
        return None
    cdef fp_plan *plan = <fp_plan *>fp_at(segment.at, block.offset)
    if space is NULL:
        plan.space = FP_SPACE_OWNER
        plan.at = 0
        segment.at.jobs[FP_MAP].home = <uint64_t><size_t>array_data(array)
        segment.at.jobs[FP_MAP].home_bytes = array.nbytes
    else:
        plan.space = 0 if space.ident == segment.ident else space.ident
        plan.at = <uint64_t>(<unsigned char *>array_data(array) - space.base)
    plan.row_bytes = array.nbytes // max(1, array.shape[0])
    plan.n_tasks = n - 1
    poke(plan.spoiled, 0)
    plan.row_ndim = ndim
    plan.type = kind
    plan.dtype_bytes = <uint64_t>len(pickled)
    cdef int64_t *dims = <int64_t *>(plan + 1)
    for i in range(ndim):
        dims[i] = array.shape[1 + i]
    cdef uint64_t *rows = <uint64_t *>(dims + ndim)
    for i in range(n):
        rows[i] = starts[i]
    memcpy(rows + n, <const char *>pickled, len(pickled))
    store(segment.at.jobs[FP_MAP].plan, block.offset)
    return block


def is_spoiled(SharedBlock plan) -> bool:
    """Does an object of a worker's lie where a result belongs? Then the array must not be handed out, nor freed while
    that worker lives."""
    return load((<fp_plan *>fp_at(plan.arena.at, plan.offset)).spoiled) != 0


def is_public(array) -> bool:
    """Does the array lie in memory that all workers may write to in place?"""
    cdef const Space *space = space_of(array_data(array), array.nbytes if array.flags.c_contiguous else 1)
    return space is not NULL and space.public


cdef class Plan:
    def __cinit__(self, Segment segment, uint64_t offset):
        cdef fp_plan *at = <fp_plan *>fp_at(segment.at, offset)
        cdef const int64_t *dims = <const int64_t *>(at + 1)
        self.at = at
        self.segment = segment
        if at.space == FP_SPACE_OWNER:
            self.data = NULL
        elif at.space:
            self.data = demand_space(at.space).base + at.at
        else:
            self.data = <unsigned char *>fp_at(segment.at, at.at)
        self.row_shape = tuple([dims[i] for i in range(at.row_ndim)])
        self.starts = <const uint64_t *>(dims + at.row_ndim)
        pickled = (<const char *>(self.starts + at.n_tasks + 1))[:at.dtype_bytes]
        self.dtype = dtype_from(at.type, pickled)

    cdef uint64_t rows_of(self, uint64_t task) noexcept:
        """Rows of the task's part of the array."""
        return self.starts[task + 1] - self.starts[task]

    cdef bint takes(self, uint64_t task, object array) except -1:
        """Is this what the task's part of the array is like?"""
        return array.shape == (self.rows_of(task),) + self.row_shape and array.dtype == self.dtype

    cdef bint put(self, uint64_t task, object array) except -1:
        """Copy an array that is like it to the task's part. False: this process may not write there."""
        cdef uint64_t first = self.starts[task]
        if self.data is NULL:
            return self.send(first, numpy.ascontiguousarray(array))
        place = view_of(self.data + first * self.at.row_bytes, array.shape, self.dtype)
        place[...] = array
        return True

    cdef bint send(self, uint64_t first, object array) except -1:
        """The same, into the owner's private memory. Where that is, only the owner can have said."""
        cdef const fp_job *job = &self.segment.at.jobs[FP_MAP]
        cdef uint64_t size = array.nbytes
        cdef uint64_t at = first * self.at.row_bytes
        if at > job.home_bytes or size > job.home_bytes - at:
            return False
        return write_process(self.segment.owner_pid, job.home + at, array_data(array), size) == 0
