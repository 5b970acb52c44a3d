//! Telling a webhook that its job has ended.

use std::time::Duration;

use registry::jobs::{self, Due};

use crate::error::Result;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client that goes where it is told and nowhere else.
pub fn client() -> Result<reqwest::Client> {
    let agent = concat!("weightsmith/", env!("CARGO_PKG_VERSION"));
    let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    Ok(client.user_agent(agent).build()?)
}

/// Posts the job; the status of the answer, or why there was none.
pub async fn deliver(client: &reqwest::Client, due: Due) -> std::result::Result<u16, String> {
    let id = due.job.id.to_string();
    let body = api::jobs::webhook_body(due.job).to_string();
    let signature = jobs::sign(&due.secret, due.timestamp, body.as_bytes());
    let request = client
        .post(&due.url)
        .header("content-type", "application/json")
        .header("weightsmith-signature", signature)
        .header("weightsmith-delivery", format!("{id}/{}", due.attempt))
        .body(body);
    match request.send().await {
        Ok(answer) => Ok(answer.status().as_u16()),
        // The URL is known; the reason without it.
        Err(error) => Err(crate::error::Error::from(error.without_url()).to_string()),
    }
}
