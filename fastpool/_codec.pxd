from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastpool._native cimport (
    FP_KIND_BYTES, FP_KIND_FLOAT64, FP_KIND_INT64, FP_KIND_PICKLE, FP_KIND_TAGGED, Segment, fp_align, fp_checksum,
    fp_item, fp_mix, fp_summed, fp_writer, fp_writer_commit,
)
from fastpool._packed cimport Packer, Unpacker
from fastpool._references cimport Outbox
from fastpool._tagreader cimport TagReader
from fastpool._tagwriter cimport TagWriter

cdef extern from "Python.h":
    bint PyLong_CheckExact(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef enum:
    RUN_BYTES = 16384  # payload that a new record asks for; the rest of it goes back when it is closed


cdef class Encoder(Packer):
    """Turns objects into items of typed records. Where the records go is the subclass's."""
    cdef Segment segment
    cdef fp_writer writer
    cdef int kind          # of the open record, -1: none
    cdef uint8_t phase
    cdef uint64_t job
    cdef uint64_t number   # of the task whose item comes next
    cdef uint64_t large    # items of more bytes do not go into records
    cdef TagWriter tags
    cdef int streak_kind   # plain kind of the last items of a TAGGED record
    cdef uint32_t streak   # how many of them are of this kind
    cdef object dumps

    cdef int put(self, object value) except -1
    cdef int put_integer(self, object value) except -1
    cdef int put_tagged(self, object value) except -1
    cdef bint put_array(self, object array) except -1
    cdef int put_packed(self) except -1
    cdef int put_pickled(self, object value) except -1
    cdef bytes dump(self, object value, list buffers)
    cdef int put_error(self, object payload) except -1
    cdef void close(self) noexcept
    cdef unsigned char *room(self, int kind, uint64_t need) except NULL
    cdef int commit(self, unsigned char *at) except -1
    cdef int put_data(self, int kind, uint32_t tag, const void *data, uint64_t size, object keep) except -1
    # the subclass's part
    cdef int open(self, int kind, uint32_t need, uint32_t want) except -1
    cdef int put_large(self, int kind, uint32_t tag, const void *data, uint64_t size, uint64_t total,
                       object keep) except -1
    cdef int wanted(self) except -1


cdef enum:
    SHORT_RUN = 8     # a run of fewer items costs more than the same items tagged
    LONG_STREAK = 32  # so many tagged ones of a plain kind, and a run begins


cdef inline bint takes_run(Encoder encoder, int kind) noexcept:
    """Does a run of this plain kind go on, or may one begin? Not where the types change all the time."""
    if kind == encoder.kind or encoder.kind < 0:
        return True
    if encoder.kind > FP_KIND_BYTES:
        return encoder.kind != FP_KIND_TAGGED
    return encoder.writer.committed - encoder.writer.record.base >= SHORT_RUN


cdef inline bint goes_in_run(Encoder encoder, int kind) noexcept:
    """The same for the next item, which counts: many of a kind among the tagged ones are a run again."""
    if takes_run(encoder, kind):
        return True
    if kind != encoder.streak_kind:
        encoder.streak_kind = kind
        encoder.streak = 0
    encoder.streak += 1
    return encoder.streak > LONG_STREAK


cdef inline bint is_summed(uint32_t tag) noexcept:
    """Do items with this tag carry a checksum?"""
    return tag == FP_KIND_PICKLE or tag == FP_KIND_TAGGED


cdef inline uint64_t item_sum(int kind, uint32_t tag, const void *data, uint64_t size) noexcept:
    """What an item says of itself besides its bytes, and these too if they are no plain payload, as a sum."""
    cdef uint64_t head = fp_mix(<uint64_t>kind << 56 ^ <uint64_t>tag << 48 ^ size)
    return head ^ fp_checksum(data, size) if is_summed(tag) else head


cdef inline uint64_t item_bytes(uint32_t tag, uint64_t size) noexcept:
    """Bytes that an item with `size` bytes of data takes in a record."""
    return sizeof(fp_item) + (sizeof(fp_summed) if is_summed(tag) else 0) + fp_align(size, 8)


cdef inline int put(Encoder encoder, object value) except -1:
    """``encoder.put(value)``, with the short way for a number that continues a run of its kind."""
    cdef unsigned char *at = encoder.writer.at
    cdef long long integer
    cdef int overflow = 0
    if encoder.writer.end - at < 8:
        return encoder.put(value)
    if encoder.kind == FP_KIND_INT64 and PyLong_CheckExact(value):
        integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return encoder.put(value)
        (<int64_t *>at)[0] = integer
    elif encoder.kind == FP_KIND_FLOAT64 and PyFloat_CheckExact(value):
        (<double *>at)[0] = PyFloat_AS_DOUBLE(value)
    else:
        return encoder.put(value)
    encoder.number += 1
    if fp_writer_commit(&encoder.writer, at + 8):
        return encoder.wanted()
    return 0


cdef class Decoder(Unpacker):
    """Turns items back into objects; puts items together that came in fragments."""
    cdef TagReader tags
    cdef Outbox outbox     # of the worker, if it is a thread
    cdef bint dry          # items are passed over: no objects are made of them
    cdef bytearray pieces  # of an item that has begun to come in fragments, or None
    cdef int inner_kind    # kind of the last item that came in a large block or in fragments
    cdef uint64_t block_at  # where that block was

    cdef object item(self, int kind, const unsigned char **at, const unsigned char *end)
    cdef int pass_over(self, int kind, const unsigned char **at, const unsigned char *end) except -1
    cdef object tagged(self, const unsigned char **at, const unsigned char *end)
    cdef object reference(self, const unsigned char *at)
    cdef object fragment(self, const unsigned char **at, const unsigned char *end)
    cdef object of_summed(self, int kind, uint32_t tag, uint64_t total, const unsigned char *data, uint64_t size)
    cdef object of_data(self, int kind, uint32_t tag, const unsigned char *data, uint64_t size)

cdef object PLACED      # the result is in the place the plan has for it
cdef object INCOMPLETE  # what Decoder.fragment returns while pieces are missing
