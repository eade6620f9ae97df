//! Compiles `tessera/v1/*.proto` with protox, so that nobody needs `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["jobs", "nodes", "agents", "usage", "admin"].map(|f| format!("tessera/v1/{f}.proto"));
    println!("cargo:rerun-if-changed=tessera");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("tessera.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".tessera.v1.LogChunk.data")
        .compile_fds(descriptors)?;
    Ok(())
}
