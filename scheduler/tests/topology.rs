//! Maps as files give them: a file in, the fabrics out, or the line that is wrong.

use std::path::PathBuf;

use tessera_model::NodeId;
use tessera_scheduler::topology::{Loaded, TopologyError, load, parse};

fn read(files: &[(&str, &str)]) -> Result<Loaded, TopologyError> {
    let texts: Vec<(PathBuf, String)> =
        files.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())).collect();
    parse(&texts)
}

/// `net block/leaf: b0/l0 n0 n1; b0/l1 n2`, a line for each fabric; errors as people see them.
fn picture(files: &[(&str, &str)]) -> String {
    let loaded = match read(files) {
        Ok(loaded) => loaded,
        Err(error) => return format!("{error}; {}", error.hint()),
    };
    let mut shown = Vec::new();
    for fabric in &loaded.map.fabrics {
        let mut leaves: Vec<(String, Vec<String>)> = Vec::new();
        for (node, path) in &fabric.nodes {
            let path = path.join("/");
            match leaves.iter_mut().find(|(p, _)| *p == path) {
                Some((_, nodes)) => nodes.push(node.to_string()),
                None => leaves.push((path, vec![node.to_string()])),
            }
        }
        let leaves: Vec<String> =
            leaves.into_iter().map(|(path, nodes)| format!("{path} {}", nodes.join(" "))).collect();
        let switches: Vec<String> = fabric
            .switches
            .iter()
            .map(|(leaf, names)| {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!(" [{leaf}: {}]", names.join(" "))
            })
            .collect();
        let levels = fabric.levels.join("/");
        shown.push(format!("{} {levels}: {}{}", fabric.name, leaves.join("; "), switches.concat()));
    }
    shown.extend(loaded.warnings.iter().map(|w| format!("warning {w}")));
    shown.join("\n")
}

/// `want` is the whole picture, or how it begins when it ends in `…`.
#[track_caller]
fn check(file: &str, text: &str, want: &str) {
    let got = picture(&[(file, text)]);
    let want: Vec<&str> = want.lines().map(str::trim).collect();
    let want = want.join("\n");
    match want.strip_suffix('…') {
        Some(begin) => assert!(got.starts_with(begin), "{text}\n got {got}\nwant {want}"),
        None => assert_eq!(got, want, "{text}"),
    }
}

#[test]
fn the_sample_maps_are_right() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/config");
    let loaded = load(&[folder.join("topology.toml")]).unwrap();
    let path = &loaded.map.fabrics[0].nodes[&NodeId::parse("gpu-a16").unwrap()];
    assert_eq!(path[..], ["block-a", "leaf-1"]);
    assert_eq!(loaded.map.fabrics[0].nodes.len(), 48);

    let loaded = load(&[folder.join("topology-fabrics.toml")]).unwrap();
    let names: Vec<&str> = loaded.map.fabrics.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["net", "power"]);
    assert!(loaded.map.fabrics[0].switches.contains_key("rail-group-1"));
    assert!(loaded.warnings.is_empty());
}

// ---- TOML

#[test]
fn the_short_form_is_the_fabric_net() {
    for (text, want) in [
        (
            "levels = ['block', 'leaf']\n[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n[0-1]','x']",
            "net block/leaf: b0/l0 n0 n1 x",
        ),
        (
            "levels = ['rack']\n[[rack]]\nname='r'\nnodes=['n[08-10,2]-ib']",
            "net rack: r n08-ib n09-ib n10-ib n2-ib",
        ),
        (
            "levels = ['zone','block','leaf']\n[[block]]\nname='b'\nzone='z'\n[[leaf]]\nname='l'\nblock='b'\nnodes=['a[1-2]b[3-4]']",
            "net zone/block/leaf: z/b/l a1b3 a1b4 a2b3 a2b4",
        ),
        (
            "levels = ['block', 'leaf']\n[[block]]\nname='b0'\n[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n']",
            "net block/leaf: b0/l0 n",
        ),
        (
            "levels = ['leaf']\nunplaced=['login']\n[[leaf]]\nname='l0'\nnodes=['n']\nswitches=['s1','s0']",
            "net leaf: l0 n [l0: s0 s1]",
        ),
    ] {
        check("t.toml", text, want);
    }
}

