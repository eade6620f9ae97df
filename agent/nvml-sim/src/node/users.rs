//! Who uses the node's GPUs: process lists, memory, accounting.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::identity;
use crate::node::{Node, active_load};
use crate::procs::Procs;

/// What accounting mode keeps of a process.
#[derive(Debug, Clone)]
pub struct Account {
    pub pid: u32,
    pub start_unix_us: u64,
    pub last_unix_us: u64,
    pub max_mem_bytes: u64,
    pub util_sum: u64,
    pub mem_sum: u64,
    pub samples: u64,
    pub running: bool,
}

/// One process on a GPU, as a process list shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub pid: u32,
    pub mem_bytes: u64,
    /// The MIG instance it runs in.
    pub mig: Option<usize>,
}

impl Node {
    /// The processes on a GPU; those that have ended are gone at once.
    pub fn processes(&self, gpu: usize) -> Vec<Listed> {
        self.search_processes();
        let mut procs = self.procs.lock();
        let before = procs.using.len();
        procs.drop_ended();
        if procs.using.len() != before {
            self.publish_jobs(&procs);
        }
        let total = self.hw.gpus[gpu].spec.mem_mib;
        let count = procs.on(gpu).count() as u64;
        let mut list: Vec<Listed> = procs
            .on(gpu)
            .map(|p| {
                let mib = p.mem_mib.unwrap_or(total * 6 / 10 / count).min(total);
                let mig = p.instances.iter().find(|(on, _)| *on == gpu).map(|(_, mig)| *mig);
                Listed { pid: p.pid, mem_bytes: mib << 20, mig }
            })
            .collect();
        drop(procs);
        // Churning processes live 100 ms each; their pids are above any the kernel gives.
        let slot = (self.clock.secs() * 10.0) as u64;
        for n in 0..self.gpu_effects(gpu).churn {
            let pid = 0x0080_0000
                + identity::hash(n ^ self.scenario.node.seed, &slot.to_le_bytes()) % 0x0070_0000;
            list.push(Listed { pid: pid as u32, mem_bytes: 512 << 20, mig: None });
        }
        list
    }

    /// Bytes of memory in use beyond what the driver reserves.
    pub fn memory_used(&self, gpu: usize) -> u64 {
        let spec = self.hw.gpus[gpu].spec;
        let usable = (spec.mem_mib - spec.reserved_mib) << 20;
        let by_jobs: u64 = self.processes(gpu).iter().map(|p| p.mem_bytes).sum();
        let loads = self.loads.read().clone();
        let by_scenario = active_load(&loads, gpu, self.clock.secs()).map_or(0.0, |e| e.mem);
        by_jobs.max((usable as f64 * by_scenario) as u64).min(usable)
    }

    pub(super) fn search_processes(&self) {
        let every = self.scenario.node.process_scan.0;
        let now = self.clock.now().as_nanos() as u64;
        if every.is_zero() || now < self.next_search.load(Relaxed) {
            return;
        }
        // Somebody else searching is as good.
        let Some(mut procs) = self.procs.try_lock() else { return };
        self.next_search.store(now + every.as_nanos() as u64, Relaxed);
        procs.search(&self.hw.devices(), self.clock.secs());
        self.publish_jobs(&procs);
        self.account(&procs);
    }

    fn publish_jobs(&self, procs: &Procs) {
        for (i, gpu) in self.gpus.iter().enumerate() {
            let loads = procs.loads(i);
            if **gpu.jobs.read() != loads {
                *gpu.jobs.write() = Arc::new(loads);
            }
        }
    }

    fn account(&self, procs: &Procs) {
        const KEPT: usize = 4000;
        let now = self.clock.unix_us(self.clock.secs());
        for (i, gpu) in self.gpus.iter().enumerate() {
            if !gpu.accounting.load(Relaxed) {
                continue;
            }
            let (busy, mem) = {
                let meter = gpu.meter.lock();
                (u64::from(meter.0.busy_pct), u64::from(meter.0.mem_pct))
            };
            let total = self.hw.gpus[i].spec.mem_mib;
            let count = procs.on(i).count() as u64;
            let mut accounts = gpu.accounts.lock();
            for account in accounts.iter_mut() {
                account.running = procs.on(i).any(|p| p.pid == account.pid);
            }
            for proc in procs.on(i) {
                let mem_bytes = proc.mem_mib.unwrap_or(total * 6 / 10 / count).min(total) << 20;
                let at = accounts.iter().rposition(|a| a.pid == proc.pid).unwrap_or_else(|| {
                    if accounts.len() == KEPT {
                        accounts.remove(0);
                    }
                    accounts.push(Account {
                        pid: proc.pid,
                        start_unix_us: self.clock.unix_us(proc.since),
                        last_unix_us: now,
                        max_mem_bytes: 0,
                        util_sum: 0,
                        mem_sum: 0,
                        samples: 0,
                        running: true,
                    });
                    accounts.len() - 1
                });
                let account = &mut accounts[at];
                account.last_unix_us = now;
                account.max_mem_bytes = account.max_mem_bytes.max(mem_bytes);
                account.util_sum += busy;
                account.mem_sum += mem;
                account.samples += 1;
            }
        }
    }
}
