"""Packed items (csrc/layout.h, ``fp_packed``): arrays, and pickles with their buffers beside them.

A buffer lies in the item itself, in a large block, or (of an argument) stays where it is: in shared memory, or in the
parent's private memory, from which a worker reads it.
"""

cimport numpy as cnp
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import io
import pickle

import numpy

from fastpool._native cimport (
    FP_ARRAY_FORTRAN, FP_ARRAY_READ_ONLY, FP_ARRAY_STRIDED, FP_BORN_WITH, FP_FORM_ARRAY, FP_FORM_PICKLE, FP_FROM_SPACE,
    FP_INLINE, FP_IN_BLOCK, FP_IN_OWNER, FP_IN_SPACE, FP_MAP, Space, block_check, block_free, check, demand_space,
    fp_array, fp_at, fp_buffer, fp_packed, peek, read_process, space_of,
)
from fastpool.errors import DamagedMemoryError

cnp.import_array()

cdef enum:
    MOST_DIMS = 64

cdef void copy(void *to, const void *source, uint64_t size) noexcept nogil:
    """memcpy, which must not be given NULL even for nothing: arrays without dimensions have such sizes."""
    if size:
        memcpy(to, source, size)

cdef extern from *:
    """
    static PyObject *fastpool_base(PyObject *array) { return PyArray_BASE((PyArrayObject *)array); } /* borrowed */

    /* A new array; over `data` that `base` keeps alive, if they are given. */
    static PyObject *fastpool_array(PyObject *dtype, int ndim, const npy_intp *dims, const npy_intp *strides,
                                    void *data, int flags, PyObject *base) {
      Py_INCREF(dtype); /* taken over, as is the base below */
      PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)dtype, ndim, dims, strides, data,
                                             data ? flags | NPY_ARRAY_WRITEABLE : flags, NULL);
      if (array && data) {
        Py_INCREF(base);
        if (PyArray_SetBaseObject((PyArrayObject *)array, base) < 0) Py_CLEAR(array);
      }
      return array;
    }
    """
    PyObject *array_base "fastpool_base" (object array)
    Py_ssize_t references "Py_REFCNT" (PyObject *value)  # with an object as argument, Cython would add one
    object fastpool_array(object dtype, int ndim, const cnp.npy_intp *dims, const cnp.npy_intp *strides, void *data,
                          int flags, object base)


# ---------------------------------------------------------------- dtypes

cdef object last_dtype = None      # pickling a dtype costs more than the rest of a small array
cdef bytes last_dtype_bytes = b""
cdef dict known_dtypes = {}        # by pickle; few in practice, and cleared when not

cdef int native_type(object dtype) except -2:
    """numpy's number of a dtype that has nothing beside it; -1: it must be pickled."""
    cdef cnp.dtype descr = dtype
    if descr.type_num < cnp.NPY_OBJECT or descr.type_num == cnp.NPY_FLOAT16:
        if descr.byteorder != c">" and descr.byteorder != c"<" and dtype.metadata is None:
            return descr.type_num
    return -1

cdef bytes dtype_bytes(object dtype):
    global last_dtype, last_dtype_bytes
    if dtype is not last_dtype:
        last_dtype_bytes = pickle.dumps(dtype, 5)
        last_dtype = dtype
    return last_dtype_bytes

cdef object dtype_from(int type_number, bytes pickled):
    if type_number >= 0:
        if type_number >= cnp.NPY_OBJECT and type_number != cnp.NPY_FLOAT16:
            raise DamagedMemoryError("an array of a type that does not exist")
        return <object>cnp.PyArray_DescrFromType(type_number)
    dtype = known_dtypes.get(pickled)
    if dtype is None:
        try:
            dtype = pickle.loads(pickled)
        except Exception as error:
            raise DamagedMemoryError("the dtype of an array cannot be unpickled") from error
        if not isinstance(dtype, numpy.dtype) or dtype.hasobject:
            raise DamagedMemoryError("an array whose dtype is none")
        if len(known_dtypes) >= 1000:
            known_dtypes.clear()
        known_dtypes[pickled] = dtype
    return dtype


# ---------------------------------------------------------------- packing

cdef bint is_array(object value) noexcept:
    """Is this exactly a numpy array?"""
    return cnp.PyArray_CheckExact(value)

cdef bint is_packable(object array) except -1:
    """Can the array travel as its bytes? Not with objects in it, nor a dtype that is not numpy's own."""
    cdef cnp.dtype descr = array.dtype
    return descr.type_num <= cnp.NPY_FLOAT16 and not array.dtype.hasobject and cnp.PyArray_NDIM(array) <= MOST_DIMS


