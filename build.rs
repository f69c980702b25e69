//! Rebuilds when a manifest is added to `tools/`: the files there are compiled in, but a new one changes no known file.

fn main() {
    println!("cargo::rerun-if-changed=tools");
}
