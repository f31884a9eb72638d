# shellcheck shell=bash
# Read by ci/*/install.sh: programs for tests from Debian's or Ubuntu's own packages, safe to run again. No service is
# started. The reader has set NAME, for messages, and PROGRAMS, which make it complete.

say() { printf 'install-%s: %s\n' "$NAME" "$*" >&2; }

have_all() {
    local program
    for program in "${PROGRAMS[@]}"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || return 1
    done
}

require_apt() { # require_apt WHAT…: what a person installs where there is no apt
    if ! command -v apt-get > /dev/null; then
        say "no recipe for this system: install $*"
        exit 3
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "this needs root: sudo bash $0"
        exit 3
    fi
}

install_packages() { # install_packages PACKAGE…
    # What policy-rc.d answers keeps packages from starting services (invoke-rc.d(8): 101, action forbidden).
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qy --no-install-recommends "$@" > /dev/null 2>&1 || {
        apt-get update -q >&2
        apt-get install -qy --no-install-recommends "$@" >&2
    }
}
