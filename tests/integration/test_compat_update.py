"""`sifkit compat update`: from an index on this machine, and one row of each table from the real one."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from packaging.version import Version
from pypi_simple import DistributionPackage
from rich.console import Console

from sifkit.cli import main
from sifkit.compat import read_packages, read_torch, update
from sifkit.compat.tables import load_tables
from sifkit.compat.wheels import Index, WheelName
from sifkit.errors import Exit, HostError, ProblemFound, UsageError
from sifkit.progress import PlainProgress
from tests.conftest import TABLES
from tests.integration.toy_index import add_wheel, served, shared_object

PROGRESS = PlainProgress(Console(quiet=True))
LINUX = "cp312-cp312-manylinux_2_28_x86_64"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """torch 2.99.0 for CUDA 13.7 with its companions, one of them for another CUDA, and a LLaMA-Factory."""
    directory = tmp_path / "index"
    add_torch(directory, tmp_path, "13.7", "sm_90 sm_100 compute_100")
    vision = {"torchvision/version.py": "__version__ = '0.99.0+cu137'\ncuda = '13.7'\n"}
    add_wheel(directory, "torchvision==0.99.0", LINUX, ("torch==2.99.0",), files=vision)
    stable = shared_object(tmp_path / "audio", "extern int aoti_torch_x(void); int f(void) { return aoti_torch_x(); }")
    for version, cuda in (("2.98.0", "137"), ("2.98.1", "136")):
        audio = {
            "torchaudio/version.py": f"__version__ = '{version}+cu{cuda}'\n",
            "torchaudio/lib/libtorchaudio.abi3.so": stable,
        }
        add_wheel(directory, f"torchaudio=={version}", LINUX, files=audio)
    add_wheel(
        directory, "nvidia-cuda-nvcc==13.7.1", "py3-none-manylinux2014_x86_64", files={"nvidia/cu13/bin/nvcc": "x"}
    )
    code = {
        "llamafactory/extras/misc.py": MISC,
        "llamafactory/hparams/parser.py": 'check_version("vllm>=0.4.3,<=0.11.0")\n',
    }
    add_wheel(directory, "llamafactory==1.0.0", "py3-none-any", ("numpy<2", "peft<=0.18.1"), files=code)
    add_wheel(directory, "numpy==1.26.4", LINUX)
    add_wheel(directory, "numpy==2.2.0", "cp313-cp313-manylinux_2_28_x86_64")
    add_wheel(directory, "peft==0.18.1", "py3-none-any")
    libraries = dict.fromkeys(("bitsandbytes/libbitsandbytes_cuda137.so", "bitsandbytes/libbitsandbytes_cpu.so"), "x")
    tags = "py3-none-manylinux_2_24_x86_64"
    add_wheel(directory, "bitsandbytes==0.60.0", tags, ("torch<3,>=2.4",), files=libraries)
    return directory


MISC = """
def check_dependencies():
    check_version("transformers>=4.55.0,"
                  "<=5.6.0")
    check_version("peft>=0.18.0,<=0.20.0")
def elsewhere():
    check_version("modelscope>=1.14.0", mandatory=True)
