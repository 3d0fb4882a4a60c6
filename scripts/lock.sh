#!/usr/bin/env bash
# Writes requirements/*.txt (pinned and hashed) from *.in and pyproject.toml: `make lock`.
# Pins stay at what the environment has installed, so a lock records what the suites passed on;
# UPGRADE=1 takes the newest releases instead.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
installed=$(mktemp)
trap 'rm -f "$installed"' EXIT
if [[ -z ${UPGRADE:-} ]]; then
    "$python" -m pip freeze --all --exclude-editable --exclude pip --exclude torch \
        | grep -E '^[A-Za-z0-9._-]+==' >"$installed"
fi

# compile OUTPUT SOURCE...: one lock. No index and no link is written: where packages come from is the machine's affair.
compile() {
    local output=$1
    shift
    "$python" -m uv --quiet pip compile --universal --python-version 3.11 --generate-hashes \
        --upgrade --no-annotate --no-emit-index-url --no-emit-find-links --no-config \
        --custom-compile-command 'make lock' --constraint "$installed" \
        --excludes requirements/excluded.in --output-file "$output" "$@" >/dev/null
    echo "$output: $(grep -c '^[a-z0-9]' "$output") packages"
}

compile requirements/build.txt requirements/build.in
compile requirements/login.txt requirements/login.in
compile requirements/run.txt requirements/run.in requirements/build.in pyproject.toml --extra dedup --extra fast --extra mpi
compile requirements/dev.txt requirements/dev.in requirements/build.in pyproject.toml --extra dev --extra dedup --extra fast --extra mpi
