# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Does the node keep its size? Many frames, with interruptions, around a model that takes no time.

    python benchmark/soak.py [--frames 20000] [--seed 0] [--json FILE]

The node runs in a process of its own in stream mode; camera, listener and operator are here. At random moments the
node is deactivated and activated, told to reload its objects (of which one has come, gone or changed), given other
parameters, sent images that it cannot use, or cleaned up and configured anew. Resident memory, threads and open files
of its process are looked at all the time. Memory is compared between the end of the warm-up (a quarter of the frames)
and the end, as medians of a tenth of the run each. The exit status is 1 if memory grew by 1 % or more, or threads or
files did not come back to what they were.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import trimesh
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node import LISTENING, Robot, picture
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from std_msgs.msg import Header
from std_srvs.srv import Trigger

WIDTH, HEIGHT = 160, 120


def size_of(process: int) -> dict[str, int]:
    """Resident memory in kB, threads and open files of a process."""
    with open(f"/proc/{process}/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    files = len(os.listdir(f"/proc/{process}/fd"))
    return {"memory": int(lines["VmRSS"].split()[0]), "threads": int(lines["Threads"]), "files": files}


class Operator:
    """Whoever interrupts the node."""

    def __init__(self, one: Robot, seed: int) -> None:
        self.one, self.rng = one, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.folder = Path(one.folder.name)

    def transition(self, *labels: str) -> None:
        """All of them must succeed."""
        for label in labels:
            request = ChangeState.Request(transition=Transition(label=label))
            if not self.one.call("change_state", ChangeState, request).success:
                sys.exit(f"{label} failed")

    def interrupt(self) -> None:
        """One interruption; the node is active before and after."""
        what = self.rng.choices(
            ("deactivate", "reload", "parameter", "bad image", "cleanup"), (40, 30, 15, 14, 1)
        )[0]  # fmt: skip
        self.done[what] += 1
        if what == "deactivate":
            self.transition("deactivate", "activate")
        elif what == "cleanup":
            self.transition("deactivate", "cleanup", "configure", "activate")
        elif what == "reload":
            other = self.folder / "obj_000002.ply"
            if other.exists() and self.rng.random() < 0.5:
                other.unlink()
            else:
                trimesh.creation.box((50, 60, self.rng.randint(50, 90))).export(other)
            answer = self.one.call("reload_objects", Trigger, Trigger.Request())
            if not answer.success:
                sys.exit(f"reload_objects failed: {answer.message}")
        elif what == "parameter":
            value = ParameterValue(type=3, double_value=self.rng.choice((0.3, 0.5, 0.7)))
            parameter = ParameterMessage(name="score_threshold", value=value)
            self.one.call("set_parameters", SetParameters, SetParameters.Request(parameters=[parameter]))
        else:
            frame = picture(WIDTH, HEIGHT, "rgb8", 0)
            frame.step = self.rng.choice((0, 3, 2**31))
            self.one.camera.publish(frame)
            time.sleep(0.1)  # else the next frame takes its place


class PatientRobot(Robot):
    """Gives what a service answers."""

    def call(self, service: str, kind: Any, request: Any) -> Any:  # type: ignore[override]
        """The answer."""
        return super().call(kind, service, request)[1]


def soak(frames: int, seed: int) -> dict[str, Any]:
    """Everything that was seen."""
    one = PatientRobot({"autostart": True})
    try:
        one.listen(LISTENING["+ overlay"])
        one.wait(one.camera.get_subscription_count, 300, "the node's subscription")
        time.sleep(1.0)  # the node learns of the listeners
        operator, frame = Operator(one, seed), picture(WIDTH, HEIGHT, "rgb8", 0)
        sizes: list[dict[str, int]] = []
        every, lost = max(frames // 400, 1), 0
        next_interruption = 20
        begin = time.monotonic()
        for n in range(1, frames + 1):
            if n == next_interruption:
                operator.interrupt()
                next_interruption += operator.rng.randint(10, 50)
            frame.header = Header(frame_id="camera")
            frame.header.stamp.sec, frame.header.stamp.nanosec = 1, n
            for _ in range(100):  # the subscription of a node that was just activated may not have been matched yet
                one.camera.publish(frame)
                deadline = time.monotonic() + 2.0
                with one.news:
                    while n not in one.arrived and time.monotonic() < deadline:
                        one.news.wait(0.1)
                if n in one.arrived:
                    break
                lost += 1
            else:
                sys.exit(f"no result of frame {n}")
            one.arrived.pop(n, None)
            if n % every == 0:
                sizes.append({"frame": n, **size_of(one.process.pid)})
            if n % max(frames // 20, 1) == 0:
                print(f"frame {n}: {sizes[-1] if sizes else ''} {time.monotonic() - begin:.0f} s", flush=True)
        time.sleep(2.0)
        end = {"frame": frames, **size_of(one.process.pid)}
        return {
            "frames": frames, "seed": seed, "sent again": lost, "interruptions": dict(operator.done),
            "seconds": time.monotonic() - begin, "sizes": sizes, "end": end,
            "diagnostics": {k: v for k, v in one.diagnostics.items() if k.startswith("frames")},
        }  # fmt: skip
    finally:
        one.close()


def judge(result: dict[str, Any]) -> dict[str, Any]:
    """Growth of what should not grow, after a quarter of the frames."""
    sizes = result["sizes"]
    tenth = max(len(sizes) // 10, 1)
    after = sizes[len(sizes) // 4 :][:tenth]
    last = sizes[-tenth:]
    verdict: dict[str, Any] = {}
    for key in ("memory", "threads", "files"):
        early, late = (statistics.median(one[key] for one in part) for part in (after, last))
        verdict[key] = {"after warm-up": early, "at the end": late, "growth [%]": 100 * (late - early) / early,
                        "most": max(one[key] for one in sizes[len(sizes) // 4 :])}  # fmt: skip
    return verdict


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=20000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the interruptions (default: %(default)s)")
    parser.add_argument("--json", help="write everything here too")
    options = parser.parse_args()
    result = soak(options.frames, options.seed)
    result["verdict"] = judge(result)
    print(f"\n{result['frames']} frames, {result['sent again']} sent again, {result['seconds']:.0f} s")
    print(", ".join(f"{what} {count}" for what, count in sorted(result["interruptions"].items())))
    print(result["diagnostics"])
    print("| | after warm-up | at the end | growth | most |\n|---|---|---|---|---|")
    for key, row in result["verdict"].items():
        early, late = row["after warm-up"], row["at the end"]
        print(f"| {key} | {early:.0f} | {late:.0f} | {row['growth [%]']:+.2f} % | {row['most']} |")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    verdict = result["verdict"]
    steady = all(verdict[key]["growth [%]"] <= 0 for key in ("threads", "files"))
    return 0 if steady and verdict["memory"]["growth [%]"] < 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
