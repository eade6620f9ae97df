//! Gives the cdylib the file name real programs ask the loader for. In: nothing. Out: one linker argument.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
}
