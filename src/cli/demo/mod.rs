//! `sessile demo`: three servers, a balancer, a few sessions, and the proof that they stay where they belong.
//!
//! Everything is real: the servers are asked directly who has a session, the fourth backend comes by a change of
//! the file, and the demo fails if any session is not exactly where it should be.

mod model;
mod client;
mod servers;
mod stage;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use client::Client;
use model::Model;
use servers::Source;
use stage::Stage;

use super::route::Plan;
use super::terminal::{Table, err, out, plain};
use crate::config;
use crate::process::Stops;
use crate::runtime::logs;
use crate::wire::SessionId;

/// Candidates for session IDs: enough to find one for every kind of place.
const CANDIDATES: u32 = 1000;

/// What a sample session shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its client stays while the fleet grows.
    Stays,
    /// Its client leaves, and comes back when the fleet has grown.
    Returns,
    /// It begins when the fleet has grown.
    New,
}

/// One sample session.
#[derive(Debug)]
struct Sample {
    id: String,
    part: Part,
    /// Where the ring puts it, with three servers and with four.
    ring: [String; 2],
    client: Option<Client>,
    /// How many turns it must remember. None: the server takes no turns without an account.
    turns: u32,
}

/// Runs the demo; the exit code says whether every session is where it belongs.
pub(super) fn demo(cli: Option<PathBuf>, once: bool) -> ExitCode {
    let wanted = match super::run::wanted("warn") {
        Ok(wanted) => wanted,
        Err(code) => return code,
    };
    let _logs = logs::start(&wanted);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            err(&format!("sessile: no runtime: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(play(cli, once)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            err(&format!("sessile: demo: {}\n", plain(&why)));
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
async fn play(cli: Option<PathBuf>, once: bool) -> Result<bool, String> {
    let mut stops = Stops::new().map_err(|error| format!("signals: {error}"))?;
    let (source, must_work) = match cli {
        Some(binary) => (Source::Real(binary), true),
        None => (Source::find(), false),
    };
    match &source {
        Source::Real(binary) => out(&format!("Servers: {}\n", plain(&binary.display().to_string()))),
        Source::FakeServer => {
            out("Servers: built-in fake servers, for there is no copilot in PATH (or say --cli PATH)\n")
        }
    }
    let mut stage = Stage::new(source)?;
    let told = tokio::select! {
        told = story(&mut stage, must_work) => told.map(Some),
        () = stops.next() => Ok(None),
    };
    let told = match told {
        Ok(Some((right, clients))) if !once => {
            let invited = invite(&stage).await;
            stops.next().await;
            out("\n");
            drop(clients);
            invited.map(|()| right)
        }
        told => told.map(|told| told.is_none_or(|(right, _)| right)),
    };
    stage.stop().await;
    told
}

/// The whole demo. Returns whether every session is where it belongs, and the clients that are still connected.
async fn story(stage: &mut Stage, must_work: bool) -> Result<(bool, Vec<Sample>), String> {
    let model = Model::start().await?;
    // There are other programs called copilot.
    if let Err(why) = stage.add_server().await {
        if must_work {
            return Err(why);
        }
        out(&format!("{}\nServers: built-in fake servers instead\n", plain(&why)));
        stage.use_fake_servers();
        stage.add_server().await?;
    }
    for _ in 0..2 {
        stage.add_server().await?;
    }
    stage.write()?;
    let mut samples = cast(stage)?;
    stage.start().await?;
    let first = open_all(stage, &model, &mut samples).await?;
    for sample in samples.iter_mut().filter(|sample| sample.part == Part::Returns) {
        sample.client = None;
        stage.until_gone(&sample.id).await?;
    }
    stage.add_server().await?;
    stage.write()?;
    stage.until_generation(2).await?;
    let leave = if samples.iter().any(|sample| sample.part == Part::Returns) {
        "The clients of the last three leave."
    } else {
        "Nobody leaves: without a turn, servers store nothing to come back to."
    };
    out(&format!("\n{leave} cli-4 is added to the file, which is taken up at once. Then:\n\n"));
    let second = go_on(stage, &model, &mut samples).await?;
    out(if first && second {
        "\nNothing that was live moved, and what came back found its memory.\n"
    } else {
        "\nWRONG: a session is not where it belongs.\n"
    });
    Ok((first && second, samples))
}

/// Chooses sample sessions by where the ring puts them.
fn cast(stage: &Stage) -> Result<Vec<Sample>, String> {
    let plan = |count: u16| {
        let nowhere = |number| (format!("cli-{number}"), SocketAddr::from((Ipv4Addr::LOCALHOST, number)));
        let text = stage.text((1..=count).map(nowhere));
        let config = config::parse(&text, "demo").map_err(|problems| problems.to_string())?;
        Ok::<_, String>(Plan::new(config))
    };
    let (three, four) = (plan(3)?, plan(4)?);
    let mut wanted = vec![
        (Part::Stays, "cli-1", "cli-1"),
        (Part::Stays, "cli-2", "cli-4"),
        (Part::Stays, "cli-3", "cli-3"),
        (Part::Returns, "cli-1", "cli-4"),
        (Part::Returns, "cli-2", "cli-2"),
        (Part::Returns, "cli-3", "cli-4"),
        (Part::New, "cli-1", "cli-4"),
        (Part::New, "cli-2", "cli-2"),
    ];
    let mut found = Vec::new();
    for number in 1..=CANDIDATES {
        let id = format!("user-{number}-chat");
        let ring = [&three, &four].map(|plan| plan.route(&SessionId::new(&id), 0).0.unwrap_or_default());
        if let Some(at) = wanted.iter().position(|(_, before, after)| ring == [*before, *after]) {
            let (part, ..) = wanted.remove(at);
            found.push(Sample { id, part, ring, client: None, turns: 0 });
        }
    }
    found.sort_by_key(|sample| (sample.part as u8, sample.ring.clone()));
    if wanted.is_empty() { Ok(found) } else { Err("the ring gives no backend its share".into()) }
}

/// Opens the sessions that begin before the fleet grows, and prints where each went.
async fn open_all(stage: &Stage, model: &Model, samples: &mut [Sample]) -> Result<bool, String> {
    out("\nSix clients connect and create a session each:\n\n");
    let mut table = Table::new(&["SESSION", "SERVER", "WHY", "SAYS"]);
    let mut right = true;
    for sample in samples.iter_mut().filter(|sample| sample.part != Part::New) {
        let (_, why) = stage.placement(&sample.id).await?;
        let says = attach(stage, model, sample, "session.create").await?;
        if sample.turns == 0 {
            sample.part = Part::Stays;
        }
        let (place, sound) = verdict(stage, &sample.id, &sample.ring[0]).await?;
        right &= sound;
        table.row([sample.id.clone(), place, why.into(), says]);
    }
    out(&table.render("  "));
    Ok(right)
}

/// Goes on with every session after the fleet has grown, and prints where each is.
async fn go_on(stage: &Stage, model: &Model, samples: &mut [Sample]) -> Result<bool, String> {
    let mut table = Table::new(&["SESSION", "CLIENT", "WAS ON", "IS ON", "WHY", "SAYS", "BY HASH ALONE"]);
    let mut right = true;
    for sample in samples {
        let (_, why) = stage.placement(&sample.id).await?;
        let [before, after] = sample.ring.clone();
        let (client, was, due) = match sample.part {
            Part::Stays => ("stayed", before.clone(), before),
            Part::Returns => ("came back", before.clone(), before),
            Part::New => ("new", "-".into(), after.clone()),
        };
        let says = match sample.part {
            Part::Stays => turn(sample).await?,
            Part::New => attach(stage, model, sample, "session.create").await?,
            Part::Returns => attach(stage, model, sample, "session.resume").await?,
        };
        let (place, sound) = verdict(stage, &sample.id, &due).await?;
        right &= sound && (sample.turns == 0 || says.ends_with(&format!("turn {}", sample.turns)));
        table.row([sample.id.clone(), client.into(), was, place, why.into(), says, after]);
    }
    out(&table.render("  "));
    Ok(right)
}

/// Connects, creates or resumes, and takes a turn. Returns the server's answer.
async fn attach(stage: &Stage, model: &Model, sample: &mut Sample, method: &str) -> Result<String, String> {
    let provider: Value =
        json!({ "type": "openai", "wireApi": "completions", "baseUrl": model.base_url(), "apiKey": "none" });
    let params = json!({ "sessionId": sample.id, "model": "demo", "provider": provider });
    let mut client = Client::connect(stage.listener().await?).await?;
    client.call(method, &params).await?;
    sample.client = Some(client);
    turn(sample).await
}

/// One more turn. Returns the server's answer. The first one may fail, since not every server takes the demo's model.
async fn turn(sample: &mut Sample) -> Result<String, String> {
    let client = sample.client.as_mut().ok_or("its client has gone")?;
    match client.turn(&sample.id).await {
        Ok(says) => {
            sample.turns = sample.turns.saturating_add(1);
            Ok(says)
        }
        Err(why) if sample.turns == 0 => Ok(format!("no turn: {why}")),
        Err(why) => Err(format!("{}: {why}", sample.id)),
    }
}

/// Who has a session, as text, and whether that is `due` and no other server.
async fn verdict(stage: &Stage, session: &str, due: &str) -> Result<(String, bool), String> {
    let holders = stage.holders(session).await?;
    let right = holders == [due];
    let names = if holders.is_empty() { "nobody".into() } else { holders.join(" and ") };
    Ok((if right { names } else { format!("{names}: WRONG, not {due}") }, right))
}

/// Prints what to try next.
async fn invite(stage: &Stage) -> Result<(), String> {
    let (listener, admin, file) = (stage.listener().await?, stage.admin().await?, stage.file());
    let sessile = std::env::args().next().unwrap_or_else(|| "sessile".into());
    let mut table = Table::bare();
    for (what, how) in [
        ("connect a client to", listener.to_string()),
        ("open in a browser", format!("{admin}/")),
        ("look", format!("{sessile} status --admin {admin}")),
        ("ask", format!("{sessile} route --admin {admin} user-1-chat")),
        ("drain a server", format!("{sessile} drain cli-1 --admin {admin}")),
        ("change the file", file.display().to_string()),
        ("measure", format!("curl {admin}/metrics")),
    ] {
        table.row([what.to_owned(), how]);
    }
    out(&format!("\nIt stays up until Ctrl-C:\n\n{}", table.render("  ")));
    Ok(())
}
