cdef void keep_reserve() noexcept
cdef void use_reserve() noexcept
