"""ENV: Apptainer on this host, and what it needs of the kernel and the administrator."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Facts, HostFacts, Kind
from sifkit.check.hosts import (
    OLDEST_APPTAINER,
    bind_sources,
    by_root,
    elsewhere,
    install,
    is_on,
    on_this_host,
)
from sifkit.check.rule import Found, NotChecked, Severity, rule

_INSTALLATION = "https://apptainer.org/docs/admin/latest/installation.html"
_UNPRIVILEGED = f"{_INSTALLATION}#install-unprivileged-from-pre-built-binaries"


def _host(facts: Facts) -> HostFacts:
    assert facts.host is not None  # every rule here needs it
    return facts.host


@rule(
    "ENV001",
    "no-apptainer",
    needs=(Kind.HOST,),
    prevents="apptainer: command not found",
    why="images are run by Apptainer, and neither an old one nor SingularityCE does what sifkit asks of it",
    fix="install Apptainer 1.2 or newer, load its module, or run where it is: `bash ci/install-apptainer.sh` for root",
    source="sifkit/apptainer.py; Apptainer 1.2.0, CHANGELOG.md: unprivileged builds that need no configuration",
)
def no_apptainer(facts: Facts) -> Iterator[Found]:
    """There is no Apptainer on this host, or one that is too old."""
    host = _host(facts)
    if host.apptainer is None:
        other = f"; `singularity` is {host.singularity}, which sifkit does not use" if host.singularity else ""
        said = f"there is no apptainer on PATH{other}{elsewhere(facts)}"
        yield Found(said, _how_to_install(host), severity=on_this_host(facts))
    elif _is_old(host.apptainer):
        said = f"Apptainer {host.apptainer} is older than {OLDEST_APPTAINER}{elsewhere(facts)}"
        yield Found(said, _how_to_install(host), severity=on_this_host(facts))


def _is_old(version: str) -> bool:
    try:
        return Version(version) < OLDEST_APPTAINER
    except InvalidVersion:  # of somebody's own build
        return False


def _how_to_install(host: HostFacts) -> str:
    modules = "`module load apptainer`, where the site has it; else " if "MODULEPATH" in host.environment else ""
    alone = _INSTALLATION if host.uid == 0 else f"without root: {_UNPRIVILEGED}"
    return f"{modules}{by_root(host, 'bash ci/install-apptainer.sh')}, which is in sifkit's repository; or {alone}"


@rule(
    "ENV002",
    "no-user-namespaces",
    needs=(Kind.HOST,),
    prevents="ERROR  : Failed to create user namespace: maximum number of user namespaces exceeded, "
    "check /proc/sys/user/max_user_namespaces",
    why="without its setuid-root part Apptainer makes containers of user namespaces, which this kernel refuses",
    fix="root: allow them (`sysctl -w user.max_user_namespaces=65536`), or install the package apptainer-suid",
    source="Apptainer 1.4.5, provoked with max_user_namespaces=0; "
    "https://apptainer.org/docs/admin/latest/user_namespace.html",
    rows=(25,),
)
def no_user_namespaces(facts: Facts) -> Iterator[Found]:
    """User namespaces cannot be made here, and Apptainer has no setuid-root part that could do without."""
    host = _host(facts)
    if host.uid == 0 or host.apptainer is None:
        return
    allowed = is_on(host.apptainer_config, "allow user ns")
    if (host.user_namespaces and allowed) or host.setuid:
        return
    fault = (host.user_namespaces_fault or "the kernel refuses") if allowed else "apptainer.conf: allow user ns = no"
    said = f"no user namespaces: {fault}{elsewhere(facts)}"
    yield Found(said, _allow_namespaces(host, fault), severity=on_this_host(facts))


def _allow_namespaces(host: HostFacts, fault: str) -> str:
    setting = "user.max_user_namespaces=65536"
    if "userns_clone" in fault:
        setting = "kernel.unprivileged_userns_clone=1"
    elif "AppArmor" in fault:
        setting = "kernel.apparmor_restrict_unprivileged_userns=0"
    elif "apptainer.conf" in fault:
        return "root: set `allow user ns = yes` in apptainer.conf"
    command = by_root(host, f"sysctl -w {setting}")
    return f"{command}, and the same line in /etc/sysctl.d/90-userns.conf; or install the package apptainer-suid"


@rule(
    "ENV003",
    "no-subuid",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="INFO:    User not listed in /etc/subuid, trying root-mapped namespace\n"
    "set_attributes: failed to change uid and gids on /image/rootfs/etc/shadow, because Invalid argument\n"
    "FATAL:   While performing build: packer failed to pack: while unpacking local image",
    why="files of an image belong to several users, which a build without root maps to a range of ids; with none it "
    "can make only files of one user, so that neither debootstrap nor an image as a base can be unpacked",
    fix="root: `apptainer config fakeroot --add USER`; without root: build on another machine and copy the .sif",
    source="Apptainer 1.4.5, provoked: localimage and debootstrap fail, with and without the fakeroot command; "
    "internal/pkg/fakeroot/fakeroot.go: 65536 ids in one line",
    rows=(24,),
)
def no_subuid(facts: Facts) -> Iterator[Found]:
    """This user cannot build images: no range of ids, or no newuidmap that may give it. Runs need neither."""
    host = _host(facts)
    fault = build_fault(host)
    if fault and host.apptainer:
        also = "" if host.uid == 0 else "; without root: build on another machine and copy the .sif, one file"
        yield Found(f"images cannot be built here: {fault}; they can be run", _give_range(host) + also)


def build_fault(host: HostFacts) -> str | None:
    """Why this user's builds fail; None when they work."""
    if host.full_root:
        return None
    if not host.subuid:
        return host.subuid_fault or f"/etc/subuid: no line for {host.user}"
    if not host.newuidmap and not host.setuid:
        return host.newuidmap_fault or "newuidmap is not installed"
    if host.uid == 0 and not host.user_namespaces:
        return f"no user namespaces: {host.user_namespaces_fault}"
    if not host.home_is_there:
        return f"the home {host.home} is not there, and Apptainer mounts it"
    return None


