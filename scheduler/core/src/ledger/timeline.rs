//! What every part of each GPU was doing at each instant, from its first sight to its retirement.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{AttemptId, GpuId, NodeId, UnixMillis};

/// The open intervals of every GPU. Closed ones are handed to the caller, who keeps them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    open: BTreeMap<GpuId, Open>,
    /// The GPUs accounted at each node; an index of `open`.
    #[serde(skip)]
    at: BTreeMap<NodeId, BTreeSet<GpuId>>,
}

/// A GPU's present: one slot for each class it is in, and together the whole of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    node: NodeId,
    model: String,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slot {
    start: UnixMillis,
    class: UsageClass,
    parts: u32,
}

impl Timeline {
    /// Makes the index again after a snapshot was read.
    pub fn reindex(&mut self) {
        self.at.clear();
        for (gpu, open) in &self.open {
            self.at.entry(open.node.clone()).or_default().insert(gpu.clone());
        }
    }

    fn leaves(&mut self, gpu: &GpuId, node: &NodeId) {
        if let Some(gpus) = self.at.get_mut(node) {
            gpus.remove(gpu);
            if gpus.is_empty() {
                self.at.remove(node);
            }
        }
    }

    /// From `at` on the GPU is in these classes, each with its parts. A GPU that was never seen
    /// begins its life here. What stays as it was goes on; intervals of no length leave no trace.
    pub fn set(
        &mut self,
        gpu: &GpuId,
        node: &NodeId,
        model: &str,
        classes: Vec<(UsageClass, u32)>,
        at: UnixMillis,
        closed: &mut Vec<Interval>,
    ) {
        let slot = |(class, parts)| Slot { start: at, class, parts };
        let Some(open) = self.open.get_mut(gpu) else {
            let slots = classes.into_iter().map(slot).collect();
            let open = Open { node: node.clone(), model: model.to_owned(), slots };
            self.open.insert(gpu.clone(), open);
            self.at.entry(node.clone()).or_default().insert(gpu.clone());
            return;
        };
        let moved = (open.node != *node).then(|| open.node.clone());
        let mut before = std::mem::take(&mut open.slots);
        for (class, parts) in classes {
            let same = before.iter().position(|s| s.class == class && s.parts == parts);
            match same.filter(|_| moved.is_none()) {
                Some(i) => open.slots.push(before.remove(i)),
                None => open.slots.push(slot((class, parts))),
            }
        }
        before.iter().for_each(|s| open.close(gpu, s, at, closed));
        open.node = node.clone();
        if let Some(before) = moved {
            self.leaves(gpu, &before);
            self.at.entry(node.clone()).or_default().insert(gpu.clone());
        }
    }

    /// What is allocated of the GPU, to one attempt or to all, ended at `until` already, and from
    /// there on nobody knows what those parts did. `until` outside the open interval is moved to
    /// its nearest end.
    pub fn unknown_since(
        &mut self,
        gpu: &GpuId,
        whose: Option<AttemptId>,
        until: UnixMillis,
        now: UnixMillis,
        closed: &mut Vec<Interval>,
    ) {
        let Some(open) = self.open.get_mut(gpu) else { return };
        let mut slots = std::mem::take(&mut open.slots);
        for slot in &mut slots {
            let meant = match (&slot.class, whose) {
                (UsageClass::Allocated { attempt, .. }, Some(whose)) => *attempt == whose,
                (UsageClass::Allocated { .. }, None) => true,
                _ => false,
            };
            if meant {
                let until = until.clamp(slot.start, now.max(slot.start));
                open.close(gpu, slot, until, closed);
                slot.start = until;
                slot.class = UsageClass::Unknown;
            }
        }
        open.slots = slots;
    }

    /// The GPU left the cluster.
    pub fn retire(&mut self, gpu: &GpuId, at: UnixMillis, closed: &mut Vec<Interval>) {
        if let Some(open) = self.open.remove(gpu) {
            open.slots.iter().for_each(|s| open.close(gpu, s, at, closed));
            self.leaves(gpu, &open.node);
        }
    }