cdef class Packer:
    def __dealloc__(self):
        free(self.packed)

    def pack(self, array) -> bytes | None:
        """The bytes of an array (for tests); None if it must be pickled."""
        if not self.pack_array(array):
            return None
        return PyBytes_FromStringAndSize(<const char *>self.packed, self.packed_bytes)

    cdef unsigned char *reserve(self, uint64_t bytes) except NULL:
        """Make the item `bytes` long at least."""
        cdef void *larger
        if bytes > self.packed_room:
            larger = realloc(self.packed, bytes + bytes // 4)
            if larger is NULL:
                raise MemoryError(f"fastpool: no memory to encode {bytes} bytes in")
            self.packed = <unsigned char *>larger
            self.packed_room = bytes + bytes // 4
        return self.packed

    cdef bint pack_array(self, object array) except -1:
        """Pack an array. False: it must be pickled."""
        if not is_packable(array):
            return False
        cdef bint fortran = cnp.PyArray_IS_F_CONTIGUOUS(array) and not cnp.PyArray_IS_C_CONTIGUOUS(array)
        cdef bint strided = not fortran and not cnp.PyArray_IS_C_CONTIGUOUS(array)
        cdef fp_buffer buffer
        cdef cnp.ndarray whole = array
        if strided and not self.reachable(array, &buffer):
            whole = numpy.ascontiguousarray(array)
            strided = False
            self.fresh = True
        if not strided:
            buffer.bytes = cnp.PyArray_NBYTES(whole)
            buffer.where = FP_INLINE
            self.place(cnp.PyArray_DATA(whole), buffer.bytes, whole, &buffer)
            self.fresh = False
        cdef int ndim = cnp.PyArray_NDIM(whole)
        cdef int kind = native_type(whole.dtype)
        cdef bytes dtype = b"" if kind >= 0 else dtype_bytes(whole.dtype)
        cdef uint64_t sizes = (2 if strided else 1) * ndim * sizeof(int64_t)
        cdef uint64_t meta = sizeof(fp_array) + sizes + len(dtype)
        cdef uint64_t head = sizeof(fp_packed) + sizeof(fp_buffer)
        cdef uint64_t inlined = buffer.bytes if buffer.where == FP_INLINE else 0
        cdef unsigned char *at = self.reserve(head + meta + inlined)
        (<fp_packed *>at)[0] = fp_packed(FP_FORM_ARRAY, 1, meta)
        (<fp_buffer *>(at + sizeof(fp_packed)))[0] = buffer
        at += head
        (<fp_array *>at)[0] = fp_array(
            kind, <uint32_t>len(dtype), ndim,
            (FP_ARRAY_FORTRAN if fortran else 0) | (FP_ARRAY_STRIDED if strided else 0)
            | (0 if cnp.PyArray_ISWRITEABLE(array) else FP_ARRAY_READ_ONLY))
        at += sizeof(fp_array)
        copy(at, cnp.PyArray_DIMS(whole), ndim * sizeof(int64_t))
        if strided:
            copy(at + ndim * sizeof(int64_t), cnp.PyArray_STRIDES(whole), ndim * sizeof(int64_t))
        copy(at + sizes, PyBytes_AS_STRING(dtype), len(dtype))
        copy(at + sizes + len(dtype), cnp.PyArray_DATA(whole), inlined)
        self.packed_bytes = head + meta + inlined
        return True

    cdef int pack_pickle(self, bytes pickled, list buffers) except -1:
        """Pack a pickle with the ``pickle.PickleBuffer`` objects it left out."""
        cdef uint64_t n = len(buffers)
        cdef uint64_t head = sizeof(fp_packed) + n * sizeof(fp_buffer)
        cdef uint64_t meta = len(pickled)
        cdef uint64_t at = head + meta
        cdef Py_buffer view
        cdef uint64_t i
        cdef fp_buffer buffer
        self.reserve(at)
        (<fp_packed *>self.packed)[0] = fp_packed(FP_FORM_PICKLE, <uint32_t>n, meta)
        copy(self.packed + head, PyBytes_AS_STRING(pickled), meta)
        for i in range(n):
            raw = buffers[i].raw()
            PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
            try:
                buffer = fp_buffer(view.len, 0, 0, FP_INLINE)
                self.place(view.buf, view.len, buffers[i], &buffer)
                if buffer.where == FP_INLINE:
                    self.reserve(at + view.len)
                    copy(self.packed + at, view.buf, view.len)
                    at += view.len
            finally:
                PyBuffer_Release(&view)
            (<fp_buffer *>(self.packed + sizeof(fp_packed)))[i] = buffer
        self.packed_bytes = at
        return 0

    cdef int place(self, const void *data, uint64_t size, object keep, fp_buffer *buffer) except -1:
        """Put a buffer elsewhere than into the item, or leave `where` as it is."""
        return 0

    cdef bint reachable(self, object array, fp_buffer *buffer) except -1:
        """May workers use the array, whose elements do not lie side by side, where it is?"""
        return False


# ---------------------------------------------------------------- unpacking

cdef class Unpacker:
    def unpack_bytes(self, const unsigned char[::1] data):
        """The object of a packed item (for tests)."""
        return self.unpack(&data[0], data.shape[0])

    cdef object unpack(self, const unsigned char *data, uint64_t size):
        """The object of a packed item, whose bytes have their checksum."""
        cdef fp_packed head  # a copy: what is checked is what is used, whoever writes there meanwhile
        if size < sizeof(fp_packed):
            raise DamagedMemoryError("a packed item without a header")
        memcpy(&head, data, sizeof(fp_packed))
        cdef uint64_t left = size - sizeof(fp_packed)
        cdef uint64_t n = head.n_buffers
        if n > left // sizeof(fp_buffer) or head.meta_bytes > left - n * sizeof(fp_buffer):
            raise DamagedMemoryError("a packed item is shorter than what it says it holds")
        cdef bytes copied = PyBytes_FromStringAndSize(<const char *>data + sizeof(fp_packed), n * sizeof(fp_buffer))
        cdef const fp_buffer *buffers = <const fp_buffer *>PyBytes_AS_STRING(copied)
        cdef const unsigned char *meta = data + sizeof(fp_packed) + n * sizeof(fp_buffer)
        cdef const unsigned char *inlined = meta + head.meta_bytes
        cdef uint64_t i
        left = size - <uint64_t>(inlined - data)
        for i in range(n):
            if buffers[i].where == FP_INLINE:
                if buffers[i].bytes > left:
                    raise DamagedMemoryError("a packed item is shorter than its buffers")
                left -= buffers[i].bytes
        if head.form == FP_FORM_ARRAY and n == 1:
            return self.unpack_array(meta, head.meta_bytes, buffers, inlined)
        if head.form != FP_FORM_PICKLE:
            raise DamagedMemoryError("a packed item of unknown form")
        memories = []
        for i in range(n):
            memories.append(self.memory_of(&buffers[i], inlined))
            if buffers[i].where == FP_INLINE:
                inlined += buffers[i].bytes
        return self.loads(PyMemoryView_FromMemory(<char *>meta, head.meta_bytes, PyBUF_READ), buffers=memories)

    cdef object unpack_array(self, const unsigned char *meta, uint64_t size, const fp_buffer *buffer,
                             const unsigned char *inlined):
        cdef fp_array head
        if size < sizeof(fp_array):
            raise DamagedMemoryError("an array without a header")
        copy(&head, meta, sizeof(fp_array))
        cdef uint64_t sizes = (2 if head.flags & FP_ARRAY_STRIDED else 1) * <uint64_t>head.ndim * sizeof(int64_t)
        if head.ndim > MOST_DIMS or size != sizeof(fp_array) + sizes + head.dtype_bytes:
            raise DamagedMemoryError("an array's header does not have the length it says")
        cdef int64_t shape[2 * MOST_DIMS]
        copy(shape, meta + sizeof(fp_array), sizes)
        cdef bytes pickled = PyBytes_FromStringAndSize(<const char *>meta + sizeof(fp_array) + sizes, head.dtype_bytes)
        return self.array(&head, shape, dtype_from(head.type, pickled), buffer, inlined)

    cdef object array(self, const fp_array *head, const int64_t *sizes, object dtype, const fp_buffer *buffer,
                      const unsigned char *inlined):
        cdef uint64_t total = dtype.itemsize
        cdef uint32_t i
        if head.flags & FP_ARRAY_STRIDED:
            return self.strided(dtype, head, sizes, buffer)
        for i in range(head.ndim):
            if sizes[i] < 0 or (sizes[i] and total > (<uint64_t>1 << 62) // <uint64_t>sizes[i]):
                raise DamagedMemoryError("an array of impossible shape")
            total *= <uint64_t>sizes[i]
        if total != buffer.bytes:
            raise DamagedMemoryError("an array's shape does not fit its bytes")
        if self.in_place(buffer):
            result = new_array(dtype, head, sizes, self.memory_of(buffer, inlined))
            if buffer.where == FP_IN_SPACE:
                protect(result, head.flags & FP_ARRAY_READ_ONLY)
            return result
        if self.in_worker and total >= KEEP_BYTES:
            memory = self.spare_bytes(total)
            self.fill(PyByteArray_AS_STRING(memory), buffer, inlined)
            return new_array(dtype, head, sizes, memory)
        result = new_array(dtype, head, sizes, None)
        self.fill(cnp.PyArray_DATA(result), buffer, inlined)
        return result

    cdef object strided(self, object dtype, const fp_array *head, const int64_t *sizes, const fp_buffer *buffer):
        """A view of a shared array, as its parent has it."""
        result = fastpool_array(dtype, head.ndim, <const cnp.npy_intp *>sizes,
                                <const cnp.npy_intp *>(sizes + head.ndim), self.mapped(buffer), 0, SPACE)
        return protect(result, head.flags & FP_ARRAY_READ_ONLY)

    cdef bint in_place(self, const fp_buffer *buffer) noexcept:
        """Is the buffer used where it is?"""
        if self.in_worker:
            return buffer.where == FP_IN_SPACE or (
                buffer.where == FP_BORN_WITH and self.segment.number == peek(self.segment.at.jobs[FP_MAP].number))
        return buffer.where == FP_IN_BLOCK and buffer.bytes >= KEEP_BYTES

    cdef object memory_of(self, const fp_buffer *buffer, const unsigned char *inlined):
        """The buffer as an object of its own: the very memory where that may be, else a copy."""
        cdef bytearray copy
        if not self.in_place(buffer):
            copy = PyByteArray_FromStringAndSize(NULL, buffer.bytes)
            self.fill(PyByteArray_AS_STRING(copy), buffer, inlined)
            return copy
        if not self.in_worker:
            self.demand_block(buffer)
            return self.segment.hold(buffer.at, buffer.bytes)
        return PyMemoryView_FromMemory(<char *>self.mapped(buffer), buffer.bytes, PyBUF_WRITE)

    cdef int fill(self, void *to, const fp_buffer *buffer, const unsigned char *inlined) except -1:
        """Copy the buffer to private memory; free the block of a result."""
        cdef int code
        if buffer.where == FP_INLINE:
            copy(to, inlined, buffer.bytes)
        elif buffer.where == FP_IN_BLOCK:
            self.demand_block(buffer)
            copy(to, fp_at(self.segment.at, buffer.at), buffer.bytes)
            if not self.in_worker:
                check(block_free(self.segment.at, buffer.at), "a large block")
        elif not self.in_worker:
            raise DamagedMemoryError("a result that lies outside of the pool's memory")
        elif buffer.where == FP_FROM_SPACE:
            copy(to, self.mapped(buffer), buffer.bytes)
        else:
            code = read_process(self.segment.owner_pid, buffer.at, to, buffer.bytes, buffer.where != FP_IN_OWNER)
            if code:
                raise OSError(-code, "cannot read an argument from the memory of the pool's owner")
        return 0

    cdef int demand_block(self, const fp_buffer *buffer) except -1:
        if not block_check(self.segment.at, self.heap, buffer.at, buffer.bytes):
            raise DamagedMemoryError("an item names a large block that is not there")
        return 0

    cdef void *mapped(self, const fp_buffer *buffer) except NULL:
        """Where the buffer of an argument, used or copied in the worker, is mapped."""
        cdef const Space *space
        if buffer.where == FP_BORN_WITH:
            return <void *><size_t>buffer.at
        space = demand_space(buffer.space)
        cdef unsigned char *start = space.base + buffer.at
        if buffer.where == FP_IN_SPACE and buffer.bytes >= KEEP_BYTES:
            self.lowest = min(start, self.lowest) if self.lowest is not NULL else start
            self.highest = max(start + buffer.bytes, self.highest)
        return start

    cdef bytearray spare_bytes(self, uint64_t size):
        """Private memory that keeps its pages from one chunk to the next."""
        if self.spare is None or references(<PyObject *>self.spare) > 1 or <uint64_t>len(self.spare) < size:
            self.spare = None
            self.spare = PyByteArray_FromStringAndSize(NULL, size)
        return self.spare


cdef object new_array(object dtype, const fp_array *head, const int64_t *sizes, object memory):
    """An array over `memory` (an array of bytes, or a buffer), or over memory of its own."""
    cdef bint fortran = head.flags & FP_ARRAY_FORTRAN
    cdef Py_buffer view
    cdef void *data = NULL
    cdef int flags = cnp.NPY_ARRAY_F_CONTIGUOUS if fortran else 0
    if memory is not None:
        PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
        data = view.buf
        PyBuffer_Release(&view)
    return fastpool_array(dtype, head.ndim, <const cnp.npy_intp *>sizes, NULL, data, flags, memory)


cdef object protect(array, bint read_only):
    """A view of shared memory is read-only where the caller's is."""
    if read_only:
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array


# ---------------------------------------------------------------- arrays, seen from outside

cdef bint is_sole(object value) noexcept:
    """Is this an array that owns its memory and to which the caller has the only reference?"""
    return is_array(value) and references(<PyObject *>value) == 1 and cnp.PyArray_CHKFLAGS(value, cnp.NPY_ARRAY_OWNDATA)

cdef void *sole_memory(object value) noexcept:
    """The memory that is free again when the caller's reference, the only one to this array, is gone: the array's own,
    or that of the array which nothing but this view refers to. NULL: there is none."""
    cdef PyObject *base
    if not is_array(value) or references(<PyObject *>value) != 1:
        return NULL
    if cnp.PyArray_CHKFLAGS(value, cnp.NPY_ARRAY_OWNDATA):
        return cnp.PyArray_DATA(value)
    base = array_base(value)
    if base is NULL or not is_array(<object>base) or references(base) != 1 \
            or not cnp.PyArray_CHKFLAGS(<object>base, cnp.NPY_ARRAY_OWNDATA):
        return NULL
    return cnp.PyArray_DATA(<object>base)

cdef void *array_data(object array) noexcept:
    return cnp.PyArray_DATA(array)

cdef uint64_t array_bytes(object array) noexcept:
    return cnp.PyArray_NBYTES(array)

cdef object view_of(void *data, tuple shape, object dtype):
    """An array over memory that outlives it."""
    cdef cnp.npy_intp dims[MOST_DIMS]
    cdef int i, n = len(shape)
    for i in range(n):
        dims[i] = shape[i]
    return fastpool_array(dtype, n, dims, NULL, data, 0, SPACE)


# ---------------------------------------------------------------- shared arrays inside pickles

cdef bint is_private(object memory) except -1:
    """Does the array (or a slice of it) own its memory, so that a fork has it as its own?"""
    while cnp.PyArray_Check(memory):
        if memory.base is None:
            return memory.flags.owndata
        memory = memory.base
    return False

cdef bytes dump_with_shared_arrays(object value, list buffers, object make_pickler):
    """Pickle; arrays in shared memory travel as where they are."""
    file = io.BytesIO()
    make_pickler(file, reduce_array, buffers.append).dump(value)
    return file.getvalue()


def reduce_array(value):
    """How a public array is pickled in an argument: as where it is. Of anything else: NotImplemented.

    An array of another class too, if it has nothing of its own to be pickled.
    """
    if not cnp.PyArray_Check(value):
        return NotImplemented
    cdef const Space *space = space_of(cnp.PyArray_DATA(value), 1)
    if space is NULL or not space.public:
        return NotImplemented
    if not is_array(value):
        kind = type(value)
        if kind.__reduce__ is not numpy.ndarray.__reduce__ or kind.__reduce_ex__ is not numpy.ndarray.__reduce_ex__ \
                or getattr(value, "__dict__", None):
            return NotImplemented
        return numpy.ndarray.view, (numpy.ndarray.view(value, numpy.ndarray), kind)
    offset = <uint64_t>(<unsigned char *>cnp.PyArray_DATA(value) - space.base)
    return attach_array, (space.ident, offset, value.dtype, value.shape, value.strides, value.flags.writeable)


def attach_array(ident, offset, dtype, tuple shape, tuple strides, bint writeable):
    """In a worker: the view of a shared array that :func:`reduce_array` describes."""
    cdef const Space *space = demand_space(ident)
    cdef cnp.npy_intp sizes[2 * MOST_DIMS]
    cdef int i, n = len(shape)
    for i in range(n):
        sizes[i] = shape[i]
        sizes[n + i] = strides[i]
    return protect(fastpool_array(dtype, n, sizes, sizes + n, space.base + <uint64_t>offset, 0, SPACE), not writeable)


SPACE = object()  # base of arrays over memory that is mapped as long as the process lives
