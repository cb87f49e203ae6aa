"""A wheel holds the kernels that were compiled for its platform just now, and nothing that lay about before."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from quadgrad._core.search.kernel import builds

ROOT = Path(__file__).parents[1]
KERNEL = "quadgrad/_core/search/kernel"
STALE = b"left by another build"
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
ELF = {"x86_64": 62, "aarch64": 183}

FAKE_COMPILER = """
import os, struct, sys
from pathlib import Path
words = sys.argv[1:]
machine = words[words.index("-arch") + 1] if "-arch" in words else os.environ["MAKES"]
heads = {
    "arm64": struct.pack("<II", 0xFEEDFACF, 0x0100000C),
    "x86_64": struct.pack("<II", 0xFEEDFACF, 0x01000007),
    "linux-aarch64": b"\\x7fELF\\x02\\x01" + bytes(12) + struct.pack("<H", 183),
    "linux-x86_64": b"\\x7fELF\\x02\\x01" + bytes(12) + struct.pack("<H", 62),
    "win-amd64": b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\\0\\0" + struct.pack("<H", 0x8664),
}
output = Path(words[words.index("-o") + 1])
output.write_bytes(heads[machine] + " ".join(words).encode())
output.with_suffix(".lib").touch()  # as some linkers do
"""
"""Writes the header of a binary for the machine that it is told, and its arguments."""


@pytest.fixture
def used_tree(tmp_path: Path) -> Path:
    """Return a copy of what a wheel is made of, with binaries that other builds have left between the sources."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    for name in ("", "_avx2", "_x86_64", "_x86_64_avx2", "_x86_64_avx512", "_aarch64", "_riscv64"):
        (tree / "src" / KERNEL / f"_kernel{name}.so").write_bytes(STALE)
    return tree


