"""numpy's scalars to bytes and back.

numpy is imported by the first scalar that is met: who has none does not pay for it.
"""

from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, strncmp

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArray_Descr:
        pass
    int _import_array() except -1
    PyArray_Descr *PyArray_DescrFromType(int number) except NULL
    PyObject *PyArray_TypeObjectFromType(int number) except NULL
    object PyArray_Scalar(void *data, PyArray_Descr *descr, object base)
    void PyArray_ScalarAsCtype(object scalar, void *to)
    enum:
        NPY_BOOL
        NPY_BYTE
        NPY_UBYTE
        NPY_SHORT
        NPY_USHORT
        NPY_INT
        NPY_UINT
        NPY_LONG
        NPY_ULONG
        NPY_LONGLONG
        NPY_ULONGLONG
        NPY_HALF
        NPY_FLOAT
        NPY_DOUBLE
        NPY_LONGDOUBLE
        NPY_CFLOAT
        NPY_CDOUBLE
        NPY_CLONGDOUBLE
        NPY_DATETIME
        NPY_TIMEDELTA
        NPY_STRING
        NPY_UNICODE
        NPY_FR_GENERIC
    int NPY_SIZEOF_LONG
    int NPY_SIZEOF_LONGDOUBLE

cdef extern from "numpy/arrayscalars.h":
    ctypedef struct PyArray_DatetimeMetaData:
        int base
        int num
    ctypedef struct PyDatetimeScalarObject:
        int64_t obval
        PyArray_DatetimeMetaData obmeta

cdef extern from "Python.h":
    void Py_DECREF(PyObject *value)

cdef enum:
    TYPES = 32     # numpy's numbers of its own types are below
    NO_UNIT = 3    # a unit of datetimes that numpy has no more
    DATETIME_BYTES = 16

TYPE_BYTES = NPY_STRING
TYPE_TEXT = NPY_UNICODE

cdef PyObject *classes[TYPES]  # by number
cdef unsigned char sizes[TYPES]
cdef bint ready = False


cdef int prepare() except -1:
    """Import numpy, and fill the tables."""
    global ready
    _import_array()
    describe((NPY_BOOL, NPY_BYTE, NPY_UBYTE), 1)
    describe((NPY_SHORT, NPY_USHORT, NPY_HALF), 2)
    describe((NPY_INT, NPY_UINT, NPY_FLOAT), 4)
    describe((NPY_LONG, NPY_ULONG), NPY_SIZEOF_LONG)
    describe((NPY_LONGLONG, NPY_ULONGLONG, NPY_DOUBLE, NPY_CFLOAT), 8)
    describe((NPY_CDOUBLE, ), 16)
    describe((NPY_LONGDOUBLE, ), NPY_SIZEOF_LONGDOUBLE)
    describe((NPY_CLONGDOUBLE, ), 2 * NPY_SIZEOF_LONGDOUBLE)
    describe((NPY_DATETIME, NPY_TIMEDELTA), DATETIME_BYTES)
    describe((NPY_STRING, NPY_UNICODE), 0)
    ready = True
    return 0

cdef int describe(tuple numbers, int size) except -1:
    cdef int number
    for number in numbers:
        classes[number] = PyArray_TypeObjectFromType(number)  # a reference for good
        sizes[number] = size
    return 0


cdef int scalar_type(const PyTypeObject *kind) except -2:
    """numpy's number of a class of scalars; -1 if it is not one of numpy's plain ones."""
    cdef int number
    if strncmp(kind.tp_name, b"numpy.", 6):
        return -1
    if not ready:
        prepare()
    for number in range(TYPES):
        if classes[number] == <const PyObject *>kind:
            return number
    return -1

cdef int scalar_size(int number) except -1:
    """Bytes of every scalar of the type; 0: of various sizes (TYPE_BYTES, TYPE_TEXT)."""
    if not ready:
        prepare()
    if not 0 <= number < TYPES or classes[number] is NULL:
        raise ValueError("a numpy scalar of unknown type")
    return sizes[number]

cdef object scalar_class(int number):
    return <object>classes[number]

cdef int store_scalar(int number, object value, unsigned char *to) except -1:
    """Copy a scalar of fixed size to `to`, which has room for scalar_size(number) bytes."""
    cdef PyDatetimeScalarObject *moment
    cdef int32_t unit[2]
    if number == NPY_DATETIME or number == NPY_TIMEDELTA:
        moment = <PyDatetimeScalarObject *><PyObject *>value
        unit[0] = moment.obmeta.base
        unit[1] = moment.obmeta.num
        memcpy(to, &moment.obval, 8)
        memcpy(to + 8, unit, 8)
        return 0
    PyArray_ScalarAsCtype(value, to)
    return 0

cdef object load_scalar(int number, const unsigned char *data):
    """The scalar of fixed size whose bytes are at `data`."""
    cdef unsigned char aligned[SCALAR_BYTES]
    cdef PyDatetimeScalarObject *moment
    cdef PyArray_Descr *descr = PyArray_DescrFromType(number)
    cdef int32_t unit[2]
    cdef object value
    memcpy(aligned, data, sizes[number] if number != NPY_DATETIME and number != NPY_TIMEDELTA else 8)
    try:
        value = PyArray_Scalar(aligned, descr, None)
    finally:
        Py_DECREF(<PyObject *>descr)
    if number == NPY_DATETIME or number == NPY_TIMEDELTA:
        memcpy(unit, data + 8, 8)
        if not 0 <= unit[0] <= NPY_FR_GENERIC or unit[0] == NO_UNIT or unit[1] <= 0:
            raise ValueError("a datetime with an unknown unit")
        moment = <PyDatetimeScalarObject *><PyObject *>value
        moment.obmeta.base = unit[0]
        moment.obmeta.num = unit[1]
    return value
