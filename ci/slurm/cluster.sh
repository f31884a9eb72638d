#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, in one directory: munge, slurmctld, two slurmd, two fake GPUs a node.
#
#   ci/slurm/cluster.sh start DIR     start what does not run yet, wait until both nodes are idle
#   ci/slurm/cluster.sh stop DIR      stop what `start` started, by process id, the nodes first
#   ci/slurm/cluster.sh restart DIR   slurmctld alone, keeping its state
#   ci/slurm/cluster.sh env DIR       the line that makes sbatch, squeue, … talk to it:  eval "$(… env DIR)"
#
# No systemd, no root needed: everything runs as the user who starts it. Debian 12 (22.05) and newer.
# Both nodes are this machine: their names do not resolve, their NodeAddr is 127.0.0.1.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
NODES=(n1 n2)

say() { printf 'slurm-cluster: %s\n' "$*" >&2; }

usage() {
    say "usage: cluster.sh start|stop|restart|env DIR"
    exit 2
}

alive() { # alive NAME: whether the process of D/NAME.pid runs, and is what NAME says
    local pid
    pid=$(cat "$D/$1.pid" 2> /dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2> /dev/null &&
        grep -q "^${1%%-*}" "/proc/$pid/comm"
}

wait_for() { # wait_for SECONDS WHAT COMMAND…
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        if [ "$SECONDS" -ge "$until" ]; then
            say "$what: not so in time; see $D/log"
            return 1
        fi
        sleep 0.1
    done
}

free_ports() { # the first of three free ports in a row
    local port
    for ((port = 26817; port < 27800; port += 3)); do
        if ! listens "$port" && ! listens "$((port + 1))" && ! listens "$((port + 2))"; then
            echo "$port"
            return
        fi
    done
    say "no free ports between 26817 and 27800"
    return 1
}

listens() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

devices() { # two device files for fake GPUs; Slurm looks at them and opens none
    if [ -c /dev/tty60 ] && [ -c /dev/tty61 ]; then
        echo '/dev/tty[60-61]'
        return
    fi
    for number in 0 1; do
        [ -c "$D/gpu$number" ] || mknod "$D/gpu$number" c 1 3
    done
    echo "$D/gpu[0-1]"
}

at_least() { # at_least 23.11: whether this Slurm is that or newer
    [ "$(printf '%s\n' "$1" "$(slurmctld -V | cut -d' ' -f2)" | sort -V | head -n 1)" = "$1" ]
}

write_config() {
    local port user
    port=$(free_ports)
    user=$(id -un)
    cat > "$D/slurm.conf" << END
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$D/munge.socket,cred_expire=5
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
GresTypes=gpu
KillWait=5
OverTimeLimit=0
MinJobAge=600
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 DefMemPerCPU=1000 State=UP
PartitionName=short Nodes=n1 MaxTime=00:02:00 DefMemPerCPU=1000 State=UP
END
    printf 'AutoDetect=off\nNodeName=n[1-2] Name=gpu File=%s\n' "$(devices)" > "$D/gres.conf"
    # From 23.11 slurmd loads a cgroup plugin in any case, unless it is disabled by name.
    if at_least 23.11; then echo CgroupPlugin=disabled > "$D/cgroup.conf"; fi
}

start_munge() {
    alive munged && return
    [ -s "$D/munge.key" ] || (umask 077 && dd if=/dev/urandom of="$D/munge.key" bs=1024 count=1 status=none)
    munged --force --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" \
        --log-file="$D/log/munged.log" --seed-file="$D/munged.seed"
}

start_controller() {
    alive slurmctld && return
    slurmctld -f "$D/slurm.conf"
    wait_for 20 "slurmctld answers" scontrol ping
}

start_nodes() {
    local node
    for node in "${NODES[@]}"; do
        alive "slurmd-$node" || slurmd -N "$node" -f "$D/slurm.conf"
    done
}

usable() { # whether both nodes take jobs: idle or at work
    [ "$(sinfo -h -N -p main -o %T | grep -cxE 'idle|mixed|allocated')" -eq "${#NODES[@]}" ]
}

start() {
    mkdir -p "$D/state" "$D/log" "$D/spool/n1" "$D/spool/n2"
    chmod 755 "$D" # munge refuses a socket below a directory that others may write
    [ -s "$D/slurm.conf" ] || write_config
    start_munge
    start_controller
    start_nodes
    wait_for 30 "both nodes take jobs" usable
    say "$(slurmctld -V): ${NODES[*]} take jobs; $(environment)"
}

stop_one() { # stop_one NAME: SIGTERM, SIGKILL after 10 s
    local pid
    alive "$1" || return 0
    pid=$(cat "$D/$1.pid")
    kill "$pid"
    wait_for 10 "$1 ends" gone "$pid" || kill -KILL "$pid"
}

gone() { ! kill -0 "$1" 2> /dev/null || grep -q '^State:[[:space:]]*Z' "/proc/$1/status"; }

idle() { ! squeue -h | grep -q .; }

stop() {
    local node
    if alive slurmctld; then # slurmd would leave running jobs to themselves
        scancel --user="$(id -un)"
        wait_for 30 "the jobs end" idle || true
    fi
    for node in "${NODES[@]}"; do stop_one "slurmd-$node"; done
    stop_one slurmctld
    stop_one munged
}

restart() {
    stop_one slurmctld
    start_controller
}

environment() { printf 'export SLURM_CONF=%q\n' "$D/slurm.conf"; }

[ $# -eq 2 ] || usage
mkdir -p "$2"
D=$(cd "$2" && pwd -P)
export SLURM_CONF=$D/slurm.conf
case "$1" in
    start) start ;;
    stop) stop ;;
    restart) restart ;;
    env) environment ;;
    *) usage ;;
esac
