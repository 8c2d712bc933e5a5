# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Kill the node with SIGKILL in the middle of its work, again and again, and see whether it comes back.

    python test/killing.py [--kills 50] [--seed 0]

A supervisor starts the node again whenever it ends, as `respawn` of launch or systemd do. The segmenter is a fake
around the real template cache, which compares every entry that it gets with what was stored. The node is killed at a
random moment of configure, of a cache write, or of a frame; then it must become active by itself, and a frame sent by
a camera that was there all the time must give the right result to a listener that was there all the time. Run it in a
mount name space with a /dev/shm of its own (unshare -rm, mount -t tmpfs tmpfs /dev/shm): what Fast DDS keeps there
survives a kill.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 101)))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds_shm.xml"))

import trimesh  # noqa: E402
from node_harness import (  # noqa: E402
    FAKE_NODE,
    NodeUnderTest,
    Program,
    Robot,
    header,
    image,
    scene,
    wait_until,
)

MOMENTS = ("configure", "cache", "frame")
#: What marks the begin of a moment in the output, and how long it lasts at most, in seconds.
MARKS = {"configure": ("MARK configuring", 0.3), "cache": ("MARK storing", 0.05), "frame": ("MARK segmenting", 0.3)}
RED = (10, 20, 30, 40)


class Supervised(NodeUnderTest):
    """Starts the node again when it ends."""

    def __init__(self, robot: Robot, folder: Path, parameters: dict[str, Any]) -> None:
        super().__init__(robot, folder, parameters, FAKE_NODE)
        self.command = list(self.program.process.args)  # type: ignore[arg-type]
        self.starts = 1
        self.changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop:
            if self.program.process.poll() is not None and not self._stop:
                self.program.end()
                with self.changed:
                    self.program = Program(self.command)
                    self.starts += 1
                    self.changed.notify_all()
            time.sleep(0.01)

    def next_start(self, after: int) -> Program:
        """The process that came after so many starts."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.starts > after, 60), "the supervisor did not start it again"
            return self.program

    def end(self) -> None:
        self._stop = True
        self._thread.join(10)
        super().end()


def shared_memory() -> int:
    """Bytes that Fast DDS holds in /dev/shm."""
    total = 0
    for file in Path("/dev/shm").glob("*fast*"):
        try:
            total += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def killed(kills: int, seed: int, folder: Path, moments: tuple[str, ...] = MOMENTS, talk: Any = print) -> Counter[str]:
    """Kill so many times at each moment; counts of what happened. AssertionError where the node does not come back."""
    rng, counts = random.Random(seed), Counter()
    for number in (1, 2):
        trimesh.creation.box((100, 100, 90 + number)).export(folder / f"obj_{number:06d}.ply")
    cache = folder / "cache"
    given = {
        "models_dir": str(folder),
        "weights": "caching",
        "cache_dir": str(cache),
        "autostart": True,
        "warm_up": False,
    }
    robot = Robot()
    node = Supervised(robot, folder, given)
    try:
        node.program.wait_for("active, waiting for images")
        received, camera, frame = node.detections(), node.publisher(), 0
        for moment in moments:
            mark, lasts = MARKS[moment]
            for _ in range(kills):
                program, starts = node.program, node.starts
                if moment == "frame":
                    picture = scene(red=RED)
                    picture[0, 0] = 9, 9, 3
                    since = len(program.lines)
                    node.matched().publish(image(picture, header(10**6)))
                else:
                    if moment == "cache" or rng.random() < 0.3:
                        for file in cache.glob("*.templates"):
                            file.unlink()
                    program.send(signal.SIGKILL)  # a fresh start, which is the one to be killed
                    program, since = node.next_start(starts), 0
                    starts = node.starts
                program.wait_for(mark, 60, since)
                time.sleep(rng.uniform(0, lasts))
                said = list(program.lines[since:])
                program.send(signal.SIGKILL)
                after = node.next_start(starts)
                counts[f"{moment}: killed"] += 1
                if moment == "cache":
                    at = "while writing" if said.count("MARK storing") > said.count("MARK stored") else "between writes"
                    counts[f"cache: {at}"] += 1
                after.wait_for("active, waiting for images", 60)
                assert node.starts == starts + 1, "it did not start at the first attempt"
                counts["objects cached"] += after.text.count("MARK cached")
                counts["objects made"] += after.text.count("MARK made")
                for line in after.lines:
                    assert "Traceback" not in line and "the cache gave other" not in line, after.text
                    counts["warnings"] += "[WARN]" in line
                frame += 1

                def result(frame: int = frame) -> Any:
                    camera.publish(image(scene(red=RED), header(frame)))
                    time.sleep(0.1)
                    return [one for one in received if one.header == header(frame)]

                (found,) = wait_until(result, 30, "a result after the kill")[:1]
                (one,) = found.detections
                assert one.results[0].hypothesis.class_id == "obj_000001"
                assert (one.bbox.size_x, one.bbox.size_y) == RED[2:]
            talk(f"{moment}: {kills} kills, {dict(counts)}, {shared_memory() / 2**20:.0f} MiB in /dev/shm")
        counts["temporary files left"] = len(list(cache.glob("*.tmp")))
        return counts
    finally:
        node.end()
        robot.close()


def main() -> None:
    """Kill, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="at each moment (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    before = shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        counts = killed(options.kills, options.seed, Path(folder))
    for what, count in sorted(counts.items()):
        print(f"{count:6d}  {what}")
    print(f"{before / 2**20:.0f} MiB in /dev/shm before, {shared_memory() / 2**20:.0f} MiB after")


if __name__ == "__main__":
    main()
