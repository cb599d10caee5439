"""Results: encoded into the worker's own lane, waiting where the parent has to read first."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastpool._codec cimport Encoder, item_sum
from fastpool._native cimport (
    FP_CMD_QUIT, FP_FULL, FP_IN_BLOCK, FP_KIND_BLOCK, FP_KIND_ERROR, FP_KIND_FRAGMENT, FP_KIND_OBJECT, FP_KIND_PLACED,
    FP_MAP, FP_PHASE_TASK, Segment, check, copy_to_block, fp_align, fp_block_item, fp_buffer, fp_fragment, fp_item,
    fp_line_news, fp_line_of, fp_writer, load, memory_expect, now_ns, peek,
    store, writer_attach, writer_close, writer_half_full, writer_has_room, writer_largest, writer_open,
)
from fastpool._nursery cimport is_block, nursery
from fastpool._packed cimport KEEP_BYTES, array_bytes, array_data, is_sole, sole_memory
from fastpool._references cimport Places

from fastpool.errors import Interruption

cdef enum:
    LARGE_BYTES = 1 << 15  # results of more bytes go into a block of their own
    MOST_PLACES = 100_000


cdef struct Room:
    const fp_writer *writer
    uint32_t need

cdef int has_room(void *context) noexcept nogil:
    cdef Room *room = <Room *>context
    return writer_has_room(room.writer, room.need) or load(room.writer.control.command) == FP_CMD_QUIT


cdef class LaneEncoder(Encoder):
    def __cinit__(self, Segment segment, uint32_t worker):
        self.segment = segment
        self.worker = worker
        self.line = fp_line_of(segment.at, worker)
        self.mapped = set()
        writer_attach(&self.writer, segment.at, worker)
        self.large = min(LARGE_BYTES, writer_largest(&self.writer))

    cdef bytes dump(self, object value, list buffers):
        """A returned exception travels as a raised one does."""
        if isinstance(value, BaseException):
            return self.dump_exception(value)
        return Encoder.dump(self, value, buffers)

    # ------------------------------------------------------------ arrays

    cdef int expect(self, uint64_t task) except -1:
        """Before a run of one task: the memory numpy allocates next may be where its result belongs."""
        cdef uint64_t offset = load(self.segment.at.jobs[FP_MAP].plan)
        cdef uint64_t first
        if offset == 0:
            return 0
        self.plan = Plan(self.segment, offset)
        nursery.place_taken = False
        nursery.wanted = 0
        if self.plan.data is NULL:
            return 0
        first = self.plan.starts[task]
        nursery.place = self.plan.data + first * self.plan.at.row_bytes
        nursery.wanted = self.plan.rows_of(task) * self.plan.at.row_bytes
        self.whole = self.plan.data
        self.whole_bytes = self.plan.starts[self.plan.at.n_tasks] * self.plan.at.row_bytes
        if nursery.wanted >= KEEP_BYTES and not self.is_mapped(self.whole, self.whole_bytes) \
                and not self.is_mapped(nursery.place, nursery.wanted):
            memory_expect(nursery.place, nursery.wanted)
            self.mapped.add((<size_t>nursery.place, nursery.wanted))
        return 0

    cdef bint is_mapped(self, unsigned char *start, uint64_t size) except -1:
        if len(self.mapped) >= MOST_PLACES:
            self.mapped.clear()
        return (<size_t>start, size) in self.mapped

    cdef void relax(self) noexcept:
        """After it."""
        if self.plan is not None:
            self.plan = None
            nursery.place = NULL
            nursery.wanted = 0

    cdef void settle(self, object result) noexcept:
        """After a task that had a place: does an object of the user's lie there, other than the result?"""
        if nursery.place_taken and sole_memory(result) != nursery.place:
            store(self.plan.at.spoiled, 1)  # before the result is committed

    cdef bint put_array(self, object array) except -1:
        cdef uint64_t size = array_bytes(array)
        if self.plan is not None and self.put_in_place(array):
            return True
        if size >= KEEP_BYTES and is_sole(array) and is_block(array_data(array), size):
            self.giving = <unsigned char *>array_data(array)
        try:
            if not self.pack_array(array):
                return False
            self.put_packed()
        finally:
            self.giving = NULL
        if self.plan is None:
            nursery.wanted = size if size >= KEEP_BYTES else 0
        return True

    cdef bint put_in_place(self, object array) except -1:
        """Commit an array that is, or can be put, where the plan wants it."""
        cdef unsigned char *at
        if not self.plan.takes(self.number, array) or load(self.plan.at.spoiled):
            return False
        if nursery.place_taken and sole_memory(array) == nursery.place:
            if array_data(array) != nursery.place or not array.flags.c_contiguous:
                self.plan.put(self.number, array)  # it lies there in another order
            nursery.given = nursery.place
        elif array_data(array) == nursery.place or not self.plan.put(self.number, array):
            return False
        at = self.room(FP_KIND_PLACED, 0)
        self.commit(at)
        return True

    cdef int place(self, const void *data, uint64_t size, object keep, fp_buffer *buffer) except -1:
        cdef uint64_t offset = 0
        if data == self.giving and data is not NULL:
            offset = <uint64_t>(self.giving - <unsigned char *>self.segment.at)
            nursery.given = self.giving
        elif size < LARGE_BYTES or not copy_to_block(self.segment.at, self.worker, data, size, &offset):
            return 0
        nursery.blocks = True
        buffer.where = FP_IN_BLOCK
        buffer.at = offset
        return 0

    # ------------------------------------------------------------ records

    cdef void tell_parent(self) noexcept nogil:
        """Something other than a commit happened."""
        fp_line_news(self.line)
        self.segment.ring_parent()

    cdef int open(self, int kind, uint32_t need, uint32_t want) except -1:
        cdef Room room
        cdef uint64_t since
        cdef int code = writer_open(&self.writer, kind, self.phase, self.job, self.number, need, want)
        if code == FP_FULL:
            since = now_ns()
            room.writer = &self.writer
            room.need = need
            self.tell_parent()
            self.segment.wait_as_worker(self.worker, has_room, &room)
            self.waited_ns += now_ns() - since
            if load(self.writer.control.command) == FP_CMD_QUIT:
                raise Interruption()
            code = writer_open(&self.writer, kind, self.phase, self.job, self.number, need, want)
        check(code, "cannot open a record")
        return 0

    cdef void close(self) noexcept:
        if self.kind >= 0:
            self.kind = -1
            writer_close(&self.writer)
            if writer_half_full(&self.writer):
                self.tell_parent()

    cdef int wanted(self) except -1:
        """The parent wants to be rung for this commit. Once for each value of wake_at is enough: when it sets the same
        value again, it sees before it sleeps that `committed` has reached it."""
        cdef uint64_t wake_at = peek(self.writer.control.wake_at)
        if wake_at != self.rung_for:
            self.rung_for = wake_at
            self.segment.ring_parent()
        return 0

    cdef int put_large(self, int kind, uint32_t tag, const void *data, uint64_t size, uint64_t total,
                       object keep) except -1:
        cdef uint64_t offset = 0
        cdef uint64_t sum = item_sum(kind, tag, data, size)
        cdef fp_block_item *item
        if not copy_to_block(self.segment.at, self.worker, data, size, &offset):
            return self.put_fragments(kind, tag, <const unsigned char *>data, size, sum)
        nursery.blocks = True
        item = <fp_block_item *>self.room(FP_KIND_BLOCK, sizeof(fp_block_item))
        item.offset = offset
        item.bytes = size
        item.sum = sum
        item.kind = kind
        item.tag = tag
        return self.commit(<unsigned char *>(item + 1))

    cdef int put_fragments(self, int kind, uint32_t tag, const unsigned char *data, uint64_t size,
                           uint64_t sum) except -1:
        """No block is to be had: the item goes through the ring in pieces, one record each."""
        cdef uint64_t piece = writer_largest(&self.writer) - sizeof(fp_fragment) - 8
        cdef uint64_t at = 0
        cdef fp_fragment *head
        while at < size:
            piece = min(piece, size - at)
            self.close()
            head = <fp_fragment *>self.room(FP_KIND_FRAGMENT, sizeof(fp_fragment) + fp_align(piece, 8))
            head.total = size
            head.at = at
            head.sum = sum
            head.bytes = <uint32_t>piece
            head.kind = kind
            head.tag = tag
            memcpy(head + 1, data + at, piece)
            at += piece
            self.commit(<unsigned char *>(head + 1) + fp_align(piece, 8))
            if at < size:
                self.number -= 1  # only the last piece completes the task
        self.close()
        return 0


cdef class ReferenceEncoder(LaneEncoder):
    def __cinit__(self, Segment segment, uint32_t worker):
        self.exchange = segment.exchange
        self.outbox = segment.exchange.outbox(worker)

    cdef int put(self, object value) except -1:
        cdef unsigned char *at
        cdef Places places = self.exchange.places  # kept, while others run during the copy
        if places is not None and self.of_map and self.phase == FP_PHASE_TASK and places.put(self.number, value):
            at = self.room(FP_KIND_PLACED, 0)
            return self.commit(at)
        at = self.room(FP_KIND_OBJECT, 8)
        (<uint64_t *>at)[0] = self.outbox.put(value)
        return self.commit(at + 8)

    cdef int put_error(self, object payload) except -1:
        cdef unsigned char *at = self.room(FP_KIND_ERROR, sizeof(fp_item) + 8)
        (<fp_item *>at).bytes = 8
        (<fp_item *>at).tag = FP_KIND_OBJECT
        (<uint64_t *>(at + sizeof(fp_item)))[0] = self.outbox.put(payload)
        return self.commit(at + sizeof(fp_item) + 8)
