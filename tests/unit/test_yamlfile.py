"""A wrong spec is answered with file, line, key, and the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit import yamlfile
from sifkit.errors import Exit, UsageError
from sifkit.model import ImageSpec, Site
from sifkit.spec import Project, load_spec
from tests.conftest import SPEC, make_spec


def read(text: str) -> ImageSpec:
    return yamlfile.parse(text, ImageSpec, "example.yaml")


def test_a_spec_is_read_whole() -> None:
    assert read(SPEC) == make_spec()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("llamafactory:", "lamafactory:"), "example.yaml:5: unknown key 'lamafactory': did you mean 'llamafactory'?"),
        (("cuda:", "cudda:"), "example.yaml:4: unknown key 'torch.cudda': did you mean 'cuda'?"),
        (("cuda:", "zzz:"), "example.yaml:4: unknown key 'torch.zzz': known here: cuda, version"),
        (('python: "3.13"\n', ""), "example.yaml:1: python is missing"),
        (('"3.13"', "3.10"), 'example.yaml:3: python: a number was read; write it in quotes: "3.10"'),
        (('"12.8"', "12.8"), 'example.yaml:4: torch.cuda: a number was read; write it in quotes: "12.8"'),
        (("[gcc, git]", "gcc"), "example.yaml:6: apt: input should be a valid tuple (found 'gcc')"),
        (("[gcc, git]", "[gcc, {}]"), "example.yaml:6: apt.1: input should be a valid string"),
        (("0.9.5", "newest"), "example.yaml:5: llamafactory.version: string should match pattern"),
        (("name: example", "name: example\nname: other"), "example.yaml:2: key 'name' stands twice (first on line 1)"),
        (("apt: [gcc, git]", "apt: [gcc"), "example.yaml:7: not YAML: "),
        (("apt: [gcc, git]", "env: {LANG: 'a\tb'}"), "example.yaml:6: env: LANG holds a control character"),
        (("apt: [gcc, git]", "env: {X: '{{ y }}'}"), "example.yaml:6: env: X holds '{{'"),
        (("apt: [gcc, git]", "apt: ['gcc; reboot']"), "example.yaml:6: apt.0: string should match pattern"),
        (("apt: [gcc, git]", "env: {PATH: /x}"), "example.yaml:6: env: PATH is the image's own"),
        (("apt: [gcc, git]", 'env: {A: "\\ud800"}'), "example.yaml"),
        (("apt: [gcc, git]", "env: !!bool maybe"), "example.yaml: not YAML"),
        (("apt: [gcc, git]", "env: !!timestamp abc"), "example.yaml: not YAML"),
        (('"3.13"', '"٣.١٣"'), "example.yaml:3: python"),
        (("base: debian-trixie", r'base: {bootstrap: scratch, copy: ["/a\n%post\nreboot"]}'), "example.yaml:2: base"),
        (("base: debian-trixie", "base: {bootstrap: docker}"), "example.yaml:2: base.from is missing"),
        (("base: debian-trixie", "base: {bootstrap: docker, form: x}"), "base.form': did you mean 'from'?"),
        (("base: debian-trixie", "base: {bootstrap: dokcer, from: x}"), "example.yaml:2: base"),
    ],
)
def test_what_is_wrong_is_named(change: tuple[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(SPEC.replace(*change))
    assert message in caught.value.message
    assert caught.value.exit is Exit.USAGE


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        read(SPEC.replace("python:", "pyhton:").replace("cuda:", "cudda:"))
    assert {"pyhton", "python", "torch.cudda", "torch.cuda"} <= set(caught.value.message.replace("'", " ").split())


@pytest.mark.parametrize(
    "text", ["- a list", "just words", "a: &a [*a, *a]", "!!python/object:os.system {}", "? [x]\n: y"]
)
def test_other_yaml_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match=r"example\.yaml"):
        read(text)


def test_exponential_aliases_end_early() -> None:
    laughs = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(9))
    with pytest.raises(UsageError, match="more than 20000 values"):
        read(laughs)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("")
    with pytest.raises(UsageError) as caught:
        yamlfile.load(tmp_path / "siet.yaml", Site)
    assert caught.value.fix == "did you mean site.yaml?"


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(b"\x7fELF\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        yamlfile.load(path, Site)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("#" * (yamlfile.MAX_BYTES + 1))
    with pytest.raises(UsageError, match="bytes are no spec"):
        yamlfile.load(path, Site)


def test_an_empty_site_file_means_the_defaults() -> None:
    assert yamlfile.parse("", Site, "site.yaml") == Site()


def test_an_unknown_image_names_the_nearest(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(Project(project), "exmaple")
    assert caught.value.fix == "did you mean example?"


def test_a_spec_must_bear_its_file_name(project: Path) -> None:
    (project / "definitions" / "other.yaml").write_text(SPEC)
    with pytest.raises(UsageError, match="name is 'example', the file says 'other'"):
        load_spec(Project(project), "other")
