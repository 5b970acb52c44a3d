use registry::idempotency::{Answer, Key, claim, sweep};
use registry::{Caller, Registry, TokenId};
use sqlx::PgPool;

use crate::fixtures;

const TARGET: &str = "POST /v1/datasets";

async fn claimed(registry: &Registry, caller: &Caller, key: &str) -> registry::idempotency::Claim {
    match claim(registry, caller, key, TARGET).await.unwrap() {
        Key::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

fn answer() -> Answer {
    Answer {
        body_sha256: [7; 32],
        status: 201,
        headers: vec![("location".into(), "/v1/datasets/1".into())],
        body: b"{\"secret\":1}".to_vec(),
    }
}

async fn age(pool: &PgPool, column: &str) {
    let sql = format!("UPDATE idempotency SET {column} = clock_timestamp() - interval '1 second'");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn one_claims_then_all_read(pool: PgPool) {
    let (registry, _folder) = fixtures::registry(pool.clone());
    let ann = Caller::system("ann");
    let held = claimed(&registry, &ann, "k").await;
    assert!(matches!(claim(&registry, &ann, "k", TARGET).await.unwrap(), Key::InFlight));
    assert!(matches!(claim(&registry, &ann, "k", "POST /v1/zoos").await.unwrap(), Key::OtherTarget));
    // Keys belong to who uses them: to a token when there is one.
    claimed(&registry, &Caller::system("bob"), "k").await;
    claimed(&registry, &Caller { token: Some(TokenId::generate()), ..ann.clone() }, "k").await;
    registry.write(&ann).await.unwrap().commit_answer(&held, answer()).await.unwrap();
    match claim(&registry, &ann, "k", TARGET).await.unwrap() {
        Key::Answered(kept) => assert_eq!(kept, answer()),
        other => panic!("{other:?}"),
    }
    // Neither given back nor renewed nor answered anew.
    held.release(&registry).await.unwrap();
    assert!(!held.renew(&registry).await.unwrap());
    let error = registry.write(&ann).await.unwrap().commit_answer(&held, answer()).await.unwrap_err();
    assert_eq!(error.code(), "claim_lost");
    assert_eq!(sweep(&registry).await.unwrap(), 0);
    age(&pool, "expires_at").await;
    claimed(&registry, &ann, "k").await;
    age(&pool, "expires_at").await;
    assert_eq!(sweep(&registry).await.unwrap(), 0, "claims live by their lease");
    age(&pool, "leased_until").await;
    assert_eq!(sweep(&registry).await.unwrap(), 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn who_lost_the_lease_writes_nothing(pool: PgPool) {
    let (registry, _folder) = fixtures::registry(pool.clone());
    let ann = Caller::system("ann");
    let slow = claimed(&registry, &ann, "k").await;
    age(&pool, "leased_until").await;
    assert!(slow.renew(&registry).await.unwrap(), "nobody took it");
    age(&pool, "leased_until").await;
    let fast = claimed(&registry, &ann, "k").await;
    assert!(!slow.renew(&registry).await.unwrap());
    let error = registry.write(&ann).await.unwrap().commit_answer(&slow, answer()).await.unwrap_err();
    assert_eq!(error.code(), "claim_lost");
    slow.release(&registry).await.unwrap();
    registry.write(&ann).await.unwrap().commit_answer(&fast, answer()).await.unwrap();
}
