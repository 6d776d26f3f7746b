//! The rules, one by one, and what must hold for any facts.

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::*;
use crate::config::Strategy;

const READY: Candidate =
    Candidate { ready: true, suspect: false, up: true, maint: false, weight: 1, sessions: 0 };
const DRAINING: Candidate = Candidate { ready: false, ..READY };
const MAINT: Candidate = Candidate { ready: false, maint: true, ..READY };
const DOWN: Candidate = Candidate { ready: false, up: false, ..READY };
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn facts(key: &str) -> Facts<'_> {
    Facts {
        key: Some(key.as_bytes()),
        must_exist: true,
        owner_up: None,
        found: Found::Unasked,
        pin: None,
        strategy: Strategy::ConsistentHash,
        storage: Storage::Shared,
        load_factor: Some(1.25),
        sessions: 0,
        turn: 0,
    }
}

fn ring() -> Ring {
    Ring::new(NAMES.iter().map(|name| (*name, 1)), "")
}

fn run(facts: &Facts<'_>, members: [Candidate; 4]) -> Decision {
    decide(facts, &ring(), 4, |at| members[at])
}

/// The ring's order for a key.
fn walk(key: &str) -> Vec<usize> {
    ring().walk(key.as_bytes()).collect()
}

fn with(at: usize, candidate: Candidate) -> [Candidate; 4] {
    let mut members = [READY; 4];
    members[at] = candidate;
    members
}

#[test]
fn an_attached_session_stays_whatever_else_is_known() {
    let facts = Facts { owner_up: Some(true), found: Found::Live(1), pin: Some(2), ..facts("k") };
    assert_eq!(run(&facts, [DOWN; 4]), Decision::Owner);
}

#[test]
fn a_down_owner_is_left_only_where_another_backend_has_the_state() {
    let shared = Facts { owner_up: Some(false), ..facts("k") };
    assert_eq!(run(&shared, [READY; 4]), Decision::Evict);
    let local = Facts { storage: Storage::Local, ..shared };
    assert_eq!(run(&local, [READY; 4]), Decision::Refuse(Refusal::OwnerDown));
}

#[test]
fn a_live_session_is_met_on_a_draining_or_maintained_backend() {
    let facts = Facts { found: Found::Live(1), pin: Some(2), ..facts("k") };
    for state in [READY, DRAINING, MAINT] {
        assert_eq!(run(&facts, with(1, state)), Decision::At(1, Reason::Located));
    }
    assert_eq!(run(&facts, with(1, DOWN)), Decision::Refuse(Refusal::OwnerDown));
}

#[test]
fn a_stored_session_waits_for_maintenance_to_end() {
    let facts = Facts { found: Found::Stored(1), storage: Storage::Local, ..facts("k") };
    assert_eq!(run(&facts, with(1, DRAINING)), Decision::At(1, Reason::Located));
    assert_eq!(run(&facts, with(1, MAINT)), Decision::Refuse(Refusal::OwnerDown));
}

#[test]
fn silence_of_one_backend_is_no_proof_of_absence() {
    let unsure = Facts { found: Found::Unsure, ..facts("k") };
    let first = walk("k")[0];
    assert_eq!(run(&unsure, [READY; 4]), Decision::At(first, Reason::Blind));
    let local = Facts { storage: Storage::Local, ..unsure.clone() };
    assert_eq!(run(&local, [READY; 4]), Decision::Refuse(Refusal::OwnerDown));
    let create = Facts { must_exist: false, ..local };
    assert_eq!(run(&create, [READY; 4]), Decision::At(first, Reason::Blind));
}

#[test]
fn a_pin_holds_while_its_backend_takes_sessions() {
    let pinned = Facts { pin: Some(2), ..facts("k") };
    assert_eq!(run(&pinned, [READY; 4]), Decision::At(2, Reason::Pin));
    assert_ne!(run(&pinned, with(2, DRAINING)), Decision::At(2, Reason::Pin));
    let local = Facts { storage: Storage::Local, ..pinned.clone() };
    assert_eq!(run(&local, with(2, DRAINING)), Decision::At(2, Reason::Pin), "only it has the state");
    assert_eq!(run(&local, with(2, DOWN)), Decision::Refuse(Refusal::OwnerDown));
    let nobody = Facts { found: Found::Nobody, ..local };
    assert!(matches!(run(&nobody, with(2, DOWN)), Decision::At(at, _) if at != 2), "the pin is stale");
}