#[test]
fn the_long_form_has_several_fabrics() {
    let text = "
        unplaced = ['login-[1-2]']
        [[fabric]]
        name = 'net'
        levels = ['block', 'leaf']
        [[fabric.block]]
        name = 'b0'
        [[fabric.leaf]]
        name = 'l0'
        block = 'b0'
        nodes = ['n[0-3]']
        switches = ['sw-[0]']

        [[fabric]]
        name = 'power'
        levels = ['pdu']
        [[fabric.pdu]]
        name = 'p1'
        nodes = ['n[0,2]']
        [[fabric.pdu]]
        name = 'p2'
        nodes = ['n[1,3]']
        ";
    check(
        "t.toml",
        text,
        "net block/leaf: b0/l0 n0 n1 n2 n3 [l0: sw-[0]]
         power pdu: p1 n0 n2; p2 n1 n3",
    );
    let loaded = read(&[("t.toml", text)]).unwrap();
    assert!(!loaded.allow_unknown);
    assert_eq!(loaded.unplaced.len(), 2);
    assert_eq!(loaded.origins[&NodeId::parse("n3").unwrap()].to_string(), "t.toml:11");
    assert!(read(&[("t.toml", &format!("allow_unknown = true{text}"))]).unwrap().allow_unknown);
}

#[test]
fn an_empty_list_of_fabrics_is_no_map_on_purpose() {
    let loaded = read(&[("t.toml", "fabric = []  # none any more")]).unwrap();
    assert!(loaded.map.fabrics.is_empty());
}

