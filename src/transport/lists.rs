//! Tool lists that were written out: once for everybody who sees the same tools.
//!
//! Tools never change: a catalog that was read anew has new ones. So the very same tools make the very same list, and no
//! list is answered that another catalog, or another person's visibility, would make.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;

use crate::catalog::Tool;

/// The most lists that are kept: as many as there are kinds of visibility in use at one time.
const MAX_LISTS: usize = 16;

/// The lists, the one used last in front.
#[derive(Default)]
pub(super) struct Lists(Mutex<Vec<List>>);

struct List {
    /// Held, so that no other tool can come to stand at the same address.
    tools: Vec<Arc<Tool>>,
    written: Bytes,
}

impl Lists {
    /// The list of these tools; `write` makes it where there is none yet.
    pub(super) fn of(&self, tools: Vec<Arc<Tool>>, write: impl FnOnce(&[Arc<Tool>]) -> Option<Bytes>) -> Option<Bytes> {
        if let Some(written) = self.find(&tools) {
            return Some(written);
        }
        // Not under the lock: two callers may write the same list, and nobody waits for them.
        let written = write(&tools)?;
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.insert(0, List { tools, written: written.clone() });
        lists.truncate(MAX_LISTS);
        Some(written)
    }

    fn find(&self, tools: &[Arc<Tool>]) -> Option<Bytes> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |list: &List| {
            list.tools.len() == tools.len() && list.tools.iter().zip(tools).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        let at = lists.iter().position(same)?;
        lists[..=at].rotate_right(1);
        lists.first().map(|list| list.written.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalog::{Catalog, ProviderConfig, ToolsConfig};

    fn tools() -> Vec<Arc<Tool>> {
        let client = ProviderConfig { client_id: Some("x".to_owned()), ..Default::default() };
        let clients = BTreeMap::from([("slack".parse().unwrap(), client)]);
        Catalog::load(&ToolsConfig::default(), &clients).unwrap().tools().cloned().collect()
    }

    #[test]
    fn a_list_is_written_once_for_the_same_tools_and_anew_for_others() {
        let (lists, written) = (Lists::default(), Cell::new(0));
        let of = |tools: &[Arc<Tool>]| {
            let write = |tools: &[Arc<Tool>]| {
                written.set(written.get() + 1);
                let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
                Some(Bytes::from(names.join(" ")))
            };
            (lists.of(tools.to_vec(), write).unwrap(), written.get())
        };
        let (all, again) = (tools(), tools());
        let (first, count) = of(&all);
        assert_eq!((of(&all), count), ((first.clone(), 1), 1));
        // Others see less, or the same tools read anew.
        assert_ne!(of(&all[1..]).0, first);
        assert_eq!(of(&again), (first.clone(), 3));
        assert_eq!(of(&all), (first, 3));
        // What was not asked for the longest is forgotten.
        (0..MAX_LISTS).for_each(|_| drop(of(&tools())));
        assert_eq!(lists.0.lock().unwrap().len(), MAX_LISTS);
        let before = written.get();
        assert_eq!(of(&all).1, before + 1);
    }
}
