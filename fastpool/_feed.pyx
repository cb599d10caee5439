"""Input that is no range: iterated in the parent, encoded in chunks, published for workers to claim.

A chunk lies in one block of the parent's heap (its large items in one more each) until every task of it is collected,
so that another worker can run what a dead one left.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from fastpool._codec cimport Encoder, PyLong_AsLongLongAndOverflow, PyLong_CheckExact, item_sum, takes_run
from fastpool._native cimport (
    FP_BORN_WITH, FP_FEED_SLOTS, FP_FROM_SPACE, FP_IN_BLOCK, FP_IN_FORKED, FP_IN_OWNER, FP_IN_SPACE, FP_KIND_BLOCK,
    FP_KIND_FLOAT64, FP_KIND_INT64, FP_KIND_TAGGED, FP_LINE_BYTES, FP_MAP, FP_NEVER, FP_PHASE_TASK, Segment, Space,
    block_free, check, copy_to_block, fp_block_item, fp_buffer, fp_control, fp_feed_of, fp_feed_slot, fp_lane,
    memory_is_forked, now_ns, poke, public_blocks, space_of, store, writer_open,
)
from fastpool._packed cimport dump_with_shared_arrays, is_private
from fastpool._scalars cimport scalar_type

import numpy

from fastpool.errors import DamagedMemoryError, unsendable

cdef extern from "stdlib.h":
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "Python.h":
    PyObject *PyIter_Next(object iterator) except? NULL
    PyTypeObject *Py_TYPE(PyObject *value)
    void Py_DECREF(PyObject *value)
    void Py_INCREF(PyObject *value)
    PyObject *PyList_GET_ITEM(object list, Py_ssize_t index)
    Py_ssize_t PyList_GET_SIZE(object list)

cdef enum:
    BUFFER_BYTES = 1 << 18
    LARGE_BYTES = 1 << 16  # a quarter of the buffer always fits
    NUMBERS_AT_ONCE = 1 << 14  # of a list, before the size of the chunk is looked at
    PLAIN_DEPTH = 4
    PLAIN_SIZE = 1000

cdef frozenset PLAIN = frozenset({int, float, bool, type(None), str, bytes, complex})

cdef uint64_t NO_CHUNK = <uint64_t>-1


cdef uint64_t copy_floats(list items, uint64_t start, uint64_t count, double *to):
    """Copy exact floats until something else comes; returns how many."""
    cdef uint64_t k
    cdef PyObject *item
    for k in range(count):
        item = PyList_GET_ITEM(items, start + k)
        if not PyFloat_CheckExact(<object>item):
            return k
        to[k] = PyFloat_AS_DOUBLE(<object>item)
    return count

cdef uint64_t copy_ints(list items, uint64_t start, uint64_t count, int64_t *to) except? 0:
    """Copy exact ints until one does not fit into 64 bits, or something else comes; returns how many."""
    cdef uint64_t k
    cdef PyObject *item
    cdef int overflow = 0
    for k in range(count):
        item = PyList_GET_ITEM(items, start + k)
        if not PyLong_CheckExact(<object>item):
            return k
        to[k] = PyLong_AsLongLongAndOverflow(<object>item, &overflow)
        if overflow:
            return k
    return count


cdef int free_blocks(Segment segment, list blocks) except -1:
    """Of the input's."""
    for offset in blocks:
        check(block_free(segment.at, offset), "a block of the input")
    return 0


cdef bint runs_code(object value, int depth) except -1:
    """May pickling it run code of the user's? A pickled object's memory may then be what the next element's lies in."""
    cdef object kind = type(value)
    if kind is numpy.ndarray:
        return value.dtype.hasobject
    if kind is not tuple and kind is not list and kind is not dict:
        return kind not in PLAIN and scalar_type(Py_TYPE(<PyObject *>value)) < 0
    if depth == PLAIN_DEPTH or len(value) > PLAIN_SIZE:
        return True
    for element in value:
        if runs_code(element, depth + 1) or (kind is dict and runs_code(value[element], depth + 1)):
            return True
    return False


