//! Packing rules to be compared with: which node and devices a single-node job gets.
//!
//! In: an ask and what is left on each node, in a fixed order. Out: a node and its devices. Every rule
//! takes a node where one fits; they differ in which. [`Waste`] is the shipping one, from the core; the
//! others are as others published them, and floats are fine here. [`policy`] puts any of them
//! behind the replay's seam.
//!
//! ```
//! use tessera_core::placement::packing::{Ask, Devices, Kind, Left, WHOLE};
//! use tessera_sim::packers::{FirstFit, Rule, Waste};
//!
//! let kinds = [Kind { cpus: 8, memory: 64, gpus: 2 }];
//! let idle = Left { kind: 0, cpus: 8, memory: 64, gpus: Devices::new(&[WHOLE; 2]).unwrap() };
//! let half = Ask { gpus: 1, milli: 500, cpus: 1, memory: 1, kinds: None };
//! assert_eq!(FirstFit.choose(&half, &[idle, idle]), Some((0, 0b01)));
//! assert_eq!(Waste::new(&kinds, &[idle, idle]).choose(&half, &[idle, idle]), Some((0, 0b01)));
//! ```

mod fgd; // fragmentation gradient descent
mod fit; // first fit, best fit
mod replay; // a rule as a replay policy
mod waste; // ours

pub use fgd::Fgd;
pub use fit::{BestFit, FirstFit};
pub use replay::{Packing, policy};
pub use waste::Waste;

use tessera_core::placement::packing::{Ask, Left, Take, WHOLE};

/// A packing rule. It sees one ask at a time.
pub trait Rule {
    /// As the command line calls it.
    fn name(&self) -> &'static str;

    /// Index of the node and bits of its devices. `None` only where it fits nowhere.
    fn choose(&mut self, ask: &Ask, nodes: &[Left]) -> Option<(usize, u64)>;

    /// This node has something else left than before.
    fn changed(&mut self, _node: usize, _left: &Left) {}
}

/// The devices with the least left that suffices; of equals the lowest. Only where it fits.
fn tightest(ask: &Ask, left: &Left) -> u64 {
    let take = match ask.gpus {
        0 => Take::Nothing,
        1 if ask.milli < WHOLE => {
            let able = left.gpus.iter().filter(|&m| m >= ask.milli);
            Take::ShareOf(able.min().unwrap_or(WHOLE))
        }
        n => Take::Whole(n),
    };
    take.devices(&left.gpus).expect("asked only where it fits")
}
