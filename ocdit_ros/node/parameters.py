# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Every parameter of the node, once.

The descriptors, the checks, `config/segment.yaml` and `docs/parameters.md` all come from the table below:

    python -m ocdit_ros.node.parameters --yaml > config/segment.yaml
    python -m ocdit_ros.node.parameters --markdown > docs/parameters.md

Nothing here needs ROS at import, so the two files can be written on any machine.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import html
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Name of the node in the launch file and in the examples; the YAML file works under any name.
NODE_NAME = "segment_node"


class ParameterError(ValueError):
    """A parameter value that cannot be used; the message names the parameter and what it accepts."""


class Type(enum.Enum):
    """Parameter types; names and numbers are those of rcl_interfaces/ParameterType."""

    BOOL = 1
    INTEGER = 2
    DOUBLE = 3
    STRING = 4
    STRING_ARRAY = 9


class Takes(enum.Enum):
    """When a changed value takes effect."""

    NOW = "at the next frame"
    RELOAD = "at ~/reload_objects or the next configure"
    CONFIGURE = "at the next configure; can be changed only while unconfigured"
    START = "at the start of the process; read-only"


@dataclass(frozen=True)
class Parameter:
    """One row of the table."""

    name: str
    type: Type
    default: Any
    takes: Takes
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: int = 0  # whole numbers only: distance of accepted values, counted from the minimum
    choices: tuple[str, ...] = ()
    pattern: str = ""  # regular expression that a string must match as a whole, explained by the description

    def check(self, value: Any) -> Any:
        """The value in the parameter's own type; an integer is taken for a double, None for the default.

        Raises ParameterError with the reason.
        """
        value = self._typed(value)
        for item in value if self.type is Type.STRING_ARRAY else (value,):
            self._check_item(item)
        return value

    def _typed(self, value: Any) -> Any:
        if value is None:  # `name: []` in a YAML file arrives as "not set"
            return self.default
        kind = self.type
        if kind is Type.BOOL and isinstance(value, bool):
            return value
        if kind is Type.INTEGER and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is Type.DOUBLE and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind is Type.STRING and isinstance(value, str):
            return value
        if kind is Type.STRING_ARRAY and not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
            items = list(value)
            if all(isinstance(item, str) for item in items):
                return items
        raise ParameterError(f"parameter '{self.name}' is {value!r}, but needs {_TYPE_PHRASES[kind]}")

    def _check_item(self, item: Any) -> None:
        if self.type in (Type.INTEGER, Type.DOUBLE):
            low = -math.inf if self.minimum is None else self.minimum
            high = math.inf if self.maximum is None else self.maximum
            if not low <= item <= high:  # also refuses NaN
                raise ParameterError(f"parameter '{self.name}' is {item:g}, but must be {self.bounds()}")
            if self.step and (item - int(low)) % self.step:
                raise ParameterError(f"parameter '{self.name}' is {item}, but must be a multiple of {self.step}")
        elif self.choices and item not in self.choices:
            raise ParameterError(f"parameter '{self.name}' is '{item}', but must be one of {', '.join(self.choices)}")
        elif self.pattern and not re.fullmatch(self.pattern, item):
            raise ParameterError(f"parameter '{self.name}' is '{item}', which is not valid: {self.description}")

    def bounds(self) -> str:
        """Accepted values in words; empty where the type says it all."""
        if self.choices:
            return " | ".join(self.choices)
        if self.minimum is None and self.maximum is None:
            return ""
        return f"{_number(self.minimum)} to {_number(self.maximum)}" + (f" {self.unit}" if self.unit else "")

    def descriptor(self) -> Any:
        """The row as an rcl_interfaces/ParameterDescriptor."""
        from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

        descriptor = ParameterDescriptor(
            name=self.name,
            type=self.type.value,
            description=self.description + (f" [{self.unit}]" if self.unit else ""),
            additional_constraints="; ".join(filter(None, [self.bounds(), f"takes effect {self.takes.value}"])),
            read_only=self.takes is Takes.START,
        )
        if self.minimum is not None and self.maximum is not None:
            if self.type is Type.INTEGER:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=self.step)
                ]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum))
                ]
        return descriptor


_TYPE_PHRASES = {
    Type.BOOL: "true or false",
    Type.INTEGER: "a whole number",
    Type.DOUBLE: "a number",
    Type.STRING: "a text",
    Type.STRING_ARRAY: "a list of texts",
}

