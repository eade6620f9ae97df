//! The map in force, what speaks against it, and how it is changed: nodes and a map in, a picture
//! out.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tessera_core::cluster::Cluster;
use tessera_core::door::topology::{Allow, MapProblem, check_map, load_map};
use tessera_core::event::{Event, Stamped};
use tessera_core::node_table::Node;
use tessera_core::topology::{doubts, effective, flaw, from_labels, nvlink_domain};
use tessera_model::{
    BootId, Bytes, DomainMark, Fabric, Gpu, GpuId, NodeId, NodeInventory, RefusalKind, SessionId,
    Topology, UnixMillis, UserId,
};

const ZEROS: &str = "00000000-0000-0000-0000-000000000000.0";

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// Short words for the labels in the pictures.
fn label(word: &str) -> String {
    let known =
        [("t", "fabric.topograph.run/tier-"), ("aws", "topology.k8s.aws/network-node-layer-")];
    for (short, long) in known {
        if let Some(number) = word.strip_prefix(short).filter(|n| n.parse::<u32>().is_ok()) {
            return format!("{long}{number}");
        }
    }
    match word {
        "leaf" | "spine" | "core" | "accelerator" => format!("network.topology.nvidia.com/{word}"),
        "domain" => "accelerator.topograph.run/domain".to_owned(),
        "clique" => "nvidia.com/gpu.clique".to_owned(),
        "block" | "subblock" | "host" => format!("cloud.google.com/gce-topology-{word}"),
        "region" | "zone" => format!("topology.kubernetes.io/{word}"),
        _ => panic!("no label {word}"),
    }
}

/// `n0 v=u.1,u.1 t0=l0 sees=s1,s2`: GPUs by the NVLink domain they report (`-`: none), labels, and
/// neighbours.
fn nodes(picture: &str) -> Vec<NodeInventory> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let mut node = NodeInventory {
            node: id(name),
            boot: BootId::parse("b").unwrap(),
            agent_version: "0".to_owned(),
            address: name.to_owned(),
            cpus: 64,
            memory: Bytes::gib(512),
            driver_version: None,
            gpus: Vec::new(),
            nics: Vec::new(),
            labels: BTreeMap::new(),
            neighbours: Vec::new(),
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap();
            let list = value.split(',').map(str::to_owned);
            match key {
                "v" => node.gpus.extend(list.enumerate().map(|(i, d)| gpu(name, i, &d))),
                "sees" => node.neighbours.extend(list),
                _ => drop(node.labels.insert(label(key), value.to_owned())),
            }
        }
        node
    };
    picture.lines().map(str::trim).filter(|l| !l.is_empty()).map(line).collect()
}

fn gpu(node: &str, index: usize, domain: &str) -> Gpu {
    Gpu {
        id: GpuId::parse(&format!("GPU-{node}-{index}")).unwrap(),
        index: index as u32,
        model: "NVIDIA GB200".to_owned(),
        memory: Bytes::gib(186),
        pci_bus_id: format!("0000:{index:02x}:00.0"),
        numa: None,
        nvlink_group: Some(0),
        nvlink_domain: (domain != "-").then(|| domain.to_owned()),
        nic: None,
        rail: None,
        mig: None,
    }
}

/// `net block/leaf: b0/l0 n0 n1; b0/l1 n2 [l0: s1 s2]`, a line for each fabric; both ways.
fn map(picture: &str) -> Topology {
    let line = |line: &str| {
        let (head, rest) = line.split_once(": ").unwrap();
        let (name, levels) = head.split_once(' ').unwrap();
        let (leaves, switches) = rest.split_once('[').unwrap_or((rest, ""));
        let mut fabric = Fabric {
            name: name.to_owned(),
            levels: levels.split('/').map(str::to_owned).collect(),
            ..Fabric::default()
        };
        for leaf in leaves.split("; ") {
            let (path, nodes) = leaf.trim().split_once(' ').unwrap();
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            fabric.nodes.extend(nodes.split(' ').map(|n| (id(n), path.clone())));
        }
        for leaf in switches.trim_end_matches(']').split(';').filter(|s| !s.is_empty()) {
            let (leaf, names) = leaf.trim().split_once(": ").unwrap();
            let names = names.split(' ').map(str::to_owned).collect();
            fabric.switches.insert(leaf.to_owned(), names);
        }
        fabric
    };
    let lines = picture.lines().map(str::trim).filter(|l| !l.is_empty());
    Topology { fabrics: lines.map(line).collect() }
}

