"""Whatever lies where a YAML or an image is expected: a clear finding, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.gather.config import read_config
from sifkit.sif import OBJECT_NAME
from tests.check.odd import WRONG, fifo, sparse
from tests.check.planting import Ground
from tests.check.test_image_facts import sif_bytes

GOOD = "model_name_or_path: x\nstage: sft\ndo_train: true\ndataset: d\ntemplate: llama3\noutput_dir: o\n"


# ---------------------------------------------------------------------------------------------- YAML

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)

# name, what is in it, where the finding stands, words of it
UNREADABLE: list[tuple[str, bytes, int | None, str]] = [
    ("tab", b"stage: sft\n\tdo_train: true\n", 2, "'\\t'"),
    ("quote", b'do_train: true\nstage: "sft\nseed: 1\n', 2, "quoted scalar"),
    ("twice", b"stage: sft\nstage: pt\n", 2, "stands twice (first on line 1)"),
    ("bomb", BOMB.encode(), None, "aliases counted each time"),
    ("itself", b"a: &a [*a]\n", None, "aliases counted each time"),
    ("large", b"a: " + b"x" * (50 << 20), None, "bytes are no training config"),
    ("deep", b"a: " + b"[" * 10_000, None, ""),
    ("deep-whole", b"a: " + b"[" * 10_000 + b"]" * 10_000, None, "nested too deeply"),
    ("deep-block", b"".join(b" " * n + b"a:\n" for n in range(1200)), None, "nested too deeply"),
    ("nul", b"stage: sft\0\n", None, "binary"),
    ("elf", b"\x7fELF\x02\x01\x01" + bytes(100), None, "binary"),
    ("utf-16", "stage: sft\n".encode("utf-16"), None, ""),
    ("latin-1", "stage: sft\n# Größe\n".encode("latin-1"), 2, "not UTF-8"),
    ("list", b"- stage\n- sft\n", 1, "found a list"),
    ("scalar", b"stage", 1, "found plain text"),
    ("number", b"17", 1, "found plain text"),
    ("documents", b"stage: sft\n---\nstage: pt\n", 2, "document"),
    ("python", b"a: !!python/object/apply:os.system [echo]\n", None, "python/object"),
    ("python-name", b"a: !!python/name:os.system\n", None, "python/name"),
    ("tag", b"a: !mine x\n", None, "!mine"),
    ("alias", b"a: *nothing\n", 1, "undefined alias"),
    ("merge", b"<<: [1]\n", 1, "expected a mapping"),
    ("set", b"!!set {a, b}\n", None, ""),
    ("binary-tag", b"a: !!binary x\n", None, ""),
    ("int", b"a: !!int x\n", None, ""),
    ("float", b"a: !!float x\n", None, ""),
    ("bool", b"a: !!bool x\n", None, ""),
    ("time", b"a: !!timestamp 2001-99-99\n", None, ""),
    ("list-key", b"[a]: b\n", 1, "a key must be plain text"),
    ("mapping-key", b"{a: 1}: b\n", 1, "a key must be plain text"),
    ("control", b"stage: \x07sft\n", None, ""),
    ("escape", b"stage: \x1b[31msft\n", None, ""),
    ("directive", b"%YAML 9.9\n---\nstage: sft\n", None, ""),
    ("open", b"{stage: sft", None, ""),
    ("interpolation", b"a: ${a\n", None, ""),
]

# Read, and judged: no rule may stumble over what stands in them.
READABLE: dict[str, bytes] = {
    "empty": b"",
    "comments": b"# nothing\n# at all\n",
    "bom": b"\xef\xbb\xbf" + GOOD.encode(),
    "crlf": GOOD.replace("\n", "\r\n").encode(),
    "cr": GOOD.replace("\n", "\r").encode(),
    "separators": GOOD.encode() + "run_name: a\u2028b\u0085c\n".encode(),
    "end": GOOD.encode() + b"...\n",
    "number-key": GOOD.encode() + b"1: 2\n",
    "null-key": GOOD.encode() + b"null: 3\n",
    "bool-key": GOOD.encode() + b"yes: 3\n",
    "date-key": GOOD.encode() + b"2001-01-01: 3\n",
    "nan": GOOD.encode() + b"learning_rate: .nan\nnum_train_epochs: -.inf\nsave_steps: .inf\nlogging_steps: .nan\n",
    "infinite": GOOD.encode() + b"learning_rate: 1e999\nnum_train_epochs: 1e999\nsave_steps: 1e999\n",
    "huge": GOOD.encode() + b"cutoff_len: 1" + b"0" * 4000 + b"\nsave_steps: -1" + b"0" * 4000 + b"\n",
    "huger": GOOD.encode() + b"cutoff_len: 1" + b"0" * 5000 + b"\nmax_steps: 1" + b"0" * 400 + b"\n",
    "dates": GOOD.encode() + b"seed: 2001-01-01\nrun_name: 2001-12-14t21:59:43.10-05:00\n",
    "sexagesimal": GOOD.encode() + b"save_steps: 1:30\nlogging_steps: 190:20:30.15\n",
    "octal": GOOD.encode() + b"save_steps: 0o17\nlogging_steps: 017\nseed: 0x1F\nmax_steps: 0b11\ncutoff_len: 1_0\n",
    "hexadecimal": GOOD.encode() + b"seed: 0x" + b"F" * 6000 + b"\n",
    "long-key": GOOD.encode() + b"? " + b"k" * 100_000 + b"\n: 1\n",
    "long-value": GOOD.encode() + b"run_name: " + b"v" * 1_000_000 + b"\n",
    "escaped-keys": GOOD.encode() + b'"\\e[31m\\a\\u202e": 1\n"\\x00": 2\n"a\\nb": 3\n"": 4\n" ": 5\n',
    "surrogates": GOOD.encode() + b'"\\ud800": 1\nrun_name: "\\udfff"\n',
    "loops": GOOD.encode() + b"run_name: ${run_name}\nseed: ${oc.env:HOME}\ncache_dir: ${a}${b}\nmedia_dir: '???'\n",
    "anchors": GOOD.encode() + b"run_name: &a x\nseed: *a\nlora_target: [*a, *a]\n",
    "merged": b"base: &b {stage: pt, seed: 1}\n<<: *b\n" + GOOD.encode(),
    "flow": b"{model_name_or_path: x, stage: sft, do_train: true}",
    "nested": GOOD.encode() + b"deepspeed: {zero_optimization: {stage: [3]}, optimizer: 7}\nlora_target: {a: [b]}\n",
    "nul-paths": GOOD.replace("x\n", '"a\\0b"\n', 1).encode() + b'deepspeed: "\\0"\nadapter_name_or_path: "/\\0"\n',
    "odd-paths": b"model_name_or_path: /\noutput_dir: /dev/null\ndataset_dir: /proc/self/mem\ndeepspeed: /dev/zero\n"
    b"do_train: true\ndataset: ',,'\nresume_from_checkpoint: /dev/tty\n"
    b"adapter_name_or_path: ',/,'\ntokenized_path: .\n",
    "long-paths": b"model_name_or_path: " + b"/x" * 5000 + b"\noutput_dir: " + b"y" * 5000 + b"\ndataset: d\n"
    b"do_train: true\ndataset_dir: " + b"z/" * 5000 + b"\n",
    "parents": b"model_name_or_path: ../../../../../../../..\noutput_dir: ..\ndataset_dir: ../..\ndataset: d\n",
    "home": b"model_name_or_path: ~/m\noutput_dir: ~nobody/x\ndataset_dir: '~'\ndataset: '~'\n",
    "wrong-types": b"".join(
        b"%s: %s\n" % (key, value)
        for key, value in zip(
            (b"model_name_or_path stage do_train finetuning_type dataset template cutoff_len output_dir deepspeed "
             b"save_steps per_device_train_batch_size gradient_accumulation_steps bf16 report_to ddp_timeout "
             b"lora_target lora_rank quantization_bit max_samples preprocessing_num_workers").split(),
            [b"[1, {a: b}]", b"{a: 1}", b"[]", b"null", b"{x: [1]}", b"[llama3]", b"{}", b"[1]", b"[[]]", b"{a: b}",
             b"'x'", b"[0]", b"maybe", b"{a: wandb}", b"[1]", b"{a: 1}", b"'8'", b"[4]", b"{}", b"true"],
            strict=True,
        )
    ),
    "zeros": GOOD.encode() + b"cutoff_len: 0\nsave_steps: 0\nlogging_steps: 0\nper_device_train_batch_size: 0\n"
    b"gradient_accumulation_steps: 0\nmax_steps: 0\nnum_train_epochs: 0\nddp_timeout: 0\nlora_rank: 0\n"
    b"freeze_trainable_layers: 0\nsave_total_limit: 0\nmax_samples: 0\n"
    b"preprocessing_num_workers: 0\nuse_llama_pro: true\n",
    "negative": GOOD.encode() + b"cutoff_len: -1\nsave_steps: -0.5\nper_device_train_batch_size: -1\nmax_steps: -5\n"
    b"gradient_accumulation_steps: -2\nnum_train_epochs: -3\nddp_timeout: -1\nlora_rank: -8\nmax_samples: -1\n"
    b"save_total_limit: -1\npreprocessing_num_workers: -4\nlogging_steps: -10\nquantization_bit: -4\n",
}  # fmt: skip


def written(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.yaml").write_bytes(content)
    return [folder / f"{name}.yaml" for name in files]


def test_what_is_no_yaml_is_one_finding_each_and_takes_no_other_along(ground: Ground) -> None:
    paths = written(ground.folder / "yamls", {name: content for name, content, _, _ in UNREADABLE})
    found = ground.check(*paths, ground.yaml, code=Exit.PROBLEM)
    for (name, _, line, words), one in zip(UNREADABLE, found[:-1], strict=True):
        findings = [each for each in one["findings"] if not each["code"].startswith("ENV")]
        assert [each["code"] for each in findings] == ["CFG001"], (name, findings)
        assert words in findings[0]["message"], (name, findings)
        assert line in (None, findings[0]["line"]), (name, findings)
        assert findings[0]["message"].isprintable(), name
        assert len(findings[0]["message"]) < 500, name
    assert not any(each["severity"] == "error" for each in found[-1]["findings"])


def test_odd_values_are_judged_and_no_rule_stumbles(ground: Ground) -> None:
    paths = written(ground.folder / "yamls", READABLE)
    found = ground.check(*paths, code=Exit.PROBLEM)
    read = [one for one in found if "CFG001" not in {each["code"] for each in one["findings"]}]
    assert len(read) >= len(READABLE) - 8
    for name, one in zip(READABLE, found, strict=True):
        assert one["findings"], name


@pytest.mark.parametrize("format_", ["text", "github", "sarif", "junit"])
def test_whatever_stands_in_a_yaml_each_format_shows_it(ground: Ground, format_: str) -> None:
    paths = written(ground.folder / "yamls", {**{name: text for name, text, _, _ in UNREADABLE}, **READABLE})
    ground.out()
    where = ["--image", str(ground.image), "--checkout", str(ground.tree.root)]
    assert main(["check", *where, "--format", format_, *map(str, paths)]) == Exit.PROBLEM
    said = ground.out()
    said.encode()
    if format_ in ("text", "github"):
        assert "\x1b" not in said
        assert "\u202e" not in said


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 107 letters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


# what lies there, words of the finding
SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (fifo, "no regular file"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "loop": (lambda path: path.symlink_to(path.name), ""),
    "broken": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "socket": (bound_socket, ""),
    "sparse": (lambda path: sparse(path, 1 << 40), "bytes are no training config"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_not_opened(ground: Ground, kind: str) -> None:
    make, words = SPECIAL[kind]
    make(ground.folder / "odd.yaml")
    (one,) = ground.check("odd.yaml", code=Exit.PROBLEM)
    (finding,) = [each for each in one["findings"] if each["code"] == "CFG001"]
    assert words in finding["message"]
    assert finding["fix"]


def test_a_directory_is_looked_into_whatever_its_name(ground: Ground) -> None:
    (ground.folder / "x.yaml").mkdir()
    assert main(["check", "x.yaml"]) == Exit.USAGE
    for kind, (make, _) in SPECIAL.items():
        make(ground.folder / f"x.yaml/{kind}.yaml")
    (ground.folder / "x.yaml/good.yaml").write_text(GOOD)
    names = {Path(one["file"]).name for one in ground.check("x.yaml")}
    assert "good.yaml" in names


def test_names_that_are_no_text_are_shown_and_not_stumbled_over(ground: Ground) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.yaml")
    shutil.copy(ground.yaml, ground.folder / name)
    (one,) = ground.check(name)
    assert "CFG001" not in {each["code"] for each in one["findings"]}
    for format_ in ("text", "github", "sarif", "junit"):
        assert main(["check", "--image", str(ground.image), "--gpu", "V100", "--format", format_, name]) in (0, 1)
        ground.out().encode()


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    """A file that only its owner's chmod makes readable, beside a directory of that kind with a file in it."""
    file, directory = tmp_path / "shut.yaml", tmp_path / "shut"
    directory.mkdir()
    for path in (file, directory / "x.yaml"):
        path.write_text(GOOD)
    file.chmod(0)
    directory.chmod(0)
    return file