    /// The node a GPU is accounted at.
    pub fn home(&self, gpu: &GpuId) -> Option<&NodeId> {
        self.open.get(gpu).map(|open| &open.node)
    }

    /// GPUs whose interval is still open at `node`.
    pub fn at_node<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a GpuId> {
        self.at.get(node).into_iter().flatten()
    }

    /// The open intervals, cut at `to`; in order of GPU.
    pub fn open_until(&self, to: UnixMillis) -> impl Iterator<Item = Interval> {
        self.open.iter().flat_map(move |(gpu, open)| {
            let begun = open.slots.iter().filter(move |s| s.start < to);
            begun.map(move |slot| open.interval(gpu, slot, to))
        })
    }
}

impl Open {
    fn interval(&self, gpu: &GpuId, slot: &Slot, end: UnixMillis) -> Interval {
        Interval {
            gpu: gpu.clone(),
            node: self.node.clone(),
            model: self.model.clone(),
            start: slot.start,
            end,
            parts: slot.parts,
            class: slot.class.clone(),
        }
    }

    fn close(&self, gpu: &GpuId, slot: &Slot, at: UnixMillis, closed: &mut Vec<Interval>) {
        assert!(slot.start <= at, "{gpu}: time went back from {} to {at}", slot.start);
        if at > slot.start {
            closed.push(self.interval(gpu, slot, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_model::{JobId, PARTS_PER_GPU, ProjectId, TeamId, UserId};

    use super::*;

    fn class(n: u8) -> UsageClass {
        match n % 4 {
            0 => UsageClass::Idle,
            1 => UsageClass::Drain,
            2 => UsageClass::Failed,
            _ => UsageClass::Unknown,
        }
    }

    fn held_by(job: u64) -> UsageClass {
        UsageClass::Allocated {
            attempt: AttemptId { job: JobId(job), number: 1 },
            team: TeamId::parse("nlp").unwrap(),
            project: ProjectId::parse("llm").unwrap(),
            user: UserId::parse("ada").unwrap(),
        }
    }

    proptest! {
        /// Whatever happens to a GPU, in whatever order and to however many parts of it, at each
        /// instant of its life the parts of its intervals add up to the whole of it.
        #[test]
        fn the_parts_of_a_gpu_always_add_up_to_the_whole(
            steps in proptest::collection::vec((0u8..6, 0i64..500, 0i64..2_000, 1u32..7), 1..60)
        ) {
            let (gpu, node) = (GpuId::parse("GPU-1").unwrap(), NodeId::parse("n0").unwrap());
            let (mut timeline, mut closed, mut now) = (Timeline::default(), Vec::new(), 1_000);
            let whole = |class| vec![(class, PARTS_PER_GPU)];
            let first = whole(UsageClass::Idle);
            timeline.set(&gpu, &node, "H100", first, UnixMillis(now), &mut closed);
            for (what, wait, back, shares) in steps {
                now += wait;
                let at = UnixMillis(now);
                let mut classes = whole(class(what));
                if what >= 4 {
                    let until = UnixMillis(now - back);
                    timeline.unknown_since(&gpu, None, until, at, &mut closed);
                    classes = (0..shares).map(|i| (held_by(u64::from(i)), 1_000)).collect();
                    classes.push((UsageClass::Idle, PARTS_PER_GPU - 1_000 * shares));
                    classes.retain(|(_, parts)| *parts > 0);
                }
                timeline.set(&gpu, &node, "H100", classes, at, &mut closed);
            }
            let end = now + 1;
            closed.extend(timeline.open_until(UnixMillis(end)));
            prop_assert!(closed.iter().all(|i| i.start < i.end));
            let mut cuts: Vec<i64> = closed.iter().flat_map(|i| [i.start.0, i.end.0]).collect();
            cuts.sort_unstable();
            cuts.dedup();
            prop_assert_eq!((cuts[0], cuts[cuts.len() - 1]), (1_000, end));
            for cut in &cuts[..cuts.len() - 1] {
                let here = closed.iter().filter(|i| i.start.0 <= *cut && *cut < i.end.0);
                prop_assert_eq!(here.map(|i| i.parts).sum::<u32>(), PARTS_PER_GPU, "at {}", cut);
            }
        }
    }
}
