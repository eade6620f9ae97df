use super::*;

fn boot(name: &str) -> BootId {
    BootId::parse(name).unwrap()
}

/// 20 bytes of content, so 36 on disk.
fn record(sequence: u64) -> Vec<u8> {
    format!("sample {sequence:013}").into_bytes()
}

fn fill(spool: &mut Spool, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        spool.append(sequence, &record(sequence)).unwrap();
    }
}

/// What comes out, all of it, as text: `boot 1 2 (3+2) 5`; a gap stands before what follows it.
fn drain(spool: &mut Spool) -> String {
    let mut out = String::new();
    let mut sent: Option<(BootId, u64)> = None;
    while let Some(batch) = spool.next(sent.as_ref().map(|(b, n)| (b, *n)), 50).unwrap() {
        if sent.as_ref().is_none_or(|(boot, _)| *boot != batch.boot) {
            out.push_str(&format!("{} ", batch.boot));
        }
        let mut gaps = batch.gaps.iter().peekable();
        for (sequence, bytes) in &batch.records {
            while let Some(gap) = gaps.next_if(|gap| gap.first < *sequence) {
                out.push_str(&format!("({}+{}) ", gap.first, gap.count));
            }
            assert_eq!(*bytes, record(*sequence));
            out.push_str(&format!("{sequence} "));
        }
        for gap in gaps {
            out.push_str(&format!("({}+{}) ", gap.first, gap.count));
        }
        sent = Some((batch.boot, batch.last));
    }
    out.trim_end().to_owned()
}

#[test]
fn what_is_not_acknowledged_comes_out_again_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 100).unwrap();
    assert_eq!(spool.next_sequence(), 1);
    fill(&mut spool, 1..=7);
    assert_eq!(drain(&mut spool), "b1 1 2 3 4 5 6 7");
    spool.ack(&boot("b1"), 4).unwrap();
    assert_eq!(drain(&mut spool), "b1 5 6 7");
    assert_eq!(spool.waiting(), 3);
    drop(spool);

    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 100).unwrap();
    assert_eq!(drain(&mut spool), "b1 5 6 7");
    spool.ack(&boot("b1"), 7).unwrap();
    assert_eq!((drain(&mut spool).as_str(), spool.bytes()), ("", 0));
    drop(spool);

    // All is gone from the disk, and still no number is given out twice.
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 100).unwrap();
    assert_eq!(spool.next_sequence(), 8);
    assert!(spool.append(7, b"again").is_err());
    fill(&mut spool, [8]);
    assert_eq!(drain(&mut spool), "b1 8");
}

#[test]
fn samples_that_never_came_are_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 100).unwrap();
    fill(&mut spool, [3, 4, 9, 10, 20]);
    assert_eq!(drain(&mut spool), "b1 (1+2) 3 4 (5+4) 9 10 (11+9) 20");
    spool.ack(&boot("b1"), 6).unwrap();
    assert_eq!(drain(&mut spool), "b1 (7+2) 9 10 (11+9) 20");
}

#[test]
fn a_full_spool_drops_its_oldest_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    // A segment takes 3 records of 36 bytes before it is closed; there is room for about 3 segments.
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 330, 100).unwrap();
    for sequence in 1..=30 {
        fill(&mut spool, [sequence]);
        assert!(spool.bytes() <= 330, "{} bytes after {sequence}", spool.bytes());
    }
    assert_eq!(drain(&mut spool), "b1 (1+21) 22 23 24 25 26 27 28 29 30");
}

#[test]
fn a_torn_end_loses_the_torn_record_only() {
    for (name, spoil) in [("cut", 5_i64), ("cut to the head", 30), ("a wrong byte", -1)] {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), &boot("b1"), CAPACITY).unwrap();
        fill(&mut spool, 1..=3);
        let file = fs::read_dir(&spool.boots[0].dir).unwrap().next().unwrap().unwrap().path();
        drop(spool);
        let mut bytes = fs::read(&file).unwrap();
        match usize::try_from(spoil) {
            Ok(cut) => bytes.truncate(bytes.len() - cut),
            Err(_) => *bytes.last_mut().unwrap() ^= 0x40,
        }
        fs::write(&file, bytes).unwrap();
        let mut spool = Spool::open(dir.path(), &boot("b1"), CAPACITY).unwrap();
        assert_eq!(drain(&mut spool), "b1 1 2", "{name}");
        fill(&mut spool, [5]);
        assert_eq!(drain(&mut spool), "b1 1 2 (3+2) 5", "{name}");
    }
}

