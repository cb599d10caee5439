cdef int keep_reserve() except -1
cdef void use_reserve() noexcept
