# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Run the node with the real network where nothing but this machine can be reached, and see who tries.

    unshare --map-root-user --net python test/no_network.py

In the new network namespace there are the loopback device and a tun device, which has the route to everywhere else. So
whatever any library, in Python or not, sends to another machine or asks a name server is read here instead. Prints one
line of JSON: the packets of an attempt made on purpose, and those of the node's whole life.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

TUNSETIFF, TUN, NO_PACKET_INFO = 0x400454CA, 0x0001, 0x1000
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, UP_AND_RUNNING = 0x890B, 0x8914, 0x8916, 0x41


def set_up() -> int:
    """Loopback, and a device with the route to everywhere; its file."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"elsewhere", TUN | NO_PACKET_INFO))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in (b"lo", b"elsewhere"):
            if name != b"lo":
                Path("/proc/sys/net/ipv6/conf/elsewhere/disable_ipv6").write_text("1")
                address = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton("10.1.2.3"))
                fcntl.ioctl(control, SIOCSIFADDR, address)
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", name, UP_AND_RUNNING))
        # struct rtentry: a route to everywhere (address and mask are nothing) through the device
        device = ctypes.create_string_buffer(b"elsewhere")
        anywhere = struct.pack("HH4s8x", socket.AF_INET, 0, bytes(4))
        route = (
            struct.pack("L", 0)
            + 3 * anywhere
            + struct.pack("HhLPhPLLH", 1, 0, 0, 0, 0, ctypes.addressof(device), 0, 0, 0)
        )
        fcntl.ioctl(control, SIOCADDRT, route.ljust(120, b"\0"))
    return tun


def attempts(tun: int) -> list[str]:
    """Where packets were sent since the last time, those of group membership (IGMP) left out."""
    found = []
    while select.select([tun], [], [], 0.2)[0]:
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == 4 and packet[9] != 2:
            found.append(f"{socket.inet_ntoa(packet[16:20])} protocol {packet[9]}")
    return found


def life() -> int:
    """The node from configure to its end, with the shipped weights; how many results it gave."""
    import numpy as np
    import trimesh
    from node_harness import REAL_NODE, NodeUnderTest, Robot, header, image

    with tempfile.TemporaryDirectory() as folder:
        trimesh.creation.box((100, 100, 100)).export(Path(folder, "obj_000001.ply"))
        robot = Robot()
        given = {"models_dir": folder, "cache_dir": f"{folder}/cache", "warm_up": False, "refine": False}
        node = NodeUnderTest(robot, Path(folder), given, REAL_NODE)
        try:
            for transition in ("configure", "activate"):
                assert node.transition(transition, 240), node.program.text
            received, camera = node.detections(), node.matched()
            camera.publish(image(np.full((64, 64, 3), 90, np.uint8), header(1)))
            deadline = time.monotonic() + 60
            while not received and time.monotonic() < deadline:
                time.sleep(0.05)
            for transition in ("deactivate", "cleanup"):
                assert node.transition(transition, 60), node.program.text
            return len(received)
        finally:
            node.end()
            robot.close()


def main() -> None:
    """Print what was seen."""
    tun = set_up()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.sendto(b"is anybody there", ("198.51.100.7", 9))
    with contextlib.suppress(OSError):  # asks the name servers of this machine
        socket.setdefaulttimeout(1)
        os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
        socket.gethostbyname("example.org")
    on_purpose = attempts(tun)
    results = life()
    print(json.dumps({"on purpose": on_purpose, "results": results, "attempts": attempts(tun)}))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    main()
