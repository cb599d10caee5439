"""Values of builtin types, nested as they like, and numpy scalars, to tagged bytes and back.

A value is a tag, then what the tag says. Numbers of things are in base 128, least digit first.

    NONE FALSE TRUE                     nothing more
    INT8 INT32 INT64, BIG               1, 4, 8 bytes; length, bytes in two's complement
    FLOAT, COMPLEX                      8, 16 bytes
    TEXT1 TEXT2 TEXT4                   length, characters of 1, 2, 4 bytes
    BYTES BYTEARRAY                     length, bytes
    TUPLE LIST SET FROZENSET            count, values
    DICT                                count, key, value, key, value …
    SHAPE                               count, keys (texts), values: the keys are the next shape
    SHAPED                              number of a shape, values
    SCALAR                              numpy's number of the type, bytes
    TEXT_REF, OBJECT_REF                number of a text or an object that came before

The bit MEMO in a tag gives the text or the object the next number. Objects are numbered within one item, so that what was
one object is one object again: what pickle would remember is numbered, unless its reference count shows that nothing
else can refer to it. Texts and shapes are numbered from an item that begins with ALONE on. The writer may begin
anew with any item, and has to when the reader might miss an item between this one and the last.

A value of any other type anywhere inside, one that is nested too deep too, is not for tags at all.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_FromDoubles, PyComplex_ImagAsDouble, PyComplex_RealAsDouble
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastpool._scalars cimport (
    SCALAR_BYTES, TYPE_BYTES, TYPE_TEXT, load_scalar, scalar_class, scalar_size, scalar_type, store_scalar,
)
from fastpool.errors import DamagedMemoryError

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
    void Py_INCREF(object value)
    void Py_DECREF(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    object PyLong_FromLongLong(long long value)
    bint PyUnicode_CheckExact(object value)
    object PyUnicode_FromKindAndData(int kind, const void *data, Py_ssize_t size)
    int PyUnicode_KIND(PyObject *text)
    void *PyUnicode_DATA(PyObject *text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *text)
    object PyByteArray_FromStringAndSize(const char *data, Py_ssize_t size)
    tuple PyTuple_New(Py_ssize_t size)
    PyObject *PyTuple_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(object items)
    void PyTuple_SET_ITEM(object items, Py_ssize_t index, object value)
    list PyList_New(Py_ssize_t size)
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t index)
    Py_ssize_t PyList_GET_SIZE(object items)
    void PyList_SET_ITEM(object items, Py_ssize_t index, object value)
    Py_ssize_t PySet_GET_SIZE(object items)
    object PySet_New(PyObject *items)
    object PyFrozenSet_New(PyObject *items)
    int PySet_Add(object items, object value) except -1
    Py_ssize_t PyDict_GET_SIZE(object items)
    int PyDict_Next(object items, Py_ssize_t *position, PyObject **key, PyObject **value)
    int PyDict_SetItem(object items, object key, object value) except -1

cdef enum:
    NONE = 1
    FALSE = 2
    TRUE = 3
    INT8 = 4
    INT32 = 5
    INT64 = 6
    BIG = 7
    FLOAT = 8
    COMPLEX = 9
    TEXT1 = 10
    TEXT2 = 11
    TEXT4 = 12
    BYTES = 13
    BYTEARRAY = 14
    TUPLE = 15
    LIST = 16
    SET = 17
    FROZENSET = 18
    DICT = 19
    SHAPE = 20
    SHAPED = 21
    SCALAR = 22
    TEXT_REF = 23
    OBJECT_REF = 24
    ALONE = 25
    MEMO = 128

cdef enum:
    MAX_DEPTH = 200
    FIXED_BYTES = 48         # room for a tag with whatever of fixed size follows it
    BUFFER_BYTES = 1 << 12
    LARGE_BYTES = 1 << 20    # a buffer of more is not kept
    MEMO_PLACES = 1 << 8
    LARGE_PLACES = 1 << 14   # a memo of more is not kept
    MAX_SHAPES = 255         # fits `recent`
    MAX_SHAPE = 64           # keys
    RECENT = 64              # places in `recent`
    WRITTEN = 1              # memoize: a reference was written

cdef object PENDING = object()  # in the place of an object that is not there yet


def dumps(value) -> bytes | None:
    """The bytes of one item; None if the value is not for tags."""
    return TagWriter().dumps(value)

def loads(bytes data) -> object:
    """The value of bytes that :func:`dumps` made."""
    return TagReader().loads(data)


# ---------------------------------------------------------------- numbers by address

cdef int memo_open(Memo *memo, uint64_t places) except -1:
    memo.entries = <Entry *>calloc(places, sizeof(Entry))
    if memo.entries is NULL:
        raise MemoryError("fastpool: no memory to remember objects by")
    memo.mask = places - 1
    memo.count = 0
    memo.age = 1
    return 0

cdef inline Entry *memo_place(const Memo *memo, const void *key) noexcept:
    """The entry of a key, or the empty one where it would be."""
    cdef uint64_t at = (<uint64_t>key >> 4) * <uint64_t>0x9E3779B97F4A7C15
    cdef Entry *entry
    at ^= at >> 32
    while True:
        entry = &memo.entries[at & memo.mask]
        if entry.age != memo.age or entry.key == key:
            return entry
        at += 1

cdef int memo_add(Memo *memo, Entry *place, const void *key, uint32_t number) except -1:
    """Give a key that is not there a number; `place` is from memo_place."""
    cdef Memo larger
    cdef uint64_t i
    cdef Entry *entry
    if 2 * memo.count >= memo.mask:
        memo_open(&larger, 2 * (memo.mask + 1))
        for i in range(memo.mask + 1):
            if memo.entries[i].age == memo.age:
                entry = memo_place(&larger, memo.entries[i].key)
                entry[0] = memo.entries[i]
                entry.age = larger.age
        larger.count = memo.count
        free(memo.entries)
        memo[0] = larger
        place = memo_place(memo, key)
    place.key = key
    place.number = number
    place.age = memo.age
    memo.count += 1
    return 0

cdef int memo_clear(Memo *memo) except -1:
    memo.count = 0
    memo.age += 1
    if memo.age == 0:
        memset(memo.entries, 0, (memo.mask + 1) * sizeof(Entry))
        memo.age = 1
    if memo.mask >= LARGE_PLACES:
        free(memo.entries)
        memo.entries = NULL
        memo_open(memo, MEMO_PLACES)
    return 0


# ---------------------------------------------------------------- writing

cdef class TagWriter:
    def __cinit__(self):
        self.buffer = bytearray()
        memo_open(&self.objects, MEMO_PLACES)
        memo_open(&self.strings, MEMO_PLACES)
        self.held = []
        self.shapes = {}
        self.shape_keys = []
        self.fresh = True

    def __dealloc__(self):
        free(self.objects.entries)
        free(self.strings.entries)

    def dumps(self, value) -> bytes | None:
        """The bytes of the next item; None if the value is not for tags, in which case nothing is remembered."""
        if not self.write(value):
            return None
        return PyBytes_FromStringAndSize(<char *>self.start, self.size())

    def begin_anew(self) -> None:
        """Make the next item one that needs no item before it."""
        self.forget()

    cdef void forget(self):
        if self.fresh:
            return
        self.fresh = True
        memo_clear(&self.strings)
        self.n_strings = 0
        self.held.clear()
        self.shapes.clear()
        self.shape_keys.clear()
        memset(self.recent, 0, sizeof(self.recent))

    cdef bint write(self, object value) except -1:
        """Write the next item, in place of the last. False if the value is not for tags."""
        cdef bint done = False
        self.renew()
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

    cdef uint64_t size(self):
        """Of the item, in bytes."""
        return <uint64_t>(self.at - self.start)

    # ------------------------------------------------------------ bytes

    cdef int renew(self) except -1:
        """An empty buffer: a new one if somebody keeps the last item's, or that was large."""
        if Py_REFCNT(<PyObject *>self.buffer) > 1 or not 0 < PyByteArray_GET_SIZE(self.buffer) <= LARGE_BYTES:
            self.buffer = PyByteArray_FromStringAndSize(NULL, BUFFER_BYTES)
        self.at = self.start = <unsigned char *>PyByteArray_AS_STRING(self.buffer)
        self.end = self.start + PyByteArray_GET_SIZE(self.buffer)
        return 0

    cdef inline unsigned char *room(self, uint64_t size) except NULL:
        """Where the next bytes go, with room for `size` of them."""
        if <uint64_t>(self.end - self.at) >= size:
            return self.at
        return self.grow(size)

    cdef unsigned char *grow(self, uint64_t size) except NULL:
        cdef uint64_t used = self.size()
        cdef uint64_t wanted = 2 * (used + size)
        PyByteArray_Resize(self.buffer, wanted)
        self.start = <unsigned char *>PyByteArray_AS_STRING(self.buffer)
        self.at = self.start + used
        self.end = self.start + wanted
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
        cdef unsigned char *at = self.room(FIXED_BYTES)
        cdef double number
        cdef int memo
        if kind == &PyUnicode_Type:
            return self.write_text(value, Py_REFCNT(value) > 1)
        if kind == &PyLong_Type:
            return self.write_integer(<object>value)
        if kind == &PyFloat_Type:
            number = PyFloat_AS_DOUBLE(<object>value)
            at[0] = FLOAT
            memcpy(at + 1, &number, 8)
            self.at = at + 9
            return True
        if <object>value is None:
            at[0] = NONE
            self.at = at + 1
            return True
        if kind == &PyBool_Type:
            at[0] = TRUE if <object>value is True else FALSE
            self.at = at + 1
            return True
        if depth == MAX_DEPTH:
            return False
        if kind == &PyTuple_Type and PyTuple_GET_SIZE(<object>value) == 0:
            return self.write_head(TUPLE, 0) == 0
        if kind == &PyTuple_Type or kind == &PyDict_Type or kind == &PyList_Type:
            memo = self.memoize(value)
            if memo == WRITTEN:
                return True
            if kind == &PyTuple_Type:
                return self.write_tuple(<tuple>value, memo, depth + 1)
            if kind == &PyDict_Type:
                return self.write_dict(<dict>value, memo, depth + 1)
            return self.write_list(<list>value, memo, depth + 1)
        if kind == &PyBytes_Type or kind == &PyByteArray_Type or kind == &PyComplex_Type:
            return self.write_bytes(value)
        if kind == &PySet_Type or kind == &PyFrozenSet_Type:
            memo = self.memoize(value)
            if memo == WRITTEN:
                return True
            return self.write_set(<object>value, memo | (SET if kind == &PySet_Type else FROZENSET), depth + 1)
        return self.write_scalar(value)

    cdef bint write_integer(self, object value) except -1:
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
        cdef unsigned char *at = self.room(FIXED_BYTES)
        if overflow:
            return self.write_big(value)
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
            if not self.write_value(PyTuple_GET_ITEM(kept, i), depth):
                return False
        return True

    cdef bint write_list(self, list value, int memo, int depth) except -1:
        cdef list kept = value
        cdef Py_ssize_t size = PyList_GET_SIZE(kept)
        cdef Py_ssize_t i = 0
        self.write_head(LIST | memo, size)
        while i < size and i < PyList_GET_SIZE(kept):
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
        cdef Py_ssize_t size = PyDict_GET_SIZE(kept)
        cdef int number
        cdef tuple keys
        if not 0 < size <= MAX_SHAPE:
            return self.write_pairs(kept, memo, depth)
        number = self.known_shape(kept)
        if number < 0:
            keys = tuple(kept)
            size = PyTuple_GET_SIZE(keys)
            if not all_text(keys):
                return self.write_pairs(kept, memo, depth)
            number = self.shape_by_value(keys)
            if number < 0:
                if len(self.shape_keys) == MAX_SHAPES:
                    return self.write_pairs(kept, memo, depth)
                self.write_head(SHAPE | memo, size)
                self.new_shape(keys)
                return self.write_values(kept, size, depth)
        self.write_head(SHAPED | memo, number)
        return self.write_values(kept, size, depth)

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

    cdef bint write_values(self, dict value, Py_ssize_t size, int depth) except -1:
        cdef Py_ssize_t at = 0
        cdef PyObject *member
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
            self.write_data(BYTES, PyBytes_GET_SIZE(<object>value), PyBytes_AS_STRING(<object>value),
                            PyBytes_GET_SIZE(<object>value))
            return True
        store_scalar(number, <object>value, self.room(SCALAR_BYTES))
        self.at += scalar_size(number)
        return True

    # ------------------------------------------------------------ shapes of dicts

    cdef int known_shape(self, dict value) except -2:
        """The shape whose keys are the very objects that the dict has, if it is the one to try; else -1."""
        cdef Py_ssize_t at = 0, i = 0
        cdef PyObject *key = NULL
        cdef int number
        cdef object keys
        PyDict_Next(value, &at, &key, NULL)
        number = <int>self.recent[recent_place(key, PyDict_GET_SIZE(value))] - 1
        if number < 0:
            return -1
        keys = <object>PyList_GET_ITEM(self.shape_keys, number)
        if PyTuple_GET_SIZE(keys) != PyDict_GET_SIZE(value):
            return -1
        at = 0
        while PyDict_Next(value, &at, &key, NULL):
            if PyTuple_GET_ITEM(keys, i) != key:
                return -1
            i += 1
        return number

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


