//! Samples ranked by the generator's predictor, refined, disturbed: what a client asks for and what it is told.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::candidates::{make, publish};
use crate::support::App;

fn scores(made: &Value, key: &str) -> Vec<f64> {
    let samples = made["samples"].as_array().unwrap().iter();
    samples.map(|s| s["scores"][key].as_f64().unwrap_or_else(|| panic!("no {key}: {s}"))).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_predictor_ranks_candidates_of_every_origin(pool: PgPool) {
    let app = App::new(pool);
    let (_, id) = publish(&app).await;
    let body = json!({"generator": "heads", "dataset": {"id": id, "classes": ["3", "1", "4"]}, "seed": 1, "count": 12,
        "candidates": ["generated", "retrieved", "closed_form"], "rank_by": "predictor"});
    let made = make(&app, &body).await;
    assert_eq!(made["rank_by"], "predictor");
    let predicted = scores(&made, "predictor");
    assert!(predicted.windows(2).all(|w| w[0] >= w[1]), "{predicted:?}");
    assert!(predicted.iter().all(|p| (0.0..=1.0).contains(p)), "{predicted:?}");
    assert!(made["samples"][0]["scores"]["leave_one_out"].is_null());
    let stored = app.json(&format!("/v1/generators/heads/versions/{}", made["generator"]["version"])).await;
    assert!(stored["manifest"]["metrics"]["predictor"]["held_out"]["spearman"].as_f64().is_some(), "{stored}");

    // Another generator has none.
    app.publish("digits").await;
    let reply = app
        .post(
            "/v1/generations",
            &json!({"generator": "digits", "rank_by": "predictor",
        "dataset": {"id": id, "classes": ["3", "1", "4"]}}),
        )
        .await;
    let problem = reply.json();
    assert_eq!((reply.status.as_u16(), &problem["code"]), (422, &json!("invalid_value")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("leave_one_out"), "{problem}");
}

#[sqlx::test(migrations = "../migrations")]
async fn samples_are_refined_on_the_dataset(pool: PgPool) {
    let app = App::new(pool);
    let (_, id) = publish(&app).await;
    let body = |extra: Value| {
        let mut body = json!({"generator": "heads", "dataset": {"id": id, "classes": ["3", "1", "4"]}, "seed": 1,
            "count": 4, "candidates": ["generated"], "rank_by": "leave_one_out"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let plain = make(&app, &body(json!({}))).await;
    let refined = make(&app, &body(json!({"refine": {"steps": 2}}))).await;
    assert_eq!((&refined["refine_steps"], &plain["refine_steps"]), (&json!(2), &Value::Null));
    let worst = |made: &Value| scores(made, "support_loss").into_iter().fold(0.0, f64::max);
    assert!(worst(&refined) < worst(&plain), "{refined} {plain}");
    let url = format!("/v1/generations/{}/samples/0/metadata", refined["id"].as_str().unwrap());
    assert_eq!(app.json(&url).await["metadata"]["refine"], "2");

    let noisy = make(&app, &body(json!({"latent_noise": 0.5}))).await;
    assert_eq!(noisy["latent_noise"], 0.5);
    assert_ne!(noisy["samples"][0]["digest"], plain["samples"][0]["digest"]);
    for (extra, field) in [
        (json!({"refine": {"steps": 99}}), "refine.steps"),
        (json!({"refine": {"steps": 1, "prior": 0.0}}), "refine.prior"),
        (json!({"latent_noise": 9.0}), "latent_noise"),
        (json!({"quality": 1.0}), "quality"),
        // Heads have no normalisation.
        (json!({"recalibrate": true}), "recalibrate"),
    ] {
        let reply = app.post("/v1/generations", &body(extra)).await;
        let problem = reply.json();
        assert_eq!((reply.status.as_u16(), &problem["code"]), (422, &json!("option_invalid")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(field), "{problem}");
    }
}
