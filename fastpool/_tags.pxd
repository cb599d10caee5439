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

The bit MEMO in a tag gives the text or the object the next number. Objects are numbered within one item, so that what
was one object is one object again: what pickle would remember is numbered, unless its reference count shows that
nothing else can refer to it. Texts and shapes are numbered from an item that begins with ALONE on. The writer may begin
anew with any item, and has to when the reader might miss an item between this one and the last.

A value with anything of another type inside, or nested too deep, is not for tags at all.
"""

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
    MAX_DEPTH = 200  # containers inside one another
