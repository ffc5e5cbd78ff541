"""Shared words, the dirty log, the CPU's features, and the native module as a whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.native import build
from vgpud.native import spans as native
from vgpud.native._native import lib

SOURCES = Path(build.__file__).parent


def test_a_shared_word_is_little_endian_and_where_it_was_bound() -> None:
    ring = np.zeros(8, np.uint8)
    word = native.SharedU16(ring, 2)
    word.store(0x1234)
    assert ring.tolist() == [0, 0, 0x34, 0x12, 0, 0, 0, 0]
    ring[3] = 0xFF
    assert word.load() == 0xFF34
    assert native.load_acquire_u16(ring, 2) == 0xFF34
    native.store_release_u16(ring, 6, 0x1_0002)
    assert ring[6:].tolist() == [2, 0]


@pytest.mark.parametrize("offset", [-2, 7, 8, 1 << 64])
def test_a_word_outside_its_array(offset: int) -> None:
    with pytest.raises(IndexError):
        native.SharedU16(np.zeros(8, np.uint8), offset)


def test_words_that_would_not_be_atomic_or_writable() -> None:
    ring = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="aligned"):
        native.SharedU16(ring, 1)
    with pytest.raises(ValueError):
        native.SharedU16(ring[::2], 0)
    ring.flags.writeable = False
    with pytest.raises(ValueError):
        native.SharedU16(ring, 0)


def test_a_word_keeps_its_array_alive() -> None:
    word = native.SharedU16(np.full(1 << 20, 7, np.uint8), (1 << 20) - 2)
    filler = [np.zeros(1 << 20, np.uint8) for _ in range(4)]
    assert word.load() == 0x0707
    assert filler


def test_what_was_written_before_a_store_is_seen_after_its_load() -> None:
    data, index = np.zeros(1 << 15, np.uint8), np.zeros(2, np.uint8)
    published = native.SharedU16(index)

    def produce() -> None:
        for count in range(1, 3000):
            data[count] = count % 251
            published.store(count)

    producer = threading.Thread(target=produce)
    producer.start()
    seen = 0
    while seen < 2999:
        seen = published.load()
        assert data[seen] == seen % 251
    producer.join()
    native.full_fence()


@given(
    st.integers(0, 40),
    st.integers(0, 1 << 64).filter(lambda page: page < 1 << 64) | st.integers(0, 400),
    st.integers(0, 400) | st.just((1 << 64) - 1),
)
def test_the_dirty_log_gets_its_bits_and_nothing_else_does(
    size: int, first: int, pages: int
) -> None:
    memory = np.zeros(size + 16, np.uint8)
    memory[8 : 8 + size] = 0x24
    native.dirty_log_set(memory[8 : 8 + size], first, pages)

    bits = np.unpackbits(np.full(size, 0x24, np.uint8), bitorder="little")
    bits[min(first, bits.size) : min(first + pages, bits.size)] = 1
    assert np.array_equal(memory[8 : 8 + size], np.packbits(bits, bitorder="little"))
    assert not memory[:8].any()
    assert not memory[8 + size :].any()


def test_the_dirty_log_loses_no_bit_of_another_thread() -> None:
    log = np.zeros(256, np.uint8)

    def mark(first: int) -> None:
        for page in range(first, 2048, 4):
            native.dirty_log_set(log, page, 1)

    threads = [threading.Thread(target=mark, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (log == 0xFF).all()


def test_cpu_features_agree_with_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="ascii")
    flags = set(re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    known = {
        "clflushopt": "clflushopt",
        "clwb": "clwb",
        "avx2": "avx2",
        "avx512f": "avx512f",
        "self-snoop": "ss",
        "hypervisor": "hypervisor",
    }
    assert native.cpu_features() == {name for name, flag in known.items() if flag in flags}
    assert f"clflush size\t: {native.CACHE_LINE}\n" in text


def test_the_facade_uses_every_function_there_is() -> None:
    header = build.declarations((SOURCES / "native.h").read_text(encoding="utf-8"))
    declared = set(re.findall(r"\b(vgpud_\w+)\(", header))
    facade = "".join(
        (SOURCES / name).read_text(encoding="utf-8")
        for name in ("spans.py", "ring.py", "transfers.py", "copies.py")
    )
    assert declared == set(re.findall(r"(?:lib\.|\(lib, \")(vgpud_\w+)", facade))
    assert all(callable(getattr(lib, name)) for name in declared)


@pytest.mark.parametrize("name", build.SOURCES)
def test_the_compiler_has_nothing_to_say(name: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "no C compiler, without which vgpud can't have been built"
    checks = ["all", "extra", "pedantic", "shadow", "conversion", "strict-prototypes", "error"]
    options = ["-std=gnu11", "-O2", *(f"-W{check}" for check in checks), "-o", "/dev/null"]
    command = [compiler, *options, "-c", str(SOURCES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MDWE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if libc.prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0):
    raise SystemExit(75)
import numpy as np
from vgpud.memory.engine import Engine
from vgpud.memory.extents import NON_COHERENT, Extents
memory = Extents.from_array(np.arange(200, dtype=np.uint8), access=NON_COHERENT)
Engine(0).copy(memory, 1, memory, 0, 199)
print(memory.array.sum())
"""


def test_it_runs_where_no_memory_may_become_executable() -> None:
    # systemd's MemoryDenyWriteExecute= and Linux 6.3's prctl.
    done = subprocess.run([sys.executable, "-c", MDWE], capture_output=True, text=True, check=False)
    if done.returncode == 75:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.stdout == f"{sum(range(199))}\n", done.stderr
