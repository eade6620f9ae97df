//! `tessera cordon`, `drain`, `uncordon`: an operator's wish for nodes.

use tessera_proto::v1;

use super::nodes::state_word;
use crate::call::{Api, node_record};
use crate::cli::{CordonArgs, NodeNames};
use crate::failure::Outcome;
use crate::output::Screen;
use crate::views::NodeView;

pub async fn keep_away(api: &Api, args: &CordonArgs, drain: bool, screen: &Screen) -> Outcome<u8> {
    for name in &args.names {
        let request = &v1::CordonRequest { node: name.clone(), drain, reason: args.reason.clone() };
        // The same wish twice is one wish, so it may be repeated.
        let node = api.ask(|api| async move { api.nodes().cordon(request.clone()).await }).await?;
        tell(node, screen)?;
    }
    Ok(0)
}

pub async fn give_back(api: &Api, args: &NodeNames, screen: &Screen) -> Outcome<u8> {
    for name in &args.names {
        let request = &v1::UncordonRequest { node: name.clone() };
        let node =
            api.ask(|api| async move { api.nodes().uncordon(request.clone()).await }).await?;
        tell(node, screen)?;
    }
    Ok(0)
}

fn tell(node: v1::Node, screen: &Screen) -> Outcome {
    let node = node_record(node)?;
    if screen.json {
        return screen.json_line(&NodeView::of(&node));
    }
    screen.line(format!("{} is {}", node.inventory.node, state_word(&node)))
}
