//! Downloads: ranges, conditions, `HEAD`.

use axum::http::Method;
use sqlx::PgPool;

use crate::catalogue::zoo;
use crate::support::App;

/// Path and bytes of the third checkpoint's file.
async fn file(app: &App) -> (String, Vec<u8>) {
    zoo(app).await;
    let page = app.json("/v1/checkpoints?min_accuracy=0.65").await;
    let path = page["items"][0]["url"].as_str().unwrap().to_owned();
    (path, vec![2; 100])
}

#[sqlx::test(migrations = "../migrations")]
async fn whole_files(pool: PgPool) {
    let app = App::new(pool);
    let (path, bytes) = file(&app).await;
    let reply = app.get(&path).await;
    assert_eq!((reply.status.as_u16(), &reply.bytes), (200, &bytes));
    let etag = format!("\"{}\"", registry::digest_of(&bytes));
    for (name, value) in [
        ("etag", etag.as_str()),
        ("content-length", "100"),
        ("accept-ranges", "bytes"),
        ("content-type", "application/vnd.safetensors"),
        (
            "content-disposition",
            "attachment; filename=\"checkpoint-1-0.safetensors\"; filename*=UTF-8''checkpoint-1-0.safetensors",
        ),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
    let head = app.ask(Method::HEAD, &path, &[("range", "bytes=0-1")]).await;
    assert_eq!((head.status.as_u16(), head.bytes.len()), (200, 0));
    for name in ["etag", "content-length", "content-type", "content-disposition", "accept-ranges"] {
        assert_eq!(head.header(name), reply.header(name), "{name}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn ranges(pool: PgPool) {
    let app = App::new(pool);
    let (path, _) = file(&app).await;
    let etag = app.get(&path).await.header("etag").to_owned();
    let ask = async |headers: &[(&str, &str)]| app.ask(Method::GET, &path, headers).await;
    for (range, content, length) in [
        ("bytes=0-9", "bytes 0-9/100", 10),
        ("bytes=90-", "bytes 90-99/100", 10),
        ("bytes=-1", "bytes 99-99/100", 1),
        ("bytes=50-5000", "bytes 50-99/100", 50),
    ] {
        let reply = ask(&[("range", range)]).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-range")), (206, content), "{range}");
        assert_eq!((reply.bytes.len(), reply.header("content-length")), (length, length.to_string().as_str()));
    }
    let outside = ask(&[("range", "bytes=100-")]).await;
    outside.problem(416, "range_not_satisfiable");
    assert_eq!(outside.header("content-range"), "bytes */100");
    assert_eq!(ask(&[("range", "bytes=0-1,5-6")]).await.status, 200);
    assert_eq!(ask(&[("range", "bytes=0-1"), ("if-range", &etag)]).await.status, 206);
    assert_eq!(ask(&[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await.status, 200);
}

#[sqlx::test(migrations = "../migrations")]
async fn what_the_client_has_is_not_sent_again(pool: PgPool) {
    let app = App::new(pool);
    let (path, _) = file(&app).await;
    let etag = app.get(&path).await.header("etag").to_owned();
    for method in [Method::GET, Method::HEAD] {
        let reply = app.ask(method, &path, &[("if-none-match", &etag)]).await;
        assert_eq!((reply.status.as_u16(), reply.bytes.len(), reply.header("etag")), (304, 0, etag.as_str()));
    }
    assert_eq!(app.ask(Method::GET, &path, &[("if-none-match", "\"other\"")]).await.status, 200);
}

#[sqlx::test(migrations = "../migrations")]
async fn bundles(pool: PgPool) {
    let app = App::new(pool);
    let version = app.publish("digits").await;
    let path = "/v1/generators/digits/versions/1/bundle";
    let reply = app.get(path).await;
    assert_eq!(reply.header("content-type"), "application/x-tar");
    assert_eq!(
        reply.header("content-disposition"),
        "attachment; filename=\"digits-1.tar\"; filename*=UTF-8''digits-1.tar"
    );
    assert_eq!(reply.header("etag"), format!("\"{}\"", version.artifact_digest));
    let bundle = weights::Bundle::read_tar(&reply.bytes[..]).unwrap();
    assert_eq!(bundle.digest(), version.digest);
    assert_eq!(app.ask(Method::HEAD, path, &[]).await.header("content-length"), reply.bytes.len().to_string());
    app.get("/v1/generators/digits/versions/2/bundle").await.problem(404, "not_found");
    let head = app.ask(Method::HEAD, "/v1/generators/digits/versions/2/bundle", &[]).await;
    assert_eq!((head.status.as_u16(), head.bytes.len()), (404, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_lost_file_is_the_servers_fault(pool: PgPool) {
    let app = App::new(pool.clone());
    let (path, bytes) = file(&app).await;
    let digest = registry::digest_of(&bytes);
    let elsewhere = App::new(pool);
    let problem = elsewhere.get(&path).await.problem(500, "artifact_missing");
    assert!(!problem["detail"].as_str().unwrap().contains(&digest), "{problem}");
}