# ---------------------------------------------------------------- reading

cdef inline int damaged() except -1:
    raise DamagedMemoryError("the bytes of a tagged item make no sense")


cdef class TagReader:
    def __cinit__(self):
        self.objects = []
        self.strings = []
        self.shapes = []

    def loads(self, bytes data) -> object:
        """The value of the next item."""
        return self.read(<const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef void forget(self):
        self.strings.clear()
        self.shapes.clear()

    cdef object read(self, const unsigned char *data, uint64_t size):
        """The value of the next item. Reads nothing beyond it; bytes that make no sense are a DamagedMemoryError."""
        cdef object value
        self.at = data
        self.end = data + size
        self.owed = 0
        if size and data[0] == ALONE:
            self.at += 1
            self.forget()
        try:
            value = self.read_value(0)
        except (TypeError, ValueError, SystemError) as error:  # an unhashable key, a character that there is not
            raise DamagedMemoryError("the bytes of a tagged item make no sense") from error
        finally:
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

    cdef uint64_t read_number(self) except? 0:
        cdef uint64_t digit = self.take(1)[0]
        cdef uint64_t number = digit & 127
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

    cdef object read_value(self, int depth):
        cdef int tag = self.take(1)[0]
        cdef int memo
        cdef int32_t short_number
        cdef int64_t number
        cdef uint64_t size
        cdef double real
        cdef object value
        if tag == INT8:
            return PyLong_FromLongLong(<int8_t>self.take(1)[0])
        if tag == INT32:
            memcpy(&short_number, self.take(4), 4)
            return PyLong_FromLongLong(short_number)
        if tag == INT64:
            memcpy(&number, self.take(8), 8)
            return PyLong_FromLongLong(number)
        if tag == FLOAT:
            memcpy(&real, self.take(8), 8)
            return PyFloat_FromDouble(real)
        if tag == NONE:
            return None
        if tag == TRUE:
            return True
        if tag == FALSE:
            return False
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
        return PyUnicode_FromKindAndData(width, self.take(length * width), length)

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
            return self.read_scalar()
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
        cdef uint64_t i
        if memo:
            self.objects.append(PENDING if frozen else items)  # a frozenset cannot be inside itself
        for i in range(size):
            PySet_Add(items, self.read_owed(depth))
        if memo and frozen:
            self.objects[number] = items
        return items

    cdef object read_pairs(self, int memo, int depth):
        cdef uint64_t size = self.expect(self.read_number(), 2)
        cdef dict items = {}
        cdef object key
        cdef uint64_t i
        if memo:
            self.objects.append(items)
        for i in range(size):
            key = self.read_owed(depth)
            PyDict_SetItem(items, key, self.read_owed(depth))
        return items

    cdef object read_shaped(self, bint new, int memo, int depth):
        cdef object keys = self.read_shape(depth) if new else listed(self.shapes, self.read_number())
        cdef uint64_t size = self.expect(PyTuple_GET_SIZE(keys), 1)
        cdef dict items = {}
        cdef uint64_t i
        if memo:
            self.objects.append(items)
        for i in range(size):
            PyDict_SetItem(items, <object>PyTuple_GET_ITEM(keys, i), self.read_owed(depth))
        return items

    cdef object read_shape(self, int depth):
        """The keys of a new shape."""
        cdef uint64_t size = self.expect(self.read_number(), 1)
        cdef tuple keys = PyTuple_New(size)
        cdef object key
        cdef uint64_t i
        for i in range(size):
            key = self.read_owed(depth)
            if not PyUnicode_CheckExact(key):
                damaged()
            Py_INCREF(key)
            PyTuple_SET_ITEM(keys, i, key)
        self.shapes.append(keys)
        return keys


cdef inline object listed(list values, uint64_t number):
    """What was given a number."""
    cdef object value
    if number >= <uint64_t>PyList_GET_SIZE(values):
        damaged()
    value = <object>PyList_GET_ITEM(values, number)
    if value is PENDING:
        damaged()
    return value
