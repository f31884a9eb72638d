#!/usr/bin/env bash
# The whole chain on a GPU node without network, from what tests/gpu/gather.py gathered elsewhere.
#
#   bash tests/gpu/chain.sh [STAGE …]     default: lock render build verify
#
#   lock      sifkit lock, with the pip of the node's own environment
#   render    python build.py --render
#   build     python build.py
#   verify    python build.py --verify, all levels on one GPU
#   two-gpus  the same with --gpus 2
#   planted   tests/gpu: each planted failure must be caught
#   bench     make bench-gpu: inside the image against outside of it
#
# Apptainer, sifkit's own environment and the site file are made first where they are missing. A stage that fails does
# not keep independent ones from running; the exit code is 1 then. Settings, by the environment:
#
#   CARRIED      what was gathered                       build/gpu-node
#   LOGS         where logs and reports go               build/gpu-logs
#   ENVIRONMENT  the node's Python environment           /opt/torch/.venv
#   PROJECT      the directory that holds definitions/   tests/gpu
#   IMAGE        the image's name                        node
#   VERIFY       further options of --verify             none
#   PAIRS STEPS  of the benchmark                        3 30
#
# The tables are not asked (--no-check): the node's DeepSpeed is newer than LLaMA-Factory's list says, since that one
# imports without nvcc.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 3

CARRIED=$(realpath -m "${CARRIED:-build/gpu-node}")
LOGS=$(realpath -m "${LOGS:-build/gpu-logs}")
ENVIRONMENT=${ENVIRONMENT:-/opt/torch/.venv}
PROJECT=${PROJECT:-tests/gpu}
IMAGE=${IMAGE:-node}
read -ra VERIFY <<< "${VERIFY:-}"
OURS=.venv/bin/python
SIF=$PROJECT/images/$IMAGE.sif

say() { printf 'chain: %s\n' "$*"; }

# ------------------------------------------------------------------------------------------------ stages

summary=() failures=0
declare -A outcome=()

stage() { # stage NAME NEEDED|- COMMAND…: run it with its output in $LOGS/NAME.log; skip it when NEEDED failed
    local name=$1 needed=$2 started=$SECONDS code=0
    shift 2
    if [ "$needed" != - ] && [ "${outcome[$needed]:-ok}" != ok ]; then
        outcome[$name]=skipped
        summary+=("$(printf '%-12s %5s    skipped: %s did not succeed' "$name" - "$needed")")
        failures=$((failures + 1))
        return
    fi
    say "$name …"
    "$@" > "$LOGS/$name.log" 2>&1 || code=$?
    if [ "$code" -eq 0 ]; then outcome[$name]=ok; else
        outcome[$name]=failed
        failures=$((failures + 1))
        say "$name failed with exit code $code; its last lines:"
        tail -n 25 "$LOGS/$name.log"
    fi
    summary+=("$(printf '%-12s %5d s  %s' "$name" $((SECONDS - started)) "${outcome[$name]}$([ "$code" -eq 0 ] || echo ", exit $code")")")
}

# ------------------------------------------------------------------------------------------------ what is needed first

