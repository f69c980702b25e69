//! The data folder: nobody but its owner may look into it, and it must not be a network file system.

use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// A data folder that passed the checks.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder where there is none, and checks it and the files in it.
    pub(super) fn secure(path: &Path) -> Result<Self, StoreError> {
        let folder = Self::without_database(path)?;
        let database = folder.database();
        create_file(&database).map_err(|error| failed("make the file", &database, &error))?;
        check(&database, Kind::File)?;
        for path in folder.parts().into_iter().skip(1) {
            // They come and go with the last process that has the database open.
            match path.symlink_metadata() {
                Ok(found) => check_found(&path, &found, Kind::File)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", &path, &error)),
            }
        }
        Ok(folder)
    }

    /// The database file.
    pub(super) fn database(&self) -> PathBuf {
        self.0.join("obo.db")
    }

    /// The same, but for the files in it: they are not looked at, and not made.
    pub(super) fn without_database(path: &Path) -> Result<Self, StoreError> {
        let folder = Self(path.to_owned());
        create_private(path).map_err(|error| failed("make the data folder", path, &error))?;
        check(path, Kind::Folder)?;
        check_file_system(path)?;

        let locks = folder.locks();
        create_private(&locks).map_err(|error| failed("make the folder", &locks, &error))?;
        check(&locks, Kind::Folder)?;
        Ok(folder)
    }

    /// The folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The database file, and the files that SQLite keeps beside it while it is in use.
    pub(super) fn parts(&self) -> Vec<PathBuf> {
        let named = |beside: &str| {
            let mut name = self.database().into_os_string();
            name.push(beside);
            PathBuf::from(name)
        };
        ["", "-wal", "-shm", "-journal"].map(named).into()
    }

    /// The lock file of everybody who has the store open.
    pub(super) fn in_use(&self) -> PathBuf {
        self.locks().join("in-use")
    }

    /// Where a backup is prepared before it takes the database's place.
    pub(super) fn restoring(&self) -> PathBuf {
        self.0.join("restoring")
    }

    /// Where the lease files are.
    pub(super) fn locks(&self) -> PathBuf {
        self.0.join("locks")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
}

pub(super) fn failed(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot {what} {}: {error}", path.display()))
}

pub(super) fn create_private(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes the file before SQLite does, which would make it readable for everybody under the usual umask. SQLite gives
/// the files beside it (`-wal`, `-shm`) the same permissions.
fn create_file(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    // `create_new` is O_EXCL: it neither follows a link nor opens a file that is there. An open database must never
    // be opened and closed beside SQLite, because closing would drop the process's POSIX locks on it.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn check(path: &Path, kind: Kind) -> Result<(), StoreError> {
    let found = path.symlink_metadata().map_err(|error| failed("look at", path, &error))?;
    check_found(path, &found, kind)
}

/// Refuses what others could read or have planted, as ssh does with its keys.
fn check_found(path: &Path, found: &std::fs::Metadata, kind: Kind) -> Result<(), StoreError> {
    let unusable = |what: String| Err(StoreError::Unusable(format!("{} {what}", path.display())));
    if found.is_symlink() {
        return unusable("is a symbolic link; name the real data folder with --data-dir".to_owned());
    }
    let (expected, mode) = match kind {
        Kind::Folder => (found.is_dir(), "700"),
        Kind::File => (found.is_file(), "600"),
    };
    if !expected {
        let name = if kind == Kind::Folder { "folder" } else { "file" };
        return unusable(format!("is not a {name}; move it away, or name another data folder with --data-dir"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let me = rustix::process::geteuid().as_raw();
        if found.uid() != me {
            return unusable(format!(
                "belongs to user {}, and obo runs as user {me}; run obo as its owner, or `chown` it",
                found.uid()
            ));
        }
        if found.mode() & 0o077 != 0 {
            return unusable(format!(
                "can be reached by other users (mode {:o}); run `chmod {mode} {}`",
                found.mode() & 0o777,
                path.display()
            ));
        }
    }
    #[cfg(not(unix))]
    let _ = mode;
    Ok(())
}

/// Refuses file systems whose locks and shared memory do not hold over machines: two obo processes would corrupt the
/// database without either noticing.
#[cfg(target_os = "linux")]
fn check_file_system(path: &Path) -> Result<(), StoreError> {
    let found = rustix::fs::statfs(path).map_err(|error| failed("look at the file system of", path, &error.into()))?;
    match network_file_system(found.f_type as u32) {
        Some(name) => Err(StoreError::Unusable(format!(
            "{} lies on a network or user-space file system ({name}), where the vault would be damaged; \
             name a folder on a local disk with --data-dir",
            path.display()
        ))),
        None => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_file_system(_path: &Path) -> Result<(), StoreError> {
    Ok(())
}

/// The name of a file system that a vault must not lie on, by the kernel's magic number (statfs(2)).
#[cfg(target_os = "linux")]
fn network_file_system(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x6573_5546 => Some("FUSE"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x0116_1970 => Some("GFS2"),
        0x7461_636f => Some("OCFS2"),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn refusal(path: &Path) -> String {
        match Folder::secure(path) {
            Err(StoreError::Unusable(text)) => text,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn what_is_made_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("deep/data");
        let folder = Folder::secure(&data).unwrap();
        assert_eq!((mode(&data), mode(&folder.locks()), mode(&folder.database())), (0o700, 0o700, 0o600));
        Folder::secure(&data).unwrap();
    }

    #[test]
    fn what_others_can_reach_is_refused_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let folder = Folder::secure(&data).unwrap();
        for (path, open, fix) in [(&data, 0o750, 0o700), (&folder.database(), 0o604, 0o600)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(open)).unwrap();
            let text = refusal(&data);
            assert!(text.ends_with(&format!("run `chmod {fix:o} {}`", path.display())), "{text}");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(fix)).unwrap();
        }
        Folder::secure(&data).unwrap();
    }

    #[test]
    fn links_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        Folder::secure(&real).unwrap();
        symlink(&real, dir.path().join("link")).unwrap();
        assert!(refusal(&dir.path().join("link")).contains("symbolic link"));

        // A database planted as a link, even a dangling one, is neither followed nor made.
        let planted = dir.path().join("planted");
        create_private(&planted).unwrap();
        symlink(dir.path().join("elsewhere"), planted.join("obo.db")).unwrap();
        assert!(refusal(&planted).contains("symbolic link"));
        assert!(!dir.path().join("elsewhere").exists());

        let odd = dir.path().join("odd");
        create_private(&odd.join("obo.db")).unwrap();
        assert!(refusal(&odd).contains("is not a file"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn network_file_systems_are_known_by_number() {
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        assert_eq!(network_file_system(0xff53_4d42), Some("SMB"));
        assert_eq!(network_file_system(0xef53), None, "ext4");
        // Where the kernel offers one, the real thing: /proc is not a disk, but not a network either.
        check_file_system(Path::new("/proc")).unwrap();
    }
}
