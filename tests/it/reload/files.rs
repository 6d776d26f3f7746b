//! How a file changes, and files that are wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use tempfile::TempDir;

use crate::harness::*;

/// Makes a change to the file and waits for what it says: a weight of the backend `a`.
async fn changes(balancer: &Balancer, weight: u32, change: impl FnOnce()) {
    let generation = balancer.inner().snapshot().generation;
    change();
    until("the file is read", || balancer.inner().snapshot().generation > generation).await;
    let snapshot = balancer.inner().snapshot();
    assert_eq!((snapshot.generation, snapshot.members[0].weight), (generation + 1, weight));
    until("it is told", || balancer.reloader().last().problems.is_empty()).await;
}

async fn started() -> (Fleet, Balancer) {
    let fleet = Fleet::local(1).await;
    let balancer = Balancer::start(&fleet.text()).await;
    (fleet, balancer)
}

#[test]
fn a_file_that_changes_while_the_server_starts_is_read() {
    // On one thread the watch cannot have begun when the file is written.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(soon(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start_unprobed(&fleet.text()).await;
        let text = fleet.text().weight("a", 2).toml();
        changes(&balancer, 2, || fs::write(&balancer.path, text).unwrap()).await;
    }));
}

#[test]
fn a_file_written_in_place_is_read() {
    run(async {
        let (fleet, balancer) = started().await;
        for weight in 2..4 {
            let text = fleet.text().weight("a", weight).toml();
            changes(&balancer, weight, || fs::write(&balancer.path, text).unwrap()).await;
        }
    });
}

#[test]
fn a_file_replaced_by_an_editor_is_read() {
    run(async {
        let (fleet, balancer) = started().await;
        for weight in 2..4 {
            let text = fleet.text().weight("a", weight).toml();
            changes(&balancer, weight, || {
                let new = balancer.path.with_extension("toml.swp");
                fs::write(&new, text).unwrap();
                fs::rename(&balancer.path, balancer.path.with_extension("toml~")).unwrap();
                fs::rename(new, &balancer.path).unwrap();
            })
            .await;
        }
    });
}

#[test]
fn a_file_that_goes_and_comes_is_read() {
    run(async {
        let (fleet, balancer) = started().await;
        let errors = balancer.metrics().config_reloads.with_label_values(&["error"]);
        fs::remove_file(&balancer.path).unwrap();
        until("its absence is noticed", || errors.get() == 1).await;
        balancer.client().await.create("s").await;
        let text = fleet.text().weight("a", 2).toml();
        let changed = Instant::now();
        changes(&balancer, 2, || fs::write(&balancer.path, text).unwrap()).await;
        // A file that cannot be read is looked at every five seconds besides.
        assert!(
            changed.elapsed() < Duration::from_secs(4),
            "no event has told of it: {:?}",
            changed.elapsed()
        );
    });
}

