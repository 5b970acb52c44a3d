//! Who may ask a server, and how often: its flags, and its first token.

use api::{AuthSettings, RateLimit};
use registry::{Registry, tokens};

use crate::context::say;
use crate::error::Result;

/// Requests a second that a client may make where nothing else is said and tokens are needed.
const RATE: u32 = 500;

/// Who may ask a server, and how often.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Access")]
pub struct AuthArgs {
    /// Need no tokens: whoever reaches the server is an administrator. Only on loopback.
    #[arg(long, env = "WEIGHTSMITH_OPEN")]
    pub open: bool,
    /// Requests a second that each token (or address, without a token) may make; 0 for any number. 500, or 0 with
    /// --open, when it is not given.
    #[arg(long, env = "WEIGHTSMITH_RATE_LIMIT", value_name = "PER_SECOND")]
    pub rate_limit: Option<u32>,
    /// Requests that may come at once; twice the rate when it is not given.
    #[arg(long, env = "WEIGHTSMITH_RATE_BURST", value_name = "REQUESTS")]
    pub rate_burst: Option<u32>,
    /// Proxies in front of the server that append the client's address to X-Forwarded-For.
    #[arg(long, env = "WEIGHTSMITH_TRUSTED_PROXIES", default_value_t = 0)]
    pub trusted_proxies: usize,
}

impl AuthArgs {
    /// The settings of the server.
    pub fn settings(&self) -> AuthSettings {
        let per_second = self.rate_limit.unwrap_or(if self.open { 0 } else { RATE });
        let burst = self.rate_burst.unwrap_or(per_second.saturating_mul(2));
        let rate = (per_second > 0).then_some(RateLimit { per_second, burst });
        AuthSettings { open: self.open, trusted_proxies: self.trusted_proxies, rate }
    }
}

/// Makes the first token of a registry that has none, and shows it.
pub async fn first_token(registry: &Registry) -> Result<()> {
    if let Some((_, secret)) = tokens::create_first(registry).await? {
        say("This is the registry's first start. Its administrator's token is shown only now; keep it:");
        say(&format!("  {}", secret.reveal()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(open: bool, rate_limit: Option<u32>, rate_burst: Option<u32>) -> Option<(u32, u32)> {
        let settings = AuthArgs { open, rate_limit, rate_burst, trusted_proxies: 0 }.settings();
        settings.rate.map(|rate| (rate.per_second, rate.burst))
    }

    #[test]
    fn open_servers_have_no_limit_unless_asked_for() {
        assert_eq!(rate(false, None, None), Some((500, 1000)));
        assert_eq!(rate(true, None, None), None);
        assert_eq!(rate(true, Some(5), None), Some((5, 10)));
        assert_eq!(rate(false, Some(5), Some(1)), Some((5, 1)));
        assert_eq!(rate(false, Some(0), None), None);
    }
}
