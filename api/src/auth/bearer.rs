//! `Authorization: Bearer`.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use crate::error::{Error, Result};

/// The secret that a request shows.
pub(crate) fn secret(headers: &HeaderMap) -> Result<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Error::TokenMissing)?;
    let invalid = || Error::from(registry::Error::TokenInvalid);
    // Two of them may mean two callers.
    if values.next().is_some() {
        return Err(invalid());
    }
    let text = value.to_str().map_err(|_| invalid())?;
    let (scheme, secret) = text.split_once(' ').unwrap_or((text, ""));
    match scheme.eq_ignore_ascii_case("bearer") {
        true => Ok(secret.trim()),
        false => Err(Error::TokenMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            secret(&headers).map(str::to_owned).map_err(|error| error.code())
        };
        assert_eq!(read(&["Bearer wsm_x"]).unwrap(), "wsm_x");
        assert_eq!(read(&["bearer  wsm_x"]).unwrap(), "wsm_x");
        assert_eq!(read(&[]).unwrap_err(), "token_missing");
        assert_eq!(read(&["Basic eDp5"]).unwrap_err(), "token_missing");
        assert_eq!(read(&["wsm_x"]).unwrap_err(), "token_missing");
        assert_eq!(read(&["Bearer a", "Bearer b"]).unwrap_err(), "token_invalid");
        assert_eq!(read(&["Bearer \u{e9}"]).unwrap_err(), "token_invalid");
        assert_eq!(read(&["Bearer"]).unwrap(), "");
    }
}
