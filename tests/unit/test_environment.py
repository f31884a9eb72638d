"""Environments of the build host: read, judged; locks of what they lack; images made of them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sifkit import deffile, environment, inherit, lock
from sifkit.compat.check import check
from sifkit.compat.findings import Severity, Target
from sifkit.environment import Environment
from sifkit.errors import CommandFailed, HostError, UsageError
from sifkit.model import ImageSpec, Inherited, Lock, LockedPackage, Scratch, Site
from sifkit.plan import recipe_of
from sifkit.resolve import resolution
from sifkit.run import Runner
from tests.conftest import TABLES, make_environment_image, make_environment_spec, wanted

WHEEL = LockedPackage("llamafactory", "0.9.5", "llamafactory-0.9.5-py3-none-any.whl", 482_716, "a" * 64)
FOUND = Environment(
    path="/opt/torch/.venv",
    python="3.12",
    packages=(Inherited("pip", "24.0"), Inherited("torch", "2.11.0+cu130"), Inherited("transformers", "5.17.0")),
    torch_cuda="13.0",
    outside=(),
)


def changed(**changes: object) -> Environment:
    return dataclasses.replace(FOUND, **changes)  # type: ignore[arg-type]


def make_lock(*inherited: Inherited, packages: tuple[LockedPackage, ...] = (WHEEL,)) -> Lock:
    spec = make_environment_spec()
    return lock.parse_lock(lock.render_lock(spec, wanted(spec), list(packages), inherited), "node.lock")


# ------------------------------------------------------------------ the lock's text


def test_what_is_inherited_is_read_back_and_counts_among_the_versions() -> None:
    read = make_lock(*FOUND.packages)
    assert (read.packages, read.inherited) == ((WHEEL,), FOUND.packages)
    assert read.versions() == {
        "llamafactory": "0.9.5",
        "pip": "24.0",
        "torch": "2.11.0+cu130",
        "transformers": "5.17.0",
    }
    assert read.version_of("torch") == "2.11.0+cu130"
    assert read.text.startswith(
        "# node: 1 packages, 0.5 MB to install, 3 inherited; Python 3.12, as /opt/torch/.venv\n"
    )


def test_an_environment_that_lacks_nothing_is_locked_too() -> None:
    assert make_lock(*FOUND.packages, packages=()).packages == ()


TORCH = "# inherited: torch==2.11.0+cu130\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TORCH, ""),
        (TORCH, TORCH * 2),
        (TORCH, TORCH + "# inherited: scipy==1.0\n"),
        (TORCH, TORCH + "# a remark\n"),
        (TORCH, TORCH.replace("\n", " \n")),
        (", 3 inherited", ""),
        ("3 inherited", "4 inherited"),
        ("1 packages", "2 packages"),
    ],
)
def test_a_lock_whose_inherited_lines_were_edited_is_refused(old: str, new: str) -> None:
    text = make_lock(*FOUND.packages).text
    assert old in text
    with pytest.raises(UsageError, match="not a lock as sifkit wrote it"):
        lock.parse_lock(text.replace(old, new), "node.lock")


def test_another_environment_makes_a_lock_stale(tmp_path: Path) -> None:
    path = tmp_path / "node.lock"
    path.write_text(make_lock(*FOUND.packages).text)
    assert lock.state(wanted(make_environment_spec()), path) == "current"
    assert lock.state(wanted(make_environment_spec(environment="/opt/other")), path) == "stale"


# ------------------------------------------------------------------ what is asked of pip


def test_an_environment_is_asked_for_neither_uv_nor_source_archives() -> None:
    found = wanted(make_environment_spec())
    assert found.requirements == ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "llamafactory==0.9.5")
    assert (found.environment, found.sdists, found.torch_backend) == ("/opt/torch/.venv", (), None)
    with pytest.raises(UsageError, match="only wheels") as caught:
        wanted(make_environment_spec(sdists=("jieba",)))
    assert "pip wheel jieba" in (caught.value.fix or "")


def test_a_base_of_the_site_file_may_have_an_environment() -> None:
    base = {"bootstrap": "scratch", "environment": "/opt/torch/.venv"}
    site = Site.model_validate({"bases": {"node": base}})
    assert resolution(make_environment_spec(base="node"), TABLES, site).environment == "/opt/torch/.venv"


@pytest.mark.parametrize("path", ["/tmp/venv", "/home/somebody/venv", "/root/.venv", "/var/tmp/x/venv"])
def test_an_environment_that_would_be_hidden_when_the_image_runs_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is mounted over the image's"):
        wanted(make_environment_spec(environment=path))
    assert wanted(make_environment_spec(environment="/homes/venv")).environment == "/homes/venv"


@pytest.mark.parametrize(
    ("index", "environment"),
    [
        ({"url": "http://u:w@i.ex:81/"}, {"PIP_INDEX_URL": "http://u:w@i.ex:81/", "PIP_TRUSTED_HOST": "i.ex:81"}),
        ({"url": "https://index.example/simple"}, {"PIP_INDEX_URL": "https://index.example/simple"}),
        ({"extra_urls": ("https://a.ex", "https://b.ex")}, {"PIP_EXTRA_INDEX_URL": "https://a.ex https://b.ex"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_without_a_wheelhouse_the_sites_index_is_asked_and_stands_in_no_command_line(
    index: dict[str, object], environment: dict[str, str]
) -> None:
    site = Site.model_validate({"python_index": index})
    argv = " ".join(inherit.pip_command(FOUND, site, Path("work/in"), Path("report")))
    assert argv.startswith("/opt/torch/.venv/bin/python -I -m pip install --dry-run --report report ")
    assert ":all: --constraint" in argv
    assert "--no-index" not in argv
    assert inherit.pip_environment(site) == environment


def test_a_wheelhouse_turns_the_index_and_personal_settings_off(tmp_path: Path) -> None:
    site = Site.model_validate({"python_index": {"wheelhouse": str(tmp_path), "url": "https://index.example"}})
    argv = " ".join(inherit.pip_command(FOUND, site, Path("in"), Path("report")))
    assert f"--isolated --no-index --find-links {tmp_path} " in argv
    assert "index.example" not in argv
    absent = Site.model_validate({"python_index": {"wheelhouse": str(tmp_path / "absent")}})
    with pytest.raises(UsageError, match="is not a directory"):
        inherit.pip_command(FOUND, absent, Path("in"), Path("report"))


def report(url: str, **archive: object) -> dict[str, object]:
    metadata = {"name": "Torch_Data", "version": "0.11.0"}
    return {"install": [{"metadata": metadata, "download_info": {"url": url, "archive_info": archive}}]}


def test_pips_report_becomes_hashed_entries(tmp_path: Path) -> None:
    wheel = tmp_path / "torch_data-0.11.0+a b-py3-none-any.whl"
    wheel.write_bytes(b"12345")
    url = f"file://{tmp_path}/torch_data-0.11.0%2Ba%20b-py3-none-any.whl"
    expected = [LockedPackage("torch-data", "0.11.0", wheel.name, 5, "b" * 64)]
    assert inherit.missing_packages(report(url, hashes={"sha256": "b" * 64})) == expected
    assert inherit.missing_packages(report(url, hash="sha256=" + "b" * 64)) == expected
    (of_index,) = inherit.missing_packages(report("https://i.example/x-1.whl", hashes={"sha256": "b" * 64}))
    assert (of_index.file, of_index.size) == ("x-1.whl", 0)
    with pytest.raises(UsageError, match="no sha256"):
        inherit.missing_packages(report("https://i.example/x-1.whl", hash="md5=1"))


ABSENT = """\
Looking in links: /wheels
ERROR: Could not find a version that satisfies the requirement {0} (from versions: none)
ERROR: No matching distribution found for {0}"""
IMPOSSIBLE = """\
ERROR: Cannot install llamafactory==0.9.5 and transformers==5.7.0 because these package versions conflict.

