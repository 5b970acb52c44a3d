//! Lineage: what something was made from, and what was made from it.
//!
//! sample → generation → generator version → zoo → checkpoint → run → dataset, and generation → dataset; a
//! generation also → the checkpoints that samples of it were retrieved from. One statement a step of the way takes the
//! next nodes of all nodes there are, with what decides who sees them: nothing is reached
//! through what the caller may not see.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{Access, Caller, Error, Registry, Result};

/// Most nodes of a graph.
pub const MAX_NODES: usize = 1000;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A dataset.
    Dataset,
    /// A run of a zoo.
    Run,
    /// A checkpoint of a run.
    Checkpoint,
    /// A zoo.
    Zoo,
    /// A generator version.
    Version,
    /// A generation.
    Generation,
    /// A sample of a generation.
    Sample,
}

use NodeKind::{Checkpoint, Dataset, Generation, Run, Sample, Version, Zoo};

/// Names a node: `dataset:ID`, `run:ID`, `checkpoint:ID`, `zoo:ID`, `version:NAME@3`, `generation:ID`, `sample:ID/0`
/// (the generation's id and the sample's place).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRef {
    /// What it is.
    pub kind: NodeKind,
    /// Its id or name, as written after the colon.
    pub id: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Its reference, as in [`NodeRef`].
    pub node: String,
    /// What it is.
    pub kind: NodeKind,
    /// Its id: of a sample, that of its generation.
    pub id: Uuid,
    /// The place of a sample in its generation.
    pub index: Option<i32>,
    /// What to call it.
    pub label: String,
    /// Whether it was deleted or yanked.
    pub deleted: bool,
}

/// A step of making: `result` was made from `source`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Edge {
    /// What it was made from.
    pub source: String,
    /// What was made.
    pub result: String,
}

/// Which way to go from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To what it was made from.
    Sources,
    /// To what was made from it.
    Results,
    /// Both ways.
    Both,
}

/// A part of the lineage around a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Graph {
    /// The node asked for.
    pub root: String,
    /// It and the nodes around it, nearest first.
    pub nodes: Vec<Node>,
    /// Which was made from which.
    pub edges: Vec<Edge>,
    /// Whether there is more than the limit allows.
    pub truncated: bool,
}

impl NodeKind {
    const ALL: [(Self, &'static str); 7] = [
        (Dataset, "dataset"),
        (Run, "run"),
        (Checkpoint, "checkpoint"),
        (Zoo, "zoo"),
        (Version, "version"),
        (Generation, "generation"),
        (Sample, "sample"),
    ];

    /// The word before the colon of a reference.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    /// Selects nodes of this kind; `n.…` is there for conditions.
    fn select(self) -> &'static str {
        match self {
            Dataset => {
                "SELECT n.id, NULL::int AS index, n.name::text AS label, n.name::text AS name, n.owner,
                        n.visibility::text AS visibility, n.deleted_at IS NOT NULL AS deleted FROM datasets n"
            }
            Run => {
                "SELECT n.id, NULL::int AS index, z.name || ' run ' || coalesce(n.name, n.index::text) AS label, z.name::text AS name, z.owner,
                        z.visibility::text AS visibility, z.deleted_at IS NOT NULL AS deleted
                 FROM runs n JOIN zoos z ON z.id = n.zoo_id"
            }
            Checkpoint => {
                "SELECT n.id, NULL::int AS index, z.name || ' run ' || coalesce(r.name, r.index::text) || coalesce(' epoch ' || n.epoch, '') AS label,
                        z.name::text AS name, z.owner, z.visibility::text AS visibility,
                        n.deleted_at IS NOT NULL OR z.deleted_at IS NOT NULL AS deleted
                 FROM checkpoints n JOIN runs r ON r.id = n.run_id JOIN zoos z ON z.id = n.zoo_id"
            }
            Zoo => {
                "SELECT n.id, NULL::int AS index, n.name::text AS label, n.name::text AS name, n.owner,
                        n.visibility::text AS visibility, n.deleted_at IS NOT NULL AS deleted FROM zoos n"
            }
            Version => {
                "SELECT n.id, NULL::int AS index, g.name || '@' || n.version AS label, g.name::text AS name, g.owner,
                        g.visibility::text AS visibility,
                        n.yanked_at IS NOT NULL OR g.deleted_at IS NOT NULL AS deleted
                 FROM generator_versions n JOIN generators g ON g.id = n.generator_id"
            }
            Generation => {
                "SELECT n.id, NULL::int AS index, g.name || '@' || v.version AS label, g.name::text AS name, n.owner,
                        n.visibility::text AS visibility, n.deleted_at IS NOT NULL AS deleted
                 FROM generations n JOIN generator_versions v ON v.id = n.version_id
                 JOIN generators g ON g.id = v.generator_id"
            }
            Sample => {
                "SELECT n.generation_id AS id, n.index, g.name || '@' || v.version || ' sample ' || n.index AS label,
                        g.name::text AS name, m.owner, m.visibility::text AS visibility,
                        m.deleted_at IS NOT NULL AS deleted
                 FROM samples n JOIN generations m ON m.id = n.generation_id
                 JOIN generator_versions v ON v.id = m.version_id JOIN generators g ON g.id = v.generator_id"
            }
        }
    }

