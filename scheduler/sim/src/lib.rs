//! A simulated world around the shipping core: virtual clock, seeded faults, and a checker that
//! says which of our promises were broken.
//!
//! In: a seed and [`Faults`]. Out: [`World::broken_promises`], the journal, and a [`Report`]. The
//! scheduler in here is the real one, `tessera-core`, driven as the writer drives it: a request or
//! a report becomes events, events are written to the journal, then applied, then their orders go
//! out. Nodes, agents, shims, processes, the network, operators and customers are simulated. The
//! same seed gives the same run, to the byte of the journal.
//!
//! The checker looks at the simulated *processes*, not at what the scheduler believes. What it
//! checks, by the numbers of the list of promises:
//!
//! - P1: an acknowledged job exists after every crash, and its key gives the same job again.
//! - P2: never processes of two attempts of one job at the same time.
//! - P3, P4: no GPU used by two attempts; none given out while a process of another attempt is on it,
//!   and nothing starts where something else still runs.
//! - P6: a job's outcome is what its processes did, or it is lost and something did get lost.
//! - P7: states move along the published graph, and what has ended starts nothing any more.
//! - P8: once faults have stopped, every job ends or waits for a reason that is true.
//! - P9: each GPU's intervals tile its life, and allocated time is lease time.
//! - Journal: replayed after each crash, it gives the state and the intervals there were.
//! - Orders of an earlier reign are refused, and the verifier never refuses a placement.
//!
//! ```
//! use tessera_model::Millis;
//! use tessera_sim::{Faults, World};
//!
//! let mut world = World::new(7, Faults::MILD);
//! world.run_for(Millis::from_secs(600));
//! world.settle();
//! assert_eq!(world.broken_promises(), "");
//! ```

mod agents; // what agents and shims do
mod chaos; // faults, operators and customers
mod constraints; // a third opinion on placements
mod faults;
mod jobs_at_random; // what a world is asked for
mod machine; // a node, its disk and its processes
mod planning; // a world that is all about who goes where
mod promises; // what must hold
mod rng;
mod world; // the clock and what happens next
mod writer; // the scheduler: journal, apply, decide, restart

pub mod packers; // packing rules to be compared
pub mod trace; // recorded workloads, replayed

pub use faults::{Faults, Planted};
pub use planning::{Planning, PlantedPlan};
pub use promises::Report;
pub use rng::Rng;
pub use world::World;
