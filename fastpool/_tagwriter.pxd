cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from fastpool._memo cimport Memo


@cython.final
cdef class TagWriter:
    """Turns values into tagged bytes, one item after another."""
    cdef bytearray buffer
    cdef unsigned char *start     # of the item, in the buffer or where its reader looks for it
    cdef unsigned char *at
    cdef unsigned char *end
    cdef bint alone               # the last item needs no item before it
    cdef bint fresh               # nothing that came before may be referred to
    # of the item
    cdef Memo objects             # those that may be met again
    cdef uint32_t n_objects
    # of all items since `fresh`
    cdef Memo strings
    cdef uint32_t n_strings
    cdef list held                # keeps alive what `strings` has the address of
    cdef dict shapes              # number by keys
    cdef list shape_keys          # by number: the keys, as the very objects that were last met
    cdef unsigned char recent[64]  # by hash of the first key's address and the size: the shape to try

    cdef void forget(self) noexcept
    cdef bint write(self, object value, unsigned char *start, unsigned char *end) except -1
    cdef uint64_t size(self) noexcept

    cdef int renew(self) except -1
    cdef unsigned char *room(self, uint64_t size) except NULL
    cdef unsigned char *grow(self, uint64_t size) except NULL
    cdef int write_head(self, int tag, uint64_t number) except -1
    cdef int write_data(self, int tag, uint64_t count, const void *data, uint64_t size) except -1
    cdef int memoize(self, PyObject *value, Py_ssize_t owners=*) except -1
    cdef bint write_value(self, PyObject *value, int depth) except -1
    cdef bint write_plain(self, PyObject *value) except -1
    cdef bint write_integer(self, object value) except -1
    cdef bint write_big(self, object value) except -1
    cdef bint write_text(self, PyObject *value, bint shared) except -1
    cdef bint write_bytes(self, PyObject *value) except -1
    cdef bint write_tuple(self, tuple value, int memo, int depth) except -1
    cdef bint write_list(self, list value, int memo, int depth) except -1
    cdef bint write_set(self, object value, int tag, int depth) except -1
    cdef bint write_dict(self, dict value, int memo, int depth) except -1
    cdef bint write_pairs(self, dict value, int memo, int depth) except -1
    cdef bint write_new(self, dict value, int memo, int depth) except -1
    cdef bint write_members(self, dict value, Py_ssize_t size, Py_ssize_t written, int depth) except -1
    cdef int known_shape(self, dict value, Py_ssize_t size, PyObject **members) noexcept
    cdef int shape_by_value(self, tuple keys) except -2
    cdef int new_shape(self, tuple keys) except -1
    cdef bint write_scalar(self, PyObject *value) except -1