fn picture(map: &Topology) -> String {
    let mut shown = Vec::new();
    for fabric in &map.fabrics {
        let mut leaves: Vec<(String, Vec<&str>)> = Vec::new();
        for (node, path) in &fabric.nodes {
            let path = path.join("/");
            match leaves.iter_mut().find(|(p, _)| *p == path) {
                Some((_, nodes)) => nodes.push(node.as_str()),
                None => leaves.push((path, vec![node.as_str()])),
            }
        }
        let leaves = leaves.iter().map(|(path, nodes)| format!("{path} {}", nodes.join(" ")));
        let (name, levels) = (&fabric.name, fabric.levels.join("/"));
        shown.push(format!("{name} {levels}: {}", leaves.collect::<Vec<_>>().join("; ")));
    }
    shown.join("\n")
}

fn lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join("\n")
}

#[track_caller]
fn check(operator: &str, cluster: &str, want: &str) {
    let inventories = nodes(cluster);
    let whole = effective(&map(operator), inventories.iter());
    assert_eq!(picture(&whole), lines(want), "{operator}\n{cluster}");
    assert_eq!(flaw(&whole), None, "{operator}\n{cluster}");
    // Neither order nor repetition changes anything.
    assert_eq!(effective(&map(operator), inventories.iter().rev()), whole);
    assert_eq!(effective(&whole, inventories.iter()), whole);
}

// ---- labels

#[test]
fn each_kind_of_label_gives_levels() {
    check("", "a t0=l0 t1=s0\nb t0=l1 t1=s0", "net spine/leaf: s0/l0 a; s0/l1 b");
    check("", "a t0=l t1=s t2=c t3=x", "net tier_3/core/spine/leaf: x/c/s/l a");
    check("", "a leaf=l0 spine=s0 core=c0", "net core/spine/leaf: c0/s0/l0 a");
    check("", "a aws1=t aws2=m aws3=l", "net core/spine/leaf: t/m/l a");
    check("", "a aws1=t aws2=m aws3=l aws4=x", "net tier_3/core/spine/leaf: t/m/l/x a");
    check(
        "",
        "a block=b subblock=s host=h\nb block=b subblock=s host=i",
        "net block/subblock: b/s a b",
    );
    // Virtual machines that share a host have one level more.
    check(
        "",
        "a block=b subblock=s host=h\nb block=b subblock=s host=h",
        "net block/subblock/host: b/s/h a b",
    );
    check("", "a region=r zone=r-a\nb region=r zone=r-b", "zone region/zone: r/r-a a; r/r-b b");
    check("", "a zone=z", "zone zone: z a");
    check("", "a region=r", "zone region: r a");
    check("", "a t0=l zone=z", "net leaf: l a\nzone zone: z a");
    check("", "a", "");
}

#[test]
fn the_labels_that_place_most_nodes_are_taken() {
    check("", "a t0=l0\nb aws1=x\nc aws1=x", "net leaf: x b c");
    // On a tie the more exact kind.
    check("", "a t0=l0 aws1=x\nb t0=l1 aws1=x", "net leaf: l0 a; l1 b");
    // One node with odd labels changes nothing for the others, and is left out.
    check("", "a t0=l0 t1=s\nb t0=l1 t1=s\nc t0=l1", "net spine/leaf: s/l0 a; s/l1 b");
    check("", "a t0=l0\nb t0=l1\nc t0=l1 t1=s", "net leaf: l0 a; l1 b c");
}

#[test]
fn a_name_under_two_parents_is_two_domains() {
    check("", "a t0=l t1=s\nb t0=l t1=t\nc t0=m t1=t", "net spine/leaf: s/s/l a; t/t/l b; t/m c");
    // Where even that does not tell them apart, labels are no map.
    check("", "a t0=l t1=s\nb t0=l t1=t\nc t0=s/l t1=t", "");
}

