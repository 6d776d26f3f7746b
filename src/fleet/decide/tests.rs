//! The rules, one by one, and what must hold for any facts.

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::*;
use crate::config::Strategy;

const READY: Candidate =
    Candidate { ready: true, suspect: false, up: true, maint: false, weight: 1, ramp: WARM, sessions: 0 };
const DRAINING: Candidate = Candidate { ready: false, ..READY };
const MAINT: Candidate = Candidate { ready: false, maint: true, ..READY };
const DOWN: Candidate = Candidate { ready: false, up: false, ..READY };
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What the fleet said, with nothing but this.
fn heard(found: Found, silent: &[usize]) -> &'static Heard {
    let stored = if let Found::Stored(at) = found { vec![at] } else { Vec::new() };
    Box::leak(Box::new(Heard { found, silent: silent.into(), stored, ..Heard::default() }))
}

/// It is stored on these, and live nowhere.
fn stored(these: &[usize]) -> &'static Heard {
    Box::leak(Box::new(Heard { found: Found::Stored(these[0]), stored: these.into(), ..Heard::default() }))
}

fn may_be_live(silent: &[usize]) -> &'static Heard {
    Box::leak(Box::new(Heard { may_be_live: true, ..heard(Found::Unsure, silent).clone() }))
}

fn facts(key: &str) -> Facts<'_> {
    Facts {
        key: Some(key.as_bytes()),
        must_exist: true,
        owner_up: None,
        panic: false,
        heard: heard(Found::Unasked, &[]),
        shared: true,
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
    let facts = Facts { owner_up: Some(true), heard: heard(Found::Live(1), &[]), pin: Some(2), ..facts("k") };
    assert_eq!(run(&facts, [DOWN; 4]), Decision::Owner);
}

#[test]
fn a_down_owner_is_left_only_where_another_backend_has_the_state() {
    for storage in [Storage::Auto, Storage::Shared, Storage::Local] {
        let shared = Facts { owner_up: Some(false), storage, ..facts("k") };
        assert_eq!(run(&shared, [READY; 4]), Decision::Evict);
        let unknown = Facts { shared: false, ..shared };
        assert_eq!(run(&unknown, [READY; 4]), Decision::Refuse(Refusal::OwnerDown));
    }
}

#[test]
fn a_live_session_is_met_on_a_draining_or_maintained_backend() {
    let facts = Facts { heard: heard(Found::Live(1), &[]), pin: Some(2), ..facts("k") };
    for state in [READY, DRAINING, MAINT] {
        assert_eq!(run(&facts, with(1, state)), Decision::At(1, Reason::Located));
    }
    assert_eq!(run(&facts, with(1, DOWN)), Decision::Refuse(Refusal::OwnerDown));
}

#[test]
fn a_stored_session_waits_for_maintenance_to_end() {
    let facts = Facts { heard: heard(Found::Stored(1), &[]), storage: Storage::Local, ..facts("k") };
    assert_eq!(run(&facts, with(1, DRAINING)), Decision::At(1, Reason::Located));
    assert_eq!(run(&facts, with(1, MAINT)), Decision::Refuse(Refusal::OwnerDown));
}

#[test]
fn silence_of_one_backend_is_no_proof_of_absence() {
    let order = walk("k");
    let refused = Decision::Refuse(Refusal::OwnerDown);
    for storage in [Storage::Auto, Storage::Shared, Storage::Local] {
        let silent = |at: usize| heard(Found::Unsure, if at == 0 { &[0] } else { &[1, 2, 3] });
        for at in [0, 1] {
            let resume = Facts { storage, heard: silent(at), ..facts("k") };
            assert_eq!(run(&resume, [READY; 4]), refused, "a resume waits for who may have it");
        }
        // By who is silent, where the session would have been put, and where its pin says it was.
        let create = |silent: &[usize], pin: Option<usize>, strategy| {
            let heard = heard(Found::Unsure, silent);
            run(&Facts { storage, heard, pin, strategy, must_exist: false, ..facts("k") }, [READY; 4])
        };
        let live = Facts { storage, heard: may_be_live(&order[2..]), must_exist: false, ..facts("k") };
        assert_eq!(
            run(&live, [READY; 4]),
            refused,
            "who is up may have it wherever the ring would have put it"
        );
        let ring = Strategy::ConsistentHash;
        assert_eq!(create(&order[1..], None, ring), Decision::At(order[0], Reason::Blind));
        assert_eq!(create(&order[..1], None, ring), refused);
        assert_eq!(create(&order[2..], Some(order[1]), ring), Decision::At(order[1], Reason::Pin));
        assert_eq!(create(&order[1..], Some(order[1]), ring), refused);
        assert_eq!(create(&order[3..], None, Strategy::RoundRobin), refused, "it may have been put anywhere");
    }
}