cdef class BufferEncoder(Encoder):
    def __cinit__(self, Segment segment):
        self.segment = segment
        self.large = LARGE_BYTES
        self.phase = FP_PHASE_TASK
        self.blobs = []
        self.placed = []
        self.kept = []
        self.writer.ring = <unsigned char *>calloc(1, BUFFER_BYTES)
        self.lane = <fp_lane *>aligned_alloc(FP_LINE_BYTES, sizeof(fp_lane))
        self.control = <fp_control *>aligned_alloc(FP_LINE_BYTES, sizeof(fp_control))
        if self.writer.ring is NULL or self.lane is NULL or self.control is NULL:
            raise MemoryError("fastpool: no memory to encode input in")
        self.writer.ring_bytes = BUFFER_BYTES
        memset(self.lane, 0, sizeof(fp_lane))
        memset(self.control, 0, sizeof(fp_control))
        self.writer.lane = self.lane
        self.writer.control = self.control
        poke(self.control.wake_at, FP_NEVER)

    def __dealloc__(self):
        free(self.writer.ring)
        free(self.lane)
        free(self.control)

    cdef int clear(self) except -1:
        """Empty the buffer for the next chunk; give memory back that an unusually large one took."""
        cdef void *smaller
        self.close()
        self.blobs.clear()
        self.placed = []
        self.kept = []
        self.blob_bytes = 0
        self.writer.position = 0
        self.writer.committed = 0
        store(self.lane.head, 0)
        store(self.lane.committed, 0)
        if self.writer.ring_bytes > 16 * BUFFER_BYTES:
            smaller = realloc(self.writer.ring, BUFFER_BYTES)
            if smaller is not NULL:
                self.writer.ring = <unsigned char *>smaller
                self.writer.ring_bytes = BUFFER_BYTES
        return 0

    cdef bint lay_down(self, uint64_t *offset, list blocks, unsigned char *here, uint64_t room) except? True:
        """Put what was encoded where workers find it: `here`, if there is `room`, else in new blocks, which are noted.
        False, with none of them taken, if there is no room in shared memory."""
        cdef uint64_t at = 0
        for position, address, size, _ in self.blobs:
            if not self.take_block(<const void *><size_t>address, size, &at, blocks):
                return False
            (<fp_block_item *>(self.writer.ring + <uint64_t>position)).offset = at
        if self.writer.position == 0:
            offset[0] = 0
            return True
        if self.writer.position <= room:
            memcpy(here, self.writer.ring, self.writer.position)
            offset[0] = <uint64_t>(here - <unsigned char *>self.segment.at)
            return True
        return self.take_block(self.writer.ring, self.writer.position, offset, blocks)

    cdef bint take_block(self, const void *data, uint64_t size, uint64_t *offset, list blocks) except? True:
        """Copy bytes into a new block. False, with all `blocks` freed, if there is no room."""
        if not copy_to_block(self.segment.at, self.segment.lanes, data, size, offset):
            free_blocks(self.segment, blocks)
            return False
        blocks.append(offset[0])
        return True

    cdef int open(self, int kind, uint32_t need, uint32_t want) except -1:
        """Open a record, growing first so that the buffer's end (where a ring would wrap) is never reached."""
        cdef uint64_t size = self.writer.ring_bytes
        cdef void *larger
        while size - self.writer.position < 2 * LARGE_BYTES:
            size *= 2
        if size > self.writer.ring_bytes:
            larger = realloc(self.writer.ring, size)
            if larger is NULL:
                raise MemoryError(f"fastpool: no memory to encode a chunk of {size} bytes of input")
            self.writer.ring = <unsigned char *>larger
            self.writer.ring_bytes = size
        check(writer_open(&self.writer, kind, self.phase, self.job, self.number, need, want), "cannot open a record")
        return 0

    cdef uint64_t put_numbers(self, list items, uint64_t start, uint64_t count) except? 0:
        """Append the floats or 64-bit ints that `items` has from `start` on, up to `count`. Returns how many."""
        cdef uint64_t done = 0, stretch, k
        cdef unsigned char *at
        cdef int kind
        cdef PyObject *first
        count = min(count, max(<uint64_t>PyList_GET_SIZE(items), start) - start)
        while done < count:
            first = PyList_GET_ITEM(items, start + done)
            if PyFloat_CheckExact(<object>first):
                kind = FP_KIND_FLOAT64
            elif PyLong_CheckExact(<object>first):
                kind = FP_KIND_INT64
            else:
                break
            if not takes_run(self, kind):
                break
            at = self.room(kind, 8)
            stretch = min(<uint64_t>(self.writer.end - at) // 8, count - done)
            k = copy_floats(items, start + done, stretch, <double *>at) if kind == FP_KIND_FLOAT64 \
                else copy_ints(items, start + done, stretch, <int64_t *>at)
            if k == 0:
                break  # an int of more than 64 bits
            self.writer.at = at + 8 * k
            self.writer.committed += k
            self.number += k
            done += k
        store(self.lane.committed, self.writer.committed)
        return done

    cdef int put_large(self, int kind, uint32_t tag, const void *data, uint64_t size, uint64_t total,
                       object keep) except -1:
        cdef unsigned char *at = self.room(FP_KIND_BLOCK, sizeof(fp_block_item))
        cdef fp_block_item *item = <fp_block_item *>at
        item.offset = 0  # known when the chunk is published
        item.bytes = size
        item.sum = item_sum(kind, tag, data, size)
        item.kind = kind
        item.tag = tag
        self.blob_bytes += size
        if keep is None:  # the encoder's own memory, which the next item overwrites
            keep = PyBytes_FromStringAndSize(<const char *>data, size)
            data = PyBytes_AS_STRING(keep)
        self.blobs.append((at - self.writer.ring, <size_t>data, size, keep))
        return self.commit(at + sizeof(fp_block_item))

    cdef int place(self, const void *data, uint64_t size, object keep, fp_buffer *buffer) except -1:
        """Leave shared memory, and large memory of a caller who waits, where they are; copy other large buffers."""
        cdef const Space *space = space_of(data, size)
        cdef uint64_t offset = 0
        cdef bint forked
        if space is not NULL and space.public:
            refer(buffer, FP_IN_SPACE, space, data)
        elif size < LARGE_BYTES:
            return 0
        elif self.steady and space is not NULL and space.ident == self.segment.ident:
            refer(buffer, FP_FROM_SPACE, space, data)
        elif self.steady and self.may_inherit and not self.fresh and space is NULL and is_private(keep):
            refer(buffer, FP_BORN_WITH, NULL, data)
        elif self.steady and self.may_read:
            forked = memory_is_forked(data)
            if forked and self.unshare:
                self.unshared, forked = True, False
            self.read_forked |= forked
            refer(buffer, FP_IN_FORKED if forked else FP_IN_OWNER, NULL, data)
        elif copy_to_block(self.segment.at, self.segment.lanes, data, size, &offset):
            buffer.where = FP_IN_BLOCK
            buffer.at = offset
            self.placed.append(offset)
            self.blob_bytes += size
            return 0
        else:
            return 0
        self.kept.append(keep)
        return 0

    cdef bint reachable(self, object array, fp_buffer *buffer) except -1:
        """Elements that do not lie side by side stay in shared memory too."""
        cdef const Space *space = space_of(cnp.PyArray_DATA(array), 1)
        if space is NULL or not space.public:
            return False
        buffer.bytes = 1
        refer(buffer, FP_IN_SPACE, space, cnp.PyArray_DATA(array))
        self.kept.append(array)
        return True

    cdef int put_pickled(self, object value) except -1:
        cdef bint steady = self.steady
        self.steady = steady and not runs_code(value, 0)
        try:
            return Encoder.put_pickled(self, value)
        finally:
            self.steady = steady

    cdef bytes dump(self, object value, list buffers):
        if not public_blocks():
            return Encoder.dump(self, value, buffers)
        self.kept.append(value)
        return dump_with_shared_arrays(value, buffers, self.make_pickler)


cdef class ListEncoder(BufferEncoder):
    cdef int put(self, object value) except -1:
        self.kept.append(value)
        return 0

    cdef uint64_t put_numbers(self, list items, uint64_t start, uint64_t count) except? 0:
        """Append what `items` has from `start` on, up to `count`. Returns how many."""
        cdef list stretch = items[start:start + count]
        self.kept += stretch
        return len(stretch)


cdef void refer(fp_buffer *buffer, uint64_t where, const Space *space, const void *data) noexcept:
    buffer.where = where
    buffer.space = 0 if space is NULL else space.ident
    buffer.at = <uint64_t><size_t>data - (0 if space is NULL else <uint64_t><size_t>space.base)


cdef class Feed:
    """
    Parameters
    ----------
    segment : Segment
    iterable : iterable
        Iterated lazily, here and nowhere else.
    limit : int or None
        The most elements to take.
    serializer : Serializer
        For elements that have no record of their own kind.
    steady : bool
        No code of the user's runs between elements, so that large arrays are read where they are while the map runs
        (in an element that is pickled by code of its own they are copied all the same).
    may_read : bool
        All workers can read this process's memory.
    may_inherit : bool
        Workers that cannot will be forked during this map.
    unshare : bool
        Memory that forks share may become this process's alone, so that it is read at full speed (see
        ``fp_read_process``).
    base : int
        Units before this one are tasks of a range: chunks are only what dead workers left of these.
    copied : bool
        Elements are arrays of the caller's, which tasks may overwrite: a worker that is a thread makes its own copy.
    """

    def __cinit__(self, Segment segment, iterable, limit, serializer, bint steady=False, bint may_read=False,
                  bint may_inherit=False, bint unshare=False, uint64_t base=0, bint copied=False):
        self.segment = segment
        self.base = self.published = self.oldest = base
        self.encoder = BufferEncoder(segment) if segment.exchange is None else ListEncoder(segment)
        self.encoder.dumps = serializer.dumps
        self.encoder.make_pickler = serializer.pickler
        self.encoder.steady = steady
        self.encoder.may_read = may_read
        self.encoder.may_inherit = may_inherit
        self.encoder.unshare = unshare
        self.iterator = iter(iterable)
        self.plain = iterable if type(iterable) is list else None
        self.quick = type(iterable) in (list, tuple, range)
        self.limit = FP_NEVER if limit is None else min(limit, FP_NEVER)
        self.exhausted = self.limit == 0
        self.order = <uint64_t *>calloc(FP_FEED_SLOTS, sizeof(uint64_t))
        self.left = <uint64_t *>calloc(FP_FEED_SLOTS, sizeof(uint64_t))
        self.blocks = [None] * FP_FEED_SLOTS
        self.kept = [None] * FP_FEED_SLOTS
        self.again = []
        self.lost = []
        if segment.exchange is not None:
            segment.exchange.offer(self.kept, copied)
        if self.order is NULL or self.left is NULL:
            raise MemoryError("fastpool: no memory for the input's bookkeeping")

    def __dealloc__(self):
        free(self.order)
        free(self.left)

    @property
    def outstanding(self) -> int:
        """Chunks published and not wholly collected."""
        return self.published - self.oldest

    def next_for(self, uint64_t worker, uint64_t n_workers) -> int:
        """Of the chunks that are this worker's in an ordered job, the first that is not done (or not there yet), if
        no worker of that number is alive."""
        cdef uint64_t chunk = self.oldest + (worker + n_workers - self.oldest % n_workers) % n_workers
        while chunk < self.published and self.left[chunk % FP_FEED_SLOTS] == 0:
            chunk += n_workers
        return chunk

    @property
    def read_forked(self) -> bool:
        """Was memory that forks share left for workers to read, which takes twice as long?"""
        return self.encoder.read_forked

    @property
    def unshared(self) -> bool:
        """Was such memory left for them to read as if no fork shared it, which ends the sharing?"""
        return self.encoder.unshared

    @property
    def can_publish(self) -> bool:
        """Is there a free slot for one more chunk?"""
        return self.published - self.oldest < FP_FEED_SLOTS

    def encode(self, uint64_t count, uint64_t patience_ns, uint64_t most_bytes) -> int:
        """Take elements and encode them, until the next chunk has `count`. Returns how many it has.

        At least one, if there is one; no more after `patience_ns` or when the chunk has `most_bytes`.
        """
        cdef PyObject *item
        cdef uint64_t deadline = now_ns() + patience_ns
        cdef uint64_t many
        cdef BufferEncoder encoder = self.encoder
        if count > self.limit - self.tasks + self.pending:
            count = self.limit - self.tasks + self.pending
        encoder.number = self.tasks
        if self.pending == 0:
            self.pending_first = self.tasks
        cdef uint64_t at_once = max(1, min(NUMBERS_AT_ONCE, most_bytes // 8))
        while self.pending < count:
            if self.plain is not None and encoder.kind != FP_KIND_TAGGED:
                many = encoder.put_numbers(self.plain, self.tasks, min(count - self.pending, at_once))
                self.pending += many
                self.tasks += many
                if many and encoder.writer.position + encoder.blob_bytes < most_bytes:
                    continue
                if many:
                    break
            item = self.next_item()
            if item is NULL:
                self.exhausted = True
                break
            try:
                encoder.put(<object>item)
            except Exception as error:
                detail = f"{type(<object>item).__qualname__}: {error}"
                raise unsendable(error, "argument", self.tasks, None, detail) from error
            finally:
                Py_DECREF(item)
            self.pending += 1
            self.tasks += 1
            if encoder.writer.position + encoder.blob_bytes >= most_bytes or not self.quick and now_ns() > deadline:
                break
        if self.tasks == self.limit:
            self.exhausted = True
        encoder.close()
        return self.pending

    cdef inline PyObject *next_item(self) except? NULL:
        """The next element (a new reference), NULL at the end. A list is read as it is now, without its iterator."""
        cdef PyObject *item
        if self.plain is None:
            return PyIter_Next(self.iterator)
        if self.tasks >= <uint64_t>PyList_GET_SIZE(self.plain):
            return NULL
        item = PyList_GET_ITEM(self.plain, self.tasks)
        Py_INCREF(item)
        return item

    def publish(self) -> bool:
        """Hand the encoded chunk to the workers. False: no room in shared memory until something was collected."""
        cdef BufferEncoder encoder = self.encoder
        cdef uint64_t slot = self.published % FP_FEED_SLOTS
        cdef fp_feed_slot *entry = fp_feed_of(self.segment.at, FP_MAP, self.published)
        cdef uint64_t offset = 0
        cdef list blocks = []
        if not encoder.lay_down(&offset, blocks, NULL, 0):
            return False
        entry.offset = offset
        entry.bytes = encoder.writer.position
        entry.first = self.pending_first
        entry.count = self.left[slot] = self.pending
        entry.skip = 0
        self.blocks[slot] = blocks + encoder.placed
        self.kept[slot] = encoder.kept
        self.order[slot] = self.pending_first
        if self.base:
            self.again.append(self.published)
        self.published += 1
        self.pending = 0
        encoder.clear()
        store(self.segment.at.jobs[FP_MAP].avail, self.published)
        return True

    cdef int collected(self, uint64_t first, uint64_t count) except -1:
        """Results of tasks first … first + count - 1, all of one claim, are collected."""
        cdef uint64_t chunk = self.chunk_of(first)
        cdef uint64_t slot = chunk % FP_FEED_SLOTS
        cdef fp_feed_slot *entry
        if chunk == NO_CHUNK:
            return 0
        entry = fp_feed_of(self.segment.at, FP_MAP, chunk)
        if chunk >= self.published or first < entry.first + entry.skip or self.left[slot] < count:
            raise DamagedMemoryError("a result of a task that was not handed out")
        self.left[slot] -= count
        if self.left[slot] == 0:
            free_blocks(self.segment, self.blocks[slot])
            self.drop(chunk)
        return 0

    cdef uint64_t chunk_of(self, uint64_t first) except? 0:
        """The chunk of a task that is out and not collected, as far as can be told; NO_CHUNK: it is one of a range."""
        cdef uint64_t low = self.oldest, high = self.published, middle
        cdef fp_feed_slot *entry
        for chunk in self.again:
            entry = fp_feed_of(self.segment.at, FP_MAP, chunk)
            if entry.first + entry.skip <= first < entry.first + entry.count:
                return chunk
        if self.base:
            return NO_CHUNK
        while low + 1 < high:  # the last chunk that begins at or before `first`
            middle = (low + high) // 2
            if self.order[middle % FP_FEED_SLOTS] <= first:
                low = middle
            else:
                high = middle
        return low

    cdef int drop(self, uint64_t chunk) except -1:
        """Nothing of this chunk is expected any more."""
        cdef uint64_t slot = chunk % FP_FEED_SLOTS
        self.left[slot] = 0
        self.blocks[slot] = self.kept[slot] = None
        if self.again and chunk in self.again:
            self.again.remove(chunk)
        while self.oldest < self.published and self.left[self.oldest % FP_FEED_SLOTS] == 0:
            self.oldest += 1
        return 0

    def release(self) -> None:
        """Free what the chunks that are out lie in. No worker takes from them any more."""
        for chunk in range(self.oldest, self.published):
            if self.left[chunk % FP_FEED_SLOTS]:
                free_blocks(self.segment, self.blocks[chunk % FP_FEED_SLOTS])
                self.drop(chunk)
        for _, blocks, _ in self.lost:
            free_blocks(self.segment, blocks)
        self.lost.clear()
        free_blocks(self.segment, self.encoder.placed)
        self.encoder.clear()
        self.iterator = None

    # ------------------------------------------------------------ what dead workers left

    def open_tasks(self, uint64_t chunk) -> range:
        """The tasks of a chunk that are not collected; none if the chunk has been given again."""
        cdef fp_feed_slot *entry = fp_feed_of(self.segment.at, FP_MAP, chunk)
        if not self.oldest <= chunk < self.published:
            return range(0)
        return range(entry.first + entry.count - self.left[chunk % FP_FEED_SLOTS], entry.first + entry.count)

    def take_back(self, uint64_t chunk) -> None:
        """The worker that had this chunk is dead: what is left of it waits for :meth:`give_again`."""
        cdef uint64_t slot = chunk % FP_FEED_SLOTS
        cdef fp_feed_slot left = fp_feed_of(self.segment.at, FP_MAP, chunk)[0]
        left.skip = left.count - self.left[slot]
        self.lost.append((left, self.blocks[slot], self.kept[slot]))
        self.drop(chunk)

    def resume(self, uint64_t chunk) -> None:
        """The worker that had this chunk of an ordered job is dead; its successor begins with what is left of it."""
        cdef fp_feed_slot *entry = fp_feed_of(self.segment.at, FP_MAP, chunk)
        entry.skip = entry.count - self.left[chunk % FP_FEED_SLOTS]

    @property
    def has_lost(self) -> bool:
        """Does anything wait to be given again?"""
        return len(self.lost) > 0

    def give_again(self) -> None:
        """Hand out, as far as there are slots, what dead workers left, as it was handed out to them."""
        cdef uint64_t slot
        cdef fp_feed_slot entry
        while self.lost and self.can_publish:
            entry, blocks, kept = self.lost.pop(0)
            slot = self.published % FP_FEED_SLOTS
            fp_feed_of(self.segment.at, FP_MAP, self.published)[0] = entry
            self.left[slot] = entry.count - entry.skip
            self.blocks[slot], self.kept[slot] = blocks, kept
            self.order[slot] = self.tasks - self.pending  # those behind it begin there, or later
            self.again.append(self.published)
            self.published += 1
        store(self.segment.at.jobs[FP_MAP].avail, self.published)

    def encode_tasks(self, uint64_t first, values) -> None:
        """Encode, as the next chunk, tasks of the range: the number of the first, the elements of all."""
        cdef BufferEncoder encoder = self.encoder
        self.pending_first = encoder.number = first
        for value in values:
            encoder.put(value)
        self.pending = len(values)
        encoder.close()
