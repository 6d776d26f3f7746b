//! What operators see: the golden text of problems. Read a changed one as an operator would before accepting it.

use insta::assert_snapshot;

use super::*;

#[test]
fn renders_names_that_cannot_be_looked_up() {
    assert_snapshot!(rendered(
        "[[listener]]\naddress = '127.0.0.1:4321'\n[discovery]\nnameservers = ['dns']\nttl_min = '1m'\nbackends = 0\n\
         [[backend]]\nname = 'a'\naddress = '10.0.0.1:4321'\nresolve = 'all'\n\
         [[backend]]\nname = 'b'\naddress = 'cli.test:4321'\nresolve = 'srv'\nweight = 2\n\
         [[backend]]\nname = 'c'\naddress = 'cli.test:4321'\nresolve = 'a'\n"
    ));
}

#[test]
fn renders_a_typo_in_a_key() {
    assert_snapshot!(rendered(&format!("{SOUND}wieght = 3\n[health]\ninterval = '1s'\nopening = '2s'\n")));
}

#[test]
fn renders_unknown_sections() {
    let text = format!(
        "strategy = 'round-robin'\n{SOUND}[helth]\ninterval = '2s'\n[[backends]]\nname = 'x'\n[tls]\n"
    );
    assert_snapshot!(rendered(&text));
}

#[test]
fn renders_wrong_types() {
    assert_snapshot!(rendered(
        "listener = 1\n[health]\ninterval = 2\nrise = '2'\n[limits]\nopening_bytes = true\n[placement]\n\
         load_factor = '1.25'\nstrategy = 3\n[[timeouts]]\n[backend]\nname = 'a'\n"
    ));
}

#[test]
fn renders_values_out_of_range() {
    assert_snapshot!(rendered(&format!(
        "{SOUND}weight = 0\n[health]\ninterval = '1ms'\nfall = -1\n[timeouts]\nidle = '1ms'\ndrain = '400days'\n\
         connect = '2 parsecs'\n[limits]\nopening_bytes = '2TiB'\nconnections = 99999999999999999999\n\
         [placement]\nload_factor = 0.5\n"
    )));
}

#[test]
fn renders_wrong_words() {
    assert_snapshot!(rendered(&format!(
        "{SOUND}state = 'Drain'\n[placement]\nstrategy = 'consistent_hash'\nstorage = 'nfs'\non_down = ''\n"
    )));
}

#[test]
fn renders_routing_that_does_not_exist() {
    assert_snapshot!(rendered(
        "[[listener]]\naddress = '127.0.0.1:4321'\nrouting = 'sessions'\ntls = {}\n[[backend]]\nname = 'a'\naddress = 'a:1'\n"
    ));
}

#[test]
fn renders_addresses_and_names() {
    assert_snapshot!(rendered(
        r#"
[[listener]]
address = ":4321"
[[listener]]
address = "localhost:4321"
[admin]
address = "0.0.0.0:9321"
metrics_address = "0.0.0.0"
[[backend]]
name = "cli 1"
address = "http://cli-1:4321"
[[backend]]
name = "cli-2"
address = "::1:4321"
[[backend]]
name = "cli-3"
address = "cli-3"
[[backend]]
name = "cli-4"
address = "cli-4:99999"
"#
    ));
}

#[test]
fn renders_things_that_are_there_twice() {
    assert_snapshot!(rendered(
        r#"
[[listener]]
address = "0.0.0.0:4321"
[[listener]]
address = "0.0.0.0:4321"
[admin]
address = "127.0.0.1:4321"
[[backend]]
name = "cli-1"
address = "cli-1:4321"
[[backend]]
name = "cli-1"
address = "localhost:4321"
"#
    ));
}

#[test]
fn a_default_can_collide_too() {
    let problems = parsed(&SOUND.replace("127.0.0.1:4321", "0.0.0.0:9321")).expect_err("the admin address");
    let [problem] = problems.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(problem.message, "the listener 0.0.0.0:9321 collides with the admin address 127.0.0.1:9321");
    assert_eq!(problem.position, Some(Position { line: 3, column: 11 }));
}

#[test]
fn names_twice_on_one_line_are_seen() {
    let backend = "{ name = 'a', address = 'a:1' }";
    let problems =
        parsed(&format!("listener = [{{}}]\nbackend = [{backend}, {backend}]")).expect_err("a name twice");
    assert_eq!(
        problems.to_string(),
        "sessile.toml:2:54: `backend.name` \"a\" is already the name of another backend"
    );
}

/// What a line at fault for its syntax says is unknown: nothing may be built on its default.
#[test]
fn a_syntax_error_makes_no_other_problem() {
    for text in [
        "[[listener]]\naddress = 127.0.0.1:9\n[[backend]]\nname = 'a'\naddress = 'localhost:4321'",
        "[[listener]]\naddress = '0.0.0.0:9321'\n[admin]\naddress = 127.0.0.1:9\n[[backend]]\nname = 'a'\naddress = 'a:1'",
        "[[listener]]\n[health]\ninterval = 9s\ntimeout = '5s'\n[[backend]]\nname = 'a'\naddress = 'a:1'",
        "[[listener]]\n[[backend]]\nname = a\naddress = 'a:1'",
    ] {
        let problems = parsed(text).expect_err(text);
        assert_eq!(problems.count(), 1, "{problems}");
    }
}

