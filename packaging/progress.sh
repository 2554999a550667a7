# SPDX-License-Identifier: Apache-2.0
# Sourced by packaging/install, packaging/try, tests/run and tests/vm/run: numbered steps that show they are alive, Debian
# packages that are only asked for when they are missing, a Python environment that is only made once.
# shellcheck shell=bash

leased_log=${leased_log:-$(mktemp -t leased-log.XXXXXX)}
: >>"$leased_log"
step_number=0
: "${step_total:=?}"

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# step LABEL COMMAND...: run it, its output to the log; say how long it took, and every 15 s that it still goes on.
# On failure show the end of its output and end the script.
step() {
  local label=$1 began=$SECONDS rc=0 pid from said=$SECONDS
  shift
  step_number=$((step_number + 1))
  printf '[%s/%s] %s ' "$step_number" "$step_total" "$label"
  from=$(wc -c <"$leased_log")
  "$@" >>"$leased_log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - said >= 15)); then
      said=$SECONDS
      printf '(%ss) ' $((SECONDS - began))
    fi
  done
  wait "$pid" || rc=$?
  if ((rc)); then
    printf 'FAILED after %ss (status %s)\n' $((SECONDS - began)) "$rc"
    tail -c "+$((from + 1))" "$leased_log" | tail -n 40 | sed 's/^/    /' >&2
    [ "$(wc -c <"$leased_log")" -gt "$from" ] ||
      printf '    it wrote nothing: is there room in %s?\n' "${leased_log%/*}" >&2
    printf '%s: the whole log is %s\n' "${0##*/}" "$leased_log" >&2
    exit "$rc"
  fi
  printf '%ss\n' $((SECONDS - began))
}

# packages NAME...: have these Debian packages. Nothing is asked of the network when all are there.
packages() {
  local missing=() name attempt
  for name in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || { echo "these packages are needed: ${missing[*]}"; return 1; }
  for attempt in 1 2 3; do
    if apt_get update && apt_get install -y --no-install-recommends "${missing[@]}"; then return 0; fi
    echo "attempt $attempt failed"
    sleep $((attempt * 5))
  done
  return 1
}

# unpacked DIRECTORY NAME...: the files of these Debian packages in DIRECTORY, for programs that a test runs and that must not
# be installed (syslog-ng would take the place of the host's own log daemon).
unpacked() {
  local directory=$1
  shift
  [ "$(cat "$directory/.made-from" 2>/dev/null)" = "$*" ] && return 0
  command -v apt-get >/dev/null || { echo "apt-get is needed to fetch $*"; return 1; }
  mkdir -p "$directory/.packages"
  (cd "$directory/.packages" && { [ "$(id -u)" != 0 ] || apt_get update; } && apt_get download "$@") || return 1
  for package in "$directory"/.packages/*.deb; do dpkg-deb -x "$package" "$directory" || return 1; done
  rm -rf "$directory/.packages"
  printf '%s\n' "$*" >"$directory/.made-from"
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# python_found: the interpreter to build environments with, 3.11 or newer. The system's first: every user can read it, which
# a tenant of the tests must.
python_found() {
  local candidate
  for candidate in "${LEASED_PYTHON:-}" /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# environment DIR: a Python environment in DIR. One that is there and works stays.
environment() {
  local python
  [ -x "$1/bin/python" ] && "$1/bin/python" -m pip --version >/dev/null 2>&1 && return 0
  python=$(python_found) || { echo "Python 3.11 or newer with venv is needed"; return 1; }
  rm -rf "$1/bin" "$1/lib"
  "$python" -m venv "$1"
}

pip_install() { # pip_install ENVIRONMENT ARGUMENT...
  local directory=$1
  shift
  "$directory/bin/python" -m pip install --disable-pip-version-check --no-input --retries 5 "$@"
}

# tree_environment TREE: the tree itself, built in place, in TREE/.venv with everything its tests need. Made again only when
# what it is made from has changed.
tree_environment() {
  local tree=$1 stamp=$1/.venv/.made-from made_from
  made_from=$(cd "$tree" && find pyproject.toml native -type f ! -path 'native/build/*' ! -path '*/__pycache__/*' \
    -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  environment "$tree/.venv" || return 1
  if [ "$(cat "$stamp" 2>/dev/null)" = "$made_from" ] && [ -x "$tree/native/build/leased-reaper" ] &&
    compgen -G "$tree/agent/leased/_native*.so" >/dev/null; then return 0; fi
  pip_install "$tree/.venv" --editable "$tree[test]" || return 1
  printf '%s\n' "$made_from" >"$stamp"
}

build_packages=(python3 python3-venv python3-dev gcc libc6-dev linux-libc-dev)
