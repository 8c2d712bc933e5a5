# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Mutation testing: small changes of the code, each of which some test should notice.

    pip install mutmut==3.8.1
    python test/mutations.py [--sample N --seed S]

Which modules, and which tests for them, is in `pyproject.toml`; mutmut does the rest and keeps its work in `mutants/`,
from which a run that was stopped goes on. With --sample, N mutants of each module, drawn by the seed, instead of all.
Prints a row for each module; `mutmut results` and `mutmut show NAME` tell what was left alive.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def draw(modules: Sequence[Path], count: int, seed: int) -> list[str]:
    """Names of `count` mutants of each module."""
    mutate = importlib.import_module("mutmut.mutation.file_mutation").mutate_file_contents
    full_name = importlib.import_module("mutmut.utils.format_utils").get_mutant_name
    names = []
    for module in modules:
        mutated = mutate(str(module), (ROOT / module).read_text())
        found = sorted(full_name(module, name) for name in mutated.mutant_names)
        names += random.Random(seed).sample(found, min(count, len(found)))
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Run mutmut, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="mutants of each module; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=1, help="processes at a time")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)  # mutmut reads its settings from there

    # no dependency: whoever wants it installs it
    modules = [Path(name) for name in importlib.import_module("mutmut.configuration").config().only_mutate]
    status = importlib.import_module("mutmut.stats").status_by_exit_code
    names = draw(modules, options.sample, options.seed) if options.sample else []
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run"]
    subprocess.run([*command, "--max-children", str(options.children), *names], cwd=ROOT, check=True)

    print(
        "| module | mutants | tried | killed by a test | ended by the time limit | left alive | share killed by tests |"
    )
    print("|---|---|---|---|---|---|---|")
    for module in modules:
        codes = json.loads((ROOT / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
        wanted = {name: code for name, code in codes.items() if not names or name in names}
        found = Counter(status[code] for code in wanted.values() if code is not None)
        killed, late, tried = found["killed"] + found["segfault"], found["timeout"], found.total()
        row = (module, len(codes), tried, killed, late, tried - killed - late, f"{killed / max(tried, 1):.1%}")
        print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
