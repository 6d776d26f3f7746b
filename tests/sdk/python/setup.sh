#!/bin/sh
# Puts the Python SDK of requirements.txt into .venv beside this folder, unless it is there. With `check`: only says what
# that would lack.
set -eu
cd "$(dirname "$0")/.."

need='the tests run the real Python SDK'
command -v python3 >/dev/null || { echo "python3 is missing: $need; install Python 3.11 or newer" >&2; exit 1; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "$(python3 --version) is too old: $need, which needs Python 3.11 or newer" >&2; exit 1; }
python3 -c 'import venv, ensurepip' 2>/dev/null || {
  echo "python3 has no venv: $need in an environment of its own; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }

[ "${1-}" != check ] || exit 0
cmp -s python/requirements.txt .venv/requirements.txt && exit
rm -rf .venv
python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement python/requirements.txt
.venv/bin/python -m pip check >&2
cp python/requirements.txt .venv/