def build(tree: Path, *arguments: str, **environment: str) -> tuple[str, dict[str, bytes], str]:
    """Return the tag of a wheel (or the name of another archive), its kernels, and what was said."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"CC", "CFLAGS", "LDFLAGS", "ARCHFLAGS", "MACOSX_DEPLOYMENT_TARGET", "_PYTHON_HOST_PLATFORM"}
    }
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tree / "dist"), *(arguments or ("-t", "wheel"))],
        cwd=tree, env=kept | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").iterdir()
    if archive.suffix != ".whl":
        return archive.name, {}, done.stderr
    with zipfile.ZipFile(archive) as wheel:
        names = wheel.namelist()
        # The loader compares the kernel with its sources; an editable wheel holds nothing but a path to them.
        assert (f"{KERNEL}/nodes.c" in names) != ("_quadgrad.pth" in names)
        kernels = {Path(name).name: wheel.read(name) for name in names if "_kernel" in name}
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        tag = archive.stem.split("-", 2)[2]
        assert f"Tag: {tag}\n" in wheel.read(about).decode()
        assert f"Root-Is-Purelib: {'false' if kernels else 'true'}\n" in wheel.read(about).decode()
    return tag, kernels, done.stderr + done.stdout


def fake(tree: Path) -> str:
    """Return the command of a compiler that writes headers only."""
    script = tree.parent / "compiler.py"
    script.write_text(FAKE_COMPILER)
    return f"{sys.executable} {script}"


@pytest.mark.skipif(sys.platform != "linux" or MACHINE not in ELF, reason="reads the headers of Linux")
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_wheel_built_in_a_used_tree_holds_what_was_compiled_for_it(used_tree: Path) -> None:
    tag, kernels, _ = build(used_tree)
    wider = {"_kernel_x86_64_avx2.so", "_kernel_x86_64_avx512.so"} if MACHINE == "x86_64" else set()
    assert kernels.keys() == {f"_kernel_{MACHINE}.so"} | wider
    assert tag == "py3-none-" + sysconfig.get_platform().replace("-", "_")
    for binary in kernels.values():
        assert binary[:4] == b"\x7fELF"
        assert struct.unpack("<H", binary[18:20]) == (ELF[MACHINE],)

    (wheel,) = (used_tree / "dist").iterdir()
    installed = used_tree.parent / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "import quadgrad as qg; from quadgrad._core.search.kernel import builds; print(qg.__file__)\n"
    code += "print(builds.describe(), qg.quad(lambda x: x * x, 0.0, 3.0).value.item())"
    run = [sys.executable, "-c", code]
    shown = subprocess.run(run, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    where, what = shown.stdout.splitlines()
    assert where.startswith(str(installed))
    assert what.startswith(f"{MACHINE}")
    assert what.endswith(" 9.0")


def test_a_wheel_built_without_a_compiler_holds_no_kernel(used_tree: Path) -> None:
    tag, kernels, said = build(used_tree, CC="false")
    assert (tag, kernels) == ("py3-none-any", {})
    assert "without its compiled kernel, and slower" in said


def test_a_wheel_holds_the_tables_of_points_and_their_licence(used_tree: Path) -> None:
    build(used_tree, CC="false")
    (archive,) = (used_tree / "dist").iterdir()
    with zipfile.ZipFile(archive) as wheel:
        names = wheel.namelist()
        assert {f"quadgrad/_core/points/{name}" for name in ("joe_kuo.npz", "lattice.csv")} <= set(names)
        licences = [wheel.read(name).decode() for name in names if name.endswith("joe_kuo_LICENSE.txt")]
    assert len(licences) == 2  # beside the table, and among the licences of the whole
    for licence in licences:
        assert "Copyright (c) 2008, Frances Y. Kuo and Stephen Joe" in licence
        assert "Redistributions in binary form must reproduce the above copyright" in licence


@pytest.mark.skipif(not shutil.which("cc") or MACHINE == "s390x", reason="needs a C compiler for another machine")
def test_a_wheel_for_another_processor_holds_no_kernel_for_this_one(used_tree: Path) -> None:
    tag, kernels, said = build(used_tree, _PYTHON_HOST_PLATFORM="linux-s390x")
    assert (tag, kernels) == ("py3-none-any", {})
    assert "this wheel needs ELF for s390x: name another in CC" in said


@pytest.mark.parametrize(
    ("environment", "tag", "names"),
    [
        ({"_PYTHON_HOST_PLATFORM": "linux-aarch64", "MAKES": "linux-x86_64"}, "any", ""),
        ({"_PYTHON_HOST_PLATFORM": "linux-aarch64", "MAKES": "linux-aarch64"}, "linux_aarch64", "aarch64"),
        ({"_PYTHON_HOST_PLATFORM": "win-amd64", "MAKES": "win-amd64"}, "win_amd64", "x86_64"),
        ({"_PYTHON_HOST_PLATFORM": "win-amd64", "MAKES": "linux-x86_64"}, "any", ""),
        (
            {"_PYTHON_HOST_PLATFORM": "macosx-10.13-universal2", "ARCHFLAGS": "-arch arm64"},
            "macosx_11_0_arm64",
            "aarch64",
        ),
        (
            {"_PYTHON_HOST_PLATFORM": "macosx-11.0-arm64", "ARCHFLAGS": "-arch x86_64 -arch arm64"},
            "macosx_11_0_universal2",
            "aarch64 x86_64 x86_64_avx2 x86_64_avx512",
        ),
        (
            {"_PYTHON_HOST_PLATFORM": "macosx-10.13-x86_64", "MACOSX_DEPLOYMENT_TARGET": "12.3"},
            "macosx_12_0_x86_64",
            "x86_64 x86_64_avx2 x86_64_avx512",
        ),
    ],
)
def test_a_wheel_for_another_system(used_tree: Path, environment: dict[str, str], tag: str, names: str) -> None:
    built, kernels, _ = build(used_tree, CC=fake(used_tree), **environment)
    assert built == f"py3-none-{tag}"
    assert kernels.keys() == {f"_kernel_{name}.so" for name in names.split()}
    for name, binary in kernels.items():
        assert STALE not in binary
        assert (b"-mavx2" in binary) == ("avx" in name)


def test_compilers_that_do_not_know_gnu_c_are_told_apart(used_tree: Path) -> None:
    tag, kernels, said = build(used_tree, CC="cl")
    assert (tag, kernels) == ("py3-none-any", {})
    assert "Microsoft's compiler does not know: install clang or gcc" in said


def test_a_source_distribution_holds_no_kernel(used_tree: Path) -> None:
    name, _, _ = build(used_tree, "-t", "sdist")
    shutil.unpack_archive(used_tree / "dist" / name, used_tree / "unpacked", filter="data")
    assert list((used_tree / "unpacked").rglob("nodes.c"))
    assert not list((used_tree / "unpacked").rglob("_kernel*"))


def test_an_editable_installation_replaces_the_kernels_between_the_sources(used_tree: Path) -> None:
    build(
        used_tree, "-t", "wheel:editable",
        CC=fake(used_tree), _PYTHON_HOST_PLATFORM="linux-aarch64", MAKES="linux-aarch64",
    )  # fmt: skip
    (kernel,) = (used_tree / "src" / KERNEL).glob("_kernel*")
    assert kernel.name == "_kernel_aarch64.so"
    assert STALE not in kernel.read_bytes()


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_kernel_of_this_installation_runs() -> None:
    assert builds.find()[0] is not None, builds.describe()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the kernel's sources alone, where the loader looks."""
    for source in Path(builds.__file__).parent.glob("*.[ch]"):
        shutil.copy(source, tmp_path)
    monkeypatch.setattr(builds, "_HERE", tmp_path)
    return tmp_path


def test_the_loader_says_why_there_is_no_kernel(alone: Path) -> None:
    look = builds.find.__wrapped__
    library, why = look()
    assert library is None
    assert "none was built" in why
    assert why.endswith("Install gcc or clang, then quadgrad again")
    (alone / f"_kernel_{MACHINE}.so").write_bytes(STALE)
    library, why = look()
    assert library is None
    assert f"_kernel_{MACHINE}.so" in why


@pytest.mark.skipif(builds.find()[0] is None, reason="the package was installed without its compiled kernel")
def test_the_loader_takes_no_kernel_of_other_sources(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_end_threads_before_forks", lambda library: None)
    for kernel in Path(builds.__file__).parent.glob("_kernel*.so"):
        shutil.copy(kernel, alone)
    assert builds.find.__wrapped__()[0] is not None
    with (alone / "nodes.c").open("a") as source:
        source.write("\n")
    library, why = builds.find.__wrapped__()
    assert library is None
    assert why.endswith("was built from other sources. Install quadgrad again")
