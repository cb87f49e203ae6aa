"""Builds the search's compiled kernel for the platform that a wheel is made for, if a C compiler can.

Plain C that Python loads by name: no header of Python or torch is needed, and one build serves every version.
What a processor can do is only known where it runs, so there is a build for each that makes a difference, named by
its architecture. A wheel gets what was compiled for it just now, in a folder of its own, and whose header names
the wheel's platform: nothing that lies in the source folder. Where that cannot be had, the wheel is pure Python.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = "src/quadgrad/_core/search/kernel"
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
POSIX = ["-fPIC", "-lm"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
WIDER = {"x86_64": {"_avx2": AVX2, "_avx512": AVX512}}

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""What some systems call them, and what files are named by."""

FORMATS = {"macosx": "Mach-O", "win": "PE"}
"""Of a system's binaries; ELF on all others."""

MACHINES = {
    "ELF": {21: "ppc64le", 22: "s390x", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"},
    "Mach-O": {0x01000007: "x86_64", 0x0100000C: "aarch64"},
    "PE": {0x8664: "x86_64", 0xAA64: "aarch64"},
}
"""How the header of a binary says for which architecture it is."""


class Kernel(BuildHookInterface[Any]):
    """Compiles the kernel into the wheel; a source distribution carries the source alone."""

    made = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before hatchling collects the files; an editable installation loads from the source folder."""
        if self.target_name != "wheel":
            return
        source = Path(self.root, KERNEL)
        self.made = tempfile.mkdtemp()
        tag, architectures = wheel_platform(sysconfig.get_platform())
        if version == "editable":
            for stale in source.glob("_kernel*.so"):
                stale.unlink()
        try:
            for architecture in architectures:
                compile_all(source, Path(self.made), tag, architecture)
        except NoKernelError as why:
            self.app.display_warning(f"quadgrad is installed without its compiled kernel, and slower: {why}")
            return
        binaries = sorted(Path(self.made).glob("_kernel*.so"))
        if version == "editable":
            for path in binaries:
                shutil.copy(path, source)
        else:
            places = {str(path): f"{KERNEL.removeprefix('src/')}/{path.name}" for path in binaries}
            build_data |= {"pure_python": False, "tag": f"py3-none-{tag}", "force_include": places}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        if self.made:
            shutil.rmtree(self.made)


class NoKernelError(Exception):
    """Why there is none."""


def wheel_platform(platform: str) -> tuple[str, list[str]]:
    """Return the platform's tag of a wheel, and the architectures that it serves, as their system calls them.

    ``platform`` is sysconfig's, which honours ``_PYTHON_HOST_PLATFORM``: linux-x86_64, win-amd64, or
    macosx-11.0-arm64. On macOS ``ARCHFLAGS`` and ``MACOSX_DEPLOYMENT_TARGET`` have the last word.
    """
    system, *version, architecture = platform.split("-")
    if system != "macosx":
        return re.sub(r"\W", "_", platform), [architecture]
    architectures = ["arm64", "x86_64"] if architecture == "universal2" else [architecture]
    architectures = sorted(set(re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", "")))) or architectures
    release = os.environ.get("MACOSX_DEPLOYMENT_TARGET") or version[0]
    major, minor = map(int, f"{release}.0".split(".")[:2])
    if architectures == ["arm64"] or major > 10:  # the first system on such machines; from it on, no minor numbers
        major, minor = max(major, 11), 0
    name = architectures[0] if len(architectures) == 1 else "universal2"
    return f"macosx_{major}_{minor}_{name}", architectures


def compile_all(source: Path, folder: Path, tag: str, architecture: str) -> None:
    """Compile the kernel that runs on every machine of an architecture, and those for more able ones."""
    system, *release = tag.split("_")[:3]
    name = ARCHITECTURES.get(architecture, architecture)
    command, wanted = compiler(), (FORMATS.get(system, "ELF"), name)
    if system == "macosx":  # not the system that happens to run here
        command += ["-arch", architecture, f"-mmacosx-version-min={'.'.join(release)}"]
    run(command, [], source, folder / f"_kernel_{name}.so", wanted)
    if system == "win":  # gcc keeps no stack there that AVX's registers could be saved on
        return
    for suffix, flags in WIDER.get(name, {}).items():
        try:
            run(command, flags, source, folder / f"_kernel_{name}{suffix}.so", wanted)
        except NoKernelError:  # a compiler that is too old for them
            continue


def compiler() -> list[str]:
    """Return the command of a compiler that knows GNU C."""
    asked = os.environ.get("CC", "")
    names = [asked] if asked else [sysconfig.get_config_var("CC") or "", "cc", "clang", "gcc"]
    commands = [[name] if shutil.which(name) else shlex.split(name) for name in names]  # a path may hold spaces
    command = next((command for command in commands if command and shutil.which(command[0])), [])
    if Path(asked).stem.lower() in ("cl", "clang-cl") or (os.name == "nt" and not command):
        raise NoKernelError(
            "it is GNU C, which Microsoft's compiler does not know: install clang or gcc, and name it in CC"
        )
    if not command:
        raise NoKernelError(f"there is no C compiler {asked or 'here: install gcc or clang'}")
    return command


def run(command: list[str], flags: list[str], source: Path, target: Path, wanted: tuple[str, str]) -> None:
    """Compile, with threads where the compiler knows OpenMP."""
    sources = sorted(source.glob("*.[ch]"))
    crc = zlib.crc32(b"".join(path.read_bytes() for path in sources))  # the loader takes no other
    code = [str(path) for path in sources if path.suffix == ".c"]
    # On Windows all that it links to has to be inside, and there are no threads: OpenMP's library lies elsewhere.
    attempts = [["-static"]] if wanted[0] == "PE" else [[*POSIX, "-fopenmp"], POSIX]
    text = ""
    for more in attempts:
        words = [*command, *environment("CFLAGS"), *FLAGS, *flags, f"-DSOURCE={crc}", *code, "-o", str(target)]
        try:
            done = subprocess.run([*words, *more, *environment("LDFLAGS")], capture_output=True, text=True)
        except OSError as error:
            raise NoKernelError(str(error)) from error
        text = done.stderr.strip() or f"{command[0]} failed"
        if done.returncode == 0 and target.exists():
            break
    else:
        raise NoKernelError(text)
    if header(target) != wanted:
        made = " for ".join(header(target))
        target.unlink()
        raise NoKernelError(
            f"{command[0]} makes {made}, and this wheel needs {' for '.join(wanted)}: name another in CC"
        )


def environment(name: str) -> list[str]:
    """Return the options that someone who compiles for another machine gives to every compiler."""
    return shlex.split(os.environ.get(name, ""))


def header(binary: Path) -> tuple[str, str]:
    """Return the format of a binary, and the architecture it is for, as far as they are known."""
    head = binary.read_bytes()[:4096]
    if head.startswith(b"\x7fELF"):
        kind, code = "ELF", int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    elif head.startswith(b"\xcf\xfa\xed\xfe"):
        kind, code = "Mach-O", int.from_bytes(head[4:8], "little")
    elif head.startswith(b"MZ"):
        start = int.from_bytes(head[60:64], "little") + 4
        kind, code = "PE", int.from_bytes(head[start : start + 2], "little")
    else:
        return "an unknown format", "an unknown machine"
    return kind, MACHINES[kind].get(code, f"machine {code}")
