"""Link-time CUDA libraries that open the real ones at the first call, so that a CUDA build starts on any machine.

candle links to CUDA's libraries, and a program that does so does not even start where one is missing. What is linked
here instead is, for each library, an archive with a trampoline for every function that the crate cudarc declares. The
first call opens the real library with dlopen; where that fails, every function returns an error code, which candle
reports like any other. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from host import SetupError


class Library(NamedTuple):
    """A library of CUDA: folder in cudarc, name at link time, files to open (`{major}` of CUDA), and what functions
    return when it cannot be opened."""

    module: str
    name: str
    files: tuple[str, ...]
    missing: int


LIBRARIES = (
    # CUDA_ERROR_STUB_LIBRARY: "the CUDA driver that the application has loaded is a stub library".
    Library("driver", "cuda", ("libcuda.so.1", "libcuda.so"), 34),
    # CUBLAS_STATUS_NOT_INITIALIZED, twice.
    Library("cublas", "cublas", ("libcublas.so.{major}",), 1),
    Library("cublaslt", "cublasLt", ("libcublasLt.so.{major}",), 1),
    # CURAND_STATUS_INITIALIZATION_FAILED
    Library("curand", "curand", ("libcurand.so.10",), 203),
    # NVRTC_ERROR_INTERNAL_ERROR
    Library("nvrtc", "nvrtc", ("libnvrtc.so.{major}",), 11),
)
FUNCTION = re.compile(r"^\s+fn (\w+)\(.*\)(?: -> (.*))?;$", re.MULTILINE)

ASSEMBLY = """\
    .text
common:
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %r8
    push %r9
    push %rax
    push %r10
    sub $128, %rsp
{save}
    mov 192(%rsp), %rdi
    call {prefix}_resolve
    mov %rax, %r11
{load}
    add $128, %rsp
    pop %r10
    pop %rax
    pop %r9
    pop %r8
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    add $8, %rsp
    jmp *%r11
{trampolines}
    .data
    .balign 8
    .globl {prefix}_slots
    .hidden {prefix}_slots
{prefix}_slots:
{slots}
    .section .note.GNU-stack,"",@progbits
"""

TRAMPOLINE = """\
    .globl {name}
    .type {name}, @function
{name}:
    jmp *{prefix}_slots+{offset}(%rip)
    .size {name}, .-{name}
first_{index}:
    push ${index}
    jmp common"""

RESOLVER = """\
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

extern void *volatile {prefix}_slots[] __attribute__((visibility("hidden")));
static const char *const names[] = {{{names}}};
static const char returns_text[] = {{{texts}}};
static const char *const files[] = {{{files}}};
static pthread_once_t once = PTHREAD_ONCE_INIT;

static long missing_code(void) {{ return {missing}; }}
static const char *missing_text(void) {{ return "{first} is not there"; }}

static void resolve_all(void) {{
    void *library = NULL;
    for (unsigned i = 0; library == NULL && i < sizeof files / sizeof *files; i++) library = dlopen(files[i], RTLD_NOW);
    if (library == NULL && {loud}) fprintf(stderr, "weightsmith: CUDA is not complete: %s\\n", dlerror());
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {{
        void *found = library == NULL ? NULL : dlsym(library, names[i]);
        if (found == NULL) found = returns_text[i] ? (void *)missing_text : (void *)missing_code;
        {prefix}_slots[i] = found;
    }}
}}

__attribute__((visibility("hidden"))) void *{prefix}_resolve(unsigned long function) {{
    pthread_once(&once, resolve_all);
    return {prefix}_slots[function];
}}
"""


def functions(source: str) -> list[tuple[str, bool]]:
    """The functions that a `sys/mod.rs` of cudarc declares, and whether each returns a text."""
    found = {name: "c_char" in (result or "") for name, result in FUNCTION.findall(source)}
    return sorted(found.items())


def assembly(names: list[str], prefix: str) -> str:
    """Trampolines in x86-64 assembly: arguments in registers survive the search for the real function."""
    moves = [f"movups %xmm{i}, {16 * i}(%rsp)" for i in range(8)], [f"movups {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    return ASSEMBLY.format(
        prefix=prefix,
        save="\n".join(f"    {m}" for m in moves[0]),
        load="\n".join(f"    {m}" for m in moves[1]),
        trampolines="\n".join(TRAMPOLINE.format(name=n, prefix=prefix, offset=8 * i, index=i)
                              for i, n in enumerate(names)),
        slots="\n".join(f"    .quad first_{i}" for i in range(len(names))))


def resolver(library: Library, declared: list[tuple[str, bool]], prefix: str, major: int) -> str:
    """The part in C: opens the library once and fills the table that the trampolines jump through."""
    files = [file.format(major=major) for file in library.files]
    quoted = lambda words: ", ".join(f'"{word}"' for word in words)
    return RESOLVER.format(
        prefix=prefix, missing=library.missing, first=files[0], files=quoted(files),
        names=quoted(name for name, _ in declared), texts=", ".join(str(int(text)) for _, text in declared),
        # No driver is an ordinary machine without a GPU, which the program reports itself.
        loud=int(library.module != "driver"))


def build(cudarc: Path, folder: Path, major: int) -> None:
    """Writes `lib*.a` for every library into `folder`, which exists; `cudarc` is the crate's source."""
    for library in LIBRARIES:
        declared = functions((cudarc / "src" / library.module / "sys" / "mod.rs").read_text())
        if not declared:
            raise SetupError(f"no functions are declared in {cudarc / 'src' / library.module / 'sys' / 'mod.rs'}")
        compile_archive(library, declared, folder, major)


def compile_archive(library: Library, declared: list[tuple[str, bool]], folder: Path, major: int) -> None:
    """Compiles one archive from its two sources, which are removed."""
    prefix = f"weightsmith_lazy_{library.name}"
    sources = {folder / f"{prefix}.S": assembly([name for name, _ in declared], prefix),
               folder / f"{prefix}_resolve.c": resolver(library, declared, prefix, major)}
    objects = []
    for source, text in sources.items():
        source.write_text(text)
        objects.append(source.with_suffix(".o"))
        run(["cc", "-c", "-O2", "-fPIC", "-o", str(objects[-1]), str(source)])
    archive = folder / f"lib{library.name}.a"
    archive.unlink(missing_ok=True)
    run(["ar", "rcs", str(archive), *map(str, objects)])
    for path in [*sources, *objects]:
        path.unlink()


def run(command: list[str]) -> None:
    """Runs a compiler; on failure raises with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