install_apptainer() { # unpacked, not installed: the packages are another distribution's
    command -v apptainer > /dev/null && { apptainer --version; return; }
    if [ "$(id -u)" -ne 0 ]; then echo "Apptainer is missing, and only root can unpack it into /usr"; return 3; fi
    local tree package
    tree=$(mktemp -d) && chmod 755 "$tree" || return
    for package in "$CARRIED"/debs/*.deb; do
        dpkg -x "$package" "$tree" || return
    done
    # Nothing that is there is replaced, and no link to a directory becomes a directory.
    tar -C "$tree" -cf - . | tar -C / -xpf - --skip-old-files --keep-directory-symlink || return
    rm -rf "$tree"
    ldconfig && map_root && open_fuse && apptainer --version
}

map_root() { # root that lacks a capability builds with --fakeroot, which wants a range of ids
    local file
    for file in /etc/subuid /etc/subgid; do
        grep -qs '^root:' "$file" || echo root:2000000:65536 >> "$file" || return
    done
}

open_fuse() { [ ! -c /dev/fuse ] || chmod 666 /dev/fuse; }

make_environment() { # sifkit's own, apart from the one that goes into the image
    if ! "$OURS" -c 'import typer, pydantic' 2> /dev/null; then
        "$ENVIRONMENT/bin/python" -m venv --without-pip --clear .venv || return
        "$ENVIRONMENT/bin/python" -m pip --python "$OURS" install --quiet --no-index --no-deps --no-cache-dir \
            --find-links "$CARRIED/sifkit" --find-links "$CARRIED/wheels" -r "$CARRIED/sifkit/requirements.txt" || return
        pwd > "$("$OURS" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sifkit.pth" || return
    fi
    "$OURS" -m sifkit --version
}

write_site() {
    printf 'python_index: {wheelhouse: %s}\n' "$CARRIED/wheels" > "$LOGS/site.yaml"
    cat "$LOGS/site.yaml"
}

# ------------------------------------------------------------------------------------------------ the chain

build_py() { python3 build.py --project "$PROJECT" --no-check "$@"; }

render() { build_py --render "$IMAGE"; }

build() { build_py "$IMAGE" && ls -l "$SIF"; }

verify() { build_py --verify --report "$LOGS/report" "${VERIFY[@]}" "$IMAGE"; }

two_gpus() { build_py --verify --gpus 2 --report "$LOGS/report-2" "${VERIFY[@]}" "$IMAGE"; }

planted() {
    SIFKIT_GPU_IMAGE=$(realpath -m "$SIF") "$OURS" -m pytest tests/gpu -p no:cacheprovider -n 4 --dist loadgroup --durations 0 --basetemp "$LOGS/planted"
}

bench() { # the same wheels outside the image: laid over the node's environment
    local over=build/gpu-outside
    if ! [ "$over/.done" -nt "$PROJECT/definitions/$IMAGE.lock" ]; then
        rm -rf "$over"
        "$ENVIRONMENT/bin/python" -m pip install --quiet --no-index --no-deps --no-cache-dir --require-hashes \
            --find-links "$CARRIED/wheels" --target "$over" -r "$PROJECT/definitions/$IMAGE.lock" || return
        touch "$over/.done"
    fi
    "$OURS" -m bench.gpu "$SIF" --outside "$ENVIRONMENT/bin/python" --outside-path "$over" \
        --pairs "${PAIRS:-3}" --steps "${STEPS:-30}"
}

main() {
    local word
    for word in "$@"; do
        case $word in
            lock | render | build | verify | two-gpus | planted | bench) ;;
            *) say "unknown stage: $word. Stages: lock render build verify two-gpus planted bench"; exit 2 ;;
        esac
    done
    if [ ! -d "$CARRIED/wheels" ]; then
        say "$CARRIED/wheels is not there: gather it where there is network, python tests/gpu/gather.py, and carry it here"
        exit 3
    fi
    mkdir -p "$LOGS" || exit 3
    export SIFKIT_SITE=$LOGS/site.yaml NO_COLOR=1
    stage apptainer - install_apptainer
    stage environment - make_environment
    stage site environment write_site
    for word in "$@"; do
        case $word in
            lock) stage lock site "$OURS" -m sifkit lock --project "$PROJECT" --no-check "$IMAGE" ;;
            render) stage render lock render ;;
            build) stage build lock build ;;
            verify) stage verify build verify ;;
            two-gpus) stage two-gpus build two_gpus ;;
            planted) stage planted build planted ;;
            bench) stage bench build bench ;;
        esac
    done
    report "$@"
}

report() { # what matters, last
    local word
    for word in "$@"; do
        case $word in
            verify | two-gpus | planted | bench) printf '\n---- %s\n' "$word"; tail -n 60 "$LOGS/$word.log" 2> /dev/null ;;
        esac
    done
    printf '\n'
    printf '%s\n' "${summary[@]}"
    printf '%-12s %5d s  %s\n' together "$SECONDS" "$([ "$failures" -eq 0 ] && echo ok || echo "$failures not ok")"
    [ "$failures" -eq 0 ]
}

[ $# -gt 0 ] || set -- lock render build verify
main "$@"
