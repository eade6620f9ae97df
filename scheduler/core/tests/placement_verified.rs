//! (I) The verifier and the search are two opinions on the same words: every placement is accepted,
//! and a lease with other nodes is accepted exactly when it keeps the request.

mod common;
mod small;

use std::collections::BTreeMap;

use common::{Story, gpu_id, inventory};
use small::{Draw, Size, Wants, World, id, judge, question};
use tessera_core::event::Event;
use tessera_core::placement::{NodeSet, Space, place};
use tessera_core::verify::verify;
use tessera_model::{
    AttemptId, Bytes, Cordon, DomainMark, Epoch, GpuCondition, JobId, JobSpec, Lease, NodeId,
    Place, SessionId, UserId,
};

/// The world as a cluster with the job waiting in it. What is busy is sick here, and closed nodes
/// are cordoned, since closing is not for the verifier to know.
fn story(world: &World, spec: &JobSpec) -> (Story, JobId) {
    let mut story = Story::default();
    story.push(Event::EpochBegan { epoch: Epoch(1) });
    story.push(Event::TopologyLoaded { topology: world.map() });
    for (i, node) in world.nodes.iter().enumerate() {
        let mut inventory = inventory(&node.name, 0, &[(0, 0), (0, 0)]);
        if node.fast {
            inventory.labels = BTreeMap::from([("disk".to_owned(), "fast".to_owned())]);
        }
        let session = SessionId(i as u64 + 1);
        story.push(Event::NodeUp { inventory, session, adopted: Vec::new() });
        let sick = (0..2).filter(|g| node.busy >> g & 1 == 1);
        let conditions =
            sick.map(|g| (gpu_id(&node.name, g), GpuCondition::Lost)).collect::<BTreeMap<_, _>>();
        let node_id = id(&node.name);
        if !conditions.is_empty() {
            story.push(Event::ConditionsChanged { node: node_id.clone(), conditions });
        }
        if !node.takes_jobs || node.closed {
            let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "x".to_owned() };
            story.push(Event::NodeCordoned { node: node_id, cordon });
        }
    }
    if let Some((b, l)) = world.sick_leaf {
        let (level, domain) = ("leaf".to_owned(), format!("b{b}l{l}"));
        let (by, reason) = (UserId::parse("sre").unwrap(), "flaps".to_owned());
        let mark = DomainMark { level, domain, health: 0, by, reason, until: None };
        story.push(Event::DomainMarked { mark });
    }
    let job = story.submit(spec.clone());
    (story, job)
}

fn lease(story: &Story, spec: &JobSpec, job: JobId, nodes: &[NodeId]) -> Option<Lease> {
    let ranks = spec.nodes() as usize;
    let place = |(i, node): (usize, &NodeId)| {
        let further = i >= spec.gang.nodes as usize && i < ranks;
        let gang = if further { &spec.roles[0].gang } else { &spec.gang };
        let known = &story.cluster.nodes[node];
        let well = |g: &&tessera_model::Gpu| known.condition(&g.id).is_healthy();
        let gpus: Vec<_> = known.inventory.gpus.iter().filter(well).map(|g| g.id.clone()).collect();
        let count = gang.gpus_per_node as usize;
        Some(Place {
            node: node.clone(),
            session: known.session,
            gpus: gpus.get(..count)?.to_vec(),
            cpus: gang.cpus_per_node(),
            memory: Bytes(0),
            gpu_milli: gang.gpu_milli,
        })
    };
    Some(Lease {
        attempt: AttemptId { job, number: 1 },
        epoch: story.cluster.epoch,
        places: nodes.iter().enumerate().map(place).collect::<Option<_>>()?,
        nodes: spec.gang.nodes,
    })
}

#[test]
fn i_the_verifier_accepts_what_keeps_the_request_and_nothing_else() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..700 {
        let mut draw = Draw(seed);
        let size = Size { blocks: 2, leaves: 3, nodes: 3, gone: 5 };
        let world = World::draw(&mut draw, size);
        let wants = Wants { roles: seed % 2 == 0, spares: true, elsewhere: true, nodes: 5 };
        let mut spec = question(&mut draw, &world, wants);
        // Preferred bonds are not the verifier's business.
        let required = |w: &tessera_model::Within| w.strength == tessera_model::Strength::Required;
        spec.placement.within.retain(required);
        spec.roles.iter_mut().for_each(|r| r.placement.within.retain(required));
        let (story, job) = story(&world, &spec);
        let space = Space::of(&story.cluster, story.cluster.map());
        let request = world.request(&space, &spec);
        let Ok(placed) = place(&space, &request, &NodeSet::new(space.len()), None) else {
            continue;
        };
        let ids: Vec<NodeId> = placed.places.iter().map(|c| space.id(c.node).clone()).collect();
        judge(&world, &spec, &ids).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let granted = lease(&story, &spec, job, &ids).unwrap();
        let verdict = verify(&story.cluster, &granted, story.now);
        assert_eq!(verdict, Ok(()), "seed {seed}: {:?}", spec.placement);
        accepted += 1;
        // Of a spread the verifier sees only the domains used.
        spec.placement.spread.clear();
        spec.roles.iter_mut().for_each(|r| r.placement.spread.clear());
        let (story, job) = self::story(&world, &spec);
        for _ in 0..8 {
            let mut other = ids.clone();
            for _ in 0..1 + draw.below(2) {
                let at = draw.below(other.len() as u64) as usize;
                other[at] = id(&draw.of(&world.nodes).name);
            }
            if draw.chance(30) {
                draw.shuffle(&mut other);
            }
            let Some(lease) = lease(&story, &spec, job, &other) else { continue };
            let truth = judge(&world, &spec, &other);
            // That a spare could never stand in for a rank is not the verifier's business.
            if truth.as_ref().is_err_and(|t| t.starts_with("spare")) {
                continue;
            }
            let verdict = verify(&story.cluster, &lease, story.now);
            assert_eq!(
                truth.is_ok(),
                verdict.is_ok(),
                "seed {seed}: {truth:?}, {verdict:?}\n{other:?}\n{:?}\n{:?}",
                spec.placement,
                spec.roles
            );
            refused += u32::from(verdict.is_err());
        }
    }
    assert!(accepted > 150 && refused > 500, "{accepted} {refused}");
}
