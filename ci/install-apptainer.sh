#!/usr/bin/env bash
# Install Apptainer and what sifkit builds with: squashfs-tools, debootstrap, FUSE helpers, subuid maps.
#
#   sudo bash ci/install-apptainer.sh            install what is missing (safe to run again)
#   bash ci/install-apptainer.sh --print         only print the commands for this distribution
#
# Debian 12 and 13 take Apptainer from unstable (with a pin so low that nothing else follows),
# Ubuntu from Apptainer's PPA, Fedora and RHEL-like systems from their own or EPEL's repository.
# Sources: https://apptainer.org/docs/admin/latest/installation.html, https://packages.debian.org/sid/apptainer
set -euo pipefail

say() { printf 'install-apptainer: %s\n' "$*" >&2; }

print_only=false
case "$*" in
    "") ;;
    --print) print_only=true ;;
    *) say "unknown argument: $*. Usage: install-apptainer.sh [--print]"; exit 2 ;;
esac

run() { if $print_only; then printf '%s\n' "$*"; else "$@"; fi; }
write() { # write FILE: standard input becomes FILE
    if $print_only; then printf "cat > %s <<'END'\n%s\nEND\n" "$1" "$(cat)"; else cat > "$1"; fi
}

# shellcheck source=/dev/null
. "${SIFKIT_OS_RELEASE:-/etc/os-release}"
family=" ${ID:-unknown} ${ID_LIKE:-} "

apt_sites() { # what apt's sources name; cloud images name a file that lists mirrors
    local site
    # shellcheck disable=SC2016 # $(SITE) is apt's own
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | while read -r site; do
        case "$site" in
            mirror+file:*) sed -n 's/^\(https\{0,1\}:[^[:space:]]*\).*/\1/p' "${site#mirror+file:}" ;;
            *) printf '%s\n' "$site" ;;
        esac
    done
}

debian_mirror() { # the mirror that apt already uses, so that a site's own mirror keeps being used
    if [ -n "${SIFKIT_DEBIAN_MIRROR:-}" ]; then printf '%s\n' "$SIFKIT_DEBIAN_MIRROR"; return; fi
    apt_sites |
        awk '/^https?:.*\/debian\/?$/ && ++n[$0] > most {most = n[$0]; mirror = $0} END {print mirror}'
}

install_debian() {
    local mirror
    mirror=$(debian_mirror) || true # no apt here: the commands are for another machine
    if [ -z "$mirror" ]; then
        say "apt names no Debian mirror: say which, SIFKIT_DEBIAN_MIRROR=http://…/debian bash ci/install-apptainer.sh"
        $print_only || exit 3
        mirror=http://YOUR-MIRROR/debian
    fi
    printf 'deb %s sid main\n' "$mirror" | write /etc/apt/sources.list.d/sifkit-sid.list
    printf 'Package: *\nPin: release n=sid\nPin-Priority: 90\n' | write /etc/apt/preferences.d/sifkit-sid
    run apt-get update -q
    run apt-get install -qy --no-install-recommends -t sid apptainer
    run apt-get install -qy --no-install-recommends debootstrap squashfs-tools squashfuse fuse2fs fuse3 uidmap
}

install_ubuntu() {
    run apt-get update -q
    run apt-get install -qy --no-install-recommends software-properties-common
    run add-apt-repository -y ppa:apptainer/ppa
    run apt-get update -q
    run apt-get install -qy --no-install-recommends apptainer debootstrap squashfs-tools squashfuse fuse2fs fuse3 uidmap
}

install_rhel() {
    case "${ID:-}" in
        fedora) ;;
        rhel) run dnf install -y "https://dl.fedoraproject.org/pub/epel/epel-release-latest-${VERSION_ID%%.*}.noarch.rpm" ;;
        *) run dnf install -y epel-release ;;
    esac
    run dnf install -y apptainer debootstrap squashfs-tools squashfuse fuse3 e2fsprogs shadow-utils
}

# An ordinary user gets a map from useradd. Root needs one only where it lacks a capability
# (containers, CI): there `apptainer build --fakeroot` maps it, and the flag wants an entry.
map_root() {
    local file
    for file in /etc/subuid /etc/subgid; do
        if ! grep -qs '^root:' "$file"; then
            printf 'root:2000000:65536\n' | if $print_only; then sed "s|.*|echo & >> $file|"; else cat >> "$file"; fi
        fi
    done
}

open_fuse() { # lets ordinary users mount images
    if [ -c /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" = 600 ]; then run chmod 666 /dev/fuse; fi
}

if ! $print_only && [ "$(id -u)" -ne 0 ]; then
    say "this needs root. Ask your administrator, or install without root:"
    say "https://apptainer.org/docs/admin/latest/installation.html#install-unprivileged-from-pre-built-binaries"
    exit 3
fi
have_all() { for program in apptainer debootstrap mksquashfs squashfuse newuidmap; do command -v "$program" >/dev/null || return 1; done; }
if ! $print_only && PATH="$PATH:/usr/sbin:/sbin" have_all; then
    say "$(apptainer --version) is here"
else
    export DEBIAN_FRONTEND=noninteractive
    case "$family" in
        *" ubuntu "*) install_ubuntu ;;
        *" debian "*) install_debian ;;
        *" rhel "* | *" fedora "* | *" centos "*) install_rhel ;;
        *) say "no recipe for ${PRETTY_NAME:-this system}: see https://apptainer.org/docs/admin/latest/installation.html"; exit 3 ;;
    esac
fi
map_root
open_fuse
$print_only || say "ready: $(apptainer --version)"
