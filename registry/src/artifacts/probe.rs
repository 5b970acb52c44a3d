//! Whether the store takes and gives bytes.

use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload};
use uuid::Uuid;

use super::ArtifactStore;
use crate::{Error, Result};

impl ArtifactStore {
    /// Writes a few bytes, reads them back and removes them: for readiness.
    ///
    /// # Errors
    /// `storage` when the store fails or gives other bytes back.
    pub async fn probe(&self) -> Result<()> {
        let id = Uuid::now_v7().to_string();
        let key = Key::from(format!("probe/{id}"));
        self.store.put(&key, PutPayload::from(id.clone())).await?;
        let read = match self.store.get(&key).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        // The first failure is the one worth telling.
        let removed = self.store.delete(&key).await;
        if read? != id.as_bytes() {
            let source = "the bytes read are not the bytes written".into();
            return Err(Error::Storage(object_store::Error::Generic { store: "probe", source }));
        }
        Ok(removed?)
    }
}