// ---- NVLink

#[test]
fn nvlink_domains_are_what_two_nodes_report() {
    check(
        "",
        "a v=u.1,u.1\nb v=u.1,u.1\nc v=u.2\nd v=u.1,-\ne v=u.1,u.2\nf",
        "nvlink nvlink: u.1 a b; c c; d d; e e; f f",
    );
    // Nobody shares one: there is no such fabric.
    check("", "a v=u.1\nb v=u.2", "");
    check("", &format!("a v={ZEROS}\nb v={ZEROS}"), "");
    check("", "a v=00000000000000000000000000000000.7\nb v=00000000000000000000000000000000.7", "");
    // Labels speak where GPUs do not.
    check(
        "",
        "a v=u.1\nb clique=u.1\nc domain=u.1\nd accelerator=u.1",
        "nvlink nvlink: u.1 a b c d",
    );
    check("", "a v=u.1\nb v=u.2 clique=u.1\nc v=u.1", "nvlink nvlink: u.1 a c; b b");
    check("", &format!("a clique={ZEROS} domain=d\nb domain=d"), "nvlink nvlink: d a b");
}

#[test]
fn zeros_are_no_domain() {
    for text in [ZEROS, "0.0", "00000000000000000000000000000000.3", "", ".1", "-"] {
        assert_eq!(nvlink_domain(text), None, "{text}");
    }
    for text in ["00000000-0000-0000-0000-000000000001.0", "rack-1", "nvl.00", "cb-0"] {
        assert_eq!(nvlink_domain(text), Some(text));
    }
}

#[test]
fn parts_of_a_gpu_say_nothing_of_nvlink() {
    let mut inventories = nodes("a v=u.1,-\nb v=u.1");
    let parent = inventories[0].gpus[0].id.clone();
    inventories[0].gpus[1].mig =
        Some(tessera_model::MigInstance { parent, profile: "1g.10gb".into(), memory_slices: 1 });
    let whole = effective(&Topology::default(), inventories.iter());
    assert_eq!(picture(&whole), "nvlink nvlink: u.1 a b");
}

// ---- the operator's word

#[test]
fn what_the_operator_gives_goes_before_what_is_derived() {
    let cluster = "a t0=l9 v=u.1\nb t0=l9 v=u.1\nc t0=l8 zone=z";
    check(
        "net leaf: l0 a b c",
        cluster,
        "net leaf: l0 a b c\nzone zone: z c\nnvlink nvlink: u.1 a b; c c",
    );
    // A level is nobody else's: the fabric that labels give would use `leaf` once more.
    check("ib leaf: l0 a", cluster, "ib leaf: l0 a\nzone zone: z c\nnvlink nvlink: u.1 a b; c c");
    // His NVLink domains stay, and whoever is in none is alone.
    check(
        "nvlink nvlink: rack-1 a; c b",
        cluster,
        "nvlink nvlink: rack-1 a; c b; c/alone c\nnet leaf: l9 a b; l8 c\nzone zone: z c",
    );
    check("power pdu: p a", "a t0=l", "power pdu: p a\nnet leaf: l a");
}

#[test]
fn broken_maps_have_a_flaw() {
    for (text, want) in [
        ("net leaf: l a", ""),
        ("n/t leaf: l a", "no name for a fabric"),
        ("net leaf: l a\nnet rack: r a", "two fabrics called \"net\""),
        ("net leaf: l a\nip leaf: l a", "one of fabric \"net\" and of \"ip\""),
        ("net leaf/leaf: l/l a", "named twice"),
        ("net le:af: l a", "no name for a level"),
        ("net block/leaf: l a", "no domain at each level"),
        ("net leaf: b/l a", "no domain at each level"),
        ("net block/leaf: b/l a; c/l b", "domain \"l\" of \"net\" lies in \"b\" and in \"c\""),
    ] {
        let got = flaw(&map(text)).unwrap_or_default();
        assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{text}: {got}");
    }
    let mut empty = map("net leaf: l a");
    empty.fabrics[0].nodes.clear();
    assert!(flaw(&empty).unwrap().contains("0 nodes"));
    empty.fabrics[0].levels.clear();
    assert!(flaw(&empty).unwrap().contains("0 levels"));
}

