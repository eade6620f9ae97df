//! `--placements`: where every pod went, for somebody else's judge.
//!
//! In: a workload and a run. Out: CSV rows `seq,node,devices` in event order; devices like `0-3-5`;
//! a pod that got no place has neither node nor devices. A gang over several nodes has a row a node.

use std::io::Write;

use super::drive::Run;
use super::workload::Workload;

pub fn write(workload: &Workload, run: &Run, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "seq,node,devices")?;
    for (job, fate) in workload.jobs.iter().zip(&run.fates) {
        if fate.places.is_empty() {
            writeln!(out, "{},,", job.seq)?;
        }
        for placed in &fate.places {
            let devices: Vec<String> = placed.devices.iter().map(u32::to_string).collect();
            let name = quoted(&workload.nodes[placed.node].name);
            writeln!(out, "{},{name},{}", job.seq, devices.join("-"))?;
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
