//! A manifest of a tool or a provider, from a folder that somebody else wrote: read, and compiled where it reads well.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use obo::catalog::{Provider, ProviderConfig, Tool, parse_provider_manifest, parse_tool_manifest};

static GOOGLE: LazyLock<Arc<Provider>> = LazyLock::new(|| {
    let manifest = parse_provider_manifest(include_str!("../../tools/google/provider.toml"));
    let manifest = manifest.unwrap_or_else(|problems| panic!("{problems:?}"));
    Arc::new(Provider::new(manifest, &ProviderConfig::default()).unwrap_or_else(|problem| panic!("{problem:?}")))
});

fuzz_target!(|text: &str| {
    if let Ok(manifest) = parse_tool_manifest(text) {
        let _ = Tool::new(manifest, Arc::clone(&GOOGLE));
    }
    if let Ok(manifest) = parse_provider_manifest(text) {
        let _ = Provider::new(manifest, &ProviderConfig::default());
    }
});
