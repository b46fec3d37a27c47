"""The processes that hold a lab's namespaces, and the way into them. Standard library only: it runs as a script too.

`python -I -S proc_namespaces.py keep` reads a plan (JSON, one line) from stdin and makes the namespaces: its own process
holds the switches', one child holds each host's; both are nothing but names for namespaces and wait for a signal. As
root it makes them directly; where that is refused it first makes a user namespace in which it is root. It then runs the
plan's lines of `ip` and `tc`, answers with one line (the pids, or an error) and waits for the line "go": whoever started
it has by then written the pids down. If stdin ends before, nobody knows of it, and it ends itself and its children.

`python -I -S proc_namespaces.py enter PID USER HOME [CGROUP..] -- COMMAND..` moves into the namespaces of that process
and becomes COMMAND, so that the command has the pid that was started. `enter` does the same to a calling process.

Each namespace of mounts has a tmpfs whose source is the lab's mark for that host (`atoll-ID-HOST`): it can be read from
outside in /proc/PID/mountinfo, holds for every process in it, and is how a lab finds what is its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_FS = 0x200
_ALL = _NEWNET | _NEWNS | _NEWUTS | _NEWIPC
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
_KINDS = (("net", _NEWNET), ("uts", _NEWUTS), ("ipc", _NEWIPC), ("mnt", _NEWNS))
_EPERM = 1
_PDEATHSIG = 1
HOME = "/tmp/home"  # noqa: S108 - in the host's own /tmp
# Seconds for one batch of `ip` or `tc`; eight hosts take 0.1.
_TOOL_S = 20
# bbr, the default of some systems, loses 20-35 % when several short flows share a link; metrics remembered of an earlier
# flow would make a measurement depend on the one before; addresses of IPv6 only add frames nobody asked for.
_SYSCTLS = (
    ("net/ipv4/tcp_congestion_control", "reno"),
    ("net/ipv4/tcp_no_metrics_save", "1"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
)
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel said no. `what`: the call; `code`: errno."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: {os.strerror(code)}")
        self.what, self.code = what, code


def _call(what: str, result: int) -> None:
    if result != 0:
        raise Refused(what, ctypes.get_errno())


def _unshare(flags: int, what: str) -> None:
    _call(f"unshare({what})", _libc.unshare(ctypes.c_int(flags)))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if w is None else w.encode() for w in (source, target, kind)]
    last = None if data is None else data.encode()
    _call(f"mount({source} on {target})", _libc.mount(*words, ctypes.c_ulong(flags), last))


# -- entering --------------------------------------------------------------------------------------------------------


def enter(pid: int, *, user: bool, home: str, cgroups: list[str]) -> None:
    """Move the calling process, which must have one thread, into the namespaces that `pid` holds, and the cgroups.

    Its working directory stays where the host has one of this name, else it is the host's home. Raises `Refused` or
    OSError.
    """
    for group in cgroups:
        with open(f"{group}/cgroup.procs", "w") as file:  # noqa: PTH123 - pathlib costs 10 ms of a script's start
            file.write("0")
    kinds = (("user", _NEWUSER), *_KINDS) if user else _KINDS
    handles = [(kind, flag, os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)) for kind, flag in kinds]
    here = os.getcwd()  # noqa: PTH109 - likewise
    if not user:
        # A library's fork handler may have started threads here already (grpc's does): they stay where they are.
        _unshare(_FS, "working directory")
    try:
        for kind, flag, handle in handles:
            _call(f"setns({kind} of {pid})", _libc.setns(ctypes.c_int(handle), ctypes.c_int(flag)))
    finally:
        for _, _, handle in handles:
            os.close(handle)
    if user:
        _readable()
    try:
        os.chdir(here)
    except OSError:
        os.chdir(home)
    for name, value in (("HOME", home), ("TMPDIR", "/tmp")):  # noqa: S108 - the host's own
        os.environ[name] = value  # noqa: TID251 - which also tells children
    for name in ("ATOLL_HOME", "ATOLL_ADDRESS", "ATOLL_TOKEN", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # noqa: TID251 - clusters outside of the lab
    # Ray else switches its tokens on by itself, and writes one that others can read.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # noqa: TID251 - as above


# -- keeping ---------------------------------------------------------------------------------------------------------


def _become_root() -> None:
    """A user namespace in which the calling user is root."""
    uid, gid = os.getuid(), os.getgid()
    _unshare(_NEWUSER, "user")
    _readable()
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            _write(f"/proc/self/{name}", text)
        except OSError as error:
            raise Refused(f"writing {name} of a user namespace", error.errno or 0) from error


def _readable() -> None:
    """Let the same user look into /proc/PID of this process, which the kernel closes when credentials change."""
    _libc.prctl(ctypes.c_int(4), ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 - as above
        file.write(text)


def _own_namespaces(plan: dict[str, Any]) -> bool:
    """The switches' namespaces, new ones or those of a lab that stands. True where a user namespace was needed."""
    joined = plan.get("join")
    if joined:
        enter(joined["pid"], user=joined["user"], home="/", cgroups=[])
        return bool(joined["user"])
    user = False
    try:
        _unshare(_ALL, "net, mnt, uts, ipc")
    except Refused as refused:
        if refused.code != _EPERM:
            raise
        _become_root()
        _unshare(_ALL, "net, mnt, uts, ipc")
        user = True
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    # Not on /tmp, where the interpreter may live that hosts are to see.
    _mount(plan["mark"], "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=1m")  # noqa: S108 - in its own mounts
    _sysctls()
    return user


