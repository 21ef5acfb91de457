"""Escape and exfiltration: files, environment, memory, network."""

from __future__ import annotations

from tests.services.verifier.sandbox.corpus import DONE, KILLED, attacks, call, refused

_FILES = {
    "read_canary": refused("print(open('@CANARY@').read())"),
    "read_canary_by_dots": refused("print(open('../../../../../../..@CANARY@').read())"),
    "read_passwd": refused("print(open('/etc/passwd').read())"),
    "read_shadow": refused("print(open('/etc/shadow').read())"),
    "read_our_source": refused("print(open('@SOURCE@').read())"),
    "import_our_source": refused("import services.verifier.sandbox.sandbox"),
    "import_site_packages": refused("import msgspec, pydantic"),
    "list_canary_folder": refused("import os; print(os.listdir(os.path.dirname('@CANARY@')))"),
    "walk_everything": """
        import os
        for folder, _, files in os.walk("/"):
            if os.path.basename("@CANARY@") in files:
                print("ESCAPED", folder, open(os.path.join(folder, os.path.basename("@CANARY@"))).read())
        print("walked")
    """,
    "symbolic_link": refused("import os; os.symlink('@CANARY@', 'link'); print(open('link').read())"),
    "hard_link": refused("import os; os.link('@CANARY@', 'link'); print(open('link').read())"),
    "path_descriptor": refused("""
        import os
        folder = os.open('/', os.O_PATH)
        print(os.read(os.open('@CANARY@'.lstrip('/'), os.O_RDONLY, dir_fd=folder), 99))
    """),
    "reopen_through_proc": refused("""
        import os
        handle = os.open('@CANARY@', os.O_PATH)
        print(open(f'/proc/self/fd/{handle}').read())
    """),
    "left_over_descriptors": """
        import os
        for number in range(3, 1024):
            try:
                os.fstat(number)
                print("ESCAPED", number)
            except OSError:
                pass
    """,
    "devices": """
        for name in ("mem", "kmsg", "kvm", "vda", "sda", "nvme0n1", "tty", "ptmx", "fuse", "net/tun", "shm/x"):
            try:
                open("/dev/" + name, "rb+", buffering=0)
                print("ESCAPED", name)
            except OSError:
                pass
    """,
    "make_device": refused("import os, stat; os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))"),
    "make_device_by_call": call("mknodat", "-100", "b'disk'", "0o60600", "0xfe00"),
    "named_pipe": refused("import os; os.mkfifo('pipe')"),
    "proc_environment": """
        for pid in ("self", 1, 2, @PID@):
            for name in ("environ", "cmdline", "maps", "mem", "stat", "root/@CANARY@", "cwd/..@CANARY@"):
                try:
                    print("ESCAPED", open(f"/proc/{pid}/{name}", "rb").read(4096))
                except OSError:
                    pass
    """,
    "proc_of_parent": refused("import os; print(open(f'/proc/{os.getppid()}/environ').read())"),
    "sys_files": refused("print(open('/sys/kernel/security/lsm').read())"),
    "core_pattern": refused("open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh')"),
    "truncate_canary": refused("import os; os.truncate('@CANARY@', 0)"),
    "truncate_by_open": refused("import os; os.open('@CANARY@', os.O_RDONLY | os.O_TRUNC)"),
    "overwrite_canary": refused("open('@CANARY@', 'w').write('x')"),
    "change_mode": refused("import os; os.chmod('@CANARY@', 0o777)"),
    "change_owner": refused("import os; os.chown('@CANARY@', 65534, 65534)"),
    "change_time": refused("import os; os.utime('@CANARY@', (1, 1))"),
    "change_attribute": refused("import os; os.setxattr('@CANARY@', 'user.x', b'x')"),
    "rename_canary": refused("import os; os.rename('@CANARY@', '@CANARY@.x')"),
    "delete_canary": refused("import os; os.unlink('@CANARY@')"),
    "swap_the_library": refused("import os; open(os.__file__, 'a').write('import evil')"),
    "plant_start_up_code": refused(
        "import os; open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w').write('x')"
    ),
    "drop_files": """
        import os
        for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/home", "/", os.path.dirname("@CANARY@")):
            try:
                open(os.path.join(folder, "@DROP@"), "w").write("x")
            except OSError:
                pass
    """,
}

