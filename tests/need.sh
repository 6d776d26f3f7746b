#!/bin/sh
# need.sh COMMAND PACKAGE WHY: installs Debian's PACKAGE if COMMAND is not there and that can be done; else says what is missing.
set -eu
command -v "$1" >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing $2, $3" >&2
  # Packages may bring services; nothing here needs one to run.
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  apt-get install -qy --no-install-recommends "$2" >/dev/null || { apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends "$2" >/dev/null; }
  command -v "$1" >/dev/null && exit 0
fi
echo "make test needs $1, $3 (Debian: apt-get install $2)" >&2
exit 1