    /// The steps to what it was made from: the kind, and which nodes of it belong to `s.id`.
    fn sources(self) -> &'static [(Self, &'static str)] {
        match self {
            Dataset => &[],
            Run => &[(Dataset, "n.id = (SELECT dataset_id FROM runs WHERE id = s.id)")],
            Checkpoint => &[(Run, "n.id = (SELECT run_id FROM checkpoints WHERE id = s.id)")],
            Zoo => &[(Checkpoint, "n.zoo_id = s.id ORDER BY n.created_at, n.id")],
            Version => &[(Zoo, "n.id = (SELECT zoo_id FROM generator_versions WHERE id = s.id)")],
            Generation => &[
                (Version, "n.id = (SELECT version_id FROM generations WHERE id = s.id)"),
                (Dataset, "n.id = (SELECT dataset_id FROM generations WHERE id = s.id)"),
                (Checkpoint, "n.id IN (SELECT checkpoint_id FROM samples WHERE generation_id = s.id) ORDER BY n.id"),
            ],
            Sample => &[(Generation, "n.id = s.id")],
        }
    }

    /// The steps to what was made from it.
    fn results(self) -> &'static [(Self, &'static str)] {
        match self {
            Dataset => &[(Run, "n.dataset_id = s.id ORDER BY n.id"), (Generation, "n.dataset_id = s.id ORDER BY n.id")],
            Run => &[(Checkpoint, "n.run_id = s.id ORDER BY n.epoch, n.id")],
            Checkpoint => &[
                (Zoo, "n.id = (SELECT zoo_id FROM checkpoints WHERE id = s.id)"),
                (Generation, "n.id IN (SELECT generation_id FROM samples WHERE checkpoint_id = s.id) ORDER BY n.id"),
            ],
            Zoo => &[(Version, "n.zoo_id = s.id ORDER BY n.created_at, n.id")],
            Version => &[(Generation, "n.version_id = s.id ORDER BY n.created_at, n.id")],
            Generation => &[(Sample, "n.generation_id = s.id ORDER BY n.index")],
            Sample => &[],
        }
    }
}

impl FromStr for NodeRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rule = "write dataset:ID, run:ID, checkpoint:ID, zoo:ID, version:NAME@3, generation:ID or sample:ID/0";
        let refused = || Error::invalid("node", rule);
        let (word, id) = text.split_once(':').ok_or_else(refused)?;
        let (kind, _) = NodeKind::ALL.iter().find(|(_, known)| *known == word).ok_or_else(refused)?;
        let node = Self { kind: *kind, id: id.into() };
        node.key().map(|_| node).ok_or_else(refused)
    }
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.word(), self.id)
    }
}

impl NodeRef {
    /// The condition that finds it, with the text ($1) and the number ($2) that it is about.
    fn key(&self) -> Option<(&'static str, String, i32)> {
        let uuid = |text: &str| text.parse::<Uuid>().ok().map(|id| id.to_string());
        match self.kind {
            Version => {
                let (name, version) = self.id.split_once('@')?;
                crate::names::check(name).ok()?;
                Some(("g.name = $1 AND n.version = $2", name.into(), version.parse().ok().filter(|v| *v > 0)?))
            }
            Sample => {
                let (id, index) = self.id.split_once('/')?;
                let index = index.parse().ok().filter(|index| *index >= 0)?;
                Some(("n.generation_id = $1::uuid AND n.index = $2", uuid(id)?, index))
            }
            _ => Some(("n.id = $1::uuid AND $2 = 0", uuid(&self.id)?, 0)),
        }
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    index: Option<i32>,
    label: String,
    name: String,
    owner: String,
    visibility: String,
    deleted: bool,
}

#[derive(sqlx::FromRow)]
struct Step {
    source: Uuid,
    #[sqlx(flatten)]
    row: Row,
}

impl Row {
    fn seen_by(&self, caller: &Caller) -> bool {
        caller.sees(Access { name: Some(&self.name), owner: &self.owner, visibility: &self.visibility })
    }

    fn node(self, kind: NodeKind) -> Node {
        let id = match (kind, self.index) {
            (Version, _) => self.label.clone(),
            (Sample, Some(index)) => format!("{}/{index}", self.id),
            _ => self.id.to_string(),
        };
        let node = NodeRef { kind, id }.to_string();
        Node { node, kind, id: self.id, index: self.index, label: self.label, deleted: self.deleted }
    }
}

/// A walk through the lineage, one way.
struct Walk<'a> {
    connection: &'a mut PgConnection,
    caller: &'a Caller,
    limit: usize,
    nodes: Vec<Node>,
    known: BTreeSet<String>,
    edges: BTreeSet<Edge>,
    truncated: bool,
}

