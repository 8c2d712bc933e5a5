#!/usr/bin/env bash
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
#
# Before a release, in the environment of make env, with a way to the package index: known vulnerabilities of everything
# in the lock (fails if there is one, or if nothing could be asked), the list of licences, the SBOM (CycloneDX).

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf -- "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0

"$tools/bin/python" -m cyclonedx_py requirements requirements/lock.txt --output-reproducible --of JSON \
    -o requirements/sbom.cdx.json
# The purl and the hashes name a package; where it was fetched from is the machine's business.
sed -i -E 's#https://pypi[.]org/(simple|project)/##' requirements/sbom.cdx.json
python scripts/licences.py
# --strict: a package that the index does not know of is a failure, not a pass.
"$tools/bin/python" -m pip_audit -r requirements/lock.txt --require-hashes --no-deps --disable-pip --strict
