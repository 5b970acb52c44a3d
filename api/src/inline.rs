//! Labelled data inside a request: images, an npz or a zip in base64, or the id of a registered dataset.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datasets::{Dataset, Limits};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::texts;

/// What datasets other than texts hold.
pub(crate) const LABELLED: &str = "labelled";

/// Of a text with what chooses among examples.
pub(crate) const TEXT_ALONE: &str = "a text has no classes and no examples to choose: leave `classes` and `seed` out";

/// One labelled image.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// Name of its class.
    #[schema(example = "3")]
    class: String,
    /// A PNG or JPEG file in base64 (a `data:` URL is accepted too).
    #[schema(example = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAC0lEQVR4nGNgoAcAAABIAAF4VLGbAAAAAElFTkSuQmCC")]
    data: String,
}

/// Labelled data that comes with the request: exactly one of `images`, `npz`, `zip` and `text`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Images(Vec<Image>),
    Npz(String),
    Zip(String),
    Text(String),
}

impl Content {
    /// The one that is given, if one is.
    pub(crate) fn one_of(
        images: Option<Vec<Image>>,
        npz: Option<String>,
        zip: Option<String>,
        text: Option<String>,
    ) -> Given<Self> {
        let given = [images.map(Self::Images), npz.map(Self::Npz), zip.map(Self::Zip), text.map(Self::Text)];
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (None, _) => Given::None,
            (Some(content), None) => Given::One(content),
            (Some(_), Some(_)) => Given::Several,
        }
    }

    /// Reads the data; `field` names its place in the request. `classes` says which classes, in which order.
    pub(crate) fn read(&self, field: &str, classes: Option<&[String]>, limits: &Limits) -> Result<Dataset> {
        match self {
            Self::Images(images) => read_images(field, images, classes, limits),
            Self::Npz(text) => read_file(field, "npz", text, |bytes| datasets::npz::from_npz(bytes, limits)),
            Self::Zip(text) => read_file(field, "zip", text, |bytes| datasets::archive::from_zip(bytes, limits)),
            Self::Text(_) => Err(texts::mismatch("text", LABELLED).in_field(format!("{field}text"))),
        }
    }
}

/// How many of several fields are given.
pub(crate) enum Given<T> {
    None,
    One(T),
    Several,
}

fn read_file(
    field: &str,
    kind: &'static str,
    text: &str,
    read: impl FnOnce(&[u8]) -> datasets::Result<Dataset>,
) -> Result<Dataset> {
    let at = |error: Error| error.in_field(format!("{field}{kind}"));
    let bytes = STANDARD.decode(text.trim()).map_err(|error| at(Error::Base64(kind, error.to_string())))?;
    read(&bytes).map_err(|error| at(error.into()))
}

fn read_images(field: &str, images: &[Image], classes: Option<&[String]>, limits: &Limits) -> Result<Dataset> {
    use datasets::Error as E;
    let found = first_seen(images);
    let classes = classes.unwrap_or(&found);
    let inline: Vec<_> = images
        .iter()
        .map(|image| datasets::inline::InlineImage { class: image.class.clone(), data: image.data.clone() })
        .collect();
    datasets::inline::from_images(&inline, classes, limits).map_err(|error| {
        let part = match &error {
            E::ImageInvalid { name, .. } | E::ImageSizeMismatch { name, .. } => format!("{field}{name}"),
            _ => format!("{field}images"),
        };
        Error::from(error).in_field(part)
    })
}

/// The classes of the images in the order in which they first appear.
fn first_seen(images: &[Image]) -> Vec<String> {
    let mut classes: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for image in images {
        if seen.insert(image.class.as_str()) {
            classes.push(image.class.clone());
        }
    }
    classes
}

/// Labels of the named classes, in the order named.
pub(crate) fn labels(dataset: &Dataset, classes: &[String]) -> datasets::Result<Vec<u32>> {
    if classes.len() < 2 {
        return Err(datasets::Error::TooFewClasses(classes.len()));
    }
    let known: BTreeMap<&str, u32> = dataset.class_names.iter().map(String::as_str).zip(0..).collect();
    let mut labels = Vec::with_capacity(classes.len());
    for class in classes {
        let label = known.get(class.as_str()).ok_or_else(|| unknown_class(dataset, class))?;
        if labels.contains(label) {
            return Err(datasets::Error::DuplicateClass(class.clone()));
        }
        labels.push(*label);
    }
    Ok(labels)
}

impl DatasetInput {
    /// The id of the dataset, when it is a registered one.
    pub(crate) fn registered(&self) -> Option<Uuid> {
        match &self.source {
            Source::Registered(id) => Some(*id),
            Source::Inline(_) => None,
        }
    }
}

fn unknown_class(dataset: &Dataset, class: &str) -> datasets::Error {
    const SHOWN: usize = 50;
    let mut known = dataset.class_names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if dataset.class_names.len() > SHOWN {
        known.push_str(", …");
    }
    datasets::Error::UnknownClass { class: class.chars().take(100).collect(), known }
}

/// Labelled data of a generation: a registered dataset, or data that comes with the request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawDatasetInput")]
pub(crate) struct DatasetInput {
    pub(crate) source: Source,
    pub(crate) classes: Option<Vec<String>>,
    pub(crate) seed: Option<u64>,
}

/// Where labelled data comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    Registered(Uuid),
    Inline(Content),
}

/// The fields as they are in the JSON. The form with exactly one of five is checked afterwards, so that an error in
/// one of them is told under its own path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDatasetInput {
    id: Option<Uuid>,
    images: Option<Vec<Image>>,
    npz: Option<String>,
    zip: Option<String>,
    text: Option<String>,
    classes: Option<Vec<String>>,
    seed: Option<u64>,
}

