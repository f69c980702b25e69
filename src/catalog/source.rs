//! Manifest files: those compiled in and those of folders, read and not yet understood.

use std::cell::OnceCell;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use serde_json::Value;

use super::finding::{Finding, Level, Problem};
use crate::id::ToolName;

/// The largest manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 256 * 1024;
/// The most manifests of one folder.
const MAX_MANIFESTS: usize = 2000;

/// The name of a provider's own manifest in its folder.
pub(super) const PROVIDER_FILE: &str = "provider.toml";

static BUILT_IN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/tools");

/// A manifest file, read or not.
pub(super) struct Source {
    /// For messages.
    pub file: String,
    /// The provider's id: the folder's name.
    pub folder: String,
    /// The file's name.
    pub name: String,
    /// Whether it is compiled in.
    pub built_in: bool,
    text: Result<String, Unusable>,
    /// What [`Source::claimed_name`] found: it is asked often, and reading the text takes long.
    claimed: OnceCell<Option<ToolName>>,
}

/// A file that is not read as a manifest.
struct Unusable {
    reason: String,
    mend: &'static str,
    /// What could be read of it. Whichever tool it was to be, that is not to be had from elsewhere.
    text: String,
}

impl Source {
    fn new(file: String, folder: String, name: String, built_in: bool, text: Result<String, Unusable>) -> Self {
        Self { file, folder, name, built_in, text, claimed: OnceCell::new() }
    }

    pub(super) fn problem(&self, finding: Finding) -> Problem {
        let finding = match &self.text {
            Ok(text) => finding.located(text),
            Err(_) => finding,
        };
        Problem::new(&self.file, finding)
    }

    pub(super) fn text(&self) -> Result<&str, Vec<Finding>> {
        self.text.as_deref().map_err(|unusable| vec![Finding::at("", unusable.reason.clone(), unusable.mend)])
    }

    /// The tool's name, as far as it can be told of a file that may be broken.
    pub(super) fn claimed_name(&self) -> Option<&ToolName> {
        self.claimed.get_or_init(|| self.look_for_name()).as_ref()
    }

    fn look_for_name(&self) -> Option<ToolName> {
        let text = match &self.text {
            Ok(text) => text,
            Err(unusable) => &unusable.text,
        };
        // Those compiled in begin with it.
        let name = if self.built_in { name_in_its_line(text) } else { None };
        let name = name.or_else(|| match toml::from_str::<Value>(text) {
            Ok(value) => Some(value.get("name")?.as_str()?.to_owned()),
            Err(_) => name_in_its_line(text),
        });
        name?.parse().ok()
    }
}

fn name_in_its_line(text: &str) -> Option<String> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.trim().strip_prefix("name")?.trim_start().strip_prefix('='))?;
    let part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let value = value.trim_start_matches([' ', '\t', '"', '\'']);
    Some(value.split(|c| !part(c)).next().unwrap_or_default().to_owned())
}

/// The manifests that are compiled in.
pub(super) fn built_in() -> Vec<Source> {
    let part =
        |path: Option<&std::ffi::OsStr>| path.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let mut sources = Vec::new();
    for folder in BUILT_IN.dirs() {
        for file in folder.files().filter(|file| file.path().extension().is_some_and(|e| e == "toml")) {
            let text = file.contents_utf8().map(str::to_owned).ok_or_else(not_utf8);
            sources.push(Source::new(
                format!("built-in:{}", file.path().display()),
                part(folder.path().file_name()),
                part(file.path().file_name()),
                true,
                text,
            ));
        }
    }
    sources
}

/// The manifests of an operator's folder, `DIR/<provider>/<tool>.toml`.
///
/// # Errors
/// The folder cannot be read, or has too many of them.
pub(super) fn read_dir(dir: &Path, sources: &mut Vec<Source>, problems: &mut Vec<Problem>) -> Result<(), String> {
    problems.extend(open_to_others(dir));
    let entries = list(dir)?;
    for file in entries.iter().filter(|path| path.is_file() && is_manifest(path)) {
        let mend = format!("move it into its provider's folder, such as {}", dir.join("google").display());
        let finding = Finding::at("", "a manifest stands in the folder itself".to_owned(), &mend);
        problems.push(Problem::new(&file.display().to_string(), finding));
    }
    let mut left = MAX_MANIFESTS;
    let owner = owner(dir);
    for folder in entries.iter().filter(|path| path.is_dir() && !name(path).starts_with('.')) {
        left = read_folder(folder, owner, left, sources, problems)
            .map_err(|error| error.unwrap_or_else(|| too_many(dir)))?;
    }
    Ok(())
}

