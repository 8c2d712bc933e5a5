#!/usr/bin/env bash
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
#
# Add to .venv what `ocdit preview` and its test need (requirements/lock-preview.txt). A second run does nothing.

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

lock=requirements/lock-preview.txt
mark=.venv/.stamp-preview
stamp=$(sha256sum "$lock")
if [[ ! -f $mark || $(<"$mark") != "$stamp" ]]; then
    echo "[preview] installing $lock into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r "$lock"
    printf '%s\n' "$stamp" > "$mark"
fi
