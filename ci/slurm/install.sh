#!/usr/bin/env bash
# Install Slurm and munge for tests, from Debian's (12, 13) or Ubuntu's own packages. No service is started.
#
#   sudo bash ci/slurm/install.sh        install what is missing (safe to run again)
set -euo pipefail

say() { printf 'install-slurm: %s\n' "$*" >&2; }

have_all() {
    local program
    for program in slurmctld slurmd munged sbatch scontrol squeue; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || return 1
    done
}

if have_all; then
    say "$(sbatch --version) is here"
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    say "no recipe for this system: install slurmctld, slurmd, the Slurm client programs and munge"
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
packages=(slurmctld slurmd slurm-client munge)
apt-get install -qy --no-install-recommends "${packages[@]}" > /dev/null 2>&1 || {
    apt-get update -q >&2
    apt-get install -qy --no-install-recommends "${packages[@]}" >&2
}
say "ready: $(sbatch --version)"
