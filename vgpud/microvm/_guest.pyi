"""Types of the module that is compiled from guest.h: its functions and constants."""

from typing import Any, TypeAlias

from cffi import FFI

_CData: TypeAlias = FFI.CData

class _Ffi(FFI):
    # The members of a struct are known to C alone: they are checked when they are used.
    def new(self, cdecl: str | FFI.CType, init: Any = None) -> Any: ...

class _Lib:
    VGPUD_QUEUES: int
    VGPUD_QUEUE_SIZE: int
    VGPUD_RECORD_PORT: int
    VGPUD_RECORD_DWORDS: int
    VGPUD_CHASE_LINES: int
    VGPUD_SAMPLES: int
    VGPUD_PROGRAM_FRONT_END: int
    VGPUD_PROGRAM_MEASURE: int
    VGPUD_RECORD_PAT: int
    VGPUD_RECORD_MAPPED: int
    VGPUD_RECORD_WRITTEN: int
    VGPUD_RECORD_DMA: int
    VGPUD_RECORD_IMAGE: int
    VGPUD_RECORD_SAMPLES: int
    VGPUD_RECORD_FAILED: int
    VGPUD_RECORD_DONE: int
    def vgpud_guest_code(self) -> _CData: ...
    def vgpud_guest_code_size(self) -> int: ...
    def vgpud_guest_code_entry(self) -> int: ...

ffi: _Ffi
lib: _Lib