_NAME_PATTERN = r"[A-Za-z0-9_\-]*"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "autostart", Type.BOOL, False, Takes.START,
        "Configure and activate at start, without a lifecycle manager.",
    ),
    Parameter(
        "end_with_parent", Type.BOOL, False, Takes.START,
        "End, as at SIGTERM, when the process that started the node has ended, however it did. For launch, which "
        "leaves its nodes running when it gets SIGTERM or is killed; segment.launch.py sets it. Linux only.",
    ),
    # What to look for
    Parameter(
        "models_dir", Type.STRING, "", Takes.RELOAD,
        "Folder of meshes in BOP layout: obj_000001.ply (or .obj) and so on, optionally names.json "
        "({\"1\": \"mug\"}). "
        "Path, file:// or package:// URI; empty: none.",
    ),
    Parameter(
        "models_scale", Type.DOUBLE, 0.001, Takes.RELOAD,
        "Length of one mesh unit of models_dir; BOP meshes are in millimetres.",
        unit="m", minimum=1e-6, maximum=1e3,
    ),
    Parameter(
        "objects", Type.STRING_ARRAY, [], Takes.RELOAD,
        "Objects to look for: names out of models_dir, or names that have their own objects.<name>.mesh. "
        "Empty: every mesh of models_dir. Letters, digits, _ and - only.",
        pattern=_NAME_PATTERN,
    ),
    # The network
    Parameter(
        "weights", Type.STRING, "", Takes.CONFIGURE,
        "Checkpoint (safetensors). Path, file:// or package:// URI; empty: the weights that ship with the "
        "package.",
    ),
    Parameter(
        "device", Type.STRING, "auto", Takes.CONFIGURE,
        "Where the network runs: auto (the first CUDA device, else the CPU), cpu, cuda or cuda:N.",
        pattern=r"auto|cpu|cuda(:\d+)?",
    ),
    Parameter(
        "cpu_threads", Type.INTEGER, 0, Takes.CONFIGURE,
        "Threads of the network on the CPU; 0: as many as PyTorch finds fit.",
        minimum=0, maximum=1024,
    ),
    Parameter(
        "cache_dir", Type.STRING, "", Takes.CONFIGURE,
        "Folder that keeps rendered templates and their features between runs; empty: "
        "$XDG_CACHE_HOME/ocdit_ros/templates.",
    ),
    Parameter(
        "warm_up", Type.BOOL, True, Takes.CONFIGURE,
        "Segment one grey image at configure, so that the first frame takes no longer than the others.",
    ),
    # Input
    Parameter(
        "cameras", Type.STRING_ARRAY, [], Takes.CONFIGURE,
        "Names of several cameras that share this node and its model: each has <name>/image and "
        "~/<name>/detections and so on. Empty: one camera, with image and ~/detections. Letters, digits "
        "and _ only, no leading digit.",
        pattern=r"([A-Za-z_][A-Za-z0-9_]*)?",
    ),
    Parameter(
        "image_transport", Type.STRING, "raw", Takes.CONFIGURE,
        "raw: sensor_msgs/Image on image; compressed: sensor_msgs/CompressedImage on image/compressed.",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "batch_wait", Type.DOUBLE, 0.02, Takes.NOW,
        "With several cameras: how long a frame waits for those of the others, so that the network sees them "
        "in one batch. Frames that waited for the last batch to end are one batch in any case.",
        unit="s", minimum=0.0, maximum=10.0,
    ),
    Parameter(
        "mode", Type.STRING, "stream", Takes.NOW,
        "stream: segment the newest frame as soon as the last one is done; trigger: only when ~/segment is "
        "called.",
        choices=("stream", "trigger"),
    ),
    Parameter(
        "lazy", Type.BOOL, False, Takes.NOW,
        "true: in stream mode the frames of a camera are segmented only while somebody listens to detections, label "
        "image, mask or overlay of it; who begins to listen may miss the first frame. false: always.",
    ),
    Parameter(
        "warm_start", Type.BOOL, True, Takes.NOW,
        "In stream mode a frame begins with what the last one of its camera showed, and detections keep their id from "
        "frame to frame. A frame that shows another scene is segmented in full, as every one is with false, and in "
        "trigger mode.",
    ),
    Parameter(
        "warm_start_sigma", Type.DOUBLE, 0.0, Takes.NOW,
        "With warm_start: the noise (sigma) on the masks of the last frame from which crops are sampled; 0: from noise "
        "alone, as single images are.",
        minimum=0.0, maximum=1000.0,
    ),
    Parameter(
        "max_rate", Type.DOUBLE, 0.0, Takes.NOW,
        "Segment at most this many frames a second; 0: no limit.",
        unit="Hz", minimum=0.0, maximum=1000.0,
    ),
    Parameter(
        "trigger_timeout", Type.DOUBLE, 10.0, Takes.NOW,
        "How long ~/segment waits for a frame to arrive. The time to segment it comes on top.",
        unit="s", minimum=0.1, maximum=3600.0,
    ),
    # Segmentation
    Parameter(
        "score_threshold", Type.DOUBLE, 0.5, Takes.NOW,
        "Detections below this confidence are left out.",
        minimum=0.0, maximum=1.0,
    ),
    Parameter(
        "refine", Type.BOOL, True, Takes.NOW,
        "Look a second time at an enlarged crop around everything found: finer masks, more time.",
    ),
    Parameter(
        "steps", Type.INTEGER, 1, Takes.NOW,
        "Network evaluations of one sample (denoising steps). Time grows in proportion.",
        minimum=1, maximum=100,
    ),
    Parameter(
        "ensemble", Type.INTEGER, 1, Takes.NOW,
        "Samples, each from its own noise, that are averaged (N_ensemble of the paper). Time grows in "
        "proportion.",
        minimum=1, maximum=64,
    ),
    Parameter(
        "augmentations", Type.INTEGER, 1, Takes.NOW,
        "Views of a crop that are averaged: 1 is the plain one, 2 adds its mirror image, more are shifted and scaled "
        "(N_aug of the paper). Time grows in proportion.",
        minimum=1, maximum=8,
    ),
    Parameter(
        "coarse_size", Type.INTEGER, 384, Takes.NOW,
        "Longer side to which the coarse pass resizes the image, and each of its tiles; a multiple of 16. Less is "
        "faster and misses small objects.",
        unit="px", minimum=16, maximum=1024, step=16,
    ),
    Parameter(
        "tiles", Type.INTEGER, 2, Takes.NOW,
        "Before a refinement the coarse pass also looks at tiles x tiles overlapping parts of the image; 1: at the "
        "whole image alone, a fifth of the work of this pass, which misses small objects.",
        minimum=1, maximum=4,
    ),
    Parameter(
        "compare_sizes", Type.BOOL, True, Takes.NOW,
        "Scores expect that the objects of an image are about equally far from the camera. It tells the same part in "
        "two sizes apart and false detections from true ones; switch it off where distances differ by more than a "
        "factor of two.",
    ),
    Parameter(
        "min_pixels", Type.INTEGER, 24, Takes.NOW,
        "Masks with fewer pixels of the image are left out.",
        unit="px", minimum=1, maximum=1000000,
    ),
    Parameter(
        "seed", Type.INTEGER, 0, Takes.NOW,
        "Seed of the noise: the same frame (with warm_start, the same frames), objects and seed give the same "
        "result.",
        minimum=0, maximum=2**31 - 1,
    ),
    # Output
    Parameter(
        "selected_object", Type.STRING, "", Takes.NOW,
        "Object whose best instance ~/mask shows; empty: the best detection of all.",
        pattern=_NAME_PATTERN,
    ),
    # Watchdogs
    Parameter(
        "watch_no_frames", Type.DOUBLE, 10.0, Takes.NOW,
        "While active, /diagnostics warn when a camera has sent nothing for so long; 0: never.",
        unit="s", minimum=0.0, maximum=86400.0,
    ),
    Parameter(
        "watch_latency", Type.DOUBLE, 0.0, Takes.NOW,
        "/diagnostics warn when frames (the median of the last ones, or the one in hand) take longer than this from "
        "arrival to result; 0: never.",
        unit="s", minimum=0.0, maximum=86400.0,
    ),
    Parameter(
        "watch_scores", Type.DOUBLE, 0.0, Takes.NOW,
        "/diagnostics warn when the best score of a frame (the median of the last 20 frames, nothing found counts 0) "
        "falls below this share of what it was before; 0: never, as is right where objects leave the view.",
        minimum=0.0, maximum=1.0,
    ),
)  # fmt: skip

