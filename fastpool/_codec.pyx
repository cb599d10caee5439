"""Objects to items of records and back (csrc/README.md, "Records").

int64, float64, bool, None, str and bytes have a kind of their own, in which they come back as exactly what they were.
Containers of builtin types and numpy scalars are tagged (`_tags.pxd`), and so are plain values whose type keeps
changing: a record for each would cost more. Subclasses and everything else are pickled with protocol 5, one pickle an
item.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_TYPE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

import pickle

from fastpool._native cimport (
    FP_KIND_BLOCK, FP_KIND_BOOL, FP_KIND_BYTES, FP_KIND_ERROR, FP_KIND_FLOAT64, FP_KIND_FRAGMENT, FP_KIND_INT64,
    FP_KIND_NONE, FP_KIND_OBJECT, FP_KIND_PACKED, FP_KIND_PICKLE, FP_KIND_PLACED, FP_KIND_STR, FP_KIND_TAGGED, Segment,
    block_check, fp_align, fp_at, fp_block_item, fp_fragment, fp_item, fp_summed, fp_writer_commit, writer_close,
)
from fastpool._packed cimport is_array
from fastpool._tagreader cimport TagReader
from fastpool._tagwriter cimport TagWriter
from fastpool.errors import DamagedMemoryError

cdef extern from "Python.h":
    PyTypeObject PyLong_Type
    PyTypeObject PyFloat_Type
    PyTypeObject PyBool_Type
    PyTypeObject PyUnicode_Type
    PyTypeObject PyBytes_Type
    PyTypeObject PyTuple_Type
    PyTypeObject PyDict_Type
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    object PyLong_FromLongLong(long long value)
    object PyUnicode_FromKindAndData(int kind, const void *data, Py_ssize_t size)
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyBUF_READ

cdef enum:
    LONG_TEXT = 1024  # bytes: worth a record rather than a checksum
    SUMMED_BYTES = sizeof(fp_item) + sizeof(fp_summed)  # before the data of an item with a checksum

cdef inline unsigned char *write_heads(unsigned char *at, int kind, uint32_t tag, const void *data,
                                       uint64_t size) noexcept:
    """Write what stands before an item's data; returns the item's end."""
    (<fp_item *>at).bytes = <uint32_t>size
    (<fp_item *>at).tag = tag
    if is_summed(tag):
        (<fp_summed *>(at + sizeof(fp_item))).sum = item_sum(kind, tag, data, size)
    return at + item_bytes(tag, size)

cdef inline unsigned char *write_item(unsigned char *at, int kind, uint32_t tag, const void *data,
                                      uint64_t size) noexcept:
    """Write an item; returns its end."""
    memcpy(at + (SUMMED_BYTES if is_summed(tag) else sizeof(fp_item)), data, size)
    return write_heads(at, kind, tag, data, size)


INCOMPLETE = object()
PLACED = object()


def is_placed(value) -> bool:
    """Does this stand for a result that lies where the job's plan wants it?"""
    return value is PLACED


