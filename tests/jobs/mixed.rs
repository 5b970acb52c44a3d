//! A zoo of several architectures, cut into chunks: from a job over the registry to networks over HTTP.

use serde_json::{Value, json};

use super::site::{Site, config};

fn mixed() -> Value {
    let mut config = config(1);
    let map = config.as_object_mut().unwrap();
    map.remove("architecture");
    map.insert("name".into(), json!("mixed"));
    map.insert("architectures".into(), json!([{ "kind": "mlp", "hidden": [8] }, { "kind": "head" }]));
    map.insert("vectors".into(), json!({ "mode": "layer_wise", "chunk": 200, "held_out": 0.1 }));
    config
}

#[test]
fn a_mixed_zoo_in_chunks_goes_from_job_to_networks() {
    let site = Site::open();
    let job = site.ask("/v1/zoos", &json!({ "build": mixed() }));
    let worker = site.worker(&["--queues", "train"]);
    let zoo = site.result(&job)["detail"].clone();
    assert_eq!((zoo["runs"].as_i64(), zoo["checkpoints"].as_i64()), (Some(80), Some(80)));
    let job = site.ask("/v1/generators/mixed/versions", &json!({ "zoo": zoo["id"], "config": mixed() }));
    let version = site.result(&job);
    assert_eq!(version["kind"], "generator_version", "{version}");
    drop(worker);

    let api = &site.server.api;
    let manifest = api.json("/v1/generators/mixed/versions/1")["manifest"].clone();
    assert_eq!(manifest["vectorise"]["mode"], "layer_wise");
    // 520 values of the first layer are three rows, 27 of the second one; the head's 195 are one.
    let layers: Vec<&str> =
        manifest["vectorise"]["pieces"].as_array().unwrap().iter().map(|p| p["layer"].as_str().unwrap()).collect();
    assert_eq!(layers, ["layers.0", "layers.0", "layers.0", "layers.1", ""]);
    let data = api.all("/v1/datasets").into_iter().find(|d| d["name"] == "digits-train").unwrap();
    for (name, parameters) in [("mlp-64-8-3", 547), ("head-64-3", 195)] {
        let body = json!({ "generator": "mixed", "architecture": name, "count": 3, "seed": 1, "evaluate": true,
            "candidates": ["generated"], "dataset": { "id": data["id"], "classes": ["7", "0", "3"] } });
        let reply = api.post("/v1/generations", &body);
        let made = reply.json();
        assert_eq!(reply.status, 201, "{made}");
        assert_eq!(made["architecture"], name);
        let url = made["samples"][2]["url"].as_str().unwrap();
        let metadata = api.json(&url.replace("/file", "/metadata"));
        let tensors = metadata["tensors"].as_object().unwrap().values();
        let size = |t: &Value| t["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).product::<i64>();
        assert_eq!(tensors.map(size).sum::<i64>(), parameters);
        assert_eq!(metadata["metadata"]["architecture"], name);
    }
}
