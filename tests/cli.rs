//! The command line: what works, and that bad input ends with exit code 2, one line, and no file.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use support::data::{base64, digits, npz_with_nan, some_digits, zip};
use support::{config, files_in, folder, last_digest, refused, required, run, succeed, text, train, weightsmith};
use tempfile::TempDir;
use weights::{Architecture, tensors};

/// A generator of no quality, for what does not depend on it.
struct Tiny {
    zoo: PathBuf,
    bundle: PathBuf,
    digest: String,
    _folder: TempDir,
}

impl Tiny {
    fn bundle(&self) -> &str {
        text(&self.bundle)
    }
}

fn tiny() -> Tiny {
    type File = (String, Vec<u8>);
    static MADE: OnceLock<(Vec<u8>, String, Vec<File>)> = OnceLock::new();
    let (tar, digest, zoo) = MADE.get_or_init(|| {
        required("WEIGHTSMITH_ORT");
        let folder = folder();
        let (tar, digest) = train("tiny", folder.path());
        let zoo = files_in(&folder.path().join("zoo"));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let zoo = zoo.iter().map(|(path, _)| (name(path), std::fs::read(path).unwrap())).collect();
        (std::fs::read(tar).unwrap(), digest, zoo)
    });
    let folder = folder();
    let (bundle, dir) = (folder.path().join("tiny.tar"), folder.path().join("zoo"));
    std::fs::write(&bundle, tar).unwrap();
    std::fs::create_dir(&dir).unwrap();
    zoo.iter().for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes).unwrap());
    Tiny { zoo: dir, bundle, digest: digest.clone(), _folder: folder }
}

/// Runs commands that must be refused with these codes, each in an empty folder that must stay empty; gives the
/// lines.
fn refuse_all(cases: &[(&[&str], &str, &str)]) {
    for (args, code, part) in cases {
        let place = folder();
        let line = refused(weightsmith(*args).current_dir(place.path()));
        assert!(line.ends_with(&format!(" [{code}]")), "{args:?}: {line}");
        assert!(line.contains(part), "{args:?} does not say {part:?}: {line}");
        assert_eq!(files_in(place.path()), [], "{args:?} wrote files");
    }
}

#[test]
fn every_command_explains_itself() {
    let commands = "serve|zoo build|train|generate|evaluate|demo|generator list|generator export|generator import|generator half|\
                    dataset import|dataset list|dataset show|extractor import|extractor list|doctor";
    for command in commands.split('|') {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = succeed(&args);
        let (_, example) = help.split_once("Example").unwrap_or_else(|| panic!("{command} has no example: {help}"));
        assert!(example.contains(&format!("weightsmith {command}")), "{command}: {example}");
        assert!(!help.contains("\n\n\n"), "{help}");
    }
    let help = succeed(&["generate", "--help"]);
    for default in ["[default: 1]", "[default: ddim]", "[default: auto]", "[default: .weightsmith/data]"] {
        assert!(help.contains(default), "{default}: {help}");
    }
    let all = succeed(&["--help"]);
    for command in ["serve", "zoo", "train", "generate", "evaluate", "demo", "generator", "token", "openapi"] {
        assert!(all.contains(&format!("\n  {command} ")), "{command}: {all}");
    }
    assert_eq!(run(&mut weightsmith(["frobnicate"])).code, Some(2));
    assert_eq!(run(&mut weightsmith(["generate", "--bundle", "a", "--count", "x"])).code, Some(2));
}

