//! One class for each GPU at each instant, from its first sight to its retirement.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{GpuId, NodeId, UnixMillis};

/// The open interval of every GPU. Closed ones are handed to the caller, who keeps them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    open: BTreeMap<GpuId, Open>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    node: NodeId,
    model: String,
    start: UnixMillis,
    class: UsageClass,
}

impl Timeline {
    /// From `at` on the GPU is in `class`. A GPU that was never seen begins its life here.
    /// Intervals of no length leave no trace.
    pub fn set(
        &mut self,
        gpu: &GpuId,
        node: &NodeId,
        model: &str,
        class: UsageClass,
        at: UnixMillis,
        closed: &mut Vec<Interval>,
    ) {
        if let Some(open) = self.open.get_mut(gpu) {
            if open.class == class && open.node == *node {
                return;
            }
            assert!(open.start <= at, "{gpu}: time went back from {} to {at}", open.start);
            open.close(gpu, at, closed);
            open.class = class;
            open.node = node.clone();
            return;
        }
        let open = Open { node: node.clone(), model: model.to_owned(), start: at, class };
        self.open.insert(gpu.clone(), open);
    }

    /// The present class ended at `until` already, and from there on nobody knows what the GPU did.
    /// `until` outside the open interval is moved to its nearest end.
    pub fn unknown_since(
        &mut self,
        gpu: &GpuId,
        until: UnixMillis,
        now: UnixMillis,
        closed: &mut Vec<Interval>,
    ) {
        let Some(open) = self.open.get_mut(gpu) else { return };
        open.close(gpu, until.clamp(open.start, now.max(open.start)), closed);
        open.class = UsageClass::Unknown;
    }

    /// The GPU left the cluster.
    pub fn retire(&mut self, gpu: &GpuId, at: UnixMillis, closed: &mut Vec<Interval>) {
        if let Some(mut open) = self.open.remove(gpu) {
            open.close(gpu, at, closed);
        }
    }

    /// The node a GPU is accounted at.
    pub fn home(&self, gpu: &GpuId) -> Option<&NodeId> {
        self.open.get(gpu).map(|open| &open.node)
    }

    /// GPUs whose interval is still open at `node`.
    pub fn at_node<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a GpuId> {
        self.open.iter().filter(move |(_, o)| o.node == *node).map(|(g, _)| g)
    }

    /// The open intervals, cut at `to`; in order of GPU.
    pub fn open_until(&self, to: UnixMillis) -> impl Iterator<Item = Interval> {
        self.open.iter().filter(move |(_, o)| o.start < to).map(move |(gpu, o)| Interval {
            gpu: gpu.clone(),
            node: o.node.clone(),
            model: o.model.clone(),
            start: o.start,
            end: to,
            class: o.class.clone(),
        })
    }
}

impl Open {
    fn close(&mut self, gpu: &GpuId, at: UnixMillis, closed: &mut Vec<Interval>) {
        if at > self.start {
            closed.push(Interval {
                gpu: gpu.clone(),
                node: self.node.clone(),
                model: self.model.clone(),
                start: self.start,
                end: at,
                class: self.class.clone(),
            });
        }
        self.start = at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(n: u8) -> UsageClass {
        match n % 4 {
            0 => UsageClass::Idle,
            1 => UsageClass::Drain,
            2 => UsageClass::Failed,
            _ => UsageClass::Unknown,
        }
    }

    proptest! {
        /// Whatever happens to a GPU, in whatever order, its intervals tile its life.
        #[test]
        fn intervals_leave_no_gap_and_do_not_overlap(
            steps in proptest::collection::vec((0u8..5, 0i64..500, 0i64..2_000), 1..60)
        ) {
            let (gpu, node) = (GpuId::parse("GPU-1").unwrap(), NodeId::parse("n0").unwrap());
            let (mut timeline, mut closed, mut now) = (Timeline::default(), Vec::new(), 1_000);
            timeline.set(&gpu, &node, "H100", UsageClass::Idle, UnixMillis(now), &mut closed);
            for (what, wait, back) in steps {
                now += wait;
                let at = UnixMillis(now);
                if what == 4 {
                    timeline.unknown_since(&gpu, UnixMillis(now - back), at, &mut closed);
                }
                timeline.set(&gpu, &node, "H100", class(what), at, &mut closed);
            }
            closed.extend(timeline.open_until(UnixMillis(now + 1)));
            prop_assert_eq!(closed[0].start, UnixMillis(1_000));
            prop_assert_eq!(closed[closed.len() - 1].end, UnixMillis(now + 1));
            for pair in closed.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
            }
            prop_assert!(closed.iter().all(|i| i.start < i.end));
        }
    }
}
