//! A packer, with what it knows of the nodes of a space, kept from question to question.
//!
//! In: a space, the mix, and single-node asks. Out: the node where the least goes to waste, and the
//! GPUs on it. Everything here can be made anew from these, and the answers do not depend on what
//! was asked before: it is a cache, so no two differ and none is stored.

use std::sync::Arc;

use tessera_model::{Gang, WHOLE_GPU};

use super::fit;
use super::gpus;
use super::nodes::NodeSet;
use super::packing::{Ask, Choice, ClassId, Devices, Kind, Left, Mix, Packer, Take, Tuning};
use super::request::Role;
use super::search::Chosen;
use super::space::{Layout, Space};

#[derive(Default)]
pub struct Seats {
    made: Option<Made>,
}

struct Made {
    layout: Arc<Layout>,
    revision: u32,
    packer: Packer,
    /// By node, as it was when it was last looked at.
    seen: Vec<Option<Seen>>,
}

#[derive(Clone, Copy)]
struct Seen {
    free: u64,
    healthy: u64,
    cpus: u32,
    memory: u64,
    /// Of its shared GPUs.
    shares: u64,
    class: ClassId,
}

/// What one node's worth of a gang asks a packer for. `None` where the packer's words do not
/// suffice: some GPUs of a node would do, and others of it would not.
pub fn ask(space: &Space, gang: &Gang) -> Option<Ask> {
    let model = gang.gpu_model.as_deref().map(str::to_lowercase);
    let usable: Vec<u64> =
        space.layout.kinds.iter().map(|k| gpus::of_model(k, model.as_deref())).collect();
    let milli = if gang.is_share() { gang.gpu_milli } else { WHOLE_GPU };
    let (cpus, memory) = (gang.cpus_per_node(), gang.memory_per_node.0);
    ask_for(&space.layout, gang.gpus_per_node, milli, cpus, memory, &usable)
}

fn ask_for(
    layout: &Layout,
    gpus: u32,
    milli: u32,
    cpus: u32,
    memory: u64,
    usable: &[u64],
) -> Option<Ask> {
    let (gpus, milli) = (u16::try_from(gpus).ok()?, u16::try_from(milli).ok()?);
    let mut kinds = Vec::new();
    if gpus > 0 {
        for (index, (kind, usable)) in (0u16..).zip(layout.kinds.iter().zip(usable)) {
            match *usable {
                0 => {}
                all if all == kind.all() => kinds.push(index),
                _ => return None,
            }
        }
    }
    let any = gpus == 0 || kinds.len() == layout.kinds.len();
    Some(Ask { gpus, milli, cpus, memory, kinds: (!any).then_some(kinds) })
}

impl Seats {
    /// Makes ready for a space under a mix: anew where the nodes' hardware or the mix has moved, or
    /// where the packer remembers too much.
    pub fn ready(&mut self, space: &Space, mix: &Mix) {
        let good = self.made.as_ref().is_some_and(|m| {
            Arc::ptr_eq(&m.layout, &space.layout)
                && m.revision == mix.revision()
                && !m.packer.is_full()
        });
        if good {
            return;
        }
        let kind = |k: &super::space::Kind| Kind {
            cpus: k.cpus,
            memory: k.memory,
            gpus: k.gpus.len() as u16,
        };
        let kinds: Vec<Kind> = space.layout.kinds.iter().map(kind).collect();
        self.made = Some(Made {
            layout: Arc::clone(&space.layout),
            revision: mix.revision(),
            packer: Packer::new(mix, &kinds, Tuning::default()),
            seen: vec![None; space.len()],
        });
    }

    /// The best of the fitting nodes. `None` where it cannot say: it was not made ready for this
    /// space, or the ask is not one for a packer.
    pub(super) fn choose(&mut self, space: &Space, role: &Role, fits: &NodeSet) -> Option<Chosen> {
        let made = self.made.as_mut().filter(|m| Arc::ptr_eq(&m.layout, &space.layout))?;
        let (gpus, milli) = (role.gpus, role.milli);
        let ask = ask_for(&space.layout, gpus, milli, role.cpus, role.memory, &role.usable)?;
        let mut classes = Vec::new();
        for node in fits.iter() {
            classes.push((node, made.class(space, node)?));
        }
        let Choice { position: node, take, .. } = made.packer.choose(&ask, classes.into_iter())?;
        let gpus = match take {
            Take::Nothing => 0,
            Take::ShareOf(left) => fit::share_with(space, role, node, left.into())?,
            Take::Whole(_) => fit::worth(space, role, node)?.gpus,
        };
        Some(Chosen { node, gpus })
    }
}

impl Made {
    fn class(&mut self, space: &Space, node: u32) -> Option<ClassId> {
        let i = node as usize;
        let (free, healthy) = (space.free[i], space.healthy[i]);
        let (cpus, memory) = (space.cpus_free[i], space.memory_free[i]);
        let mut shares = 0u64;
        if !space.shared.is_empty() {
            for ((_, gpu), left) in space.shared.range((node, 0)..=(node, u32::MAX)) {
                let one = u64::from(*gpu) << 32 | u64::from(*left);
                shares = (shares ^ one).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
            }
        }
        let same = |s: &Seen| {
            (s.free, s.healthy, s.cpus, s.memory, s.shares) == (free, healthy, cpus, memory, shares)
        };
        if let Some(seen) = self.seen[i].filter(same) {
            return Some(seen.class);
        }
        let left = |gpu: u32| {
            let whole = free >> gpu & 1 == 1;
            let shared = || space.shared.get(&(node, gpu)).copied().unwrap_or(0);
            if whole { WHOLE_GPU as u16 } else { shared() as u16 }
        };
        let well = (0..64u32).filter(|gpu| healthy >> gpu & 1 == 1);
        let milli: Vec<u16> = well.map(left).collect();
        let gpus = Devices::new(&milli)?;
        let kind = self.layout.kind[i];
        let class = self.packer.class_of(&Left { kind, cpus, memory, gpus });
        self.seen[i] = Some(Seen { free, healthy, cpus, memory, shares, class });
        Some(class)
    }
}

impl Clone for Seats {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Seats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seats").field("ready", &self.made.is_some()).finish()
    }
}
