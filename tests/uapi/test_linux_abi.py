"""The kernel's ABI: every structure as large as the kernel says in the number of its ioctl."""

from __future__ import annotations

import errno
import mmap

import pytest

from vgpud.errors import HostError
from vgpud.uapi import address_space, drm, udmabuf
from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.ioctl import ioctl
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.page import PAGE_SIZE


@pytest.mark.parametrize(
    ("request_name", "struct"),
    [
        ("KVM_SET_USER_MEMORY_REGION", "struct kvm_userspace_memory_region"),
        ("KVM_ENABLE_CAP", "struct kvm_enable_cap"),
        ("KVM_IOEVENTFD", "struct kvm_ioeventfd"),
        ("KVM_CREATE_DEVICE", "struct kvm_create_device"),
        ("KVM_GET_REGS", "struct kvm_regs"),
        ("KVM_SET_REGS", "struct kvm_regs"),
        ("KVM_GET_SREGS", "struct kvm_sregs"),
        ("KVM_SET_SREGS", "struct kvm_sregs"),
        ("KVM_GET_MSRS", "struct kvm_msrs"),
        ("KVM_SET_MSRS", "struct kvm_msrs"),
        ("KVM_SET_CPUID2", "struct kvm_cpuid2"),
        ("KVM_GET_SUPPORTED_CPUID", "struct kvm_cpuid2"),
        ("UDMABUF_CREATE", "struct udmabuf_create"),
        ("DRM_IOCTL_VERSION", "struct drm_version"),
        ("DRM_IOCTL_GEM_CLOSE", "struct drm_gem_close"),
        ("DRM_IOCTL_PRIME_HANDLE_TO_FD", "struct drm_prime_handle"),
        ("DRM_IOCTL_MODE_CREATE_DUMB", "struct drm_mode_create_dumb"),
    ],
)
def test_a_request_carries_the_size_of_its_structure(request_name: str, struct: str) -> None:
    request = getattr(lib, request_name)
    assert (request >> 16) & 0x3FFF == ffi.sizeof(struct)


@pytest.mark.parametrize(
    ("struct", "size"),
    [
        ("struct kvm_segment", 24),
        ("struct kvm_dtable", 16),
        ("struct kvm_msr_entry", 16),
        ("struct kvm_cpuid_entry2", 40),
    ],
)
def test_a_part_of_a_structure_has_its_size(struct: str, size: int) -> None:
    assert ffi.sizeof(struct) == size


def test_kvm_run_begins_as_documented() -> None:
    assert ffi.offsetof("struct kvm_run", "exit_reason") == 8
    assert ffi.offsetof("struct kvm_run", "mmio", "data") == 40
    assert ffi.offsetof("struct kvm_run", "io", "data_offset") == 40
    assert ffi.sizeof("struct kvm_run") >= 2352


def test_request_numbers_are_the_kernels() -> None:
    assert lib.KVM_SET_USER_MEMORY_REGION == 0x4020AE46
    assert SlotFlag.NON_COHERENT_DMA.value == 8
    assert lib.DRM_IOCTL_VERSION == 0xC0406400
    assert lib.DRM_IOCTL_GEM_CLOSE == 0x40086409
    assert lib.DRM_IOCTL_DROP_MASTER == 0x641F
    assert lib.DRM_IOCTL_PRIME_HANDLE_TO_FD == 0xC00C642D
    assert lib.DRM_IOCTL_MODE_CREATE_DUMB == 0xC02064B2


def test_flags_of_memory_slots_are_the_kernels() -> None:
    assert {flag.name: flag.value for flag in SlotFlag} == {
        flag.name: getattr(lib, f"KVM_MEM_{flag.name}") for flag in SlotFlag
    }


def test_a_page_is_what_the_kernel_maps() -> None:
    assert PAGE_SIZE == mmap.PAGESIZE


def test_an_error_names_the_call_and_the_remedy() -> None:
    with pytest.raises(HostError, match=r"^KVM_CREATE_VM: Bad file descriptor; open it$") as raised:
        ioctl(-1, lib.KVM_CREATE_VM, name="KVM_CREATE_VM", remedies={errno.EBADF: "open it"})
    assert raised.value.errno == errno.EBADF
    assert isinstance(raised.value.__cause__, OSError)


def test_an_error_without_remedy_does_not_invent_one() -> None:
    with pytest.raises(HostError, match=r"^KVM_CREATE_VM: Bad file descriptor$"):
        ioctl(-1, lib.KVM_CREATE_VM, name="KVM_CREATE_VM")


def test_a_udmabuf_call_names_itself() -> None:
    with pytest.raises(HostError, match="UDMABUF_CREATE of 0x1000 bytes at 0x2000"):
        udmabuf.create(-1, 0, 0x2000, 0x1000)


def test_drm_calls_name_themselves() -> None:
    bad = "Bad file descriptor"
    with pytest.raises(HostError, match=f"DRM_IOCTL_VERSION: {bad}"):
        drm.driver_name(-1)
    with pytest.raises(HostError, match=f"DRM_IOCTL_DROP_MASTER: {bad}"):
        drm.drop_master(-1)
    with pytest.raises(HostError, match=f"DRM_IOCTL_MODE_CREATE_DUMB of 1024 x 2: {bad}"):
        drm.create_dumb(-1, 1024, 2, 32)
    with pytest.raises(HostError, match=f"DRM_IOCTL_PRIME_HANDLE_TO_FD of 7: {bad}"):
        drm.prime_handle_to_fd(-1, 7)
    with pytest.raises(HostError, match=f"DRM_IOCTL_GEM_CLOSE of 7: {bad}"):
        drm.gem_close(-1, 7)


def test_a_mapping_that_is_refused_says_why() -> None:
    with pytest.raises(HostError, match="mmap of 0x1000 bytes at offset 0x0: Bad file descriptor"):
        address_space.map_shared(-1, 0, 0x1000)
    with pytest.raises(HostError, match="munmap of 0x0 bytes: Invalid argument"):
        address_space.unmap(0, 0)