def _sysctls() -> None:
    for name, value in _SYSCTLS:
        try:
            _write(f"/proc/sys/{name}", value)
        except OSError as error:
            if "ipv6" not in name:
                raise Refused(f"sysctl {name}={value}", error.errno or 0) from error


def _host_namespaces(host: dict[str, Any]) -> None:
    """Network, mounts, name of a host: its own /tmp, /dev/shm and home, and /etc/hosts with the lab's names."""
    _unshare(_ALL, "net, mnt, uts, ipc")
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in host["shared"]]
    for target in ("/dev/shm", "/tmp"):  # noqa: S108 - these become private here
        _mount(host["mark"], target, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    os.makedirs(HOME, 0o700)  # noqa: PTH103 - as above
    for path, handle in kept:
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 - likewise
        _mount(f"/proc/self/fd/{handle}", path, None, _MS_BIND | _MS_REC)
        os.close(handle)
    _write("/tmp/hosts", host["hosts_file"])  # noqa: S108 - likewise
    _mount("/tmp/hosts", "/etc/hosts", None, _MS_BIND)  # noqa: S108 - likewise
    os.unlink("/tmp/hosts")  # noqa: PTH108, S108 - the mount holds it
    name = host["name"].encode()
    _call("sethostname", _libc.sethostname(name, len(name)))
    _sysctls()


def _tool(words: list[str], lines: list[str]) -> None:
    """Run `ip` or `tc` on a batch. Raises `RuntimeError` with its own words."""
    if not lines:
        return
    done = subprocess.run(
        words, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=_TOOL_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[:400]}")


def _fork_host(host: dict[str, Any], tools: dict[str, str]) -> tuple[int, int, int]:
    """A child that holds one host: its pid, where it answers, and where it is told to go on."""
    answer_r, answer_w = os.pipe()
    turn_r, turn_w = os.pipe()
    keeper, pid = os.getpid(), os.fork()
    if pid:
        os.close(answer_w)
        os.close(turn_r)
        return pid, answer_r, turn_w
    os.close(answer_r)
    os.close(turn_w)
    # While the lab is made, a host ends with its keeper, also where nobody could yet tell what it is.
    _libc.prctl(ctypes.c_int(_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != keeper:
        os._exit(1)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _host_namespaces(host)
        os.write(answer_w, b"made\n")
        if os.read(turn_r, 1):
            _tool([tools["ip"], "-batch", "-"], host["links"])
            _tool([tools["tc"], "-batch", "-"], host["shapes"])
            os.write(answer_w, b"done\n")
            if os.read(turn_r, 1):
                _libc.prctl(ctypes.c_int(_PDEATHSIG), ctypes.c_ulong(0))
                os.write(answer_w, b"holds\n")
                for handle in (answer_w, turn_r, 0, 1):
                    os.close(handle)
                while True:
                    signal.pause()
    except Exception as error:  # noqa: BLE001 - the outer edge of a process: its parent tells it
        os.write(answer_w, f"host {host['name']}: {error}\n".encode())
    os._exit(1)


def _expect(handle: int, word: str) -> None:
    said = b""
    while not said.endswith(b"\n"):
        more = os.read(handle, 4096)
        if not more:
            break
        said += more
    if said.decode().strip() != word:
        raise RuntimeError(said.decode().strip() or "a host's process ended while it was made")


def _make(plan: dict[str, Any], made: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Everything of the plan, in its order. `made` is filled as hosts are, for whoever must end them."""
    user = _own_namespaces(plan)
    tools = plan["tools"]
    for host in plan["hosts"]:
        made.append(_fork_host(host, tools))  # noqa: PERF401 - who must end them is told of each at once
    for _, answer, _ in made:
        _expect(answer, "made")
    pids = {host["name"]: pid for host, (pid, _, _) in zip(plan["hosts"], made, strict=True)}
    cables = [line.replace("@PID@", str(pids[h["name"]])) for h in plan["hosts"] for line in h["cables"]]
    _tool([tools["ip"], "-batch", "-"], [*plan["links"], *cables])
    for _, _, turn in made:
        os.write(turn, b"1")
    _tool([tools["tc"], "-batch", "-"], [*plan["shapes"], *(line for h in plan["hosts"] for line in h["port_shapes"])])
    for _, answer, _ in made:
        _expect(answer, "done")
    return {"user": user, "pid": os.getpid(), "hosts": pids}


def keep() -> int:
    """The script's `keep`, see the module's words."""
    made: list[tuple[int, int, int]] = []
    plan = json.loads(sys.stdin.readline())
    try:
        answer = _make(plan, made)
    except Refused as refused:
        answer = {"error": str(refused), "what": refused.what, "errno": refused.code}
    except Exception as error:  # noqa: BLE001 - the outer edge of a process: whoever started it is told
        answer = {"error": str(error)}
    told = _tell(answer)
    if "error" in answer or not told or sys.stdin.readline() != "go\n":
        for pid, _, _ in made:
            os.kill(pid, signal.SIGKILL)
        return 1
    for _, answers, turn in made:
        os.write(turn, b"1")
        _expect(answers, "holds")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if plan.get("join"):
        return 0
    os.close(0)
    os.close(1)
    while True:
        signal.pause()


def _tell(answer: dict[str, Any]) -> bool:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


def main(words: list[str]) -> int:
    """The script."""
    if words[:1] == ["keep"]:
        return keep()
    end = words.index("--")
    pid, user, home, *cgroups = words[1:end]
    command = words[end + 1 :]
    try:
        enter(int(pid), user=user == "user", home=home, cgroups=cgroups)
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except (Refused, OSError) as error:
        sys.stderr.write(f"cannot run {command[0]!r} in the host: {error}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
