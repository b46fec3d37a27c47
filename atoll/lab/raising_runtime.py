"""Raising a lab, bringing back one host of it, and taking it down.

Raising: the lab's id and the groups' places go on disk; groups are made; the keeper makes namespaces, cables and shapes
(`proc_namespaces`) and is told to go on only when its pids are on disk too. Whoever is killed on the way leaves at most
processes with the lab's mark and groups with its id: `take_down` ends exactly these, and with the last process of a
namespace go its interfaces and mounts.
"""

from __future__ import annotations

import json
import secrets
import select
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import atoll
from atoll.errors import LabError, SpecError
from atoll.lab import fs_cgroups, proc_namespaces
from atoll.lab import layout as layouts
from atoll.lab.fs_state import UP, Labs, Record
from atoll.lab.layout import Layout, lay_out
from atoll.lab.proc_members import SWITCHES, end, end_all, host_of, mark, named
from atoll.lab.spec import HostSpec, LabSpec, check

# Sixty hosts on two busy cores take under ten seconds.
_RAISE_S = 60.0
DASHBOARD_PORT = 8265
_PRIVATE = ("/tmp", "/dev/shm")  # noqa: S108 - what hosts have of their own
_SCRIPT = proc_namespaces.__file__


def script(*words: str) -> list[str]:
    """The command that runs `proc_namespaces` without anything else on its path."""
    return [sys.executable, "-I", "-S", _SCRIPT, *words]


def tool(name: str) -> str:
    """Where `ip` or `tc` is. Raises `LabError` saying what to install."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise LabError(f"the program {name!r} is not installed; install it (Debian, Ubuntu: apt-get install iproute2)")
    return found


def put_up(labs: Labs, spec: LabSpec) -> Record:
    """Raise the lab and return its record. What could not all be made is taken down again. Raises `LabError`."""
    check(spec)
    layout, lab_id = lay_out(spec), secrets.token_hex(4)
    tools = {name: tool(name) for name in ("ip", "tc")}
    with labs.locked():
        if spec.name in labs.names():
            raise LabError(f"a lab named {spec.name!r} stands already; `atoll lab down {spec.name}`, or choose a name")
        record = labs.write(_planned(spec, lab_id))
        try:
            for host in spec.everyone():
                fs_cgroups.make(record.groups[host.name], host.cpus)
            return _keep(labs, record, layout, spec.everyone(), tools)
        except BaseException:  # Ctrl-C too: nobody else knows of it yet
            _remove(labs, record)
            raise


def bring_back(labs: Labs, record: Record, host: HostSpec) -> Record:
    """Make a killed host again, with nothing on its disk. Call with the lock held."""
    layout, tools = lay_out(record.spec), {name: tool(name) for name in ("ip", "tc")}
    _unplug(record, layout, host.name)
    fs_cgroups.make(record.groups[host.name], host.cpus)
    record = replace(record, dead=tuple(d for d in record.dead if d != host.name))
    return _keep(labs, record, layout, (host,), tools, join=True)


def _unplug(record: Record, layout: Layout, host: str) -> None:
    """Remove what is left of a dead host's cables: the kernel ends a namespace some time after its last process."""
    lines = "".join(f"link del {nic.port}\n" for nic in layout.nics[host])
    words = [*enter_words(record, SWITCHES, limited=False), tool("ip"), "-force", "-batch", "-"]
    # Those that are gone already are an error each, and the only one that there can be.
    subprocess.run(words, input=lines, capture_output=True, text=True, timeout=_RAISE_S, check=False)


def take_down(labs: Labs, name: str) -> int:
    """End all of a lab, whatever state it is in, and forget it. Returns how many processes were ended."""
    with labs.locked():
        return _remove(labs, labs.read(name))


def _remove(labs: Labs, record: Record) -> int:
    for host in record.groups:
        fs_cgroups.set_frozen(record.groups[host], frozen=False)
    if record.keeper is not None:
        end(record.keeper)
    ended = end_all(record.id)
    fs_cgroups.remove(record.group_bases, mark(record.id, ""))
    labs.forget(record.name)
    return ended


def _planned(spec: LabSpec, lab_id: str) -> Record:
    """What will be made, before anything is."""
    places = fs_cgroups.find()
    quotas = any(h.cpus is not None for h in spec.hosts)
    return Record(
        name=spec.name,
        id=lab_id,
        spec=spec,
        groups={h.name: fs_cgroups.groups_of(places, mark(lab_id, h.name), h.cpus) for h in spec.everyone()},
        group_bases=tuple(dict.fromkeys(p.base for p in (places.cpu, places.freezer) if p is not None)),
        notices=(places.notice,) if quotas and places.notice else (),
    )


