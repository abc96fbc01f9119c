"""A container without a container runtime: an unpacked image in namespaces of its own, confined as the manifests say."""

import contextlib
import ctypes
import os
import subprocess
import tempfile
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 8, 24, 38
NET_ADMIN, NET_RAW = 12, 13
PATIENCE = 30


class Node:
    """A network namespace, and the image's file tree mounted as a runtime would mount it.

    The process that uses this must have a mount namespace of its own, with private propagation.
    """

    def __init__(self, rootfs):
        self.root = Path(rootfs)
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.namespace = f"--net=/proc/{self.holder.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != own, "a network namespace")
        self.run("nsenter", self.namespace, "ip", "link", "set", "lo", "up")
        self.mount()

    def mount(self):
        # /proc/sys/net shows the network namespace of the process that reads it, so this needs no process inside.
        for kind, folder in (("proc", "proc"), ("tmpfs", "dev")):
            self.run("mount", "-t", kind, kind, self.root / folder)
        for device in ("null", "urandom"):
            (self.root / "dev" / device).touch()
            self.run("mount", "--bind", f"/dev/{device}", self.root / "dev" / device)
        # As hostPath type FileOrCreate.
        (self.root / "run/xtables.lock").touch()

    def confine_files(self):
        """Read-only root, and read-only /proc/sys: what everyone but a privileged container gets."""
        lock = self.root / "run/xtables.lock"
        self.run("mount", "--bind", self.root / "proc/sys", self.root / "proc/sys")
        self.run("mount", "-o", "remount,bind,ro", self.root / "proc/sys")
        self.run("mount", "--rbind", self.root, self.root)
        writable = self.root.parent / "xtables.lock"
        writable.touch()
        self.run("mount", "--bind", writable, lock)
        self.run("mount", "-o", "remount,bind,ro", self.root)

    @staticmethod
    def run(*command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def inside(self, *command, capabilities=None, user=None, **options):
        """Starts a program of the image; with capabilities, it can never have more. Another user than root keeps those
        that its program's file permits, too."""

        def confine():
            network = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY)
            check(LIBC.setns(network, 0))
            os.close(network)
            os.chroot(self.root)
            os.chdir("/")
            if capabilities is not None:
                last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
                for capability in set(range(last + 1)) - set(capabilities):
                    check(LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
                check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            if user is not None:
                # As runc does: the capabilities are there until the program starts.
                check(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)

        environment = {"PATH": "/usr/local/bin:/usr/sbin"}
        return subprocess.Popen(command, preexec_fn=confine, env=environment, text=True, **options)

    def output(self, *command):
        process = self.inside(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text, _ = process.communicate(timeout=60)
        return process.returncode, text

    @contextlib.contextmanager
    def running(self, *command, capabilities, user=None):
        """The program, until the block ends; gives its process and its log so far."""
        with tempfile.NamedTemporaryFile("w+") as log:
            process = self.inside(*command, capabilities=capabilities, user=user, stdout=log, stderr=log)
            try:
                yield process, lambda: Path(log.name).read_text()
            finally:
                process.terminate()
                process.wait(timeout=10)

    def close(self):
        self.holder.kill()
        self.holder.wait()
        # Everything mounted at or below the root, latest first, so that deleting the folder deletes nothing else.
        while mounted := self.mounted():
            self.run("umount", "--lazy", mounted[-1])

    def mounted(self):
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if Path(point).is_relative_to(self.root)]


def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot confine a process")


def wait_for(condition, what, log=lambda: ""):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come\n{log()}"
        time.sleep(0.05)
