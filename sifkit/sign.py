"""Signatures in image files, made and checked by Apptainer with the keys of its own keyring.

A signature covers an object group; everything that sifkit puts into an image stands in group 1. Which key made one is
read from the file. What a signature is worth only `apptainer verify` tells [all of it tried with 1.4.5].
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sifkit.apptainer import Apptainer
from sifkit.errors import CommandFailed, ProblemFound, SifkitError, UsageError
from sifkit.hashes import sha256_of
from sifkit.model import SiteSignatures
from sifkit.progress import Progress
from sifkit.run import Command, failure
from sifkit.sif import SIGNATURE, Descriptor, NotSif, opened, read_table
from sifkit.store import Store, exclusive
from sifkit.workshop import say_waiting

_GROUP = 0xF0000000  # set in the group of an object, and in the link of a signature that is a group's
_NEW_KEY = "apptainer key newpair"

# What Apptainer's FATAL line holds when a whole signature is not that of this image.
_CHANGED = ("integrity compromised", "invalid signature", "fingerprint in descriptor", "object descriptor")
_ADDED = ("object not signed", "not associated with object group", "signature not found")
_STRANGER = "signature made by unknown entity"
_PASSPHRASE = "private key checksum failure"


@dataclass(frozen=True)
class Signature:
    """A signature in an image file, as the file tells. `fingerprint`: None for a key that is not of a keyring."""

    fingerprint: str | None
    group: int | None  # that it covers; None: a single object


@dataclass(frozen=True)
class SecretKey:
    """A private key of this user's keyring."""

    index: int  # as `apptainer sign --keyidx` takes it
    owner: str
    fingerprint: str


@dataclass(frozen=True)
class SigningKey:
    """A key that has signed something already, so that it will sign an image after a long build."""

    fingerprint: str
    keyring: Mapping[str, str]  # Apptainer's variables that say where it is
    passphrase: str | None = field(default=None, repr=False)


class State(Enum):
    """What the signatures of an image are worth."""

    UNSIGNED = "not signed"
    VALID = "signed"
    STRANGER = "that cannot be checked: the public key is not in the keyring here"
    CHANGED = "it was changed since then"
    ADDED = "parts of it are not signed"
    UNREADABLE = "the signature cannot be checked"


@dataclass(frozen=True)
class Verdict:
    """The answer about one image, with the keys that signed it and what Apptainer said."""

    state: State
    signatures: tuple[Signature, ...]
    said: str = ""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the keys, each once."""
        return tuple(dict.fromkeys(one.fingerprint for one in self.signatures if one.fingerprint))

    @property
    def broken(self) -> bool:
        """The file is not what was signed, or cannot be shown to be."""
        return self.state in (State.CHANGED, State.ADDED, State.UNREADABLE)


Ask = Callable[[str], str]  # the text of a question to the passphrase, from a person at a terminal


def keyring_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which this user's Apptainer finds its keys; else they are in ~/.apptainer/keys."""
    return {name: environ[name] for name in ("APPTAINER_KEYSDIR", "APPTAINER_CONFIGDIR") if environ.get(name)}


# ---------------------------------------------------------------------------------------------- reading


def signatures(image: Path) -> tuple[Signature, ...]:
    """Who signed the file, by its own words; nothing for what is no SIF. Raises `OSError` if it cannot be opened."""
    try:
        return tuple(_signature(row) for row in _used(image) if row.kind == SIGNATURE)
    except NotSif:
        return ()


def _signature(row: Descriptor) -> Signature:
    """Its extra bytes: the kind of hash, 4 bytes; the fingerprint, 20 bytes, zeros for a key from a file."""
    fingerprint = row.extra[4:24]
    group = row.linked & ~_GROUP if row.linked & _GROUP == _GROUP else None
    return Signature(fingerprint.hex().upper() if any(fingerprint) else None, group)


def _groups(image: Path) -> frozenset[int]:
    """The object groups that hold anything but signatures; 0 for what is in none."""
    return frozenset(row.group & ~_GROUP for row in _used(image) if row.kind != SIGNATURE)


def _used(image: Path) -> list[Descriptor]:
    with opened(image) as file:
        return [row for row in read_table(file)[1] if row.used]


# ---------------------------------------------------------------------------------------------- keys


def secret_keys(apptainer: Apptainer, keyring: Mapping[str, str]) -> tuple[SecretKey, ...]:
    """The private keys of the keyring."""
    said = apptainer.runner.run(Command((apptainer.program, "key", "list", "--secret"), env=keyring)).output
    return parse_keys(said)


def parse_keys(said: str) -> tuple[SecretKey, ...]:
    """Apptainer's listing: for each key a number with its owner, and a few lines on, its fingerprint."""
    pattern = re.compile(r"^(\d+)\)\s+User:\s+(.*)\n(?:\s+.*\n)*?\s+Fingerprint:\s+([0-9A-Fa-f]{40})\s*$", re.MULTILINE)
    return tuple(SecretKey(int(index), owner.strip(), found.upper()) for index, owner, found in pattern.findall(said))


