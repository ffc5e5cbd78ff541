"""Compiles the native part, and has the files of the system service in the package as
`vgpud/share`; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

SHARED = [name for name in ("config", "man", "systemd") if Path(name).is_dir()]

setup(
    packages=[*find_packages(include=["vgpud*"]), *(f"vgpud.share.{name}" for name in SHARED)],
    package_dir={f"vgpud.share.{name}": name for name in SHARED},
    cffi_modules=[
        "vgpud/uapi/build_native.py:ffibuilder",
        "vgpud/uapi/build_native.py:linux_ffibuilder",
        "vgpud/microvm/build_guest.py:ffibuilder",
    ],
)
