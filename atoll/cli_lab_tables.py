"""Labs as tables for the terminal. Pure: what was found in, rich renderables or plain lines out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from atoll.schema.topology import rate_text

if TYPE_CHECKING:
    from atoll.lab.bench_runtime import Measurement
    from atoll.lab.status_runtime import HostStatus, LabStatus, NicStatus

# What a shaped link may miss of its declared rate before the table marks it.
_TOLERANCE = 0.15
PAYLOAD = "rates are TCP's payload, 95.6 % of the wire's"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def lab(status: LabStatus) -> list[Table | str]:
    """One lab: a line, its hosts, and what holds for the whole of it."""
    phase = "stands" if status.phase == "up" else "was raised half: `atoll lab down` it"
    inside = " in a user namespace" if status.user_namespace else ""
    ray = f", Ray at {status.ray_address}" if status.ray_address else ""
    table = _table("HOST", "STATE", "NIC", "ADDRESS", "DECLARED", "MEASURED", "CPUS", "PROCS")
    table.caption = PAYLOAD
    for host in status.hosts:
        for index, nic in enumerate(host.nics):
            table.add_row(*(_host_cells(host, nic) if index == 0 else _more_cells(nic)))
    lines = [f"{a} and {b} reach each other at {rate_text(rate / 8)} at most" for a, b, rate in status.slows]
    return [f"lab {status.name} ({status.id}) {phase}{inside}{ray}", table, *lines, *status.notices]


def _host_cells(host: HostStatus, nic: NicStatus) -> list[str]:
    state = ", ".join([host.state, *([f"{nic.nic} cut"] if nic.cut else [])])
    return [host.host, state, *_nic_cells(nic), "all" if host.cpus is None else f"{host.cpus:g}", str(host.processes)]


def _more_cells(nic: NicStatus) -> list[str]:
    return ["", f"{nic.nic} cut" if nic.cut else "", *_nic_cells(nic), "", ""]


def _nic_cells(nic: NicStatus) -> list[str]:
    declared = "unshaped" if nic.declared is None else rate_text(nic.declared)
    measured = "-" if nic.measured is None else rate_text(nic.measured)
    return [f"{nic.nic}@{nic.network}", nic.address, declared, measured]


def measured(rows: Sequence[Measurement]) -> Table:
    """What each link carried, beside what it should."""
    table = _table("FROM", "TO", "NIC", "DECLARED", "MEASURED", "SHARE", "")
    table.caption = PAYLOAD
    for row in rows:
        way, share = row.way, row.of_declared
        declared = "unshaped" if way.declared is None else rate_text(way.declared)
        found = "nothing came" if row.bandwidth is None else rate_text(row.bandwidth)
        note = "far off" if share is not None and abs(share - 1) > _TOLERANCE else ""
        ratio = "-" if share is None else f"{share:.2f}"
        table.add_row(way.source, way.target, way.mine.name, declared, found, ratio, note)
    return table