def choose_key(wanted: str | None, keys: Sequence[SecretKey], policy: SiteSignatures) -> SecretKey:
    """The key that is meant: the one named, else the only one, or the only one that the site lets sign.

    Raises `UsageError` with the keys that there are.
    """
    listed = ", ".join(f"{key.fingerprint} ({key.owner})" for key in keys)
    if not keys:
        raise UsageError("there is no key to sign with in Apptainer's keyring", f"make one: {_NEW_KEY}")
    allowed = [key for key in keys if _may_sign(key.fingerprint, policy)]
    if wanted is not None:
        meant = [key for key in keys if key.fingerprint == _plain(wanted)]
        if not meant:
            raise UsageError(
                f"--key {wanted}: the keyring holds no private key of that fingerprint", f"it has {listed}"
            )
        if meant[0] not in allowed:
            fix = "name another, or add it to signatures.keys in the site file"
            raise UsageError(f"--key {wanted}: the site file lets other keys sign", fix)
        return meant[0]
    if not allowed:
        fix = f"import one of signatures.keys: apptainer key import FILE; the keyring has {listed}"
        raise UsageError("none of your keys is one of those that the site file lets sign", fix)
    if len(allowed) > 1:
        raise UsageError("there are several keys to sign with", f"name one: --key FINGERPRINT, of {listed}")
    return allowed[0]


def _plain(fingerprint: str) -> str:
    """As other programs write it too: with blanks, in lower case, behind 0x."""
    return re.sub(r"\s", "", fingerprint).upper().removeprefix("0X")


def _may_sign(fingerprint: str, policy: SiteSignatures) -> bool:
    return not policy.keys or fingerprint in map(_plain, policy.keys)


def signing_key(
    wanted: str | None,
    apptainer: Apptainer,
    keyring: Mapping[str, str],
    policy: SiteSignatures,
    ask: Ask | None = None,
) -> SigningKey:
    """The key that is meant, tried on a file of some bytes: what is wrong with it is said before a build, not after.

    `ask`: for its passphrase, if it has one. Raises `UsageError` without one, or for a wrong one.
    """
    chosen = choose_key(wanted, secret_keys(apptainer, keyring), policy)
    key = SigningKey(chosen.fingerprint, keyring)
    if _signs(key, apptainer):
        return key
    if ask is None:
        raise UsageError(
            f"the key {key.fingerprint} has a passphrase, and there is no terminal to ask for it",
            f"run this in a terminal, or sign with a key that has none: {_NEW_KEY}, with an empty passphrase",
        )
    key = dataclasses.replace(key, passphrase=ask(f"passphrase of the key {key.fingerprint} ({chosen.owner})"))
    if not _signs(key, apptainer):
        raise UsageError(f"that is not the passphrase of the key {key.fingerprint}", "try again")
    return key


def _signs(key: SigningKey, apptainer: Apptainer) -> bool:
    """False for a missing or wrong passphrase; raises `CommandFailed` for anything else."""
    with tempfile.TemporaryDirectory(prefix="sifkit-sign-") as folder:
        trial, content = Path(folder, "trial.sif"), Path(folder, "content")
        content.write_text("a trial\n")
        add = ("sif", "add", "--datatype", "7", "--groupid", "1", str(trial), str(content))
        for words in (("sif", "new", str(trial)), add):
            apptainer.runner.run(Command((apptainer.program, *words)))
        try:
            sign(trial, key, apptainer)
        except CommandFailed as error:
            if _PASSPHRASE in "\n".join(error.tail):
                return False
            raise
    return True


# ---------------------------------------------------------------------------------------------- signing


def sign(image: Path, key: SigningKey, apptainer: Apptainer) -> None:
    """Sign every object group of `image`, in place. Raises `CommandFailed`; the file is then to be thrown away."""
    keys = {found.fingerprint: found.index for found in secret_keys(apptainer, key.keyring)}
    if key.fingerprint not in keys:
        raise ProblemFound(f"the key {key.fingerprint} is not in the keyring any more", "import it, and try again")
    argv = (apptainer.program, "sign", "--keyidx", str(keys[key.fingerprint]), str(image))
    with _command(argv, key) as command:
        result = apptainer.runner.run(command, check=False)
    if result.returncode != 0:
        raise failure(command, result)
    if not is_signed_by(image, key.fingerprint):  # the keyring changed between listing and signing
        raise ProblemFound(f"Apptainer signed {image} with another key than {key.fingerprint}", "try again")


@contextmanager
def _command(argv: tuple[str, ...], key: SigningKey) -> Iterator[Command]:
    """Apptainer reads a passphrase from its standard input where there is no terminal, and has no variable for it.

    The file that holds it is readable by this user alone, and is gone afterwards, even if sifkit is killed.
    """
    if key.passphrase is None:
        yield Command(argv, env=key.keyring)
        return
    with tempfile.TemporaryDirectory(prefix="sifkit-sign-", dir=_memory()) as folder:
        secret = Path(folder, "passphrase")
        secret.touch(mode=0o600)
        secret.write_text(f"{key.passphrase}\n", encoding="utf-8")
        shell = ("sh", "-c", 'exec "$@" < "$0"', str(secret))
        yield Command((*shell, *argv), env=key.keyring, remove_after=(Path(folder),))


