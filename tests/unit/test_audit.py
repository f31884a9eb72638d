"""The audit of a host's environment, on real ELF files: what fits passes, each thing that does not is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sifkit.audit import audit_environment, read_environment
from sifkit.errors import UsageError
from sifkit.run import Runner
from sifkit.verify.checks import Check, Outcome
from sifkit.verify.elf import ElfObject
from tests.conftest import TABLES
from tests.unit.elf_files import C10, CHECK_FAIL, NEW_ABI, OLD_ABI, Environment, compiled

RESOLVE = "shared objects resolve"
VERSIONS = "symbol versions are there"
ABI = "extensions fit torch's C++ ABI"
KERNELS = "torch has kernels for the site's GPUs"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def audit(environment: Environment, gpu_models: Sequence[str] = ()) -> dict[str, Check]:
    checks = audit_environment(environment.prefix, Runner(os.environ), TABLES, tuple(gpu_models))
    return {check.name: check for check in checks}


def libraries_of(environment: Environment) -> tuple[ElfObject, ...]:
    return read_environment(environment.prefix, Runner(os.environ)).libraries


def outcomes(checks: dict[str, Check]) -> dict[str, Outcome]:
    return {name: check.outcome for name, check in checks.items()}


def test_an_environment_whose_files_fit_passes(environment: Environment) -> None:
    environment.torch()
    environment.library("flash_attn.so", CHECK_FAIL, NEW_ABI, *environment.with_torch())
    checks = audit(environment, ["H100"])
    assert outcomes(checks) == dict.fromkeys((RESOLVE, VERSIONS, ABI, KERNELS), Outcome.PASSED)
    assert checks[RESOLVE].message == "3 shared objects find every library they need"
    assert checks[ABI].message == "1 find 1 symbols of torch 2.9.1 (CUDA 12.8)"


def test_without_torch_its_abi_is_not_judged(environment: Environment) -> None:
    environment.library("x.so")
    assert outcomes(audit(environment))[ABI] is Outcome.NOT_RUN


def test_a_directory_that_is_no_environment_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no Python environment"):
        audit_environment(tmp_path, Runner(os.environ), TABLES)


def test_an_environment_without_compiled_files_has_not_passed(environment: Environment) -> None:
    assert set(outcomes(audit(environment)).values()) == {Outcome.NOT_RUN}


# ------------------------------------------------------------------ libraries


def test_a_library_that_is_nowhere_is_named_with_who_needs_it(environment: Environment) -> None:
    gone = compiled(environment.prefix / "libgone.so.1", "void g() {}", "-Wl,-soname,libgone.so.1")
    environment.library("pkg/core.so", "void g(); void f() { g(); }", str(gone))
    environment.record("pkg_name", "1.2", "pkg/core.so")
    gone.unlink()
    check = audit(environment)[RESOLVE]
    assert check.outcome is Outcome.FAILED
    assert check.message == "not found: libgone.so.1 (needed by pkg/core.so)"
    assert check.cause == "pkg-name 1.2 needs libgone.so.1, which is not there"


def test_a_neighbours_library_counts_as_found_and_so_does_a_link_to_it(environment: Environment) -> None:
    soname = environment.library("nvidia/lib/libdep.so.1.2", "void g() {}", "-Wl,-soname,libdep.so.1")
    environment.library("a.so", "void g(); void f() { g(); }", str(soname))
    other = environment.library("nvidia/lib/libother.so.3", "void h() {}", "-Wl,-soname,libother.so")
    environment.library("b.so", "void h(); void f() { h(); }", str(other))
    other.rename(other.with_name("libreal.so.3"))
    replacement = environment.library("nvidia/lib/libreal.so.3", "void h() {}")  # without a soname: a link is its name
    replacement.with_name("libother.so").symlink_to(replacement.name)
    assert audit(environment)[RESOLVE].outcome is Outcome.PASSED
    replacement.with_name("libother.so").unlink()
    assert "libother.so (needed by b.so)" in audit(environment)[RESOLVE].message


def test_environments_of_links_into_a_cache_are_read(environment: Environment, tmp_path: Path) -> None:
    cached = compiled(tmp_path / "cache" / "x.so", "void f() {}", "-Wl,--no-as-needed", "-l:libm.so.6")
    (environment.packages / "x.so").symlink_to(cached)
    (environment.packages / "dangling.so").symlink_to(tmp_path / "gone.so")
    facts = read_environment(environment.prefix, Runner(os.environ))
    assert [found.short for found in facts.objects] == ["x.so"]
    assert "libm.so.6" in facts.objects[0].needed


def test_programs_are_read_and_none_is_run(environment: Environment, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    source = f"""
    #include <cstdlib>
    __attribute__((constructor)) static void at_load() {{ system("touch {mark}"); }}
    int main() {{ at_load(); }}
    """
    gone = compiled(environment.prefix / "libgone.so.1", "void g() {}", "-Wl,-soname,libgone.so.1")
    library = environment.library("pkg/x.so", source)
    program = environment.library("pkg/bin/tool", source, "-Wl,--no-as-needed", str(gone))
    gone.unlink()
    (environment.prefix / "bin").mkdir()
    shutil.copy(library, environment.prefix / "bin" / "python")
    checks = audit(environment)
    assert checks[RESOLVE].message == "not found: libgone.so.1 (needed by pkg/bin/tool)"
    assert program.stat().st_mode & 0o111
    assert not mark.exists()


def test_packages_of_the_system_count_if_the_environment_sees_them(environment: Environment, tmp_path: Path) -> None:
    packages = tmp_path / "base" / "lib" / "python3.13" / "site-packages"
    library = compiled(packages / "dep" / "libdep.so.1", "void g() {}", "-Wl,-soname,libdep.so.1")
    environment.library("x.so", "void g(); void f() { g(); }", str(library))
    assert audit(environment)[RESOLVE].outcome is Outcome.FAILED
    settings = environment.prefix / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("packages = false", "packages = true"))
    assert audit(environment)[RESOLVE].outcome is Outcome.PASSED


def test_libraries_beside_the_interpreter_count(environment: Environment, tmp_path: Path) -> None:
    library = compiled(
        tmp_path / "base" / "lib" / "libpython3.13.so.1.0", "void g() {}", "-Wl,-soname,libpython3.13.so.1.0"
    )
    environment.library("x.so", "void g(); void f() { g(); }", str(library))
    assert audit(environment)[RESOLVE].outcome is Outcome.PASSED
    library.unlink()
    assert audit(environment)[RESOLVE].outcome is Outcome.FAILED


def test_a_damaged_file_is_named(environment: Environment) -> None:
    library = environment.library("pkg/x.so")
    library.write_bytes(library.read_bytes()[:3000])
    check = audit(environment)[RESOLVE]
    assert (check.outcome, check.message) == (Outcome.FAILED, "pkg/x.so: it ends before its segments do")


def for_aarch64(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # e_machine: EM_AARCH64
    library.write_bytes(data)


def test_a_package_for_another_machine_is_named(environment: Environment) -> None:
    environment.library("other/x.so")
    for_aarch64(environment.library("pkg/x.so"))
    check = audit(environment)[RESOLVE]
    assert (check.outcome, check.message) == (Outcome.FAILED, "pkg/x.so is for aarch64")
    assert check.cause == "pkg was installed for another machine: this Python is for x86-64"


def test_a_package_may_bring_files_for_several_machines(environment: Environment) -> None:
    environment.library("pkg/x86.so")
    gone = compiled(environment.prefix / "libgone.so.1", "void g() {}", "-Wl,-soname,libgone.so.1")
    for_aarch64(environment.library("pkg/arm.so", "void g(); void f() { g(); }", str(gone)))
    gone.unlink()
    check = audit(environment)[RESOLVE]
    assert (check.outcome, check.message) == (Outcome.PASSED, "1 shared objects find every library they need")


# ------------------------------------------------------------------ versions of symbols


def library_with_versions(environment: Environment, path: str, *versions: str) -> Path:
    """VERS_2 defines `two`, and so on; no versions: the same functions without any."""
    script = environment.prefix / "versions"
    script.write_text("".join(f"VERS_{one} {{ global: f_{one}; }};\n" for one in versions))
    source = "".join(f'extern "C" void f_{one}() {{}}\n' for one in "12")
    options = (f"-Wl,--version-script={script}",) if versions else ()
    return environment.library(path, source, "-Wl,-soname,libdep.so.1", *options)


def test_a_version_that_the_library_lacks_is_named(environment: Environment) -> None:
    library = library_with_versions(environment, "dep/libdep.so.1", "1", "2")
    environment.library("pkg/x.so", 'extern "C" { void f_1(); void f_2(); } void f() { f_1(); f_2(); }', str(library))
    assert audit(environment)[VERSIONS].outcome is Outcome.PASSED
    library_with_versions(environment, "dep/libdep.so.1", "1")
    check = audit(environment)[VERSIONS]
    assert (check.outcome, check.message) == (Outcome.FAILED, "pkg/x.so needs VERS_2 of libdep.so.1")
    assert check.cause == "pkg is built for another release of libdep.so.1 than dep/libdep.so.1"


def test_a_library_without_versions_satisfies_all_as_the_loader_has_it(environment: Environment) -> None:
    library = library_with_versions(environment, "dep/libdep.so.1", "1", "2")
    environment.library("pkg/x.so", 'extern "C" void f_2(); void f() { f_2(); }', str(library))
    library_with_versions(environment, "dep/libdep.so.1")
    assert audit(environment)[VERSIONS].outcome is Outcome.PASSED


def test_versions_of_a_library_that_is_missing_are_the_other_checks_matter(environment: Environment) -> None:
    library = library_with_versions(environment, "dep/libdep.so.1", "1", "2")
    environment.library("pkg/x.so", 'extern "C" void f_2(); void f() { f_2(); }', str(library))
    library.unlink()
    checks = audit(environment)
    assert (checks[RESOLVE].outcome, checks[VERSIONS].outcome) == (Outcome.FAILED, Outcome.PASSED)


def from_the_future(environment: Environment, soname: str, version: str) -> None:
    """An extension linked against a stub of a system library with a version that no release has."""
    script = environment.prefix / "versions"
    script.write_text(f"{version} {{ global: of_tomorrow; }};\n")
    stub = compiled(
        environment.prefix / soname,
        'extern "C" void of_tomorrow() {}',
        *("-nostdlib", f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}"),
    )
    environment.library(
        "pkg/x.so", 'extern "C" void of_tomorrow(); void f() { of_tomorrow(); }', "-nostdlib", str(stub)
    )
    environment.record("pkg", "3.0", "pkg/x.so")
    stub.unlink()


def test_a_newer_glibc_than_the_systems_is_named_with_both(environment: Environment) -> None:
    from_the_future(environment, "libc.so.6", "GLIBC_9.99")
    check = audit(environment)[VERSIONS]
    release = next(one.release for one in libraries_of(environment) if one.release)
    assert (check.outcome, check.message) == (Outcome.FAILED, "pkg/x.so needs GLIBC_9.99 of libc.so.6")
    assert check.cause == f"pkg 3.0 is built for glibc 9.99 or newer, and the system has glibc {release}"
    assert check.fix == "a newer system, or an older release of pkg"


def test_a_newer_libstdcxx_than_the_systems_is_named_with_both(environment: Environment) -> None:
    from_the_future(environment, "libstdc++.so.6", "GLIBCXX_3.4.999")
    check = audit(environment)[VERSIONS]
    assert (check.outcome, check.message) == (Outcome.FAILED, "pkg/x.so needs GLIBCXX_3.4.999 of libstdc++.so.6")
    assert check.cause is not None
    assert "libstdc++.so.6 there ends at GLIBCXX_3.4." in check.cause


def test_a_newer_libstdcxx_on_the_files_own_run_path_is_the_one_it_gets(environment: Environment) -> None:
    from_the_future(environment, "libstdc++.so.6", "GLIBCXX_3.4.999")
    script = environment.prefix / "versions"
    source = 'extern "C" void of_tomorrow() {}'
    options = ("-Wl,-soname,libstdc++.so.6", f"-Wl,--version-script={script}")
    bundled = environment.library("pkg.libs/libstdc++.so.6", source, *options)
    assert audit(environment)[VERSIONS].outcome is Outcome.FAILED  # nobody's run path leads there: the system's counts
    use = 'extern "C" void of_tomorrow(); void f() { of_tomorrow(); }'
    environment.library("pkg/x.so", use, "-nostdlib", str(bundled), "-Wl,-rpath,$ORIGIN/../pkg.libs")
    assert audit(environment)[VERSIONS].outcome is Outcome.PASSED


# ------------------------------------------------------------------ torch's C++ ABI


@pytest.mark.parametrize(("torchs", "extensions", "flag"), [(NEW_ABI, OLD_ABI, 0), (OLD_ABI, NEW_ABI, 1)])
def test_an_extension_with_the_other_abi_is_named(
    environment: Environment, torchs: str, extensions: str, flag: int
) -> None:
    environment.torch(torchs)
    environment.library("flash_attn/x.so", CHECK_FAIL, extensions, *environment.with_torch())
    environment.record("flash_attn", "2.8.3", "flash_attn/x.so")
    check = audit(environment)[ABI]
    assert check.outcome is Outcome.FAILED
    assert check.message.startswith(
        "flash_attn/x.so misses 1 of 1 symbols: c10::detail::torchCheckFail [_ZN3c106detail14torchCheckFailEPKcS2_jRK"
    )
    assert check.cause == (
        f"flash-attn 2.8.3 was built with the other C++ ABI "
        f"(_GLIBCXX_USE_CXX11_ABI={flag}; torch 2.9.1 (CUDA 12.8) has {1 - flag})"
    )
    assert check.fix == "take the build of flash-attn made for exactly torch 2.9.1 (CUDA 12.8), or leave it out"


@pytest.mark.parametrize(("torchs", "extensions"), [(NEW_ABI, OLD_ABI), (OLD_ABI, NEW_ABI)])
def test_a_string_that_is_returned_shows_the_abi_as_well(
    environment: Environment, torchs: str, extensions: str
) -> None:
    environment.torch(torchs)
    source = "#include <string>\nnamespace c10 { std::string toStr(int); }\nvoid f() { c10::toStr(1); }"
    environment.library("x.so", source, extensions, *environment.with_torch())
    assert "the other C++ ABI" in str(audit(environment)[ABI].cause)


def test_an_extension_for_another_torch_is_named(environment: Environment) -> None:
    environment.torch(source=C10 + "namespace c10 { void SetDevice(char, bool) {} }")
    source = (
        "namespace c10 { void GetDevice(); void SetDevice(char); } void f() { c10::GetDevice(); c10::SetDevice(1); }"
    )
    environment.library("torchvision/_C.so", source, *environment.with_torch())
    check = audit(environment)[ABI]
    assert check.message == "torchvision/_C.so misses 1 of 2 symbols: c10::SetDevice [_ZN3c109SetDeviceEc]"
    assert check.cause == "torchvision was built for another torch: the environment has torch 2.9.1 (CUDA 12.8)"
    assert check.fix == "lock again with torch, torchvision and torchaudio as one set; do not pin torchvision yourself"


def test_an_extension_that_names_no_library_of_torchs_is_looked_at_too(environment: Environment) -> None:
    environment.torch()
    environment.library("x.so", "namespace at { void gone(); } void f() { at::gone(); }")
    assert audit(environment)[ABI].message.startswith("x.so misses 1 of 1 symbols: at::gone")


def test_a_weak_symbol_need_not_be_there(environment: Environment) -> None:
    environment.torch()
    source = "namespace c10 { __attribute__((weak)) void gone(); } void f() { if (c10::gone) c10::gone(); }"
    environment.library("x.so", source, *environment.with_torch())
    assert audit(environment)[ABI].outcome is Outcome.PASSED


def test_symbols_in_torchs_namespaces_may_be_the_packages_own(environment: Environment) -> None:
    environment.torch()
    environment.library("pkg/a.so", "namespace at { void mine(); } void f() { at::mine(); }", *environment.with_torch())
    assert audit(environment)[ABI].outcome is Outcome.FAILED
    own = environment.library("pkg/b.so", "namespace at { void mine() {} }")
    assert audit(environment)[ABI].outcome is Outcome.PASSED
    own.unlink()
    other = environment.library("other/libmine.so", "namespace at { void mine() {} }", "-Wl,-soname,libmine.so")
    assert audit(environment)[ABI].outcome is Outcome.FAILED
    environment.library("pkg/a.so", "namespace at { void mine(); } void f() { at::mine(); }", str(other))
    assert audit(environment)[ABI].outcome is Outcome.PASSED


def test_a_torch_with_the_older_hash_table_is_searched_as_well(environment: Environment) -> None:
    environment.torch(NEW_ABI, "-Wl,--hash-style=sysv")
    environment.library("x.so", CHECK_FAIL, NEW_ABI, *environment.with_torch())
    assert audit(environment)[ABI].outcome is Outcome.PASSED
    environment.library("x.so", CHECK_FAIL, OLD_ABI, *environment.with_torch())
    assert "the other C++ ABI" in str(audit(environment)[ABI].cause)


def test_a_gpu_without_kernels_is_named(environment: Environment) -> None:
    environment.torch()
    assert audit(environment, ["H100"])[KERNELS].outcome is Outcome.PASSED
    assert audit(environment, ["P100"])[KERNELS].outcome is Outcome.FAILED
    assert audit(environment)[KERNELS].outcome is Outcome.NOT_RUN
