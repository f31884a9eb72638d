"""Level static: compiled files, as facts that a container would answer, judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sifkit.verify.checks import Outcome
from sifkit.verify.elf import (
    ElfFacts,
    ElfObject,
    Extension,
    MissingSymbol,
    Torch,
    judge_elf,
    judge_extensions,
    judge_libraries,
    judge_symbol_versions,
    optional,
    parse_elf,
    unresolved,
)

SITE = "/opt/venv/lib/python3.13/site-packages"

LIBC = ElfObject(
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    names=frozenset({"libc.so.6"}),
    defines=frozenset({"GLIBC_2.2.5", "GLIBC_2.34"}),
    release="2.36",
    everywhere=True,
)
LIBSTDCXX = ElfObject(
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    names=frozenset({"libstdc++.so.6"}),
    defines=frozenset({"GLIBCXX_3.4.9", "GLIBCXX_3.4.30", "CXXABI_1.3.13"}),
    everywhere=True,
)
CUDART = ElfObject(f"{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12", names=frozenset({"libcudart.so.12"}))


def needing(path: str, *libraries: str, package: str | None = None) -> ElfObject:
    return ElfObject(f"{SITE}/{path}", needed=libraries, package=package)


FACTS = ElfFacts(
    machine="EM_X86_64",
    objects=(
        CUDART,
        needing("torch/lib/libtorch_cuda.so", "libcudart.so.12", "libc.so.6"),
        needing("torch/lib/libcaffe2_nvrtc.so", "libcuda.so.1"),
    ),
    libraries=(LIBC, LIBSTDCXX),
    torch=Torch("2.9.1+cu128", "12.8", ("sm_80",), True),
    extensions=(),
    seconds=1.0,
)


def with_objects(*objects: ElfObject) -> ElfFacts:
    return replace(FACTS, objects=(*FACTS.objects, *objects))


def test_a_good_environment_passes_every_check_and_says_how_long_it_took() -> None:
    checks = judge_elf(FACTS)
    assert [check.outcome for check in checks] == [Outcome.PASSED] * 3
    assert checks[0].seconds == 1.0


# ------------------------------------------------------------------ libraries


def test_torchaudio_of_another_torch_is_named() -> None:
    library = needing("torchaudio/lib/_torchaudio.abi3.so", "libcudart.so.13", package="torchaudio 2.11.0")
    check = judge_libraries(with_objects(library))
    assert check.outcome is Outcome.FAILED
    assert check.cause == (
        "torchaudio 2.11.0 belongs to another torch: it needs libcudart.so.13, "
        "the environment has torch 2.9.1 (CUDA 12.8)"
    )
    assert "as one set" in (check.fix or "")


def test_any_extension_that_misses_torchs_libraries_belongs_to_another_torch() -> None:
    library = needing("flash_attn_3/_C.abi3.so", "libcudart.so.13", package="flash-attn-3 3.0")
    facts = with_objects(library)
    assert "belongs to another torch" not in (judge_libraries(facts).cause or "")
    facts = replace(facts, extensions=(Extension(library.path, 3),))
    assert (judge_libraries(facts).cause or "").startswith("flash-attn-3 3.0 belongs to another torch")


def test_a_missing_library_names_who_needs_it_and_the_fix() -> None:
    check = judge_libraries(with_objects(needing("cv2/cv2.abi3.so", "libGL.so.1")))
    assert check.outcome is Outcome.FAILED
    assert check.message == "not found: libGL.so.1 (needed by cv2/cv2.abi3.so)"
    assert check.cause == "cv2 needs libGL.so.1, which is not there"
    assert "libGL.so.1" in (check.fix or "")


def test_a_library_of_the_system_that_misses_another_is_named() -> None:
    broken = replace(LIBC, path="/usr/lib/libodd.so.1", names=frozenset({"libodd.so.1"}), needed=("libgone.so.1",))
    check = judge_libraries(replace(FACTS, libraries=(LIBC, broken)))
    assert (check.outcome, check.cause) == (Outcome.FAILED, "libodd.so.1 needs libgone.so.1, which is not there")


def test_plugins_may_miss_their_libraries_but_others_may_not_miss_the_same() -> None:
    plugin = needing("nvidia/nvshmem/lib/nvshmem_transport_ucx.so.3", "libucp.so.0")
    other = needing("torch/lib/libtorch_cuda.so", "libucp.so.0")
    assert unresolved(replace(FACTS, objects=(plugin,)), optional().libraries) == {}
    assert unresolved(replace(FACTS, objects=(other,)), optional().libraries) == {"libucp.so.0": (other,)}


@pytest.mark.parametrize(
    ("path", "library"),
    [
        ("bitsandbytes/libbitsandbytes_cuda118.so", "libcublas.so.11"),
        ("bitsandbytes/libbitsandbytes_rocm72.so", "libhipblas.so.3"),
        ("torchcodec/libtorchcodec_core4.so", "libavcodec.so.58"),
        ("torchcodec/libtorchcodec_custom_ops9.so", "libswscale.so.10"),
        ("torchao/_C_mxfp8.cpython-310-x86_64-linux-gnu.so", "libcudart.so.13"),
    ],
)
def test_packages_that_bring_a_library_for_each_case_may_miss_what_the_others_need(path: str, library: str) -> None:
    assert judge_libraries(with_objects(needing(path, library))).outcome is Outcome.PASSED
    assert judge_libraries(with_objects(needing("other/x.so", library))).outcome is Outcome.FAILED


def test_a_damaged_file_fails() -> None:
    broken = ElfObject(f"{SITE}/x.so", machine="unknown", broken="it ends before its segments do")
    check = judge_libraries(with_objects(broken))
    assert (check.outcome, check.message) == (Outcome.FAILED, "x.so: it ends before its segments do")


# ------------------------------------------------------------------ versions of symbols


def of_version(version: str, library: str = "libc.so.6", package: str | None = "scipy 1.18.1") -> ElfObject:
    return ElfObject(f"{SITE}/scipy/_x.so", versions=((library, ("GLIBC_2.2.5", version)),), package=package)


def test_a_wheel_for_a_newer_glibc_is_told_a_newer_base() -> None:
    check = judge_symbol_versions(with_objects(of_version("GLIBC_2.38")))
    assert (check.outcome, check.message) == (Outcome.FAILED, "scipy/_x.so needs GLIBC_2.38 of libc.so.6")
    assert check.cause == "scipy 1.18.1 is built for glibc 2.38 or newer, and the system has glibc 2.36"
    assert check.fix == "a newer system (debian-trixie has glibc 2.41), or an older release of scipy"


def test_without_a_release_the_newest_version_of_the_c_library_is_said() -> None:
    facts = replace(with_objects(of_version("GLIBC_2.38")), libraries=(replace(LIBC, release=None),))
    assert "the system has GLIBC_2.34" in (judge_symbol_versions(facts).cause or "")


def test_a_newer_libstdcxx_is_told_where_the_systems_ends() -> None:
    found = replace(of_version(""), versions=(("libstdc++.so.6", ("GLIBCXX_3.4.9", "GLIBCXX_3.4.32")),))
    check = judge_symbol_versions(with_objects(found))
    assert check.message == "scipy/_x.so needs GLIBCXX_3.4.32 of libstdc++.so.6"
    assert check.cause == "scipy 1.18.1 is built with a newer GCC: libstdc++.so.6 there ends at GLIBCXX_3.4.30"


def test_a_copy_of_the_c_library_in_a_package_does_not_count() -> None:
    bundled = replace(LIBC, path=f"{SITE}/odd/libc.so.6", defines=frozenset({"GLIBC_2.38"}), everywhere=False)
    assert judge_symbol_versions(with_objects(bundled, of_version("GLIBC_2.38"))).outcome is Outcome.FAILED


def test_any_copy_of_another_library_counts() -> None:
    bundled = ElfObject(
        f"{SITE}/torch/lib/libgomp.so.1", names=frozenset({"libgomp.so.1"}), defines=frozenset({"G_1", "G_2"})
    )
    system = replace(bundled, path="/usr/lib/libgomp.so.1", defines=frozenset({"G_1"}), everywhere=True)
    user = ElfObject(f"{SITE}/x.so", versions=(("libgomp.so.1", ("G_2",)),))
    facts = replace(with_objects(user), libraries=(*FACTS.libraries, system))
    assert judge_symbol_versions(facts).outcome is Outcome.FAILED
    assert judge_symbol_versions(replace(facts, objects=(*facts.objects, bundled))).outcome is Outcome.PASSED


def test_versions_of_libraries_that_are_not_there_are_left_out() -> None:
    user = ElfObject(f"{SITE}/x.so", versions=(("libmlx5.so.1", ("MLX5_1.0",)),))
    assert judge_symbol_versions(with_objects(user)).outcome is Outcome.PASSED


# ------------------------------------------------------------------ torch's C++ ABI

GONE = MissingSymbol("_ZN3c104cuda9SetDeviceEa", "c10::cuda::SetDevice", None)
OTHER_ABI = MissingSymbol("_ZN3c101fERKSs", "c10::f", "_ZN3c101fERKNSt7__cxx11…")


def with_extension(path: str, *missing: MissingSymbol, package: str | None = None) -> ElfFacts:
    found = needing(path, package=package)
    return replace(with_objects(found), extensions=(Extension(found.path, 9, missing),))


def test_one_symbol_of_the_other_abi_explains_all_that_are_missing() -> None:
    check = judge_extensions(with_extension("flash_attn.so", GONE, OTHER_ABI, package="flash-attn 2.8.3"))
    assert check.outcome is Outcome.FAILED
    assert check.cause == (
        "flash-attn 2.8.3 was built with the other C++ ABI (_GLIBCXX_USE_CXX11_ABI=0; torch 2.9.1 (CUDA 12.8) has 1)"
    )


def test_missing_symbols_without_it_mean_another_torch() -> None:
    check = judge_extensions(with_extension("flash_attn.so", GONE, package="flash-attn 2.8.3"))
    assert check.message == ("flash_attn.so misses 1 of 9 symbols: c10::cuda::SetDevice [_ZN3c104cuda9SetDeviceEa]")
    assert check.cause == "flash-attn 2.8.3 was built for another torch: the environment has torch 2.9.1 (CUDA 12.8)"
    assert check.fix == "take the build of flash-attn made for exactly torch 2.9.1 (CUDA 12.8), or leave it out"


def test_an_extension_without_which_its_package_works_is_a_warning() -> None:
    torchao = with_extension("torchao/_C_mxfp8.abi3.so", GONE, package="torchao 0.18.0")
    assert judge_extensions(torchao).outcome is Outcome.WARNED
    both = replace(
        torchao,
        objects=(*torchao.objects, needing("x.so")),
        extensions=(*torchao.extensions, Extension(f"{SITE}/x.so", 1, (GONE,))),
    )
    check = judge_extensions(both)
    assert (check.outcome, "torchao" in check.message) == (Outcome.FAILED, False)


def test_without_torch_there_is_no_abi_to_fit() -> None:
    assert judge_extensions(replace(FACTS, torch=None)).outcome is Outcome.NOT_RUN


# ------------------------------------------------------------------ the probe's answer


def test_names_of_files_that_are_no_text_can_be_shown() -> None:
    name = b"/venv/site-packages/caf\xe9.so".decode("utf-8", "surrogateescape")
    found: dict[str, object] = {
        "path": name,
        "machine": "EM_X86_64",
        "soname": None,
        "needed": [],
        "search": [],
        "versions": {},
    }
    found |= {"defines": [], "release": None, "broken": None, "package": "Some_Thing 1.0", "links": ["cafe.so"]}
    answer = {"machine": "EM_X86_64", "objects": [found], "libraries": [], "torch": None, "extensions": []}
    (parsed,) = parse_elf({**answer, "seconds": 0.1}).objects
    assert (parsed.short.encode(), parsed.owner) == ("caf\N{REPLACEMENT CHARACTER}.so".encode(), "some-thing 1.0")
    assert "cafe.so" in parsed.names
