from cpython.object cimport PyTypeObject

cdef enum:
    SCALAR_BYTES = 32  # the most that a scalar of fixed size takes

# Numbers of numpy's types that are text in their own right.
cdef int TYPE_BYTES
cdef int TYPE_TEXT

cdef int scalar_type(const PyTypeObject *kind) except -2
cdef int scalar_size(int number) except -1
cdef int store_scalar(int number, object value, unsigned char *to) except -1
cdef object load_scalar(int number, const unsigned char *data)
cdef object scalar_class(int number)
