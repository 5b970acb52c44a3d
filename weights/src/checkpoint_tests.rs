//! Files are made here byte by byte, as PyTorch makes them: no Python is needed.

use std::io::{Cursor, Write};

use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use super::*;

/// A pickle under construction, in the operations that `torch.save` uses.
struct Pickled(Vec<u8>);

impl Pickled {
    fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn int(&mut self, number: i32) {
        self.0.push(b'J');
        self.0.extend(number.to_le_bytes());
    }

    fn ints(&mut self, numbers: &[i32]) {
        self.0.push(b'(');
        numbers.iter().for_each(|number| self.int(*number));
        self.0.push(b't');
    }

    fn op(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// A tensor over a storage of `class`.
    fn tensor(&mut self, tensor: &Made, legacy: bool) {
        self.op(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.op(format!("ctorch\n{}\n", tensor.class).as_bytes());
        self.text(tensor.storage);
        self.text("cpu");
        self.int(tensor.numel);
        self.op(if legacy { b"NtQ" } else { b"tQ" });
        self.int(tensor.offset);
        self.ints(&tensor.shape);
        self.ints(&tensor.strides);
        self.op(b"\x89ccollections\nOrderedDict\n)RtR");
    }
}

/// A tensor of a test's file.
#[derive(Clone)]
struct Made {
    name: &'static str,
    class: &'static str,
    storage: &'static str,
    numel: i32,
    offset: i32,
    shape: Vec<i32>,
    strides: Vec<i32>,
}

fn made(name: &'static str, class: &'static str, storage: &'static str, shape: &[i32]) -> Made {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at] * shape[at];
    }
    Made { name, class, storage, numel: shape.iter().product(), offset: 0, shape: shape.to_vec(), strides }
}

/// `{outer: OrderedDict(name: tensor, …), "epoch": 3}`, or the state dict alone when there is no outer key.
fn pickled(outer: Option<&str>, tensors: &[Made], legacy: bool) -> Vec<u8> {
    let mut pickle = Pickled::new();
    if let Some(outer) = outer {
        pickle.op(b"}(");
        pickle.text("epoch");
        pickle.int(3);
        pickle.text(outer);
    }
    pickle.op(b"ccollections\nOrderedDict\n)R(");
    for tensor in tensors {
        pickle.text(tensor.name);
        pickle.tensor(tensor, legacy);
    }
    // As torch does: the dictionary has a state of its own.
    pickle.op(b"u}");
    pickle.text("_metadata");
    pickle.op(b"Nsb");
    if outer.is_some() {
        pickle.op(b"u");
    }
    pickle.op(b".");
    pickle.0
}

fn zipped(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    zipped_as(pickle, storages, zip::CompressionMethod::Stored)
}

fn zipped_as(pickle: &[u8], storages: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let mut add = |name: &str, bytes: &[u8]| {
        archive.start_file(format!("archive/{name}"), options).unwrap();
        archive.write_all(bytes).unwrap();
    };
    add("data.pkl", pickle);
    add("byteorder", b"little");
    storages.iter().for_each(|(key, bytes)| add(&format!("data/{key}"), bytes));
    add("version", b"3\n");
    archive.finish().unwrap().into_inner()
}

fn legacy(pickle: &[u8], storages: &[(&str, u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = torch::LEGACY.to_vec();
    bytes.extend(b"\x80\x02M\xe9\x03.");
    let mut system = Pickled::new();
    system.op(b"}(");
    system.text("little_endian");
    system.op(b"\x88u.");
    bytes.extend(system.0);
    bytes.extend(pickle);
    let mut keys = Pickled::new();
    keys.op(b"](");
    storages.iter().for_each(|(key, ..)| keys.text(key));
    keys.op(b"e.");
    bytes.extend(keys.0);
    for (_, count, data) in storages {
        bytes.extend(count.to_le_bytes());
        bytes.extend(data);
    }
    bytes
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read_with(bytes: &[u8], key: Option<&str>, prefix: Option<&str>) -> Result<(TensorLayout, Vec<u8>)> {
    let options = Options { key: key.map(str::to_owned), strip_prefix: prefix.map(str::to_owned) };
    let limits = Limits { bytes: 1 << 20, header: 1 << 16, tensors: 100 };
    let mut checkpoint = Checkpoint::open(Cursor::new(bytes), &options, &limits)?;
    let mut out = Vec::new();
    let written = checkpoint.write(&mut out)?;
    assert_eq!((written.digest, written.size), (crate::digest::sha256(&out), out.len() as u64));
    Ok((checkpoint.layout(), out))
}

fn read(bytes: &[u8]) -> Result<(TensorLayout, Vec<u8>)> {
    read_with(bytes, None, None)
}

fn code(bytes: &[u8]) -> (&'static str, String) {
    let error = read(bytes).unwrap_err();
    (error.code(), error.to_string())
}

/// Tensors of all kinds that are read, with their bytes.
fn everything() -> (Vec<Made>, Vec<(&'static str, Vec<u8>)>) {
    let tensors = vec![
        made("fc.weight", "FloatStorage", "0", &[2, 3]),
        made("fc.half", "HalfStorage", "1", &[2]),
        made("fc.brain", "BFloat16Storage", "2", &[1, 2]),
        made("fc.double", "DoubleStorage", "3", &[1]),
        made("bn.num_batches_tracked", "LongStorage", "4", &[]),
        made("flags", "BoolStorage", "5", &[3]),
        made("ints", "IntStorage", "6", &[1]),
        made("empty", "FloatStorage", "7", &[0, 4]),
    ];
    let storages = vec![
        ("0", f32s(&[1.0, -0.0, f32::MIN_POSITIVE / 2.0, 3.5, f32::MAX, -7.25])),
        ("1", vec![0x00, 0x3c, 0xff, 0x7b]),
        ("2", vec![0x80, 0x3f, 0x7f, 0x7f]),
        ("3", std::f64::consts::PI.to_le_bytes().to_vec()),
        ("4", (-5i64).to_le_bytes().to_vec()),
        ("5", vec![1, 0, 1]),
        ("6", 7i32.to_le_bytes().to_vec()),
        ("7", vec![]),
    ];
    (tensors, storages)
}

fn expect_everything(layout: &TensorLayout, file: &[u8]) {
    let (tensors, storages) = everything();
    let names: Vec<&str> = layout.params.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, tensors.iter().map(|tensor| tensor.name).collect::<Vec<_>>());
    let parsed = ::safetensors::SafeTensors::deserialize(file).unwrap();
    for (tensor, (_, bytes)) in tensors.iter().zip(&storages) {
        let view = parsed.tensor(tensor.name).unwrap();
        assert_eq!(view.data(), bytes, "{}", tensor.name);
        assert_eq!(view.shape(), tensor.shape.iter().map(|d| *d as usize).collect::<Vec<_>>());
    }
    assert_eq!(parsed.len(), tensors.len());
    assert_eq!(layout.parameters(), 6 + 2 + 2 + 1);
}

#[test]
fn zip_files_come_out_bit_exact() {
    let (tensors, storages) = everything();
    let (layout, file) = read(&zipped(&pickled(None, &tensors, false), &storages)).unwrap();
    expect_everything(&layout, &file);
    let nested = zipped(&pickled(Some("state_dict"), &tensors, false), &storages);
    let (_, again) = read_with(&nested, Some("state_dict"), None).unwrap();
    assert_eq!(file, again);
}

#[test]
fn files_of_old_versions_come_out_the_same() {
    let (tensors, storages) = everything();
    let sizes = [6u64, 2, 2, 1, 1, 3, 1, 0];
    let storages_of = |order: &[usize]| -> Vec<(&str, u64, Vec<u8>)> {
        order.iter().map(|i| (storages[*i].0, sizes[*i], storages[*i].1.clone())).collect()
    };
    let old = legacy(&pickled(Some("state_dict"), &tensors, true), &storages_of(&[3, 1, 2, 0, 7, 6, 5, 4]));
    let (layout, file) = read_with(&old, Some("state_dict"), None).unwrap();
    expect_everything(&layout, &file);
    assert_eq!(file, read(&zipped(&pickled(None, &tensors, false), &storages)).unwrap().1);
    for cut in [old.len() - 1, old.len() - 30, 200, 20] {
        assert_eq!(read_with(&old[..cut], Some("state_dict"), None).unwrap_err().code(), "checkpoint_invalid");
    }
}

#[test]
fn the_canonical_form_is_its_own() {
    let (tensors, storages) = everything();
    let (_, file) = read(&zipped(&pickled(None, &tensors, false), &storages)).unwrap();
    assert_eq!(read(&file).unwrap().1, file);
    let other =
        ::safetensors::serialize(::safetensors::SafeTensors::deserialize(&file).unwrap().tensors(), None).unwrap();
    assert_ne!(other, file);
    assert_eq!(read(&other).unwrap().1, file);
}

#[test]
fn prefixes_come_off_and_never_clash() {
    let storages = [("0", f32s(&[1.0])), ("1", f32s(&[2.0]))];
    let of = |a, b| {
        let tensors = [made(a, "FloatStorage", "0", &[1]), made(b, "FloatStorage", "1", &[1])];
        read_with(&zipped(&pickled(None, &tensors, false), &storages), None, Some("module."))
    };
    let (layout, _) = of("module.a", "b").unwrap();
    assert_eq!(layout.params[0].name, "a");
    let error = of("module.a", "a").unwrap_err();
    assert_eq!(error.code(), "tensor_unsupported");
    assert!(error.to_string().contains("tensor a "), "{error}");
    assert_eq!(of("module.", "a").unwrap_err().code(), "tensor_unsupported");
}

#[test]
fn views_lie_inside_their_storage() {
    let storages = [("0", f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))];
    let of = |tensor: Made| read(&zipped(&pickled(None, &[tensor], false), &storages));
    let view = Made { offset: 2, ..made("a", "FloatStorage", "0", &[2, 2]) };
    let (_, file) = of(view.clone()).unwrap();
    assert!(file.ends_with(&f32s(&[2.0, 3.0, 4.0, 5.0])));
    let transposed = Made { strides: vec![1, 2], ..view.clone() };
    let error = of(transposed).unwrap_err();
    assert_eq!(error.code(), "tensor_unsupported");
    assert!(error.to_string().contains("tensor a") && error.to_string().contains("contiguous"), "{error}");
    for outside in [Made { offset: 3, ..view.clone() }, Made { offset: i32::MAX, ..view.clone() }] {
        assert_eq!(of(outside).unwrap_err().code(), "checkpoint_invalid");
    }
    let negative = Made { shape: vec![-1, 2], ..view };
    assert_eq!(of(negative).unwrap_err().code(), "tensor_unsupported");
}

#[test]
fn nothing_found_is_an_error_that_says_where_to_look() {
    let (tensors, storages) = everything();
    let nested = zipped(&pickled(Some("state_dict"), &tensors, false), &storages);
    let (kind, text) = code(&nested);
    assert_eq!(kind, "tensors_nested");
    assert!(text.contains("state_dict"), "{text}");
    let wrong = read_with(&nested, Some("model"), None).unwrap_err();
    assert!(wrong.to_string().contains("epoch, state_dict"), "{wrong}");
    assert_eq!(code(&zipped(&pickled(None, &[], false), &[])).0, "no_tensors");
    assert_eq!(code(b"\x02\0\0\0\0\0\0\0{}").0, "no_tensors");
    let mut outer = Pickled::new();
    outer.op(b"}");
    outer.text("model");
    outer.op(&pickled(Some("weights"), &tensors, false)[2..]);
    outer.0.pop();
    outer.op(b"s.");
    let deep = zipped(&outer.0, &storages);
    assert!(code(&deep).1.contains("model.weights"), "{}", code(&deep).1);
    assert!(read_with(&deep, Some("model.weights"), None).is_ok());
}

#[test]
fn no_code_is_run_and_whole_objects_are_refused() {
    let (kind, text) = code(&zipped(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", &[]));
    assert_eq!(kind, "checkpoint_invalid");
    assert!(text.contains("os.system") && text.contains("state_dict()"), "{text}");
}

#[test]
fn values_that_are_not_numbers_are_named() {
    for (class, bytes, position) in [
        ("FloatStorage", f32s(&[1.0, f32::NAN]), 1),
        ("FloatStorage", f32s(&[f32::NEG_INFINITY, 0.0]), 0),
        ("HalfStorage", vec![0x00, 0x3c, 0x00, 0x7c], 1),
        ("HalfStorage", vec![0x01, 0xfe, 0x00, 0x00], 0),
        ("BFloat16Storage", vec![0x80, 0x3f, 0xc0, 0x7f], 1),
        ("DoubleStorage", [f64::NAN.to_le_bytes(), 1f64.to_le_bytes()].concat(), 0),
    ] {
        let file = zipped(&pickled(None, &[made("fc.bias", class, "0", &[2])], false), &[("0", bytes)]);
        let (kind, text) = code(&file);
        assert_eq!(kind, "non_finite", "{class}");
        assert!(text.contains("tensor fc.bias") && text.contains(&format!("position {position}")), "{text}");
    }
}

#[test]
fn layouts_are_compared_tensor_by_tensor() {
    let layout = |tensors: &[Made]| {
        let storages: Vec<_> = tensors
            .iter()
            .map(|t| (t.storage, vec![0; 64]))
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .collect();
        read(&zipped(&pickled(None, tensors, false), &storages)).unwrap().0
    };
    let (a, b) = (made("a", "FloatStorage", "0", &[2, 3]), made("b", "FloatStorage", "1", &[2]));
    let expected = layout(&[a.clone(), b.clone()]);
    assert!(layout(&[b.clone(), a.clone()]).fits(&expected).is_ok());
    for (found, code, text) in [
        (vec![a.clone()], "tensor_missing", "tensor b is missing"),
        (vec![a.clone(), made("b", "FloatStorage", "1", &[3])], "tensor_shape", "tensor b has shape [3]"),
        (vec![a.clone(), made("b", "HalfStorage", "1", &[2])], "tensor_type", "tensor b is F16"),
        (vec![a, b, made("c", "FloatStorage", "2", &[1])], "tensor_unexpected", "tensor c should not"),
    ] {
        let error = layout(&found).fits(&expected).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.to_string().starts_with(text), "{error}");
    }
    let json = serde_json::to_value(&expected).unwrap();
    assert_eq!(json["params"][1], serde_json::json!({"name": "b", "shape": [2], "offset": 6, "dtype": "F32"}));
    assert_eq!(serde_json::from_value::<TensorLayout>(json.clone()).unwrap(), expected);
    // The vectoriser's layout is the same without types.
    let plain: crate::Layout = serde_json::from_value(json).unwrap();
    assert_eq!(plain.params[1].offset, 6);
    let untyped = serde_json::to_value(&plain).unwrap();
    assert_eq!(serde_json::from_value::<TensorLayout>(untyped).unwrap(), expected);
}

#[test]
fn limits_hold() {
    let big = made("a", "FloatStorage", "0", &[1 << 19]);
    let file = zipped(&pickled(None, &[big], false), &[("0", vec![0; 1 << 21])]);
    assert_eq!(code(&file).0, "checkpoint_too_large");
    let mut long = Pickled::new();
    long.text(&"x".repeat(1 << 17));
    assert_eq!(code(&zipped(&long.0, &[])).0, "checkpoint_too_large");
    // Many names for one storage are as large as they all together.
    let names: Vec<&'static str> = (0..60).map(|i| &*Box::leak(format!("t{i}").into_boxed_str())).collect();
    let shared: Vec<Made> = names.iter().map(|name| made(name, "FloatStorage", "0", &[1 << 14])).collect();
    let file = zipped(&pickled(None, &shared, false), &[("0", vec![0; 1 << 16])]);
    assert_eq!(code(&file).0, "checkpoint_too_large");
    assert_eq!(code(b"\xff\xff\xff\xff\0\0\0\0{}").0, "checkpoint_too_large");
}

#[test]
fn damage_is_told() {
    let tensors = [made("a", "FloatStorage", "0", &[2])];
    let pickle = pickled(None, &tensors, false);
    let storage = f32s(&[1.0, 2.0]);
    let deflated = zipped_as(&pickle, &[("0", storage.clone())], zip::CompressionMethod::Deflated);
    assert!(code(&deflated).1.contains("compressed"), "{}", code(&deflated).1);
    let missing = zipped(&pickle, &[]);
    assert!(code(&missing).1.contains("data/0"), "{}", code(&missing).1);
    let mut flipped = zipped(&pickle, &[("0", storage.clone())]);
    let at = flipped.windows(8).position(|window| window == storage).unwrap();
    flipped[at] ^= 1;
    assert!(code(&flipped).1.contains("damaged"), "{}", code(&flipped).1);
    for nonsense in [&b""[..], b"x", b"PK\x03\x04", b"not a checkpoint at all", b"\x80\x02}."] {
        assert_eq!(code(nonsense).0, "checkpoint_invalid", "{nonsense:?}");
    }
    assert_eq!(code(b"\x05\0\0\0\0\0\0\0{}").0, "safetensors_invalid");
    let complex = [made("z", "ComplexFloatStorage", "0", &[1])];
    let (kind, text) = code(&zipped(&pickled(None, &complex, false), &[("0", vec![0; 8])]));
    assert!(kind == "tensor_unsupported" && text.contains("tensor z"), "{text}");
}

fn samples() -> Vec<Vec<u8>> {
    let (tensors, storages) = everything();
    let zip = zipped(&pickled(None, &tensors, false), &storages);
    let sizes = [6u64, 2, 2, 1, 1, 3, 1, 0];
    let old: Vec<_> = storages.iter().zip(sizes).map(|((key, bytes), n)| (*key, n, bytes.clone())).collect();
    let safetensors = read(&zip).unwrap().1;
    vec![zip, legacy(&pickled(None, &tensors, true), &old), safetensors]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever a file holds: an error or a canonical file, never a panic.
    #[test]
    fn mutated_files_never_panic(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = samples().swap_remove(which);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok((_, file)) = read(&bytes) {
            prop_assert_eq!(read(&file).unwrap().1, file);
        }
    }

    #[test]
    fn arbitrary_pickles_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&zipped(&bytes, &[]));
        let _ = read(&bytes);
        let mut old = torch::LEGACY.to_vec();
        old.extend(&bytes);
        prop_assert!(read(&old).is_err());
    }

    /// Operations of pickles in any order.
    #[test]
    fn operations_in_any_order_never_panic(
        bytes in proptest::collection::vec(
            prop::sample::select(b"(0123)]}tldaesuNKMJGX\x85\x86\x87\x81\x92\x93\x94\x8a\x8c\x8f\x90\x91cRobiPQqhprgj.\x00\x01\n".to_vec()),
            0..200,
        ),
    ) {
        let _ = read(&zipped(&bytes, &[]));
    }
}