#[test]
fn every_mistake_in_our_form_is_named_with_its_line() {
    let head = "levels = ['block', 'leaf']\n";
    let leaf = "[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n[0-3]']\n";
    let net = "[[fabric]]\nname='net'\nlevels=['leaf']\n[[fabric.leaf]]\nname='l0'\nnodes=['n']\n";
    let cases = [
        ("".to_owned(), "1: the file is empty"),
        ("# nothing\n\n".to_owned(), "1: the file is empty"),
        ("x = 1".to_owned(), "1: the levels are not named"),
        ("levels = 'x'".into(), "1: levels is not a list of names"),
        ("levels = []".into(), "1: levels is not a list of names"),
        ("levels = ['a', 'a']".into(), "1: level \"a\" is named twice"),
        ("levels = ['nodes']".into(), "1: \"nodes\" cannot be the name of a level"),
        ("levels = ['fabric']".into(), "1: \"fabric\" cannot be the name of a level"),
        ("levels = ['a b']".into(), "1: a level's name holds letters"),
        (head.into(), "1: there is no leaf, so no node has a place"),
        ("levels = ['a'\n\n[[b]]".into(), "3: "),
        (format!("{head}[[laef]]\nname='x'"), "2: \"laef\" is no level; did you mean `leaf`?"),
        (format!("{head}[[rack]]\nname='x'"), "2: \"rack\" is no level; add it to levels"),
        (format!("{head}leaf = 3"), "2: \"leaf\" is not a list of tables"),
        (
            format!("{head}[[leaf]]\nname='x'\nblok='b'"),
            "4: a leaf has no \"blok\"; did you mean `block`?",
        ),
        (
            format!("{head}[[leaf]]\nname='x'\nnodes=['n']"),
            "2: this leaf has no block; say in which block x lies",
        ),
        (
            format!("{head}[[leaf]]\nname=''\nblock='b'\nnodes=['n']"),
            "3: \"\" is no name for a leaf",
        ),
        (
            format!("{head}[[leaf]]\nname=3\nblock='b'\nnodes=['n']"),
            "3: \"\" is no name for a leaf",
        ),
        (format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=[]"), "5: leaf \"x\" has no nodes"),
        (format!("{head}[[leaf]]\nname='x'\nblock='b'"), "2: leaf \"x\" has no nodes"),
        (
            format!("{head}{leaf}[[leaf]]\nname='l1'\nblock='b0'\nnodes=['n3']"),
            "9: node n3 is in leaf \"l0\" and in \"l1\"; a node stands in one place, the first is in line 5",
        ),
        (
            format!("{head}[[leaf]]\nname='l'\nblock='b'\nnodes=['n1',\n'n[0-1]']"),
            "6: node n1 is listed twice in leaf \"l\"",
        ),
        (
            format!("{head}{leaf}[[leaf]]\nname='l0'\nblock='b1'\nnodes=['m']"),
            "6: leaf \"l0\" is torn: it lies in \"b0\" and in \"b1\"",
        ),
        (
            format!("{head}{leaf}[[leaf]]\nname='l0'\nblock='b0'\nnodes=['m']"),
            "6: leaf \"l0\" is described twice",
        ),
        (
            format!("{head}[[block]]\nname='b9'\n{leaf}"),
            "4: there is no block \"b0\"; did you mean `b9`?",
        ),
        (
            format!("{head}[[block]]\nname='b0'\n[[block]]\nname='b1'\n{leaf}"),
            "4: block \"b1\" is empty",
        ),
        (format!("{head}[[block]]\nname='b0'\nnodes=['n']\n{leaf}"), "4: a block has no \"nodes\""),
        (
            format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[3-1]']"),
            "5: \"n[3-1]\" has \"3-1\", which counts down",
        ),
        (
            format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[0-999999999]']"),
            "5: \"n[0-999999999]\" names more than",
        ),
        (
            format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['a b']"),
            "5: node \"a b\" may hold letters",
        ),
        (
            format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=[3]"),
            "5: nodes is not a list of texts",
        ),
        (format!("{head}{leaf}switches='s'"), "6: switches is not a list of texts"),
        ("fabric = 3".into(), "1: fabric is not a list of tables"),
        ("[[fabric]]\nlevels=['a']".into(), "1: this fabric has no name"),
        ("[[fabric]]\nname='a b'\nlevels=['a']".into(), "2: this is no name for a fabric"),
        ("[[fabric]]\nname='a'".into(), "1: the levels are not named"),
        (format!("levels=['x']\n{net}"), "2: the file has levels of its own and [[fabric]]"),
        (format!("lefel=1\n{net}"), "1: the file has no \"lefel\""),
        (
            format!(
                "{net}[[fabric]]\nname='p'\nlevels=['leaf']\n[[fabric.leaf]]\nname='l'\nnodes=['n']"
            ),
            "9: level \"leaf\" is one of fabric \"net\" already (t.toml:3); give one of the two another",
        ),
        (format!("{net}{}", net.replace("leaf", "rack")), "9: fabric \"net\" is described twice"),
        (format!("unplaced=['n']\n{net}"), "7: node n is unplaced and in fabric \"net\""),
        (format!("allow_unknown='yes'\n{net}"), "1: allow_unknown is neither true nor false"),
        (format!("unplaced='n'\n{net}"), "1: unplaced is not a list of texts"),
    ];
    for (text, want) in cases {
        check("t.toml", &text, &format!("t.toml:{want}…"));
    }
}

// ---- topology.conf

#[test]
fn a_tree_of_switches_becomes_levels() {
    check(
        "topology.conf",
        "# two spines under one core
         SwitchName=leaf1 Nodes=gpu[01-02] LinkSpeed=400
         switchname=leaf2 nodes=gpu03,gpu[04]
         SwitchName=leaf3 \\
             Nodes=gpu[05-06]   # goes on
         SwitchName=sp1 Switches=leaf[1-2]
         SWITCHNAME = sp2 SWITCHES = \"leaf3\"
         SwitchName=top Switches=sp[1-2]",
        "net core/spine/leaf: top/sp1/leaf1 gpu01 gpu02; top/sp1/leaf2 gpu03 gpu04; top/sp2/leaf3 gpu05 gpu06",
    );
    // Two trees that nothing joins, and five levels.
    check("map", "SwitchName=a Nodes=x\nSwitchName=b Nodes=y", "net leaf: a x; b y");
    check(
        "map",
        "SwitchName=e Switches=d\nSwitchName=d Switches=c\nSwitchName=c Switches=b\nSwitchName=b Switches=a\nSwitchName=a Nodes=x",
        "net tier_4/tier_3/core/spine/leaf: e/d/c/b/a x",
    );
}