/// Puts `text` into a folder of its own and swaps the link `..data` to it, as Kubernetes updates a mounted map.
fn swap(folder: &Path, version: u32, text: &str) {
    let data = folder.join(format!("..version-{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("sessile.toml"), text).unwrap();
    symlink(data.file_name().unwrap(), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if version > 0 {
        fs::remove_dir_all(folder.join(format!("..version-{}", version - 1))).unwrap();
    }
}

#[test]
fn a_map_that_kubernetes_swaps_is_read() {
    run(async {
        let fleet = Fleet::local(1).await;
        let folder = TempDir::new().unwrap();
        let root = folder.path().to_owned();
        swap(&root, 0, &fleet.text().toml());
        symlink("..data/sessile.toml", root.join("sessile.toml")).unwrap();
        let balancer = Balancer::start_at(folder, root.join("sessile.toml")).await;
        for version in 1..4 {
            let text = fleet.text().weight("a", version + 1).toml();
            changes(&balancer, version + 1, || swap(&root, version, &text)).await;
        }
    });
}

#[test]
fn a_link_that_is_led_elsewhere_is_followed() {
    run(async {
        let fleet = Fleet::local(1).await;
        let (folder, first, second) =
            (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let real = |folder: &TempDir| folder.path().join("real.toml");
        fs::write(real(&first), fleet.text().toml()).unwrap();
        let path = folder.path().join("sessile.toml");
        symlink(real(&first), &path).unwrap();
        let balancer = Balancer::start_at(folder, path.clone()).await;
        let text = |weight| fleet.text().weight("a", weight).toml();
        changes(&balancer, 2, || fs::write(real(&first), text(2)).unwrap()).await;
        fs::write(real(&second), text(3)).unwrap();
        changes(&balancer, 3, || {
            symlink(real(&second), path.with_extension("new")).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
        })
        .await;
        changes(&balancer, 4, || fs::write(real(&second), text(4)).unwrap()).await;
    });
}

#[test]
fn a_file_with_the_same_content_is_not_read_again() {
    run(async {
        let (fleet, balancer) = started().await;
        let change = async |weight| {
            let text = fleet.text().weight("a", weight).toml();
            changes(&balancer, weight, || fs::write(&balancer.path, text).unwrap()).await;
        };
        // The watch has begun.
        change(2).await;
        let same = fs::read(&balancer.path).unwrap();
        let openings = Openings::of(&balancer.path);
        fs::write(&balancer.path, &same).unwrap();
        fs::write(balancer.path.with_extension("other"), "unrelated").unwrap();
        until("it is written and then looked at", || openings.count() > 1).await;
        // A change that follows is one generation on, not two.
        change(3).await;
    });
}

/// Counts how often a file is opened.
struct Openings {
    events: std::os::fd::OwnedFd,
    count: std::cell::Cell<usize>,
}

impl Openings {
    fn of(path: &Path) -> Self {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&events, path, inotify::WatchFlags::OPEN).unwrap();
        Self { events, count: std::cell::Cell::new(0) }
    }

    fn count(&self) -> usize {
        let mut bytes = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut bytes);
        while reader.next().is_ok() {
            self.count.set(self.count.get() + 1);
        }
        self.count.get()
    }
}

#[test]
fn a_bad_file_changes_nothing_and_every_problem_is_told() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut live = balancer.client().await;
        live.create("live").await;
        let good = fleet.text().toml();
        let twice = fleet.text().backend("a", "127.0.0.1:1").toml();
        let bad: [(&str, String, usize); 8] = [
            ("syntax", format!("{good}\n[[backend"), 1),
            ("unknown key", format!("wieght = 1\n{good}"), 1),
            ("a name twice", twice, 1),
            ("no backend", Text::new().toml(), 1),
            ("no port", good.replace(&fleet[0].address().to_string(), "127.0.0.1"), 1),
            ("weight", fleet.text().weight("a", 0).weight("b", 101).toml(), 2),
            ("duration", fleet.text().set("timeouts.opening", "\"soon\"").toml(), 1),
            (
                "a variable that is not set",
                fleet.text().set("upstream.connection_token", "{ env = \"SESSILE_IT_UNSET\" }").toml(),
                1,
            ),
        ];
        let before = balancer.inner().snapshot();
        let errors = balancer.metrics().config_reloads.with_label_values(&["error"]);
        for (n, (what, text, problems)) in bad.iter().enumerate() {
            fs::write(&balancer.path, text).unwrap();
            let troubles = balancer.reloader().reload("the test says so").await.unwrap_err();
            assert!(troubles.len() >= *problems, "{what}: {troubles:?}");
            let placed = what != &"no backend";
            assert!(
                !placed || troubles.iter().all(|t| t.line.is_some() && t.column.is_some()),
                "{what}: {troubles:?}"
            );
            assert_eq!(balancer.reloader().last().problems, troubles);
            assert!(errors.get() > u64::try_from(n).unwrap());
            assert!(
                std::sync::Arc::ptr_eq(&before, &balancer.inner().snapshot()),
                "{what} changed something"
            );
        }
        let mut new = balancer.client().await;
        new.create("new").await;
        live.turn("live").await;
        balancer.reload(&fleet.text().weight("a", 2)).await;
        assert_eq!(balancer.reloader().last().problems, []);
        assert_eq!(balancer.inner().snapshot().members[0].weight, 2);
    });
}

#[test]
fn a_listener_that_cannot_be_bound_changes_nothing() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let taken = format!("\"{}\"", fleet[1].address());
        fs::write(&balancer.path, fleet.text().without("b").listener("address", taken).toml()).unwrap();
        let troubles = balancer.reloader().reload("the test says so").await.unwrap_err();
        assert!(troubles[0].message.contains("cannot listen"), "{troubles:?}");
        assert_eq!(balancer.inner().snapshot().members.len(), 2);
        balancer.client().await.create("s").await;
    });
}
