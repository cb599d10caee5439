"""Tagged bytes to values (`_tags.pxd`). The bytes may be damaged: nothing in them is believed."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_FromDoubles
from cpython.float cimport PyFloat_FromDouble
from cpython.object cimport PyObject
from libc.stdint cimport int8_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from fastpool._scalars cimport TYPE_BYTES, TYPE_TEXT, load_scalar, scalar_class, scalar_size
from fastpool._tags cimport (
    ALONE, BIG, BYTEARRAY, BYTES, COMPLEX, DICT, FALSE, FLOAT, FROZENSET, INT8, INT32, INT64, LIST, MAX_DEPTH, MEMO,
    NONE, OBJECT_REF, SCALAR, SET, SHAPE, SHAPED, TEXT1, TEXT2, TEXT4, TEXT_REF, TRUE, TUPLE,
)
from fastpool.errors import DamagedMemoryError

cdef extern from "Python.h":
    void Py_INCREF(object value)
    void Py_DECREF(object value)
    object PyLong_FromLongLong(long long value)
    bint PyUnicode_CheckExact(object value)
    object PyUnicode_FromKindAndData(int kind, const void *data, Py_ssize_t size)
    object PyByteArray_FromStringAndSize(const char *data, Py_ssize_t size)
    tuple PyTuple_New(Py_ssize_t size)
    PyObject *PyTuple_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(object items)
    void PyTuple_SET_ITEM(object items, Py_ssize_t index, object value)
    list PyList_New(Py_ssize_t size)
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyList_GET_SIZE(object items)
    void PyList_SET_ITEM(object items, Py_ssize_t index, object value)
    object PySet_New(PyObject *items)
    object PyFrozenSet_New(PyObject *items)
    int PySet_Add(object items, object value) except -1
    int PyDict_SetItem(object items, PyObject *key, object value) except -1
    dict PyDict_Copy(object items)

cdef enum:
    MOST_KNOWN = 64       # shapes
    MOST_SHARED = 30      # keys that CPython lets dicts share
    ROWS_TO_SETTLE = 32

cdef str NONSENSE = "the bytes of a tagged item make no sense"
cdef object PENDING = object()  # in the place of an object that is not there yet


cdef inline int damaged() except -1:
    raise DamagedMemoryError(NONSENSE)


@cython.final
cdef class TagReader:
    def __cinit__(self):
        self.objects = []
        self.strings = []
        self.shapes = []
        self.templates = []
        self.known = {}

    def loads(self, bytes data) -> object:
        """The value of the next item."""
        return self.read(<const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef void forget(self) noexcept:
        self.strings.clear()
        self.shapes.clear()
        self.templates.clear()

    cdef object read(self, const unsigned char *data, uint64_t size):
        """The value of the next item. Reads nothing beyond it; bytes that make no sense are a DamagedMemoryError."""
        cdef object value
        self.at = data
        self.end = data + size
        self.owed = 0
        if PyList_GET_SIZE(self.objects):
            self.objects.clear()  # of an item that could not be read
        if size and data[0] == ALONE:
            self.at += 1
            self.forget()
        value = self.read_value(0)
        if PyList_GET_SIZE(self.objects):
            self.objects.clear()
        if self.at != self.end:
            damaged()
        return value

    # ------------------------------------------------------------ bytes

    cdef inline const unsigned char *take(self, uint64_t size) except NULL:
        """The next `size` bytes."""
        cdef const unsigned char *at = self.at
        if <uint64_t>(self.end - at) < size:
            damaged()
        self.at = at + size
        return at

    cdef inline uint64_t read_number(self) except? 0:
        cdef const unsigned char *at = self.at
        if at < self.end and at[0] < 128:
            self.at = at + 1
            return at[0]
        return self.read_digits(self.take(1)[0] & 127)

    cdef uint64_t read_digits(self, uint64_t number) except? 0:
        """The rest of a number, after its first digit."""
        cdef uint64_t digit = 128
        cdef int shift = 7
        while digit >= 128:
            if shift > 56:
                damaged()
            digit = self.take(1)[0]
            number |= (digit & 127) << shift
            shift += 7
        return number

    cdef uint64_t expect(self, uint64_t count, uint64_t each) except? 0:
        """A container waits for `count` times `each` values. There must be bytes for them, so that no place is made
        for more values than there can be."""
        cdef uint64_t left = <uint64_t>(self.end - self.at)
        if left < self.owed or count > (left - self.owed) // each:
            damaged()
        self.owed += count * each
        return count

    cdef inline object read_owed(self, int depth):
        """A value that a container waits for."""
        self.owed -= 1
        return self.read_value(depth)

    # ------------------------------------------------------------ values

    cdef inline object read_value(self, int depth):
        """The most frequent values, in few steps; others, and those that are not whole, by :meth:`read_other`."""
        cdef const unsigned char *at = self.at
        cdef int64_t left = self.end - at
        cdef int tag = at[0] if left > 0 else BIG
        cdef int32_t number
        cdef double real
        if tag == INT8 and left > 1:
            self.at = at + 2
            return PyLong_FromLongLong(<int8_t>at[1])
        if tag == INT32 and left > 4:
            self.at = at + 5
            memcpy(&number, at + 1, 4)
            return PyLong_FromLongLong(number)
        if tag == FLOAT and left > 8:
            self.at = at + 9
            memcpy(&real, at + 1, 8)
            return PyFloat_FromDouble(real)
        if tag == TEXT_REF and left > 1 and at[1] < 128:
            self.at = at + 2
            return listed(self.strings, at[1])
        if tag == NONE:
            self.at = at + 1
            return None
        if tag == TRUE:
            self.at = at + 1
            return True
        if tag == FALSE:
            self.at = at + 1
            return False
        return self.read_other(depth)

    cdef object read_other(self, int depth):
        cdef int tag = self.take(1)[0]
        cdef int memo
        cdef int64_t number
        cdef uint64_t size
        cdef object value
        if tag == INT64:
            memcpy(&number, self.take(8), 8)
            return PyLong_FromLongLong(number)
        if tag == TEXT_REF:
            return listed(self.strings, self.read_number())
        if tag == OBJECT_REF:
            return listed(self.objects, self.read_number())
        if tag == BIG:
            size = self.read_number()
            return int.from_bytes(PyBytes_FromStringAndSize(<const char *>self.take(size), size), "little",
                                  signed=True)
        memo = tag & MEMO
        tag ^= memo
        if tag == TEXT1 or tag == TEXT2 or tag == TEXT4:
            value = self.read_text(1 if tag == TEXT1 else 2 if tag == TEXT2 else 4)
            if memo:
                self.strings.append(value)
            return value
        if depth == MAX_DEPTH:
            damaged()
        if tag == SHAPED or tag == SHAPE:
            return self.read_shaped(tag == SHAPE, memo, depth + 1)
        if tag == TUPLE:
            return self.read_tuple(memo, depth + 1)
        if tag == LIST:
            return self.read_list(memo, depth + 1)
        if tag == DICT:
            return self.read_pairs(memo, depth + 1)
        if tag == SET or tag == FROZENSET:
            return self.read_set(tag == FROZENSET, memo, depth + 1)
        value = self.read_bytes(tag)
        if memo:
            self.objects.append(value)
        return value

    cdef object read_text(self, int width):
        cdef uint64_t length = self.read_number()
        if length > <uint64_t>(self.end - self.at) // width:
            damaged()
        if width < 4:
            return PyUnicode_FromKindAndData(width, self.take(length * width), length)
        try:
            return PyUnicode_FromKindAndData(width, self.take(length * width), length)
        except (ValueError, SystemError) as error:  # a character that there is not
            raise DamagedMemoryError(NONSENSE) from error

    cdef object read_bytes(self, int tag):
        """What has no values inside and is remembered: bytes, bytearray, complex, a numpy scalar."""
        cdef uint64_t size
        cdef double parts[2]
        cdef const unsigned char *data
        if tag == BYTES or tag == BYTEARRAY:
            size = self.read_number()
            data = self.take(size)
            if tag == BYTES:
                return PyBytes_FromStringAndSize(<const char *>data, size)
            return PyByteArray_FromStringAndSize(<const char *>data, size)
        if tag == COMPLEX:
            memcpy(parts, self.take(16), 16)
            return PyComplex_FromDoubles(parts[0], parts[1])
        if tag == SCALAR:
            try:
                return self.read_scalar()
            except (ValueError, SystemError) as error:  # of a type, or of a unit, that there is not
                raise DamagedMemoryError(NONSENSE) from error
        damaged()

    cdef object read_scalar(self):
        cdef uint64_t number = self.read_number()
        cdef int size, tag
        if number > 127:
            damaged()
        size = scalar_size(number)
        if size:
            return load_scalar(number, self.take(size))
        tag = self.take(1)[0]
        if number == <uint64_t>TYPE_TEXT and (tag == TEXT1 or tag == TEXT2 or tag == TEXT4):
            return scalar_class(number)(self.read_text(1 if tag == TEXT1 else 2 if tag == TEXT2 else 4))
        if number == <uint64_t>TYPE_BYTES and tag == BYTES:
            return scalar_class(number)(self.read_bytes(BYTES))
        damaged()

    cdef object read_tuple(self, int memo, int depth):
        cdef uint64_t size = self.expect(self.read_number(), 1)
        cdef tuple items = PyTuple_New(size)
        cdef object value
        cdef uint64_t i
        if memo:  # what is inside may refer to it: no empty places
            for i in range(size):
                Py_INCREF(None)
                PyTuple_SET_ITEM(items, i, None)
            self.objects.append(items)
        for i in range(size):
            value = self.read_owed(depth)
            Py_INCREF(value)
            if memo:
                Py_DECREF(None)
            PyTuple_SET_ITEM(items, i, value)
        return items

    cdef object read_list(self, int memo, int depth):
        cdef uint64_t size = self.expect(self.read_number(), 1)
        cdef list items = PyList_New(size)
        cdef object value
        cdef uint64_t i
        if memo:
            self.objects.append(items)
        for i in range(size):
            value = self.read_owed(depth)
            Py_INCREF(value)
            PyList_SET_ITEM(items, i, value)
        return items

    cdef object read_set(self, bint frozen, int memo, int depth):
        cdef uint64_t size = self.expect(self.read_number(), 1)
        cdef object items = PyFrozenSet_New(NULL) if frozen else PySet_New(NULL)
        cdef Py_ssize_t number = PyList_GET_SIZE(self.objects)
        cdef object element
        cdef uint64_t _
        if memo:
            self.objects.append(PENDING if frozen else items)  # a frozenset cannot be inside itself
        for _ in range(size):
            element = self.read_owed(depth)
            try:
                PySet_Add(items, element)
            except TypeError as error:  # it cannot be hashed
                raise DamagedMemoryError(NONSENSE) from error
        if memo and frozen:
            self.objects[number] = items
        return items

    cdef object read_pairs(self, int memo, int depth):
        cdef uint64_t size = self.expect(self.read_number(), 2)
        cdef dict items = {}
        cdef object key, member
        cdef uint64_t _
        if memo:
            self.objects.append(items)
        for _ in range(size):
            key = self.read_owed(depth)
            member = self.read_owed(depth)
            try:
                PyDict_SetItem(items, <PyObject *>key, member)
            except TypeError as error:  # the key cannot be hashed
                raise DamagedMemoryError(NONSENSE) from error
        return items

    cdef object read_shaped(self, bint new, int memo, int depth):
        cdef uint64_t number = self.read_shape(depth) if new else self.read_number()
        cdef object keys = listed(self.shapes, number)
        cdef object template = <object>PyList_GET_ITEM(self.templates, number)
        cdef uint64_t size = self.expect(PyTuple_GET_SIZE(keys), 1)
        cdef dict items = {} if template is None else PyDict_Copy(template)
        cdef uint64_t i
        if memo:
            self.objects.append(items)
        for i in range(size):
            PyDict_SetItem(items, PyTuple_GET_ITEM(keys, i), self.read_owed(depth))
        return items

    cdef uint64_t read_shape(self, int depth) except? 0:
        """Read the keys of a new shape; its number."""
        cdef uint64_t size = self.expect(self.read_number(), 1)
        cdef uint64_t known = PyList_GET_SIZE(self.strings)
        cdef tuple keys = PyTuple_New(size)
        cdef object template = None
        cdef object key
        cdef uint64_t i
        for i in range(size):
            key = self.read_owed(depth)
            if not PyUnicode_CheckExact(key):
                damaged()
            Py_INCREF(key)
            PyTuple_SET_ITEM(keys, i, key)
        if 0 < size <= MOST_SHARED and <uint64_t>PyList_GET_SIZE(self.strings) == known + size:
            keys, template = self.met_before(keys)
            self.strings[known:] = keys
        self.shapes.append(keys)
        self.templates.append(template)
        return PyList_GET_SIZE(self.shapes) - 1

    cdef tuple met_before(self, tuple keys):
        """(Equal keys, those of the template; the template of dicts with these keys, from the second time on)."""
        cdef object found = self.known.get(keys)
        if found is None:
            if len(self.known) == MOST_KNOWN:
                self.known.clear()
            found = self.known[keys] = (keys, None)
        elif found[1] is None:
            found = self.known[keys] = (found[0], dict_template(found[0]))
        return found


cdef dict dict_template(tuple keys):
    """A dict of Nones whose copies share one table of keys, as the dicts of a class's instances do (PEP 412): smaller,
    and sooner made, than dicts with a table each. With each instance CPython leaves less room for keys to come."""
    cdef object kind = type("Row", (), {})
    cdef dict template = {}
    for _ in range(ROWS_TO_SETTLE):
        template = kind().__dict__
        for key in keys:
            template[key] = None
    return template


cdef inline object listed(list values, uint64_t number):
    """What was given a number."""
    cdef object value
    if number >= <uint64_t>PyList_GET_SIZE(values):
        damaged()
    value = <object>PyList_GET_ITEM(values, number)
    if value is PENDING:
        damaged()
    return value