// ---- doubts

#[track_caller]
fn check_doubts(operator: &str, cluster: &str, want: &str) {
    let inventories = nodes(cluster);
    let whole = effective(&map(operator), inventories.iter());
    // Switches of the operator's fabrics are in the effective map, too.
    let found = doubts(&whole, inventories.iter());
    let shown: Vec<String> = found
        .iter()
        .flat_map(|(node, texts)| texts.iter().map(move |text| format!("{node}: {text}")))
        .collect();
    assert_eq!(shown.join("\n"), lines(want), "{operator}\n{cluster}");
    assert_eq!(doubts(&whole, inventories.iter().rev()), found);
}

#[test]
fn a_link_to_another_domains_switch_is_a_doubt() {
    let operator = "net leaf: l0 a b; l1 c d [l0: s0 s1; l1: t0 t1]";
    check_doubts(operator, "a sees=s0,s1\nb sees=s0,mgmt\nc sees=t0\nd", "");
    check_doubts(
        operator,
        "a sees=t0,t1\nb sees=s0,t1\nc sees=mgmt\nd sees=t0",
        "a: a link of it ends at switch \"t0\" of leaf \"l1\", the map puts it into \"l0\"
         b: a link of it ends at switch \"t1\" of leaf \"l1\", the map puts it into \"l0\"
         c: its links end at \"mgmt\", none of them a switch of leaf \"l1\" (\"t0\", \"t1\")",
    );
    // A domain that bears its switch's name, as in maps that tools make.
    check_doubts(
        "net spine/leaf: s/l0 a b; s/l1 c",
        "a sees=l0\nb sees=l1,x\nc sees=y",
        "b: a link of it ends at switch \"l1\" of leaf \"l1\", the map puts it into \"l0\"",
    );
    // A power map knows nothing of switches.
    check_doubts(
        "net leaf: l0 a\npower pdu: s9 a; s8 b",
        "a sees=s8\nb sees=s8",
        "b: the map has no place for it in \"net\"",
    );
}

#[test]
fn without_switches_the_mates_tell() {
    let operator = "net leaf: l0 a b c; l1 d e";
    check_doubts(operator, "a sees=s\nb sees=s\nc sees=s\nd sees=t\ne sees=t", "");
    check_doubts(
        operator,
        "a sees=s\nb sees=s\nc sees=t\nd sees=t\ne sees=t",
        "c: it sees the switches that leaf \"l1\" sees, and none that others of \"l0\" see",
    );
    // Two that belong elsewhere, and are more than the one that does not.
    check_doubts(
        operator,
        "a sees=s\nb sees=t\nc sees=t\nd sees=t\ne sees=t",
        "b: it sees the switches that leaf \"l1\" sees, and none that others of \"l0\" see
         c: it sees the switches that leaf \"l1\" sees, and none that others of \"l0\" see",
    );
    // A switch of one's own may be a new one; it contradicts nothing.
    check_doubts(operator, "a sees=s\nb sees=s\nc sees=u\nd sees=t\ne sees=t", "");
    // Alone in one's domain there is nobody to compare with.
    check_doubts(operator, "a sees=t\nd sees=t\ne sees=t", "");
}

#[test]
fn gpus_that_report_another_nvlink_domain_are_a_doubt() {
    let operator = "nvlink nvlink: r1 a b c; r2 d e";
    check_doubts(operator, "a v=u.1\nb v=u.1\nc v=u.1\nd v=w.1\ne v=w.1", "");
    check_doubts(
        operator,
        "a v=u.1\nb v=u.1\nc v=w.1\nd v=w.1\ne v=w.1",
        "c: its GPUs report NVLink domain \"w.1\", as 2 of \"r2\" do, the map puts it into \"r1\"",
    );
    check_doubts(
        operator,
        "a v=u.1\nb v=u.1\nc v=x.1\nd v=w.1\ne v=-",
        "c: its GPUs report NVLink domain \"x.1\", 2 of \"r1\" report \"u.1\"
         e: its GPUs report no NVLink domain, 1 other nodes of \"r2\" do",
    );
    check_doubts(
        "",
        "a v=u.1\nb v=u.1\nc v=u.1,u.2,-",
        "c: its GPUs do not agree on their NVLink domain: \"u.1\", \"u.2\", and 1 name none",
    );
}

