//! End-to-end stories: real processes, real kills, real files; only the GPUs are simulated.
//!
//! In: the programs in the target folder (`cargo build --workspace --bins --lib`). Out: pass or
//! fail. Each story has a cluster of its own and waits for events. `TESSERA_E2E_FULL=1` makes the
//! long ones as long as the release asks for; `TESSERA_E2E_KEEP=1` keeps their folders.

mod agent_kill; // 32 tasks outlive their agent
mod arrays; // a throttle, and what waits for all of them
mod bad_input; // every refusal says what and what next
mod deploy; // the units and what systemd says of them
mod dev; // a cluster without a flag
mod disk_full; // nothing acknowledged is lost, and it goes on
mod drain; // nodes that are wanted empty
mod ends; // exact codes, signals and reasons; nothing is left on a GPU
mod foresight; // what a dry run says is what happens
mod gang; // ranks, rendezvous, own GPUs only
mod gpu_lost; // one GPU is taken out, its node goes on
mod hang; // one hung call stalls nothing
mod layers; // arrows between the rooms point down only
mod maps; // a new map is taken whole or not at all
mod node_loss; // requeue or keep, and never two live attempts
mod placement_levels; // inside one leaf, or not at all
mod preempt; // told, saved, gone as a whole, back
mod scheduler_kill; // acknowledged means kept
mod security; // who may what
mod shares; // two jobs on one GPU, and two bills
mod start_refusals; // what a program says when it cannot start
mod submit_to_invoice; // from a command to its price
mod usage_bytes; // the same bill after a crash
mod waiting; // reasons and promises
