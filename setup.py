"""Compiles the native part; everything else about the package is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=[
        "vgpud/uapi/build_native.py:ffibuilder",
        "vgpud/uapi/build_native.py:linux_ffibuilder",
        "vgpud/microvm/build_guest.py:ffibuilder",
    ]
)