#[test]
fn blocks_lie_beside_each_other_and_the_missing_one_keeps_its_place() {
    let rows = "BlockName=b1 Nodes=n[01-04]
        BlockName=b2 Nodes=n[05-08]
        BlockName=b3
        BlockName=b4 Nodes=n[13-15]
        BlockName=b5 Nodes=n[17-20]\n";
    check(
        "topology.conf",
        &format!("{rows}BlockSizes=4,8,16"),
        "net block_16/block_8/block: b1+/b1+/b1 n01 n02 n03 n04; b1+/b1+/b2 n05 n06 n07 n08; b1+/b3+/b4 n13 n14 n15; b5+/b5+/b5 n17 n18 n19 n20",
    );
    check("topology.conf", "BlockName=b Nodes=n1\nBlockName=a Nodes=n2", "net block: b n1; a n2");
    // Slurm would count b4 as the third: it is told of.
    check(
        "topology.conf",
        &format!("{}BlockSizes=4,8", rows.replace("BlockName=b3\n", "")),
        "net block_8/block: b1+/b1 n01 n02 n03 n04; b1+/b2 n05 n06 n07 n08; b4+/b4 n13 n14 n15; b4+/b5 n17 n18 n19 n20
         warning topology.conf:3: no block is numbered between \"b2\" and \"b4\": what follows takes its place in the wider blocks; give a block without nodes to keep it",
    );
}

#[test]
fn every_mistake_in_topology_conf_is_named_with_its_line() {
    let leaf = "SwitchName=l1 Nodes=n[1-2]\n";
    let cases = [
        ("# only words".to_owned(), "1: the file is empty"),
        ("LinkSpeed=3".to_owned(), "1: the line names neither switch nor block"),
        (
            format!("{leaf}SwichName=l2 Nodes=n3"),
            "2: topology.conf has no \"SwichName\"; did you mean `SwitchName`?",
        ),
        (format!("{leaf}SwitchName=l2 Nodes"), "2: Nodes has no = behind it"),
        (format!("{leaf}SwitchName=l2 Nodes="), "2: Nodes has no value"),
        (format!("{leaf}SwitchName=l2 Nodes=\"n3"), "2: Nodes has a quote that does not end"),
        (format!("{leaf}SwitchName=l2 Nodes=n3 nodes=n4"), "2: Nodes is there twice"),
        (format!("{leaf}SwitchName=l[2-3] Nodes=n3"), "2: \"l[2-3]\" is no single switch"),
        (format!("{leaf}SwitchName=l2 Nodes=ALL"), "2: Nodes=ALL names no node"),
        (
            format!("{leaf}SwitchName=l2 \\\n Nodes=n[4-3]"),
            "3: \"n[4-3]\" has \"4-3\", which counts down",
        ),
        (
            format!("{leaf}SwitchName=l2 Nodes=n[0-999999999]"),
            "2: \"n[0-999999999]\" names more than",
        ),
        (format!("{leaf}SwitchName=l2 BlockName=b"), "2: BlockName does not go with SwitchName"),
        (format!("{leaf}Include other.conf"), "2: other files are not included"),
        ("RingName=r Nodes=n[1-4]".into(), "1: rings have no levels"),
        (
            format!("{leaf}SwitchName=l2 Nodes=n2"),
            "2: node n2 is in leaf \"l1\" and in \"l2\"; a node stands in one place, the first is in line 1",
        ),
        (
            format!("{leaf}SwitchName=l1 Nodes=n3"),
            "2: switch \"l1\" is described twice; put it together with line 1",
        ),
        (
            format!("{leaf}SwitchName=s Switches=l1,l9"),
            "2: there is no switch \"l9\" to lie below \"s\"; did you mean `l1`?",
        ),
        (format!("{leaf}SwitchName=s"), "2: switch \"s\" has neither nodes nor switches"),
        (
            format!("{leaf}SwitchName=s Switches=l1 Nodes=n3"),
            "2: switch \"s\" has nodes and switches below it",
        ),
        (
            format!("{leaf}SwitchName=s Switches=l1\nSwitchName=t Switches=l1"),
            "3: switch \"l1\" is torn: it lies in \"s\" and in \"t\"",
        ),
        (
            format!("{leaf}SwitchName=s Switches=l1,l1"),
            "2: switch \"l1\" is listed twice below \"s\"",
        ),
        (
            format!(
                "{leaf}SwitchName=a Switches=b\nSwitchName=b Switches=c\nSwitchName=c Switches=a"
            ),
            "2: the switches go in a circle: a in c in b in a",
        ),
        (format!("{leaf}SwitchName=a Switches=a"), "2: the switches go in a circle: a in a"),
        (
            format!(
                "{leaf}SwitchName=l2 Nodes=n3\nSwitchName=l3 Nodes=n4\nSwitchName=s Switches=l[1-2]"
            ),
            "3: switch \"l3\" has 0 switches above it, most have 1; put a switch of its own in between for the missing level: SwitchName=l3-up Switches=l3",
        ),
        (format!("{leaf}BlockName=b Nodes=n3"), "2: the file has switches and blocks"),
        (format!("{leaf}BlockSizes=4"), "2: BlockSizes goes with BlockName"),
        ("BlockName=b Nodes=n1\nBlockSizes=4,12".into(), "2: block size 12 does not go with 4"),
        ("BlockName=b Nodes=n1\nBlockSizes=4,4".into(), "2: block size 4 does not go with 4"),
        ("BlockName=b Nodes=n1\nBlockSizes=0,4".into(), "2: a block size is 0"),
        ("BlockName=b Nodes=n1\nBlockSizes=4,x".into(), "2: block size \"x\" is no number"),
        ("BlockName=b Nodes=n1\nBlockSizes=4\nBlockSizes=8".into(), "3: BlockSizes is there twice"),
        ("BlockName=b Nodes=n1\nBlockName=b Nodes=n2".into(), "2: block \"b\" is described twice"),
        ("BlockName=b\nBlockSizes=4".into(), "1: fabric \"net\" has no nodes"),
    ];
    for (text, want) in cases {
        check("topology.conf", &text, &format!("topology.conf:{want}…"));
    }
}

