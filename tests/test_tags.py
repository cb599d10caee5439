"""The tagged bytes: value, type and identity come back, in items that refer to earlier ones; damage is an error."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import random
import struct
import sys
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpool import DamagedMemoryError, SerializationError, WorkerPool
from fastpool._tagreader import TagReader
from fastpool._tagwriter import TagWriter

Point = namedtuple("Point", "x y")
RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
EMPTY: tuple[()] = ()
# What pickle remembers. Of the rest it makes a new object each time.
REMEMBERED = (list, dict, set, bytearray, tuple, frozenset, str, bytes, complex, np.generic)


class MyInt(int):
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


class Thing:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


def dumps(value: Any) -> bytes | None:
    return TagWriter().dumps(value)


def loads(data: bytes) -> Any:
    return TagReader().loads(data)


def there_and_back(value: Any) -> Any:
    data = dumps(value)
    assert data is not None
    return loads(data)


def identity(x: Any) -> Any:
    return x


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(n_jobs=1, keep_alive=True) as made:
        made.map(identity, [None])
        yield made


# ---------------------------------------------------------------- what is compared


def bits(value: Any) -> Any:
    """What tells two atoms of one type apart, NaNs and signs of zero too."""
    if type(value) is float:
        return struct.pack("d", value)
    if type(value) is complex:
        return struct.pack("dd", value.real, value.imag)
    if isinstance(value, np.longdouble | np.clongdouble):
        return repr(value)  # not all of its bytes count
    if isinstance(value, np.str_ | np.bytes_):
        return (value[:], len(value))
    if isinstance(value, np.generic):
        return (value.dtype, value.tobytes())
    return value


def pairs_of(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """What is in two containers of one type and size, side by side."""
    if isinstance(a, dict):
        return [*zip(a, b, strict=True), *zip(a.values(), b.values(), strict=True)]
    if isinstance(a, set | frozenset):
        of = {key: key for key in b}
        return [(key, of[key]) for key in a]
    return list(zip(a, b, strict=True))


def check_values(a: Any, b: Any) -> None:
    """The same value, of the same types all the way down."""
    pending = [(a, b)]
    seen = set()
    while pending:
        x, y = pending.pop()
        assert type(x) is type(y), (x, y)
        if not isinstance(x, list | tuple | dict | set | frozenset):
            assert bits(x) == bits(y)
        elif (id(x), id(y)) not in seen:
            seen.add((id(x), id(y)))
            pending.extend(pairs_of(x, y))


def check_identities(a: Any, b: Any) -> None:
    """What is one object in `a` is one in `b`; containers that are two in `a` are two in `b`."""
    of_a: dict[int, Any] = {}
    of_b: dict[int, Any] = {}
    pending = [(a, b)]
    while pending:
        x, y = pending.pop()
        if not isinstance(x, REMEMBERED) or x is EMPTY:
            continue
        if id(x) in of_a:
            assert of_a[id(x)] is y, (x, y)
            continue
        of_a[id(x)] = y
        if isinstance(x, list | tuple | dict | set | frozenset):
            assert id(y) not in of_b, (x, y)
            of_b[id(y)] = x
            pending.extend(pairs_of(x, y))


def check(value: Any, result: Any) -> None:
    """`result` is `value`, with the identities that pickle keeps."""
    check_values(value, result)
    check_identities(pickle.loads(pickle.dumps(value, 5)), result)


# ---------------------------------------------------------------- any value


def without_unit() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [np.datetime64("NaT"), np.timedelta64(7)]


NUMPY = [
    np.bool_(True),
    np.bool_(False),
    *[np.dtype(code).type(3) for code in "bBhHiIlLqQefdgFDG"],
    np.int8(-128),
    np.uint64(2**64 - 1),
    np.float32("nan"),
    np.float64(-0.0),
    np.longdouble(1) / 3,
    np.complex64(complex(math.nan, -0.0)),
    np.datetime64("2024-02-29T12:34:56.789"),
    np.datetime64(2**62, "as"),
    np.timedelta64(-5, "25s"),
    *without_unit(),
    np.str_(""),
    np.str_("a\0é\U0001f600\0"),
    np.bytes_(b"a\0\xff\0"),
]
INTEGERS = [sign * (2**power + more) for power in (0, 7, 8, 31, 32, 62, 63, 64, 999) for more in (-1, 0, 1)
            for sign in (1, -1)]  # fmt: skip
NAN = struct.unpack("d", struct.pack("Q", 0x7FF8_0000_DEAD_BEEF))[0]
ATOMS = [
    None,
    True,
    False,
    *INTEGERS,
    10**400,
    0.0,
    -0.0,
    math.inf,
    NAN,
    5e-324,
    complex(-0.0, NAN),
    "",
    "\0",
    "é",
    "\ud800",
    "a\U0001f600",
    "x" * 127,
    "x" * 128,
    "ẋ" * 20_000,
    b"",
    b"\0\xff",
    bytearray(),
    bytearray(b"x" * 300),
    *NUMPY,
]


@pytest.mark.parametrize("value", ATOMS, ids=lambda value: f"{type(value).__name__} {value!r:.30}")
def test_atoms(value: Any) -> None:
    check(value, there_and_back(value))
    check([value, (value, {"key": value})], there_and_back([value, (value, {"key": value})]))


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=True),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(exclude_categories=[])),
    st.binary(),
)
atoms = st.one_of(plain, st.sampled_from(range(len(NUMPY))).map(NUMPY.__getitem__), st.binary().map(bytearray))
keys = st.one_of(st.text(max_size=3), st.integers(), st.booleans(), st.tuples(st.integers(), st.text(max_size=2)),
                 st.frozensets(st.integers(), max_size=3))  # fmt: skip
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(["id", "name", "ok"]), inner, max_size=3),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=500, deadline=None, suppress_health_check=RELAXED)
def test_any_value(value: Any) -> None:
    check(value, there_and_back(value))


def is_key(value: Any) -> bool:
    """Hashable, and found again in a set by an equal one: no NaN inside."""
    try:
        return pickle.loads(pickle.dumps(value)) in {value}
    except (TypeError, ValueError):  # ValueError: a timedelta64 without unit
        return False


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Containers made of one another, then put into one another: shared references and cycles of every kind."""
    nodes: list[Any] = draw(st.lists(atoms, min_size=1, max_size=5))

    def some() -> list[Any]:
        return [nodes[i] for i in draw(st.lists(st.integers(0, len(nodes) - 1), max_size=4))]

    makers: list[Callable[[], Any]] = [
        lambda: tuple(some()),
        some,
        lambda: {key: value for key, value in zip(filter(is_key, some()), some(), strict=False)},
        lambda: dict(zip("abc", some(), strict=False)),
        lambda: set(filter(is_key, some())),
        lambda: frozenset(filter(is_key, some())),
    ]
    for _ in range(draw(st.integers(1, 10))):
        nodes.append(draw(st.sampled_from(makers))())
    for node in nodes:
        if isinstance(node, list) and draw(st.booleans()):
            node.extend(some())
        if isinstance(node, dict) and draw(st.booleans()):
            node["more"] = some()
    return nodes[draw(st.integers(0, len(nodes) - 1))] if draw(st.booleans()) else nodes