#[test]
fn a_node_without_a_place_is_a_doubt() {
    check_doubts(
        "net leaf: l0 a\npower pdu: p a b",
        "a\nb",
        "b: the map has no place for it in \"net\"",
    );
    check_doubts("", "a\nb", "");
}

// ---- a new map

fn cluster(operator: &str, joined: &str) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.topology = map(operator);
    for inventory in nodes(joined) {
        let node = Node::new(inventory.clone(), SessionId(1), UnixMillis(0));
        cluster.nodes.insert(inventory.node, node);
    }
    cluster
}

fn load(cluster: &Cluster, new: &str, allow: &Allow) -> String {
    match check_map(cluster, map(new), allow) {
        Ok((change, events)) => {
            assert_eq!(change.changed, events.len() == 1);
            let names = |word: &str, nodes: &[NodeId]| {
                let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
                if names.is_empty() {
                    String::new()
                } else {
                    format!(" {word} {}", names.join(" "))
                }
            };
            let mut said = if change.changed { "taken" } else { "same" }.to_owned();
            said += &names("added", &change.added);
            said += &names("moved", &change.moved);
            said += &names("dropped", &change.dropped);
            said += &names("unknown", &change.unknown);
            said
        }
        Err(problem) => {
            assert!(!problem.hint().is_empty());
            problem.to_string()
        }
    }
}

#[test]
fn a_map_moves_nodes_and_drops_none_unasked() {
    let old = "net block/leaf: b/l0 n0 n1; b/l1 n2 n3";
    let cluster = cluster(old, "n0\nn1\nn2");
    let drop = Allow { drop: true, ..Allow::default() };
    let unplaced = Allow { unplaced: BTreeSet::from([id("n2")]), ..Allow::default() };
    let strict = Allow::default();
    for (new, allow, want) in [
        (old, &strict, "same unknown n3"),
        ("net block/leaf: b/l0 n0 n1 n2", &strict, "taken moved n2"),
        ("net block/leaf: c/l0 n0 n1 n2; c/l1 n3", &strict, "taken moved n0 n1 n2 unknown n3"),
        (
            "net block/leaf: b/l0 n0 n1",
            &strict,
            "the map drops n2 out of level \"block\" and level \"leaf\"",
        ),
        ("net block/leaf: b/l0 n0 n1", &drop, "taken dropped n2"),
        ("net block/leaf: b/l0 n0 n1", &unplaced, "taken dropped n2"),
        (
            "net block/leaf: b/l0 n0",
            &unplaced,
            "the map drops n1 out of level \"block\" and level \"leaf\"",
        ),
        // A level that is gone is gone for all.
        (
            "net block/rack: b/l0 n0 n1 n2",
            &strict,
            "the map drops n0, n1, n2 out of level \"leaf\"",
        ),
        ("", &strict, "the map drops n0, n1, n2 out of level \"block\" and level \"leaf\""),
        // n3 was in the old map and never joined: it may stay and it may go.
        ("net block/leaf: b/l0 n0 n1 n2 n3", &strict, "taken moved n2 unknown n3"),
        ("net zone/block/leaf: z/b/l0 n0 n1; z/b/l1 n2", &strict, "taken added n0 n1 n2"),
        (
            "net block/leaf: b/l0 n0 n1 n2; b/l1 m0 m1",
            &strict,
            "the map names m0, m1, which never joined",
        ),
        (
            "net block/leaf: b/l0 n0 n1; c/l0 n2",
            &strict,
            "the map is broken: domain \"l0\" of \"net\" lies in \"b\" and in \"c\"",
        ),
    ] {
        assert_eq!(load(&cluster, new, allow), want, "{new}");
    }
    let unknown = Allow::from(true);
    assert_eq!(
        load(&cluster, "net block/leaf: b/l0 n0 n1 n2 m", &unknown),
        "taken moved n2 unknown m"
    );
}