#[test]
fn the_ring_is_walked_past_what_is_not_ready() {
    let order = walk("key");
    assert_eq!(run(&facts("key"), [READY; 4]), Decision::At(order[0], Reason::Hash));
    assert_eq!(run(&facts("key"), with(order[0], DOWN)), Decision::At(order[1], Reason::Failover));
    assert_eq!(run(&facts("key"), [DOWN; 4]), Decision::Refuse(Refusal::NoBackend));
}

#[test]
fn a_suspect_is_tried_when_nobody_is_ready() {
    let suspect = Candidate { ready: false, suspect: true, ..READY };
    let order = walk("key");
    assert_eq!(run(&facts("key"), with(order[0], suspect)), Decision::At(order[1], Reason::Failover));
    assert_eq!(run(&facts("key"), [suspect; 4]), Decision::At(order[0], Reason::Hash));
    let drained: [Candidate; 4] = std::array::from_fn(|at| if at == order[2] { suspect } else { DRAINING });
    assert_eq!(run(&facts("key"), drained), Decision::At(order[2], Reason::Failover));
}

#[test]
fn load_spills_to_the_next_on_the_ring() {
    let order = walk("key");
    let full = Candidate { sessions: 100, ..READY };
    let at = Facts { sessions: 160, ..facts("key") };
    let mut members = [Candidate { sessions: 20, ..READY }; 4];
    members[order[0]] = full;
    assert_eq!(run(&at, members), Decision::At(order[1], Reason::Spill));
    let unbounded = Facts { load_factor: None, ..at.clone() };
    assert_eq!(run(&unbounded, members), Decision::At(order[0], Reason::Hash));
    let small = with(order[0], Candidate { sessions: 9, ..READY });
    assert_eq!(run(&Facts { sessions: 9, ..at.clone() }, small), Decision::At(order[0], Reason::Hash));
    let lonely: [Candidate; 4] = std::array::from_fn(|at| if at == order[0] { full } else { DOWN });
    assert_eq!(run(&at, lonely), Decision::At(order[0], Reason::Hash), "the bound is of what is ready");
}

#[test]
fn turns_follow_weights_exactly_and_skip_what_is_not_ready() {
    let members = [Candidate { weight: 5, ..READY }, READY, DOWN, Candidate { weight: 2, ..READY }];
    let mut counts = [0; 4];
    let mut row = 0;
    for turn in 0..80 {
        let at = in_turn(turn, 4, &|at| members[at]).unwrap();
        counts[at] += 1;
        row = if at == 0 { row + 1 } else { 0 };
        assert!(row <= 3, "the heavy member got {row} turns in a row");
    }
    assert_eq!(counts, [50, 10, 0, 20]);
    assert_eq!(in_turn(0, 4, &|_| DOWN), None);
}

fn any_candidate() -> impl proptest::strategy::Strategy<Value = Candidate> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 1u32..5, 0usize..60).prop_map(
        |(up, drain, maint, weight, sessions)| Candidate {
            ready: up && !drain && !maint,
            suspect: false,
            up,
            maint,
            weight,
            sessions,
        },
    )
}

fn any_found() -> impl proptest::strategy::Strategy<Value = Found> {
    prop_oneof![
        Just(Found::Unasked),
        Just(Found::Nobody),
        Just(Found::Unsure),
        (0usize..4).prop_map(Found::Live),
        (0usize..4).prop_map(Found::Stored),
    ]
}

proptest! {
    #[test]
    fn whatever_is_known_no_session_is_sent_where_it_cannot_live(
        members in prop::array::uniform4(any_candidate()), found in any_found(), key in prop::option::of(".{0,9}"),
        pin in prop::option::of(0usize..4), must_exist: bool, local: bool, rr: bool, turn: usize,
    ) {
        let facts = Facts {
            key: key.as_deref().map(str::as_bytes), must_exist, owner_up: None, found, pin,
            strategy: if rr { Strategy::RoundRobin } else { Strategy::ConsistentHash },
            storage: if local { Storage::Local } else { Storage::Shared },
            load_factor: Some(1.25), sessions: members.iter().map(|m| m.sessions).sum(), turn,
        };
        match run(&facts, members) {
            Decision::At(at, reason) => {
                prop_assert!(members[at].up);
                if !matches!(reason, Reason::Located | Reason::Pin) { prop_assert!(members[at].ready); }
                if let Found::Live(live) = found { prop_assert_eq!(at, live); }
                if let Found::Stored(stored) = found { prop_assert_eq!(at, stored); }
            }
            Decision::Refuse(Refusal::NoBackend) => prop_assert!(members.iter().all(|m| !m.ready)),
            Decision::Refuse(refusal) => prop_assert_eq!(refusal, Refusal::OwnerDown),
            Decision::Owner | Decision::Evict => prop_assert!(false, "it is attached nowhere"),
        }
    }
}
