//! Watching the configuration file, and every file that it names: secrets, certificates, keys, revocation lists.
//!
//! An event only causes a look at the content (see [`watched`](super::watched)); unchanged content causes no reload.
//! The end of a burst of events is awaited first, so that a file written in place is not read half written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::watched::{Watched, WatchedPath};
use crate::config::{self, diff};
use crate::control::Reloader;

/// A burst is over when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(50);
/// But a file that is written all the time must not delay a reload for ever.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often a file that cannot be read is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How often the way to a file is followed again if it changes meanwhile.
const TRIES: usize = 10;

/// Reloads whenever the file's content changes, until `stop`.
pub async fn watch(reloader: Arc<Reloader>, stop: CancellationToken) {
    let hash = Arc::new(RandomState::new());
    let work = async {
        let (mut known, mut began, mut told) = (None, false, Vec::new());
        loop {
            // Watched before it is read, so that a later change causes an event.
            let path = reloader.path().to_owned();
            let Some((paths, watched)) = aside(move || over(&path)).await else { return };
            tell(&watched, &mut told);
            let now = aside(digests(&paths, &hash)).await;
            if !began {
                // The file may have changed between its first reading and this watch.
                known = if is_in_force(&reloader).await { now.clone() } else { None };
                began = true;
            }
            if now != known {
                known.clone_from(&now);
                drop(reloader.reload("a file changed").await);
            }
            // Not watched, or not readable for a reason whose end causes no event (too many open files).
            let blind = watched.as_ref().map_or(true, |watched| !watched.missed.is_empty());
            let lacks_one = blind || now.is_none_or(|now| now.contains(&None));
            let again = async { if lacks_one { sleep(AGAIN).await } else { pending().await } };
            let Ok(watched) = &watched else {
                again.await;
                continue;
            };
            tokio::select! {
                told = watched.changed() => if told.is_err() { sleep(AGAIN).await },
                () = again => {}
            }
            let settled = async { while matches!(timeout(QUIET, watched.changed()).await, Ok(Ok(()))) {} };
            if timeout(PATIENCE, settled).await.is_err() {
                tracing::debug!("the file is written all the time");
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// The configuration file and those it names, and a watch over them.
fn over(path: &Path) -> (Vec<PathBuf>, io::Result<Watched>) {
    let ways = |paths: &[PathBuf]| paths.iter().map(|path| WatchedPath::to(path)).collect::<Vec<_>>();
    let mut paths = all(path);
    let mut seen = ways(&paths);
    for _ in 0..TRIES {
        let watched = Watched::new(&seen);
        let now = all(path);
        let led = ways(&now);
        if now == paths && led == seen {
            return (paths, watched);
        }
        (paths, seen) = (now, led);
    }
    let watched = Watched::new(&seen);
    (paths, watched)
}

/// Logs which files are not watched, once.
fn tell(watched: &io::Result<Watched>, told: &mut Vec<String>) {
    let missed = match watched {
        Ok(watched) => {
            let missed = &watched.missed;
            missed.iter().map(|(path, error)| format!("{}: {error}", path.display())).collect()
        }
        Err(error) => vec![error.to_string()],
    };
    if missed != *told && !missed.is_empty() {
        tracing::error!(
            why = missed.join(", "),
            "files are not watched, but looked at every few seconds: SIGHUP and `sessile reload` are quicker"
        );
    }
    *told = missed;
}

/// Reads files (there may be a thousand backends in one) on a thread that carries no connections.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn digests(paths: &[PathBuf], hash: &Arc<RandomState>) -> impl FnOnce() -> Vec<Option<u64>> + Send + use<> {
    let (paths, hash) = (paths.to_owned(), Arc::clone(hash));
    move || paths.iter().map(|path| content(path).map(|bytes| hash.hash_one(bytes.as_slice()))).collect()
}

/// The content of the file, up to the bound of the largest kind. A pipe is not read.
fn content(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let most = u64::try_from(config::NAMED_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let about = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let room = usize::try_from(about.len().min(most).saturating_add(1)).ok()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether the content of the file is in force.
async fn is_in_force(reloader: &Reloader) -> bool {
    let (now, path) = (reloader.balancer().snapshot(), reloader.path().to_owned());
    let same = move || config::load(&path).is_ok_and(|config| diff(&now.config, &config).is_empty());
    aside(same).await.unwrap_or(false)
}

/// The configuration file, and then the files it names.
fn all(path: &Path) -> Vec<PathBuf> {
    // Reading a pipe would hang.
    let named = if path.is_file() { config::files(path) } else { BTreeSet::new() };
    std::iter::once(path.to_owned()).chain(named).collect()
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

    #[tokio::test]
    async fn a_folder_that_goes_while_the_watch_begins_does_not_end_it() {
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
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| (1..2000).for_each(swap));
            while !swapping.is_finished() {
                over(&path).1.unwrap();
            }
        });
        let (_, watched) = over(&path);
        assert!(watched.unwrap().missed.is_empty());
    }
}