// ---- topology.yaml

#[test]
fn topologies_of_one_yaml_are_fabrics_and_the_default_is_net() {
    let text = "\
- topology: whole
  tree:
    switches:
      - switch: root
        children: lf[1-2]
      - {switch: lf1, nodes: 'n[1-2]'}
      - switch: lf2
        nodes: [n3, 'n[4]']
- topology: racks
  cluster_default: True
  block:
    block_sizes:
      - 2
      - 4
    blocks:
      - block: r1
        nodes: n[1-2]
      - block: r2
        nodes: n[3-4]
- topology: none
  cluster_default: false
  flat: true
- topology: old
  ring:
    rings: []
";
    check(
        "topology.yaml",
        text,
        "net block_4/block: r1+/r1 n1 n2; r1+/r2 n3 n4
         whole whole_spine/whole_leaf: root/lf1 n1 n2; root/lf2 n3 n4
         warning topology.yaml:23: topology \"old\" is passed over: it has no levels",
    );
    // Without a default it is the first with levels.
    check(
        "any.yml",
        "---\n- topology: f\n  flat: yes\n- topology: t\n  tree:\n    switches:\n    - switch: s\n      nodes: n1\n",
        "net leaf: s n1",
    );
}

#[test]
fn every_mistake_in_topology_yaml_is_named_with_its_line() {
    let tree = |switches: &str| format!("- topology: t\n  tree:\n    switches:\n{switches}");
    let cases = [
        ("---\n".to_owned(), "1: the file is empty"),
        ("topology: t".into(), "1: the file is no list of topologies"),
        ("- 3".into(), "1: this is no topology"),
        ("- tree: {}".into(), "1: it has no topology"),
        ("- topology: t".into(), "1: topology \"t\" is neither tree nor block nor flat"),
        ("- topology: t\n  flat: true\n  tree: {}".into(), "3: topology \"t\" is flat and tree"),
        ("- topology: t\n  flat: maybe".into(), "2: this is neither true nor false"),
        ("- topology: t\n  flat: true".into(), "1: no topology here has levels"),
        ("- topology: a b\n  flat: true".into(), "1: \"a b\" is no name for a topology"),
        ("- topology: t\n  trea: {}".into(), "2: a topology has no \"trea\"; did you mean `tree`?"),
        ("- topology: t\n  tree: {}\n  tree: {}".into(), "3: \"tree\" is there twice"),
        ("- topology: t\n  tree:\n    switches: []".into(), "2: it has no switches"),
        (
            tree("    - switch: s\n      nods: n"),
            "5: a switch has no \"nods\"; did you mean `nodes`?",
        ),
        (tree("    - nodes: n"), "4: it has no switch"),
        (
            tree("    - switch: s\n      nodes: n[2-1]"),
            "5: \"n[2-1]\" has \"2-1\", which counts down",
        ),
        (
            tree("    - switch: s\n      nodes: n1\n    - switch: t\n      nodes: n1"),
            "6: node n1 is in leaf \"s\" and in \"t\"",
        ),
        (tree("    - switch: s\n      children: s"), "4: the switches go in a circle: s in s"),
        (tree("    - switch: s\n      nodes: &a n1"), "5: anchors and tags are not read here"),
        (tree("    - switch: s\n      nodes: *a"), "5: "),
        (tree("    - switch: s\n   nodes: x"), "5: "),
        (
            "- topology: t\n  block:\n    blocks: [{block: b, nodes: n}]\n    block_sizes: [4, 6]"
                .into(),
            "4: block size 6 does not go with 4",
        ),
        (
            "- topology: t\n  block:\n    blocks: [{block: b, nodes: n}]\n    block_sizes: four"
                .into(),
            "4: a block size is no number",
        ),
        (
            "- topology: t\n  flat: true\n---\n- topology: u\n  flat: true".into(),
            "3: the file has a second document",
        ),
        (
            format!(
                "{}\n{}",
                tree("    - {switch: s, nodes: n}"),
                tree("    - {switch: s, nodes: n}")
            ),
            "5: topology \"t\" is described twice",
        ),
        (
            format!(
                "{}\n- topology: net\n  tree: {{switches: [{{switch: s, nodes: n}}]}}",
                tree("    - {switch: s, nodes: n}")
            ),
            "5: topology \"net\" is not the default",
        ),
    ];
    for (text, want) in cases {
        check("topology.yaml", &text, &format!("topology.yaml:{want}…"));
    }
    let deep = format!("- topology: t\n  tree: {}", "[".repeat(200));
    check("topology.yaml", &deep, "topology.yaml:2: …");
}

