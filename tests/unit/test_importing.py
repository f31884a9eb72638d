"""`sifkit import`: what is read, what becomes of it, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit import cli
from sifkit.compat.tables import load_tables
from sifkit.errors import UsageError
from sifkit.importing.convert import Imported, Options, convert
from sifkit.importing.definition import is_definition, read_definition
from sifkit.importing.dockerfile import read_dockerfile
from sifkit.importing.facts import known_image
from sifkit.importing.shell import Simple, decided, expand, split
from sifkit.importing.write import write
from sifkit.model import DockerBase, ImageSpec, LocalImage
from sifkit.reference import Reference
from sifkit.yamlfile import parse

ROOT = Path(__file__).parents[2]
TABLES = load_tables(ROOT / "definitions" / "compat")


def take(text: str, tmp_path: Path, *, keep_base: bool = False, python: str = "", **arguments: str) -> Imported:
    """A Dockerfile or a definition, converted."""
    options = Options("x", tmp_path, python, keep_base)
    if is_definition(text):
        recipe = read_definition(str(tmp_path / "x.def"), text, tmp_path, arguments)
    else:
        recipe = read_dockerfile(tmp_path / "Dockerfile", text, tmp_path, arguments)
    return convert(recipe, TABLES, options)


def fates(imported: Imported, fate: str) -> list[tuple[int, str]]:
    return [(item.line, item.what) for item in imported.items if item.fate == fate]


APT = ("gcc", "libc6-dev", "python3-dev", "git")  # of every image whose spec names none
PINS = "RUN pip install torch==2.9.1 llamafactory==0.9.5\n"


# ---------------------------------------------------------------------------------------------- shells


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b && c 'd e'; f", [("a", "b"), ("c", "d e"), ("f",)]),
        ("a \\\n  && b \\\n  c", [("a",), ("b", "c")]),
        ("# nothing\na # not this\nb", [("a",), ("b",)]),
        ("a \\\n  # between\n  && b", [("a",), ("b",)]),
        ("a || true\nb", [("a",), ("b",)]),
        ("a; a || b && c; d", [("a",), (), ("d",)]),
        ("a | b\nc", [(), ("c",)]),
        ("a > f; b >/dev/null 2>&1", [(), ("b",)]),
        ("a $(b && c) d\ne", [(), ("e",)]),
        ("a 'x && y' \"p; q\"", [("a", "x && y", "p; q")]),
        ("a $V ${V}b ${U} '$'", [("a", "1", "1b", "${U}", "$")]),
        ("a 'lone", [()]),
        ("", []),
    ],
)
def test_commands_are_split_as_a_shell_does(text: str, words: list[tuple[str, ...]]) -> None:
    assert [one.words for one in split(text, 1, {"V": "1"})] == words


@pytest.mark.parametrize(
    "rest",
    [
        "if x; then\n  y\nfi\nz",
        "for i in 1 2; do\n  y\ndone",
        "{ a; b; } > f",
        "( a; b )",
        "cat <<EOF > f\na && b\nEOF\nc",
    ],
)
def test_what_is_compound_stays_whole_to_the_end(rest: str) -> None:
    found = split(f"a\n{rest}", 5, {})
    assert found == [Simple(5, "a", ("a",)), Simple(6, rest, tail=True)]


def test_each_command_knows_its_line() -> None:
    assert [(one.line, one.text) for one in split("a &&\\\n b && \\\n c\nd", 10, {})] == [
        (10, "a"), (11, "b"), (12, "c"), (13, "d"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('if [ "$A" = "1" ]; then x; fi', (True, "x")),
        ('if [[ "${A}" != "1" ]]; then \\\n x && y; \\\n fi', (False, "x && y")),
        ('if [ "$B" = "1" ]; then x; fi', None),
        ('if [ "$A" = "1" ]; then x; else y; fi', None),
        ('if [ -f "$A" ]; then x; fi', None),
    ],
)
def test_a_condition_of_known_values_is_decided(text: str, expected: tuple[bool, str] | None) -> None:
    assert decided(text, {"A": "1"}) == expected


def test_variables_are_replaced_as_docker_does() -> None:
    assert expand("$A ${B:-2} ${C-3} $D ${A}x", {"A": "1", "B": ""}) == "1 2 3 $D 1x"


# ---------------------------------------------------------------------------------------------- bases


@pytest.mark.parametrize(
    ("name", "torch", "cuda", "python", "base"),
    [
        ("pytorch/pytorch:2.6.0-cuda12.4-cudnn9-devel", "2.6.0", "12.4", "", ""),
        ("hiyouga/pytorch:th2.6.0-cu124-flashattn2.7.4-cxx11abi0-devel", "2.6.0", "12.4", "", ""),
        ("nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04", "", "12.8", "", ""),
        ("nvcr.io/nvidia/pytorch:24.05-py3", "", "12.4", "", ""),
        ("nvcr.io/nvidia/pytorch:19.01-py3", "", "", "", ""),
        ("python:3.12-slim-bookworm", "", "", "3.12", ""),
        ("debian:bookworm-slim", "", "", "", "debian-bookworm"),
        ("ubuntu:24.04", "", "", "", "ubuntu-noble"),
        ("ubuntu:22.04", "", "", "", ""),
    ],
)
def test_names_of_images_tell_pins(name: str, torch: str, cuda: str, python: str, base: str) -> None:
    found = known_image(Reference.parse(name))
    assert found
    assert (found.torch, found.cuda, found.python, found.base) == (torch, cuda, python, base)


def test_an_image_of_ones_own_stays_the_base_and_needs_its_python(tmp_path: Path) -> None:
    text = f"FROM registry.example.org/team/base:7\n{PINS}"
    with pytest.raises(UsageError, match="which Python it has is not known") as caught:
        take(text, tmp_path)
    assert "--python 3.12" in str(caught.value.fix)
    spec = take(text, tmp_path, python="3.12").spec
    assert spec.base == DockerBase.model_validate({"bootstrap": "docker", "from": "registry.example.org/team/base:7"})
    assert spec.python == "3.12"


def test_a_base_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    spec = take(f"FROM nvidia/cuda:12.8.1-devel-ubuntu24.04\n{PINS}", tmp_path, keep_base=True, python="3.12").spec
    assert isinstance(spec.base, DockerBase)


def test_a_python_that_no_base_has_is_changed_and_said(tmp_path: Path) -> None:
    imported = take(f"FROM python:3.10\n{PINS}", tmp_path)
    assert imported.spec.python == "3.13"
    assert (1, "Python 3.10") in fates(imported, "changed")


def test_pins_of_a_replaced_base_give_way_with_the_reason(tmp_path: Path) -> None:
    text = "FROM hiyouga/pytorch:th2.6.0-cu124-devel\nRUN pip install llamafactory[deepspeed]==0.9.5\n"
    imported = take(text, tmp_path)
    assert imported.problem == ""
    changed = {item.what: item.where for item in imported.items if item.fate == "changed"}
    why = changed["cuda 12.4 of hiyouga/pytorch:th2.6.0-cu124-devel"]
    assert "deepspeed needs nvcc, and no wheel brings that of CUDA 12.4" in why


def test_pins_that_contradict_are_kept_as_said_with_the_reason(tmp_path: Path) -> None:
    text = "FROM debian:13\nRUN pip install torch==2.9.1+cu128 llamafactory[deepspeed]==0.9.5\n"
    imported = take(text, tmp_path)
    assert (imported.spec.torch.version, imported.spec.torch.cuda) == ("2.9.1", "12.8")
    assert "deepspeed needs nvcc" in imported.problem


# ---------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("pip install torch==2.8.0 -i https://download.pytorch.org/whl/cu128", {"torch": "2.8.0", "cuda": "12.8"}),
        ("pip3 install 'torch==2.6.0+cu124'", {"torch": "2.6.0", "cuda": "12.4"}),
        ("python3 -m pip install -U torch==2.7.1", {"torch": "2.7.1", "cuda": "12.6"}),
        ("uv pip install --system torch==2.10.0 --torch-backend=cu128", {"torch": "2.10.0", "cuda": "12.8"}),
        ("conda install -y pytorch==2.5.1 pytorch-cuda=12.4 -c pytorch -c nvidia", {"torch": "2.5.1", "cuda": "12.4"}),
        ("/opt/conda/bin/conda run -n x pip install torch==2.6.0", {"torch": "2.6.0"}),
        ("pip install 'llamafactory[metrics]==0.9.4'", {"llamafactory": "0.9.4", "extras": ("metrics",)}),
        ("pip install git+https://github.com/hiyouga/LLaMA-Factory.git@v0.9.3", {"llamafactory": "0.9.3"}),
        ("pip install nltk jieba rouge-chinese", {"extras": ("metrics",), "packages": ()}),
        ("pip install bitsandbytes", {"extras": ("bitsandbytes",), "packages": ()}),
        ("pip install 'deepspeed>=0.16' wandb", {"extras": ("deepspeed",), "packages": ("deepspeed>=0.16", "wandb")}),
        ("apt-get install -y -o X=y vim=2:9.1 python3-pip", {"apt": (*APT, "vim=2:9.1")}),
        ("sudo apt install python3.11-venv", {"python": "3.11"}),
        ("ln -sf /usr/bin/python3.11 /usr/bin/python", {"python": "3.11"}),
        ("conda create -n train python=3.12 -y", {"python": "3.12"}),
    ],
)  # fmt: skip
def test_commands_become_pins(command: str, expected: dict[str, object], tmp_path: Path) -> None:
    spec = take(f"FROM ubuntu:22.04\nRUN {command}\n", tmp_path).spec
    found = {
        "torch": spec.torch.version, "cuda": spec.torch.cuda, "python": spec.python, "extras": spec.extras,
        "llamafactory": spec.llamafactory.version, "packages": spec.packages, "apt": spec.apt,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert spec.sections == {}


@pytest.mark.parametrize(
    "command",
    [
        "pip install https://example.org/flash_attn-2.8-cp312-cp312-linux_x86_64.whl",
        "pip install git+https://github.com/example/tool.git",
        "pip install -r missing.txt",
        "pip install ./own",
        "pip install --target /opt/x wandb",
        "make -C /opt/x",
        "echo x > /etc/x",
    ],
)
def test_what_no_lock_can_hold_is_kept_as_it_is(command: str, tmp_path: Path) -> None:
    imported = take(f"FROM debian:13\n{PINS}RUN {command}\n", tmp_path)
    assert imported.spec.sections == {"post": command}
    assert (3, command) in fates(imported, "kept")


def test_what_is_kept_runs_where_it_ran_with_what_it_used(tmp_path: Path) -> None:
    text = f"FROM debian:13\nARG WHAT=a\n{PINS}WORKDIR /app\nRUN cd sub && apt-get update && ./build ${{WHAT}}\n"
    imported = take(text, tmp_path, WHAT="b c")
    post = "(\nmkdir -p /app\ncd /app\nWHAT='b c'\ncd sub\n./build ${WHAT}\n)"
    assert imported.spec.sections == {"post": post}


def test_every_instruction_has_a_fate(tmp_path: Path) -> None:
    text = (
        f"FROM debian:13\n{PINS}EXPOSE 80\nVOLUME /data\nUSER me\nSTOPSIGNAL 9\nHEALTHCHECK NONE\nLABEL a=b\n"
        'MAINTAINER me\nENV A=1 http_proxy=x PIP_NO_CACHE_DIR=1\nWORKDIR /w\nSHELL ["/bin/bash", "-c"]\nCMD ["bash"]\n'
    )
    imported = take(text, tmp_path)
    assert {line for line, _ in fates(imported, "left")} == {3, 4, 5, 6, 7, 11}
    assert {line for line, _ in fates(imported, "kept")} == {8, 9}
    assert imported.spec.env == {"A": "1"}
    assert imported.spec.sections == {"labels": "a b\nmaintainer me"}


def test_of_a_directory_the_contents_are_copied_as_docker_does(tmp_path: Path) -> None:
    (tmp_path / "own" / "d").mkdir(parents=True)
    (tmp_path / ".dockerignore").write_text("secret\n")
    imported = take(f"FROM debian:13\n{PINS}WORKDIR /w\nCOPY own/d missing /app/\nCOPY own/d e\n", tmp_path)
    assert imported.spec.sections == {"files": "own/d/. /app/\nmissing /app/\nown/d/. /w/e"}
    assert (4, "missing is not there") in fates(imported, "changed")
    assert (4, ".dockerignore") in fates(imported, "left")


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "message", "fix"),
    [
        ("COPY --from=build /a /b", r"2: COPY --from=build /a /b: there are no stages", "do in the last stage"),
        ("ONBUILD RUN x", r"2: ONBUILD RUN", "write it into those"),
        ("ADD a.tar.gz /x", r"2: ADD a\.tar\.gz: Docker unpacks it", "unpack it before"),
        ("ADD https://github.com/a/b.git /x", r"2: ADD .*: a repository", "git clone"),
        ("RUN --mount=type=secret,id=t x", r"2: RUN --mount of type secret", "must not hold secrets"),
        ("RUN --mount=type=bind,target=/x y", r"2: RUN --mount of type bind", "COPY what it needs"),
        ("RUN uv sync --frozen", r"2: uv sync", "uv export"),
        ('SHELL ["pwsh", "-c"]', r"2: SHELL pwsh", "POSIX shell"),
        ("RUN pip install torch --index-url https://download.pytorch.org/whl/rocm6.2", r"2: torch from", "cu128"),
        ("RUN pip install torch -i https://download.pytorch.org/whl/nightly/cu128", r"2: .*gone in weeks", "release"),
        ("RUN conda env create -f no.yml", r"2: no\.yml is not beside", "put it there"),
        ("RUN echo '{{x}}' > /f", r"2: Apptainer takes", "into a file"),
        ("COPY <<E /f\n%post\nE", r"2: a line that begins a section", "COPY it"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_with_line_and_fix(
    line: str, message: str, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"Dockerfile:{message}") as caught:
        take(f"FROM debian:13\n{line}\n{PINS}", tmp_path)
    assert fix in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM $BASE\n", r"1: FROM \$BASE: BASE has no default"),
        ("FROM scratch\n", r"1: FROM scratch"),
        ("FROM --platform=linux/arm64 debian:13\n", r"1: FROM --platform=linux/arm64"),
    ],
)
def test_a_base_that_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"Dockerfile:{message}"):
        take(text, tmp_path)


def test_all_lines_are_said_at_once_in_order(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        take("FROM debian:13\nONBUILD RUN x\nCOPY --from=a /b /c\n", tmp_path)
    rows = [row.partition("Dockerfile:")[2][:2] for row in caught.value.message.split("\n") if "Dockerfile:" in row]
    assert rows == ["2:", "3:"]


@pytest.mark.parametrize(
    "text", ["FROM\n", "FROM a\nCOPY x\n", "FROM a\n\\\n", "", "# nothing\n", "RUN x\n", "FROM a\nNONSENSE x\n", "{}\n"]
)
def test_what_is_no_dockerfile_is_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        take(text, tmp_path)


def test_a_default_of_an_argument_is_taken_and_another_given(tmp_path: Path) -> None:
    text = "ARG TAG=12.8.1\nFROM nvidia/cuda:${TAG}-devel-ubuntu24.04\nRUN pip install llamafactory==0.9.5\n"
    assert take(text, tmp_path).spec.torch.cuda == "12.8"
    assert take(text, tmp_path, TAG="13.0.0").spec.torch.cuda == "13.0"


# ---------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Bootstrap: yum\nOSVersion: 9", "1: Bootstrap: yum"),
        ("Bootstrap: library\nFrom: team/image:1", "1: Bootstrap: library.*\n  fix: pull it"),
        ("Bootstrap: docker\nFrom: {{ BASE }}", r"1: \{\{ BASE \}\} has no default"),
        ("Bootstrap: docker\nFrom: debian:12\n%files from build\n  a b", "3: %files from build"),
        ("Bootstrap: docker\nFrom: debian:12\n%nonsense\n  a b", "3: %nonsense"),
    ],
)
def test_a_definition_that_is_not_for_us_is_refused(header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"x\.def:{message}"):
        take(f"{header}\n", tmp_path)


def test_an_image_file_stays_the_base(tmp_path: Path) -> None:
    text = "bootstrap: localimage\nfrom: /shared/Base.sif\n%post\n pip install torch==2.9.1 llamafactory==0.9.5\n"
    spec = take(text, tmp_path, python="3.13").spec
    assert spec.base == LocalImage.model_validate({"bootstrap": "localimage", "from": "/shared/Base.sif"})


def test_of_an_environment_only_what_is_literal_becomes_env(tmp_path: Path) -> None:
    text = (
        "Bootstrap: docker\nFrom: debian:13\n%environment\n  export A=1 B='x y'\n  C=3\n  export C\n"
        "  export D=$HOME/d\n  if true; then\n    export E=1\n  fi\n"
    )
    spec = take(text, tmp_path).spec
    assert spec.env == {"A": "1", "B": "x y", "C": "3"}
    assert spec.sections == {"environment": 'export D="$HOME/d"\nif true; then\n    export E=1\n  fi'}


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "definitions").mkdir()
    (tmp_path / "Dockerfile").write_text(f"FROM debian:13\n{PINS}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_spec_is_written_and_reads_back(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "Dockerfile", "-o", "definitions/mine.yaml"]) == 0
    text = (project / "definitions/mine.yaml").read_text()
    spec = parse(text, ImageSpec, "mine.yaml")
    assert (spec.name, spec.torch.version, spec.base) == ("mine", "2.9.1", "debian-trixie")
    assert "next: sifkit lock mine" in capsys.readouterr().err
    assert cli.main(["import", "Dockerfile", "-o", "definitions/mine.yaml"]) == 2
    assert (project / "definitions/mine.yaml").read_text() == text


def test_without_output_the_spec_goes_to_standard_output(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "Dockerfile", "--name", "other"]) == 0
    assert parse(capsys.readouterr().out, ImageSpec, "x").name == "other"
    assert cli.main(["import", "Dockerfile", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["problem"] == ""
    assert {"line": 2, "what": "torch==2.9.1", "fate": "pin", "where": "torch.version: 2.9.1"} in answer["items"]


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-file"], ["."], ["binary"], ["Dockerfile", "-o", "x.txt"], ["Dockerfile", "--build-arg", "A"],
        ["Dockerfile", "--name", "A B"], ["image.sif"],
    ],
)  # fmt: skip
def test_wrong_words_are_said(words: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "binary").write_bytes(b"\xff\xfe\0")
    assert cli.main(["import", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- odd texts


@pytest.mark.parametrize(
    "value", ["a: b", "# c", "'q'", '"', "\\", "é ü", "yes", "0.10", "~", " lead", "trail ", "- x", "{a}", "@x"]
)
def test_odd_values_survive_the_file(value: str, tmp_path: Path) -> None:
    shown = json.dumps(value, ensure_ascii=False)
    imported = take(f"FROM debian:13\n{PINS}ENV A={shown}\nRUN cat <<'E' > /f\n {value}\nE\n", tmp_path)
    assert parse(write(imported), ImageSpec, "x.yaml") == imported.spec
