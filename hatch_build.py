"""Builds the search's compiled kernel while the package is installed, if there is a C compiler.

Plain C that Python loads by name: no header of Python or torch is needed, and one build serves every version.
What a processor can do is only known where it runs, so there is a build for each that makes a difference.
Without a compiler, or where it fails, the package is installed without the kernel and is slower.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SEARCH = Path("src", "quadgrad", "_core", "search", "kernel")
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
WIDER = {"_kernel_avx2.so": AVX2, "_kernel_avx512.so": AVX512}
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]


class Kernel(BuildHookInterface[Any]):
    """Compiles the kernel into the wheel; a source distribution carries the source alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before hatchling collects the files."""
        if self.target_name != "wheel":
            return
        why = self._compile("_kernel.so", [])
        if why:
            self.app.display_warning(f"quadgrad is installed without its compiled kernel: {why}")
            return
        if platform.machine().lower() in ("x86_64", "amd64"):
            for name, flags in WIDER.items():
                self._compile(name, flags)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _compile(self, name: str, flags: list[str]) -> str:
        """Compile the kernel, with threads where the compiler knows OpenMP; return what went wrong, if anything."""
        return self._run(name, [*flags, "-fopenmp"]) and self._run(name, flags)

    def _run(self, name: str, flags: list[str]) -> str:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        folder = Path(self.root, SEARCH)
        target, sources = folder / name, sorted(folder.glob("*.[ch]"))
        target.unlink(missing_ok=True)
        source = zlib.crc32(b"".join(path.read_bytes() for path in sources))  # kernel.py loads no other
        code = [str(path) for path in sources if path.suffix == ".c"]
        try:
            done = subprocess.run(
                [*compiler, *FLAGS, *flags, f"-DSOURCE={source}", *code, "-o", str(target), "-lm"],
                capture_output=True,
                text=True,
            )
        except OSError as error:
            return str(error)
        return done.stderr or f"{compiler[0]} failed" if done.returncode else ""
