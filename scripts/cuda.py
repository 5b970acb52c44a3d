#!/usr/bin/env python3
"""Builds weightsmith for CUDA, and fetches what such a build runs with.

    scripts/cuda.py build [CARGO ARGUMENT…]   target/cuda/release/weightsmith, with nvcc of this machine, or of wheels
    scripts/cuda.py runtime                   ONNX Runtime for CUDA with CUDA's libraries -> .weightsmith/cuda.sh

nvcc is that of NVCC or CUDA_HOME, else of the PATH or /usr/local/cuda, else of the wheels in runtime/pins.json (164 MB).
CUDA_COMPUTE_CAP is the GPU's (`90` for an H100); without it this machine's, and 80, whose code later GPUs translate,
where there is no GPU. Files go below WEIGHTSMITH_DEPS (default .weightsmith/deps).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_lazy
import wheels
from host import SetupError, require_toolchain
from setup import PINS, ROOT
from wheels import deps_folder

CUDA = PINS["cuda"]
RUN_ENV = ROOT / ".weightsmith" / "cuda.sh"
# Older GPUs than this one are not what candle's kernels are written for; newer ones translate its code at the start.
DEFAULT_CAP = "80"


def fetched(name: str) -> Path:
    """The folder of the wheels of `compiler` or `runtime`, all in one tree; fetched when it is not complete."""
    pins = CUDA[name]
    folder = deps_folder() / f"cuda-{name}-{CUDA['version']}-{wheels.key(pins)}"
    if not wheels.is_complete(folder):
        wheels.unpack_all(pins, folder)
    return folder


def installed_nvcc() -> Path | None:
    """nvcc as the user names it, or as it is installed."""
    named = [os.environ.get("NVCC"), os.environ.get("CUDA_HOME") and os.environ["CUDA_HOME"] + "/bin/nvcc"]
    for path in filter(None, named):
        if not Path(path).is_file():
            raise SetupError(f"there is no nvcc at {path}, where NVCC or CUDA_HOME point: set one right, or neither")
        return Path(path).resolve()
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin:/opt/cuda/bin")
    return Path(found).resolve() if found else None


def version_of(nvcc: Path) -> tuple[int, int]:
    """The toolkit's version."""
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None:
        raise SetupError(f"{nvcc} --version does not say which release of CUDA it is")
    return int(release[1]), int(release[2])


def cudarc_source() -> Path:
    """The source of the crate cudarc at the locked version, which cargo fetches when it is not there."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--features", "cli/cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"cargo metadata: {done.stderr.strip()[-500:]}")
    packages = json.loads(done.stdout)["packages"]
    return next(Path(p["manifest_path"]).parent for p in packages if p["name"] == "cudarc")


def static_runtime(toolkit: Path) -> Path:
    """The CUDA runtime as an archive, so that it is part of the program."""
    places = ["lib64", "lib", "targets/x86_64-linux/lib", "lib/x86_64-linux-gnu"]
    found = [toolkit / place / "libcudart_static.a" for place in places]
    for path in (*found, Path("/usr/lib/x86_64-linux-gnu/libcudart_static.a")):
        if path.is_file():
            return path
    raise SetupError(f"{toolkit} has no libcudart_static.a: install the whole CUDA toolkit, or take nvcc off the PATH")


def link_tree(nvcc: Path, version: tuple[int, int]) -> Path:
    """A folder as CUDA_HOME has it, whose `lib` holds what is linked: see scripts/cuda_lazy.py."""
    toolkit, cudarc = nvcc.parent.parent, cudarc_source()
    runtime = static_runtime(toolkit)
    made_by = "".join((Path(__file__).with_name("cuda_lazy.py")).read_text())
    digest = hashlib.sha256(f"{cudarc} {runtime} {version} {made_by}".encode()).hexdigest()[:8]
    folder = deps_folder() / f"cuda-link-{version[0]}.{version[1]}-{digest}"
    if not wheels.is_complete(folder):
        with wheels.temporary_beside(folder) as scratch:
            lib = scratch / "content" / "lib"
            wheels.open_folder(lib)
            cuda_lazy.build(cudarc, lib, version[0])
            shutil.copyfile(runtime, lib / "libcudart.a")
            wheels.publish(scratch / "content", folder)
    return folder


def compute_cap() -> str:
    """The GPU to compile for, in the digits that nvcc takes."""
    given = os.environ.get("CUDA_COMPUTE_CAP")
    if given:
        return given
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0].replace(".", "")
    return DEFAULT_CAP


def build(arguments: list[str]) -> None:
    """Runs cargo with the feature `cuda`, into a folder of its own: the default build compiles nothing again."""
    require_toolchain()
    if wheels.machine() != "x86_64":
        raise SetupError(f"the CUDA build is for x86_64; this machine is {wheels.machine()}")
    if not shutil.which("c++"):
        raise SetupError("nvcc needs a C++ compiler (`c++`): type `sudo apt-get install g++`, then try again.")
    nvcc = installed_nvcc() or fetched("compiler") / "nvidia/cu13/bin/nvcc"
    version = version_of(nvcc)
    cap = compute_cap()
    print(f"cuda: nvcc {version[0]}.{version[1]} ({nvcc}), for compute capability {cap}", flush=True)
    target = Path(os.environ.get("CUDA_TARGET_DIR") or ROOT / "target" / "cuda")
    env = {**os.environ, "NVCC": str(nvcc), "CUDA_HOME": str(link_tree(nvcc, version)), "CUDA_COMPUTE_CAP": cap,
           "CUDARC_CUDA_VERSION": f"{version[0]}0{version[1]}0", "CARGO_TARGET_DIR": str(target)}
    # cudarc would look for libraries there too.
    for name in ("CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB"):
        env.pop(name, None)
    command = ["cargo", *(arguments or ["build", "--release", "--locked", "-p", "cli"]), "--features", "cli/cuda"]
    if subprocess.run(command, cwd=ROOT, env=env).returncode != 0:
        raise SetupError(f"{' '.join(command)} failed")
    print(f"cuda: {target}/release/weightsmith", flush=True)


def runtime() -> None:
    """Fetches what a CUDA build needs on a machine with a GPU and a driver, and says how to use it."""
    folder = fetched("runtime")
    library = sorted(folder.glob("onnxruntime/capi/libonnxruntime.so.*"))[0]
    places = sorted({str(p.parent) for p in folder.glob("nvidia/*/lib/*.so.*")})
    lines = ["# Written by scripts/cuda.py; source it before running a CUDA build.\n",
             f"export WEIGHTSMITH_ORT={shlex.quote(str(library))}\n",
             f"export LD_LIBRARY_PATH={shlex.quote(':'.join(places))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n"]
    RUN_ENV.parent.mkdir(exist_ok=True)
    temporary = RUN_ENV.with_name(f"cuda.sh.{os.getpid()}.part")
    temporary.write_text("".join(lines))
    os.replace(temporary, RUN_ENV)
    print(f"cuda: ready; type `. {RUN_ENV.relative_to(ROOT)}`, then `target/cuda/release/weightsmith doctor --device cuda`")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in ("build", "runtime"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        build(arguments[1:]) if arguments[0] == "build" else runtime()
    except SetupError as error:
        print(f"cuda: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
