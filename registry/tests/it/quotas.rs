use registry::tokens::{self, NewToken, Scope, Token};
use registry::{Caller, Registry, quotas};
use sqlx::PgPool;

use crate::fixtures::registry;

async fn token(registry: &Registry, samples: Option<i64>, seconds: Option<f64>) -> Token {
    let new = NewToken {
        name: "quota".into(),
        owner: "ann".into(),
        scopes: vec![Scope::Generate],
        samples_per_day: samples,
        compute_seconds_per_day: seconds,
        ..NewToken::default()
    };
    let mut write = registry.write(&Caller::system("test")).await.unwrap();
    let (token, _) = tokens::create(&mut write, &new).await.unwrap();
    write.commit().await.unwrap();
    token
}

#[sqlx::test(migrations = "../migrations")]
async fn twenty_at_once_never_exceed_a_quota(pool: PgPool) {
    let (registry, _folder) = registry(pool);
    for (limit, each, expected) in [(10, 1, 10), (10, 3, 3), (100, 1, 20), (2, 3, 0), (0, 1, 0)] {
        let token = token(&registry, Some(limit), None).await;
        let caller = token.caller();
        let tries = (0..20).map(|_| {
            let (registry, caller) = (registry.clone(), caller.clone());
            tokio::spawn(async move { quotas::reserve(&registry, &caller, each).await })
        });
        let results: Vec<_> = futures::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
        let granted = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(granted, expected, "{limit} by {each}");
        let usage = quotas::usage(&registry, token.id).await.unwrap();
        assert_eq!(usage.samples, granted as i64 * each as i64);
        assert!(usage.reset_seconds > 0 && usage.reset_seconds <= 86_400, "{usage:?}");
        for error in results.into_iter().filter_map(Result::err) {
            match error {
                registry::Error::QuotaExceeded { what: "samples", limit: found, left, reset_seconds } => {
                    assert!(found == limit && (0..each as i64).contains(&left) && reset_seconds > 0);
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_was_not_made_is_given_back(pool: PgPool) {
    let (registry, _folder) = registry(pool.clone());
    let token = token(&registry, Some(3), None).await;
    let reserve = async |samples| quotas::reserve(&registry, &token.caller(), samples).await;
    let reservation = reserve(3).await.unwrap().unwrap();
    assert_eq!(reserve(1).await.unwrap_err().code(), "quota_exceeded");
    quotas::release(&registry, &reservation).await.unwrap();
    reserve(3).await.unwrap();
    // Yesterday's use does not count today.
    sqlx::query("UPDATE usage SET day = day - 1").execute(&pool).await.unwrap();
    assert_eq!(quotas::usage(&registry, token.id).await.unwrap().samples, 0);
    reserve(3).await.unwrap();
    assert_eq!(reserve(1).await.unwrap_err().code(), "quota_exceeded");
}

#[sqlx::test(migrations = "../migrations")]
async fn computing_counts_when_it_is_done(pool: PgPool) {
    let (registry, _folder) = registry(pool);
    let token = token(&registry, None, Some(2.0)).await;
    let reserve = async |samples| quotas::reserve(&registry, &token.caller(), samples).await;
    let reservation = reserve(1_000_000).await.unwrap().unwrap();
    quotas::consume(&registry, &reservation, 1.5).await.unwrap();
    let reservation = reserve(1).await.unwrap().unwrap();
    quotas::consume(&registry, &reservation, 1.5).await.unwrap();
    let error = reserve(1).await.unwrap_err();
    assert!(error.to_string().contains("2 compute seconds a day has 0 left"), "{error}");
    let none = self::token(&registry, None, Some(0.0)).await;
    assert_eq!(quotas::reserve(&registry, &none.caller(), 1).await.unwrap_err().code(), "quota_exceeded");
    assert_eq!(quotas::reserve(&registry, &Caller::system("cli"), 1).await.unwrap(), None);
}
