"""The room of a zygote: its own namespaces, and a root folder that contains only a Python installation.

    enter(...)       once per zygote; afterwards `/` is the room (if namespaces are allowed), and the user unprivileged
    Room.begin_run() in the zygote, before it forks a program: the child becomes process 1 of a fresh pid namespace
    Room.end_fork()  in the zygote, after the fork
    Room.shut()      in the child: its own mount, network and IPC namespaces, an empty 16 MiB folder /tmp, and a user
                     namespace without any mapped user, which removes every capability over all of the above

If namespaces are not allowed, the room is `bare`: the same rules for users, but no private root, so only Landlock
protects files.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.verifier.sandbox import kernel, landlock
from services.verifier.sandbox.proc import Proc

SCRATCH = "/tmp"
SCRATCH_BYTES = 16 << 20
SCRATCH_FILES = 1024
FIRST_UID = 64000
"""A zygote started by root becomes user 64000 + its index, a user without files or processes."""
NOBODY_UID = 65534
HOST_NAME = "sandbox"
_ALL_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_HIDDEN = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip")


@dataclass(frozen=True, slots=True)
class Paths:
    """What a program may read, as absolute, existing paths."""

    stdlib: str
    libraries: tuple[str, ...]
    """Folders of shared libraries, or single libraries if their folder contains other files."""
    other: tuple[str, ...]
    """Time zones, the loader's cache."""
    packages: tuple[str, ...]
    """Installed packages that the deployment makes available."""


def needed_paths(packages: Iterable[str]) -> Paths:
    """What this interpreter needs. `packages` are paths of importable packages; they must exist."""
    stdlib = os.path.dirname(os.path.realpath(os.__file__))
    libraries: set[str] = set()
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line}
    for library in mapped:
        if ".so" not in os.path.basename(library) or library.startswith(stdlib + "/"):
            continue
        folder = os.path.dirname(library)
        libraries.add(library if stdlib.startswith(folder + "/") else folder)
    other = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
    return Paths(
        stdlib=stdlib,
        libraries=tuple(sorted(libraries)),
        other=tuple(path for path in other if os.path.exists(path)),
        packages=tuple(os.path.realpath(path) for path in packages),
    )


