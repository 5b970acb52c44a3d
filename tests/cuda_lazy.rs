//! The libraries that a CUDA build is linked with: nothing is opened before the first call, what is missing is an error
//! code, and arguments of every kind reach the real function.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod support;

use std::path::Path;
use std::process::Command;

use support::{folder, repository, required, run};

/// Declarations as cudarc has them.
const DRIVER: &str = r#"
    extern "C" {
        fn cuInit(Flags: ::core::ffi::c_uint) -> CUresult;
    }
    extern "C" {
        fn cuMany(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, x: f64, y: f32) -> CUresult;
    }
"#;
const TEXT: &str = "    fn nvrtcGetErrorString(result: nvrtcResult) -> *const ::core::ffi::c_char;\n";
const CODE: &str = "    fn NAME(handle: *mut c_void) -> cublasStatus_t;\n";

const MAIN: &str = r#"
#include <stdio.h>
int cuInit(unsigned); const char *nvrtcGetErrorString(int); int cublasCreate_v2(void *);
int cuMany(long, long, long, long, long, long, long, long, double, float);
int main(int n, char **given) {
    if (n > 1) { puts("nothing was called"); return 0; }
    printf("%d %d %d ", cuMany(1, 2, 3, 4, 5, 6, 7, 8, 1.5, 2.5f), cuInit(7), cuInit(0));
    printf("%d %s\n", cublasCreate_v2(0), nvrtcGetErrorString(1));
    return 0;
}
"#;

const DRIVER_HERE: &str = r#"
int cuInit(unsigned flags) { return flags == 7 ? 0 : 100; }
int cuMany(long a, long b, long c, long d, long e, long f, long g, long h, double x, float y) {
    return a == 1 && b == 2 && c == 3 && d == 4 && e == 5 && f == 6 && g == 7 && h == 8 && x == 1.5 && y == 2.5f ? 0 : 1;
}
"#;

fn compile(place: &Path, args: &[&str]) {
    let said = run(Command::new("cc").current_dir(place).args(args));
    assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
}

#[test]
fn libraries_are_opened_at_the_first_call_and_may_be_missing() {
    let folder = folder();
    let place = folder.path();
    for (module, text) in [
        ("driver", DRIVER.to_owned()),
        ("nvrtc", TEXT.to_owned()),
        ("cublas", CODE.replace("NAME", "cublasCreate_v2")),
        ("cublaslt", CODE.replace("NAME", "cublasLtCreate")),
        ("curand", CODE.replace("NAME", "curandCreateGenerator")),
    ] {
        let sys = place.join("cudarc/src").join(module).join("sys");
        std::fs::create_dir_all(&sys).unwrap();
        std::fs::write(sys.join("mod.rs"), text).unwrap();
    }
    std::fs::write(place.join("main.c"), MAIN).unwrap();
    std::fs::write(place.join("driver.c"), DRIVER_HERE).unwrap();
    for name in ["lib", "real"] {
        std::fs::create_dir(place.join(name)).unwrap();
    }
    let make = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import cuda_lazy; \
                cuda_lazy.build(Path('cudarc'), Path('lib'), 97)";
    let python = required("WEIGHTSMITH_PYTHON");
    let scripts = repository("scripts");
    let said = run(Command::new(python).current_dir(place).args(["-B", "-c", make]).arg(scripts));
    assert_eq!(said.code, Some(0), "{said:?}");
    compile(place, &["main.c", "-o", "main", "-Llib", "-lcuda", "-lcublas", "-lnvrtc"]);
    compile(place, &["-shared", "-fPIC", "driver.c", "-o", "real/libcuda.so.1"]);

    let main = |args: &[&str], libraries: &str| {
        run(Command::new(place.join("main")).current_dir(place).args(args).env("LD_LIBRARY_PATH", libraries))
    };
    let quiet = main(&["x"], "");
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("nothing was called\n", ""));
    let without = main(&[], "");
    assert_eq!(without.out, "34 34 34 1 libnvrtc.so.97 is not there\n", "{without:?}");
    assert!(without.err.contains("libcublas.so.97") && !without.err.contains("libcuda.so"), "{without:?}");
    let with = main(&[], "real");
    assert_eq!(with.out, "0 0 100 1 libnvrtc.so.97 is not there\n", "{with:?}");
}