// ---- topograph

/// Two NVL72 racks of 18 trays under one spine, and a rack of single nodes, as topograph has it.
fn nvl72() -> String {
    let mut instances = Vec::new();
    for rack in 1..=2 {
        for tray in 1..=18 {
            instances.push(format!(
                r#"    {{
      "id": "rack{rack}-tray{tray:02}",
      "network_layers": ["leaf-{rack}", "spine-1"],
      "labels": {{"accelerator.topograph.run/domain": "nvl-{rack}"}}
    }}"#
            ));
        }
    }
    instances.push(
        r#"    {"id": "i-0abc", "network_layers": ["leaf-9", "spine-1"],
     "labels": {"kubernetes.io/hostname": "plain-1", "nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0"}}"#
            .to_owned(),
    );
    format!("{{\n  \"instances\": [\n{}\n  ]\n}}\n", instances.join(",\n"))
}

#[test]
fn nvl72_racks_come_from_topograph_with_both_fabrics() {
    let loaded = read(&[("graph.json", &nvl72())]).unwrap();
    let [net, nvlink] = &loaded.map.fabrics[..] else { panic!("{:?}", loaded.map) };
    assert_eq!((net.name.as_str(), net.levels.join("/")), ("net", "spine/leaf".to_owned()));
    assert_eq!((nvlink.name.as_str(), nvlink.levels.join("/")), ("nvlink", "nvlink".to_owned()));
    assert_eq!((net.nodes.len(), nvlink.nodes.len()), (37, 36));
    let node = |name: &str| NodeId::parse(name).unwrap();
    assert_eq!(net.nodes[&node("rack2-tray18")], ["spine-1", "leaf-2"]);
    assert_eq!(nvlink.nodes[&node("rack2-tray18")], ["nvl-2"]);
    // The instance goes by its host's name, and zeros are no domain.
    assert_eq!(net.nodes[&node("plain-1")], ["spine-1", "leaf-9"]);
    assert!(!nvlink.nodes.contains_key(&node("plain-1")));
    assert_eq!(loaded.origins[&node("rack1-tray02")].line, 8);
}