The conflict is caused by:
    The user requested transformers==5.7.0
    llamafactory 0.9.5 depends on transformers<=5.6.0

To fix this you could try to:
1. loosen the range of package versions you've specified
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/x"""


def test_a_wheel_that_is_missing_is_named_with_where_to_put_it() -> None:
    error = inherit.refusal(make_environment_spec(), FOUND, ABSENT.format("fire"), 1, Path("/wheels"))
    assert isinstance(error, UsageError)
    assert "No matching distribution found for fire" in error.message
    assert error.fix == "put a wheel of fire for Python 3.12 into /wheels"


def test_another_torch_is_answered_with_the_one_that_is_there() -> None:
    spec = make_environment_spec(torch={"version": "2.9.1", "cuda": "12.8"})
    error = inherit.refusal(spec, FOUND, ABSENT.format("torch==2.9.1"), 1, Path("/wheels"))
    advice = '/opt/torch/.venv has torch 2.11.0+cu130: write torch: {version: 2.11.0, cuda: "13.0"}'
    assert (error.fix or "").splitlines()[0] == advice


def test_a_conflict_is_told_with_its_causes_and_the_keys_that_take_part() -> None:
    spec = make_environment_spec(packages=("transformers==5.7.0",))
    error = inherit.refusal(spec, FOUND, IMPOSSIBLE, 1, Path("/wheels"))
    assert isinstance(error, UsageError)
    assert "llamafactory 0.9.5 depends on transformers<=5.6.0" in error.message
    assert "loosen" not in error.message
    assert error.fix == "change one of: llamafactory.version (now 0.9.5); packages: transformers==5.7.0"


def test_a_pip_that_fails_otherwise_is_quoted() -> None:
    error = inherit.refusal(make_environment_spec(), FOUND, "no such option: --report", 2, None)
    assert isinstance(error, CommandFailed)
    assert "no such option: --report" in error.message


# ------------------------------------------------------------------ judging


@pytest.mark.parametrize(
    ("found", "error", "message", "fix"),
    [
        (changed(python="3.11"), UsageError, "has Python 3.11", 'write python: "3.11"'),
        (changed(outside=("/usr/local/bin/python3.12",)), UsageError, "does not copy", "/usr/local/bin/python3.12"),
        (changed(hidden=("/home/me/.pyenv",)), UsageError, "/home/me/.pyenv, which the host's", "not in a home"),
        (changed(packages=()), HostError, "has no pip", "/opt/torch/.venv/bin/python -m ensurepip"),
        (changed(packages=(Inherited("pip", "22.1.2"),)), HostError, "pip 22.1.2", "install --upgrade pip"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(
    found: Environment, error: type[Exception], message: str, fix: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        environment.require_usable(make_environment_spec(), found)
    assert fix in caught.value.fix  # type: ignore[attr-defined]


def test_an_environment_that_fits_is_taken() -> None:
    environment.require_usable(make_environment_spec(), FOUND)
    environment.require_torch(make_environment_spec(), make_lock(*FOUND.packages), FOUND)


def test_the_cuda_of_torch_is_compared_whether_it_is_there_or_carried() -> None:
    spec = make_environment_spec(torch={"version": "2.11.0", "cuda": "12.8"})
    with pytest.raises(UsageError, match=r"for CUDA 12\.8, the environment /opt/torch/\.venv has") as caught:
        environment.require_torch(spec, make_lock(*FOUND.packages), FOUND)
    assert 'write torch: {version: 2.11.0, cuda: "13.0"}' in (caught.value.fix or "")
    with pytest.raises(UsageError, match="without CUDA"):
        environment.require_torch(spec, make_lock(*FOUND.packages), changed(torch_cuda=None))
    carried = LockedPackage("torch", "2.11.0+cu126", "torch-2.11.0+cu126.whl", 1, "0" * 64)
    with pytest.raises(UsageError, match=r"the wheels bring 2\.11\.0\+cu126 for CUDA 12\.6"):
        environment.require_torch(spec, make_lock(packages=(carried,)), FOUND)


def test_what_changed_in_an_environment_makes_its_lock_stale() -> None:
    replaced = LockedPackage("transformers", "5.6.0", "x.whl", 1, "0" * 64)
    before = make_lock(*FOUND.packages[:2], packages=(WHEEL, replaced))
    environment.require_unchanged(before, FOUND, Path("definitions/node.lock"))
    now = changed(packages=(Inherited("torch", "2.12.0"), Inherited("transformers", "9"), Inherited("vllm", "1")))
    with pytest.raises(UsageError, match=r"is stale: the environment /opt/torch/\.venv changed") as caught:
        environment.require_unchanged(before, now, Path("definitions/node.lock"))
    assert caught.value.message.endswith("pip 24.0 → gone, torch 2.11.0+cu130 → 2.12.0, vllm not there → 1")
    assert caught.value.fix == "run: sifkit lock node"


# ------------------------------------------------------------------ reading


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real environment, without pip, with torch's version.py and metadata of two packages in it."""
    root = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (packages,) = root.glob("lib/python3*/site-packages")
    for name, version in (("Torch", "2.11.0+cu130"), ("typing_Extensions", "4.1")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch").mkdir()
    (packages / "torch" / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n"
    )
    return root


def scratch(path: Path, *copy: str) -> Scratch:
    return Scratch.model_validate({"bootstrap": "scratch", "copy": copy, "environment": str(path)})


def test_an_environments_own_python_says_what_is_in_it(venv: Path, runner: Runner) -> None:
    found = environment.read_environment(scratch(venv, "/usr", sys.base_prefix), runner)
    assert found.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert found.packages == (Inherited("torch", "2.11.0+cu130"), Inherited("typing-extensions", "4.1"))
    assert (found.torch_cuda, found.outside) == ("13.0", ())


def test_an_interpreter_outside_of_what_is_copied_is_found(venv: Path, runner: Runner) -> None:
    found = environment.read_environment(scratch(venv, "/etc/passwd"), runner)
    real = os.path.realpath(venv / "bin" / "python")
    assert any(real == place or real.startswith(f"{place}/") for place in found.outside)


def test_a_link_on_the_way_to_the_interpreter_must_be_copied_too(tmp_path: Path) -> None:
    for folder in ("venv/bin", "between", "usr/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "usr/bin/python3").touch()
    (tmp_path / "between/python3").symlink_to("../usr/bin/python3")
    (tmp_path / "venv/bin/python").symlink_to(tmp_path / "between/python3")
    answer = json.dumps({"python": "3.12", "base_prefix": "/usr", "path": [], "packages": {}, "torch_cuda": None})
    base = scratch(tmp_path / "venv", str(tmp_path / "usr"))
    found = environment.parse_environment(base, f"noise of a sitecustomize\n{answer}\n")
    assert found.outside == (str(tmp_path / "between/python3"),)


def test_a_python_in_a_home_directory_is_found_hidden() -> None:
    path = ["/home/me/.pyenv/lib/python3.12", "/usr/lib/python3/dist-packages"]
    answer: dict[str, object] = {
        "python": "3.12",
        "base_prefix": "/home/me/.pyenv",
        "path": path,
        "packages": {},
        "torch_cuda": None,
    }
    base = Scratch.model_validate({"bootstrap": "scratch", "copy": ("/home", "/usr"), "environment": "/opt/absent"})
    found = environment.parse_environment(base, json.dumps(answer))
    assert (found.hidden, found.outside) == (("/home/me/.pyenv",), ())


def test_an_environment_that_is_not_there_is_said(tmp_path: Path, runner: Runner) -> None:
    with pytest.raises(HostError, match="is not on this host"):
        environment.read_environment(scratch(tmp_path / "absent"), runner)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match="is no Python environment"):
        environment.read_environment(scratch(tmp_path / "empty"), runner)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UsageError, match="is a link") as caught:
        environment.read_environment(scratch(tmp_path / "link"), runner)
    assert str(tmp_path / "empty") in (caught.value.fix or "")


