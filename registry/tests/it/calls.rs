//! The registry's functions as one caller uses them, who sees everything: each change a unit of work of its own.

use registry::{Caller, Registry, Result};

/// Whoever makes the calls of a test.
pub fn me() -> Caller {
    Caller::system("me")
}

/// A unit of work of one call.
macro_rules! written {
    ($module:ident :: $name:ident ($($arg:ident : $type:ty),*) -> $out:ty) => {
        pub async fn $name(registry: &registry::Registry, $($arg: $type),*) -> registry::Result<$out> {
            let mut write = registry.write(&$crate::calls::me()).await?;
            let done = registry::$module::$name(&mut write, $($arg),*).await?;
            write.commit().await?;
            Ok(done)
        }
    };
}

macro_rules! read {
    ($module:ident :: $name:ident ($($arg:ident : $type:ty),*) -> $out:ty) => {
        pub async fn $name(registry: &registry::Registry, $($arg: $type),*) -> registry::Result<$out> {
            registry::$module::$name(registry, &$crate::calls::me(), $($arg),*).await
        }
    };
}

pub mod architectures {
    use registry::architectures::{Architecture, NewArchitecture};
    use registry::{ArchitectureId, ListRequest, Page};
    written!(architectures::create(new: &NewArchitecture) -> Architecture);
    written!(architectures::ensure(new: &NewArchitecture) -> Architecture);
    read!(architectures::get(name: &str) -> Architecture);
    read!(architectures::by_id(id: ArchitectureId) -> Architecture);
    read!(architectures::list(page: &ListRequest) -> Page<Architecture>);
}

pub mod datasets {
    use registry::datasets::{Dataset, DatasetFilter, NewDataset};
    use registry::{DatasetId, ListRequest, Page};
    written!(datasets::create(new: &NewDataset) -> Dataset);
    written!(datasets::ensure(new: &NewDataset) -> Dataset);
    read!(datasets::get(id: DatasetId) -> Dataset);
    read!(datasets::by_digest(digest: &str) -> Dataset);
    read!(datasets::by_name(name: &str) -> Dataset);
    read!(datasets::list(filter: &DatasetFilter, page: &ListRequest) -> Page<Dataset>);
}

pub mod zoos {
    use registry::runs::NewRun;
    use registry::zoos::{NewZoo, Zoo, ZooFilter};
    use registry::{ListRequest, Page, ZooId};
    written!(zoos::create(new: &NewZoo) -> Zoo);
    written!(zoos::create_with_runs(new: &NewZoo, runs: &[NewRun]) -> Zoo);
    read!(zoos::get(name: &str) -> Zoo);
    read!(zoos::by_id(id: ZooId) -> Zoo);
    read!(zoos::list(filter: &ZooFilter, page: &ListRequest) -> Page<Zoo>);
}

pub mod runs {
    use registry::runs::{NewRun, Run};
    use registry::{ListRequest, Page, RunId, ZooId};
    written!(runs::insert_bulk(zoo: ZooId, new: &[NewRun]) -> Vec<RunId>);
    read!(runs::get(id: RunId) -> Run);
    read!(runs::list(zoo: Option<ZooId>, page: &ListRequest) -> Page<Run>);
}

pub mod checkpoints {
    use registry::checkpoints::{Checkpoint, CheckpointFilter};
    use registry::{CheckpointId, ListRequest, Page};
    read!(checkpoints::get(id: CheckpointId) -> Checkpoint);
    read!(checkpoints::list(filter: &CheckpointFilter, page: &ListRequest) -> Page<Checkpoint>);
}

pub mod generators {
    use registry::generators::{Generator, GeneratorFilter, GeneratorVersion, NewVersion};
    use registry::{ListRequest, Page, VersionId};
    written!(generators::publish(new: &NewVersion) -> GeneratorVersion);
    read!(generators::resolve(reference: &str) -> GeneratorVersion);
    read!(generators::by_version_id(id: VersionId) -> GeneratorVersion);
    read!(generators::get(name: &str) -> Generator);
    read!(generators::list(filter: &GeneratorFilter, page: &ListRequest) -> Page<Generator>);
    read!(generators::versions(name: &str, page: &ListRequest) -> Page<GeneratorVersion>);
}

pub mod aliases {
    use registry::aliases::{Alias, AliasChange, Expected};
    use registry::{ListRequest, Page};
    written!(aliases::set(generator: &str, alias: &str, version: i32, expected: Expected) -> Option<i32>);
    written!(aliases::remove(generator: &str, alias: &str, expected: Expected) -> ());
    read!(aliases::get(generator: &str, alias: &str) -> Alias);
    read!(aliases::list(generator: &str) -> Vec<Alias>);
    read!(aliases::history(generator: &str, alias: &str, page: &ListRequest) -> Page<AliasChange>);
}

pub mod embeddings {
    use registry::VersionId;
    use registry::embeddings::{NewEmbedding, SubjectKind};
    written!(embeddings::insert_bulk(version: VersionId, kind: SubjectKind, new: &[NewEmbedding]) -> ());
}

pub mod generations {
    use registry::generations::{Generation, GenerationFilter, NewGeneration, Sample};
    use registry::{GenerationId, ListRequest, Page};
    written!(generations::create(new: &NewGeneration) -> Generation);
    read!(generations::get(id: GenerationId) -> Generation);
    read!(generations::samples(id: GenerationId) -> Vec<Sample>);
    read!(generations::sample(id: GenerationId, index: i32) -> Sample);
    read!(generations::list(filter: &GenerationFilter, page: &ListRequest) -> Page<Generation>);
}

pub mod lifecycle {
    use registry::lifecycle::{Patch, Resource};
    written!(lifecycle::update(resource: Resource, key: &str, patch: &Patch) -> ());
    written!(lifecycle::delete(resource: Resource, key: &str) -> ());
    written!(lifecycle::restore(resource: Resource, key: &str) -> ());
    written!(lifecycle::purge(resource: Resource, key: &str) -> ());
    written!(lifecycle::yank(version: &str, reason: &str) -> ());
}

/// A unit of work of someone.
pub async fn as_caller<T>(
    registry: &Registry,
    caller: &Caller,
    work: impl AsyncFnOnce(&mut registry::Write) -> Result<T>,
) -> Result<T> {
    let mut write = registry.write(caller).await?;
    let done = work(&mut write).await?;
    write.commit().await?;
    Ok(done)
}
