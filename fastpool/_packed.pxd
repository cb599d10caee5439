from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastpool._native cimport Segment, fp_array, fp_buffer


cdef enum:
    KEEP_BYTES = 1 << 20  # results of as many bytes stay in shared memory; smaller ones become private


cdef class Packer:
    """Builds the bytes of a packed item in private memory. Where large buffers go is the subclass's."""
    cdef unsigned char *packed     # the item, after pack_array or pack_pickle
    cdef uint64_t packed_bytes
    cdef uint64_t packed_room
    cdef bint fresh                # what is being placed was made by the packer itself

    cdef bint pack_array(self, object array) except -1
    cdef int pack_pickle(self, bytes pickled, list buffers) except -1
    cdef unsigned char *reserve(self, uint64_t bytes) except NULL
    # the subclass's part
    cdef bint reachable(self, object array, fp_buffer *buffer) except -1
    cdef int place(self, const void *data, uint64_t size, object keep, fp_buffer *buffer) except -1


cdef class Unpacker:
    """Makes objects of packed items."""
    cdef Segment segment
    cdef object loads
    cdef uint32_t heap     # whose large blocks the items may name
    cdef bint in_worker    # arguments: blocks are the parent's, references are allowed; else results
    cdef unsigned char *lowest   # public memory of the job's large arguments: from here
    cdef unsigned char *highest  # to here
    cdef bytearray spare   # private memory for the next large argument, while nobody else uses it

    cdef object unpack(self, const unsigned char *data, uint64_t size)
    cdef object array(self, const fp_array *head, const int64_t *sizes, object dtype, const fp_buffer *buffer,
                      const unsigned char *inlined)
    cdef object strided(self, object dtype, const fp_array *head, const int64_t *sizes, const fp_buffer *buffer)
    cdef object unpack_array(self, const unsigned char *meta, uint64_t size, const fp_buffer *buffer,
                             const unsigned char *inlined)
    cdef int demand_block(self, const fp_buffer *buffer) except -1
    cdef int fill(self, void *to, const fp_buffer *buffer, const unsigned char *inlined) except -1
    cdef object memory_of(self, const fp_buffer *buffer, const unsigned char *inlined)
    cdef void *mapped(self, const fp_buffer *buffer) except NULL
    cdef bytearray spare_bytes(self, uint64_t size)
    cdef bint in_place(self, const fp_buffer *buffer) noexcept


cdef bint is_sole(object value) noexcept
cdef void *sole_memory(object value) noexcept
cdef void *array_data(object array) noexcept
cdef uint64_t array_bytes(object array) noexcept
cdef object view_of(void *data, tuple shape, object dtype)
cdef bytes dump_with_shared_arrays(object value, list buffers, object make_pickler)
cdef bint is_private(object memory) except -1
cdef object dtype_from(int type_number, bytes pickled)
cdef int native_type(object dtype) except -2
cdef bytes dtype_bytes(object dtype)
cdef bint is_array(object value) noexcept
cdef bint is_packable(object array) except -1
