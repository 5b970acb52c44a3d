//! Images that come inside a request, as base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::dataset::check_class_names;
use crate::images::Collector;
use crate::{Dataset, Error, Limits, Result};

/// One labelled image of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineImage {
    /// Name of its class.
    pub class: String,
    /// A PNG or JPEG file in base64; a `data:` URL is accepted too.
    pub data: String,
}

/// Makes a dataset of labelled images; label `i` is `classes[i]`, in the order given.
///
/// Errors: `too_few_classes`; `duplicate_class`; `unknown_class` for an image whose class is not listed;
/// `class_without_images` for a listed class without an image; `image_invalid` for what is not base64 of a PNG or
/// JPEG; `image_size_mismatch`; `limit_exceeded`. Messages call an image by its position, `images[0]`.
pub fn from_images(images: &[InlineImage], classes: &[String], limits: &Limits) -> Result<Dataset> {
    if classes.len() < 2 {
        return Err(Error::TooFewClasses(classes.len()));
    }
    if classes.len() > limits.max_classes {
        return Err(Error::limit("classes", classes.len(), limits.max_classes));
    }
    if images.len() > limits.max_examples {
        return Err(Error::limit("images", images.len(), limits.max_examples));
    }
    check_class_names(classes)?;
    let labels = labels(images, classes)?;
    let mut set = Collector::new(limits);
    for (index, (image, label)) in images.iter().zip(labels).enumerate() {
        let name = format!("images[{index}]");
        set.push(&name, label, &decode(&name, &image.data)?)?;
    }
    set.finish("inline", classes.to_vec())
}

/// Before any image is decoded: wrong names are the commoner mistake and the cheaper check.
fn labels(images: &[InlineImage], classes: &[String]) -> Result<Vec<u32>> {
    let index: std::collections::HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0u32..).collect();
    let mut seen = vec![false; classes.len()];
    let mut labels = Vec::with_capacity(images.len());
    for image in images {
        let label = *index
            .get(image.class.as_str())
            .ok_or_else(|| Error::UnknownClass { class: image.class.clone(), known: classes.join(", ") })?;
        seen[label as usize] = true;
        labels.push(label);
    }
    match seen.iter().position(|&s| !s) {
        Some(class) => Err(Error::ClassWithoutImages(classes[class].clone())),
        None => Ok(labels),
    }
}

fn decode(name: &str, data: &str) -> Result<Vec<u8>> {
    let encoded = match data.strip_prefix("data:") {
        Some(url) => url.split_once(',').map_or("", |(_, encoded)| encoded),
        None => data,
    };
    // base64 tools break lines at 76 characters.
    let compact: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD
        .decode(compact)
        .map_err(|e| Error::ImageInvalid { name: name.to_owned(), reason: format!("its data is not base64 ({e})") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Data;
    use crate::images::tests::{grey_jpeg, grey_png};

    fn image(class: &str, bytes: &[u8]) -> InlineImage {
        InlineImage { class: class.into(), data: STANDARD.encode(bytes) }
    }

    fn classes(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn class_order_is_the_given_one() {
        let mut images = [image("cat", &grey_png(2, 2, 1)), image("dog", &grey_png(2, 2, 2))];
        images[1].data = format!("data:image/png;base64,{}", images[1].data);
        images[0].data.insert(20, '\n');
        let data = from_images(&images, &classes(&["dog", "cat"]), &Limits::default()).unwrap();
        assert_eq!(data.class_names, ["dog", "cat"]);
        assert_eq!(data.labels, [1, 0]);
        assert_eq!(data.data, Data::U8([[1; 4], [2; 4]].concat()));
    }

    #[test]
    fn bad_requests_name_what_is_wrong() {
        let png = grey_png(2, 2, 1);
        let good = vec![image("a", &png), image("b", &png)];
        let check = |images: &[InlineImage], names: &[&str], code: &str, word: &str| {
            let error = from_images(images, &classes(names), &Limits::default()).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        };
        check(&good, &["a", "b", "c"], "class_without_images", "\"c\"");
        check(&good, &["a", "z"], "unknown_class", "\"b\"");
        check(&good, &["a"], "too_few_classes", "two");
        check(&good, &["a", "b", "a"], "duplicate_class", "\"a\"");
        check(&[], &["a", "b"], "class_without_images", "\"a\"");
        let broken = InlineImage { class: "b".into(), data: "not base64!".into() };
        check(&[good[0].clone(), broken], &["a", "b"], "image_invalid", "images[1]");
        check(&[good[0].clone(), image("b", b"text")], &["a", "b"], "image_invalid", "images[1]");
        check(&[good[0].clone(), image("b", &grey_png(3, 2, 1))], &["a", "b"], "image_size_mismatch", "3x2");
        let tight = Limits { max_examples: 1, ..Limits::default() };
        assert_eq!(from_images(&good, &classes(&["a", "b"]), &tight).unwrap_err().code(), "limit_exceeded");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(data in ".{0,200}", url: bool) {
            let data = if url { format!("data:{data}") } else { data };
            let image = |class: &str| InlineImage { class: class.into(), data: data.clone() };
            let result = from_images(&[image("a"), image("b")], &classes(&["a", "b"]), &Limits::default());
            prop_assert!(result.is_err());
        }

        #[test]
        fn a_damaged_image_never_panics(
            jpeg: bool, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut: prop::sample::Index,
        ) {
            let mut bytes = if jpeg { grey_jpeg(9, 17, 128) } else { grey_png(6, 5, 200) };
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut.index(2) == 0 {
                bytes.truncate(cut.index(bytes.len()));
            }
            let images = [image("a", &bytes), image("b", &bytes)];
            let _ = from_images(&images, &classes(&["a", "b"]), &Limits::default());
        }
    }
}
