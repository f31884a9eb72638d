"""What is wrong with a host is found, with a fix that mends it; a host that is well gives nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit import apptainer
from sifkit.check.facts import Facts, HostFacts, JobFacts, Kind, Place
from sifkit.check.hosts import OLDEST_APPTAINER
from sifkit.check.rule import Finding, Severity, all_rules, apply
from tests.check.good import GIB, HOST, JOB, SITE, config, facts, found

ENV = [code for code in all_rules() if code.startswith("ENV")]
HERE = replace(JOB, here=True)
OWN = replace(JOB, ours=False, script="#!/bin/bash\nsrun apptainer exec --nv x.sif true\n", script_path=Path("job.sh"))
DRIVER: dict[str, Any] = {"driver": "570.86", "nv_libraries": ("libcuda.so", "libcuda.so.1")}


def place(name: str, path: str = "/home/mika/.cache/x", **changes: Any) -> Place:
    return replace(Place(name, Path(path), True, True, True, "ext4", 200 * GIB), **changes)


def host(*places: Place, **changes: Any) -> HostFacts:
    return replace(HOST, places=(*HOST.places, *places), **changes)


def environment(**variables: str) -> HostFacts:
    return replace(HOST, environment={**HOST.environment, **variables})


def of(code: str, **parts: Any) -> Finding:
    (finding,) = found(facts(**parts), code)
    return finding


def test_a_host_that_is_well_gives_nothing() -> None:
    everything = facts(host=host(open_files=(1024, 4096)))
    assert apply([all_rules()[code] for code in ENV], everything) == ((), ())


def test_without_facts_of_the_host_nothing_is_checked() -> None:
    findings, skipped = apply([all_rules()[code] for code in ENV], facts(host=None))
    assert findings == ()
    assert [each.code for each in skipped] == ENV
    assert all(Kind.HOST in all_rules()[code].needs for code in ENV)


# ---------------------------------------------------------------------------------------------- each rule, planted


WITHOUT_SQUASHFUSE = {"programs": {"unsquashfs": "/usr/bin/unsquashfs"}}

# code, what the host has instead, what the message says, what the fix says
PLANTED: list[tuple[str, dict[str, Any], str, str]] = [
    ("ENV001", {"apptainer": None}, "there is no apptainer on PATH", "sudo bash ci/install-apptainer.sh"),
    ("ENV001", {"apptainer": "1.1.9"}, "Apptainer 1.1.9 is older than 1.2.0", "install-unprivileged"),
    (
        "ENV001",
        {"apptainer": None, "singularity": "singularity-ce version 4.1.0"},
        "`singularity` is singularity-ce version 4.1.0, which sifkit does not use",
        "ci/install-apptainer.sh",
    ),
    (
        "ENV002",
        {"user_namespaces": False, "user_namespaces_fault": "/proc/sys/user/max_user_namespaces is 0"},
        "no user namespaces: /proc/sys/user/max_user_namespaces is 0",
        "sudo sysctl -w user.max_user_namespaces=65536",
    ),
    (
        "ENV002",
        {"user_namespaces": False, "user_namespaces_fault": "AppArmor keeps rights from it"},
        "no user namespaces: AppArmor",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        "ENV002",
        {"apptainer_config": {"allow user ns": "no"}},
        "apptainer.conf: allow user ns = no",
        "set `allow user ns = yes`",
    ),
    (
        "ENV003",
        {"subuid": False, "subuid_fault": "/etc/subuid: no line for mika"},
        "images cannot be built here: /etc/subuid: no line for mika; they can be run",
        "sudo apptainer config fakeroot --add mika",
    ),
    (
        "ENV003",
        {"newuidmap": False, "newuidmap_fault": "newuidmap is not installed", "distribution": "rocky"},
        "newuidmap is not installed",
        "sudo dnf install shadow-utils",
    ),
    (
        "ENV003",
        {"newuidmap": False, "newuidmap_fault": "newuidmap is not installed", "distribution": "debian"},
        "newuidmap is not installed",
        "sudo apt-get install uidmap",
    ),
    ("ENV003", {"home": "/home/gone", "home_is_there": False}, "the home /home/gone is not there", "mkhomedir_helper"),
    (
        "ENV011",
        {"files": HOST.files - {"/etc/localtime"}},
        "/etc/localtime is not on this host, and no container starts without it",
        "sudo ln -sf /usr/share/zoneinfo/UTC /etc/localtime",
    ),
    ("ENV011", {"files": HOST.files - {"/etc/resolv.conf"}}, "/etc/resolv.conf is not", "sudo touch /etc/resolv.conf"),
    (
        "ENV011",
        {"apptainer_config": {"bind path": "/etc/localtime\n/opt/site:/opt/site:ro"}},
        "/opt/site is not on this host",
        "take its `bind path` out of apptainer.conf",
    ),
    (
        "ENV012",
        {"fuse": False, "fuse_fault": "/dev/fuse: Permission denied"},
        "images cannot be mounted: /dev/fuse: Permission denied",
        "modprobe fuse; chmod 666 /dev/fuse",
    ),
    ("ENV012", {"fuse_mounts": False}, "kernel 6.12.0 mounts no FUSE in a user namespace", "a kernel from 4.18 on"),
    ("ENV012", {"programs": {}}, "there is no squashfuse, and no unsquashfs", "install squashfuse"),
    ("ENV012", WITHOUT_SQUASHFUSE, "unpacks the whole image into TMPDIR at every start", "install squashfuse"),
    ("ENV014", {"open_files": (256, 4096)}, "only 256 files may be open at a time", "ulimit -n 4096"),
    ("ENV014", {"open_files": (256, 512)}, "only 256 files", "limits.conf"),
    ("ENV016", {"known_user": False, "uid": 4242}, "user id 4242 is in no user database", "getent passwd 4242"),
]


@pytest.mark.parametrize(("code", "changes", "message", "fix"), PLANTED)
def test_what_the_host_lacks_is_found(code: str, changes: dict[str, Any], message: str, fix: str) -> None:
    finding = of(code, host=replace(HOST, **changes))
    assert message in finding.message
    assert fix in finding.fix


def test_every_rule_of_the_family_is_planted() -> None:
    here = Path(__file__).read_text()
    assert [code for code in ENV if f'"{code}"' not in here] == []


def test_sysctl_of_a_debian_that_has_its_own_switch() -> None:
    fault = "/proc/sys/kernel/unprivileged_userns_clone is 0"
    finding = of("ENV002", host=replace(HOST, user_namespaces=False, user_namespaces_fault=fault))
    assert "kernel.unprivileged_userns_clone=1" in finding.fix


def test_setuid_apptainer_needs_neither_user_namespaces_nor_newuidmap() -> None:
    well = replace(HOST, setuid=True, user_namespaces=False, newuidmap=False)
    assert found(facts(host=well), *ENV) == ()


def test_setuid_apptainer_mounts_by_the_kernel_only_where_the_administrator_says_so() -> None:
    without = replace(HOST, setuid=True, fuse=False)
    assert of("ENV012", host=without, job=HERE).severity is Severity.ERROR
    allowed = {"allow setuid-mount squashfs": "yes"}
    assert found(facts(host=replace(without, apptainer_config=allowed)), "ENV012") == ()


def test_root_needs_no_fuse_and_with_every_capability_no_range() -> None:
    root = replace(HOST, uid=0, user="root", fuse=False, user_namespaces=False, programs={})
    assert found(facts(host=replace(root, full_root=True, subuid=False)), *ENV) == ()
    limited = of("ENV003", host=replace(root, subuid=False, user_namespaces=True))
    assert limited.fix == "`echo root:2000000:65536 | tee -a /etc/subuid /etc/subgid`"
    assert "no user namespaces" in of("ENV003", host=root).message


def test_root_is_not_told_to_ask_the_administrator() -> None:
    command = of("ENV001", host=replace(HOST, uid=0, apptainer=None)).fix
    assert "sudo" not in command
    assert "administrator" not in command


def test_a_range_is_only_needed_by_builds() -> None:
    assert of("ENV003", host=replace(HOST, subuid=False)).severity is Severity.WARNING


def test_the_module_is_named_where_there_are_modules() -> None:
    bare = replace(HOST, apptainer=None, environment={"MODULEPATH": "/opt/modules"})
    assert of("ENV001", host=bare).fix.startswith("`module load apptainer`")


def test_a_login_node_is_not_the_node_that_runs_a_queued_job() -> None:
    bare = replace(HOST, apptainer=None)
    queued = of("ENV001", host=bare)
    assert queued.severity is Severity.WARNING
    assert "srun sifkit doctor" in queued.message
    assert of("ENV001", host=bare, job=HERE).severity is Severity.ERROR
    assert of("ENV001", host=bare, site=replace(SITE, slurm=False)).severity is Severity.ERROR


def test_mounts_that_the_configuration_turns_off_are_not_missed() -> None:
    off = {"config resolv_conf": "no", "bind path": ""}
    assert found(facts(host=replace(HOST, files=frozenset(), apptainer_config=off)), "ENV011") == ()


def test_the_oldest_apptainer_is_the_one_that_the_program_asks_for() -> None:
    assert OLDEST_APPTAINER == apptainer.OLDEST


# ---------------------------------------------------------------------------------------------- caches and places


def test_a_cache_that_cannot_be_written_is_found_and_mended_by_another() -> None:
    shut = place("HF_HOME", "/shared/hf", writable=False, locks=None, fault="Read-only file system")
    finding = of("ENV005", host=host(shut), job=HERE)
    assert finding.message == "HF_HOME=/shared/hf cannot be written: Read-only file system"
    assert finding.fix == "use directories of yours: export HF_HOME=DIRECTORY"
    assert finding.severity is Severity.ERROR
    assert found(facts(host=host(place("HF_HOME")), job=HERE), "ENV005") == ()


def test_caches_with_one_fault_are_one_finding() -> None:
    names = ("HF_HOME", "TRITON_CACHE_DIR", "sifkit")
    shut = [place(name, f"/x/{name}", writable=False, fault="Permission denied") for name in names]
    finding = of("ENV005", host=host(*shut), job=None)
    assert finding.fix.endswith("export HF_HOME=DIRECTORY SIFKIT_CACHE=DIRECTORY TRITON_CACHE_DIR=DIRECTORY")


def test_compilers_caches_are_sifkits_own_business_in_its_jobs() -> None:
    shut = place("TRITON_CACHE_DIR", writable=False, filesystem="nfs4", fault="Read-only file system")
    for job in (JOB, HERE):
        assert found(facts(host=host(shut), job=job), "ENV005", "ENV006") == ()
    assert {finding.code for finding in found(facts(host=host(shut), job=OWN))} >= {"ENV005", "ENV006"}


def test_a_directory_that_is_handed_into_the_container_must_be_there() -> None:
    finding = of("ENV005", host=environment(HF_DATASETS_CACHE="/scratch/mika/hf"))
    assert "HF_DATASETS_CACHE=/scratch/mika/hf is handed into the container" in finding.message
    assert finding.severity is Severity.WARNING
    bound = replace(SITE, binds=("/scratch:/scratch",))
    assert found(facts(host=environment(HF_DATASETS_CACHE="/scratch/mika/hf"), site=bound), "ENV005") == ()


@pytest.mark.parametrize("path", ["/home/mika/hf", "/tmp/hf", "/mnt/hf", "relative/hf", "/shared/hub/datasets"])
def test_directories_that_the_container_has_are_not_complained_of(path: str) -> None:
    known = environment(HF_HUB_CACHE=path, HF_HOME="/shared/hub")
    assert found(facts(host=known), "ENV005") == ()


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "beegfs", "ceph"])
def test_compiled_caches_on_a_network_filesystem(kind: str) -> None:
    finding = of("ENV006", host=host(place("TRITON_CACHE_DIR", "/home/mika/.triton", filesystem=kind)), job=OWN)
    assert f"is on a network filesystem ({kind})" in finding.message
    assert "export TRITON_CACHE_DIR=DIRECTORY, below /tmp" in finding.fix
    moved = host(place("TRITON_CACHE_DIR", "/tmp/mika/triton", filesystem="xfs"))
    assert found(facts(host=moved, job=OWN), "ENV006") == ()


def test_torchs_extensions_are_compiled_for_deepspeed() -> None:
    network = host(place("TORCH_EXTENSIONS_DIR", filesystem="nfs"))
    assert found(facts(host=network), "ENV006") == ()
    assert of("ENV006", host=network, config=config(deepspeed="ds.json")).severity is Severity.WARNING


def test_a_cache_that_takes_no_locks() -> None:
    lockless = place("HF_HOME", "/lustre/hf", filesystem="lustre", locks=False, fault="No locks available")
    finding = of("ENV007", host=host(lockless), job=HERE)
    assert finding.message == "HF_HOME=/lustre/hf (lustre) takes no locks: No locks available"
    assert "export HF_HOME=DIRECTORY" in finding.fix
    assert found(facts(host=host(place("HF_HOME", filesystem="lustre"))), "ENV007") == ()


def test_room_to_build_is_looked_for_in_all_candidates() -> None:
    small = place("/tmp", "/tmp", filesystem="tmpfs", free=2 * GIB)
    only = replace(HOST, places=(small,))
    finding = of("ENV008", host=only)
    assert finding.message == (
        "no room to build the default image, which takes 16 GB: /tmp: 2.1 GB free (tmpfs, memory)"
    )
    assert "export TMPDIR=DIRECTORY" in finding.fix
    assert found(facts(host=replace(HOST, places=(small, place("TMPDIR", "/local")))), "ENV008") == ()


def test_room_without_inodes_is_none() -> None:
    few = replace(HOST, places=(place("/tmp", "/tmp", inodes=5000),))
    assert "5000 inodes" in of("ENV008", host=few).message


def test_a_tmpdir_that_is_not_there() -> None:
    gone = host(place("APPTAINER_TMPDIR", "/scratch/none", exists=False))
    assert of("ENV008", host=gone).fix == "mkdir -p /scratch/none, or unset APPTAINER_TMPDIR"


def test_places_that_were_not_tried_are_not_judged() -> None:
    _, skipped = apply([all_rules()["ENV008"], all_rules()["ENV014"]], facts(host=replace(HOST, places=())))
    assert [each.reason for each in skipped] == ["no directories were tried", "the limit is not known"]


def test_an_image_on_a_network_filesystem_is_to_be_copied() -> None:
    network = replace(HOST, places=(place("image", "/nfs/images", filesystem="nfs4"), place("/tmp", "/tmp")))
    finding = of("ENV009", host=network)
    assert finding.fix == "--copy-image, or slurm: {copy_image: true} in the site file"
    assert found(facts(host=network, job=replace(JOB, copy_image=True)), "ENV009") == ()
    assert "--image /tmp/" in of("ENV009", host=network, job=HERE).fix
    assert "cp IMAGE.sif" in of("ENV009", host=network, job=OWN).fix


def test_tmpdir_of_a_job_file_of_ones_own_must_be_bound() -> None:
    scratch = environment(TMPDIR="/scratch/4711")
    finding = of("ENV010", host=scratch, job=OWN)
    assert finding.message == "TMPDIR=/scratch/4711 goes into the container, which does not have that directory"
    assert finding.file == Path("job.sh")
    for mended in (
        'apptainer exec --bind "$TMPDIR" x.sif true',
        "apptainer exec --cleanenv x.sif true",
        "apptainer exec -B /scratch x.sif true",
    ):
        assert found(facts(host=scratch, job=replace(OWN, script=mended)), "ENV010") == ()
    assert found(facts(host=scratch), "ENV010") == ()  # sifkit's jobs bind their own
    assert found(facts(host=environment(TMPDIR="/tmp/x"), job=OWN), "ENV010") == ()


# ---------------------------------------------------------------------------------------------- GPU


def test_a_run_on_this_host_wants_a_driver() -> None:
    without = replace(HOST, nv_libraries=("libGL.so.1",))
    finding = of("ENV013", host=without, job=HERE)
    assert "this host has no NVIDIA driver" in finding.message
    assert "use_cpu=true" in finding.fix
    assert found(facts(host=without, job=replace(HERE, device="cpu")), "ENV013") == ()
    assert found(facts(host=without), "ENV013") == ()  # another node runs it
    assert found(facts(host=replace(HOST, **DRIVER), job=HERE), "ENV013") == ()


def test_a_driver_that_ldconfig_does_not_know_is_not_bound() -> None:
    unknown = replace(HOST, driver="570.86", nv_libraries=())
    assert "`sudo ldconfig`" in of("ENV013", host=unknown, job=HERE).fix


def test_whether_there_are_libraries_may_not_be_known() -> None:
    _, skipped = apply([all_rules()["ENV013"]], facts(job=HERE))
    assert [each.code for each in skipped] == ["ENV013"]


# ---------------------------------------------------------------------------------------------- environment


LEAKS = ["PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "CONDA_PREFIX", "LD_LIBRARY_PATH"]
OPTIONS = ["APPTAINERENV_FOO", "SINGULARITYENV_FOO", "APPTAINER_BIND", "SINGULARITY_BINDPATH", "APPTAINER_OVERLAY"]


@pytest.mark.parametrize("name", [*LEAKS, *OPTIONS])
def test_a_job_file_of_ones_own_takes_the_shell_along(name: str) -> None:
    finding = of("ENV004", host=environment(**{name: "/x"}), job=OWN)
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith(f"{name} of this shell")
    assert finding.fix == f"unset {name}; and apptainer exec --cleanenv in the job file"
    assert found(facts(job=OWN), "ENV004") == ()


@pytest.mark.parametrize("name", [*LEAKS, *OPTIONS])
def test_for_sifkits_own_runs_it_is_a_remark(name: str) -> None:
    assert of("ENV004", host=environment(**{name: "/x"})).severity is Severity.INFO


@pytest.mark.parametrize(("name", "acts"), [("PYTHONPATH", False), ("CONDA_PREFIX", False), ("APPTAINERENV_X", True)])
def test_cleanenv_keeps_out_all_but_what_apptainer_itself_reads(name: str, acts: bool) -> None:
    clean = replace(OWN, script="apptainer exec --cleanenv x.sif true")
    assert bool(found(facts(host=environment(**{name: "/x"}), job=clean), "ENV004")) is acts


@pytest.mark.parametrize(
    "name",
    ["APPTAINER_CACHEDIR", "APPTAINER_TMPDIR", "APPTAINER_NAME", "SINGULARITY_DOCKER_PASSWORD", "HOME", "CONDA_RESULT"],
)
def test_harmless_variables_are_left_alone(name: str) -> None:
    assert found(facts(host=environment(**{name: "/x"}), job=OWN), "ENV004") == ()


def test_an_e_of_the_shell_is_no_cleanenv() -> None:
    careful = replace(OWN, script=f"#!/bin/bash -e\n#SBATCH -C gpu\nset -e\n{OWN.script}")
    assert of("ENV004", host=environment(PYTHONPATH="/x"), job=careful).severity is Severity.WARNING


@pytest.mark.parametrize("line", ["#SBATCH --export=NONE", "unset CONDA_PREFIX PYTHONPATH"])
def test_a_job_file_may_leave_it_behind(line: str) -> None:
    careful = replace(OWN, script=OWN.script.replace("\n", f"\n{line}\n", 1))
    assert found(facts(host=environment(PYTHONPATH="/x"), job=careful), "ENV004") == ()


def test_an_empty_variable_does_nothing() -> None:
    assert found(facts(host=environment(PYTHONPATH="", APPTAINER_BIND=""), job=OWN), "ENV004") == ()


def test_values_of_variables_are_not_shown() -> None:
    secret = environment(APPTAINERENV_HF_TOKEN="hf_secret")
    for job in (OWN, JOB):
        assert "hf_secret" not in repr(of("ENV004", host=secret, job=job))


def test_rules_of_the_host_need_no_config() -> None:
    nothing = Facts(config({}), host=replace(HOST, apptainer=None))
    assert [finding.code for finding in found(nothing, *ENV)] == ["ENV001"]


def job_without_script() -> JobFacts:
    return replace(JOB, ours=False)


def test_a_job_file_that_could_not_be_read_is_no_reason_to_guess() -> None:
    assert found(facts(host=environment(TMPDIR="/scratch/1"), job=job_without_script()), "ENV010") == ()
