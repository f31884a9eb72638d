"""Images signed and checked by the real Apptainer, with keys that are thrown away; what it reads of our objects."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.cli import main
from sifkit.errors import CommandFailed, Exit, ProblemFound, UsageError
from sifkit.hashes import sha256_of
from sifkit.model import Site, SiteSignatures
from sifkit.plan import Recipe
from sifkit.progress import PlainProgress
from sifkit.provenance import inspect_metadata_of, objects_of
from sifkit.run import Command, Runner
from sifkit.sif import read_objects
from sifkit.sifwrite import NewObject, append_object, partition, write_sif
from sifkit.sign import (
    SigningKey,
    State,
    check,
    is_signed_by,
    judge,
    keyring_of,
    secret_keys,
    sign,
    sign_published,
    signatures,
    signing_key,
)
from sifkit.spec import Project
from sifkit.stamp import require_signature
from sifkit.store import Manifest, Store
from sifkit.tools import Tools
from tests.conftest import SPEC, make_image

pytestmark = pytest.mark.apptainer

ANY, REQUIRED = SiteSignatures(), SiteSignatures(required=True)
PROGRESS = PlainProgress(Console(stderr=True))


@dataclass(frozen=True)
class Keyring:
    """A directory of keys, as Apptainer is told of it."""

    env: dict[str, str]
    fingerprint: str


def make_keyring(directory: Path, apptainer: Apptainer, *passphrases: str) -> Keyring:
    """A keyring of new keys, short so that they are made fast."""
    directory.mkdir(mode=0o700)
    env = {"APPTAINER_KEYSDIR": str(directory)}
    for passphrase in passphrases:
        words = ("key", "newpair", "-N", "test", "-E", "test@example.org", "-C", "", "-P", passphrase)
        apptainer.runner.run(Command((apptainer.program, *words, "-U=false", "-b", "2048"), env=env))
    return Keyring(env, secret_keys(apptainer, env)[0].fingerprint)


@pytest.fixture(scope="module")
def ours(apptainer: Apptainer, tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return make_keyring(tmp_path_factory.mktemp("ours") / "keys", apptainer, "")


@pytest.fixture(scope="module")
def theirs(apptainer: Apptainer, tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return make_keyring(tmp_path_factory.mktemp("theirs") / "keys", apptainer, "")


@pytest.fixture(scope="module")
def both(ours: Keyring, theirs: Keyring, tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """Our keys, with their public key beside them: a keyring is its keys one behind the other."""
    directory = tmp_path_factory.mktemp("both") / "keys"
    shutil.copytree(ours.env["APPTAINER_KEYSDIR"], directory)
    theirs_public = Path(theirs.env["APPTAINER_KEYSDIR"], "pgp-public").read_bytes()
    with (directory / "pgp-public").open("ab") as file:
        file.write(theirs_public)
    return Keyring({"APPTAINER_KEYSDIR": str(directory)}, ours.fingerprint)


@pytest.fixture
def image(small_sif: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(small_sif, tmp_path / "small.sif"))


def signed(image: Path, by: Keyring, apptainer: Apptainer) -> Path:
    sign(image, SigningKey(by.fingerprint, by.env), apptainer)
    return image


def flip(image: Path, kind: int) -> None:
    """Change one bit in the middle of the first object of that kind."""
    found = next(one for one in read_objects(image) if one.kind == kind)
    with image.open("r+b") as file:
        file.seek(found.offset + found.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# ---------------------------------------------------------------------------------------------- keys


def test_the_only_key_is_taken_and_has_signed_before_it_is_needed(apptainer: Apptainer, ours: Keyring) -> None:
    assert signing_key(None, apptainer, ours.env, ANY) == SigningKey(ours.fingerprint, ours.env)


def test_an_empty_keyring_is_said_with_the_command_that_makes_a_key(apptainer: Apptainer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    with pytest.raises(UsageError, match="no key to sign with") as error:
        signing_key(None, apptainer, {"APPTAINER_KEYSDIR": str(tmp_path / "empty")}, ANY)
    assert "apptainer key newpair" in (error.value.fix or "")


def test_the_key_is_named_by_fingerprint_among_several(apptainer: Apptainer, tmp_path: Path, image: Path) -> None:
    several = make_keyring(tmp_path / "keys", apptainer, "", "")
    second = secret_keys(apptainer, several.env)[1].fingerprint
    with pytest.raises(UsageError, match="several keys") as error:
        signing_key(None, apptainer, several.env, ANY)
    assert second in (error.value.fix or "")
    sign(image, signing_key(f"0x{second.lower()}", apptainer, several.env, ANY), apptainer)
    assert [one.fingerprint for one in signatures(image)] == [second]


def test_a_passphrase_is_asked_for_and_works(apptainer: Apptainer, tmp_path: Path, image: Path) -> None:
    locked = make_keyring(tmp_path / "keys", apptainer, "it's $secret")
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "it's $secret"

    key = signing_key(None, apptainer, locked.env, ANY, answer)
    sign(image, key, apptainer)
    assert judge(image, apptainer, locked.env).state is State.VALID
    assert locked.fingerprint in asked[0]
    assert "secret" not in repr(key)


def test_a_passphrase_is_neither_shown_nor_left(
    apptainer: Apptainer, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = make_keyring(tmp_path / "keys", apptainer, "swordfish")
    monkeypatch.setattr("sifkit.sign._memory", lambda: str(tmp_path))
    shown: list[str] = []
    talkative = Apptainer(Runner(os.environ, shown.append), apptainer.program, apptainer.privileges)
    sign(image, SigningKey(locked.fingerprint, locked.env, "swordfish"), talkative)
    assert any("sign --keyidx" in line for line in shown)
    assert "swordfish" not in "\n".join(shown)
    assert not list(tmp_path.glob("sifkit-sign-*"))


def test_without_a_terminal_a_passphrase_is_an_error_with_a_way_out(apptainer: Apptainer, tmp_path: Path) -> None:
    locked = make_keyring(tmp_path / "keys", apptainer, "secret")
    with pytest.raises(UsageError, match="has a passphrase, and there is no terminal") as error:
        signing_key(None, apptainer, locked.env, ANY)
    assert "run this in a terminal" in (error.value.fix or "")
    with pytest.raises(UsageError, match="not the passphrase"):
        signing_key(None, apptainer, locked.env, ANY, lambda _: "wrong")
    with pytest.raises(UsageError, match="not the passphrase"):
        signing_key(None, apptainer, locked.env, ANY, lambda _: "")


# ---------------------------------------------------------------------------------------------- checking


def test_a_signed_image_passes_and_tells_who_signed_it(apptainer: Apptainer, image: Path, ours: Keyring) -> None:
    assert signatures(image) == ()
    signed(image, ours, apptainer)
    policy = SiteSignatures(required=True, keys=(ours.fingerprint.lower(),))
    found = check(image, policy, apptainer, ours.env)
    assert (found.state, found.fingerprints) == (State.VALID, (ours.fingerprint,))
    assert [one.group for one in found.signatures] == [1]
    assert is_signed_by(image, ours.fingerprint)
    runs = (apptainer.program, "exec", "--cleanenv", "--no-home", str(image), "env")
    assert "SMALL=yes" in apptainer.runner.run(Command(runs, env=apptainer.privileges.run_env)).output


def test_an_unsigned_image_is_refused_where_signatures_are_required(
    apptainer: Apptainer, image: Path, ours: Keyring
) -> None:
    assert check(image, ANY, apptainer, ours.env).state is State.UNSIGNED
    with pytest.raises(ProblemFound, match="is not signed, and the site file asks for a signature") as error:
        check(image, REQUIRED, apptainer, ours.env)
    assert error.value.fix == "sign it: python build.py --sign small"


def test_another_key_than_the_sites_is_refused(
    apptainer: Apptainer, image: Path, ours: Keyring, theirs: Keyring, both: Keyring
) -> None:
    signed(image, theirs, apptainer)
    assert check(image, REQUIRED, apptainer, both.env).fingerprints == (theirs.fingerprint,)
    for keyring in (ours, both):  # whether the other key is known here or not
        with pytest.raises(ProblemFound, match=f"{theirs.fingerprint}, which is not a key that the site file lets"):
            check(image, SiteSignatures(keys=(ours.fingerprint,)), apptainer, keyring.env)


def test_a_key_that_the_keyring_does_not_know_is_refused_where_signatures_are_required(
    apptainer: Apptainer, image: Path, ours: Keyring, theirs: Keyring
) -> None:
    signed(image, theirs, apptainer)
    assert check(image, ANY, apptainer, ours.env).state is State.STRANGER
    for policy in (REQUIRED, SiteSignatures(keys=(theirs.fingerprint,))):
        with pytest.raises(ProblemFound, match="whose public key is not in the keyring here") as error:
            check(image, policy, apptainer, ours.env)
        assert "apptainer key import FILE" in (error.value.fix or "")


def test_a_second_signature_makes_an_image_one_of_the_sites(
    apptainer: Apptainer, image: Path, theirs: Keyring, both: Keyring
) -> None:
    signed(signed(image, theirs, apptainer), both, apptainer)
    found = check(image, SiteSignatures(keys=(both.fingerprint,)), apptainer, both.env)
    assert found.fingerprints == (theirs.fingerprint, both.fingerprint)


def add_without_group(image: Path, apptainer: Apptainer) -> None:
    file = image.with_name("added")
    file.write_text("added\n")
    words = ("sif", "add", "--datatype", "7", "--groupid", "0", str(image), str(file))
    apptainer.runner.run(Command((apptainer.program, *words)))


def forge(image: Path, apptainer: Apptainer) -> None:
    """Another fingerprint in the descriptor of the signature."""
    fingerprint = bytes.fromhex(signatures(image)[0].fingerprint or "")
    content = image.read_bytes()
    image.write_bytes(content.replace(fingerprint, b"\x01" * 20, 1))


TAMPERINGS: dict[str, tuple[Callable[[Path, Apptainer], None], str]] = {
    "file system": (lambda image, _: flip(image, 0x4004), "it was changed since then"),
    "definition": (lambda image, _: flip(image, 0x4001), "it was changed since then"),
    "facts": (lambda image, _: flip(image, 0x4006), "it was changed since then"),
    "signature": (lambda image, _: flip(image, 0x4005), "it was changed since then|cannot be checked"),
    "forged": (forge, "it was changed since then"),
    "added": (
        lambda image, _: append_object(image, NewObject(0x4007, "added", b"added"), time=0),
        "parts of it are not signed",
    ),
    "added elsewhere": (add_without_group, "parts of it are not signed"),
}


@pytest.mark.parametrize("where", TAMPERINGS)
def test_a_tampered_image_is_refused_whatever_the_site_asks(
    where: str, apptainer: Apptainer, image: Path, ours: Keyring
) -> None:
    signed(image, ours, apptainer)
    tamper, words = TAMPERINGS[where]
    tamper(image, apptainer)
    for policy in (REQUIRED, ANY):
        with pytest.raises(ProblemFound, match=words) as error:
            check(image, policy, apptainer, ours.env)
        assert error.value.fix


def test_facts_that_are_appended_before_signing_are_signed(apptainer: Apptainer, image: Path, ours: Keyring) -> None:
    append_object(image, NewObject(0x4006, "sifkit-facts.json", b'{"format": 1}'), time=315532800)
    signed(image, ours, apptainer)
    assert check(image, REQUIRED, apptainer, ours.env).state is State.VALID
    content = image.read_bytes()
    image.write_bytes(content.replace(b'{"format": 1}', b'{"format": 2}'))
    with pytest.raises(ProblemFound, match="it was changed since then"):
        check(image, REQUIRED, apptainer, ours.env)


def test_verify_asks_what_the_site_asks(
    apptainer: Apptainer, image: Path, ours: Keyring, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tools(policy: SiteSignatures) -> Tools:
        environ = {**os.environ, **ours.env}
        return Tools(Project(tmp_path), Site(signatures=policy), apptainer.runner, PROGRESS, environ)

    require_signature(image, tools(ANY))
    with pytest.raises(ProblemFound, match="is not signed"):
        require_signature(image, tools(REQUIRED))
    signed(image, ours, apptainer)
    require_signature(image, tools(REQUIRED))
    flip(image, 0x4004)
    with pytest.raises(ProblemFound, match="it was changed since then"):
        require_signature(image, tools(ANY))


def test_verify_refuses_an_unsigned_file_before_anything_of_it_runs(
    image: Path, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("signatures: {required: true}\n")
    argv = ["build", str(image), "--verify", "--device", "cpu", "--project", str(project), "--site", str(site)]
    assert main(argv) == Exit.PROBLEM
    said = " ".join(capsys.readouterr().err.split())
    assert "is not signed, and the site file asks for a signature fix: sign it: python build.py --sign small" in said


# ---------------------------------------------------------------------------------------------- published images


def published(image: Path, tmp_path: Path) -> Store:
    store = Store(tmp_path / "images")
    store.directory.mkdir()
    final = Path(shutil.copy(image, store.sif("small")))
    status, recipe = final.stat(), Recipe("a", "b", "c", "d")
    manifest = Manifest("small", sha256_of(final), status.st_size, status.st_mtime_ns, "2026", recipe, "x", {}, {})
    store.manifest_path("small").write_text(manifest.to_json())
    return store


def test_an_image_that_is_current_is_signed_and_stays_current(
    apptainer: Apptainer, image: Path, ours: Keyring, tmp_path: Path
) -> None:
    store, key = published(image, tmp_path), SigningKey(ours.fingerprint, ours.env)
    before = store.sif("small").stat()
    assert sign_published("small", key, apptainer, store, PROGRESS)
    manifest = store.manifest("small")
    assert manifest is not None
    assert manifest.sha256 == sha256_of(store.sif("small"))
    assert store.on_disk("small") == (manifest.size, manifest.mtime_ns)
    assert manifest.recipe == Recipe("a", "b", "c", "d")
    after = store.sif("small").stat()
    assert (after.st_ino != before.st_ino, after.st_mode) == (True, before.st_mode)
    assert judge(store.sif("small"), apptainer, ours.env).state is State.VALID
    assert not sign_published("small", key, apptainer, store, PROGRESS)
    assert sorted(path.name for path in store.directory.iterdir()) == [".small.lock", "small.json", "small.sif"]


def test_an_image_that_is_not_what_was_built_is_not_signed(
    apptainer: Apptainer, image: Path, ours: Keyring, tmp_path: Path
) -> None:
    store, key = published(image, tmp_path), SigningKey(ours.fingerprint, ours.env)
    final = store.sif("small")
    status = final.stat()
    flip(final, 0x4004)
    os.utime(final, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ProblemFound, match="is not what was built: its sha256 differs"):
        sign_published("small", key, apptainer, store, PROGRESS)
    assert signatures(final) == ()
    assert sorted(path.name for path in store.directory.iterdir()) == [".small.lock", "small.json", "small.sif"]


def test_a_signature_that_fails_leaves_the_image_as_it_was(apptainer: Apptainer, image: Path, tmp_path: Path) -> None:
    store, locked = published(image, tmp_path), make_keyring(tmp_path / "keys", apptainer, "secret")
    before = sha256_of(store.sif("small"))
    with pytest.raises(CommandFailed):
        sign_published("small", SigningKey(locked.fingerprint, locked.env), apptainer, store, PROGRESS)
    assert sha256_of(store.sif("small")) == before
    assert sorted(path.name for path in store.directory.iterdir()) == [".small.lock", "small.json", "small.sif"]


# ---------------------------------------------------------------------------------------------- plain Apptainer


def test_plain_apptainer_reads_what_an_image_carries(
    apptainer: Apptainer, small_sif: Path, ours: Keyring, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, example, target = partition(small_sif), make_image(), tmp_path / "example.sif"
    metadata = inspect_metadata_of(source)
    packages = f"libc6 2.41-12 amd64 {'b' * 64}\n"
    objects = objects_of(example, definition="Bootstrap: scratch\n", debian_packages=packages, spec_text=SPEC)
    write_sif(target, [source], [*objects, metadata], time=315532800)

    def said(*words: str) -> str:
        return apptainer.runner.run(Command((apptainer.program, *words, str(target)))).output

    kinds = [line.split("|")[-1].split()[0] for line in said("sif", "list").splitlines() if line[:1].isdigit()]
    assert kinds == ["Def.FILE", *["Generic/Raw"] * 3, *["JSON.Generic"] * 2, "FS"]
    assert said("sif", "dump", "1") == "Bootstrap: scratch\n"
    assert said("sif", "dump", "2") == SPEC
    assert said("sif", "dump", "3") == example.lock.text
    assert said("sif", "dump", "4") == packages
    assert json.loads(said("sif", "dump", "5"))["bomFormat"] == "CycloneDX"
    assert "spec.yaml" in said("sif", "info", "2")
    small = apptainer.runner.output(apptainer.program, "inspect", "--all", str(small_sif))
    assert json.loads(said("inspect", "--all")) == json.loads(small)
    runs = (apptainer.program, "exec", "--cleanenv", "--no-home", str(target), "env")
    assert "SMALL=yes" in apptainer.runner.run(Command(runs, env=apptainer.privileges.run_env)).output

    signed(target, ours, apptainer)
    assert main(["inspect", str(target), "--json", "--project", str(Path(__file__).parents[2])]) == Exit.OK
    answer = json.loads(capsys.readouterr().out)
    assert answer["carries"] == ["spec", "lock", "definition", "packages", "sbom"]
    assert answer["signature"]["keys"] == [ours.fingerprint]
    assert answer["lock_digest"] == example.lock.digest()


def test_the_keyring_is_where_apptainers_own_variables_say() -> None:
    environ = {"APPTAINER_KEYSDIR": "/keys", "APPTAINER_BIND": "/x", "HOME": "/root", "APPTAINER_CONFIGDIR": ""}
    assert keyring_of(environ) == {"APPTAINER_KEYSDIR": "/keys"}