def test_an_interpreter_that_does_not_run_is_quoted(tmp_path: Path, runner: Runner) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho cannot open shared object file >&2; exit 127\n")
    python.chmod(0o755)
    with pytest.raises(HostError, match="cannot open shared object file"):
        environment.read_environment(scratch(tmp_path / "venv"), runner)


@pytest.mark.parametrize("answer", ["hello", "[]", "{}", "5", ""])
def test_an_interpreter_that_answers_something_else_is_quoted(tmp_path: Path, answer: str) -> None:
    with pytest.raises(CommandFailed, match="answered") as caught:
        environment.parse_environment(scratch(tmp_path / "venv"), answer)
    assert caught.value.fix


# ------------------------------------------------------------------ tables, plan, definition


def findings(spec: ImageSpec, *inherited: Inherited) -> dict[str, Severity]:
    return {found.rule: found.severity for found in check(spec, Target(), TABLES, make_lock(*inherited))}


def test_a_set_that_fits_has_no_findings_and_foreign_packages_make_none() -> None:
    own = (*FOUND.packages[:2], Inherited("torchvision", "0.26.0+cu130"), Inherited("triton", "3.6.0"))
    foreign = (
        Inherited("vllm", "0.6.0"),
        Inherited("flash-attn", "2.8.3"),
        Inherited("bitsandbytes", "0.38.0"),
        Inherited("deepspeed", "0.5.0"),
        Inherited("python-apt", "2.7.7ubuntu3~dirty"),
    )
    assert findings(make_environment_spec(), *own) == {}
    assert findings(make_environment_spec(), *own, *foreign) == {}


