"""Results: encoded into the worker's own lane, waiting where the parent has to read first."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastpool._codec cimport Encoder, is_summed
from fastpool._native cimport (
    FP_FULL, FP_KIND_BLOCK, FP_KIND_FRAGMENT, Segment, check, fp_align, fp_at, fp_block_item,
    fp_checksum, fp_fragment, fp_line_news, fp_line_of, fp_writer, heap_alloc, now_ns, peek, writer_attach,
    writer_close, writer_half_full, writer_has_room, writer_largest, writer_open,
)

cdef enum:
    LARGE_BYTES = 1 << 15  # results of more bytes go into a block of their own


cdef struct Room:
    const fp_writer *writer
    uint32_t need

cdef int has_room(void *context) noexcept nogil:
    cdef Room *room = <Room *>context
    return writer_has_room(room.writer, room.need)


cdef class LaneEncoder(Encoder):
    def __cinit__(self, Segment segment, uint32_t worker):
        self.segment = segment
        self.worker = worker
        self.line = fp_line_of(segment.at, worker)
        writer_attach(&self.writer, segment.at, worker)
        self.large = min(LARGE_BYTES, writer_largest(&self.writer))

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
        cdef uint64_t wake_at = peek(self.writer.lane.wake_at)
        if wake_at != self.rung_for:
            self.rung_for = wake_at
            self.segment.ring_parent()
        return 0

    cdef int put_large(self, int kind, uint32_t tag, const void *data, uint64_t size, uint64_t total,
                       object keep) except -1:
        cdef uint64_t offset = 0
        cdef uint64_t sum = fp_checksum(data, size) if is_summed(tag) else 0
        cdef fp_block_item *item
        cdef int code = heap_alloc(self.segment.at, self.worker, size, &offset)
        if code == FP_FULL:
            return self.put_fragments(kind, tag, <const unsigned char *>data, size, sum)
        check(code, f"large blocks of worker {self.worker}")
        memcpy(fp_at(self.segment.at, offset), data, size)
        self.blocks = True
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