@given(graphs())
@settings(max_examples=500, deadline=None, suppress_health_check=RELAXED)
def test_identities_are_those_that_pickle_keeps(value: Any) -> None:
    check(value, there_and_back(value))


def test_the_usual_cycles() -> None:
    inner: list[Any] = [1]
    check([inner, inner, (inner,)], there_and_back([inner, inner, (inner,)]))
    loop: list[Any] = []
    loop.append(loop)
    result = there_and_back(loop)
    assert result[0] is result
    knot: tuple[Any, ...] = ([], {})
    knot[0].append(knot)
    knot[1]["knot"] = knot
    result = there_and_back(knot)
    assert type(result) is tuple
    assert result[0][0] is result
    assert result[1]["knot"] is result
    self_dict: dict[str, Any] = {}
    self_dict["self"] = self_dict
    result = there_and_back(self_dict)
    assert result["self"] is result


def test_keys_that_dicts_share_in_one_table() -> None:
    """The dicts of instances hold their keys together: the reference count of a key says nothing."""
    name = "".join(["not", " interned"])
    things = [Thing(**{name: i, "other": i}) for i in range(3)]
    value = [vars(thing) for thing in things]
    del name
    check(value, there_and_back(value))
    check([next(iter(value[0])), *value], there_and_back([next(iter(value[0])), *value]))


