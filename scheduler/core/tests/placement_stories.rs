//! Placement's common stories as pictures; its properties are in the files beside this one.

mod small;

use std::collections::{BTreeMap, BTreeSet};

use small::id;
use tessera_core::placement::space::{GpuView, Kind, Sketch};
use tessera_core::placement::{
    Chosen, NoFit, NodeSet, Request, Space, Taken, could_ever_fit, place,
};
use tessera_model::{
    JobSpec, LabelOp, LabelRule, Placement, Slice, Strength, Topology, WHOLE_GPU, Within,
};

/// A cluster as text, one line a node: name, `block/leaf` or `-`, GPUs as in `XX..|.... r`: `X`
/// busy, `.` free, `|` parts NUMA nodes, a gap parts NVLink groups.
fn cluster(picture: &str) -> Space {
    let (mut sketches, mut paths, mut busy) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for line in picture.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (name, rest) = line.split_once(' ').unwrap();
        let (path, gpus) = rest.trim().split_once(' ').unwrap();
        if let Some((block, leaf)) = path.split_once('/') {
            paths.insert(id(name), vec![block.to_owned(), format!("{block}/{leaf}")]);
        }
        let (mut views, mut held, mut numa, mut group) = (Vec::new(), 0u64, 0, 0);
        for c in gpus.trim().chars() {
            match c {
                '|' => numa += 1,
                ' ' => group += 1,
                _ => {
                    held |= u64::from(c == 'X') << views.len();
                    views.push(GpuView {
                        model: "nvidia h100".to_owned(),
                        numa: Some(numa),
                        nvlink_group: Some(group),
                        rail: Some(views.len() as u32),
                        mig: false,
                    });
                }
            }
        }
        busy.insert(id(name), held);
        let kind = Kind { gpus: views, cpus: 64, memory: 1 << 40 };
        sketches.push(Sketch { id: id(name), kind, labels: BTreeMap::new() });
    }
    let map = Topology::net(vec!["block".to_owned(), "leaf".to_owned()], paths);
    let mut space = Space::sketch(sketches, &map, &BTreeMap::new());
    for (id, gpus) in busy {
        let node = space.layout.index(&id).unwrap();
        space.take(&Taken { node, gpus, milli: WHOLE_GPU, cpus: 0, memory: 0 });
    }
    space
}

fn check(picture: &str, spec: &JobSpec, want: &str) {
    let space = cluster(picture);
    let avoid = BTreeSet::new();
    let request = Request::new(&space, spec, &small::terms(spec, &avoid, &[]));
    let got = match place(&space, &request, &NodeSet::new(space.len()), None) {
        Ok(placed) => {
            let gpus = |mask: u64| {
                (0..64).filter(|i| mask >> i & 1 == 1).map(|i| i.to_string()).collect::<String>()
            };
            let place = |c: &Chosen| format!("{}:{}", space.id(c.node), gpus(c.gpus));
            placed.places.iter().map(place).collect::<Vec<_>>().join(" ")
        }
        Err(NoFit::Short { need, have, level, nearest, .. }) => {
            format!("{have} of {need} in {level:?}, nearest {nearest:?}").replace("Some", "")
        }
        Err(NoFit::Shape { what }) => what,
        Err(NoFit::NotFound { .. }) => "not found".to_owned(),
    };
    assert_eq!(got, want, "{picture}");
}

fn gang(nodes: u32, gpus: u32) -> JobSpec {
    small::job(small::gang(nodes, gpus), Placement::default())
}

fn within(mut spec: JobSpec, level: &str) -> JobSpec {
    let strength = Strength::Required;
    spec.placement.within.push(Within { level: level.to_owned(), strength });
    spec
}

#[test]
fn a_gang_stays_inside_one_nvlink_domain() {
    check("n0 b/l XX.. ....", &gang(1, 4), "n0:4567");
}

#[test]
fn the_tightest_leaf_is_taken() {
    let picture = "n0 b/l0 ..
                   n1 b/l0 ..
                   n2 b/l0 ..
                   n3 b/l1 ..
                   n4 b/l1 ..";
    check(picture, &gang(2, 2), "n3:01 n4:01");
}

#[test]
fn leaves_are_combined_so_that_the_fewest_nodes_stay_behind() {
    // Three leaves of 3, 4 and 2 hold five nodes in pairs; 3 and 2 leave nothing behind.
    let picture = "a0 b/l0 .
                   a1 b/l0 .
                   a2 b/l0 .
                   c0 b/l1 .
                   c1 b/l1 .
                   c2 b/l1 .
                   c3 b/l1 .
                   e0 b/l2 .
                   e1 b/l2 .";
    check(picture, &gang(5, 1), "a0:0 a1:0 a2:0 e0:0 e1:0");
}