#[test]
fn layers_or_domains_alone_are_enough() {
    check(
        "g.json",
        r#"{"instances":[{"id":"a","network_layers":null,"attributes":{"nvlink":"v"}},{"id":"b","network_layers":[],"labels":null}]}"#,
        "nvlink nvlink: v a",
    );
    check(
        "g",
        r#"{"instances":[{"id":"a","type":"H100","network_layers":["l","s","c","x"]}]}"#,
        "net tier_3/core/spine/leaf: x/c/s/l a",
    );
}

#[test]
fn every_mistake_in_topograph_json_is_named_with_its_line() {
    let file = |instances: &str| format!("{{\n\"instances\": [\n{instances}\n]}}");
    let cases = [
        ("{".to_owned(), "1: EOF while parsing"),
        ("{\n\"instances\": [\n{]}".into(), "3: "),
        ("{}".into(), "1: missing field `instances`"),
        (file(""), "1: there is no instance"),
        (file("{\"id\": \"a\"}"), "1: no instance has network layers"),
        (file("{\"id\": \"a\",\n\"network_layers\": 3}"), "4: invalid type: integer `3`"),
        (file("{\"network_layers\": [\"l\"]}"), "3: missing field `id`"),
        (
            file("{\"id\": \"a b\", \"network_layers\": [\"l\"]}"),
            "3: node \"a b\" may hold letters",
        ),
        (
            file("{\"id\": \"a\", \"network_layers\": [\"\"]}"),
            "3: \"\" is no name for a network layer",
        ),
        (
            file(
                "{\"id\":\"a\",\"network_layers\":[\"l\",\"s\"]},\n{\"id\":\"b\",\"network_layers\":[\"l\",\"s\"]},\n{\"id\":\"c\",\"network_layers\":[\"l\"]}",
            ),
            "5: instance \"c\" has 1 network layers, most have 2; give it the layers",
        ),
        (
            file(
                "{\"id\":\"a\",\"network_layers\":[\"l\",\"s\"]},\n{\"id\":\"b\",\"network_layers\":[\"l\",\"t\"]}",
            ),
            "4: leaf \"l\" is torn: it lies in \"s\" and in \"t\"",
        ),
        (
            file(
                "{\"id\":\"a\",\"network_layers\":[\"l\"]},\n{\"id\":\"a\",\"network_layers\":[\"m\"]}",
            ),
            "4: node a is in leaf \"l\" and in \"m\"",
        ),
    ];
    for (text, want) in cases {
        check("g.json", &text, &format!("g.json:{want}…"));
    }
}

// ---- several files

#[test]
fn each_file_adds_its_fabrics_and_replaces_those_of_the_same_name() {
    let ours = ("a.toml", "levels=['leaf']\n[[leaf]]\nname='l'\nnodes=['n[1-2]']");
    let power = (
        "p.toml",
        "[[fabric]]\nname='power'\nlevels=['pdu']\n[[fabric.pdu]]\nname='p'\nnodes=['n1']",
    );
    let newer = ("b.conf", "SwitchName=m Nodes=n[1-3]");
    assert_eq!(picture(&[ours, power]), "net leaf: l n1 n2\npower pdu: p n1");
    assert_eq!(picture(&[ours, power, newer]), "net leaf: m n1 n2 n3\npower pdu: p n1");
    let loaded = read(&[ours, power, newer]).unwrap();
    assert_eq!(loaded.origins[&NodeId::parse("n1").unwrap()].to_string(), "b.conf:1");

    let clash = (
        "c.toml",
        "[[fabric]]\nname='x'\nlevels=['leaf']\n[[fabric.leaf]]\nname='p'\nnodes=['n1']",
    );
    let got = picture(&[ours, clash]);
    assert!(
        got.starts_with("c.toml:3: level \"leaf\" is one of fabric \"net\" already (a.toml:1)"),
        "{got}"
    );

    // What one file leaves out, another may place.
    let out = ("o.toml", "unplaced=['n1','n9']\nlevels=['rack']\n[[rack]]\nname='r'\nnodes=['n2']");
    let left = read(&[out, power]).unwrap().unplaced;
    assert_eq!(left.into_iter().map(|n| n.to_string()).collect::<Vec<_>>(), ["n9"]);
}

