//! What is free on every node, and the judge of every placement.
//!
//! In: takes and gives. Out: the state after them, or the rule a take breaks. The driver keeps one
//! of its own, which no policy touches, so that a policy is measured by what it did and not by what
//! it says. The simple policies keep another one to look for places in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::workload::{Node, Request, WHOLE};

/// A job's part on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Index into the workload's nodes.
    pub node: usize,
    /// Indices of its devices there, ascending.
    pub devices: Vec<u32>,
}

#[derive(Debug, Clone)]
pub struct Floor {
    nodes: Arc<[Node]>,
    free: Vec<Free>,
    /// Nodes by their count of idle devices, for a quick look.
    by_idle: Vec<BTreeSet<usize>>,
    free_milli: u64,
}

#[derive(Debug, Clone)]
pub struct Free {
    pub cpu_milli: u64,
    pub memory_mib: u64,
    /// Milli left on each device.
    pub left: Vec<u32>,
    /// Devices nobody uses.
    pub idle: u32,
    /// Sum of `left`.
    pub milli: u32,
}

impl Floor {
    pub fn new(nodes: &[Node]) -> Self {
        let free: Vec<Free> = nodes
            .iter()
            .map(|n| Free {
                cpu_milli: n.cpu_milli,
                memory_mib: n.memory_mib,
                left: vec![WHOLE; n.gpus as usize],
                idle: n.gpus,
                milli: n.gpus * WHOLE,
            })
            .collect();
        let most = nodes.iter().map(|n| n.gpus as usize).max().unwrap_or(0);
        let mut by_idle = vec![BTreeSet::new(); most + 1];
        for (i, node) in nodes.iter().enumerate() {
            by_idle[node.gpus as usize].insert(i);
        }
        let free_milli = free.iter().map(|f| u64::from(f.milli)).sum();
        Self { nodes: nodes.into(), free, by_idle, free_milli }
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn free(&self, node: usize) -> &Free {
        &self.free[node]
    }

    /// Over all nodes.
    pub fn free_milli(&self) -> u64 {
        self.free_milli
    }

    /// Whether the node could take the job's part.
    pub fn fits(&self, node: usize, request: &Request) -> bool {
        let free = &self.free[node];
        if free.cpu_milli < request.cpu_milli || free.memory_mib < request.memory_mib {
            return false;
        }
        if request.gpus == 0 {
            return true;
        }
        if !request.likes(&self.nodes[node].model) {
            return false;
        }
        if request.is_share() {
            let able = free.left.iter().filter(|l| **l >= request.gpu_milli).count();
            able >= request.gpus as usize
        } else {
            free.idle >= request.gpus
        }
    }

    /// Devices for the job's part: the tightest that suffice, then the lowest index. Only where it
    /// [`fits`](Self::fits).
    pub fn devices(&self, node: usize, request: &Request) -> Vec<u32> {
        let left = &self.free[node].left;
        let mut able: Vec<u32> =
            (0u32..).zip(left).filter(|(_, l)| **l >= request.gpu_milli).map(|(i, _)| i).collect();
        able.sort_by_key(|i| (left[*i as usize], *i));
        able.truncate(request.gpus as usize);
        able.sort_unstable();
        able
    }

    /// Best fit for whole devices: of the nodes that could take a part those with the fewest idle
    /// devices, then by index. `None` where there are not enough.
    pub fn best_fit(&self, request: &Request) -> Option<Vec<Placed>> {
        let mut places = Vec::new();
        // A share may also lie on devices in use.
        let least = if request.is_share() { 0 } else { request.gpus as usize };
        for nodes in self.by_idle.get(least..).unwrap_or_default() {
            for &node in nodes {
                if self.fits(node, request) {
                    places.push(Placed { node, devices: self.devices(node, request) });
                    if places.len() == request.nodes as usize {
                        return Some(places);
                    }
                }
            }
        }
        None
    }

    /// Whether any placement exists. A gang's parts are alike, so counting is exact.
    pub fn could_take(&self, request: &Request) -> bool {
        let fitting = (0..self.nodes.len()).filter(|n| self.fits(*n, request));
        fitting.take(request.nodes as usize).count() == request.nodes as usize
    }

    /// Takes what a placement needs, or tells the rule it breaks and takes nothing.
    pub fn take(&mut self, request: &Request, places: &[Placed]) -> Result<(), String> {
        self.check(request, places)?;
        for placed in places {
            self.change(placed, request, |free, milli, cpu, memory| {
                for device in &placed.devices {
                    free.left[*device as usize] -= milli;
                }
                free.cpu_milli -= cpu;
                free.memory_mib -= memory;
            });
        }
        Ok(())
    }

    /// Gives back what [`take`](Self::take) took.
    pub fn give(&mut self, request: &Request, places: &[Placed]) {
        for placed in places {
            self.change(placed, request, |free, milli, cpu, memory| {
                for device in &placed.devices {
                    free.left[*device as usize] += milli;
                }
                free.cpu_milli += cpu;
                free.memory_mib += memory;
            });
        }
    }

    fn change(
        &mut self,
        placed: &Placed,
        request: &Request,
        how: impl FnOnce(&mut Free, u32, u64, u64),
    ) {
        let free = &mut self.free[placed.node];
        self.by_idle[free.idle as usize].remove(&placed.node);
        self.free_milli -= u64::from(free.milli);
        how(free, request.gpu_milli, request.cpu_milli, request.memory_mib);
        free.idle = free.left.iter().filter(|l| **l == WHOLE).map(|_| 1).sum();
        free.milli = free.left.iter().sum();
        self.by_idle[free.idle as usize].insert(placed.node);
        self.free_milli += u64::from(free.milli);
    }

    fn check(&self, request: &Request, places: &[Placed]) -> Result<(), String> {
        if places.len() != request.nodes as usize {
            return Err(format!("{} nodes for a job of {}", places.len(), request.nodes));
        }
        let mut seen = BTreeSet::new();
        for placed in places {
            let Some(node) = self.nodes.get(placed.node) else {
                return Err(format!("there is no node number {}", placed.node));
            };
            let (name, free) = (&node.name, &self.free[placed.node]);
            if !seen.insert(placed.node) {
                return Err(format!("{name} is used twice by one job"));
            }
            if placed.devices.len() != request.gpus as usize {
                let (given, asked) = (placed.devices.len(), request.gpus);
                return Err(format!("{given} devices on {name}, the job asks for {asked}"));
            }
            if placed.devices.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(format!("devices {:?} on {name} do not ascend", placed.devices));
            }
            for device in &placed.devices {
                match free.left.get(*device as usize) {
                    None => return Err(format!("{name} has no device {device}")),
                    Some(left) if *left < request.gpu_milli => {
                        let asked = request.gpu_milli;
                        return Err(format!(
                            "{name} device {device} has {left} milli, not {asked}"
                        ));
                    }
                    Some(_) => {}
                }
            }
            if request.gpus > 0 && !request.likes(&node.model) {
                let models = request.models.join(" or ");
                return Err(format!("{name} has {}, the job asks for {models}", node.model));
            }
            if free.cpu_milli < request.cpu_milli || free.memory_mib < request.memory_mib {
                return Err(format!("{name} has not the CPUs or the memory"));
            }
        }
        Ok(())
    }
}
