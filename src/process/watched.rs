//! Watches some files with inotify: the files themselves, and the names that lead to them.
//!
//! Files are replaced more often than written: editors rename, Kubernetes changes a link. So every folder with a
//! name that leads to a file is watched for names that come and go; other names in it are ignored. Writing to another file
//! of such a folder, such as a log, causes no event: contents are watched only of the files themselves.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

/// For a folder: names in it, and the folder itself.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
/// For a file: its content, and its permissions.
const CONTENT: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);
/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;
const READ_BYTES: usize = 4096;

/// A name in a folder.
type Name = (PathBuf, OsString);

/// The names on the way to a file that can change it: each link, and the last name, or the first one that is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WatchedPath {
    names: Vec<Name>,
    /// Where it ends; `None` = at no file.
    file: Option<PathBuf>,
}

impl WatchedPath {
    /// The way to `path` as it is now.
    pub(super) fn to(path: &Path) -> Self {
        let mut way = Self::default();
        let mut left: VecDeque<OsString> = parts(path);
        let (mut at, mut links) = (PathBuf::from("."), 0_usize);
        while let Some(part) = left.pop_front() {
            let full = at.join(&part);
            let link = fs::read_link(&full).ok();
            let missing = fs::symlink_metadata(&full).is_err();
            if link.is_some() || left.is_empty() || missing {
                way.names.push((at.clone(), part));
            }
            match link {
                Some(target) if links < LINKS_MAX => {
                    links = links.saturating_add(1);
                    for part in parts(&target).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                None if !missing => at = full,
                _ => return way,
            }
        }
        way.file = Some(at).filter(|file| file.is_file());
        way
    }
}

/// The parts of a path, each to be looked up in the folder of those before it.
fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

/// A watch over some files.
#[derive(Debug)]
pub(super) struct Watched {
    /// The inotify descriptor, read like a pipe.
    events: Receiver,
    /// The names that matter, by the watch on their folder.
    names: HashMap<i32, BTreeSet<OsString>>,
    files: HashSet<i32>,
    /// What is not watched, and why.
    pub(super) missed: Vec<(PathBuf, io::Error)>,
}

impl Watched {
    /// Watches these paths.
    ///
    /// # Errors
    /// The kernel has no room for another watcher.
    pub(super) fn new(ways: &[WatchedPath]) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = Receiver::from_owned_fd_unchecked(events)?;
        let (names, files) = (HashMap::<i32, BTreeSet<OsString>>::new(), HashSet::new());
        let mut watched = Self { events, names, files, missed: Vec::new() };
        for WatchedPath { names, file } in ways {
            for (folder, name) in names {
                match watched.add(folder, NAMES) {
                    Ok(watch) => drop(watched.names.entry(watch).or_default().insert(name.clone())),
                    Err(error) => watched.missed.push((folder.join(name), error)),
                }
            }
            match file.as_ref().map(|file| (file, watched.add(file, CONTENT))) {
                Some((_, Ok(watch))) => drop(watched.files.insert(watch)),
                Some((file, Err(error))) => watched.missed.push((file.clone(), error)),
                None => {}
            }
        }
        Ok(watched)
    }

    /// Adds a watch; several paths may share a folder, or be one file.
    fn add(&self, path: &Path, flags: WatchFlags) -> io::Result<i32> {
        Ok(inotify::add_watch(&self.events, path, flags | WatchFlags::MASK_ADD)?)
    }

