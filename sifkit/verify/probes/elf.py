"""What the ELF files of a Python environment need, and what is there. Nothing that it reads is run or loaded.

    python3 elf.py ANSWER.json      in a container: over the environment of this interpreter

Standard library and pyelftools only, Python 3.8 or newer. Files are read where the dynamic loader reads them, by
program headers and dynamic segment, since section headers may be stripped; the structures are pyelftools'.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import glob
import itertools
import json
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

SYSTEM_DIRS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
_MULTIARCH = {"EM_X86_64": "x86_64-linux-gnu", "EM_AARCH64": "aarch64-linux-gnu"}

_PACKAGES = ("site-packages", "dist-packages")

# Most files end so, and no program does: they need not be asked for their mode.
_NEVER_ELF = {*(".py", ".pyc", ".pyi", ".h", ".hpp", ".cuh", ".cu", ".js", ".map", ".ts", ".css", ".svg"),
              *(".svelte", ".gz", ".br", ".txt", ".md", ".rst", ".json", ".yaml", ".typed")}  # fmt: skip

_WEAK_VERSION = 2  # VER_FLG_WEAK: the loader does not insist

# What occurs among the names of every file that uses torch: most files need no look at their symbols.
_TORCHS_PARTS = (b"3c10", b"N2at", b"K2at", b"5torch", b"6caffe2", b"THP", b"torch_")

# What a damaged file makes pyelftools, struct and mmap raise.
_DAMAGED = (ELFError, ArithmeticError, ValueError, struct.error, OSError)


def main(answer_path: str) -> None:
    """Read the environment of this interpreter, and write the answer."""
    answer = read_environment(interpreter_trees(), sys.executable, [*library_path(), *cache_folders()])
    with open(answer_path + ".partial", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(answer_path + ".partial", answer_path)


# ---------------------------------------------------------------------------------------- places


def interpreter_trees() -> list[str]:
    """Where this interpreter's shared objects live: its environment, its own modules, the system's packages."""
    paths = sysconfig.get_paths()
    packages = [folder for folder in sys.path if os.path.basename(folder) in _PACKAGES]
    return outermost([sys.prefix, paths["platlib"], paths["purelib"], paths["platstdlib"], *packages])


def outermost(folders: Iterable[str]) -> list[str]:
    """Those that exist and are in no other, links resolved; never a whole system."""
    found = dict.fromkeys(os.path.realpath(folder) for folder in folders if os.path.isdir(folder))
    trees = [folder for folder in found if folder not in ("/", "/usr", "/usr/local")]
    return [tree for tree in trees if not any(tree.startswith(other + "/") for other in trees)]


def library_path() -> list[str]:
    """The folders of LD_LIBRARY_PATH."""
    return [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]


def cache_folders() -> list[str]:
    """The folders of the loader's cache, as this system's ldconfig prints it."""
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    if not os.path.exists(ldconfig):
        return []
    said = subprocess.run([ldconfig, "-p"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    return folders_of_cache(said.decode("utf-8", "replace"))


def folders_of_cache(said: str) -> list[str]:
    """The folders in the output of `ldconfig -p`, in its order."""
    files = (line.split(" => ")[1] for line in said.splitlines() if " => " in line)
    return list(dict.fromkeys(os.path.dirname(file) for file in files))


# ---------------------------------------------------------------------------------------- an environment


def read_environment(trees: list[str], interpreter: str, folders: Iterable[str]) -> dict[str, Any]:
    """The facts about all ELF files under `trees`, and about the libraries outside that they need, directly or not.

    `trees` are as `outermost` returns them; `folders` are what the loader searches besides the system's own:
    LD_LIBRARY_PATH and its cache.
    """
    started = time.monotonic()
    machine = machine_of(interpreter)
    files, links, packages = find_files(trees)
    owners = owners_of(packages)
    objects = [
        {**read_object(file), "links": links.get(os.path.realpath(file), []), "package": owners.get(file)}
        for file in files
    ]
    objects = [found for found in objects if found["machine"]]
    system = [*SYSTEM_DIRS, *folders]
    if machine in _MULTIARCH:
        system += ["/lib/" + _MULTIARCH[machine], "/usr/lib/" + _MULTIARCH[machine]]
    libraries = read_libraries([found for found in objects if found["machine"] == machine], system, trees, machine)
    torch = next((folder + "/torch" for folder in packages if os.path.isfile(folder + "/torch/version.py")), None)
    return {
        "machine": machine,
        "objects": objects,
        "libraries": libraries,
        "torch": read_torch(torch) if torch else None,
        "extensions": read_extensions(objects, torch, machine) if torch else [],
        "seconds": time.monotonic() - started,
    }


def machine_of(interpreter: str) -> str:
    """The machine for which the interpreter was built, in ELF's words; x86-64 if that cannot be read."""
    try:
        with Elf(os.path.realpath(interpreter)) as elf:
            return elf.machine
    except _DAMAGED:
        return "EM_X86_64"


