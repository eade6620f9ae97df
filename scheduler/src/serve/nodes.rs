//! Nodes for people: what there is, in what condition, who holds it, and the newest readings.
//!
//! Whoever may look sees every node, and that a GPU is held; whose job holds it is told only to
//! those who may see that job.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use tessera_core::node_table::Node;
use tessera_core::{access, door};
use tessera_model::{JobId, NodeId, NodeRecord, Principal, Refusal, UnixMillis};
use tessera_proto::nodes::node_to_wire;
use tessera_proto::status::to_status;
use tessera_proto::telemetry::{gpu_reading, host_reading, nic_reading};
use tessera_proto::v1;

use super::{Shared, auth};
use crate::series::Latest;
use crate::writer::View;

pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl v1::nodes_server::Nodes for Service {
    async fn list(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let who = auth::person(&request)?;
        let names = request.into_inner().nodes;
        let asked: BTreeSet<NodeId> = names
            .iter()
            .map(|n| node_id(n))
            .collect::<Result<_, _>>()
            .map_err(|e| to_status(&e))?;
        let records = self.0.handle.read(move |view| list(view, &who, &asked)).await;
        let records = records.and_then(|r| r).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::ListNodesReply { nodes: records.iter().map(node_to_wire).collect() }))
    }

    async fn cordon(
        &self,
        request: Request<v1::CordonRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let who = auth::person(&request)?;
        let v1::CordonRequest { node, drain, reason } = request.into_inner();
        let answer = async {
            let node = node_id(&node)?;
            let (asking, id) = (who.clone(), node.clone());
            self.0
                .handle
                .change(move |cluster, _| door::cordon(cluster, &asking, &id, drain, &reason))
                .await?;
            self.one(who, node).await
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn uncordon(
        &self,
        request: Request<v1::UncordonRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let who = auth::person(&request)?;
        let answer = async {
            let node = node_id(&request.into_inner().node)?;
            let (asking, id) = (who.clone(), node.clone());
            self.0.handle.change(move |cluster, _| door::uncordon(cluster, &asking, &id)).await?;
            self.one(who, node).await
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn retire(
        &self,
        request: Request<v1::RetireRequest>,
    ) -> Result<Response<v1::RetireReply>, Status> {
        let who = auth::person(&request)?;
        let v1::RetireRequest { node, reason } = request.into_inner();
        let answer = async {
            let node = node_id(&node)?;
            let (asking, id) = (who.clone(), node.clone());
            let jobs = self
                .0
                .handle
                .change(move |cluster, now| door::retire(cluster, now, &asking, &id, &reason))
                .await?;
            // Its control stream is the writer's to end; what else it has open is ours.
            self.0.logs.disconnect(&node);
            self.0.series.forget(&node);
            tracing::info!(%node, by = %who.user, jobs = jobs.len(), "a node was retired");
            Ok(v1::RetireReply { jobs: jobs.into_iter().map(|j| j.0).collect() })
        };
        answer.await.map(Response::new).map_err(|e: Refusal| to_status(&e))
    }

    async fn latest(
        &self,
        request: Request<v1::LatestRequest>,
    ) -> Result<Response<v1::LatestReply>, Status> {
        let answer = async {
            let node = node_id(&request.into_inner().node)?;
            let asked = node.clone();
            self.0
                .handle
                .read(move |view| door::known_node(view.cluster, &asked).map(|_| ()))
                .await??;
            Ok(self.0.series.latest(&node).map(|l| readings(&l)).unwrap_or_default())
        };
        answer.await.map(Response::new).map_err(|e: Refusal| to_status(&e))
    }
}

impl Service {
    async fn one(&self, who: Arc<Principal>, node: NodeId) -> Result<v1::Node, Refusal> {
        let record = self
            .0
            .handle
            .read(move |view| {
                let node = door::known_node(view.cluster, &node)?;
                Ok(scoped(view, &who, view.cluster.node_record(node)))
            })
            .await??;
        Ok(node_to_wire(&record))
    }
}

fn node_id(text: &str) -> Result<NodeId, Refusal> {
    NodeId::parse(text)
        .map_err(|e| Refusal::invalid("node", e.to_string(), "`tessera nodes` lists them"))
}

fn list(
    view: &View<'_>,
    who: &Principal,
    asked: &BTreeSet<NodeId>,
) -> Result<Vec<NodeRecord>, Refusal> {
    let inventories = view.cluster.nodes.values().map(|n| &n.inventory);
    let mut doubts = tessera_core::topology::doubts(view.cluster.map(), inventories);
    let mut record = |node: &Node| {
        let mut record = scoped(view, who, view.cluster.node_record(node));
        record.map_doubts = doubts.remove(node.id()).unwrap_or_default();
        record
    };
    if asked.is_empty() {
        return Ok(view.cluster.nodes.values().map(record).collect());
    }
    asked.iter().map(|id| door::known_node(view.cluster, id).map(&mut record)).collect()
}

/// Stands for a job that holds a GPU and that the caller may not know of.
const NOT_TOLD: JobId = JobId(0);

/// Takes out whose job holds a GPU where `who` may not see that job. That it is held is told.
fn scoped(view: &View<'_>, who: &Principal, mut record: NodeRecord) -> NodeRecord {
    for gpu in &mut record.gpus {
        let Some(id) = gpu.held_by else { continue };
        let seen = view.cluster.jobs.get(id).is_some_and(|j| access::may_see_job(who, &j.spec));
        if !seen {
            gpu.held_by = Some(NOT_TOLD);
            gpu.team = None;
        }
    }
    record
}

/// A GPU that hangs shows what it last said, and when.
fn readings(latest: &Latest) -> v1::LatestReply {
    let sample = &latest.sample;
    let gpu = |(now, answered): (&tessera_model::sample::GpuSample, &Option<_>)| match answered {
        Some((said, at)) => gpu_reading(said, *at),
        None => gpu_reading(now, UnixMillis(0)),
    };
    v1::LatestReply {
        at_unix_ms: Some(sample.at.0),
        gpus: sample.gpus.iter().zip(&latest.answered).map(gpu).collect(),
        nics: sample.nics.iter().map(nic_reading).collect(),
        host: Some(host_reading(&sample.host)),
    }
}