#[test]
fn what_is_stored_goes_only_where_it_is_stored() {
    let order = walk("k");
    let on = |these: &[usize]| Facts { heard: stored(these), storage: Storage::Auto, ..facts("k") };
    assert_eq!(run(&on(&order), [READY; 4]), Decision::At(order[0], Reason::Hash));
    assert_eq!(run(&on(&order), with(order[0], DOWN)), Decision::At(order[1], Reason::Failover));
    assert_eq!(run(&on(&order[2..]), [READY; 4]), Decision::At(order[2], Reason::Located));
    assert_eq!(run(&on(&order[3..]), [READY; 4]), Decision::At(order[3], Reason::Located));
    let mut draining = [DRAINING; 4];
    draining[order[0]] = READY;
    assert_eq!(run(&on(&order[2..]), draining), Decision::At(order[2], Reason::Located), "no other has it");
    draining[order[2]] = MAINT;
    assert_eq!(run(&on(&order[2..]), draining), Decision::At(order[3], Reason::Failover));
    draining[order[3]] = DOWN;
    assert_eq!(run(&on(&order[2..]), draining), Decision::Refuse(Refusal::OwnerDown));
    let pinned = Facts { pin: Some(order[1]), must_exist: false, ..on(&order) };
    assert_eq!(run(&pinned, [READY; 4]), Decision::At(order[1], Reason::Pin));
    let elsewhere = Facts { heard: stored(&order[2..]), ..pinned };
    assert_eq!(
        run(&elsewhere, [READY; 4]),
        Decision::At(order[2], Reason::Located),
        "the pin has not got it"
    );
}

#[test]
fn balancers_agree_on_what_is_resumed_and_live_nowhere() {
    let order = walk("key");
    let mut members = [Candidate { sessions: 20, ..READY }; 4];
    members[order[0]] = Candidate { sessions: 100, ramp: 10, ..READY };
    for heard in [heard(Found::Nobody, &[]), stored(&order)] {
        for (strategy, pin, turn) in [
            (Strategy::RoundRobin, None, 3),
            (Strategy::RoundRobin, Some(order[2]), 1),
            (Strategy::ConsistentHash, None, 0),
        ] {
            let resume = Facts { heard, strategy, pin, turn, sessions: 160, ..facts("key") };
            assert_eq!(run(&resume, members), Decision::At(order[0], Reason::Hash), "{strategy:?} {pin:?}");
            members[order[0]].ready = false;
            assert_eq!(run(&resume, members), Decision::At(order[1], Reason::Failover));
            members[order[0]].ready = true;
        }
    }
}

