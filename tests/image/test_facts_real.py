"""The facts of the real default image: right, the same as ever, and all that can be had of one that is broken."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.check.facts import ImageFacts
from sifkit.errors import CommandFailed
from sifkit.gather.image import ask, parse_facts, require_parser
from tests.check.real import real_facts

pytestmark = pytest.mark.image

PACKAGES = "/opt/venv/lib/python3.13/site-packages"
PARSER, TUNER = "llamafactory.hparams.parser", "llamafactory.train.tuner"

ASK_TORCH = "import json, torch; print(json.dumps([torch.version.cuda, torch._C._cuda_getArchFlags().split()]))"


def facts_of(image: Path, apptainer: Apptainer, binds: tuple[Bind, ...] = ()) -> ImageFacts:
    facts = parse_facts(ask(image, apptainer, binds), image)
    assert facts is not None
    return facts


def planted(tmp_path: Path, package: str, text: str) -> Bind:
    """A module of the image that holds this text instead."""
    path = tmp_path / f"{package.replace('/', '-')}.py"
    path.write_text(text)
    return Bind(path, f"{PACKAGES}/{package}")


def test_the_facts_kept_for_tests_are_those_of_the_image(default_sif: Path, apptainer: Apptainer) -> None:
    """Refresh tests/check/data when this fails; without help texts there."""
    started = time.monotonic()
    facts = facts_of(default_sif, apptainer)
    assert time.monotonic() - started < 90
    kept = real_facts("0.9.5")
    plain = tuple(replace(argument, help="") for argument in facts.arguments)
    assert replace(facts, path=kept.path, arguments=plain) == kept
    assert sum(not argument.help for argument in facts.arguments) < len(facts.arguments) / 4


def test_torch_says_the_same(default_sif: Path, apptainer: Apptainer) -> None:
    command = Exec(default_sif, ("python3", "-c", ASK_TORCH)).command(apptainer)
    said = json.loads(apptainer.runner.run(command).output.splitlines()[-1])
    kept = real_facts("0.9.5")
    assert [kept.torch_cuda, list(kept.torch_architectures)] == said


def test_a_module_that_kills_its_interpreter_is_an_answer(
    default_sif: Path, apptainer: Apptainer, tmp_path: Path
) -> None:
    """LLaMA-Factory's data package imports torchaudio, its parser does not: arguments are told, templates are not."""
    bind = planted(tmp_path, "torchaudio/__init__.py", "import os\nprint('so long', flush=True)\nos.abort()\n")
    facts = facts_of(default_sif, apptainer, (bind,))
    died = {module: said for module, said in facts.imports.items() if said}
    assert set(died) == {TUNER, "torchaudio"}
    assert all(said.endswith("so long\nended by signal 6") for said in died.values())
    assert len(facts.arguments) == len(real_facts("0.9.5").arguments)
    assert facts.templates == frozenset()


def test_without_the_parser_all_the_rest_is_answered(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    line = "OSError: libcudart.so.13: cannot open shared object file: No such file or directory"
    text = 'raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")\n'
    facts = facts_of(default_sif, apptainer, (planted(tmp_path, "transformers/__init__.py", text),))
    assert facts.imports[PARSER].splitlines()[-1] == line
    assert facts.imports[TUNER].splitlines()[-1] == line
    assert (facts.arguments, facts.templates) == ((), frozenset())
    kept = real_facts("0.9.5")
    assert (facts.packages, facts.torch_cuda, facts.programs) == (kept.packages, kept.torch_cuda, kept.programs)
    with pytest.raises(CommandFailed, match=r"does not tell its arguments: OSError: libcudart\.so\.13"):
        require_parser(facts)


def test_a_library_that_is_taken_away_is_missed(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    facts = facts_of(default_sif, apptainer, (planted(tmp_path, "nvidia/cusparselt/lib/libcusparseLt.so.0", ""),))
    assert "torch/lib/libtorch_cuda.so needs libcusparseLt.so.0" in facts.unresolved
    assert "libcusparseLt.so.0" in facts.imports["torchaudio"].splitlines()[-1]


def test_a_libcuda_of_the_images_own_is_seen(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    """Bound to where the loader looks; in LD_LIBRARY_PATH it stands before the host's."""
    assert real_facts("0.9.5").cuda_compat == ()
    (tmp_path / "libcuda.so.1").write_text("")
    facts = facts_of(default_sif, apptainer, (Bind(tmp_path, "/usr/local/lib"),))
    assert facts.cuda_compat == ("/usr/local/lib",)
