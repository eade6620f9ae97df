//! The command itself, as a process: exit codes, where words go, and what a script can rely on.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command, alone in the world: no settings, no dev cluster, no home.
fn tessera(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.args(args).env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home);
    command.stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = tessera(home, args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn who_cannot_be_asked_gives_no_answer() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["queue"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with("error: no settings"), "{err}");
    assert!(err.contains("\nhint: start a cluster with `tessera dev`"), "{err}");
    assert!(!err.contains('\x1b'), "no colour in a pipe: {err:?}");

    let (code, out, err) = run(home.path(), &["queue", "--json"]);
    assert_eq!((code, err.as_str()), (2, ""));
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["error"]["kind"], "settings");
    assert!(value["error"]["hint"].as_str().unwrap().contains("tessera dev"));

    let (code, _, err) = run(home.path(), &["queue", "--config", "no/such.toml"]);
    assert_eq!(code, 2);
    assert!(err.contains("no/such.toml"), "{err}");
}

#[test]
fn nobody_there_is_told_with_the_address() {
    let home = tempfile::tempdir().unwrap();
    // A port that was free a moment ago and is nobody's now.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let pem = "-----BEGIN CERTIFICATE-----\n\
        MIIBhTCCASugAwIBAgIQIRi6zePL6mKjOipn+dNuaTAKBggqhkjOPQQDAjASMRAw\n\
        DgYDVQQKEwdBY21lIENvMB4XDTE3MTAyMDE5NDMwNloXDTE4MTAyMDE5NDMwNlow\n\
        EjEQMA4GA1UEChMHQWNtZSBDbzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABD0d\n\
        7VNhbWvZLWPuj/RtHFjvtJBEwOkhbN/BnnE8rnZR8+sbwnc/KhCk3FhnpHZnQz7B\n\
        5aETbbIgmuvewdjvSBSjYzBhMA4GA1UdDwEB/wQEAwICpDATBgNVHSUEDDAKBggr\n\
        BgEFBQcDATAPBgNVHRMBAf8EBTADAQH/MCkGA1UdEQQiMCCCDmxvY2FsaG9zdDo1\n\
        NDUzgg4xMjcuMC4wLjE6NTQ1MzAKBggqhkjOPQQDAgNIADBFAiEA2zpJEPQyz6/l\n\
        Wf86aX6PepsntZv2GYlA5UpabfT2EZICICpJ5h/iI+i341gBmLiAFQOyTDT+/wQc\n\
        6MF9+Yw1Yy0t\n-----END CERTIFICATE-----\n";
    let settings = home.path().join("client.toml");
    let text = format!(
        "server = \"https://127.0.0.1:{port}\"\nca = \"\"\"\n{pem}\"\"\"\ntoken = \"tsr_x\"\n"
    );
    std::fs::write(&settings, text).unwrap();
    let (code, out, err) = run(home.path(), &["queue", "--config", settings.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains(&format!("https://127.0.0.1:{port}")), "{err}");
    assert!(err.contains("hint: "), "{err}");
}

#[test]
fn bad_usage_is_2_and_names_the_nearest_word() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["quue"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("queue"), "{err}");
    let (code, _, err) = run(home.path(), &["submit", "--nmae", "x", "run.sh"]);
    assert_eq!(code, 2);
    assert!(err.contains("--name"), "{err}");
}

#[test]
fn help_is_an_answer_and_teaches() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["submit", "--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for word in ["tessera submit -N 2 -G 8", "version = 1", "--idempotency-key"] {
        assert!(out.contains(word), "{word} is not in\n{out}");
    }
    let (code, out, _) = run(home.path(), &["--version"]);
    assert_eq!(code, 0);
    assert_eq!(out, format!("tessera {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_made_without_a_cluster() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(home.path(), &["completions", shell]);
        assert_eq!(code, 0, "{shell}");
        assert!(out.contains("uncordon"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut command = tessera(home.path(), &["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It finds its pipe closed at the latest when this is more than the pipe holds; at once, here.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
