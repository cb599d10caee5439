"""Values to tagged bytes (`_tags.pxd`)."""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_ImagAsDouble, PyComplex_RealAsDouble
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from fastpool._memo cimport Entry, memo_add, memo_clear, memo_open, memo_place
from fastpool._scalars cimport SCALAR_BYTES, TYPE_BYTES, TYPE_TEXT, scalar_size, scalar_type, store_scalar
from fastpool._tags cimport (
    ALONE, BIG, BYTEARRAY, BYTES, COMPLEX, DICT, FALSE, FLOAT, FROZENSET, INT8, INT32, INT64, LIST, MAX_DEPTH, MEMO,
    NONE, OBJECT_REF, SCALAR, SET, SHAPE, SHAPED, TEXT1, TEXT2, TEXT4, TEXT_REF, TRUE, TUPLE,
)

cdef extern from "Python.h":
    PyTypeObject PyLong_Type
    PyTypeObject PyFloat_Type
    PyTypeObject PyComplex_Type
    PyTypeObject PyBool_Type
    PyTypeObject PyUnicode_Type
    PyTypeObject PyBytes_Type
    PyTypeObject PyByteArray_Type
    PyTypeObject PyTuple_Type
    PyTypeObject PyList_Type
    PyTypeObject PyDict_Type
    PyTypeObject PySet_Type
    PyTypeObject PyFrozenSet_Type
    PyTypeObject *Py_TYPE(PyObject *value)
    Py_ssize_t Py_REFCNT(PyObject *value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    int PyUnicode_KIND(PyObject *text)
    void *PyUnicode_DATA(PyObject *text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *text)
    object PyByteArray_FromStringAndSize(const char *data, Py_ssize_t size)
    PyObject *PyTuple_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(object items)
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyList_GET_SIZE(object items)
    Py_ssize_t PySet_GET_SIZE(object items)
    Py_ssize_t PyDict_GET_SIZE(object items)
    int PyDict_Next(object items, Py_ssize_t *position, PyObject **key, PyObject **value)

cdef enum:
    FIXED_BYTES = 48         # room for a tag with whatever of fixed size follows it
    BUFFER_BYTES = 1 << 12
    LARGE_BYTES = 1 << 20    # a buffer of more is not kept
    MAX_SHAPES = 255         # fits `recent`
    MAX_SHAPE = 64           # keys
    RECENT = 64              # places in `recent`
    WRITTEN = 1              # memoize: a reference was written


@cython.final
cdef class TagWriter:
    def __cinit__(self):
        self.buffer = bytearray()
        memo_open(&self.objects)
        memo_open(&self.strings)
        self.held = []
        self.shapes = {}
        self.shape_keys = []
        self.fresh = True

    def __dealloc__(self):
        free(self.objects.entries)
        free(self.strings.entries)

    def dumps(self, value) -> bytes | None:
        """The bytes of the next item; None if the value is not for tags, in which case nothing is remembered."""
        if not self.write(value, NULL, NULL):
            return None
        return PyBytes_FromStringAndSize(<char *>self.start, self.size())

    def begin_anew(self) -> None:
        """Make the next item one that needs no item before it."""
        self.forget()

    cdef void forget(self) noexcept:
        if self.fresh:
            return
        self.fresh = True
        memo_clear(&self.strings)
        self.n_strings = 0
        self.held.clear()
        self.shapes.clear()
        self.shape_keys.clear()
        memset(self.recent, 0, sizeof(self.recent))

    cdef bint write(self, object value, unsigned char *start, unsigned char *end) except -1:
        """Write the next item, in place of the last: to `start`, as long as it fits before `end`, else (or with NULL)
        into the buffer; `self.start` says. False if the value is not for tags."""
        cdef bint done = False
        if start is NULL:
            self.renew()
        else:
            self.start = self.at = start
            self.end = end
        self.alone = self.fresh
        if self.fresh:
            self.room(1)[0] = ALONE
            self.at += 1
            self.fresh = False
        try:
            done = self.write_value(<PyObject *>value, 0)
        finally:
            if self.n_objects:
                memo_clear(&self.objects)
                self.n_objects = 0
            if not done:
                self.forget()
        return done

    cdef uint64_t size(self) noexcept:
        """Of the item, in bytes."""
        return <uint64_t>(self.at - self.start)

    # ------------------------------------------------------------ bytes

    cdef int renew(self) except -1:
        """An empty buffer: a new one if somebody keeps the last item's, or that was large."""
        if Py_REFCNT(<PyObject *>self.buffer) > 1 or not 0 < PyByteArray_GET_SIZE(self.buffer) <= LARGE_BYTES:
            self.buffer = PyByteArray_FromStringAndSize(NULL, BUFFER_BYTES)
        self.start = self.at = <unsigned char *>PyByteArray_AS_STRING(self.buffer)
        self.end = self.start + PyByteArray_GET_SIZE(self.buffer)
        return 0

    cdef inline unsigned char *room(self, uint64_t size) except NULL:
        """Where the next bytes go, with room for `size` of them."""
        if <uint64_t>(self.end - self.at) >= size:
            return self.at
        return self.grow(size)

    cdef unsigned char *grow(self, uint64_t size) except NULL:
        """Go on in the buffer, which gets `size` bytes of room and more."""
        cdef uint64_t used = self.size()
        cdef uint64_t wanted = 2 * (used + size)
        cdef const unsigned char *written = self.start
        if written != <unsigned char *>PyByteArray_AS_STRING(self.buffer):
            self.renew()
            memcpy(self.room(used), written, used)  # of a record
        if wanted > <uint64_t>PyByteArray_GET_SIZE(self.buffer):
            PyByteArray_Resize(self.buffer, wanted)
        self.start = <unsigned char *>PyByteArray_AS_STRING(self.buffer)
        self.at = self.start + used
        self.end = self.start + PyByteArray_GET_SIZE(self.buffer)
        return self.at

    cdef int write_head(self, int tag, uint64_t number) except -1:
        """A tag and a number."""
        cdef unsigned char *at = self.room(FIXED_BYTES)
        at[0] = <unsigned char>tag
        at += 1
        while number >= 128:
            at[0] = <unsigned char>(number | 128)
            number >>= 7
            at += 1
        at[0] = <unsigned char>number
        self.at = at + 1
        return 0

    cdef int write_data(self, int tag, uint64_t count, const void *data, uint64_t size) except -1:
        self.write_head(tag, count)
        memcpy(self.room(size), data, size)
        self.at += size
        return 0

    # ------------------------------------------------------------ values
    #
    # A garbage collection may run in between, and code of the user's in it. So what is being written is kept alive (the
    # arguments are borrowed), and the size of what can change is looked at again.

    cdef int memoize(self, PyObject *value, Py_ssize_t owners=1) except -1:
        """The bit for the tag of an object that pickle would remember: 0, MEMO; or WRITTEN, as a reference.

        With no more than `owners` references to it, nothing else can refer to it.
        """
        cdef Entry *place
        if Py_REFCNT(value) <= owners:
            return 0
        place = memo_place(&self.objects, value)
        if place.age == self.objects.age:
            self.write_head(OBJECT_REF, place.number)
            return WRITTEN
        memo_add(&self.objects, place, value, self.n_objects)
        self.n_objects += 1
        return MEMO

    cdef bint write_value(self, PyObject *value, int depth) except -1:
        cdef PyTypeObject *kind = Py_TYPE(value)
        cdef int memo
        if kind == &PyTuple_Type or kind == &PyDict_Type or kind == &PyList_Type:
            if depth == MAX_DEPTH:
                return False
            if kind == &PyTuple_Type and PyTuple_GET_SIZE(<object>value) == 0:
                return self.write_head(TUPLE, 0) == 0
            memo = self.memoize(value)
            if memo == WRITTEN:
                return True
            if kind == &PyTuple_Type:
                return self.write_tuple(<tuple>value, memo, depth + 1)
            if kind == &PyDict_Type:
                return self.write_dict(<dict>value, memo, depth + 1)
            return self.write_list(<list>value, memo, depth + 1)
        if self.write_plain(value):
            return True
        if kind == &PyLong_Type:
            return self.write_big(<object>value)
        if depth == MAX_DEPTH:
            return False
        if kind == &PyBytes_Type or kind == &PyByteArray_Type or kind == &PyComplex_Type:
            return self.write_bytes(value)
        if kind == &PySet_Type or kind == &PyFrozenSet_Type:
            memo = self.memoize(value)
            if memo == WRITTEN:
                return True
            return self.write_set(<object>value, memo | (SET if kind == &PySet_Type else FROZENSET), depth + 1)
        return self.write_scalar(value)

    cdef bint write_plain(self, PyObject *value) except -1:
        """Write a text, a number, a bool or None, during which no collection can run. False: it is none of them."""
        cdef PyTypeObject *kind = Py_TYPE(value)
        cdef unsigned char *at
        cdef double number
        if kind == &PyUnicode_Type:
            return self.write_text(value, Py_REFCNT(value) > 1)
        if kind == &PyLong_Type:
            return self.write_integer(<object>value)
        at = self.room(FIXED_BYTES)
        if kind == &PyFloat_Type:
            number = PyFloat_AS_DOUBLE(<object>value)
            at[0] = FLOAT
            memcpy(at + 1, &number, 8)
            self.at = at + 9
            return True
        if kind == &PyBool_Type:
            at[0] = TRUE if <object>value is True else FALSE
        elif <object>value is None:
            at[0] = NONE
        else:
            return False
        self.at = at + 1
        return True

    cdef bint write_integer(self, object value) except -1:
        """False: it is too big."""
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
        cdef unsigned char *at = self.room(FIXED_BYTES)
        if overflow:
            return False
        if number == <int8_t>number:
            at[0] = INT8
            at[1] = <unsigned char>number
            self.at = at + 2
        elif number == <int32_t>number:
            at[0] = INT32
            memcpy(at + 1, &number, 4)  # the lower half comes first on every machine that the core is for
            self.at = at + 5
        else:
            at[0] = INT64
            memcpy(at + 1, &number, 8)
            self.at = at + 9
        return True

    cdef bint write_big(self, object value) except -1:
        cdef object kept = value
        cdef bytes data = kept.to_bytes(kept.bit_length() // 8 + 1, "little", signed=True)
        self.write_data(BIG, PyBytes_GET_SIZE(data), PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return True

    cdef bint write_text(self, PyObject *value, bint shared) except -1:
        cdef int width = PyUnicode_KIND(value)
        cdef int tag = TEXT1 if width == 1 else TEXT2 if width == 2 else TEXT4
        cdef uint64_t length = PyUnicode_GET_LENGTH(value)
        cdef Entry *place
        if shared:
            place = memo_place(&self.strings, value)
            if place.age == self.strings.age:
                return self.write_head(TEXT_REF, place.number) == 0
            self.held.append(<object>value)
            memo_add(&self.strings, place, value, self.n_strings)
            self.n_strings += 1
            tag |= MEMO
        self.write_data(tag, length, PyUnicode_DATA(value), length * width)
        return True

    cdef bint write_bytes(self, PyObject *value) except -1:
        """What has no values inside, is of various sizes and is remembered: bytes, bytearray, complex."""
        cdef PyTypeObject *kind = Py_TYPE(value)
        cdef int memo = self.memoize(value)
        cdef unsigned char *at
        cdef double parts[2]
        if memo == WRITTEN:
            return True
        if kind == &PyBytes_Type:
            self.write_data(BYTES | memo, PyBytes_GET_SIZE(<object>value), PyBytes_AS_STRING(<object>value),
                            PyBytes_GET_SIZE(<object>value))
        elif kind == &PyByteArray_Type:
            self.write_data(BYTEARRAY | memo, PyByteArray_GET_SIZE(<object>value),
                            PyByteArray_AS_STRING(<object>value), PyByteArray_GET_SIZE(<object>value))
        else:
            parts[0] = PyComplex_RealAsDouble(<object>value)
            parts[1] = PyComplex_ImagAsDouble(<object>value)
            at = self.room(FIXED_BYTES)
            at[0] = COMPLEX | memo
            memcpy(at + 1, parts, 16)
            self.at = at + 17
        return True

    cdef bint write_tuple(self, tuple value, int memo, int depth) except -1:
        cdef tuple kept = value
        cdef Py_ssize_t i
        self.write_head(TUPLE | memo, PyTuple_GET_SIZE(kept))
        for i in range(PyTuple_GET_SIZE(kept)):
            if not self.write_plain(PyTuple_GET_ITEM(kept, i)):
                if not self.write_value(PyTuple_GET_ITEM(kept, i), depth):
                    return False
        return True

    cdef bint write_list(self, list value, int memo, int depth) except -1:
        cdef list kept = value
        cdef Py_ssize_t size = PyList_GET_SIZE(kept)
        cdef Py_ssize_t i = 0
        self.write_head(LIST | memo, size)
        while i < size and i < PyList_GET_SIZE(kept):
            if not self.write_plain(PyList_GET_ITEM(kept, i)):
                if not self.write_value(PyList_GET_ITEM(kept, i), depth):
                    return False
            i += 1
        return unchanged(size, PyList_GET_SIZE(kept))

    cdef bint write_set(self, object value, int tag, int depth) except -1:
        cdef object kept = value
        cdef object element
        cdef Py_ssize_t size = PySet_GET_SIZE(kept)
        self.write_head(tag, size)
        for element in kept:
            if not self.write_value(<PyObject *>element, depth):
                return False
        return unchanged(size, PySet_GET_SIZE(kept))

    cdef bint write_dict(self, dict value, int memo, int depth) except -1:
        cdef dict kept = value
        cdef PyObject *members[MAX_SHAPE]  # borrowed: for as long as only plain values are written
        cdef Py_ssize_t size = PyDict_GET_SIZE(kept)
        cdef Py_ssize_t i
        cdef int number
        if not 0 < size <= MAX_SHAPE:
            return self.write_pairs(kept, memo, depth)
        number = self.known_shape(kept, size, members)
        if number < 0:
            return self.write_new(kept, memo, depth)
        self.write_head(SHAPED | memo, number)
        for i in range(size):
            if not self.write_plain(members[i]):
                return self.write_members(kept, size, i, depth)
        return True

    cdef bint write_new(self, dict value, int memo, int depth) except -1:
        """Write a dict whose keys are not the very ones of a shape."""
        cdef tuple keys = tuple(value)
        cdef Py_ssize_t size = PyTuple_GET_SIZE(keys)
        cdef int number
        if not all_text(keys):
            return self.write_pairs(value, memo, depth)
        number = self.shape_by_value(keys)
        if number >= 0:
            self.write_head(SHAPED | memo, number)
        elif len(self.shape_keys) == MAX_SHAPES:
            return self.write_pairs(value, memo, depth)
        else:
            self.write_head(SHAPE | memo, size)
            self.new_shape(keys)
        return self.write_members(value, size, 0, depth)

    cdef bint write_pairs(self, dict value, int memo, int depth) except -1:
        cdef Py_ssize_t size = PyDict_GET_SIZE(value)
        cdef Py_ssize_t at = 0
        cdef PyObject *key
        cdef PyObject *member
        self.write_head(DICT | memo, size)
        while PyDict_Next(value, &at, &key, &member):
            # Dicts may share a table of keys: a key's reference count does not show whose it is.
            if Py_TYPE(key) == &PyUnicode_Type:
                self.write_text(key, True)
            elif not self.write_value(key, depth):
                return False
            if not self.write_value(member, depth):
                return False
        return unchanged(size, PyDict_GET_SIZE(value))

    cdef bint write_members(self, dict value, Py_ssize_t size, Py_ssize_t written, int depth) except -1:
        """The dict's values behind those `written`."""
        cdef Py_ssize_t at = 0
        cdef PyObject *member
        for _ in range(written):
            PyDict_Next(value, &at, NULL, NULL)
        while PyDict_Next(value, &at, NULL, &member):
            if not self.write_value(member, depth):
                return False
        return unchanged(size, PyDict_GET_SIZE(value))

    cdef bint write_scalar(self, PyObject *value) except -1:
        cdef object kept = <object>value
        cdef int number = scalar_type(Py_TYPE(value))
        cdef int memo
        if number < 0:
            return False
        memo = self.memoize(value, 2)
        if memo == WRITTEN:
            return True
        self.write_head(SCALAR | memo, number)
        if number == TYPE_TEXT:
            return self.write_text(value, False)
        if number == TYPE_BYTES:
            self.write_data(BYTES, PyBytes_GET_SIZE(kept), PyBytes_AS_STRING(kept), PyBytes_GET_SIZE(kept))
            return True
        store_scalar(number, kept, self.room(SCALAR_BYTES))
        self.at += scalar_size(number)
        return True

    # ------------------------------------------------------------ shapes of dicts

    cdef int known_shape(self, dict value, Py_ssize_t size, PyObject **members) noexcept:
        """The shape that has the very keys of a dict, whose values `members` gets, if it is the one to try; else -1."""
        cdef Py_ssize_t at = 0, i = 0
        cdef PyObject *key
        cdef PyObject *shape
        cdef int number
        PyDict_Next(value, &at, &key, members)
        number = <int>self.recent[recent_place(key, size)] - 1
        if number < 0:
            return -1
        shape = PyList_GET_ITEM(self.shape_keys, number)
        if PyTuple_GET_SIZE(<object>shape) != size:
            return -1
        while PyTuple_GET_ITEM(<object>shape, i) == key:
            i += 1
            if i == size:
                return number
            PyDict_Next(value, &at, &key, &members[i])
        return -1

    cdef int shape_by_value(self, tuple keys) except -2:
        """The shape with equal keys, or -1. From here on they are the same texts to the reader."""
        cdef object found = self.shapes.get(keys)
        cdef tuple known
        cdef Py_ssize_t i
        cdef Entry *place
        cdef uint32_t number
        if found is None:
            return -1
        known = self.shape_keys[found]
        for i in range(PyTuple_GET_SIZE(keys)):
            number = memo_place(&self.strings, PyTuple_GET_ITEM(known, i)).number
            place = memo_place(&self.strings, PyTuple_GET_ITEM(keys, i))
            if place.age == self.strings.age:
                if place.number != number:
                    return -1  # the reader has the key as another text than the shape's
            else:
                self.held.append(keys[i])
                memo_add(&self.strings, place, PyTuple_GET_ITEM(keys, i), number)
        self.shape_keys[found] = keys
        self.recent[recent_place(PyTuple_GET_ITEM(keys, 0), PyTuple_GET_SIZE(keys))] = found + 1
        return found

    cdef int new_shape(self, tuple keys) except -1:
        """Write the keys of a shape that is not known yet."""
        cdef Py_ssize_t i
        cdef int number = PyList_GET_SIZE(self.shape_keys)
        for i in range(PyTuple_GET_SIZE(keys)):
            self.write_text(PyTuple_GET_ITEM(keys, i), True)
        self.shapes[keys] = number
        self.shape_keys.append(keys)
        self.recent[recent_place(PyTuple_GET_ITEM(keys, 0), PyTuple_GET_SIZE(keys))] = number + 1
        return 0


cdef inline uint64_t recent_place(const PyObject *key, uint64_t size) noexcept:
    return ((<uint64_t>key >> 4) ^ (<uint64_t>key >> 10) ^ size) % RECENT

cdef inline bint unchanged(Py_ssize_t before, Py_ssize_t now) except -1:
    if before != now:
        raise RuntimeError("a container changed while it was encoded")
    return True

cdef bint all_text(tuple keys) except -1:
    cdef Py_ssize_t i
    for i in range(PyTuple_GET_SIZE(keys)):
        if Py_TYPE(PyTuple_GET_ITEM(keys, i)) != &PyUnicode_Type:
            return False
    return True