cdef class Encoder:
    def __cinit__(self):
        self.kind = -1
        self.tags = TagWriter()
        self.dumps = pickle.dumps

    cdef int put(self, object value) except -1:
        """Append a value as the next item and commit it."""
        cdef PyTypeObject *kind = Py_TYPE(value)
        cdef unsigned char *at
        cdef uint64_t size
        cdef int width
        if kind == &PyDict_Type or kind == &PyTuple_Type:
            self.streak = 0
        elif kind == &PyLong_Type:
            if goes_in_run(self, FP_KIND_INT64):
                return self.put_integer(value)
        elif kind == &PyFloat_Type:
            if goes_in_run(self, FP_KIND_FLOAT64):
                at = self.room(FP_KIND_FLOAT64, 8)
                (<double *>at)[0] = PyFloat_AS_DOUBLE(value)
                return self.commit(at + 8)
        elif value is None:
            if goes_in_run(self, FP_KIND_NONE):
                at = self.room(FP_KIND_NONE, 0)
                return self.commit(at)
        elif kind == &PyBool_Type:
            if goes_in_run(self, FP_KIND_BOOL):
                at = self.room(FP_KIND_BOOL, 1)
                at[0] = value is True
                return self.commit(at + 1)
        elif kind == &PyUnicode_Type:
            width = PyUnicode_KIND(value)
            size = <uint64_t>PyUnicode_GET_LENGTH(value) * width
            if size > LONG_TEXT or goes_in_run(self, FP_KIND_STR):
                return self.put_data(FP_KIND_STR, width, PyUnicode_DATA(value), size, value)
        elif kind == &PyBytes_Type:
            if PyBytes_GET_SIZE(value) > LONG_TEXT or goes_in_run(self, FP_KIND_BYTES):
                return self.put_data(FP_KIND_BYTES, 0, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), value)
        else:
            self.streak = 0
            if is_array(value) and self.put_array(value):
                return 0
        return self.put_tagged(value)

    cdef int put_integer(self, object value) except -1:
        cdef int overflow = 0
        cdef int64_t integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        cdef unsigned char *at
        if overflow:
            return self.put_tagged(value)
        at = self.room(FP_KIND_INT64, 8)
        (<int64_t *>at)[0] = integer
        return self.commit(at + 8)

    cdef int put_tagged(self, object value) except -1:
        """Append a value tagged; pickled, if it is not for tags. What an item refers to is in its own record."""
        cdef TagWriter tags = self.tags
        cdef unsigned char *place = NULL  # for the item's data, in the open record
        cdef unsigned char *end = NULL
        if self.kind != FP_KIND_TAGGED:
            tags.forget()
        elif self.writer.end - self.writer.at > <int64_t>SUMMED_BYTES:
            place = self.writer.at + SUMMED_BYTES
            end = self.writer.end - (self.writer.end - place) % 8  # items take a multiple of 8 bytes
        if not tags.write(value, place, end):
            return self.put_pickled(value)
        if tags.start == place:
            return self.commit(write_heads(self.writer.at, FP_KIND_TAGGED, FP_KIND_TAGGED, place, tags.size()))
        if not tags.alone:
            tags.forget()
            tags.write(value, NULL, NULL)
        self.put_data(FP_KIND_TAGGED, FP_KIND_TAGGED, tags.start, tags.size(), tags.buffer)
        if self.kind != FP_KIND_TAGGED:
            tags.forget()  # it was large: nothing else refers to what it has
        return 0

    cdef bint put_array(self, object array) except -1:
        """Append an array as it is. False: it must be pickled."""
        if not self.pack_array(array):
            return False
        self.put_packed()
        return True

    cdef int put_packed(self) except -1:
        """Append the packed item."""
        return self.put_data(FP_KIND_PACKED, FP_KIND_PICKLE, self.packed, self.packed_bytes, None)

    cdef int put_pickled(self, object value) except -1:
        cdef list buffers = []
        cdef bytes pickled = self.dump(value, buffers)
        if buffers:
            self.pack_pickle(pickled, buffers)
            return self.put_packed()
        return self.put_data(FP_KIND_PICKLE, FP_KIND_PICKLE, PyBytes_AS_STRING(pickled), PyBytes_GET_SIZE(pickled),
                             pickled)

    cdef bytes dump(self, object value, list buffers):
        """Pickle a value; `buffers` gets those that stay outside."""
        return self.dumps(value, 5, buffer_callback=buffers.append)

    cdef int put_error(self, object payload) except -1:
        """Append a description of an exception, which is pickled already."""
        return self.put_data(FP_KIND_ERROR, FP_KIND_PICKLE, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload),
                             payload)

    cdef int put_data(self, int kind, uint32_t tag, const void *data, uint64_t size, object keep) except -1:
        cdef uint64_t total = item_bytes(tag, size)
        if total > self.large:
            return self.put_large(kind, tag, data, size, total, keep)
        return self.commit(write_item(self.room(kind, total), kind, tag, data, size))

    cdef unsigned char *room(self, int kind, uint64_t need) except NULL:
        """Where the next item of `kind` goes, with `need` bytes of room."""
        if kind == self.kind and <uint64_t>(self.writer.end - self.writer.at) >= need:
            return self.writer.at
        self.close()
        self.open(kind, <uint32_t>need, RUN_BYTES if need < RUN_BYTES else <uint32_t>need)
        self.kind = kind
        return self.writer.at

    cdef int commit(self, unsigned char *at) except -1:
        self.number += 1
        if fp_writer_commit(&self.writer, at):
            return self.wanted()
        return 0

    cdef void close(self) noexcept:
        """Close the open record, if any."""
        if self.kind >= 0:
            self.kind = -1
            writer_close(&self.writer)

    cdef int open(self, int kind, uint32_t need, uint32_t want) except -1:
        raise TypeError("an Encoder without a place for its records")

    cdef int put_large(self, int kind, uint32_t tag, const void *data, uint64_t size, uint64_t total,
                       object keep) except -1:
        raise TypeError("an Encoder without a place for its large items")

    cdef int wanted(self) except -1:
        return 0


