"""Types of the module that is compiled from linux_abi.cdef: its functions and constants."""

from typing import Any, TypeAlias

from cffi import FFI

_CData: TypeAlias = FFI.CData

class _Ffi(FFI):
    # Only C knows the members of a struct: they are checked at run time.
    def new(self, cdecl: str | FFI.CType, init: Any = None) -> Any: ...
    def cast(self, cdecl: str | FFI.CType, source: FFI.CData | float) -> Any: ...
    def string(self, cdata: FFI.CData, maxlen: int = -1) -> Any: ...
    # A numpy array is a buffer, but its type does not say so for Python 3.11.
    def from_buffer(self, *arguments: Any, **named: Any) -> FFI.CData: ...

class _Lib:
    PROT_READ: int
    PROT_WRITE: int
    MAP_SHARED: int
    KVM_GET_API_VERSION: int
    KVM_CREATE_VM: int
    KVM_CHECK_EXTENSION: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GET_SUPPORTED_CPUID: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_SET_TSS_ADDR: int
    KVM_ENABLE_CAP: int
    KVM_IOEVENTFD: int
    KVM_CREATE_DEVICE: int
    KVM_CREATE_VCPU: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_READONLY: int
    KVM_MEM_NON_COHERENT_DMA: int
    KVM_CAP_NR_MEMSLOTS: int
    KVM_CAP_DISABLE_QUIRKS2: int
    KVM_CAP_USER_MEMORY2: int
    KVM_X86_QUIRK_IGNORE_GUEST_PAT: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_CREATE_DEVICE_TEST: int
    KVM_DEV_TYPE_VFIO: int
    KVM_RUN: int
    KVM_GET_REGS: int
    KVM_SET_REGS: int
    KVM_GET_SREGS: int
    KVM_SET_SREGS: int
    KVM_GET_MSRS: int
    KVM_SET_MSRS: int
    KVM_SET_CPUID2: int
    KVM_EXIT_UNKNOWN: int
    KVM_EXIT_IO: int
    KVM_EXIT_HLT: int
    KVM_EXIT_MMIO: int
    KVM_EXIT_SHUTDOWN: int
    KVM_EXIT_FAIL_ENTRY: int
    KVM_EXIT_INTERNAL_ERROR: int
    UDMABUF_CREATE: int
    UDMABUF_FLAGS_CLOEXEC: int
    DRM_IOCTL_VERSION: int
    DRM_IOCTL_GEM_CLOSE: int
    DRM_IOCTL_DROP_MASTER: int
    DRM_IOCTL_PRIME_HANDLE_TO_FD: int
    DRM_IOCTL_MODE_CREATE_DUMB: int
    DRM_CLOEXEC: int
    DRM_RDWR: int
    def vgpud_ioctl(self, fd: int, request: int, argument: _CData, /) -> int: ...
    def mmap(
        self, address: _CData, length: int, prot: int, flags: int, fd: int, offset: int, /
    ) -> _CData: ...
    def munmap(self, address: _CData, length: int, /) -> int: ...

ffi: _Ffi
lib: _Lib
