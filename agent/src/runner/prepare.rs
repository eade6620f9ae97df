//! May this attempt run here? And if so, everything is made ready for it to start.
//!
//! In: an order. Out: the record, durable, with a free port in it; or a refusal that names the
//! value at fault, and a folder as it was before. Blocks; not for async threads.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use ring::rand::SecureRandom;

use tessera_model::{Epoch, GpuCondition, UnixIdentity};

use super::Shared;
use super::account::{Account, run_as};
use super::gpus::Processes;
use super::order::{OrderRecord, TaskOrder, Tombstone};
use super::start::each;
use super::tenants;

pub(super) const SCRIPT: &str = "script";

/// GPUs are claimed here too; the caller gives them back after a refusal.
pub(super) fn prepare(
    shared: &Shared,
    epoch: Epoch,
    order: &TaskOrder,
) -> Result<OrderRecord, String> {
    check(shared, order)?;
    let dir = shared.attempt_dir(order.attempt);
    if Tombstone::read(&dir).is_some() {
        return Err("it was told to stop before it was prepared".to_owned());
    }
    if shared.done.holds(order.attempt) {
        return Err("it has ended here already".to_owned());
    }
    check_gpus(shared, order)?;
    let master_port = free_port(&shared.settings.address, &shared.book.ports())
        .map_err(|error| format!("no free port on {}: {error}", shared.settings.address))?;
    let record = OrderRecord { order: order.clone(), epoch, master_port, mark: mark() };
    write(&dir, &record, shared).map_err(|error| {
        // Best effort: a folder without an order is nothing, and is cleared at the next start.
        let _ = std::fs::remove_dir_all(&dir);
        format!("could not write {}: {error}", dir.display())
    })?;
    Ok(record)
}

fn check(shared: &Shared, order: &TaskOrder) -> Result<(), String> {
    let session = shared.session.id();
    if order.session != session {
        return Err(format!(
            "it is meant for session {:016x} of this agent, this one is {session:016x}",
            order.session.0,
            session = session.0
        ));
    }
    if let Some(problem) = order.problem() {
        return Err(format!("the order makes no sense: {problem}"));
    }
    let named = order.nodes.get(order.node_rank as usize).map_or("", String::as_str);
    if named != shared.settings.node.as_str() {
        return Err(format!("the order is for node {named}, this is {}", shared.settings.node));
    }
    let (_, account) = whom(shared, order)?;
    working_dir(shared, order, &account.home).map(drop)
}

/// Whom to become for this order, if anybody, and the account its tasks run under.
pub(super) fn whom(
    shared: &Shared,
    order: &TaskOrder,
) -> Result<(Option<UnixIdentity>, Account), String> {
    let agent = shared.settings.identity;
    let identity = run_as(order.unix, agent)?;
    let (uid, gid) = identity.map_or((agent.uid, agent.gid), |user| (user.uid, user.gid));
    Ok((identity, shared.accounts.look_up(&shared.patience, uid, gid)?))
}

/// Where its tasks start: what the job asked for, else the user's home if it is there.
pub(super) fn working_dir(
    shared: &Shared,
    order: &TaskOrder,
    home: &Path,
) -> Result<PathBuf, String> {
    let Some(dir) = order.working_dir.as_ref().map(PathBuf::from) else {
        let asked = home.to_owned();
        let what = format!("the home folder {}", home.display());
        let is_there = shared.patience.ask(&what, move || asked.is_dir())?;
        return Ok(if is_there { home.to_owned() } else { PathBuf::from("/") });
    };
    let what = format!("the working folder {}", dir.display());
    let asked = dir.clone();
    match shared.patience.ask(&what, move || std::fs::metadata(asked))? {
        Ok(meta) if meta.is_dir() && dir.is_absolute() => Ok(dir),
        Ok(_) => Err(format!("{what} is no absolute path of a folder")),
        Err(error) => Err(format!("{what} cannot be used on this node: {error}")),
    }
}

fn check_gpus(shared: &Shared, order: &TaskOrder) -> Result<(), String> {
    for gpu in &order.gpus {
        match shared.gpus.condition(gpu) {
            Some(GpuCondition::Healthy) => {}
            Some(condition) => return Err(format!("{gpu} {condition}")),
            None => return Err(format!("this node has no {gpu}")),
        }
    }
    shared.book.claim(order.attempt, &order.gpus, order.gpu_milli)?;
    // Asked now, and after the claim: what is on them belongs to those that share them, or to
    // nobody.
    let found = each(&order.gpus, |gpu| tenants::strangers(shared, gpu, Some(order.attempt)));
    for (gpu, found) in order.gpus.iter().zip(found) {
        match found {
            Processes::Pids(pids) if pids.is_empty() => {}
            Processes::Pids(pids) => {
                let why = format!(
                    "{gpu} is used by processes of no job: {pids:?}; it is free again when they have ended"
                );
                shared.book.found_on_claimed(gpu, pids);
                return Err(why);
            }
            Processes::Silent => {
                return Err(format!("{gpu} does not say what runs on it, so nothing is started"));
            }
        }
    }
    Ok(())
}

fn write(dir: &Path, record: &OrderRecord, shared: &Shared) -> io::Result<()> {
    make_attempt_dir(dir)?;
    if let Some(script) = &record.order.script {
        // Only the job's user reads it; the folders above can be walked through, not listed.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o700).open(dir.join(SCRIPT))?;
        file.write_all(script.as_bytes())?;
        if let Ok(Some(user)) = run_as(record.order.unix, shared.settings.identity) {
            fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        file.sync_all()?;
    }
    record.write(dir)
}

/// Makes the attempt's folder, durably.
pub(super) fn make_attempt_dir(dir: &Path) -> io::Result<()> {
    crate::passage::make(dir)?;
    match dir.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A port that is free now, on the address where others reach us if that is one of ours.
fn free_port(address: &str, taken: &BTreeSet<u16>) -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    // Held until the end, so that the next try gets another one.
    let mut held = Vec::new();
    for _ in 0..64 {
        let listener =
            TcpListener::bind((address, 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0)));
        match listener.and_then(|l| Ok((l.local_addr()?.port(), l))) {
            Ok((port, _)) if !taken.contains(&port) => return Ok(port),
            Ok((_, listener)) => held.push(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn mark() -> String {
    let mut bytes = [0u8; 4];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the kernel's random numbers are there once the machine has booted");
    format!("{:08x}", u32::from_le_bytes(bytes))
}