cdef class Decoder:
    def __cinit__(self, Segment segment, uint32_t heap, bint in_worker):
        self.segment = segment
        self.heap = heap
        self.in_worker = in_worker
        self.tags = TagReader()
        self.loads = pickle.loads
        self.pieces = None

    cdef object item(self, int kind, const unsigned char **at, const unsigned char *end):
        """The object whose item begins at `at`, which moves on. Never reads at or beyond `end`."""
        cdef uint64_t left = <uint64_t>(end - at[0])
        cdef const unsigned char *here = at[0]
        cdef fp_item head
        cdef fp_summed summed
        cdef fp_block_item block
        cdef uint64_t total
        cdef object value
        if kind == FP_KIND_TAGGED and not self.dry:
            return self.tagged(at, end)
        if kind == FP_KIND_INT64:
            demand(left, 8)
            at[0] = here + 8
            return PyLong_FromLongLong((<const int64_t *>here)[0])
        if kind == FP_KIND_FLOAT64:
            demand(left, 8)
            at[0] = here + 8
            return PyFloat_FromDouble((<const double *>here)[0])
        if kind == FP_KIND_OBJECT:
            demand(left, 8)
            at[0] = here + 8
            return self.reference(here)
        if kind == FP_KIND_NONE:
            return None
        if kind == FP_KIND_PLACED:
            return PLACED
        if kind == FP_KIND_BOOL:
            demand(left, 1)
            at[0] = here + 1
            return here[0] != 0
        if kind == FP_KIND_BLOCK:
            demand(left, sizeof(fp_block_item))
            memcpy(&block, here, sizeof(fp_block_item))
            at[0] = here + sizeof(fp_block_item)
            if not block_check(self.segment.at, self.heap, block.offset, block.bytes):
                raise DamagedMemoryError("an item names a large block that is not there")
            self.inner_kind = block.kind
            self.block_at = block.offset
            value = self.of_summed(block.kind, block.tag, block.sum,
                                   <const unsigned char *>fp_at(self.segment.at, block.offset), block.bytes)
            self.tags.forget()
            return value
        demand(left, sizeof(fp_item))
        memcpy(&head, here, sizeof(fp_item))
        here += sizeof(fp_item)
        total = item_bytes(head.tag, head.bytes)
        summed.sum = 0
        if is_summed(head.tag):
            demand(left, sizeof(fp_item) + sizeof(fp_summed))
            memcpy(&summed, here, sizeof(fp_summed))
            here += sizeof(fp_summed)
        demand(left, total)
        at[0] += total
        if is_summed(head.tag):
            return self.of_summed(kind, head.tag, summed.sum, here, head.bytes)
        if kind == FP_KIND_ERROR and head.tag == FP_KIND_OBJECT and head.bytes == 8:
            return self.reference(here)
        return self.of_data(kind, head.tag, here, head.bytes)

    cdef inline object tagged(self, const unsigned char **at, const unsigned char *end):
        """The same for an item of a record of tagged ones."""
        cdef const unsigned char *here = at[0]
        cdef fp_item head
        cdef fp_summed summed
        demand(<uint64_t>(end - here), SUMMED_BYTES)
        memcpy(&head, here, sizeof(fp_item))
        memcpy(&summed, here + sizeof(fp_item), sizeof(fp_summed))
        demand(<uint64_t>(end - here), item_bytes(FP_KIND_TAGGED, head.bytes))
        at[0] = here + item_bytes(FP_KIND_TAGGED, head.bytes)
        here += SUMMED_BYTES
        if head.tag != FP_KIND_TAGGED:
            raise_wrong_tag(FP_KIND_TAGGED, head.tag)
        if item_sum(FP_KIND_TAGGED, FP_KIND_TAGGED, here, head.bytes) != summed.sum:
            raise_wrong_sum()
        return self.tags.read(here, head.bytes)

    cdef object reference(self, const unsigned char *at):
        """The object that a thread has sent. A process cannot have sent one."""
        if self.outbox is None:
            raise DamagedMemoryError("a worker that is a process sent a reference")
        return self.outbox.take((<const uint64_t *>at)[0])

    cdef int pass_over(self, int kind, const unsigned char **at, const unsigned char *end) except -1:
        """Move on past the item, or piece of one, at `at`, whose object nobody wants. What it calls into life may fail
        as it likes."""
        if kind != FP_KIND_TAGGED:  # a tagged item may be what later ones refer to
            self.dry = True
        try:
            if kind == FP_KIND_FRAGMENT:
                self.fragment(at, end)
            else:
                self.item(kind, at, end)
        finally:
            self.dry = False
        return 0

    cdef object of_summed(self, int kind, uint32_t tag, uint64_t total, const unsigned char *data, uint64_t size):
        """The object of an item with a sum."""
        if not self.dry and item_sum(kind, tag, data, size) != total:
            raise_wrong_sum()
        return self.of_data(kind, tag, data, size)

    cdef object of_data(self, int kind, uint32_t tag, const unsigned char *data, uint64_t size):
        if is_summed(tag) != (kind in (FP_KIND_TAGGED, FP_KIND_PICKLE, FP_KIND_ERROR, FP_KIND_PACKED)):
            raise_wrong_tag(kind, tag)
        if self.dry:
            return None
        if kind == FP_KIND_TAGGED:
            return self.tags.read(data, size)
        if kind == FP_KIND_PACKED:
            return self.unpack(data, size)
        if kind == FP_KIND_PICKLE or kind == FP_KIND_ERROR:
            return self.loads(PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ))
        if kind == FP_KIND_BYTES:
            return PyBytes_FromStringAndSize(<const char *>data, size)
        if kind == FP_KIND_STR:
            if tag in (1, 2, 4) and size % tag == 0:
                return PyUnicode_FromKindAndData(tag, data, size // tag)
        raise DamagedMemoryError(f"an item of unknown kind {kind} or width {tag}")

    cdef object fragment(self, const unsigned char **at, const unsigned char *end):
        """Take one piece; the object if it was the last, INCOMPLETE otherwise."""
        cdef fp_fragment head
        demand(<uint64_t>(end - at[0]), sizeof(fp_fragment))
        memcpy(&head, at[0], sizeof(fp_fragment))
        cdef const unsigned char *data = at[0] + sizeof(fp_fragment)
        demand(<uint64_t>(end - data), fp_align(head.bytes, 8))
        at[0] = data + fp_align(head.bytes, 8)
        if self.dry:
            return INCOMPLETE
        if head.at == 0:
            self.pieces = bytearray()
        if self.pieces is None or <uint64_t>len(self.pieces) != head.at or head.at + head.bytes > head.total:
            raise DamagedMemoryError("the pieces of a large item do not fit together")
        self.pieces += PyMemoryView_FromMemory(<char *>data, head.bytes, PyBUF_READ)
        if head.at + head.bytes < head.total:
            return INCOMPLETE
        cdef bytearray whole = self.pieces
        self.pieces = None
        self.inner_kind = head.kind
        cdef object value = self.of_summed(head.kind, head.tag, head.sum, <unsigned char *><char *>whole, head.total)
        self.tags.forget()
        return value


cdef int raise_wrong_tag(int kind, uint32_t tag) except -1:
    raise DamagedMemoryError(f"an item of kind {kind} with tag {tag}")

cdef int raise_wrong_sum() except -1:
    raise DamagedMemoryError("the bytes of a large or structured item do not have their checksum")

cdef inline int demand(uint64_t left, uint64_t need) except -1:
    if left < need:
        raise DamagedMemoryError("an item is longer than the record that holds it")
    return 0