/// A graph of one moment. Its steps are few lookups by keys, whose plans take longer to make than to run: they are made
/// once a connection.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL plan_cache_mode = force_generic_plan";

/// The lineage around a node: at most `limit` nodes (1 to [`MAX_NODES`]), at most `depth` steps away.
///
/// # Errors
/// `not_found`, also when the caller may not see the node; `invalid_value` (the limit).
pub async fn graph(
    registry: &Registry,
    caller: &Caller,
    root: &NodeRef,
    direction: Direction,
    depth: u32,
    limit: usize,
) -> Result<Graph> {
    if limit == 0 || limit > MAX_NODES {
        return Err(Error::invalid("limit", format!("ask for 1 to {MAX_NODES} nodes")));
    }
    let mut transaction = registry.pool().begin_with(BEGIN).await?;
    let first = find(&mut transaction, caller, root).await?;
    let mut walk = Walk {
        connection: &mut transaction,
        caller,
        limit,
        known: BTreeSet::from([first.node.clone()]),
        nodes: vec![first.clone()],
        edges: BTreeSet::new(),
        truncated: false,
    };
    if direction != Direction::Results {
        walk.go(first.clone(), depth, true).await?;
    }
    if direction != Direction::Sources {
        walk.go(first.clone(), depth, false).await?;
    }
    let Walk { nodes, edges, truncated, .. } = walk;
    transaction.rollback().await?;
    Ok(Graph { root: first.node, nodes, edges: edges.into_iter().collect(), truncated })
}

async fn find(connection: &mut PgConnection, caller: &Caller, node: &NodeRef) -> Result<Node> {
    let absent = || Error::not_found(node.kind.word(), &node.id);
    let (condition, text, number) = node.key().ok_or_else(absent)?;
    let sql = format!("{} WHERE {condition}", node.kind.select());
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(text).bind(number).fetch_optional(connection).await?;
    let row = row.filter(|row| row.seen_by(caller)).ok_or_else(absent)?;
    Ok(row.node(node.kind))
}

impl Walk<'_> {
    async fn go(&mut self, from: Node, depth: u32, to_sources: bool) -> Result<()> {
        let mut front = vec![from];
        for _ in 0..depth {
            let kinds: BTreeSet<NodeKind> = front.iter().map(|node| node.kind).collect();
            let mut next = Vec::new();
            for kind in kinds {
                let of_kind: Vec<&Node> = front.iter().filter(|node| node.kind == kind).collect();
                let steps = if to_sources { kind.sources() } else { kind.results() };
                for (target, condition) in steps {
                    next.extend(self.step(&of_kind, *target, condition, to_sources).await?);
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            front = next;
        }
        Ok(())
    }

    /// One step from nodes of one kind; gives the nodes that are new.
    async fn step(&mut self, from: &[&Node], target: NodeKind, condition: &str, to_sources: bool) -> Result<Vec<Node>> {
        // One more than there is room for tells whether something was left out.
        let room = self.limit.saturating_sub(self.nodes.len()) + 1;
        let sql = format!(
            "SELECT s.id AS source, x.* FROM unnest($1::uuid[]) AS s (id)
             CROSS JOIN LATERAL ({} WHERE {condition} LIMIT $2) x",
            target.select(),
        );
        // Steps into one and the same node (a zoo's checkpoints into their zoo) must not use up the limit.
        let ids: Vec<Uuid> = from.iter().map(|node| node.id).collect();
        let rows: Vec<Step> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(ids)
            .bind(i64::try_from(room).unwrap_or(i64::MAX))
            .fetch_all(&mut *self.connection)
            .await?;
        let mut new = Vec::new();
        for Step { source, row } in rows {
            if row.seen_by(self.caller) {
                let node = row.node(target);
                let Some(other) = from.iter().find(|node| node.id == source) else { continue };
                if !self.known.contains(&node.node) {
                    if self.nodes.len() >= self.limit {
                        self.truncated = true;
                        continue;
                    }
                    self.known.insert(node.node.clone());
                    self.nodes.push(node.clone());
                    new.push(node.clone());
                }
                let (source, result) = if to_sources { (&node, *other) } else { (*other, &node) };
                self.edges.insert(Edge { source: source.node.clone(), result: result.node.clone() });
            }
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let id = "0199a1f6-3c5e-7d0a-9a53-1f6f2f1c9c5e";
        for text in [format!("dataset:{id}"), format!("sample:{id}/3"), "version:digits@3".into()] {
            assert_eq!(text.parse::<NodeRef>().unwrap().to_string(), text);
        }
        for bad in ["", "dataset", "dataset:x", "thing:1", "sample:1/1", "version:digits", "version:D@1", "version:d@0"]
        {
            assert_eq!(bad.parse::<NodeRef>().unwrap_err().code(), "invalid_value", "{bad}");
        }
        assert!(format!("sample:{id}/-1").parse::<NodeRef>().is_err());
    }
}
