#!/usr/bin/env bash
# Make the project's own Python environment: ci/make-venv.sh PYTHON DIRECTORY. Safe to run again.
set -euo pipefail
python=${1:-python3} venv=${2:-.venv}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "make-venv: sifkit needs Python 3.10 or newer; $python is $("$python" --version 2>&1 || true). Say which: make PYTHON=python3.12 venv" >&2
    exit 3
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian and Ubuntu split it off
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$package" >&2
    else
        echo "make-venv: Python's venv is missing. Install it with: sudo apt-get install $package" >&2
        exit 3
    fi
fi
# One that was interrupted, or whose Python is gone, is made again.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
