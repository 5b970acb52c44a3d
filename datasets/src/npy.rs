//! One array of the NPY format (versions 1 to 3), read from memory and written deterministically.
//!
//! The header is a Python dictionary with three known keys; it is read by a scanner without recursion, and nothing
//! is allocated from what it claims before the length of the data confirms it.

/// An array as stored: element type, order, shape and the raw data, whose length agrees with the shape.
pub(crate) struct Array<'a> {
    kind: char,
    size: usize,
    big_endian: bool,
    fortran: bool,
    /// Dimensions; the product times the element size is the length of the data.
    pub(crate) shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> Array<'a> {
    /// Reads header and data. Errors are half sentences for [`crate::Error::NpzInvalid`].
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (header, data) = split_header(bytes)?;
        let header = Header::parse(header)?;
        let (kind, size, big_endian) = element(&header.descr)?;
        let promised = header.shape.iter().try_fold(size, |product, &d| product.checked_mul(d));
        if promised != Some(data.len()) {
            let promised = promised.map_or("more bytes than memory can address".to_owned(), |n| format!("{n} bytes"));
            return Err(format!(
                "its header promises {promised} (shape {:?} of {}) and it holds {} bytes",
                header.shape,
                header.descr,
                data.len()
            ));
        }
        Ok(Self { kind, size, big_endian, fortran: header.fortran, shape: header.shape, data })
    }

    /// Whether the elements are unsigned bytes.
    pub(crate) fn is_u8(&self) -> bool {
        self.kind == 'u' && self.size == 1
    }

    /// The bytes of an unsigned-byte array in C order.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, String> {
        match self.is_u8() {
            true => Ok(self.map(|word| word as u8)),
            false => Err(format!("its elements are {}, not u8", self.type_name())),
        }
    }

    /// The values of an f4 or f8 array as f32, in C order; what f32 cannot hold becomes infinite.
    pub(crate) fn floats(&self) -> Result<Vec<f32>, String> {
        match (self.kind, self.size) {
            ('f', 4) => Ok(self.map(|word| f32::from_bits(word as u32))),
            ('f', 8) => Ok(self.map(|word| f64::from_bits(word) as f32)),
            _ => Err(format!("its elements are {}, not f4 or f8", self.type_name())),
        }
    }

    /// The values of an integer array of any width, in C order.
    pub(crate) fn integers(&self) -> Result<Vec<i128>, String> {
        match (self.kind, 64 - 8 * self.size.min(8) as u32) {
            ('u', _) => Ok(self.map(i128::from)),
            ('i', spare) => Ok(self.map(|word| i128::from((word << spare) as i64 >> spare))),
            _ => Err(format!("its elements are {}, not integers", self.type_name())),
        }
    }

    /// The strings of a unicode (`U`) array.
    pub(crate) fn strings(&self) -> Result<Vec<String>, String> {
        if self.kind != 'U' {
            return Err(format!("its elements are {}, not unicode strings", self.type_name()));
        }
        let item = |item: &[u8]| -> Result<String, String> {
            let points = item.chunks_exact(4).map(|point| self.word(point) as u32);
            let text: Option<String> = points.map(char::from_u32).collect();
            text.map(|t| t.trim_end_matches('\0').to_owned()).ok_or_else(|| "a string is not unicode".to_owned())
        };
        self.data.chunks_exact(self.size.max(4)).map(item).collect()
    }

    fn type_name(&self) -> String {
        format!("{}{}", self.kind, self.size)
    }

    fn word(&self, bytes: &[u8]) -> u64 {
        let push = |word: u64, &byte: &u8| word << 8 | u64::from(byte);
        if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) }
    }

    fn map<T: Copy>(&self, value: impl Fn(u64) -> T) -> Vec<T> {
        let stored: Vec<T> = self.data.chunks_exact(self.size).map(|bytes| value(self.word(bytes))).collect();
        if !self.fortran || self.shape.len() < 2 || stored.is_empty() {
            return stored;
        }
        // In Fortran order the first index runs fastest.
        let mut index = vec![0usize; self.shape.len()];
        (0..stored.len())
            .map(|_| {
                let at = index.iter().zip(&self.shape).rev().fold(0, |at, (&i, &dim)| at * dim + i);
                for (i, &dim) in index.iter_mut().zip(&self.shape).rev() {
                    *i += 1;
                    if *i < dim {
                        break;
                    }
                    *i = 0;
                }
                stored[at]
            })
            .collect()
    }
}