/// The manifests of one provider's folder.
///
/// # Errors
/// As [`read_dir`].
pub(super) fn read_provider_dir(
    folder: &Path,
    sources: &mut Vec<Source>,
    problems: &mut Vec<Problem>,
) -> Result<(), String> {
    let read = read_folder(folder, owner(folder), MAX_MANIFESTS, sources, problems);
    read.map(|_| ()).map_err(|error| error.unwrap_or_else(|| too_many(folder)))
}

fn too_many(dir: &Path) -> String {
    format!("{} has more than {MAX_MANIFESTS} manifests: split the folder", dir.display())
}

/// How many more may be read afterwards. No error text: it has too many.
fn read_folder(
    folder: &Path,
    owner: Option<u32>,
    mut left: usize,
    sources: &mut Vec<Source>,
    problems: &mut Vec<Problem>,
) -> Result<usize, Option<String>> {
    problems.extend(open_to_others(folder));
    for file in list(folder)?.iter().filter(|path| is_manifest(path)) {
        left = left.checked_sub(1).ok_or(None)?;
        sources.push(Source::new(file.display().to_string(), name(folder), name(file), false, read(file, owner)));
    }
    Ok(left)
}

/// Whether a path is that of a manifest. Editors' lock and backup files (`.#x.toml`) are none.
pub(super) fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "toml") && !name(path).starts_with('.')
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a folder has in it, in the order of the names.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |e: std::io::Error| format!("{} cannot be read ({e}): name an existing folder", path.display());
    let mut paths = fs::read_dir(path)
        .map_err(unreadable)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(unreadable))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, owner: Option<u32>) -> Result<String, Unusable> {
    const READABLE: &str = "make it a readable text file";
    let unreadable = |e: std::io::Error| Unusable {
        reason: format!("it cannot be read ({e})"),
        mend: READABLE,
        text: String::new(),
    };
    // A named pipe would never be read to its end.
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let reason = "it is not a file".to_owned();
        return Err(Unusable { reason, mend: READABLE, text: String::new() });
    }
    let file = fs::File::open(path).map_err(unreadable)?;
    let strange = strange_writer(path, &file, owner).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if let Some((reason, mend)) = strange {
        return Err(Unusable { reason, mend, text });
    }
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        let reason = format!("it is larger than {} KiB", MAX_MANIFEST_BYTES / 1024);
        return Err(Unusable { reason, mend: "make it smaller", text });
    }
    String::from_utf8(bytes).map_err(|_| Unusable { text, ..not_utf8() })
}

fn not_utf8() -> Unusable {
    Unusable { reason: "it is not UTF-8".to_owned(), mend: "make it a readable text file", text: String::new() }
}

/// Why a file may be somebody else's words, and the mend.
///
/// A manifest says where people's tokens are sent to, so it must be the operator's: it, and a link that leads to it,
/// belong to whoever runs obo, to the superuser, or to the `owner` of the folder that obo.toml names, and not everybody
/// may write into it. What is looked at is the opened file, which cannot be exchanged in between.
#[cfg(unix)]
fn strange_writer(path: &Path, file: &fs::File, owner: Option<u32>) -> std::io::Result<Option<(String, &'static str)>> {
    use std::os::unix::fs::MetadataExt as _;
    let opened = file.metadata()?;
    let ours = |uid: u32| uid == 0 || Some(uid) == owner || uid == rustix::process::geteuid().as_raw();
    if opened.mode() & 0o002 != 0 {
        return Ok(Some(("everybody on this machine may write into it".to_owned(), "chmod o-w it")));
    }
    if !ours(opened.uid()) || !ours(fs::symlink_metadata(path)?.uid()) {
        let reason = "it belongs neither to the user that runs obo nor to the owner of the folder".to_owned();
        return Ok(Some((reason, "read what it says, then chown it to the user that runs obo")));
    }
    Ok(None)
}

/// Windows: the folder's access list decides.
#[cfg(not(unix))]
fn strange_writer(_: &Path, _: &fs::File, _: Option<u32>) -> std::io::Result<Option<(String, &'static str)>> {
    Ok(None)
}

#[cfg(unix)]
fn owner(dir: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(dir).ok().map(|meta| meta.uid())
}

#[cfg(not(unix))]
fn owner(_: &Path) -> Option<u32> {
    None
}

/// A warning about a folder that everybody may write into. What others put there is refused as theirs, so they cannot add a
/// tool; they can take files away. A warning only: read-only volumes are often shown with such a mode.
#[cfg(unix)]
fn open_to_others(folder: &Path) -> Option<Problem> {
    use std::os::unix::fs::MetadataExt as _;
    let open = fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o002 != 0);
    open.then(|| {
        let reason = "everybody on this machine may write into this folder".to_owned();
        let finding = Finding::at("", reason, "chmod o-w it, unless it is mounted read-only").weighing(Level::Warning);
        Problem::new(&folder.display().to_string(), finding)
    })
}

#[cfg(not(unix))]
fn open_to_others(_: &Path) -> Option<Problem> {
    None
}