def find_files(trees: Iterable[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Files that may be ELF (by name, or programs), other names of theirs, and the site-packages among the folders.

    Links within a tree are only other names of what is found itself. Links out of it are files of it: uv can make
    an environment of links into its cache. Folders that cannot be read are among the files.
    """
    files: list[str] = []
    links: dict[str, list[str]] = {}
    packages: list[str] = []
    for tree in trees:
        for folder, _, names in os.walk(tree, onerror=lambda error: files.append(error.filename)):
            if os.path.basename(folder) in _PACKAGES:
                packages.append(folder)
            for name in names:
                path = folder + "/" + name
                if not (is_library(name) or _may_be_program(path)) or not os.path.isfile(path):
                    continue
                target = os.path.realpath(path) if os.path.islink(path) else ""
                if target.startswith(tree + "/"):
                    links.setdefault(target, []).append(name)
                else:
                    files.append(path)
    return files, links, packages


def is_library(name: str) -> bool:
    """Whether a shared library may be called so: libc.so.6, _C.abi3.so. Detached debugging information is none."""
    return (name.endswith(".so") or ".so." in name) and not name.endswith(".debug")


def _may_be_program(path: str) -> bool:
    if os.path.splitext(path)[1] in _NEVER_ELF:
        return False
    return bool(os.lstat(path).st_mode & 0o111)


def owners_of(packages: Iterable[str]) -> dict[str, str]:
    """NAME VERSION of the distribution to which each library belongs, as the RECORD files say."""
    owners = {}
    for folder in packages:
        for record in glob.glob(glob.escape(folder) + "/*.dist-info/RECORD"):
            owner = " ".join(os.path.basename(os.path.dirname(record))[: -len(".dist-info")].split("-", 1))
            with open(record, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    path = line.split(",", 1)[0].strip('"')
                    if is_library(os.path.basename(path)) or "/bin/" in path:
                        owners[os.path.normpath(folder + "/" + path)] = owner
    return owners


def read_libraries(
    objects: list[dict[str, Any]], system: Iterable[str], trees: list[str], machine: str
) -> list[dict[str, Any]]:
    """Libraries outside `trees` that `objects` need, and those that these need: each with the name looked for.

    `system` is whether every program finds it there, and not only one whose own run path leads to it.
    """
    folders = {os.path.realpath(folder): True for folder in system}
    for folder in {folder for found in objects for folder in found["search"]}:
        folders.setdefault(folder, False)
    within = tuple(tree + "/" for tree in trees)
    places = _places(folder for folder in folders if not (folder + "/").startswith(within))
    libraries: list[dict[str, Any]] = []
    seen: set[str] = set()
    wanted = list(objects)
    while wanted:
        found = wanted.pop()
        for name in sorted({*found["needed"], *found["versions"]} - seen):
            seen.add(name)
            copies = [read_object(path, name=name, system=folders[folder]) for path, folder in places.get(name, ())]
            copies = [copy for copy in copies if copy["machine"] == machine and not copy["broken"]]
            libraries += copies
            wanted += copies
    return libraries


def _places(folders: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    places: dict[str, list[tuple[str, str]]] = {}
    for folder in folders:
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                if is_library(name):
                    places.setdefault(name, []).append((folder + "/" + name, folder))
    return places


def read_object(path: str, **more: Any) -> dict[str, Any]:
    """The facts about one file. `machine` is empty for what is no ELF file, `broken` says why it cannot be read."""
    facts: dict[str, Any] = {
        "path": path,
        "machine": "",
        "soname": None,
        "needed": [],
        "search": [],  # folders that its own run path adds to the loader's
        "versions": {},  # library: versions of its symbols that this file needs
        "defines": [],  # versions of its own symbols
        "release": None,  # of the C library
        "names_torch": False,  # whether one of its symbols may be torch's
        "broken": None,
        **more,
    }
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                return facts
        facts["machine"] = "unknown"
        with Elf(path) as elf:
            facts.update(machine=elf.machine, **elf.facts())
    except _DAMAGED as error:
        facts["broken"] = str(error) or type(error).__name__
        facts["machine"] = facts["machine"] or "unknown"
    return facts


# ---------------------------------------------------------------------------------------- one file


@functools.lru_cache(maxsize=4)
def _structures(bits: int, little_endian: bool) -> ELFStructs:
    """pyelftools' structures, which take longer to make than most files to read."""
    structures = ELFStructs(little_endian=little_endian, elfclass=bits)
    structures.create_basic_structs()
    structures.create_advanced_structs()
    return structures


class Elf:
    """An ELF file. What is wrong with it raises one of _DAMAGED."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, bits, order = struct.unpack_from("4sBB", self.data)
        if magic != b"\x7fELF" or bits not in (1, 2) or order not in (1, 2):
            raise ELFError("its first bytes are not those of an ELF file")
        self.is_64_bit_little_endian = (bits, order) == (2, 1)
        self._structures = _structures(32 * bits, order == 1)
        self._header = self._parse("Elf_Ehdr", 0)
        self.machine = str(self._header["e_machine"])
        self._loads: list[tuple[int, int, int]] = []  # address, size in the file, offset
        self._tags: dict[Any, list[int]] = {}
        self._read_segments()

    def __enter__(self) -> Elf:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def _parse(self, structure: str, offset: int) -> Any:
        return struct_parse(getattr(self._structures, structure), cast("IO[bytes]", self.data), offset)

    def _read_segments(self) -> None:
        dynamic = None
        for number in range(self._header["e_phnum"]):
            segment = self._parse("Elf_Phdr", self._header["e_phoff"] + number * self._header["e_phentsize"])
            if segment["p_offset"] + segment["p_filesz"] > len(self.data):
                raise ELFError("it ends before its segments do")
            if segment["p_type"] == "PT_LOAD":
                self._loads.append((segment["p_vaddr"], segment["p_filesz"], segment["p_offset"]))
            elif segment["p_type"] == "PT_DYNAMIC":
                dynamic = segment
        if dynamic:
            self._read_dynamic(dynamic["p_offset"], dynamic["p_filesz"])

    def _read_dynamic(self, offset: int, size: int) -> None:
        step = self._structures.Elf_Dyn.sizeof()
        for position in range(offset, offset + size - step + 1, step):
            entry = self._parse("Elf_Dyn", position)
            if entry["d_tag"] == "DT_NULL":
                return
            self._tags.setdefault(entry["d_tag"], []).append(entry["d_val"])

    def table(self, tag: str) -> int | None:
        """The offset in the file of what a tag of the dynamic segment points at; None without the tag."""
        if tag not in self._tags:
            return None
        address = self._tags[tag][0]
        for start, size, offset in self._loads:
            if start <= address < start + size:
                return address - start + offset
        raise ELFError(f"{tag} points out of the file")

    def _string(self, offset: int) -> str:
        table = self.table("DT_STRTAB")
        end = -1 if table is None else self.data.find(b"\0", table + offset)
        if table is None or end < 0:
            raise ELFError("it has no string table")
        return self.data[table + offset : end].decode("utf-8", "replace")

    def facts(self) -> dict[str, Any]:
        """What the loader would want to know of it."""
        sonames = self._strings("DT_SONAME")
        defines = self._defined_versions()
        return {
            "soname": sonames[0] if sonames else None,
            "needed": self._strings("DT_NEEDED"),
            "search": self._search(),
            "versions": self._needed_versions(),
            "defines": defines,
            "release": self._release() if sonames == ["libc.so.6"] else None,
            "names_torch": any(self.data.find(part, *self.names()) >= 0 for part in _TORCHS_PARTS),
        }

    def _strings(self, tag: str) -> list[str]:
        return [self._string(offset) for offset in self._tags.get(tag, ())]

    def _search(self) -> list[str]:
        # of a program that is a link, the loader takes the folder in which it really is
        origins = dict.fromkeys(os.path.dirname(path) for path in (self.path, os.path.realpath(self.path)))
        # the loader ignores the older of the two where both are
        paths = self._strings("DT_RUNPATH") or self._strings("DT_RPATH")
        parts = [part.replace("${ORIGIN}", "$ORIGIN") for path in paths for part in path.split(":")]
        places = [part.replace("$ORIGIN", origin) for part in parts for origin in origins]
        return list(dict.fromkeys(os.path.realpath(place) for place in places if place.startswith("/")))

    def _needed_versions(self) -> dict[str, list[str]]:
        needed: dict[str, list[str]] = {}
        for entry, offset in self._chain("DT_VERNEED", "Elf_Verneed", "vn_next"):
            versions = needed.setdefault(self._string(entry["vn_file"]), [])
            for auxiliary in self._links(offset + entry["vn_aux"], "Elf_Vernaux", "vna_next", entry["vn_cnt"]):
                if not auxiliary["vna_flags"] & _WEAK_VERSION:
                    versions.append(self._string(auxiliary["vna_name"]))
        return needed

    def _defined_versions(self) -> list[str]:
        defined = []
        for entry, offset in self._chain("DT_VERDEF", "Elf_Verdef", "vd_next"):
            # the first name is the version's own, the others are those that it continues
            defined.append(self._string(self._parse("Elf_Verdaux", offset + entry["vd_aux"])["vda_name"]))
        return defined

    def _chain(self, tag: str, structure: str, following: str) -> Iterator[tuple[Any, int]]:
        offset = self.table(tag)
        if offset is None:
            return
        for entry in self._links(offset, structure, following, self._tags.get(tag + "NUM", [0])[0]):
            yield entry, offset
            offset += entry[following]

    def _links(self, offset: int, structure: str, following: str, count: int) -> Iterator[Any]:
        for _ in range(count):
            entry = self._parse(structure, offset)
            yield entry
            if not entry[following]:
                return
            offset += entry[following]

    def _release(self) -> str | None:
        # "GNU C Library (Debian GLIBC 2.41-12) stable release version 2.41."
        match = re.search(rb"GNU C Library [^\n]* release version (\d+\.\d+)", self.data)
        return match[1].decode() if match else None

    # --- symbols, of 64-bit little-endian files alone

    def undefined(self) -> Iterator[bytes]:
        """The names of symbols that another library must define; weak ones need not be there."""
        for number in range(1, self._symbol_count()):
            name, info, _, section, _, _ = self._symbol(number)
            if section == 0 and info >> 4 == 1:  # SHN_UNDEF, STB_GLOBAL
                yield self._symbol_name(name)

    def _symbol(self, number: int) -> tuple[int, int, int, int, int, int]:
        table = self.table("DT_SYMTAB")
        if table is None:
            raise ELFError("it has no symbol table")
        name, info, other, section, value, size = struct.unpack_from("<IBBHQQ", self.data, table + 24 * number)
        return name, info, other, section, value, size

    def _symbol_name(self, offset: int) -> bytes:
        start = (self.table("DT_STRTAB") or 0) + offset
        return self.data[start : self.data.find(b"\0", start)]

    def _symbol_count(self) -> int:
        """How many symbols there are. Those before the first that the GNU hash table holds are all undefined ones.

        That table says 1 where nothing is defined; the section header, where it is not stripped, knows.
        """
        for number in range(self._header["e_shnum"] if self._header["e_shoff"] else 0):
            section = self._parse("Elf_Shdr", self._header["e_shoff"] + number * self._header["e_shentsize"])
            if section["sh_type"] == "SHT_DYNSYM":
                return int(section["sh_size"]) // 24
        gnu, older = self.table("DT_GNU_HASH"), self.table("DT_HASH")
        if gnu is not None:
            return int(struct.unpack_from("<I", self.data, gnu + 4)[0])
        return int(struct.unpack_from("<I", self.data, older + 4)[0]) if older is not None else 0

    def defines(self, symbol: bytes) -> bool:
        """Whether the loader would find the symbol here; one look into a hash table."""
        gnu = self.table("DT_GNU_HASH")
        candidates = self._gnu_candidates(gnu, symbol) if gnu is not None else self._older_candidates(symbol)
        for number in candidates:
            name, _, _, section, _, _ = self._symbol(number)
            if section != 0 and self._symbol_name(name) == symbol:
                return True
        return False

    def _gnu_candidates(self, table: int, symbol: bytes) -> Iterator[int]:
        """https://flapenguin.me/elf-dt-gnu-hash"""
        value = gnu_hash(symbol)
        buckets, first, words, shift = struct.unpack_from("<IIII", self.data, table)
        bloom = struct.unpack_from("<Q", self.data, table + 16 + 8 * (value // 64 % words))[0]
        if not (bloom >> value % 64) & (bloom >> (value >> shift) % 64) & 1:
            return
        start = table + 16 + 8 * words
        number = struct.unpack_from("<I", self.data, start + 4 * (value % buckets))[0]
        while number >= first:
            link = struct.unpack_from("<I", self.data, start + 4 * (buckets + number - first))[0]
            if link | 1 == value | 1:
                yield number
            if link & 1:
                return
            number += 1

    def _older_candidates(self, symbol: bytes) -> Iterator[int]:
        table = self.table("DT_HASH")
        if table is None:
            return
        buckets, symbols = struct.unpack_from("<II", self.data, table)
        number = struct.unpack_from("<I", self.data, table + 8 + 4 * (elf_hash(symbol) % buckets))[0]
        for _ in range(symbols):  # a damaged table may run in a circle
            if number == 0:
                return
            yield number
            number = struct.unpack_from("<I", self.data, table + 8 + 4 * (buckets + number))[0]

    def names(self) -> tuple[int, int]:
        """Where the names of its symbols begin and end in the file."""
        start = self.table("DT_STRTAB") or 0
        return start, start + self._tags.get("DT_STRSZ", [0])[0]

    def names_from(self, prefix: bytes) -> Iterator[bytes]:
        """Names that begin with `prefix`; also of symbols that it does not define, and ends of longer ones."""
        start, end = self.names()
        position = self.data.find(prefix, start, end)
        while position >= 0:
            yield self.data[position : self.data.find(b"\0", position)]
            position = self.data.find(prefix, position + 1, end)


@functools.lru_cache(maxsize=4096)
def gnu_hash(symbol: bytes) -> int:
    """The hash of DT_GNU_HASH."""
    value = 5381
    for byte in symbol:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def elf_hash(symbol: bytes) -> int:
    """The hash of DT_HASH."""
    value = 0
    for byte in symbol:
        value = (value << 4) + byte
        value = (value ^ (value >> 24 & 0xF0)) & 0x0FFFFFFF
    return value


# ---------------------------------------------------------------------------------------- torch


def read_torch(folder: str) -> dict[str, Any]:
    """What torch would say of itself at import, read from its files."""
    with open(folder + "/version.py", encoding="utf-8", errors="replace") as file:
        told = constants(file.read())
    return {
        "folder": folder,
        "version": told.get("__version__"),
        "cuda": told.get("cuda"),
        "architectures": _architectures(folder + "/lib/libtorch_python.so"),
        "cxx11_abi": _has_new_strings(folder + "/lib/libc10.so"),
    }


def constants(source: str) -> dict[str, Any]:
    """Module-level names to which a literal is assigned: `cuda: Optional[str] = '12.8'`."""
    found: dict[str, Any] = {}
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):  # then torch cannot be imported either, and that check says why
        return found
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Constant):
            found.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return found


_WORD = rb"(?:sm|compute)_\d+[af]?"


def _architectures(library: str) -> list[str]:
    """The list that torch._C._cuda_getArchFlags() returns, a string in libtorch_python; the longest that looks so."""
    pattern = re.compile(rb"(" + _WORD + rb"(?: " + _WORD + rb")*)\0")
    longest: list[str] = []
    for data in _mapped(library):
        for anchor in (b"sm_", b"compute_"):
            position = data.find(anchor)
            while position >= 0:
                match = pattern.match(data, position)
                if match and len(match[1].split()) > len(longest):
                    longest = match[1].decode().split()
                position = data.find(anchor, match.end() if match else position + 1)
    return longest


def _has_new_strings(library: str) -> bool | None:
    """Whether torch was built with _GLIBCXX_USE_CXX11_ABI=1: then functions of its own take strings of that namespace.

    The namespace alone proves nothing: torch 2.6, built without, exports such symbols of the C++ library. [measured]
    """
    try:
        with Elf(library) as elf:
            return any(b"__cxx11" in name for name in elf.names_from(b"_ZN3c10"))
    except _DAMAGED:
        return None


def _mapped(path: str) -> Iterator[mmap.mmap]:
    if os.path.isfile(path) and os.path.getsize(path):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


# Mangled names in torch's namespaces (with their virtual tables, type information, guards and thunks), the functions
# for Python objects (_Z16THPVariable_Wrap…), and the C interfaces.
_MANGLED = rb"_Z(?:T[VTIS]|GV|T[hvc][\dn_hv]*_)?"
_NESTED = rb"N[rVK]*[RO]?"
_TORCHS = re.compile(_MANGLED + _NESTED + rb"(?:3c10|2at|5torch|6caffe2)|(?:_Z\d+)?THP[A-Z]|aoti_torch_|torch_")
_TORCHS_LIBRARY = re.compile(r"lib(torch|c10)(_\w+)?\.so")

_EXPLAINED = 8  # missing symbols of a file for which torch's nearest one is sought
_CANDIDATES = 20_000  # of torch's symbols that are compared with one missing


def read_extensions(objects: list[dict[str, Any]], torch: str, machine: str) -> list[dict[str, Any]]:
    """Objects outside torch that use it, and which of torch's symbols they need that nobody defines.

    A symbol of one of torch's namespaces may also come from the package's own libraries, and from those that it names.
    An object whose symbols cannot be read becomes `broken`. Looks at 64-bit little-endian machines alone.
    """
    good = [found for found in objects if found["machine"] == machine and not found["broken"]]
    torchs = [found["path"] for found in good if found["path"].startswith(torch + "/")]
    extensions = []
    with contextlib.ExitStack() as stack:
        libraries = [stack.enter_context(Elf(path)) for path in torchs if is_library(path)]
        for found in (found for found in good if found["path"] not in torchs):
            if not found["names_torch"] and not _needs_torch(found):
                continue
            try:
                symbols = _torchs_symbols(found["path"])
                missing = [symbol for symbol in symbols if not any(library.defines(symbol) for library in libraries)]
                missing = _not_in(_neighbours(found, good), missing)
                explained = _explained(missing, libraries)
            except _DAMAGED as error:
                found["broken"] = f"its symbols cannot be read: {error}"
                continue
            if symbols or _needs_torch(found):
                extensions.append({"path": found["path"], "symbols": len(symbols), "missing": explained})
    return extensions


def _needs_torch(found: dict[str, Any]) -> bool:
    return any(_TORCHS_LIBRARY.match(name) for name in found["needed"])


def _torchs_symbols(path: str) -> list[bytes]:
    with Elf(path) as elf:
        undefined = elf.undefined() if elf.is_64_bit_little_endian else iter(())
        return [symbol for symbol in undefined if _TORCHS.match(symbol)]


def _neighbours(one: dict[str, Any], objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Other objects of the same distribution or folder, and those that it names."""
    for other in objects:
        names = {other["soname"], os.path.basename(other["path"])}
        if other is not one and (_family(other) == _family(one) or names & set(one["needed"])):
            yield other


def _family(found: dict[str, Any]) -> str:
    return str(found["package"] or found["path"].rpartition("-packages/")[2].split("/")[0])


def _not_in(objects: Iterable[dict[str, Any]], symbols: list[bytes]) -> list[bytes]:
    for found in objects:
        if not symbols:
            break
        with Elf(found["path"]) as elf:
            symbols = [symbol for symbol in symbols if not elf.defines(symbol)]
    return symbols


def _explained(symbols: list[bytes], libraries: list[Elf]) -> list[dict[str, Any]]:
    """Each missing symbol with its name, and torch's symbol that differs from it in the ABI of strings alone, if any.

    Those that mention strings come first, and only the first few are sought.
    """
    symbols = sorted(symbols, key=lambda symbol: (not _STRING.search(symbol), symbol))
    return [
        {
            "symbol": symbol.decode("utf-8", "replace"),
            "name": readable(symbol),
            "other_abi": _of_the_other_abi(symbol, libraries) if number < _EXPLAINED else None,
        }
        for number, symbol in enumerate(symbols)
    ]


# std::string with the older ABI is an abbreviation of its own; with the C++11 ABI it is spelt out, or a type that is
# returned is marked: https://gcc.gnu.org/onlinedocs/libstdc++/manual/using_dual_abi.html
_STRING = re.compile(rb"Ss|__cxx11|B5cxx11")
_NEW_STRING = b"NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"


def _of_the_other_abi(symbol: bytes, libraries: list[Elf]) -> str | None:
    names, end = _plain_name(symbol)
    operator = re.match(rb"[a-z][a-zA-Z]E|[CD]\dE", symbol[end:])
    prefix = symbol[: end + (operator.end() if operator else 0)]
    if not names:
        return None
    wanted = _of_any_abi(symbol)
    for library in libraries:
        for candidate in itertools.islice(library.names_from(prefix), _CANDIDATES):
            if _of_any_abi(candidate) == wanted and library.defines(candidate):
                return candidate.decode("utf-8", "replace")
    return None


def _of_any_abi(symbol: bytes) -> bytes:
    """The symbol without what the ABI changes: strings, and the numbers of references to what was already named."""
    symbol = symbol.replace(_NEW_STRING, b"Ss").replace(b"B5cxx11", b"").replace(b"St7__cxx11", b"St")
    return re.sub(rb"S[0-9A-Z]*_", b"S_", symbol).replace(b"Ss", b"S_")


def readable(symbol: bytes) -> str:
    """The plain part of a mangled name: c10::detail::torchCheckFail."""
    names, _ = _plain_name(symbol)
    return "::".join(names) or symbol.decode("utf-8", "replace")


def _plain_name(symbol: bytes) -> tuple[list[str], int]:
    """The names before the first template argument, operator or parameter, and where they end."""
    match = re.match(_MANGLED + rb"(?:" + _NESTED + rb")?", symbol)
    names, position = [], match.end() if match else 0
    while match:
        match = re.match(rb"\d+", symbol[position:])
        if match:
            start = position + match.end()
            position = start + int(match[0])
            names.append(symbol[start:position].decode("utf-8", "replace"))
    return names, position


if __name__ == "__main__":
    main(sys.argv[1])
