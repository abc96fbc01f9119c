"""A node with systemd in a container: started, entered, and gone with all that was done to it."""

import subprocess
import tempfile
import time
from pathlib import Path

PATIENCE = 90


class Machine:
    def __init__(self, root):
        self.log = tempfile.NamedTemporaryFile("w+")
        # Not registered anywhere, so that the host needs no systemd of its own.
        command = ["systemd-nspawn", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay"]
        self.shell = subprocess.Popen(
            [*command, f"--directory={root}", "--machine=node-0", "--boot"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.leader = self.wait_for_leader()
        # "degraded" is up too: something of the distribution's own does not like containers.
        self.wait_for(lambda: self.run("systemctl", "is-system-running")[1] in ("running", "degraded"), "the boot")

    def wait_for_leader(self):
        children = Path(f"/proc/{self.shell.pid}/task/{self.shell.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.shell.poll() is None:
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
            time.sleep(0.1)
        raise AssertionError(f"the node does not start\n{self.said()}")

    def run(self, *command):
        """Exit status and output of a command inside."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--wd=/"]
        plain = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        done = subprocess.run(
            [*enter, *plain, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        return done.returncode, done.stdout.strip()

    def ok(self, *command):
        status, text = self.run(*command)
        assert status == 0, f"{' '.join(command)}: {status}: {text}"
        return text

    def beside(self, *command, **options):
        """A program of the host, in the node's network."""
        return subprocess.Popen(["nsenter", f"--net=/proc/{self.leader}/ns/net", *command], text=True, **options)

    def put(self, source, target, mode="644"):
        content = Path(source).read_bytes()
        enter = ["nsenter", f"--target={self.leader}", "--all", "--wd=/"]
        subprocess.run([*enter, "install", "-D", "-m", mode, "/dev/stdin", target], input=content, check=True)

    def said(self):
        return Path(self.log.name).read_text()[-2000:]

    def wait_for(self, condition, what, told=lambda: ""):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come\n{told()}\n{self.said()}"
            time.sleep(0.2)

    def close(self):
        self.shell.terminate()
        self.shell.wait(timeout=PATIENCE)
        self.log.close()
