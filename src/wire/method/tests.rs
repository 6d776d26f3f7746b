//! The table as a whole, and what it says of single methods.

use insta::assert_snapshot;

use super::*;

fn names_of(class: Class) -> Vec<&'static str> {
    rows().filter(|method| method.class == class).map(|method| method.name).collect()
}

#[test]
fn the_tables_are_sorted_and_no_row_stands_twice() {
    for table in [&server::ROWS[..], &session::ROWS, &FAMILIES] {
        assert!(table.is_sorted_by(|a, b| a.name < b.name));
    }
    assert!(FAMILIES.iter().all(|family| family.name.ends_with(".*")));
    assert!(session::ROWS.iter().all(|method| method.name.starts_with("session.")));
    assert!(server::ROWS.iter().all(|method| !method.name.starts_with("session.")));
    for method in server::ROWS.iter().chain(&session::ROWS) {
        assert!(std::ptr::eq(Called::from(method.name).known(), method), "{}", method.name);
    }
}

/// Every method, where its session is, its class, and whether it is denied by default.
#[test]
fn every_method_has_its_place_its_class_and_its_right() {
    let line = |method: &Method| {
        let denied = if method.denied { " denied" } else { "" };
        format!("{} {:?} {:?}{denied}\n", method.name, method.session, method.class)
    };
    assert_snapshot!(rows().map(line).collect::<String>());
}

#[test]
fn what_the_table_does_not_know_is_unmovable() {
    for (name, timed) in [
        ("session.newer.thing", Timed::Other),
        ("session.newer.getThing", Timed::Read),
        ("sessions.newer", Timed::Other),
        ("newer.list", Timed::Read),
        ("", Timed::Other),
    ] {
        let called = Called::from(name);
        assert_eq!((&*called, called.known().class), (name, Class::Unmovable));
        assert_eq!((called.known().session, called.known().timed), (Where::Params, timed), "{name}");
    }
}

#[test]
fn what_is_replayed_is_a_closed_list() {
    let replayed = [
        "session.agent.deselect",
        "session.agent.select",
        "session.eventLog.registerInterest",
        "session.options.update",
        "session.permissions.setApproveAll",
        "session.tools.set",
    ];
    assert_eq!(names_of(Class::Replayed), replayed);
}

#[test]
fn a_class_agrees_with_what_a_method_names_and_changes() {
    for method in rows() {
        let (name, class) = (method.name, method.class);
        let of_none = method.session == Where::Nowhere;
        assert_eq!(of_none, class == Class::Server || of_none && class == Class::Read, "{name}");
        if method.effect != Effect::None {
            assert_eq!(class, Class::Lifecycle, "{name}");
        }
        if let Way::Fleet(_) = method.way {
            assert_eq!(class, Class::Read, "{name}");
        }
        if name.contains(".handlePending") {
            assert_eq!(class, Class::Answer, "{name}");
        }
        if class == Class::Read {
            assert!(!method.denied, "{name}: what is denied gives something away");
        }
    }
}

#[test]
fn what_is_sent_in_place_of_another_is_known_and_about_the_same_session() {
    let replaced: Vec<_> = rows().filter_map(|method| Some((method, method.instead?))).collect();
    assert_eq!(replaced.len(), 2);
    for (method, instead) in replaced {
        assert!(method.by_prefix || method.way == Way::Close, "{}", method.name);
        let sent = Called::from(instead);
        let sent = sent.known();
        assert_eq!((sent.name, sent.session, sent.effect), (instead, method.session, method.effect));
        assert!(!sent.by_prefix && sent.instead.is_none() && !sent.denied, "{instead}");
    }
    assert!(rows().all(|method| (method.way == Way::Close) <= method.instead.is_some()));
}

#[test]
fn a_row_of_its_own_comes_before_a_family_and_this_before_the_rest() {
    let of = |name: &str| Called::from(name).known();
    assert_eq!(of("plugins.builtin.set").way, Way::State);
    assert!(!of("plugins.builtin.set").denied);
    assert!(of("plugins.builtin.unset").denied);
    assert_eq!(of("llmInference.setProvider").way, Way::Provider);
    assert_eq!(of("llmInference.httpResponseChunk").way, Way::Inference);
    assert_eq!(of("session.mode.set").session, Where::Params);
    assert_eq!(of("session.mcp.listTools").timed, Timed::Read);
    assert_eq!(of("session.metadata.isProcessing").timed, Timed::Other);
}

#[test]
fn a_method_keeps_the_name_it_was_called_by() {
    for name in ["session.send", "plugins.install", "session.unheard.of", ""] {
        let called = Called::from(name);
        assert_eq!((&*called, called.to_string()), (name, name.to_owned()));
        assert_eq!(called, name.into());
        assert_ne!(called, "session.sent".into());
    }
    assert_ne!(Called::from("plugins.install"), "plugins.uninstall".into(), "one row, two names");
}

#[test]
fn only_the_beginning_of_a_uuid_is_taken_for_a_whole_id() {
    let uuid = "a2cba803-45a2-4d61-a024-e0394fe2e5c9";
    for length in 0..=36 {
        let is_one = may_be_prefix(&uuid[..length]);
        assert_eq!(is_one, (7..36).contains(&length), "{length}");
        assert_eq!(may_be_prefix(&uuid[..length].to_uppercase()), is_one, "{length}");
    }
    for id in ["user-7-chat", "a2cba80345", "a2cba803_45", "deadbeefcafe", "1234567-", ""] {
        assert!(!may_be_prefix(id), "{id}");
    }
    assert!(may_be_prefix("12345678"), "an honest ID may look like one");
}