/// Writes a version 1 array: `descr` such as "<f4", the shape, the data as it lies in memory (C order).
pub(crate) fn write(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: String = match shape {
        [one] => format!("{one},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // As numpy does: the data starts at a multiple of 64.
    while !(PREFIX + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut out = Vec::with_capacity(PREFIX + header.len() + data.len());
    out.extend(MAGIC);
    out.extend([1, 0]);
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// Magic, version and the two bytes of the header's length.
const PREFIX: usize = 10;

fn split_header(bytes: &[u8]) -> Result<(&str, &[u8]), String> {
    let cut = || "it ends inside its header".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not start with the NPY magic bytes")?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        [version, _, ..] if !(1..=3).contains(version) => {
            return Err(format!("its version is {version}; 1 to 3 are read"));
        }
        _ => return Err(cut()),
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text".to_owned())?;
    Ok((header, data))
}

/// Kind, bytes an element, whether big endian, of a type such as "<f4".
fn element(descr: &str) -> Result<(char, usize, bool), String> {
    let unsupported = || format!("its element type {descr:?} is not one of u1-u8, i1-i8, f4, f8, U");
    let mut chars = descr.chars();
    let order = chars.next().ok_or_else(unsupported)?;
    let kind = chars.next().ok_or_else(unsupported)?;
    let size: usize = chars.as_str().parse().map_err(|_| unsupported())?;
    let big_endian = match order {
        '<' | '|' => false,
        '=' => cfg!(target_endian = "big"),
        '>' => true,
        _ => return Err(unsupported()),
    };
    match (kind, size) {
        ('u' | 'i', 1 | 2 | 4 | 8) | ('f', 4 | 8) => Ok((kind, size, big_endian)),
        ('U', 1..=4096) => Ok((kind, size * 4, big_endian)),
        _ => Err(unsupported()),
    }
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }` with the keys in any order.
    fn parse(text: &str) -> Result<Self, String> {
        let mut scanner = Scanner { rest: text };
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        scanner.expect("{")?;
        while !scanner.accept("}") {
            let key = scanner.string()?;
            scanner.expect(":")?;
            match key {
                "descr" => descr = Some(scanner.string()?.to_owned()),
                "fortran_order" => fortran = Some(scanner.boolean()?),
                "shape" => shape = Some(scanner.shape()?),
                _ => return Err(format!("its header has the unknown key {key:?}")),
            }
            if !scanner.accept(",") {
                scanner.expect("}")?;
                break;
            }
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Self { descr, fortran, shape }),
            _ => Err("its header lacks descr, fortran_order or shape".to_owned()),
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn accept(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        match self.accept(token) {
            true => Ok(()),
            false => {
                let near: String = self.rest.chars().take(12).collect();
                Err(format!("its header has {near:?} where {token:?} should be"))
            }
        }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept("\"") { '"' } else { self.expect("'").map(|()| '\'')? };
        let (text, rest) = self.rest.split_once(quote).ok_or("its header has an open string")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.accept("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect("(")?;
        let mut shape = Vec::new();
        while !self.accept(")") {
            self.rest = self.rest.trim_start();
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (number, rest) = self.rest.split_at(digits);
            shape.push(number.parse().map_err(|_| format!("its shape has the dimension {number:?}"))?);
            self.rest = rest;
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        match shape.len() {
            0..=8 => Ok(shape),
            rank => Err(format!("its rank is {rank}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types_orders_and_signs() {
        let array = |descr: &str, data: &[u8]| write(descr, &[data.len() / 2], data);
        let bytes = array("<i2", &[0xff, 0xff, 0x00, 0x01]);
        assert_eq!(Array::parse(&bytes).unwrap().integers().unwrap(), [-1, 256]);
        let bytes = array(">u2", &[0xff, 0xff, 0x00, 0x01]);
        assert_eq!(Array::parse(&bytes).unwrap().integers().unwrap(), [65535, 1]);
        let bytes = write("<i8", &[1], &i64::MIN.to_le_bytes());
        assert_eq!(Array::parse(&bytes).unwrap().integers().unwrap(), [i128::from(i64::MIN)]);
        let bytes = write("<u8", &[1], &u64::MAX.to_le_bytes());
        assert_eq!(Array::parse(&bytes).unwrap().integers().unwrap(), [i128::from(u64::MAX)]);
        let bytes = write(">f8", &[1], &0.5f64.to_be_bytes());
        assert_eq!(Array::parse(&bytes).unwrap().floats().unwrap(), [0.5]);
        assert!(Array::parse(&bytes).unwrap().integers().is_err());
    }

    #[test]
    fn fortran_order_is_turned_round() {
        let mut bytes = write("|u1", &[2, 3], &[1, 4, 2, 5, 3, 6]);
        let at = bytes.windows(5).position(|w| w == b"False").unwrap();
        bytes[at..at + 5].copy_from_slice(b"True ");
        assert_eq!(Array::parse(&bytes).unwrap().bytes().unwrap(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn lying_headers_are_refused() {
        for (shape, held) in [(vec![3], 2), (vec![1], 2), (vec![usize::MAX, 2], 2), (vec![0], 1)] {
            let message = Array::parse(&write("|u1", &shape, &vec![0; held])).err().unwrap();
            assert!(message.contains(&format!("holds {held} bytes")), "{message}");
        }
        let bytes = write("|u1", &[2], &[1, 2]);
        for length in 0..bytes.len() {
            assert!(Array::parse(&bytes[..length]).is_err(), "cut at {length}");
        }
        let deep = format!("{{'shape': {}", "(".repeat(60_000));
        let mut bytes = [MAGIC, &[1, 0], &(deep.len() as u16).to_le_bytes()].concat();
        bytes.extend(deep.as_bytes());
        assert!(Array::parse(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(text in "[{}()',:a-z0-9<>|_ FTU]{0,80}", data in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes()].concat();
            bytes.extend(text.as_bytes());
            bytes.extend(data);
            let _ = Array::parse(&bytes).map(|a| (a.bytes(), a.floats(), a.integers(), a.strings()));
        }

        #[test]
        fn arbitrary_types_never_panic(
            descr in "[<>|=?][uifUbSc][0-9]{1,2}", shape in prop::collection::vec(0usize..4, 0..4), fortran: bool,
        ) {
            let mut bytes = write(&descr, &shape, &[]);
            if fortran {
                let at = bytes.windows(5).position(|w| w == b"False").unwrap();
                bytes[at..at + 5].copy_from_slice(b"True ");
            }
            if let Ok((_, size, _)) = element(&descr) {
                bytes.extend(vec![7u8; size * shape.iter().product::<usize>()]);
                let array = Array::parse(&bytes).unwrap();
                let n: usize = array.shape.iter().product();
                for found in [array.bytes().map(|v| v.len()), array.floats().map(|v| v.len()), array.integers().map(|v| v.len())] {
                    prop_assert!(found.is_err() || found == Ok(n));
                }
            } else {
                prop_assert!(Array::parse(&bytes).is_err());
            }
        }
    }
}