#[test]
fn a_pin_holds_while_its_backend_takes_sessions() {
    let pinned = Facts { pin: Some(2), ..facts("k") };
    assert_eq!(run(&pinned, [READY; 4]), Decision::At(2, Reason::Pin));
    assert_ne!(run(&pinned, with(2, DRAINING)), Decision::At(2, Reason::Pin));
    for storage in [Storage::Local, Storage::Auto] {
        let own = Facts { storage, ..pinned.clone() };
        assert_eq!(run(&own, with(2, DRAINING)), Decision::At(2, Reason::Pin), "only it has the state");
        assert_eq!(run(&own, with(2, DOWN)), Decision::Refuse(Refusal::OwnerDown));
        let nobody = Facts { heard: heard(Found::Nobody, &[]), ..own };
        assert!(matches!(run(&nobody, with(2, DOWN)), Decision::At(at, _) if at != 2), "the pin is stale");
    }
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

#[test]
fn a_panic_leaves_an_attached_session_where_it_is() {
    let facts = Facts { owner_up: Some(false), panic: true, ..facts("k") };
    assert_eq!(run(&facts, [READY; 4]), Decision::Refuse(Refusal::OwnerDown));
    let up = Facts { owner_up: Some(true), ..facts.clone() };
    assert_eq!(run(&up, [READY; 4]), Decision::Owner);
    let unattached = Facts { owner_up: None, ..facts };
    assert!(matches!(run(&unattached, [READY; 4]), Decision::At(_, Reason::Hash)), "nobody is turned away");
}

/// How many of `keys` keys each member gets, and why it was not their place on the ring.
fn shares(members: [Candidate; 4], keys: usize) -> ([usize; 4], Vec<Reason>) {
    let ring = ring();
    let mut counts = [0_usize; 4];
    let mut reasons = Vec::new();
    for key in 0..keys {
        let key = format!("session-{key}");
        let Decision::At(at, reason) = decide(&facts(&key), &ring, 4, |at| members[at]) else { panic!() };
        counts[at] = counts[at].saturating_add(1);
        if reason != Reason::Hash && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    (counts, reasons)
}

#[test]
fn a_cold_backend_takes_the_part_of_its_keys_that_it_is_warm_enough_for() {
    let (warm, _) = shares([READY; 4], 4000);
    let mut before = 0;
    for ramp in [10, 25, 50, 75] {
        let (counts, reasons) = shares(with(1, Candidate { ramp, ..READY }), 4000);
        let percent = counts[1] * 100 / warm[1];
        let expected = usize::try_from(ramp).unwrap();
        assert!(percent.abs_diff(expected) <= 3, "{percent}% at a ramp of {ramp}%");
        assert!(counts[1] > before && [0, 2, 3].iter().all(|at| counts[*at] >= warm[*at]), "{counts:?}");
        assert_eq!(reasons, [Reason::SlowStart]);
        before = counts[1];
    }
}

#[test]
fn a_key_that_a_cold_backend_has_taken_is_taken_when_it_is_warmer() {
    let taken = |ramp, key: &str| {
        let members = with(1, Candidate { ramp, ..READY });
        decide(&facts(key), &ring(), 4, |at| members[at]) == Decision::At(1, Reason::Hash)
    };
    let keys: Vec<String> = (0..300).map(|key| format!("session-{key}")).collect();
    for key in &keys {
        let row = [10, 40, 70, 100].map(|ramp| taken(ramp, key));
        assert!(row.is_sorted(), "{key}: {row:?}");
    }
    assert!(keys.iter().any(|key| taken(10, key)), "or this test shows nothing");
}

#[test]
fn a_fleet_that_came_up_as_one_is_as_good_as_warm() {
    let cold = Candidate { ramp: 10, ..READY };
    assert_eq!(shares([cold; 4], 500), shares([READY; 4], 500));
    let turns = |candidate| (0..40).map(|turn| in_turn(turn, 4, &|_| candidate)).collect::<Vec<_>>();
    assert_eq!(turns(cold), turns(READY));
    let alone: [Candidate; 4] = std::array::from_fn(|at| if at == 2 { cold } else { DOWN });
    assert_eq!(shares(alone, 50).0, [0, 0, 50, 0], "the only one takes all");
}

#[test]
fn turns_of_a_cold_backend_are_fewer() {
    let members = with(3, Candidate { ramp: 25, ..READY });
    let mut counts = [0; 4];
    for turn in 0..1300 {
        counts[in_turn(turn, 4, &|at| members[at]).unwrap()] += 1;
    }
    for (at, expected) in [400, 400, 400, 100].into_iter().enumerate() {
        assert!(usize::abs_diff(counts[at], expected) <= 4, "{counts:?}");
    }
}

#[test]
fn the_bound_on_load_does_not_push_sessions_onto_a_cold_backend() {
    let order = walk("key");
    let mut members = [Candidate { sessions: 50, ..READY }; 4];
    members[order[1]] = Candidate { ramp: 10, sessions: 0, ..READY };
    let facts = Facts { sessions: 150, ..facts("key") };
    // By whole weights 50 would be over 1.25 times a quarter of 151.
    assert_eq!(run(&facts, members), Decision::At(order[0], Reason::Hash));
    members[order[1]].ramp = WARM;
    assert_eq!(run(&facts, members), Decision::At(order[1], Reason::Spill));
}

fn any_candidate() -> impl proptest::strategy::Strategy<Value = Candidate> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 1u32..5, 10u32..=WARM, 0usize..60).prop_map(
        |(up, drain, maint, weight, ramp, sessions)| Candidate {
            ready: up && !drain && !maint,
            suspect: false,
            up,
            maint,
            weight,
            ramp,
            sessions,
        },
    )
}