_MEMORY = {
    "environment": """
        import ctypes, os
        print(dict(os.environ))
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        index = 0
        while environ and environ[index]:
            print(environ[index])
            index += 1
    """,
    "objects": """
        import gc, sys
        mark = "CANA" + "RY"
        for thing in gc.get_objects():
            for inner in gc.get_referents(thing):
                if isinstance(inner, (str, bytes)) and (mark if isinstance(inner, str) else mark.encode()) in inner:
                    print("found", inner)
    """,
    "heap": """
        import ctypes, sys
        mark = b"CANA" + b"RY"
        for start in {id(object()) >> 20 << 20, id([]) >> 20 << 20, id(sys) >> 20 << 20, id("x" * 600) >> 20 << 20}:
            text = ctypes.string_at(start, 1 << 18)
            while (place := text.find(mark)) >= 0:
                print(text[place:place + 80])
                text = text[place + 1:]
    """,
    "unset_memory": """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        for size in (64, 256, 1024, 4096, 65536, 200000):
            for _ in range(200):
                text = ctypes.string_at(libc.malloc(ctypes.c_size_t(size)), size)
                if b"CANA" + b"RY" in text:
                    print(text)
    """,
    "frames": """
        import sys
        frame = sys._getframe()
        while frame:
            print(frame.f_code.co_filename.rsplit("/", 1)[-1], sorted(frame.f_locals))
            frame = frame.f_back
    """,
}

_NETWORK = {
    "tcp": refused("import socket; socket.create_connection(('127.0.0.1', @PORT@), 1).send(b'x')"),
    "tcp6": refused("import socket; socket.create_connection(('::1', @PORT@), 1)"),
    "udp": refused(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))"
    ),
    "abstract_socket": refused("import socket; socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@')"),
    "raw_socket": refused("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    "packet_socket": refused("import socket; socket.socket(17, socket.SOCK_RAW)"),
    "netlink_socket": refused("import socket; socket.socket(16, socket.SOCK_RAW)"),
    "vsock_socket": refused("import socket; socket.socket(40, socket.SOCK_STREAM)"),
    "crypto_socket": refused("import socket; socket.socket(38, socket.SOCK_SEQPACKET)"),
    "socket_pair": refused("import socket; socket.socketpair()"),
    "listen": refused("import socket; socket.create_server(('127.0.0.1', 0))"),
    "http": refused(
        "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=1).read())"
    ),
    "names": refused("import socket; print(socket.getaddrinfo('localhost', @PORT@)); socket.socket()"),
    "socket_by_call": call("socket", "2", "1", "0"),
    "send_on_any_descriptor": """
        import ctypes
        libc = ctypes.CDLL(None)
        print("ESCAPED" if any(libc.send(number, b"x", 1, 0) > 0 for number in range(256)) else "refused")
    """,
}

_LETHAL = {
    "trace_supervisor": call("ptrace", "16", "@PID@", "0", "0"),
    "read_supervisor_memory": call("process_vm_readv", "@PID@", "0", "0", "0", "0", "0"),
    "steal_descriptor": call("pidfd_getfd", "0", "0", "0"),
    "change_root": call("chroot", "b'.'"),
    "mount": call("mount", "b'proc'", "b'/tmp'", "b'proc'", "0", "0"),
    "unmount": call("umount2", "b'/tmp'", "2"),
    "new_namespaces": call("unshare", "0x10000000"),
    "join_namespaces": call("setns", "0", "0"),
    "file_handles": call("open_by_handle_at", "-100", "0", "0"),
    "pivot": call("pivot_root", "b'.'", "b'.'"),
}

ATTACKS = [
    *attacks("escape", _FILES),
    *attacks("exfiltration", _MEMORY, DONE),
    *attacks("exfiltration", _NETWORK),
    *attacks("escape", _LETHAL, KILLED, "system_call"),
]