def _give_range(host: HostFacts) -> str:
    if not host.subuid:
        if host.uid == 0:
            return "`echo root:2000000:65536 | tee -a /etc/subuid /etc/subgid`"
        return by_root(host, f"apptainer config fakeroot --add {host.user}")
    if not host.newuidmap and not host.setuid:
        if "no_new_privs" in (host.newuidmap_fault or ""):
            return "start the build outside the service or container that forbids it"
        fault = host.newuidmap_fault or "not installed"
        command = (
            install(host, "newuidmap")
            if "not installed" in fault
            else "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap"
        )
        return by_root(host, command)
    if not host.home_is_there:
        return by_root(host, f"mkhomedir_helper {host.user}")
    return _allow_namespaces(host, host.user_namespaces_fault or "")


@rule(
    "ENV011",
    "mount-source-missing",
    needs=(Kind.HOST,),
    prevents="FATAL:   container creation failed: mount hook function failure: mount /etc/localtime->/etc/localtime "
    "error: while mounting /etc/localtime: mount source /etc/localtime doesn't exist",
    why="apptainer.conf binds these files of the host into every container, and minimal hosts do not have them",
    fix="make the file; or, for a bind path, take it out: `--no-mount /etc/localtime`",
    source="Apptainer 1.4.5, provoked for localtime, hosts and resolv.conf; AP#2790",
    rows=(47,),
)
def mount_source_missing(facts: Facts) -> Iterator[Found]:
    """A file that Apptainer mounts into every container is not on this host, or is a link that leads nowhere."""
    host = _host(facts)
    if host.apptainer is None:
        return
    wanted = list(bind_sources(host.apptainer_config))
    if is_on(host.apptainer_config, "config resolv_conf"):
        wanted.append("/etc/resolv.conf")
    for file in dict.fromkeys(wanted):
        if file not in host.files:
            said = f"{file} is not on this host, and no container starts without it{elsewhere(facts)}"
            yield Found(said, _make_file(host, file), severity=on_this_host(facts))


def _make_file(host: HostFacts, file: str) -> str:
    if file == "/etc/localtime":
        made = by_root(host, "ln -sf /usr/share/zoneinfo/UTC /etc/localtime")
        return f"{made}, after `{install(host, 'tzdata')}` where that directory is missing"
    if file in ("/etc/resolv.conf", "/etc/hosts"):
        return by_root(host, f"touch {file}")
    return f"root: make {file}, or take its `bind path` out of apptainer.conf"