#[test]
fn generated_files_evaluate_well() {
    let place = folder();
    let (bundle, digest) = train("small-digits", place.path());
    let out = place.path().join("deep/out");
    let generate = |seed: &str, out: &Path| {
        let args = ["generate", "--bundle", text(&bundle), "--data", "digits", "--classes", "9,4,2", "--count", "3"];
        succeed(&[&args[..], &["--seed", seed, "--out", text(out)]].concat())
    };
    let said = generate("4", &out);
    let names: Vec<_> = files_in(&out).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, [0, 1, 2].map(|n| out.join(format!("sample-{n}.safetensors"))));
    for (line, name) in said.lines().zip(&names) {
        let bytes = std::fs::read(name).unwrap();
        assert_eq!(line, format!("{} {}", name.display(), weights::digest::sha256(&bytes)));
        let metadata = tensors::metadata(&bytes).unwrap();
        assert_eq!((metadata["generator"].as_str(), metadata["classes"].as_str()), (&*digest, r#"["9","4","2"]"#));
    }
    // The same again is the same; another seed is not.
    let (again, other) = (place.path().join("again"), place.path().join("other"));
    assert_eq!(generate("4", &again).replace(text(&again), text(&out)), said);
    assert_ne!(generate("5", &other).replace(text(&other), text(&out)), said);

    let files: Vec<&str> = names.iter().map(|name| text(name)).collect();
    let said = succeed(&[&["evaluate", "--data", "digits", "--json"][..], &files].concat());
    let results: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), 3);
    for (result, file) in results.iter().zip(&files) {
        assert_eq!((&result["file"], &result["examples"]), (&json!(file), &json!(180 + 181 + 177)));
        assert!(result["accuracy"].as_f64().unwrap() > 0.8, "{result}");
    }
    // Data in a file of one's own, whose classes are those of the metadata in another order.
    let archive = place.path().join("own.zip");
    std::fs::write(&archive, zip(&some_digits(&[2, 9, 4], 0, 100))).unwrap();
    let said = succeed(&["evaluate", files[0], "--data", &format!("zip:{}", archive.display()), "--json"]);
    let result: Value = serde_json::from_str(&said).unwrap();
    assert!(result["accuracy"].as_f64().unwrap() > 0.8 && result["examples"] == 300, "{result}");
}

#[test]
fn a_generator_in_half_precision_makes_nearly_the_same_networks() {
    let place = folder();
    let (bundle, digest) = train("small-digits", place.path());
    let half = place.path().join("deep/half.tar");
    let said = succeed(&["generator", "half", text(&bundle), "--out", text(&half)]);
    assert!(said.contains("% of what two networks differ by") && last_digest(&said) != digest, "{said}");
    assert!(std::fs::metadata(&half).unwrap().len() < std::fs::metadata(&bundle).unwrap().len());
    let made = |bundle: &Path, name: &str| {
        let out = place.path().join(name);
        let args = ["generate", "--bundle", text(bundle), "--data", "digits", "--classes", "9,4,2", "--seed", "4"];
        succeed(&[&args[..], &["--out", text(&out)]].concat());
        let bytes = std::fs::read(out.join("sample-0.safetensors")).unwrap();
        let layout =
            Architecture::Mlp { inputs: 64, hidden: vec![12], classes: 3, activation: Default::default() }.layout();
        (tensors::metadata(&bytes).unwrap()["generator"].clone(), tensors::from_safetensors(&bytes, &layout).unwrap())
    };
    let ((of_single, single), (of_half, rounded)) = (made(&bundle, "single"), made(&half, "half"));
    assert!(of_single == digest && of_half == last_digest(&said));
    let largest = single.iter().fold(0f32, |most, v| most.max(v.abs()));
    let off = single.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off > 0.0 && off < 0.02 * largest, "{off} of {largest}");
    // A graph that is in half precision already, and no place to write to.
    let other = place.path().join("other.tar");
    refuse_all(&[
        (&["generator", "half", text(&half), "--out", text(&other)], "config_invalid", "in half precision already"),
        (&["generator", "half", text(&other), "--out", text(&half)], "io", "other.tar"),
        (&["generator", "half", text(&bundle), "--out", text(place.path())], "not_a_file", "is a folder"),
    ]);
    assert!(!other.exists());
}

#[test]
fn datasets_are_imported_listed_and_shown() {
    let (place, files) = (folder(), folder());
    let data = ["--data-dir", text(place.path())];
    let digits = datasets::load_source("digits").unwrap();
    let few = digits.take(&digits.sample(3, 0));
    let file = files.path().join("few.npz");
    std::fs::write(&file, datasets::npz::to_npz(&few).unwrap()).unwrap();
    let import = |name: &str, more: &[&str]| {
        succeed(&[&["dataset", "import", text(&file), "--name", name][..], more, &data[..]].concat())
    };
    assert!(import("few", &[]).contains(&format!("few: 30 examples of [1, 8, 8] in 10 classes, {}", few.digest())));
    assert!(import("again", &[]).contains("few: 30 examples") && import("again", &[]).contains("before"));
    assert!(import("two", &["--classes", "3,1", "--channels", "3"]).contains("two: 6 examples of [3, 8, 8] in 2"));
    assert_eq!(succeed(&[&["dataset", "list"][..], &data].concat()).lines().count(), 3);
    let shown: Value = serde_json::from_str(&succeed(&[&["dataset", "show", "two"][..], &data].concat())).unwrap();
    assert_eq!(shown["class_names"], json!(["3", "1"]));
    for (args, code) in [
        (["dataset", "import", text(&file), "--name", "A"], "invalid_name"),
        (["dataset", "import", "few.rar", "--name", "a"], "unknown_format"),
        (["dataset", "import", "none.zip", "--name", "a"], "io"),
    ] {
        let line = refused(weightsmith(args).args(data));
        assert!(line.ends_with(&format!(" [{code}]")), "{line}");
    }
}

