#!/usr/bin/env bash
# Install the Docker Engine and a registry for tests, from Debian's (12, 13) own packages. No service is started.
#
#   sudo bash ci/docker/install.sh        install what is missing (safe to run again)
set -euo pipefail

say() { printf 'install-docker: %s\n' "$*" >&2; }

have_all() {
    local program
    for program in docker dockerd containerd runc docker-registry sqfstar; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || return 1
    done
}

if have_all; then
    say "$(PATH="$PATH:/usr/sbin:/sbin" dockerd --version) is here"
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    say "no recipe for this system: install dockerd, containerd, runc, docker-registry and squashfs-tools"
    exit 3
fi
if [ "$(id -u)" -ne 0 ]; then
    say "this needs root: sudo bash $0"
    exit 3
fi
# What policy-rc.d answers keeps packages from starting services (invoke-rc.d(8): 101, action forbidden).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
packages=(docker.io docker-registry squashfs-tools)
apt-get install -qy --no-install-recommends "${packages[@]}" > /dev/null 2>&1 || {
    apt-get update -q >&2
    apt-get install -qy --no-install-recommends "${packages[@]}" >&2
}
if ! command -v docker > /dev/null; then # Debian 12 has it in docker.io, Debian 13 apart
    apt-get install -qy --no-install-recommends docker-cli docker-buildx >&2
fi
say "ready: $(PATH="$PATH:/usr/sbin:/sbin" dockerd --version)"
