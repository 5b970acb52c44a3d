"""What this machine offers: a user for Postgres, a C compiler, a pip. Standard library only."""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1


class SetupError(Exception):
    """What is missing and what to do about it, in words for the user; exit code 2."""


def server_user() -> pwd.struct_passwd | None:
    """The user that runs Postgres: `postgres`, else `nobody`, when root (Postgres refuses root); else None (oneself)."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise SetupError("Postgres refuses to run as root, and neither the user postgres nor nobody exists: "
                     "create one, run as an ordinary user, or set DATABASE_URL.")


def become(user: pwd.struct_passwd | None) -> None:
    """Turns the current (forked) process into one of `user`; does nothing for None."""
    if user is not None:
        os.setgroups([user.pw_gid])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def die_with_parent(user: pwd.struct_passwd | None):
    """A `preexec_fn`: become `user`, and get SIGINT when the starting thread ends, even by SIGKILL."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        become(user)  # first: a change of user clears the death signal
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def can_use(path: Path, user: pwd.struct_passwd | None) -> bool:
    """Whether `user` can read and traverse `path`: asked of the kernel, in a child that is that user."""
    child = os.fork()
    if child == 0:
        usable = False
        try:
            become(user)
            usable = os.access(path, os.R_OK | os.X_OK)
        finally:
            os._exit(0 if usable else 1)
    return os.waitpid(child, 0)[1] == 0


def apt_install(packages: list[str]) -> bool:
    """Installs Debian packages when this user may do so without a question; says whether that worked."""
    if not shutil.which("apt-get"):
        return False
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and (not shutil.which("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode):
        return False
    print(f"setup: installing {' '.join(packages)} with apt-get", flush=True)
    install = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq",
               "--no-install-recommends", *packages]
    if subprocess.run(install, capture_output=True).returncode == 0:
        return True
    subprocess.run([*sudo, "apt-get", "update", "-qq"], capture_output=True)
    return subprocess.run(install, stdout=subprocess.DEVNULL).returncode == 0


def require_toolchain() -> None:
    """Cargo must be there; a C compiler, which cargo links with, is installed when it is not."""
    if not shutil.which("cargo"):
        raise SetupError("cargo is not on the PATH: install Rust (the rustup toolchain, 1.94 or newer) and try again.")
    if not shutil.which("cc") and not (apt_install(["gcc", "libc6-dev"]) and shutil.which("cc")):
        raise SetupError("cargo needs a C compiler and linker (`cc`), and there is none: "
                         "type `sudo apt-get install gcc libc6-dev`, then try again.")


@functools.lru_cache(maxsize=None)
def find_pip(deps: Path) -> tuple[list[str], dict[str, str]]:
    """A pip command and its extra environment: the host's, else one in a venv, else Debian's pip wheel."""
    if _runs_pip([sys.executable], {}):
        return [sys.executable, "-m", "pip"], {}
    private = deps / "pip"
    for bootstrap in (_pip_from_venv, _pip_from_debian):
        found = bootstrap(private)
        if found:
            return found
    if apt_install(["python3-pip"]) and _runs_pip([sys.executable], {}):
        return [sys.executable, "-m", "pip"], {}
    raise SetupError(f"{sys.executable} has no pip, and none could be set up: "
                     "type `sudo apt-get install python3-pip`, then try again.")


def _runs_pip(python: list[str], extra: dict[str, str]) -> bool:
    command = [*python, "-m", "pip", "--version"]
    return subprocess.run(command, env={**os.environ, **extra}, capture_output=True).returncode == 0


def _pip_from_venv(private: Path) -> tuple[list[str], dict[str, str]] | None:
    """Needs Debian's python3-venv; nothing outside `private` changes."""
    python = private / "venv" / "bin" / "python3"
    if not python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(private / "venv")], capture_output=True)
        if made.returncode != 0:
            shutil.rmtree(private / "venv", ignore_errors=True)
            return None
    return ([str(python), "-m", "pip"], {}) if _runs_pip([str(python)], {}) else None


def _pip_from_debian(private: Path) -> tuple[list[str], dict[str, str]] | None:
    """Takes pip out of the package python3-pip-whl: no root and no system-wide change, apt's state is private too."""
    unpacked = private / "debian"
    if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        private.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=private) as scratch:
            _unpack_pip_wheel(Path(scratch), unpacked)
    extra = {"PYTHONPATH": str(unpacked)}
    return ([sys.executable, "-m", "pip"], extra) if _runs_pip([sys.executable], extra) else None


def _unpack_pip_wheel(scratch: Path, unpacked: Path) -> None:
    for part in ("lists/partial", "cache/archives/partial", "package"):
        (scratch / part).mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
    if os.geteuid() == 0:
        apt += ["-o", "APT::Sandbox::User=root"]
    for step in (["update"], ["download", "python3-pip-whl"]):
        if subprocess.run([*apt, *step], cwd=scratch, capture_output=True).returncode != 0:
            return
    for package in glob.glob(f"{scratch}/*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, f"{scratch}/package"], capture_output=True)
    for wheel in glob.glob(f"{scratch}/package/usr/share/python-wheels/pip-*.whl"):
        shutil.unpack_archive(wheel, scratch / "pip", "zip")
        os.rename(scratch / "pip", unpacked)
        return
