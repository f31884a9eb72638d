"""What an image holds, written into its own file when it is built: with the real Apptainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.cli import main
from sifkit.errors import CommandFailed, Exit
from sifkit.gather.image import ask, cached_facts, hash_ahead, image_facts, parse_facts, write_into
from sifkit.hashes import sha256_of
from sifkit.progress import PlainProgress
from sifkit.run import Command
from sifkit.sif import OBJECT_NAME, read_object, read_objects
from tests.check.test_image_facts import ANSWER
from tests.integration.test_build_real import toy_project, wheelhouse

__all__ = ["toy_project", "wheelhouse"]  # fixtures

pytestmark = pytest.mark.apptainer


def never() -> Apptainer:
    raise AssertionError("the image was asked")


def test_a_built_image_tells_what_it_holds_without_a_container(
    toy_project: Path, apptainer: Apptainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--project", str(toy_project), "toy", "--json"]) == Exit.OK
    (built,) = json.loads(capsys.readouterr().out)
    image = Path(built["image"])
    assert built["sha256"] == sha256_of(image)

    progress = PlainProgress(Console(stderr=True))
    facts = image_facts(image, built["sha256"], tmp_path / "cache", never, progress)
    assert (facts.llamafactory, facts.packages["torch"], facts.torch_cuda) == ("0.9.5", "2.9.1", "12.8")
    assert (facts.python[:4], facts.glibc, facts.sha256) == ("3.13", "2.41", built["sha256"])
    assert facts.programs == {"ldconfig": "/usr/sbin/ldconfig"}
    assert not facts.python_headers
    assert (facts.environment["GREETING"], facts.environment["PYTHONNOUSERSITE"]) == ("it's $HOME", "1")
    assert facts.imports["llamafactory.train.tuner"] == ""
    assert "No module named 'llamafactory.hparams'" in facts.imports["llamafactory.hparams.parser"]
    assert facts.arguments == ()
    assert not {name for name in facts.environment if name.startswith(("HF_", "APPTAINER", "SINGULARITY", "HOME"))}


def sif(apptainer: Apptainer, *words: str, keys: Path) -> str:
    command = Command((apptainer.program, *words), env={**apptainer.privileges.run_env, "APPTAINER_KEYSDIR": str(keys)})
    result = apptainer.runner.run(command)
    return result.output + "\n".join(result.tail)


def test_an_image_with_facts_runs_and_is_signed_with_them(
    small_sif: Path, apptainer: Apptainer, tmp_path: Path
) -> None:
    image, keys = tmp_path / "small.sif", tmp_path / "keys"
    keys.mkdir(mode=0o700)
    image.write_bytes(small_sif.read_bytes())
    before = len(read_objects(image))
    ahead = hash_ahead(image)
    write_into(image, json.dumps(ANSWER))
    assert ahead.of(image) == sha256_of(image)
    assert len(read_objects(image)) == before + 1
    assert read_object(image, OBJECT_NAME) == json.dumps(ANSWER).encode().ljust(1 << 19)
    assert "JSON.Generic" in sif(apptainer, "sif", "list", str(image), keys=keys)
    assert sif(apptainer, "sif", "dump", str(before + 1), str(image), keys=keys).startswith(json.dumps(ANSWER))
    assert "small" in sif(apptainer, "inspect", "--labels", str(image), keys=keys)
    sif(apptainer, "key", "newpair", "-N", "n", "-E", "e@example.org", "-C", "", "-P", "", "-U=false", keys=keys)
    sif(apptainer, "sign", str(image), keys=keys)
    verified = sif(apptainer, "verify", str(image), keys=keys)
    assert f"{before + 1}   |1" in verified
    assert "yes" in sif(apptainer, "exec", "--cleanenv", "--no-home", str(image), "env", keys=keys)
    assert cached_facts(image, "any", tmp_path / "cache") == parse_facts(json.dumps(ANSWER), image)

    content = bytearray(image.read_bytes())
    at = content.index(b'"glibc": "2.41"')
    content[at + 10 : at + 14] = b"9.99"
    image.write_bytes(content)
    with pytest.raises(CommandFailed):
        sif(apptainer, "verify", str(image), keys=keys)


def test_an_image_without_python_says_so(small_sif: Path, apptainer: Apptainer) -> None:
    with pytest.raises(CommandFailed, match=r"small\.sif does not tell what it holds: .*python3") as error:
        ask(small_sif, apptainer)
    assert error.value.fix