#[test]
fn levels_that_labels_and_gpus_give_are_kept_as_well() {
    let cluster = cluster("", "a t0=l0 v=u.1\nb t0=l1 v=u.1");
    let strict = Allow::default();
    // The operator's own fabric takes the place of the labels', and b would lose its leaf.
    assert_eq!(load(&cluster, "net leaf: x a", &strict), "the map drops b out of level \"leaf\"");
    assert_eq!(load(&cluster, "net leaf: x a b", &strict), "taken moved a b");
    assert_eq!(load(&cluster, "net rack/leaf: r/x a b", &strict), "taken added a b moved a b");
    assert_eq!(load(&cluster, "power pdu: p a", &strict), "taken added a");
}

#[test]
fn whoever_joined_once_or_is_invited_is_known() {
    let mut cluster = cluster("", "a");
    cluster.now = UnixMillis(1_000);
    cluster.retired.insert(id("gone"));
    let token = |node: &str, expires| tessera_core::cluster::JoinToken {
        hash: String::new(),
        node: Some(id(node)),
        expires: UnixMillis(expires),
        used_by: None,
    };
    cluster.join_tokens.insert("1".into(), token("guest", 2_000));
    cluster.join_tokens.insert("2".into(), token("late", 500));
    assert_eq!(load(&cluster, "net leaf: l a gone guest", &Allow::default()), "taken added a");
    let late = check_map(&cluster, map("net leaf: l a late"), &Allow::default()).unwrap_err();
    assert_eq!(late, MapProblem::Unknown(vec![id("late")]));
    assert_eq!(late.nodes(), [id("late")]);
}

#[test]
fn marks_of_domains_that_are_gone_are_told_of() {
    let mut cluster = cluster("net leaf: l0 a", "a");
    let mark = DomainMark {
        level: "leaf".into(),
        domain: "l0".into(),
        health: 50,
        by: UserId::parse("ada").unwrap(),
        reason: "flaps".into(),
        until: None,
    };
    cluster.marks.insert("leaf/l0".into(), mark);
    let (change, _) = load_map(&cluster, map("net leaf: l1 a"), false).unwrap();
    assert_eq!(
        change.warnings,
        ["leaf \"l0\" is marked with 50 % of its bandwidth and is not in the map"]
    );
    let refusal = load_map(&cluster, map("net leaf: l1 b"), true).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_str()), (RefusalKind::Precondition, "map"));
}

