#!/usr/bin/env bash
# Install the Docker Engine and a registry for tests, from Debian's (12, 13) own packages. No service is started.
#
#   sudo bash ci/docker/install.sh        install what is missing (safe to run again)
set -euo pipefail
NAME=docker PROGRAMS=(docker dockerd containerd runc docker-registry sqfstar)
# shellcheck source=ci/debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

version() { PATH="$PATH:/usr/sbin:/sbin" dockerd --version; }

if have_all; then
    say "$(version) is here"
    exit 0
fi
require_apt "dockerd, containerd, runc, docker-registry and squashfs-tools"
install_packages docker.io docker-registry squashfs-tools
if ! command -v docker > /dev/null; then # Debian 12 has it in docker.io, Debian 13 apart
    install_packages docker-cli docker-buildx
fi
say "ready: $(version)"
