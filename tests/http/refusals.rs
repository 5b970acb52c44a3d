//! Bad input: each a 4xx with a code and a sentence that says what would be right, and nothing stored.

use serde_json::{Value, json};
use weights::Bundle;
use weights::manifest::Modality;

use super::{GENERATOR, IMAGES, import, register, registry, trained};
use crate::support::data::{base64, grey, images, npz, npz_with_nan, some_digits, zip};
use crate::support::http::Server;

/// The trained generator as one that takes ready features.
fn of_features() -> Vec<u8> {
    let original = Bundle::read_tar(trained().tar.as_slice()).unwrap();
    let mut manifest = original.manifest().clone();
    manifest.modality = Modality::Features;
    manifest.name = "of-features".into();
    let files = original.entries().filter(|(name, _)| *name != "manifest.json");
    let files = files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    let (bundle, mut tar) = (Bundle::new(manifest, files).unwrap(), Vec::new());
    bundle.write_tar(&mut tar).unwrap();
    assert_ne!(bundle.digest(), trained().digest);
    tar
}

/// What is wrong with a request, the answer's status and code, and what its sentence must say.
type Case = (&'static str, Value, u16, &'static str, &'static str);

fn generations(id: &Value) -> Vec<Case> {
    let good = json!({"generator": GENERATOR, "dataset": {"id": id, "classes": ["3", "1", "4"]}});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let three = some_digits(&[3, 1, 4], 0, IMAGES);
    let grown = some_digits(&[3, 1, 4], 0, 2).resize(9, 9).unwrap();
    let archive = zip(&three);
    let cut = base64(&archive[..archive.len() * 2 / 3]);
    let four = json!(["3", "1", "4", "9"]);
    let nan = base64(&npz_with_nan(64, 6, &["a", "b", "c"]));
    let unknown = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e";
    vec![
        ("image size", with("dataset", json!({"images": images(&grown)})), 422, "shape_mismatch", "[1, 8, 8]"),
        (
            "images of two sizes",
            with("dataset", json!({"images": [grey("a", 8, 1), grey("b", 9, 2), grey("c", 8, 3)]})),
            422,
            "image_size_mismatch",
            "one size",
        ),
        (
            "a class without images",
            with("dataset", json!({"images": images(&three), "classes": four})),
            422,
            "class_without_images",
            "at least one",
        ),
        (
            "one class",
            with("dataset", json!({"images": [grey("a", 8, 1), grey("a", 8, 2)]})),
            422,
            "too_few_classes",
            "at least two",
        ),
        ("one class of a dataset", with("dataset", json!({"id": id, "classes": ["3"]})), 422, "too_few_classes", "two"),
        ("too many classes", with("dataset", json!({"id": id, "classes": four})), 422, "classes_mismatch", "exactly 3"),
        (
            "a class twice",
            with("dataset", json!({"id": id, "classes": ["3", "1", "3"]})),
            422,
            "duplicate_class",
            "once",
        ),
        (
            "no such class",
            with("dataset", json!({"id": id, "classes": ["3", "1", "x"]})),
            422,
            "unknown_class",
            "0, 1, 2",
        ),
        ("features with NaN", with("dataset", json!({"npz": nan})), 422, "non_finite", "finite"),
        ("no such generator", with("generator", json!("nobody")), 404, "not_found", "nobody"),
        ("no such version", with("generator", json!(format!("{GENERATOR}@9"))), 404, "not_found", "@9"),
        ("no name", with("generator", json!("a@b@c")), 422, "invalid_reference", "name@"),
        ("another modality", with("generator", json!("of-features")), 422, "modality_mismatch", "features"),
        ("a truncated zip", with("dataset", json!({"zip": cut})), 422, "zip_invalid", "zip"),
        ("no zip", with("dataset", json!({"zip": base64(b"PK nothing")})), 422, "zip_invalid", "zip"),
        ("no npz", with("dataset", json!({"npz": base64(&[7; 100])})), 422, "zip_invalid", "zip"),
        ("no base64", with("dataset", json!({"npz": "%"})), 422, "base64_invalid", "base64"),
        (
            "no image",
            with("dataset", json!({"images": [{"class": "a", "data": "AAAA"}, grey("b", 8, 1), grey("c", 8, 1)]})),
            422,
            "image_invalid",
            "PNG, JPEG",
        ),
        ("no such dataset", with("dataset", json!({"id": unknown})), 404, "not_found", unknown),
        ("no dataset", with("dataset", json!({})), 422, "json_invalid", "exactly one of"),
        ("count of 0", with("count", json!(0)), 422, "option_invalid", "from 1 to 256"),
        ("count of 10,000", with("count", json!(10_000)), 422, "option_invalid", "from 1 to 256"),
        ("no steps", with("steps", json!(0)), 422, "option_invalid", "from 1"),
        ("more steps than there are", with("steps", json!(201)), 422, "option_invalid", "from 1 to 200"),
        ("eta", with("eta", json!(2)), 422, "option_invalid", "0 to 1"),
        ("guidance", with("guidance", json!(1e9)), 422, "option_invalid", "0 to 20"),
        ("sampler", with("sampler", json!("euler")), 422, "json_invalid", "ddim"),
        ("unknown field", with("cuont", json!(3)), 422, "json_invalid", "unknown field `cuont`"),
        ("a number that is text", with("count", json!("3")), 422, "json_invalid", "count"),
        ("a list", json!([1, 2]), 422, "json_invalid", "fit"),
        (
            "evaluation on other classes",
            with("evaluation", json!({"npz": npz(&some_digits(&[3, 1, 5], 0, 3))})),
            422,
            "unknown_class",
            "3, 1, 5",
        ),
        (
            "evaluation on other images",
            with("evaluation", json!({"npz": npz(&grown)})),
            422,
            "shape_mismatch",
            "[1, 8, 8]",
        ),
        (
            "nothing to evaluate on",
            json!({"generator": GENERATOR, "dataset": {"npz": npz(&three)}, "evaluate": true}),
            422,
            "evaluation_missing",
            "more examples",
        ),
    ]
}

fn datasets() -> Vec<Case> {
    let three = some_digits(&[3, 1, 4], 0, 5);
    let archive = zip(&three);
    let cut = base64(&archive[..archive.len() - 40]);
    let with = |form: &str, value: Value| json!({"name": "d", form: value});
    let two_sizes = json!([grey("a", 8, 1), grey("b", 16, 2)]);
    vec![
        ("images of two sizes", with("images", two_sizes), 422, "image_size_mismatch", "one size"),
        (
            "a class without images",
            json!({"name": "d", "images": images(&three), "classes": ["3", "1", "4", "5"]}),
            422,
            "class_without_images",
            "at least one",
        ),
        ("one class", with("images", json!([grey("a", 8, 1)])), 422, "too_few_classes", "at least two"),
        ("NaN", with("npz", json!(base64(&npz_with_nan(5, 4, &["a", "b"])))), 422, "non_finite", "finite"),
        ("a truncated zip", with("zip", json!(cut)), 422, "zip_invalid", "zip"),
        ("a name", json!({"name": "Digits!", "npz": npz(&three)}), 422, "invalid_name", "lowercase"),
        ("no data", json!({"name": "d"}), 422, "json_invalid", "exactly one of"),
        ("unknown field", json!({"name": "d", "npz": npz(&three), "colour": 1}), 422, "json_invalid", "colour"),
    ]
}

#[test]
fn bad_input_is_refused_and_stores_nothing() {
    const LIMIT: usize = 200_000;
    let data = registry();
    import(data.path(), &of_features());
    let server = Server::start(data.path(), &["--body-limit", &LIMIT.to_string()]);
    let id = register(&server, "digits", 0, 20);
    let good = json!({"generator": GENERATOR, "dataset": {"id": id, "classes": ["3", "1", "4"]}, "seed": 1});
    server.api.generate(&good);
    let before = server.stored();
    assert_eq!(before.counts()[..3], [1, 1, 2], "{before:?}");

    for (path, cases) in [("/v1/generations", generations(&id)), ("/v1/datasets", datasets())] {
        for (what, body, status, code, part) in cases {
            let detail = server.api.post(path, &body).problem(status, code);
            assert!(detail.contains(part), "{path}, {what}: {detail}");
            assert_eq!(server.stored(), before, "{path}, {what}: something was stored");
        }
        for broken in ["", "{", "{,}", "nothing"] {
            server.api.post_text(path, broken.to_owned()).problem(400, "json_malformed");
        }
        let mut large = good.clone();
        large["dataset"] = json!({"npz": "A".repeat(LIMIT)});
        let detail = server.api.post(path, &large).problem(413, "body_too_large");
        assert!(detail.contains(&LIMIT.to_string()), "{detail}");
    }
    for broken in ["/v1/generations/x", "/v1/datasets/1"] {
        server.api.get(broken).problem(400, "path_invalid");
    }
    server.api.get("/v1/generations?limit=0").problem(422, "invalid_value");
    server.api.get("/v1/generations?limut=5").problem(400, "query_invalid");
    server.api.get("/v1/generations?cursor=x").problem(400, "invalid_cursor");
    assert_eq!(server.stored(), before);
    // All that did no harm to the server.
    let made = server.api.generate(&good);
    let digests = |generation: &Value| generation["samples"][0]["digest"].clone();
    let first = server.api.all("/v1/generations").pop().unwrap();
    let first = server.api.json(&format!("/v1/generations/{}", first["id"].as_str().unwrap()));
    assert_eq!(digests(&made), digests(&first));
}