#[test]
fn a_started_node_is_filled_before_an_empty_one() {
    check("n0 b/l0 ....\nn1 b/l1 X...", &gang(1, 1), "n1:1");
}

#[test]
fn a_required_level_waits_and_says_which_domain_is_nearest() {
    let picture = "n0 b/l0 ..
                   n1 b/l1 ..
                   n2 b/l1 ..
                   n3 b/l1 X.";
    check(picture, &within(gang(3, 2), "leaf"), "2 of 3 in (\"leaf\"), nearest (\"b/l1\")");
}

#[test]
fn slices_stay_whole_where_the_gang_has_to_part() {
    let picture = "n0 b/l0 .
                   n1 b/l0 .
                   n2 b/l0 .
                   n3 b/l1 .
                   n4 b/l1 .
                   n5 b/l1 .";
    let (level, strength) = ("leaf".to_owned(), Strength::Required);
    let mut spec = gang(4, 1);
    spec.placement.slices = vec![Slice { nodes: 2, level, strength }];
    check(picture, &spec, "n0:0 n1:0 n3:0 n4:0");
    spec.gang.nodes = 6;
    let what =
        "there are enough nodes, but 6 nodes cannot be had in slices of 2 within one leaf each";
    check(picture, &spec, what);
}

#[test]
fn nodes_outside_the_map_are_taken_last_and_never_where_a_level_is_asked_for() {
    let picture = "n0 - .
                   n1 b/l0 .
                   n2 b/l0 .";
    check(picture, &gang(2, 1), "n1:0 n2:0");
    check(picture, &gang(3, 1), "n1:0 n2:0 n0:0");
    check(picture, &within(gang(3, 1), "block"), "2 of 3 in (\"block\"), nearest (\"b\")");
}

#[test]
fn jobs_without_gpus_leave_the_gpus_to_others() {
    check("n0 b/l ....\nn1 b/l XX..\nn2 b/l ....", &gang(1, 0), "n1:");
}

#[test]
fn shares_fill_a_shared_gpu_before_they_open_another() {
    let mut space = cluster("n0 b/l ..\nn1 b/l X.");
    let mut spec = gang(1, 1);
    spec.gang.gpu_milli = 300;
    let avoid = BTreeSet::new();
    let mut seen = Vec::new();
    for _ in 0..7 {
        let request = Request::new(&space, &spec, &small::terms(&spec, &avoid, &[]));
        let placed = place(&space, &request, &NodeSet::new(space.len()), None).unwrap();
        let chosen = placed.places[0];
        seen.push((space.id(chosen.node).to_string(), chosen.gpus));
        placed.taken(&spec).for_each(|t| space.take(&t));
    }
    let at = |name: &str, gpus| (name.to_owned(), gpus);
    let want = [at("n0", 1), at("n0", 1), at("n0", 1), at("n0", 2), at("n0", 2), at("n0", 2)];
    assert_eq!(seen[..6], want);
    assert_eq!(seen[6], at("n1", 2));
}

#[test]
fn what_could_never_fit_is_a_proof_in_words() {
    let space = cluster("n0 b/l0 XXXX\nn1 b/l1 XXXX");
    assert_eq!(could_ever_fit(&space, &gang(2, 4)), Ok(()), "busy is not never");
    let mut small_model = gang(1, 4);
    small_model.gang.gpu_model = Some("A100".to_owned());
    let mut labelled = gang(1, 1);
    let (key, op) = ("disk".to_owned(), LabelOp::Exists);
    labelled.placement.labels = vec![LabelRule { key, op, values: Vec::new() }];
    for (spec, want) in [
        (gang(3, 4), "it needs 3 nodes with 4 GPUs and 1 CPUs each, and the cluster has 2"),
        (
            within(gang(2, 4), "leaf"),
            "it needs 2 nodes with 4 GPUs and 1 CPUs each, and no leaf has more than 1 (b/l0)",
        ),
        (gang(1, 5), "it needs 1 node with 5 GPUs and 1 CPUs each, and the cluster has 0"),
        (small_model, "it needs 1 node with 4 A100 GPUs and 1 CPUs each, and the cluster has 0"),
        (labelled, "it needs 1 node with 1 GPU and 1 CPUs each, and the cluster has 0"),
        (within(gang(1, 1), "pod"), "no map has a level called pod"),
    ] {
        assert_eq!(could_ever_fit(&space, &spec), Err(want.to_owned()));
    }
}
