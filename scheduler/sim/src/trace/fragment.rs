//! Fragments: idle GPU that a typical job could not use.
//!
//! In: the floor after each change, and the typical request shapes with their counts. Out: milli-GPU,
//! averaged over the shapes by count, as the FGD paper defines it: a job that needs no GPU can use
//! none, so all idle GPU is a fragment to it. A gang over several nodes can use the nodes that could
//! take a part of it if there are enough of them, else nothing.
//!
//! Kept by difference: a change on a node costs one look at each shape. Integers, so that no order
//! of changes makes a difference.

use super::floor::{Floor, Free};
use super::workload::{Node, Request};

#[derive(Debug, Clone)]
pub struct Fragments {
    shapes: Vec<Shape>,
    /// Sum of the shapes' counts.
    weight: u64,
    /// By node, then by shape: milli usable there.
    usable: Vec<Vec<u32>>,
}

#[derive(Debug, Clone)]
struct Shape {
    request: Request,
    count: u64,
    /// Milli usable over all nodes.
    usable: u64,
    /// Nodes that could take a part.
    hosts: u64,
}

impl Fragments {
    pub fn new(floor: &Floor, typical: &[(Request, u64)]) -> Self {
        let shapes = typical
            .iter()
            .map(|(request, count)| Shape {
                request: request.clone(),
                count: *count,
                usable: 0,
                hosts: 0,
            })
            .collect();
        let nodes = floor.nodes().len();
        let mut fragments = Self {
            shapes,
            weight: typical.iter().map(|(_, count)| count).sum(),
            usable: vec![vec![0; typical.len()]; nodes],
        };
        (0..nodes).for_each(|node| fragments.changed(floor, node));
        fragments
    }

    /// The node is not what it was.
    pub fn changed(&mut self, floor: &Floor, node: usize) {
        for (shape, before) in self.shapes.iter_mut().zip(&mut self.usable[node]) {
            let after = usable(&floor.nodes()[node], floor.free(node), &shape.request);
            shape.usable = shape.usable - u64::from(*before) + u64::from(after);
            shape.hosts = shape.hosts + u64::from(after > 0) - u64::from(*before > 0);
            *before = after;
        }
    }

    /// Milli-GPU; `None` where no shape is known.
    pub fn milli(&self, floor: &Floor) -> Option<f64> {
        let idle = floor.free_milli();
        let lost = |shape: &Shape| {
            let enough = shape.hosts >= u64::from(shape.request.nodes);
            u128::from(shape.count) * u128::from(idle - if enough { shape.usable } else { 0 })
        };
        let sum: u128 = self.shapes.iter().map(lost).sum();
        (self.weight > 0).then(|| sum as f64 / self.weight as f64)
    }
}

/// Milli on the node that the job could use. As published: CPUs, model and devices count, memory
/// does not; where the job fits, devices with less than its share are lost to it.
fn usable(node: &Node, free: &Free, request: &Request) -> u32 {
    if request.gpus == 0 || free.cpu_milli < request.cpu_milli || !request.likes(&node.model) {
        return 0;
    }
    let able = free.left.iter().filter(|left| **left >= request.gpu_milli);
    let (count, milli) = able.fold((0u32, 0u32), |(n, m), left| (n + 1, m + left));
    if count >= request.gpus { milli } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::floor::Placed;
    use super::super::read::nodes::alike;
    use super::*;

    #[test]
    fn a_fragment_is_what_each_shape_could_not_use_by_its_count() {
        let mut floor = Floor::new(&alike(2, 4));
        let half = Request { gpu_milli: 500, ..Request::gpus(1, 1) };
        let typical = [
            (half.clone(), 2),
            (Request::gpus(1, 4), 1),
            (Request::gpus(2, 4), 1),
            (Request::gpus(1, 0), 1),
        ];
        let mut fragments = Fragments::new(&floor, &typical);
        // Only the CPU job has no use for the 8 idle GPUs.
        assert_eq!(fragments.milli(&floor), Some(8_000.0 / 5.0));
        let share = Request { gpu_milli: 600, ..half };
        floor.take(&share, &[Placed { node: 0, devices: vec![0] }]).unwrap();
        fragments.changed(&floor, 0);
        // 7,400 idle. Halves: the 400 are lost, twice. 4 on a node: the 3,400 of node 0 are lost.
        // Two nodes of 4: everything is. CPU: everything is.
        let lost = 2.0 * 400.0 + 3_400.0 + 7_400.0 + 7_400.0;
        assert_eq!(fragments.milli(&floor), Some(lost / 5.0));
        floor.give(&share, &[Placed { node: 0, devices: vec![0] }]);
        fragments.changed(&floor, 0);
        assert_eq!(fragments.milli(&floor), Some(8_000.0 / 5.0));
        assert_eq!(Fragments::new(&floor, &[]).milli(&floor), None);
    }
}
