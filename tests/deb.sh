#!/bin/sh
# Installs a package on this Debian, looks at what is there, and purges it again: nothing may be left. Root is needed, and
# nothing called sessile may be installed.
set -eu
deb=$1

fail() { echo "deb: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "root is needed to install a package"
! dpkg -s sessile >/dev/null 2>&1 || fail "sessile is installed on this machine: purge it first"
! [ -e /etc/sessile ] || fail "/etc/sessile is here already"

purge() { dpkg --purge sessile >/dev/null; }
trap purge EXIT

# Small images leave documentation out of every package.
dpkg --path-include='/usr/share/*' -i "$deb" >/dev/null
here=$(mktemp)
dpkg -L sessile >"$here"

for file in \
  /etc/sessile/sessile.toml \
  /usr/bin/sessile \
  /usr/share/bash-completion/completions/sessile \
  /usr/share/doc/sessile/bench/results/2026-11-28.md \
  /usr/share/doc/sessile/LICENSE \
  /usr/share/doc/sessile/README.md \
  /usr/share/doc/sessile/changelog.Debian.gz \
  /usr/share/doc/sessile/changelog.gz \
  /usr/share/doc/sessile/copyright \
  /usr/share/doc/sessile/conf/example.toml \
  /usr/share/doc/sessile/docs/operations.md \
  /usr/share/doc/sessile/examples/example.toml \
  /usr/share/doc/sessile/observability/alerts.yml \
  /usr/share/doc/sessile/packaging/Dockerfile \
  /usr/share/doc/sessile/packaging/README.md \
  /usr/share/doc/sessile/packaging/compose/compose.yaml \
  /usr/share/doc/sessile/packaging/compose/sessile/sessile.toml \
  /usr/share/doc/sessile/packaging/kubernetes/sessile.yaml \
  /usr/share/doc/sessile/systemd/50-sessile.rules \
  /usr/share/fish/vendor_completions.d/sessile.fish \
  /usr/share/man/man1/sessile.1.gz \
  /usr/share/sessile/sessile.schema.json \
  /usr/share/zsh/vendor-completions/_sessile
do
  grep -qx "$file" "$here" || fail "$file is not in the package"
  [ -s "$file" ] || fail "$file is not there, or empty"
  [ "$(stat -c %U:%G "$file")" = root:root ] || fail "$file is not root's"
done
for unit in sessile.service sessile.socket; do
  grep -q "/lib/systemd/system/$unit\$" "$here" || fail "$unit is not in the package"
  systemd-analyze verify --man=no "/lib/systemd/system/$unit" || fail "systemd does not take $unit"
done
! find /etc/systemd /etc/polkit-1 /usr/share/polkit-1 -name '*sessile*' | grep . || fail "something is in force that nobody asked for"
grep -q "Permission is hereby granted" /usr/share/doc/sessile/copyright || fail "the licence is not in the copyright file"

version=$(dpkg-query --show --showformat='${Version}' sessile)
[ "$(sessile --version)" = "sessile ${version%-*}" ] || fail "$(sessile --version) is not $version"
sessile check --config /etc/sessile/sessile.toml >/dev/null || fail "its own configuration is not sound"
for example in /usr/share/doc/sessile/examples/*.toml; do
  [ -s "$example" ] || fail "$example is empty"
done
zcat /usr/share/man/man1/sessile.1.gz | grep -q '^\.TH sessile 1' || fail "the man page is none"
bash -n /usr/share/bash-completion/completions/sessile
bash -c '. /usr/share/bash-completion/completions/sessile && complete -p sessile' >/dev/null || fail "bash completes nothing"
grep -q '"title": "sessile"' /usr/share/sessile/sessile.schema.json || fail "the schema is none"

trap - EXIT
purge
while read -r path; do
  if [ -f "$path" ] || [ -L "$path" ]; then fail "$path is left"; fi
done <"$here"
rm "$here"
left=$(find /etc /lib/systemd /usr /var -path /var/log -prune -o -path /var/cache -prune -o -path /var/backups -prune -o \
  -name '*sessile*' -print 2>/dev/null)
[ -z "$left" ] || fail "is left: $left"
echo "installed, tried and purged: $deb"
