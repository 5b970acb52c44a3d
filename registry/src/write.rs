//! A unit of work: changes, their audit trail and whatever else has to be true with them, in one transaction.

use serde_json::Value;
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use crate::{Caller, Registry, Result};

/// Changes that become true together at [`Write::commit`], or not at all.
#[must_use = "nothing is written before commit"]
pub struct Write {
    transaction: Transaction<'static, Postgres>,
    caller: Caller,
}

/// One entry of the audit trail.
#[derive(Clone, Debug)]
pub struct Change {
    /// What was done, as `resource.verb`: `dataset.create`, `alias.move`.
    pub action: &'static str,
    /// Kind of resource, such as `dataset`.
    pub resource: &'static str,
    /// Its id or name.
    pub id: String,
    /// The state before; none when it was made.
    pub before: Option<Value>,
    /// The state after; none when it is gone.
    pub after: Option<Value>,
}

impl Change {
    /// Something that was made.
    pub(crate) fn made(action: &'static str, resource: &'static str, id: impl ToString, after: Value) -> Self {
        Self { action, resource, id: id.to_string(), before: None, after: Some(after) }
    }
}

impl Registry {
    /// Begins changes on behalf of a caller.
    ///
    /// # Errors
    /// `database_unavailable`, `database`.
    pub async fn write(&self, caller: &Caller) -> Result<Write> {
        Ok(Write { transaction: self.pool().begin().await?, caller: caller.clone() })
    }
}

impl Write {
    /// On whose behalf.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The transaction, for the statements of this crate.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Puts a change into the audit trail.
    ///
    /// # Errors
    /// `database`.
    pub(crate) async fn audit(&mut self, change: Change) -> Result<()> {
        sqlx::query(
            "INSERT INTO audit (id, actor, token_id, action, resource, resource_id, before, after, request_id, address)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(Uuid::now_v7())
        .bind(&self.caller.name)
        .bind(self.caller.token)
        .bind(change.action)
        .bind(change.resource)
        .bind(change.id)
        .bind(change.before)
        .bind(change.after)
        .bind(&self.caller.request_id)
        .bind(self.caller.address.map(|address| address.to_string()))
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Makes the changes true.
    ///
    /// # Errors
    /// `database`, `database_unavailable`: nothing is written then, unless the connection broke at the commit itself.
    pub async fn commit(self) -> Result<()> {
        Ok(self.transaction.commit().await?)
    }
}