@dataclass(slots=True)
class Room:
    """The environment in which a zygote's programs run."""

    isolated: bool
    """Whether namespaces and a private root are in use; otherwise the room is bare."""
    paths: Paths
    landlock_abi: int
    ruleset: int = -1
    """Descriptor of a bare room's rules, which are made once."""
    own_pid_namespace: int = -1
    proc: Proc = field(default_factory=lambda: Proc(-1))
    """The machine's /proc, for the zygote."""

    def begin_run(self) -> None:
        if self.isolated:
            kernel.unshare(kernel.CLONE_NEWPID)

    def end_fork(self) -> None:
        if self.isolated:
            kernel.setns(self.own_pid_namespace, kernel.CLONE_NEWPID)

    def shut(self) -> None:
        """In the child, see the module's docstring. Landlock is not active yet afterwards."""
        if not self.isolated:
            os.chdir("/")
            return
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC)
        options = f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=0700"
        kernel.mount("scratch", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
        kernel.unshare(kernel.CLONE_NEWUSER)
        os.chdir(SCRATCH)

    def restrict_files(self) -> None:
        """In the child, with no_new_privs set, apply Landlock: read the installation, write to the scratch folder."""
        if self.ruleset >= 0:
            landlock.restrict(self.ruleset)
            return
        rules = landlock.create(self.landlock_abi)
        for path, rights in (("/", landlock.READ), (SCRATCH, landlock.WRITE)):
            descriptor = landlock.open_path(path)
            landlock.allow(rules, self.landlock_abi, descriptor, rights)
            os.close(descriptor)
        null = landlock.open_path("/dev/null")
        landlock.allow(rules, self.landlock_abi, null, landlock.DEVICE, is_folder=False)
        landlock.restrict(rules)


def enter(index: int, packages: Iterable[str], *, isolated: bool, landlock_abi: int) -> Room:
    """Move this process into its room. If isolated, the caller continues as process 1 of another pid namespace, while
    the original process waits for it and dies with it.

    Raises:
        OSError: the kernel refuses a step.
    """
    room = Room(isolated, needed_paths(packages), landlock_abi)
    if not isolated:
        become_unprivileged(index)
        room.ruleset = _out_of_the_way(_bare_rules(room.paths, landlock_abi))
        room.proc = Proc(_out_of_the_way(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
        return room
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    by_root = os.geteuid() == 0 and _may_mount()
    if by_root:  # only root may be able to read our installation, so build the room first
        kernel.unshare(kernel.CLONE_NEWNS)
        _build(room.paths)
    become_unprivileged(index)
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(_ALL_NAMESPACES)
    socket.sethostname(HOST_NAME)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)
    if not by_root:
        _build(room.paths)
    _become_first_process(proc)
    room.own_pid_namespace = os.open("self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    room.proc = Proc(_out_of_the_way(proc))
    return room


def become_unprivileged(index: int) -> None:
    """Make root a separate user without groups. Other users stay what they are."""
    if os.geteuid() == 0:
        os.setgroups([])
        for uid in (FIRST_UID + index % 1000, NOBODY_UID):
            try:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                break
            except OSError:
                if uid == NOBODY_UID:
                    raise
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # lost with the change of user, but needed for /proc/self


def _may_mount() -> bool:
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return bool(effective >> 21 & 1)  # CAP_SYS_ADMIN


def _become_first_process(proc: int) -> None:
    """Fork into the pid namespace. The parent waits, and neither outlives the other."""
    child = os.fork()
    if child:
        os.close(proc)
        kernel.close_from(3)  # mainly the control socket, whose end tells the verifier that the zygote died
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def _build(paths: Paths) -> None:
    """Build a read-only root from `paths` and move into it. Requires CAP_SYS_ADMIN over the mount namespace."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    wanted = dict.fromkeys([paths.stdlib, *paths.libraries, *paths.other, *_DEVICES])
    opened = {path: landlock.open_path(path) for path in wanted}
    opened |= {_inside(path): landlock.open_path(path) for path in paths.packages}
    links = {path: os.readlink(path) for path in ("/lib", "/lib64", "/lib32") if os.path.islink(path)}
    base = SCRATCH  # a folder that every machine has; it is covered only in this namespace
    kernel.mount("room", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for path, descriptor in opened.items():
        _bind(descriptor, base + path, is_device=path in _DEVICES)
        os.close(descriptor)
        if path == paths.stdlib:
            _hide_packages(base + path)
    for path, destination in links.items():
        if not os.path.lexists(base + path):
            os.symlink(destination, base + path)
    os.makedirs(base + SCRATCH, 0o755, exist_ok=True)
    kernel.mount_set_attributes(base, kernel.MS_RDONLY | kernel.MS_NOSUID)
    os.chdir(base)
    kernel.pivot_root_here()


def _bind(descriptor: int, target: str, *, is_device: bool) -> None:
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    if not is_device:
        kernel.mount_set_attributes(target, kernel.MS_NODEV)


def _hide_packages(stdlib: str) -> None:
    """Cover subfolders that are not part of the standard library."""
    for name in _HIDDEN:
        folder = os.path.join(stdlib, name)
        if os.path.isdir(folder):
            kernel.mount("hidden", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=64k,mode=0755")


def _bare_rules(paths: Paths, version: int) -> int:
    """Landlock rules for a bare room: no writing, and reading of the library entry by entry."""
    rules = landlock.create(version)
    readable = [
        os.path.join(paths.stdlib, name)
        for name in os.listdir(paths.stdlib)
        if name not in _HIDDEN and not name.startswith("config-")
    ]
    readable += [*paths.libraries, *paths.other, *paths.packages]
    listable = {paths.stdlib, *(os.path.dirname(path) for path in paths.packages)}
    for path, rights in [(path, landlock.READ) for path in readable] + [(path, landlock.LIST) for path in listable]:
        descriptor = landlock.open_path(path)
        landlock.allow(rules, version, descriptor, rights, is_folder=os.path.isdir(path))
        os.close(descriptor)
    for path in _DEVICES:
        descriptor = landlock.open_path(path)
        landlock.allow(rules, version, descriptor, landlock.DEVICE, is_folder=False)
        os.close(descriptor)
    return rules


def _out_of_the_way(descriptor: int) -> int:
    """Move a descriptor to a number that a child does not overwrite, since it puts its files at 0 to 3."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(descriptor)
    return moved


def _inside(package: str) -> str:
    """Path of an available package in an isolated room, where the scratch folder may cover its own path."""
    return os.path.join("/packages", os.path.basename(package))


def import_folders(room: Room) -> list[str]:
    """`sys.path` for programs."""
    own = [SCRATCH] if room.isolated else []  # scripts look for modules in their own folder first
    folders = [*own, room.paths.stdlib, os.path.join(room.paths.stdlib, "lib-dynload")]
    packages = [_inside(path) if room.isolated else path for path in room.paths.packages]
    return list(dict.fromkeys([*folders, *map(os.path.dirname, packages)]))
