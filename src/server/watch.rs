//! Watching the configuration file, and every file that it names: secrets, certificates, keys, revocation lists.
//!
//! The folder is watched, not the file: editors and Kubernetes replace files and the links that lead to them. Events
//! only say "look"; what is looked at is the content, and content that was read already is not read again. A burst of
//! events is let pass first, so that a file written in place is not read half written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::reload::Reloader;
use crate::config::{self, diff};

/// A burst is over when this long nothing has happened.
const QUIET: Duration = Duration::from_millis(50);
/// But a folder in which things happen all the time must not put a reload off for ever.
const PATIENCE: Duration = Duration::from_millis(250);

/// A file that cannot be read is looked at so often.
const AGAIN: Duration = Duration::from_secs(5);

/// Reloads whenever the file's content changes, until `stop`.
pub async fn watch(reloader: Arc<Reloader>, stop: CancellationToken) {
    let (events, mut happened) = mpsc::channel(1);
    let hash = Arc::new(RandomState::new());
    let work = async {
        let look = || {
            let path = reloader.path().to_owned();
            aside(move || all(&path))
        };
        let Some(mut paths) = look().await else { return };
        let mut watching = match Watching::new(&paths, &events) {
            Ok(watching) => watching,
            Err(error) => return unwatched(&error),
        };
        // The file may have changed between its first reading and this watch.
        let seen = aside(digests(&paths, &hash)).await;
        let mut known = if is_in_force(&reloader).await { seen } else { None };
        loop {
            // Watched first, then looked at: what changes after the look is told.
            let Some(named) = look().await else { return };
            if named != paths || watching.folders != real_folders(&named) {
                paths = named;
                match Watching::new(&paths, &events) {
                    Ok(next) => watching = next,
                    Err(error) => return unwatched(&error),
                }
            }
            let now = aside(digests(&paths, &hash)).await;
            if now != known {
                known.clone_from(&now);
                drop(reloader.reload("a file changed").await);
            }
            // Unreadable for a reason that no event may end: too many open files.
            let lacks_one = now.is_none_or(|now| now.contains(&None));
            let again = async { if lacks_one { sleep(AGAIN).await } else { pending().await } };
            tokio::select! {
                event = happened.recv() => if event.is_none() { return },
                () = again => {}
            }
            let settled = async { while tokio::time::timeout(QUIET, happened.recv()).await.is_ok() {} };
            if tokio::time::timeout(PATIENCE, settled).await.is_err() {
                tracing::debug!("the folder of the configuration is busy");
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Reads files, and a thousand backends in one, beside the threads that carry bytes.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn digests(paths: &[PathBuf], hash: &Arc<RandomState>) -> impl FnOnce() -> Vec<Option<u64>> + Send + use<> {
    let (paths, hash) = (paths.to_owned(), Arc::clone(hash));
    move || paths.iter().map(|path| content(path).map(|bytes| hash.hash_one(bytes.as_slice()))).collect()
}

/// What the file says, as far as any that is named may go. A pipe is not for looking at.
fn content(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let most = u64::try_from(config::NAMED_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let about = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let room = usize::try_from(about.len().min(most).saturating_add(1)).ok()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn unwatched(error: &notify::Error) {
    tracing::error!(%error, "the configuration file is not watched: reload with SIGHUP or `sessile reload`");
}

/// Whether the file says what is in force.
async fn is_in_force(reloader: &Reloader) -> bool {
    let (now, path) = (reloader.balancer().snapshot(), reloader.path().to_owned());
    let same = move || config::load(&path).is_ok_and(|config| diff(&now.config, &config).is_empty());
    aside(same).await.unwrap_or(false)
}

/// The configuration file, and then the files it names.
fn all(path: &Path) -> Vec<PathBuf> {
    // A pipe in the file's place would be waited for.
    let named = if path.is_file() { config::files(path) } else { BTreeSet::new() };
    std::iter::once(path.to_owned()).chain(named).collect()
}

fn real_folders(paths: &[PathBuf]) -> Vec<Option<PathBuf>> {
    paths.iter().map(|path| real_folder(path)).collect()
}

/// The folder of the file that links lead to in the end.
fn real_folder(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok().map(|real| folder(&real))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

/// A watch on each file's folder, and on the folder a link leads to.
struct Watching {
    _watcher: RecommendedWatcher,
    /// Where the links led when the watch began: led elsewhere, they need another.
    folders: Vec<Option<PathBuf>>,
}

impl Watching {
    /// Watches the first of `paths`, and of the others those that can be watched.
    fn new(paths: &[PathBuf], events: &mpsc::Sender<()>) -> notify::Result<Self> {
        let events = events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too, and must not lead to reading it again. A full channel says "look"
            // already.
            if !event.is_ok_and(|event| event.kind.is_access()) && events.try_send(()).is_err() {}
        })?;
        let mut folders = Vec::new();
        for (number, path) in paths.iter().enumerate() {
            match watch_one(&mut watcher, path) {
                Ok(folder) => folders.push(folder),
                Err(error) if number == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "a file is not watched");
                    folders.push(real_folder(path));
                }
            }
        }
        Ok(Self { _watcher: watcher, folders })
    }
}

fn watch_one(watcher: &mut RecommendedWatcher, path: &Path) -> notify::Result<Option<PathBuf>> {
    let near = folder(path);
    watcher.watch(&near, RecursiveMode::NonRecursive)?;
    let mut real = real_folder(path);
    while let Some(folder) = &real
        && fs::canonicalize(&near).is_ok_and(|near| near != *folder)
        && let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
    {
        // Swapped maps take the folder of the last version away, and it may have been looked up a moment before.
        let now = real_folder(path);
        if now == real {
            return Err(error);
        }
        real = now;
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_at_the_end_of_a_large_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("crl.pem");
        let mut bytes = vec![b'x'; 4 << 20];
        fs::write(&path, &bytes).unwrap();
        let (paths, hash) = ([path.clone()], Arc::new(RandomState::new()));
        let before = digests(&paths, &hash)();
        *bytes.last_mut().unwrap() = b'y';
        fs::write(&path, &bytes).unwrap();
        assert_ne!(before, digests(&paths, &hash)());
    }

    #[test]
    fn a_folder_that_goes_while_the_watch_begins_does_not_end_it() {
        let root = tempfile::TempDir::new().unwrap();
        let path = root.path().join("sessile.toml");
        let swap = |version: u32| {
            let folder = root.path().join(format!("version-{version}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("sessile.toml"), "").unwrap();
            symlink(folder.join("sessile.toml"), root.path().join("next")).unwrap();
            fs::rename(root.path().join("next"), &path).unwrap();
            if let Some(last) = version.checked_sub(1) {
                fs::remove_dir_all(root.path().join(format!("version-{last}"))).unwrap();
            }
        };
        swap(0);
        let (events, _happened) = mpsc::channel(1);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| (1..2000).for_each(swap));
            while !swapping.is_finished() {
                match Watching::new(std::slice::from_ref(&path), &events).map(drop) {
                    // A watch ends on a thread of its own, so more are begun here than a user may have at once.
                    Err(error) if matches!(&error.kind, notify::ErrorKind::Io(io) if io.raw_os_error() == Some(24)) =>
                    {
                        std::thread::yield_now();
                    }
                    begun => begun.unwrap(),
                }
            }
        });
    }
}
