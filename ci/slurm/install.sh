#!/usr/bin/env bash
# Install Slurm and munge for tests, from Debian's (12, 13) or Ubuntu's own packages. No service is started.
#
#   sudo bash ci/slurm/install.sh        install what is missing (safe to run again)
set -euo pipefail
NAME=slurm PROGRAMS=(slurmctld slurmd munged sbatch scontrol squeue)
# shellcheck source=ci/debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

if have_all; then
    say "$(sbatch --version) is here"
    exit 0
fi
require_apt "slurmctld, slurmd, the Slurm client programs and munge"
install_packages slurmctld slurmd slurm-client munge
say "ready: $(sbatch --version)"
