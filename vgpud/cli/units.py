"""`vgpud install-units`: it installs the files of a system service where the system expects them.

It does not call the service manager, but prints the commands to type.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vgpud.cli.output_file import replace_file
from vgpud.errors import ConfigError, HostError
from vgpud.unix.fd import Fd

WRITTEN_FOR: Final = "/opt/vgpud"
"""The prefix in the source files, which is replaced."""
VENDOR_PREFIX: Final = Path("/usr")
"""The prefix of a distribution's own packages, whose files leave /etc to the administrator."""
# What the units' ProtectHome and PrivateTmp hide from the daemon.
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755
_SPECIAL: Final = frozenset(" \t\n\"'\\%$;")
"""Characters with a special meaning in a unit's command line."""
# The pattern of source files, the directory for a vendor's files, and that for an administrator's.
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
    """A file to install. An `editable` one is the administrator's after it was installed."""

    path: Path
    content: bytes
    editable: bool = False


def install(prefix: Path | None = None, root: Path | None = None) -> Iterator[str]:
    """Install every file; yield a line about each, and the commands to type next.

    `prefix` has bin/vgpud in it, by default the one that is running. `root` is the directory that
    will be / on another system. A second call changes nothing. Raises ConfigError, before anything
    is changed, if the service could not run the program in `prefix`, and HostError.
    """
    files = list(_files(_usable(prefix, root)))
    for file in files:
        path = _below(root, file.path)
        found = _read(path)
        if found == file.content:
            yield f"unchanged {path}"
        elif found is not None and file.editable:
            yield f"kept {path}: it was edited"
        else:
            _write(path, file.content)
            yield f"{'installed' if found is None else 'replaced'} {path}"
    if root is None:
        yield NEXT


def uninstall(prefix: Path | None = None, root: Path | None = None) -> Iterator[str]:
    """Remove every installed file that was not changed; yield a line about each.

    Raises HostError.
    """
    for file in _files(prefix or _own_prefix()):
        path = _below(root, file.path)
        found = _read(path)
        if found is not None and found != file.content:
            yield f"kept {path}: it was changed"
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
            # In bytes, since the locale may lack characters that the prefix has.
            content = path.read_bytes().replace(
                f"{WRITTEN_FOR}/".encode(), os.fsencode(prefix) + b"/"
            )
            directory = Path("/", vendors if vendor else administrators)
            yield Installed(directory / name, content, editable=path.suffix == ".toml")


def _source() -> Path:
    """Return the directory of the files, in an installed package or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "share"
    return installed if installed.is_dir() else package.parent


def _own_prefix() -> Path:
    program = Path(sys.argv[0]).absolute()
    return program.parent.parent if program.name == "vgpud" else Path(sys.prefix)


def _usable(prefix: Path | None, root: Path | None) -> Path:
    """Return the prefix; raise ConfigError if the service could not run the program in it."""
    own = prefix is None
    prefix = _own_prefix() if prefix is None else prefix
    if not prefix.is_absolute() or ".." in prefix.parts:
        raise ConfigError(f"--prefix {prefix}: must be an absolute path")
    if _SPECIAL & set(str(prefix)):
        raise ConfigError(f"--prefix {prefix}: it has characters that are special in systemd units")
    if not _is_utf8(prefix):
        raise ConfigError(f"--prefix {prefix}: must be UTF-8, as systemd takes no other units")
    if root is not None:
        return prefix  # It is on another system, so it can't be checked here.
    program = prefix / "bin/vgpud"
    if not os.access(program, os.X_OK):
        advice = " Use --prefix with the directory that has bin/vgpud in it." if own else ""
        raise ConfigError(f"{program}: there is no such program.{advice}")
    # The Python of a virtual environment is outside of it.
    for path in (program.resolve(), (prefix / "bin/python").resolve()):
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigError(
                f"{path}: the service can't see it, since its units hide home directories and /tmp"
                f" from it. Install vgpud elsewhere, for example into {WRITTEN_FOR}."
            )
    return prefix


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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
    """Write a file and rename it into place, so that no reader sees half of it.

    All users may read it, whatever the umask: the daemon is not the user who installs.
    """
    try:
        _make_directory(path.parent)
        replace_file(path, content, _FILE_MODE)
    except OSError as error:
        advice = "run this as root, or use --root" if os.geteuid() else ""
        raise HostError(f"writing {path}", error, advice) from error


def _make_directory(path: Path) -> None:
    """Make a directory that all users may read, and those above it. Raises OSError."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        return
    # By a descriptor: where another user owns the directory above, a link may have replaced it.
    with Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as made:
        os.fchmod(made.fileno(), _DIRECTORY_MODE)
