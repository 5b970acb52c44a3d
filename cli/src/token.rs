//! `weightsmith token`.

use std::time::Duration;

use clap::{Args, Subcommand};
use registry::tokens::{self, NewToken, Scope, Token, TokenFilter};
use registry::{ListRequest, MAX_LIMIT, Registry, TokenId};

use crate::config::Span;
use crate::context::{RegistryArgs, caller, say, with_registry};
use crate::error::{Error, Result};

/// Commands on tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token and print its secret, which is shown only now.
    #[command(after_help = "Example:\n  weightsmith token create --name ci --owner ann --scope read,generate \
                      --pattern 'digits-*' --expires 30d --samples-per-day 1000")]
    Create(Create),
    /// List the tokens of the registry.
    #[command(after_help = "Example:\n  weightsmith token list --data-dir .weightsmith/data")]
    List {
        /// Also those that have expired or were revoked.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Revoke a token for ever; a running server notices within 5 seconds.
    #[command(after_help = "Example:\n  weightsmith token revoke wsm_Ab3dEf9h")]
    Revoke {
        /// The token's id, or its prefix as `token list` shows it.
        token: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// A token to make.
#[derive(Debug, Args)]
pub struct Create {
    /// What to call it.
    #[arg(long)]
    name: String,
    /// Name of the principal that its holder acts as; what it makes belongs to that name.
    #[arg(long)]
    owner: String,
    /// What it allows, between commas: read, generate, train, administer (which includes the others).
    #[arg(long = "scope", value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,
    /// Glob of the resource names that it sees, `*` being any text; may be given more than once. All without it.
    #[arg(long = "pattern", value_delimiter = ',')]
    patterns: Vec<String>,
    /// How long it is valid, as in 12h or 30d; until it is revoked without it.
    #[arg(long)]
    expires: Option<Span>,
    /// Samples that it may generate on a day (UTC); any number without it.
    #[arg(long)]
    samples_per_day: Option<i64>,
    /// Seconds of computing that it may use on a day (UTC); any number without it.
    #[arg(long)]
    compute_seconds_per_day: Option<f64>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Create(args) => {
            let place = args.registry.clone();
            with_registry(&place, async |registry| create(registry, args).await)
        }
        Command::List { all, registry } => with_registry(&registry, async |registry| list(registry, all).await),
        Command::Revoke { token, registry } => with_registry(&registry, async |registry| {
            let found = find(registry, &token).await?;
            let mut write = registry.write(&caller()).await?;
            let revoked = tokens::revoke(&mut write, found.id).await?;
            write.commit().await?;
            say(&format!("{} {} revoked", revoked.prefix, revoked.name));
            Ok(())
        }),
    }
}

async fn create(registry: &Registry, args: Create) -> Result<()> {
    let new = NewToken {
        name: args.name,
        owner: args.owner,
        scopes: args.scopes,
        patterns: args.patterns,
        samples_per_day: args.samples_per_day,
        compute_seconds_per_day: args.compute_seconds_per_day,
        expires_in: args.expires.map(Duration::from),
    };
    let mut write = registry.write(&caller()).await?;
    let (_, secret) = tokens::create(&mut write, &new).await?;
    write.commit().await?;
    say(secret.reveal());
    Ok(())
}

async fn list(registry: &Registry, all: bool) -> Result<()> {
    let filter = TokenFilter { active: if all { None } else { Some(true) }, ..TokenFilter::default() };
    let mut request = ListRequest { limit: MAX_LIMIT, ..ListRequest::default() };
    say(&format!("{:<12}  {:<20} {:<20} {:<26} {:<16} last used", "prefix", "name", "owner", "scopes", "ends"));
    loop {
        let page = tokens::list(registry, &caller(), &filter, &request).await?;
        page.items.iter().for_each(|token| say(&line(token)));
        match page.next_cursor {
            Some(cursor) => request.cursor = Some(cursor),
            None => return Ok(()),
        }
    }
}

fn line(token: &Token) -> String {
    let time = |time: Option<chrono::DateTime<chrono::Utc>>| {
        time.map_or_else(|| "never".to_owned(), |time| time.format("%Y-%m-%d %H:%M").to_string())
    };
    let ends = if token.revoked_at.is_some() { "revoked".to_owned() } else { time(token.expires_at) };
    let scopes: Vec<&str> = token.scopes.0.iter().map(|scope| scope.name()).collect();
    let Token { prefix, name, owner, .. } = token;
    format!("{prefix}  {name:<20} {owner:<20} {:<26} {ends:<16} {}", scopes.join(","), time(token.last_used_at))
}

/// The token of an id or a prefix.
async fn find(registry: &Registry, token: &str) -> Result<Token> {
    let found = match token.parse::<TokenId>() {
        Ok(id) => tokens::get(registry, id).await,
        // A whole secret has its prefix in it; only that much goes into what is printed.
        Err(_) => tokens::by_prefix(registry, token.get(..12).unwrap_or(token)).await,
    };
    found.map_err(Error::from)
}