def _memory() -> str | None:
    """Where files never reach a disk, if this host has such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def is_signed_by(image: Path, fingerprint: str) -> bool:
    """Whether that key signed every object group, by the file's own words."""
    covered = {one.group for one in signatures(image) if one.fingerprint == fingerprint}
    try:
        return _groups(image) <= covered
    except NotSif:
        return False


def sign_published(name: str, key: SigningKey, apptainer: Apptainer, store: Store, progress: Progress) -> bool:
    """Sign an image that has its name already, if the key did not yet: a copy takes its place when it is signed.

    Jobs that run keep the file that they opened. False where there was nothing to do.
    """
    image, manifest = store.sif(name), store.manifest(name)
    if manifest is None or is_signed_by(image, key.fingerprint):
        return False
    with exclusive(store.directory / f".{name}.lock", lambda: say_waiting(name, progress)):
        manifest, partial = store.manifest(name), store.partial(name)
        if manifest is None or store.on_disk(name) != (manifest.size, manifest.mtime_ns):
            raise ProblemFound(f"{image} changed while it was to be signed", "run this again")
        if is_signed_by(image, key.fingerprint):
            return False
        with progress.phase(f"sign {name}"), apptainer.runner.removing(partial):
            shutil.copyfile(image, partial)
            shutil.copymode(image, partial)
            if sha256_of(partial) != manifest.sha256:
                raise ProblemFound(f"{image} is not what was built: its sha256 differs", f"build again: --force {name}")
            sign(partial, key, apptainer)
            status = partial.stat()
            size, mtime = status.st_size, status.st_mtime_ns
            store.publish(dataclasses.replace(manifest, sha256=sha256_of(partial), size=size, mtime_ns=mtime))
    progress.note(f"{name}: signed by {key.fingerprint}")
    return True


# ---------------------------------------------------------------------------------------------- checking


def judge(image: Path, apptainer: Apptainer, keyring: Mapping[str, str]) -> Verdict:
    """What the signatures are worth, by Apptainer and the keys of this user's keyring. Asks no key server."""
    found = signatures(image)
    if not found:
        return Verdict(State.UNSIGNED, ())
    command = Command((apptainer.program, "verify", "--local", str(image)), env=keyring)
    result = apptainer.runner.run(command, check=False)
    if result.returncode == 0:
        return Verdict(State.VALID, found)
    said = next((line for line in reversed(result.tail) if "FATAL" in line), "\n".join(result.tail[-3:]))
    return Verdict(_state(said), found, said.partition("container: ")[2] or said)


def _state(said: str) -> State:
    if _STRANGER in said:
        return State.STRANGER
    if any(words in said for words in _CHANGED):
        return State.CHANGED
    return State.ADDED if any(words in said for words in _ADDED) else State.UNREADABLE


def check(image: Path, policy: SiteSignatures, apptainer: Apptainer, keyring: Mapping[str, str]) -> Verdict:
    """Ask of an image what the site asks. Raises `ProblemFound` for one that is refused, with the fix.

    Refused: an unsigned one where signatures are required; one signed by none of the site's keys, if it names some;
    and anything that was changed or added after the signature, whatever the site asks.
    """
    found = judge(image, apptainer, keyring)
    refused = _refusal(image, found, policy)
    if refused:
        raise refused
    return found


def _refusal(image: Path, found: Verdict, policy: SiteSignatures) -> SifkitError | None:
    by = f"signed by {', '.join(found.fingerprints) or 'a key of no keyring'}"
    match found.state:
        case State.UNSIGNED:
            fix = f"sign it: python build.py --sign {image.stem}"
            asked = f"{image} is not signed, and the site file asks for a signature"
            return ProblemFound(asked, fix) if policy.required else None
        case State.STRANGER if not (policy.required or policy.keys):
            return None
        case State.STRANGER if any(_may_sign(one, policy) for one in found.fingerprints):
            fix = "if you trust it, import the public key from its owner: apptainer key import FILE"
            return ProblemFound(f"{image} is {by}, whose public key is not in the keyring here", fix)
        case State.VALID if _covered(image, found, policy):
            return None
        case State.VALID | State.STRANGER:
            fix = "have it signed by one of signatures.keys in the site file, or add this key there"
            return ProblemFound(f"{image} is {by}, which is not a key that the site file lets sign", fix)
        case _:
            fix = f"do not use it: get it again, or build it: python build.py --force --sign {image.stem}"
            return ProblemFound(f"{image} is {by}, but {found.state.value} ({found.said})", fix)


def _covered(image: Path, found: Verdict, policy: SiteSignatures) -> bool:
    """Whether keys that may sign signed every object group."""
    covered = {one.group for one in found.signatures if one.fingerprint and _may_sign(one.fingerprint, policy)}
    return not policy.keys or _groups(image) <= covered
