//! Query parameters, and lists in pages.

use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::Refusal;

/// How many items a page has where the query does not say.
pub(super) const DEFAULT_LIMIT: usize = 25;
/// How many items a page has at most; more are cut to it, as those clients expect.
pub(super) const MAX_LIMIT: usize = 100;
/// Longest query that is read, in bytes, and most parameters in one.
const MAX_QUERY_BYTES: usize = 4096;
const MAX_PARAMETERS: usize = 64;

/// The parameters of a query, in their order. Unknown ones do no harm.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let query = query.unwrap_or_default();
        let pairs: Vec<_> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().take(MAX_PARAMETERS + 1).collect();
        if query.len() > MAX_QUERY_BYTES || pairs.len() > MAX_PARAMETERS {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "the query is too long"));
        }
        Ok(Self(pairs))
    }

    /// The values of a parameter. Lists are sent as one value with commas, or as several, with `[]` behind the name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = move |key: &str| key == name || key.strip_suffix("[]") == Some(name);
        self.0.iter().filter(move |(key, _)| named(key)).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter, if it is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let wrong = || {
            let text = format!("{name} must be a whole number that is not negative");
            Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text)
        };
        self.get(name).map(|text| text.parse().map_err(|_| wrong())).transpose()
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    limit: usize,
    offset: usize,
}

impl Page {
    pub(super) fn of(query: &Parameters) -> Result<Self, Refusal> {
        let limit = query.number("limit")?.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
        Ok(Self { limit, offset: query.number("offset")?.unwrap_or(0) })
    }

    /// The items of the page.
    pub(super) fn cut<T>(self, all: &[T]) -> &[T] {
        let from = self.offset.min(all.len());
        &all[from..from.saturating_add(self.limit).min(all.len())]
    }

    /// The answer that has the page's items.
    pub(super) fn answer<T>(self, items: Vec<T>, total: usize) -> Paged<T> {
        Paged { limit: self.limit, offset: self.offset, page_count: items.len(), total_count: total, items }
    }
}

/// A part of a list.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub(super) struct Paged<T> {
    /// How many items a page has at most.
    limit: usize,
    /// How many items stand before it.
    offset: usize,
    /// How many items it has.
    page_count: usize,
    /// How many items the whole list has.
    total_count: usize,
    items: Vec<T>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_within_the_list() {
        let all: Vec<usize> = (0..130).collect();
        let page = |query: &str| Page::of(&Parameters::parse(Some(query)).unwrap()).map(|page| page.cut(&all).to_vec());
        assert_eq!(page("").unwrap().len(), 25);
        assert_eq!(page("limit=1000").unwrap().len(), 100);
        assert_eq!(page("limit=0").unwrap(), [0]);
        assert_eq!(page("offset=128").unwrap(), [128, 129]);
        assert_eq!(page("offset=18446744073709551615&limit=100").unwrap().len(), 0);
        for bad in ["limit=x", "limit=-1", "offset=1.5", "offset=18446744073709551616"] {
            assert!(page(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_come_in_either_form() {
        for query in ["f=a,b", "f=a&f=b", "f[]=a&f[]=b", "f%5B%5D=a&f=b"] {
            let parameters = Parameters::parse(Some(query)).unwrap();
            let values: Vec<&str> = parameters.all("f").flat_map(|value| value.split(',')).collect();
            assert_eq!(values, ["a", "b"], "{query}");
        }
        assert!(Parameters::parse(Some(&"a=b&".repeat(65))).is_err());
        assert!(Parameters::parse(Some(&"a".repeat(5000))).is_err());
    }
}
