# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs top to bottom, cell by cell, by IPython as a kernel would run it, with the shipped weights."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from node_harness import environment

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "five_lines.ipynb"

#: Runs in a process of its own: IPython's shell, without a kernel's sockets; the last value of each cell is reported.
RUNNER = """
import json, sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell
notebook = nbformat.read(sys.argv[1], 4)
nbformat.validate(notebook)
shell = InteractiveShell()
shown = []
for cell in notebook.cells:
    if cell.cell_type == "code":
        result = shell.run_cell(cell.source)
        result.raise_error()
        value = result.result
        shown.append([type(value).__name__, list(getattr(value, "size", []))])
names = [one.name for one in shell.user_ns["instances"]]
print("RESULT" + json.dumps([shown, names]))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    pytest.importorskip("IPython", reason="IPython is missing (it comes with Open3D)")
    pytest.importorskip("nbformat", reason="nbformat is missing (it comes with Open3D)")
    folder = tmp_path_factory.mktemp("notebook")
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)],
        cwd=NOTEBOOK.parent, env=environment(XDG_CACHE_HOME=str(folder), IPYTHONDIR=str(folder)),
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads(result.stdout.rpartition("RESULT")[2])


def test_cells_show_what_the_text_says(ran):
    shown, names = ran
    assert shown[1] == ["Image", [640, 480]]
    assert "ycb_sugar_box" in names
    assert shown[3] == ["Image", [6 * 128, 128]]
    assert shown[4][0] == "Image"
    assert shown[4][1][0] > 4 * shown[4][1][1]


def test_it_is_five_lines_and_holds_no_output():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (five,) = [text for text in code if "from_checkpoint" in text]
    assert len(five.splitlines()) == 5
    ast.parse("\n".join(code))
    assert not any(cell.get("outputs") for cell in cells)
