"""`vgpud install-units`: the files of a system service, put where the system looks for them.

Owns which file goes where, and what a change of them is called. It tells no service manager
anything; what to type is said.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError, HostError

WRITTEN_FOR: Final = "/opt/vgpud"
"""The prefix that the files in the source name."""
VENDOR_PREFIX: Final = Path("/usr")
"""The prefix of a distribution's own packages, whose files leave /etc to the administrator."""
# What the units' ProtectHome and PrivateTmp hide from the daemon.
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
_SPECIAL: Final = frozenset(" \t\n\"'\\%$;")
"""What means something else in a unit's command line."""
# By the name in the source: the directory for a vendor's, the one for an administrator's file.
_DIRECTORIES: Final = (
    ("systemd/*.service", "usr/lib/systemd/system", "etc/systemd/system"),
    ("systemd/*.socket", "usr/lib/systemd/system", "etc/systemd/system"),
    ("systemd/*.sysusers.conf", "usr/lib/sysusers.d", "etc/sysusers.d"),
    ("systemd/*.tmpfiles.conf", "usr/lib/tmpfiles.d", "etc/tmpfiles.d"),
    ("systemd/*.rules", "usr/lib/udev/rules.d", "etc/udev/rules.d"),
    ("config/*.json", "usr/share/qemu/vhost-user", "etc/qemu/vhost-user"),
    ("config/*.toml", "etc", "etc"),
    ("man/*.1", "usr/share/man/man1", "usr/local/share/man/man1"),
    ("man/*.5", "usr/share/man/man5", "usr/local/share/man/man5"),
)
NEXT: Final = """\
now:
  systemd-sysusers && systemd-tmpfiles --create && udevadm control --reload
  systemctl daemon-reload
and, for a daemon that starts when it is needed,
  systemctl enable --now vgpud.socket vgpud-device@gpu0.socket
or, for one that is always there,
  systemctl enable --now vgpud.service"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A file as it is to be: where, and what is in it. An `editable` one is the administrator's
    once it is there."""

    path: Path
    content: bytes
    editable: bool = False


def install(prefix: Path | None = None, root: Path | None = None) -> Iterator[str]:
    """Put every file in its place, and say what became of each, and what is to be done next.

    `prefix` has bin/vgpud in it, by default the one that is running; `root` is the directory that
    will be / on another system. Doing it again changes nothing. Raises ConfigError before anything
    is changed if the service could not run `prefix`, and HostError.
    """
    files = list(_files(_usable(prefix, root)))
    for file in files:
        path = _below(root, file.path)
        found = _read(path)
        if found == file.content:
            yield f"unchanged {path}"
        elif found is not None and file.editable:
            yield f"kept {path}: it is not the default any more"
        else:
            _write(path, file.content)
            yield f"{'installed' if found is None else 'replaced'} {path}"
    if root is None:
        yield NEXT


def uninstall(prefix: Path | None = None, root: Path | None = None) -> Iterator[str]:
    """Remove every file that `install` put there and nobody has changed; say what became of each.

    Raises HostError.
    """
    for file in _files(prefix or _own_prefix()):
        path = _below(root, file.path)
        found = _read(path)
        if found is not None and found != file.content:
            yield f"kept {path}: it is not as it was installed"
        elif found is not None:
            try:
                path.unlink()
            except OSError as error:
                raise HostError(f"removing {path}", error) from error
            yield f"removed {path}"


def _files(prefix: Path) -> Iterator[Installed]:
    source = _source()
    vendor = prefix == VENDOR_PREFIX
    for pattern, vendors, administrators in _DIRECTORIES:
        for path in sorted(source.glob(pattern)):
            name = path.name
            for kind in (".sysusers", ".tmpfiles"):  # the directory's name says it then
                name = name.replace(kind, "")
            text = path.read_text(encoding="utf-8").replace(f"{WRITTEN_FOR}/", f"{prefix}/")
            directory = Path("/", vendors if vendor else administrators)
            yield Installed(directory / name, text.encode(), editable=path.suffix == ".toml")


def _source() -> Path:
    """Where the files are: in an installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "share"
    return installed if installed.is_dir() else package.parent


def _own_prefix() -> Path:
    program = Path(sys.argv[0]).absolute()
    return program.parent.parent if program.name == "vgpud" else Path(sys.prefix)


def _usable(prefix: Path | None, root: Path | None) -> Path:
    """The prefix, if the service will be able to run it."""
    own = prefix is None
    prefix = _own_prefix() if prefix is None else prefix
    if not prefix.is_absolute() or ".." in prefix.parts:
        raise ConfigError(f"--prefix {prefix}: must be an absolute path")
    if _SPECIAL & set(str(prefix)):
        raise ConfigError(f"--prefix {prefix}: systemd would not take this name as it is")
    if root is not None:
        return prefix  # Of another system: what is there can't be told.
    program = prefix / "bin/vgpud"
    if not os.access(program, os.X_OK):
        advice = " Say --prefix, the directory that has bin/vgpud in it." if own else ""
        raise ConfigError(f"{program}: there is no such program.{advice}")
    # A virtual environment has its Python elsewhere.
    for path in (program.resolve(), (prefix / "bin/python").resolve()):
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigError(
                f"{path}: the service can't see it, since its units hide home directories and /tmp"
                f" from it. Install vgpud elsewhere, for example into {WRITTEN_FOR}."
            )
    return prefix


def _below(root: Path | None, path: Path) -> Path:
    return path if root is None else root / path.relative_to("/")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"reading {path}", error) from error


def _write(path: Path, content: bytes) -> None:
    """Nobody sees half a file, and what is there already stays until the new one is whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.chmod(0o644)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        advice = "run this as root, or say --root" if os.geteuid() else ""
        raise HostError(f"writing {path}", error, advice) from error