#[test]
fn the_yaml_of_a_folder_goes_before_its_conf() {
    let conf = ("/etc/slurm/topology.conf", "this is not even read");
    let yaml =
        ("/etc/slurm/topology.yaml", "- topology: t\n  tree: {switches: [{switch: s, nodes: n1}]}");
    for files in [[conf, yaml], [yaml, conf]] {
        let got = picture(&files);
        assert!(
            got.starts_with("net leaf: s n1\nwarning /etc/slurm/topology.conf: not read"),
            "{got}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topology.conf");
    std::fs::write(&path, "SwitchName=s Nodes=n1").unwrap();
    assert!(load(std::slice::from_ref(&path)).unwrap().warnings.is_empty());
    std::fs::write(dir.path().join("topology.yaml"), yaml.1).unwrap();
    let warnings = load(&[path]).unwrap().warnings;
    assert!(warnings[0].contains("Slurm itself reads"), "{warnings:?}");
}

#[test]
fn an_unreadable_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = load(&[dir.path().join("none.toml")]).unwrap_err();
    assert!(error.to_string().contains("none.toml"), "{error}");
    let path = dir.path().join("t.toml");
    std::fs::write(&path, "levels = ['a']\n[[b]]\nname='x'").unwrap();
    let error = load(&[path]).unwrap_err();
    assert!(error.to_string().contains("t.toml:2: \"b\" is no level"), "{error}");
}

#[test]
fn a_long_chain_and_a_large_map_are_read_in_one_go() {
    // A chain of switches that ends in a circle, and a map of 100,000 nodes on as many lines.
    let chain: String =
        (0..50_000).map(|n| format!("SwitchName=s{n} Switches=s{}\n", (n + 1) % 50_000)).collect();
    let got = picture(&[("topology.conf", &chain)]);
    assert!(got.contains("the switches go in a circle: s0 in … (50000 switches) in s0"), "{got}");
    let wide: String = (0..100_000).map(|n| format!("SwitchName=s{n} Nodes=n{n}\n")).collect();
    let loaded = read(&[("topology.conf", &wide)]).unwrap();
    assert_eq!(loaded.origins[&NodeId::parse("n99999").unwrap()].line, 100_000);
}

/// Good files with bytes taken out, doubled and exchanged: each is read or refused with a line that
/// it has, and what is read is a sound map.
#[test]
fn garbled_files_are_read_or_refused_with_a_line_they_have() {
    let ours = include_str!("../../deploy/config/topology-fabrics.toml");
    let conf = "SwitchName=l1 Nodes=n[1-2] # x\nSwitchName=l2 \\\n Nodes=\"n3\"\nSwitchName=s Switches=l[1-2]\n";
    let rows = "BlockName=b1 Nodes=n[1-2]\nBlockName=b2\nBlockSizes=2,4\n";
    let yaml = "- topology: a\n  cluster_default: true\n  tree:\n    switches:\n    - switch: s\n      nodes: n[1-2]\n- topology: b\n  flat: true\n";
    let json = nvl72();
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let (mut taken, mut refused) = (0, 0);
    for round in 0..3_000 {
        let (name, good) = [
            ("t.toml", ours),
            ("topology.conf", conf),
            ("topology.conf", rows),
            ("topology.yaml", yaml),
            ("g.json", &json),
        ][round % 5];
        let mut bytes = good.as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, bytes[at]),
                2 => bytes[at] = b"[]{}=-,\"\\# \n:&*019"[random(18)],
                _ => bytes.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match read(&[(name, &text)]) {
            Ok(loaded) => {
                taken += 1;
                assert_eq!(tessera_core::topology::flaw(&loaded.map), None, "{text}");
            }
            Err(error) => {
                refused += 1;
                let TopologyError::Wrong { line, problem, hint, .. } = &error else { panic!() };
                let lines = text.lines().count() + 1;
                assert!((1..=lines).contains(line), "{error}: {text}");
                assert!(!problem.is_empty() && !hint.is_empty(), "{error}: {text}");
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}