impl TryFrom<RawDatasetInput> for DatasetInput {
    type Error = &'static str;

    fn try_from(raw: RawDatasetInput) -> std::result::Result<Self, Self::Error> {
        const RULE: &str = "give exactly one of `id`, `images`, `npz`, `zip` and `text`";
        let source = match (raw.id, Content::one_of(raw.images, raw.npz, raw.zip, raw.text)) {
            (Some(id), Given::None) => Source::Registered(id),
            (None, Given::One(content)) => Source::Inline(content),
            _ => return Err(RULE),
        };
        if matches!(source, Source::Inline(Content::Text(_))) && (raw.classes.is_some() || raw.seed.is_some()) {
            return Err(TEXT_ALONE);
        }
        Ok(Self { source, classes: raw.classes, seed: raw.seed })
    }
}

/// Data for a generation: exactly one of `id`, `images`, `npz`, `zip`, and of a generator that is conditioned on a text,
/// `text`.
#[derive(ToSchema)]
#[schema(as = DatasetInput)]
#[allow(dead_code)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum DatasetInputSchema {
    /// A registered dataset.
    #[schema(title = "registered")]
    Registered {
        /// Its id.
        id: Uuid,
        /// Names of the classes in the order of the generated head's rows; all classes in label order by default.
        #[schema(example = json!(["3", "1", "4", "0", "7"]))]
        classes: Option<Vec<String>>,
        /// Which examples of each class the encoder takes; 0 by default.
        #[schema(format = "uint64")]
        seed: Option<u64>,
    },
    /// Images in the request.
    #[schema(title = "images")]
    Images {
        /// The images, all of one size.
        images: Vec<Image>,
        /// Names of the classes in the order of the generated head's rows; by first appearance by default.
        classes: Option<Vec<String>>,
        /// Which examples of each class the encoder takes; 0 by default.
        #[schema(format = "uint64")]
        seed: Option<u64>,
    },
    /// A NumPy archive: `images` `[n, h, w]` or `[n, c, h, w]`, or `features` `[n, d]`; `labels` `[n]`; optionally
    /// `class_names`.
    #[schema(title = "npz")]
    Npz {
        /// The file in base64.
        #[schema(content_encoding = "base64")]
        npz: String,
        /// Names of the classes in the order of the generated head's rows; all classes in label order by default.
        classes: Option<Vec<String>>,
        /// Which examples of each class the encoder takes; 0 by default.
        #[schema(format = "uint64")]
        seed: Option<u64>,
    },
    /// A zip of `CLASS/image.png` or `.jpg`.
    #[schema(title = "zip")]
    Zip {
        /// The file in base64.
        #[schema(content_encoding = "base64")]
        zip: String,
        /// Names of the classes in the order of the generated head's rows; by name by default.
        classes: Option<Vec<String>>,
        /// Which examples of each class the encoder takes; 0 by default.
        #[schema(format = "uint64")]
        seed: Option<u64>,
    },
    /// A description of the task, for a generator of adapters.
    #[schema(title = "text")]
    Text {
        /// What the task is, in a sentence or two.
        #[schema(
            example = "Decide whether a sentence is an opinion for or against something.",
            min_length = 1,
            max_length = 10000
        )]
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::parse;

    fn image(class: &str) -> Image {
        Image { class: class.into(), data: "AAAA".into() }
    }

    #[test]
    fn exactly_one_source() {
        let id = Uuid::now_v7();
        assert!(parse::<DatasetInput>(format!(r#"{{"id": "{id}"}}"#).as_bytes()).is_ok());
        for bad in ["{}", r#"{"npz": "", "zip": ""}"#, r#"{"classes": ["a", "b"]}"#] {
            let error = parse::<DatasetInput>(bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "json_invalid");
            assert!(error.to_string().contains("exactly one of"), "{error}");
        }
        let error = parse::<DatasetInput>(br#"{"images": [{"class": "a"}]}"#).unwrap_err();
        assert_eq!(error.field(), Some("images[0]"));
    }

    #[test]
    fn errors_name_the_field() {
        let limits = Limits::default();
        let error = Content::Npz("?".into()).read("dataset.", None, &limits).unwrap_err();
        assert_eq!((error.code(), error.field()), ("base64_invalid", Some("dataset.npz")));
        let error = Content::Zip("UEsDBA==".into()).read("dataset.", None, &limits).unwrap_err();
        assert_eq!((error.code(), error.field()), ("zip_invalid", Some("dataset.zip")));
        let images = Content::Images(vec![image("b"), image("a")]);
        let error = images.read("", None, &limits).unwrap_err();
        assert_eq!((error.code(), error.field()), ("image_invalid", Some("images[0]")));
        let one = Content::Images(vec![image("b")]);
        assert_eq!(one.read("", None, &limits).unwrap_err().code(), "too_few_classes");
    }

    #[test]
    fn classes_come_in_the_order_of_appearance() {
        let images: Vec<Image> = ["b", "a", "b", "c"].map(image).into();
        assert_eq!(first_seen(&images), ["b", "a", "c"]);
    }

    #[test]
    fn labels_follow_the_names() {
        let data = datasets::Data::F32(vec![0.0; 3]);
        let names = ["x", "y", "z"].map(str::to_owned).to_vec();
        let dataset = Dataset::new("t", vec![1], names, data, vec![0, 1, 2]).unwrap();
        let of = |classes: &[&str]| labels(&dataset, &classes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["z", "x"]).unwrap(), [2, 0]);
        assert_eq!(of(&["z"]).unwrap_err().code(), "too_few_classes");
        assert_eq!(of(&["z", "z"]).unwrap_err().code(), "duplicate_class");
        let error = of(&["z", "q"]).unwrap_err();
        assert!(error.to_string().contains("x, y, z"), "{error}");
    }
}