    /// Waits until something happens that matters.
    ///
    /// # Errors
    /// The kernel sends no more events.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            self.events.readable().await?;
            match self.look() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                looked => return looked,
            }
        }
    }

    /// Reads all events.
    ///
    /// # Errors
    /// `WouldBlock` if none of it matters.
    fn look(&self) -> io::Result<()> {
        let mut bytes = [0; READ_BYTES];
        let mut matters = false;
        loop {
            match self.events.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    let mut left = bytes.get(..read).unwrap_or_default();
                    while let Some((event, rest)) = Event::first(left) {
                        matters |= self.matters(&event);
                        left = rest;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && matters => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn matters(&self, event: &Event<'_>) -> bool {
        if event.name.is_empty() {
            // About a watched folder or file itself, or the queue has overflowed.
            return !ReadFlags::from_bits_retain(event.flags).contains(ReadFlags::IGNORED);
        }
        self.names.get(&event.watch).is_some_and(|names| names.contains(OsStr::from_bytes(event.name)))
    }
}

/// The kernel's `struct inotify_event`.
struct Event<'a> {
    watch: i32,
    flags: u32,
    /// The name in a watched folder; empty = the event is about the watched file or folder itself.
    name: &'a [u8],
}

impl<'a> Event<'a> {
    /// The first of some events, and the others.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (watch, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (_cookie, rest) = rest.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_ne_bytes(*length)).ok()?)?;
        // The name is padded with zeros.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some((Self { watch: i32::from_ne_bytes(*watch), flags: u32::from_ne_bytes(*flags), name }, rest))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What of a folder is watched, as text.
    fn names(way: &WatchedPath, root: &Path) -> Vec<String> {
        let of = |(folder, name): &Name| {
            let path = folder.join(name);
            let path = path.strip_prefix("./").unwrap_or(&path);
            path.strip_prefix(root).map_or_else(|_| path.to_owned(), Path::to_owned).display().to_string()
        };
        way.names.iter().map(of).collect()
    }

    #[test]
    fn every_name_that_may_be_led_elsewhere_is_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let path = root.join("sessile.toml");
        assert_eq!(names(&WatchedPath::to(&path), &root), ["sessile.toml"], "it may come");
        assert_eq!(names(&WatchedPath::to(&root.join("none/a/b")), &root), ["none"], "so may its folder");
        // As Kubernetes mounts a map.
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/sessile.toml"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/sessile.toml", &path).unwrap();
        let way = WatchedPath::to(&path);
        assert_eq!(names(&way, &root), ["sessile.toml", "..data", "..1/sessile.toml"]);
        assert!(way.file.unwrap().ends_with("..1/sessile.toml"));
        symlink(&root, root.join("self")).unwrap();
        let absolute = WatchedPath::to(&root.join("self/self/../loose"));
        assert_eq!(names(&absolute, &root).len(), 3, "{absolute:?}");
        symlink("round", root.join("round")).unwrap();
        assert_eq!(WatchedPath::to(&root.join("round")).file, None, "not for ever");
    }

    #[tokio::test]
    async fn what_is_written_beside_a_file_is_no_event() {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) = (folder.path().join("sessile.toml"), folder.path().join("s.log"));
        fs::write(&path, "1").unwrap();
        fs::write(&beside, "").unwrap();
        let watched = Watched::new(&[WatchedPath::to(&path)]).unwrap();
        fs::write(&beside, "a line").unwrap();
        assert_eq!(watched.events.try_read(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        fs::rename(&beside, folder.path().join("s.log.1")).unwrap();
        watched.events.readable().await.unwrap();
        assert_eq!(
            watched.look().unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "nor its name one of matter"
        );
        type Change = fn(&Path);
        let changes: [(&str, Change); 5] = [
            ("written in place", |path| fs::write(path, "2").unwrap()),
            ("replaced", |path| {
                fs::write(path.with_extension("new"), "3").unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            }),
            ("gone", |path| fs::remove_file(path).unwrap()),
            ("come", |path| fs::write(path, "4").unwrap()),
            ("its folder moved", |path| {
                let folder = path.parent().unwrap();
                fs::rename(folder, folder.with_extension("moved")).unwrap();
                fs::rename(folder.with_extension("moved"), folder).unwrap();
            }),
        ];
        for (what, change) in changes {
            let watched = Watched::new(&[WatchedPath::to(&path)]).unwrap();
            change(&path);
            let told = tokio::time::timeout(std::time::Duration::from_secs(20), watched.changed()).await;
            assert!(told.is_ok_and(|told| told.is_ok()), "{what}");
        }
    }
}
