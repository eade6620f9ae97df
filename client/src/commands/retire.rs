//! `tessera retire`: a node is dead for certain, or gone for good.
//!
//! In: its name and why. Out: the jobs that had something running there. Whether it may be retired
//! is the scheduler's to say.

use serde::Serialize;
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::RetireArgs;
use crate::failure::Outcome;
use crate::output::Screen;

#[derive(Debug, Serialize)]
struct RetiredView<'a> {
    node: &'a str,
    /// What ran there was written off.
    jobs: &'a [u64],
}

pub async fn run(api: &Api, args: &RetireArgs, screen: &Screen) -> Outcome<u8> {
    let request = v1::RetireRequest { node: args.node.clone(), reason: args.reason.clone() };
    // Asked once: a second time there is no such node.
    let reply = api.once(api.nodes().retire(request)).await?;
    if screen.json {
        screen.json(&RetiredView { node: &args.node, jobs: &reply.jobs })?;
        return Ok(0);
    }
    screen.line(text(&args.node, &reply.jobs))?;
    screen.hint(&format!(
        "its certificate is good for nothing now; to have it back: tessera token create --node {}",
        args.node
    ));
    Ok(0)
}

/// `n09 is retired; written off there: jobs 812, 815`.
fn text(node: &str, jobs: &[u64]) -> String {
    let ids: Vec<String> = jobs.iter().map(u64::to_string).collect();
    match ids.as_slice() {
        [] => format!("{node} is retired; no job was running there"),
        [one] => format!("{node} is retired; written off there: job {one}"),
        more => format!("{node} is retired; written off there: jobs {}", more.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::to_json;

    #[test]
    fn the_jobs_it_hit_are_named() {
        for (jobs, want) in [
            (&[][..], "n09 is retired; no job was running there"),
            (&[812], "n09 is retired; written off there: job 812"),
            (&[812, 815], "n09 is retired; written off there: jobs 812, 815"),
        ] {
            assert_eq!(text("n09", jobs), want);
        }
        let json = to_json(&RetiredView { node: "n09", jobs: &[812] }).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value, serde_json::json!({ "node": "n09", "jobs": [812] }));
    }
}
