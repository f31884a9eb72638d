"""probes/elf.py on real ELF files: it reads what binutils reads, and what the dynamic loader would find."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from sifkit.verify.probes import elf
from tests.unit.elf_files import FLAGS, NEW_ABI, OLD_ABI, compiled

NEEDS_MUCH = """
extern "C" { void strong(); __attribute__((weak)) void weak(); }
namespace c10 { void GetDevice(); }
static void go() { strong(); if (weak) weak(); c10::GetDevice(); }
"""
USES_IT = "__attribute__((constructor)) static void at_load() { go(); }\n"  # exports nothing


def names_in_nm(path: Path, *options: str) -> set[str]:
    said = subprocess.run(["nm", "-D", *options, str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in said.splitlines() if line.split()[-2] not in ("w", "v")}


def undefined(path: Path) -> set[str]:
    with elf.Elf(str(path)) as file:
        return {name.decode() for name in file.undefined()}


@pytest.mark.parametrize("style", ["gnu", "sysv"])
@pytest.mark.parametrize("exports", ["", "void exported() {}"])
def test_undefined_symbols_are_those_of_nm(tmp_path: Path, style: str, exports: str) -> None:
    library = compiled(tmp_path / "x.so", NEEDS_MUCH + USES_IT + exports, f"-Wl,--hash-style={style}")
    assert undefined(library) == names_in_nm(library, "--undefined-only")
    assert {"strong", "_ZN3c109GetDeviceEv"} <= undefined(library)
    assert "weak" not in undefined(library)


def test_a_file_without_section_headers_reads_the_same(tmp_path: Path) -> None:
    library = compiled(tmp_path / "x.so", NEEDS_MUCH + USES_IT + "void exported() {}")
    before = (elf.read_object(str(library)), undefined(library))
    data = bytearray(library.read_bytes())
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    library.write_bytes(data)
    assert (elf.read_object(str(library)), undefined(library)) == before


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_a_hash_table_finds_what_is_defined_and_nothing_else(tmp_path: Path, style: str) -> None:
    functions = "".join(f"void function_{number}() {{}}\n" for number in range(500))
    library = compiled(tmp_path / "x.so", NEEDS_MUCH + USES_IT + functions, f"-Wl,--hash-style={style}")
    defined = names_in_nm(library, "--defined-only")
    assert len(defined) >= 500
    with elf.Elf(str(library)) as file:
        assert [name for name in defined if not file.defines(name.encode())] == []
        assert [name for name in defined if file.defines(name.encode() + b"x")] == []
        assert not file.defines(b"strong")  # in the symbol table, but undefined


@pytest.fixture
def versioned(tmp_path: Path) -> Path:
    """A library that defines two versions of its symbols."""
    script = tmp_path / "versions"
    script.write_text("VERS_1 { global: one; local: *; };\nVERS_2 { global: two; } VERS_1;\n")
    source = 'extern "C" void one() {}\nextern "C" void two() {}'
    return compiled(tmp_path / "libdep.so.1", source, f"-Wl,--version-script={script}", "-Wl,-soname,libdep.so.1")


def test_versions_needed_and_defined_are_those_of_the_linker(tmp_path: Path, versioned: Path) -> None:
    user = compiled(tmp_path / "user.so", 'extern "C" void two(); void f() { two(); }', str(versioned))
    assert elf.read_object(str(versioned))["defines"] == ["libdep.so.1", "VERS_1", "VERS_2"]
    assert elf.read_object(str(user))["versions"]["libdep.so.1"] == ["VERS_2"]
    assert "libdep.so.1" in elf.read_object(str(user))["needed"]


def test_a_version_that_only_weak_symbols_need_is_not_needed(tmp_path: Path, versioned: Path) -> None:
    use = 'extern "C" { void one(); void two(); } void f() { one(); two(); }'
    user = compiled(tmp_path / "user.so", use, str(versioned))
    entry = struct.pack("<IH", elf.elf_hash(b"VERS_2"), 0)  # hash and flags; gold sets the flag, GNU ld never does
    assert user.read_bytes().count(entry) == 1
    user.write_bytes(user.read_bytes().replace(entry, entry[:4] + b"\2\0"))
    assert elf.read_object(str(user))["versions"]["libdep.so.1"] == ["VERS_1"]


@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
def test_a_run_path_is_where_the_loader_would_look(tmp_path: Path, tag: str) -> None:
    run_path = "-Wl,-rpath,$ORIGIN/../a.libs:${ORIGIN}:/opt/x"
    library = compiled(tmp_path / "pkg" / "x.so", "void f() {}", run_path, f"-Wl,{tag}")
    assert elf.read_object(str(library))["search"] == [f"{tmp_path}/a.libs", f"{tmp_path}/pkg", "/opt/x"]


def test_this_hosts_c_library_says_its_release(tmp_path: Path) -> None:
    said = subprocess.run(["getconf", "GNU_LIBC_VERSION"], capture_output=True, text=True, check=True).stdout
    user = elf.read_object(str(compiled(tmp_path / "x.so", '#include <cstdio>\nvoid f() { puts(""); }')))
    (libc,) = [
        found
        for found in elf.read_libraries([user], [*elf.SYSTEM_DIRS, *elf.cache_folders()], [], user["machine"])
        if found["name"] == "libc.so.6"
    ]
    assert f"glibc {libc['release']}" == said.strip()


def test_of_the_systems_libraries_only_those_for_this_machine_count(tmp_path: Path) -> None:
    library = compiled(tmp_path / "lib" / "libdep.so.1", "void g() {}", "-Wl,-soname,libdep.so.1")
    user = elf.read_object(str(compiled(tmp_path / "x.so", "void g(); void f() { g(); }", str(library))))
    folders = [str(tmp_path / "lib")]
    (found,) = elf.read_libraries([user], folders, [], user["machine"])
    assert (found["path"], found["name"], found["system"]) == (str(library), "libdep.so.1", True)
    assert elf.read_libraries([user], folders, [], "EM_AARCH64") == []
    library.write_text("/* GNU ld script */")
    assert elf.read_libraries([user], folders, [], user["machine"]) == []


def test_what_is_no_elf_file_is_none_and_what_is_cut_off_is_broken(tmp_path: Path) -> None:
    script, empty = tmp_path / "libm.so", tmp_path / "empty.so"
    script.write_text("GROUP ( /lib/libm.so.6 )")
    empty.touch()
    library = compiled(tmp_path / "x.so", "void f() {}")
    library.write_bytes(library.read_bytes()[:2000])
    assert [elf.read_object(str(path))["machine"] for path in (script, empty)] == ["", ""]
    assert elf.read_object(str(library))["broken"] == "it ends before its segments do"


def test_folders_of_ldconfigs_cache() -> None:
    said = """2 libs found in cache `/etc/ld.so.cache'
\tlibz.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libz.so.1
\tlibfoo.so (libc6,x86-64, hwcap: "x86-64-v3") => /opt/a b/libfoo.so
\tlibm.so.6 (libc6,x86-64, OS ABI: Linux 3.2.0) => /usr/lib/x86_64-linux-gnu/libm.so.6
Cache generated by: ldconfig (Debian GLIBC 2.41-12) stable release version 2.41
"""
    assert elf.folders_of_cache(said) == ["/usr/lib/x86_64-linux-gnu", "/opt/a b"]
    assert elf.folders_of_cache("") == []


# ------------------------------------------------------------------ torch

FLAG_STRINGS = {
    "the string before it has no end": (f"ipc_h{FLAGS}", FLAGS.split()),
    "one architecture": ("\\0sm_90", ["sm_90"]),
    "with PTX": ("sm_80 sm_90a compute_90", ["sm_80", "sm_90a", "compute_90"]),
    "others that look so": (f"sm_80 sm_90\\0x\\0{FLAGS}\\0compute_120", FLAGS.split()),
    "nvcc's options are not the list": ("-gencode;arch=compute_86,code=sm_86;", []),
    "no CUDA": ("none", []),
}


@pytest.mark.parametrize("case", FLAG_STRINGS)
def test_architectures_are_the_longest_list(tmp_path: Path, case: str) -> None:
    text, expected = FLAG_STRINGS[case]
    compiled(tmp_path / "lib" / "libtorch_python.so", f'extern "C" const char flags[] = "{text}";')
    (tmp_path / "version.py").write_text("cuda = None\n")
    assert elf.read_torch(str(tmp_path))["architectures"] == expected


@pytest.mark.parametrize(
    ("source", "version", "cuda"),
    [
        ("__version__ = '2.9.1+cu128'\ncuda: Optional[str] = '12.8'", "2.9.1+cu128", "12.8"),
        ("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None", "2.9.1+cpu", None),
        ("from torch._version import v\n__version__ = str(v)\ncuda = '11.8'", None, "11.8"),
        ("this is no Python", None, None),
    ],
)
def test_version_py_is_read_and_not_run(tmp_path: Path, source: str, version: str | None, cuda: str | None) -> None:
    (tmp_path / "version.py").write_text(source)
    found = elf.read_torch(str(tmp_path))
    assert (found["version"], found["cuda"]) == (version, cuda)


@pytest.mark.parametrize(("abi", "is_new"), [(NEW_ABI, True), (OLD_ABI, False)])
def test_torchs_own_abi_is_that_of_its_functions(tmp_path: Path, abi: str, is_new: bool) -> None:
    # a symbol of the C++ library's with the newer namespace says nothing: torch 2.6 has both
    others = "namespace std { inline namespace __cxx11 { void carried_along() {} } }"
    compiled(
        tmp_path / "lib" / "libc10.so",
        f"#include <string>\nnamespace c10 {{ void f(std::string) {{}} }}\n{others}",
        abi,
    )
    (tmp_path / "version.py").touch()
    assert elf.read_torch(str(tmp_path))["cxx11_abi"] is is_new


def test_a_damaged_torch_has_an_unknown_abi(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libc10.so").write_bytes(b"\x7fELF")
    (tmp_path / "lib" / "libtorch_python.so").touch()
    (tmp_path / "version.py").touch()
    assert (elf.read_torch(str(tmp_path))["cxx11_abi"], elf.read_torch(str(tmp_path))["architectures"]) == (None, [])


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",
        "_ZNK2at6Tensor3dimEv",
        "_ZTIN5torch8autograd4NodeE",
        "_ZThn16_N5torch3jit6ModuleD0Ev",
        "_ZGVN3c1010UndefinedTE",
        "_ZNKR3c108optionalIiEE",
        "_Z16THPVariable_WrapN2at10TensorBaseE",
        "THPVariableClass",
        "aoti_torch_empty_strided",
        "torch_call_dispatcher",
    ],
)
def test_symbols_of_torch_are_told(symbol: str) -> None:
    assert elf._TORCHS.match(symbol.encode())


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN6vision3nmsERKN2at6TensorE",
        "_ZN3attC1Ev",
        "_Z2atv",
        "_ZN4c10d3fooEv",
        "_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev",
        "pytorch_thing",
        "THP",
    ],
)
def test_symbols_that_only_mention_torch_are_not_its_own(symbol: str) -> None:
    assert not elf._TORCHS.match(symbol.encode())


# Measured: what torchvision 0.21.0 (for torch 2.6, older ABI) misses in torch 2.9.1, and torch 2.9.1's own.
_STRING = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
SAME_BUT_ABI = [
    (
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",
        f"_ZN3c106detail14torchCheckFailEPKcS2_jRK{_STRING}",
    ),
    (
        "_ZN5torch7LibraryC1ENS0_4KindESsSt8optionalIN3c1011DispatchKeyEEPKcj",
        f"_ZN5torch7LibraryC1ENS0_4KindE{_STRING}St8optionalIN3c1011DispatchKeyEEPKcj",
    ),
    ("_ZNK3c104Type3strEv", "_ZNK3c104Type3strB5cxx11Ev"),
    ("_ZN3c101fESsSs", f"_ZN3c101fE{_STRING}S5_"),
]


@pytest.mark.parametrize(("old", "new"), SAME_BUT_ABI)
def test_symbols_that_differ_in_the_abi_alone_are_the_same(old: str, new: str) -> None:
    assert elf._of_any_abi(old.encode()) == elf._of_any_abi(new.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("_ZN3c104cuda9SetDeviceEa", "_ZN3c104cuda9SetDeviceEab"),
        ("_ZNK3c106SymInt6sym_neERKS0_", "_ZNK3c106SymInt6sym_neEl"),
        ("_ZN3c101fERKSs", "_ZN3c101fEPKc"),
    ],
)
def test_symbols_with_other_parameters_are_not_the_same(one: str, other: str) -> None:
    assert elf._of_any_abi(one.encode()) != elf._of_any_abi(other.encode())


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN3c106detail14torchCheckFailEPKcS2_jRKSs", "c10::detail::torchCheckFail"),
        ("_ZNK5torch8autograd4Node4nameEv", "torch::autograd::Node::name"),
        ("_ZTIN5torch8autograd4NodeE", "torch::autograd::Node"),
        ("_ZN3c105ErrorC2ENS_14SourceLocationESs", "c10::Error"),
        ("torch_call_dispatcher", "torch_call_dispatcher"),
        ("_ZN3c10lsERSo", "c10"),
        ("_ZN3c109999short", "c10::short"),
    ],
)
def test_names_are_readable(symbol: str, name: str) -> None:
    assert elf.readable(symbol.encode()) == name