#[test]
fn a_generator_moves_between_registries() {
    let (tiny, first, second) = (tiny(), folder(), folder());
    let (first, second) = (text(first.path()), text(second.path()));
    let said = succeed(&["generator", "import", tiny.bundle(), "--data-dir", first]);
    assert_eq!(said.trim(), format!("tiny@1 {}", tiny.digest));
    let moved = folder();
    let file = moved.path().join("new/moved.tar");
    let said = succeed(&["generator", "export", "tiny", "--out", text(&file), "--data-dir", first]);
    assert_eq!(last_digest(&said), tiny.digest);
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(tiny.bundle()).unwrap());
    let said = succeed(&["generator", "import", text(&file), "--name", "other", "--data-dir", second]);
    assert_eq!(said.trim(), format!("other@1 {}", tiny.digest));
    // The same bundle under the same name is the version there is; under another, a generator of its own.
    let said = succeed(&["generator", "import", text(&file), "--name", "other", "--data-dir", second]);
    assert_eq!(last_digest(&said), tiny.digest);
    let list = succeed(&["generator", "list", "--data-dir", second]);
    assert!(list.lines().count() == 2 && list.lines().nth(1).unwrap().starts_with("other "), "{list}");

    // From the registry and from the file come the same weights.
    let mut digests = Vec::new();
    for source in [["--bundle", tiny.bundle()], ["--generator", "other@latest"]] {
        let out = moved.path().join(source[0]);
        let args = ["generate", source[0], source[1], "--data", "digits", "--classes", "1,2,3"];
        succeed(&[&args[..], &["--out", text(&out), "--data-dir", second]].concat());
        let bytes = std::fs::read(out.join("sample-0.safetensors")).unwrap();
        digests.push(tensors::named_from_safetensors(&bytes, "layers.0.weight").unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    for (args, code) in [
        (["generator", "export", "nobody", "--out"], "not_found"),
        (["generator", "export", "other@7", "--out"], "not_found"),
        (["generator", "export", "a@b@c", "--out"], "invalid_reference"),
    ] {
        let out = moved.path().join("refused.tar");
        let line = refused(weightsmith(args).args([text(&out), "--data-dir", second]));
        assert!(line.ends_with(&format!(" [{code}]")) && !out.exists(), "{line}");
    }
}

#[test]
fn configurations_and_zoos() {
    let (tiny, place) = (tiny(), folder());
    let write = |name: &str, change: (&str, &str)| {
        let original = std::fs::read_to_string(config("tiny")).unwrap();
        let changed = original.replace(change.0, change.1);
        assert_ne!(changed, original);
        let path = place.path().join(name);
        std::fs::write(&path, changed).unwrap();
        path.display().to_string()
    };
    let unknown = write("unknown.toml", ("epochs = 10", "epocs = 10"));
    let zero = write("zero.toml", ("epochs = 10", "epochs = 0"));
    let broken = write("broken.toml", ("[zoo]", "[zoo"));
    let many = write("many.toml", ("seen = 20", "seen = 121"));
    let nowhere = write("nowhere.toml", ("from = \"digits\"", "from = \"idx:/no/such/folder\""));
    let unset = write("unset.toml", ("from = \"digits\"", "from = \"idx:${WEIGHTSMITH_NO_SUCH}\""));
    let name = write("name.toml", ("name = \"tiny\"", "name = \"Tiny 1\""));
    let cnn = write("cnn.toml", ("kind = \"mlp\"\nhidden = [8]", "kind = \"tiny_cnn\""));
    for command in [["zoo", "build"].as_slice(), &["train", "--zoo", text(&tiny.zoo)], &["demo"]] {
        let out: &[&str] = if command[0] == "demo" { &["--data-dir", "out"] } else { &["--out", "out"] };
        for (config, code, part) in [
            ("/no/such.toml", "io", "/no/such.toml"),
            (unknown.as_str(), "config_invalid", "unknown field `epocs`"),
            (&zero, "config_invalid", "zoo.epochs must be at least 1"),
            (&broken, "config_invalid", "line"),
            (&nowhere, "io", "/no/such/folder"),
            (&unset, "config_invalid", "WEIGHTSMITH_NO_SUCH"),
            (&name, "invalid_name", "`Tiny 1`"),
        ] {
            refuse_all(&[(&[command, out, &["--config", config]].concat(), code, part)]);
        }
    }
    refuse_all(&[
        (&["zoo", "build", "--config", &many, "--out", "out"], "config_invalid", "120 sets"),
        (&["zoo", "build", "--config", &cnn, "--out", "out"], "config_invalid", "`resize`"),
    ]);

    // Where the result cannot go is said before the work.
    for (out, code) in [("/proc/no/such", "io"), ("/tmp", "not_a_file")] {
        refuse_all(&[
            (&["train", "--config", &config("tiny"), "--zoo", text(&tiny.zoo), "--out", out], code, "/"),
            (&["demo", "--config", &config("tiny"), "--data-dir", "out", "--json", out], code, "/"),
        ]);
    }

    // A zoo that is not there, not finished, damaged, or of another configuration.
    let small = config("tiny");
    let train = |zoo: &str, code: &str, part: &str| {
        refuse_all(&[(&["train", "--config", &small, "--zoo", zoo, "--out", "out.tar"], code, part)]);
    };
    train("/no/such/zoo", "io", "/no/such/zoo");
    let other = write("other.toml", ("classes = 3", "classes = 4"));
    let args = ["train", "--config", &other, "--zoo", text(&tiny.zoo), "--out", "out.tar"];
    refuse_all(&[(&args, "zoo_invalid", "another configuration")]);
    let args = ["zoo", "build", "--config", &other, "--out", text(&tiny.zoo)];
    let before = files_in(&tiny.zoo);
    refuse_all(&[(&args, "zoo_invalid", "another configuration")]);
    assert_eq!(files_in(&tiny.zoo), before);
    let group = tiny.zoo.join("group-0003.safetensors");
    let whole = std::fs::read(&group).unwrap();
    std::fs::write(&group, &whole[..whole.len() / 2]).unwrap();
    train(text(&tiny.zoo), "zoo_invalid", "damaged");
    std::fs::remove_file(&group).unwrap();
    train(text(&tiny.zoo), "zoo_invalid", "the same `zoo build` continues");
}

#[test]
fn data_that_is_not_what_it_should_be() {
    let (tiny, place) = (tiny(), folder());
    let file = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let three = some_digits(&[1, 2, 3], 0, 10);
    let datasets::Data::U8(pixels) = &three.data else { panic!("images of bytes") };
    let mut images = datasets::idx::write_images(three.len(), &three.shape, pixels).unwrap();
    let labels: Vec<u8> = three.labels.iter().map(|label| *label as u8).collect();
    let labels = datasets::idx::write_labels(&labels).unwrap();
    file("good/train-images-idx3-ubyte", &images);
    file("good/train-labels-idx1-ubyte", &labels);
    // The header's number of images, three times what there is.
    images[4..8].copy_from_slice(&90u32.to_be_bytes());
    file("lying/train-images-idx3-ubyte", &images);
    file("lying/train-labels-idx1-ubyte", &labels);
    images[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    images[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    file("huge/train-images-idx3-ubyte", &images);
    file("huge/train-labels-idx1-ubyte", &labels);
    let archive = zip(&three);
    let cut = file("cut.zip", &archive[..archive.len() / 2]);
    let text_file = file("text.npz", base64(b"nothing").as_bytes());
    let nan = file("nan.npz", &npz_with_nan(64, 6, &["1", "2", "3"]));
    let grown = file("grown.zip", &zip(&three.resize(9, 9).unwrap()));
    let source = |form: &str, path: &str| format!("{form}:{path}");
    let dir = |name: &str| source("idx", text(&place.path().join(name)));

    // What is refused below works when it is whole.
    let out = place.path().join("out");
    let args = ["generate", "--bundle", tiny.bundle(), "--data", &dir("good"), "--out", text(&out)];
    succeed(&args);
    let sample = out.join("sample-0.safetensors");
    for (data, code, part) in [
        (dir("lying"), "idx_header_mismatch", "promises 5760 bytes"),
        (dir("huge"), "idx_header_mismatch", "holds 1920"),
        (dir("nothing"), "io", "nothing"),
        (source("idx", text(&out)), "folder_invalid", "train-images-idx3-ubyte"),
        (source("zip", &cut), "zip_invalid", "zip"),
        (source("npz", &text_file), "zip_invalid", "zip"),
        (source("npz", &nan), "non_finite", "finite"),
        (source("zip", "/no/such.zip"), "io", "/no/such.zip"),
        ("mnist".into(), "unknown_source", "idx:DIR"),
    ] {
        refuse_all(&[
            (&["generate", "--bundle", tiny.bundle(), "--data", &data, "--out", "out"], code, part),
            (&["evaluate", text(&sample), "--data", &data], code, part),
        ]);
    }
    let generate = ["generate", "--bundle", tiny.bundle(), "--out", "out", "--data"];
    let with = |more: &[&'static str], code, part| refuse_all(&[(&[&generate[..], more].concat(), code, part)]);
    refuse_all(&[(&[&generate[..], &[&source("zip", &grown)]].concat(), "shape_mismatch", "[1, 8, 8]")]);
    with(&["digits"], "classes_mismatch", "exactly 3");
    with(&["digits", "--classes", "3"], "classes_mismatch", "exactly 3");
    with(&["digits", "--classes", "3,4,x"], "unknown_class", "0, 1, 2");
    with(&["digits", "--classes", "3,4,4"], "duplicate_class", "once");
    with(&["digits", "--classes", "1,2,3", "--count", "0"], "option_invalid", "from 1 to 256");
    with(&["digits", "--classes", "1,2,3", "--count", "10000"], "option_invalid", "from 1 to 256");
    with(&["digits", "--classes", "1,2,3", "--steps", "51"], "option_invalid", "from 1 to 50");
    with(&["digits", "--classes", "1,2,3", "--eta", "2"], "option_invalid", "from 0 to 1");
    with(&["digits", "--classes", "1,2,3", "--sampler", "euler"], "unknown_sampler", "dpm_solver_pp");
}

#[test]
fn bundles_that_cannot_be_used() {
    let (tiny, place) = (tiny(), folder());
    let whole = std::fs::read(tiny.bundle()).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let mut changed = whole.clone();
    let at = whole.len() / 2;
    changed[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    for (bundle, code, part) in [
        (write("cut.tar", &whole[..whole.len() / 3]), "bundle_invalid", "complete"),
        (write("changed.tar", &changed), "bundle_invalid", "digest"),
        (write("empty.tar", &[]), "bundle_invalid", "manifest.json"),
        (write("text.tar", &b"no bundle ".repeat(200)), "bundle_invalid", "tar"),
        ("/no/such.tar".into(), "io", "/no/such.tar"),
    ] {
        refuse_all(&[
            (&["generate", "--bundle", &bundle, "--data", "digits", "--classes", "1,2,3", "--out", "out"], code, part),
            (&["generator", "import", &bundle, "--data-dir", "data"], code, part),
        ]);
    }
    // A name that cannot be one is refused before the registry is opened.
    let args = ["generator", "import", tiny.bundle(), "--name", "No name", "--data-dir", "data"];
    refuse_all(&[(&args, "invalid_name", "lowercase")]);
}

#[test]
fn weights_files_that_do_not_fit() {
    let place = folder();
    let architecture = Architecture::Mlp { inputs: 64, hidden: vec![4], classes: 3, activation: Default::default() };
    let layout = architecture.layout();
    let metadata = |classes: &str| {
        let config = serde_json::to_string(&architecture).unwrap();
        BTreeMap::from([("architecture_config".to_owned(), config), ("classes".to_owned(), classes.to_owned())])
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    // The writer for checkpoints refuses a NaN, that for other tensors does not look.
    let named = |name: &str, classes: &str, skip: usize, wrong: f32| {
        let theta = vec![wrong; layout.parameters()];
        let tensors = layout.params.iter().skip(skip);
        let tensors: Vec<_> = tensors.map(|p| (p.name.as_str(), p.shape.as_slice(), &theta[p.range()])).collect();
        write(name, &tensors::named_to_safetensors(&tensors, &metadata(classes)))
    };
    let abc = r#"["1","2","3"]"#;
    let good = named("good", abc, 0, 0.5);
    succeed(&["evaluate", &good, "--data", "digits"]);
    let other = Architecture::Mlp { inputs: 64, hidden: vec![5], classes: 3, activation: Default::default() };
    let shape = tensors::to_safetensors(&other.layout(), &vec![0.5; other.layout().parameters()], &metadata(abc));
    let nameless = tensors::to_safetensors(&layout, &vec![0.5; layout.parameters()], &BTreeMap::new()).unwrap();
    let nameless = write("nameless", &nameless);
    let bytes = std::fs::read(&good).unwrap();
    for (file, code, part) in [
        (named("missing", abc, 1, 0.5), "tensor_missing", "layers.0.weight"),
        (write("shape", &shape.unwrap()), "tensor_shape", "[4, 64]"),
        (named("nan", abc, 0, f32::NAN), "non_finite", "finite"),
        (write("cut", &bytes[..bytes.len() - 4]), "safetensors_invalid", "safetensors"),
        (write("text", b"weights"), "safetensors_invalid", "safetensors"),
        (nameless.clone(), "architecture_unknown", "--architecture"),
        (named("two", r#"["1","2"]"#, 0, 0.5), "classes_mismatch", "--classes"),
        (named("unknown", r#"["1","2","x"]"#, 0, 0.5), "unknown_class", "0, 1, 2"),
        ("/no/such.safetensors".into(), "io", "/no/such.safetensors"),
    ] {
        refuse_all(&[(&["evaluate", &file, "--data", "digits"], code, part)]);
    }
    let architecture = serde_json::to_string(&architecture).unwrap();
    let named = ["evaluate", &nameless, "--data", "digits", "--classes", "4,5,6", "--architecture"];
    succeed(&[&named[..], &[&architecture]].concat());
    refuse_all(&[(&[&named[..], &["{\"kind\":\"cnn\"}"]].concat(), "architecture_invalid", "tiny_cnn")]);
    // The data's images are of another size than the network takes.
    let grown = place.path().join("grown.zip");
    std::fs::write(&grown, zip(&some_digits(&[1, 2, 3], 0, 4).resize(9, 9).unwrap())).unwrap();
    let grown = format!("zip:{}", grown.display());
    refuse_all(&[(&["evaluate", &good, "--data", &grown], "shape_mismatch", "64")]);
    assert_eq!(digits().classes(), 10);
}

#[test]
fn what_is_missing_is_named() {
    let (tiny, place) = (tiny(), folder());
    let small = config("tiny");
    let generate = ["generate", "--bundle", tiny.bundle(), "--data", "digits", "--classes", "1,2,3", "--out", "out"];
    let demo = ["demo", "--config", &small, "--data-dir", "out"];
    let serve = ["serve", "--bind", "127.0.0.1:0", "--data-dir", "out"];
    let list = ["generator", "list", "--data-dir", "out"];
    let refused_in = |args: &[&str], name: &str, value: Option<&Path>| {
        let mut command = weightsmith(args);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
        let work = folder();
        let line = refused(command.current_dir(work.path()));
        assert_eq!(files_in(work.path()), [], "{args:?} wrote files");
        assert!(line.contains(name), "{args:?}: {line}");
        line
    };
    let no_library = place.path().join("libonnxruntime.so");
    std::fs::write(&no_library, b"no library").unwrap();
    for value in [None, Some(Path::new("/no/such/place")), Some(place.path().join("..").as_path()), Some(&no_library)] {
        for args in [&generate[..], &demo, &serve] {
            let line = refused_in(args, "WEIGHTSMITH_ORT", value);
            assert!(line.ends_with("[runtime_missing]") || line.ends_with("[runtime_unusable]"), "{line}");
        }
    }
    for value in [None, Some(Path::new("/no/such/place")), Some(place.path())] {
        for args in [&list[..], &demo, &serve] {
            let line = refused_in(args, "WEIGHTSMITH_POSTGRES", value);
            assert!(line.ends_with("[postgres_missing]") && line.contains("DATABASE_URL"), "{line}");
        }
    }
    // A server of that name that does not answer, and one that is none.
    for url in ["postgres://nobody@127.0.0.1:1/none", "nonsense"] {
        let line = refused(weightsmith(list).current_dir(place.path()).env("DATABASE_URL", url));
        assert!(!line.is_empty());
    }
    // The pinned ONNX Runtime is that for CPUs.
    for args in [&generate[..], &demo, &serve] {
        refuse_all(&[(&[args, &["--device", "cuda"]].concat(), "cuda_unavailable", "auto or cpu")]);
        refuse_all(&[(&[args, &["--cuda-graphs"]].concat(), "cuda_graphs_without_cuda", "leave it out")]);
    }
}
