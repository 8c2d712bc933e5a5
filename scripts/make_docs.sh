#!/usr/bin/env bash
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
#
# Check the spelling and build the documentation with Sphinx, in an environment of its own (.venv-docs).
#
#   bash scripts/make_docs.sh html        what `make docs` calls: docs/_build/html/index.html
#   bash scripts/make_docs.sh linkcheck   what `make links` calls: ask every external link; takes the internet

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

builder=${1:-html}
lock=requirements/lock-docs.txt
venv=.venv-docs
stamp=$(sha256sum "$lock")

if [[ ! -f $venv/.stamp || $(<"$venv/.stamp") != "$stamp" ]]; then
    echo "[docs] creating $venv"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    # The lock is all there is to install, and names every file by its hash.
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r "$lock"
    printf '%s\n' "$stamp" > "$venv/.stamp"
fi

echo "[docs] spelling"
git ls-files -z '*.md' '*.rst' '*.py' '*.sh' '*.yaml' '*.xml' '*.in' Makefile 2>/dev/null \
    | xargs -0 "$venv/bin/codespell"

echo "[docs] sphinx, $builder"
"$venv/bin/sphinx-build" -E -q --fail-on-warning --keep-going -b "$builder" docs "docs/_build/$builder"
if [[ $builder == html ]]; then echo "[docs] docs/_build/html/index.html"; fi