"""


def add_torch(
    directory: Path, scratch: Path, cuda: str, architectures: str, version: str = "2.99.0", toolkit: str = ""
) -> None:
    abi = "_ZN3c101fENSt7__cxx11"
    source = f'const char *flags = "{architectures}"; extern void {abi}(void); void f(void) {{ {abi}(); }}'
    library = shared_object(scratch / f"torch{cuda}", source)
    files = {
        "torch/version.py": f"from typing import Optional\ncuda: Optional[str] = '{cuda}'\n",
        "torch/lib/libc10.so": library,
        "torch/lib/libtorch_python.so": library,
        "torch/lib/libc10_cuda.so": library,
    }
    requires = (
        f"cuda-toolkit[cudart]=={toolkit or cuda}.1; platform_system == 'Linux'",
        "triton~=9.9.0; sys_platform == 'linux'",
    )
    add_wheel(directory, f"torch=={version}", LINUX, requires, files=files)


def test_a_build_is_read_from_the_files_of_its_wheels(index: Path) -> None:
    with served(index) as url, Index(url) as real:
        (row,) = read_torch.torch_builds(real, None, PROGRESS)
    assert (row.version, row.cuda, row.triton, row.pythons) == ("2.99.0", "13.7", "~=9.9.0", ("3.12",))
    assert row.architectures == ("sm_90", "sm_100", "compute_100")
    assert row.cxx11_abi
    assert row.torchvision == "0.99.0"
    assert row.torchaudio == "2.98.0"  # of 13.7: the newer one was compiled for 13.6, and dies when it is imported
    assert row.nvidia == ("cuda-toolkit[cudart]==13.7.1",)
    assert row.nvcc == "cuda-toolkit[cccl,crt,nvcc,nvvm]==13.7.1"
    assert f"torch-2.99.0-{LINUX}.whl" in row.source


def test_a_wheel_that_disagrees_with_itself_is_no_row(index: Path, tmp_path: Path) -> None:
    add_torch(index, tmp_path, "13.7", "sm_90 sm_100", toolkit="13.6")
    with served(index) as url, Index(url) as real, pytest.raises(ProblemFound) as caught:
        read_torch.torch_builds(real, None, PROGRESS)
    assert "version.py says CUDA 13.7, it requires cuda-toolkit[cudart]==13.6.1" in caught.value.message


def test_a_companion_that_uses_torchs_cxx_symbols_belongs_to_no_other_torch(index: Path, tmp_path: Path) -> None:
    bound = shared_object(tmp_path / "cxx", "extern int _ZN3c10x(void); int f(void) { return _ZN3c10x(); }")
    files = {"torchaudio/version.py": "__version__ = '2.98.0+cu137'\n", "torchaudio/lib/libtorchaudio.abi3.so": bound}
    add_wheel(index, "torchaudio==2.98.0", LINUX, files=files)
    with served(index) as url, Index(url) as real:
        (row,) = read_torch.torch_builds(real, None, PROGRESS)
    assert row.torchaudio is None


def test_builds_for_other_cudas_come_from_pytorchs_own_index(index: Path, tmp_path: Path) -> None:
    other = tmp_path / "torch-index"
    add_torch(other / "cu126", tmp_path, "12.6", "sm_50 sm_90", version="2.99.0+cu126")
    with served(index) as url, served(other) as torch_url, Index(url) as real:
        others = read_torch.torch_index(f"{torch_url}/{{cuda}}", ("12.6",))
        rows = read_torch.torch_builds(real, others, PROGRESS)
    assert [(row.version, row.cuda, row.index) for row in rows] == [
        ("2.99.0", "12.6", "torch"),
        ("2.99.0", "13.7", "default"),
    ]
    with pytest.raises(UsageError, match="the site file names none"):
        read_torch.torch_index(None, ("12.6",))


def test_llamafactorys_two_lists_are_read_and_not_mixed(index: Path) -> None:
    with served(index) as url, Index(url) as real:
        (row,) = read_packages.llamafactory_releases(real, PROGRESS)
    assert row.requires == ("numpy<2", "peft<=0.18.1")
    assert row.runtime == ("transformers>=4.55.0,<=5.6.0", "peft>=0.18.0,<=0.20.0")
    assert row.optional == ("modelscope>=1.14.0", "vllm>=0.4.3,<=0.11.0")
    assert row.pythons == ("3.12",)  # numpy < 2 has a wheel for no other


def test_update_writes_the_projects_own_tables_and_the_commands_use_them(
    index: Path, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    with served(index) as url:
        site.write_text(f"python_index: {{url: {url}, ca_bundle: null}}\n")
        argv = ["compat", "update", "--project", str(project), "--site", str(site), "--json"]
        assert main([*argv, "--check"]) == Exit.PROBLEM
        assert not (project / "definitions" / "compat").exists()
        assert main(argv) == Exit.OK
        assert main([*argv, "--check"]) == Exit.OK
    said = capsys.readouterr().out
    assert json.loads(said[said.rindex("{") :]) == {"changed": [], "written": False}
    tables = load_tables(project / "definitions" / "compat")
    assert [row.version for row in tables.builds] == ["2.99.0"]
    assert [(row.name, row.cuda, row.torch) for row in tables.tied] == [("bitsandbytes", ("13.7",), "<3,>=2.4")]
    assert tables.gpus == TABLES.gpus  # kept by hand: the project has none of its own
    assert main(["compat", "show", "--project", str(project), "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["torch"][0]["cuda"] == "13.7"


def test_another_index_than_was_meant_leaves_the_tables_alone(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "portal" / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<html><body>please log in</body></html>")
    site = tmp_path / "site.yaml"
    with served(page.parent.parent) as url:
        site.write_text(f"python_index: {{url: {url}, ca_bundle: null}}\n")
        assert main(["compat", "update", "--project", str(project), "--site", str(site)]) == Exit.HOST
    assert "has no wheel of torch" in capsys.readouterr().err
    assert not (project / "definitions" / "compat").exists()


def test_rows_of_pytorchs_own_index_stay_until_they_are_read_again(index: Path) -> None:
    (row,) = [build for build in TABLES.builds if build.version == "2.7.1"]
    kept = row.model_copy(update={"cuda": "12.8", "index": "torch"})
    with served(index) as url, Index(url) as real:
        texts = update.read_all(real, None, PROGRESS, [kept])
    rows = yaml.safe_load(texts["torch.yaml"])["torch"]
    assert [(found["version"], found["cuda"]) for found in rows] == [("2.7.1", "12.8"), ("2.99.0", "13.7")]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "pairs.yaml",
            "pairs:\n- {package: a, versions: x, other: b, needs: '>1', instead: '<1', symptom: s, source: s}\n",
        ),
        (
            "cuda.yaml",
            "cuda:\n- {version: '12.8', driver: abc, toolkit_driver: '1', capabilities: ['5.0', '9.0'], source: s}\n",
        ),
        ("torch.yaml", "sets:\n- {torch: 2.9.1}\n"),
        ("torch.yaml", "torch:\n- {version: 2.9.1"),
    ],
)
def test_a_damaged_table_is_an_error_with_a_way_out(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError) as caught:
        load_tables(tmp_path)
    assert file in caught.value.message
    assert "sifkit compat update" in (caught.value.fix or "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # remotezip drops the answer unread
def test_an_index_without_ranges_is_named_with_the_way_out(index: Path) -> None:
    with served(index, ranges=False) as url, Index(url) as real, pytest.raises(HostError) as caught:
        read_torch.torch_builds(real, None, PROGRESS)
    assert "range requests" in (caught.value.fix or "")
    del caught
    gc.collect()


def test_an_index_that_is_not_there_is_named_without_its_password() -> None:
    with Index("http://user:secret@127.0.0.1:9/simple") as index, pytest.raises(HostError) as caught:
        index.files("torch")
    assert "127.0.0.1:9" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("filename", "pythons", "runs_on", "linux"),
    [
        ("torch-2.9.1-cp313-cp313-manylinux_2_28_x86_64.whl", ("3.13",), "3.13", True),
        ("torch-2.6.0-cp312-cp312-manylinux1_x86_64.whl", ("3.12",), "3.12", True),
        ("vllm-0.11.0-cp38-abi3-manylinux1_x86_64.whl", (), "3.13", True),
        ("peft-0.18.1-py3-none-any.whl", (), "3.14", True),
        ("torch-2.9.1-cp313-none-macosx_11_0_arm64.whl", (), "", False),
        ("torch-2.9.1-cp313-cp313-manylinux_2_28_aarch64.whl", ("3.13",), "3.13", False),
    ],
)
def test_wheel_names(filename: str, pythons: tuple[str, ...], runs_on: str, linux: bool) -> None:
    name = WheelName.parse(filename)
    assert name is not None
    assert (name.pythons, name.linux) == (pythons, linux)
    assert not runs_on or name.runs_on(runs_on)
    assert not name.runs_on("2.7")


class Few(Index):
    """The real index, as if it held one release of each project."""

    only: ClassVar = {
        "torch": "2.9.1",
        "torchvision": "0.24.1",
        "torchaudio": "2.9.1",
        "llamafactory": "0.9.5",
        "bitsandbytes": "0.49.2",
    }

    def wheels(self, project: str) -> dict[Version, list[DistributionPackage]]:
        found = super().wheels(project)
        only = self.only.get(project)
        return {v: files for v, files in found.items() if only in (None, str(v))}


@pytest.mark.index
def test_the_committed_rows_say_what_the_index_says() -> None:
    from sifkit.site import CA_BUNDLES

    with Few(ca_bundle=next((Path(path) for path in CA_BUNDLES if Path(path).is_file()), None)) as index:
        (build,) = read_torch.torch_builds(index, None, PROGRESS)
        (release,) = read_packages.llamafactory_releases(index, PROGRESS)
    assert build == TABLES.build("2.9.1", "12.8")
    assert release == TABLES.llamafactory("0.9.5")


def test_tables_that_are_written_can_be_read() -> None:
    text = update.as_text("torch", TABLES.builds, "everything")
    rows: list[dict[str, Any]] = yaml.safe_load(text)["torch"]
    assert [row["version"] for row in rows] == [row.version for row in TABLES.builds]
    assert dataclasses.is_dataclass(TABLES)