fn any_storage() -> impl proptest::strategy::Strategy<Value = Storage> {
    prop_oneof![Just(Storage::Auto), Just(Storage::Shared), Just(Storage::Local)]
}

fn any_heard() -> impl proptest::strategy::Strategy<Value = Heard> {
    let some = || prop::sample::subsequence(vec![0usize, 1, 2, 3], 1..=4);
    (0..5, some(), some(), 0usize..4).prop_map(|(which, silent, stored, live)| match which {
        0 => Heard { found: Found::Unasked, ..Heard::default() },
        1 => Heard { found: Found::Nobody, ..Heard::default() },
        2 => Heard { found: Found::Unsure, silent, ..Heard::default() },
        3 => Heard { found: Found::Live(live), ..Heard::default() },
        _ => Heard { found: Found::Stored(stored[0]), stored, ..Heard::default() },
    })
}

proptest! {
    #[test]
    fn whatever_is_known_no_session_is_sent_where_it_cannot_live(
        members in prop::array::uniform4(any_candidate()), heard in any_heard(), key in prop::option::of(".{0,9}"),
        pin in prop::option::of(0usize..4), must_exist: bool, storage in any_storage(), rr: bool, turn: usize,
    ) {
        let facts = Facts {
            key: key.as_deref().map(str::as_bytes), must_exist, owner_up: None, panic: false, heard: &heard, shared: false, pin,
            strategy: if rr { Strategy::RoundRobin } else { Strategy::ConsistentHash },
            storage, load_factor: Some(1.25), sessions: members.iter().map(|m| m.sessions).sum(), turn,
        };
        match run(&facts, members) {
            Decision::At(at, reason) => {
                prop_assert!(members[at].up);
                let stored = matches!(heard.found, Found::Stored(_));
                let any_ready = heard.stored.iter().any(|at| members[*at].ready);
                if stored {
                    prop_assert!(heard.stored.contains(&at) && !members[at].maint);
                    if heard.stored.len() > 1 && any_ready && key.is_some() { prop_assert!(members[at].ready); }
                } else if !matches!(reason, Reason::Located | Reason::Pin) {
                    prop_assert!(members[at].ready);
                }
                if let Found::Live(live) = heard.found { prop_assert_eq!(at, live); }
                if heard.found == Found::Unsure {
                    prop_assert!(!must_exist && !rr, "silence was taken for absence");
                    let natural = key.as_ref().and_then(|key| ring().walk(key.as_bytes()).next());
                    prop_assert!(natural.into_iter().chain(pin).all(|at| !heard.silent.contains(&at)));
                }
            }
            Decision::Refuse(Refusal::NoBackend) => prop_assert!(members.iter().all(|m| !m.ready)),
            Decision::Refuse(refusal) => prop_assert_eq!(refusal, Refusal::OwnerDown),
            Decision::Owner | Decision::Evict => prop_assert!(false, "it is attached nowhere"),
        }
    }
}