#[test]
fn an_earlier_boot_is_sent_first_and_then_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), &boot("b1"), CAPACITY).unwrap();
    fill(&mut spool, 1..=2);
    drop(spool);
    let mut spool = Spool::open(dir.path(), &boot("a2"), CAPACITY).unwrap();
    assert_eq!(spool.next_sequence(), 1);
    fill(&mut spool, 1..=2);
    assert_eq!(drain(&mut spool), "b1 1 2 a2 1 2");
    spool.ack(&boot("b1"), 2).unwrap();
    assert_eq!(drain(&mut spool), "a2 1 2");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // An acknowledgement for a boot that is gone changes nothing.
    spool.ack(&boot("b1"), 9).unwrap();
    assert_eq!(drain(&mut spool), "a2 1 2");
}

#[test]
fn an_earlier_boot_gives_way_before_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 250, 100).unwrap();
    fill(&mut spool, 1..=3);
    drop(spool);
    let mut spool = Spool::with_segments(dir.path(), &boot("b2"), 250, 100).unwrap();
    fill(&mut spool, 1..=6);
    assert_eq!(drain(&mut spool), "b1 (1+3) b2 1 2 3 4 5 6");
    drop(spool);
    // That they are gone is known after a restart as well.
    let mut spool = Spool::with_segments(dir.path(), &boot("b2"), 250, 100).unwrap();
    assert_eq!(drain(&mut spool), "b1 (1+3) b2 1 2 3 4 5 6");
}

#[test]
fn rubbish_in_the_folder_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("note.txt"), "hello").unwrap();
    let mut spool = Spool::open(dir.path(), &boot("b1"), CAPACITY).unwrap();
    fill(&mut spool, [1]);
    fs::write(spool.boots[0].dir.join("state"), "torn").unwrap();
    fs::write(spool.boots[0].dir.join("00000000000000000009.samples"), [0xff; 40]).unwrap();
    drop(spool);
    let mut spool = Spool::open(dir.path(), &boot("b1"), CAPACITY).unwrap();
    assert_eq!(drain(&mut spool), "b1 1");
}

#[test]
fn a_full_disk_keeps_the_newest_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 36).unwrap();
    fill(&mut spool, [1]);
    // The next segment cannot be made.
    let home = spool.boots[0].dir.clone();
    fs::rename(&home, dir.path().join("away")).unwrap();
    for sequence in 2..=4 {
        assert!(spool.append(sequence, &record(sequence)).is_err());
    }
    assert_eq!(drain(&mut spool), "b1 1 2 3 4");
    let more = u64::try_from(MEMORY).unwrap();
    for sequence in 5..=more + 3 {
        assert!(spool.append(sequence, &record(sequence)).is_err());
    }
    let out = drain(&mut spool);
    assert!(out.starts_with("b1 1 (2+2) 4 5"), "{}", &out[..30]);
    fs::rename(dir.path().join("away"), &home).unwrap();
    // Once memory is empty the disk is tried again.
    spool.ack(&boot("b1"), more + 3).unwrap();
    fill(&mut spool, [more + 4]);
    assert_eq!(spool.bytes(), 36);
}

#[test]
fn a_batch_is_bounded_in_number_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::with_segments(dir.path(), &boot("b1"), 1 << 20, 20_000).unwrap();
    fill(&mut spool, 1..=2500);
    let mut sizes = Vec::new();
    let mut last = 0;
    let b1 = boot("b1");
    while let Some(batch) = spool.next(Some((&b1, last)), usize::MAX).unwrap() {
        assert!(batch.gaps.is_empty(), "{:?} after {last}", batch.gaps);
        sizes.push(batch.records.len());
        last = batch.last;
    }
    assert_eq!((sizes.iter().sum::<usize>(), last), (2500, 2500));
    assert!(sizes.iter().all(|size| *size <= BATCH), "{sizes:?}");
}