@rule(
    "ENV012",
    "no-fuse",
    needs=(Kind.HOST,),
    prevents="FATAL:   container creation failed: image driver mount failure: image driver squashfuse_ll instance "
    "exited with error: squashfuse_ll exited: fuse: device not found, try 'modprobe fuse' first",
    why="without root an image is mounted by squashfuse through /dev/fuse",
    fix="root: `modprobe fuse; chmod 666 /dev/fuse`, and install squashfuse",
    source="Apptainer 1.4.5, provoked without /dev/fuse, with mode 600, without squashfuse, without fusermount3 (which "
    "is not needed); internal/pkg/image/driver/imagedriver.go; kernel 4.18 for FUSE in user namespaces",
    rows=(25,),
)
def no_fuse(facts: Facts) -> Iterator[Found]:
    """Images cannot be mounted: no squashfuse, or no /dev/fuse for this user, and no other way."""
    host = _host(facts)
    by_kernel = host.setuid and host.apptainer_config.get("allow setuid-mount squashfs") == "yes"
    if host.uid == 0 or host.apptainer is None or by_kernel:
        return
    severity = on_this_host(facts)
    if not {"squashfuse_ll", "squashfuse"} & set(host.programs):
        yield _no_squashfuse(host, severity, elsewhere(facts))
    elif not host.fuse:
        said = f"images cannot be mounted: {host.fuse_fault or '/dev/fuse does not open'}{elsewhere(facts)}"
        yield Found(said, by_root(host, "sh -c 'modprobe fuse; chmod 666 /dev/fuse'"), severity=severity)
    elif host.fuse_mounts is False and not host.setuid:
        said = f"kernel {host.kernel} mounts no FUSE in a user namespace, and images are mounted so{elsewhere(facts)}"
        yield Found(said, "root: a kernel from 4.18 on, or the package apptainer-suid", severity=severity)


def _no_squashfuse(host: HostFacts, severity: Severity, where: str) -> Found:
    fix = by_root(host, install(host, "squashfuse"))
    if "unsquashfs" in host.programs:
        said = f"there is no squashfuse: Apptainer unpacks the whole image into TMPDIR at every start{where}"
        return Found(said, fix, severity=Severity.WARNING)
    return Found(f"images cannot be mounted: there is no squashfuse, and no unsquashfs{where}", fix, severity=severity)


@rule(
    "ENV013",
    "no-nv-libraries",
    needs=(Kind.HOST, Kind.JOB),
    prevents="WARNING: Could not find any nv files on this host!\n"
    "ValueError: Your setup doesn't support bf16/gpu. You need to assign use_cpu if you want to train the model on "
    "CPU.",
    why="--nv binds what the host's ldconfig knows of the driver; without libcuda the run sees no GPU. Apptainer says "
    "so only where there is no libGL either",
    fix="run where there is a GPU, or on the CPU: use_cpu=true; with a driver: `ldconfig`, as root",
    source="Apptainer 1.4.5, tried on a host with libGL alone (silent); nvliblist.conf; transformers 4.57.1 and 5.6.0, "
    "training_args.py",
    rows=(6,),
)
def no_nv_libraries(facts: Facts) -> Iterator[Found | NotChecked]:
    """The run starts on this host and wants a GPU, and --nv finds no driver to bind."""
    host, job = _host(facts), facts.job
    if job is None or not job.here or job.device != "gpu":
        return
    if host.nv_libraries is None:
        yield NotChecked("ldconfig or Apptainer's nvliblist.conf is not here")
    elif not any(name.startswith("libcuda.so") for name in host.nv_libraries):
        if host.driver:
            said = f"driver {host.driver} answers, but ldconfig knows no libcuda: --nv binds none"
            yield Found(said, by_root(host, "ldconfig"))
        else:
            said = "this host has no NVIDIA driver: --nv finds no libcuda to bind, and the run asks for a GPU"
            yield Found(said, "run it on a GPU node (sifkit submit), or on the CPU: use_cpu=true bf16=false")


@rule(
    "ENV016",
    "unknown-user",
    needs=(Kind.HOST,),
    prevents="FATAL:   Couldn't determine user account information: user: unknown userid 4242",
    why="Apptainer looks its user up in the user database, for the name and the home",
    fix="run as a user that `getent passwd` knows; where sssd or LDAP is down, that is the administrator's",
    source="Apptainer 1.4.5, provoked",
)
def unknown_user(facts: Facts) -> Iterator[Found]:
    """The user database does not know this process's user."""
    host = _host(facts)
    if not host.known_user:
        said = f"user id {host.uid} is in no user database: Apptainer starts nothing{elsewhere(facts)}"
        fix = f"add it (`getent passwd {host.uid}` must answer), or run as another user"
        yield Found(said, fix, severity=on_this_host(facts))
