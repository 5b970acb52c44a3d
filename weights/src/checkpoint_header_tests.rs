//! Headers of safetensors files that say anything at all.

use std::io::Cursor;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// A reader that counts what is read of it.
#[derive(Debug)]
struct Counted {
    inner: Cursor<Vec<u8>>,
    read: u64,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.read += read as u64;
        Ok(read)
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }
}

/// A valid file of two tensors.
fn valid() -> (Map<String, Value>, Vec<u8>) {
    let Value::Object(header) = json!({
        "__metadata__": { "format": "pt" },
        "a": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] },
        "b": { "dtype": "I64", "shape": [1], "data_offsets": [24, 32] },
    }) else {
        unreachable!()
    };
    (header, (0..32).collect())
}

fn file(length: Option<u64>, header: &[u8], data: &[u8]) -> Vec<u8> {
    let length = length.unwrap_or(header.len() as u64);
    [&length.to_le_bytes()[..], header, data].concat()
}

/// Opens a file: an error with a code, or tensors that lie inside it; never more read than the file has.
fn opened(bytes: Vec<u8>, limits: &Limits) -> std::result::Result<bool, TestCaseError> {
    let size = bytes.len() as u64;
    let mut source = Counted { inner: Cursor::new(bytes), read: 0 };
    let found = Checkpoint::open(&mut source, &Options::default(), limits).map(|opened| opened.tensors);
    prop_assert!(source.read <= size + 64, "{} of {size} bytes were read", source.read);
    match found {
        Err(error) => {
            prop_assert!(!error.code().is_empty() && !error.to_string().is_empty());
            Ok(false)
        }
        Ok(tensors) => {
            for Found { spec, start } in tensors {
                let end = spec.bytes().and_then(|bytes| start.checked_add(bytes));
                prop_assert!(end.is_some_and(|end| end <= size), "{spec:?} at {start} in {size} bytes");
            }
            Ok(true)
        }
    }
}

/// Numbers at which sums and products overflow, and small ones.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 2, 3, 23, 24, 25, 32, 33, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX - 1, u64::MAX];
    prop_oneof![proptest::sample::select(edges.to_vec()), 0u64..40, any::<u64>()]
}

#[test]
fn the_file_that_is_mutated_is_valid() {
    let (header, data) = valid();
    let bytes = file(None, &serde_json::to_vec(&header).unwrap(), &data);
    assert!(opened(bytes, &Limits::default()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_and_lengths_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in proptest::option::of(number()),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (header, data) = valid();
        let mut bytes = file(length, &serde_json::to_vec(&header).unwrap(), &data);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        opened(bytes, &Limits::default())?;
    }

    /// JSON that is right in form and wrong in what it says.
    #[test]
    fn any_offsets_and_shapes_never_panic(
        tensor in proptest::sample::select(vec!["a", "b", "c"]),
        dtype in proptest::sample::select(vec!["F32", "F64", "U8", "BOOL", "F8_E5M2", "C64", "F4", "what"]),
        shape in proptest::collection::vec(number(), 0..5),
        offsets in (number(), number()),
        data in 0usize..80,
    ) {
        let (mut header, _) = valid();
        let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offsets.0, offsets.1] });
        header.insert(tensor.to_owned(), info);
        let bytes = file(None, &serde_json::to_vec(&header).unwrap(), &vec![0; data]);
        opened(bytes, &Limits::default())?;
    }

    /// A header that is longer than it may be is not read.
    #[test]
    fn long_headers_are_refused_unread(length in 1001u64.., spaces in 1000usize..5000) {
        let header = [&b"{"[..], &vec![b' '; spaces]].concat();
        let mut source = Counted { inner: Cursor::new(file(Some(length), &header, &[])), read: 0 };
        let limits = Limits { header: 1000, ..Limits::default() };
        let error = Checkpoint::open(&mut source, &Options::default(), &limits).unwrap_err();
        prop_assert!(matches!(error, Error::CheckpointTooLarge { what: "the header", .. }), "{}", error);
        prop_assert!(source.read < 64, "{}", source.read);
    }
}