def _keep(
    labs: Labs, record: Record, layout: Layout, hosts: Iterable[HostSpec], tools: dict[str, str], *, join: bool = False
) -> Record:
    """Have the keeper make `hosts` (and the switches, unless it joins them), and write down who holds them."""
    plan = _plan(record, layout, [h.name for h in hosts], tools, join=join)
    keeper = subprocess.Popen(  # the keeper lives on, by its pid on record
        script("keep"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    try:
        # On record before it makes anything: it has no mark yet.
        record = labs.write(replace(record, keeper=named(keeper.pid)))
        answer = _ask(keeper, plan)
        record = replace(
            record,
            phase=UP,
            user=bool(answer["user"]),
            switches=record.switches if join else int(answer["pid"]),
            holders={**record.holders, **answer["hosts"]},
        )
        labs.write(record)
        _say(keeper, "go\n")
    except BaseException:
        keeper.kill()
        keeper.wait()
        raise
    finally:
        for pipe in (keeper.stdin, keeper.stdout):
            if pipe is not None:
                pipe.close()
    if join:
        keeper.wait(_RAISE_S)
    else:
        _leave(keeper)
    return record


def _leave(keeper: subprocess.Popen[bytes]) -> None:
    """The keeper outlives this command; `subprocess` would warn of that."""
    keeper.returncode = 0


def _say(keeper: subprocess.Popen[bytes], line: str) -> None:
    if keeper.stdin is None:
        raise LabError("the keeper's stdin is gone")
    keeper.stdin.write(line.encode())
    keeper.stdin.flush()


def _ask(keeper: subprocess.Popen[bytes], plan: dict[str, Any]) -> dict[str, Any]:
    _say(keeper, json.dumps(plan) + "\n")
    if keeper.stdout is None or not select.select([keeper.stdout], [], [], _RAISE_S)[0]:
        raise LabError(f"the lab's keeper did not answer within {_RAISE_S:g} s; `atoll lab down` and try again")
    line = keeper.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"error": "the lab's keeper was ended"}
    if "error" in answer:
        raise LabError(_explained(answer))
    return answer


def _plan(record: Record, layout: Layout, hosts: list[str], tools: dict[str, str], *, join: bool) -> dict[str, Any]:
    """What the keeper reads; see `proc_namespaces`."""
    shared = _shared(record.spec)
    return {
        "tools": tools,
        "mark": mark(record.id, SWITCHES),
        "join": {"pid": record.switches, "user": record.user} if join else None,
        "links": [] if join else layouts.switch_links(layout),
        "shapes": [] if join else layouts.switch_shapes(layout),
        "hosts": [
            {
                "name": name,
                "mark": mark(record.id, name),
                "shared": shared,
                "hosts_file": layouts.hosts_file(layout, name),
                "cables": layouts.cables(layout, name),
                "links": layouts.host_links(layout, name),
                "shapes": layouts.host_shapes(layout, name),
                "port_shapes": layouts.port_shapes(layout, name),
            }
            for name in hosts
        ],
    }


def _shared(spec: LabSpec) -> list[str]:
    """Folders that private mounts would hide: those the spec names, and where Python and Atoll are installed."""
    for path in spec.shared:
        if not Path(path).is_dir():
            raise SpecError(f"lab {spec.name!r}: shared folder {path!r} does not exist; make it, or leave it out")
    wanted = [*spec.shared, sys.prefix, sys.base_prefix, str(Path(atoll.__file__).resolve().parents[1])]
    paths = dict.fromkeys(str(Path(p).absolute()) for p in wanted)
    return [p for p in paths if any(p.startswith(f"{private}/") for private in _PRIVATE)]


def _explained(answer: dict[str, Any]) -> str:
    """The keeper's error with the next thing to do."""
    error, what = str(answer["error"]), str(answer.get("what", ""))
    if what == "unshare(user)":
        advice = (
            "this machine allows network namespaces to neither this user nor a user namespace of theirs: run as root; or"
            " allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1); in a container"
            " add the capabilities SYS_ADMIN and NET_ADMIN"
        )
    elif answer.get("errno") in (1, 13):
        advice = (
            "a user namespace was made, but without rights in it (on Ubuntu: sysctl"
            " kernel.apparmor_restrict_unprivileged_userns=0), or a container forbids it: run as root"
        )
    elif "nknown" in error or "not supported" in error:
        advice = "this kernel lacks a part: it needs veth, bridge, sch_htb, sch_fifo and cls_u32"
    else:
        advice = "nothing of the lab was left behind"
    return f"cannot raise the lab: {error}; {advice}"


def holder(record: Record, host: str) -> int:
    """The pid that holds a host's namespaces. Raises `LabError` where it does not any more."""
    pid = record.switches if host == SWITCHES else record.holders.get(host, 0)
    if host in record.dead:
        raise LabError(f"host {host!r} of lab {record.name!r} was killed; `atoll lab heal {host}` brings it back empty")
    if pid == 0 or host_of(pid, record.id) != host:
        raise LabError(
            f"host {host!r} of lab {record.name!r} is gone (process {pid} held it); `atoll lab down {record.name}`"
        )
    return pid


def enter_words(record: Record, host: str, *, limited: bool = True) -> list[str]:
    """The words before a command that is to run inside a host. `limited`: within its CPU quota, and frozen with it."""
    groups = record.groups[host].paths() if limited and host in record.groups else []
    inside = "user" if record.user else "direct"
    home = "/" if host == SWITCHES else proc_namespaces.HOME
    return script("enter", str(holder(record, host)), inside, home, *groups, "--")


def ray_environment(record: Record) -> list[str]:
    """NAME=VALUE with which commands inside the lab find its Ray; none where there is none.

    Its token is off, which clients must be told: they would switch theirs on. `ray job` asks the dashboard.
    """
    if not record.ray_address:
        return []
    dashboard = f"http://{record.ray_address.partition(':')[0]}:{DASHBOARD_PORT}"
    return ["RAY_AUTH_MODE=disabled", f"RAY_ADDRESS={record.ray_address}", f"RAY_API_SERVER_ADDRESS={dashboard}"]


def batch(record: Record, host: str, name: str, lines: list[str]) -> None:
    """Have `ip`, `tc` or `bridge` do `lines` in a host, frozen or not, or among the switches. Raises `LabError`."""
    done = subprocess.run(
        [*enter_words(record, host, limited=False), tool(name), "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=_RAISE_S,
        check=False,
    )
    if done.returncode:
        raise LabError(f"{name} in {host!r} of lab {record.name!r}: {done.stderr.strip()[:400]}")