#[test]
fn renders_what_is_missing() {
    assert_snapshot!(rendered("[[backend]]\nweight = 1\n"));
    assert_snapshot!(rendered(""));
}

#[test]
fn renders_rules_between_values() {
    assert_snapshot!(rendered(&format!(
        "{SOUND}[health]\ninterval = '500ms'\ntimeout = '1s'\n[limits]\nopening_bytes = '64MiB'\nopening_memory = '32MiB'\n"
    )));
}

#[test]
fn renders_patterns() {
    let pattern = |text: &str| rendered(&format!("{SOUND}[placement]\naffinity_pattern = '{text}'\n"));
    assert_snapshot!(pattern("^user-"));
    assert_snapshot!(pattern("^user-("));
    assert_snapshot!(pattern("(a{1000}){1000}"));
}

#[test]
fn renders_commands() {
    let command = |words: &str| rendered(&format!("{SOUND}[health]\nrestart_command = {words}\n"));
    assert_snapshot!(command("[]"));
    assert_snapshot!(command("'systemctl restart x'"));
    assert_snapshot!(command("['', 'restart', 'copilot-cli@{nmae}', 7, 'ä{', '{{name}}']"));
    assert_snapshot!(command("['/opt/{name}/restart']\nrestart_after = '0s'\nrestart_timeout = '2h'"));
    assert_snapshot!(command("[\n  'bin/restart',\n  \"a\\u0000b\",\n]"));
}

#[test]
fn renders_method_rules() {
    assert_snapshot!(rendered(
        "[[listener]]\nmethods_allow = 'plugins.list'\nmethods_deny = ['a.*.b', 7]\n[[backend]]\nname = 'a'\naddress = 'a:1'\n"
    ));
}

#[test]
fn renders_a_syntax_error_and_what_is_wrong_besides() {
    assert_snapshot!(rendered(
        "[[listener]]\naddress = 0.0.0.0:4321\n[health]\ninterval = 2s\nrise 3\ntimout = '1s'\n[[backend]]\nname = 'a\naddress = 'a'\n"
    ));
}

#[test]
fn renders_an_unclosed_list_once() {
    assert_snapshot!(rendered(
        "[[listener]]\nmethods_deny = [\n  'a',\n  'b'\n[[backend]]\nname = 'a'\naddress = 'a:1'\nweight = 2\n"
    ));
}

#[test]
fn renders_a_key_and_a_section_written_twice() {
    assert_snapshot!(rendered(&format!("{SOUND}[health]\nrise = 1\nrise = 2\n")));
    assert_snapshot!(rendered(&format!("{SOUND}[health]\nrise = 1\n[health]\nfall = 2\n")));
}

#[test]
fn a_misspelt_address_of_a_listener_is_one_problem() {
    let text = "[[listener]]\nadress = '0.0.0.0:9321'\n[[listener]]\naddress = '0.0.0.0:4321'\n\
                [[backend]]\nname = 'a'\naddress = 'a:1'\n";
    let said = rendered(text);
    assert!(said.contains("unknown key `adress`") && said.ends_with("sessile.toml: 1 problem\n"), "{said}");
}

#[test]
fn display_is_one_problem_a_line() {
    let problems =
        parsed("[health]\nrise = 0\n\tfall = 'ä'\n[x]\n").expect_err("three problems and two missing");
    assert_snapshot!(problems.to_string());
    assert!(problems.iter().filter_map(|problem| problem.position).is_sorted());
}

#[test]
fn positions_count_characters_from_one() {
    let problems = parsed("\u{feff}# ä\nä = 'ö'\r\nhealth = { ü = 1 }\n").expect_err("unknown keys");
    let positions: Vec<_> = problems.iter().filter_map(|problem| problem.position).collect();
    assert_eq!(positions, [Position { line: 2, column: 1 }, Position { line: 3, column: 12 }]);
}

#[test]
fn color_adds_nothing_but_color() {
    let problems = parsed("[health]\nrise = 0\n").expect_err("a bound");
    let colored = problems.render(true);
    assert!(colored.contains('\u{1b}') && !problems.render(false).contains('\u{1b}'));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let problems = parsed(
        "\"\\u001b[2J\" = 1\n[health]\n\"a\\nb\" = 1\nrise\u{1b} = 1\n[placement]\nstorage = \"\\u001b]0;x\\u0007\"\n",
    );
    let problems = problems.expect_err("unknown keys");
    assert!(!problems.render(false).contains(['\u{1b}', '\u{7}']));
    assert!(!problems.to_string().contains(['\u{1b}', '\u{7}']));
    assert!(problems.iter().all(|problem| !problem.message.contains('\n')));
}