def test_an_equal_key_that_is_another_object() -> None:
    def fresh() -> str:
        return "".join(["long ", "key"])

    a, b, c = fresh(), fresh(), fresh()
    for value in ([{a: 1}, {b: 2}, b, a], [b, {a: 1}, {b: 2}, {c: 3}, c, b], [{a: 1}, b, {b: 2}, {c: 1, a: 2}, c]):
        check(value, there_and_back(value))


def test_text_that_comes_again_is_sent_once() -> None:
    text = "word" * 25
    once = len(dumps([text]) or b"")
    assert len(dumps([text] * 10) or b"") < once + 40
    assert len(dumps([{text: i} for i in range(10)]) or b"") < once + 60


# ---------------------------------------------------------------- what is not for tags


@pytest.mark.parametrize(
    "value",
    [MyInt(3), MyDict(a=1), OrderedDict(a=1), Point(1, 2), Thing(), np.zeros(2), np.zeros((), "f8,i4")[()], range(3),
     ..., int, len, memoryview(b"x"), Exception("x")],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_left_to_pickle(value: Any) -> None:
    for whole in (value, [1, value], {"a": (1, [value])}):
        writer = TagWriter()
        assert writer.dumps(["before"]) is not None
        assert writer.dumps(whole) is None
        assert loads(writer.dumps(["after", "before"]) or b"") == ["after", "before"]  # begins anew


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth() -> None:
    assert there_and_back(nested(200)) == nested(200)
    assert dumps(nested(201)) is None
    assert dumps(nested(100_000)) is None


# ---------------------------------------------------------------- items that refer to earlier ones


@given(st.lists(st.tuples(values, st.booleans()), max_size=30))
@settings(max_examples=200, deadline=None, suppress_health_check=RELAXED)
def test_items_one_after_another(given: list[tuple[Any, bool]]) -> None:
    writer, reader = TagWriter(), TagReader()
    for value, anew in given:
        if anew:
            writer.begin_anew()
        data = writer.dumps(value)
        assert data is not None
        check(value, reader.loads(data))
        if anew:
            check(value, loads(data))


def test_shapes_and_texts_last_until_the_writer_begins_anew() -> None:
    record = {"identifier": 1, "description": "unchanging"}
    writer, reader = TagWriter(), TagReader()
    sizes = []
    for i in range(6):
        if i == 3:
            writer.begin_anew()
        data = writer.dumps(record)
        assert data is not None
        sizes.append(len(data))
        assert reader.loads(data) == record
    assert sizes[0] == sizes[3] > 3 * sizes[1]
    assert sizes[1:3] == sizes[4:6]


def test_keys_made_again_for_every_item() -> None:
    writer, reader = TagWriter(), TagReader()
    sizes = []
    for i in range(5):
        value = json.loads(f'{{"identifier": {i}, "list": [{{"identifier": 1, "list": 2}}]}}')
        data = writer.dumps(value)
        assert data is not None
        sizes.append(len(data))
        check(value, reader.loads(data))
    assert len(set(sizes[1:])) == 1
    assert sizes[1] < sizes[0]


NAME = "".join(["a", " name"])


@pytest.mark.parametrize(
    "value",
    [
        {"id": 1, "half": 0.5, "kind": "row"},
        [{NAME: NAME}, NAME, {NAME: 1, "other": NAME}],
        [NAME, {NAME: 1, "other": 2}, {NAME: 3, "other": NAME}],
        {"other": NAME, NAME: {"other": NAME, NAME: [NAME]}},
        [{"": 1, "__class__": 2, "__dict__": None, "\0": 4, "\ud800": 5}, {"ä": 1, "\U0001f40d": 2}],
        [{f"key {i}": i for i in range(n)} for n in (1, 29, 30, 31, 64, 65)],
        [{f"{i} of {n}": i for i in range(3)} for n in range(100)],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_dicts_with_keys_that_came_before(value: Any) -> None:
    """The reader makes them in another way from the second time on, and they are as the first ones were."""
    writer, reader = TagWriter(), TagReader()
    for _ in range(4):
        writer.begin_anew()
        for each in (value, [value, value]):
            data = writer.dumps(each)
            assert data is not None
            check(each, reader.loads(data))


def test_dicts_that_share_their_keys_are_independent() -> None:
    writer, reader = TagWriter(), TagReader()

    def rows() -> list[dict[str, Any]]:
        writer.begin_anew()
        data = writer.dumps([{"a": i, "b": None, "c": [i]} for i in range(3)])
        assert data is not None
        result: list[dict[str, Any]] = reader.loads(data)
        return result

    plain, _, shared = rows(), rows(), rows()
    assert sys.getsizeof(shared[0]) < sys.getsizeof(plain[0])
    for changed in (plain, shared):
        del changed[0]["a"]
        changed[0]["d"] = changed[0]["a"] = 9
        changed[1].clear()
        changed[2].update(b=1, e=2)
        assert list(changed[0].items()) == [("b", None), ("c", [0]), ("d", 9), ("a", 9)]
        assert changed[1:] == [{}, {"a": 2, "b": 1, "c": [2], "e": 2}]
    assert rows() == [{"a": i, "b": None, "c": [i]} for i in range(3)]


def test_more_shapes_than_are_remembered() -> None:
    value = [{f"key {i}": i, "other": 1} for i in range(600)] * 2
    check(value, there_and_back(value))
    large = {f"key {i}": i for i in range(1000)}
    check([large, large, dict(large)], there_and_back([large, large, dict(large)]))


def test_the_writer_keeps_what_it_refers_to() -> None:
    """An address that was remembered must not become another text's."""
    writer, reader = TagWriter(), TagReader()
    for i in range(5000):
        text = f"text {i}"
        value = [text, text]
        data = writer.dumps(value)
        assert data is not None
        assert reader.loads(data) == value


# ---------------------------------------------------------------- through a pool


@given(st.lists(values, max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=RELAXED)
def test_arguments_and_results(pool: WorkerPool, given: list[Any]) -> None:
    for value, result in zip(given, pool.map(identity, [(value,) for value in given]), strict=True):
        check(value, result)


@given(st.lists(graphs(), max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=RELAXED)
def test_graphs_as_arguments_and_results(pool: WorkerPool, given: list[Any]) -> None:
    for value, result in zip(given, pool.map(identity, [(value,) for value in given]), strict=True):
        check(value, result)


KINDS: list[Callable[[int], Any]] = [
    lambda i: i,
    lambda i: i * 0.5,
    lambda i: None,
    lambda i: i % 3 == 0,
    lambda i: f"text {i % 5}",
    lambda i: b"bytes",
    lambda i: 2**64 + i,
    lambda i: np.float32(i),
    lambda i: {"id": i, "name": "n", "ok": True},
    lambda i: (i, "n"),
    lambda i: Point(i, i),
    lambda i: "long text " * 150,
    lambda i: ["x" * 50_000, i],
]


def in_runs(i: int, lengths: tuple[int, ...]) -> Any:
    """Of another kind every few values."""
    at = i % sum(lengths)
    kind = i // sum(lengths)
    for length in lengths:
        if at < length:
            break
        at -= length
        kind += 1
    return KINDS[kind % len(KINDS)](i)


@pytest.mark.parametrize("lengths", [(1,), (1, 2), (7, 1), (8, 9), (31, 1, 33), (40, 1), (3, 100, 1)])
def test_runs_of_changing_type(pool: WorkerPool, lengths: tuple[int, ...]) -> None:
    given = [in_runs(i, lengths) for i in range(1500)]
    results = pool.map(identity, [(value,) for value in given])
    for value, result in zip(given, results, strict=True):
        assert type(value) is type(result)
        assert value == result
    numbers = [value for value in given if isinstance(value, int | float | str | bytes) or value is None]
    assert list(map(repr, pool.map(identity, numbers))) == list(map(repr, numbers))


def small_dict(i: int) -> dict[str, Any]:
    return {"id": i, "name": "n", "score": i * 0.5, "ok": True}


def test_many_records() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(small_dict, range(20_000)) == [small_dict(i) for i in range(20_000)]
        rows = [(small_dict(i),) for i in range(20_000)]
        assert pool.map(identity, rows) == [row for (row,) in rows]


def large_value(i: int) -> Any:
    word = f"word {i}" * 3
    return [small_dict(j) | {"word": word} for j in range(i)] + [word, b"x" * (i * 100)]


@pytest.mark.parametrize("memory_limit", [None, 1 << 20], ids=["blocks", "fragments"])
def test_large_items(memory_limit: int | None) -> None:
    sizes = [3, 20_000, 1, 2000, 2000, 2, 10, 5000] * 3
    with WorkerPool(n_jobs=2, memory_limit=memory_limit) as pool:
        assert pool.map(large_value, sizes, chunk_size=4) == [large_value(i) for i in sizes]


def test_large_arguments() -> None:
    sizes = [3, 5000, 1, 2000, 2000, 2, 10, 3000]
    with WorkerPool(n_jobs=2) as pool:
        given = [large_value(i) for i in sizes]
        assert pool.map(identity, [(value,) for value in given], chunk_size=4) == given


def test_exit_results() -> None:
    with WorkerPool(n_jobs=1) as pool:
        pool.map(small_dict, range(10), worker_exit=lambda: {"id": [1, {"id": 2}]})
        assert pool.get_exit_results() == [{"id": [1, {"id": 2}]}]


def test_what_is_too_deep_even_for_pickle_is_an_error_of_ours() -> None:
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(SerializationError):
            pool.map(nested, [100_000])
        assert pool.map(nested, [250, 3]) == [nested(250), nested(3)]


# ---------------------------------------------------------------- damage


def test_lengths_are_checked() -> None:
    huge = b"\xff" * 8 + b"\x01"
    for tag in range(256):
        for rest in (huge, huge + b"x" * 20):
            for head in (b"", b"\x19"):
                with pytest.raises(DamagedMemoryError):
                    loads(head + bytes([tag]) + rest)


def test_nested_counts_make_no_more_places_than_there_are_bytes() -> None:
    [_, tag, *_] = dumps([1]) or b""
    count = 100_000
    head = bytes([tag, count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    with pytest.raises(DamagedMemoryError):
        loads(head * 150 + b"\x01" * count)


def test_keys_that_cannot_be_keys() -> None:
    [_, tag, *_] = dumps({1: 2}) or b""
    [_, of_list, *_] = dumps([1]) or b""
    with pytest.raises(DamagedMemoryError):
        loads(bytes([tag, 1, of_list, 0, of_list, 0]))


def streams(source: random.Random) -> list[list[bytes]]:
    """Valid items, several to a writer."""
    found = []
    word, shared = "word" * 3, [1, "two"]
    for _ in range(30):
        writer = TagWriter()
        items = []
        for i in range(4):
            value = [
                source.choice([small_dict(i), [small_dict(i)] * 2, (shared, shared, word), {word: {word: word}}]),
                source.sample(ATOMS[:60] + NUMPY, 5),
                {(1, "a"): frozenset([1, "x", word]), 2: {3, word}},
                (word, [nested(source.randrange(5))], shared),
            ]
            value.append(source.choice([value, shared, tuple(value)]))
            data = writer.dumps(value)
            assert data is not None
            items.append(data)
        found.append(items)
    return found


def damage(source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 1, 2, 5])):
        at = source.randrange(len(changed) + 1)
        way = source.randrange(6)
        if way == 0:
            del changed[at:]
        elif way == 1:
            changed[at : at + source.randrange(4)] = source.randbytes(source.randrange(4))
        elif way == 2:
            changed[at:at] = changed[source.randrange(len(changed) + 1) :][: source.randrange(30)]
        elif at < len(changed):
            changed[at] = source.choice([source.randrange(256), changed[at] ^ 1 << source.randrange(8)])
    return bytes(changed)


def test_damaged_bytes_are_an_error_or_another_value() -> None:
    """FASTPOOL_FUZZ says how many; tools/test_asan.sh runs this with AddressSanitizer."""
    source = random.Random(7)
    valid = streams(source)
    returned = 0
    rounds = int(os.environ.get("FASTPOOL_FUZZ", "20000"))
    for i in range(rounds):
        items = source.choice(valid)
        reader = TagReader()
        for data in items[: source.randrange(len(items))]:
            reader.loads(data)
        try:
            value = reader.loads(damage(source, source.choice(items)))
            returned += 1
            touch(value)
        except DamagedMemoryError:
            pass
        if i % 1000 == 0:
            gc.collect()
    assert 0 < returned < rounds


def touch(value: Any) -> None:
    """Look at everything that is in a value."""
    seen: dict[int, Any] = {}
    pending = [value]
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, dict):
            pending.extend(one.keys())
            pending.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            pending.extend(one)
        elif isinstance(one, np.generic):
            one.tobytes()
