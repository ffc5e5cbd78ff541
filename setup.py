"""Compiles the native modules, and has the files of the system service in the package as
`vgpud/share`; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["vgpud*"]),
        *("vgpud.share.config", "vgpud.share.man", "vgpud.share.systemd"),
    ],
    package_dir={
        "vgpud.share.config": "config",
        "vgpud.share.man": "man",
        "vgpud.share.systemd": "systemd",
    },
    cffi_modules=[
        "vgpud/native/build.py:native_builder",
        "vgpud/native/build.py:linux_builder",
        "vgpud/native/build.py:guest_builder",
    ],
)