/// Six nodes, most in the map, in random trees over one or two fabrics.
fn random_map() -> impl Strategy<Value = Topology> {
    let fabric = |name: &'static str, levels: &'static [&'static str]| {
        let leaf = prop::option::weighted(0.8, 0_u32..4);
        prop::collection::vec(leaf, 6).prop_map(move |leaves| {
            let mut fabric = Fabric {
                name: name.to_owned(),
                levels: levels.iter().map(|l| (*l).to_owned()).collect(),
                ..Fabric::default()
            };
            for (n, leaf) in leaves.iter().enumerate().filter_map(|(n, l)| Some((n, (*l)?))) {
                let path = match levels.len() {
                    1 => vec![format!("p{leaf}")],
                    _ => vec![format!("b{}", leaf / 2), format!("l{leaf}")],
                };
                fabric.nodes.insert(id(&format!("n{n}")), path);
            }
            fabric
        })
    };
    let net = prop_oneof![fabric("net", &["block", "leaf"]), fabric("net", &["leaf"])];
    (net, fabric("power", &["pdu"]), any::<bool>()).prop_map(|(net, power, both)| {
        let fabrics = [Some(net), both.then_some(power)].into_iter().flatten();
        Topology { fabrics: fabrics.filter(|f| !f.nodes.is_empty()).collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// A map that is taken again and again, with others in between that are taken or refused, leaves
    /// every node in exactly the levels of the last one that was taken; and nobody lost a level
    /// that was not given up.
    #[test]
    fn every_node_stands_where_the_last_accepted_map_puts_it(
        maps in prop::collection::vec((random_map(), any::<bool>(), 1_usize..3), 1..8),
    ) {
        let mut cluster = cluster("", "n0\nn1\nn2\nn3\nn4 v=u.1\nn5 v=u.1");
        let mut last = Topology::default();
        let mut clock = 0;
        for (new, drop, times) in maps {
            for time in 0..times {
                let before: Vec<BTreeSet<(String, String)>> = places(&cluster);
                let allow = Allow { drop, ..Allow::default() };
                match check_map(&cluster, new.clone(), &allow) {
                    Ok((change, events)) => {
                        prop_assert_eq!(events.is_empty(), last == new);
                        prop_assert!(time == 0 || events.is_empty(), "the second time is no event");
                        for event in events {
                            clock += 1;
                            cluster.apply(&Stamped { at: UnixMillis(clock), event });
                        }
                        last = new.clone();
                        for (n, (old, now)) in before.iter().zip(places(&cluster)).enumerate() {
                            let lost = old.iter().any(|(l, _)| !now.iter().any(|(m, _)| m == l));
                            let node = id(&format!("n{n}"));
                            prop_assert!(!lost || drop, "{node} lost a level");
                            prop_assert_eq!(lost, change.dropped.contains(&node));
                        }
                    }
                    Err(problem) => {
                        prop_assert!(!drop);
                        prop_assert!(!problem.nodes().is_empty());
                        prop_assert_eq!(&before, &places(&cluster));
                    }
                }
                prop_assert_eq!(&cluster.topology, &last);
                let inventories = cluster.nodes.values().map(|n| &n.inventory);
                prop_assert_eq!(cluster.map(), &effective(&last, inventories));
                for fabric in &last.fabrics {
                    for n in 0..6 {
                        let node = id(&format!("n{n}"));
                        let whole = effective(&cluster.topology, cluster.nodes.values().map(|n| &n.inventory));
                        let there: Vec<&str> = whole.domains_of(&node)
                            .filter(|(level, _)| fabric.levels.iter().any(|l| l == level))
                            .map(|(_, domain)| domain)
                            .collect();
                        let said: Vec<&str> = fabric.nodes.get(&node).into_iter().flatten().map(String::as_str).collect();
                        prop_assert_eq!(there, said);
                    }
                }
            }
        }
    }

    /// Whatever nodes say of themselves, the map that comes of it is sound, and says the same in
    /// whatever order they came.
    #[test]
    fn derived_maps_are_sound_in_any_order(
        words in prop::collection::vec(
            prop::collection::vec((0_usize..12, 0_u32..3), 0..6), 0..8
        ),
        turn in 0_usize..8,
    ) {
        let keys = ["t0", "t1", "t2", "leaf", "spine", "aws1", "aws2", "block", "subblock", "host", "zone", "clique"];
        let text: Vec<String> = words.iter().enumerate().map(|(n, labels)| {
            let labels: BTreeMap<&str, u32> = labels.iter().map(|(k, v)| (keys[*k], *v)).collect();
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=x{v}")).collect();
            format!("n{n} {}", labels.join(" "))
        }).collect();
        let mut inventories = nodes(&text.join("\n"));
        let whole = effective(&Topology::default(), inventories.iter());
        prop_assert_eq!(flaw(&whole), None);
        let labels = |n: &[NodeInventory]| from_labels(n.iter().map(|n| (&n.node, &n.labels)));
        let derived = labels(&inventories);
        let at = turn.min(inventories.len());
        inventories.rotate_left(at);
        prop_assert_eq!(labels(&inventories), derived);
        prop_assert_eq!(effective(&Topology::default(), inventories.iter()), whole);
    }
}

/// Levels and domains of n0 to n5 under the map in force.
fn places(cluster: &Cluster) -> Vec<BTreeSet<(String, String)>> {
    let whole = effective(&cluster.topology, cluster.nodes.values().map(|n| &n.inventory));
    let of = |n: usize| {
        let node = id(&format!("n{n}"));
        whole.domains_of(&node).map(|(l, d)| (l.to_owned(), d.to_owned())).collect()
    };
    (0..6).map(of).collect()
}

#[test]
fn the_event_is_the_map() {
    let cluster = cluster("", "a");
    let new = map("net leaf: l a");
    let (_, events) = load_map(&cluster, new.clone(), false).unwrap();
    assert_eq!(events, [Event::TopologyLoaded { topology: new }]);
}
