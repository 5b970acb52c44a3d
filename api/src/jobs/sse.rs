//! Events as they happen. The table is the source: notices only say when to look, so a lost one costs a second.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use registry::JobId;
use registry::jobs as rows;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::error::{Error, Result};
use crate::state::AppState;

/// Events fetched at a time.
const MANY: i64 = 100;
/// How long to wait for a notice before looking anyway.
const LOOK: Duration = Duration::from_secs(1);
/// How often a comment keeps a quiet connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The last event that a client has seen: its header, else its query, else none.
pub(super) fn last_seen(headers: &HeaderMap, query: Option<u64>) -> Result<i64> {
    let wrong = || Error::HeaderInvalid { name: "Last-Event-ID", rule: "give the id of an event, a whole number" };
    let number = match headers.get("last-event-id") {
        // A client that has seen nothing may send it empty.
        Some(value) if value.is_empty() => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?,
        None => query.unwrap_or(0),
    };
    i64::try_from(number).map_err(|_| wrong())
}

/// A client's place in the events of a job.
struct Reader {
    state: AppState,
    job: JobId,
    after: i64,
    fetched: VecDeque<rows::Event>,
    ended: bool,
    notices: broadcast::Receiver<JobId>,
    stopping: watch::Receiver<bool>,
}

/// The events of a job after a number, until it ends or the server stops.
pub(super) fn stream(state: &AppState, job: JobId, after: i64) -> impl IntoResponse {
    let reader = Reader {
        // Before the table is read: what happens in between is heard.
        notices: state.job_notices(),
        stopping: state.stopping(),
        state: state.clone(),
        job,
        after,
        fetched: VecDeque::new(),
        ended: false,
    };
    Sse::new(events(reader)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

fn events(reader: Reader) -> impl Stream<Item = std::result::Result<Event, Infallible>> {
    futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(written(&event)), reader))
    })
}

fn written(event: &rows::Event) -> Event {
    let mut data = event.data.clone();
    if let Some(data) = data.as_object_mut() {
        data.insert("at".into(), serde_json::json!(event.at));
    }
    Event::default().id(event.sequence.to_string()).event(&event.kind).data(data.to_string())
}

impl Reader {
    /// The next event; `None` after the last one, and when the client has to come back later.
    async fn next(&mut self) -> Option<rows::Event> {
        while self.fetched.is_empty() {
            if self.ended {
                return None;
            }
            match rows::events(self.state.registry(), self.job, self.after, MANY).await {
                Ok(found) => self.fetched.extend(found),
                Err(error) => {
                    tracing::warn!(%error, job = %self.job, "a watcher of a job is cut off");
                    return None;
                }
            }
            if self.fetched.is_empty() && !self.wait().await {
                return None;
            }
        }
        let event = self.fetched.pop_front()?;
        self.after = event.sequence;
        self.ended = event.is_final();
        Some(event)
    }

    /// Waits until there may be news; false when the server stops.
    async fn wait(&mut self) -> bool {
        let (job, notices, stopping) = (self.job, &mut self.notices, &mut self.stopping);
        let news = async {
            loop {
                match notices.recv().await {
                    Ok(id) if id != job => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    // The table is asked all the same.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = news => true,
            () = tokio::time::sleep(LOOK) => true,
            _ = stopping.wait_for(|stopping| *stopping) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_goes_before_the_query() {
        let with =
            |text: &'static str| HeaderMap::from_iter([("last-event-id".parse().unwrap(), text.parse().unwrap())]);
        assert_eq!(last_seen(&HeaderMap::new(), None).unwrap(), 0);
        assert_eq!(last_seen(&HeaderMap::new(), Some(3)).unwrap(), 3);
        assert_eq!(last_seen(&with("7"), Some(3)).unwrap(), 7);
        assert_eq!(last_seen(&with(""), None).unwrap(), 0);
        for bad in ["x", "-1", "1.5", "99999999999999999999", "9223372036854775808"] {
            assert_eq!(last_seen(&with(bad), None).unwrap_err().code(), "header_invalid", "{bad}");
        }
    }
}
