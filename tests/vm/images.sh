# SPDX-License-Identifier: Apache-2.0
# Sourced by tests/vm/run and tests/vm/shell: the images that a machine starts from, made once and cached in
# ${LEASED_VM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/leased-vm}, keyed by a hash of what made them. Whoever comes second waits
# for whoever makes one. Expects `top`, and packaging/progress.sh.
# shellcheck shell=bash

cache=${LEASED_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leased-vm}
suite=bookworm
scratch=''

hash_of() { sha256sum | cut -c1-16; }
base_key=$(cat "$top/tests/vm/base" <(echo $suite) | hash_of)
base=$cache/base-$base_key.tar
kernel=$cache/vmlinuz-$base_key
initrd=$cache/initrd-$base_key
bench_key=$(cat "$top"/tests/vm/guest/{orders.py,leased-orders.service} "$top/tests/vm/images.sh" <(echo "$base_key") | hash_of)
bench_image=$cache/bench-$bench_key.img

have_packages() { packages debootstrap qemu-system-x86 qemu-utils e2fsprogs python3 python3-venv gcc python3-dev libc6-dev; }

# One builder at a time, and a directory of its own that goes when it ends.
begin_making() {
  mkdir -p "$cache"
  exec 8>"$cache/lock"
  flock 8
  scratch=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
}

# The bare system: see tests/vm/base. Made beside its place and moved there whole.
make_base() {
  [ -e "$base" ] && [ -e "$kernel" ] && [ -e "$initrd" ] && return 0
  "$top/tests/vm/base" "$scratch/base" $suite
  cp "$scratch"/base/boot/vmlinuz-* "$kernel"
  cp "$scratch"/base/boot/initrd.img-* "$initrd"
  rm -rf "$scratch"/base/boot/*
  tar --create --file "$scratch/base.tar" --directory "$scratch/base" .
  mv "$scratch/base.tar" "$base"
  rm -rf "$scratch/base"
  newest 2 base vmlinuz initrd
}

# The workbench: the bare system and the program that takes orders from the host. Nothing of ours is installed there.
make_bench() {
  [ -e "$bench_image" ] && return 0
  unpack_base
  put_orders
  pack_root "$bench_image"
  newest 4 bench
}

unpack_base() {
  mkdir "$scratch/root"
  tar --extract --file "$base" --directory "$scratch/root"
}

put_orders() {
  local root=$scratch/root
  mkdir -p "$root/usr/lib/leased-vm"
  cp "$top/tests/vm/guest/orders.py" "$root/usr/lib/leased-vm/"
  cp "$top/tests/vm/guest/leased-orders.service" "$root/etc/systemd/system/"
  in_guest systemctl enable leased-orders.service
}

pack_root() { # pack_root IMAGE
  mke2fs -q -t ext4 -L leased -d "$scratch/root" "$scratch/root.img" 3G
  rm -rf "$scratch/root"
  mv "$scratch/root.img" "$1"
}

newest() { # newest COUNT PREFIX...: forget those made before the newest ones
  local count=$1 prefix
  shift
  for prefix in "$@"; do ls -t "$cache/$prefix"-* | tail -n "+$((count + 1))" | xargs -r rm -f; done
}

in_guest() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 chroot "$scratch/root" "$@"; }

end_making() {
  rm -rf "$scratch"
  flock -u 8
  exec 8>&-
}