def test_what_the_image_uses_is_judged_although_it_is_inherited() -> None:
    torch = Inherited("torch", "2.11.0+cu130")
    assert "torch-set" in findings(make_environment_spec(), torch, Inherited("torchaudio", "2.9.1"))
    assert "llamafactory-range" in findings(make_environment_spec(), torch, Inherited("transformers", "5.17.0"))
    wants = make_environment_spec(packages=("vllm",))
    assert "tied-torch" in findings(wants, torch, Inherited("vllm", "0.11.0"))


@pytest.mark.parametrize(
    ("version", "refused"),
    [("2.11.0+cu130", False), ("2.11.0+nv26.1", False), ("2.11.0+cu126", True), ("2.11.0+cpu", True)],
)
def test_local_versions_of_torch_are_understood(version: str, refused: bool) -> None:
    assert ("torch-twice" in findings(make_environment_spec(), Inherited("torch", version))) is refused


def test_such_an_image_is_one_definition_and_its_recipe_follows_it() -> None:
    image = make_environment_image()
    text = deffile.render(image, sifkit_version="1")
    assert "cp -a --parents /opt/torch/.venv ." in text
    assert "ln -s /opt/torch/.venv /opt/venv" in text
    assert "uv" not in text.partition("%post")[2].partition("%environment")[0].split()
    other = make_environment_image(make_environment_spec(copy=("/usr",)))
    assert recipe_of(image).definition != recipe_of(other).definition


def test_an_environment_that_is_at_the_images_own_place_needs_no_link() -> None:
    text = deffile.render(make_environment_image(make_environment_spec(environment="/opt/venv")), sifkit_version="1")
    assert "cp -a --parents /opt/venv ." in text
    assert "ln -s /opt/venv" not in text
