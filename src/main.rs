//! The `obo` program.
fn main() {}
