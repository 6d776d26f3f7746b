//! Watching the configuration file.
//!
//! The folder is watched, not the file: editors and Kubernetes replace files and the links that lead to them. Events
//! only say "look"; what is looked at is the content, and content that was read already is not read again. A burst of
//! events is let pass first, so that a file written in place is not read half written.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::reload::Reloader;

/// A burst is over when this long nothing has happened.
const QUIET: Duration = Duration::from_millis(50);
/// But a folder in which things happen all the time must not put a reload off for ever.
const PATIENCE: Duration = Duration::from_millis(250);

/// Reloads whenever the file's content changes, until `stop`.
pub async fn watch(reloader: Arc<Reloader>, stop: CancellationToken) {
    let (events, mut happened) = mpsc::channel(1);
    let watcher = match watcher(reloader.path(), events) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::error!(%error, "the configuration file is not watched: reload with SIGHUP or `sessile reload`");
            return;
        }
    };
    let hash = RandomState::new();
    let content = |path: &Path| fs::read(path).ok().map(|bytes| hash.hash_one(bytes));
    let mut known = content(reloader.path());
    let work = async {
        while happened.recv().await.is_some() {
            let settled = async { while tokio::time::timeout(QUIET, happened.recv()).await.is_ok() {} };
            if tokio::time::timeout(PATIENCE, settled).await.is_err() {
                tracing::debug!("the folder of the configuration is busy");
            }
            let now = content(reloader.path());
            if now != known {
                known = now;
                drop(reloader.reload("the file changed").await);
            }
        }
    };
    stop.run_until_cancelled(work).await;
    drop(watcher);
}

/// Watches the file's folder, and the folder a link leads to.
fn watcher(path: &Path, events: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too, and must not lead to reading it again. A full channel says "look" already.
        if !event.is_ok_and(|event| event.kind.is_access()) && events.try_send(()).is_err() {}
    })?;
    let folder = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    };
    let near = folder(path);
    watcher.watch(&near, RecursiveMode::NonRecursive)?;
    if let Ok(real) = fs::canonicalize(path)
        && fs::canonicalize(&near).is_ok_and(|near| near != folder(&real))
    {
        watcher.watch(&folder(&real), RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
