"""Labs that several tests raise, and scripts that run inside their hosts."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, TrunkSpec


def _refused():
    """Why no lab can be raised here, or ""."""
    for words in (["unshare", "--net", "--mount", "true"], ["unshare", "--user", "--map-root-user", "--net", "true"]):
        if shutil.which("unshare") and not subprocess.run(words, capture_output=True, check=False).returncode:
            return "" if shutil.which("ip", path=PATH) else "a lab needs ip and tc (apt-get install iproute2)"
    return "a lab needs root, or user namespaces (sysctl user.max_user_namespaces)"


PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
REFUSED = _refused()

# Receives on an address and prints the payload rate after slow start; sends for so many seconds.
SINK = """
import socket, sys, time
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    server.settimeout(10)
    connection, _ = server.accept()
connection.settimeout(10)
buffer, count, begun = bytearray(1 << 18), 0, time.monotonic()
warm = begun + 0.1
first = last = None
while got := connection.recv_into(buffer):
    last = time.monotonic()
    if last >= warm:
        if first is None:
            first = last
        else:
            count += got
print(count / (last - first))
"""
SOURCE = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[3])), timeout=10) as connection:
    until, data = time.monotonic() + float(sys.argv[2]), bytes(1 << 16)
    while time.monotonic() < until:
        connection.send(data)
"""
# Prints how much of one core it had, in so many seconds.
SPIN = """
import sys, time
begun, used = time.monotonic(), time.process_time()
while time.monotonic() < begun + float(sys.argv[1]):
    pass
print((time.process_time() - used) / (time.monotonic() - begun))
"""
# Beats every 10 ms until its stdin ends, and prints the longest pause in milliseconds.
BEAT = """
import select, sys, time
last, worst, told = time.monotonic(), 0.0, False
print("ready", flush=True)
while not told:
    told = select.select([sys.stdin], [], [], 0.01)[0]
    now = time.monotonic()
    worst, last = max(worst, now - last), now
print(worst * 1e3)
"""


def islands(name="t", hosts=2, fast=400e6, slow=50e6, cpus=None):
    """Two islands, a fast NIC in each and a slow one to everywhere."""
    nics = {i: (NicSpec(name="fast", network=i), NicSpec(name="slow", network="wide")) for i in ("east", "west")}
    return LabSpec(
        name=name,
        networks=(Network(name="east", rate=fast), Network(name="west", rate=fast), Network(name="wide", rate=slow)),
        hosts=tuple(
            HostSpec(name=f"{i[0]}{n}", nics=nics[i], cpus=cpus, labels={"island": i})
            for i in ("east", "west")
            for n in range(hosts)
        ),
    )


def trunked(name="t", rate=40e6, hosts=2):
    """Two islands of one NIC a host, joined by a trunk."""
    return LabSpec(
        name=name,
        networks=(Network(name="east", rate=200e6), Network(name="west", rate=200e6)),
        trunks=(TrunkSpec(first="east", second="west", rate=rate),),
        hosts=tuple(
            HostSpec(name=f"{i[0]}{n}", nics=(NicSpec(name="net", network=i),))
            for i in ("east", "west")
            for n in range(hosts)
        ),
    )


def flows(lab, pairs, seconds=0.5):
    """Bytes of payload a second of each (from, to, NIC of `to`), all at the same time."""
    sinks = []
    for _, target, nic in pairs:
        words = [sys.executable, "-I", "-S", "-c", SINK, lab.address(target, nic), str(seconds)]
        sinks.append(lab.popen(target, words, stdout=subprocess.PIPE, text=True))
    ports = [sink.stdout.readline().strip() for sink in sinks]
    python = [sys.executable, "-I", "-S", "-c", SOURCE]
    sources = [
        lab.popen(source, [*python, lab.address(target, nic), str(seconds), port])
        for (source, target, nic), port in zip(pairs, ports, strict=True)
    ]
    try:
        said = [sink.communicate(timeout=20)[0] for sink in sinks]
    finally:
        for source in sources:
            source.wait(20)
    return [float(text) for text in said]


def answers(lab, source, target, nic, within_s=2.0):
    """True where a datagram from one host is answered by another."""
    echo = (
        "import socket, sys\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind((sys.argv[1], 9001))\n"
        "s.settimeout(10)\nprint('ready', flush=True)\n"
        "try:\n data, whom = s.recvfrom(99)\n s.sendto(data, whom)\nexcept TimeoutError:\n pass\n"
    )
    ask = (
        "import socket, sys, time\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.settimeout(0.1)\n"
        "ok = 0\n"
        "for _ in range(int(float(sys.argv[2]) / 0.1)):\n s.sendto(b'x', (sys.argv[1], 9001))\n"
        " try:\n  ok = len(s.recv(99))\n  break\n except TimeoutError:\n  pass\nprint(ok)\n"
    )
    python = [sys.executable, "-I", "-S", "-c"]
    words = [lab.address(target, nic), str(within_s)]
    server = lab.popen(target, [*python, echo, *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    client = lab.popen(source, [*python, ask, *words], stdout=subprocess.PIPE, text=True)
    said = client.communicate(timeout=20)[0]
    server.kill()
    server.communicate(timeout=20)
    return said == "1\n"


def silent(lab, source, target, nic):
    """True where nothing comes back, however often it is asked."""
    return not answers(lab, source, target, nic, within_s=0.3)


def said(lab, host, *argv):
    """What a command prints inside a host."""
    child = lab.popen(host, argv, stdout=subprocess.PIPE, text=True)
    return child.communicate(timeout=20)[0]


def namespaces():
    """Every namespace of networks that a process is in."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            found.add(str(link.readlink()))
    return found


def links_here():
    """The interfaces of the machine's own namespace that are named as a lab names its own."""
    names = {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-j", "link"]))}
    return {name for name in names if re.fullmatch(r"s\d+|h\d+n\d+|t\d+[ab]|fast|slow|net|mgmt", name)}