@pytest.fixture
def as_an_ordinary_user(shut: Path) -> Iterator[None]:
    """Root may read everything."""
    root = os.geteuid() == 0
    opened = [path for path in shut.parents if path.owner() == "root" and not path.stat().st_mode & 0o001]
    modes = {directory: directory.stat().st_mode for directory in opened} if root else {}
    for directory in modes:
        directory.chmod(0o755)
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)
    for directory, mode in modes.items():
        directory.chmod(mode)


@pytest.mark.usefixtures("as_an_ordinary_user")
def test_a_file_that_may_not_be_read(shut: Path) -> None:
    problem = read_config(shut).problem
    assert problem is not None
    assert (problem.message.startswith("Permission denied"), problem.fix) == (
        True,
        f"ask its owner, or: chmod u+r {shut}",
    )
    inside = read_config(shut.with_suffix("") / "x.yaml").problem
    assert inside is not None
    assert inside.message.startswith("Permission denied")


# ---------------------------------------------------------------------------------------------- images


def sif(facts: object) -> bytes:
    return sif_bytes(**{OBJECT_NAME: facts if isinstance(facts, bytes) else json.dumps(facts).encode()})


IMAGES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("hello\n"),
    "empty": lambda path: path.write_bytes(b""),
    "directory": lambda path: path.mkdir(),
    "fifo": fifo,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "truncated": lambda path: path.write_bytes(sif(b"{}")[:200]),
    "magic": lambda path: path.write_bytes(sif(b"{}")[:64] + os.urandom(4000)),
    "sparse": lambda path: sparse(path, 1 << 40),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_none_is_said(ground: Ground, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = ground.folder / "odd.sif"
    IMAGES[kind](image)
    assert main(["check", "--image", str(image), str(ground.yaml)]) in (Exit.USAGE, Exit.PROBLEM, Exit.HOST)
    said = capsys.readouterr().err
    assert "odd.sif" in said or "/dev/zero" in said
    assert "Traceback" not in said


def test_facts_in_an_image_that_are_of_a_wrong_type_are_no_facts(ground: Ground) -> None:
    """They are asked for again, of a file that no Apptainer starts: an error of one line, or they fit."""
    from sifkit.gather.image import parse_facts

    right = parse_facts(json.dumps(ground.facts), ground.image)
    for key in ground.facts.keys() - {"format"}:
        for wrong in WRONG:
            facts = parse_facts(json.dumps({**ground.facts, key: wrong}), ground.image)
            if facts in (None, right) or type(wrong) is type(ground.facts[key]):
                continue  # of those that nobody reads, any will do
            assert key in ("torch_cuda", "python_headers"), (key, wrong)


@pytest.mark.parametrize(
    "facts",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'{"format": 1}', b'{"format": 2}', b'{"a":' * 100_000],
)
def test_damaged_facts_are_asked_of_the_image_itself(
    ground: Ground, facts: bytes, fake_apptainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground.image.write_bytes(sif(facts))
    assert main(["check", "--image", str(ground.image), str(ground.yaml)]) not in (Exit.OK, Exit.PROBLEM)
    assert "image.sif" in capsys.readouterr().err


@pytest.fixture
def fake_apptainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Apptainer that cannot start the file."""
    path = tmp_path / "bin" / "apptainer"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\ncase $1 in --version) echo apptainer version 1.4.5 ;;\n"
        "*) echo 'FATAL:   image format not recognized' >&2; exit 255 ;; esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path
