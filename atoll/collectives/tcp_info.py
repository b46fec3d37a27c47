"""What Linux knows of a connection (`struct tcp_info`, linux/tcp.h). Each reader names the few fields that it wants."""

from __future__ import annotations

import socket
import struct


def tcp_info(sock: socket.socket, layout: struct.Struct) -> tuple[int, ...] | None:
    """The fields of `layout`; None where this kernel does not have them, or the connection is gone."""
    try:
        return layout.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, layout.size))
    except (OSError, struct.error):
        return None
