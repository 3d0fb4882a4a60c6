#!/usr/bin/env bash
# Makes or completes the virtual environment: `make setup`. Safe to run again; everything comes from pip alone.
#   scripts/setup.sh [VENV]      PYTHON=python3.12 chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
torch_version=2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [[ ! -x $venv/bin/python ]]; then
    host_python=${PYTHON:-python3}
    "$host_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: $("$host_python" --version) is too old, 3.11 or newer is needed: set PYTHON=python3.11" >&2
        exit 2
    }
    "$host_python" -m venv "$venv"
fi
python=$venv/bin/python
pip() { "$python" -m pip "$@"; }

# What builds deepspeed and this package; their builds run in this environment, so they download nothing unpinned.
pip install -qq --require-hashes -r requirements/build.txt

# torch first and on its own: the CPU build where no NVIDIA driver answers, as the default build brings several GB of CUDA.
# A file of it that pip finds on this machine is preferred to the download.
installed_torch=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
if [[ ${installed_torch%%+*} == "$torch_version" ]]; then
    echo "setup: torch $installed_torch is there"
elif nvidia-smi >/dev/null 2>&1; then
    echo "setup: an NVIDIA driver answers: torch $torch_version with CUDA"
    pip install -qq "torch==$torch_version"
else
    echo "setup: no NVIDIA driver: torch $torch_version for the CPU"
    pip install -qq --no-deps "torch==$torch_version+cpu" 2>/dev/null \
        || pip install -qq --no-deps "torch==$torch_version" \
            --index-url https://download.pytorch.org/whl/cpu
fi

echo "setup: installing $(grep -c '^[a-z0-9]' requirements/dev.txt) packages: minutes, and 1.6 GB on the disk"
# The lock is the whole closure without torch, so nothing is resolved here and nothing can replace that torch.
pip install -qq --no-deps --no-build-isolation --require-hashes -r requirements/dev.txt
pip install -qq --no-deps --no-build-isolation -e .
pip check
