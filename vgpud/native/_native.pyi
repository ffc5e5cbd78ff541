"""Types of the module that is compiled from native.h: its functions and constants."""

from typing import Any, TypeAlias

from cffi import FFI

_CData: TypeAlias = FFI.CData

class _Ffi(FFI):
    # Only C knows the members of a struct: they are checked at run time.
    def new(self, cdecl: str | FFI.CType, init: Any = None) -> Any: ...
    # A numpy array is a buffer, but its type does not say so for Python 3.11.
    def from_buffer(self, *arguments: Any, **named: Any) -> FFI.CData: ...
    # It also takes `lib` and the name of a function.
    def addressof(self, cdata: Any, *fields_or_indexes: str | int) -> FFI.CData: ...

class _Lib:
    VGPUD_FLUSH_BEFORE_READ: int
    VGPUD_NON_TEMPORAL_WRITE: int
    VGPUD_BACKWARD: int
    VGPUD_COST_ROW: int
    VGPUD_COST_SPAN: int
    VGPUD_COST_PAGE: int
    VGPUD_BYTES_PER_NS: int
    VGPUD_CPU_CLFLUSHOPT: int
    VGPUD_CPU_CLWB: int
    VGPUD_CPU_AVX2: int
    VGPUD_CPU_SELF_SNOOP: int
    VGPUD_CPU_HYPERVISOR: int
    VGPUD_CPU_AVX512: int
    VGPUD_TILE_WIDTH: int
    VGPUD_TILE_HEIGHT: int
    VGPUD_ORDER_AS_IS: int
    VGPUD_FAST_RESPONSE: int
    VGPUD_CHAIN_END: int
    VGPUD_CHAIN_TABLE: int
    VGPUD_CHAIN_LOOP: int
    VGPUD_CHAIN_NEXT: int
    VGPUD_CHAIN_ORDER: int
    VGPUD_CHAIN_BAD_INDIRECT: int
    VGPUD_RING_UNUSUAL: int
    VGPUD_BENCH_MEMCPY: int
    VGPUD_BENCH_MEMCPY_CLWB: int
    VGPUD_BENCH_MEMCPY_FLUSH: int
    VGPUD_BENCH_FLUSH_MEMCPY: int
    VGPUD_BENCH_WRITE: int
    VGPUD_BENCH_READ: int
    VGPUD_BENCH_FROM_CACHE: int
    VGPUD_BENCH_FROM_MEMORY: int
    def vgpud_cpu_features(self) -> int: ...
    def vgpud_limit_cpu_features(self, allowed: int, /) -> None: ...
    def vgpud_cache_line_size(self) -> int: ...
    def vgpud_load_acquire_u16(self, word: _CData, /) -> int: ...
    def vgpud_store_release_u16(self, word: _CData, value: int, /) -> None: ...
    def vgpud_full_fence(self) -> None: ...
    def vgpud_dirty_log_set(
        self, bitmap: _CData, bitmap_bytes: int, first_page: int, pages: int, /
    ) -> None: ...
    def vgpud_dirty_log_rect(
        self,
        bitmap: _CData,
        bitmap_bytes: int,
        spans: _CData,
        guests: _CData,
        count: int,
        offset: int,
        stride: int,
        row_bytes: int,
        rows: int,
        /,
    ) -> int: ...
    def vgpud_gather(
        self,
        spans: _CData,
        count: int,
        offset: int,
        stride: int,
        buffer: _CData,
        buffer_stride: int,
        row_bytes: int,
        rows: int,
        flags: int,
        /,
    ) -> int: ...
    def vgpud_scatter(
        self,
        spans: _CData,
        count: int,
        offset: int,
        stride: int,
        buffer: _CData | bytes,
        buffer_stride: int,
        row_bytes: int,
        rows: int,
        flags: int,
        /,
    ) -> int: ...
    def vgpud_copy(
        self,
        to: _CData,
        to_count: int,
        to_offset: int,
        to_stride: int,
        from_: _CData,
        from_count: int,
        from_offset: int,
        from_stride: int,
        row_bytes: int,
        rows: int,
        scratch: _CData,
        scratch_size: int,
        flags: int,
        /,
    ) -> int: ...
    def vgpud_fill(
        self, spans: _CData, count: int, offset: int, length: int, pattern: int, flags: int, /
    ) -> int: ...
    def vgpud_flush(self, spans: _CData, count: int, offset: int, length: int, /) -> int: ...
    def vgpud_sort_places(
        self, places: _CData, spare: _CData, count: int, state: _CData, most: int, /
    ) -> int: ...
    def vgpud_sweep_places(
        self,
        places: _CData,
        count: int,
        others: _CData,
        other_count: int,
        state: _CData,
        most: int,
        /,
    ) -> int: ...
    def vgpud_update_tiles(
        self,
        spans: _CData,
        count: int,
        offset: int,
        stride: int,
        shadow: _CData,
        x: int,
        y: int,
        width: int,
        height: int,
        order: int,
        changed: _CData,
        flags: int,
        /,
    ) -> int: ...
    def vgpud_transfer(
        self, transfers: _CData, request: _CData | bytes, length: int, response: _CData, /
    ) -> int: ...
    def vgpud_ring_walk(
        self,
        table: _CData,
        entries: int,
        indirect: int,
        walk: _CData,
        buffers: _CData,
        room: int,
        /,
    ) -> int: ...
    def vgpud_ring_take(
        self,
        ring: _CData,
        regions: _CData,
        count: int,
        next_: int,
        chains: _CData,
        most: int,
        buffer: _CData,
        size: int,
        next_used: int,
        fast_path: _CData,
        /,
    ) -> int: ...
    def vgpud_ring_answer(
        self,
        ring: _CData,
        regions: _CData,
        count: int,
        next_: int,
        head: int,
        address: int,
        room: int,
        response: _CData | bytes,
        length: int,
        /,
    ) -> int: ...
    def vgpud_ring_publish(self, ring: _CData, signalled: int, next_: int, /) -> int: ...
    def vgpud_ring_enable_notifications(self, ring: _CData, next_: int, /) -> int: ...
    def vgpud_ring_poll(self, ring: _CData, next_: int, nanoseconds: int, /) -> int: ...
    def vgpud_map_shared(
        self, fd: int, offset: int, length: int, page_size: int, writable: int, /
    ) -> _CData: ...
    def vgpud_unmap(self, mapping: _CData, /) -> None: ...
    def vgpud_mapping_address(self, mapping: _CData, /) -> int: ...
    def vgpud_mapping_faulted(self, mapping: _CData, /) -> int: ...
    def vgpud_fault_event(self) -> int: ...
    def vgpud_punch_hole(self, fd: int, offset: int, length: int, /) -> int: ...
    def vgpud_map_pages(self, length: int, /) -> _CData: ...
    def vgpud_unmap_pages(self, pages: _CData, length: int, /) -> None: ...
    def vgpud_eventfd_signal(self, fd: int, /) -> int: ...
    def vgpud_is_unix_stream(self, fd: int, /) -> int: ...
    def vgpud_set_send_buffer(self, fd: int, size: int, /) -> int: ...
    def vgpud_bench_copies(
        self,
        way: int,
        source: int,
        to: _CData,
        to_stride: int,
        from_: _CData,
        from_stride: int,
        row_bytes: int,
        rows: int,
        times: int,
        /,
    ) -> int: ...

ffi: _Ffi
lib: _Lib