#: Parameters of one object; `<name>` stands for a name in `objects`.
OBJECT_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "objects.<name>.mesh", Type.STRING, "", Takes.RELOAD,
        "Mesh of the object (.ply, .obj, .stl, ...). Path, file:// or package:// URI.",
    ),
    Parameter(
        "objects.<name>.scale", Type.DOUBLE, 1.0, Takes.RELOAD,
        "Length of one mesh unit: 1.0 for a mesh in metres, 0.001 for one in millimetres.",
        unit="m", minimum=1e-6, maximum=1e3,
    ),
)  # fmt: skip

_BY_NAME = {row.name: row for row in PARAMETERS}
_OBJECT_PARAMETER = re.compile(r"objects\.(?P<name>[A-Za-z0-9_\-]+)\.(?P<field>mesh|scale)")
#: Parameters that rclpy itself declares or reads.
_FOREIGN = re.compile(r"use_sim_time|start_type_description_service|qos_overrides\..*")


def find(name: str) -> Parameter | None:
    """The row of a parameter; for `objects.mug.mesh` that of `objects.<name>.mesh` under its full name.

    None for a parameter that belongs to rclpy. Raises ParameterError for one that nobody knows.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    match = _OBJECT_PARAMETER.fullmatch(name)
    if match:
        template = next(row for row in OBJECT_PARAMETERS if row.name.endswith(match["field"]))
        return Parameter(
            name, template.type, template.default, template.takes, template.description,
            template.unit, template.minimum, template.maximum,
        )  # fmt: skip
    if _FOREIGN.fullmatch(name):
        return None
    similar = difflib.get_close_matches(name, [*_BY_NAME], 1)
    hint = f"; did you mean '{similar[0]}'?" if similar else ""
    raise ParameterError(f"this node has no parameter '{name}'{hint}")


def defaults() -> dict[str, Any]:
    """Every parameter with its default value, those of single objects left out."""
    return {row.name: row.default for row in PARAMETERS}


def _number(value: float | None) -> str:
    return "any" if value is None else f"{value:.10g}"


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        # An empty list has no type in a ROS 2 parameter file, a list of one empty text has; the node takes
        # both alike.
        return "[" + ", ".join(_yaml_value(item) for item in (value or [""])) + "]"
    if isinstance(value, float):
        return repr(value)
    return f'"{value}"' if isinstance(value, str) else str(value)


def _wrapped(text: str, width: int = 108, indent: str = "    # ") -> list[str]:
    lines, line = [], indent.rstrip()
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = indent.rstrip()
        line += f" {word}"
    return [*lines, line]


def to_yaml(table: tuple[Parameter, ...] = PARAMETERS) -> str:
    """`config/segment.yaml`: every parameter at its default, explained."""
    lines = [
        "# Parameters of the segmentation node, all at their defaults.",
        "# Written by `python -m ocdit_ros.node.parameters --yaml`; change the table there, not this file.",
        "#",
        "#   ros2 run ocdit_ros segment_node --ros-args --params-file segment.yaml",
        "#   ros2 launch ocdit_ros segment.launch.py params_file:=segment.yaml",
        "",
        "/**:",
        "  ros__parameters:",
    ]
    for row in table:
        lines += ["", *_wrapped(row.description)]
        if row.bounds():
            lines += _wrapped(f"Accepted: {row.bounds()}.")
        lines += _wrapped(f"A change takes effect {row.takes.value}.")
        lines.append(f"    {row.name}: {_yaml_value(row.default)}")
    lines += [
        "",
        *_wrapped("An object with a mesh of its own. Its name must be in `objects`; the dots are part of the name."),
    ]
    lines += [
        '    # objects.mug.mesh: "package://my_robot_description/meshes/mug.stl"',
        "    # objects.mug.scale: 0.001",
    ]
    return "\n".join(lines) + "\n"


def to_markdown(table: tuple[Parameter, ...] = PARAMETERS) -> str:
    """`docs/parameters.md`: the reference page."""
    lines = [
        "# Parameters of the node",
        "",
        "Written by `python -m ocdit_ros.node.parameters --markdown` from the table in `ocdit_ros/node/parameters.py`.",
        "`config/segment.yaml` holds the same table with all values at their defaults.",
        "",
        "| parameter | type | default | accepted | meaning | a change takes effect |",
        "|---|---|---|---|---|---|",
    ]
    for row in (*table, *OBJECT_PARAMETERS):
        cells = (
            f"`{row.name}`", row.type.name.lower(), f"`{_yaml_value(row.default)}`",
            row.bounds() or "", html.escape(row.description, quote=False) + (f" [{row.unit}]" if row.unit else ""),
            row.takes.value,
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "- A value that is out of range, of the wrong type or not the node's is refused, and the reason says why.",
        "- A whole number is accepted where a number is asked for (`ros2 param set ... score_threshold 1`).",
        "- A wrong value in a parameter file does not stop the node: configure fails with the reason until "
        "it is corrected.",
        "- In a list, empty texts are ignored: `['']` is the empty list, which ROS 2 parameter files cannot express.",
        "",
    ]
    return "\n".join(lines)


def names_in(values: Mapping[str, Any], parameter: str) -> list[str]:
    """A list parameter without its empty texts and repetitions."""
    return list(dict.fromkeys(item.strip() for item in values[parameter] if item.strip()))


def main(arguments: list[str] | None = None) -> None:
    """Print the parameter file or the reference page."""
    parser = argparse.ArgumentParser(prog="python -m ocdit_ros.node.parameters", description=main.__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--yaml", action="store_const", dest="write", const=to_yaml, help="config/segment.yaml")
    group.add_argument("--markdown", action="store_const", dest="write", const=to_markdown, help="docs/parameters.md")
    sys.stdout.write(parser.parse_args(arguments).write())


if __name__ == "__main__":
    main()
